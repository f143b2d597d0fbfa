//! Injected time.

use std::sync::Arc;

use chrono::{DateTime, Utc};

/// Returns the current time.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// A monotonic clock, in microseconds.
pub type MonotonicClock = Arc<dyn Fn() -> i64 + Send + Sync>;
