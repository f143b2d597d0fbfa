//! Reads for batches.

use std::sync::atomic::{AtomicU64, Ordering};

use sea_orm::{
    DbBackend, FromQueryResult, QueryResult, Statement, Value, sea_query::SelectStatement,
};

use crate::{
    db::{Callers, Pool},
    error::{self, Error},
};

/// Runs the statements of one batch, and counts them.
pub(crate) struct Reader {
    db: Pool,
    callers: Callers,
    statements: AtomicU64,
    rows: AtomicU64,
}

impl Reader {
    pub(super) fn new(db: Pool, callers: Callers) -> Self {
        Self {
            db,
            callers,
            statements: AtomicU64::new(0),
            rows: AtomicU64::new(0),
        }
    }

    /// The number of statements sent so far.
    pub(super) fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// The number of rows read so far.
    pub(super) fn rows_read(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.db.connection().get_database_backend()
    }

    /// The rows of a statement. If the connection was lost, the statement is sent once more on a new one.
    pub(crate) async fn rows(&self, select: &SelectStatement) -> Result<Vec<QueryResult>, Error> {
        self.send(self.backend().build(select)).await
    }

    async fn send(&self, statement: Statement) -> Result<Vec<QueryResult>, Error> {
        let _caller = self.callers.enter();
        let send = || {
            self.statements.fetch_add(1, Ordering::Relaxed);
            self.db.read(&statement)
        };
        let rows = match send().await {
            Err(cause) if error::is_disconnect(&cause) => send().await?,
            answer => answer?,
        };
        self.rows.fetch_add(rows.len() as u64, Ordering::Relaxed);
        Ok(rows)
    }

    /// As [`Reader::rows`], for a statement that is text already.
    pub(crate) async fn run(
        &self,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<QueryResult>, Error> {
        self.send(Statement::from_sql_and_values(self.backend(), sql, values))
            .await
    }

    /// As [`Reader::rows`], each row read into a struct.
    pub(crate) async fn all<R: FromQueryResult>(
        &self,
        select: &SelectStatement,
    ) -> Result<Vec<R>, Error> {
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| R::from_query_result(row, "").map_err(Error::from))
            .collect()
    }
}
