//! An index on the tasks that wait for an agent, in the order of routing.

use sea_orm_migration::{
    prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait},
    sea_orm::ConnectionTrait,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statement = "CREATE INDEX tasks_circle_id_priority_rank_id_part \
                         ON tasks (circle_id, priority_rank, id) WHERE status = 'PENDING'";
        let connection = manager.get_connection();
        connection.execute_unprepared(statement).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statement = "DROP INDEX tasks_circle_id_priority_rank_id_part";
        let connection = manager.get_connection();
        connection.execute_unprepared(statement).await?;
        Ok(())
    }
}
