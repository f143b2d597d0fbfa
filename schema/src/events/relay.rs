//! The relay: numbers events and appends them to the bus.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::BoxFuture;
use gathering_entity::event;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect,
    sea_query::{Expr, ExprTrait},
    sqlx::{
        self,
        postgres::{PgListener, PgPoolOptions},
    },
};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::{
    clock::Clock,
    db::Writer,
    error::Error,
    events::{
        BATCH, Bus, Ended, Handler,
        outbox::{self, CHANNEL, Numbered},
    },
};

/// Numbers and publishes events.
pub struct Relay {
    /// Identifies this instance.
    pub(super) id: Uuid,
    pub(super) bus: Arc<Bus>,
    pub(super) db: DatabaseConnection,
    pub(super) writer: Writer,
    pub(super) clock: Clock,
    pub(super) handlers: Vec<Handler>,
    /// Notified when another instance has assigned new positions.
    pub(super) numbered: Arc<Notify>,
    /// Whether notifications may have been missed.
    pub(super) is_behind: bool,
}

impl Relay {
    /// Adds an event handler.
    pub(crate) fn handle(&mut self, handler: Handler) {
        self.handlers.push(handler);
    }

    /// Publishes events until it is dropped, starting with those that are appended from now on. An instance that cannot
    /// write does not number events.
    pub fn run(mut self, numbers: bool) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let permits = Arc::new(Semaphore::new(self.bus.settings.handlers));
            // The tasks end when this set is dropped.
            let mut helpers = JoinSet::new();
            for handler in self.handlers.drain(..) {
                let (bus, db) = (Arc::clone(&self.bus), self.db.clone());
                helpers.spawn(handler.run(bus, db, Arc::clone(&permits)));
            }
            if self.db.get_database_backend() == DbBackend::Postgres {
                let (bus, numbered) = (Arc::clone(&self.bus), Arc::clone(&self.numbered));
                helpers.spawn(listen(self.db.clone(), self.id, bus, numbered));
            }
            let mut pause = Duration::ZERO;
            loop {
                let began = Instant::now();
                let Err(Failed) = self.publish(numbers).await;
                pause = longer(pause, began);
                sleep(pause).await;
                self.is_behind = true;
            }
        })
    }

    /// Finds the latest position and publishes the remaining events, so that new subscribers receive only events from
    /// now on. [`Relay::run`] retries after a failure.
    pub fn catch_up(&mut self, numbers: bool) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // The cause has been logged.
            let _ = self.begin(numbers).await;
        })
    }

    async fn begin(&mut self, numbers: bool) -> Result<(), Failed> {
        if self.bus.latest.borrow().is_none() {
            self.bus.latest.send_replace(Some(self.newest().await?));
        }
        self.deliver(numbers).await?;
        self.is_behind = false;
        Ok(())
    }

    /// Publishes events until the database fails.
    async fn publish(&mut self, numbers: bool) -> Result<Infallible, Failed> {
        if self.is_behind {
            self.begin(numbers).await?;
        }
        loop {
            let began = Instant::now();
            let is_mine = tokio::select! {
                () = self.bus.changed.notified() => true,
                () = sleep(self.bus.settings.poll) => self.has_unnumbered().await?,
                () = self.numbered.notified() => false,
            };
            // The first event of a burst is published without delay, the rest of it together.
            sleep(BURST.saturating_sub(began.elapsed())).await;
            self.deliver(is_mine && numbers).await?;
        }
    }

    async fn deliver(&self, numbers: bool) -> Result<(), Failed> {
        let numbered = if numbers { self.number().await } else { Ok(()) };
        // Events that other instances have numbered are published even if this one failed.
        self.read().await?;
        numbered
    }

    /// Whether an event that was written by another process has no position yet.
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
            match outbox::number(&self.writer, self.id).await? {
                Numbered::All => return Ok(()),
                Numbered::Part => {}
                Numbered::Busy => {
                    // Events that the other instance did not see are numbered with the next burst.
                    self.bus.changed.notify_one();
                    return Ok(());
                }
            }
        }
    }

    async fn read(&self) -> Result<(), Failed> {
        let mut oldest = None;
        loop {
            let latest = (*self.bus.latest.borrow()).unwrap_or_default();
            let rows = event::Entity::find()
                .filter(event::Column::Position.gt(latest))
                .order_by_asc(event::Column::Position)
                .limit(BATCH as u64)
                .all(&self.db)
                .await?;
            let is_last = rows.len() < BATCH;
            let occurred = rows.iter().map(|row| row.occurred_at);
            oldest = occurred.chain(oldest).min();
            self.bus.append(rows);
            if is_last {
                if let Some(oldest) = oldest {
                    // The clocks of instances differ, so the event may be from the future.
                    let lag = ((self.clock)() - oldest).num_milliseconds();
                    let lag = u64::try_from(lag).unwrap_or_default();
                    self.bus.relay_lag.store(lag, Ordering::Relaxed);
                }
                return Ok(());
            }
        }
    }
}

/// How long events are collected into a burst.
const BURST: Duration = Duration::from_millis(10);

/// The bounds of the pause after a database failure.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Notifies other instances of ended sessions, as soon as the transaction is committed.
///
/// # Errors
/// The database cannot be written.
pub(crate) async fn notify_ended(db: &impl ConnectionTrait, ended: Ended) -> Result<(), DbErr> {
    if db.get_database_backend() == DbBackend::Postgres {
        let notice = ended.to_notice();
        db.execute_unprepared(&format!("NOTIFY {ENDED}, '{notice}'"))
            .await?;
    }
    Ok(())
}

/// Wakes the relay when another instance has assigned new positions, and ends everything that belongs to a session that
/// another instance has ended. The relay does not depend on it: missed positions are found by polling, and missed
/// session ends by the checks of the streams.
async fn listen(db: DatabaseConnection, own: Uuid, bus: Arc<Bus>, numbered: Arc<Notify>) {
    let own = own.to_string();
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        if let Err(cause) = receive(&db, &own, &bus, &numbered).await {
            tracing::warn!(%cause, "cannot listen for notifications of other instances");
        }
        pause = longer(pause, began);
        sleep(pause).await;
    }
}

async fn receive(
    db: &DatabaseConnection,
    own: &str,
    bus: &Bus,
    numbered: &Notify,
) -> Result<(), sqlx::Error> {
    // Listening occupies a connection, so a separate pool is used.
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
                numbered.notify_one();
            }
        }
        // The connection was lost and reopened, so notifications may have been missed.
        numbered.notify_one();
    }
}

/// The pause before a retry: grows exponentially, and is reset after a longer time without failure.
fn longer(pause: Duration, began: Instant) -> Duration {
    let pause = if began.elapsed() > LONGEST_PAUSE {
        Duration::ZERO
    } else {
        pause * 2
    };
    pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Events could not be published. The cause has been logged.
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

/// The channel on which instances notify each other of ended sessions (PostgreSQL).
const ENDED: &str = "gathering_sign_outs";
