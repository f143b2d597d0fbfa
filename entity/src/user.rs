//! A person who may sign in.

use sea_orm::entity::prelude::*;

/// A user's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum UserRole {
    /// Own things and what is shared.
    User,
    /// Everything, everywhere.
    Admin,
}

/// One row of `users`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// As typed, 3 to 254 characters.
    pub email: String,
    /// The folded e-mail; unique.
    pub email_key: String,
    /// 1 to 100 characters.
    pub name: String,
    /// PHC string.
    pub password_hash: String,
    /// What the user may do beyond their own things.
    pub role: UserRole,
    /// False once deactivated; users are never deleted.
    pub is_active: bool,
    /// Tokens made under an earlier number are void.
    pub token_version: i32,
    /// The latest sign-in.
    pub last_login_at: Option<DateTimeUtc>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
