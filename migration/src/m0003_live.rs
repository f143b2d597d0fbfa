//! Tables for live events and idempotent requests: the order in which events were written, an identity for the history
//! of this database, and the results stored under idempotency keys.

use sea_orm_migration::{
    prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager, async_trait},
    sea_orm::{ConnectionTrait, DbBackend},
};

use crate::table::{OnDelete, Table, json_value, text, time, uuid};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        journal().create(manager).await?;
        idempotency().create(manager).await?;
        let connection = manager.get_connection();
        let random = match manager.get_database_backend() {
            DbBackend::Postgres => {
                // SQLite has `rowid` for this.
                connection
                    .execute_unprepared(
                        "ALTER TABLE events ADD COLUMN written bigint GENERATED ALWAYS AS IDENTITY",
                    )
                    .await?;
                "gen_random_uuid()"
            }
            _ => "randomblob(16)",
        };
        connection
            .execute_unprepared(&format!("INSERT INTO journal (epoch) VALUES ({random})"))
            .await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Postgres {
            Table::new("events").remove(manager, "written").await?;
        }
        idempotency().drop(manager).await?;
        journal().drop(manager).await
    }
}

/// One row: the identity of this database's event history.
fn journal() -> Table {
    Table::keyed("journal", "epoch").columns([uuid("epoch")])
}

/// The results stored under idempotency keys: one row for the request, whose `field` is empty, and one for each root
/// field that has made its change.
fn idempotency() -> Table {
    Table::keyed("idempotency_keys", "user_id, key, field")
        .columns([
            uuid("user_id").to("users", OnDelete::Cascade),
            text("key", 1..=255),
            text("field", 0..=64),
            text("fingerprint", 64..=64).nullable(),
            json_value("outcome").nullable(),
            time("created_at"),
        ])
        .index("created_at")
}
