//! A language model with its prices and capabilities.

use sea_orm::entity::prelude::*;

/// One row of `models`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "models")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each flag is an independent capability with its own column"
)]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// The provider.
    pub provider_id: Uuid,
    /// The model's name in the provider's API, 1 to 100 characters; unique per provider.
    pub name: String,
    /// 1 to 200 characters.
    pub display_name: String,
    /// Price of a million input tokens, in millionths of a US dollar.
    pub price_input: i64,
    /// Price of a million output tokens, in millionths of a US dollar.
    pub price_output: i64,
    /// Price of a million tokens read from the prompt cache, in millionths of a US dollar.
    pub price_cache_read: i64,
    /// Price of a million tokens written to the prompt cache, in millionths of a US dollar.
    pub price_cache_write: i64,
    /// Size of the context window: maximum number of tokens of a prompt and its answer.
    pub context_window: i32,
    /// Maximum number of tokens in an answer.
    pub max_output: i32,
    /// Whether it accepts images.
    pub supports_vision: bool,
    /// Whether it supports tool calls.
    pub supports_tools: bool,
    /// Whether it supports streaming.
    pub supports_streaming: bool,
    /// Whether it returns its reasoning.
    pub supports_thinking: bool,
    /// Whether it is deprecated: new agents should use another model.
    pub is_deprecated: bool,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
