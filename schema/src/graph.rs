//! The graph: the facade that every transport calls.
//!
//! No extension of async-graphql is used: with any extension every field and list item is boxed, which costs more than
//! the rest of the execution.

use std::collections::VecDeque;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_graphql::{ValidationMode, parser::types::OperationType};
use futures_util::future::BoxFuture;
use gathering_entity::journal;
use sea_orm::EntityTrait;
use tokio::sync::Semaphore;

use crate::{
    access::Rulebook,
    audit::{AuditWriter, Client},
    auth::{self, Accounts, KeyUseWriter, MailSender},
    cache::CacheStats,
    clock::{Clock, MonotonicClock},
    compiled::Queries,
    data::Groups,
    db::{BatchSizes, Loader, Pool, Writer},
    error::Code,
    events::{self, Bus, Relay},
    execute::{self, Bearer, Caller, Engine},
    health::Monitor,
    idempotency,
    limits::Limits,
    operation::{Operation, Params, Preparer, TrustedDocuments},
    rate_limit::{Limiter, Rates, Tier, TierCount},
    request::Services,
    response::Answer,
    roots,
    subscribe::{self, Answers, Live},
    transfer,
};

/// The settings of a graph.
pub struct Settings {
    /// The limits of an operation.
    pub limits: Limits,
    /// The documents that the server's operator trusts.
    pub trusted: TrustedDocuments,
    /// The settings of accounts.
    pub accounts: auth::Settings,
    /// The rate limits of root fields.
    pub rates: Rates,
    /// The Redis server that all instances share; `None` for a single instance.
    pub redis: Option<String>,
    /// Returns the current time.
    pub clock: Clock,
    /// Returns the monotonic time.
    pub monotonic: MonotonicClock,
    /// The settings of live events.
    pub events: events::Settings,
    /// Reports the health of the process.
    pub monitor: Arc<dyn Monitor>,
}

/// Background tasks, which must run as long as the graph is used.
pub struct BackgroundTasks {
    /// Writes the audit log.
    pub audit_writer: AuditWriter,
    /// Publishes live events.
    pub relay: Relay,
    /// Writes when API keys were last used.
    pub key_use_writer: KeyUseWriter,
    /// Sends mails, if they are configured.
    pub mail_sender: Option<MailSender>,
}

/// The graph: cheap to clone, shared by every request.
#[derive(Clone)]
pub struct Graph(Arc<Inner>);

struct Inner {
    preparer: Preparer,
    engine: Engine,
}

impl Graph {
    /// Creates a graph over a database, and its background tasks.
    ///
    /// # Errors
    /// The settings of the accounts are invalid, or the database cannot be read; the text contains the reason.
    pub fn new(
        pool: Pool,
        settings: Settings,
    ) -> BoxFuture<'static, Result<(Self, BackgroundTasks), String>> {
        Box::pin(async move {
            let db = pool.connection().clone();
            let Settings {
                limits,
                trusted,
                accounts,
                rates,
                redis,
                clock,
                monotonic,
                events,
                monitor,
            } = settings;
            // The validator has validated every operation that reaches the executor.
            let schema = roots::schema()
                .validation_mode(ValidationMode::Fast)
                .limit_recursive_depth(usize::MAX)
                .finish();
            let preparer = Preparer::new(&schema.sdl(), trusted, limits.clone())?;
            let tiers = preparer.tiers().clone();
            let limiter = Limiter::new(rates, redis, tiers, Arc::clone(&clock), monotonic)?;
            let writer = Writer::new(db.clone());
            let (bus, mut relay) = Bus::new(events, db.clone(), writer.clone(), Arc::clone(&clock));
            let epoch = journal::Entity::find().one(&db).await;
            let epoch = epoch.map_err(|error| error.to_string())?;
            let epoch = epoch.ok_or("the database table `journal` is empty")?.epoch;
            let notified = Some(Arc::clone(&bus));
            let (accounts, audit_writer) = Accounts::new(
                db.clone(),
                writer.clone(),
                accounts,
                Arc::clone(&clock),
                notified,
            )?;
            let key_use_writer = accounts.key_use_writer();
            let mail_sender = accounts.mail_sender();
            let services = Arc::new(Services {
                backend: db.get_database_backend(),
                loader: Loader::new(pool),
                rulebook: Arc::new(Rulebook::new(db.get_database_backend())),
                db,
                groups: Groups::new(writer.clone()),
                writer,
                turns: Arc::default(),
                epoch,
                bus,
                limits,
                monitor,
                started_at: clock(),
                began: Instant::now(),
                clock,
                accounts,
                limiter,
            });
            relay.handle(subscribe::watch_sign_outs(Arc::clone(&services)));
            let capacity = services.limits.compiled_queries;
            let queries = Queries::new(services.backend, Arc::clone(&services.rulebook), capacity);
            let engine = Engine {
                schema,
                queries: Arc::new(queries),
                services,
                long: Arc::new(Semaphore::new(1)),
            };
            let graph = Self(Arc::new(Inner { preparer, engine }));
            Ok((
                graph,
                BackgroundTasks {
                    audit_writer,
                    relay,
                    key_use_writer,
                    mail_sender,
                },
            ))
        })
    }

    /// The schema in the schema definition language (SDL).
    pub fn sdl() -> String {
        roots::schema().finish().sdl()
    }

    /// The statistics of the caches, by name.
    pub fn caches(&self) -> [(&'static str, CacheStats); 12] {
        let services = self.services();
        let [parsed, plans, persisted] = self.0.preparer.stats();
        [
            ("compiled_queries", self.0.engine.queries.stats()),
            ("rate_buckets", services.limiter.buckets()),
            ("viewer_rules", services.rulebook.stats()),
            ("revoked_tokens", services.accounts.revoked()),
            ("api_keys", services.accounts.known_keys()),
            ("recent_sessions", services.accounts.recent_sessions()),
            ("recent_api_keys", services.accounts.recent_keys()),
            ("roles", services.accounts.roles()),
            ("verified_tokens", services.accounts.verified()),
            ("parsed_documents", parsed),
            ("operation_plans", plans),
            ("persisted_queries", persisted),
        ]
    }

    /// The number of root fields that compiled queries have answered, and the number of those that they left to the
    /// executor after they had started.
    pub fn compiled_fields(&self) -> (u64, u64) {
        self.0.engine.queries.counts()
    }

    fn services(&self) -> &Arc<Services> {
        &self.0.engine.services
    }

    /// Finds, parses and validates the document and selects its operation. Executes nothing and does not access the
    /// database.
    ///
    /// # Errors
    /// A request error, ready to be sent.
    pub fn prepare(&self, params: Params) -> Result<Operation, Answer> {
        Ok(self.0.preparer.prepare(params)?)
    }

    /// Charges, authenticates and executes a query or mutation.
    pub fn answer<'a>(&'a self, operation: Operation, caller: Caller<'a>) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let engine = &self.0.engine;
            let is_mutation = operation.kind() == OperationType::Mutation;
            let (run, mut decision) = match execute::admit(engine, operation, caller).await {
                Ok(entered) => entered,
                Err(answer) => return answer,
            };
            let mut answer = if is_mutation {
                engine.execute_to_the_end(run).await
            } else {
                engine.execute(run).await
            };
            if answer.has_data() {
                if let Some(complexity) = answer.complexity() {
                    self.services().limiter.settle(&mut decision, complexity);
                }
                answer.refuse(&decision);
            } else if answer.code() == Some(Code::ValidationFailed) {
                self.services().limiter.refund(&mut decision).await;
            }
            answer.with_quotas(decision.quotas)
        })
    }

    /// Charges, authenticates and starts a subscription.
    ///
    /// # Errors
    /// A request error, ready to be sent: nothing was started.
    pub fn subscribe<'a>(
        &'a self,
        operation: Operation,
        caller: Caller<'a>,
    ) -> BoxFuture<'a, Result<Answers, Answer>> {
        Box::pin(async move {
            let engine = &self.0.engine;
            let (run, decision) = execute::admit(engine, operation, caller).await?;
            let watch = run.watch.clone();
            let execution = Engine::execution(run);
            let live = Live {
                responses: engine.schema.execute_stream(execution.request(&[])),
                request: execution.context,
                pending: execution.pending,
                plan: execution.plan,
                watch,
                ready: VecDeque::new(),
            };
            live.start(decision).await
        })
    }

    /// The user who presents an access token or an API key.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for one that is not accepted, `FORBIDDEN` for a deactivated account.
    pub fn verify_token<'a>(
        &'a self,
        token: &'a str,
        client: &'a Client,
    ) -> BoxFuture<'a, Result<Bearer, Answer>> {
        Box::pin(async move {
            let services = self.services();
            let accounts = &services.accounts;
            let mut presented = accounts.read(token);
            accounts.identify(&services.loader, &mut presented).await;
            let watch = accounts.watch(&presented);
            let viewer = execute::authenticate(services, presented, client, false)
                .await
                .map_err(|error| Answer::failed(error, &client.request_id))?;
            Ok(Bearer {
                watch,
                user: viewer.id(),
                expires_at: viewer.expires_at(),
            })
        })
    }

    /// Replaces the rates.
    pub fn set_rates(&self, rates: Rates) {
        self.services().limiter.set_rates(rates);
    }

    /// Allowed and refused requests, by tier.
    pub fn tier_counts(&self) -> [TierCount; Tier::ALL.len()] {
        self.services().limiter.counts()
    }

    /// The event statistics of this instance.
    pub fn event_counts(&self) -> events::Counts {
        self.services().bus.counts()
    }

    /// The sizes of the batches that the loader has sent, by name.
    pub fn batch_sizes(&self) -> Vec<BatchSizes> {
        self.services().loader.batch_sizes()
    }

    /// Number of callers that have a connection of the pool or wait for one, without background tasks.
    pub fn database_callers(&self) -> usize {
        let services = self.services();
        services.loader.callers() + services.writer.callers()
    }

    /// Whether this instance applies the limits separately because Redis does not respond; `None` if Redis is not
    /// configured.
    pub fn limits_alone(&self) -> Option<bool> {
        self.services().limiter.is_alone()
    }

    /// The number of rate limit decisions that this instance has taken separately although Redis is configured.
    pub fn local_decisions(&self) -> u64 {
        self.services().limiter.local_decisions()
    }

    /// An access token with the given lifetime, for the server's operator; `None` if there is no such user.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn operator_token<'a>(
        &'a self,
        email: &'a str,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<Option<String>, Answer>> {
        Box::pin(async move {
            Ok(self
                .services()
                .accounts
                .operator_token(email, lifetime)
                .await?)
        })
    }

    /// Deletes expired revocations, sessions, lockouts, mails, transfers, audit log entries and events. Must be called
    /// regularly.
    ///
    /// # Errors
    /// The database cannot be written; the cause is logged.
    pub fn purge(&self) -> BoxFuture<'_, Result<(), Answer>> {
        Box::pin(async move {
            self.services().accounts.purge().await?;
            let services = self.services();
            let now = (services.clock)();
            idempotency::purge(&services.db, now).await?;
            transfer::purge(&services.db, now).await?;
            Ok(services.bus.purge(&services.db, now).await?)
        })
    }
}
