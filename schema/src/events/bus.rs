//! The latest events in memory.

use std::{
    collections::VecDeque,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use gathering_entity::event;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};
use tokio::sync::{Notify, Semaphore, watch};
use uuid::Uuid;

use crate::{
    clock::Clock,
    db::Writer,
    error::Error,
    events::{BATCH, Counts, EventType, Relay, Settings, Watches},
};

/// The latest events, and their statistics.
pub(crate) struct Bus {
    pub(crate) history: RwLock<VecDeque<Arc<event::Model>>>,
    /// The position of the latest event; `None` before it is known.
    pub(crate) latest: watch::Sender<Option<i64>>,
    /// Notified after a commit on this instance.
    pub(super) changed: Notify,
    pub(super) settings: Settings,
    pub(super) published: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) deduplicated: AtomicU64,
    pub(crate) lagged: AtomicU64,
    pub(super) handler_errors: AtomicU64,
    /// The lag of the relay, in milliseconds.
    pub(super) relay_lag: AtomicU64,
    pub(crate) subscribers: AtomicU64,
    /// How often the sharing of a circle has changed.
    pub(crate) sharing: AtomicU64,
    /// How often an agent has become or ceased to be a member of a circle.
    pub(crate) membership: AtomicU64,
    /// Limits the number of concurrent reads of the table.
    pub(crate) replays: Semaphore,
    pub(super) watches: Arc<Watches>,
}

impl Bus {
    pub(crate) fn new(
        settings: Settings,
        db: DatabaseConnection,
        writer: Writer,
        clock: Clock,
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
            relay_lag: AtomicU64::new(0),
            subscribers: AtomicU64::new(0),
            sharing: AtomicU64::new(0),
            membership: AtomicU64::new(0),
            replays: Semaphore::new(REPLAYS),
            watches: Arc::default(),
        });
        let relay = Relay {
            id: Uuid::now_v7(),
            bus: Arc::clone(&bus),
            db,
            writer,
            clock,
            handlers: Vec::new(),
            numbered: Arc::default(),
            is_behind: true,
        };
        (bus, relay)
    }

    /// Equal events within this time are duplicates.
    pub(crate) fn window(&self) -> Duration {
        self.settings.window
    }

    /// Must be called after a commit that has appended events, with the number of dropped duplicates.
    pub(crate) fn committed(&self, duplicates: u64) {
        self.deduplicated.fetch_add(duplicates, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// The watched sessions of the streams and connections on this instance.
    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// Counts an event that is delivered to a subscriber.
    pub(crate) fn count_delivered(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    /// The event statistics of this instance.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            published: self.published.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            deduplicated: self.deduplicated.load(Ordering::Relaxed),
            lagged: self.lagged.load(Ordering::Relaxed),
            handler_errors: self.handler_errors.load(Ordering::Relaxed),
            subscribers: self.subscribers.load(Ordering::Relaxed),
            history: self.history().len() as u64,
            relay_lag: Duration::from_millis(self.relay_lag.load(Ordering::Relaxed)),
        }
    }

    /// Deletes expired events, the oldest first. The newest one is always kept, because positions continue from it.
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
        // The stored events must have no gaps, even if the clocks of instances differ.
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

    /// The matching events of the history after a position, and the last examined position. `None` if the history does
    /// not reach back that far.
    pub(crate) fn behind(
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

    pub(super) fn history(&self) -> RwLockReadGuard<'_, VecDeque<Arc<event::Model>>> {
        self.history.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(&self, rows: Vec<event::Model>) {
        let Some(latest) = rows.last().and_then(|row| row.position) else {
            return;
        };
        self.published
            .fetch_add(rows.len() as u64, Ordering::Relaxed);
        // Counted before the events are visible: a reader of an event must see all changes of access before it.
        let sharing = rows.iter().filter(|row| changes_sharing(row)).count();
        self.sharing.fetch_add(sharing as u64, Ordering::AcqRel);
        let membership = rows.iter().filter(|row| changes_membership(row)).count();
        self.membership
            .fetch_add(membership as u64, Ordering::AcqRel);
        let mut history = self.history.write().unwrap_or_else(PoisonError::into_inner);
        history.extend(rows.into_iter().map(Arc::new));
        let surplus = history.len().saturating_sub(self.settings.history);
        history.drain(..surplus);
        self.latest.send_replace(Some(latest));
    }
}

/// Whether an event changes who may read a circle.
pub(crate) fn changes_sharing(row: &event::Model) -> bool {
    SHARING.iter().any(|kind| kind.dotted() == row.kind)
}

/// Whether an event changes which circles an agent is a member of.
fn changes_membership(row: &event::Model) -> bool {
    let kinds = [EventType::MemberAdded, EventType::MemberRemoved];
    kinds.iter().any(|kind| kind.dotted() == row.kind)
}

/// Event types that change who may read a circle.
pub(crate) const SHARING: [EventType; 4] = [
    EventType::CircleShared,
    EventType::CircleUnshared,
    EventType::CircleOwnerChanged,
    EventType::CircleDeleted,
];

/// Maximum number of subscribers that read the table at the same time.
const REPLAYS: usize = 4;

/// Maximum number of events that are deleted by one statement.
const PURGED: u64 = 1_000;
