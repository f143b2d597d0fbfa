//! The pool: how it is filled, when a connection is tested or replaced, and how its statements show the state of the
//! database.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use futures_util::future::join_all;
use gathering_schema::{PoolMonitor, storage, trace};
use sea_orm::metric::Info;
use sea_orm::sqlx::{self, Connection};

use crate::config;

/// Health of the pool, as observed from its statements.
pub(super) struct PoolHealth {
    started: Instant,
    pub(super) statements: AtomicU64,
    pub(super) successes: AtomicU64,
    /// When a statement last failed, in nanoseconds after `started`; 0 means never.
    failed: AtomicU64,
    /// When the replacement of connections was last requested, in nanoseconds after `started`; 0 means never.
    renewed: AtomicU64,
    /// After how much idle time a connection is tested before use.
    ping_after: Duration,
    file: Option<WatchedFile>,
}

impl PoolHealth {
    /// `file` is the SQLite file.
    pub(super) fn new(settings: &config::Database, file: Option<PathBuf>) -> Self {
        Self {
            ping_after: settings.ping_after,
            started: Instant::now(),
            statements: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            renewed: AtomicU64::new(0),
            file: file.map(WatchedFile::new),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn fail(&self) {
        self.failed.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn renew(&self) {
        self.renewed.store(self.now(), Ordering::Relaxed);
    }

    /// Whether a connection of this age must be replaced.
    fn is_stale(&self, age: Duration) -> bool {
        self.is_within(&self.renewed, age)
            || storage::was_read_only_within(age)
            || (self.file.as_ref()).is_some_and(|file| file.changed_within(age))
    }

    fn failed_within(&self, span: Duration) -> bool {
        self.is_within(&self.failed, span)
    }

    fn is_within(&self, instant: &AtomicU64, span: Duration) -> bool {
        let instant = instant.load(Ordering::Relaxed);
        instant != 0 && u128::from(self.now().saturating_sub(instant)) <= span.as_nanos()
    }
}

impl PoolMonitor for PoolHealth {
    fn ended(&self, info: &Info<'_>) {
        self.statements.fetch_add(1, Ordering::Relaxed);
        if info.failed {
            self.fail();
        } else {
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
        trace::statement(info.statement, info.elapsed, info.failed);
    }

    fn is_usable(&self, age: Duration) -> bool {
        age < self.ping_after && !self.failed_within(age) && !self.is_stale(age)
    }
}

/// The path of a SQLite file. A connection keeps reading from a file that was moved or replaced, so its age is compared
/// with the time of the last change.
struct WatchedFile {
    path: PathBuf,
    /// The device and inode of the file, and since when it has been there.
    seen: Mutex<(Option<(u64, u64)>, Instant)>,
}

impl WatchedFile {
    fn new(path: PathBuf) -> Self {
        let file = identity(&path).ok();
        Self {
            path,
            seen: Mutex::new((file, Instant::now())),
        }
    }

    /// Whether the file is missing, or was replaced during the lifetime of a connection of this age.
    fn changed_within(&self, age: Duration) -> bool {
        let Ok(file) = identity(&self.path) else {
            return true;
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != Some(file) {
            *seen = (Some(file), Instant::now());
        }
        seen.1.elapsed() < age
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A pool whose connections are replaced when they are stale.
pub(super) fn pool<DB: sqlx::Database>(
    settings: &config::Database,
    health: &Arc<PoolHealth>,
) -> sqlx::pool::PoolOptions<DB> {
    let health = Arc::clone(health);
    sqlx::pool::PoolOptions::new()
        .min_connections(settings.min_connections)
        .max_connections(settings.max_connections)
        .acquire_timeout(settings.acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(move |connection: &mut DB::Connection, age| {
            let stale = health.is_stale(age.age);
            let suspect = age.idle_for >= health.ping_after || health.failed_within(age.idle_for);
            let health = Arc::clone(&health);
            Box::pin(async move {
                if suspect && !stale {
                    // Then test the other idle connections too.
                    connection.ping().await.inspect_err(|_| health.fail())?;
                }
                Ok(!stale)
            })
        })
        .after_release(|connection: &mut DB::Connection, _| Box::pin(is_settled(connection)))
}

/// Whether a released connection is outside of a transaction. SQLite rolls a transaction back on its own when the disk
/// is full or fails. The driver's ROLLBACK then fails, and the driver still counts the transaction as open: later
/// transactions on the connection would be nested in one that is never committed.
async fn is_settled<C: Connection>(connection: &mut C) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // Run a queued ROLLBACK first.
        connection.ping().await?;
    }
    let is_settled = !connection.is_in_transaction();
    if !is_settled {
        tracing::warn!("a transaction could not be rolled back; closing its connection");
    }
    Ok(is_settled)
}

/// Opens the minimum number of connections. A timeout does not prevent the start.
pub(super) async fn fill<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> Result<(), sqlx::Error> {
    let kept = pool.options().get_min_connections();
    for opened in join_all((0..kept).map(|_| pool.acquire())).await {
        match opened {
            Err(sqlx::Error::PoolTimedOut) => {
                tracing::warn!(
                    "the database allows fewer connections than database.min_connections"
                );
            }
            opened => drop(opened?),
        }
    }
    Ok(())
}
