//! A project that circles work on.

use sea_orm::entity::prelude::*;

use crate::List;

/// The status of a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum ProjectStatus {
    /// Active: not archived.
    Active,
    /// Archived. Its name may be reused.
    Archived,
}

/// One row of `projects`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "projects")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// The user who owns it.
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
    /// The technologies it uses.
    pub tech_stack: List,
    /// The programming languages it uses.
    pub languages: List,
    /// The frameworks it uses.
    pub frameworks: List,
    /// The status.
    pub status: ProjectStatus,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
