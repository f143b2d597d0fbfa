//! Logs and request ids.
//!
//! An event is logged once, where it is handled, and never contains a token, a variable or an e-mail address.

use std::io::{self, IsTerminal};
use std::{fmt, panic};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde_json::{Map, Value};
use tracing::{Event, Span, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer, format};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{self, LogFormat};
use crate::{StartError, trace};

/// The id of a request, in logs, in `INTERNAL` errors and in the response header `X-Request-Id`.
#[derive(Clone, Debug)]
pub struct RequestId(HeaderValue);

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

impl RequestId {
    /// The id as text: 1 to 64 letters, digits, `-`, `_` and `.`.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The client's id if it is valid, otherwise a new one.
    pub(crate) fn of(request: &Request) -> Self {
        let well_formed = |id: &&HeaderValue| {
            let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
            (1..=64).contains(&id.len()) && id.as_bytes().iter().all(fits)
        };
        let received = request.headers().get(&HEADER).filter(well_formed);
        Self(received.cloned().unwrap_or_else(|| {
            let mut text = [0; uuid::fmt::Simple::LENGTH];
            let text = uuid::Uuid::now_v7().as_simple().encode_lower(&mut text);
            HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("-"))
        }))
    }

    /// The span of the request.
    pub(crate) fn span(&self, request: &Request) -> Span {
        let (method, path) = (request.method(), request.uri().path());
        let trace_id = trace::parent(request.headers()).map(|parent| parent.trace_id());
        let trace_id = trace_id.map(tracing::field::display);
        // At the highest level, so that every filter keeps the ids.
        tracing::error_span!("request", request_id = self.as_str(), trace_id, %method, path)
    }

    /// Adds the header of the id to the response.
    pub(crate) fn write(self, response: &mut Response) {
        response.headers_mut().insert(HEADER, self.0);
    }
}

/// Starts logging events and panics to standard error.
///
/// # Errors
/// The filter is invalid.
pub fn start(settings: &config::Log) -> Result<(), StartError> {
    let filter = EnvFilter::try_new(&settings.filter)
        .map_err(|error| StartError::new(format!("log.filter: {error}")))?;
    let events = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match settings.format {
        LogFormat::Text => events.init(),
        LogFormat::Json => events
            .fmt_fields(JsonFields::new())
            .event_format(JsonLine::new())
            .init(),
    }
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, text, "panicked");
    }));
    Ok(())
}

/// The format of an event as one JSON object: the fields of the event and of the spans around it, such as `request_id`
/// and `trace_id`, in one level.
struct JsonLine(Format<Json>);

impl JsonLine {
    fn new() -> Self {
        let line = format().json().flatten_event(true);
        Self(line.with_current_span(false).with_span_list(false))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, JsonFields> for JsonLine {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text);
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        let mut line = object(&line).map_err(|_| fmt::Error)?;
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>();
            let fields = fields.and_then(|fields| object(fields).ok());
            for (name, value) in fields.into_iter().flatten() {
                // The event and the inner spans have precedence.
                line.entry(name).or_insert(value);
            }
        }
        let line = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}
