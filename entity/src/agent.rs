//! A configured AI worker, owned by a user.

use sea_orm::entity::prelude::*;

use crate::List;

/// The status of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum AgentStatus {
    /// Available for work.
    Idle,
    /// Working on a task.
    Busy,
    /// Excluded from routing by its owner.
    Offline,
}

/// One row of `agents`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "agents")]
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
    /// 1 to 100 characters.
    pub name: String,
    /// The folded name; unique per owner.
    pub name_key: String,
    /// The persona.
    pub persona_id: Option<Uuid>,
    /// The default model.
    pub model_id: Option<Uuid>,
    /// Instructions in addition to those of the persona, at most 20,000 characters.
    pub system_prompt: Option<String>,
    /// The character traits.
    pub traits: List,
    /// The competencies, folded.
    pub competencies: List,
    /// The specializations.
    pub specializations: List,
    /// The reviews that the agent can do: folded values of `ReviewType`, or `all`.
    pub review_types: List,
    /// The communication style, at most 50 characters.
    pub communication_style: Option<String>,
    /// The level of each competency: an object of numbers from 0 to 1.
    #[sea_orm(column_type = "JsonBinary")]
    pub competency_scores: Json,
    /// From 0 to 1.
    pub review_strictness: f64,
    /// From 0 to 2.
    pub temperature: f64,
    /// Maximum number of tokens in an answer; NULL means the model's limit.
    pub max_tokens: Option<i32>,
    /// The status.
    pub status: AgentStatus,
    /// Number of reviews of its work.
    pub reviews_total: i32,
    /// Number of reviews that approved its work.
    pub reviews_approved: i32,
    /// When it was last active.
    pub last_active_at: DateTimeUtc,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
