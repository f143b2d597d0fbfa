//! The database schema, its constraints and orderings, and the demo data.

use std::collections::{BTreeMap, BTreeSet};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier};
use chrono::TimeDelta;
use gathering_demo::{self as seed, SeedError};
use gathering_entity::agent::{self, AgentStatus};
use gathering_entity::circle::{self, CircleStatus};
use gathering_entity::collaborator::{self, CollaboratorRole};
use gathering_entity::conversation::{self, ConversationStatus};
use gathering_entity::member::{self, MemberRole};
use gathering_entity::message::{self, MessageRole};
use gathering_entity::project::{self, ProjectStatus};
use gathering_entity::task::{self, Priority, TaskStatus};
use gathering_entity::transfer::TransferStatus;
use gathering_entity::user::{self, UserRole};
use gathering_entity::{
    api_key, api_key_circle, audit, event, idempotency, journal, lockout, mail, model, participant,
    persona, provider, refresh_token, revoked_token, transfer,
};
use sea_orm::prelude::{DateTimeUtc, Uuid};
use sea_orm::sea_query::{ColumnType, Expr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityName, EntityTrait,
    IdenStatic, IntoActiveModel, Iterable, PaginatorTrait, QueryFilter, QueryOrder, Set, SqlErr,
    Statement,
};
use serde_json::json;

use crate::support::database::{Database, PASSWORD};
use crate::support::wait::within;

/// Invokes a macro for each entity.
macro_rules! for_each_entity {
    ($do:ident) => {
        $do!(user);
        $do!(refresh_token);
        $do!(revoked_token);
        $do!(lockout);
        $do!(mail);
        $do!(audit);
        $do!(provider);
        $do!(model);
        $do!(persona);
        $do!(agent);
        $do!(project);
        $do!(circle);
        $do!(collaborator);
        $do!(member);
        $do!(task);
        $do!(conversation);
        $do!(participant);
        $do!(message);
        $do!(event);
        $do!(journal);
        $do!(idempotency);
        $do!(api_key);
        $do!(api_key_circle);
        $do!(transfer);
    };
}

/// The tables that an export does not contain.
pub(crate) const TRANSIENT: [&str; 5] = [
    "idempotency_keys",
    "journal",
    "lockouts",
    "mails",
    "refresh_tokens",
];

/// The names of all tables, in alphabetical order.
pub(crate) fn tables() -> Vec<&'static str> {
    let mut tables = Vec::new();
    macro_rules! add {
        ($entity:ident) => {
            tables.push($entity::Entity.table_name());
        };
    }
    for_each_entity!(add);
    tables.sort_unstable();
    tables
}

// Behind the macro, which they use.
mod demo;
mod rules;
mod tables;

/// The id of row `n` of table `table` in the demo data.
fn id(table: u128, n: u32) -> Uuid {
    let made = u128::from(
        (start() + TimeDelta::seconds(n.into()))
            .timestamp_millis()
            .unsigned_abs(),
    );
    Uuid::from_u128(made << 80 | 7 << 76 | table << 64 | 2 << 62 | u128::from(n))
}

fn start() -> DateTimeUtc {
    "2026-01-05T09:00:00Z".parse().expect("a moment")
}

async fn rows(db: &DatabaseConnection, sql: &str) -> Vec<Vec<String>> {
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(statement).await.expect("answers");
    rows.iter()
        .map(|row| {
            (0..row.column_names().len())
                .map(|at| row.try_get_by_index(at).expect("text"))
                .collect()
        })
        .collect()
}

async fn insert_user(db: &DatabaseConnection, email: &str) -> Uuid {
    let id = Uuid::now_v7();
    let user = user::ActiveModel {
        id: Set(id),
        created_at: Set(start()),
        updated_at: Set(start()),
        email: Set(email.to_owned()),
        email_key: Set(email.to_owned()),
        name: Set("Test User".to_owned()),
        password_hash: Set(String::new()),
        ..Default::default()
    };
    user::Entity::insert(user).exec(db).await.expect("inserts");
    id
}
