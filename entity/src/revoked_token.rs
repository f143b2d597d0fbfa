//! Access tokens that must be refused although they have not expired.

use sea_orm::entity::prelude::*;

/// Why an access token was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum RevocationReason {
    /// Its user signed out.
    Logout,
    /// Its user's password was changed.
    PasswordChanged,
    /// An administrator revoked it.
    Admin,
    /// A used refresh token of its family was presented again.
    Reuse,
}

/// One row of `revoked_tokens`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "revoked_tokens")]
pub struct Model {
    /// The session whose tokens they are: they name it as `sid`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub jti: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// Whose it was.
    pub user_id: Uuid,
    /// When the last of the tokens has expired, and this row loses its meaning.
    pub expires_at: DateTimeUtc,
    /// When it was revoked.
    pub revoked_at: DateTimeUtc,
    /// Why it was revoked.
    pub reason: RevocationReason,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
