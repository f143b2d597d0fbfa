//! A piece of work in a circle.

use sea_orm::entity::prelude::*;

use crate::List;

/// How pressing a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum Priority {
    /// Can wait.
    Low,
    /// In its turn.
    Medium,
    /// Before others.
    High,
    /// Before everything.
    Critical,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum TaskStatus {
    /// Nobody has it.
    Pending,
    /// An agent has it and has not begun.
    Assigned,
    /// Being done.
    InProgress,
    /// Submitted, to be judged.
    InReview,
    /// Judged, to be done again.
    ChangesRequested,
    /// Cannot go on for now.
    Blocked,
    /// Done.
    Completed,
    /// Given up.
    Failed,
    /// No longer wanted.
    Cancelled,
}

/// How a task is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum ReviewType {
    /// As code.
    Code,
    /// As a design.
    Architecture,
    /// For its security.
    Security,
    /// As a text.
    Documentation,
    /// For its quality as a whole.
    Quality,
    /// Before it is delivered.
    Final,
}

/// One row of `tasks`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "tasks")]
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
    /// Where it is to be done.
    pub circle_id: Uuid,
    /// The task of which this is a part.
    pub parent_id: Option<Uuid>,
    /// 1 to 500 characters.
    pub title: String,
    /// At most 20,000 characters.
    pub description: Option<String>,
    /// What its agent must be able to do, folded.
    pub required_competencies: List,
    /// How pressing it is.
    pub priority: Priority,
    /// The priority as a number, the most pressing first: `CRITICAL` 1, `HIGH` 3, `MEDIUM` 5, `LOW` 8.
    pub priority_rank: i32,
    /// Where it stands.
    pub status: TaskStatus,
    /// The agent who does it.
    pub assignee_id: Option<Uuid>,
    /// The agent who judges it; never the assignee.
    pub reviewer_id: Option<Uuid>,
    /// The user who asked for it.
    pub created_by: Option<Uuid>,
    /// Whether it is judged before it is completed.
    pub requires_review: bool,
    /// How it is judged.
    pub review_type: ReviewType,
    /// How often it was submitted for review.
    pub review_round: i32,
    /// What the latest review said, at most 10,000 characters.
    pub review_note: Option<String>,
    /// Why it stands where it stands, at most 2,000 characters.
    pub status_note: Option<String>,
    /// What came of it, at most 50,000 characters.
    pub result: Option<String>,
    /// What it left behind: addresses or paths.
    pub artifacts: List,
    /// 0 or more.
    pub estimated_hours: Option<f64>,
    /// 0 or more.
    pub actual_hours: Option<f64>,
    /// When it should be done.
    pub due_at: Option<DateTimeUtc>,
    /// The first start.
    pub started_at: Option<DateTimeUtc>,
    /// The latest submission.
    pub submitted_at: Option<DateTimeUtc>,
    /// When it was completed.
    pub completed_at: Option<DateTimeUtc>,
    /// Seconds from the first start to completion, set once.
    pub cycle_seconds: Option<i32>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
