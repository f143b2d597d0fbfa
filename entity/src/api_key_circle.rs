//! A circle to which an API key is limited.

use sea_orm::entity::prelude::*;

/// One row of `api_key_circles`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_key_circles")]
pub struct Model {
    /// The key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key_id: Uuid,
    /// The circle.
    #[sea_orm(primary_key, auto_increment = false)]
    pub circle_id: Uuid,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
