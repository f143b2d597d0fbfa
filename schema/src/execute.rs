//! From a client's parameters to its answer: one place for every transport.
//!
//! No extension of async-graphql is used: with any extension every field and list item is boxed, which costs more than
//! the rest of the execution.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use apollo_compiler::executable::Operation as OperationDefinition;
use async_graphql::{
    Name, PathSegment, Pos, Request, Response, ScalarType, ServerError, ValidationMode, Value,
    parser::types::OperationType,
};
use chrono::{SubsecRound, Utc};
use gathering_entity::journal;
use sea_orm::{DatabaseConnection, EntityTrait};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, json, value::RawValue};
use sha2::{Digest, Sha256};
use tokio::{runtime::Handle, sync::Semaphore};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    Clock, Code, Schema, Services, Viewer,
    auth::{self, Accounts, Act, Client, Presented, Recorder},
    cache::{Cache, CacheStats},
    ctx::{self, Progress},
    error::Error,
    idempotency::{self, Key, Known, Turn, Wanted},
    limit::{Limiter, Payer, Rates, RootField, Standing, Steady, Store, Tier, TierCount, Verdict},
    live::{self, Bus, Relay, Watch},
    load::{Gather, Loader, Waiting},
    operation::{self, Document, Front, Introspection, Measure, Plan, Variables},
    scalar::DateTime,
    server::Look,
    stream::{self, Answers, Live},
    text,
    viewer::Rulebook,
    write::Writer,
};

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
    pub variables: Option<Map<String, serde_json::Value>>,
    /// Protocol extensions, such as `persistedQuery`.
    #[serde(default)]
    pub extensions: Option<Map<String, serde_json::Value>>,
    /// The id of a trusted document.
    #[serde(default)]
    pub document_id: Option<String>,
}

/// Bounds on what one operation may ask for, and on what is kept of documents.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest document, in bytes.
    pub document_bytes: u64,
    /// Most tokens of a document, and most selections once its fragments are expanded.
    pub tokens: u64,
    /// Most root fields of an operation.
    pub root_fields: u64,
    /// Most fields under another name than their own.
    pub aliases: u64,
    /// Deepest nesting of fields.
    pub depth: u64,
    /// Highest complexity.
    pub complexity: u64,
    /// Maximum text in a response, in bytes.
    pub text_bytes: u64,
    /// Longest execution of a query or mutation.
    pub timeout: Duration,
    /// Most parsed documents kept.
    pub parsed_documents: u64,
    /// Most automatic persisted queries kept; none turns them off.
    pub persisted_queries: u64,
    /// Whether clients may read the schema.
    pub introspection: bool,
}

/// How far documents outside the manifest are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// As much as any.
    #[default]
    Any,
    /// They run and are logged.
    Audit,
    /// They do not run.
    Enforce,
}

/// The documents that the server's operator knows.
#[derive(Clone, Debug, Default)]
pub struct TrustedDocuments {
    /// What becomes of the others.
    pub trust: Trust,
    /// From id to document.
    pub documents: HashMap<String, Arc<str>>,
}

/// An operation that may run, on whose behalf, and what of it may not.
struct Run {
    operation: Operation,
    client: Client,
    viewer: Option<Viewer>,
    payer: Payer,
    /// The session that a subscription belongs to.
    watch: Option<Watch>,
    usage: bool,
    after: Option<String>,
    /// The idempotency key that the client has sent, and the same when the request was written down under it.
    wanted_key: Option<Wanted>,
    key: Option<Key>,
    /// The response keys of refused root fields.
    refused: Vec<Name>,
}

/// An operation that the executor can run.
struct Execution {
    request: Request,
    known: Arc<ctx::Request>,
    waiting: Arc<Waiting>,
    plan: Arc<Plan>,
    measure: Measure,
    prepared: Prepared,
    is_long: bool,
}

/// How long the phases before the execution took.
#[derive(Clone, Copy, Default)]
struct Prepared {
    parse: Duration,
    validate: Duration,
}

/// Mutations that sign somebody in, and what every object has.
pub(crate) const SIGN_IN: [&str; 4] = ["login", "register", "refreshSession", "__typename"];

/// What a graph is made with.
pub struct Settings {
    /// Bounds on one operation.
    pub limits: Limits,
    /// The documents that the server's operator knows.
    pub trusted: TrustedDocuments,
    /// How accounts are kept.
    pub accounts: auth::Settings,
    /// How often root fields may be asked for.
    pub rates: Rates,
    /// Where that is kept.
    pub buckets: Store,
    /// What tells the time.
    pub clock: Clock,
    /// What tells how much time has passed.
    pub steady: Steady,
    /// How live events are handed out.
    pub events: live::Settings,
}

/// What a graph needs to run beside its requests, as long as it is used.
pub struct Works {
    /// Writes the audit log.
    pub recorder: Recorder,
    /// Hands out live events.
    pub relay: Relay,
}

/// The graph: cheap to clone, shared by every request.
#[derive(Clone)]
pub struct Graph(Arc<Inner>);

struct Inner {
    services: Arc<Services>,
    schema: Schema,
    front: Front,
    introspection: Introspection,
    tiers: HashMap<String, Tier>,
    /// Operations that read much of the schema run here one at a time, off the async threads.
    long: Arc<Semaphore>,
    documents: Cache<Arc<str>, Arc<Document>>,
    plans: Cache<PlanKey, Arc<Plan>>,
    persisted: Cache<String, Arc<str>>,
    trusted: TrustedDocuments,
    rulebook: Rulebook,
}

/// A document, the name of an operation, and the values of the variables that `@skip` and `@include` name.
type PlanKey = (u64, Option<String>, Vec<Option<bool>>);

/// An operation that was parsed, bounded and chosen, and may run.
pub struct Operation {
    text: Arc<str>,
    idempotency_key: Option<String>,
    name: Option<String>,
    variables: Variables,
    measure: Measure,
    plan: Arc<Plan>,
    prepared: Prepared,
    roots: Vec<RootField>,
    /// Whether it reads much of the schema.
    is_long: bool,
}

impl Operation {
    /// Whether all that this does is to sign somebody in, for which nobody needs to be signed in already: a token that
    /// has expired must not stand in the way.
    pub fn signs_in(&self) -> bool {
        self.kind() == OperationType::Mutation
            && self.roots.iter().any(|field| field.name != "__typename")
            && self
                .roots
                .iter()
                .all(|field| SIGN_IN.contains(&field.name.as_str()))
    }

    /// Whether this is a query, a mutation or a subscription.
    pub fn kind(&self) -> OperationType {
        self.plan.kind
    }
}

/// Who sends an operation, and what is to be reported.
#[derive(Debug, Default)]
pub struct Caller<'a> {
    /// The access token that was sent, if any.
    pub token: Option<&'a str>,
    /// Who sends it, signed in or not.
    pub client: Client,
    /// Whether the answer shall carry `extensions.usage`.
    pub usage: Usage,
    /// The cursor of the event behind which a subscription goes on, whatever the operation says.
    pub after: Option<String>,
    /// The key under which a mutation may be sent again, unless `extensions.idempotencyKey` names one.
    pub idempotency_key: Option<String>,
    /// The place of the operation in a batch that shares the idempotency key: each entry has a key of its own.
    pub batch_entry: Option<usize>,
}

/// Whoever has presented an access token.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// The session of the token, as long as a connection relies on it.
    pub watch: Option<Watch>,
    /// The user's row id.
    pub user: Uuid,
    /// When the token expires.
    pub expires_at: chrono::DateTime<Utc>,
}

/// Whether an answer says what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Usage {
    /// It does not.
    #[default]
    Off,
    /// To administrators.
    Admin,
    /// It does.
    On,
}

/// What the client gets: serialises to the GraphQL response map, without `data` in a request error.
#[derive(Debug)]
pub struct Answer {
    data: Option<Box<Data>>,
    errors: Vec<ServerError>,
    extensions: Map<String, serde_json::Value>,
    standings: Vec<Standing>,
    cursor: Option<String>,
}

/// The data of a response.
#[derive(Debug)]
enum Data {
    /// Of an operation that was executed.
    Fresh(Value, Arc<Plan>),
    /// The stored text of an earlier response.
    Kept(Box<RawValue>),
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fresh(data, plan) => plan.order(data).serialize(serializer),
            Self::Kept(text) => text.serialize(serializer),
        }
    }
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.errors.is_empty() {
            map.serialize_entry("errors", &self.errors)?;
        }
        if let Some(data) = &self.data {
            map.serialize_entry("data", data)?;
        }
        if !self.extensions.is_empty() {
            map.serialize_entry("extensions", &self.extensions)?;
        }
        map.end()
    }
}

impl Answer {
    /// A request error: nothing ran.
    pub fn refusal(code: Code, message: impl Into<String>) -> Self {
        Error::new(code, message.into()).into()
    }

    /// A request error: the rate limiter let nothing of it run.
    fn limited(verdict: Verdict) -> Self {
        let errors = verdict.refused.iter().map(|(field, place)| {
            let error = Error::rate_limited(&verdict.standings[*place]);
            let mut refused = ServerError::new(error.message.clone(), None);
            refused.extensions = Some(error.extension_values());
            // A request that is not let in asks for a route, which is no part of an answer.
            if field.place != Pos::default() {
                refused.path = vec![PathSegment::Field(field.key.to_string())];
            }
            refused
        });
        Self::refused(errors.collect()).with_standings(verdict.standings)
    }

    /// A request error, named by its request where it is our fault.
    fn failed(error: Error, request_id: &str) -> Self {
        let is_ours = error.code == Code::Internal;
        Self::from(if is_ours {
            error.with("requestId", request_id)
        } else {
            error
        })
    }

    pub(crate) fn refused(errors: Vec<ServerError>) -> Self {
        Self {
            data: None,
            errors,
            extensions: Map::new(),
            standings: Vec::new(),
            cursor: None,
        }
    }

    /// How the client stands with what was asked for.
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// Says how the client stands.
    #[must_use]
    pub fn with_standings(mut self, standings: Vec<Standing>) -> Self {
        let account = standings.iter().map(|standing| {
            json!({
                "field": standing.field,
                "tier": standing.tier.name().to_uppercase(),
                "limit": standing.limit,
                "cost": standing.cost,
                "remaining": standing.remaining,
                "resetAt": DateTime(standing.reset_at).to_value(),
            })
        });
        if !standings.is_empty() {
            self.extensions
                .insert("rateLimit".to_owned(), account.collect());
        }
        self.standings = standings;
        self
    }

    /// The cursor of the event that one answer of a subscription is about: the place to go on from.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    #[must_use]
    pub(crate) fn at(self, cursor: Option<String>) -> Self {
        Self { cursor, ..self }
    }

    /// The answer as a request error: what failed was to begin.
    #[must_use]
    pub(crate) fn without_data(self) -> Self {
        Self { data: None, ..self }
    }

    /// Whether execution began, so that the answer has a `data` key.
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }

    /// The code of the first error.
    pub fn code(&self) -> Option<Code> {
        self.errors.first().and_then(code_of)
    }

    /// An answer that was given before.
    fn again(known: &serde_json::Value) -> Self {
        let part = |name: &str| known.get(name).cloned().unwrap_or_default();
        let data = match part("data") {
            serde_json::Value::String(text) => text,
            data => data.to_string(),
        };
        let data = RawValue::from_string(data).unwrap_or_else(|_| RawValue::NULL.to_owned());
        let extensions = match part("extensions") {
            serde_json::Value::Object(extensions) => extensions,
            _ => Map::new(),
        };
        let mut again = Self {
            data: Some(Box::new(Data::Kept(data))),
            errors: serde_json::from_value(part("errors")).unwrap_or_default(),
            extensions,
            standings: Vec::new(),
            cursor: None,
        };
        again.mark_replayed();
        again
    }

    /// The response as it is stored. The database keeps no order of an object's members, so the data is text.
    fn to_keep(&self) -> Option<serde_json::Value> {
        let data = serde_json::to_string(self.data.as_ref()?).ok()?;
        Some(json!({ "data": data, "errors": self.errors, "extensions": self.extensions }))
    }

    /// Says that what is answered was done when the request was sent before.
    fn mark_replayed(&mut self) {
        let mark = json!({ "isReplayed": true });
        self.extensions.insert("idempotency".to_owned(), mark);
    }

    /// Seconds after which a refused request may be tried again: when the last of its refusals has passed.
    pub fn retry_after(&self) -> Option<u64> {
        let seconds = self.errors.iter().filter_map(|error| {
            match error.extensions.as_ref()?.get("retryAfter")? {
                Value::Number(seconds) => seconds.as_u64(),
                _ => None,
            }
        });
        seconds.max()
    }

    pub(crate) fn of(response: Response, plan: Arc<Plan>, request_id: &str) -> Self {
        // Only an error in a resolver has a path. With errors that have none, and without data, nothing ran.
        let ran = response.data != Value::Null
            || response.errors.is_empty()
            || response.errors.iter().any(|error| !error.path.is_empty());
        let mut errors = response.errors;
        for error in &mut errors {
            let extensions = error.extensions.get_or_insert_default();
            if extensions.get("code").is_none() {
                let code = if error.path.is_empty() {
                    Code::ValidationFailed
                } else {
                    Code::BadUserInput
                };
                extensions.set("code", code.as_str());
            }
            if extensions.get("code") == Some(&Value::from(Code::Internal.as_str())) {
                extensions.set("requestId", request_id);
            }
        }
        let mut data = response.data;
        operation::propagate_nulls(&plan, &mut data, &errors);
        Self {
            data: ran.then(|| Box::new(Data::Fresh(data, plan))),
            errors,
            extensions: Map::new(),
            standings: Vec::new(),
            cursor: None,
        }
    }
}

impl Answer {
    /// Puts null and an error in the place of each root field that was refused, also where null is not allowed: what is
    /// refused is the asking, and must not take the rest along.
    fn refuse(&mut self, verdict: &Verdict) {
        for (field, place) in &verdict.refused {
            if let Some(Data::Fresh(Value::Object(data), _)) = self.data.as_deref_mut() {
                data.insert(field.key.clone(), Value::Null);
            }
            let error = Error::rate_limited(&verdict.standings[*place]);
            let mut refused = ServerError::new(error.message.clone(), Some(field.place));
            refused.path = vec![PathSegment::Field(field.key.to_string())];
            refused.extensions = Some(error.extension_values());
            self.errors.push(refused);
        }
    }
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        let mut refused = ServerError::new(error.message.clone(), None);
        refused.extensions = Some(error.extension_values());
        Self::refused(vec![refused])
    }
}

fn code_of(error: &ServerError) -> Option<Code> {
    let Value::String(code) = error.extensions.as_ref()?.get("code")? else {
        return None;
    };
    Code::ALL.into_iter().find(|known| known.as_str() == code)
}

impl Graph {
    /// The graph over a database, and what is to run beside it.
    ///
    /// # Errors
    /// The accounts' settings cannot be used, or the database cannot be read; the text says why.
    pub async fn new(db: DatabaseConnection, settings: Settings) -> Result<(Self, Works), String> {
        let Settings {
            limits,
            trusted,
            accounts,
            rates,
            buckets,
            clock,
            steady,
            events,
        } = settings;
        // The front has validated what the executor gets.
        let schema = crate::schema()
            .validation_mode(ValidationMode::Fast)
            .limit_recursive_depth(usize::MAX)
            .finish();
        let front = Front::new(&schema.sdl())?;
        let introspection = Introspection::new(&front, &limits)?;
        let tiers = front.tiers();
        let limiter = Limiter::new(rates, buckets, tiers.clone(), Arc::clone(&clock), steady)?;
        let writer = Writer::new(db.clone());
        let (bus, mut relay) = Bus::new(events, db.clone(), writer.clone());
        let epoch = journal::Entity::find().one(&db).await;
        let epoch = epoch.map_err(|error| error.to_string())?;
        let epoch = epoch
            .ok_or("the database has lost the name of its history")?
            .epoch;
        let told = Some(Arc::clone(&bus));
        let (accounts, recorder) = Accounts::new(
            db.clone(),
            writer.clone(),
            accounts,
            Arc::clone(&clock),
            told,
        )?;
        let graph = Self(Arc::new(Inner {
            schema,
            front,
            introspection,
            tiers,
            long: Arc::new(Semaphore::new(1)),
            documents: Cache::weighed(limits.parsed_documents, |text: &Arc<str>, _| {
                text.len() as u64 >> 10
            }),
            plans: Cache::weighed(limits.parsed_documents, |_, plan: &Arc<Plan>| {
                plan.size >> 6
            }),
            persisted: Cache::new(limits.persisted_queries, None),
            trusted,
            rulebook: Rulebook::new(db.get_database_backend()),
            services: Arc::new(Services {
                backend: db.get_database_backend(),
                loader: Loader::new(db.clone()),
                db,
                writer,
                turns: Arc::default(),
                epoch,
                bus,
                limits,
                look: Look::default(),
                started_at: clock(),
                began: Instant::now(),
                clock,
                accounts,
                limiter,
            }),
        }));
        relay.handle(stream::watch_sign_outs(Arc::clone(&graph.0.services)));
        Ok((graph, Works { recorder, relay }))
    }

    /// The schema in the schema definition language.
    pub fn sdl() -> String {
        crate::schema().finish().sdl()
    }

    /// What the caches hold and have done, by name.
    pub fn caches(&self) -> [(&'static str, CacheStats); 6] {
        [
            ("rate_buckets", self.0.services.limiter.buckets()),
            ("viewer_rules", self.0.rulebook.stats()),
            ("revoked_tokens", self.0.services.accounts.revoked()),
            ("parsed_documents", self.0.documents.stats()),
            ("operation_plans", self.0.plans.stats()),
            ("persisted_queries", self.0.persisted.stats()),
        ]
    }

    /// Finds, parses and bounds the document and picks its operation; runs nothing and touches no database.
    ///
    /// # Errors
    /// A request error, ready to be sent.
    pub fn prepare(&self, params: Params) -> Result<Operation, Answer> {
        let began = Instant::now();
        let inner = &*self.0;
        let limits = &inner.services.limits;
        let hash = persisted_hash(params.extensions.as_ref())?;
        let idempotency_key = idempotency_key(params.extensions.as_ref())?;
        let (text, hash) = inner.find(params.query, params.document_id.as_deref(), hash)?;
        let document = inner.document(&text)?;
        if let Some(hash) = hash {
            inner.persisted.insert(hash, Arc::clone(&text));
        }
        let validated = Instant::now();
        // An empty name is none, in every transport.
        let name = params.operation_name.filter(|name| !name.is_empty());
        let operation = choose(&document, name.as_deref())?;
        let variables = params.variables.unwrap_or_default();
        let variables = inner.front.coerce(operation, variables)?;
        let plan = inner.plan(&document, operation, name.clone(), &variables)?;
        let measure = operation::measure(&plan, &variables, limits)?;
        let is_long = inner.introspection.check(&inner.front, &plan, &variables)?;
        let tier = |field: &str| inner.tiers.get(field).copied();
        Ok(Operation {
            text,
            idempotency_key,
            name,
            measure,
            prepared: Prepared {
                parse: validated - began,
                validate: validated.elapsed(),
            },
            roots: operation::root_fields(&plan, &variables, tier),
            variables,
            plan,
            is_long,
        })
    }

    /// Lets a request in that asks for a route, before anything of it is looked at. Answers how its client stands, or why
    /// it is not let in.
    ///
    /// # Errors
    /// `RATE_LIMITED`, ready to be sent.
    pub async fn admit(
        &self,
        client: &Client,
        route: &'static str,
    ) -> Result<Vec<Standing>, Answer> {
        let verdict = self.0.services.limiter.enter(client.address, route).await;
        if verdict.is_refused {
            self.record_refusals(&verdict, &Payer::Network(client.address), client);
            return Err(Answer::limited(verdict));
        }
        Ok(verdict.standings)
    }

    /// Decides whether a query or mutation may run, finds out who asks, and runs it.
    pub async fn answer(&self, operation: Operation, caller: Caller<'_>) -> Answer {
        let is_mutation = operation.kind() == OperationType::Mutation;
        let (run, mut verdict) = match self.enter(operation, caller).await {
            Ok(entered) => entered,
            Err(answer) => return answer,
        };
        let mut answer = if is_mutation {
            self.execute_to_the_end(run).await
        } else {
            self.execute(run).await
        };
        if answer.has_data() {
            answer.refuse(&verdict);
        } else if answer.code() == Some(Code::ValidationFailed) {
            self.0.services.limiter.give_back(&mut verdict).await;
        }
        answer.with_standings(verdict.standings)
    }

    /// What is known of a request that may be sent again, and its turn among those under the same key.
    async fn claim(&self, run: &Run, wanted: &Wanted) -> Result<(Known, Turn), Error> {
        let operation = &run.operation;
        let variables = serde_json::to_value(&operation.variables).unwrap_or_default();
        let name = operation.name.as_deref();
        let fingerprint = idempotency::fingerprint(&operation.text, name, &variables);
        let fields = operation.roots.iter().map(|field| &field.name);
        let services = &*self.0.services;
        let now = (services.clock)().trunc_subsecs(6);
        let user = run.viewer.as_ref().map(Viewer::id);
        let key = Key::new(user, wanted, fingerprint, fields, now)?;
        let claim = async {
            let turn = services.turns.take(&key).await;
            Ok((key.claim(&services.writer).await?, turn))
        };
        let claimed = tokio::time::timeout(services.limits.timeout, claim).await;
        claimed.unwrap_or_else(|_| Err(Error::timeout()))
    }

    /// Decides whether a subscription may start, finds out who asks, and starts it.
    ///
    /// # Errors
    /// A request error, ready to be sent: nothing was started.
    pub async fn subscribe(
        &self,
        operation: Operation,
        caller: Caller<'_>,
    ) -> Result<Answers, Answer> {
        let (run, verdict) = self.enter(operation, caller).await?;
        let watch = run.watch.clone();
        let execution = self.execution(run);
        let live = Live {
            responses: self.0.schema.execute_stream(execution.request),
            request: execution.known,
            waiting: execution.waiting,
            plan: execution.plan,
            watch,
            ready: VecDeque::new(),
        };
        live.start(verdict).await
    }

    /// Who presents an access token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a token that is not believed, `FORBIDDEN` for a deactivated account.
    pub async fn greet(&self, token: &str, client: &Client) -> Result<Bearer, Answer> {
        let accounts = &self.0.services.accounts;
        let presented = accounts.read(token);
        let watch = accounts.watch(&presented);
        let viewer = self.authenticate(presented, client).await?;
        Ok(Bearer {
            watch,
            user: viewer.id(),
            expires_at: viewer.expires_at(),
        })
    }

    /// Decides whether an operation may run, and finds out who asks.
    async fn enter(
        &self,
        operation: Operation,
        caller: Caller<'_>,
    ) -> Result<(Run, Verdict), Answer> {
        let services = &*self.0.services;
        let client = &caller.client;
        let own_key = operation
            .idempotency_key
            .clone()
            .map(|text| Wanted { text, entry: None });
        let wanted_key = own_key.or(caller.idempotency_key.map(|text| Wanted {
            text,
            entry: caller.batch_entry,
        }));
        let token = caller.token.filter(|_| !operation.signs_in());
        let presented = token.map(|token| services.accounts.read(token));
        let payer = match presented.as_ref().and_then(Presented::claimed) {
            Some(user) => Payer::User(user),
            None => Payer::Network(client.address),
        };
        let whole = operation.kind() != OperationType::Query;
        let charge = services
            .limiter
            .charge(&payer, client.address, &operation.roots, whole);
        let mut verdict = charge.await;
        self.record_refusals(&verdict, &payer, client);
        if verdict.is_refused {
            return Err(Answer::limited(verdict));
        }
        let is_stream = operation.kind() == OperationType::Subscription;
        let watched = presented.as_ref().filter(|_| is_stream);
        let watch = watched.and_then(|presented| services.accounts.watch(presented));
        let viewer = match presented {
            Some(presented) => match self.authenticate(presented, client).await {
                Ok(viewer) => Some(viewer),
                Err(answer) => {
                    if matches!(payer, Payer::User(_)) {
                        // Whoever the token names did not ask. The address pays.
                        services.limiter.give_back(&mut verdict).await;
                        let payer = Payer::Network(client.address);
                        let limiter = &services.limiter;
                        let charge =
                            limiter.charge(&payer, client.address, &operation.roots, whole);
                        verdict = charge.await;
                        self.record_refusals(&verdict, &payer, client);
                        if verdict.is_refused {
                            return Err(Answer::limited(verdict));
                        }
                    }
                    return Err(answer.with_standings(verdict.standings));
                }
            },
            None => None,
        };
        let run = Run {
            usage: match caller.usage {
                Usage::Off => false,
                Usage::Admin => viewer.as_ref().is_some_and(Viewer::is_admin),
                Usage::On => true,
            },
            operation,
            client: caller.client,
            after: caller.after,
            wanted_key,
            key: None,
            viewer,
            payer,
            watch,
            refused: verdict
                .refused
                .iter()
                .map(|(field, _)| field.key.clone())
                .collect(),
        };
        Ok((run, verdict))
    }

    fn record_refusals(&self, verdict: &Verdict, payer: &Payer, client: &Client) {
        let actor = match payer {
            Payer::User(user) => Some(*user),
            Payer::Network(_) => None,
        };
        for standing in &verdict.standings {
            if standing.retry_in.is_some() {
                let details = json!({ "field": standing.field });
                let trail = &self.0.services.accounts.trail;
                trail.record(Act::RateLimited, client, actor, None, details);
            }
        }
    }

    async fn authenticate(&self, presented: Presented, client: &Client) -> Result<Viewer, Answer> {
        let services = &*self.0.services;
        let found = services
            .accounts
            .authenticate(&services.loader, presented, client);
        match found.await {
            Ok((user, session, until)) => Ok(Viewer::new(user, session, until, &self.0.rulebook)),
            Err(error) => Err(Answer::failed(error, &client.request_id)),
        }
    }

    /// Replaces the rates from here on.
    pub fn adjust(&self, rates: Rates) {
        self.0.services.limiter.adjust(rates);
    }

    /// What passed the rate limiter and what did not, by tier.
    pub fn tier_counts(&self) -> [TierCount; 4] {
        self.0.services.limiter.counts()
    }

    /// What this instance has done with live events.
    pub fn event_counts(&self) -> live::Counts {
        self.0.services.bus.counts()
    }

    /// Whether this instance limits by itself because Redis does not answer; `None` where no Redis is configured.
    pub fn limits_alone(&self) -> Option<bool> {
        self.0.services.limiter.is_alone()
    }

    /// An access token for a user that lasts as long as its reader wants, for the server's operator.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn ticket(&self, email: &str, lifetime: Duration) -> Result<Option<String>, Answer> {
        Ok(self.0.services.accounts.ticket(email, lifetime).await?)
    }

    /// Deletes expired revocations, sessions, lockouts, audit entries and events. To be called now and then.
    ///
    /// # Errors
    /// The database cannot be written; the cause is logged.
    pub async fn purge(&self) -> Result<(), Answer> {
        self.0.services.accounts.purge().await?;
        let services = &*self.0.services;
        let now = (services.clock)();
        idempotency::purge(&services.db, now).await?;
        Ok(services.bus.purge(&services.db, now).await?)
    }

    /// A change that was begun is finished, and recorded, also when its client has gone.
    async fn execute_to_the_end(&self, run: Run) -> Answer {
        let graph = self.clone();
        let work = async move { graph.execute_as_first(run).await };
        #[expect(
            clippy::disallowed_methods,
            reason = "it is bounded by the time limits of an operation and of the database"
        )]
        let task = tokio::spawn(work.in_current_span());
        task.await
            .unwrap_or_else(|failure| match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Error::unavailable("The server is shutting down.").into(),
            })
    }

    /// What the executor is given to run an operation.
    fn execution(&self, run: Run) -> Execution {
        let inner = &*self.0;
        let Run {
            operation,
            client,
            viewer,
            payer,
            watch: _,
            usage,
            after,
            key,
            refused,
            wanted_key: _,
        } = run;
        // What goes on without an end has no account of its cost.
        let usage = usage && operation.kind() != OperationType::Subscription;
        let waiting = Waiting::new(usage);
        let mut request = Request::new("");
        let document = operation::bind(&operation.plan, &operation.variables, &refused);
        request.set_parsed_query(document);
        let known = Arc::new(ctx::Request {
            services: Arc::clone(&inner.services),
            viewer,
            client,
            payer,
            waiting: Arc::clone(&waiting),
            key,
            progress: Progress::new(after),
            text: AtomicU64::new(0),
        });
        request.data.insert(Arc::clone(&known));
        Execution {
            request,
            known,
            waiting,
            plan: operation.plan,
            measure: operation.measure,
            prepared: operation.prepared,
            is_long: operation.is_long,
        }
    }

    /// Executes an operation, or answers what it was answered when it was first sent under its idempotency key.
    async fn execute_as_first(&self, mut run: Run) -> Answer {
        let Some(wanted) = run.wanted_key.take() else {
            return self.execute(run).await;
        };
        let (key, _turn) = match self.claim(&run, &wanted).await {
            Ok((Known::Nothing(key), turn)) => (key, turn),
            Ok((Known::Answer(known), _)) => return Answer::again(&known),
            Err(error) => return Answer::failed(error, &run.client.request_id),
        };
        run.key = Some(key.clone());
        let mut answer = self.execute(run).await;
        let writer = &self.0.services.writer;
        if key.is_replayed() {
            answer.mark_replayed();
        }
        if !key.is_used() {
            key.release(writer).await;
        } else if answer.has_data() {
            let codes: Vec<_> = answer.errors.iter().map(code_of).collect();
            if let Some(whole) = answer.to_keep() {
                key.keep(writer, whole, &codes).await;
            }
        }
        answer
    }

    async fn execute(&self, run: Run) -> Answer {
        let kind = run.operation.kind();
        let Execution {
            request,
            known,
            waiting,
            plan,
            measure,
            prepared,
            is_long,
        } = self.execution(run);
        let began = Instant::now();
        let timeout = self.0.services.limits.timeout;
        let execution = async {
            if is_long {
                self.execute_aside(request, Arc::clone(&waiting)).await
            } else {
                Gather::new(&waiting, self.0.schema.execute(request)).await
            }
        };
        let Ok(response) = tokio::time::timeout(timeout, execution).await else {
            return match kind {
                OperationType::Mutation => Error::change_timeout().into(),
                OperationType::Query | OperationType::Subscription => Error::timeout().into(),
            };
        };
        let took = began.elapsed();
        let mut answer = Answer::of(response, plan, &known.client.request_id);
        if let Some(usage) = waiting.usage() {
            let batches: Vec<_> = usage
                .batches
                .iter()
                .map(|(name, keys)| json!({ "name": name, "keys": keys }))
                .collect();
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            let account = json!({
                "statements": usage.statements,
                "rows": usage.rows,
                "batches": batches,
                "complexity": measure.complexity,
                "depth": measure.depth,
                "parseMs": milliseconds(prepared.parse),
                "validateMs": milliseconds(prepared.validate),
                "executeMs": milliseconds(took),
            });
            answer.extensions.insert("usage".to_owned(), account);
        }
        answer
    }

    /// Executes an operation that reads much of the schema, which the executor does without a pause, on a thread of its
    /// own.
    async fn execute_aside(&self, request: Request, waiting: Arc<Waiting>) -> Response {
        let shutting_down = || {
            let error =
                async_graphql::Error::from(Error::unavailable("The server is shutting down."));
            Response::from_errors(vec![error.into_server_error(Pos::default())])
        };
        let Ok(permit) = Arc::clone(&self.0.long).acquire_owned().await else {
            return shutting_down();
        };
        let (schema, runtime) = (self.0.schema.clone(), Handle::current());
        let work = tokio::task::spawn_blocking(move || {
            let response = runtime.block_on(Gather::new(&waiting, schema.execute(request)));
            drop(permit);
            response
        });
        work.await.unwrap_or_else(|_| shutting_down())
    }
}

/// The key under which a mutation may be sent again.
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

/// The hash of an automatic persisted query, in lower-case hexadecimal.
fn persisted_hash(
    extensions: Option<&Map<String, serde_json::Value>>,
) -> Result<Option<String>, Error> {
    let Some(persisted) = extensions.and_then(|extensions| extensions.get("persistedQuery")) else {
        return Ok(None);
    };
    let hash = persisted
        .get("sha256Hash")
        .and_then(serde_json::Value::as_str);
    let is_known = persisted.get("version") == Some(&json!(1));
    match hash {
        Some(hash)
            if is_known
                && hash.len() == 64
                && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Ok(Some(hash.to_ascii_lowercase()))
        }
        _ => Err(Error::bad_input(
            "`extensions.persistedQuery` must have `version` 1 and the SHA-256 of the document as `sha256Hash`.",
        )),
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

impl Inner {
    /// The text that a request names or brings along, and the hash under which it is to be kept.
    fn find(
        &self,
        query: Option<String>,
        id: Option<&str>,
        hash: Option<String>,
    ) -> Result<(Arc<str>, Option<String>), Error> {
        let trust = self.trusted.trust;
        let named = id.or(hash.as_deref()).filter(|_| trust != Trust::Any);
        if let Some(known) = named.and_then(|name| self.trusted.documents.get(name)) {
            return Ok((Arc::clone(known), None));
        }
        if hash.is_some() && self.services.limits.persisted_queries == 0 {
            return Err(Error::bad_input("PersistedQueryNotSupported"));
        }
        let Some(query) = query else {
            let known = hash.as_ref().filter(|_| trust != Trust::Enforce);
            return match known.and_then(|hash| self.persisted.get(hash)) {
                Some(known) => Ok((known, None)),
                // Clients know this message by heart.
                None if hash.is_some() => Err(Error::new(
                    Code::PersistedQueryNotFound,
                    "PersistedQueryNotFound",
                )),
                None if id.is_some() => Err(Error::new(
                    Code::PersistedQueryNotFound,
                    "`documentId` names no document that this server keeps.",
                )),
                None => Err(Error::bad_input("`query` is missing.").field("query")),
            };
        };
        let sha256 = || text::hex(&Sha256::digest(query.as_bytes()));
        if hash.as_ref().is_some_and(|hash| sha256() != *hash) {
            return Err(Error::bad_input(
                "`extensions.persistedQuery.sha256Hash` is not the SHA-256 of `query`.",
            ));
        }
        if trust != Trust::Any
            && !self
                .trusted
                .documents
                .values()
                .any(|known| **known == *query)
        {
            if trust == Trust::Enforce {
                let message = "Only the documents that this server's operator trusts may run.";
                return Err(Error::new(Code::Forbidden, message));
            }
            tracing::warn!(sha256 = sha256(), "a document that is not trusted");
        }
        Ok((query.into(), hash))
    }

    fn document(&self, text: &Arc<str>) -> Result<Arc<Document>, Answer> {
        if let Some(known) = self.documents.get(text) {
            return Ok(known);
        }
        let document = Arc::new(self.front.parse(text, &self.services.limits)?);
        self.documents
            .insert(Arc::clone(text), Arc::clone(&document));
        Ok(document)
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
        let limit = self.services.limits.tokens;
        let plan = Plan::new(&self.front, document, operation, &includes, limit)?;
        let plan = Arc::new(plan);
        self.plans.insert(key, Arc::clone(&plan));
        Ok(plan)
    }
}
