//! Actors: callers who send operations, and the data, user errors and refusals that they get.

use std::time::Duration;

use futures_util::TryFutureExt;
use gathering_entity::event;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response};
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use super::database::PASSWORD;
use super::server::TestServer;
use super::wait::{until, until_some};

pub(crate) const OWNER: &str = "demo@example.com";
pub(crate) const ADMIN: &str = "admin@example.com";
pub(crate) const GUEST: &str = "guest@example.com";

pub(crate) const ATELIER: &str = "Atelier";
pub(crate) const LIBRARY: &str = "Library";
pub(crate) const WORKSHOP: &str = "Workshop";

/// How long a client waits for more of a response. The slowest hash passwords by the dozen.
const PATIENCE: Duration = Duration::from_mins(10);

/// The HTTP client that all actors share.
pub(crate) fn client_builder() -> ClientBuilder {
    Client::builder().no_proxy().read_timeout(PATIENCE)
}

pub(crate) fn client() -> Client {
    client_builder().build().expect("a client")
}

/// A caller with a separate address and connections, and an optional token.
#[derive(Clone)]
pub(crate) struct Actor {
    client: Client,
    url: String,
    token: Option<String>,
    request_id: Option<String>,
}

impl Actor {
    /// Of a server with this URL, from 127.0.0.1, without a token.
    pub(crate) fn new(server: &str) -> Self {
        Self::at(server, 1)
    }

    /// A client at 127.0.0.`host`.
    pub(crate) fn at(server: &str, host: u8) -> Self {
        let client = client_builder()
            .local_address(std::net::IpAddr::from([127, 0, 0, host]))
            .user_agent("visitor/1.0")
            .build()
            .expect("a client");
        Self {
            client,
            url: server.trim_end_matches('/').to_owned(),
            token: None,
            request_id: None,
        }
    }

    /// The same one with this token.
    pub(crate) fn with(&self, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// The same client, which sends this request id.
    pub(crate) fn named(&self, request_id: &str) -> Self {
        Self {
            request_id: Some(request_id.to_owned()),
            ..self.clone()
        }
    }

    /// The same one, signed in with the password of the demo users.
    pub(crate) async fn signed_in(&self, email: &str) -> Self {
        let input = json!({ "email": email, "password": PASSWORD });
        let answer = self.mutate("login", "accessToken", input).await;
        let token = answer["data"]["login"]["accessToken"].as_str();
        self.with(token.unwrap_or_else(|| panic!("{answer}")))
    }

    /// The same one with this token, or without one.
    pub(crate) fn as_caller(&self, token: Option<&str>) -> Self {
        Self {
            token: token.map(str::to_owned),
            ..self.clone()
        }
    }

    pub(crate) fn token(&self) -> &str {
        self.token.as_deref().expect("a token")
    }

    /// A GET of this path.
    pub(crate) async fn get(&self, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.url));
        request.send().await.expect("an answer")
    }

    /// A POST to this path, to be completed and sent.
    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    /// An operation to be completed and sent.
    pub(crate) fn request(&self, query: &str, variables: &Value) -> RequestBuilder {
        let mut request = self.post("/graphql");
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(id) = &self.request_id {
            request = request.header("x-request-id", id);
        }
        request.json(&json!({ "query": query, "variables": variables }))
    }

    /// The HTTP response to an operation.
    pub(crate) async fn send(&self, query: &str, variables: Value) -> Response {
        let request = self.request(query, &variables);
        request.send().await.expect("an answer")
    }

    /// The response to a subscription over Server-Sent Events, with an unread body.
    pub(crate) async fn listen(&self, query: &str, variables: Value) -> Response {
        let request = self.request(query, &variables);
        let request = request.header("accept", "text/event-stream");
        request.send().await.expect("an answer")
    }

    /// The complete response to an operation.
    pub(crate) async fn answer(&self, query: &str, variables: Value) -> Value {
        let response = self.send(query, variables).await;
        response.json().await.expect("JSON")
    }

    /// As [`Actor::answer`], or nothing when the server has gone.
    pub(crate) async fn try_answer(&self, query: &str, variables: Value) -> Option<Value> {
        let response = self.request(query, &variables).send();
        response.and_then(Response::json).await.ok()
    }

    /// The data of an operation that must not fail.
    pub(crate) async fn ask(&self, query: &str, variables: Value) -> Value {
        let answer = self.answer(query, variables).await;
        assert_eq!(answer.get("errors"), None, "{query}: {answer}");
        answer["data"].clone()
    }

    /// The complete response to a mutation.
    pub(crate) async fn mutate(&self, name: &str, selection: &str, input: Value) -> Value {
        let ty = input_of(name);
        let query =
            format!("mutation ($input: {ty}!) {{ {name}(input: $input) {{ {selection} }} }}");
        self.answer(&query, json!({ "input": input })).await
    }

    /// The whole answer to a mutation of which all is selected that its tests look at.
    pub(crate) async fn call(&self, name: &str, input: Value) -> Value {
        let selection = format!("{} userErrors {{ field code message }}", selection(name));
        self.mutate(name, &selection, input).await
    }

    /// The payload of a mutation that is executed, with or without user errors.
    pub(crate) async fn payload(&self, name: &str, input: Value) -> Value {
        let answer = self.call(name, input).await;
        assert_eq!(answer.get("errors"), None, "{name}: {answer}");
        answer["data"][name].clone()
    }

    /// The payload of a mutation without user errors.
    pub(crate) async fn done(&self, name: &str, input: Value) -> Value {
        let payload = self.payload(name, input).await;
        assert_eq!(payload["userErrors"], json!([]), "{name}");
        payload
    }

    /// The object that a mutation without user errors has created or changed.
    pub(crate) async fn saved(&self, name: &str, input: Value) -> Value {
        self.done(name, input).await[selected(name).0.to_lowercase()].clone()
    }

    /// Deletes an object, which must succeed.
    pub(crate) async fn delete(&self, name: &str, id: &Value) {
        let payload = self.payload(name, json!({ "id": id })).await;
        let expected = json!({ "deletedId": id, "current": null, "userErrors": [] });
        assert_eq!(payload, expected, "{name}");
    }

    /// The user errors of a mutation, as [`faults`].
    pub(crate) async fn faults(&self, name: &str, input: Value) -> Vec<String> {
        faults(&self.payload(name, input).await)
    }

    /// The error of a mutation that has no data, as [`refusal`].
    pub(crate) async fn refused(&self, name: &str, input: Value) -> String {
        let answer = self.call(name, input).await;
        assert_eq!(answer["data"], Value::Null, "{name}: {answer}");
        refusal(&answer)
    }

    /// The id of its user.
    pub(crate) async fn id(&self) -> Value {
        self.ask("{ viewer { id } }", json!({})).await["viewer"]["id"].clone()
    }
}

/// The user errors of a payload, each as `CODE field.path`.
#[track_caller]
pub(crate) fn faults(payload: &Value) -> Vec<String> {
    let errors = payload["userErrors"].as_array();
    let errors = errors.unwrap_or_else(|| panic!("{payload}"));
    let fault = |error: &Value| {
        let message = error.get("message").map(text);
        assert_ne!(message.as_deref(), Some(""), "{error}");
        let path = error["field"].as_array().into_iter().flatten();
        let path: Vec<_> = path.map(text).collect();
        let fault = format!("{} {}", text(&error["code"]), path.join("."));
        fault.trim_end().to_owned()
    };
    errors.iter().map(fault).collect()
}

/// The first error of an answer, as `CODE` or `CODE field`.
#[track_caller]
pub(crate) fn refusal(answer: &Value) -> String {
    let error = &answer["errors"][0]["extensions"];
    match error["field"].as_str() {
        Some(field) => format!("{} {field}", code(answer)),
        None => code(answer).to_owned(),
    }
}

/// The code of the first error of an answer.
#[track_caller]
pub(crate) fn code(answer: &Value) -> &str {
    let code = &answer["errors"][0]["extensions"]["code"];
    code.as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    let text = value.as_str();
    text.unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

/// The input type of a mutation.
fn input_of(name: &str) -> String {
    let has_own = name.starts_with("create")
        || name.starts_with("update")
        || name.starts_with("transfer")
        || ["shareCircle", "unshareCircle", "deleteAccount"].contains(&name)
        || ["assignTask", "submitTask", "approveTask", "rejectTask"].contains(&name);
    let shared = match name {
        _ if has_own => None,
        "blockTask" | "failTask" => Some("TaskReasonInput"),
        _ if name.starts_with("delete") => Some("DeleteInput"),
        _ if name.ends_with("Circle") => Some("CircleActionInput"),
        _ if name.ends_with("Task") => Some("TaskActionInput"),
        _ if name.ends_with("Transfer") => Some("TransferActionInput"),
        _ if name.ends_with("Conversation") => Some("ConversationActionInput"),
        _ => None,
    };
    shared.map_or_else(
        || format!("{}{}Input", name[..1].to_uppercase(), &name[1..]),
        str::to_owned,
    )
}

/// The selection of each type.
const SELECTED: [(&str, &str); 9] = [
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
    (
        "Circle",
        "id name displayName description status version requireReview autoRoute maxMembers maxConcurrentTasks startedAt \
         stoppedAt archivedAt updatedAt project { id } members(first: 100) { totalCount nodes { id } } \
         collaborators { edges { role node { id } } }",
    ),
    (
        "Task",
        "id title description status version priority requiredCompetencies requiresReview reviewType assignee { id } \
         reviewer { id } parent { id } createdBy { name } reviewRound reviewNote statusNote result artifacts \
         estimatedHours actualHours dueAt startedAt submittedAt completedAt createdAt updatedAt",
    ),
    (
        "Conversation",
        "id status version topic summary initialPrompt endReason maxTurns turnsTaken turnStrategy startedAt endedAt \
         lastMessageAt updatedAt nextSpeaker { id } facilitator { id } owner { name } circle { id } task { id } \
         participants { edges { position node { id } } }",
    ),
    (
        "Message",
        "id seq role content authorName isPinned agent { id } user { name } parent { id } model { id } mentions { id } \
         conversation { id status version turnsTaken endReason nextSpeaker { id } lastMessageAt }",
    ),
];

/// The type that a mutation changes, with its selection.
pub(crate) fn selected(mutation: &str) -> (&'static str, &'static str) {
    let of = |(ty, _): &&(&str, &str)| mutation.ends_with(ty);
    *SELECTED.iter().find(of).expect("a type")
}

/// The selection of the payload of a mutation.
fn selection(mutation: &str) -> String {
    match mutation {
        "addCircleMembers" => "circle { id members { totalCount } } \
            members { id role competencies reviewTypes isActive joinedAt leftAt agent { id } }"
            .to_owned(),
        "updateCircleMember" => "member { id role competencies reviewTypes isActive }".to_owned(),
        "removeCircleMember" => "member { id isActive leftAt }".to_owned(),
        _ => {
            let (ty, fields) = selected(mutation);
            if mutation.starts_with("delete") {
                format!("deletedId current {{ id ... on {ty} {{ {fields} }} }}")
            } else {
                format!("{} {{ {fields} }}", ty.to_lowercase())
            }
        }
    }
}

/// A server with the demo data and its users.
pub(crate) struct Demo {
    pub(crate) server: TestServer,
    pub(crate) db: DatabaseConnection,
    /// The owner of all objects.
    pub(crate) owner: Actor,
    /// Reads the circle `Library` and edits the circle `Workshop`.
    pub(crate) guest: Actor,
    pub(crate) admin: Actor,
}

impl Demo {
    pub(crate) async fn start() -> Self {
        Self::on(TestServer::start().await).await
    }

    pub(crate) async fn on(server: TestServer) -> Self {
        Self {
            db: server.database().connect().await,
            owner: server.actor(OWNER).await,
            guest: server.actor(GUEST).await,
            admin: server.actor(ADMIN).await,
            server,
        }
    }

    /// The actor with this e-mail address.
    pub(crate) fn actor(&self, email: &str) -> &Actor {
        match email {
            OWNER => &self.owner,
            GUEST => &self.guest,
            ADMIN => &self.admin,
            _ => panic!("{email} is no user of the demo data"),
        }
    }

    /// Waits until every event that was written is announced.
    pub(crate) async fn until_all_is_announced(&self) {
        let waiting = event::Entity::find().filter(event::Column::Position.is_null());
        until("the announcement of every event", async || {
            waiting.clone().count(&self.db).await.expect("reads") == 0
        })
        .await;
    }

    /// The id of a circle of the demo data.
    pub(crate) async fn circle(&self, name: &str) -> Value {
        let query = "query ($name: String) { circles(first: 100, filter: { search: $name }) { nodes { id name } } }";
        let data = self.admin.ask(query, json!({ "name": name })).await;
        data["circles"]["nodes"][0]["id"].clone()
    }

    /// The ids of agents of the owner, newest first.
    pub(crate) async fn agents(&self) -> Vec<Value> {
        let query = "{ agents(first: 100) { nodes { id } } }";
        let data = self.owner.ask(query, json!({})).await;
        let nodes = data["agents"]["nodes"].as_array().expect("agents");
        nodes.iter().map(|node| node["id"].clone()).collect()
    }

    /// The ids of the projects of the owner, oldest first.
    pub(crate) async fn projects(&self) -> Vec<Value> {
        let query = "{ projects(last: 100) { nodes { id } } }";
        let data = self.owner.ask(query, json!({})).await;
        let nodes = data["projects"]["nodes"].as_array().expect("projects");
        nodes.iter().rev().map(|node| node["id"].clone()).collect()
    }

    /// Waits until all events have a position and returns the cursor of the latest.
    pub(crate) async fn mark(&self) -> String {
        self.until_all_is_announced().await;
        let query = "{ events(first: 1) { pageInfo { startCursor } } }";
        let data = self.admin.ask(query, json!({})).await;
        let cursor = data["events"]["pageInfo"]["startCursor"].as_str();
        cursor.expect("a cursor").to_owned()
    }

    /// Waits for this many events after the cursor and returns them, oldest first. The events of a transaction appear
    /// together.
    pub(crate) async fn events(&self, since: &str, count: usize) -> Vec<Value> {
        const EVENTS: &str = "query ($since: String) { events(last: 100, before: $since) { nodes { type circle { id } project { id } actor { id }
            ... on CircleEvent { name from: fromStatus to: toStatus changed }
            ... on SharingEvent { user { id } role }
            ... on MemberEvent { agentId part: role changed }
            ... on TaskEvent { fromTask: fromStatus toTask: toStatus }
            ... on ConversationEvent { fromTalk: fromStatus toTalk: toStatus }
            ... on AgentEvent { agentId fromAgent: fromStatus toAgent: toStatus } } } }";
        until_some(format!("{count} events"), async || {
            let data = self.admin.ask(EVENTS, json!({ "since": since })).await;
            let nodes = data["events"]["nodes"].as_array().expect("events");
            (nodes.len() >= count).then(|| nodes.iter().rev().cloned().collect())
        })
        .await
    }

    /// Waits for this many events after the cursor and returns their types, oldest first.
    pub(crate) async fn announced(&self, since: &str, count: usize) -> Vec<String> {
        let events = self.events(since, count).await;
        let types = events.iter().map(|event| event["type"].as_str());
        types.map(|ty| ty.expect("a type").to_owned()).collect()
    }
}
