//! Another user with whom a circle is shared.

use sea_orm::entity::prelude::*;

/// What a collaborator may do in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum CollaboratorRole {
    /// Read everything.
    Viewer,
    /// Also change members, tasks and conversations, and start, pause or stop it.
    Editor,
}

/// One row of `circle_collaborators`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "circle_collaborators")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// The circle; unique together with the user.
    pub circle_id: Uuid,
    /// With whom it is shared.
    pub user_id: Uuid,
    /// What the user may do there.
    pub role: CollaboratorRole,
    /// Who shared it.
    pub added_by: Option<Uuid>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
