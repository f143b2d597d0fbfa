//! A fact about a change, kept though its subject may be gone.

use sea_orm::entity::prelude::*;

/// One row of `events`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "events")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// Its place in the order of delivery, given after its transaction has committed; unique.
    pub position: Option<i64>,
    /// A dotted name such as `task.created`, at most 60 characters.
    #[sea_orm(column_name = "type")]
    pub kind: String,
    /// The public prefix of what changed.
    pub subject_type: String,
    /// What changed.
    pub subject_id: Uuid,
    /// The user who owns it.
    pub owner_id: Option<Uuid>,
    /// The circle it belongs to.
    pub circle_id: Option<Uuid>,
    /// The project it belongs to.
    pub project_id: Option<Uuid>,
    /// The agent it concerns.
    pub agent_id: Option<Uuid>,
    /// The user who made the change, or had an agent make it.
    pub actor_user_id: Option<Uuid>,
    /// The agent who made the change.
    pub actor_agent_id: Option<Uuid>,
    /// The change itself, an object.
    #[sea_orm(column_type = "JsonBinary")]
    pub payload: Json,
    /// The request in which it happened.
    pub request_id: Option<String>,
    /// When it happened.
    pub occurred_at: DateTimeUtc,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
