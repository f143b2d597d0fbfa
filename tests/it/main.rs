//! Integration tests of Gathering, over real HTTP and on a real database: SQLite, or PostgreSQL when
//! `GATHERING_TEST_DATABASE_URL` names a server. On SQLite, the tests that need PostgreSQL pass without testing.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read the URLs of their servers from the environment"
)]

mod database;
mod furnish;
mod introspection;
mod server;

mod access;
mod accounts;
mod changes;
mod charging;
mod circles;
mod conversations;
mod crash;
mod data;
mod documents;
mod ended;
mod graph;
mod health;
mod http;
mod http_edges;
mod idempotency;
mod limits;
mod live;
mod members;
mod names;
mod operate;
mod pool;
mod process;
mod severed;
mod sse;
mod storage;
mod tasks;
mod tenancy;
mod values;
mod volume;
mod ws;
