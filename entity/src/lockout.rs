//! Failed sign-ins of one account, one network, or one account as seen from one network.

use sea_orm::entity::prelude::*;

/// One row of `lockouts`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "lockouts")]
pub struct Model {
    /// What the failures are counted for, as two hashes in hexadecimal: of the account, and of the rest.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// Failures in a row.
    pub failures: i32,
    /// No attempt before this moment.
    pub locked_until: Option<DateTimeUtc>,
    /// When the row loses its meaning.
    pub expires_at: DateTimeUtc,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
