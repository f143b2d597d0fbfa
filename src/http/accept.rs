//! Content negotiation: which form of answer a client prefers.

use std::cmp::Reverse;

use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};

use super::media::{Media, parameter};
use super::outcome::Refusal;

/// Picks the offer with the highest weight in `Accept`. Ties are resolved by the more specific range, then by the
/// earlier range, then by the earlier offer.
pub(super) fn prefer(headers: &HeaderMap, offers: &[Media]) -> Result<Media, Refusal> {
    let mut lines = headers.get_all(ACCEPT).iter();
    // Most clients name one type.
    if let (Some(line), None) = (lines.next(), lines.next())
        && let Some(offer) = offers.iter().find(|offer| line == offer.essence())
        && *offer != Media::Multipart
    {
        return Ok(*offer);
    }
    // A value that is not text matches no type, but is not the same as a missing header.
    let lines: Vec<_> = headers
        .get_all(ACCEPT)
        .iter()
        .map(|line| String::from_utf8_lossy(line.as_bytes()))
        .collect();
    let accept = Some(lines.join(",")).filter(|accept| !accept.trim().is_empty());
    let ranges: Vec<(&str, &str, f32)> = accept
        .as_deref()
        .unwrap_or("*/*")
        .split(',')
        .map(weighed)
        .collect();
    let rank = |offer: Media| {
        let matches =
            ranges
                .iter()
                .enumerate()
                .filter_map(|(place, &(range, parameters, weight))| {
                    Some((offer.matched_by(range, parameters)?, Reverse(place), weight))
                });
        // The most specific range decides, even if it refuses the type.
        let (exact, place, weight) = matches.max_by_key(|&(exact, place, _)| (exact, place))?;
        (weight > 0.0).then_some((offer, weight, (exact, place)))
    };
    let best = offers.iter().rev().filter_map(|&offer| rank(offer));
    best.max_by(|a, b| a.1.total_cmp(&b.1).then(a.2.cmp(&b.2)))
        .map(|(offer, ..)| offer)
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::NOT_ACCEPTABLE,
                "Accept application/graphql-response+json or application/json.",
            )
        })
}

/// A media range of `Accept`, with its parameters and its weight `q`.
pub(super) fn weighed(item: &str) -> (&str, &str, f32) {
    let (range, parameters) = item.split_once(';').unwrap_or((item, ""));
    let weight = parameter(parameters, "q");
    let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
    (range.trim(), parameters, weight)
}
