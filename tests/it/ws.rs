//! GraphQL over WebSocket: the `graphql-transport-ws` protocol, connection limits, and the end of connections.

pub(crate) mod limit;
mod operation;
mod protocol;
mod stream;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::server::TestServer;

const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "graphql-transport-ws");

/// A subscription to new events, without a cursor to start after.
pub(crate) const EVENTS: &str = "subscription { events { type cursor } }";

/// How long a test waits for an expected message.
const PATIENCE: Duration = Duration::from_secs(20);

/// The client side of a WebSocket.
pub(crate) struct Socket(WebSocketStream<TcpStream>);

/// Opens a WebSocket with these headers.
async fn ask(
    server: &TestServer,
    headers: &[(&'static str, &str)],
) -> Result<(Socket, Response<Option<Vec<u8>>>), Error> {
    let url = server.url("/graphql").replace("http://", "ws://");
    let address = server.url("").replace("http://", "");
    let mut request = url.into_client_request().expect("a request");
    for (name, value) in headers {
        let value = value.parse().expect("a header");
        request
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    let stream = TcpStream::connect(address).await.expect("connects");
    let (stream, response) = client_async(request, stream).await?;
    Ok((Socket(stream), response))
}

impl Socket {
    /// A connection without messages.
    async fn open(server: &TestServer) -> Self {
        Self::open_from(server, "127.0.0.1").await
    }

    /// Like [`Socket::open`], from this address if the server trusts the header.
    async fn open_from(server: &TestServer, address: &str) -> Self {
        let headers = [PROTOCOL, ("x-forwarded-for", address)];
        let (socket, response) = ask(server, &headers).await.expect("a WebSocket");
        assert_eq!(
            response.headers()["sec-websocket-protocol"],
            "graphql-transport-ws"
        );
        socket
    }

    /// A connection that the server has acknowledged.
    pub(crate) async fn greeted(server: &TestServer, token: Option<&str>) -> Self {
        let mut socket = Self::open(server).await;
        socket.greet(token).await;
        socket
    }

    async fn greet(&mut self, token: Option<&str>) {
        let payload = token.map(|token| json!({ "authorization": format!("Bearer {token}") }));
        self.send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        assert_eq!(self.next().await, json!({ "type": "connection_ack" }));
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.say(&message.to_string()).await;
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.raw(Message::text(text)).await;
    }

    async fn raw(&mut self, message: Message) {
        self.0.send(message).await.expect("is sent");
    }

    pub(crate) async fn subscribe(&mut self, id: &str, query: &str) {
        let payload = json!({ "query": query });
        self.send(json!({ "id": id, "type": "subscribe", "payload": payload }))
            .await;
    }

    /// The next message, or the reason with which the server closes the connection.
    pub(crate) async fn frame_or_close(&mut self) -> Result<Value, String> {
        match self.frame().await {
            Some(Ok(Message::Text(text))) => Ok(serde_json::from_str(&text).expect("JSON")),
            Some(Ok(Message::Close(Some(frame)))) => Err(frame.reason.to_string()),
            other => panic!("neither: {other:?}"),
        }
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Value {
        let message = async {
            loop {
                match self.frame().await {
                    Some(Ok(Message::Text(text))) => break text,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("no message: {other:?}"),
                }
            }
        };
        let text = tokio::time::timeout(PATIENCE, message).await;
        serde_json::from_str(&text.expect("a message")).expect("JSON")
    }

    /// The code and the reason with which the server closes the connection, after any other messages.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.frame().await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (frame.code.into(), frame.reason.to_string());
                }
                Some(Ok(_)) => {}
                other => panic!("not closed: {other:?}"),
            }
        }
    }

    async fn frame(&mut self) -> Option<Result<Message, Error>> {
        let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
        next.expect("data arrives in time")
    }

    /// The messages of one operation until its end.
    async fn run(&mut self, id: &str, query: &str) -> Vec<Value> {
        self.subscribe(id, query).await;
        let mut messages = Vec::new();
        loop {
            let message = self.next().await;
            assert_eq!(message["id"], id, "{message}");
            let is_last = message["type"] != "next";
            messages.push(message);
            if is_last {
                return messages;
            }
        }
    }
}

/// Creates this many events that the demo user can read, and returns the cursor of the event before them.
pub(crate) async fn happen(server: &TestServer, times: usize) -> String {
    static NAMES: AtomicUsize = AtomicUsize::new(0);
    let latest = "{ events(first: 1) { nodes { cursor } } }";
    let latest = server.graphql(latest, json!({})).await;
    for _ in 0..times {
        let name = format!("Project {}", NAMES.fetch_add(1, Ordering::Relaxed));
        let create = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }";
        let input = json!({ "name": name, "description": "x".repeat(10_000) });
        let made = server.graphql(create, json!({ "input": input })).await;
        assert!(
            made["data"]["createProject"]["project"].is_object(),
            "{made}"
        );
    }
    let cursor = &latest["data"]["events"]["nodes"][0]["cursor"];
    cursor.as_str().expect("a cursor").to_owned()
}

/// A subscription that starts with this many past events.
pub(crate) async fn replay(server: &TestServer, times: usize) -> String {
    let cursor = happen(server, times).await;
    format!("subscription {{ events(after: \"{cursor}\") {{ type cursor }} }}")
}

/// A subscription that starts with more than any socket buffers: 20 events of almost a megabyte each.
pub(crate) async fn flood(server: &TestServer) -> String {
    let cursor = happen(server, 20).await;
    let field = |n| format!("p{n}: project {{ description }} ");
    let fields: String = (0..90).map(field).collect();
    format!("subscription {{ events(after: \"{cursor}\") {{ {fields} }} }}")
}

/// The value of a metric in `/metrics`.
pub(crate) async fn metric(server: &TestServer, name: &str) -> u64 {
    let text = server.get("/metrics").await.text().await.expect("text");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let number = line.unwrap_or_else(|| panic!("no {name}: {text}"));
    number.parse().expect("a number")
}

/// Polls `/metrics` until a metric has this value.
pub(crate) async fn until_metric_is(server: &TestServer, name: &str, number: u64) {
    let asking = async {
        while metric(server, name).await != number {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, asking).await.is_err() {
        let is = metric(server, name).await;
        panic!("{name} is {is} and never was {number}");
    }
}

/// Asserts that no connection and no stream is left.
async fn assert_nothing_is_left(server: &TestServer) {
    until_metric_is(server, "gathering_websocket_connections", 0).await;
    until_metric_is(server, r#"gathering_streams{transport="websocket"}"#, 0).await;
}
