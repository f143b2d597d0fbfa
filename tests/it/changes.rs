//! Create, update and delete mutations of agents, projects and the catalogue: results, user errors, and events.

mod agents;
mod catalogue;
mod projects;

use gathering_entity::event;
use gathering_schema::id;
use sea_orm::prelude::Uuid;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::support::actor::{Actor, Demo};
use crate::support::wait::until_some;

const EVENTS: &str = "query($subject: ID!) { events(first: 100, filter: { subjectId: $subject }) { nodes { type actor { id } \
    ... on AgentEvent { agentId name fromStatus toStatus changed } \
    ... on ProjectEvent { projectId name changed project { id } } \
    ... on CatalogueEvent { subjectId name isDeleted changed } } } }";

impl Demo {
    /// Waits for this many events of a subject and returns them as the user reads them, oldest first.
    async fn events_of(&self, who: &Actor, subject: &Value, count: usize) -> Vec<Value> {
        until_some(format!("{count} events of {subject}"), async || {
            let data = who.ask(EVENTS, json!({ "subject": subject })).await;
            let nodes = data["events"]["nodes"].as_array().expect("events");
            (nodes.len() >= count).then(|| {
                assert_eq!(nodes.len(), count, "{nodes:?}");
                nodes.iter().rev().cloned().collect()
            })
        })
        .await
    }

    /// The rows of a subject's events, oldest first.
    async fn rows_of(&self, subject: &Value) -> Vec<event::Model> {
        rows(&self.db, uuid(subject)).await
    }
}

/// The rows of a subject's events, oldest first.
pub(crate) async fn rows(db: &DatabaseConnection, subject: Uuid) -> Vec<event::Model> {
    let find = event::Entity::find().filter(event::Column::SubjectId.eq(subject));
    let rows = find.order_by_asc(event::Column::Id).all(db).await;
    rows.expect("reads")
}

/// The row id in a public id.
pub(crate) fn uuid(id: &Value) -> Uuid {
    let id = id.as_str().expect("an id");
    let (_, uuid) = id::parse(&id.into()).expect("an id");
    uuid
}

/// User errors in the order of their texts: which field is checked first is no promise.
fn sorted(mut faults: Vec<String>) -> Vec<String> {
    faults.sort_unstable();
    faults
}
