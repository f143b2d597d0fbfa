//! The database: one pool, opened at start and closed last.
//!
//! The rule: what goes wrong at start is one line that says what to do, and what goes wrong later heals by itself. A
//! connection is tested before use when it has rested for long, or since a statement last failed; one to a SQLite
//! file that is no longer in its place is dropped, and so is one that is given back inside a transaction.

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

/// How long the first connection may take: longer than in a running server, since its database may just be waking up.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long SQLite waits for another process to release its lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open database. Cheap to clone; all clones share the one pool.
#[derive(Clone)]
pub struct Database {
    connection: DatabaseConnection,
    pulse: Arc<Pulse>,
    /// How a SQLite file is opened.
    file: Option<SqliteConnectOptions>,
    read_only: bool,
}

/// What came of the last look at the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It answered.
    Pass,
    /// It answers others; every connection of the pool is taken.
    Busy,
    /// It did not answer.
    Fail,
}

/// What came of an attempt to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It was written, and taken back.
    Pass,
    /// Another connection or process holds the lock.
    Locked,
    /// It could not be written.
    Fail,
    /// The attempt itself is not allowed, or there is no connection for it.
    Undecided,
}

impl Database {
    /// Opens the pool. A SQLite file and its directory are made when missing; one that cannot be written is opened for
    /// reading.
    ///
    /// # Errors
    /// The database cannot be reached, or refuses us.
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

    /// The connection for statements and transactions; each takes one from the pool.
    pub fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// Whether this is a SQLite file that cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// How many statements have been sent through this pool; BEGIN, COMMIT and tests of connections are not counted.
    pub fn statements(&self) -> u64 {
        self.pulse.statements.load(Ordering::Relaxed)
    }

    /// Whether the database answers within `timeout`. A full pool whose statements succeed is busy, not out of reach.
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

    /// Has every connection that is open now replaced before it is used again.
    pub fn renew(&self) {
        self.pulse.renew();
    }

    /// Closes every connection, after waiting for those in use.
    pub async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the pool did not close");
        }
    }
}

/// What the statements tell about the database.
struct Pulse {
    started: Instant,
    statements: AtomicU64,
    successes: AtomicU64,
    /// When a statement last failed, in nanoseconds after `started`; 0 is never.
    failed: AtomicU64,
    /// When connections were last to be replaced, likewise.
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
                    // The others that rested as long are then suspects too.
                    connection.ping().await.inspect_err(|_| pulse.fail())?;
                }
                Ok(!stale)
            })
        })
        .after_release(|connection: &mut DB::Connection, _| Box::pin(is_settled(connection)))
}

/// Whether a connection that is given back is outside of a transaction. SQLite takes a transaction back by itself when
/// the disk is full or fails; the driver's ROLLBACK then fails, the driver counts the transaction as open, and further
/// transactions on the connection would be parts of one that nothing commits.
async fn is_settled<C: Connection>(connection: &mut C) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // A ROLLBACK may still be queued.
        connection.ping().await?;
    }
    let is_settled = !connection.is_in_transaction();
    if !is_settled {
        tracing::warn!("a transaction could not be rolled back; closing its connection");
    }
    Ok(is_settled)
}

/// Writes 256 KiB into a table that is dropped with the commit of the same statement.
const FILL_TABLE: &str = "CREATE TEMPORARY TABLE gathering_attempt ON COMMIT DROP AS \
    SELECT repeat('x', 256) AS filler FROM generate_series(1, 1024)";

/// Writes 256 KiB and takes them back. The cache has no room for them, so SQLite writes them to the file's log before it
/// knows that they will not be committed.
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

/// Opens the connections that are to be kept. One that is late is no reason not to start.
async fn fill<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> Result<(), sqlx::Error> {
    let kept = pool.options().get_min_connections();
    for opened in join_all((0..kept).map(|_| pool.acquire())).await {
        match opened {
            Err(sqlx::Error::PoolTimedOut) => {
                tracing::warn!(
                    "the database gives fewer connections than database.min_connections"
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
    let options: PgConnectOptions = url.expose().parse().map_err(|error| {
        StartError::new(format!("the database URL {url} cannot be read: {error}"))
    })?;
    let milliseconds = settings.statement_timeout.as_millis().to_string();
    let options = options
        .application_name("gathering")
        // One that holds locks and has stopped is ended by the database, so that the others can go on.
        .options([
            ("idle_in_transaction_session_timeout", milliseconds.clone()),
            ("statement_timeout", milliseconds),
        ])
        .disable_statement_logging();

    // The pool would repeat a refused connection until its timeout, and then say only that it was late.
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
            "{at} refuses the password of user \"{user}\": correct it in DATABASE_URL ({url})"
        ),
        (Some("28000"), _) => format!(
            "{at} does not let user \"{user}\" in: create the user, or correct DATABASE_URL ({url})"
        ),
        (Some("3D000"), _) => format!(
            "{at} has no database \"{database}\": create it with `createdb {database}`, or correct DATABASE_URL ({url})"
        ),
        (Some("42501"), _) => format!(
            "{at} does not let user \"{user}\" connect to database \"{database}\": grant CONNECT, or correct DATABASE_URL ({url})"
        ),
        (Some("53300"), _) => format!(
            "{at} has no connection left: raise its max_connections, or lower database.max_connections"
        ),
        (Some("57P03"), _) => {
            format!("{at} is starting up or shutting down: try again in a moment")
        }
        (_, sqlx::Error::Io(error)) => {
            format!("cannot reach {at} ({error}): start it, or correct DATABASE_URL ({url})")
        }
        (_, sqlx::Error::Tls(error)) => format!(
            "{at} and this server do not agree on TLS ({error}): see sslmode in DATABASE_URL ({url})"
        ),
        (_, error) => format!("cannot use {at}: {error}"),
    }
}

async fn open_sqlite(
    settings: &config::Database,
    pulse: &Arc<Pulse>,
) -> Result<(DatabaseConnection, SqliteConnectOptions, bool), StartError> {
    let options: SqliteConnectOptions = (settings.url.expose().parse()).map_err(|error| {
        StartError::new(format!(
            "the database URL {} cannot be read: {error}",
            settings.url
        ))
    })?;
    let options = options
        // Made at start or never: later a missing file is one that somebody took away.
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
        tracing::warn!(file = %file.display(), "the database cannot be written: serving reads only");
    }

    let pool: SqlitePoolOptions = pool(settings, pulse, Some(Place::new(file.clone())));
    let pool = pool.connect_lazy_with(options.clone());
    let filled = fill(&pool).await;
    filled.map_err(|error| StartError::new(explain_sqlite(&error, &file)))?;
    let connection = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool);
    Ok((connection, options, read_only))
}

/// Makes a folder that only its owner may look into: what is in it are password hashes and keys.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens the file for writing, and leaves it with a write-ahead log.
async fn make_writable(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let started = Instant::now();
    loop {
        match try_writing(options).await {
            // While another process turns the log on, SQLite says so at once, whatever it was told to wait.
            Err(error) if sqlite_code(&error) == Some(BUSY) && started.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// Begins a write and takes it back. BEGIN alone would succeed on a file that cannot be written.
async fn try_writing(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    let begun = connection
        .execute("BEGIN IMMEDIATE; PRAGMA user_version = 1")
        .await;
    match begun {
        Ok(_) => {
            connection.execute("ROLLBACK").await?;
        }
        // Another process is writing, so that it can be written.
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

/// The way to read a file that could not be written. Where its directory cannot be written either, SQLite must be told
/// that nobody changes the file.
async fn find_readable(
    options: SqliteConnectOptions,
    error: &sqlx::Error,
    file: &Path,
) -> Option<SqliteConnectOptions> {
    // Without its locks a file must not be read because another process holds them.
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
    let elsewhere = "or name another place in DATABASE_URL";
    match (sqlite_code(error), error) {
        (Some(BUSY | 6), _) => {
            format!("the database {name} is locked by another process: end it, {elsewhere}")
        }
        (Some(READ_ONLY), _) => {
            format!("the database {name} cannot be written: change its permissions, {elsewhere}")
        }
        (Some(11), _) => format!("the database {name} is damaged: restore a backup, {elsewhere}"),
        (Some(13), _) => {
            format!("there is no room left for the database {name}: free some, {elsewhere}")
        }
        (Some(CANNOT_OPEN), _) if file.is_dir() => {
            format!("{name} is a directory: name a file in DATABASE_URL")
        }
        (Some(CANNOT_OPEN), _) => format!(
            "the database {name} cannot be opened: check that its directory can be written, {elsewhere}"
        ),
        (Some(26), _) => format!("{name} is not a SQLite database: move it away, {elsewhere}"),
        (_, sqlx::Error::Io(error)) => format!(
            "the directory of the database {name} cannot be made ({error}): check its permissions, {elsewhere}"
        ),
        (_, error) => format!("cannot use the database {name}: {error}"),
    }
}

/// Where a SQLite file lies. A connection reads on from a file that was moved away or replaced, for ever; so each is
/// held against what is in that place now.
struct Place {
    path: PathBuf,
    /// The file that was there, and since when.
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

    /// Whether the file is gone, or is another one than a connection of this age has opened.
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
