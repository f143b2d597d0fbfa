//! The feed of one subscriber: the events that match the filter and that the viewer may read, in order and without
//! gaps.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use gathering_entity::{api_key_circle, circle, collaborator, event, member};
use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    Select,
    sea_query::{SelectStatement, UnionType},
};
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::{
    access::{PUBLIC_EVENTS, Viewer},
    db::{Batch, Loader, PageQuery, Reader, ViewerIds, is_among},
    error::Error,
    events::{BATCH, FeedFilter, changes_sharing},
    request::{PAUSE, Request},
};

/// Maximum number of events that one statement of a replay examines.
const SPAN: i64 = 10_000;

/// The longest queueing delay that is ignored.
const SHORTEST_QUEUE: Duration = Duration::from_millis(2);

/// A subscriber that is behind sleeps for its queueing delay multiplied by `DELAY_FACTOR`, but no longer than
/// `LONGEST_DELAY`.
const DELAY_FACTOR: u32 = 8;
const LONGEST_DELAY: Duration = Duration::from_millis(500);

/// An item that is delivered to a subscriber.
pub(crate) enum Item {
    Event(Arc<event::Model>),
    /// Some events that the subscriber has not seen are no longer stored. This is the oldest stored event.
    Missed(Arc<event::Model>),
}

impl Item {
    /// Whether the event changes whether the viewer may read a circle.
    pub(crate) fn changes_access(&self, viewer: &Viewer) -> bool {
        matches!(self, Self::Event(row) if changes_sharing(row) || viewer.is_removal(row))
    }
}

/// The counters of changes of sharing and of membership.
type AccessChanges = (u64, u64);

/// The position of a subscriber.
pub(crate) struct Feed {
    request: Arc<Request>,
    latest: watch::Receiver<Option<i64>>,
    filter: FeedFilter,
    /// The position of the last event that was examined.
    seen: i64,
    /// Matching events that were examined but not delivered yet.
    rows: VecDeque<Arc<event::Model>>,
    missed: Option<Arc<event::Model>>,
    /// Whether there is more than one batch to deliver.
    is_behind: bool,
    /// Whether events are read from the table, until the history is reached.
    replays: bool,
    /// The circles that the viewer may read, and the counters of changes of access at the time when they were read.
    circles: Option<(AccessChanges, Arc<HashSet<Uuid>>)>,
    /// Whether only events that the viewer may read are delivered.
    is_guarded: bool,
}

impl Feed {
    /// Opens a feed of the events from now on, or after the event at a position.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for a position in the future.
    pub(crate) async fn open(
        request: Arc<Request>,
        filter: FeedFilter,
        after: Option<i64>,
    ) -> Result<Self, Error> {
        let bus = Arc::clone(&request.services.bus);
        let mut latest = bus.latest.subscribe();
        let newest = latest.wait_for(Option::is_some).await.map(|latest| *latest);
        let newest = newest.ok().flatten().unwrap_or_default();
        let mut seen = newest;
        if let Some(after) = after {
            // Another instance may be ahead of this one.
            let newest = if after > newest {
                let row = edge(&request.services.loader, Edge::Newest).await?;
                row.and_then(|row| row.position)
            } else {
                Some(newest)
            };
            if newest < Some(after) {
                let message = "`after` must be the cursor of an event of this server.";
                return Err(Error::bad_input(message).field("after"));
            }
            seen = after;
        }
        bus.subscribers.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            request,
            latest,
            filter,
            seen,
            rows: VecDeque::new(),
            missed: None,
            is_behind: false,
            replays: false,
            circles: None,
            is_guarded: true,
        })
    }

    /// Delivers every matching event. The caller must check that the viewer may read it.
    pub(crate) fn unguarded(mut self) -> Self {
        self.is_guarded = false;
        self
    }

    /// The request of the subscription.
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// The next events that match and that the viewer may read: those that are available, up to the size of a burst,
    /// and at least one.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Vec<Item>, Error> {
        self.request.progress.started();
        let mut items = Vec::new();
        loop {
            // A subscriber that always finds events must not starve the other tasks of its thread.
            tokio::task::coop::consume_budget().await;
            items.extend(self.missed.take().map(Item::Missed));
            let gained = match self.rows.front().cloned() {
                _ if items.len() >= self.request.progress.burst() => return Ok(items),
                Some(row) => self.may_read(&row).await.map(|may_read| {
                    self.rows.pop_front();
                    items.extend(may_read.then_some(Item::Event(row)));
                }),
                None if items.is_empty() => self.fill().await,
                None => return Ok(items),
            };
            match gained {
                Ok(()) => {}
                // No event was skipped, so the rest can be read later.
                Err(_) if !items.is_empty() => return Ok(items),
                Err(error) if error.is_transient() => sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for new events, or switches to the table if they are no longer in the history.
    async fn fill(&mut self) -> Result<(), Error> {
        if self.is_behind {
            give_way().await;
        }
        if self.replays {
            return self.replay().await;
        }
        let bus = Arc::clone(&self.request.services.bus);
        // Marked as seen before the history is read, so that events that arrive in between wake the feed.
        self.latest.borrow_and_update();
        match bus.behind(self.seen, |row| self.filter.takes(row)) {
            Some((_, seen)) if seen == self.seen => {
                // The bus ends with the server, which ends its streams before.
                let _ = self.latest.changed().await;
            }
            Some((rows, seen)) => {
                self.seen = seen;
                self.is_behind = rows.len() == BATCH;
                self.rows = rows;
            }
            None => {
                self.is_behind = true;
                bus.lagged.fetch_add(1, Ordering::Relaxed);
                self.replays = true;
            }
        }
        Ok(())
    }

    /// Reads a batch from the table: matching events after the last examined one that the viewer may read. No statement
    /// examines more than [`SPAN`] events.
    async fn replay(&mut self) -> Result<(), Error> {
        let newest = (*self.latest.borrow_and_update()).unwrap_or_default();
        let end = newest.min(self.seen.saturating_add(SPAN));
        let mut select = event::Entity::find()
            .filter(event::Column::Position.gt(self.seen))
            .filter(event::Column::Position.lte(end))
            .filter(self.filter.condition());
        if self.is_guarded {
            select = select.filter(self.request.viewer()?.events());
        }
        let select = select
            .order_by_asc(event::Column::Position)
            .limit(BATCH as u64)
            .into_query();
        let pages = PageQuery::<event::Model>::new("events to replay", select, None);
        let services = Arc::clone(&self.request.services);
        // The task must finish its read while it holds the permit, even if the feed is not polled.
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            // The semaphore is never closed.
            let _guard = services.bus.replays.acquire().await;
            let rows = services
                .loader
                .load_alone(pages, Uuid::nil(), false)
                .await?;
            // Read after the events, so that events deleted in between are noticed as missing.
            let oldest = edge(&services.loader, Edge::Oldest).await?;
            Ok::<_, Error>((rows, oldest))
        });
        let read = reading.join_next().await;
        let (rows, oldest) = read.and_then(Result::ok).ok_or_else(Error::internal)??;
        let oldest_at = oldest.as_ref().and_then(|row| row.position);
        self.missed = oldest.filter(|_| oldest_at > Some(self.seen + 1));
        self.seen = match rows.last() {
            Some(last) if rows.len() == BATCH => last.position.unwrap_or(end),
            // There are no events before the oldest one.
            _ => end.max(oldest_at.unwrap_or_default().min(newest) - 1),
        };
        self.replays = self.seen < newest;
        self.rows = rows.iter().cloned().collect();
        Ok(())
    }

    async fn may_read(&mut self, row: &event::Model) -> Result<bool, Error> {
        let viewer = self.request.viewer()?;
        if !self.is_guarded
            || viewer.is_admin()
            || (!viewer.is_limited() && row.owner_id == Some(viewer.id()))
            || PUBLIC_EVENTS.iter().any(|kind| kind.dotted() == row.kind)
        {
            return Ok(true);
        }
        let Some(circle) = row.circle_id else {
            return Ok(false);
        };
        if viewer.is_removal(row) {
            let ids = viewer.ids().without_agent();
            let circles = self.request.load(ReadableCircles, ids).await?;
            return Ok(circles.contains(&circle));
        }
        let bus = &self.request.services.bus;
        let sharing = bus.sharing.load(Ordering::Acquire);
        let membership = match viewer.agent() {
            Some(_) => bus.membership.load(Ordering::Acquire),
            None => 0,
        };
        let changes = (sharing, membership);
        let circles = match &self.circles {
            Some((known, circles)) if *known == changes => circles,
            _ => {
                let circles = self.request.load(ReadableCircles, viewer.ids()).await?;
                &self.circles.insert((changes, circles)).1
            }
        };
        Ok(circles.contains(&circle))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let bus = &self.request.services.bus;
        bus.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Yields to other tasks: a subscriber that is catching up can wait. The longer the queue of runnable tasks, the longer
/// it sleeps.
async fn give_way() {
    let came = Instant::now();
    yield_now().await;
    let queued = came.elapsed();
    if queued > SHORTEST_QUEUE {
        sleep(LONGEST_DELAY.min(queued * DELAY_FACTOR)).await;
    }
}

/// The circles that viewers may read: those that the users own or that are shared with them, within the limits of their
/// API keys.
#[derive(Clone, PartialEq)]
struct ReadableCircles;

/// A circle, and the id of the user, the agent or the API key to which it belongs.
#[derive(FromQueryResult)]
struct CircleOf {
    id: Uuid,
    circle: Uuid,
}

/// The circles of users, of agents or of API keys.
type CirclesOf = HashMap<Uuid, HashSet<Uuid>>;

impl ReadableCircles {
    async fn read(db: &Reader, select: &SelectStatement) -> Result<CirclesOf, Error> {
        let mut circles = CirclesOf::new();
        for row in db.all::<CircleOf>(select).await? {
            circles.entry(row.id).or_default().insert(row.circle);
        }
        Ok(circles)
    }

    /// Selects pairs of an id among `ids` and a circle.
    fn pairs<E: EntityTrait>(
        db: &Reader,
        (id, circle): (E::Column, E::Column),
        ids: &[Uuid],
    ) -> Select<E> {
        E::find()
            .select_only()
            .column_as(id, "id")
            .column_as(circle, "circle")
            .filter(is_among(db.backend(), id.as_column_ref(), ids))
    }
}

impl Batch for ReadableCircles {
    type Key = ViewerIds;
    type Value = Arc<HashSet<Uuid>>;

    fn name(&self) -> String {
        "readable circles by viewer".to_owned()
    }

    async fn run(
        &self,
        db: &Reader,
        viewers: &[ViewerIds],
    ) -> Result<HashMap<ViewerIds, Self::Value>, Error> {
        use {api_key_circle as limit, circle::Column as Circle, collaborator as share};
        let ids = |of: fn(&ViewerIds) -> Option<Uuid>| -> Vec<Uuid> {
            let ids: HashSet<Uuid> = viewers.iter().filter_map(of).collect();
            ids.into_iter().collect()
        };
        let users = ids(|viewer| Some(viewer.user));
        let shared = (share::Column::UserId, share::Column::CircleId);
        let shared = Self::pairs::<share::Entity>(db, shared, &users).into_query();
        let select = Self::pairs::<circle::Entity>(db, (Circle::OwnerId, Circle::Id), &users);
        let select = select.into_query().union(UnionType::All, shared).take();
        let of_users = Self::read(db, &select).await?;
        let agents = ids(|viewer| viewer.agent);
        let mut of_agents = CirclesOf::new();
        if !agents.is_empty() {
            let columns = (member::Column::AgentId, member::Column::CircleId);
            let select = Self::pairs::<member::Entity>(db, columns, &agents);
            let select = select.filter(member::Column::IsActive.eq(true));
            of_agents = Self::read(db, &select.into_query()).await?;
        }
        let keys = ids(|viewer| viewer.key);
        let mut of_keys = CirclesOf::new();
        if !keys.is_empty() {
            let columns = (limit::Column::KeyId, limit::Column::CircleId);
            let select = Self::pairs::<limit::Entity>(db, columns, &keys).into_query();
            of_keys = Self::read(db, &select).await?;
        }
        let is_within = |limits: &CirclesOf, of: Option<Uuid>, circle: &Uuid| {
            of.is_none_or(|of| limits.get(&of).is_some_and(|ids| ids.contains(circle)))
        };
        let circles = viewers.iter().map(|viewer| {
            let mut circles = of_users.get(&viewer.user).cloned().unwrap_or_default();
            circles.retain(|circle| {
                is_within(&of_agents, viewer.agent, circle)
                    && is_within(&of_keys, viewer.key, circle)
            });
            (*viewer, Arc::new(circles))
        });
        Ok(circles.collect())
    }
}

/// An end of the range of stored events that have a position.
#[derive(Clone, Copy, PartialEq)]
enum Edge {
    Oldest,
    Newest,
}

async fn edge(loader: &Loader, edge: Edge) -> Result<Option<Arc<event::Model>>, Error> {
    let select = event::Entity::find().filter(event::Column::Position.is_not_null());
    let (name, select) = match edge {
        Edge::Oldest => ("oldest event", select.order_by_asc(event::Column::Position)),
        Edge::Newest => (
            "newest event",
            select.order_by_desc(event::Column::Position),
        ),
    };
    let pages = PageQuery::<event::Model>::new(name, select.limit(1).into_query(), None);
    let rows = loader.load_alone(pages, Uuid::nil(), false).await?;
    Ok(rows.first().cloned())
}
