//! The history of this database, told from that of others.

use sea_orm::entity::prelude::*;

/// The one row of `journal`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "journal")]
pub struct Model {
    /// Random; made with the database.
    #[sea_orm(primary_key, auto_increment = false)]
    pub epoch: Uuid,
}

/// Empty: a query that joins says so itself.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
