//! `/metrics`: counters and gauges of the process, in the Prometheus text format.

mod process;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use gathering_schema::{Code, Graph, Operation};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use self::process::Process;
use crate::connections::ConnectionLimit;
use crate::db::Database;
use crate::health::Health;
use crate::http::Gate;
use crate::trace::Traces;

/// Upper bounds of the latency histogram, in seconds.
const LATENCIES: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// Upper bounds of the histogram of statements.
const STATEMENTS: [f64; 8] = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Maximum number of operation names with metrics. Clients choose the names, so there must be a bound.
const NAMES: usize = 100;

/// Maximum length of an operation name with metrics, in bytes.
const NAME_LENGTH: usize = 64;

/// The label of operations whose names exceed the bound.
const OTHER: &str = "(other)";

type Labels<const N: usize> = [(&'static str, &'static str); N];

type NameLabels = [(&'static str, Cow<'static, str>); 2];

/// Counts GraphQL operations. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Metrics {
    operations: Family<Labels<3>, Counter>,
    latencies: Family<Labels<2>, Histogram, fn() -> Histogram>,
    named: Family<NameLabels, Histogram, fn() -> Histogram>,
    statements: Family<Labels<1>, Histogram, fn() -> Histogram>,
    names: Arc<RwLock<HashSet<String>>>,
}

/// What the metrics of an operation are grouped by.
pub struct Label {
    kind: OperationKind,
    name: Option<String>,
    /// Whether the name may be added to those with metrics.
    is_trusted: bool,
}

impl Label {
    /// The label of an operation, and whether a token was sent with it.
    pub fn of(operation: &Operation, has_token: bool) -> Self {
        Self {
            kind: operation.kind().into(),
            name: operation.name().map(str::to_owned),
            // A sign-in runs whatever the token is.
            is_trusted: has_token && !operation.signs_in(),
        }
    }

    /// The label of a request that was refused before its operation was known.
    pub fn unknown() -> Self {
        Self {
            kind: OperationKind::Unknown,
            name: None,
            is_trusted: false,
        }
    }
}

/// The kind of a GraphQL operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// A query.
    Query,
    /// A mutation.
    Mutation,
    /// A subscription: its start, not its events.
    Subscription,
    /// The request was refused before its operation was known.
    Unknown,
}

/// The outcome of a GraphQL operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationOutcome {
    /// Executed without an error.
    Ok,
    /// Executed, with an error in at least one field; the code is that of the first one.
    Partial(Code),
    /// Not executed.
    Refused(Code),
}

impl From<OperationType> for OperationKind {
    fn from(kind: OperationType) -> Self {
        match kind {
            OperationType::Query => Self::Query,
            OperationType::Mutation => Self::Mutation,
            OperationType::Subscription => Self::Subscription,
        }
    }
}

impl OperationKind {
    fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Mutation => "mutation",
            Self::Subscription => "subscription",
            Self::Unknown => "unknown",
        }
    }
}

impl OperationOutcome {
    /// The outcome of a response: whether it has a `data` key, and the code of its first error.
    pub fn new(has_data: bool, code: Option<Code>) -> Self {
        match (has_data, code) {
            (true, None) => Self::Ok,
            (true, Some(code)) => Self::Partial(code),
            (false, code) => Self::Refused(code.unwrap_or(Code::Internal)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial(_) => "partial",
            Self::Refused(_) => "refused",
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Ok => "",
            Self::Partial(code) | Self::Refused(code) => code.as_str(),
        }
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self {
            operations: Family::default(),
            latencies: Family::new_with_constructor(|| Histogram::new(LATENCIES)),
            named: Family::new_with_constructor(|| Histogram::new(LATENCIES)),
            statements: Family::new_with_constructor(|| Histogram::new(STATEMENTS)),
            names: Arc::default(),
        }
    }

    /// Counts a GraphQL operation that took this long.
    pub fn operation(&self, label: &Label, outcome: OperationOutcome, elapsed: Duration) {
        let elapsed = elapsed.as_secs_f64();
        let labels = [("kind", label.kind.name()), ("outcome", outcome.name())];
        self.latencies.get_or_create(&labels).observe(elapsed);
        if let Some(name) = &label.name {
            let may_add = label.is_trusted && !matches!(outcome, OperationOutcome::Refused(_));
            let name = self.bounded(name, may_add).to_owned();
            let labels = [
                ("operation", Cow::Owned(name)),
                ("outcome", Cow::Borrowed(outcome.name())),
            ];
            self.named.get_or_create(&labels).observe(elapsed);
        }
        let [kind, outcome_name] = labels;
        let labels = [kind, outcome_name, ("code", outcome.code())];
        self.operations.get_or_create(&labels).inc();
    }

    /// Counts the statements of an executed operation.
    pub fn statements(&self, label: &Label, statements: Option<u32>) {
        if let Some(statements) = statements {
            let labels = [("kind", label.kind.name())];
            self.statements
                .get_or_create(&labels)
                .observe(f64::from(statements));
        }
    }

    /// The name, or `OTHER` if it exceeds a bound. Only executed operations of authenticated callers add a name, so that
    /// others cannot use up the bound.
    fn bounded<'a>(&self, name: &'a str, may_add: bool) -> &'a str {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        if names.contains(name) {
            return name;
        }
        let is_full = names.len() >= NAMES;
        drop(names);
        if is_full || !may_add || name.len() > NAME_LENGTH {
            return OTHER;
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() < NAMES || names.contains(name) {
            names.insert(name.to_owned());
            return name;
        }
        OTHER
    }

    /// The route `/metrics`.
    pub fn routes(
        &self,
        graph: Graph,
        database: Database,
        connection_limit: ConnectionLimit,
        gate: Gate,
        health: Arc<Health>,
        traces: Option<Traces>,
    ) -> Router {
        let mut registry = Registry::with_prefix("gathering");
        registry.register(
            "graphql_operations",
            "GraphQL operations by kind, outcome and the code of the first error",
            self.operations.clone(),
        );
        registry.register(
            "graphql_operation_duration_seconds",
            "Time from a parsed request to its response; for a subscription, to its start",
            self.latencies.clone(),
        );
        registry.register(
            "graphql_named_operation_duration_seconds",
            "Time of operations that have a name, by name; the first 100 names of authenticated callers, others are `(other)`",
            self.named.clone(),
        );
        registry.register(
            "graphql_operation_statements",
            "Statements of batches that an executed operation waited for, by kind of operation",
            self.statements.clone(),
        );
        registry.register_collector(Box::new(Process {
            graph,
            database,
            connection_limit,
            gate,
            health,
            traces,
        }));
        Router::new()
            .route("/metrics", get(metrics))
            .with_state(Arc::new(registry))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
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
            text = to_prometheus_text(&text);
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
fn to_prometheus_text(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_kind_outcome_and_code() {
        let metrics = Metrics::new();
        let mut registry = Registry::default();
        registry.register("operations", "", metrics.operations.clone());
        registry.register("latencies", "", metrics.latencies.clone());
        let elapsed = Duration::from_millis(20);
        for (kind, has_data, code) in [
            (OperationKind::Query, true, None),
            (OperationKind::Query, true, None),
            (OperationKind::Mutation, true, Some(Code::NotFound)),
            (OperationKind::Unknown, false, Some(Code::ParseFailed)),
        ] {
            let label = Label {
                kind,
                name: None,
                is_trusted: true,
            };
            metrics.operation(&label, OperationOutcome::new(has_data, code), elapsed);
        }
        let mut text = String::new();
        encode(&mut text, &registry).expect("is written");
        for line in [
            r#"operations_total{kind="query",outcome="ok",code=""} 2"#,
            r#"operations_total{kind="mutation",outcome="partial",code="NOT_FOUND"} 1"#,
            r#"operations_total{kind="unknown",outcome="refused",code="GRAPHQL_PARSE_FAILED"} 1"#,
            r#"latencies_bucket{le="0.01",kind="query",outcome="ok"} 0"#,
            r#"latencies_bucket{le="0.025",kind="query",outcome="ok"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn names_of_operations_are_bounded_and_refused_ones_add_none() {
        let metrics = Metrics::new();
        let mut registry = Registry::default();
        registry.register("named", "", metrics.named.clone());
        let count_of = |name: &str, outcome, is_trusted| {
            let label = Label {
                kind: OperationKind::Query,
                name: Some(name.to_owned()),
                is_trusted,
            };
            metrics.operation(&label, outcome, Duration::ZERO);
        };
        let count = |name: &str, outcome| count_of(name, outcome, true);
        count(&"Long".repeat(20), OperationOutcome::Ok);
        for number in 0..1_000 {
            count_of(&format!("Anonymous{number}"), OperationOutcome::Ok, false);
        }
        for number in 0..1_000 {
            count(
                &format!("Refused{number}"),
                OperationOutcome::Refused(Code::RateLimited),
            );
        }
        for number in 0..150 {
            count(&format!("Page{number}"), OperationOutcome::Ok);
            count("Page0", OperationOutcome::Ok);
        }
        let mut text = String::new();
        encode(&mut text, &registry).expect("is written");
        for line in [
            r#"named_count{operation="Page0",outcome="ok"} 151"#,
            r#"named_count{operation="Page99",outcome="ok"} 1"#,
            r#"named_count{operation="(other)",outcome="ok"} 1051"#,
            r#"named_count{operation="(other)",outcome="refused"} 1000"#,
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert_eq!(text.matches("named_count").count(), NAMES + 2);
    }
}
