//! A language model with its prices and capabilities.

use sea_orm::entity::prelude::*;

/// One row of `models`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "models")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a capability of its own, and a column"
)]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// Who runs it.
    pub provider_id: Uuid,
    /// What the provider's API is sent, 1 to 100 characters; unique per provider.
    pub name: String,
    /// 1 to 200 characters.
    pub display_name: String,
    /// Millionths of a US dollar per million tokens read.
    pub price_input: i64,
    /// Millionths of a US dollar per million tokens written.
    pub price_output: i64,
    /// Millionths of a US dollar per million tokens read from the cache.
    pub price_cache_read: i64,
    /// Millionths of a US dollar per million tokens written to the cache.
    pub price_cache_write: i64,
    /// Most tokens of a prompt and its answer.
    pub context_window: i32,
    /// Most tokens of an answer.
    pub max_output: i32,
    /// Whether it reads images.
    pub supports_vision: bool,
    /// Whether it calls tools.
    pub supports_tools: bool,
    /// Whether it answers piece by piece.
    pub supports_streaming: bool,
    /// Whether it shows its reasoning.
    pub supports_thinking: bool,
    /// Whether new agents should choose another.
    pub is_deprecated: bool,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
