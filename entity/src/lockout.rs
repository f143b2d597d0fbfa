//! Failed sign-ins, counted per account, per network, and per account and network.

use sea_orm::entity::prelude::*;

/// One row of `lockouts`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "lockouts")]
pub struct Model {
    /// The subject of the counter, as two hexadecimal hashes: of the account, and of the other parts.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// Number of consecutive failures.
    pub failures: i32,
    /// Sign-in attempts are refused until this time.
    pub locked_until: Option<DateTimeUtc>,
    /// When the row may be deleted.
    pub expires_at: DateTimeUtc,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
