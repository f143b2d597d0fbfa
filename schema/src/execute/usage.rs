//! The account of what an operation has cost.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    db,
    operation::{Measure, Timings},
};

/// Whether a response reports the cost of its operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Usage {
    /// Never.
    #[default]
    Off,
    /// For administrators.
    Admin,
    /// Always.
    On,
}

/// The account of an execution, as `extensions.usage`.
pub(crate) fn account(
    usage: &db::Usage,
    measure: Measure,
    timings: Timings,
    took: Duration,
) -> Value {
    let batches = usage.batches.iter();
    let batches = batches.map(|(name, keys)| json!({ "name": name, "keys": keys }));
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    json!({
        "statements": usage.statements,
        "rows": usage.rows,
        "batches": batches.collect::<Vec<_>>(),
        "complexity": measure.complexity,
        "depth": measure.depth,
        "parseMs": milliseconds(timings.parse),
        "validateMs": milliseconds(timings.validate),
        "executeMs": milliseconds(took),
    })
}
