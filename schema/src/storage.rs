//! What this process has seen of its database failing to write: a full disk, an I/O error, a file or a server that can
//! only be read, a lock that is not let go.
//!
//! A failure of this kind says nothing about the statement that met it. It is counted where errors are read, for the
//! whole process, as a process has one database.

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

/// Why a database did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is locked, or out of memory or connections.
    Busy,
    /// Its disk is full.
    NoRoom,
    /// Its disk fails, or its files cannot be opened.
    Io,
    /// It can only be read.
    ReadOnly,
}

impl Trouble {
    /// The trouble that an error code tells of; `None` when the statement itself is to blame.
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
            13 => Some(Self::NoRoom),
            _ => None,
        }
    }

    fn of_sqlstate(code: &str) -> Option<Self> {
        match code {
            "25006" => Some(Self::ReadOnly),
            "53100" => Some(Self::NoRoom),
            // lock_not_available.
            "55P03" => Some(Self::Busy),
            _ if code.starts_with("53") => Some(Self::Busy),
            _ if code.starts_with("58") => Some(Self::Io),
            _ => None,
        }
    }
}

/// Counts a failure.
pub(crate) fn failed(trouble: Trouble) {
    if trouble == Trouble::ReadOnly {
        *READ_ONLY.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
    FAILURES.fetch_add(1, Ordering::Relaxed);
}

/// Counts a change that was committed.
pub(crate) fn committed() {
    COMMITS.fetch_add(1, Ordering::Relaxed);
}

/// How many statements have failed for a reason of this kind.
pub fn failures() -> u64 {
    FAILURES.load(Ordering::Relaxed)
}

/// How many changes have been committed.
pub fn commits() -> u64 {
    COMMITS.load(Ordering::Relaxed)
}

/// Whether the database was found to be read-only within this time. A connection that was open then may stay read-only
/// when the database no longer is.
pub fn was_read_only_within(span: Duration) -> bool {
    let at = *READ_ONLY.lock().unwrap_or_else(PoisonError::into_inner);
    at.is_some_and(|at| at.elapsed() <= span)
}
