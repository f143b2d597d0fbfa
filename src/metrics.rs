//! `/metrics`: counters and gauges of the process, in the Prometheus text format.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use gathering_schema::Graph;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::db::Database;
use crate::seat::{Gauge, Seats};

/// The route `/metrics`.
pub fn routes(graph: Graph, database: Database, seats: Seats) -> Router {
    let mut registry = Registry::with_prefix("gathering");
    registry.register_collector(Box::new(Process {
        graph,
        database,
        seats,
    }));
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(Arc::new(registry))
}

async fn metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        tracing::error!(%error, "the metrics cannot be encoded");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let content_type = match accept {
        Some(accept) if accept.contains("application/openmetrics-text") => {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
        _ => {
            text = older(&text);
            "text/plain; version=0.0.4; charset=utf-8"
        }
    };
    (
        [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")],
        text,
    )
        .into_response()
}

/// Converts the text to the Prometheus format before `OpenMetrics`, in which the HELP and TYPE lines of a counter have
/// its full name.
fn older(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let counters: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut older = String::with_capacity(text.len());
    for line in lines {
        let described = line
            .strip_prefix("# ")
            .and_then(|line| line.split_once(' '))
            .and_then(|(what, rest)| Some((what, rest.split_once(' ')?)));
        match described {
            Some((what, (name, rest))) if counters.contains(&name) => {
                older.extend(["# ", what, " ", name, "_total ", rest, "\n"]);
            }
            None if line == "# EOF" => {}
            _ => older.extend([line, "\n"]),
        }
    }
    older
}

/// Reads the current values on each scrape.
struct Process {
    graph: Graph,
    database: Database,
    seats: Seats,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.rates(&mut encoder)?;
        self.caches(&mut encoder)?;
        self.streams(&mut encoder)?;
        self.events(&mut encoder)?;
        let statements = encoder.encode_descriptor(
            "database_statements",
            "Statements sent to the database",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.database.statements()).encode(statements)
    }
}

impl Process {
    fn rates(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut fields = encoder.encode_descriptor(
            "rate_limit_fields",
            "Decisions of the rate limiter on root fields and requests",
            None,
            MetricType::Counter,
        )?;
        for count in self.graph.tier_counts() {
            for (outcome, number) in [("allowed", count.allowed), ("refused", count.refused)] {
                let labels = [("tier", count.tier.name()), ("outcome", outcome)];
                ConstCounter::new(number).encode(fields.encode_family(&labels)?)?;
            }
        }
        let alone = encoder.encode_descriptor(
            "rate_limit_alone",
            "1 while Redis is configured but does not answer, so that this instance limits on its own",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(self.graph.limits_alone() == Some(true))).encode(alone)
    }

    fn caches(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let caches = self.graph.caches();
        let mut entries = encoder.encode_descriptor(
            "cache_entries",
            "Entries held in memory",
            None,
            MetricType::Gauge,
        )?;
        for (name, stats) in &caches {
            let size = i64::try_from(stats.size).unwrap_or(i64::MAX);
            ConstGauge::new(size).encode(entries.encode_family(&[("cache", *name)])?)?;
        }
        for (metric, help, of) in [
            ("cache_hits", "Lookups that found an entry", 0),
            ("cache_misses", "Lookups that found no entry", 1),
            ("cache_evictions", "Entries evicted to free space", 2),
        ] {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            for (name, stats) in &caches {
                let number = [stats.hits, stats.misses, stats.evictions][of];
                ConstCounter::new(number).encode(family.encode_family(&[("cache", *name)])?)?;
            }
        }
        Ok(())
    }

    fn streams(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let connections = encoder.encode_descriptor(
            "websocket_connections",
            "Open WebSocket connections",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(self.seats.counted(Gauge::Connections)).encode(connections)?;
        let mut streams = encoder.encode_descriptor(
            "streams",
            "Open response streams; for WebSocket, all running operations",
            None,
            MetricType::Gauge,
        )?;
        for (transport, gauge) in [
            ("websocket", Gauge::WebSocket),
            ("sse", Gauge::Events),
            ("multipart", Gauge::Multipart),
        ] {
            let labels = [("transport", transport)];
            ConstGauge::new(self.seats.counted(gauge)).encode(streams.encode_family(&labels)?)?;
        }
        let mut ends = encoder.encode_descriptor(
            "websocket_closes",
            "Closed WebSocket connections, by the server's close code, by the client, or lost",
            None,
            MetricType::Counter,
        )?;
        for (code, number) in self.seats.ends() {
            ConstCounter::new(number).encode(ends.encode_family(&[("code", code)])?)?;
        }
        Ok(())
    }

    fn events(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let events = self.graph.event_counts();
        for (metric, help, number) in [
            (
                "events_published",
                "Events distributed by this instance, including those of other instances",
                events.published,
            ),
            (
                "events_delivered",
                "Events delivered to subscribers, counted per subscriber",
                events.delivered,
            ),
            (
                "events_deduplicated",
                "Events dropped as duplicates",
                events.deduplicated,
            ),
            (
                "events_lagged",
                "Times a slow subscriber fell back to reading from the database",
                events.lagged,
            ),
            (
                "event_handler_errors",
                "Errors of internal event handlers",
                events.handler_errors,
            ),
        ] {
            let family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            ConstCounter::new(number).encode(family)?;
        }
        for (metric, help, number) in [
            (
                "event_subscribers",
                "Open event subscriptions",
                events.subscribers,
            ),
            ("event_history", "Events held in memory", events.history),
        ] {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            let family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            ConstGauge::new(number).encode(family)?;
        }
        Ok(())
    }
}
