//! An agent's membership in a circle.

use sea_orm::entity::prelude::*;

use crate::List;

/// The role of an agent in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum MemberRole {
    /// Leads the circle. Tasks are routed to it.
    Lead,
    /// A regular member. Tasks are routed to it.
    Member,
    /// A specialist. Tasks are routed to it.
    Specialist,
    /// Reviews the work of other members.
    Reviewer,
    /// Observes; takes no tasks.
    Observer,
}

/// One row of `circle_members`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "circle_members")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// The circle; unique together with the agent.
    pub circle_id: Uuid,
    /// The agent.
    pub agent_id: Uuid,
    /// The role in the circle.
    pub role: MemberRole,
    /// Competencies in this circle, folded; if not empty, they replace the agent's own.
    pub competencies: List,
    /// Review types in this circle, folded; if not empty, they replace the agent's own.
    pub review_types: List,
    /// False after removal; adding the agent again reactivates the row.
    pub is_active: bool,
    /// When it last joined.
    pub joined_at: DateTimeUtc,
    /// When it was removed.
    pub left_at: Option<DateTimeUtc>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
