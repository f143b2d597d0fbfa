//! A request to transfer a circle, an agent or a project to a new owner.

use sea_orm::entity::prelude::*;

/// The status of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum TransferStatus {
    /// Waits for the new owner, until it expires.
    Pending,
    /// Accepted: the ownership has changed.
    Accepted,
    /// Declined by the new owner.
    Declined,
    /// Cancelled by the owner or an administrator.
    Cancelled,
    /// Expired, and replaced by another request. Other expired transfers are still `PENDING`.
    Expired,
}

/// One row of `transfers`. Exactly one of the circle, the agent and the project is set, and has at most one pending
/// transfer.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "transfers")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// The circle.
    pub circle_id: Option<Uuid>,
    /// The agent.
    pub agent_id: Option<Uuid>,
    /// The project.
    pub project_id: Option<Uuid>,
    /// The owner at the time of the request.
    pub from_user_id: Uuid,
    /// The new owner.
    pub to_user_id: Uuid,
    /// The user who requested the transfer.
    pub requested_by: Option<Uuid>,
    /// The status.
    pub status: TransferStatus,
    /// A note for the new owner, 1 to 1,000 characters.
    pub message: Option<String>,
    /// A pending transfer can be accepted before this time.
    pub expires_at: DateTimeUtc,
    /// When it stopped being pending.
    pub resolved_at: Option<DateTimeUtc>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
