//! Handlers: listeners to events in the server itself.
//!
//! A handler receives each event at least once from the start of the server on. Events of one subject are handled in
//! order, others concurrently, limited by a semaphore that all handlers share. A handler that fails is counted and
//! logged and blocks no other; a slow one continues from the table like any slow subscriber. Publishing writes to the
//! outbox and waits for no handler, so a handler that publishes cannot block itself.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use gathering_entity::event;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tokio::{sync::Semaphore, time::sleep};

use crate::{
    error::Error,
    events::{BATCH, Bus, relay::LONGEST_PAUSE},
};

/// Handles one event.
pub(crate) type Handle =
    Arc<dyn Fn(Arc<event::Model>) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// An event handler.
pub(crate) struct Handler {
    /// The name in the log.
    pub(crate) name: &'static str,
    pub(crate) handle: Handle,
}

impl Handler {
    /// Handles events until it is dropped.
    pub(super) async fn run(self, bus: Arc<Bus>, db: DatabaseConnection, permits: Arc<Semaphore>) {
        let mut latest = bus.latest.subscribe();
        let Ok(Some(mut seen)) = latest.wait_for(Option::is_some).await.map(|latest| *latest)
        else {
            return;
        };
        loop {
            latest.borrow_and_update();
            let rows = match bus.behind(seen, |_| true) {
                Some((rows, _)) if rows.is_empty() => {
                    if latest.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Some((rows, _)) => rows.into(),
                None => {
                    let Ok(rows) = behind(&db, seen).await else {
                        sleep(LONGEST_PAUSE).await;
                        continue;
                    };
                    rows
                }
            };
            seen = rows.last().and_then(|row| row.position).unwrap_or(seen);
            self.handle(&bus, rows, &permits).await;
        }
    }

    async fn handle(&self, bus: &Bus, rows: Vec<Arc<event::Model>>, permits: &Semaphore) {
        let mut subjects: Vec<Vec<Arc<event::Model>>> = Vec::new();
        for row in rows {
            let is_same = |rows: &&mut Vec<Arc<event::Model>>| {
                rows.first()
                    .is_some_and(|first| first.subject_id == row.subject_id)
            };
            match subjects.iter_mut().find(is_same) {
                Some(rows) => rows.push(row),
                None => subjects.push(vec![row]),
            }
        }
        let handled = subjects.into_iter().map(async |rows| {
            // The semaphore is never closed.
            let _permit = permits.acquire().await;
            for row in rows {
                let kind = row.kind.clone();
                // The handler may also panic before it returns its future.
                let work = AssertUnwindSafe(async { (self.handle)(row).await }).catch_unwind();
                let error = match work.await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error.message,
                    Err(_) => "it panicked".into(),
                };
                bus.handler_errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(handler = self.name, kind, %error, "event handler failed");
            }
        });
        join_all(handled).await;
    }
}

/// The events after a position, read from the table.
async fn behind(db: &DatabaseConnection, seen: i64) -> Result<Vec<Arc<event::Model>>, Error> {
    let rows = event::Entity::find()
        .filter(event::Column::Position.gt(seen))
        .order_by_asc(event::Column::Position)
        .limit(BATCH as u64)
        .all(db)
        .await?;
    Ok(rows.into_iter().map(Arc::new).collect())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError, atomic::AtomicUsize},
        time::Duration,
    };

    use chrono::DateTime;
    use sea_orm::Database;
    use serde_json::json;
    use tokio::task::JoinSet;
    use uuid::Uuid;

    use super::*;
    use crate::{db::Writer, events::Settings};

    async fn bus() -> (Arc<Bus>, DatabaseConnection) {
        let settings = Settings {
            history: 10_000,
            window: Duration::ZERO,
            poll: Duration::from_hours(1),
            retention: Duration::from_hours(1),
            handlers: 100,
        };
        let db = Database::connect("sqlite::memory:").await;
        let db = db.expect("a database");
        let bus = Bus::new(
            settings,
            db.clone(),
            Writer::new(db.clone()),
            Arc::new(DateTime::default),
        )
        .0;
        (bus, db)
    }

    fn event(position: i64, subject: u128) -> event::Model {
        event::Model {
            id: Uuid::now_v7(),
            position: Some(position),
            kind: "task.updated".to_owned(),
            subject_type: "task".to_owned(),
            subject_id: Uuid::from_u128(subject),
            owner_id: None,
            circle_id: None,
            project_id: None,
            agent_id: None,
            actor_user_id: None,
            actor_agent_id: None,
            payload: json!({}),
            request_id: None,
            occurred_at: DateTime::default(),
        }
    }

    /// Runs a handler over events of ten subjects until it has seen all of them.
    async fn run(events: i64, permits: usize, handle: Handle) -> Arc<Bus> {
        let (bus, db) = bus().await;
        bus.latest.send_replace(Some(0));
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&seen);
        let handler = Handler {
            name: "a test",
            handle: Arc::new(move |row| {
                counted.fetch_add(1, Ordering::SeqCst);
                handle(row)
            }),
        };
        let permits = Arc::new(Semaphore::new(permits));
        let mut tasks = JoinSet::new();
        tasks.spawn(handler.run(Arc::clone(&bus), db, permits));
        tokio::task::yield_now().await;
        for position in 1..=events {
            let subject = u128::from(position.unsigned_abs()) % 10;
            bus.append(vec![event(position, subject)]);
        }
        while seen.load(Ordering::SeqCst) < usize::try_from(events).unwrap_or_default() {
            tokio::task::yield_now().await;
        }
        bus
    }

    #[tokio::test]
    async fn events_of_one_subject_are_handled_in_order() {
        let seen: Arc<Mutex<Vec<(Uuid, i64)>>> = Arc::default();
        let log = Arc::clone(&seen);
        let handle: Handle = Arc::new(move |row| {
            let log = Arc::clone(&log);
            Box::pin(async move {
                tokio::task::yield_now().await;
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                log.push((row.subject_id, row.position.unwrap_or_default()));
                Ok(())
            })
        });
        run(1_000, 100, handle).await;
        tokio::task::yield_now().await;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for subject in 0..10 {
            let of_subject = seen
                .iter()
                .filter(|(id, _)| *id == Uuid::from_u128(subject));
            let positions: Vec<i64> = of_subject.map(|(_, position)| *position).collect();
            assert!(positions.is_sorted(), "{positions:?}");
            assert!(positions.len() >= 99);
        }
    }

    #[tokio::test]
    async fn failures_and_panics_are_counted_and_handling_continues() {
        let handle: Handle = Arc::new(|row| {
            let position = row.position.unwrap_or_default();
            assert!(position != 3, "this handler panics");
            Box::pin(async move {
                if position == 5 {
                    return Err(Error::internal());
                }
                Ok(())
            })
        });
        let bus = run(20, 1, handle).await;
        assert_eq!(bus.counts().handler_errors, 2);
    }

    #[tokio::test]
    async fn concurrent_handlers_are_limited_by_the_semaphore() {
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
        let handle: Handle = Arc::new(move |_| {
            let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
            Box::pin(async move {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
        });
        run(200, 3, handle).await;
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }
}
