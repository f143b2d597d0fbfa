//! Prepares an operation: finds, parses, validates, plans and measures it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use apollo_compiler::executable::Operation as OperationDefinition;
use async_graphql::{Value, parser::types::OperationType};
use serde_json::Map;

use crate::{
    cache::{Cache, CacheStats},
    error::{Code, Error, Refusal},
    limits::Limits,
    operation::{
        self, Document, Introspection, Measure, Params, Plan, TrustedDocuments, Validator,
        Variables,
        documents::{Documents, persisted_hash},
    },
    rate_limit::{RootField, Tier},
    root_field::properties,
};

/// A document, the name of an operation, and the values of the variables in `@skip` and `@include`.
type PlanKey = (u64, Option<String>, Vec<Option<bool>>);

/// A parsed and selected operation that is within the limits and may run.
pub struct Operation {
    pub(crate) text: Arc<str>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) variables: Variables,
    pub(crate) measure: Measure,
    pub(crate) plan: Arc<Plan>,
    pub(crate) timings: Timings,
    pub(crate) roots: Vec<RootField>,
    /// Whether it reads much of the schema.
    pub(crate) is_long: bool,
}

impl Operation {
    /// Whether it has a field that reports the quotas.
    pub(crate) fn reports_quotas(&self) -> bool {
        let mut roots = self.roots.iter();
        roots.any(|field| properties(&field.name).is_free)
    }

    /// Whether the operation only signs users in. It then needs no authentication, so that an expired token cannot
    /// prevent it.
    pub fn signs_in(&self) -> bool {
        self.kind() == OperationType::Mutation
            && self.roots.iter().any(|field| field.name != "__typename")
            && self
                .roots
                .iter()
                .all(|field| properties(&field.name).is_public)
    }

    /// The name of the operation in its document.
    pub fn name(&self) -> Option<&str> {
        self.plan.name.as_deref()
    }

    /// The type of the operation: query, mutation or subscription.
    pub fn kind(&self) -> OperationType {
        self.plan.kind
    }
}

/// How long the phases before the execution took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Timings {
    pub(crate) parse: Duration,
    pub(crate) validate: Duration,
}

/// The idempotency key of a mutation.
fn idempotency_key(
    extensions: Option<&Map<String, serde_json::Value>>,
) -> Result<Option<String>, Error> {
    match extensions.and_then(|extensions| extensions.get("idempotencyKey")) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(key)) => Ok(Some(key.clone())),
        Some(_) => Err(
            Error::bad_input("`extensions.idempotencyKey` must be a string.")
                .field("idempotencyKey"),
        ),
    }
}

fn choose<'a>(
    document: &'a Document,
    name: Option<&str>,
) -> Result<&'a OperationDefinition, Error> {
    let operations = &document.executable.operations;
    let found = operations.get(name).map(|operation| &**operation);
    found.map_err(|_| {
        let message = match name {
            Some(name) => format!("The document has no operation named \"{name}\"."),
            None if operations.is_empty() => "The document has no operation.".to_owned(),
            None => {
                "The document has several operations. Set `operationName` to select one.".to_owned()
            }
        };
        Error::new(Code::ValidationFailed, message)
    })
}

/// Prepares operations, and keeps what it has prepared.
pub(crate) struct Preparer {
    validator: Validator,
    introspection: Introspection,
    documents: Documents,
    tiers: HashMap<String, Tier>,
    limits: Limits,
    plans: Cache<PlanKey, Arc<Plan>>,
}

impl Preparer {
    /// Prepares operations of a schema.
    ///
    /// # Errors
    /// The schema cannot be read; the text contains the reason.
    pub(crate) fn new(
        sdl: &str,
        trusted: TrustedDocuments,
        limits: Limits,
    ) -> Result<Self, String> {
        let validator = Validator::new(sdl)?;
        Ok(Self {
            introspection: Introspection::new(&validator, &limits)?,
            documents: Documents::new(trusted, &limits),
            tiers: validator.tiers(),
            plans: Cache::weighed(limits.parsed_documents, |_, plan: &Arc<Plan>| {
                plan.size >> 6
            }),
            validator,
            limits,
        })
    }

    /// The tier of each root field.
    pub(crate) fn tiers(&self) -> &HashMap<String, Tier> {
        &self.tiers
    }

    /// The statistics of the caches: parsed documents, plans, persisted queries.
    pub(crate) fn stats(&self) -> [CacheStats; 3] {
        let [parsed, persisted] = self.documents.stats();
        [parsed, self.plans.stats(), persisted]
    }

    /// Finds, parses and validates the document and selects its operation. Executes nothing and does not access the
    /// database.
    ///
    /// # Errors
    /// A request error, ready to be sent.
    pub(crate) fn prepare(&self, params: Params) -> Result<Operation, Refusal> {
        let began = Instant::now();
        let limits = &self.limits;
        let hash = persisted_hash(params.extensions.as_ref())?;
        let idempotency_key = idempotency_key(params.extensions.as_ref())?;
        let (text, hash) =
            self.documents
                .find(params.query, params.document_id.as_deref(), hash)?;
        let document = self.documents.parse(&text, &self.validator, limits)?;
        if let Some(hash) = hash {
            self.documents.persist(hash, Arc::clone(&text));
        }
        let validated = Instant::now();
        // An empty name counts as absent, in every transport.
        let name = params.operation_name.filter(|name| !name.is_empty());
        let operation = choose(&document, name.as_deref())?;
        let variables = params.variables.unwrap_or_default();
        let variables = self.validator.coerce(operation, variables)?;
        let plan = self.plan(&document, operation, name.clone(), &variables)?;
        let (measure, roots) = operation::measure(&plan, &variables, limits)?;
        let is_long = self
            .introspection
            .check(&self.validator, &plan, &variables)?;
        Ok(Operation {
            text,
            idempotency_key,
            name,
            measure,
            timings: Timings {
                parse: validated - began,
                validate: validated.elapsed(),
            },
            roots,
            variables,
            plan,
            is_long,
        })
    }

    fn plan(
        &self,
        document: &Document,
        operation: &OperationDefinition,
        name: Option<String>,
        variables: &Variables,
    ) -> Result<Arc<Plan>, Error> {
        let mut includes = HashMap::new();
        for condition in &document.conditions {
            if let Some(Value::Boolean(value)) = variables.get(condition.as_str()) {
                includes.insert(condition.as_str(), *value);
            }
        }
        let conditions = document.conditions.iter();
        let conditions = conditions.map(|name| includes.get(name.as_str()).copied());
        let key = (document.id, name, conditions.collect());
        if let Some(known) = self.plans.get(&key) {
            return Ok(known);
        }
        let limit = self.limits.tokens;
        let plan = Plan::new(&self.validator, document, operation, &includes, limit)?;
        let plan = Arc::new(plan);
        self.plans.insert(key, Arc::clone(&plan));
        Ok(plan)
    }
}
