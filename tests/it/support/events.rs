//! Subscribers over `WebSocket` and by Server-Sent Events.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use reqwest::Response as Body;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::server::TestServer;
use super::wait::within;

pub(crate) const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "graphql-transport-ws");

/// A subscription to new events, without a cursor to start after.
pub(crate) const EVENTS: &str = "subscription { events { type cursor } }";

/// The client side of a WebSocket.
pub(crate) struct Socket(pub(crate) WebSocketStream<TcpStream>);

/// Opens a WebSocket with these headers.
pub(crate) async fn connect(
    server: &TestServer,
    headers: &[(&'static str, &str)],
) -> Result<(Socket, Response<Option<Vec<u8>>>), Error> {
    let stream = TcpStream::connect(server.address()).await;
    upgrade(server, stream.expect("connects"), headers).await
}

async fn upgrade(
    server: &TestServer,
    stream: TcpStream,
    headers: &[(&'static str, &str)],
) -> Result<(Socket, Response<Option<Vec<u8>>>), Error> {
    let url = server.url("/graphql").replace("http://", "ws://");
    let mut request = url.into_client_request().expect("a request");
    for (name, value) in headers {
        let value = value.parse().expect("a header");
        request
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    let (stream, response) = client_async(request, stream).await?;
    Ok((Socket(stream), response))
}

impl Socket {
    /// A connection without messages.
    pub(crate) async fn open(server: &TestServer) -> Self {
        Self::open_from(server, "127.0.0.1").await
    }

    /// Like [`Socket::open`], from this address if the server trusts the header.
    pub(crate) async fn open_from(server: &TestServer, address: &str) -> Self {
        let headers = [PROTOCOL, ("x-forwarded-for", address)];
        let (socket, response) = connect(server, &headers).await.expect("a WebSocket");
        assert_eq!(
            response.headers()["sec-websocket-protocol"],
            "graphql-transport-ws"
        );
        socket
    }

    /// A connection that the server has acknowledged.
    pub(crate) async fn greeted(server: &TestServer, token: Option<&str>) -> Self {
        let mut socket = Self::open(server).await;
        socket.init(token).await;
        socket
    }

    /// A connection of the user who has this token, into which little fits unread.
    pub(crate) async fn narrow(server: &TestServer, token: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 << 10).expect("a size");
        let stream = socket.connect(server.address()).await.expect("connects");
        let (mut socket, _) = upgrade(server, stream, &[PROTOCOL])
            .await
            .expect("a WebSocket");
        socket.init(Some(token)).await;
        socket
    }

    /// A connection with the operation `1`, a subscription that has begun.
    pub(crate) async fn subscribed(server: &TestServer, token: &str, query: &str) -> Self {
        let mut socket = Self::greeted(server, Some(token)).await;
        let before = server.subscribers().await;
        socket.subscribe("1", query).await;
        server.until_subscribers_exceed(before).await;
        socket
    }

    pub(crate) async fn init(&mut self, token: Option<&str>) {
        let payload = token.map(|token| json!({ "authorization": format!("Bearer {token}") }));
        self.send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        assert_eq!(self.next().await, json!({ "type": "connection_ack" }));
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.raw(Message::text(text)).await;
    }

    pub(crate) async fn raw(&mut self, message: Message) {
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
        let text = within("a message over the WebSocket", message).await;
        serde_json::from_str(&text).expect("JSON")
    }

    /// The code and the reason with which the server closes the connection, after any other messages.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        let closed = async {
            loop {
                match self.frame().await {
                    Some(Ok(Message::Close(Some(frame)))) => {
                        break (frame.code.into(), frame.reason.to_string());
                    }
                    Some(Ok(_)) => {}
                    other => panic!("not closed: {other:?}"),
                }
            }
        };
        within("the close of the WebSocket", closed).await
    }

    pub(crate) async fn frame(&mut self) -> Option<Result<Message, Error>> {
        within("a frame over the WebSocket", self.0.next()).await
    }

    /// The first message that is like this; those before it are dropped.
    pub(crate) async fn skip_to(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let message = self.next().await;
                if is_it(&message) {
                    break message;
                }
            }
        };
        within(what, found).await
    }

    /// The field's value in the next message of a subscription.
    pub(crate) async fn value(&mut self, field: &str) -> Value {
        let message = self.next().await;
        assert_eq!(message["type"], "next", "{message}");
        message["payload"]["data"][field].clone()
    }

    /// The messages of one operation until its end.
    pub(crate) async fn run(&mut self, id: &str, query: &str) -> Vec<Value> {
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

/// A subscriber to events.
pub(crate) struct Listener {
    socket: Socket,
    id: String,
}

impl Listener {
    /// Subscribes as the demo user, and waits until the subscription has started.
    pub(crate) async fn new(server: &TestServer, arguments: &str) -> Self {
        let token = server.token("demo@example.com").await;
        Self::of(server, &token, arguments).await
    }

    pub(crate) async fn of(server: &TestServer, token: &str, arguments: &str) -> Self {
        let fields = "__typename type cursor ... on ProjectEvent { name } \
            ... on CatalogueEvent { name } ... on EventsMissed { oldestKept }";
        let query = format!("subscription {{ events{arguments} {{ {fields} }} }}");
        Self {
            socket: Socket::subscribed(server, token, &query).await,
            id: "1".to_owned(),
        }
    }

    pub(crate) async fn next(&mut self) -> Value {
        let message = self.socket.next().await;
        assert_eq!(message["id"], self.id, "{message}");
        assert_eq!(message["type"], "next", "{message}");
        message["payload"]["data"]["events"].clone()
    }

    pub(crate) async fn names(&mut self, count: usize) -> Vec<String> {
        let mut names = Vec::with_capacity(count);
        for _ in 0..count {
            let event = self.next().await;
            names.push(event["name"].as_str().expect("a name").to_owned());
        }
        names
    }
}

/// The error with which a subscription is refused.
pub(crate) async fn refused(server: &TestServer, query: &str) -> Value {
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(server, Some(&token)).await;
    socket.subscribe("1", query).await;
    let message = socket.next().await;
    assert_eq!(message["type"], "error", "{message}");
    message["payload"][0]["extensions"].clone()
}

/// Reads a body until it contains `end` this many times and its last event is complete.
pub(crate) async fn read_until(response: &mut Body, times: usize, end: &str) -> String {
    let mut text = String::new();
    while text.matches(end).count() < times || !text.ends_with(['\n', 'l', '-']) {
        let piece = within(end, response.chunk()).await.expect("a piece");
        let piece = piece.unwrap_or_else(|| panic!("the end before {end}: {text}"));
        text.push_str(str::from_utf8(&piece).expect("text"));
    }
    text
}

/// The results in a body of Server-Sent Events.
pub(crate) fn answers(text: &str) -> Vec<Value> {
    let lines = text.lines();
    let data = lines.filter_map(|line| line.strip_prefix("data: "));
    data.map(|json| serde_json::from_str(json).expect("JSON"))
        .collect()
}
