//! The rate limit headers of a response.
//!
//! `X-RateLimit-*` describe the tightest bucket of requests that a response has touched, or the bucket that has refused;
//! `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers) of the tightest of each tier.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use gathering_schema::rate_limit::{QuotaStatus, Tier};

/// The rate limit headers.
pub(super) const HEADERS: [HeaderName; 6] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("x-ratelimit-class"),
];

/// The quotas that a response has used.
#[derive(Clone)]
pub(super) struct Quotas(pub(super) Vec<QuotaStatus>);

/// Writes the headers of a response whose client has entered through the gate with this status. The bucket of the
/// address is reported only if it has the least remaining tokens.
pub(super) fn add(entered: Option<QuotaStatus>, response: &mut Response) {
    let touched = response.extensions_mut().remove::<Quotas>();
    let mut statuses = touched.map(|touched| touched.0).unwrap_or_default();
    let is_refused = statuses.iter().any(|status| status.retry_in.is_some());
    let requests = statuses.iter().filter(|status| status.tier != Tier::Cost);
    let left = requests.map(|status| status.remaining).min();
    let is_tighter = |entered: &QuotaStatus| left.is_none_or(|left| entered.remaining < left);
    let entered = entered.into_iter().filter(is_tighter);
    statuses.extend(entered.filter(|_| !is_refused));
    write(&statuses, response.headers_mut());
}

/// Writes the rate limit headers.
pub(super) fn write(quotas: &[QuotaStatus], headers: &mut HeaderMap) {
    // Points are not comparable with requests.
    let tightness = |quota: &&QuotaStatus| {
        let is_cost = quota.tier == Tier::Cost;
        (quota.retry_in.is_none(), is_cost, quota.remaining)
    };
    let Some(tightest) = quotas.iter().min_by_key(tightness) else {
        return;
    };
    let mut tiers: Vec<&QuotaStatus> = Vec::new();
    for quota in quotas {
        match tiers.iter_mut().find(|known| known.tier == quota.tier) {
            Some(known) if known.remaining > quota.remaining => *known = quota,
            Some(_) => {}
            None => tiers.push(quota),
        }
    }
    let (mut states, mut policies) = (String::with_capacity(64), String::with_capacity(64));
    for (place, quota) in tiers.iter().enumerate() {
        let (name, limit, remaining) = (quota.tier.name(), quota.limit, quota.remaining);
        let separator = if place == 0 { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(policies, "{separator}\"{name}\";q={limit};w=60");
        let seconds = quota.seconds();
        let _ = write!(states, "{separator}\"{name}\";r={remaining};t={seconds}");
    }
    let reset =
        tightest.reset_at.timestamp() + i64::from(tightest.reset_at.timestamp_subsec_nanos() > 0);
    let class = quotas.iter().find_map(|quota| quota.class.as_deref());
    let values = [
        Some(tightest.limit.into()),
        Some(tightest.remaining.into()),
        Some(reset.into()),
        states.try_into().ok(),
        policies.try_into().ok(),
        class.and_then(|class| HeaderValue::from_str(class).ok()),
    ];
    for (name, value) in HEADERS.into_iter().zip(values) {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}
