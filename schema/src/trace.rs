//! Spans of OpenTelemetry: one for each traced operation, for each of its batches, and for each of their statements.
//!
//! The span of the running work is a task-local value. An operation that is not traced has none: its batches and its
//! statements then cost one check. A span contains names, numbers, error codes and the text of statements, in which
//! every value is a parameter, and never a value.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use opentelemetry::{
    KeyValue, Value,
    global::BoxedTracer,
    trace::{Link, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer},
};
use pin_project_lite::pin_project;
use sea_orm::{DbBackend, Statement};

use crate::error::{Code, Error};

/// Maximum number of operations that the span of a batch names.
const OPERATIONS: usize = 128;

/// Maximum length of the text of a statement in its span, in bytes. The text of a statement for many parents is long on
/// SQLite.
const STATEMENT: usize = 4 << 10;

tokio::task_local! {
    /// The span of the running work.
    static CURRENT: Span;
}

/// A recorded span. Clones are the same span, which ends with the last of them at the latest.
#[derive(Clone, Debug)]
pub struct Span {
    tracer: Arc<BoxedTracer>,
    context: opentelemetry::Context,
}

impl Span {
    /// Starts the span of an operation; `None` if the operation is not sampled. `parent` is the span of the client.
    pub fn start(
        tracer: &Arc<BoxedTracer>,
        builder: SpanBuilder,
        parent: Option<SpanContext>,
    ) -> Option<Self> {
        let mut context = opentelemetry::Context::new();
        if let Some(parent) = parent {
            context = context.with_remote_span_context(parent);
        }
        let span = tracer.build_with_context(builder, &context);
        let span = Self {
            tracer: Arc::clone(tracer),
            context: context.with_span(span),
        };
        Some(span).filter(Self::is_recording)
    }

    /// The span of the running work.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    fn child(&self, builder: SpanBuilder) -> Self {
        let span = self.tracer.build_with_context(builder, &self.context);
        Self {
            tracer: Arc::clone(&self.tracer),
            context: self.context.with_span(span),
        }
    }

    /// Whether the span has not ended.
    fn is_recording(&self) -> bool {
        self.context.span().is_recording()
    }

    /// The ids of the span and of its trace.
    pub fn context(&self) -> SpanContext {
        self.context.span().span_context().clone()
    }

    /// Sets an attribute.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        self.context.span().set_attribute(KeyValue::new(key, value));
    }

    /// Sets the code of the first error. The span is failed if the fault is the server's, as for the status of an HTTP
    /// server: an error of a client is none of the server.
    pub fn fail(&self, code: Code) {
        self.set("error.type", code.as_str());
        if matches!(code, Code::Internal | Code::Timeout | Code::Unavailable) {
            self.context.span().set_status(Status::error(code.as_str()));
        }
    }

    /// Ends the span. Later work does not become a part of it.
    pub fn end(&self) {
        self.context.span().end();
    }

    fn record(&self, statement: &Statement, elapsed: Duration, has_failed: bool) {
        let text = &statement.sql[..statement.sql.floor_char_boundary(STATEMENT)];
        let keyword = text.split_whitespace().next().unwrap_or_default();
        let system = match statement.db_backend {
            DbBackend::Postgres => "postgresql",
            _ => "sqlite",
        };
        let end = SystemTime::now();
        let builder = SpanBuilder::from_name(keyword.to_owned())
            .with_kind(SpanKind::Client)
            .with_start_time(end.checked_sub(elapsed).unwrap_or(end))
            .with_attributes([
                KeyValue::new("db.system.name", system),
                KeyValue::new("db.operation.name", keyword.to_owned()),
                KeyValue::new("db.query.text", text.to_owned()),
            ]);
        let span = self.child(builder);
        if has_failed {
            span.set("error.type", "_OTHER");
            span.context.span().set_status(Status::error(""));
        }
        span.context.span().end_with_timestamp(end);
    }
}

/// Records a statement that has just ended, if it is part of traced work.
pub fn statement(statement: &Statement, elapsed: Duration, has_failed: bool) {
    // The error means that there is no span.
    let _ = CURRENT.try_with(|span| span.record(statement, elapsed, has_failed));
}

pin_project! {
    /// Work with its span.
    pub struct Within<F> {
        span: Option<Span>,
        #[pin]
        work: F,
    }
}

/// Runs work as a part of a span, if there is one.
pub fn within<F: Future>(span: Option<Span>, work: F) -> Within<F> {
    Within { span, work }
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.span {
            Some(span) => CURRENT.sync_scope(span.clone(), || this.work.poll(context)),
            None => this.work.poll(context),
        }
    }
}

/// The traced operations that wait for a batch.
#[derive(Default)]
pub(crate) struct Operations(Mutex<Vec<Span>>);

impl Operations {
    /// Adds an operation, unless it is known or has ended.
    pub(crate) fn add(&self, operation: &Span) {
        let mut operations = self.lock();
        let id = operation.context.span().span_context().span_id();
        let is_known = |known: &Span| known.context.span().span_context().span_id() == id;
        if operations.len() < OPERATIONS
            && !operations.iter().any(is_known)
            && operation.is_recording()
        {
            operations.push(operation.clone());
        }
    }

    /// Starts the span of the batch, if an operation is traced: a child of the first operation, linked to the others.
    pub(crate) fn start_batch(&self, name: &str, keys: usize) -> Option<Span> {
        let operations = self.lock();
        let (first, others) = operations.split_first()?;
        let links = others
            .iter()
            .map(|other| Link::with_context(other.context()));
        let keys = i64::try_from(keys).unwrap_or(i64::MAX);
        let builder = SpanBuilder::from_name(name.to_owned())
            .with_attributes([KeyValue::new("gathering.batch.keys", keys)])
            .with_links(links.collect());
        Some(first.child(builder))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Span>> {
        // The list is never half-changed, so a panic of another thread during the lock does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the span of a batch.
pub(crate) fn end_batch<T>(span: &Span, rows: u64, outcome: &Result<T, Error>) {
    span.set(
        "gathering.batch.rows",
        i64::try_from(rows).unwrap_or(i64::MAX),
    );
    if let Err(error) = outcome {
        span.fail(error.code);
    }
    span.end();
}
