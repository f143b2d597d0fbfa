//! Gathering's rows: one file per table, named for one row of it, and the enumerations its columns take.
//!
//! Rows and nothing else: what may be done with them is the graph's to say. A test holds every
//! entity against the migrated database.

pub mod agent;
pub mod audit;
pub mod circle;
pub mod collaborator;
pub mod conversation;
pub mod event;
pub mod idempotency;
pub mod journal;
pub mod lockout;
pub mod member;
pub mod message;
pub mod model;
pub mod participant;
pub mod persona;
pub mod project;
pub mod provider;
pub mod refresh_token;
pub mod revoked_token;
pub mod task;
pub mod user;

use sea_orm::FromJsonQueryResult;
use serde::{Deserialize, Serialize};

/// A list of strings, kept as a JSON array.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct List(pub Vec<String>);
