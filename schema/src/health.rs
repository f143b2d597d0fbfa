//! The health of the server and the resources of its process, as the server that contains the graph reports them.

use async_graphql::{Enum, SimpleObject};
use futures_util::future::BoxFuture;

/// The health of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum HealthStatus {
    /// Normal operation.
    Up,
    /// Working with restrictions.
    Degraded,
    /// Not working.
    Down,
}

/// The health of the server.
#[derive(Clone, Debug, SimpleObject)]
pub struct HealthReport {
    /// `DOWN` if requests cannot be served, `DEGRADED` if a check is not `UP`.
    pub status: HealthStatus,
    /// The checks, one per component.
    pub checks: Vec<HealthCheck>,
}

/// The health of one component.
#[derive(Clone, Debug, SimpleObject)]
pub struct HealthCheck {
    /// The name of the component: `database`, `pool`, `writes`, `migrations`, `events`, `disk` or `redis`.
    /// `disk` is reported for SQLite, and `redis` if it is configured. While the database does not answer,
    /// `events`, `migrations` and `disk` are not checked.
    pub name: &'static str,
    /// The status of the component.
    pub status: HealthStatus,
    /// The problem; null if there is none.
    pub message: Option<String>,
    /// The response time of the component, in milliseconds. Null for a component that is not requested.
    pub latency_ms: Option<f64>,
}

/// The resources of this instance's process.
#[derive(Clone, Debug, SimpleObject)]
pub struct SystemMetrics {
    /// The processor load of the process, in percent of one processor.
    pub cpu_percent: f64,
    /// The resident memory of the process, in bytes.
    pub memory_used_bytes: f64,
    /// The memory that the process may use, in bytes: that of the machine, or of its container.
    pub memory_total_bytes: f64,
    /// The open connections of the database pool.
    pub database_connections: i32,
    /// The open subscriptions.
    pub subscriptions: i32,
    /// The time since the start of the process, in seconds.
    pub uptime_seconds: f64,
}

/// Reports the health and the resources of the process.
pub trait Monitor: Send + Sync {
    /// The health of the components, checked at most once a second.
    fn health(&self) -> BoxFuture<'_, HealthReport>;

    /// The resources of the process, measured at most once a second.
    fn system(&self) -> BoxFuture<'_, SystemMetrics>;
}
