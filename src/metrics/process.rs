//! The current values of the process, read on each scrape.

use std::fmt;
use std::sync::Arc;

use gathering_schema::{BatchSizes, Graph};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::connections::{ConnectionLimit, Gauge};
use crate::db::Database;
use crate::health::Health;
use crate::http::Gate;
use crate::trace::Traces;

/// Reads the current values on each scrape.
pub(super) struct Process {
    pub(super) graph: Graph,
    pub(super) database: Database,
    pub(super) connection_limit: ConnectionLimit,
    pub(super) gate: Gate,
    pub(super) health: Arc<Health>,
    pub(super) traces: Option<Traces>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.rates(&mut encoder)?;
        self.addresses(&mut encoder)?;
        self.caches(&mut encoder)?;
        self.streams(&mut encoder)?;
        self.events(&mut encoder)?;
        self.loader(&mut encoder)?;
        self.pool(&mut encoder)?;
        self.process(&mut encoder)?;
        self.traces(&mut encoder)?;
        single(
            &mut encoder,
            "database_statements",
            "Statements sent to the database",
            &ConstCounter::new(self.database.statements()),
        )
    }
}

/// Writes a metric without labels.
fn single<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &M,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, M::TYPE)?)
}

/// Writes a metric for each set of labels.
fn family<L: EncodeLabelSet, M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metrics: impl IntoIterator<Item = (L, M)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, M::TYPE)?;
    for (labels, metric) in metrics {
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A gauge of whole numbers.
fn gauge(number: impl TryInto<i64>) -> ConstGauge<i64> {
    ConstGauge::new(number.try_into().unwrap_or(i64::MAX))
}

impl Process {
    fn rates(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let counts = self.graph.tier_counts().into_iter().flat_map(|count| {
            let outcomes = [("allowed", count.allowed), ("refused", count.refused)];
            outcomes.map(|(outcome, number)| {
                let labels = [("tier", count.tier.name()), ("outcome", outcome)];
                (labels, ConstCounter::new(number))
            })
        });
        family(
            encoder,
            "rate_limit_fields",
            "Root fields that the rate limiter decided about, and operations for the tier `cost`",
            counts,
        )?;
        single(
            encoder,
            "rate_limit_local_decisions",
            "Decisions that this instance has taken on its own because Redis did not answer in time",
            &ConstCounter::new(self.graph.local_decisions()),
        )?;
        single(
            encoder,
            "rate_limit_alone",
            "1 while Redis is configured but does not answer, so that this instance limits on its own",
            &gauge(self.graph.limits_alone() == Some(true)),
        )
    }

    fn pool(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let connections = self.database.connections();
        let states = [("in_use", connections.in_use), ("idle", connections.idle)];
        family(
            encoder,
            "database_connections",
            "Connections of the pool that are open",
            states.map(|(state, number)| ([("state", state)], gauge(number))),
        )?;
        single(
            encoder,
            "database_connections_limit",
            "Most connections that the pool opens; callers wait while all are in use",
            &gauge(connections.max),
        )?;
        let callers = self.graph.database_callers();
        single(
            encoder,
            "database_callers_waiting",
            "Statements that wait for a connection of the pool, and transactions that wait for one or for their turn to write; background tasks make it lower by the connections that they use",
            &gauge(callers.saturating_sub(connections.in_use)),
        )
    }

    fn process(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let resources = self.health.resources();
        for (name, help, number) in [
            (
                "process_resident_memory_bytes",
                "Resident memory of the process",
                Some(resources.memory),
            ),
            (
                "process_open_fds",
                "Open file descriptors of the process",
                resources.open_files,
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors of the process",
                resources.open_files_limit,
            ),
        ] {
            if let Some(number) = number {
                single(encoder, name, help, &gauge(number))?;
            }
        }
        Ok(())
    }

    fn traces(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let (sent, lost) = self.traces.as_ref().map_or((0, 0), Traces::counts);
        family(
            encoder,
            "trace_spans",
            "Spans that the collector has accepted, and those lost because it did not",
            [("sent", sent), ("lost", lost)]
                .map(|(outcome, number)| ([("outcome", outcome)], ConstCounter::new(number))),
        )
    }

    fn addresses(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let counts = self.gate.counts();
        family(
            encoder,
            "address_limit_requests",
            "Requests and WebSocket messages that the limit of their address decided about",
            [("allowed", counts.allowed), ("refused", counts.refused)]
                .map(|(outcome, number)| ([("outcome", outcome)], ConstCounter::new(number))),
        )?;
        single(
            encoder,
            "address_limit_buckets",
            "Buckets of addresses held in memory",
            &gauge(counts.buckets),
        )
    }

    fn caches(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let caches = self.graph.caches();
        let sizes = caches.map(|(name, stats)| ([("cache", name)], gauge(stats.size)));
        family(encoder, "cache_entries", "Entries held in memory", sizes)?;
        for (name, help, place) in [
            ("cache_hits", "Lookups that found an entry", 0),
            ("cache_misses", "Lookups that found no entry", 1),
            ("cache_evictions", "Entries evicted to free space", 2),
        ] {
            let numbers = caches.map(|(cache, stats)| {
                let number = [stats.hits, stats.misses, stats.evictions][place];
                ([("cache", cache)], ConstCounter::new(number))
            });
            family(encoder, name, help, numbers)?;
        }
        Ok(())
    }

    fn streams(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let open = |gauge| ConstGauge::new(self.connection_limit.counted(gauge));
        single(
            encoder,
            "websocket_connections",
            "Open WebSocket connections",
            &open(Gauge::Connections),
        )?;
        let transports = [
            ("websocket", Gauge::WebSocket),
            ("sse", Gauge::Events),
            ("multipart", Gauge::Multipart),
        ];
        family(
            encoder,
            "streams",
            "Open response streams; for WebSocket, all running operations",
            transports.map(|(transport, gauge)| ([("transport", transport)], open(gauge))),
        )?;
        let ends = self.connection_limit.ends();
        family(
            encoder,
            "websocket_closes",
            "Closed WebSocket connections, by the server's close code, by the client, or lost",
            ends.map(|(code, number)| ([("code", code)], ConstCounter::new(number))),
        )
    }

    fn events(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let events = self.graph.event_counts();
        for (name, help, number) in [
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
            single(encoder, name, help, &ConstCounter::new(number))?;
        }
        single(
            encoder,
            "event_subscribers",
            "Open event subscriptions",
            &gauge(events.subscribers),
        )?;
        single(
            encoder,
            "event_history",
            "Events held in memory",
            &gauge(events.history),
        )?;
        single(
            encoder,
            "event_relay_lag_seconds",
            "Time from the oldest event of the last pass that published any to its publication",
            &ConstGauge::new(events.relay_lag.as_secs_f64()),
        )
    }

    fn loader(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "loader_batch_keys",
            "Keys in one batch of the loader, by the name of the batch",
            None,
            MetricType::Histogram,
        )?;
        for sizes in self.graph.batch_sizes() {
            let bounds = BatchSizes::BOUNDS.map(f64::from);
            let mut buckets: Vec<_> = bounds.into_iter().zip(sizes.batches).collect();
            buckets.push((f64::INFINITY, 0));
            #[expect(
                clippy::cast_precision_loss,
                reason = "the sum of a histogram is a floating-point number"
            )]
            let keys = sizes.keys as f64;
            let count = sizes.batches.iter().sum();
            family
                .encode_family(&[("loader", sizes.name.as_str())])?
                .encode_histogram::<NoLabelSet>(keys, count, &buckets, None)?;
        }
        Ok(())
    }
}
