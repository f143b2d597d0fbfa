//! A team of agents with rules for routing and reviewing work.

use sea_orm::entity::prelude::*;

/// The status of a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum CircleStatus {
    /// Created, never started.
    Created,
    /// Running: tasks are routed to members.
    Running,
    /// Paused: no new tasks are routed; tasks in progress continue.
    Paused,
    /// Stopped: no work is done.
    Stopped,
    /// Archived: read-only. Its name may be reused.
    Archived,
}

/// One row of `circles`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "circles")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Incremented by each edit and state transition; used for optimistic locking.
    pub version: i32,
    /// The user who owns it.
    pub owner_id: Uuid,
    /// The project.
    pub project_id: Option<Uuid>,
    /// 1 to 100 characters.
    pub name: String,
    /// The folded name; unique per owner among circles that are not archived.
    pub name_key: String,
    /// At most 200 characters.
    pub display_name: Option<String>,
    /// At most 10,000 characters.
    pub description: Option<String>,
    /// The status.
    pub status: CircleStatus,
    /// Whether tasks require a review by default.
    pub require_review: bool,
    /// Whether its tasks are assigned to agents automatically.
    pub auto_route: bool,
    /// Maximum number of active members, 1 to 500.
    pub max_members: i32,
    /// Maximum number of tasks that routing keeps assigned at the same time, 1 to 100.
    pub max_concurrent_tasks: i32,
    /// When it was last started.
    pub started_at: Option<DateTimeUtc>,
    /// When it was last stopped.
    pub stopped_at: Option<DateTimeUtc>,
    /// When it was archived.
    pub archived_at: Option<DateTimeUtc>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
