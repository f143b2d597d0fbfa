//! The server itself: what it is and how it is.

use std::time::Instant;

use async_graphql::{Context, Object, SimpleObject};
use sea_orm::sea_query::{Alias, Expr, Query};
use uuid::Uuid;

use crate::{
    data::MAX_PAGE,
    db::{Count, Totals},
    error::Error,
    health::{HealthCheck, HealthReport, HealthStatus},
    rate_limit::{Tier, rate_limit},
    request::RequestExt,
    scalar::DateTime,
};

/// What the server is and which bounds it sets.
#[derive(SimpleObject)]
pub struct ServerInfo {
    /// The name of the product.
    name: &'static str,
    /// Its version, as in [semantic versioning](https://semver.org).
    version: &'static str,
    /// When this process began.
    started_at: DateTime,
    /// Most entries of a page.
    max_page_size: i32,
    /// Deepest nesting of a document's fields.
    max_depth: i32,
    /// Highest complexity of an operation: each field costs one and its selection, a connection's selection as many
    /// times as its page has entries.
    max_complexity: i32,
}

/// How the client stands with one root field.
#[derive(SimpleObject)]
pub struct RateLimitState {
    /// The root field.
    field: String,
    /// Its rate tier.
    tier: Tier,
    /// How often it may be asked for in a minute, and at once.
    limit: i32,
    /// How often it may be asked for now.
    remaining: i32,
    /// When `remaining` is `limit` again.
    reset_at: DateTime,
}

/// What an instance has done with live events since it started.
#[derive(SimpleObject)]
pub struct EventBusStats {
    /// Events that were handed out.
    published: f64,
    /// Events that subscribers were given; each counts for each of them.
    delivered: f64,
    /// Events that were left out because the latest one of their subject had just said the same.
    deduplicated: f64,
    /// How often a subscriber was so slow that it had to go on from the database.
    lagged: f64,
    /// How often something in the server that listens has failed.
    handler_errors: f64,
    /// Subscriptions that are open.
    subscribers: i32,
    /// Events that are kept in memory.
    history_size: i32,
}

/// Queries about the server.
#[derive(Default)]
pub struct ServerQuery;

#[Object]
impl ServerQuery {
    /// What the server is and which bounds it sets. For everyone.
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

    /// How the caller stands with each root field that they have asked for lately. For everyone, and free of charge.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn rate_limit(&self, ctx: &Context<'_>) -> Vec<RateLimitState> {
        let request = ctx.request();
        let limiter = &request.services.limiter;
        let bounded = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let standings = limiter
            .look(&request.rate_key, request.client.address)
            .await;
        let states = standings.into_iter().map(|standing| RateLimitState {
            field: standing.field,
            tier: standing.tier,
            limit: bounded(standing.limit),
            remaining: bounded(standing.remaining),
            reset_at: standing.reset_at.into(),
        });
        states.collect()
    }

    /// What this instance has done with live events since it started. For administrators.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn event_bus_stats(&self, ctx: &Context<'_>) -> Result<EventBusStats, Error> {
        let request = ctx.request();
        request.admin()?;
        let counts = request.services.bus.counts();
        #[expect(
            clippy::cast_precision_loss,
            reason = "GraphQL has no wider integers, and these are never that large"
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

    /// How the server is, looked at once a second at most. For administrators.
    #[graphql(directive = rate_limit::apply(Tier::Health))]
    async fn health(&self, ctx: &Context<'_>) -> Result<HealthReport, Error> {
        let request = ctx.request();
        request.admin()?;
        if let Some(report) = request.services.look.0.get(&()) {
            return Ok(report);
        }
        let asked = Instant::now();
        let one = Query::select()
            .expr_as(Expr::cust("CAST(1 AS BIGINT)"), Alias::new("count"))
            .take();
        let answer = request
            .load(
                Totals::<Count>::new("database check", one, None),
                Uuid::nil(),
            )
            .await;
        let (status, message) = match answer {
            Ok(_) => (HealthStatus::Up, None),
            Err(error) => (HealthStatus::Down, Some(error.message.into_owned())),
        };
        let mut checks = vec![HealthCheck {
            name: "database",
            status,
            message,
            latency_ms: Some(asked.elapsed().as_secs_f64() * 1e3),
        }];
        let alone = request.services.limiter.is_alone();
        checks.extend(alone.map(|alone| HealthCheck {
            name: "redis",
            status: if alone {
                HealthStatus::Degraded
            } else {
                HealthStatus::Up
            },
            message:
                alone.then(|| "Redis does not answer: each instance limits by itself.".to_owned()),
            latency_ms: None,
        }));
        let status = match status {
            HealthStatus::Up if alone == Some(true) => HealthStatus::Degraded,
            status => status,
        };
        let report = HealthReport { status, checks };
        request.services.look.0.insert((), report.clone());
        Ok(report)
    }
}
