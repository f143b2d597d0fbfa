//! Access tokens that are refused before they expire.

use sea_orm::entity::prelude::*;

/// Why an access token was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum RevocationReason {
    /// The user signed out.
    Logout,
    /// The user's password was changed.
    PasswordChanged,
    /// An administrator revoked it.
    Admin,
    /// A used refresh token of the session was presented again.
    Reuse,
}

/// One row of `revoked_tokens`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "revoked_tokens")]
pub struct Model {
    /// The session of the revoked tokens: their claim `sid`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub jti: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// The user.
    pub user_id: Uuid,
    /// When the last of the tokens expires; the row may then be deleted.
    pub expires_at: DateTimeUtc,
    /// When it was revoked.
    pub revoked_at: DateTimeUtc,
    /// Why it was revoked.
    pub reason: RevocationReason,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
