//! Operations over WebSocket: results, errors, tokens and rate limits are the same as over HTTP.

use std::fs;

use gathering::config::{Config, Mode, Trust};
use serde_json::{Value, json};

use crate::support::events::Socket;
use crate::support::server::TestServer;

const VIEWER: &str = "{ viewer { name } }";

/// The codes of an `error` message.
fn codes(message: &Value) -> Vec<&str> {
    assert_eq!(message["type"], "error", "{message}");
    let errors = message["payload"].as_array().expect("errors").iter();
    errors
        .map(|error| error["extensions"]["code"].as_str().expect("a code"))
        .collect()
}

async fn limited(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        change(config);
    })
    .await
}

#[tokio::test]
async fn a_query_over_websocket_is_one_result_and_the_end() {
    let server = TestServer::start().await;
    let mut socket = Socket::greeted(&server, None).await;
    let messages = socket.run("first", "{ __typename }").await;
    let expected = [
        json!({ "id": "first", "type": "next", "payload": { "data": { "__typename": "Query" } } }),
        json!({ "id": "first", "type": "complete" }),
    ];
    assert_eq!(messages, expected);
    // The id can be used again.
    assert_eq!(socket.run("first", "{ __typename }").await, expected);
}

#[tokio::test]
async fn results_over_websocket_equal_those_over_http() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let query = "{ viewer { name } circles(first: 20) { totalCount nodes { id name members(first: 50) { nodes { name model { name provider { name } } } } } } node(id: \"nonsense\") { id } }";
    let messages = socket.run("1", query).await;
    let over_http = server.with_token(&token).answer(query, json!({})).await;
    assert_eq!(messages[0]["payload"], over_http);
    assert!(over_http["errors"].is_array());
}

#[tokio::test]
async fn a_long_result_over_websocket_arrives_complete() {
    let server = TestServer::start().await;
    let mut socket = Socket::greeted(&server, None).await;
    let query = "{ __schema { types { name description fields { name description args { name description type { name } } } inputFields { name description } enumValues { name description } } } }";
    let messages = socket.run("1", query).await;
    let over_http = server.anonymous().answer(query, json!({})).await;
    assert!(
        over_http.to_string().len() > 64 << 10,
        "the result is longer than 64 KiB"
    );
    assert_eq!(messages[0]["payload"], over_http);
}

#[tokio::test]
async fn operation_name_and_variables_are_used() {
    let server = TestServer::start().await;
    let mut socket = Socket::greeted(&server, None).await;
    let query = "query A { __typename } query B($id: ID!) { b: __typename node(id: $id) { id } }";
    let payload = json!({ "query": query, "operationName": "B", "variables": { "id": "circle_01ke6p4zk8e03r000000000001" }, "extensions": null });
    socket
        .send(json!({ "id": "1", "type": "subscribe", "payload": payload }))
        .await;
    let expected = json!({ "data": { "b": "Query", "node": null } });
    assert_eq!(socket.next().await["payload"]["data"], expected["data"]);
}

#[tokio::test]
async fn an_invalid_operation_is_an_error_and_keeps_the_connection() {
    let server = TestServer::start().await;
    let mut socket = Socket::greeted(&server, None).await;
    for (query, code) in [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("{ nonsense }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription { nonsense }", "GRAPHQL_VALIDATION_FAILED"),
        (
            "query A { __typename } query B { __typename }",
            "GRAPHQL_VALIDATION_FAILED",
        ),
        (
            "query ($id: ID!) { node(id: $id) { id } }",
            "BAD_USER_INPUT",
        ),
    ] {
        let messages = socket.run("1", query).await;
        assert_eq!(messages.len(), 1, "{messages:?}");
        let codes = codes(&messages[0]);
        assert!(!codes.is_empty(), "{messages:?}");
        assert!(codes.iter().all(|known| *known == code), "{messages:?}");
        let over_http = server.anonymous().answer(query, json!({})).await;
        if !query.starts_with("subscription") {
            assert_eq!(messages[0]["payload"], over_http["errors"]);
        }
    }
    assert_eq!(socket.run("1", "{ __typename }").await.len(), 2);
}

#[tokio::test]
async fn an_untrusted_document_is_refused_and_keeps_the_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = folder.path().join("documents.json");
    fs::write(&manifest, r#"{"one": "{ __typename }"}"#).expect("writes");
    let server = TestServer::with(|config| {
        config.graphql.manifest.clone_from(&manifest);
        config.graphql.trusted_documents = Trust::Enforce;
    })
    .await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let messages = socket.run("1", VIEWER).await;
    assert_eq!(codes(&messages[0]), ["FORBIDDEN"]);
    assert_eq!(socket.run("1", "{ __typename }").await.len(), 2);
}

#[tokio::test]
async fn mutations_run_over_websocket() {
    let server = TestServer::start().await;
    let mut socket = Socket::greeted(&server, None).await;
    let login = r#"mutation { login(input: {email: "demo@example.com", password: "not this one"}) { accessToken userErrors { code } } }"#;
    let messages = socket.run("1", login).await;
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert_eq!(messages[0]["type"], "next");
}

#[tokio::test]
async fn the_token_of_connection_init_applies_to_every_operation() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    for key in ["authorization", "Authorization"] {
        let mut socket = Socket::open(&server).await;
        let payload = json!({ key: format!("bearer {token}") });
        socket
            .send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        assert_eq!(socket.next().await["type"], "connection_ack");
        let messages = socket.run("1", VIEWER).await;
        assert!(messages[0]["payload"]["data"]["viewer"]["name"].is_string());
    }
}

#[tokio::test]
async fn an_operation_with_an_expired_token_ends_the_connection() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    server.pass(2 * 3600);
    let messages = socket.run("1", VIEWER).await;
    assert_eq!(codes(&messages[0]), ["UNAUTHENTICATED"]);
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4403);
    assert!(reason.contains("expired"), "{reason}");
}

#[tokio::test]
async fn usage_is_reported_if_connection_init_requests_it() {
    let server = TestServer::start().await;
    let mut socket = Socket::open(&server).await;
    let payload = json!({ "X-Gathering-Usage": "1" });
    socket
        .send(json!({ "type": "connection_init", "payload": payload }))
        .await;
    assert_eq!(socket.next().await["type"], "connection_ack");
    let messages = socket.run("1", "{ __typename }").await;
    let usage = &messages[0]["payload"]["extensions"]["usage"];
    assert_eq!(usage["statements"], 0, "{messages:?}");
}

#[tokio::test]
async fn sign_ins_over_websocket_are_limited_as_over_http() {
    let server = limited(|_| ()).await;
    let mut socket = Socket::greeted(&server, None).await;
    let login = |email: &str| {
        format!(r#"login(input: {{email: "{email}", password: "no"}}) {{ accessToken }}"#)
    };
    let alias = |n| format!("a{n}: {} ", login("a@example.com"));
    let aliases: String = (0..20).map(alias).collect();
    let messages = socket.run("1", &format!("mutation {{ {aliases} }}")).await;
    assert_eq!(messages.len(), 1);
    assert!(
        codes(&messages[0])
            .iter()
            .all(|code| *code == "RATE_LIMITED")
    );
    let error = &messages[0]["payload"][0]["extensions"];
    assert_eq!(error["tier"], "AUTH");
    assert_eq!(error["limit"], 5);
    assert!(error["retryAfterMs"].is_u64(), "{error}");

    let mut passed = 0;
    for n in 0..20 {
        let field = login(&format!("{n}@example.com"));
        let messages = socket.run("1", &format!("mutation {{ {field} }}")).await;
        passed += u32::from(messages[0]["type"] == "next");
    }
    assert_eq!(passed, 5);
}

#[tokio::test]
async fn a_rate_limited_operation_is_an_error_and_keeps_the_connection() {
    let server = limited(|config| config.limits.read = 3).await;
    let mut socket = Socket::greeted(&server, None).await;
    let query = "{ node(id: \"circle_01ke6p4zk8e03r000000000001\") { id } }";
    for n in 0..3 {
        let messages = socket.run("1", query).await;
        let quota = &messages[0]["payload"]["extensions"]["rateLimit"][0];
        assert_eq!(quota["remaining"], 2 - n);
    }
    let messages = socket.run("1", query).await;
    assert_eq!(codes(&messages[0]), ["RATE_LIMITED"]);
    server.pass(20);
    assert_eq!(socket.run("1", query).await.len(), 2);
}

#[tokio::test]
async fn websocket_messages_are_charged_as_requests_of_their_address() {
    let server = limited(|config| config.limits.address = 10).await;
    let mut socket = Socket::greeted(&server, None).await;
    // The handshake and `connection_init` were the first two.
    for _ in 0..8 {
        socket.send(json!({ "type": "ping" })).await;
        assert_eq!(socket.next().await["type"], "pong");
    }
    socket.send_text("not even looked at").await;
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 1013);
    assert_eq!(reason, "Too many messages. Retry in 6 s.");
}
