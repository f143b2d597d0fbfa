//! The quotas of a response, and the error of a refused root field.

use crate::{
    error::{Code, Error},
    rate_limit::{QuotaStatus, Tier},
    scalar::DateTime,
};
use async_graphql::ScalarType;
use serde::{Serialize, Serializer, ser::SerializeMap};

/// The length of the window, in seconds.
pub(crate) const WINDOW_SECONDS: u32 = 60;

/// `RATE_LIMITED`, with the time of the next attempt.
pub(crate) fn refused(quota: &QuotaStatus) -> Error {
    let (seconds, most, cost) = (quota.seconds().max(1), quota.limit, quota.cost);
    let fits = cost <= most;
    let message = match &quota.field {
        Some(field) if fits => {
            format!("`{field}` is limited to {most} requests per minute. Retry after {seconds} s.")
        }
        Some(field) => format!(
            "`{field}` is limited to {most} requests per minute, but the operation contains {cost}."
        ),
        None if fits => format!(
            "The complexity of operations is limited to {most} points per minute, and this one needs {cost}. Retry after {seconds} s."
        ),
        None => format!(
            "The complexity of operations is limited to {most} points per minute, but this one needs {cost}. Request smaller pages."
        ),
    };
    let milliseconds = (quota.retry_in.unwrap_or_default().max(0) + 999) / 1_000;
    // A field is refused when its bucket is empty; the points left are too few for this operation.
    let remaining = match quota.tier {
        Tier::Cost => quota.remaining,
        _ => 0,
    };
    Error::new(Code::RateLimited, message)
        .with("tier", quota.tier.label())
        .with("limit", most)
        .with("windowSeconds", WINDOW_SECONDS)
        .with("remaining", remaining)
        .with("retryAfter", seconds)
        .with("retryAfterMs", milliseconds)
        .with("resetAt", DateTime(quota.reset_at).to_value())
}

/// Adds `rateLimit` and `cost` to the extensions of a response.
pub(crate) fn report<M: SerializeMap>(quotas: &[QuotaStatus], map: &mut M) -> Result<(), M::Error> {
    let is_cost = |quota: &&QuotaStatus| quota.tier == Tier::Cost;
    if !quotas.iter().all(|quota| is_cost(&quota)) {
        map.serialize_entry("rateLimit", &Fields(quotas))?;
    }
    if let Some(quota) = quotas.iter().find(is_cost) {
        map.serialize_entry("cost", &CostQuota::from(quota))?;
    }
    Ok(())
}

/// The quotas of root fields.
struct Fields<'a>(&'a [QuotaStatus]);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = self.0.iter().filter(|quota| quota.tier != Tier::Cost);
        serializer.collect_seq(fields.map(FieldQuota::from))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FieldQuota<'a> {
    field: Option<&'a str>,
    tier: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    limit: u32,
    window_seconds: u32,
    cost: u32,
    used: u32,
    remaining: u32,
    reset_at: DateTime,
}

impl<'a> From<&'a QuotaStatus> for FieldQuota<'a> {
    fn from(quota: &'a QuotaStatus) -> Self {
        Self {
            field: quota.field.as_deref(),
            tier: quota.tier.label(),
            class: quota.class.as_deref(),
            limit: quota.limit,
            window_seconds: WINDOW_SECONDS,
            cost: quota.cost,
            used: quota.used(),
            remaining: quota.remaining,
            reset_at: DateTime(quota.reset_at),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CostQuota<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    limit: u32,
    window_seconds: u32,
    requested: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    actual: Option<u32>,
    used: u32,
    remaining: u32,
    reset_at: DateTime,
}

impl<'a> From<&'a QuotaStatus> for CostQuota<'a> {
    fn from(quota: &'a QuotaStatus) -> Self {
        Self {
            class: quota.class.as_deref(),
            limit: quota.limit,
            window_seconds: WINDOW_SECONDS,
            requested: quota.cost,
            actual: quota.actual,
            used: quota.used(),
            remaining: quota.remaining,
            reset_at: DateTime(quota.reset_at),
        }
    }
}
