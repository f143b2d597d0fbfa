//! Changes: each in a transaction of its own that is there as a whole or not at all.

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
};

use crate::error::{Code, Error};

/// How often a change that lost against others at the same time is tried.
const ATTEMPTS: usize = 4;

/// Begins a transaction; one that is dropped before its commit leaves nothing behind. SQLite locks at once: a
/// transaction that reads first and then writes is refused when another has written meanwhile. On PostgreSQL the work
/// locks the rows it relies on.
pub(crate) async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, Error> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    Ok(db.begin_with_options(options).await?)
}

/// Makes a change that is one transaction, and again when it lost against others at the same time.
///
/// # Errors
/// Those of the change; `CONFLICT` when others won each time.
pub(crate) async fn settle<T, F>(change: impl Fn() -> F) -> Result<T, Error>
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
