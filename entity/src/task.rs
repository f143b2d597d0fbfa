//! A unit of work in a circle.

use sea_orm::entity::prelude::*;

use crate::List;

/// The priority of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum Priority {
    /// Low priority.
    Low,
    /// Medium priority.
    Medium,
    /// High priority.
    High,
    /// The highest priority.
    Critical,
}

/// The status of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum TaskStatus {
    /// Not assigned to an agent.
    Pending,
    /// Assigned to an agent, not started.
    Assigned,
    /// In progress.
    InProgress,
    /// Submitted, waiting for review.
    InReview,
    /// Reviewed; the assignee must revise it.
    ChangesRequested,
    /// Blocked: work cannot continue for now.
    Blocked,
    /// Completed.
    Completed,
    /// Failed: the work was given up.
    Failed,
    /// Cancelled: no longer needed.
    Cancelled,
}

/// The type of review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum ReviewType {
    /// Review of code.
    Code,
    /// Review of a design.
    Architecture,
    /// Security review.
    Security,
    /// Review of a text.
    Documentation,
    /// Review of the overall quality.
    Quality,
    /// Final review before delivery.
    Final,
}

/// One row of `tasks`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "tasks")]
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
    /// The circle.
    pub circle_id: Uuid,
    /// The parent task.
    pub parent_id: Option<Uuid>,
    /// 1 to 500 characters.
    pub title: String,
    /// At most 20,000 characters.
    pub description: Option<String>,
    /// Competencies that the assignee needs, folded.
    pub required_competencies: List,
    /// The priority.
    pub priority: Priority,
    /// The priority as a number, most urgent first: `CRITICAL` 1, `HIGH` 3, `MEDIUM` 5, `LOW` 8.
    pub priority_rank: i32,
    /// The status.
    pub status: TaskStatus,
    /// The agent who works on it.
    pub assignee_id: Option<Uuid>,
    /// The agent who reviews it; never the assignee.
    pub reviewer_id: Option<Uuid>,
    /// The user who created it.
    pub created_by: Option<Uuid>,
    /// Whether it must be reviewed before it is completed.
    pub requires_review: bool,
    /// The type of review.
    pub review_type: ReviewType,
    /// How many times it was submitted for review.
    pub review_round: i32,
    /// The note of the latest review, at most 10,000 characters.
    pub review_note: Option<String>,
    /// The reason for its status, at most 2,000 characters.
    pub status_note: Option<String>,
    /// The result, at most 50,000 characters.
    pub result: Option<String>,
    /// The artifacts: URLs or paths.
    pub artifacts: List,
    /// 0 or more.
    pub estimated_hours: Option<f64>,
    /// 0 or more.
    pub actual_hours: Option<f64>,
    /// When it is due.
    pub due_at: Option<DateTimeUtc>,
    /// When it was first started.
    pub started_at: Option<DateTimeUtc>,
    /// When it was last submitted for review.
    pub submitted_at: Option<DateTimeUtc>,
    /// When it was completed.
    pub completed_at: Option<DateTimeUtc>,
    /// Seconds from the first start to completion, set once.
    pub cycle_seconds: Option<i32>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
