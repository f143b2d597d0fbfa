//! The error of a refused root field.

use crate::{
    error::{Code, Error},
    rate_limit::QuotaStatus,
    scalar::DateTime,
};
use async_graphql::ScalarType;

/// `RATE_LIMITED`, with the time of the next attempt.
pub(crate) fn refused(quota: &QuotaStatus) -> Error {
    let (field, seconds) = (&quota.field, quota.seconds().max(1));
    let most = quota.limit;
    let message = if quota.cost > most {
        format!(
            "`{field}` is limited to {most} requests per minute, but the operation contains {}.",
            quota.cost
        )
    } else {
        format!("`{field}` is limited to {most} requests per minute. Retry after {seconds} s.")
    };
    let milliseconds = (quota.retry_in.unwrap_or_default().max(0) + 999) / 1_000;
    Error::new(Code::RateLimited, message)
        .with("tier", quota.tier.name().to_uppercase())
        .with("limit", most)
        .with("windowSeconds", 60)
        .with("remaining", 0)
        .with("retryAfter", seconds)
        .with("retryAfterMs", milliseconds)
        .with("resetAt", DateTime(quota.reset_at).to_value())
}
