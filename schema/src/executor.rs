//! The graph as an executor of async-graphql, which every integration of async-graphql can serve.

use std::{future::ready, sync::Arc};

use async_graphql::{Data, Executor, Request, Response, parser::types::OperationType};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    audit::Client,
    error::Code,
    execute::Caller,
    graph::Graph,
    operation::{Operation, Params},
    response::Answer,
};

/// Executes the operations of one caller.
///
/// Everyone who reaches an integration with this executor acts as its caller, so create an executor for each request.
/// The executor reads the document, its variables and the extensions of a request, and ignores parsed documents,
/// uploads and data.
#[derive(Clone)]
pub struct GraphExecutor {
    graph: Graph,
    token: Option<Arc<str>>,
    client: Client,
}

impl GraphExecutor {
    /// Creates the executor of a client, with its access token if it has one.
    pub fn new(graph: Graph, token: Option<&str>, client: Client) -> Self {
        Self {
            graph,
            token: token.map(Arc::from),
            client,
        }
    }

    fn prepare(&self, request: Request) -> Result<Operation, Answer> {
        self.graph.prepare(Params {
            query: Some(request.query).filter(|query| !query.is_empty()),
            operation_name: request.operation_name,
            variables: to_object(&request.variables),
            extensions: to_object(&request.extensions.0),
            document_id: None,
        })
    }

    async fn answer(&self, operation: Operation) -> Response {
        self.graph.answer(operation, self.caller()).await.into()
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            token: self.token.as_deref(),
            client: self.client.clone(),
            ..Caller::default()
        }
    }

    async fn start(self, request: Request) -> BoxStream<'static, Response> {
        let response = match self.prepare(request) {
            Ok(operation) if operation.kind() == OperationType::Subscription => {
                match self.graph.subscribe(operation, self.caller()).await {
                    Ok(answers) => return answers.map(Response::from).boxed(),
                    Err(answer) => answer.into(),
                }
            }
            Ok(operation) => self.answer(operation).await,
            Err(answer) => answer.into(),
        };
        stream::once(ready(response)).boxed()
    }
}

impl Executor for GraphExecutor {
    /// Executes a query or a mutation; refuses a subscription.
    async fn execute(&self, request: Request) -> Response {
        match self.prepare(request) {
            Ok(operation) if operation.kind() == OperationType::Subscription => {
                let message = "A subscription returns a stream of responses.";
                Answer::refusal(Code::BadUserInput, message).into()
            }
            Ok(operation) => self.answer(operation).await,
            Err(answer) => answer.into(),
        }
    }

    /// Starts a subscription, or executes a query or a mutation as a stream of one response.
    fn execute_stream(
        &self,
        request: Request,
        _: Option<Arc<Data>>,
    ) -> BoxStream<'static, Response> {
        stream::once(self.clone().start(request)).flatten().boxed()
    }
}

fn to_object(values: impl Serialize) -> Option<Map<String, Value>> {
    match serde_json::to_value(values) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}
