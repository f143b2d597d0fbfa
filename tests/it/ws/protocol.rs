//! The messages of the protocol, and the close codes for violations.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::assert_nothing_is_left;
use crate::support::events::{EVENTS, PROTOCOL, Socket, connect};
use crate::support::server::TestServer;
use crate::support::wait::within;

/// One frame of a fragmented message.
fn piece(text: &str, kind: Data, is_last: bool) -> Message {
    let frame = Frame::message(text.to_owned(), OpCode::Data(kind), is_last);
    Message::Frame(frame)
}

#[tokio::test]
async fn an_invalid_message_closes_with_4400_and_a_plain_reason() {
    let server = TestServer::start().await;
    let long = "x".repeat(101);
    let messages = [
        String::new(),
        "nonsense".to_owned(),
        "{".to_owned(),
        "[]".to_owned(),
        "\"connection_init\"".to_owned(),
        "null".to_owned(),
        "{}".to_owned(),
        r#"{"type": 1}"#.to_owned(),
        r#"{"type": "start"}"#.to_owned(),
        r#"{"type": "connection_ack"}"#.to_owned(),
        r#"{"type": "next", "id": "1", "payload": {}}"#.to_owned(),
        r#"{"type": "connection_init", "payload": "token"}"#.to_owned(),
        r#"{"type": "connection_init", "payload": []}"#.to_owned(),
        r#"{"type": "ping", "payload": 1}"#.to_owned(),
        r#"{"type": "pong", "payload": []}"#.to_owned(),
        r#"{"type": "complete"}"#.to_owned(),
        r#"{"type": "complete", "id": 1}"#.to_owned(),
        r#"{"type": "subscribe", "payload": {"query": "{ __typename }"}}"#.to_owned(),
        r#"{"type": "subscribe", "id": "", "payload": {"query": "{ __typename }"}}"#.to_owned(),
        r#"{"type": "subscribe", "id": 7, "payload": {"query": "{ __typename }"}}"#.to_owned(),
        r#"{"type": "subscribe", "id": "1"}"#.to_owned(),
        r#"{"type": "subscribe", "id": "1", "payload": "{ __typename }"}"#.to_owned(),
        format!(r#"{{"type": "subscribe", "id": "{long}", "payload": {{"query": "{{ a }}"}}}}"#),
        "[".repeat(10_000),
    ];
    for message in messages {
        let mut socket = Socket::open(&server).await;
        socket.send_text(&message).await;
        let (code, reason) = socket.closed().await;
        assert_eq!(code, 4400, "{message}: {reason}");
        assert!(reason.len() <= 123, "{reason}");
        for engine in ["serde", "expected", "line", "column", "EOF", "invalid"] {
            assert!(!reason.contains(engine), "{reason}");
        }
    }
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn operation_parameters_are_validated_as_over_http() {
    let server = TestServer::start().await;
    for (payload, reason) in [
        (json!({}), "`payload.query` is missing."),
        (json!({ "query": 1 }), "`payload.query` must be a string."),
        (
            json!({ "query": "{ __typename }", "variables": [] }),
            "`payload.variables` must be an object.",
        ),
        (
            json!({ "query": "{ __typename }", "operationName": 1 }),
            "`payload.operationName` must be a string.",
        ),
        (
            json!({ "query": "{ __typename }", "extensions": 1 }),
            "`payload.extensions` must be an object.",
        ),
    ] {
        let mut socket = Socket::greeted(&server, None).await;
        let message = json!({ "id": "1", "type": "subscribe", "payload": payload });
        socket.send(message).await;
        assert_eq!(socket.closed().await, (4400, reason.to_owned()));
    }
}

#[tokio::test]
async fn a_binary_message_closes_with_4400() {
    let server = TestServer::start().await;
    let mut socket = Socket::open(&server).await;
    let init = r#"{"type": "connection_init"}"#;
    socket.raw(Message::binary(init.as_bytes().to_vec())).await;
    assert_eq!(socket.closed().await.0, 4400);
}

#[tokio::test]
async fn a_fragmented_message_is_reassembled() {
    let server = TestServer::start().await;
    let mut socket = Socket::open(&server).await;
    socket
        .raw(piece(r#"{"type": "conn"#, Data::Text, false))
        .await;
    socket.raw(Message::Ping("in between".into())).await;
    socket.raw(piece("ection_", Data::Continue, false)).await;
    socket.raw(piece(r#"init"}"#, Data::Continue, true)).await;
    assert_eq!(socket.next().await, json!({ "type": "connection_ack" }));
}

#[tokio::test]
async fn a_message_that_is_too_long_closes_with_1009() {
    let server = TestServer::with(|config| config.subscriptions.message_bytes = 2_000).await;
    let message = |length: usize| {
        let text = r#"{"type": "ping", "payload": {"a": ""}}"#;
        text.replace(r#""""#, &format!("\"{}\"", "x".repeat(length - text.len())))
    };

    let mut socket = Socket::open(&server).await;
    socket.send_text(&message(2_000)).await;
    assert_eq!(socket.next().await["type"], "pong");
    socket.send_text(&message(2_001)).await;
    let expected = (
        1009,
        "A message must not be longer than 2000 bytes.".to_owned(),
    );
    assert_eq!(socket.closed().await, expected);

    let mut socket = Socket::open(&server).await;
    let half = "x".repeat(1_500);
    socket.raw(piece(&half, Data::Text, false)).await;
    socket.raw(piece(&half, Data::Continue, false)).await;
    assert_eq!(socket.closed().await, expected);
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn invalid_utf8_closes_with_1007() {
    let server = TestServer::start().await;
    let mut socket = Socket::open(&server).await;
    let frame = Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true);
    socket.raw(Message::Frame(frame)).await;
    assert_eq!(socket.closed().await.0, 1007);
}

#[tokio::test]
async fn an_operation_before_connection_init_closes_with_4401() {
    let server = TestServer::start().await;
    let mut socket = Socket::open(&server).await;
    socket.subscribe("1", "{ __typename }").await;
    assert_eq!(socket.closed().await, (4401, "Unauthorized".to_owned()));
}

#[tokio::test]
async fn a_second_connection_init_closes_with_4429() {
    let server = TestServer::start().await;
    let mut socket = Socket::greeted(&server, None).await;
    socket.send(json!({ "type": "connection_init" })).await;
    let expected = (4429, "Too many initialisation requests".to_owned());
    assert_eq!(socket.closed().await, expected);
}

#[tokio::test]
async fn a_missing_connection_init_closes_with_4408() {
    let server = TestServer::with(|config| {
        config.subscriptions.init_timeout = Duration::from_millis(20);
    })
    .await;
    let mut socket = Socket::open(&server).await;
    let expected = (4408, "Connection initialisation timeout".to_owned());
    assert_eq!(socket.closed().await, expected);

    // A connection after `connection_init` has no such deadline.
    let server = TestServer::with(|config| {
        config.subscriptions.init_timeout = Duration::from_secs(2);
    })
    .await;
    let mut late = Socket::open(&server).await;
    let mut greeted = Socket::greeted(&server, None).await;
    assert_eq!(late.closed().await.0, 4408);
    greeted.send(json!({ "type": "ping" })).await;
    assert_eq!(greeted.next().await, json!({ "type": "pong" }));
}

#[tokio::test]
async fn an_invalid_token_closes_with_4403() {
    let server = TestServer::start().await;
    for (payload, reason) in [
        (
            json!({ "authorization": "Bearer nonsense" }),
            "The access token is not valid. Sign in to get one.",
        ),
        (
            json!({ "authorization": "Basic dXNlcg==" }),
            "Authorization must be `Bearer` followed by an access token or an API key.",
        ),
        (
            json!({ "Authorization": 7 }),
            "Authorization must be `Bearer` followed by an access token or an API key.",
        ),
        (
            json!({ "authorization": "Bearer a", "Authorization": "Bearer b" }),
            "Authorization must be `Bearer` followed by an access token or an API key.",
        ),
    ] {
        let mut socket = Socket::open(&server).await;
        socket
            .send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        assert_eq!(socket.closed().await, (4403, reason.to_owned()));
    }
}

#[tokio::test]
async fn an_unsupported_subprotocol_closes_with_4406() {
    let server = TestServer::start().await;
    let (mut socket, response) = connect(&server, &[]).await.expect("a WebSocket");
    assert!(!response.headers().contains_key("sec-websocket-protocol"));
    let expected = (4406, "Subprotocol not acceptable".to_owned());
    assert_eq!(socket.closed().await, expected);

    // A client that requested a subprotocol and gets none may close the connection itself.
    let other = connect(&server, &[("sec-websocket-protocol", "graphql-ws")]).await;
    if let Ok((mut socket, _)) = other {
        assert_eq!(socket.closed().await, expected);
    }
    server
        .until_metric_is(r#"gathering_websocket_closes_total{code="4406"}"#, 2)
        .await;

    let several = [("sec-websocket-protocol", "graphql-ws, graphql-transport-ws")];
    let (_, response) = connect(&server, &several).await.expect("a WebSocket");
    assert_eq!(response.headers()[PROTOCOL.0], PROTOCOL.1);
}

#[tokio::test]
async fn an_id_in_use_closes_with_4409() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    socket.subscribe("mine", EVENTS).await;
    socket.subscribe("mine", EVENTS).await;
    let expected = (4409, "Subscriber for mine already exists".to_owned());
    assert_eq!(socket.closed().await, expected);

    // The longest id makes a reason that is too long, which is cut between two characters.
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let id = "ß".repeat(100);
    socket.subscribe(&id, EVENTS).await;
    socket.subscribe(&id, EVENTS).await;
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4409);
    assert_eq!(reason, format!("Subscriber for {}", "ß".repeat(54)));
    assert_nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let server = TestServer::start().await;
    // Also before `connection_init`.
    let mut socket = Socket::open(&server).await;
    socket.send(json!({ "type": "ping" })).await;
    assert_eq!(socket.next().await, json!({ "type": "pong" }));
    let payload = json!({ "at": 1, "nested": { "list": [null, "ü"] } });
    socket
        .send(json!({ "type": "ping", "payload": payload }))
        .await;
    let expected = json!({ "type": "pong", "payload": payload });
    assert_eq!(socket.next().await, expected);
    socket.send(json!({ "type": "pong" })).await;
    socket.send(json!({ "type": "pong", "payload": {} })).await;
    socket
        .send(json!({ "type": "ping", "payload": null }))
        .await;
    let expected = json!({ "type": "pong", "payload": null });
    assert_eq!(socket.next().await, expected);
}

#[tokio::test]
async fn a_websocket_ping_frame_is_answered() {
    let server = TestServer::start().await;
    let mut socket = Socket::open(&server).await;
    socket.raw(Message::Ping("there?".into())).await;
    let answer = socket.frame().await.expect("a frame").expect("a frame");
    assert_eq!(answer, Message::Pong("there?".into()));
}

#[tokio::test]
async fn a_connection_closed_by_the_client_is_released() {
    let server = TestServer::start().await;
    let mut socket = Socket::greeted(&server, None).await;
    assert_eq!(server.metric("gathering_websocket_connections").await, 1);
    socket.0.close(None).await.expect("closes");
    let left = async { while let Some(Ok(_)) = socket.frame().await {} };
    within("the end of the connection", left).await;
    assert_nothing_is_left(&server).await;
    server
        .until_metric_is(r#"gathering_websocket_closes_total{code="client"}"#, 1)
        .await;
}

#[tokio::test]
async fn a_websocket_handshake_needs_its_headers() {
    let server = TestServer::start().await;
    let status = async |headers: &[(&'static str, &str)]| match connect(&server, headers).await {
        Ok(_) => StatusCode::SWITCHING_PROTOCOLS,
        Err(Error::Http(response)) => response.status(),
        Err(error) => panic!("{error}"),
    };
    let upgraded = StatusCode::SWITCHING_PROTOCOLS;
    assert_eq!(status(&[PROTOCOL]).await, upgraded);
    assert_eq!(
        status(&[PROTOCOL, ("sec-websocket-version", "12")]).await,
        StatusCode::UPGRADE_REQUIRED
    );
    assert_eq!(
        status(&[PROTOCOL, ("sec-websocket-key", "short")]).await,
        StatusCode::BAD_REQUEST
    );
    // Without these headers it is a GET request without a query.
    assert_eq!(
        status(&[PROTOCOL, ("upgrade", "h2c")]).await,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn cross_site_websockets_need_an_allowed_origin() {
    let server = TestServer::with(|config| {
        config.server.cors_origins.0 = vec!["https://app.example.com".to_owned()];
    })
    .await;
    let opens = async |server: &TestServer, headers: &[(&'static str, &str)]| {
        let headers = [&[PROTOCOL], headers].concat();
        match connect(server, &headers).await {
            Ok(_) => true,
            Err(Error::Http(response)) => {
                assert_eq!(response.status(), StatusCode::FORBIDDEN);
                false
            }
            Err(error) => panic!("{error}"),
        }
    };
    let own = server.url("");
    assert!(opens(&server, &[]).await);
    assert!(opens(&server, &[("origin", &own)]).await);
    assert!(opens(&server, &[("origin", "https://app.example.com")]).await);
    assert!(!opens(&server, &[("origin", "https://evil.example.com")]).await);
    assert!(!opens(&server, &[("origin", "null")]).await);
    let site = ("sec-fetch-site", "cross-site");
    assert!(!opens(&server, &[site, ("origin", &own)]).await);

    let open = TestServer::with(|config| config.server.cors_origins.0 = vec!["*".to_owned()]).await;
    assert!(opens(&open, &[("origin", "https://evil.example.com")]).await);
}

#[tokio::test]
async fn the_demo_server_refuses_websockets_for_foreign_host_names() {
    let server = TestServer::demo().await;
    let headers = [PROTOCOL, ("host", "evil.example.com")];
    let Err(Error::Http(response)) = connect(&server, &headers).await else {
        panic!("the handshake was not refused");
    };
    assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
    assert!(connect(&server, &[PROTOCOL]).await.is_ok());
}
