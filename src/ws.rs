//! GraphQL over WebSocket: the sub-protocol `graphql-transport-ws`.
//!
//! A connection is one task, the task of the original HTTP connection, and owns all its state; both end together.
//! Everything is bounded: the size and rate of its messages, the number of operations, the time without an answer, and
//! the data that the client has not read. The next events of a subscription are polled when the socket has accepted the
//! previous ones.

mod outgoing;

use std::borrow::Cow;
use std::future::pending;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, iter, once};
use futures_util::{SinkExt, StreamExt, poll};
use gathering_schema::{Answer, Caller, Client, Code, Operation, Usage, Watch};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_stream::StreamMap;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::Instrument;

use crate::http::{Endpoint, Members, NO_BEARER, Outcome, Refusal, Started, token_in, unmarked};
use crate::seat::{Counted, Full, Gauge, RESTART, Seat};
use outgoing::{FRAGMENT, GATHERED, Outbox, Outgoing};

/// The supported sub-protocol.
const PROTOCOL: &str = "graphql-transport-ws";

/// The version of the WebSocket protocol.
const VERSION: &str = "13";

/// Maximum number of results sent before other branches of the loop run.
const BURST: usize = 64;

/// Maximum length of an operation's id, in characters.
const LONGEST_ID: usize = 100;

/// Maximum length of a close reason, in bytes (RFC 6455).
const LONGEST_REASON: usize = 123;

/// Maximum wait for the client to complete the closing handshake.
const FAREWELL: Duration = Duration::from_secs(1);

/// The WebSocket session to run after the HTTP upgrade: set by the upgrade request, and run by the task that served the
/// HTTP connection.
#[derive(Clone, Default)]
pub(crate) struct Afterwards(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Afterwards {
    fn leave(&self, work: BoxFuture<'static, ()>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    /// Takes the session, if the connection was upgraded.
    pub(crate) fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Whether a request is a WebSocket upgrade.
pub(crate) fn is_asked_for(head: &Parts) -> bool {
    head.method == Method::GET
        && names(head, &UPGRADE, "websocket")
        && names(head, &CONNECTION, "upgrade")
}

/// Whether a list header contains this name.
fn names(head: &Parts, header: &HeaderName, name: &str) -> bool {
    let lines = head.headers.get_all(header).iter();
    let mut entries = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    entries.any(|entry| entry.trim().eq_ignore_ascii_case(name))
}

/// Upgrades a connection to WebSocket.
///
/// A script in a browser cannot read the response of a failed upgrade. Therefore errors that a client can handle are
/// sent as a close code after the upgrade.
pub(crate) fn upgrade(endpoint: &Arc<Endpoint>, head: &Parts) -> Result<Response, Refusal> {
    endpoint.may_connect(&head.headers)?;
    let key = head.headers.get(SEC_WEBSOCKET_KEY).filter(|key| {
        let key = BASE64_STANDARD.decode(key.as_bytes());
        key.is_ok_and(|key| key.len() == 16)
    });
    let key = key.ok_or_else(|| Refusal::bad("Sec-WebSocket-Key must be 16 bytes in base64."))?;
    let version = head.headers.get(SEC_WEBSOCKET_VERSION);
    let (Some(upgrade), Some(afterwards), true) = (
        head.extensions.get::<OnUpgrade>().cloned(),
        head.extensions.get::<Afterwards>(),
        version.is_some_and(|version| version == VERSION),
    ) else {
        let refusal = Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            "WebSocket version 13 over HTTP/1.1 is required.",
        );
        return Ok(([(SEC_WEBSOCKET_VERSION, VERSION)], refusal).into_response());
    };

    let client = head.extensions.get::<Client>().cloned().unwrap_or_default();
    let is_ours = names(head, &SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
    let seat = if is_ours {
        endpoint.seats.take(&client).map_err(Close::full)
    } else {
        Err(Close::new(4406, "Subprotocol not acceptable"))
    };
    let endpoint = Arc::clone(endpoint);
    let work = async move {
        // The client disconnected before the upgrade.
        let Ok(io) = upgrade.await else {
            return;
        };
        let socket = open(&endpoint, io).await;
        match seat {
            Ok(seat) => Connection::new(endpoint, client, seat, socket).run().await,
            Err(close) => part(&endpoint, socket, End::Close(close)).await,
        }
    };
    afterwards.leave(Box::pin(work.in_current_span()));

    let accept = derive_accept_key(key.as_bytes());
    let headers = [
        (CONNECTION, HeaderValue::from_static("upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    if let Ok(accept) = HeaderValue::try_from(accept) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if is_ours {
        let protocol = HeaderValue::from_static(PROTOCOL);
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

async fn open(endpoint: &Endpoint, io: Upgraded) -> Socket {
    let longest = endpoint.config.subscriptions.message_bytes;
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(GATHERED)
        .max_write_buffer_size(2 * FRAGMENT)
        .max_message_size(Some(longest))
        .max_frame_size(Some(longest));
    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await
}

/// How a connection ends.
enum End {
    /// The server closes it.
    Close(Close),
    /// The client closed it.
    Closed,
    /// It was lost, or the client stopped responding.
    Lost,
}

/// The close code and reason.
struct Close {
    code: u16,
    reason: Cow<'static, str>,
}

impl Close {
    fn new(code: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }

    /// An invalid message.
    fn invalid(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(4400, reason)
    }

    fn full(full: Full) -> Self {
        let code = match full {
            Full::Client(_) | Full::Server => 1013,
            Full::Draining => 1012,
        };
        Self::new(code, full.reason())
    }

    /// The session was revoked or has ended.
    fn revoked() -> Self {
        let (_, message) = errors(&Answer::session_ended().into());
        Self::new(4403, message)
    }

    fn slow() -> Self {
        Self::new(1013, "Client too slow. Reconnect and resume.")
    }

    /// The close code for an error of the library; `None` if the connection was lost.
    fn of(error: &Error, longest: usize) -> Option<Self> {
        match error {
            Error::Capacity(_) => Some(Self::new(
                1009,
                format!("A message must not be longer than {longest} bytes."),
            )),
            Error::Utf8(_) => Some(Self::new(1007, "A message must be valid UTF-8.")),
            // The client disconnected without a closing handshake.
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
            Error::Protocol(_) => Some(Self::new(1002, "WebSocket protocol error.")),
            // The operating system's write timeout expired before ours.
            Error::Io(error) if error.kind() == ErrorKind::TimedOut => Some(Self::slow()),
            _ => None,
        }
    }
}

impl From<Close> for End {
    fn from(close: Close) -> Self {
        Self::Close(close)
    }
}

/// A message from the client.
enum Incoming {
    Init(Map<String, Value>),
    Ping(Option<Value>),
    Pong,
    Subscribe {
        id: String,
        payload: Map<String, Value>,
    },
    Complete {
        id: String,
    },
}

impl Incoming {
    fn parse(text: &str) -> Result<Self, Close> {
        let message = serde_json::from_str(unmarked(text))
            .map_err(|_| Close::invalid("A message must be valid JSON."))?;
        let Value::Object(mut message) = message else {
            return Err(Close::invalid("A message must be a JSON object."));
        };
        let Some(Value::String(kind)) = message.remove("type") else {
            return Err(Close::invalid(
                "A message must have a `type` of type string.",
            ));
        };
        let payload = message.remove("payload");
        match kind.as_str() {
            "connection_init" => Ok(Self::Init(optional(payload)?.unwrap_or_default())),
            "ping" => {
                let is_given = payload.is_some();
                let payload = optional(payload)?;
                let echo = payload.map_or(Value::Null, Value::Object);
                Ok(Self::Ping(is_given.then_some(echo)))
            }
            "pong" => optional(payload).map(|_| Self::Pong),
            "subscribe" => match payload {
                Some(Value::Object(payload)) => Ok(Self::Subscribe {
                    id: id(&mut message)?,
                    payload,
                }),
                _ => Err(Close::invalid("`payload` must be an object.")),
            },
            "complete" => Ok(Self::Complete {
                id: id(&mut message)?,
            }),
            _ => Err(Close::invalid(
                "`type` must be one of connection_init, ping, pong, subscribe and complete.",
            )),
        }
    }
}

fn optional(payload: Option<Value>) -> Result<Option<Map<String, Value>>, Close> {
    match payload {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(payload)) => Ok(Some(payload)),
        Some(_) => Err(Close::invalid("`payload` must be an object, or absent.")),
    }
}

fn id(message: &mut Map<String, Value>) -> Result<String, Close> {
    match message.remove("id") {
        Some(Value::String(id)) if !id.is_empty() && id.chars().count() <= LONGEST_ID => Ok(id),
        _ => Err(Close::invalid(format!(
            "`id` must be a string of 1 to {LONGEST_ID} characters."
        ))),
    }
}

/// The authenticated session of a connection.
#[derive(Default)]
struct Session {
    token: Option<String>,
    usage: Usage,
}

/// A running operation: a stream of its outcomes that ends with `None`, and whether it is a subscription.
struct Running {
    outcomes: BoxStream<'static, Option<Outcome>>,
    /// Whether it runs until it is stopped.
    is_subscription: bool,
    _counted: Counted,
}

impl Stream for Running {
    type Item = (bool, Option<Outcome>);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let is_subscription = self.is_subscription;
        let next = self.outcomes.poll_next_unpin(cx);
        next.map(|next| next.map(|outcome| (is_subscription, outcome)))
    }
}

struct Connection {
    endpoint: Arc<Endpoint>,
    client: Client,
    outbox: Outbox,
    /// Set after `connection_init` is acknowledged.
    session: Option<Arc<Session>>,
    running: StreamMap<String, Running>,
    /// The reason, if the token has expired. The connection closes when its operations have completed.
    expired: Option<String>,
    /// Number of consecutive pings without any message from the client.
    silence: u8,
    _seat: Seat,
    _counted: Counted,
}

impl Connection {
    fn new(endpoint: Arc<Endpoint>, client: Client, seat: Seat, socket: Socket) -> Self {
        Self {
            client,
            outbox: Outbox::new(socket),
            session: None,
            running: StreamMap::new(),
            expired: None,
            silence: 0,
            _seat: seat,
            _counted: endpoint.seats.count(Gauge::Connections),
            endpoint,
        }
    }

    async fn run(mut self) {
        let Err(end) = self.serve().await;
        // Stop all operations immediately.
        self.running.clear();
        if let End::Close(_) = end {
            // Send pending messages before the close frame, if the client reads them.
            let _ = timeout(FAREWELL, self.flush()).await;
        }
        part(&self.endpoint, self.outbox.socket, end).await;
    }

    /// Handles messages and events until one side ends the connection.
    async fn serve(&mut self) -> Result<Never, End> {
        let settings = &self.endpoint.config.subscriptions;
        let deadline = Instant::now() + settings.init_timeout;
        let mut beat = interval_at(Instant::now() + settings.keep_alive, settings.keep_alive);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = std::pin::pin!(self.endpoint.seats.draining());
        loop {
            // The branches are polled in random order, so that neither a busy client nor a busy subscription starves
            // the others.
            tokio::select! {
                () = &mut draining => return self.drain().await,
                () = ended(self.outbox.watch.as_ref()) => return self.dismiss().await,
                () = sleep_until(deadline), if self.session.is_none() => {
                    return Err(Close::new(4408, "Connection initialisation timeout").into());
                }
                _ = beat.tick() => self.beat().await?,
                message = self.outbox.socket.next() => match message {
                    Some(Ok(message)) => self.hear(message).await?,
                    Some(Err(error)) => {
                        let longest = self.endpoint.config.subscriptions.message_bytes;
                        return Err(Close::of(&error, longest).map_or(End::Lost, End::Close));
                    }
                    None => return Err(End::Lost),
                },
                Some((id, (is_event, outcome))) = self.running.next() => {
                    self.tell(&id, is_event, outcome).await?;
                    for _ in 1..BURST {
                        let next = poll!(self.running.next());
                        let Poll::Ready(Some((id, (is_event, outcome)))) = next else {
                            break;
                        };
                        self.tell(&id, is_event, outcome).await?;
                    }
                }
            }
            self.flush().await?;
        }
    }

    /// Sends a ping, or ends the connection if two pings are unanswered. Without running operations, which would detect
    /// it, also checks that the token is still valid.
    async fn beat(&mut self) -> Result<(), End> {
        if self.silence == 2 {
            return Err(End::Lost);
        }
        let session = self.session.as_ref().filter(|_| self.running.is_empty());
        if let Some(token) = session.and_then(|session| session.token.as_deref())
            && let Err(answer) = self.endpoint.graph.verify_token(token, &self.client).await
            && let Some(Code::Unauthenticated | Code::Forbidden) = answer.code()
        {
            let (_, message) = errors(&answer.into());
            return Err(Close::new(4403, message).into());
        }
        self.silence += 1;
        self.outbox.ping();
        Ok(())
    }

    async fn hear(&mut self, message: Message) -> Result<(), End> {
        let is_answer = self.silence > 0 && matches!(message, Message::Pong(_));
        self.silence = 0;
        match message {
            Message::Close(_) => return Err(End::Closed),
            // The answer to our ping is not rate limited.
            Message::Pong(_) if is_answer => return Ok(()),
            _ => {}
        }
        if let Err(answer) = self.endpoint.graph.admit(&self.client, "/graphql").await {
            let seconds = answer.retry_after().unwrap_or(1);
            let reason = format!("Too many messages. Retry in {seconds} s.");
            return Err(Close::new(1013, reason).into());
        }
        match message {
            Message::Text(text) => self.obey(Incoming::parse(&text)?).await,
            Message::Binary(_) => Err(Close::invalid("A message must be text.").into()),
            // The library has already answered the ping.
            _ => Ok(()),
        }
    }

    async fn obey(&mut self, message: Incoming) -> Result<(), End> {
        match message {
            Incoming::Init(payload) => {
                if self.session.is_some() {
                    let reason = "Too many initialisation requests";
                    return Err(Close::new(4429, reason).into());
                }
                let session = self.verify_token(&payload).await?;
                self.session = Some(Arc::new(session));
                self.send(&Outgoing::ConnectionAck).await
            }
            Incoming::Ping(payload) => self.send(&Outgoing::Pong { payload }).await,
            Incoming::Pong => Ok(()),
            Incoming::Subscribe { id, payload } => self.subscribe(id, payload).await,
            Incoming::Complete { id } => {
                self.running.remove(&id);
                self.leave_if_expired()
            }
        }
    }

    /// Authenticates the client from the payload of `connection_init`.
    async fn verify_token(&mut self, payload: &Map<String, Value>) -> Result<Session, End> {
        let given = |name: &str| {
            let name = name.to_owned();
            let named = payload
                .iter()
                .filter(move |(key, _)| key.eq_ignore_ascii_case(&name));
            named.map(|(_, value)| value)
        };
        let mut authorizations = given("authorization");
        let token = match (authorizations.next(), authorizations.next()) {
            (None | Some(Value::Null), None) => None,
            (Some(Value::String(text)), None) if token_in(text).is_some() => token_in(text),
            _ => return Err(Close::new(4403, NO_BEARER).into()),
        };
        if let Some(token) = token {
            let greeted = self.endpoint.graph.verify_token(token, &self.client).await;
            let bearer = greeted.map_err(|answer| {
                let code = match answer.code() {
                    Some(Code::Unauthenticated | Code::Forbidden) => 4403,
                    // A retry helps, except after an internal error.
                    Some(Code::Internal) => 1011,
                    _ => 1013,
                };
                let (_, message) = errors(&answer.into());
                Close::new(code, message)
            })?;
            self.outbox.watch = bearer.watch;
        }
        let usage = given("x-gathering-usage").find_map(Value::as_str);
        Ok(Session {
            token: token.map(str::to_owned),
            usage: self.endpoint.usage(usage),
        })
    }

    async fn subscribe(&mut self, id: String, payload: Map<String, Value>) -> Result<(), End> {
        let Some(session) = self.session.clone() else {
            return Err(Close::new(4401, "Unauthorized").into());
        };
        if self.running.contains_key(&id) {
            return Err(Close::new(4409, format!("Subscriber for {id} already exists")).into());
        }
        let params = Members(payload.into_iter().collect()).into_params("payload.");
        let params = params.map_err(|refusal| Close::invalid(refusal.message().to_owned()))?;
        let most = self.endpoint.config.subscriptions.operations;
        let refused = if self.running.len() >= most {
            Refusal::bad(format!(
                "At most {most} concurrent operations per connection."
            ))
            .into()
        } else {
            match self.endpoint.graph.prepare(params) {
                Ok(operation) => {
                    let running = self.start(operation, session);
                    self.running.insert(id, running);
                    return Ok(());
                }
                Err(answer) => answer.into(),
            }
        };
        self.tell(&id, false, Some(refused)).await
    }

    /// Starts an operation, which runs when the connection polls it.
    fn start(&self, operation: Operation, session: Arc<Session>) -> Running {
        let endpoint = Arc::clone(&self.endpoint);
        let client = self.client.clone();
        let is_subscription = operation.kind() == OperationType::Subscription;
        let started = async move {
            let caller = Caller {
                token: session.token.as_deref(),
                client,
                usage: session.usage,
                after: None,
                idempotency_key: None,
                batch_entry: None,
            };
            match endpoint.start(operation, caller).await {
                Started::One(outcome) => iter([Some(outcome), None]).boxed(),
                Started::Many { answers, .. } => answers.map(Some).chain(iter([None])).boxed(),
            }
        };
        Running {
            outcomes: once(started).flatten().boxed(),
            is_subscription,
            _counted: self.endpoint.seats.count(Gauge::WebSocket),
        }
    }

    /// Sends an outcome of an operation: an event, an error or the completion.
    async fn tell(
        &mut self,
        id: &str,
        is_event: bool,
        outcome: Option<Outcome>,
    ) -> Result<(), End> {
        let outcome = match outcome {
            Some(outcome) if outcome.ran() => {
                let message = Outgoing::Next {
                    id,
                    payload: &outcome,
                };
                let config = &self.endpoint.config;
                return self.outbox.send(config, &message, is_event).await;
            }
            outcome => outcome,
        };
        // Remove it before the client is notified, so that the client may reuse the id.
        self.running.remove(id);
        let Some(outcome) = outcome else {
            self.send(&Outgoing::Complete { id }).await?;
            return self.leave_if_expired();
        };
        let has_token = self.session.as_ref().is_some_and(|s| s.token.is_some());
        let is_expired = has_token && outcome.code() == Some(Code::Unauthenticated);
        let (payload, message) = errors(&outcome);
        self.send(&Outgoing::Error { id, payload }).await?;
        if is_expired {
            self.expired = Some(message);
        }
        self.leave_if_expired()
    }

    /// Closes the connection if its token has expired and no operation is running.
    fn leave_if_expired(&mut self) -> Result<(), End> {
        match self.expired.take_if(|_| self.running.is_empty()) {
            Some(reason) => Err(Close::new(4403, reason).into()),
            None => Ok(()),
        }
    }

    /// Completes all subscriptions, waits for the other operations, and closes.
    async fn drain(&mut self) -> Result<Never, End> {
        self.finish(|| None).await?;
        Err(Close::new(1012, RESTART).into())
    }

    /// Ends the subscriptions of an ended session with an error, waits for the other operations, and closes.
    async fn dismiss(&mut self) -> Result<Never, End> {
        self.finish(|| Some(Answer::session_ended().into())).await?;
        Err(Close::revoked().into())
    }

    /// Ends each subscription with an outcome, or with `complete`, and waits for the other operations.
    async fn finish(&mut self, last: impl Fn() -> Option<Outcome>) -> Result<(), End> {
        let endless = self.running.iter().filter(|(_, r)| r.is_subscription);
        let endless: Vec<String> = endless.map(|(id, _)| id.clone()).collect();
        for id in endless {
            self.tell(&id, false, last()).await?;
        }
        self.flush().await?;
        while let Some((id, (is_event, outcome))) = self.running.next().await {
            self.tell(&id, is_event, outcome).await?;
            self.flush().await?;
        }
        Ok(())
    }

    async fn send(&mut self, message: &Outgoing<'_>) -> Result<(), End> {
        let config = &self.endpoint.config;
        self.outbox.send(config, message, false).await
    }

    /// Waits until the socket has accepted all messages.
    async fn flush(&mut self) -> Result<(), End> {
        self.outbox.flush(&self.endpoint.config).await
    }
}

/// Completes when a session has ended; never without a session.
async fn ended(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.ended().await,
        None => pending().await,
    }
}

/// The uninhabited type.
enum Never {}

/// The errors of an outcome, and the message of the first one.
fn errors(outcome: &Outcome) -> (Value, String) {
    let mut answer = serde_json::to_value(outcome).unwrap_or_default();
    let errors = answer.get_mut("errors").map(Value::take);
    let errors = errors.unwrap_or_else(|| Value::Array(Vec::new()));
    let message = errors.pointer("/0/message").and_then(Value::as_str);
    let message = message.unwrap_or_default().to_owned();
    (errors, message)
}

/// Closes the connection.
///
/// A client that is still sending might never read the reason if the socket were closed. Therefore the server sends the
/// close frame, shuts down its side, and discards incoming data until the client closes too or the timeout expires.
async fn part(endpoint: &Endpoint, mut socket: Socket, end: End) {
    let how = match &end {
        End::Close(close) => close.code.to_string(),
        End::Closed => "client".to_owned(),
        End::Lost => "lost".to_owned(),
    };
    tracing::debug!(how, "a WebSocket connection ended");
    endpoint.seats.ended(&how);
    let leave = async {
        match end {
            End::Close(Close { code, reason }) => {
                let reason = &reason[..reason.floor_char_boundary(LONGEST_REASON)];
                let frame = CloseFrame {
                    code: code.into(),
                    reason: reason.into(),
                };
                socket.send(Message::Close(Some(frame))).await.ok()?;
            }
            // The library has queued the close frame.
            End::Closed => socket.flush().await.ok()?,
            End::Lost => return None,
        }
        let io = socket.get_mut();
        io.shutdown().await.ok()?;
        let mut rest = [0; 1024];
        while io.read(&mut rest).await.ok()? > 0 {}
        Some(())
    };
    let _ = timeout(FAREWELL, leave).await;
}
