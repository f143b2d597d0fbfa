//! A company or local server that runs language models.

use sea_orm::entity::prelude::*;

/// One row of `providers`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "providers")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Unique; lower-case letters, digits, `_` and `-`, 1 to 50 characters.
    pub name: String,
    /// 1 to 100 characters.
    pub display_name: String,
    /// Where its API answers, unless that is known from the name.
    pub api_base_url: Option<String>,
    /// Whether it runs on the same premises.
    pub is_local: bool,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
