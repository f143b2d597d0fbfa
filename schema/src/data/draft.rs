//! Drafts: changes that read first and write once, with few round trips to the database.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_graphql::Context;
use sea_orm::{
    ActiveModelTrait, Condition, ConnectionTrait, DatabaseConnection, DatabaseTransaction,
    DbBackend, DbErr, EntityTrait, IntoActiveModel, Iterable, ModelTrait, QueryFilter, QueryResult,
    Statement, UpdateMany,
    sea_query::{Expr, ExprTrait, OnConflict, SelectStatement},
};
use uuid::Uuid;

use crate::{
    data::{
        Change, Outcome, Stop,
        change::{begin, settle},
    },
    db::{Turn, Writes, is_taken, retry_on_conflict, touch},
    error::Error,
    events::{append, selected},
    input::UserError,
    request::RequestExt,
    storage,
};

/// As [`change`], for work that reads before it writes and does not read its own writes.
///
/// On PostgreSQL the first attempt has no transaction and takes no locks while it reads. Its commit is one statement,
/// which writes only if the rows that the work depends on are unchanged. The next attempts lock those rows first, so
/// that they do not lose again. They keep the turn of the first attempt: otherwise each of them would make the draft that
/// has the turn lose as well.
///
/// # Errors
/// Those of the work; `CONFLICT` if every attempt lost.
pub(crate) async fn draft<'a, F>(
    ctx: &'a Context<'a>,
    about: Option<Uuid>,
    work: impl Fn(Change<'a, Draft>) -> F,
) -> Result<Outcome, Error>
where
    F: Future<Output = Result<Outcome, Stop>>,
{
    let request = ctx.request();
    let pool = request.services.writer.postgres();
    // The row of an idempotency key is locked for the whole change.
    let has_lost = AtomicBool::new(request.key.is_some());
    let turn = Arc::default();
    retry_on_conflict(|| async {
        let (source, guard) = match pool {
            Some(pool) if !has_lost.swap(true, Ordering::Relaxed) => {
                (Source::Pool(pool.clone()), None)
            }
            _ => match begin(ctx).await? {
                Ok((transaction, guard)) => (Source::Transaction(transaction), Some(guard)),
                Err(past) => return Ok(past),
            },
        };
        let draft = Draft {
            source,
            writes: Writes::default(),
            taken: None,
            turn: Arc::clone(&turn),
        };
        let change = Change::new(ctx, draft, guard)?;
        settle(ctx, about, work(change).await)
    })
    .await
}

/// The state of a change that reads first and writes once.
pub(crate) struct Draft {
    source: Source,
    writes: Writes,
    /// The error for a unique value that is taken.
    taken: Option<fn() -> UserError>,
    /// The row that no other draft of this instance changes, until the commit or the last attempt.
    turn: Arc<Mutex<Option<Turn<Uuid>>>>,
}

enum Source {
    /// PostgreSQL, without a transaction.
    Pool(DatabaseConnection),
    Transaction(DatabaseTransaction),
}

impl Draft {
    fn turn(&self) -> MutexGuard<'_, Option<Turn<Uuid>>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backend(&self) -> DbBackend {
        match &self.source {
            Source::Pool(db) => db.get_database_backend(),
            Source::Transaction(transaction) => transaction.get_database_backend(),
        }
    }
}

impl Change<'_, Draft> {
    pub(crate) fn backend(&self) -> DbBackend {
        self.transaction.backend()
    }

    /// Waits until no other draft of this instance changes the row, such as a circle. Returns whether another one has
    /// changed it in the meantime, so that what was read before is stale. A draft that locks rows does not wait here: it
    /// would hold its connection while it waits.
    pub(crate) async fn take_turn(&self, row: Uuid) -> bool {
        let draft = &self.transaction;
        if matches!(draft.source, Source::Transaction(_)) || draft.turn().is_some() {
            return false;
        }
        let turn = self.request.services.writer.take_turn(row).await;
        let has_waited = turn.has_waited();
        draft.turn().replace(turn);
        has_waited
    }

    /// Names the rows that the next read depends on: the circle first, agents last. A draft that has lost against
    /// another change locks them. The condition must select only rows that the viewer may read, so that other users
    /// cannot delay the changes of a row.
    pub(crate) async fn reserve<E: EntityTrait>(&self, rows: Condition) -> Result<(), Error> {
        if let Source::Transaction(transaction) = &self.transaction.source
            && transaction.get_database_backend() == DbBackend::Postgres
        {
            transaction.execute(touch::<E>().cond_where(rows)).await?;
        }
        Ok(())
    }

    /// Builds the statement of [`Change::read`], best before the turn.
    pub(crate) fn build(&self, select: &SelectStatement) -> Statement {
        self.backend().build(select)
    }

    /// Reads a row.
    pub(crate) async fn read(&self, statement: Statement) -> Result<Option<QueryResult>, Error> {
        Ok(match &self.transaction.source {
            Source::Pool(db) => {
                let _caller = self.request.services.writer.caller();
                db.query_one_raw(statement).await?
            }
            Source::Transaction(transaction) => transaction.query_one_raw(statement).await?,
        })
    }

    /// Makes the commit depend on this revision of a row, which it locks and changes. Every change of a circle or of
    /// anything in it changes the revision of the circle.
    pub(crate) fn touch<E: EntityTrait>(&mut self, id: Uuid, revision: &str) {
        self.transaction.writes.touch::<E>(id, revision);
    }

    /// Makes the commit depend on this revision of a row, which it locks.
    pub(crate) fn hold<E: EntityTrait>(&mut self, id: Uuid, revision: &str) {
        self.transaction.writes.hold::<E>(id, revision);
    }

    /// Inserts rows with the commit.
    pub(crate) fn insert<A: ActiveModelTrait>(&mut self, rows: impl IntoIterator<Item = A>) {
        self.transaction.writes.insert(rows, None);
    }

    /// Inserts rows with the commit, or updates those that exist.
    pub(crate) fn insert_or_update<A: ActiveModelTrait>(
        &mut self,
        rows: impl IntoIterator<Item = A>,
        on_conflict: OnConflict,
    ) {
        self.transaction.writes.insert(rows, Some(on_conflict));
    }

    /// Updates rows with the commit. No row may be updated twice.
    pub(crate) fn update<E: EntityTrait>(&mut self, update: UpdateMany<E>) {
        self.transaction.writes.update(update);
    }

    /// Updates the columns of a row that have changed, with the commit.
    pub(crate) fn update_row<M>(&mut self, id: Uuid, before: &M, after: &M)
    where
        M: ModelTrait + Clone + IntoActiveModel<<M::Entity as EntityTrait>::ActiveModel>,
    {
        let mut row = before.clone().into_active_model();
        for column in <M::Entity as EntityTrait>::Column::iter() {
            let value = after.get(column);
            if value != before.get(column) {
                row.set(column, value);
            }
        }
        if row.is_changed() {
            let update = M::Entity::update_many()
                .set(row)
                .filter(Expr::col("id").eq(id));
            self.transaction.writes.update(update);
        }
    }

    /// Deletes a row with the commit.
    pub(crate) fn delete<E: EntityTrait>(&mut self, id: Uuid) {
        self.transaction.writes.delete::<E>(id);
    }

    /// Refuses the change with this error if a unique value is taken.
    pub(crate) fn unique(&mut self, taken: fn() -> UserError) {
        self.transaction.taken = Some(taken);
    }

    /// Writes, commits, and notifies the bus.
    pub(crate) async fn commit(mut self, rows: Vec<Uuid>) -> Result<Outcome, Stop> {
        let events = mem::take(&mut self.events);
        let (window, origin) = (self.request.services.bus.window(), self.origin());
        let writer = &self.request.services.writer;
        let (change, draft) = self.take();
        let Draft {
            source,
            writes,
            taken,
            turn,
        } = draft;
        let refused = |cause: DbErr, error: fn(DbErr) -> Error| match taken {
            Some(taken) if is_taken(&cause) => Stop::from(taken()),
            _ => error(cause).into(),
        };
        let (request, now) = (change.request, change.now);
        let duplicates = match source {
            Source::Pool(_) if writes.is_empty() && events.is_empty() => 0,
            Source::Pool(db) => {
                let count = events.len();
                let statement = writes.into_statement(selected(origin, events, now, window));
                let caller = writer.caller();
                let result = db.query_one(&statement).await;
                drop(caller);
                let result = result.map_err(|cause| refused(cause, Error::of_commit))?;
                storage::committed();
                duplicates(result, count)?
            }
            Source::Transaction(transaction) => {
                let duplicates = if transaction.get_database_backend() == DbBackend::Postgres {
                    let count = events.len();
                    let statement = writes.into_statement(selected(origin, events, now, window));
                    let result = transaction.query_one(&statement).await;
                    let result = result.map_err(|cause| refused(cause, Error::from))?;
                    duplicates(result, count)?
                } else {
                    let applied = writes.apply(&transaction).await;
                    applied.map_err(|cause| refused(cause, Error::from))?;
                    append(&transaction, origin, events, now, window).await?
                };
                if let Some(key) = &request.key {
                    key.note(change.ctx, &transaction, &rows).await?;
                }
                writer.commit(transaction).await?;
                duplicates
            }
        };
        turn.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(change.committed(duplicates, rows))
    }
}

/// The number of dropped duplicates among `events` events, from the result of the statement of [`Writes`].
///
/// # Errors
/// `CONFLICT` if nothing was written.
fn duplicates(result: Option<QueryResult>, events: usize) -> Result<u64, Error> {
    let result = result.ok_or_else(Error::conflict)?;
    let is_applied: bool = result.try_get("", "applied")?;
    if !is_applied {
        return Err(Error::conflict());
    }
    let appended: i64 = result.try_get("", "appended")?;
    let appended = usize::try_from(appended).unwrap_or_default();
    Ok(events.saturating_sub(appended) as u64)
}
