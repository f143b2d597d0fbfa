//! A configured AI worker, owned by a user.

use sea_orm::entity::prelude::*;

use crate::List;

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum AgentStatus {
    /// Free for work.
    Idle,
    /// At work on a task.
    Busy,
    /// Kept out of routing by its owner.
    Offline,
}

/// One row of `agents`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "agents")]
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
    /// 1 to 100 characters.
    pub name: String,
    /// The folded name; unique per owner.
    pub name_key: String,
    /// Its character.
    pub persona_id: Option<Uuid>,
    /// The model that speaks for it.
    pub model_id: Option<Uuid>,
    /// What it is told beyond its persona, at most 20,000 characters.
    pub system_prompt: Option<String>,
    /// How it is.
    pub traits: List,
    /// What it can do, folded.
    pub competencies: List,
    /// What it does best.
    pub specializations: List,
    /// The reviews it does: values of `ReviewType`, folded, or `all`.
    pub review_types: List,
    /// How it talks, at most 50 characters.
    pub communication_style: Option<String>,
    /// How good it is at each competency: an object of numbers from 0 to 1.
    #[sea_orm(column_type = "JsonBinary")]
    pub competency_scores: Json,
    /// 0 to 1.
    pub review_strictness: f64,
    /// 0 to 2.
    pub temperature: f64,
    /// Most tokens of an answer, if fewer than the model's.
    pub max_tokens: Option<i32>,
    /// What it is doing.
    pub status: AgentStatus,
    /// Reviews of its work.
    pub reviews_total: i32,
    /// Reviews that approved its work.
    pub reviews_approved: i32,
    /// When it last did anything.
    pub last_active_at: DateTimeUtc,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
