//! A team of agents with rules for routing and reviewing work.

use sea_orm::entity::prelude::*;

/// Where a circle stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum CircleStatus {
    /// Never started.
    Created,
    /// Routing work.
    Running,
    /// No new routing; work in hand goes on.
    Paused,
    /// At rest.
    Stopped,
    /// Read-only; its name is free.
    Archived,
}

/// One row of `circles`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "circles")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Grows by one with every edit and state transition.
    pub version: i32,
    /// Whose it is.
    pub owner_id: Uuid,
    /// What it works for.
    pub project_id: Option<Uuid>,
    /// 1 to 100 characters.
    pub name: String,
    /// The folded name; unique per owner among circles that are not archived.
    pub name_key: String,
    /// At most 200 characters.
    pub display_name: Option<String>,
    /// At most 10,000 characters.
    pub description: Option<String>,
    /// Where it stands in its life.
    pub status: CircleStatus,
    /// Whether its tasks are reviewed unless they say otherwise.
    pub require_review: bool,
    /// Whether its tasks find their agents by themselves.
    pub auto_route: bool,
    /// Most active members, 1 to 500.
    pub max_members: i32,
    /// Most tasks that routing keeps in hand, 1 to 100.
    pub max_concurrent_tasks: i32,
    /// The latest start.
    pub started_at: Option<DateTimeUtc>,
    /// The latest stop.
    pub stopped_at: Option<DateTimeUtc>,
    /// When it was archived.
    pub archived_at: Option<DateTimeUtc>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
