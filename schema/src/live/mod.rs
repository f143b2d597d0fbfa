//! Live events: from the outbox to whoever listens.
//!
//! One task numbers what was committed, reads it in order and appends it to a history of fixed size. Everybody who
//! listens reads that at their own pace; who falls out of it goes on from the table, and comes back when they have caught
//! up. So nobody waits for a slow listener, memory does not grow, and nothing is lost that the table still has.

mod feed;
mod handler;
mod outbox;
mod session;

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use gathering_entity::event;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait},
    sqlx::{
        self,
        postgres::{PgListener, PgPoolOptions},
    },
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use uuid::Uuid;

pub(crate) use feed::{Feed, Item, PAUSE, Wanted};
pub(crate) use handler::Handler;
pub(crate) use outbox::{Fact, announce};
pub use session::Watch;
pub(crate) use session::{Ended, Watches};

use crate::{error::Error, write::Writer};

/// Most events that are handed out at once.
pub(crate) const BATCH: usize = 64;

/// How long a burst is gathered.
const BURST: Duration = Duration::from_millis(10);

/// Most subscribers that read the table at once.
const REPLAYS: usize = 4;

/// Pauses after the database has failed.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Most events that are deleted at once.
const PURGED: u64 = 1_000;

/// Events after which it is to be looked anew who may read a circle.
pub(crate) const SHARING: [&str; 3] = ["circle.shared", "circle.unshared", "circle.deleted"];

/// The channel on which instances tell each other of new positions (PostgreSQL).
const CHANNEL: &str = "gathering_events";

/// The channel on which instances tell each other of sessions that have ended (PostgreSQL).
const ENDED: &str = "gathering_sign_outs";

/// How events are handed out.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many of the latest events are kept in memory.
    pub history: usize,
    /// How long an event counts as a duplicate of an equal one; zero lets all pass.
    pub window: Duration,
    /// How often the outbox is looked at without being told.
    pub poll: Duration,
    /// How long events are kept.
    pub retention: Duration,
    /// How many events the server's own handlers handle at once.
    pub handlers: usize,
}

/// What has been handed out so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Events that were handed out here, whichever instance they come from.
    pub published: u64,
    /// Events that subscribers were given.
    pub delivered: u64,
    /// Events that were left out as duplicates.
    pub deduplicated: u64,
    /// How often a subscriber fell out of the history and went on from the table.
    pub lagged: u64,
    /// How often a handler has failed.
    pub handler_errors: u64,
    /// Open subscriptions.
    pub subscribers: u64,
    /// Events in memory.
    pub history: u64,
}

/// The latest events, and what has been done with them.
pub(crate) struct Bus {
    history: RwLock<VecDeque<Arc<event::Model>>>,
    /// The position of the latest event; `None` before it is known.
    latest: watch::Sender<Option<i64>>,
    /// Something was committed here.
    changed: Notify,
    settings: Settings,
    published: AtomicU64,
    delivered: AtomicU64,
    deduplicated: AtomicU64,
    lagged: AtomicU64,
    handler_errors: AtomicU64,
    subscribers: AtomicU64,
    /// How often the sharing of a circle has changed.
    sharing: AtomicU64,
    /// Who reads the table takes turns.
    replays: Semaphore,
    watches: Arc<Watches>,
}

/// Numbers events and hands them out.
pub struct Relay {
    /// Tells this instance from others.
    id: Uuid,
    bus: Arc<Bus>,
    db: DatabaseConnection,
    writer: Writer,
    handlers: Vec<Handler>,
    /// Another instance may have told of new positions.
    told: Arc<Notify>,
    /// Whether something may have happened that was not told.
    is_behind: bool,
}

impl Bus {
    pub(crate) fn new(
        settings: Settings,
        db: DatabaseConnection,
        writer: Writer,
    ) -> (Arc<Self>, Relay) {
        let bus = Arc::new(Self {
            history: RwLock::default(),
            latest: watch::Sender::new(None),
            changed: Notify::new(),
            settings,
            published: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            deduplicated: AtomicU64::new(0),
            lagged: AtomicU64::new(0),
            handler_errors: AtomicU64::new(0),
            subscribers: AtomicU64::new(0),
            sharing: AtomicU64::new(0),
            replays: Semaphore::new(REPLAYS),
            watches: Arc::default(),
        });
        let relay = Relay {
            id: Uuid::now_v7(),
            bus: Arc::clone(&bus),
            db,
            writer,
            handlers: Vec::new(),
            told: Arc::default(),
            is_behind: true,
        };
        (bus, relay)
    }

    /// Equal events within this time are one.
    pub(crate) fn window(&self) -> Duration {
        self.settings.window
    }

    /// To be called after a commit that has announced something, and left out so many duplicates.
    pub(crate) fn committed(&self, duplicates: u64) {
        self.deduplicated.fetch_add(duplicates, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// The sessions that streams and connections of this instance belong to.
    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// To be called when a subscriber is given an event.
    pub(crate) fn given(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been handed out so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            published: self.published.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            deduplicated: self.deduplicated.load(Ordering::Relaxed),
            lagged: self.lagged.load(Ordering::Relaxed),
            handler_errors: self.handler_errors.load(Ordering::Relaxed),
            subscribers: self.subscribers.load(Ordering::Relaxed),
            history: self.history().len() as u64,
        }
    }

    /// Deletes what is older than events are kept, the oldest first. The newest always stays: positions go on from it.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(crate) async fn purge(
        &self,
        db: &DatabaseConnection,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        use event::Column::{OccurredAt, Position};
        let announced = event::Entity::find().filter(Position.is_not_null());
        let kept = announced
            .clone()
            .filter(OccurredAt.gte(now - self.settings.retention));
        let oldest_kept = kept.order_by_asc(Position).one(db).await?;
        let newest = announced.order_by_desc(Position).one(db).await?;
        // What is kept has no holes, though clocks differ.
        let Some(boundary) = oldest_kept.or(newest).and_then(|row| row.position) else {
            return Ok(());
        };
        let expired = Position.lt(boundary);
        loop {
            let some = event::Entity::find()
                .select_only()
                .column(event::Column::Id)
                .filter(expired.clone())
                .order_by_asc(Position)
                .limit(PURGED)
                .into_query();
            let delete = event::Entity::delete_many().filter(event::Column::Id.in_subquery(some));
            if delete.exec(db).await?.rows_affected < PURGED {
                return Ok(());
            }
        }
    }

    /// What is wanted of the history behind a position, and how far was looked. `None` when the history does not reach
    /// back that far.
    fn behind(
        &self,
        seen: i64,
        mut wants: impl FnMut(&event::Model) -> bool,
    ) -> Option<(VecDeque<Arc<event::Model>>, i64)> {
        let history = self.history();
        let at = |row: &event::Model| row.position.unwrap_or_default();
        let newest = (*self.latest.borrow()).unwrap_or_default();
        let reaches_back = history.front().is_some_and(|oldest| at(oldest) <= seen + 1);
        if !reaches_back {
            return (seen >= newest).then(|| (VecDeque::new(), seen));
        }
        let start = history.partition_point(|row| at(row) <= seen);
        let (mut rows, mut seen) = (VecDeque::new(), seen);
        for row in history.range(start..) {
            if rows.len() == BATCH {
                break;
            }
            seen = at(row);
            if wants(row) {
                rows.push_back(Arc::clone(row));
            }
        }
        Some((rows, seen))
    }

    fn history(&self) -> RwLockReadGuard<'_, VecDeque<Arc<event::Model>>> {
        self.history.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, rows: Vec<event::Model>) {
        let Some(latest) = rows.last().and_then(|row| row.position) else {
            return;
        };
        self.published
            .fetch_add(rows.len() as u64, Ordering::Relaxed);
        // Known before the events are: who judges one of them knows of all the changes before it.
        let sharing = rows.iter().filter(|row| changes_sharing(row)).count();
        self.sharing.fetch_add(sharing as u64, Ordering::AcqRel);
        let mut history = self.history.write().unwrap_or_else(PoisonError::into_inner);
        history.extend(rows.into_iter().map(Arc::new));
        let surplus = history.len().saturating_sub(self.settings.history);
        history.drain(..surplus);
        self.latest.send_replace(Some(latest));
    }
}

impl Relay {
    /// Adds something that handles events.
    pub(crate) fn handle(&mut self, handler: Handler) {
        self.handlers.push(handler);
    }

    /// Hands out events until it is dropped, from those that are announced from now on. An instance that cannot write does
    /// not number them.
    pub async fn run(mut self, numbers: bool) {
        let permits = Arc::new(Semaphore::new(self.bus.settings.handlers));
        // They end with this set.
        let mut helpers = JoinSet::new();
        for handler in self.handlers.drain(..) {
            let (bus, db) = (Arc::clone(&self.bus), self.db.clone());
            helpers.spawn(handler.run(bus, db, Arc::clone(&permits)));
        }
        if self.db.get_database_backend() == DbBackend::Postgres {
            let (bus, told) = (Arc::clone(&self.bus), Arc::clone(&self.told));
            helpers.spawn(listen(self.db.clone(), self.id, bus, told));
        }
        let mut pause = Duration::ZERO;
        loop {
            let began = Instant::now();
            let Err(Failed) = self.go_on(numbers).await;
            pause = longer(pause, began);
            sleep(pause).await;
            self.is_behind = true;
        }
    }

    /// Finds out where events stand, and hands out what was left behind: who listens from now on is told of what happens
    /// from now on. What fails is tried again by [`Relay::run`].
    pub async fn catch_up(&mut self, numbers: bool) {
        // The cause has been logged.
        let _ = self.begin(numbers).await;
    }

    async fn begin(&mut self, numbers: bool) -> Result<(), Failed> {
        if self.bus.latest.borrow().is_none() {
            self.bus.latest.send_replace(Some(self.newest().await?));
        }
        self.hand_out(numbers).await?;
        self.is_behind = false;
        Ok(())
    }

    /// Hands out events until the database fails.
    async fn go_on(&mut self, numbers: bool) -> Result<Infallible, Failed> {
        if self.is_behind {
            self.begin(numbers).await?;
        }
        loop {
            let began = Instant::now();
            let is_mine = tokio::select! {
                () = self.bus.changed.notified() => true,
                () = sleep(self.bus.settings.poll) => self.has_unnumbered().await?,
                () = self.told.notified() => false,
            };
            // The first of a burst is not kept waiting; the rest of it goes out together.
            sleep(BURST.saturating_sub(began.elapsed())).await;
            self.hand_out(is_mine && numbers).await?;
        }
    }

    async fn hand_out(&self, numbers: bool) -> Result<(), Failed> {
        let numbered = if numbers { self.number().await } else { Ok(()) };
        // What others have numbered is told nevertheless.
        self.read().await?;
        numbered
    }

    /// Whether something that other hands have written waits for its position.
    async fn has_unnumbered(&self) -> Result<bool, Failed> {
        let waiting = event::Entity::find()
            .select_only()
            .column(event::Column::Id)
            .filter(event::Column::Position.is_null())
            .into_tuple::<Uuid>()
            .one(&self.db)
            .await?;
        Ok(waiting.is_some())
    }

    async fn newest(&self) -> Result<i64, Failed> {
        let newest: Option<Option<i64>> = event::Entity::find()
            .select_only()
            .expr(Expr::col(event::Column::Position).max())
            .into_tuple()
            .one(&self.db)
            .await?;
        Ok(newest.flatten().unwrap_or_default())
    }

    async fn number(&self) -> Result<(), Failed> {
        loop {
            let (transaction, _turn) = self.writer.begin().await?;
            let has_more = outbox::number(&transaction, self.id).await?;
            self.writer.commit(transaction).await?;
            if !has_more {
                return Ok(());
            }
        }
    }

    async fn read(&self) -> Result<(), Failed> {
        loop {
            let latest = (*self.bus.latest.borrow()).unwrap_or_default();
            let rows = event::Entity::find()
                .filter(event::Column::Position.gt(latest))
                .order_by_asc(event::Column::Position)
                .limit(BATCH as u64)
                .all(&self.db)
                .await?;
            let is_last = rows.len() < BATCH;
            self.bus.append(rows);
            if is_last {
                return Ok(());
            }
        }
    }
}

/// Whether an event changes who may read a circle.
fn changes_sharing(row: &event::Model) -> bool {
    SHARING.contains(&row.kind.as_str())
}

/// Tells other instances that sessions have ended, as soon as the transaction is committed.
///
/// # Errors
/// The database cannot be written.
pub(crate) async fn tell_ended(db: &impl ConnectionTrait, ended: Ended) -> Result<(), DbErr> {
    if db.get_database_backend() == DbBackend::Postgres {
        let notice = ended.to_notice();
        db.execute_unprepared(&format!("NOTIFY {ENDED}, '{notice}'"))
            .await?;
    }
    Ok(())
}

/// Wakes the relay when another instance tells of new positions, and ends what belongs to a session that another
/// instance has ended. The relay does not wait for this: positions that are not heard of are found by the poll, sessions
/// by the looks of the streams.
async fn listen(db: DatabaseConnection, own: Uuid, bus: Arc<Bus>, told: Arc<Notify>) {
    let own = own.to_string();
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        if let Err(cause) = hear(&db, &own, &bus, &told).await {
            tracing::warn!(%cause, "cannot listen for events of other instances");
        }
        pause = longer(pause, began);
        sleep(pause).await;
    }
}

async fn hear(
    db: &DatabaseConnection,
    own: &str,
    bus: &Bus,
    told: &Notify,
) -> Result<(), sqlx::Error> {
    // A connection that only listens is no use to anybody else, so the pool is left its own.
    let options = db.get_postgres_connection_pool().connect_options();
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(LONGEST_PAUSE)
        .connect_with((*options).clone());
    let mut listener = PgListener::connect_with(&pool.await?).await?;
    listener.listen_all([CHANNEL, ENDED]).await?;
    loop {
        while let Some(notification) = listener.try_recv().await? {
            let payload = notification.payload();
            if notification.channel() == ENDED {
                if let Some(ended) = Ended::from_notice(payload) {
                    bus.watches.end(ended);
                }
            } else if payload != own {
                told.notify_one();
            }
        }
        // The connection broke and was begun anew. What was told meanwhile was not heard.
        told.notify_one();
    }
}

/// How long to wait before something that failed is tried again: ever longer, unless it went well for long.
fn longer(pause: Duration, began: Instant) -> Duration {
    let pause = if began.elapsed() > LONGEST_PAUSE {
        Duration::ZERO
    } else {
        pause * 2
    };
    pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Events could not be handed out for now. The cause has been logged.
struct Failed;

impl From<Error> for Failed {
    fn from(_: Error) -> Self {
        Self
    }
}

impl From<DbErr> for Failed {
    fn from(cause: DbErr) -> Self {
        Error::from(cause).into()
    }
}
