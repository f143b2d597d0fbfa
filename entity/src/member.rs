//! An agent's membership in a circle.

use sea_orm::entity::prelude::*;

use crate::List;

/// An agent's part in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum MemberRole {
    /// Leads, and takes work.
    Lead,
    /// Takes work.
    Member,
    /// Takes work of its kind.
    Specialist,
    /// Judges the others' work.
    Reviewer,
    /// Watches.
    Observer,
}

/// One row of `circle_members`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "circle_members")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// The circle; unique together with the agent.
    pub circle_id: Uuid,
    /// The agent.
    pub agent_id: Uuid,
    /// Its part in the circle.
    pub role: MemberRole,
    /// What it can do here, folded; if any, instead of the agent's own.
    pub competencies: List,
    /// The reviews it does here, folded; if any, instead of the agent's own.
    pub review_types: List,
    /// False once removed; adding it again revives the row.
    pub is_active: bool,
    /// When it joined, or joined again.
    pub joined_at: DateTimeUtc,
    /// When it was removed.
    pub left_at: Option<DateTimeUtc>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
