//! What circles work for.

use sea_orm::entity::prelude::*;

use crate::List;

/// Whether a project is still worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum ProjectStatus {
    /// Worked on.
    Active,
    /// Put away; its name is free.
    Archived,
}

/// One row of `projects`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "projects")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Whose it is.
    pub owner_id: Uuid,
    /// 1 to 200 characters.
    pub name: String,
    /// The folded name; unique per owner among active projects.
    pub name_key: String,
    /// At most 10,000 characters.
    pub description: Option<String>,
    /// At most 2,048 characters.
    pub repository_url: Option<String>,
    /// 1 to 100 characters.
    pub default_branch: String,
    /// What it is built with.
    pub tech_stack: List,
    /// What it is written in.
    pub languages: List,
    /// What it is built on.
    pub frameworks: List,
    /// Whether it is still worked on.
    pub status: ProjectStatus,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
