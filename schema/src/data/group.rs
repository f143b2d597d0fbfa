//! Group commit: drafts that wait for the same row are committed together, by one statement on PostgreSQL and in one
//! transaction on SQLite.
//!
//! The first draft of a group reads the database. On SQLite it holds the write lock until the commit, so a draft that
//! waits for a row must not have begun a transaction. Each further draft continues with the state that the previous one
//! has left, and adds its writes. A task that waits for the row behind the drafts that waited when the group began
//! commits it, so a group never waits for later drafts.

use std::{
    any::{Any, TypeId},
    mem,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use gathering_entity::event;
use tokio::sync::oneshot;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    access::Viewer,
    data::draft::{Source, WriteError},
    db::{Rule, Turn, Turns, ViewerIds, Writer, WriterGuard, Writes},
    error::{Code, Error},
    trace::{Span, within},
};

/// Maximum number of drafts in a group.
const MAX_DRAFTS: usize = 64;

/// The rows that drafts of this instance change, each with its open group. Drafts that change the same row wait for each
/// other here, without a connection, instead of losing against each other in the database.
#[derive(Clone)]
pub(crate) struct Groups {
    rows: Arc<Turns<Uuid, Option<Group>>>,
    writer: Writer,
}

/// The turn of a draft to change a row, released on drop.
pub(super) struct RowTurn {
    turn: Turn<Uuid, Option<Group>>,
    row: Uuid,
}

/// What a draft leaves for the next one.
pub(super) type State = Box<dyn Any + Send + Sync>;

/// Drafts that depend on the same revision of a row.
pub(super) struct Group {
    state_key: StateKey,
    /// What the next draft would read from the database.
    state: Option<State>,
    source: Source,
    _guard: Option<WriterGuard>,
    writes: Writes,
    event_rows: Vec<event::Model>,
    /// The number of events, with those that have no row.
    events: usize,
    latest: DateTime<Utc>,
    window: Duration,
    members: Vec<oneshot::Sender<Committed>>,
}

/// The number of dropped events in a group that was committed.
type Committed = Result<u64, Failure>;

/// Why a group was not committed.
#[derive(Clone)]
pub(super) enum Failure {
    /// Another change came first. The drafts may be repeated together.
    Overtaken,
    /// The database refused the statement, maybe by the fault of one draft. Each draft must be repeated alone.
    Refused,
    /// The drafts fail, and must not be repeated.
    Failed(Error),
}

/// The states that a draft can continue with: those of its type that were read for the same viewer.
#[derive(Clone, PartialEq)]
pub(super) struct StateKey {
    ids: ViewerIds,
    rule: Rule,
    state: TypeId,
}

/// A draft that is to be committed with others.
pub(super) struct Member {
    /// Where it is committed, if it is the first draft of its group; `None` if it has read nothing.
    pub(super) source: Option<Source>,
    pub(super) guard: Option<WriterGuard>,
    pub(super) writes: Writes,
    pub(super) event_rows: Vec<event::Model>,
    pub(super) events: usize,
    pub(super) now: DateTime<Utc>,
    /// What the next draft would read; `None` if it must read the database.
    pub(super) state: Option<State>,
}

impl StateKey {
    pub(super) fn new<S: 'static>(viewer: &Viewer) -> Self {
        Self {
            ids: viewer.ids(),
            rule: viewer.rules().circle.clone(),
            state: TypeId::of::<S>(),
        }
    }
}

impl Groups {
    pub(crate) fn new(writer: Writer) -> Self {
        Self {
            rows: Arc::default(),
            writer,
        }
    }

    /// Waits until no other draft of this instance changes the row. An open group is committed.
    pub(super) async fn take(&self, row: Uuid) -> RowTurn {
        let mut turn = self.wait(row).await;
        self.commit(&mut turn).await;
        turn
    }

    /// As [`Groups::take`], with the state that the previous draft has left for this viewer. A draft that gets it must
    /// join the group. One that has lost joins only a group that has locked the row, so that it does not lose again.
    pub(super) async fn take_or_join(
        &self,
        row: Uuid,
        state_key: &StateKey,
        has_lost: bool,
    ) -> (RowTurn, Option<State>) {
        let mut turn = self.wait(row).await;
        let group = turn.turn.state().as_mut();
        let group = group.filter(|group| group.members.len() < MAX_DRAFTS);
        let group = group.filter(|group| group.state_key == *state_key);
        let is_locked = |group: &&mut Group| matches!(group.source, Source::Transaction(_));
        let group = group.filter(|group| !has_lost || is_locked(group));
        let state = group.and_then(|group| group.state.take());
        if state.is_none() {
            self.commit(&mut turn).await;
        }
        (turn, state)
    }

    async fn wait(&self, row: Uuid) -> RowTurn {
        let turn = self.rows.take(row).await;
        RowTurn { turn, row }
    }

    /// Adds a draft to the open group of a row, or begins one. Returns the number of dropped events, after the commit.
    ///
    /// # Errors
    /// The group was not committed, or its outcome is unknown.
    pub(super) async fn join(
        &self,
        mut turn: RowTurn,
        state_key: StateKey,
        window: Duration,
        mut member: Member,
    ) -> Committed {
        let (sender, outcome) = oneshot::channel();
        match (turn.turn.state(), member.source.take()) {
            (Some(group), _) => group.add(member, sender),
            (open, Some(source)) => {
                *open = Some(Group::new(state_key, source, window, member, sender));
                self.commit_later(turn.row);
            }
            (None, None) => return Err(Failure::Overtaken),
        }
        drop(turn);
        let outcome = outcome.await;
        outcome.unwrap_or_else(|_| Err(Failure::Failed(Error::outcome_unknown())))
    }

    fn commit_later(&self, row: Uuid) {
        let groups = self.clone();
        let turn = self.rows.take(row);
        let commit = within(Span::current(), async move {
            let turn = turn.await;
            groups.commit(&mut RowTurn { turn, row }).await;
        });
        #[expect(
            clippy::disallowed_methods,
            reason = "the task is bounded by the time limits of the drafts and of the database"
        )]
        tokio::spawn(commit.in_current_span());
    }

    /// Commits the open group, even if the caller is dropped.
    async fn commit(&self, turn: &mut RowTurn) {
        let Some(group) = turn.turn.state().take() else {
            return;
        };
        let commit = within(Span::current(), group.commit(self.writer.clone()));
        #[expect(
            clippy::disallowed_methods,
            reason = "the task is bounded by the time limits of the database"
        )]
        let task = tokio::spawn(commit.in_current_span());
        // After a panic, the members are told that their outcome is unknown.
        let _ = task.await;
    }
}

impl RowTurn {
    /// Whether other drafts have changed the row while this one waited.
    pub(super) fn has_waited(&self) -> bool {
        self.turn.has_waited()
    }

    /// Whether other drafts wait for the row.
    pub(super) fn is_awaited(&self) -> bool {
        self.turn.is_awaited()
    }

    pub(super) fn row(&self) -> Uuid {
        self.row
    }
}

impl Group {
    fn new(
        state_key: StateKey,
        source: Source,
        window: Duration,
        first: Member,
        sender: oneshot::Sender<Committed>,
    ) -> Self {
        Self {
            state_key,
            state: first.state,
            source,
            _guard: first.guard,
            writes: first.writes,
            event_rows: first.event_rows,
            events: first.events,
            latest: first.now,
            window,
            members: vec![sender],
        }
    }

    fn add(&mut self, member: Member, sender: oneshot::Sender<Committed>) {
        self.state = member.state;
        self.writes.absorb(member.writes);
        self.event_rows.extend(member.event_rows);
        self.events += member.events;
        self.latest = self.latest.max(member.now);
        self.members.push(sender);
    }

    async fn commit(self, writer: Writer) {
        let result = async {
            let (source, rows, window) = (self.source, self.event_rows, self.window);
            let written = source.write(&writer, self.writes, rows, self.latest, window);
            let appended = written.await.map_err(|error| match error {
                WriteError::Overtaken => Failure::Overtaken,
                WriteError::Failed(cause, error) => {
                    let error = error(cause);
                    match error.code {
                        Code::Internal | Code::Conflict => Failure::Refused,
                        _ => Failure::Failed(error),
                    }
                }
            })?;
            let finished = source.finish(&writer).await;
            finished.map_err(Failure::Failed)?;
            Ok(self.events.saturating_sub(appended) as u64)
        };
        let result: Committed = result.await;
        let mut dropped = *result.as_ref().unwrap_or(&0);
        for member in self.members {
            let outcome = result.clone().map(|_| mem::take(&mut dropped));
            // A member that has reached its time limit is gone.
            let _ = member.send(outcome);
        }
    }
}
