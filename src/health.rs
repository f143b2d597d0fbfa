//! The health of the process: whether it is alive, whether it is ready for requests, and the status of its components.
//! `/health` and the graph (`Query.health`) report the same checks.
//!
//! Health checks are cheap: the components are checked at most once a second, regardless of the number of requests.
//! Responses contain no internal text. The check writes to the database only after a write has failed, until writes
//! work again.

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
use crate::system::{self, Resources, System};

/// How long the result of a check is reused, and the timeout of a check.
const SECOND: Duration = Duration::from_secs(1);

/// How long the results of the checks of migrations and of the disk are reused.
const SLOW_CHECKS: Duration = Duration::from_secs(10);

/// The age of an unpublished event above which live events are late.
const LATE: chrono::TimeDelta = chrono::TimeDelta::seconds(10);

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
}

struct Parts {
    database: Database,
    graph: Graph,
}

/// The result of the checks.
#[derive(Clone)]
struct Probe {
    at: Instant,
    writes: Writes,
    slow: Slow,
    report: HealthReport,
}

/// The results of the checks of migrations and of the disk.
#[derive(Clone)]
struct Slow {
    at: Instant,
    checks: Vec<HealthCheck>,
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

    async fn probe(&self) -> (Status, Vec<HealthCheck>) {
        let Some(parts) = self.parts.get() else {
            return (Status::Starting, Vec::new());
        };
        let mut last = self.last.lock().await;
        let probe = match &*last {
            Some(probe) if probe.at.elapsed() < SECOND => probe,
            before => {
                let probe = parts.probe(before.clone(), (self.clock)()).await;
                last.insert(probe)
            }
        };
        let report = probe.report.clone();
        let status = if self.draining.load(Ordering::Relaxed) {
            Status::Draining
        } else {
            report.status.into()
        };
        (status, report.checks)
    }
}

impl Parts {
    async fn probe(&self, before: Option<Probe>, now: chrono::DateTime<chrono::Utc>) -> Probe {
        let started = Instant::now();
        let reach = self.database.reach(SECOND).await;
        let latency = (started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let (writes, slow) = before.map_or((Writes::new(), None), |b| (b.writes, Some(b.slow)));
        let mut checks = vec![HealthCheck {
            latency_ms: Some(latency),
            ..match reach {
                Reachability::Pass => up("database"),
                Reachability::Busy => degraded("database", "The database answers slowly."),
                Reachability::Fail => down("database", "The database does not answer."),
            }
        }];
        let connections = self.database.connections();
        let is_full = connections.in_use >= usize::try_from(connections.max).unwrap_or(usize::MAX);
        checks.push(if is_full {
            degraded("pool", "All connections of the pool are in use.")
        } else {
            up("pool")
        });
        let is_down = reach == Reachability::Fail;
        let writes = if is_down {
            writes
        } else {
            writes.probe(&self.database).await
        };
        checks.push(if writes.fail {
            down("writes", "The database cannot be written.")
        } else {
            up("writes")
        });
        let slow = match slow {
            Some(slow) if is_down || slow.at.elapsed() < SLOW_CHECKS => slow,
            _ => Slow {
                at: Instant::now(),
                checks: self.slow_checks(is_down).await,
            },
        };
        if !is_down {
            checks.push(self.events(now).await);
        }
        checks.extend(slow.checks.iter().cloned());
        // The rate limiter reports the state of Redis. Without Redis, each instance limits on its own.
        checks.extend(self.graph.limits_alone().map(|alone| {
            if alone {
                degraded(
                    "redis",
                    "Redis does not respond: each instance applies the limits separately.",
                )
            } else {
                up("redis")
            }
        }));
        // Reads are served as long as the database answers.
        let status = if is_down {
            HealthStatus::Down
        } else if checks.iter().all(|check| check.status == HealthStatus::Up) {
            HealthStatus::Up
        } else {
            HealthStatus::Degraded
        };
        Probe {
            at: Instant::now(),
            writes,
            slow,
            report: HealthReport { status, checks },
        }
    }

    async fn slow_checks(&self, is_down: bool) -> Vec<HealthCheck> {
        let mut checks = Vec::new();
        if !is_down {
            checks.push(self.migrations().await);
        }
        if let Some(file) = self.database.file() {
            checks.push(disk(file.to_owned()).await);
        }
        checks
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
    async fn events(&self, now: chrono::DateTime<chrono::Utc>) -> HealthCheck {
        let unpublished = event::Entity::find()
            .select_only()
            .column(event::Column::OccurredAt)
            .filter(event::Column::Position.is_null())
            .limit(UNPUBLISHED)
            .into_tuple::<chrono::DateTime<chrono::Utc>>()
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

/// Whether the file system of the database has free space.
async fn disk(file: PathBuf) -> HealthCheck {
    let folder = file.parent().unwrap_or(Path::new(".")).to_owned();
    let space = spawn_blocking(move || system::space(&folder));
    match tokio::time::timeout(SECOND, space).await {
        Ok(Ok(Some(space))) if space.is_scarce() => {
            degraded("disk", "The disk of the database is almost full.")
        }
        Ok(Ok(_)) => up("disk"),
        Ok(Err(_)) | Err(_) => degraded("disk", "The disk of the database does not respond."),
    }
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
                Some(health) => health.probe().await,
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
    let (status, checks) = health.probe().await;
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
