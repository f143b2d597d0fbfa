//! Injected time.

use std::sync::Arc;

use chrono::{DateTime, Utc};

/// What tells the time.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Microseconds of a clock that never jumps.
pub type MonotonicClock = Arc<dyn Fn() -> i64 + Send + Sync>;
