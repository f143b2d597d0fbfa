//! Shared by the tests: servers, databases, actors, waits, streams of events, and rows.

pub(crate) mod account;
pub(crate) mod actor;
pub(crate) mod collector;
pub(crate) mod counted;
pub(crate) mod database;
pub(crate) mod events;
pub(crate) mod program;
pub(crate) mod round_trips;
pub(crate) mod schema;
pub(crate) mod server;
pub(crate) mod skip;
pub(crate) mod smtp;
pub(crate) mod wait;
pub(crate) mod world;
