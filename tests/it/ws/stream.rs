//! Subscriptions over WebSocket, from their first event to their end.

use std::time::Duration;

use gathering::config::Mode;
use serde_json::json;

use super::assert_nothing_is_left;
use crate::support::database::PASSWORD;
use crate::support::events::{EVENTS, Socket, happen, replay};
use crate::support::server::TestServer;

const STREAMS: &str = r#"gathering_streams{transport="websocket"}"#;

#[tokio::test]
async fn a_subscription_sends_events_until_it_is_completed() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    socket.subscribe("1", &replay(&server, 3).await).await;
    for n in 0..6 {
        if n == 3 {
            happen(&server, 3).await;
        }
        let message = socket.next().await;
        assert_eq!(message["id"], "1");
        assert_eq!(message["type"], "next");
        let event = &message["payload"]["data"]["events"];
        assert_eq!(event["type"], "PROJECT_CREATED", "{message}");
    }
    socket.send(json!({ "id": "1", "type": "complete" })).await;
    server.until_metric_is(STREAMS, 0).await;
    happen(&server, 1).await;
    // No further message arrives: the client's `complete` is not answered.
    socket.send(json!({ "type": "ping" })).await;
    assert_eq!(socket.next().await, json!({ "type": "pong" }));
    // The `complete` of an unknown id is ignored.
    socket.send(json!({ "id": "2", "type": "complete" })).await;
    assert_eq!(socket.run("1", "{ __typename }").await.len(), 2);
}

#[tokio::test]
async fn operations_run_concurrently_on_one_connection() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let query = replay(&server, 3).await;
    socket.subscribe("a", &query).await;
    socket.subscribe("b", &query).await;
    let mut seen = [0, 0];
    while seen.iter().any(|n| *n < 3) {
        let message = socket.next().await;
        seen[usize::from(message["id"] == "b")] += 1;
    }
    drop(socket);
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn starting_a_subscription_is_charged_as_a_read() {
    let server = TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        config.limits.read = 2;
    })
    .await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    for id in ["1", "2", "3"] {
        socket.subscribe(id, EVENTS).await;
    }
    let refused = socket.next().await;
    assert_eq!(refused["type"], "error");
    let error = &refused["payload"][0]["extensions"];
    assert_eq!(error["code"], "RATE_LIMITED");
    assert_eq!(error["tier"], "READ");
    socket.send(json!({ "type": "ping" })).await;
    assert_eq!(socket.next().await, json!({ "type": "pong" }));
    server.until_metric_is(STREAMS, 2).await;
}

#[tokio::test]
async fn an_expired_token_ends_its_streams_and_the_connection() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let query = replay(&server, 1).await;
    for id in ["1", "2"] {
        socket.subscribe(id, &query).await;
        assert_eq!(socket.next().await["type"], "next");
    }
    server.pass(2 * 3600);
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let message = socket.next().await;
        if message["type"] == "error" {
            assert_eq!(
                message["payload"][0]["extensions"]["code"],
                "UNAUTHENTICATED"
            );
            ended.push(message["id"].as_str().expect("an id").to_owned());
        }
    }
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4403);
    assert!(reason.contains("expired"), "{reason}");
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_revoked_token_ends_its_streams_and_the_connection() {
    let server = TestServer::start().await;
    let login = r#"mutation ($password: String!) { login(input: {email: "demo@example.com", password: $password}) { accessToken } }"#;
    let signed_in = server
        .anonymous()
        .answer(login, json!({ "password": PASSWORD }))
        .await;
    let token = signed_in["data"]["login"]["accessToken"].as_str();
    let token = token.expect("a token").to_owned();
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    socket.subscribe("1", &replay(&server, 1).await).await;
    assert_eq!(socket.next().await["type"], "next");
    let logout = "mutation { logout(input: {}) { userErrors { code } } }";
    socket.subscribe("2", logout).await;
    let ended = socket
        .skip_to("the end of the stream", |message| message["id"] == "1")
        .await;
    assert_eq!(ended["type"], "error", "{ended}");
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4403);
    assert!(reason.contains("revoked"), "{reason}");
    let mut again = Socket::open(&server).await;
    let payload = json!({ "authorization": format!("Bearer {token}") });
    again
        .send(json!({ "type": "connection_init", "payload": payload }))
        .await;
    assert_eq!(again.closed().await, (4403, reason));
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn an_idle_connection_ends_when_its_token_expires() {
    let server = TestServer::with(|config| {
        config.subscriptions.keep_alive = Duration::from_millis(50);
    })
    .await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    server.pass(2 * 3600);
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4403);
    assert!(reason.contains("expired"), "{reason}");
}

#[tokio::test]
async fn deactivating_a_user_closes_their_sessions() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let token = server.token("guest@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    socket.subscribe("1", EVENTS).await;
    server.until_subscribers_exceed(0).await;
    let admin = server.token("admin@example.com").await;
    let deactivate = "mutation ($user: ID!) { updateUser(input: { userId: $user, isActive: false }) { user { isActive } } }";
    let user = visitor.with(&token).id().await;
    server
        .with_token(&admin)
        .answer(deactivate, json!({ "user": user }))
        .await;
    // The event about the deactivation may arrive first.
    let ended = socket
        .skip_to("the end of the stream", |message| message["type"] != "next")
        .await;
    assert_eq!(ended["type"], "error", "{ended}");
    assert_eq!(ended["payload"][0]["extensions"]["code"], "UNAUTHENTICATED");
    assert_eq!(socket.closed().await.0, 4403);
}
