//! The headers that tell of rate limits.
//!
//! `X-RateLimit-*` tell of the tightest bucket that a response has touched; `RateLimit` and `RateLimit-Policy`
//! (draft-ietf-httpapi-ratelimit-headers) of the tightest of each tier.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use gathering_schema::rate_limit::QuotaStatus;

/// The rate limit headers.
pub(super) const HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
];

/// The quotas that a response has used.
#[derive(Clone)]
pub(super) struct Standings(pub(super) Vec<QuotaStatus>);

/// Writes the rate limit headers.
pub(super) fn write(standings: &[QuotaStatus], headers: &mut HeaderMap) {
    let Some(tightest) = standings.iter().min_by_key(|standing| standing.remaining) else {
        return;
    };
    let mut tiers: Vec<&QuotaStatus> = Vec::new();
    for standing in standings {
        match tiers.iter_mut().find(|known| known.tier == standing.tier) {
            Some(known) if known.remaining > standing.remaining => *known = standing,
            Some(_) => {}
            None => tiers.push(standing),
        }
    }
    let policies = tiers.iter().map(|standing| {
        let (name, limit) = (standing.tier.name(), standing.limit);
        format!("\"{name}\";q={limit};w=60")
    });
    let states = tiers.iter().map(|standing| {
        let (name, remaining) = (standing.tier.name(), standing.remaining);
        format!("\"{name}\";r={remaining};t={}", standing.seconds())
    });
    let list = |items: Vec<String>| items.join(", ");
    let reset =
        tightest.reset_at.timestamp() + i64::from(tightest.reset_at.timestamp_subsec_nanos() > 0);
    let values = [
        tightest.limit.to_string(),
        tightest.remaining.to_string(),
        reset.to_string(),
        list(states.collect()),
        list(policies.collect()),
    ];
    for (name, value) in HEADERS.into_iter().zip(values) {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}
