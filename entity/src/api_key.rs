//! An API key, with which a program authenticates; only its hash is stored.

use sea_orm::entity::prelude::*;

use crate::List;

/// One row of `api_keys`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// The user on whose behalf the key acts.
    pub user_id: Uuid,
    /// The agent on whose behalf the key acts, in the agent's circles only.
    pub agent_id: Option<Uuid>,
    /// 1 to 100 characters.
    pub name: String,
    /// SHA-256 of the key, in hexadecimal; unique.
    pub secret_hash: String,
    /// The first characters of the key, to recognise it.
    pub prefix: String,
    /// The operations that the key allows: `READ`, `WRITE` and `ADMIN`.
    pub scopes: List,
    /// Whether the key is limited to the circles in `api_key_circles`.
    pub is_limited: bool,
    /// The name of the class of its rate limits.
    pub quota_class: Option<String>,
    /// Invalid after this time.
    pub expires_at: Option<DateTimeUtc>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTimeUtc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTimeUtc>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
