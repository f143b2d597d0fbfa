//! One numbered contribution to a conversation.

use sea_orm::entity::prelude::*;

use crate::List;

/// The role of the author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Text",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum MessageRole {
    /// Written by a user.
    User,
    /// Written by an agent.
    Assistant,
    /// Written by the server.
    System,
    /// Written by a tool.
    Tool,
}

/// One row of `messages`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "messages")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// The conversation; unique together with `seq`.
    pub conversation_id: Uuid,
    /// Its number in the conversation, starting at 1.
    pub seq: i32,
    /// The role of the author.
    pub role: MessageRole,
    /// The author, if it is an agent.
    pub agent_id: Option<Uuid>,
    /// The author, if it is a user.
    pub user_id: Option<Uuid>,
    /// The author's name when the message was written, 1 to 200 characters.
    pub author_name: String,
    /// 1 to 100,000 characters.
    pub content: String,
    /// The mentioned agents, as hyphenated UUIDs in order of appearance.
    pub mentions: List,
    /// The message it replies to.
    pub parent_id: Option<Uuid>,
    /// Whether it is pinned.
    pub is_pinned: bool,
    /// The model that generated it.
    pub model_id: Option<Uuid>,
    /// Number of input tokens.
    pub tokens_input: Option<i32>,
    /// Number of output tokens.
    pub tokens_output: Option<i32>,
    /// Thinking time of the model, in milliseconds.
    pub thinking_ms: Option<i32>,
    /// The tool calls.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub tool_calls: Option<Json>,
    /// The results of the tool calls.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub tool_results: Option<Json>,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
