//! A reusable character for agents.

use sea_orm::entity::prelude::*;

use crate::List;

/// One row of `personas`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "personas")]
pub struct Model {
    /// UUID v7; ids sort by creation time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// When the row was created.
    pub created_at: DateTimeUtc,
    /// When the row was last changed.
    pub updated_at: DateTimeUtc,
    /// 1 to 100 characters.
    pub name: String,
    /// The folded name; unique.
    pub name_key: String,
    /// 1 to 200 characters.
    pub display_name: String,
    /// What an agent of this persona does, 1 to 200 characters.
    pub role: String,
    /// The category in the catalogue, at most 50 characters.
    pub category: Option<String>,
    /// At most 10,000 characters.
    pub description: Option<String>,
    /// An emoji or the name of an icon, at most 50 characters.
    pub icon: Option<String>,
    /// At most 500 characters.
    pub motto: Option<String>,
    /// Instructions for agents of this persona, at most 20,000 characters.
    pub prompt: Option<String>,
    /// The character traits.
    pub traits: List,
    /// The competencies, folded.
    pub competencies: List,
    /// The specializations.
    pub specializations: List,
    /// The languages it speaks.
    pub languages: List,
    /// The communication style, at most 50 characters.
    pub communication_style: Option<String>,
    /// The model of agents that do not set one.
    pub default_model_id: Option<Uuid>,
    /// From 0 to 2.
    pub default_temperature: f64,
    /// Whether it is part of the distribution and cannot be deleted.
    pub is_builtin: bool,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
