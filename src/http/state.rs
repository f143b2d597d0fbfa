//! The state that the transports of the graph share: connection limits, and the start of operations.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use async_graphql::parser::types::OperationType;
use axum::http::HeaderMap;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use gathering_schema::rate_limit::QuotaStatus;
use gathering_schema::trace::{Span, within};
use gathering_schema::{Answer, Caller, Client, Graph, Operation, Params, Usage, Watch};
use opentelemetry::trace::SpanContext;

use super::gate::Gate;
use super::guards::{must_be_allowed, must_be_local};
use super::outcome::{Outcome, Refusal};
use crate::config::{self, Config};
use crate::connections::ConnectionLimit;
use crate::metrics::{Label, Metrics, OperationOutcome};
use crate::playground::Page;
use crate::trace::{self, Traces};

/// State shared by the transports of the graph.
pub(crate) struct Endpoint {
    pub(crate) graph: Graph,
    pub(crate) config: Config,
    pub(crate) connections: ConnectionLimit,
    /// Counts the messages of WebSocket connections.
    pub(super) gate: Gate,
    pub(super) metrics: Metrics,
    pub(super) traces: Option<Traces>,
    /// Whether the playground signs every visitor in, so that only requests to a local address are accepted.
    pub(super) is_local: bool,
    pub(super) page: Page,
}

impl Endpoint {
    /// Refuses a WebSocket from a page that may not connect.
    ///
    /// # Errors
    /// The page is of another origin, or the request names a host that is not local although only local ones are
    /// accepted.
    pub(crate) fn may_connect(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.is_local {
            must_be_local(headers)?;
        }
        must_be_allowed(headers, &self.config.server.cors_origins)
    }

    /// Whether the response contains the usage, given the value of the client's usage header.
    pub(crate) fn usage(&self, requested: Option<&str>) -> Usage {
        match self.config.graphql.usage {
            config::Usage::Everyone if requested == Some("1") => Usage::On,
            config::Usage::Admin if requested == Some("1") => Usage::Admin,
            _ => Usage::Off,
        }
    }

    /// Starts the span of an operation, if it is traced. The caller ends it.
    pub(super) fn span(
        &self,
        operation: &Operation,
        client: &Client,
        parent: Option<SpanContext>,
    ) -> Option<Span> {
        let traces = self.traces.as_ref()?;
        traces.operation(operation, &client.request_id, parent)
    }

    /// The span of a client, from the headers of its request, if operations are traced.
    pub(super) fn parent(&self, headers: &HeaderMap) -> Option<SpanContext> {
        self.traces.as_ref().and_then(|_| trace::parent(headers))
    }

    /// Runs a query or a mutation, or starts a subscription. `span` is that of the operation.
    pub(crate) async fn start(
        &self,
        operation: Operation,
        caller: Caller<'_>,
        span: Option<&Span>,
    ) -> Started {
        if operation.kind() != OperationType::Subscription {
            return Started::One(self.answer(operation, caller, span).await);
        }
        let request_id = caller.client.request_id.clone();
        let label = Label::of(&operation, caller.token.is_some());
        let began = Instant::now();
        let work = within(span.cloned(), self.graph.subscribe(operation, caller));
        let started = guarded(work, request_id.clone()).await;
        match started {
            Ok(Ok(answers)) => {
                self.metrics
                    .operation(&label, OperationOutcome::Ok, began.elapsed());
                let quotas = answers.quotas().to_vec();
                let watch = answers.watch();
                let answers = AssertUnwindSafe(answers).catch_unwind();
                let outcome = move |answer: Result<Answer, _>| match answer {
                    Ok(answer) => answer.into(),
                    Err(_) => Refusal::internal(request_id.clone()).into(),
                };
                Started::Many {
                    answers: answers.map(outcome).boxed(),
                    quotas,
                    watch,
                }
            }
            Ok(Err(answer)) => {
                let outcome = Outcome::from(answer);
                self.count(&label, &outcome, began, span);
                Started::One(outcome)
            }
            Err(refusal) => {
                let outcome = Outcome::from(refusal);
                self.count(&label, &outcome, began, span);
                Started::One(outcome)
            }
        }
    }

    fn count(&self, label: &Label, outcome: &Outcome, began: Instant, span: Option<&Span>) {
        if let (Some(span), Some(code)) = (span, outcome.code()) {
            span.fail(code);
        }
        let result = OperationOutcome::new(outcome.ran(), outcome.code());
        self.metrics.operation(label, result, began.elapsed());
    }

    /// Finds and validates the operation that a client sends.
    pub(crate) fn parse_operation(&self, params: Params) -> Result<Operation, Answer> {
        let began = Instant::now();
        self.graph.prepare(params).inspect_err(|answer| {
            let result = OperationOutcome::new(false, answer.code());
            self.metrics
                .operation(&Label::unknown(), result, began.elapsed());
        })
    }

    pub(super) async fn answer(
        &self,
        operation: Operation,
        caller: Caller<'_>,
        span: Option<&Span>,
    ) -> Outcome {
        let request_id = caller.client.request_id.clone();
        let label = Label::of(&operation, caller.token.is_some());
        let began = Instant::now();
        let work = within(span.cloned(), self.graph.answer(operation, caller));
        let outcome = match guarded(work, request_id).await {
            Ok(answer) => {
                self.metrics.statements(&label, answer.statements());
                answer.into()
            }
            Err(refusal) => refusal.into(),
        };
        self.count(&label, &outcome, began, span);
        outcome
    }
}

/// A started operation.
pub(crate) enum Started {
    /// It has completed or was refused.
    One(Outcome),
    /// It continues until its stream ends.
    Many {
        answers: BoxStream<'static, Outcome>,
        /// The client's quotas.
        quotas: Vec<QuotaStatus>,
        /// The session of the subscription.
        watch: Option<Watch>,
    },
}

/// Converts a panic into an `INTERNAL` error of the request that caused it.
async fn guarded<T>(work: impl Future<Output = T>, request_id: String) -> Result<T, Refusal> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.map_err(|_| Refusal::internal(request_id))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[tokio::test]
    async fn a_panic_reveals_only_the_request_id() {
        let work = async { panic!("{}", "postgres://secret") };
        let refusal = guarded::<()>(work, "7f".to_owned())
            .await
            .expect_err("refused");
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            serde_json::to_string(&refusal).expect("JSON"),
            r#"{"errors":[{"message":"Internal server error. Please report the request id.","extensions":{"code":"INTERNAL","requestId":"7f"}}]}"#
        );
    }
}
