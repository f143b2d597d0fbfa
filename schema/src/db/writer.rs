//! Transactions that write, and their retries.

use crate::{
    error::{Code, Error},
    storage,
};
use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, SqlErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tracing::Instrument;

/// How often a change that lost against others at the same time is tried.
const ATTEMPTS: usize = 4;

/// Where changes are made.
#[derive(Clone)]
pub(crate) struct Writer {
    db: DatabaseConnection,
    /// SQLite has one writer at a time, and lets those who wait try again and again, in no order: under load some would
    /// try in vain until their time is over. Here they queue.
    queue: Option<Arc<Mutex<()>>>,
}

/// A place at the head of the queue of writers, until it is dropped.
pub(crate) type WriterGuard = Option<OwnedMutexGuard<()>>;

impl Writer {
    pub(crate) fn new(db: DatabaseConnection) -> Self {
        let queues = db.get_database_backend() == DbBackend::Sqlite;
        Self {
            db,
            queue: queues.then(Arc::default),
        }
    }

    /// Begins a transaction; one that is dropped before its commit leaves nothing behind. SQLite locks at once: a
    /// transaction that reads first and then writes is refused when another has written meanwhile. On PostgreSQL the work
    /// locks the rows it relies on.
    ///
    /// BEGIN runs to its end also when the caller is dropped: the driver forgets a PostgreSQL transaction whose BEGIN
    /// was not waited for, and its connection would go back to the pool with the transaction open.
    pub(crate) async fn begin(&self) -> Result<(DatabaseTransaction, WriterGuard), Error> {
        let writer = self.clone();
        let begin = async move {
            let turn = match writer.queue {
                Some(queue) => Some(queue.lock_owned().await),
                None => None,
            };
            let options = TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            };
            Ok((writer.db.begin_with_options(options).await?, turn))
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "it is bounded by the time limits of the pool and of the database"
        )]
        let task = tokio::spawn(begin.in_current_span());
        task.await
            .unwrap_or_else(|failure| match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::unavailable("The server is shutting down.")),
            })
    }

    /// Makes everything that was written in a transaction stand.
    ///
    /// # Errors
    /// The transaction was not committed; or the database did not say whether it was, which the error tells.
    pub(crate) async fn commit(&self, transaction: DatabaseTransaction) -> Result<(), Error> {
        transaction.commit().await.map_err(Error::of_commit)?;
        storage::committed();
        Ok(())
    }
}

/// Makes a change that is one transaction, and again when it lost against others at the same time.
///
/// # Errors
/// Those of the change; `CONFLICT` when others won each time.
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

/// Whether a statement failed because another row has the same unique value. Its transaction can only be dropped.
pub(crate) fn is_taken(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}
