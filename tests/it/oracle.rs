//! The answers of `/graphql`, compared with those that the service of `async-graphql-axum` sends for the same graph.

use async_graphql_axum::GraphQL;
use axum::Router;
use gathering_schema::{Client, GraphExecutor};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::actor::{ADMIN, Actor, GUEST, OWNER, client};
use crate::support::server::TestServer;
use crate::support::wait::within;

const OPERATIONS: &str = include_str!("acceptance.graphql");

/// The media type for which the service starts a stream.
const MULTIPART: &str = "multipart/mixed;boundary=graphql;subscriptionSpec=1.0";

/// Operations that are refused or fail in part.
const FAILURES: [&str; 5] = [
    "{ viewer { id ",
    "{ viewer { id shoeSize } }",
    "query ($id: ID!) { viewer { id } }",
    "{ x: circle(id: \"circle_01ke6p4zk8e03r00000000zzzz\") { id } viewer { name id } }",
    "{ users(first: 1) { nodes { id } } }",
];

/// A response as text, without its extensions, some of which contain times.
#[derive(Debug, Deserialize)]
struct Text {
    data: Option<Box<RawValue>>,
    errors: Option<Box<RawValue>>,
}

impl Text {
    fn new(response: &str) -> Self {
        serde_json::from_str(response).unwrap_or_else(|error| panic!("{error}: {response}"))
    }

    fn parts(&self) -> [&str; 2] {
        // async-graphql sends null as the data of a request error.
        [&self.data, &self.errors].map(|part| part.as_deref().map_or("null", RawValue::get))
    }
}

/// The service of `async-graphql-axum` for one caller, on a socket.
struct Oracle {
    url: String,
    _serving: JoinSet<()>,
}

impl Oracle {
    async fn serve(server: &TestServer, token: Option<&str>) -> Self {
        let executor = GraphExecutor::new(server.graph().clone(), token, Client::default());
        let routes = Router::new().route_service("/", GraphQL::new(executor));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.expect("serves") });
        Self {
            url,
            _serving: serving,
        }
    }

    async fn answer(&self, query: &str, variables: &Value) -> String {
        let body = json!({ "query": query, "variables": variables });
        let request = client().post(&self.url).json(&body);
        let response = request.send().await.expect("an answer");
        response.text().await.expect("text")
    }
}

/// Compares the answers, and returns that of the server.
async fn compare(actor: &Actor, oracle: &Oracle, query: &str, variables: Value) -> Value {
    let expected = oracle.answer(query, &variables).await;
    let response = actor.send(query, variables.clone()).await;
    let answer = response.text().await.expect("text");
    let parts = [&answer, &expected].map(|text| Text::new(text));
    let [answered, expected] = [&parts[0], &parts[1]].map(Text::parts);
    assert_eq!(answered, expected, "{query} {variables}");
    serde_json::from_str(&answer).expect("JSON")
}

#[tokio::test]
async fn async_graphql_axum_sends_the_same_answers() {
    let server = TestServer::start().await;
    for email in [Some(OWNER), Some(GUEST), Some(ADMIN), None] {
        let token = match email {
            Some(email) => Some(server.token(email).await),
            None => None,
        };
        let oracle = Oracle::serve(&server, token.as_deref()).await;
        let actor = server.caller(token.as_deref());
        let ids = "{ circles(first: 1) { nodes { id } } agents(first: 1) { nodes { id } }
            projects(first: 1) { nodes { id } } conversations(first: 1) { nodes { id } } }";
        let ids = compare(&actor, &oracle, ids, Value::Null).await;
        let mut compared = 0;
        for operation in OPERATIONS.split("\n\n") {
            let list = match operation.split(['(', ' ']).nth(1) {
                Some("Q1Home" | "Q6Feed") => None,
                Some("Q2Team" | "Q2TeamActivity" | "Q2CircleDetail") => Some("circles"),
                Some("Q3Agent") => Some("agents"),
                Some("Q4Board") => Some("projects"),
                Some("Q5Talk") => Some("conversations"),
                name => panic!("{name:?} has no variables"),
            };
            // A caller who can read none gets the error for the id of another type.
            let id = list.map(|list| match &ids["data"][list]["nodes"][0]["id"] {
                Value::Null => json!("user_1"),
                id => id.clone(),
            });
            let answer = compare(&actor, &oracle, operation, json!({ "id": id })).await;
            if email == Some(OWNER) {
                assert_eq!(answer.get("errors"), None, "{operation}");
            }
            compared += 1;
        }
        assert_eq!(compared, OPERATIONS.matches("query Q").count());
        for query in FAILURES {
            let answer = compare(&actor, &oracle, query, Value::Null).await;
            let may_succeed = email == Some(ADMIN) && query.contains("users");
            assert_eq!(answer.get("errors").is_some(), !may_succeed, "{query}");
        }
    }
}

#[tokio::test]
async fn async_graphql_axum_streams_a_subscription() {
    let server = TestServer::start().await;
    let token = server.token(OWNER).await;
    let oracle = Oracle::serve(&server, Some(&token)).await;
    let body = json!({ "query": "subscription { events { type } }" });
    let request = client().post(&oracle.url).json(&body);
    let request = request.header("accept", MULTIPART);
    let sent = tokio::spawn(request.send());
    server.until_subscribers_exceed(0).await;
    let input = json!({ "name": "Streamed" });
    let actor = server.with_token(&token);
    actor.mutate("createProject", "project { id }", input).await;
    let mut response = sent.await.expect("a task").expect("an answer");
    let mut text = String::new();
    while !text.contains("PROJECT_CREATED") {
        let chunk = within("an event", response.chunk()).await.expect("a chunk");
        text += &String::from_utf8_lossy(&chunk.expect("an event before the end"));
    }
}
