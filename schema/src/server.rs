//! Server information, health, rate limits and statistics.

use async_graphql::{Context, Object, SimpleObject};

use crate::{
    data::MAX_PAGE,
    error::Error,
    health::{HealthReport, SystemMetrics},
    rate_limit::{QuotaStatus, Tier, WINDOW_SECONDS, rate_limit},
    request::RequestExt,
    scalar::DateTime,
};

/// The name, the version and the limits of the server.
#[derive(SimpleObject)]
pub struct ServerInfo {
    /// The product name.
    name: &'static str,
    /// The version, following [semantic versioning](https://semver.org).
    version: &'static str,
    /// When the process started.
    started_at: DateTime,
    /// The maximum page size.
    max_page_size: i32,
    /// The maximum nesting depth of fields.
    max_depth: i32,
    /// The maximum complexity of an operation.
    /// Each field costs 1 plus the cost of its selection; in a connection, the cost of the selection is multiplied by
    /// the page size.
    max_complexity: i32,
}

/// The caller's rate limit for one root field, for a tier, or for complexity.
#[derive(SimpleObject)]
pub struct RateLimitState {
    /// The name of the root field. Null for a tier of which no field was used recently, and for the tier `COST`.
    field: Option<String>,
    /// The rate tier.
    tier: Tier,
    /// The quota class that determines the limit. Null for the standard limits.
    class: Option<String>,
    /// The number of requests allowed in a window, and in one burst. For the tier `COST`, of complexity points.
    limit: i32,
    /// The length of the window in seconds, in which an empty quota becomes full again.
    window_seconds: i32,
    /// The amount charged for this operation.
    cost: i32,
    /// The amount used and not yet regained: `limit` minus `remaining`.
    used: i32,
    /// The amount left.
    remaining: i32,
    /// When `remaining` equals `limit` again.
    reset_at: DateTime,
}

/// Statistics of an instance's event bus since its start.
#[derive(SimpleObject)]
pub struct EventBusStats {
    /// The number of events published.
    published: f64,
    /// The number of events delivered; each event counts once per subscriber.
    delivered: f64,
    /// The number of events dropped because they equalled the latest event of their subject.
    deduplicated: f64,
    /// How often a slow subscriber had to continue from the database.
    lagged: f64,
    /// How often an event handler of the server failed.
    handler_errors: f64,
    /// The number of open subscriptions.
    subscribers: i32,
    /// The number of events in memory.
    history_size: i32,
}

/// Queries about the server.
#[derive(Default)]
pub struct ServerQuery;

#[Object]
impl ServerQuery {
    /// The name, the version and the limits of the server. No authentication required.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn server_info(&self, ctx: &Context<'_>) -> ServerInfo {
        let services = &ctx.request().services;
        let bounded = |limit: u64| i32::try_from(limit).unwrap_or(i32::MAX);
        ServerInfo {
            name: "Gathering",
            version: env!("CARGO_PKG_VERSION"),
            started_at: services.started_at.into(),
            max_page_size: bounded(MAX_PAGE),
            max_depth: bounded(services.limits.depth),
            max_complexity: bounded(services.limits.complexity),
        }
    }

    /// The caller's rate limits. No authentication required; not counted.
    /// One entry for each recently used root field, one for each tier without such a field, and one for complexity.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn rate_limit(&self, ctx: &Context<'_>) -> Vec<RateLimitState> {
        let request = ctx.request();
        let limiter = &request.services.limiter;
        let bounded = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let quotas = limiter.status(request.payer()).await;
        let states = quotas.into_iter().map(|quota| {
            let is_same =
                |known: &&QuotaStatus| known.tier == quota.tier && known.field == quota.field;
            let cost = request.charged.iter().find(is_same);
            let cost = cost.map_or(0, |charged| charged.cost);
            RateLimitState {
                tier: quota.tier,
                class: quota.class.as_deref().map(str::to_owned),
                limit: bounded(quota.limit),
                window_seconds: bounded(WINDOW_SECONDS),
                cost: bounded(cost),
                used: bounded(quota.used()),
                remaining: bounded(quota.remaining),
                reset_at: quota.reset_at.into(),
                field: quota.field,
            }
        });
        states.collect()
    }

    /// Statistics of this instance's event bus since its start. For administrators.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn event_bus_stats(&self, ctx: &Context<'_>) -> Result<EventBusStats, Error> {
        let request = ctx.request();
        request.admin()?;
        let counts = request.services.bus.counts();
        #[expect(
            clippy::cast_precision_loss,
            reason = "GraphQL has no 64-bit integers, and the counts are never that large"
        )]
        let wide = |number: u64| number as f64;
        let bounded = |number: u64| i32::try_from(number).unwrap_or(i32::MAX);
        Ok(EventBusStats {
            published: wide(counts.published),
            delivered: wide(counts.delivered),
            deduplicated: wide(counts.deduplicated),
            lagged: wide(counts.lagged),
            handler_errors: wide(counts.handler_errors),
            subscribers: bounded(counts.subscribers),
            history_size: bounded(counts.history),
        })
    }

    /// The health of the server, checked at most once a second. For administrators.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn health(&self, ctx: &Context<'_>) -> Result<HealthReport, Error> {
        let request = ctx.request();
        request.admin()?;
        Ok(request.services.monitor.health().await)
    }

    /// The resources of this instance's process, measured at most once a second. For administrators.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn system_metrics(&self, ctx: &Context<'_>) -> Result<SystemMetrics, Error> {
        let request = ctx.request();
        request.admin()?;
        Ok(request.services.monitor.system().await)
    }
}
