//! From a client's parameters to its answer.

use std::time::Duration;

use async_graphql::parser::types::OperationType;
use sea_orm::DatabaseConnection;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Code, Viewer};

/// What a client sends to have an operation run, whatever the transport.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Params {
    /// The GraphQL document; may be absent when `extensions.persistedQuery` or `documentId` names one.
    #[serde(default)]
    pub query: Option<String>,
    /// Which operation of the document to run.
    #[serde(default)]
    pub operation_name: Option<String>,
    /// Values of the operation's variables.
    #[serde(default)]
    pub variables: Option<Map<String, Value>>,
    /// Protocol extensions, such as `persistedQuery`.
    #[serde(default)]
    pub extensions: Option<Map<String, Value>>,
    /// The id of a trusted document.
    #[serde(default)]
    pub document_id: Option<String>,
}

/// Bounds on what one operation may ask for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest execution of a query or mutation.
    pub timeout: Duration,
}

/// The graph: cheap to clone, shared by every request.
#[derive(Clone)]
pub struct Graph {
    _db: DatabaseConnection,
}

/// An operation that was parsed, bounded and chosen, and may run.
pub struct Operation {
    kind: OperationType,
}

impl Operation {
    /// Whether this is a query, a mutation or a subscription.
    pub fn kind(&self) -> OperationType {
        self.kind
    }
}

/// On whose behalf an operation runs, and what is to be reported.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The signed-in user, if any.
    pub viewer: Option<Viewer>,
    /// Whether the answer shall carry `extensions.usage`.
    pub usage: bool,
    /// Names the request in logs and in `INTERNAL` errors.
    pub request_id: String,
}

/// What the client gets: serialises to the GraphQL response map, without `data` in a request error.
#[derive(Debug, Serialize)]
pub struct Answer {}

impl Answer {
    /// A request error: nothing ran.
    pub fn refusal(_code: Code, _message: impl Into<String>) -> Self {
        Self {}
    }
    /// Whether execution began, so that the answer has a `data` key.
    pub fn has_data(&self) -> bool {
        true
    }
    /// The code of the first error.
    pub fn code(&self) -> Option<Code> {
        None
    }
    /// Seconds after which a refused request may be tried again.
    pub fn retry_after(&self) -> Option<u64> {
        None
    }
}

impl Graph {
    /// The graph over a database.
    pub fn new(db: DatabaseConnection, _limits: Limits) -> Self {
        Self { _db: db }
    }
    /// The schema in the schema definition language.
    pub fn sdl() -> String {
        String::new()
    }
    /// Finds, parses and bounds the document and picks its operation; runs nothing and touches no database.
    ///
    /// # Errors
    /// A request error, ready to be sent.
    #[expect(clippy::result_large_err, reason = "stub")]
    pub fn prepare(&self, _params: Params) -> Result<Operation, Answer> {
        Err(Answer {})
    }
    /// The user with this e-mail address, while there are no accounts.
    ///
    /// # Errors
    /// The database cannot answer.
    pub async fn viewer(&self, _email: &str) -> Result<Option<Viewer>, Answer> {
        Ok(None)
    }
    /// Runs an operation.
    pub async fn execute(&self, _operation: Operation, _caller: Caller) -> Answer {
        Answer {}
    }
}
