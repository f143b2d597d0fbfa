//! The history of Gathering's database: one chain of migrations for SQLite and PostgreSQL.
//!
//! It imports nothing of the other crates, so that what once was applied stays what it was. The
//! whole chain is one transaction, and only one process at a time is in it, whichever the database.

mod m0001_team;
mod m0002_lockouts;
mod m0003_live;
mod m0004_folding;
mod table;

use sea_orm_migration::{
    MigrationTrait, MigratorTrait, async_trait,
    sea_orm::{
        ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, IsolationLevel,
        SqliteTransactionMode, TransactionOptions, TransactionTrait,
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
        ]
    }
}

/// Brings the database up to date: all pending migrations, or none when one of them fails.
/// Processes that call it at the same time take turns, and the later ones find nothing left to do.
///
/// # Errors
/// When the database cannot be reached or written, or was migrated by a newer Gathering.
pub async fn up(db: &DatabaseConnection) -> Result<(), DbErr> {
    let transaction = alone(db).await?;
    Chain::up(&transaction, None).await.map_err(explain)?;
    transaction.commit().await
}

/// Takes every migration back, and all data with it: the database is left empty.
///
/// # Errors
/// As for [`up`].
pub async fn down(db: &DatabaseConnection) -> Result<(), DbErr> {
    let transaction = alone(db).await?;
    Chain::reset(&transaction).await.map_err(explain)?;
    transaction.commit().await
}

/// How many migrations [`up`] would apply; 0 when the database is current. It writes nothing.
///
/// # Errors
/// When the database cannot be reached, or was migrated by a newer Gathering.
pub async fn pending(db: &DatabaseConnection) -> Result<usize, DbErr> {
    let pending = Chain::get_pending_migrations_read_only(db).await;
    Ok(pending.map_err(explain)?.len())
}

/// Begins a transaction that waits until no other migrating process is in one. The lock belongs to
/// the transaction, so it is held on the very connection that does the work, and until the commit.
async fn alone(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let transaction = db
        .begin_with_options(TransactionOptions {
            // What the process before us committed must be visible once the lock is ours.
            isolation_level: (db.get_database_backend() == DbBackend::Postgres)
                .then_some(IsolationLevel::ReadCommitted),
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        })
        .await?;
    if db.get_database_backend() == DbBackend::Postgres {
        // The number is arbitrary: it only has to be the same in every version of this program.
        transaction
            .execute_unprepared(
                "SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock(4741749310)",
            )
            .await?;
    }
    Ok(transaction)
}

/// The one error of the library that is not the database's: an applied migration it does not know.
fn explain(error: DbErr) -> DbErr {
    match error {
        DbErr::Custom(_) => DbErr::Migration(
            "the database was migrated by a newer Gathering; run that version, or restore a backup"
                .to_owned(),
        ),
        other => other,
    }
}
