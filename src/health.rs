//! The health of the process: whether it is alive, whether it is ready for requests, and the status of its components.
//! `/health` and the graph (`Query.health`) report the same checks.
//!
//! Health checks are cheap: the components are checked at most once a second, regardless of the number of requests.
//! Responses contain no internal text. The check writes to the database only after a write has failed, until writes
//! work again.

use std::iter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gathering_entity::event;
use gathering_schema::health::{HealthCheck, HealthReport, HealthStatus, Monitor, SystemMetrics};
use gathering_schema::{Clock, Graph, storage};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::db::{Attempt, Database, Reachability};
use crate::system::{self, Resources, Space, System};

/// How long the result of a check is reused, and the timeout of a check.
const SECOND: Duration = Duration::from_secs(1);

/// How long the results of the checks of migrations and of the disk are reused.
const SLOW_CHECKS: Duration = Duration::from_secs(10);

/// The age of an unpublished event above which live events are late.
const LATE: TimeDelta = TimeDelta::seconds(10);

/// Maximum number of unpublished events that a check reads.
const UNPUBLISHED: u64 = 1_000;

/// The health of this process.
pub struct Health {
    started: Instant,
    clock: Clock,
    /// Set when the server has started.
    parts: OnceLock<Parts>,
    draining: AtomicBool,
    system: System,
    last: Mutex<Option<Probe>>,
    details: Mutex<Option<Details>>,
    /// Whether the file system of the database is being read. If it does not respond, no further thread waits for it.
    is_reading_disk: Arc<AtomicBool>,
}

struct Parts {
    database: Database,
    graph: Graph,
}

/// The result of a check of the database, on which the readiness depends.
#[derive(Clone, Copy)]
struct Probe {
    at: Instant,
    reach: Reachability,
    took: Duration,
    writes: Writes,
}

/// The results of the checks that only the report contains.
#[derive(Clone)]
struct Details {
    at: Instant,
    events: HealthCheck,
    slow_at: Instant,
    /// The checks of migrations and of the disk.
    slow: Vec<HealthCheck>,
}

/// The state of writes at the time of a check.
#[derive(Clone, Copy)]
struct Writes {
    fail: bool,
    /// Number of failed writes and of committed changes at that time.
    failures: u64,
    commits: u64,
}

impl Writes {
    /// The state before the first check.
    fn new() -> Self {
        Self {
            fail: false,
            failures: 0,
            commits: 0,
        }
    }

    /// Checks again. Other writers may hold the lock for the whole time; if they have committed, writes work.
    async fn probe(self, database: &Database) -> Self {
        let (failures, commits) = (storage::failures(), storage::commits());
        let is_suspect = self.fail || failures > self.failures;
        let attempt = if is_suspect && !database.is_read_only() {
            database.try_writing(SECOND / 2).await
        } else {
            Attempt::Pass
        };
        let has_committed = storage::commits() > self.commits;
        let fail = match attempt {
            Attempt::Pass => false,
            Attempt::Locked => !has_committed,
            Attempt::Fail => true,
            Attempt::Undecided => self.fail && !has_committed,
        };
        if self.fail && !fail {
            // Connections opened in the meantime may be unable to write.
            database.renew();
        }
        // A commit before the lock was taken proves nothing: the next check decides.
        let is_open = attempt == Attempt::Locked && !fail;
        Self {
            fail,
            failures: if is_open { self.failures } else { failures },
            commits,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pass,
    /// At its limit, or degraded.
    Warn,
    Fail,
    Starting,
    Draining,
}

impl From<HealthStatus> for Status {
    fn from(status: HealthStatus) -> Self {
        match status {
            HealthStatus::Up => Self::Pass,
            HealthStatus::Degraded => Self::Warn,
            HealthStatus::Down => Self::Fail,
        }
    }
}

#[derive(Serialize)]
struct Brief {
    status: Status,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    status: Status,
    version: &'static str,
    uptime_seconds: u64,
    checks: Vec<Check>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    name: &'static str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
}

impl Health {
    /// A process that is starting.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            clock,
            parts: OnceLock::new(),
            draining: AtomicBool::new(false),
            system: System::default(),
            last: Mutex::new(None),
            details: Mutex::new(None),
            is_reading_disk: Arc::default(),
        })
    }

    /// Marks the process as ready for requests.
    pub fn started(&self, database: Database, graph: Graph) {
        self.parts.get_or_init(|| Parts { database, graph });
    }

    /// Marks the process as not ready: no further requests should be sent.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The routes `/health/live`, `/health/ready` and `/health`.
    pub fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .route("/health", get(report))
            .with_state(Arc::clone(self))
    }

    /// The health of this process for the graph, which does not keep it alive.
    pub fn monitor(self: &Arc<Self>) -> Arc<dyn Monitor> {
        Arc::new(Observed(Arc::downgrade(self)))
    }

    /// The resources of the process.
    pub(crate) fn resources(&self) -> Resources {
        self.system.resources()
    }

    /// Runs in a task of its own, so that a client that disconnects does not discard the results of the checks.
    async fn probe(self: &Arc<Self>) -> (Status, Option<Probe>) {
        let health = Arc::clone(self);
        #[expect(clippy::disallowed_methods, reason = "the task ends with its checks")]
        let probing = tokio::spawn(async move {
            let parts = health.parts.get()?;
            let mut last = health.last.lock().await;
            let probe = match *last {
                Some(probe) if probe.at.elapsed() < SECOND => probe,
                before => *last.insert(parts.probe(before).await),
            };
            Some(probe)
        });
        let probe = probing.await.ok().flatten();
        let status = match probe {
            Some(_) if self.draining.load(Ordering::Relaxed) => Status::Draining,
            Some(probe) => probe.status(),
            None => Status::Starting,
        };
        (status, probe)
    }

    /// The status, and all checks.
    async fn report(self: &Arc<Self>) -> (Status, Vec<HealthCheck>) {
        let (status, probe) = self.probe().await;
        let (Some(parts), Some(probe)) = (self.parts.get(), probe) else {
            return (status, Vec::new());
        };
        let mut checks = parts.checks(probe);
        if probe.reach == Reachability::Pass {
            let health = Arc::clone(self);
            #[expect(clippy::disallowed_methods, reason = "the task ends with its checks")]
            let detailing = tokio::spawn(async move { health.details().await });
            checks.extend(detailing.await.ok().into_iter().flatten());
        }
        checks.extend(parts.redis());
        let is_degraded = checks.iter().any(|check| check.status != HealthStatus::Up);
        let status = match status {
            Status::Pass if is_degraded => Status::Warn,
            status => status,
        };
        (status, checks)
    }

    async fn details(&self) -> Vec<HealthCheck> {
        let Some(parts) = self.parts.get() else {
            return Vec::new();
        };
        let mut last = self.details.lock().await;
        let details = match last.take() {
            Some(details) if details.at.elapsed() < SECOND => details,
            before => {
                let slow = before.filter(|before| before.slow_at.elapsed() < SLOW_CHECKS);
                let slow = async {
                    match slow {
                        Some(before) => (before.slow_at, before.slow),
                        None => (Instant::now(), self.slow_checks(parts).await),
                    }
                };
                let (events, (slow_at, slow)) = tokio::join!(parts.events((self.clock)()), slow);
                Details {
                    at: Instant::now(),
                    events,
                    slow_at,
                    slow,
                }
            }
        };
        let Details { events, slow, .. } = last.insert(details);
        iter::once(&*events).chain(&*slow).cloned().collect()
    }

    async fn slow_checks(&self, parts: &Parts) -> Vec<HealthCheck> {
        let disk = async {
            let file = parts.database.file()?;
            let folder = file
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).to_owned();
            disk(folder, Arc::clone(&self.is_reading_disk)).await
        };
        let (migrations, disk) = tokio::join!(parts.migrations(), disk);
        iter::once(migrations).chain(disk).collect()
    }
}

impl Probe {
    /// Failing writes are a warning only: reads are served, so the process stays ready.
    fn status(self) -> Status {
        match self.reach {
            Reachability::Pass if self.writes.fail => Status::Warn,
            Reachability::Pass => Status::Pass,
            Reachability::Busy => Status::Warn,
            Reachability::Fail => Status::Fail,
        }
    }
}

impl Parts {
    async fn probe(&self, before: Option<Probe>) -> Probe {
        let started = Instant::now();
        let reach = self.database.reach(SECOND).await;
        let took = started.elapsed();
        let writes = before.map_or_else(Writes::new, |probe| probe.writes);
        let writes = match reach {
            Reachability::Pass | Reachability::Busy => writes.probe(&self.database).await,
            Reachability::Fail => writes,
        };
        Probe {
            at: Instant::now(),
            reach,
            took,
            writes,
        }
    }

    /// The checks of the database and its pool.
    fn checks(&self, probe: Probe) -> Vec<HealthCheck> {
        let database = match probe.reach {
            Reachability::Pass => up("database"),
            Reachability::Busy => degraded("database", "The database answers slowly."),
            Reachability::Fail => down("database", "The database does not answer."),
        };
        let database = HealthCheck {
            latency_ms: Some((probe.took.as_secs_f64() * 1e6).round() / 1e3),
            ..database
        };
        let connections = self.database.connections();
        let is_full = connections.in_use >= usize::try_from(connections.max).unwrap_or(usize::MAX);
        let pool = if is_full {
            degraded("pool", "All connections of the pool are in use.")
        } else {
            up("pool")
        };
        let writes = if probe.writes.fail {
            down("writes", "The database cannot be written.")
        } else {
            up("writes")
        };
        vec![database, pool, writes]
    }

    /// The rate limiter reports the state of Redis. Without Redis, each instance limits on its own.
    fn redis(&self) -> Option<HealthCheck> {
        let alone = self.graph.limits_alone()?;
        Some(if alone {
            degraded(
                "redis",
                "Redis does not respond: each instance applies the limits separately.",
            )
        } else {
            up("redis")
        })
    }

    /// Another instance may have migrated the database since the start.
    async fn migrations(&self) -> HealthCheck {
        let pending = gathering_migration::pending(self.database.connection());
        match tokio::time::timeout(SECOND, pending).await {
            Ok(Ok(0)) => up("migrations"),
            Ok(Ok(_)) => degraded("migrations", "Migrations are pending."),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the migrations cannot be checked");
                degraded(
                    "migrations",
                    "The database was migrated by another version, or the migrations cannot be read.",
                )
            }
            Err(_) => degraded("migrations", "The migrations cannot be read in time."),
        }
    }

    /// Whether events are published soon after their change.
    async fn events(&self, now: DateTime<Utc>) -> HealthCheck {
        let unpublished = event::Entity::find()
            .select_only()
            .column(event::Column::OccurredAt)
            .filter(event::Column::Position.is_null())
            .limit(UNPUBLISHED)
            .into_tuple::<DateTime<Utc>>()
            .all(self.database.connection());
        match tokio::time::timeout(SECOND, unpublished).await {
            Ok(Ok(times)) => match times.into_iter().min() {
                Some(oldest) if now - oldest > LATE => {
                    degraded("events", "Events wait to be published.")
                }
                _ => up("events"),
            },
            Ok(Err(_)) | Err(_) => degraded("events", "The events cannot be read."),
        }
    }
}

/// Whether the file system of the database has free space; `None` if it is unknown.
async fn disk(folder: PathBuf, is_reading: Arc<AtomicBool>) -> Option<HealthCheck> {
    let silent = || degraded("disk", "The disk of the database does not respond.");
    if is_reading.swap(true, Ordering::Relaxed) {
        return Some(silent());
    }
    let space = spawn_blocking(move || {
        let space = system::space(&folder);
        is_reading.store(false, Ordering::Relaxed);
        space
    });
    Some(match tokio::time::timeout(SECOND, space).await {
        Ok(space)
            if space
                .as_ref()
                .is_ok_and(|space| space.is_some_and(Space::is_scarce)) =>
        {
            degraded("disk", "The disk of the database is almost full.")
        }
        Ok(space) => space.ok().flatten().map(|_| up("disk"))?,
        Err(_) => silent(),
    })
}

fn up(name: &'static str) -> HealthCheck {
    HealthCheck {
        name,
        status: HealthStatus::Up,
        message: None,
        latency_ms: None,
    }
}

fn degraded(name: &'static str, message: &str) -> HealthCheck {
    HealthCheck {
        status: HealthStatus::Degraded,
        message: Some(message.to_owned()),
        ..up(name)
    }
}

fn down(name: &'static str, message: &str) -> HealthCheck {
    HealthCheck {
        status: HealthStatus::Down,
        ..degraded(name, message)
    }
}

/// The health as the graph sees it. The server owns the health, which owns the graph.
struct Observed(Weak<Health>);

impl Monitor for Observed {
    fn health(&self) -> BoxFuture<'_, HealthReport> {
        async {
            let (status, checks) = match self.0.upgrade() {
                Some(health) => health.report().await,
                None => (Status::Draining, Vec::new()),
            };
            let status = match status {
                Status::Pass => HealthStatus::Up,
                Status::Warn => HealthStatus::Degraded,
                Status::Fail | Status::Starting | Status::Draining => HealthStatus::Down,
            };
            HealthReport { status, checks }
        }
        .boxed()
    }

    fn system(&self) -> BoxFuture<'_, SystemMetrics> {
        async {
            let health = self.0.upgrade();
            let resources = health.as_ref().map(|h| h.resources()).unwrap_or_default();
            let parts = health.as_ref().and_then(|health| health.parts.get());
            let connections = parts.map(|parts| parts.database.connections());
            let subscriptions = parts.map_or(0, |parts| parts.graph.event_counts().subscribers);
            SystemMetrics {
                cpu_percent: resources.cpu_percent,
                memory_used_bytes: wide(resources.memory),
                memory_total_bytes: wide(resources.memory_total),
                database_connections: connections.map_or(0, |connections| {
                    i32::try_from(connections.in_use + connections.idle).unwrap_or(i32::MAX)
                }),
                subscriptions: i32::try_from(subscriptions).unwrap_or(i32::MAX),
                uptime_seconds: health.map_or(0.0, |health| health.started.elapsed().as_secs_f64()),
            }
        }
        .boxed()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "GraphQL has no 64-bit integers, and the numbers are never that large"
)]
fn wide(bytes: u64) -> f64 {
    bytes as f64
}

impl Status {
    fn code(self) -> StatusCode {
        match self {
            Self::Pass | Self::Warn => StatusCode::OK,
            Self::Fail | Self::Starting | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

async fn live() -> Response {
    answer(
        Status::Pass,
        &Brief {
            status: Status::Pass,
        },
    )
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    let (status, _) = health.probe().await;
    answer(status, &Brief { status })
}

async fn report(State(health): State<Arc<Health>>) -> Response {
    let (status, checks) = health.report().await;
    let checks = checks.into_iter().map(|check| Check {
        name: check.name,
        status: check.status.into(),
        message: check.message,
        latency_ms: check.latency_ms,
    });
    let report = Report {
        status,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: health.started.elapsed().as_secs(),
        checks: checks.collect(),
    };
    answer(status, &report)
}

fn answer(status: Status, body: &impl Serialize) -> Response {
    let body = serde_json::to_string(body).unwrap_or_default();
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    (status.code(), headers, body).into_response()
}
