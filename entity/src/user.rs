//! A user: a person who may sign in, or a service account.

use sea_orm::entity::prelude::*;

/// A user's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum UserRole {
    /// May use their own objects and those shared with them.
    User,
    /// May read and change everything.
    Admin,
}

/// The kind of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum UserKind {
    /// Signs in with a password.
    Person,
    /// A program, which authenticates with API keys and has no password.
    Service,
}

/// One row of `users`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// The e-mail address as entered, 3 to 254 characters.
    pub email: String,
    /// The folded e-mail; unique.
    pub email_key: String,
    /// 1 to 100 characters.
    pub name: String,
    /// The password hash, a PHC string; empty for a user who has none.
    pub password_hash: String,
    /// The role.
    pub role: UserRole,
    /// False after deactivation.
    pub is_active: bool,
    /// Tokens issued under a lower number are invalid.
    pub token_version: i32,
    /// When the user last signed in.
    pub last_login_at: Option<DateTimeUtc>,
    /// The kind.
    pub kind: UserKind,
    /// The person who owns a service account.
    pub owner_id: Option<Uuid>,
    /// The quota class, which need not be configured; `None` for the standard limits.
    pub quota_class: Option<String>,
    /// When the user proved to receive mails at the address.
    pub email_verified_at: Option<DateTimeUtc>,
    /// When the account was deleted. The row stays without personal data, because others refer to it.
    pub deleted_at: Option<DateTimeUtc>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
