//! Refuses requests by their headers, before the body is read.

use std::net::IpAddr;

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use gathering_schema::Code;
use gathering_schema::auth::is_api_key;
use url::form_urlencoded;

use super::headers::token_in;
use super::media::Media;
use super::outcome::Refusal;
use crate::config;

/// Headers that require a CORS preflight.
const PREFLIGHTED: [&str; 4] = [
    "graphql-require-preflight",
    "apollo-require-preflight",
    "x-apollo-operation-name",
    "authorization",
];

/// Refuses a request that a browser may have sent for another origin without a CORS preflight (CSRF).
///
/// A POST is safe: it must be JSON, which requires a preflight. A GET only runs queries, so a forged one changes
/// nothing and its response stays hidden from the other origin; but it would use resources and the rate limit of its
/// victim. Browsers state the origin of a request in `Sec-Fetch-Site` or at least in `Origin`. Other programs send
/// neither and may use plain GET, as in the GraphQL-over-HTTP specification. A header that requires a preflight proves
/// that there was one.
pub(super) fn must_not_be_forged(headers: &HeaderMap) -> Result<(), Refusal> {
    if is_own(headers)
        || PREFLIGHTED.iter().any(|name| headers.contains_key(*name))
        || must_be_json(headers).is_ok()
    {
        return Ok(());
    }
    Err(Refusal {
        code: Code::Forbidden,
        ..Refusal::new(
            StatusCode::FORBIDDEN,
            "A cross-site GET requires the header GraphQL-Require-Preflight.",
        )
    })
}

/// Refuses an API key in a parameter of the URL, because URLs are stored in logs and browser histories.
pub(super) fn must_not_contain_key(query: Option<&str>) -> Result<(), Refusal> {
    let values = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let has_key = |value: &str| is_api_key(token_in(value).unwrap_or(value.trim_start()));
    if values.into_iter().any(|(_, value)| has_key(&value)) {
        return Err(Refusal::bad(
            "The URL contains an API key. Revoke this key, and send the next one in the header `Authorization: Bearer …`.",
        ));
    }
    Ok(())
}

/// Whether a request comes from a page of this server, or from a client other than a browser.
fn is_own(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, host)| host) == text("host"),
        (None, None) => true,
    }
}

/// Refuses a WebSocket from another origin, unless that origin is allowed by CORS.
///
/// The server reads no cookies, so such a page has no credentials of its visitor. But CORS does not apply to WebSocket
/// connections: the page could read responses, using the rate limit of its visitor and from behind the visitor's
/// firewall. Therefore an origin may connect exactly if it may send requests.
pub(super) fn must_be_allowed(
    headers: &HeaderMap,
    allowed: &config::Origins,
) -> Result<(), Refusal> {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let is_listed = |listed: &String| listed == "*" || Some(listed.as_str()) == origin;
    if is_own(headers) || allowed.0.iter().any(is_listed) {
        return Ok(());
    }
    Err(Refusal {
        code: Code::Forbidden,
        ..Refusal::new(
            StatusCode::FORBIDDEN,
            "This origin is not allowed to call this server.",
        )
    })
}

/// Refuses a request to a host name other than `localhost` (DNS rebinding).
///
/// A server that signs its visitors in listens on a local address, but a browser on this machine also runs pages of
/// other sites. A page whose host name resolves to this machine would have the same origin as the server. Therefore
/// host names are refused; IP addresses cannot be rebound.
pub(super) fn must_be_local(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(
        host,
        |(name, port)| if port.ends_with(']') { host } else { name },
    );
    let address = name.trim_start_matches('[').trim_end_matches(']');
    if name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(Refusal {
        code: Code::Forbidden,
        ..Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "The host name must be localhost or an IP address.",
        )
    })
}

/// Refuses a body that is not JSON in UTF-8 without content encoding.
pub(super) fn must_be_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let content_type = match (types.next(), types.next()) {
        (Some(one), None) => one.to_str().unwrap_or_default(),
        _ => "",
    };
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|essence| essence.eq_ignore_ascii_case(Media::Json.essence()));
    let utf8 = parts
        .filter_map(|part| part.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .all(|(_, charset)| {
            let charset = charset.trim().trim_matches('"');
            // `utf8` is not a registered name, but a label of the Encoding Standard, and common.
            ["utf-8", "utf8"]
                .iter()
                .any(|utf8| charset.eq_ignore_ascii_case(utf8))
        });
    let plain = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if json && utf8 && plain {
        Ok(())
    } else {
        Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Send the operation as Content-Type: application/json, in UTF-8 and not compressed.",
        ))
    }
}
