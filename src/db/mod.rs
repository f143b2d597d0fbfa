//! The database: one connection pool, opened at start and closed last.
//!
//! Errors at start are one line with the remedy; later failures recover without a restart. A connection is tested
//! before use after a long idle time, and after a failed statement. A connection is dropped if its SQLite file was
//! moved or replaced, or if it is released inside a transaction.

mod pool;
mod postgres;
mod sqlite;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use gathering_schema::Pool;
use gathering_schema::storage::StorageError;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::{DatabaseConnection, DbBackend};

use self::pool::PoolHealth;
use crate::{StartError, config};

pub(crate) use self::sqlite::make_folder;

/// An open database. Cheap to clone; all clones share one pool.
#[derive(Clone)]
pub struct Database {
    pool: Pool,
    health: Arc<PoolHealth>,
    /// Options of the SQLite file.
    file: Option<SqliteConnectOptions>,
    read_only: bool,
    max_connections: u32,
}

/// The connections of a pool at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// Those that carry out statements or transactions.
    pub in_use: usize,
    /// Those that are open and free.
    pub idle: usize,
    /// How many may be open; when all are in use, callers wait.
    pub max: u32,
}

/// The result of a check of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// The database answered.
    Pass,
    /// All connections of the pool are in use, and statements succeed.
    Busy,
    /// The database did not answer.
    Fail,
}

/// The result of a write probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The write succeeded and was rolled back.
    Pass,
    /// Another connection or process holds the lock.
    Locked,
    /// The write failed.
    Fail,
    /// The probe itself was not allowed, or no connection was available.
    Undecided,
}

impl Database {
    /// Opens the pool. A missing SQLite file and its directory are created; a file that cannot be written is opened
    /// read-only.
    ///
    /// # Errors
    /// The database cannot be reached, or rejects the connection.
    pub fn open(settings: &config::Database) -> BoxFuture<'_, Result<Self, StartError>> {
        Box::pin(async move {
            let (connection, health, file, read_only) = if settings.url.is_postgres() {
                let (connection, health) = postgres::open(settings).await?;
                (connection, health, None, false)
            } else {
                let (connection, health, file, read_only) = sqlite::open(settings).await?;
                (connection, health, Some(file), read_only)
            };
            let pool = Pool::new(connection, Arc::clone(&health));
            Ok(Self {
                pool,
                health,
                file,
                read_only,
                max_connections: settings.max_connections,
            })
        })
    }

    /// The SQLite file that these settings name, whether or not it exists; `None` for PostgreSQL and for an invalid URL.
    pub fn file_of(settings: &config::Database) -> Option<PathBuf> {
        if settings.url.is_postgres() {
            return None;
        }
        let options: SqliteConnectOptions = settings.url.expose().parse().ok()?;
        Some(options.get_filename().to_owned())
    }

    /// The pool for statements and transactions.
    pub fn connection(&self) -> &DatabaseConnection {
        self.pool.connection()
    }

    /// The pool for a graph.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whether the database is a SQLite file that cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The SQLite file; `None` for PostgreSQL.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(SqliteConnectOptions::get_filename)
    }

    /// Number of statements sent through this pool, without BEGIN, COMMIT and connection tests.
    pub fn statements(&self) -> u64 {
        self.health.statements.load(Ordering::Relaxed)
    }

    /// The connections of the pool.
    pub fn connections(&self) -> Connections {
        let connection = self.connection();
        let (open, idle) = if connection.get_database_backend() == DbBackend::Sqlite {
            let pool = connection.get_sqlite_connection_pool();
            (pool.size(), pool.num_idle())
        } else {
            let pool = connection.get_postgres_connection_pool();
            (pool.size(), pool.num_idle())
        };
        let open = usize::try_from(open).unwrap_or(usize::MAX);
        let idle = idle + self.pool.kept();
        Connections {
            in_use: open.saturating_sub(idle),
            idle,
            max: self.max_connections,
        }
    }

    /// Checks whether the database answers within `timeout`. A full pool whose statements succeed is busy, not
    /// unreachable.
    pub async fn reach(&self, timeout: Duration) -> Reachability {
        let before = self.health.successes.load(Ordering::Relaxed);
        match tokio::time::timeout(timeout, self.connection().ping()).await {
            Ok(Ok(())) => Reachability::Pass,
            _ if self.health.successes.load(Ordering::Relaxed) > before => Reachability::Busy,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the database does not answer");
                Reachability::Fail
            }
            Err(_) => {
                tracing::warn!("the database does not answer");
                Reachability::Fail
            }
        }
    }

    /// Write probe: writes 256 KiB and discards them. Waits up to `timeout` for the lock of SQLite, and twice that overall.
    pub async fn try_writing(&self, timeout: Duration) -> Attempt {
        let attempt = async {
            if let Some(file) = &self.file {
                return sqlite::try_writing(&file.clone().busy_timeout(timeout)).await;
            }
            postgres::try_writing(self.connection().get_postgres_connection_pool()).await
        };
        let error = match tokio::time::timeout(2 * timeout, attempt).await {
            Ok(Ok(())) => return Attempt::Pass,
            Ok(Err(error)) => error,
            Err(_) => return Attempt::Undecided,
        };
        match error.as_database_error().and_then(StorageError::of) {
            Some(StorageError::Busy) => Attempt::Locked,
            Some(_) => Attempt::Fail,
            None => Attempt::Undecided,
        }
    }

    /// Replaces every connection that is open now before its next use.
    pub fn renew(&self) {
        self.health.renew();
    }

    /// Closes every connection, after waiting for those in use.
    pub fn close(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.connection().close_by_ref().await {
                tracing::warn!(%error, "the pool could not be closed");
            }
        })
    }
}
