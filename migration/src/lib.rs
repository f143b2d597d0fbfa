//! The migrations of Gathering's database: one chain for SQLite and PostgreSQL.
//!
//! The crate does not depend on the other crates, so that later changes to them cannot alter an applied migration. The
//! whole chain runs in one transaction, and on both databases only one process at a time runs it.

mod m0001_team;
mod m0002_lockouts;
mod m0003_live;
mod m0004_folding;
mod m0005_waiting_tasks;
mod m0006_keys;
mod m0007_quota_classes;
mod m0008_recovery;
mod m0009_transfers;
mod m0010_deleted_accounts;
mod table;

use futures_util::future::BoxFuture;
use sea_orm_migration::{
    MigrationTrait, MigratorTrait, async_trait,
    sea_orm::{
        ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, IsolationLevel,
        RuntimeErr, SqliteTransactionMode, TransactionOptions, TransactionTrait, sqlx,
    },
};

struct Chain;

#[async_trait::async_trait]
impl MigratorTrait for Chain {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_team::Migration),
            Box::new(m0002_lockouts::Migration),
            Box::new(m0003_live::Migration),
            Box::new(m0004_folding::Migration),
            Box::new(m0005_waiting_tasks::Migration),
            Box::new(m0006_keys::Migration),
            Box::new(m0007_quota_classes::Migration),
            Box::new(m0008_recovery::Migration),
            Box::new(m0009_transfers::Migration),
            Box::new(m0010_deleted_accounts::Migration),
        ]
    }
}

/// Applies all pending migrations, or none if one of them fails. Concurrent processes run one after another; the later
/// ones find no pending migrations.
///
/// # Errors
/// If the database cannot be reached or written, or was migrated by a newer version of Gathering.
pub fn up(db: &DatabaseConnection) -> BoxFuture<'_, Result<(), DbErr>> {
    Box::pin(async move {
        let transaction = with_migration_lock(db).await?;
        Chain::up(&transaction, None).await.map_err(explain)?;
        transaction.commit().await
    })
}

/// Reverts every migration and deletes all data: the database is empty afterwards.
///
/// # Errors
/// As for [`up`].
pub fn down(db: &DatabaseConnection) -> BoxFuture<'_, Result<(), DbErr>> {
    Box::pin(async move {
        let transaction = with_migration_lock(db).await?;
        Chain::reset(&transaction).await.map_err(explain)?;
        transaction.commit().await
    })
}

/// Returns how many migrations [`up`] would apply; 0 when the database is up to date. Writes nothing.
///
/// # Errors
/// If the database cannot be reached, or was migrated by a newer version of Gathering.
pub fn pending(db: &DatabaseConnection) -> BoxFuture<'_, Result<usize, DbErr>> {
    Box::pin(async move {
        let pending = Chain::get_pending_migrations_read_only(db).await;
        Ok(pending.map_err(explain)?.len())
    })
}

/// Begins a transaction once no other process has a migration transaction open. The lock belongs to the transaction, so
/// it is held by the connection that runs the migrations until the commit.
async fn with_migration_lock(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let transaction = db
        .begin_with_options(TransactionOptions {
            // The commit of the previous holder of the lock must be visible once the lock is acquired.
            isolation_level: (db.get_database_backend() == DbBackend::Postgres)
                .then_some(IsolationLevel::ReadCommitted),
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        })
        .await?;
    if db.get_database_backend() == DbBackend::Postgres {
        // The number is arbitrary, but must be the same in every version of this program.
        transaction
            .execute_unprepared(
                "SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock(4741749310)",
            )
            .await?;
    }
    Ok(transaction)
}

/// PostgreSQL's code of a missing privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Explains an applied migration that is unknown to this version, the only error of the library that does not come from
/// the database, and a missing privilege.
fn explain(error: DbErr) -> DbErr {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(cause)) | DbErr::Query(RuntimeErr::SqlxError(cause))
            if cause
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code)
                .is_some_and(|code| code == INSUFFICIENT_PRIVILEGE) =>
        {
            DbErr::Migration(
                "the role in DATABASE_URL may not change the tables: run `gathering migrate` as the owner of the schema"
                    .to_owned(),
            )
        }
        DbErr::Custom(_) => DbErr::Migration(
            "the database was migrated by a newer version of Gathering; run that version, or restore a backup"
                .to_owned(),
        ),
        other => other,
    }
}
