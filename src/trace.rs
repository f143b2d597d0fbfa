//! Traces: the spans of operations, their W3C trace context, and their way to a collector by OTLP.
//!
//! Spans wait in a bounded queue for one task that sends them. No request waits for a collector: spans that it does not
//! take are lost, and counted.

use std::collections::HashMap;
use std::mem::take;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use futures_util::FutureExt;
use gathering_schema::Operation;
use gathering_schema::trace::Span;
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry::global::BoxedTracer;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanBuilder, SpanContext, SpanKind, TraceContextExt, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HeaderExtractor, HttpClient};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracerProvider, SpanData, SpanExporter as _, SpanProcessor,
};
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::{StartError, config};

/// Maximum number of spans that wait for the collector.
const QUEUE: usize = 8_192;

/// Maximum number of spans in one request to the collector.
const BATCH: usize = 512;

/// Maximum wait of a span for others that are sent with it.
const DELAY: Duration = Duration::from_secs(1);

/// Maximum time of a request to the collector, with its repetitions.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum length of the name of an operation in its span, in bytes.
const NAME: usize = 64;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The header with the trace context of a response (W3C Trace Context Response).
pub(crate) const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// The number of spans that left the queue, or did not enter it.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
}

/// Starts the spans of operations. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Traces {
    tracer: Arc<BoxedTracer>,
    counts: Arc<Counts>,
}

/// Sends spans to the collector.
pub struct Export {
    exporter: SpanExporter,
    queue: mpsc::Receiver<SpanData>,
    counts: Arc<Counts>,
}

impl Traces {
    /// The traces that these settings describe, and their export, which must run; `None` without a collector.
    ///
    /// # Errors
    /// A header is malformed, or the certificates of this machine cannot be read.
    pub fn new(settings: &config::Trace) -> Result<Option<(Self, Export)>, StartError> {
        let Some(url) = settings.endpoint.traces() else {
            return Ok(None);
        };
        let wrong = |error: &dyn std::fmt::Display| StartError::new(format!("trace: {error}"));
        let client: Arc<dyn HttpClient> = if url.scheme() == "https" {
            let connector = HttpsConnectorBuilder::new()
                .with_native_roots()
                .map_err(|error| wrong(&error))?
                .https_only()
                .enable_http1()
                .build();
            Arc::new(HyperClient::new(connector, TIMEOUT, None))
        } else {
            Arc::new(HyperClient::with_default_connector(TIMEOUT, None))
        };
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_shared_http_client(client)
            .with_endpoint(url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .with_headers(headers(settings.headers.expose())?)
            .build()
            .map_err(|error| wrong(&error))?;
        let resource = Resource::builder_empty()
            .with_service_name(settings.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new(
                "service.instance.id",
                uuid::Uuid::now_v7().to_string(),
            ))
            .build();
        exporter.set_resource(&resource);

        let (waiting, queue) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let queued = Queue {
            waiting,
            counts: Arc::clone(&counts),
        };
        let root = Sampler::TraceIdRatioBased(settings.sample.0);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(root)))
            .with_resource(resource)
            .with_span_processor(queued)
            .build();
        let scope = InstrumentationScope::builder("gathering").build();
        let tracer = BoxedTracer::new(Box::new(provider.tracer_with_scope(scope)));
        let this = Self {
            tracer: Arc::new(tracer),
            counts: Arc::clone(&counts),
        };
        let export = Export {
            exporter,
            queue,
            counts,
        };
        Ok(Some((this, export)))
    }

    /// Starts the span of an operation; `None` if it is not sampled. `parent` is the span of the client.
    pub(crate) fn operation(
        &self,
        operation: &Operation,
        request_id: &str,
        parent: Option<SpanContext>,
    ) -> Option<Span> {
        let kind = match operation.kind() {
            OperationType::Query => "query",
            OperationType::Mutation => "mutation",
            OperationType::Subscription => "subscription",
        };
        let builder = SpanBuilder::from_name(kind).with_kind(SpanKind::Server);
        let span = Span::start(&self.tracer, builder, parent)?;
        span.set("graphql.operation.type", kind);
        if let Some(name) = operation.name().filter(|name| name.len() <= NAME) {
            span.set("graphql.operation.name", name.to_owned());
        }
        span.set("gathering.request.id", request_id.to_owned());
        Some(span)
    }

    /// The number of spans sent, and the number of those lost because the collector did not take them.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let [sent, lost] = [&self.counts.sent, &self.counts.lost];
        (sent.load(Ordering::Relaxed), lost.load(Ordering::Relaxed))
    }
}

/// The headers of requests to the collector, from the notation of `OTEL_EXPORTER_OTLP_HEADERS`.
fn headers(text: &str) -> Result<HashMap<String, String>, StartError> {
    let wrong = || StartError::new("trace.headers must be pairs name=value, separated by commas");
    let pairs = text.split(',').map(str::trim);
    let pairs = pairs.filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = percent_decode_str(value.trim()).decode_utf8();
        let value = value.map_err(|_| wrong())?;
        let (name, value) = (name.trim().to_owned(), value.into_owned());
        let is_valid = HeaderName::try_from(&name).is_ok() && HeaderValue::try_from(&value).is_ok();
        is_valid.then_some((name, value)).ok_or_else(wrong)
    });
    pairs.collect()
}

/// The span of the client, from the headers of a request. Malformed headers count as absent.
pub(crate) fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (Some(_), None) = (values.next(), values.next()) else {
        return None;
    };
    let extractor = HeaderExtractor(headers);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &extractor);
    let parent = context.span().span_context().clone();
    parent.is_valid().then_some(parent)
}

/// Ends the span of an operation that was answered with one response, and adds the trace context to the response.
pub(crate) fn answered(span: &Span, response: &mut Response) {
    span.set(
        "http.response.status_code",
        i64::from(response.status().as_u16()),
    );
    span.end();
    let context = span.context();
    let (trace, id) = (context.trace_id(), context.span_id());
    if let Ok(value) = HeaderValue::try_from(format!("00-{trace}-{id}-01")) {
        response.headers_mut().insert(TRACERESPONSE, value);
    }
}

/// Adds the trace of an operation to the log of the request that started it.
pub(crate) fn log_request(span: &Span) {
    let trace_id = span.context().trace_id();
    tracing::Span::current().record("trace_id", tracing::field::display(trace_id));
}

/// The span of the log for one of several operations of a request.
pub(crate) fn log_span(span: Option<&Span>) -> tracing::Span {
    match span {
        Some(span) => {
            tracing::error_span!("operation", trace_id = %span.context().trace_id())
        }
        None => tracing::Span::none(),
    }
}

/// Queues the spans that have ended.
#[derive(Debug)]
struct Queue {
    waiting: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.waiting.try_send(span).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Export {
    /// Sends spans until the server stops, and then those that are left.
    pub async fn run(mut self, stopped: impl Future<Output = ()>) {
        let mut stopped = pin!(stopped.fuse());
        let mut spans = Vec::new();
        let mut is_failing = false;
        loop {
            tokio::select! {
                () = gather(&mut self.queue, &mut spans) => {}
                () = &mut stopped => {
                    self.queue.close();
                    continue;
                }
            }
            if spans.is_empty() {
                break;
            }
            let count = spans.len() as u64;
            let counter = match self.exporter.export(take(&mut spans)).await {
                Ok(()) => {
                    if is_failing {
                        tracing::info!("the collector of traces accepts spans again");
                    }
                    is_failing = false;
                    &self.counts.sent
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "the collector of traces does not accept spans; they are lost");
                    }
                    is_failing = true;
                    &self.counts.lost
                }
            };
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Adds the spans of the next request; none once the queue is closed and empty. Cancellation loses none.
async fn gather(queue: &mut mpsc::Receiver<SpanData>, spans: &mut Vec<SpanData>) {
    if spans.is_empty() && queue.recv_many(spans, BATCH).await == 0 {
        return;
    }
    let fill = async {
        while spans.len() < BATCH {
            let room = BATCH - spans.len();
            if queue.recv_many(spans, room).await == 0 {
                break;
            }
        }
    };
    let _ = timeout(DELAY, fill).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pairs_with_percent_encoded_values() {
        let found = headers(" authorization=Bearer%20a=, x-team = b ,").expect("is valid");
        let expected = [("authorization", "Bearer a="), ("x-team", "b")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(found, HashMap::from(expected));
        assert!(headers("").expect("is valid").is_empty());
        for text in ["authorization", "a b=c", "=c", "a=%0A", "a=%FF"] {
            let error = headers(text).expect_err(text).to_string();
            assert!(error.starts_with("trace.headers"), "{error}");
        }
    }
}
