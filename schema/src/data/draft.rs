//! Drafts: changes that read first and write once, with few round trips to the database.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_graphql::Context;
use chrono::{DateTime, Utc};
use gathering_entity::event;
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
        group::{Failure, Member, RowTurn, State, StateKey},
    },
    db::{Writer, Writes, is_taken, retry_on_conflict, touch},
    error::Error,
    events::{append_rows, event_rows, selected},
    input::UserError,
    request::{Request, RequestExt},
    storage,
};

/// As [`change`], for work that reads before it writes and does not read its own writes.
///
/// On PostgreSQL the first attempt has no transaction and takes no locks while it reads. Its commit is one statement,
/// which writes only if the rows that the work depends on are unchanged. The next attempts lock those rows first, so
/// that they do not lose again. They keep the turn of the first attempt: otherwise each of them would make the draft that
/// has the turn lose as well.
///
/// On SQLite, and on PostgreSQL after the first attempt, the first read begins the transaction; if the draft reads
/// nothing, its commit does. A draft with an idempotency key has begun it before.
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
    let place = Arc::<Mutex<Place>>::default();
    retry_on_conflict(|| async {
        let state = rejoin(request, &place).await;
        let (source, guard) = match pool {
            Some(pool) if !has_lost.swap(true, Ordering::Relaxed) => {
                (Some(Source::Pool(pool.clone())), None)
            }
            _ if request.key.is_none() => (None, None),
            _ => match begin(ctx).await? {
                Ok((transaction, guard)) => (Some(Source::Transaction(transaction)), Some(guard)),
                Err(past) => return Ok(past),
            },
        };
        let draft = Draft {
            source,
            writes: Writes::default(),
            taken: None,
            place: Arc::clone(&place),
            state,
            may_join: false,
            has_joined: false,
        };
        let change = Change::new(ctx, draft, guard)?;
        settle(ctx, about, work(change).await)
    })
    .await
}

/// Waits for the row of a draft whose group was not committed. The first draft to get it locks the row, and the others
/// join it if they may.
async fn rejoin(request: &Request, place: &Mutex<Place>) -> Option<State> {
    let Lost { row, state_key } = lock(place).lost.take()?;
    let groups = &request.services.groups;
    let (turn, state) = match &state_key {
        Some(state_key) => groups.take_or_join(row, state_key, true).await,
        None => (groups.take(row).await, None),
    };
    lock(place).turn = Some(turn);
    state
}

/// The state of a change that reads first and writes once.
pub(crate) struct Draft {
    /// `None` until a transaction is begun: a draft that joins a group needs none.
    source: Option<Source>,
    writes: Writes,
    /// The error for a unique value that is taken.
    taken: Option<fn() -> UserError>,
    place: Arc<Mutex<Place>>,
    /// What an earlier draft of an open group has left for this one.
    state: Option<State>,
    /// Whether its work can continue with such a state.
    may_join: bool,
    /// Whether it continues with such a state.
    has_joined: bool,
}

/// The place of all attempts of a draft among the other drafts.
#[derive(Default)]
struct Place {
    /// The row that no other draft of this instance changes, until the commit or the last attempt.
    turn: Option<RowTurn>,
    /// The group of the last attempt, if it was not committed.
    lost: Option<Lost>,
    /// Whether it must be committed alone, because its group may have failed by the fault of one draft.
    is_alone: bool,
}

/// A group that was not committed.
struct Lost {
    row: Uuid,
    /// The states of another group that it may continue with.
    state_key: Option<StateKey>,
}

/// The source of the reads of a draft.
pub(super) enum Source {
    /// PostgreSQL, without a transaction.
    Pool(DatabaseConnection),
    Transaction(DatabaseTransaction),
}

/// Why the writes of a draft were not applied.
pub(super) enum WriteError {
    /// Another change came first.
    Overtaken,
    /// The cause, and its client error.
    Failed(DbErr, fn(DbErr) -> Error),
}

impl Draft {
    fn place(&self) -> MutexGuard<'_, Place> {
        lock(&self.place)
    }

    fn needs_turn(&self) -> bool {
        !matches!(self.source, Some(Source::Transaction(_))) && self.place().turn.is_none()
    }
}

impl Source {
    /// Writes rows and appends events. Returns the number of appended events. Outside of a transaction, this is the
    /// commit.
    ///
    /// # Errors
    /// Nothing was written, or the transaction must be rolled back.
    pub(super) async fn write(
        &self,
        writer: &Writer,
        rows: Writes,
        events: Vec<event::Model>,
        now: DateTime<Utc>,
        window: Duration,
    ) -> Result<usize, WriteError> {
        let failed = |cause| WriteError::Failed(cause, Error::from);
        let appended = match self {
            Self::Pool(_) if rows.is_empty() && events.is_empty() => Some(0),
            Self::Pool(db) => {
                let _caller = writer.caller();
                let appended = rows.execute(db, selected(events, now, window)).await;
                let appended =
                    appended.map_err(|cause| WriteError::Failed(cause, Error::of_commit))?;
                storage::committed();
                appended
            }
            Self::Transaction(transaction) if writer.backend() == DbBackend::Postgres => {
                let appended = rows.execute(transaction, selected(events, now, window));
                appended.await.map_err(failed)?
            }
            Self::Transaction(transaction) => {
                rows.apply(transaction).await.map_err(failed)?;
                let appended = append_rows(transaction, events, now, window).await;
                Some(appended.map_err(failed)?)
            }
        };
        appended.ok_or(WriteError::Overtaken)
    }

    /// Commits the transaction, if there is one.
    pub(super) async fn finish(self, writer: &Writer) -> Result<(), Error> {
        match self {
            Self::Pool(_) => Ok(()),
            Self::Transaction(transaction) => writer.commit(transaction).await,
        }
    }
}

fn lock(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Change<'_, Draft> {
    pub(crate) fn backend(&self) -> DbBackend {
        self.request.services.writer.backend()
    }

    /// Waits until no other draft of this instance changes the row, such as a circle. Returns whether another one has
    /// changed it in the meantime, so that what was read before is stale. A draft that locks rows does not wait here: it
    /// would hold its connection while it waits.
    pub(crate) async fn take_turn(&mut self, row: Uuid) -> bool {
        if !self.transaction.needs_turn() {
            return false;
        }
        let turn = self.request.services.groups.take(row).await;
        let has_waited = turn.has_waited();
        self.transaction.place().turn = Some(turn);
        self.now = self.request.now();
        has_waited
    }

    /// As [`Change::take_turn`]. Returns the state that an earlier draft of the same viewer has left for this one with
    /// [`Change::commit_before`]; this draft must then not read the database.
    pub(crate) async fn take_turn_or_join<S: 'static>(&mut self, row: Uuid) -> Option<S> {
        self.transaction.may_join = true;
        let mut state = self.transaction.state.take();
        if self.transaction.needs_turn() {
            let state_key = StateKey::new::<S>(self.viewer);
            let groups = &self.request.services.groups;
            let (turn, left) = groups.take_or_join(row, &state_key, false).await;
            self.transaction.place().turn = Some(turn);
            self.now = self.request.now();
            state = left;
        }
        let state = state.and_then(|state| state.downcast().ok());
        self.transaction.has_joined = state.is_some();
        state.map(|state| *state)
    }

    /// Names the rows that the next read depends on: the circle first, agents last. A draft that has lost against
    /// another change locks them. The condition must select only rows that the viewer may read, so that other users
    /// cannot delay the changes of a row.
    pub(crate) async fn reserve<E: EntityTrait>(&mut self, rows: Condition) -> Result<(), Error> {
        if self.backend() == DbBackend::Postgres
            && let Source::Transaction(transaction) = self.begin().await?
        {
            transaction.execute(touch::<E>().cond_where(rows)).await?;
        }
        Ok(())
    }

    /// The source, whose transaction is begun if necessary.
    async fn begin(&mut self) -> Result<&Source, Error> {
        let source = &mut self.transaction.source;
        if source.is_none() {
            let (transaction, guard) = self.request.services.writer.begin().await?;
            *source = Some(Source::Transaction(transaction));
            self.guard = Some(guard);
        }
        source.as_ref().ok_or_else(Error::conflict)
    }

    /// Builds the statement of [`Change::read`].
    pub(crate) fn build(&self, select: &SelectStatement) -> Statement {
        self.backend().build(select)
    }

    /// Reads a row.
    pub(crate) async fn read(
        &mut self,
        statement: Statement,
    ) -> Result<Option<QueryResult>, Error> {
        let request = self.request;
        Ok(match self.begin().await? {
            Source::Pool(db) => {
                let _caller = request.services.writer.caller();
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

    /// As [`Change::commit`], together with the drafts that wait for the same row, if there are any. `state` is
    /// what such a draft would read after this one; `None` if it must read the database.
    pub(crate) async fn commit_before<S: Send + Sync + 'static>(
        mut self,
        rows: Vec<Uuid>,
        state: Option<S>,
    ) -> Result<Outcome, Stop> {
        let draft = &self.transaction;
        let turn = {
            let mut place = draft.place();
            let may_begin = state.is_some() && !place.is_alone;
            let is_grouped =
                |turn: &mut RowTurn| draft.has_joined || (may_begin && turn.is_awaited());
            place.turn.take_if(is_grouped)
        };
        let Some(turn) = turn else {
            return self.commit(rows).await;
        };
        let events = mem::take(&mut self.events);
        let count = events.len();
        let events = event_rows(self.origin(), events, self.now);
        let guard = self.guard.take();
        let (change, draft) = self.take();
        let services = &change.request.services;
        let member = Member {
            source: draft.source,
            guard,
            writes: draft.writes,
            event_rows: events,
            events: count,
            now: change.now,
            state: state.map(|state| Box::new(state) as _),
        };
        let may_join = draft.may_join;
        let (row, state_key) = (turn.row(), StateKey::new::<S>(change.viewer));
        let joined = (services.groups).join(turn, state_key.clone(), services.bus.window(), member);
        match joined.await {
            Ok(duplicates) => Ok(change.committed(duplicates, rows)),
            Err(Failure::Failed(error)) => Err(error.into()),
            Err(failure) => {
                let is_alone = matches!(failure, Failure::Refused);
                let mut place = lock(&draft.place);
                place.is_alone = is_alone;
                place.lost = Some(Lost {
                    row,
                    state_key: Some(state_key).filter(|_| may_join && !is_alone),
                });
                Err(Error::conflict().into())
            }
        }
    }

    /// Writes, commits, and notifies the bus.
    pub(crate) async fn commit(mut self, rows: Vec<Uuid>) -> Result<Outcome, Stop> {
        self.begin().await?;
        let events = mem::take(&mut self.events);
        let count = events.len();
        let events = event_rows(self.origin(), events, self.now);
        let (change, draft) = self.take();
        let Draft {
            source,
            writes,
            taken,
            place,
            ..
        } = draft;
        let source = source.ok_or_else(Error::conflict)?;
        let request = change.request;
        let (writer, window) = (&request.services.writer, request.services.bus.window());
        let written = source.write(writer, writes, events, change.now, window);
        let appended = written.await.map_err(|error| match (error, taken) {
            (WriteError::Failed(cause, _), Some(taken)) if is_taken(&cause) => taken().into(),
            (WriteError::Failed(cause, error), _) => Stop::from(error(cause)),
            (WriteError::Overtaken, _) => Error::conflict().into(),
        })?;
        if let (Source::Transaction(transaction), Some(key)) = (&source, &request.key) {
            key.note(change.ctx, transaction, &rows).await?;
        }
        source.finish(writer).await?;
        lock(&place).turn = None;
        Ok(change.committed(count.saturating_sub(appended) as u64, rows))
    }
}
