//! From an outcome to a response.

use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, VARY, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use gathering_schema::Answer;
use serde::Serialize;

use super::media::Media;
use super::outcome::{Outcome, Refusal, status};
use super::rate_headers::Quotas;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = respond(self.status, Media::Response, self.retry_after, json(&self));
        if let Some(allow) = self.allow {
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

pub(super) fn answered(answer: &Answer, media: Media) -> Response {
    let retry_after = answer.retry_after().filter(|_| !answer.has_data());
    let mut body = Vec::new();
    answer.write(&mut body);
    let mut response = respond(status(answer, media), media, retry_after, body);
    if !answer.quotas().is_empty() {
        let quotas = Quotas(answer.quotas().to_vec());
        response.extensions_mut().insert(quotas);
    }
    response
}

/// The challenge for an invalid token (RFC 6750).
const CHALLENGE: &str = r#"Bearer realm="gathering", error="invalid_token""#;

pub(super) fn respond(
    status: StatusCode,
    media: Media,
    retry_after: Option<u64>,
    body: Vec<u8>,
) -> Response {
    let media = if status == StatusCode::OK {
        media
    } else {
        Media::Response
    };
    let mut response = (
        status,
        [
            (CONTENT_TYPE, media.content_type()),
            (CACHE_CONTROL, "no-store"),
            (VARY, "Accept"),
        ],
        body,
    )
        .into_response();
    if status == StatusCode::UNAUTHORIZED {
        let headers = response.headers_mut();
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
    }
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

impl Outcome {
    /// Appends the response map as JSON.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Answered(answer) => answer.write(out),
            Self::Refused(refusal) => out.extend(json(refusal)),
        }
    }
}

/// The JSON of a message or of a refusal.
pub(super) fn json(content: &(impl Serialize + ?Sized)) -> Vec<u8> {
    serde_json::to_vec(content).unwrap_or_else(|error| {
        tracing::error!(%error, "a response cannot be serialized as JSON");
        b"{}".to_vec()
    })
}
