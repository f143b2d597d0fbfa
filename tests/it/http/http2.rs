//! HTTP/2 in clear text with prior knowledge, as proxies speak it.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt, join};
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::{Client, Version};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::support::actor::client_builder;
use crate::support::events::{EVENTS, PROTOCOL, happen};

/// A client with one HTTP/2 connection.
fn client() -> Client {
    let client = client_builder().http2_prior_knowledge();
    client.build().expect("a client")
}

/// A signed-in client with one HTTP/2 connection.
struct Caller {
    client: Client,
    url: String,
    token: String,
}

impl Caller {
    async fn new(server: &TestServer) -> Self {
        Self {
            client: client(),
            url: server.url("/graphql"),
            token: server.token("demo@example.com").await,
        }
    }

    async fn send(&self, accept: &str, query: &str) -> Response {
        let request = self.client.post(&self.url).bearer_auth(&self.token);
        let request = request.header(ACCEPT, accept);
        let response = request.json(&json!({ "query": query })).send().await;
        let response = response.expect("an answer");
        assert_eq!(response.version(), Version::HTTP_2);
        response
    }
}

/// Reads the stream until it contains this text; `None` if it ends before.
async fn read_until(response: &mut Response, text: &str) -> Option<String> {
    let mut read = String::new();
    while !read.contains(text) {
        let chunk = within(text, response.chunk()).await.expect("is readable")?;
        read.push_str(&String::from_utf8_lossy(&chunk));
    }
    Some(read)
}

#[tokio::test]
async fn concurrent_requests_share_a_connection() {
    let server = TestServer::with(|config| config.server.max_connections = 2).await;
    let caller = Caller::new(&server).await;
    let requests = (0..200).map(async |number| {
        let query = format!("{{ answer_{number}: __typename }}");
        let response = caller.send(RESPONSE, &query).await;
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["data"][format!("answer_{number}")], "Query");
    });
    within("the answers", join_all(requests)).await;
}

#[tokio::test]
async fn the_demo_server_refuses_foreign_host_names_over_http2() {
    let server = TestServer::demo().await;
    let client = client_builder()
        .http2_prior_knowledge()
        .resolve("evil.example.com", server.address());
    let client = client.build().expect("a client");
    for (host, status) in [
        ("127.0.0.1", StatusCode::OK),
        ("evil.example.com", StatusCode::MISDIRECTED_REQUEST),
    ] {
        let url = format!("http://{host}:{}/graphql", server.address().port());
        let request = client.post(url).header(CONTENT_TYPE, JSON).body(TYPENAME);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), status, "{host}");
    }
}

#[tokio::test]
async fn a_stream_over_http2_delivers_events_until_its_session_ends() {
    let server = TestServer::start().await;
    let caller = Caller::new(&server).await;
    let mut events = caller.send("text/event-stream", EVENTS).await;
    let first = happen(&server, 1).await;
    let read = read_until(&mut events, "event: next").await;
    assert!(
        read.is_some_and(|text| text.contains("\"type\"")),
        "{first}"
    );

    let logout = "mutation { logout(input: {}) { revokedTokens } }";
    let answer: Value = (caller.send(RESPONSE, logout).await.json().await).expect("JSON");
    assert!(answer["data"]["logout"].is_object(), "{answer}");
    let last = read_until(&mut events, "UNAUTHENTICATED").await;
    let last = last.expect("the reason of the end");
    assert!(!last.contains("\"data\":{"), "{last}");
    assert!(read_until(&mut events, "more").await.is_none());
}

#[tokio::test]
async fn a_restart_ends_streams_over_http2_and_completes_requests() {
    let server = TestServer::start().await;
    let caller = Caller::new(&server).await;
    let mut events = caller.send("text/event-stream", EVENTS).await;
    within("the shutdown", server.shut_down(Duration::ZERO)).await;
    let mut text = String::new();
    while let Some(chunk) = within("the end", events.chunk()).await.expect("no reset") {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(!text.contains("complete"), "{text}");
}

#[tokio::test]
async fn the_header_of_a_request_over_http2_is_limited() {
    let server = TestServer::start().await;
    let request = client().get(server.url("/health/live"));
    let response = request.header("x-large", "x".repeat(70_000)).send().await;
    // The client may see the end of the stream before the response.
    if let Ok(response) = response {
        assert_eq!(response.status(), 431);
    }
    let small = client().get(server.url("/health/live")).send().await;
    assert_eq!(small.expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_connection_that_begins_like_the_preface_is_served_or_closed() {
    let server = TestServer::with(|config| {
        config.server.header_timeout = Duration::from_millis(300);
    })
    .await;
    let answer = async |pieces: &[&str]| {
        let stream = TcpStream::connect(server.address()).await;
        let mut stream = stream.expect("connects");
        stream.set_nodelay(true).expect("is set");
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.expect("is sent");
        }
        let mut answer = String::new();
        let read = within("the end", stream.read_to_string(&mut answer)).await;
        read.map(|_| answer).unwrap_or_default()
    };
    let rest =
        " /graphql HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    for method in ["PUT", "PATCH", "PROPFIND"] {
        let letters: Vec<_> = method.split_inclusive(|_: char| true).collect();
        let pieces = [letters, vec![rest]].concat();
        let answer = answer(&pieces).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
    }
    for incomplete in ["", "P", "PR", "PRI", "PRI * HTTP/2.0\r\n\r\nSM"] {
        let answer = answer(&[incomplete]).await;
        assert!(!answer.contains("200"), "{incomplete}: {answer}");
    }
}

/// A WebSocket on a stream of a new HTTP/2 connection.
async fn websocket(server: &TestServer, headers: &[(&str, &str)]) -> Result<WebSocket, StatusCode> {
    let stream = TcpStream::connect(server.address())
        .await
        .expect("connects");
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    let mut request = hyper::Request::connect(server.url("/graphql"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(String::new()).expect("a request");
    request
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    // The settings of the server, which allow this, arrive with its first answer.
    let live = hyper::Request::get(server.url("/health/live"));
    let live = sender.send_request(live.body(String::new()).expect("a request"));
    assert_eq!(live.await.expect("an answer").status(), StatusCode::OK);
    let response = sender.send_request(request).await.expect("an answer");
    if response.status() != StatusCode::OK {
        return Err(response.status());
    }
    assert_eq!(response.headers()[PROTOCOL.0], PROTOCOL.1);
    let upgraded = hyper::upgrade::on(response).await.expect("is opened");
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
}

type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// The next message of the WebSocket: its JSON, or its close code.
async fn next(socket: &mut WebSocket) -> Result<Value, u16> {
    loop {
        match within("a message", socket.next()).await.expect("a message") {
            Ok(Message::Text(text)) => return Ok(serde_json::from_str(&text).expect("JSON")),
            Ok(Message::Close(frame)) => return Err(frame.expect("a code").code.into()),
            other => assert!(matches!(other, Ok(Message::Ping(_))), "{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_websocket_on_a_stream_of_http2_works_until_the_server_restarts() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let version = ("sec-websocket-version", "13");
    let mut socket = websocket(&server, &[version, PROTOCOL])
        .await
        .expect("is opened");
    for message in [
        json!({ "type": "connection_init", "payload": { "authorization": format!("Bearer {token}") } }),
        json!({ "type": "subscribe", "id": "1", "payload": { "query": EVENTS } }),
    ] {
        let sent = socket.send(Message::text(message.to_string())).await;
        sent.expect("is sent");
    }
    assert_eq!(
        next(&mut socket).await.expect("JSON")["type"],
        "connection_ack"
    );
    server.until_subscribers_exceed(0).await;
    happen(&server, 1).await;
    let event = next(&mut socket).await.expect("an event");
    assert!(
        event["payload"]["data"]["events"]["type"].is_string(),
        "{event}"
    );
    let (code, ()) = join!(next(&mut socket), server.shut_down(Duration::ZERO));
    assert_eq!(code, Err(1012));
}

#[tokio::test]
async fn a_websocket_on_a_stream_of_http2_is_refused_like_an_upgrade() {
    let server = TestServer::start().await;
    let version = ("sec-websocket-version", "13");
    let foreign = ("origin", "https://evil.example.com");
    for (headers, status) in [
        (&[PROTOCOL][..], StatusCode::UPGRADE_REQUIRED),
        (&[version, PROTOCOL, foreign], StatusCode::FORBIDDEN),
    ] {
        assert_eq!(websocket(&server, headers).await.err(), Some(status));
    }
}
