//! The request headers that the graph uses.

use std::borrow::Cow;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use super::outcome::Refusal;

/// The idempotency key of a mutation.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The header with the id of the last event that the client of a stream received.
pub(super) const LAST_EVENT_ID: &str = "last-event-id";

/// The header that requests the usage of an operation.
pub(super) const USAGE: &str = "x-gathering-usage";

/// The access token or the API key, from the header only: URLs end up in logs and browser histories.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(AUTHORIZATION) {
            Err(Refusal::unauthenticated(
                "Send one Authorization header, not several.",
            ))
        } else {
            Ok(None)
        };
    };
    let token = value.to_str().ok().and_then(token_in);
    token
        .map(Some)
        .ok_or_else(|| Refusal::unauthenticated(NO_BEARER))
}

/// The value of a header that may occur once. Bytes that are not UTF-8 become replacement characters, so that the value
/// is refused as unknown instead of being treated as absent.
pub(super) fn text<'a>(
    headers: &'a HeaderMap,
    name: &str,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(String::from_utf8_lossy(value.as_bytes()))),
        _ => Err(Refusal::bad(format!("Send the header `{name}` only once."))),
    }
}

/// The error message for an authorization without a token.
pub(crate) const NO_BEARER: &str =
    "Authorization must be `Bearer` followed by an access token or an API key.";

/// The token of a `Bearer` authorization.
pub(crate) fn token_in(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
