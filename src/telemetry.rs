//! Logs and request ids.
//!
//! An event is logged once, where it is handled, and never contains a token, a variable or an e-mail address.

use std::io::{self, IsTerminal};
use std::panic;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use tracing::Span;
use tracing_subscriber::EnvFilter;

use crate::StartError;
use crate::config::{self, LogFormat};

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
        tracing::info_span!("request", id = self.as_str(), %method, path)
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
        LogFormat::Json => events.json().flatten_event(true).init(),
    }
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, text, "panicked");
    }));
    Ok(())
}
