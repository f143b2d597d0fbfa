//! `/health`: whether the process is alive, whether it is ready for requests, and the status of its components.
//!
//! Health checks are cheap: the database is checked at most once a second, regardless of the number of requests.
//! Responses contain no internal text. The check writes to the database only after a write has failed, until writes
//! work again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use gathering_schema::{Graph, storage};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::db::{Attempt, Database, Reachability};

/// How long the result of a database check is reused, and the timeout of a check.
const SECOND: Duration = Duration::from_secs(1);

/// The health of this process.
pub struct Health {
    started: Instant,
    /// Set when the server has started.
    parts: OnceLock<(Database, Graph)>,
    draining: AtomicBool,
    last: Mutex<Option<Probe>>,
}

/// The result of a database check.
#[derive(Clone, Copy)]
struct Probe {
    at: Instant,
    reach: Reachability,
    took: Duration,
    writes: Writes,
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

    fn status(self) -> Status {
        if self.fail {
            Status::Fail
        } else {
            Status::Pass
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
    latency_ms: Option<f64>,
}

impl Health {
    /// A process that is starting.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            parts: OnceLock::new(),
            draining: AtomicBool::new(false),
            last: Mutex::new(None),
        })
    }

    /// Marks the process as ready for requests.
    pub fn started(&self, database: Database, graph: Graph) {
        self.parts.get_or_init(|| (database, graph));
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

    async fn probe(&self) -> (Status, Option<Probe>) {
        let Some((database, _)) = self.parts.get() else {
            return (Status::Starting, None);
        };
        let mut last = self.last.lock().await;
        let probe = match *last {
            Some(probe) if probe.at.elapsed() < SECOND => probe,
            _ => {
                let started = Instant::now();
                let reach = database.reach(SECOND).await;
                let took = started.elapsed();
                let before = last.map_or_else(Writes::new, |probe| probe.writes);
                let writes = match reach {
                    Reachability::Pass | Reachability::Busy => before.probe(database).await,
                    Reachability::Fail => before,
                };
                *last.insert(Probe {
                    at: Instant::now(),
                    reach,
                    took,
                    writes,
                })
            }
        };
        let draining = self.draining.load(Ordering::Relaxed);
        (
            if draining {
                Status::Draining
            } else {
                probe.status()
            },
            Some(probe),
        )
    }
}

impl Probe {
    /// Failing writes are a warning only: reads are served, so the process stays ready.
    fn status(self) -> Status {
        match Status::from(self.reach) {
            Status::Pass if self.writes.fail => Status::Warn,
            status => status,
        }
    }
}

impl From<Reachability> for Status {
    fn from(reach: Reachability) -> Self {
        match reach {
            Reachability::Pass => Self::Pass,
            Reachability::Busy => Self::Warn,
            Reachability::Fail => Self::Fail,
        }
    }
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
    let (status, probe) = health.probe().await;
    let database = probe.map(|probe| Check {
        name: "database",
        status: probe.reach.into(),
        latency_ms: Some((probe.took.as_secs_f64() * 1e6).round() / 1e3),
    });
    let writes = probe.map(|probe| Check {
        name: "writes",
        status: probe.writes.status(),
        latency_ms: None,
    });
    // Redis is not checked here: the rate limiter reports its state. Without Redis, each instance limits on its own.
    let alone = health
        .parts
        .get()
        .and_then(|(_, graph)| graph.limits_alone());
    let redis = alone.map(|alone| Check {
        name: "redis",
        status: if alone { Status::Warn } else { Status::Pass },
        latency_ms: None,
    });
    let status = match &redis {
        Some(check) if status == Status::Pass => check.status,
        _ => status,
    };
    let report = Report {
        status,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: health.started.elapsed().as_secs(),
        checks: [database, writes, redis].into_iter().flatten().collect(),
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
