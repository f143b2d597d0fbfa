//! The result of an operation, an answer of the graph or a refusal, and its HTTP status.

use std::borrow::Cow;

use axum::http::StatusCode;
use chrono::SecondsFormat;
use gathering_schema::rate_limit::QuotaStatus;
use gathering_schema::{Answer, Code};
use serde::{Serialize, Serializer};

use super::media::Media;
use super::params::InvalidParams;
use crate::connections::Full;

/// An error of a request that did not reach the graph.
pub(crate) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: Code,
    pub(super) message: Cow<'static, str>,
    /// For 405: the allowed methods.
    pub(super) allow: Option<&'static str>,
    /// Seconds after which the client may retry.
    pub(super) retry_after: Option<u64>,
    /// For `INTERNAL`: the id to search for in the log.
    pub(super) request_id: Option<String>,
    /// For `RATE_LIMITED`: the bucket that is empty.
    pub(super) quota: Option<Box<QuotaStatus>>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code: Code::BadUserInput,
            message: message.into(),
            allow: None,
            retry_after: None,
            request_id: None,
            quota: None,
        }
    }

    pub(crate) fn bad(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn unauthenticated(message: &'static str) -> Self {
        Self {
            code: Code::Unauthenticated,
            ..Self::new(StatusCode::UNAUTHORIZED, message)
        }
    }

    pub(super) fn method(allow: &'static str, message: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message)
        }
    }

    /// The client does not accept a stream for a subscription.
    pub(super) fn many_answers() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "A subscription returns a stream of responses: accept text/event-stream or multipart/mixed;subscriptionSpec=1.0, or connect by WebSocket (graphql-transport-ws).",
        )
    }

    /// The limit of connections is reached.
    pub(super) fn full(full: Full) -> Self {
        Self {
            code: Code::Unavailable,
            retry_after: Some(FULL_RETRY),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, full.reason())
        }
    }

    /// An address sends too many requests.
    pub(super) fn rate_limited(quota: QuotaStatus) -> Self {
        let field = quota.field.as_deref().unwrap_or_default();
        let limit = quota.limit;
        let seconds = quota.seconds().max(1);
        let message = format!(
            "`{field}` is limited to {limit} requests per minute. Retry after {seconds} s."
        );
        Self {
            code: Code::RateLimited,
            retry_after: Some(seconds),
            quota: Some(Box::new(quota)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    pub(super) fn internal(request_id: String) -> Self {
        Self {
            code: Code::Internal,
            request_id: Some(request_id),
            ..Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal server error. Please report the request id.",
            )
        }
    }
}

impl From<InvalidParams> for Refusal {
    fn from(invalid: InvalidParams) -> Self {
        Self::bad(invalid.0)
    }
}

/// Seconds after which a client should retry to open a connection; open connections last long.
const FULL_RETRY: u64 = 5;

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Error<'a> {
            message: &'a str,
            extensions: Extensions<'a>,
        }

        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Extensions<'a> {
            code: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            request_id: Option<&'a str>,
            #[serde(flatten)]
            bucket: Option<Bucket>,
        }

        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Bucket {
            tier: &'static str,
            limit: u32,
            window_seconds: u32,
            remaining: u32,
            retry_after_ms: i64,
            reset_at: String,
        }

        let bucket = self.quota.as_ref().map(|quota| Bucket {
            tier: quota.tier.label(),
            limit: quota.limit,
            window_seconds: 60,
            remaining: quota.remaining,
            retry_after_ms: (quota.retry_in.unwrap_or_default() + 999) / 1_000,
            reset_at: quota.reset_at.to_rfc3339_opts(SecondsFormat::Micros, true),
        });

        let error = Error {
            message: &self.message,
            extensions: Extensions {
                code: self.code.as_str(),
                retry_after: self.retry_after,
                request_id: self.request_id.as_deref(),
                bucket,
            },
        };
        serializer.collect_map([("errors", [error])])
    }
}

/// The result of an operation, or one event of a subscription.
pub(crate) enum Outcome {
    Answered(Answer),
    Refused(Refusal),
}

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Self {
        Self::Answered(answer)
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Outcome {
    pub(super) fn quotas(&self) -> &[QuotaStatus] {
        match self {
            Self::Answered(answer) => answer.quotas(),
            Self::Refused(_) => &[],
        }
    }

    /// The code of its first error.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Answered(answer) => answer.code(),
            Self::Refused(refusal) => Some(refusal.code),
        }
    }

    /// The cursor after which the subscription can be resumed.
    pub(crate) fn cursor(&self) -> Option<&str> {
        match self {
            Self::Answered(answer) => answer.cursor(),
            Self::Refused(_) => None,
        }
    }

    /// Whether it has a `data` entry.
    pub(crate) fn ran(&self) -> bool {
        matches!(self, Self::Answered(answer) if answer.has_data())
    }

    pub(super) fn status(&self, media: Media) -> StatusCode {
        match self {
            Self::Answered(answer) => status(answer, media),
            Self::Refused(refusal) => refusal.status,
        }
    }

    pub(super) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Answered(answer) => answer.retry_after(),
            Self::Refused(_) => None,
        }
    }
}

/// The status of a response. With data, it is 200. A request error has its own status for clients of
/// `application/graphql-response+json`, and for all clients if caches, proxies or retries depend on it.
pub(super) fn status(answer: &Answer, media: Media) -> StatusCode {
    if answer.has_data() {
        return StatusCode::OK;
    }
    match answer.code() {
        Some(Code::Unauthenticated) => StatusCode::UNAUTHORIZED,
        Some(Code::Forbidden) => StatusCode::FORBIDDEN,
        Some(Code::RateLimited) => StatusCode::TOO_MANY_REQUESTS,
        Some(Code::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
        Some(Code::Timeout) => StatusCode::GATEWAY_TIMEOUT,
        Some(Code::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
        // In GraphQL over SSE, the stream also carries request errors.
        _ if matches!(media, Media::Json | Media::Events) => StatusCode::OK,
        _ => StatusCode::BAD_REQUEST,
    }
}
