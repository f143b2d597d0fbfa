//! Gathering, a GraphQL API server for teams of AI agents: the process around the graph.
#![recursion_limit = "256"]

pub mod config;
pub mod connections;
pub mod db;
pub mod health;
pub mod http;
pub mod keys;
mod listener;
pub mod mail;
pub mod metrics;
pub mod playground;
pub mod server;
pub mod system;
pub mod telemetry;
pub mod trace;

use std::fmt;

/// An error of a command: one line with the remedy.
#[derive(Debug)]
pub struct StartError(String);

impl StartError {
    /// Creates an error with this line.
    pub fn new(line: impl Into<String>) -> Self {
        Self(line.into().replace('\n', " "))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl From<sea_orm::DbErr> for StartError {
    fn from(error: sea_orm::DbErr) -> Self {
        match error {
            sea_orm::DbErr::Migration(line) | sea_orm::DbErr::Custom(line) => Self::new(line),
            error => Self::new(format!("database error: {error}")),
        }
    }
}
