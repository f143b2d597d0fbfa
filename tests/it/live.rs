//! Live events: every committed event is delivered, in order, and nothing else is.

mod access;
mod cursors;
mod delivery;
mod fields;

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use futures_util::future::join_all;
use gathering::config::Config;
use gathering_entity::event;
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    QueryOrder, TransactionTrait,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::actor::{GUEST, OWNER};
use crate::support::database::Database;
use crate::support::events::{Listener, Socket, read_until, refused};
use crate::support::server::TestServer;
use crate::support::wait::within;

const CREATE: &str = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { \
    project { id } userErrors { code } } }";

/// The row of a catalogue event, to insert as if another process had written it.
pub(crate) fn row(n: u128, subject: u128, now: DateTime<Utc>) -> event::Model {
    event::Model {
        id: Uuid::now_v7(),
        position: None,
        kind: "persona.changed".to_owned(),
        subject_type: "persona".to_owned(),
        subject_id: Uuid::from_u128(subject),
        owner_id: None,
        circle_id: None,
        project_id: None,
        agent_id: None,
        actor_user_id: None,
        actor_agent_id: None,
        payload: json!({ "v": 1, "name": n.to_string(), "changed": [], "padding": "x".repeat(100) }),
        request_id: None,
        occurred_at: now,
    }
}

pub(crate) fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

pub(crate) async fn insert(db: &impl ConnectionTrait, rows: Vec<event::Model>) {
    for rows in rows.chunks(500) {
        let rows = rows.iter().cloned().map(IntoActiveModel::into_active_model);
        event::Entity::insert_many(rows)
            .exec_without_returning(db)
            .await
            .expect("inserts");
    }
}

/// A server that polls for events that other processes have written.
fn looking(config: &mut Config) {
    config.events.poll = Duration::from_millis(20);
}

async fn create(server: &TestServer, name: &str) -> Value {
    server
        .graphql(CREATE, json!({ "input": { "name": name } }))
        .await
}

async fn stats(server: &TestServer) -> Value {
    let admin = server.token("admin@example.com").await;
    let query = "{ eventBusStats { published delivered deduplicated lagged handlerErrors \
        subscribers historySize } }";
    let answer = server.with_token(&admin).answer(query, json!({})).await;
    answer["data"]["eventBusStats"].clone()
}

/// Runs a mutation, which must succeed, and returns its payload.
async fn change(server: &TestServer, mutation: &str, input: Value) -> Value {
    let (name, selection) = mutation.split_once(' ').expect("a selection");
    let selection = format!("{selection} userErrors {{ code message }}");
    let owner = server.actor(OWNER).await;
    let answer = owner.mutate(name, &selection, input).await;
    let payload = &answer["data"][name];
    assert_eq!(payload["userErrors"], json!([]), "{answer}");
    payload.clone()
}

/// A circle that the guest can read, and two of its members.
async fn shared_circle(server: &TestServer) -> (String, Vec<String>) {
    let query = "{ circles(filter: { search: \"Workshop\" }) { nodes { id members(first: 2) { nodes { id } } } } }";
    let answer = server.graphql(query, json!({})).await;
    let circle = &answer["data"]["circles"]["nodes"][0];
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    let members = circle["members"]["nodes"].as_array().expect("members");
    let members = members.iter().map(|member| text(&member["id"])).collect();
    (text(&circle["id"]), members)
}
