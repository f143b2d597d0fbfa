//! Compression of responses, in the coding that a client prefers.
//!
//! Streams are never compressed, because the encoder would delay their events. The length of a compressed response does
//! not leak a token to another web site (BREACH), because a browser does not add the token by itself.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::ACCEPT_ENCODING;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

use super::accept::weighed;
use super::media::Media;

/// Shortest body that is compressed, in bytes. A shorter one fits into one packet.
const SHORTEST: u64 = 1 << 10;

/// Compresses with brotli, gzip or zstd.
pub(super) fn layer() -> CompressionLayer<impl Predicate> {
    CompressionLayer::new().compress_when(
        SizeAbove::new(SHORTEST)
            .and(NotForContentType::const_new(Media::Events.essence()))
            .and(NotForContentType::const_new(Media::Multipart.essence()))
            .and(NotForContentType::IMAGES)
            .and(NotForContentType::const_new("font/woff2")),
    )
}

/// Ignores `identity;q=0` and `*;q=0`. The layer would answer 406 after the operation has run.
pub(super) fn allow_identity(request: &mut Request) {
    let lines = request.headers().get_all(ACCEPT_ENCODING).iter();
    let accepted: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
    let accepted = accepted.join(",");
    let refuses = |coding: &str| {
        let (coding, _, weight) = weighed(coding);
        weight <= 0.0 && (coding == "*" || coding.eq_ignore_ascii_case("identity"))
    };
    if accepted.split(',').any(refuses) {
        let rest: Vec<&str> = accepted.split(',').filter(|item| !refuses(item)).collect();
        match HeaderValue::try_from(rest.join(",")) {
            Ok(rest) if !rest.is_empty() => request.headers_mut().insert(ACCEPT_ENCODING, rest),
            _ => request.headers_mut().remove(ACCEPT_ENCODING),
        };
    }
}
