//! Opens a PostgreSQL database; an error is one line.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sea_orm::sqlx::{self, ConnectOptions, Connection, Executor};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};

use super::pool::{PoolHealth, fill, pool};
use crate::{StartError, config};

/// Timeout of the first connection: longer than for later ones, since the database may still be starting.
const START_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn open(
    settings: &config::Database,
) -> Result<(DatabaseConnection, Arc<PoolHealth>), StartError> {
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
            // One plan for each statement of a connection. A plan for the values of one execution often seems cheaper,
            // but planning the rule of access takes many times as long as reading the rows (`bench/plans.sh`).
            ("plan_cache_mode", "force_generic_plan".to_owned()),
            // Worker processes and compiled code are for statements that read much. The plan for all values may expect
            // that of a page, and starting the workers takes ten times as long as reading it.
            ("max_parallel_workers_per_gather", "0".to_owned()),
            ("jit", "off".to_owned()),
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
    let refused = |error| StartError::new(explain(&error, &at, &options, url));
    first.map_err(refused)?.close().await.map_err(refused)?;

    let health = Arc::new(PoolHealth::new(settings, None));
    let pool: PgPoolOptions = pool(settings, &health);
    let pool = pool.connect_lazy_with(options.clone());
    fill(&pool).await.map_err(refused)?;
    let connection = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
    Ok((connection, health))
}

fn explain(
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

/// Writes 256 KiB into a table that is dropped at the commit of the same statement.
const FILL_TABLE: &str = "CREATE TEMPORARY TABLE gathering_attempt ON COMMIT DROP AS \
    SELECT repeat('x', 256) AS filler FROM generate_series(1, 1024)";

/// Writes 256 KiB and discards them.
pub(super) async fn try_writing(pool: &PgPool) -> Result<(), sqlx::Error> {
    pool.execute(FILL_TABLE).await.map(drop)
}
