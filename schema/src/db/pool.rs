//! The pool of connections.
//!
//! The driver tests each connection with a message to the database before it returns to the pool, and hands connections
//! out in turn. The connection of a read is therefore kept for a moment, and the next read uses it as it is.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::{
    ConnAcquireErr, DatabaseConnection, DatabaseConnectionType, DbErr, QueryResult, RuntimeErr,
    Statement,
    metric::Info,
    sea_query::Values,
    sqlx::{
        self, AssertSqlSafe, Database, Executor, IntoArguments, Postgres, Sqlite,
        pool::PoolConnection,
    },
};
use sea_query_sqlx::SqlxValues;

use crate::db::{pending::lock, writer::RESERVED};

/// For how long a connection is used after it was taken from the pool.
const KEPT: Duration = Duration::from_millis(50);

/// Observes the connections and statements of a pool.
pub trait PoolMonitor: Send + Sync {
    /// A statement has ended.
    fn ended(&self, info: &Info<'_>);

    /// Whether a connection that was taken this long ago can be used once more without a test.
    fn is_usable(&self, age: Duration) -> bool;
}

/// A pool with its monitor. Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Pool {
    connection: DatabaseConnection,
    reads: Reads,
}

/// The connections that reads have kept.
#[derive(Clone)]
enum Reads {
    Postgres(Arc<Keeper<Postgres>>),
    Sqlite(Arc<Keeper<Sqlite>>),
    Disconnected,
}

struct Keeper<DB: Database> {
    pool: sqlx::Pool<DB>,
    monitor: Arc<dyn PoolMonitor>,
    kept: Mutex<Vec<Kept<DB>>>,
    /// Whether a task returns old connections to the pool.
    is_swept: AtomicBool,
}

/// A connection, and when it was taken from the pool.
struct Kept<DB: Database> {
    connection: PoolConnection<DB>,
    taken: Instant,
}

impl Pool {
    /// A pool of SeaORM with a monitor.
    pub fn new(
        mut connection: DatabaseConnection,
        monitor: Arc<impl PoolMonitor + 'static>,
    ) -> Self {
        let observer = Arc::clone(&monitor);
        connection.set_metric_callback(move |info| observer.ended(info));
        let reads = match &connection.inner {
            DatabaseConnectionType::SqlxPostgresPoolConnection(_) => Reads::Postgres(Keeper::new(
                connection.get_postgres_connection_pool(),
                monitor,
            )),
            DatabaseConnectionType::SqlxSqlitePoolConnection(_) => Reads::Sqlite(Keeper::new(
                connection.get_sqlite_connection_pool(),
                monitor,
            )),
            DatabaseConnectionType::Disconnected => Reads::Disconnected,
        };
        Self { connection, reads }
    }

    /// The pool for statements and transactions.
    pub fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// Number of connections that wait for the next read.
    pub fn kept(&self) -> usize {
        match &self.reads {
            Reads::Postgres(keeper) => lock(&keeper.kept).len(),
            Reads::Sqlite(keeper) => lock(&keeper.kept).len(),
            Reads::Disconnected => 0,
        }
    }

    /// The rows of a statement that reads, outside of any transaction.
    pub(crate) async fn read(&self, statement: &Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.reads {
            Reads::Postgres(keeper) => keeper.read(statement).await,
            Reads::Sqlite(keeper) => keeper.read(statement).await,
            Reads::Disconnected => Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed)),
        }
    }
}

impl<DB: Database> Keeper<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    SqlxValues: IntoArguments<DB>,
    QueryResult: From<DB::Row>,
{
    fn new(pool: &sqlx::Pool<DB>, monitor: Arc<dyn PoolMonitor>) -> Arc<Self> {
        Arc::new(Self {
            pool: pool.clone(),
            monitor,
            kept: Mutex::default(),
            is_swept: AtomicBool::new(false),
        })
    }

    async fn read(self: &Arc<Self>, statement: &Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut kept = self.take().await?;
        let values = statement.values.clone().unwrap_or(Values(Vec::new()));
        let query = sqlx::query_with::<DB, _>(AssertSqlSafe(&*statement.sql), SqlxValues(values));
        let started = Instant::now();
        let rows = query.fetch_all(&mut *kept.connection).await;
        self.monitor.ended(&Info {
            elapsed: started.elapsed(),
            statement,
            failed: rows.is_err(),
        });
        match rows {
            Ok(rows) => {
                self.keep(kept);
                Ok(rows.into_iter().map(QueryResult::from).collect())
            }
            Err(error) => Err(DbErr::Query(RuntimeErr::SqlxError(error.into()))),
        }
    }

    async fn take(&self) -> Result<Kept<DB>, DbErr> {
        let kept = lock(&self.kept).pop();
        if let Some(kept) = kept.filter(|kept| self.is_usable(kept)) {
            return Ok(kept);
        }
        // Before the pool checks the connection, so that no change between is missed.
        let taken = Instant::now();
        let connection = self.pool.acquire().await.map_err(|error| match error {
            sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
            sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
            error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
        })?;
        Ok(Kept { connection, taken })
    }

    fn is_usable(&self, kept: &Kept<DB>) -> bool {
        let age = kept.taken.elapsed();
        age < KEPT && self.monitor.is_usable(age)
    }

    /// Keeps a connection for the next read, unless others may need it.
    fn keep(self: &Arc<Self>, kept: Kept<DB>) {
        if self.pool.num_idle() == 0 || !self.is_usable(&kept) {
            return;
        }
        let most = self.pool.options().get_max_connections() as usize / RESERVED;
        let mut all = lock(&self.kept);
        if all.len() >= most {
            return;
        }
        all.push(kept);
        if !self.is_swept.swap(true, Ordering::Relaxed) {
            #[expect(
                clippy::disallowed_methods,
                reason = "the task ends when no connection is kept"
            )]
            tokio::spawn(Arc::clone(self).sweep());
        }
    }

    /// Returns old connections to the pool until none is kept.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(KEPT).await;
            let mut all = lock(&self.kept);
            all.retain(|kept| kept.taken.elapsed() < KEPT);
            if all.is_empty() {
                self.is_swept.store(false, Ordering::Relaxed);
                break;
            }
        }
    }
}
