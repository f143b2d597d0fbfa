//! Opens a SQLite file for writing, else for reading; an error is one line.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sea_orm::sqlx::{self, ConnectOptions, Connection, Executor};
use sea_orm::{DatabaseConnection, SqlxSqliteConnector};

use super::pool::{PoolHealth, fill, pool};
use crate::{StartError, config};

/// How long SQLite waits for the lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How many rows the thread of a connection reads before it waits for the task that takes them.
const ROW_BUFFER: usize = 1_000;

pub(super) async fn open(
    settings: &config::Database,
) -> Result<
    (
        DatabaseConnection,
        Arc<PoolHealth>,
        SqliteConnectOptions,
        bool,
    ),
    StartError,
> {
    let options: SqliteConnectOptions = (settings.url.expose().parse()).map_err(|error| {
        StartError::new(format!(
            "the database URL {} is invalid: {error}",
            settings.url
        ))
    })?;
    let options = options
        // The file is created only at start: if it is missing later, it was removed.
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ROW_BUFFER)
        .foreign_keys(true)
        .disable_statement_logging();
    let file = options.get_filename().to_owned();

    let writable = options
        .clone()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    let directory = file
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    let created = directory.map_or(Ok(()), make_folder);
    let opened = match created {
        Ok(()) => make_writable(&writable.clone().create_if_missing(true)).await,
        Err(error) => Err(error.into()),
    };
    let (options, read_only) = match opened {
        Ok(()) => (writable, false),
        Err(error) => match find_readable(options, &error, &file).await {
            Some(options) => (options, true),
            None => return Err(StartError::new(explain(&error, &file))),
        },
    };
    if read_only {
        tracing::warn!(file = %file.display(), "the database is not writable: serving reads only");
    }

    let health = Arc::new(PoolHealth::new(settings, Some(file.clone())));
    let pool: SqlitePoolOptions = pool(settings, &health);
    let pool = pool.connect_lazy_with(options.clone());
    let filled = fill(&pool).await;
    filled.map_err(|error| StartError::new(explain(&error, &file)))?;
    let connection = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool);
    Ok((connection, health, options, read_only))
}

/// Creates a folder with access for its owner only: it contains password hashes and keys.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens the file for writing, and enables its write-ahead log.
async fn make_writable(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let started = Instant::now();
    loop {
        match probe_writing(options).await {
            // While another process enables the log, SQLite reports busy immediately, regardless of the timeout.
            Err(error) if sqlite_code(&error) == Some(BUSY) && started.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// Begins a write and rolls it back. BEGIN alone would succeed on a file that cannot be written.
async fn probe_writing(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    let begun = connection
        .execute("BEGIN IMMEDIATE; PRAGMA user_version = 1")
        .await;
    match begun {
        Ok(_) => {
            connection.execute("ROLLBACK").await?;
        }
        // Another process is writing, so the file is writable.
        Err(error) if sqlite_code(&error) == Some(BUSY) => {}
        Err(error) => return Err(error),
    }
    connection.close().await
}

async fn probe_reading(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    connection
        .execute("SELECT count(*) FROM sqlite_schema")
        .await?;
    connection.close().await
}

/// Returns options to read a file that cannot be written. If its directory cannot be written either, SQLite must open
/// the file as immutable.
async fn find_readable(
    options: SqliteConnectOptions,
    error: &sqlx::Error,
    file: &Path,
) -> Option<SqliteConnectOptions> {
    // If another process holds the locks, the file must not be read without them.
    let kept_from_writing = matches!(sqlite_code(error), Some(READ_ONLY | CANNOT_OPEN));
    if !kept_from_writing || !file.is_file() {
        return None;
    }
    let as_is = options.read_only(true);
    let unchanging = as_is.clone().immutable(true);
    match probe_reading(&as_is).await {
        Ok(()) => Some(as_is),
        Err(error) if sqlite_code(&error) == Some(BUSY) => None,
        Err(_) => probe_reading(&unchanging)
            .await
            .is_ok()
            .then_some(unchanging),
    }
}

const BUSY: i32 = 5;
const READ_ONLY: i32 = 8;
const CANNOT_OPEN: i32 = 14;

/// SQLite's primary result code.
fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

fn explain(error: &sqlx::Error, file: &Path) -> String {
    let name = file.display();
    let elsewhere = "or set another path in DATABASE_URL";
    match (sqlite_code(error), error) {
        (Some(BUSY | 6), _) => {
            format!("the database {name} is locked by another process: end it, {elsewhere}")
        }
        (Some(READ_ONLY), _) => {
            format!("the database {name} cannot be written: change its permissions, {elsewhere}")
        }
        (Some(11), _) => format!("the database {name} is damaged: restore a backup, {elsewhere}"),
        (Some(13), _) => {
            format!("the disk of the database {name} is full: free some space, {elsewhere}")
        }
        (Some(CANNOT_OPEN), _) if file.is_dir() => {
            format!("{name} is a directory: set the path of a file in DATABASE_URL")
        }
        (Some(CANNOT_OPEN), _) => format!(
            "the database {name} cannot be opened: check that its directory is writable, {elsewhere}"
        ),
        (Some(26), _) => format!("{name} is not a SQLite database: move it away, {elsewhere}"),
        (_, sqlx::Error::Io(error)) => format!(
            "the directory of the database {name} cannot be created ({error}): check its permissions, {elsewhere}"
        ),
        (_, error) => format!("cannot use the database {name}: {error}"),
    }
}

/// Writes 256 KiB and rolls back. The cache is too small for them, so SQLite writes them to the write-ahead log before
/// the rollback.
pub(super) async fn try_writing(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    connection
        .execute(
            "PRAGMA cache_size = 1; BEGIN IMMEDIATE; CREATE TABLE gathering_attempt (filler); \
             INSERT INTO gathering_attempt VALUES (zeroblob(262144)); ROLLBACK",
        )
        .await?;
    connection.close().await
}
