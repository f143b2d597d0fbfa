//! Gathering's graph and everything a resolver may touch. It does not depend on HTTP or on environment variables.
//!
//! Modules import in one direction: `trace`, `db`, `audit`, `events`, `access`, `auth`, `idempotency`, `rate_limit`, `health`,
//! `request`, `data`, the nouns, `operation`, `response`, `subscribe`, `roots`, `execute`, `graph`, `executor`. A
//! resolver reaches the database, the caller and the clock only through `request`.
#![expect(
    clippy::unused_async,
    reason = "the macros of async-graphql require async resolvers, even if they do not await"
)]
#![recursion_limit = "256"]

mod access;
pub mod agent;
pub mod api_key;
mod audit;
pub mod audit_entry;
pub mod auth;
pub mod cache;
pub mod catalogue;
pub mod circle;
mod clock;
mod compiled;
pub mod conversation;
pub mod dashboard;
pub mod data;
mod db;
pub mod deletion;
pub mod erasure;
pub mod error;
pub mod event;
pub mod events;
mod execute;
mod executor;
mod graph;
pub mod health;
pub mod id;
mod idempotency;
pub mod input;
mod json;
mod limits;
pub mod node;
mod operation;
pub mod project;
pub mod rate_limit;
pub mod recovery;
mod request;
mod response;
mod root_field;
pub mod roots;
pub mod scalar;
pub mod server;
pub mod session;
pub mod storage;
mod subscribe;
pub mod task;
pub mod text;
pub mod trace;
pub mod transfer;
pub mod user;
mod workflow;

pub use access::{ApiKeyScope, Viewer};
pub use audit::{AuditWriter, Client};
pub use clock::{Clock, MonotonicClock};
pub use db::{BatchSizes, Pool, PoolMonitor};
pub use error::Code;
pub use events::Watch;
pub use execute::{Bearer, Caller, Usage};
pub use executor::GraphExecutor;
pub use graph::{BackgroundTasks, Graph, Settings};
pub use limits::Limits;
pub use operation::{Operation, Params, Trust, TrustedDocuments};
pub use response::Answer;
pub use subscribe::Answers;
