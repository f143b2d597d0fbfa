//! The identity of this database's event history.

use sea_orm::entity::prelude::*;

/// The one row of `journal`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "journal")]
pub struct Model {
    /// Random; generated when the database is created.
    #[sea_orm(primary_key, auto_increment = false)]
    pub epoch: Uuid,
}

/// Empty: joins are written in the queries.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
