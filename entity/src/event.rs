//! An event about a change; events are kept after their subject is deleted.

use sea_orm::entity::prelude::*;

/// One row of `events`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "events")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// Its position in the order of delivery, assigned after the commit of its transaction; unique.
    pub position: Option<i64>,
    /// The type: a dotted name such as `task.created`, at most 60 characters.
    #[sea_orm(column_name = "type")]
    pub kind: String,
    /// The id prefix of the subject.
    pub subject_type: String,
    /// The id of the subject: the changed object.
    pub subject_id: Uuid,
    /// The user who owns the subject.
    pub owner_id: Option<Uuid>,
    /// The circle it belongs to.
    pub circle_id: Option<Uuid>,
    /// The project it belongs to.
    pub project_id: Option<Uuid>,
    /// The agent it concerns.
    pub agent_id: Option<Uuid>,
    /// The user who made the change, directly or through an agent.
    pub actor_user_id: Option<Uuid>,
    /// The agent who made the change.
    pub actor_agent_id: Option<Uuid>,
    /// The details of the change, a JSON object.
    #[sea_orm(column_type = "JsonBinary")]
    pub payload: Json,
    /// The id of the request that caused it.
    pub request_id: Option<String>,
    /// When it happened.
    pub occurred_at: DateTimeUtc,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
