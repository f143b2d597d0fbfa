//! The audit log: records events as rows of `audit_log` without making the caller wait.
//!
//! An entry goes into a bounded queue and is written together with the others in it. Entries that one address can cause
//! without limit (invalid tokens, refused fields) are written once a minute per address, with a count. An entry that
//! does not fit into the queue is missing in the table, but is logged, and counted by the next batch.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use futures_util::future::BoxFuture;
use gathering_entity::audit::{self, AuditSeverity};
use sea_orm::{DatabaseConnection, EntityTrait, IntoActiveModel, sea_query::OnConflict};
use serde_json::{Map, Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

use crate::{
    audit::AuditAction,
    clock::Clock,
    error::{Code, Error},
    id::Kind,
    text,
};

/// Maximum number of rows in one statement.
const BATCH: usize = 256;

/// How long repetitions are counted before they are written.
const COUNTED: Duration = Duration::from_mins(1);

/// Maximum number of distinct repetitions that are counted at the same time.
const COUNTERS: usize = 1_000;

/// Maximum pause between attempts to write.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The origin of a request, according to its connection and headers.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// The IP address.
    pub address: Option<IpAddr>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The request id in logs, in the audit log and in `INTERNAL` errors.
    pub request_id: String,
}

impl Client {
    pub(crate) fn ip(&self) -> Option<String> {
        self.address
            .map(|address| address.to_canonical().to_string())
    }

    pub(crate) fn program(&self) -> Option<String> {
        let program = self.user_agent.as_ref()?;
        Some(program.chars().take(255).collect())
    }
}

/// Accepts audit log entries.
#[derive(Clone)]
pub(crate) struct AuditLog {
    queue: mpsc::Sender<(AuditAction, audit::Model)>,
    lost: Arc<AtomicU64>,
    clock: Clock,
}

/// Writes audit log entries.
pub struct AuditWriter {
    queue: mpsc::Receiver<(AuditAction, audit::Model)>,
    lost: Arc<AtomicU64>,
    clock: Clock,
    db: DatabaseConnection,
    repeated: HashMap<Repeated, (audit::Model, u64)>,
}

/// The key of repeated entries: the action, its details, the network and the user. The value is the first entry and the
/// number of later ones.
type Repeated = (AuditAction, String, Option<String>, Option<Uuid>);

/// Creates an audit log in which at most `waiting` entries wait to be written.
pub(crate) fn audit_log(
    db: DatabaseConnection,
    waiting: usize,
    clock: Clock,
) -> (AuditLog, AuditWriter) {
    let (sender, receiver) = mpsc::channel(waiting);
    let lost = Arc::default();
    let log = AuditLog {
        queue: sender,
        lost: Arc::clone(&lost),
        clock: Arc::clone(&clock),
    };
    let audit_writer = AuditWriter {
        queue: receiver,
        lost,
        clock,
        db,
        repeated: HashMap::new(),
    };
    (log, audit_writer)
}

impl AuditLog {
    /// Records an action of `actor`, on a user if one is given.
    pub(crate) fn record(
        &self,
        action: AuditAction,
        client: &Client,
        actor: Option<Uuid>,
        target: Option<Uuid>,
        details: Value,
    ) {
        let target = target.map(|user| (Kind::User, user));
        self.record_of(action, client, actor, target, details);
    }

    /// Records an action of `actor`, on a row if one is given.
    pub(crate) fn record_of(
        &self,
        action: AuditAction,
        client: &Client,
        actor: Option<Uuid>,
        target: Option<(Kind, Uuid)>,
        details: Value,
    ) {
        let entry = audit::Model {
            id: Uuid::now_v7(),
            created_at: (self.clock)().trunc_subsecs(6),
            action: action.name().to_owned(),
            severity: action.severity(),
            actor_id: actor,
            client_ip: client.ip(),
            user_agent: client.program(),
            request_id: Some(client.request_id.clone()).filter(|id| !id.is_empty()),
            target_type: target.map(|(kind, _)| kind.prefix().to_owned()),
            target_id: target.map(|(_, id)| id),
            details,
        };
        if self.queue.try_send((action, entry)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                action = action.name(),
                "the audit log queue is full: an entry was dropped"
            );
        }
    }
}

impl AuditWriter {
    /// Writes recorded entries until `stop`, then the remaining ones.
    pub fn run(mut self, mut stop: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut entries = Vec::with_capacity(BATCH);
            let mut repeated_until = None;
            loop {
                let minute = async {
                    match repeated_until {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    count = self.queue.recv_many(&mut entries, BATCH) => if count == 0 { break },
                    () = minute => {}
                    () = &mut stop, if !self.queue.is_closed() => {
                        self.queue.close();
                        continue;
                    }
                }
                let due = repeated_until.is_some_and(|until| until <= Instant::now());
                let mut rows = if due || self.repeated.len() >= COUNTERS {
                    repeated_until = None;
                    self.repetitions()
                } else {
                    Vec::new()
                };
                rows.extend(
                    entries
                        .drain(..)
                        .filter_map(|(action, entry)| self.first(action, entry)),
                );
                if !self.repeated.is_empty() {
                    repeated_until.get_or_insert(Instant::now() + COUNTED);
                }
                self.write(rows).await;
            }
            let rest = self.repetitions();
            self.write(rest).await;
        })
    }

    /// Returns the entry unless it repeats one of the last minute.
    fn first(&mut self, action: AuditAction, entry: audit::Model) -> Option<audit::Model> {
        if !action.is_repetitive() {
            return Some(entry);
        }
        let address = entry.client_ip.as_ref().and_then(|ip| ip.parse().ok());
        let details = entry.details.to_string();
        let repeated = (action, details, address.map(text::network), entry.actor_id);
        match self.repeated.entry(repeated) {
            Entry::Occupied(mut known) => {
                known.get_mut().1 += 1;
                None
            }
            Entry::Vacant(place) => {
                place.insert((entry.clone(), 0));
                Some(entry)
            }
        }
    }

    /// The repeated entries, each with its count.
    fn repetitions(&mut self) -> Vec<audit::Model> {
        let now = (self.clock)().trunc_subsecs(6);
        let repeated = self.repeated.drain().map(|(_, repeated)| repeated);
        repeated
            .filter(|(_, count)| *count > 0)
            .map(|(first, count)| counted(first, count, now))
            .collect()
    }

    /// Writes entries, and retries as long as necessary. An entry that the database refuses must not block the others.
    async fn write(&self, mut entries: Vec<audit::Model>) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            entries.push(self.loss(lost));
        }
        if entries.is_empty() {
            return;
        }
        let mut pause = Duration::from_millis(50);
        while let Err(error) = self.insert(&entries).await {
            if error.code == Code::Internal {
                return self.write_each(&entries, lost).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Writes entries one by one, as far as possible. The last one contains the number of entries lost before, if any.
    async fn write_each(&self, entries: &[audit::Model], lost: u64) {
        for (place, entry) in entries.iter().enumerate() {
            if self.insert(std::slice::from_ref(entry)).await.is_ok() {
                continue;
            }
            let action = &entry.action;
            tracing::error!(action, "the database refused an audit log entry");
            let tells_of_lost = lost > 0 && place + 1 == entries.len();
            let count = if tells_of_lost { lost } else { 1 };
            self.lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    async fn insert(&self, entries: &[audit::Model]) -> Result<(), Error> {
        let rows = entries
            .iter()
            .cloned()
            .map(IntoActiveModel::into_active_model);
        // An attempt without a response may have written them.
        audit::Entity::insert_many(rows)
            .on_conflict(
                OnConflict::column(audit::Column::Id)
                    .do_nothing()
                    .to_owned(),
            )
            .exec_without_returning(&self.db)
            .await?;
        Ok(())
    }

    fn loss(&self, count: u64) -> audit::Model {
        audit::Model {
            id: Uuid::now_v7(),
            created_at: (self.clock)().trunc_subsecs(6),
            action: "audit.entries_lost".to_owned(),
            severity: AuditSeverity::Critical,
            actor_id: None,
            client_ip: None,
            user_agent: None,
            request_id: None,
            target_type: None,
            target_id: None,
            details: json!({ "count": count }),
        }
    }
}

fn counted(first: audit::Model, count: u64, now: DateTime<Utc>) -> audit::Model {
    let mut details = match first.details {
        Value::Object(details) => details,
        _ => Map::new(),
    };
    details.insert("count".to_owned(), json!(count));
    audit::Model {
        id: Uuid::now_v7(),
        created_at: now,
        request_id: None,
        details: details.into(),
        ..first
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn entries_refused_by_the_database_are_counted_and_not_retried() {
        // A database without the table.
        let db = sea_orm::Database::connect("sqlite::memory:").await;
        let clock: Clock = Arc::new(|| DateTime::UNIX_EPOCH);
        let (log, audit_writer) = audit_log(db.expect("opens"), 10, clock);
        log.lost.fetch_add(4, Ordering::Relaxed);
        for _ in 0..3 {
            log.record(
                AuditAction::LoginFailed,
                &Client::default(),
                None,
                None,
                json!({}),
            );
        }
        let ended = tokio::time::timeout(
            Duration::from_secs(30),
            audit_writer.run(Box::pin(ready(()))),
        );
        assert!(ended.await.is_ok());
        assert_eq!(log.lost.load(Ordering::Relaxed), 4 + 3);
    }
}
