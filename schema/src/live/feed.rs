//! What one subscriber gets: what they want and may read, in order, without a gap.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use chrono::{DateTime, Utc};
use gathering_entity::{circle, collaborator, event};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait, sea_query::UnionType,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::BATCH;
use crate::{
    ctx::Request,
    error::Error,
    event::Events,
    id::Kind,
    load::{Batch, Reader},
    read::{Pages, is_among},
    viewer::{PUBLIC_EVENTS, Viewer},
};

/// Which events a subscriber wants. All given conditions must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The dotted names of types.
    pub(crate) types: Option<Vec<String>>,
    pub(crate) circle: Option<Uuid>,
    pub(crate) project: Option<Uuid>,
    pub(crate) agent: Option<Uuid>,
    pub(crate) subject: Option<Uuid>,
}

impl Wanted {
    fn takes(&self, row: &event::Model) -> bool {
        let is = |wanted: Option<Uuid>, has: Option<Uuid>| wanted.is_none() || wanted == has;
        is(self.circle, row.circle_id)
            && is(self.project, row.project_id)
            && is(self.agent, row.agent_id)
            && is(self.subject, Some(row.subject_id))
            && self
                .types
                .as_ref()
                .is_none_or(|types| types.contains(&row.kind))
    }

    pub(crate) fn condition(&self) -> Condition {
        use event::Column::{AgentId, CircleId, Kind as Type, ProjectId, SubjectId};
        Condition::all()
            .add_option(self.types.as_ref().map(|types| Type.is_in(types)))
            .add_option(self.circle.map(|id| CircleId.eq(id)))
            .add_option(self.project.map(|id| ProjectId.eq(id)))
            .add_option(self.agent.map(|id| AgentId.eq(id)))
            .add_option(self.subject.map(|id| SubjectId.eq(id)))
    }
}

/// What a subscriber is given.
pub(crate) enum Item {
    Event(Arc<event::Model>),
    /// Some of what they have not seen is no longer kept. This is the oldest that is.
    Missed(Arc<event::Model>),
}

/// A subscriber's place.
pub(crate) struct Feed {
    request: Arc<Request>,
    latest: watch::Receiver<Option<i64>>,
    wanted: Wanted,
    /// The position of the last event that was looked at.
    seen: i64,
    /// What was looked at, is wanted, and was not given yet.
    taken: VecDeque<Arc<event::Model>>,
    missed: Option<Arc<event::Model>>,
    /// Whether the table is read until it is as far as the history.
    replays: bool,
    /// The circles that the viewer may read; `None` before they are read, and after they may have changed.
    circles: Option<Arc<HashSet<Uuid>>>,
    /// Whether only events that the viewer may read are given.
    is_guarded: bool,
}

impl Feed {
    /// A feed of what happens from now on, or behind an event, by its position.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for a position that lies in the future.
    pub(crate) async fn open(
        request: Arc<Request>,
        wanted: Wanted,
        after: Option<i64>,
    ) -> Result<Self, Error> {
        let bus = Arc::clone(&request.services.bus);
        let mut latest = bus.latest.subscribe();
        let newest = latest.wait_for(Option::is_some).await.map(|latest| *latest);
        let newest = newest.ok().flatten().unwrap_or_default();
        let mut seen = newest;
        if let Some(after) = after {
            // Another instance may be ahead of this one.
            if after > newest && edge(&request, Edge::Newest).await? < Some(after) {
                let message = "`after` must be the cursor of an event of this server.";
                return Err(Error::bad_input(message).field("after"));
            }
            seen = after;
        }
        bus.subscribers.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            request,
            latest,
            wanted,
            seen,
            taken: VecDeque::new(),
            missed: None,
            replays: false,
            circles: None,
            is_guarded: true,
        })
    }

    /// Gives every event that is wanted. Who asks must see to it that the viewer may know.
    pub(crate) fn unguarded(mut self) -> Self {
        self.is_guarded = false;
        self
    }

    /// The time.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.request.now()
    }

    /// The next event that the subscriber wants and may read.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Item, Error> {
        self.request.progress.started();
        loop {
            if let Some(oldest) = self.missed.take() {
                return Ok(Item::Missed(oldest));
            }
            // One who always finds something must not keep the others on its thread waiting.
            tokio::task::coop::consume_budget().await;
            match self.taken.pop_front() {
                Some(row) if self.may_read(&row).await? => {
                    let bus = &self.request.services.bus;
                    bus.delivered.fetch_add(1, Ordering::Relaxed);
                    let cursor = Events::cursor(self.request.services.epoch, &row);
                    self.request.progress.passed(cursor);
                    return Ok(Item::Event(row));
                }
                Some(_) => {}
                None => self.fill().await?,
            }
        }
    }

    /// Whether a later event of the same subject has been taken already.
    pub(crate) fn goes_on(&self, subject: Uuid) -> bool {
        self.taken.iter().any(|row| row.subject_id == subject)
    }

    /// Waits for something new, or takes it from the table when it is no longer in the history.
    async fn fill(&mut self) -> Result<(), Error> {
        if self.replays {
            return self.replay().await;
        }
        let bus = Arc::clone(&self.request.services.bus);
        // Marked as seen before the history is read: what comes in between wakes.
        self.latest.borrow_and_update();
        let viewer = self.request.viewer()?;
        let (wanted, mut sharing) = (&self.wanted, false);
        let found = bus.behind(self.seen, |row| {
            sharing |= changes_sharing(viewer, row);
            wanted.takes(row)
        });
        if sharing {
            self.circles = None;
        }
        match found {
            Some((_, seen)) if seen == self.seen => {
                // The bus ends with the server, which ends its streams before.
                let _ = self.latest.changed().await;
            }
            Some((rows, seen)) => {
                self.seen = seen;
                self.taken = rows;
            }
            None => {
                bus.lagged.fetch_add(1, Ordering::Relaxed);
                self.replays = true;
            }
        }
        Ok(())
    }

    /// Reads a batch from the table: what is wanted behind what was seen.
    async fn replay(&mut self) -> Result<(), Error> {
        let request = Arc::clone(&self.request);
        let end = (*self.latest.borrow_and_update()).unwrap_or_default();
        let select = event::Entity::find()
            .filter(event::Column::Position.gt(self.seen))
            .filter(event::Column::Position.lte(end))
            .filter(self.wanted.condition())
            .order_by_asc(event::Column::Position)
            .limit(BATCH as u64)
            .into_query();
        let pages = Pages::<event::Model>::new("events to replay", select, None);
        let rows = request.load(pages, Uuid::nil()).await?;
        // What was deleted before it was read is missing; looked at afterwards, so that nothing is deleted in between.
        let oldest = edge_row(&request, Edge::Oldest).await?;
        self.missed = oldest.filter(|row| row.position.is_some_and(|at| at > self.seen + 1));
        let is_last = rows.len() < BATCH;
        self.seen = match rows.last() {
            Some(last) if !is_last => last.position.unwrap_or(end),
            _ => end,
        };
        self.replays = !is_last;
        self.taken = rows.iter().cloned().collect();
        self.circles = None;
        Ok(())
    }

    async fn may_read(&mut self, row: &event::Model) -> Result<bool, Error> {
        let viewer = self.request.viewer()?;
        if !self.is_guarded
            || viewer.is_admin()
            || row.owner_id == Some(viewer.id())
            || PUBLIC_EVENTS.contains(&row.kind.as_str())
        {
            return Ok(true);
        }
        let Some(circle) = row.circle_id else {
            return Ok(false);
        };
        if self.circles.is_none() {
            self.circles = Some(self.request.load(ReadableCircles, viewer.id()).await?);
        }
        let circles = self.circles.as_ref();
        Ok(circles.is_some_and(|circles| circles.contains(&circle)))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let bus = &self.request.services.bus;
        bus.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an event changes which circles a viewer may read.
fn changes_sharing(viewer: &Viewer, row: &event::Model) -> bool {
    match row.kind.as_str() {
        "circle.shared" | "circle.unshared" => {
            let user = row
                .payload
                .get("userId")
                .and_then(serde_json::Value::as_str);
            user == Some(Kind::User.id(viewer.id()).as_str())
        }
        "circle.created" => row.owner_id == Some(viewer.id()),
        _ => false,
    }
}

/// The circles that users own or that are shared with them.
#[derive(Clone, PartialEq)]
struct ReadableCircles;

#[derive(FromQueryResult)]
struct ReadableCircle {
    owner_id: Uuid,
    id: Uuid,
}

impl Batch for ReadableCircles {
    type Key = Uuid;
    type Value = Arc<HashSet<Uuid>>;

    fn name(&self) -> String {
        "readable circles by user".to_owned()
    }

    async fn run(&self, db: &Reader, users: &[Uuid]) -> Result<HashMap<Uuid, Self::Value>, Error> {
        let among = |column| is_among(db.backend(), column, users);
        let shared = collaborator::Entity::find()
            .select_only()
            .column(collaborator::Column::UserId)
            .column(collaborator::Column::CircleId)
            .filter(among(collaborator::Column::UserId.as_column_ref()))
            .into_query();
        let select = circle::Entity::find()
            .select_only()
            .column(circle::Column::OwnerId)
            .column(circle::Column::Id)
            .filter(among(circle::Column::OwnerId.as_column_ref()))
            .into_query()
            .union(UnionType::All, shared)
            .take();
        let mut circles: HashMap<Uuid, HashSet<Uuid>> = HashMap::new();
        for row in db.all::<ReadableCircle>(&select).await? {
            circles.entry(row.owner_id).or_default().insert(row.id);
        }
        let shared = circles.into_iter();
        Ok(shared.map(|(user, ids)| (user, Arc::new(ids))).collect())
    }
}

/// An end of what is announced and kept.
#[derive(Clone, Copy, PartialEq)]
enum Edge {
    Oldest,
    Newest,
}

async fn edge(request: &Request, edge: Edge) -> Result<Option<i64>, Error> {
    let row = edge_row(request, edge).await?;
    Ok(row.and_then(|row| row.position))
}

async fn edge_row(request: &Request, edge: Edge) -> Result<Option<Arc<event::Model>>, Error> {
    let select = event::Entity::find().filter(event::Column::Position.is_not_null());
    let (name, select) = match edge {
        Edge::Oldest => ("oldest event", select.order_by_asc(event::Column::Position)),
        Edge::Newest => (
            "newest event",
            select.order_by_desc(event::Column::Position),
        ),
    };
    let pages = Pages::<event::Model>::new(name, select.limit(1).into_query(), None);
    let rows = request.load(pages, Uuid::nil()).await?;
    Ok(rows.first().cloned())
}
