//! Runs an admitted operation.

use std::sync::{Arc, atomic::Ordering};

use async_graphql::{
    Name, Pos, Request, Response, Value, indexmap::IndexMap, parser::types::OperationType,
};
use chrono::SubsecRound;
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    compiled::{Queries, Query},
    db::{DispatchWhenIdle, PendingBatches, Turn},
    error::Error,
    execute::{admission::Run, usage},
    idempotency::{self, Key, Known, RequestedKey},
    operation::{self, Measure, Operation, Plan, Timings, Variables},
    request::{self, Services},
    response::{Answer, Written},
    root_field::{Secret, properties},
    roots::Schema,
    trace::{Span, within},
};

/// An operation that the executor can run.
pub(crate) struct Execution {
    pub(crate) variables: Variables,
    /// The response keys of refused root fields.
    pub(crate) refused: Vec<Name>,
    pub(crate) context: Arc<request::Request>,
    pub(crate) pending: Arc<PendingBatches>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) measure: Measure,
    pub(crate) timings: Timings,
    pub(crate) is_long: bool,
}

impl Execution {
    /// The input of the executor, without the root fields with these keys.
    pub(crate) fn request(&self, without: &[Name]) -> Request {
        let mut without = without.to_vec();
        without.extend_from_slice(&self.refused);
        let mut request = Request::new("");
        request.set_parsed_query(operation::bind(&self.plan, &self.variables, &without));
        request.data.insert(Arc::clone(&self.context));
        request
    }
}

/// Runs operations.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) schema: Schema,
    pub(crate) queries: Arc<Queries>,
    pub(crate) services: Arc<Services>,
    /// Serializes operations that read much of the schema, which run off the async threads.
    pub(crate) long: Arc<Semaphore>,
}

impl Engine {
    /// Runs a mutation to its end, and records it, even if the client disconnects.
    pub(crate) async fn execute_to_the_end(&self, run: Run) -> Answer {
        let graph = self.clone();
        let work = within(
            Span::current(),
            async move { graph.execute_as_first(run).await },
        );
        #[expect(
            clippy::disallowed_methods,
            reason = "the task is bounded by the time limits of an operation and of the database"
        )]
        let task = tokio::spawn(work.in_current_span());
        task.await
            .unwrap_or_else(|failure| match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Error::unavailable("The server is shutting down.").into(),
            })
    }

    /// Builds the input of the executor.
    pub(crate) fn execution(run: Run) -> Execution {
        let operation = run.operation;
        Execution {
            variables: operation.variables,
            refused: run.refused,
            pending: Arc::clone(&run.context.pending),
            context: Arc::new(run.context),
            plan: operation.plan,
            measure: operation.measure,
            timings: operation.timings,
            is_long: operation.is_long,
        }
    }

    /// Executes an operation, or returns the stored response of the first request with the same idempotency key.
    async fn execute_as_first(&self, mut run: Run) -> Answer {
        let Some(requested) = run.requested_key.take() else {
            return self.execute(run).await;
        };
        let (key, _guard) = match self.claim(&run, &requested).await {
            Ok((Known::Nothing(key), turn)) => (key, turn),
            Ok((Known::Answer(stored), _)) => return Answer::again(&stored),
            Err(error) => return Answer::failed(error, &run.context.client.request_id),
        };
        run.context.key = Some(key.clone());
        // A response that contains a secret is not stored; it is rebuilt without the secret.
        let mut fields = run.operation.roots.iter();
        let is_stored = !fields.any(|field| properties(&field.name).secret == Secret::Once);
        let mut answer = self.execute(run).await;
        let writer = &self.services.writer;
        if key.is_replayed() {
            answer.mark_replayed();
        }
        if !key.is_used() {
            key.release(writer).await;
        } else if answer.has_data() && is_stored {
            let codes: Vec<_> = answer.codes().collect();
            if let Some(whole) = answer.to_keep() {
                key.keep(writer, whole, &codes).await;
            }
        }
        answer
    }

    /// Claims the idempotency key of a request, and waits for its turn among the requests with the same key.
    async fn claim(
        &self,
        run: &Run,
        requested: &RequestedKey,
    ) -> Result<(Known, Turn<(Uuid, String)>), Error> {
        let operation = &run.operation;
        let variables = serde_json::to_value(&operation.variables).unwrap_or_default();
        let name = operation.name.as_deref();
        let fingerprint = idempotency::fingerprint(&operation.text, name, &variables);
        let fields = operation.roots.iter().map(|field| &field.name);
        let services = &*self.services;
        let now = (services.clock)().trunc_subsecs(6);
        let viewer = run.context.viewer.as_ref();
        let key = Key::new(viewer, requested, fingerprint, fields, now)?;
        let claim = async {
            let turn = services.turns.take(key.identity()).await;
            Ok((key.claim(&services.writer).await?, turn))
        };
        let claimed = tokio::time::timeout(services.limits.timeout, claim).await;
        claimed.unwrap_or_else(|_| Err(Error::timeout()))
    }

    pub(crate) async fn execute(&self, mut run: Run) -> Answer {
        let kind = run.operation.kind();
        let began = run.began.unwrap_or_else(Instant::now);
        let written = run.written.take();
        let execution = Self::execution(run);
        let deadline = began + self.services.limits.timeout;
        let Execution {
            context,
            pending,
            plan,
            measure,
            timings,
            ..
        } = &execution;
        let execution = async {
            if execution.is_long {
                let request = execution.request(&[]);
                let response = self.execute_aside(request, Arc::clone(pending)).await;
                return (response, Vec::new());
            }
            DispatchWhenIdle::new(pending, self.resolve(&execution, written)).await
        };
        let Ok((response, written)) = tokio::time::timeout_at(deadline, execution).await else {
            return match kind {
                OperationType::Mutation => Error::change_timeout().into(),
                OperationType::Query | OperationType::Subscription => Error::timeout().into(),
            };
        };
        let took = began.elapsed();
        let request_id = &context.client.request_id;
        let mut answer = Answer::of(response, written, Arc::clone(plan), request_id);
        answer.measure(context.fields.load(Ordering::Relaxed));
        answer.count_statements(pending.statements());
        if let Some(usage) = pending.usage() {
            let account = usage::account(&usage, *measure, *timings, took);
            answer.extend("usage", account);
        }
        answer
    }

    /// Runs the compiled part of a query before its caller is authenticated; `None` if the time is over.
    pub(crate) async fn read_early(
        &self,
        operation: &Operation,
        context: &request::Request,
        without: &[Name],
    ) -> Option<Written> {
        let Operation {
            plan, variables, ..
        } = operation;
        let query = self.compiled(plan, context)?;
        let read = self.queries.run(&query, context, variables, without);
        let read = DispatchWhenIdle::new(&context.pending, read);
        let read = tokio::time::timeout(self.services.limits.timeout, read);
        read.await.ok()
    }

    /// The compiled part of a query; `None` if there is none.
    fn compiled(&self, plan: &Plan, context: &request::Request) -> Option<Arc<Query>> {
        let viewer = context.viewer.as_ref()?;
        if context.services.limits.compiled_queries == 0 {
            return None;
        }
        Some(self.queries.compile(plan, viewer)).filter(|query| !query.is_empty())
    }

    /// Resolves the root fields: by the compiled query, unless it has run, and the others by the executor.
    async fn resolve(
        &self,
        execution: &Execution,
        written: Option<Written>,
    ) -> (Response, Written) {
        let Execution {
            context,
            variables,
            refused,
            plan,
            ..
        } = execution;
        let written = match written {
            Some(written) => written,
            None => match self.compiled(plan, context) {
                Some(query) => self.queries.run(&query, context, variables, refused).await,
                None => Written::new(),
            },
        };
        let is_complete =
            !written.is_empty() && written.len() + refused.len() == plan.roots().len();
        let response = if is_complete {
            Response::new(Value::Object(IndexMap::new()))
        } else {
            let keys: Vec<_> = written.iter().map(|(key, _)| key.clone()).collect();
            self.schema.execute(execution.request(&keys)).await
        };
        (response, written)
    }

    /// Executes an operation that reads much of the schema in a blocking thread, because the executor does not yield.
    async fn execute_aside(&self, request: Request, pending: Arc<PendingBatches>) -> Response {
        let shutting_down = || {
            let error =
                async_graphql::Error::from(Error::unavailable("The server is shutting down."));
            Response::from_errors(vec![error.into_server_error(Pos::default())])
        };
        let Ok(permit) = Arc::clone(&self.long).acquire_owned().await else {
            return shutting_down();
        };
        let (schema, runtime) = (self.schema.clone(), Handle::current());
        let span = Span::current();
        let work = tokio::task::spawn_blocking(move || {
            let execution = DispatchWhenIdle::new(&pending, schema.execute(request));
            let response = runtime.block_on(within(span, execution));
            drop(permit);
            response
        });
        work.await.unwrap_or_else(|_| shutting_down())
    }
}
