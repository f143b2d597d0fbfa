//! Transactions that write, and their retries.

use crate::{
    db::{Caller, Callers},
    error::{Code, Error},
    storage,
};
use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, SqlErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

/// One in this many connections of the pool is never taken by a transaction that writes.
pub(super) const RESERVED: usize = 4;

/// Maximum number of attempts of a change that loses against concurrent changes.
const ATTEMPTS: usize = 4;

/// Begins and commits transactions that write.
#[derive(Clone)]
pub(crate) struct Writer {
    db: DatabaseConnection,
    /// Transactions wait for a permit in order. SQLite allows one writer at a time, and waiting writers retry in no order:
    /// under load some would time out. On PostgreSQL, transactions that wait for the lock of a row must not take all
    /// connections of the pool.
    permits: Arc<Semaphore>,
    callers: Callers,
}

/// The permit of a transaction, released on drop.
pub(crate) struct WriterGuard {
    _permit: OwnedSemaphorePermit,
    _caller: Caller,
}

impl Writer {
    pub(crate) fn new(db: DatabaseConnection) -> Self {
        let permits = match db.get_database_backend() {
            DbBackend::Postgres => {
                let pool = db.get_postgres_connection_pool().options();
                let connections = pool.get_max_connections() as usize;
                connections - connections / RESERVED
            }
            _ => 1,
        };
        Self {
            db,
            permits: Arc::new(Semaphore::new(permits)),
            callers: Callers::default(),
        }
    }

    /// Begins a transaction; one that is dropped before its commit is rolled back. SQLite locks immediately: a
    /// transaction that reads first and then writes is refused if another one has written in between. On PostgreSQL the
    /// caller locks the rows that it depends on.
    ///
    /// BEGIN runs to its end even if the caller is dropped: the driver loses track of a PostgreSQL transaction whose
    /// BEGIN was not awaited, and its connection would return to the pool with the transaction open.
    pub(crate) async fn begin(&self) -> Result<(DatabaseTransaction, WriterGuard), Error> {
        let writer = self.clone();
        let caller = self.caller();
        let begin = async move {
            let permit = writer.permits.acquire_owned().await;
            let permit = permit.map_err(|_| Error::unavailable("The server is shutting down."))?;
            let guard = WriterGuard {
                _permit: permit,
                _caller: caller,
            };
            let options = TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            };
            Ok((writer.db.begin_with_options(options).await?, guard))
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "the task is bounded by the time limits of the pool and of the database"
        )]
        let task = tokio::spawn(begin.in_current_span());
        task.await
            .unwrap_or_else(|failure| match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::unavailable("The server is shutting down.")),
            })
    }

    /// Counts a statement outside of a transaction.
    pub(crate) fn caller(&self) -> Caller {
        self.callers.enter()
    }

    /// Number of transactions and statements that have a connection or wait for one.
    pub(crate) fn callers(&self) -> usize {
        self.callers.count()
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.db.get_database_backend()
    }

    /// The pool, if the database is PostgreSQL: a statement without a transaction then commits by itself.
    pub(crate) fn postgres(&self) -> Option<&DatabaseConnection> {
        (self.backend() == DbBackend::Postgres).then_some(&self.db)
    }

    /// Commits a transaction.
    ///
    /// # Errors
    /// The transaction was not committed, or its outcome is unknown; the error states which.
    pub(crate) async fn commit(&self, transaction: DatabaseTransaction) -> Result<(), Error> {
        transaction.commit().await.map_err(Error::of_commit)?;
        storage::committed();
        Ok(())
    }
}

/// Runs a change that is one transaction, and retries it if it loses against concurrent changes.
///
/// # Errors
/// Those of the change; `CONFLICT` if all attempts lost.
pub(crate) async fn retry_on_conflict<T, F>(change: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut attempt = 1;
    loop {
        match change().await {
            Err(error) if error.code == Code::Conflict && attempt < ATTEMPTS => attempt += 1,
            done => return done,
        }
    }
}

/// Whether a statement failed because another row has the same unique value. Its transaction can only be rolled back.
pub(crate) fn is_taken(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}
