//! The current values of the process, read on each scrape.

use std::fmt;
use std::sync::Arc;

use gathering_schema::{BatchSizes, Graph};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

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
            "Root fields that the rate limiter decided about, and operations for the tier `cost`",
            None,
            MetricType::Counter,
        )?;
        for count in self.graph.tier_counts() {
            for (outcome, number) in [("allowed", count.allowed), ("refused", count.refused)] {
                let labels = [("tier", count.tier.name()), ("outcome", outcome)];
                ConstCounter::new(number).encode(fields.encode_family(&labels)?)?;
            }
        }
        let local = encoder.encode_descriptor(
            "rate_limit_local_decisions",
            "Decisions that this instance has taken on its own because Redis did not answer in time",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.graph.local_decisions()).encode(local)?;
        let alone = encoder.encode_descriptor(
            "rate_limit_alone",
            "1 while Redis is configured but does not answer, so that this instance limits on its own",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(self.graph.limits_alone() == Some(true))).encode(alone)
    }

    fn pool(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let connections = self.database.connections();
        let mut states = encoder.encode_descriptor(
            "database_connections",
            "Connections of the pool that are open",
            None,
            MetricType::Gauge,
        )?;
        for (state, number) in [("in_use", connections.in_use), ("idle", connections.idle)] {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            ConstGauge::new(number).encode(states.encode_family(&[("state", state)])?)?;
        }
        let limit = encoder.encode_descriptor(
            "database_connections_limit",
            "Most connections that the pool opens; callers wait while all are in use",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(connections.max)).encode(limit)?;
        let callers = self.graph.database_callers();
        let waiting = callers.saturating_sub(connections.in_use);
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        let gauge = encoder.encode_descriptor(
            "database_callers_waiting",
            "Statements that wait for a connection of the pool, and transactions that wait for one or for their turn to write; background tasks make it lower by the connections that they use",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(waiting).encode(gauge)
    }

    fn process(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let resources = self.health.resources();
        for (metric, help, number) in [
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
                let family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                ConstGauge::new(number).encode(family)?;
            }
        }
        Ok(())
    }

    fn traces(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut spans = encoder.encode_descriptor(
            "trace_spans",
            "Spans that the collector has accepted, and those lost because it did not",
            None,
            MetricType::Counter,
        )?;
        let (sent, lost) = self.traces.as_ref().map_or((0, 0), Traces::counts);
        for (outcome, number) in [("sent", sent), ("lost", lost)] {
            let labels = [("outcome", outcome)];
            ConstCounter::new(number).encode(spans.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn addresses(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let counts = self.gate.counts();
        let mut requests = encoder.encode_descriptor(
            "address_limit_requests",
            "Requests and WebSocket messages that the limit of their address decided about",
            None,
            MetricType::Counter,
        )?;
        for (outcome, number) in [("allowed", counts.allowed), ("refused", counts.refused)] {
            let labels = [("outcome", outcome)];
            ConstCounter::new(number).encode(requests.encode_family(&labels)?)?;
        }
        let buckets = encoder.encode_descriptor(
            "address_limit_buckets",
            "Buckets of addresses held in memory",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::try_from(counts.buckets).unwrap_or(i64::MAX)).encode(buckets)
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
        ConstGauge::new(self.connection_limit.counted(Gauge::Connections)).encode(connections)?;
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
            ConstGauge::new(self.connection_limit.counted(gauge))
                .encode(streams.encode_family(&labels)?)?;
        }
        let mut ends = encoder.encode_descriptor(
            "websocket_closes",
            "Closed WebSocket connections, by the server's close code, by the client, or lost",
            None,
            MetricType::Counter,
        )?;
        for (code, number) in self.connection_limit.ends() {
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
        let lag = encoder.encode_descriptor(
            "event_relay_lag_seconds",
            "Time from the oldest event of the last pass that published any to its publication",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(events.relay_lag.as_secs_f64()).encode(lag)
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
