//! `doctor`: checks what a server needs, and prints what to do.

use std::io;
use std::path::Path;
use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use gathering::config::Config;
use gathering::db::Database;
use gathering::{StartError, keys, system};
use gathering_schema::rate_limit::redis_state;
use sea_orm::{DatabaseConnection, DbBackend, DbErr, FromQueryResult, Statement};

use super::output::print;

/// The difference between two clocks that is reported. Tokens and live events depend on the clocks of all instances.
const CLOCK_DIFFERENCE: TimeDelta = TimeDelta::seconds(2);

/// The oldest PostgreSQL that the tests cover, as `server_version_num`.
const OLDEST_POSTGRES: i32 = 150_000;

/// Open files that a server needs in addition to its connections.
const OTHER_FILES: usize = 64;

/// The results of the checks, in order.
#[derive(Default)]
struct Findings {
    lines: Vec<String>,
    failures: usize,
    warnings: usize,
}

impl Findings {
    fn ok(&mut self, name: &str, text: &str) {
        self.line("ok", name, text);
    }

    fn warn(&mut self, name: &str, text: &str) {
        self.warnings += 1;
        self.line("warn", name, text);
    }

    fn fail(&mut self, name: &str, text: &str) {
        self.failures += 1;
        self.line("FAIL", name, text);
    }

    fn line(&mut self, verdict: &str, name: &str, text: &str) {
        self.lines.push(format!("{verdict:<5} {name:<12} {text}\n"));
    }
}

/// Prints the result of each check.
///
/// # Errors
/// A check has failed.
pub(super) async fn doctor(config: &Config) -> Result<(), StartError> {
    let mut findings = Findings::default();
    findings.ok("settings", "the configuration is valid");
    match keys::check(config) {
        Ok(()) => findings.ok("keys", "the signing keys are strong"),
        Err(error) => findings.fail("keys", &error.to_string()),
    }
    files(config, &mut findings);
    match Database::file_of(&config.database) {
        Some(file) if !file.exists() => findings.ok(
            "database",
            &format!(
                "{} does not exist yet; `gathering serve` creates it",
                file.display()
            ),
        ),
        file => match Database::open(&config.database).await {
            Ok(database) => {
                check_database(config, &database, &mut findings).await;
                database.close().await;
            }
            Err(error) => {
                let name = if file.is_some() {
                    "SQLite"
                } else {
                    "PostgreSQL"
                };
                findings.fail("database", &format!("{name}: {error}"));
            }
        },
    }
    if let Some(file) = Database::file_of(&config.database) {
        disk(&file, &mut findings);
    }
    redis(config, &mut findings).await;
    let Findings {
        lines,
        failures,
        warnings,
    } = findings;
    print(&lines.concat());
    if failures > 0 {
        return Err(StartError::new(format!(
            "checks failed: {failures}, warnings: {warnings}"
        )));
    }
    print(&format!("no check failed, warnings: {warnings}\n"));
    Ok(())
}

/// Each connection to the server and to the database needs an open file.
fn files(config: &Config, findings: &mut Findings) {
    let pool = usize::try_from(config.database.max_connections).unwrap_or(usize::MAX);
    let needed = config
        .server
        .max_connections
        .saturating_add(pool)
        .saturating_add(OTHER_FILES);
    match system::open_files_limit() {
        Some(limit) if limit < needed => findings.warn(
            "files",
            &format!(
                "the limit of open files is {limit}, and {needed} may be needed: raise it \
                 (`ulimit -n`, LimitNOFILE), or lower server.max_connections"
            ),
        ),
        Some(limit) => findings.ok("files", &format!("the limit of open files is {limit}")),
        None => findings.ok("files", "the limit of open files is unknown"),
    }
}

async fn check_database(config: &Config, database: &Database, findings: &mut Findings) {
    let connection = database.connection();
    if database.is_read_only() {
        findings.warn(
            "database",
            "the file is not writable, so that only reads are served: change its permissions",
        );
    }
    let checked = match connection.get_database_backend() {
        DbBackend::Sqlite => sqlite(connection, findings).await,
        _ => postgres(config, connection, findings).await,
    };
    if let Err(error) = checked {
        findings.fail("database", &format!("it cannot be read: {error}"));
    }
    match gathering_migration::pending(connection).await {
        Ok(0) => findings.ok("migrations", "the database is up to date"),
        Ok(pending) if database.file().is_some() => findings.ok(
            "migrations",
            &format!("{pending} are pending; `gathering serve` applies them"),
        ),
        Ok(pending) => findings.fail(
            "migrations",
            &format!("{pending} are pending: run `gathering migrate`"),
        ),
        Err(error) => findings.fail("migrations", &StartError::from(error).to_string()),
    }
}

async fn sqlite(connection: &DatabaseConnection, findings: &mut Findings) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Found {
        version: String,
        damage: String,
    }
    let query = "SELECT sqlite_version() AS version, \
        (SELECT group_concat(quick_check, '; ') FROM (SELECT quick_check FROM pragma_quick_check LIMIT 3)) AS damage";
    if let Some(Found { version, damage }) = one(connection, query).await? {
        if damage == "ok" {
            findings.ok("database", &format!("SQLite {version}, the file is intact"));
        } else {
            findings.fail(
                "database",
                &format!("the file is damaged ({damage}): restore a backup"),
            );
        }
    }
    Ok(())
}

async fn postgres(
    config: &Config,
    connection: &DatabaseConnection,
    findings: &mut Findings,
) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Found {
        version: String,
        number: i32,
        connections: i32,
        encoding: String,
        is_standby: bool,
        is_durable: bool,
        may_create: bool,
        now: DateTime<Utc>,
    }
    let query = "SELECT current_setting('server_version') AS version, \
        current_setting('server_version_num')::int AS number, \
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS connections, \
        current_setting('server_encoding') AS encoding, \
        pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool AS is_standby, \
        current_setting('fsync')::bool AND current_setting('synchronous_commit') <> 'off' AS is_durable, \
        has_schema_privilege(current_schema(), 'CREATE') AS may_create, \
        clock_timestamp() AS now";
    let asked = Instant::now();
    let Some(found) = one::<Found>(connection, query).await? else {
        return Ok(());
    };
    if found.number < OLDEST_POSTGRES {
        findings.warn(
            "database",
            &format!(
                "PostgreSQL {} is older than the versions that are tested: use 15 or newer",
                found.version
            ),
        );
    } else {
        findings.ok("database", &format!("PostgreSQL {}", found.version));
    }
    if found.encoding != "UTF8" {
        findings.fail(
            "encoding",
            &format!(
                "the database has the encoding {}: create it with the encoding UTF8",
                found.encoding
            ),
        );
    }
    if found.is_standby {
        findings.fail(
            "writes",
            "the database is read-only: connect to the primary server",
        );
    }
    if !found.is_durable {
        findings.warn(
            "durability",
            "fsync or synchronous_commit is off, so that a crash loses acknowledged changes: turn them on",
        );
    }
    if !found.may_create {
        findings.ok(
            "privileges",
            "this user cannot migrate: run `gathering migrate` as the owner of the schema",
        );
    }
    // The pool, and the connection that listens for notifications.
    let each = i64::from(config.database.max_connections) + 1;
    let instances = i64::from(found.connections) / each;
    if instances == 0 {
        findings.fail(
            "connections",
            &format!(
                "PostgreSQL allows {} connections and an instance may open {each}: raise max_connections, \
                 or lower database.max_connections",
                found.connections
            ),
        );
    } else {
        findings.ok(
            "connections",
            &format!(
                "PostgreSQL allows {}, enough for {instances} instances",
                found.connections
            ),
        );
    }
    clock("PostgreSQL", found.now, asked, findings);
    Ok(())
}

/// Compares the clock of another server with ours.
fn clock(server: &str, theirs: DateTime<Utc>, asked: Instant, findings: &mut Findings) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the system clock is what is checked"
    )]
    let ours = Utc::now();
    let uncertain = TimeDelta::from_std(asked.elapsed()).unwrap_or(TimeDelta::MAX);
    let difference = (ours - theirs).abs();
    if difference > CLOCK_DIFFERENCE + uncertain {
        findings.fail(
            "clock",
            &format!(
                "the clocks of this machine and of {server} differ by {} seconds: synchronize them (NTP)",
                difference.num_seconds()
            ),
        );
    } else {
        findings.ok("clock", &format!("it agrees with that of {server}"));
    }
}

fn disk(file: &Path, findings: &mut Findings) {
    let folder = file.ancestors().skip(1).find(|folder| folder.exists());
    let folder = folder
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    match system::space(folder) {
        Some(space) => {
            let text = format!("{} MiB are free in {}", space.free >> 20, folder.display());
            if space.is_scarce() {
                findings.warn("disk", &format!("only {text}: free some space"));
            } else {
                findings.ok("disk", &text);
            }
        }
        None => findings.warn(
            "disk",
            &format!("the free space of {} is unknown", folder.display()),
        ),
    }
    let probe = tempfile::NamedTempFile::new_in(folder).map(drop);
    if let Err(error) = probe {
        let why = match error.kind() {
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        findings.fail(
            "disk",
            &format!(
                "{} is not writable ({why}): change its permissions",
                folder.display()
            ),
        );
    }
}

async fn redis(config: &Config, findings: &mut Findings) {
    let url = config.redis.url.expose();
    if url.is_empty() {
        if config.database.url.is_postgres() {
            findings.ok(
                "redis",
                "not configured: for several instances, set redis.url, or each one applies the rate limits separately",
            );
        }
        return;
    }
    let asked = Instant::now();
    let state = match redis_state(url).await {
        Ok(state) => state,
        Err(error) => {
            findings.fail(
                "redis",
                &format!("it does not answer ({error}): check redis.url"),
            );
            return;
        }
    };
    findings.ok("redis", &format!("Redis {}", state.version));
    if !["", "noeviction"].contains(&state.eviction.as_str()) {
        findings.warn(
            "redis",
            &format!(
                "its maxmemory-policy is {}, which may evict rate limits: set it to noeviction",
                state.eviction
            ),
        );
    }
    if let Some(theirs) = DateTime::from_timestamp_micros(state.now) {
        clock("Redis", theirs, asked, findings);
    }
}

async fn one<T: FromQueryResult>(
    connection: &DatabaseConnection,
    query: &str,
) -> Result<Option<T>, DbErr> {
    let backend = connection.get_database_backend();
    T::find_by_statement(Statement::from_string(backend, query))
        .one(connection)
        .await
}
