//! `/health`: whether the process lives, whether it wants requests, and how its parts are.
//!
//! The rule: asking costs nothing. The database is looked at once a second at most, however often one asks, and no
//! internal text is shown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use gathering_schema::Graph;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::db::{Database, Reach};

/// How long one look at the database holds, and how long it may take.
const SECOND: Duration = Duration::from_secs(1);

/// The state of this process.
pub struct Health {
    started: Instant,
    /// Set when the server has started.
    parts: OnceLock<(Database, Graph)>,
    draining: AtomicBool,
    last: Mutex<Option<Look>>,
}

/// One look at the database.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    reach: Reach,
    took: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pass,
    /// It works, at its limit.
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

    /// From now on the process wants requests.
    pub fn started(&self, database: Database, graph: Graph) {
        self.parts.get_or_init(|| (database, graph));
    }

    /// From now on the process wants no further requests.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// `/health/live`, `/health/ready` and `/health`.
    pub fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .route("/health", get(report))
            .with_state(Arc::clone(self))
    }

    async fn look(&self) -> (Status, Option<Look>) {
        let Some((database, _)) = self.parts.get() else {
            return (Status::Starting, None);
        };
        let mut last = self.last.lock().await;
        let look = match *last {
            Some(look) if look.at.elapsed() < SECOND => look,
            _ => {
                let asked = Instant::now();
                let reach = database.reach(SECOND).await;
                *last.insert(Look {
                    at: Instant::now(),
                    reach,
                    took: asked.elapsed(),
                })
            }
        };
        let draining = self.draining.load(Ordering::Relaxed);
        (
            if draining {
                Status::Draining
            } else {
                look.reach.into()
            },
            Some(look),
        )
    }
}

impl From<Reach> for Status {
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::Pass => Self::Pass,
            Reach::Busy => Self::Warn,
            Reach::Fail => Self::Fail,
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
    let (status, _) = health.look().await;
    answer(status, &Brief { status })
}

async fn report(State(health): State<Arc<Health>>) -> Response {
    let (status, look) = health.look().await;
    let check = |look: Look| Check {
        name: "database",
        status: look.reach.into(),
        latency_ms: Some((look.took.as_secs_f64() * 1e6).round() / 1e3),
    };
    // Redis is looked at by whoever needs it; without it the server works, each instance by itself.
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
        checks: look.map(check).into_iter().chain(redis).collect(),
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
