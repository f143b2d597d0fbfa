//! Integration tests, module by module, over real HTTP and on a real database: SQLite, or PostgreSQL when
//! `GATHERING_TEST_DATABASE_URL` names a server. A test that needs the other database, or a
//! server that is missing, is reported as skipped.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read the URLs of their servers from the environment"
)]

mod support;

mod access;
mod accounts;
mod changes;
mod charging;
mod circles;
mod compiled;
mod compression;
mod conversations;
mod crash;
mod data;
mod documents;
mod ended;
mod export;
mod fuzz;
mod gate;
mod graph;
mod health;
mod http;
mod http_edges;
mod idempotency;
mod keys;
mod limits;
mod live;
mod maintain;
mod members;
mod metrics;
mod names;
mod operate;
mod oracle;
mod pool;
mod process;
mod severed;
mod signals;
mod sse;
mod storage;
mod tasks;
mod tenancy;
mod trace;
mod transfers;
mod values;
mod volume;
mod ws;
