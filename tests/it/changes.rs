//! Create, update and delete mutations of agents, projects and the catalogue: results, user errors, and events.

mod agents;
mod catalogue;
mod projects;

use std::time::Duration;

use gathering_entity::event;
use gathering_schema::id;
use sea_orm::prelude::Uuid;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::server::TestServer;

const ADMIN: &str = "admin@example.com";
const DEMO: &str = "demo@example.com";
const GUEST: &str = "guest@example.com";

/// The fields selected of a changed object, by type.
const SHOWN: [(&str, &str); 5] = [
    (
        "Provider",
        "id name displayName apiBaseUrl isLocal createdAt updatedAt",
    ),
    (
        "Model",
        "id name displayName provider { id } contextWindow maxOutput priceInput priceOutput priceCacheRead priceCacheWrite \
         supportsVision supportsTools supportsStreaming supportsThinking isDeprecated updatedAt",
    ),
    (
        "Persona",
        "id name displayName role category description icon motto prompt traits competencies specializations languages \
         communicationStyle defaultModel { id } defaultTemperature isBuiltin updatedAt",
    ),
    (
        "Agent",
        "id owner { name } name persona { id } model { id } systemPrompt status traits competencies specializations \
         reviewTypes communicationStyle reviewStrictness temperature maxTokens version updatedAt",
    ),
    (
        "Project",
        "id owner { name } name description repositoryUrl defaultBranch status techStack languages frameworks updatedAt",
    ),
];

const EVENTS: &str = "query($subject: ID!) { events(first: 100, filter: { subjectId: $subject }) { nodes { type actor { id } \
    ... on AgentEvent { agentId name fromStatus toStatus changed } \
    ... on ProjectEvent { projectId name changed project { id } } \
    ... on CatalogueEvent { subjectId name isDeleted changed } } } }";

/// A server with the demo data, and requests of its users.
struct Team {
    server: TestServer,
}

impl Team {
    async fn new() -> Self {
        Self {
            server: TestServer::start().await,
        }
    }

    /// The complete response to a user's request.
    async fn ask(&self, who: &str, query: &str, variables: Value) -> Value {
        let token = self.server.token(who).await;
        self.server.ask(Some(&token), query, variables).await
    }

    /// The data of a user's request, which must not fail.
    async fn data(&self, who: &str, query: &str, variables: Value) -> Value {
        let answer = self.ask(who, query, variables).await;
        assert_eq!(answer.get("errors"), None, "{query}: {answer}");
        answer["data"].clone()
    }

    /// The complete response to a mutation named after a verb and a type.
    async fn mutate(&self, who: &str, name: &str, input: Value) -> Value {
        let shown = SHOWN.iter().find(|(ty, _)| name.ends_with(ty));
        let (ty, fields) = shown.expect("a type");
        let (kind, selection) = if name.starts_with("delete") {
            let current = format!("deletedId current {{ id ... on {ty} {{ {fields} }} }}");
            ("DeleteInput".to_owned(), current)
        } else {
            let kind = format!("{}{}Input", name[..1].to_uppercase(), &name[1..]);
            (kind, format!("{} {{ {fields} }}", ty.to_lowercase()))
        };
        let query = format!(
            "mutation($input: {kind}!) {{ {name}(input: $input) {{ {selection} userErrors {{ field code message }} }} }}"
        );
        self.ask(who, &query, json!({ "input": input })).await
    }

    /// The payload of a mutation.
    async fn payload(&self, who: &str, name: &str, input: Value) -> Value {
        let answer = self.mutate(who, name, input).await;
        assert_eq!(answer.get("errors"), None, "{name}: {answer}");
        answer["data"][name].clone()
    }

    /// The created or changed object. Fails on user errors.
    async fn thing(&self, who: &str, name: &str, input: Value) -> Value {
        let payload = self.payload(who, name, input).await;
        assert_eq!(payload["userErrors"], json!([]), "{name}");
        let ty = name.trim_start_matches("create");
        payload[ty.trim_start_matches("update").to_lowercase()].clone()
    }

    /// The fields and codes of the user errors of a mutation.
    async fn faults(&self, who: &str, name: &str, input: Value) -> Vec<(String, String)> {
        faults(&self.payload(who, name, input).await)
    }

    /// The code of the error that a mutation fails with, and the field that it names.
    async fn refusal(&self, who: &str, name: &str, input: Value) -> (String, Value) {
        let answer = self.mutate(who, name, input).await;
        assert!(answer["data"].is_null(), "{name}: {answer}");
        let error = &answer["errors"][0]["extensions"];
        let code = error["code"].as_str().unwrap_or_default();
        (code.to_owned(), error["field"].clone())
    }

    /// Deletes an object, which must succeed.
    async fn delete(&self, who: &str, name: &str, id: &Value) {
        let payload = self.payload(who, name, json!({ "id": id })).await;
        let expected = json!({ "deletedId": id, "current": null, "userErrors": [] });
        assert_eq!(payload, expected, "{name}");
    }

    /// The id of a user.
    async fn user(&self, email: &str) -> Value {
        let data = self.data(email, "{ viewer { id } }", json!({})).await;
        data["viewer"]["id"].clone()
    }

    /// Waits for this many events of a subject and returns them as the user reads them, oldest first.
    async fn events(&self, who: &str, subject: &Value, count: usize) -> Vec<Value> {
        for _ in 0..3_000 {
            let data = self.data(who, EVENTS, json!({ "subject": subject })).await;
            let nodes = data["events"]["nodes"].as_array().expect("events");
            if nodes.len() >= count {
                assert_eq!(nodes.len(), count, "{nodes:?}");
                return nodes.iter().rev().cloned().collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{subject} has no {count} events");
    }

    /// The rows of a subject's events, oldest first.
    async fn rows(&self, subject: &Value) -> Vec<event::Model> {
        rows(&self.db().await, uuid(subject)).await
    }

    async fn db(&self) -> DatabaseConnection {
        self.server.database().connect().await
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

fn faults(payload: &Value) -> Vec<(String, String)> {
    let errors = payload["userErrors"].as_array().expect("user errors");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut faults: Vec<_> = errors
        .iter()
        .map(|error| {
            assert!(!text(&error["message"]).is_empty(), "{error}");
            let path: Vec<_> = error["field"]
                .as_array()
                .into_iter()
                .flatten()
                .map(text)
                .collect();
            (path.join("."), text(&error["code"]))
        })
        .collect();
    faults.sort_unstable();
    faults
}

/// The expected user errors, sorted.
fn wrong<const N: usize>(expected: [(&str, &str); N]) -> Vec<(String, String)> {
    let mut expected = expected.map(|(field, code)| (field.to_owned(), code.to_owned()));
    expected.sort_unstable();
    expected.to_vec()
}

/// The expected refusal when an object does not exist.
fn not_found(field: &str) -> (String, Value) {
    ("NOT_FOUND".to_owned(), json!(field))
}

/// The expected refusal when the user lacks the permission.
fn forbidden() -> (String, Value) {
    ("FORBIDDEN".to_owned(), Value::Null)
}
