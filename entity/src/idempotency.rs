//! What was done under an idempotency key.

use sea_orm::entity::prelude::*;

/// One row of `idempotency_keys`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency_keys")]
pub struct Model {
    /// Whose request it was.
    #[sea_orm(primary_key, auto_increment = false)]
    pub user_id: Uuid,
    /// The key, 1 to 255 characters.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// The root field, as a hash of the key of its answer; empty for the request as a whole.
    #[sea_orm(primary_key, auto_increment = false)]
    pub field: String,
    /// The request as a whole: the SHA-256 of what was asked, in lower-case hexadecimal.
    pub fingerprint: Option<String>,
    /// The request as a whole: its answer. A root field: what its change came to.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub outcome: Option<Json>,
    /// When the row was made.
    pub created_at: DateTimeUtc,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
