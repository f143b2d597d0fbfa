//! The database: one connection pool, opened at start and closed last.
//!
//! Errors at start are one line that says what to do; later failures recover without a restart. A connection is tested
//! before use after a long idle time, and after a failed statement. A connection is dropped if its SQLite file was
//! moved or replaced, or if it is released inside a transaction.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gathering_schema::storage::{self, StorageError};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sea_orm::sqlx::{self, ConnectOptions, Connection, Executor};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector, SqlxSqliteConnector};

use crate::{StartError, config};

/// Timeout of the first connection: longer than for later ones, since the database may still be starting.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long SQLite waits for the lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open database. Cheap to clone; all clones share one pool.
#[derive(Clone)]
pub struct Database {
    connection: DatabaseConnection,
    pulse: Arc<Pulse>,
    /// Options of the SQLite file.
    file: Option<SqliteConnectOptions>,
    read_only: bool,
}

/// The result of a check of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
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
    pub async fn open(settings: &config::Database) -> Result<Self, StartError> {
        let pulse = Arc::new(Pulse::new());
        let (mut connection, file, read_only) = if settings.url.is_postgres() {
            (open_postgres(settings, &pulse).await?, None, false)
        } else {
            let (connection, file, read_only) = open_sqlite(settings, &pulse).await?;
            (connection, Some(file), read_only)
        };
        let watched = Arc::clone(&pulse);
        connection.set_metric_callback(move |statement| watched.beat(statement.failed));
        Ok(Self {
            connection,
            pulse,
            file,
            read_only,
        })
    }

    /// The pool for statements and transactions.
    pub fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// Whether the database is a SQLite file that cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Number of statements sent through this pool, without BEGIN, COMMIT and connection tests.
    pub fn statements(&self) -> u64 {
        self.pulse.statements.load(Ordering::Relaxed)
    }

    /// Checks whether the database answers within `timeout`. A full pool whose statements succeed is busy, not
    /// unreachable.
    pub async fn reach(&self, timeout: Duration) -> Reach {
        let before = self.pulse.successes.load(Ordering::Relaxed);
        match tokio::time::timeout(timeout, self.connection.ping()).await {
            Ok(Ok(())) => Reach::Pass,
            _ if self.pulse.successes.load(Ordering::Relaxed) > before => Reach::Busy,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the database does not answer");
                Reach::Fail
            }
            Err(_) => {
                tracing::warn!("the database does not answer");
                Reach::Fail
            }
        }
    }

    /// Write probe: writes 256 KiB and discards them. Waits up to `timeout` for the lock of SQLite, and twice that overall.
    pub async fn try_writing(&self, timeout: Duration) -> Attempt {
        let attempt = async {
            if let Some(file) = &self.file {
                return fill_file(&file.clone().busy_timeout(timeout)).await;
            }
            let pool = self.connection.get_postgres_connection_pool();
            pool.execute(FILL_TABLE).await.map(drop)
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
        self.pulse.renew();
    }

    /// Closes every connection, after waiting for those in use.
    pub async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the pool could not be closed");
        }
    }
}

/// Health of the pool, as observed from its statements.
struct Pulse {
    started: Instant,
    statements: AtomicU64,
    successes: AtomicU64,
    /// When a statement last failed, in nanoseconds after `started`; 0 means never.
    failed: AtomicU64,
    /// When the replacement of connections was last requested, in nanoseconds after `started`; 0 means never.
    renewed: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            statements: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            renewed: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn beat(&self, failed: bool) {
        self.statements.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.fail();
        } else {
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fail(&self) {
        self.failed.store(self.now(), Ordering::Relaxed);
    }

    fn renew(&self) {
        self.renewed.store(self.now(), Ordering::Relaxed);
    }

    fn failed_within(&self, span: Duration) -> bool {
        self.is_within(&self.failed, span)
    }

    fn renewed_within(&self, span: Duration) -> bool {
        self.is_within(&self.renewed, span)
    }

    fn is_within(&self, instant: &AtomicU64, span: Duration) -> bool {
        let instant = instant.load(Ordering::Relaxed);
        instant != 0 && u128::from(self.now().saturating_sub(instant)) <= span.as_nanos()
    }
}

fn pool<DB: sqlx::Database>(
    settings: &config::Database,
    pulse: &Arc<Pulse>,
    place: Option<Place>,
) -> sqlx::pool::PoolOptions<DB> {
    let pulse = Arc::clone(pulse);
    let ping_after = settings.ping_after;
    sqlx::pool::PoolOptions::new()
        .min_connections(settings.min_connections)
        .max_connections(settings.max_connections)
        .acquire_timeout(settings.acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(move |connection: &mut DB::Connection, age| {
            let stale = pulse.renewed_within(age.age)
                || storage::was_read_only_within(age.age)
                || (place.as_ref()).is_some_and(|place| place.changed_within(age.age));
            let suspect = age.idle_for >= ping_after || pulse.failed_within(age.idle_for);
            let pulse = Arc::clone(&pulse);
            Box::pin(async move {
                if suspect && !stale {
                    // Then test the other idle connections too.
                    connection.ping().await.inspect_err(|_| pulse.fail())?;
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

/// Writes 256 KiB into a table that is dropped at the commit of the same statement.
const FILL_TABLE: &str = "CREATE TEMPORARY TABLE gathering_attempt ON COMMIT DROP AS \
    SELECT repeat('x', 256) AS filler FROM generate_series(1, 1024)";

/// Writes 256 KiB and rolls back. The cache is too small for them, so SQLite writes them to the write-ahead log before
/// the rollback.
async fn fill_file(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    connection
        .execute(
            "PRAGMA cache_size = 1; BEGIN IMMEDIATE; CREATE TABLE gathering_attempt (filler); \
             INSERT INTO gathering_attempt VALUES (zeroblob(262144)); ROLLBACK",
        )
        .await?;
    connection.close().await
}

/// Opens the minimum number of connections. A timeout does not prevent the start.
async fn fill<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> Result<(), sqlx::Error> {
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

async fn open_postgres(
    settings: &config::Database,
    pulse: &Arc<Pulse>,
) -> Result<DatabaseConnection, StartError> {
    let url = &settings.url;
    let options: PgConnectOptions = url
        .expose()
        .parse()
        .map_err(|error| StartError::new(format!("the database URL {url} is invalid: {error}")))?;
    let milliseconds = settings.statement_timeout.as_millis().to_string();
    let options = options
        .application_name("gathering")
        // PostgreSQL ends a session that holds locks and is idle in a transaction, so that others can continue.
        .options([
            ("idle_in_transaction_session_timeout", milliseconds.clone()),
            ("statement_timeout", milliseconds),
        ])
        .disable_statement_logging();

    // Connect once without the pool: it would retry a rejected connection until its timeout and then report only the
    // timeout.
    let at = format!(
        "PostgreSQL at {}:{}",
        options.get_host(),
        options.get_port()
    );
    let first = tokio::time::timeout(START_TIMEOUT, options.connect()).await;
    let first = first.map_err(|_| {
        StartError::new(format!(
            "{at} does not answer: check DATABASE_URL ({url}) and the network"
        ))
    })?;
    let refused = |error| StartError::new(explain_postgres(&error, &at, &options, url));
    first.map_err(refused)?.close().await.map_err(refused)?;

    let pool: PgPoolOptions = pool(settings, pulse, None);
    let pool = pool.connect_lazy_with(options.clone());
    fill(&pool).await.map_err(refused)?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

fn explain_postgres(
    error: &sqlx::Error,
    at: &str,
    options: &PgConnectOptions,
    url: &config::DatabaseUrl,
) -> String {
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    match (code.as_deref(), error) {
        (Some("28P01"), _) => format!(
            "{at} rejected the password of user \"{user}\": correct it in DATABASE_URL ({url})"
        ),
        (Some("28000"), _) => format!(
            "{at} rejected user \"{user}\": create the user, or correct DATABASE_URL ({url})"
        ),
        (Some("3D000"), _) => format!(
            "{at} has no database \"{database}\": create it with `createdb {database}`, or correct DATABASE_URL ({url})"
        ),
        (Some("42501"), _) => format!(
            "{at} does not allow user \"{user}\" to connect to database \"{database}\": grant CONNECT, or correct DATABASE_URL ({url})"
        ),
        (Some("53300"), _) => format!(
            "{at} has no free connection: raise its max_connections, or lower database.max_connections"
        ),
        (Some("57P03"), _) => {
            format!("{at} is starting up or shutting down: try again in a moment")
        }
        (_, sqlx::Error::Io(error)) => {
            format!("cannot reach {at} ({error}): start it, or correct DATABASE_URL ({url})")
        }
        (_, sqlx::Error::Tls(error)) => {
            format!("cannot agree on TLS with {at} ({error}): see sslmode in DATABASE_URL ({url})")
        }
        (_, error) => format!("cannot use {at}: {error}"),
    }
}

async fn open_sqlite(
    settings: &config::Database,
    pulse: &Arc<Pulse>,
) -> Result<(DatabaseConnection, SqliteConnectOptions, bool), StartError> {
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
    let made = directory.map_or(Ok(()), make_folder);
    let opened = match made {
        Ok(()) => make_writable(&writable.clone().create_if_missing(true)).await,
        Err(error) => Err(error.into()),
    };
    let (options, read_only) = match opened {
        Ok(()) => (writable, false),
        Err(error) => match find_readable(options, &error, &file).await {
            Some(options) => (options, true),
            None => return Err(StartError::new(explain_sqlite(&error, &file))),
        },
    };
    if read_only {
        tracing::warn!(file = %file.display(), "the database is not writable: serving reads only");
    }

    let pool: SqlitePoolOptions = pool(settings, pulse, Some(Place::new(file.clone())));
    let pool = pool.connect_lazy_with(options.clone());
    let filled = fill(&pool).await;
    filled.map_err(|error| StartError::new(explain_sqlite(&error, &file)))?;
    let connection = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool);
    Ok((connection, options, read_only))
}

/// Creates a folder with access for its owner only: it contains password hashes and keys.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens the file for writing, and enables its write-ahead log.
async fn make_writable(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let started = Instant::now();
    loop {
        match try_writing(options).await {
            // While another process enables the log, SQLite reports busy immediately, regardless of the timeout.
            Err(error) if sqlite_code(&error) == Some(BUSY) && started.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// Begins a write and rolls it back. BEGIN alone would succeed on a file that cannot be written.
async fn try_writing(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
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

async fn try_reading(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
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
    match try_reading(&as_is).await {
        Ok(()) => Some(as_is),
        Err(error) if sqlite_code(&error) == Some(BUSY) => None,
        Err(_) => try_reading(&unchanging).await.is_ok().then_some(unchanging),
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

fn explain_sqlite(error: &sqlx::Error, file: &Path) -> String {
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

/// The path of a SQLite file. A connection keeps reading from a file that was moved or replaced, so its age is compared
/// with the time of the last change.
struct Place {
    path: PathBuf,
    /// The device and inode of the file, and since when it has been there.
    seen: Mutex<(Option<(u64, u64)>, Instant)>,
}

impl Place {
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
