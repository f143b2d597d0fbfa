//! Execution: admission, idempotency, the executor, and the account of its cost.

mod admission;
mod run;
mod usage;

pub use admission::{Bearer, Caller};
pub(crate) use admission::{admit, authenticate};
pub(crate) use run::Engine;
pub use usage::Usage;
