//! Counters of failed sign-ins, for existing and unknown accounts and for networks.

use sea_orm_migration::prelude::{
    DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait,
};

use crate::table::{Table, int, text, time};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        lockouts().create(manager).await?;
        let users = Table::new("users");
        users.remove(manager, "failed_logins").await?;
        users.remove(manager, "locked_until").await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let users = Table::new("users");
        let failed_logins = int("failed_logins").default("0");
        users.add(manager, &failed_logins).await?;
        users.add(manager, &time("locked_until").nullable()).await?;
        lockouts().drop(manager).await
    }
}

fn lockouts() -> Table {
    Table::keyed("lockouts", "key")
        .columns([
            text("key", 64..=64),
            int("failures").default("0"),
            time("locked_until").nullable(),
            time("expires_at"),
        ])
        .index("expires_at")
}
