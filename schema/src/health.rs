//! The health of the server's parts.

use std::time::Duration;

use async_graphql::{Enum, SimpleObject};

use crate::cache::Cache;

/// How long a health report is cached.
const CACHED: Duration = Duration::from_secs(1);

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
#[derive(Clone, SimpleObject)]
pub struct HealthReport {
    /// The worst status of all checks.
    pub(crate) status: HealthStatus,
    /// The checks, one per component.
    pub(crate) checks: Vec<HealthCheck>,
}

/// The health of one component.
#[derive(Clone, SimpleObject)]
pub struct HealthCheck {
    /// The name of the component.
    pub(crate) name: &'static str,
    /// The status of the component.
    pub(crate) status: HealthStatus,
    /// The problem; null if there is none.
    pub(crate) message: Option<String>,
    /// The response time of the component, in milliseconds.
    pub(crate) latency_ms: Option<f64>,
}

/// The cached health report.
pub(crate) struct Probe(pub(crate) Cache<(), HealthReport>);

impl Default for Probe {
    fn default() -> Self {
        Self(Cache::new(1, Some(CACHED)))
    }
}
