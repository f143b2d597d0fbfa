//! The stored result of a request with an idempotency key.

use sea_orm::entity::prelude::*;

/// One row of `idempotency_keys`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency_keys")]
pub struct Model {
    /// The user who sent the request.
    #[sea_orm(primary_key, auto_increment = false)]
    pub user_id: Uuid,
    /// The key, 1 to 255 characters.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// A hash of the response key of the root field; empty in the row for the whole request.
    #[sea_orm(primary_key, auto_increment = false)]
    pub field: String,
    /// Row of the request: SHA-256 of its content, in lower-case hexadecimal. NULL in rows of root fields.
    pub fingerprint: Option<String>,
    /// Row of the request: its response. Row of a root field: the result of its change.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub outcome: Option<Json>,
    /// When the row was created.
    pub created_at: DateTimeUtc,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
