//! Limits of WebSocket connections: operations, connections, unread data, and cleanup.

use std::time::Duration;

use gathering::config::{Config, Networks};
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::assert_nothing_is_left;
use crate::support::events::{EVENTS, PROTOCOL, Socket, connect, flood, replay};
use crate::support::server::TestServer;
use crate::support::wait::within;

const STREAMS: &str = r#"gathering_streams{transport="websocket"}"#;

/// A server that trusts the client address in the headers of the tests.
async fn serve(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        let local = "127.0.0.0/8".parse().expect("a network");
        config.server.trusted_proxies = Networks(vec![local]);
        change(config);
    })
    .await
}

#[tokio::test]
async fn ten_thousand_operations_leave_no_stream_behind() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let (mut sink, mut stream) = futures_util::StreamExt::split(socket.0);
    let flood = async {
        for n in 0..10_000 {
            let message =
                json!({ "id": n.to_string(), "type": "subscribe", "payload": { "query": EVENTS } });
            let message = tokio_tungstenite::tungstenite::Message::text(message.to_string());
            futures_util::SinkExt::send(&mut sink, message)
                .await
                .expect("is sent");
        }
    };
    let answers = async {
        let mut refused = 0;
        while refused < 9_980 {
            let message = futures_util::StreamExt::next(&mut stream).await;
            let message = message.expect("a message").expect("a message");
            let text = message.to_text().expect("text");
            refused += usize::from(text.contains(r#""type":"error""#));
            if text.contains(r#""type":"error""#) {
                assert!(
                    text.contains("At most 20 concurrent operations per connection."),
                    "{text}"
                );
                assert!(text.contains("BAD_USER_INPUT"), "{text}");
            }
        }
    };
    within("the answers to ten thousand operations", async {
        tokio::join!(flood, answers)
    })
    .await;
    assert_eq!(server.metric(STREAMS).await, 20);
    socket = Socket(sink.reunite(stream).expect("the same"));
    // A completed operation frees its place.
    socket.send(json!({ "id": "0", "type": "complete" })).await;
    socket.subscribe("more", "{ __typename }").await;
    socket
        .skip_to("an answer", |message| message["id"] == "more")
        .await;
    drop(socket);
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn the_connections_of_each_client_are_limited() {
    let server = serve(|config| config.subscriptions.connections_per_client = 2).await;
    let here = "2001:db8:1:2::1";
    let held = [
        Socket::open_from(&server, here).await,
        Socket::open_from(&server, "2001:db8:1:2::2").await,
    ];
    let mut third = Socket::open_from(&server, here).await;
    let reason = "Connection limit reached: 2 connections from your address.";
    assert_eq!(third.closed().await, (1013, reason.to_owned()));
    let mut other = Socket::open_from(&server, "2001:db8:1:3::1").await;
    other.init(None).await;
    drop(held);
    server
        .until_metric_is("gathering_websocket_connections", 1)
        .await;
    Socket::open_from(&server, here).await.init(None).await;
}

#[tokio::test]
async fn the_connections_of_the_server_are_limited() {
    let server = serve(|config| config.subscriptions.connections = 2).await;
    let held = [
        Socket::open_from(&server, "192.0.2.1").await,
        Socket::open_from(&server, "192.0.2.2").await,
    ];
    let mut third = Socket::open_from(&server, "192.0.2.3").await;
    let reason = "Connection limit of the server reached.";
    assert_eq!(third.closed().await, (1013, reason.to_owned()));
    // HTTP requests are still served.
    let answer = server.anonymous().answer("{ __typename }", json!({})).await;
    assert_eq!(answer["data"]["__typename"], "Query");
    drop(held);
    assert_nothing_is_left(&server).await;
    Socket::open_from(&server, "192.0.2.3")
        .await
        .init(None)
        .await;
}

#[tokio::test]
async fn connections_broken_at_any_stage_leave_no_stream_behind() {
    let server = serve(|_| ()).await;
    let token = server.token("demo@example.com").await;
    let address = server.url("").replace("http://", "");
    let handshake = format!(
        "GET /graphql HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
    );
    let init = json!({ "type": "connection_init", "payload": { "authorization": format!("Bearer {token}") } });
    let query = replay(&server, 1).await;
    let subscribe = json!({ "id": "1", "type": "subscribe", "payload": { "query": query } });
    for round in 0..30 {
        for stage in 0..8 {
            let mut stream = TcpStream::connect(&address).await.expect("connects");
            if round % 2 == 1 {
                // The connection is reset instead of closed.
                socket2::SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .expect("a linger");
            }
            let part = match stage {
                0 => "",
                1 => &handshake[..60],
                _ => &handshake,
            };
            stream.write_all(part.as_bytes()).await.expect("writes");
            if stage <= 2 {
                continue;
            }
            let mut head = [0; 12];
            let read = stream.read_exact(&mut head);
            within("an answer", read).await.expect("an answer");
            assert_eq!(&head, b"HTTP/1.1 101");
            if stage == 3 {
                continue;
            }
            drop(stream);
            let mut socket = Socket::open_from(&server, &format!("192.0.2.{round}")).await;
            if stage >= 5 {
                socket.send(init.clone()).await;
            }
            if stage >= 6 {
                assert_eq!(socket.next().await["type"], "connection_ack");
                socket.send(subscribe.clone()).await;
            }
            if stage >= 7 {
                assert_eq!(socket.next().await["type"], "next");
            }
        }
    }
    assert_nothing_is_left(&server).await;
}

/// A connection of the demo user with a small receive buffer.
async fn narrow(server: &TestServer) -> Socket {
    let token = server.token("demo@example.com").await;
    Socket::narrow(server, &token).await
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = serve(|config| config.server.write_timeout = Duration::from_millis(300)).await;
    let mut slow = narrow(&server).await;
    let token = server.token("demo@example.com").await;
    let mut other = Socket::greeted(&server, Some(&token)).await;
    slow.subscribe("1", &flood(&server).await).await;
    let cut = r#"gathering_websocket_closes_total{code="1013"}"#;
    server.until_metric_is(cut, 1).await;
    server
        .until_metric_is("gathering_websocket_connections", 1)
        .await;
    assert_eq!(server.metric(STREAMS).await, 0);
    assert_eq!(other.run("1", "{ __typename }").await.len(), 2);
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_block_others() {
    let server = serve(|config| config.server.write_timeout = Duration::from_mins(10)).await;
    let flood = flood(&server).await;
    let mut slow = narrow(&server).await;
    // The slow client's operations are in progress when its socket is full.
    for n in 0..8 {
        slow.subscribe(&format!("read {n}"), &flood).await;
        let change = "mutation { updateProfile(input: { name: \"Slow\" }) { user { name } } }";
        let payload =
            json!({ "query": change, "extensions": { "idempotencyKey": format!("key-{n}") } });
        slow.send(json!({ "id": format!("write {n}"), "type": "subscribe", "payload": payload }))
            .await;
    }
    for _ in 0..3 {
        let token = server.token("demo@example.com").await;
        let mut other = Socket::greeted(&server, Some(&token)).await;
        other.subscribe("1", &replay(&server, 1).await).await;
        assert_eq!(other.next().await["type"], "next");
    }
}

#[tokio::test]
async fn a_change_of_a_client_that_does_not_read_does_not_delay_the_changes_of_others() {
    let server = serve(|config| config.server.write_timeout = Duration::from_mins(10)).await;
    let token = server.token("demo@example.com").await;
    let flood = flood(&server).await;
    let actor = server.with_token(&token);
    let circles = actor.ask("{ circles(first: 1) { nodes { id } } }", json!({}));
    let circle = circles.await["circles"]["nodes"][0]["id"].clone();
    let create =
        "mutation ($input: CreateTaskInput!) { createTask(input: $input) { task { id } } }";
    let variables = json!({ "input": { "circleId": circle, "title": "A task" } });
    let payload = json!({ "query": create, "variables": &variables });
    let mut slow = narrow(&server).await;

    let db = server.database().connect().await;
    let other = db.begin().await.expect("begins");
    other
        .execute_unprepared("UPDATE circles SET version = version")
        .await
        .expect("updates");
    slow.send(json!({ "id": "write", "type": "subscribe", "payload": payload }))
        .await;
    // The change waits for the other one, and then the socket is full.
    server.until_metric_is(STREAMS, 1).await;
    server.settled().await;
    slow.subscribe("read", &flood).await;
    server.until_metric_is(STREAMS, 2).await;
    server.settled().await;
    other.rollback().await.expect("rolls back");

    let created = within("the change of another client", actor.ask(create, variables)).await;
    assert!(created["createTask"]["task"]["id"].is_string(), "{created}");
}

#[tokio::test]
async fn a_broken_connection_is_counted_as_lost() {
    let server = serve(|_| ()).await;
    let mut socket = Socket::greeted(&server, None).await;
    socket.0.get_mut().shutdown().await.expect("ends");
    drop(socket);
    server
        .until_metric_is(r#"gathering_websocket_closes_total{code="lost"}"#, 1)
        .await;
}

#[tokio::test]
async fn only_a_client_that_does_not_answer_pings_is_disconnected() {
    let server = serve(|config| {
        config.subscriptions.keep_alive = Duration::from_millis(200);
    })
    .await;
    // This client never reads, so it does not answer pings.
    let (silent, _) = connect(&server, &[PROTOCOL]).await.expect("a WebSocket");
    let mut there = Socket::greeted(&server, None).await;
    let lost = r#"gathering_websocket_closes_total{code="lost"}"#;
    let reading = async {
        loop {
            let frame = there.frame().await.expect("a frame").expect("a frame");
            assert!(frame.is_ping(), "{frame}");
        }
    };
    tokio::select! {
        () = server.until_metric_is(lost, 1) => {}
        () = reading => {}
    }
    drop(silent);
    assert_eq!(server.metric("gathering_websocket_connections").await, 1);
    assert_eq!(there.run("1", "{ __typename }").await.len(), 2);
}

#[tokio::test]
async fn a_stopping_server_closes_with_1012_and_completes_no_subscription() {
    let server = serve(|_| ()).await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let mut idle = Socket::open(&server).await;
    socket.subscribe("1", &replay(&server, 1).await).await;
    assert_eq!(socket.next().await["type"], "next");
    let listening = async {
        loop {
            match socket.frame().await {
                Some(Ok(message)) if message.is_text() => {
                    let message: serde_json::Value =
                        serde_json::from_str(message.to_text().expect("text")).expect("JSON");
                    assert_eq!(message["type"], "next", "{message}");
                }
                Some(Ok(tokio_tungstenite::tungstenite::Message::Close(Some(frame)))) => {
                    break frame;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let reason = "The server is restarting. Please reconnect.";
    let stopping = server.shut_down(Duration::ZERO);
    let ended = async { tokio::join!(listening, idle.closed(), stopping) };
    let (frame, closed, ()) = within("the end of the server", Box::pin(ended)).await;
    assert_eq!(u16::from(frame.code), 1012);
    assert_eq!(frame.reason.as_str(), reason);
    assert_eq!(closed, (1012, reason.to_owned()));
}
