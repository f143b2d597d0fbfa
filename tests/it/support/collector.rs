//! A collector on a local port, which keeps the spans that it receives (OTLP over HTTP).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use gathering::config::{Config, Ratio};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span as Received};
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::wait::until_some;

/// A received span.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for a root.
    pub(crate) parent: String,
    pub(crate) state: String,
    pub(crate) name: String,
    /// The number in the protocol: 1 for internal, 2 for a server, 3 for a client.
    pub(crate) kind: i32,
    pub(crate) attributes: BTreeMap<String, Value>,
    /// The ids of the linked spans.
    pub(crate) links: Vec<String>,
    /// The number in the protocol: 2 for an error.
    pub(crate) status: i32,
    /// Start and end in nanoseconds.
    pub(crate) times: (u64, u64),
    /// The attributes of the server.
    pub(crate) resource: BTreeMap<String, Value>,
}

impl Span {
    pub(crate) fn text(&self, attribute: &str) -> &str {
        let value = self.attributes.get(attribute).and_then(Value::as_str);
        value.unwrap_or_default()
    }

    pub(crate) fn number(&self, attribute: &str) -> Option<i64> {
        self.attributes.get(attribute).and_then(Value::as_i64)
    }

    fn of(span: Received, resource: &BTreeMap<String, Value>) -> Self {
        Self {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            state: span.trace_state,
            name: span.name,
            kind: span.kind,
            attributes: attributes(span.attributes),
            links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
            status: span.status.map_or(0, |status| status.code),
            times: (span.start_time_unix_nano, span.end_time_unix_nano),
            resource: resource.clone(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn attributes(attributes: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |attribute: KeyValue| {
        let value = match attribute.value.and_then(|value| value.value) {
            Some(Any::StringValue(text)) => text.into(),
            Some(Any::IntValue(number)) => number.into(),
            other => panic!("{}: {other:?}", attribute.key),
        };
        (attribute.key, value)
    };
    attributes.into_iter().map(value).collect()
}

#[derive(Default)]
struct Kept {
    spans: Mutex<Vec<Span>>,
    /// All bodies, one after the other.
    bytes: Mutex<Vec<u8>>,
    authorization: Mutex<Option<String>>,
    refuses: AtomicBool,
}

/// A running collector. Dropping it closes its port.
pub(crate) struct Collector {
    address: SocketAddr,
    kept: Arc<Kept>,
    _tasks: JoinSet<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let kept = Arc::new(Kept::default());
        let routes = Router::new()
            .route("/v1/traces", post(receive))
            .with_state(Arc::clone(&kept));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, routes).await.expect("serves");
        });
        Self {
            address,
            kept,
            _tasks: tasks,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets a server send this share of its traces here.
    pub(crate) fn receives(&self, config: &mut Config, share: f64) {
        config.trace.endpoint = self.url().parse().expect("a URL");
        config.trace.sample = Ratio(share);
    }

    /// Sets whether it answers 503 and keeps nothing.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.kept.refuses.store(refuses, Ordering::Relaxed);
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        lock(&self.kept.spans).clone()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        lock(&self.kept.bytes).clone()
    }

    /// The header `authorization` of the latest request.
    pub(crate) fn authorization(&self) -> Option<String> {
        lock(&self.kept.authorization).clone()
    }

    /// Waits for the span of the operation with this name; returns it, and the other spans of its trace.
    pub(crate) async fn operation(&self, name: &str) -> (Span, Vec<Span>) {
        let root = until_some(format!("the span of {name}"), async || {
            let mut spans = self.spans().into_iter();
            spans.find(|span| span.text("graphql.operation.name") == name)
        })
        .await;
        let mut spans = self.spans();
        spans.retain(|span| span.trace == root.trace && span.id != root.id);
        (root, spans)
    }
}

async fn receive(State(kept): State<Arc<Kept>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if kept.refuses.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    assert_eq!(headers[CONTENT_TYPE], "application/x-protobuf");
    let authorization = headers.get(AUTHORIZATION);
    let authorization = authorization.map(|value| value.to_str().expect("text").to_owned());
    *lock(&kept.authorization) = authorization;
    lock(&kept.bytes).extend_from_slice(&body);
    let request = ExportTraceServiceRequest::decode(body).expect("a request");
    for ResourceSpans {
        resource,
        scope_spans,
        ..
    } in request.resource_spans
    {
        let resource = attributes(resource.expect("a resource").attributes);
        let spans = scope_spans.into_iter().flat_map(|scope| scope.spans);
        let spans = spans.map(|span| Span::of(span, &resource));
        lock(&kept.spans).extend(spans);
    }
    StatusCode::OK
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
