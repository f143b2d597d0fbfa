//! Which scripts of other web sites may call the server.

use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::headers::{IDEMPOTENCY_KEY, LAST_EVENT_ID, USAGE};
use super::rate_headers;
use crate::config;
use crate::trace::TRACERESPONSE;

/// Allows scripts of the configured origins to call the server. Tokens are sent in headers, never in cookies, so a
/// browser adds no credentials on its own.
pub(super) fn cors(origins: &config::Origins) -> Option<CorsLayer> {
    let origins = match origins.0.as_slice() {
        [] => return None,
        [all] if all == "*" => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().filter_map(|origin| origin.parse().ok())),
    };
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(ALLOWED.map(HeaderName::from_static))
            .expose_headers(
                [
                    RETRY_AFTER,
                    HeaderName::from_static("x-request-id"),
                    TRACERESPONSE,
                ]
                .into_iter()
                .chain(rate_headers::HEADERS)
                .collect::<Vec<_>>(),
            )
            .max_age(PREFLIGHT_AGE),
    )
}

/// How long a browser may cache the result of a CORS preflight.
const PREFLIGHT_AGE: Duration = Duration::from_hours(1);

/// Headers that cross-origin scripts may send: those that the server reads, and those that GraphQL clients and tracing
/// libraries add. Headers of proxies, such as `X-Forwarded-For`, are not among them.
const ALLOWED: [&str; 31] = [
    "accept",
    "authorization",
    "cache-control",
    "content-type",
    IDEMPOTENCY_KEY,
    LAST_EVENT_ID,
    USAGE,
    "graphql-require-preflight",
    "apollo-require-preflight",
    "apollographql-client-name",
    "apollographql-client-version",
    "x-apollo-operation-id",
    "x-apollo-operation-name",
    "x-graphql-client-name",
    "x-graphql-client-version",
    "x-graphql-event-stream-token",
    "x-requested-with",
    "x-request-id",
    "x-correlation-id",
    "traceparent",
    "tracestate",
    "baggage",
    "sentry-trace",
    "b3",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-datadog-origin",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-trace-id",
];
