//! What one subscriber gets: what they want and may read, in order, without a gap.

use crate::events::FeedFilter;
use crate::request::PAUSE;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use gathering_entity::{circle, collaborator, event};
use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::UnionType,
};
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::events::{BATCH, changes_sharing};
use crate::{
    access::PUBLIC_EVENTS,
    db::{Batch, Loader, PageQuery, Reader, is_among},
    error::Error,
    request::Request,
};

/// Most events that one statement of a replay looks at.
const SPAN: i64 = 10_000;

/// A queue in which nobody minds waiting.
const SHORTEST_QUEUE: Duration = Duration::from_millis(2);

/// How many times as long as it had to queue a subscriber that is behind stays away, and for how long at most.
const PATIENCE: u32 = 8;
const LONGEST_STAY: Duration = Duration::from_millis(500);

/// What a subscriber is given.
pub(crate) enum Item {
    Event(Arc<event::Model>),
    /// Some of what they have not seen is no longer kept. This is the oldest that is.
    Missed(Arc<event::Model>),
}

impl Item {
    /// Whether it changes who may read a circle.
    pub(crate) fn changes_sharing(&self) -> bool {
        matches!(self, Self::Event(row) if changes_sharing(row))
    }
}

/// A subscriber's place.
pub(crate) struct Feed {
    request: Arc<Request>,
    latest: watch::Receiver<Option<i64>>,
    wanted: FeedFilter,
    /// The position of the last event that was looked at.
    seen: i64,
    /// What was looked at, is wanted, and was not given yet.
    taken: VecDeque<Arc<event::Model>>,
    missed: Option<Arc<event::Model>>,
    /// Whether there is more than is told at once.
    is_behind: bool,
    /// Whether the table is read until it is as far as the history.
    replays: bool,
    /// The circles that the viewer may read, and how often sharing had changed when they were read.
    circles: Option<(u64, Arc<HashSet<Uuid>>)>,
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
        wanted: FeedFilter,
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
            wanted,
            seen,
            taken: VecDeque::new(),
            missed: None,
            is_behind: false,
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

    /// The request that it serves.
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// What is next of what the subscriber wants and may read: as much as is at hand and may be told at once, and at
    /// least one.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Vec<Item>, Error> {
        self.request.progress.started();
        let mut items = Vec::new();
        loop {
            // One who always finds something must not keep the others on its thread waiting.
            tokio::task::coop::consume_budget().await;
            items.extend(self.missed.take().map(Item::Missed));
            let gained = match self.taken.front().cloned() {
                _ if items.len() >= self.request.progress.burst() => return Ok(items),
                Some(row) => self.may_read(&row).await.map(|may_read| {
                    self.taken.pop_front();
                    items.extend(may_read.then_some(Item::Event(row)));
                }),
                None if items.is_empty() => self.fill().await,
                None => return Ok(items),
            };
            match gained {
                Ok(()) => {}
                // What could not be read now can be read later: nothing was passed over.
                Err(_) if !items.is_empty() => return Ok(items),
                Err(error) if error.is_transient() => sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for something new, or takes it from the table when it is no longer in the history.
    async fn fill(&mut self) -> Result<(), Error> {
        if self.is_behind {
            give_way().await;
        }
        if self.replays {
            return self.replay().await;
        }
        let bus = Arc::clone(&self.request.services.bus);
        // Marked as seen before the history is read: what comes in between wakes.
        self.latest.borrow_and_update();
        match bus.behind(self.seen, |row| self.wanted.takes(row)) {
            Some((_, seen)) if seen == self.seen => {
                // The bus ends with the server, which ends its streams before.
                let _ = self.latest.changed().await;
            }
            Some((rows, seen)) => {
                self.seen = seen;
                self.is_behind = rows.len() == BATCH;
                self.taken = rows;
            }
            None => {
                self.is_behind = true;
                bus.lagged.fetch_add(1, Ordering::Relaxed);
                self.replays = true;
            }
        }
        Ok(())
    }

    /// Reads a batch from the table: what is wanted behind what was seen, and may be read. However much lies in between,
    /// no statement looks at more than [`SPAN`] events.
    async fn replay(&mut self) -> Result<(), Error> {
        let newest = (*self.latest.borrow_and_update()).unwrap_or_default();
        let end = newest.min(self.seen.saturating_add(SPAN));
        let mut select = event::Entity::find()
            .filter(event::Column::Position.gt(self.seen))
            .filter(event::Column::Position.lte(end))
            .filter(self.wanted.condition());
        if self.is_guarded {
            select = select.filter(self.request.viewer()?.events());
        }
        let select = select
            .order_by_asc(event::Column::Position)
            .limit(BATCH as u64)
            .into_query();
        let pages = PageQuery::<event::Model>::new("events to replay", select, None);
        let services = Arc::clone(&self.request.services);
        // Who has a turn must use it, also while nobody asks for what they read.
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            // The semaphore is never closed.
            let _turn = services.bus.replays.acquire().await;
            let rows = services.loader.load_alone(pages, Uuid::nil()).await?;
            // What was deleted before it was read is missing; looked at afterwards, so that nothing is deleted in between.
            let oldest = edge(&services.loader, Edge::Oldest).await?;
            Ok::<_, Error>((rows, oldest))
        });
        let read = reading.join_next().await;
        let (rows, oldest) = read.and_then(Result::ok).ok_or_else(Error::internal)??;
        let oldest_at = oldest.as_ref().and_then(|row| row.position);
        self.missed = oldest.filter(|_| oldest_at > Some(self.seen + 1));
        self.seen = match rows.last() {
            Some(last) if rows.len() == BATCH => last.position.unwrap_or(end),
            // Nothing lies before the oldest.
            _ => end.max(oldest_at.unwrap_or_default().min(newest) - 1),
        };
        self.replays = self.seen < newest;
        self.taken = rows.iter().cloned().collect();
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
        let sharing = self.request.services.bus.sharing.load(Ordering::Acquire);
        let circles = match &self.circles {
            Some((known, circles)) if *known == sharing => circles,
            _ => {
                let circles = self.request.load(ReadableCircles, viewer.id()).await?;
                &self.circles.insert((sharing, circles)).1
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

/// Lets others come first. Who has much to catch up has time; whoever changes something in this moment has not. So the
/// longer the queue of what wants to run, the longer a subscriber stays away from it.
async fn give_way() {
    let came = Instant::now();
    yield_now().await;
    let queued = came.elapsed();
    if queued > SHORTEST_QUEUE {
        sleep(LONGEST_STAY.min(queued * PATIENCE)).await;
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
    let rows = loader.load_alone(pages, Uuid::nil()).await?;
    Ok(rows.first().cloned())
}
