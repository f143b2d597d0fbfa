//! A refresh token, usable once; the token itself is never stored.

use sea_orm::entity::prelude::*;

/// One row of `refresh_tokens`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "refresh_tokens")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// Whose it is.
    pub user_id: Uuid,
    /// Shared by all tokens that descend from one sign-in.
    pub family_id: Uuid,
    /// SHA-256 of the token, in hexadecimal; unique.
    pub token_hash: String,
    /// No use after this moment.
    pub expires_at: DateTimeUtc,
    /// When it was exchanged.
    pub used_at: Option<DateTimeUtc>,
    /// The token it was exchanged for.
    pub replaced_by: Option<Uuid>,
    /// When its family was revoked.
    pub revoked_at: Option<DateTimeUtc>,
    /// The address it was given to.
    pub client_ip: Option<String>,
    /// The program it was given to.
    pub user_agent: Option<String>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
