//! A refresh token, usable once; only its hash is stored.

use sea_orm::entity::prelude::*;

/// One row of `refresh_tokens`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "refresh_tokens")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// The user who owns it.
    pub user_id: Uuid,
    /// The session: shared by all tokens that descend from one sign-in.
    pub family_id: Uuid,
    /// SHA-256 of the token, in hexadecimal; unique.
    pub token_hash: String,
    /// Invalid after this time.
    pub expires_at: DateTimeUtc,
    /// When it was used.
    pub used_at: Option<DateTimeUtc>,
    /// The token that replaced it.
    pub replaced_by: Option<Uuid>,
    /// When its session was revoked.
    pub revoked_at: Option<DateTimeUtc>,
    /// The IP address of the client that received it.
    pub client_ip: Option<String>,
    /// The `User-Agent` of the client that received it.
    pub user_agent: Option<String>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
