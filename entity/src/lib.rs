//! The tables of Gathering: one file per table, named after one row, and the enumerations of its columns.
//!
//! The crate has no behavior: permissions and changes are in the crate `gathering-schema`. A test compares every entity
//! with the migrated database.

pub mod agent;
pub mod api_key;
pub mod api_key_circle;
pub mod audit;
pub mod circle;
pub mod collaborator;
pub mod conversation;
pub mod event;
pub mod idempotency;
pub mod journal;
pub mod lockout;
pub mod mail;
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
pub mod transfer;
pub mod user;

use sea_orm::FromJsonQueryResult;
use serde::{Deserialize, Serialize};

/// A list of strings, stored as a JSON array.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct List(pub Vec<String>);
