//! A WebSocket connection: its messages, its operations and its end.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use futures_util::stream::{BoxStream, Stream, iter, once};
use futures_util::{SinkExt, StreamExt, poll};
use gathering_schema::{Answer, Caller, Client, Code, Operation, Usage};
use opentelemetry::trace::SpanContext;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_stream::StreamMap;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tracing::Instrument;

use super::outgoing::{Outbox, Socket, ended};
use super::protocol::{Close, End, Incoming, Outgoing, errors, next};
use crate::connections::{ConnectionPermit, Counted, Gauge, RESTART};
use crate::http::gate::Route;
use crate::http::headers::{NO_BEARER, token_in};
use crate::http::outcome::{Outcome, Refusal};
use crate::http::params::Members;
use crate::http::respond::json;
use crate::http::state::{Endpoint, Started};
use crate::trace::log_span;

/// Maximum number of results sent before other branches of the loop run.
const BURST: usize = 64;

/// Maximum length of a close reason, in bytes (RFC 6455).
const LONGEST_REASON: usize = 123;

/// Maximum wait for the client to complete the closing handshake.
const FAREWELL: Duration = Duration::from_secs(1);

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

pub(super) struct Connection {
    endpoint: Arc<Endpoint>,
    client: Client,
    /// The span of the client that has opened the connection.
    parent: Option<SpanContext>,
    outbox: Outbox,
    /// Set after `connection_init` is acknowledged.
    session: Option<Arc<Session>>,
    running: StreamMap<String, Running>,
    /// The reason, if the token has expired. The connection closes when its operations have completed.
    expired: Option<String>,
    /// Number of consecutive pings without any message from the client.
    silence: u8,
    _permit: ConnectionPermit,
    _counted: Counted,
}

impl Connection {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        (client, parent): (Client, Option<SpanContext>),
        permit: ConnectionPermit,
        socket: Socket,
    ) -> Self {
        Self {
            client,
            parent,
            outbox: Outbox::new(socket),
            session: None,
            running: StreamMap::new(),
            expired: None,
            silence: 0,
            _permit: permit,
            _counted: endpoint.connections.count(Gauge::Connections),
            endpoint,
        }
    }

    pub(super) async fn run(mut self) {
        let Err(end) = self.serve().await;
        // Stop all operations immediately.
        self.running.clear();
        if let End::Close(_) = end {
            // Send pending messages before the close frame, if the client reads them.
            let _ = timeout(FAREWELL, self.flush()).await;
        }
        close_with(&self.endpoint, self.outbox.socket, end).await;
    }

    /// Handles messages and events until one side ends the connection.
    async fn serve(&mut self) -> Result<Infallible, End> {
        let settings = &self.endpoint.config.subscriptions;
        let deadline = Instant::now() + settings.init_timeout;
        let mut heartbeat = interval_at(Instant::now() + settings.keep_alive, settings.keep_alive);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = std::pin::pin!(self.endpoint.connections.draining());
        loop {
            // The branches are polled in random order, so that neither a busy client nor a busy subscription starves
            // the others.
            tokio::select! {
                () = &mut draining => return self.drain().await,
                () = ended(self.outbox.watch.as_ref()) => return self.dismiss().await,
                () = sleep_until(deadline), if self.session.is_none() => {
                    return Err(Close::new(4408, "Connection initialisation timeout").into());
                }
                _ = heartbeat.tick() => self.heartbeat().await?,
                message = self.outbox.socket.next() => match message {
                    Some(Ok(message)) => self.on_message(message).await?,
                    Some(Err(error)) => {
                        let longest = self.endpoint.config.subscriptions.message_bytes;
                        return Err(Close::of(&error, longest).map_or(End::Lost, End::Close));
                    }
                    None => return Err(End::Lost),
                },
                Some((id, (is_event, outcome))) = self.running.next() => {
                    self.send_outcome(&id, is_event, outcome).await?;
                    for _ in 1..BURST {
                        let next = poll!(self.running.next());
                        let Poll::Ready(Some((id, (is_event, outcome)))) = next else {
                            break;
                        };
                        self.send_outcome(&id, is_event, outcome).await?;
                    }
                }
            }
            self.flush().await?;
        }
    }

    /// Sends a ping, or ends the connection if two pings are unanswered. Without running operations, which would detect
    /// it, also checks that the token is still valid.
    async fn heartbeat(&mut self) -> Result<(), End> {
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

    async fn on_message(&mut self, message: Message) -> Result<(), End> {
        let is_answer = self.silence > 0 && matches!(message, Message::Pong(_));
        self.silence = 0;
        match message {
            Message::Close(_) => return Err(End::Closed),
            // The answer to our ping is not rate limited.
            Message::Pong(_) if is_answer => return Ok(()),
            _ => {}
        }
        let address = self.client.address;
        if let Err(quota) = self.endpoint.gate.check(address, Route::Graphql) {
            let seconds = quota.seconds().max(1);
            let reason = format!("Too many messages. Retry in {seconds} s.");
            return Err(Close::new(1013, reason).into());
        }
        match message {
            Message::Text(text) => self.handle(Incoming::parse(&text)?).await,
            Message::Binary(_) => Err(Close::invalid("A message must be text.").into()),
            // The library has already answered the ping.
            _ => Ok(()),
        }
    }

    async fn handle(&mut self, message: Incoming) -> Result<(), End> {
        match message {
            Incoming::Init(payload) => {
                if self.session.is_some() {
                    let reason = "Too many initialisation requests";
                    return Err(Close::new(4429, reason).into());
                }
                let session = self.authenticate(&payload).await?;
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
    async fn authenticate(&mut self, payload: &Map<String, Value>) -> Result<Session, End> {
        let values = |name: &str| {
            let name = name.to_owned();
            let named = payload
                .iter()
                .filter(move |(key, _)| key.eq_ignore_ascii_case(&name));
            named.map(|(_, value)| value)
        };
        let mut authorizations = values("authorization");
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
        let usage = values("x-gathering-usage").find_map(Value::as_str);
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
        let params = params.map_err(|invalid| Close::invalid(invalid.0))?;
        let most = self.endpoint.config.subscriptions.operations;
        let refused = if self.running.len() >= most {
            Refusal::bad(format!(
                "At most {most} concurrent operations per connection."
            ))
            .into()
        } else {
            match self.endpoint.parse_operation(params) {
                Ok(operation) => {
                    let running = self.start(operation, session);
                    self.running.insert(id, running);
                    return Ok(());
                }
                Err(answer) => answer.into(),
            }
        };
        self.send_outcome(&id, false, Some(refused)).await
    }

    /// Starts an operation, which runs when the connection polls it.
    fn start(&self, operation: Operation, session: Arc<Session>) -> Running {
        let endpoint = Arc::clone(&self.endpoint);
        let client = self.client.clone();
        let parent = self.parent.clone();
        let is_subscription = operation.kind() == OperationType::Subscription;
        let started = async move {
            let span = endpoint.span(&operation, &client, parent);
            let caller = Caller {
                token: session.token.as_deref(),
                client,
                usage: session.usage,
                after: None,
                idempotency_key: None,
                batch_entry: None,
                is_always_polled: false,
            };
            let started = endpoint.start(operation, caller, span.as_ref());
            let started = started.instrument(log_span(span.as_ref())).await;
            if let Some(span) = span {
                span.end();
            }
            match started {
                Started::One(outcome) => iter([Some(outcome), None]).boxed(),
                Started::Many { answers, .. } => answers.map(Some).chain(iter([None])).boxed(),
            }
        };
        Running {
            outcomes: once(started).flatten().boxed(),
            is_subscription,
            _counted: self.endpoint.connections.count(Gauge::WebSocket),
        }
    }

    /// Sends an outcome of an operation: an event, an error or the completion.
    async fn send_outcome(
        &mut self,
        id: &str,
        is_event: bool,
        outcome: Option<Outcome>,
    ) -> Result<(), End> {
        let outcome = match outcome {
            Some(outcome) if outcome.ran() => {
                let config = &self.endpoint.config;
                return self.outbox.send(config, next(id, &outcome), is_event).await;
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

    /// Stops the subscriptions without a message, waits for the other operations, and closes. With `complete`, clients
    /// would not subscribe again after they reconnect.
    async fn drain(&mut self) -> Result<Infallible, End> {
        for id in self.subscriptions() {
            self.running.remove(&id);
        }
        self.finish().await?;
        Err(Close::new(1012, RESTART).into())
    }

    /// Ends the subscriptions of an ended session with an error, waits for the other operations, and closes.
    async fn dismiss(&mut self) -> Result<Infallible, End> {
        for id in self.subscriptions() {
            let outcome = Answer::session_ended().into();
            self.send_outcome(&id, false, Some(outcome)).await?;
        }
        self.finish().await?;
        Err(Close::revoked().into())
    }

    /// The ids of the running subscriptions.
    fn subscriptions(&self) -> Vec<String> {
        let subscriptions = self.running.iter().filter(|(_, r)| r.is_subscription);
        subscriptions.map(|(id, _)| id.clone()).collect()
    }

    /// Waits for the running operations.
    async fn finish(&mut self) -> Result<(), End> {
        self.flush().await?;
        while let Some((id, (is_event, outcome))) = self.running.next().await {
            self.send_outcome(&id, is_event, outcome).await?;
            self.flush().await?;
        }
        Ok(())
    }

    async fn send(&mut self, message: &Outgoing<'_>) -> Result<(), End> {
        let config = &self.endpoint.config;
        self.outbox.send(config, json(message), false).await
    }

    /// Waits until the socket has accepted all messages.
    async fn flush(&mut self) -> Result<(), End> {
        self.outbox.flush(&self.endpoint.config).await
    }
}

/// Closes the connection.
///
/// A client that is still sending might never read the reason if the socket were closed. Therefore the server sends the
/// close frame, shuts down its side, and discards incoming data until the client closes too or the timeout expires.
pub(super) async fn close_with(endpoint: &Endpoint, mut socket: Socket, end: End) {
    let how = match &end {
        End::Close(close) => close.code.to_string(),
        End::Closed => "client".to_owned(),
        End::Lost => "lost".to_owned(),
    };
    tracing::debug!(how, "a WebSocket connection ended");
    endpoint.connections.ended(&how);
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
