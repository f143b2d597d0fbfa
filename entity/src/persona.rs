//! A reusable character for agents.

use sea_orm::entity::prelude::*;

use crate::List;

/// One row of `personas`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "personas")]
pub struct Model {
    /// UUID v7; creation order is id order.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was made.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// 1 to 100 characters.
    pub name: String,
    /// The folded name; unique.
    pub name_key: String,
    /// 1 to 200 characters.
    pub display_name: String,
    /// What it does, 1 to 200 characters.
    pub role: String,
    /// The shelf it stands on, at most 50 characters.
    pub category: Option<String>,
    /// At most 10,000 characters.
    pub description: Option<String>,
    /// An emoji or the name of an icon, at most 50 characters.
    pub icon: Option<String>,
    /// At most 500 characters.
    pub motto: Option<String>,
    /// What an agent of this persona is told, at most 20,000 characters.
    pub prompt: Option<String>,
    /// How it is.
    pub traits: List,
    /// What it can do, folded.
    pub competencies: List,
    /// What it does best.
    pub specializations: List,
    /// What it speaks.
    pub languages: List,
    /// How it talks, at most 50 characters.
    pub communication_style: Option<String>,
    /// The model of agents that name none.
    pub default_model_id: Option<Uuid>,
    /// 0 to 2.
    pub default_temperature: f64,
    /// Whether it came with the program and cannot be deleted.
    pub is_builtin: bool,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
