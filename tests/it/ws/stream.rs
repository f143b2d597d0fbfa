//! Subscriptions over WebSocket: from their first event to whatever ends them.

use gathering::config::Mode;
use serde_json::json;

use super::{ENDLESS, Socket, assert_nothing_is_left, until_metric_is};
use crate::server::TestServer;

const STREAMS: &str = r#"gathering_streams{transport="websocket"}"#;

#[tokio::test]
async fn a_subscription_sends_what_happens_until_it_is_completed() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    socket.subscribe("1", ENDLESS).await;
    for _ in 0..3 {
        let message = socket.next().await;
        assert_eq!(
            (&message["id"], &message["type"]),
            (&json!("1"), &json!("next"))
        );
        assert!(message["payload"]["data"].is_object(), "{message}");
    }
    socket.send(json!({ "id": "1", "type": "complete" })).await;
    until_metric_is(&server, STREAMS, 0).await;
    // What was under way may still come, and then nothing: the end that the client made is not echoed.
    socket.send(json!({ "type": "ping" })).await;
    loop {
        let message = socket.next().await;
        if message["type"] == "pong" {
            break;
        }
        assert_eq!(message["type"], "next");
    }
    // One that never was ends without a word too.
    socket.send(json!({ "id": "2", "type": "complete" })).await;
    assert_eq!(socket.run("1", "{ __typename }").await.len(), 2);
}

#[tokio::test]
async fn operations_run_side_by_side() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    socket.subscribe("a", ENDLESS).await;
    socket.subscribe("b", ENDLESS).await;
    let mut seen = [0, 0];
    while seen.iter().any(|n| *n < 3) {
        let message = socket.next().await;
        seen[usize::from(message["id"] == "b")] += 1;
    }
    drop(socket);
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn the_start_of_a_subscription_costs_a_read() {
    let server = TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        config.limits.read = 2;
    })
    .await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    for id in ["1", "2"] {
        socket.subscribe(id, ENDLESS).await;
    }
    socket.subscribe("3", ENDLESS).await;
    let refused = loop {
        let message = socket.next().await;
        if message["id"] == "3" {
            break message;
        }
    };
    assert_eq!(refused["type"], "error");
    let error = &refused["payload"][0]["extensions"];
    assert_eq!(
        (&error["code"], &error["tier"]),
        (&json!("RATE_LIMITED"), &json!("READ"))
    );
    assert_eq!(socket.next().await["type"], "next");
}

#[tokio::test]
async fn a_token_that_comes_to_its_end_ends_its_streams_and_the_connection() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    socket.subscribe("1", ENDLESS).await;
    socket.subscribe("2", ENDLESS).await;
    assert_eq!(socket.next().await["type"], "next");
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
