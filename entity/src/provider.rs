//! A company or local server that runs language models.

use sea_orm::entity::prelude::*;

/// One row of `providers`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "providers")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Unique; lower-case letters, digits, `_` and `-`, 1 to 50 characters.
    pub name: String,
    /// 1 to 100 characters.
    pub display_name: String,
    /// The base URL of its API; NULL means the default for its name.
    pub api_base_url: Option<String>,
    /// Whether it runs on-premises.
    pub is_local: bool,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
