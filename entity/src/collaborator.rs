//! A user with whom the owner shares a circle.

use sea_orm::entity::prelude::*;

/// The role of a collaborator in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum CollaboratorRole {
    /// May read everything in the circle.
    Viewer,
    /// May also change its members, tasks and conversations, and start, pause or stop it.
    Editor,
}

/// One row of `circle_collaborators`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "circle_collaborators")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// The circle; unique together with the user.
    pub circle_id: Uuid,
    /// The collaborator.
    pub user_id: Uuid,
    /// The collaborator's role.
    pub role: CollaboratorRole,
    /// The user who shared the circle.
    pub added_by: Option<Uuid>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
