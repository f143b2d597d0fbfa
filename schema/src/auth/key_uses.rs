//! When API keys were last used: written apart from the requests, together, and at most once a minute for each key.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use gathering_entity::api_key;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, sea_query::Expr};
use tokio::{sync::Notify, time::sleep};
use uuid::Uuid;

use crate::{clock::Clock, db::Writer, error::Error};

/// The precision of the last use of a key.
const PRECISION: TimeDelta = TimeDelta::minutes(1);

/// How long uses are collected before they are written together.
const COLLECTED: Duration = Duration::from_secs(1);

/// Maximum number of uses that wait to be written. Further ones are dropped: the next use of the key is recorded.
const WAITING: usize = 10_000;

/// Maximum number of uses in one statement.
const WRITTEN: usize = 1_000;

/// The uses of keys that are not written yet.
#[derive(Default)]
pub(crate) struct KeyUses {
    waiting: Mutex<HashSet<Uuid>>,
    added: Notify,
}

impl KeyUses {
    /// Records the use of a key, at most once a minute.
    pub(super) fn record(&self, key: &api_key::Model, now: DateTime<Utc>) {
        let is_recent = |at: DateTime<Utc>| now.signed_duration_since(at) < PRECISION;
        if key.last_used_at.is_some_and(is_recent) {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING && waiting.insert(key.id) {
            self.added.notify_one();
        }
    }

    fn take(&self) -> Vec<Uuid> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain().collect()
    }
}

/// Writes when API keys were last used, apart from the requests that use them.
pub struct KeyUseWriter {
    uses: Arc<KeyUses>,
    writer: Writer,
    clock: Clock,
}

impl KeyUseWriter {
    pub(super) fn new(uses: Arc<KeyUses>, writer: Writer, clock: Clock) -> Self {
        Self {
            uses,
            writer,
            clock,
        }
    }

    /// Writes uses until it is dropped.
    pub fn run(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                self.uses.added.notified().await;
                sleep(COLLECTED).await;
                for keys in self.uses.take().chunks(WRITTEN) {
                    // The cause has been logged. The next use of the key is recorded again.
                    let _ = self.write(keys).await;
                }
            }
        })
    }

    async fn write(&self, keys: &[Uuid]) -> Result<(), Error> {
        let now = (self.clock)().trunc_subsecs(6);
        let (transaction, _guard) = self.writer.begin().await?;
        let is_due = Condition::any()
            .add(api_key::Column::LastUsedAt.is_null())
            .add(api_key::Column::LastUsedAt.lte(now - PRECISION));
        api_key::Entity::update_many()
            .col_expr(api_key::Column::LastUsedAt, Expr::value(now))
            .filter(api_key::Column::Id.is_in(keys.iter().copied()))
            .filter(is_due)
            .exec(&transaction)
            .await?;
        self.writer.commit(transaction).await
    }
}
