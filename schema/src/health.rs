//! The health of the server's parts.

use std::time::Duration;

use async_graphql::{Enum, SimpleObject};

use crate::cache::Cache;

/// How long one look at the server's parts holds.
const LOOK: Duration = Duration::from_secs(1);

/// How a part of the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum HealthStatus {
    /// As it should be.
    Up,
    /// Working, with restrictions.
    Degraded,
    /// Not working.
    Down,
}

/// How the server is.
#[derive(Clone, SimpleObject)]
pub struct HealthReport {
    /// The worst of all checks.
    pub(crate) status: HealthStatus,
    /// One check for each part.
    pub(crate) checks: Vec<HealthCheck>,
}

/// How one part of the server is.
#[derive(Clone, SimpleObject)]
pub struct HealthCheck {
    /// The part.
    pub(crate) name: &'static str,
    /// How it is.
    pub(crate) status: HealthStatus,
    /// What is wrong with it.
    pub(crate) message: Option<String>,
    /// How long it took to answer, in milliseconds.
    pub(crate) latency_ms: Option<f64>,
}

/// The last look at the server's parts.
pub(crate) struct Probe(pub(crate) Cache<(), HealthReport>);

impl Default for Probe {
    fn default() -> Self {
        Self(Cache::new(1, Some(LOOK)))
    }
}
