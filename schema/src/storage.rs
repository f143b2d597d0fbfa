//! Counters for failed writes: a full disk, an I/O error, a read-only file or server, a lock timeout. The counters are
//! global, because a process has one database.

use std::{
    borrow::Cow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::sqlx::error::DatabaseError;

static FAILURES: AtomicU64 = AtomicU64::new(0);
static COMMITS: AtomicU64 = AtomicU64::new(0);
static READ_ONLY: Mutex<Option<Instant>> = Mutex::new(None);

/// Why the database could not execute a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageError {
    /// It is locked, or out of memory or connections.
    Busy,
    /// Its disk is full.
    DiskFull,
    /// Its disk fails, or its files cannot be opened.
    Io,
    /// It is read-only.
    ReadOnly,
}

impl StorageError {
    /// Classifies an error code; `None` if the statement caused the error.
    pub fn of(error: &dyn DatabaseError) -> Option<Self> {
        let code: Cow<'_, str> = error.code()?;
        if code.len() == 5 {
            return Self::of_sqlstate(&code);
        }
        // SQLite's primary result code is the low byte of the extended one.
        match code.parse::<u32>().ok()? & 0xff {
            // SQLITE_BUSY, LOCKED, NOMEM and PROTOCOL.
            5 | 6 | 7 | 15 => Some(Self::Busy),
            // SQLITE_READONLY.
            8 => Some(Self::ReadOnly),
            // SQLITE_IOERR and CANTOPEN.
            10 | 14 => Some(Self::Io),
            // SQLITE_FULL.
            13 => Some(Self::DiskFull),
            _ => None,
        }
    }

    fn of_sqlstate(code: &str) -> Option<Self> {
        match code {
            "25006" => Some(Self::ReadOnly),
            "53100" => Some(Self::DiskFull),
            // lock_not_available.
            "55P03" => Some(Self::Busy),
            _ if code.starts_with("53") => Some(Self::Busy),
            _ if code.starts_with("58") => Some(Self::Io),
            _ => None,
        }
    }
}

/// Counts a failure.
pub(crate) fn failed(error: StorageError) {
    if error == StorageError::ReadOnly {
        *READ_ONLY.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
    FAILURES.fetch_add(1, Ordering::Relaxed);
}

/// Counts a committed transaction.
pub(crate) fn committed() {
    COMMITS.fetch_add(1, Ordering::Relaxed);
}

/// The number of statements that failed for one of these reasons.
pub fn failures() -> u64 {
    FAILURES.load(Ordering::Relaxed)
}

/// The number of committed transactions.
pub fn commits() -> u64 {
    COMMITS.load(Ordering::Relaxed)
}

/// Whether the database was found to be read-only within this time. A connection opened then may stay read-only after
/// the database has become writable.
pub fn was_read_only_within(span: Duration) -> bool {
    let at = *READ_ONLY.lock().unwrap_or_else(PoisonError::into_inner);
    at.is_some_and(|at| at.elapsed() <= span)
}
