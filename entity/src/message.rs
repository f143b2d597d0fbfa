//! One numbered contribution to a conversation.

use sea_orm::entity::prelude::*;

use crate::List;

/// In what capacity a message was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum MessageRole {
    /// By a user.
    User,
    /// By an agent.
    Assistant,
    /// By the server.
    System,
    /// By a tool.
    Tool,
}

/// One row of `messages`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "messages")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// Where it was said; unique together with `seq`.
    pub conversation_id: Uuid,
    /// Its number in the conversation, from 1.
    pub seq: i32,
    /// In what capacity it was said.
    pub role: MessageRole,
    /// The agent who said it.
    pub agent_id: Option<Uuid>,
    /// The user who said it.
    pub user_id: Option<Uuid>,
    /// The author's name at the time, 1 to 200 characters.
    pub author_name: String,
    /// 1 to 100,000 characters.
    pub content: String,
    /// The agents it mentions, as hyphenated UUIDs in order of appearance.
    pub mentions: List,
    /// The message it answers.
    pub parent_id: Option<Uuid>,
    /// Whether it is kept in view.
    pub is_pinned: bool,
    /// The model that wrote it.
    pub model_id: Option<Uuid>,
    /// Tokens the model read for it.
    pub tokens_input: Option<i32>,
    /// Tokens the model wrote for it.
    pub tokens_output: Option<i32>,
    /// Milliseconds the model thought about it.
    pub thinking_ms: Option<i32>,
    /// The tools it called.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub tool_calls: Option<Json>,
    /// What the tools answered.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub tool_results: Option<Json>,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
