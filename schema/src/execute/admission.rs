//! Decides whether an operation may run, and on whose behalf.

use std::sync::{Arc, atomic::AtomicU64};

use async_graphql::{Name, parser::types::OperationType};
use chrono::Utc;
use futures_util::{FutureExt, future::try_join};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    access::{ApiKeyScope, Viewer},
    audit::{AuditAction, Client},
    auth::{Expected, Presented, is_api_key},
    db::PendingBatches,
    error::Error,
    events::Watch,
    execute::{Engine, Usage},
    id::Kind,
    idempotency::RequestedKey,
    operation::Operation,
    rate_limit::{Decision, Payer, RateKey},
    request::{Progress, Request, Services},
    response::{Answer, Written},
    root_field::{KeyAccess, properties},
};

/// The caller of an operation, and the options of the request.
#[derive(Debug, Default)]
pub struct Caller<'a> {
    /// The access token or the API key, if one was sent.
    pub token: Option<&'a str>,
    /// The client, authenticated or not.
    pub client: Client,
    /// Whether the response includes `extensions.usage`.
    pub usage: Usage,
    /// The cursor of the event after which a subscription resumes; overrides the argument of the operation.
    pub after: Option<String>,
    /// The idempotency key of a mutation, unless `extensions.idempotencyKey` contains one.
    pub idempotency_key: Option<String>,
    /// The index of the operation in a batch that shares the idempotency key. Each entry has a separate key.
    pub batch_entry: Option<usize>,
    /// Whether the task of the operation is polled whenever it is woken. Statements of its own then run inside it.
    pub is_always_polled: bool,
}

/// The user of an access token or an API key.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// Watches the session of the token, or the key, while a connection depends on it.
    pub watch: Option<Watch>,
    /// The user's row id.
    pub user: Uuid,
    /// When the token or the key expires.
    pub expires_at: chrono::DateTime<Utc>,
}

/// An admitted operation with its context, and its refused root fields.
pub(crate) struct Run {
    pub(crate) operation: Operation,
    pub(crate) context: Request,
    /// When the operation started to read, if it did so while the caller was authenticated.
    pub(crate) began: Option<Instant>,
    /// The output of the compiled query, if it ran while the caller was authenticated.
    pub(crate) written: Option<Written>,
    /// The session of a subscription.
    pub(crate) watch: Option<Watch>,
    /// The idempotency key sent by the client.
    pub(crate) requested_key: Option<RequestedKey>,
    /// The response keys of refused root fields.
    pub(crate) refused: Vec<Name>,
}

/// Decides whether an operation may run, and authenticates its caller. The compiled part of a query runs at the same
/// time, as the user was at an earlier request; its output is sent only if authentication confirms it.
///
/// A user is charged with the quota class of an earlier request, and charged again if authentication finds another one.
/// A user without an earlier request, or one who would be refused although the class may have changed, is authenticated
/// first.
///
/// # Errors
/// A request error, ready to be sent.
pub(crate) async fn admit(
    engine: &Engine,
    operation: Operation,
    caller: Caller<'_>,
) -> Result<(Run, Decision), Answer> {
    let services = &*engine.services;
    let token = caller.token.filter(|_| !operation.signs_in());
    let presented = token.map(|token| services.accounts.read(token));
    let client = &caller.client;
    let mut charging = Charging {
        services,
        operation: &operation,
        rate_key: RateKey::Network(client.address),
    };
    let is_stream = operation.kind() == OperationType::Subscription;
    let watch = presented.as_ref().filter(|_| is_stream);
    let watch = watch.and_then(|presented| services.accounts.watch(presented));
    let inside = caller.is_always_polled;
    let Entry {
        mut decision,
        viewer,
        expected,
        presented,
    } = charging.enter(client, presented, inside).await?;
    if token.is_none() && caller.token.is_some_and(is_api_key) {
        let field = operation.roots.first().map(|field| field.name.as_str());
        let error = Error::not_for_keys(field.unwrap_or_default());
        return Err(failed(error, client, decision));
    }
    let stand_in = expected
        .as_ref()
        .filter(|_| operation.kind() == OperationType::Query && !operation.is_long)
        .map(|known| stand_in(services, known));
    let refused = decision.refused_keys();
    let usage = |viewer: Option<&Viewer>| !is_stream && reports(caller.usage, viewer);
    let viewer = viewer.or(stand_in);
    let mut context = Request {
        services: Arc::clone(&engine.services),
        pending: PendingBatches::new(usage(viewer.as_ref()), inside),
        viewer,
        client: caller.client,
        rate_key: charging.rate_key,
        key: None,
        progress: Progress::new(caller.after),
        text: AtomicU64::new(0),
        fields: AtomicU64::new(0),
        charged: Vec::new(),
    };
    let began = context.viewer.as_ref().map(|_| Instant::now());
    let mut written = None;
    let mut is_recharged = false;
    if let Some(presented) = presented {
        let authenticated = authenticate(services, presented, &context.client, inside);
        let reads = engine.read_early(&operation, &context, &refused);
        // A refusal does not wait for the reads.
        match try_join(authenticated, reads.map(Ok)).await {
            Ok((viewer, read)) => {
                if expected.as_ref().and_then(Expected::quota_class) != viewer.quota_class() {
                    services.limiter.refund(&mut decision).await;
                    charging.rate_key = viewer_key(&viewer);
                    context.rate_key = charging.rate_key;
                    let client = &context.client;
                    let again = charging.charge(client, viewer.quota_class()).await;
                    decision = charging.decide(client, again)?;
                    is_recharged = true;
                }
                let is_expected = context
                    .viewer
                    .as_ref()
                    .is_some_and(|expected| expected.is_admin() == viewer.is_admin());
                if is_expected && !is_recharged {
                    written = read;
                } else {
                    context.text = AtomicU64::new(0);
                    context.fields = AtomicU64::new(0);
                    context.pending = PendingBatches::new(usage(Some(&viewer)), inside);
                }
                context.viewer = Some(viewer);
            }
            Err(error) => {
                let client = &context.client;
                return Err(charging.unauthenticated(client, decision, error).await);
            }
        }
    }
    if let Some(viewer) = &context.viewer
        && let Err(error) = permit(services, viewer, &operation, &context.client)
    {
        return Err(failed(error, &context.client, decision));
    }
    if operation.reports_quotas() {
        context.charged.clone_from(&decision.quotas);
    }
    let requested_key = requested_key(&operation, caller.idempotency_key, caller.batch_entry);
    let run = Run {
        operation,
        context,
        began,
        written,
        watch,
        requested_key,
        refused: decision.refused_keys(),
    };
    Ok((run, decision))
}

/// Whether the usage of an operation is reported. A subscription has no end at which to report it.
fn reports(usage: Usage, viewer: Option<&Viewer>) -> bool {
    match usage {
        Usage::Off => false,
        Usage::Admin => viewer.is_some_and(Viewer::is_admin),
        Usage::On => true,
    }
}

/// The caller as an earlier request has found them.
fn stand_in(services: &Services, known: &Expected) -> Viewer {
    let (ids, grant) = (known.grant.ids(known.user), known.grant.clone());
    Viewer::stand_in(ids, known.standing.role, grant, &services.rulebook)
}

/// The answer to a charged operation that may not run.
fn failed(error: Error, client: &Client, decision: Decision) -> Answer {
    Answer::failed(error, &client.request_id).with_quotas(decision.quotas)
}

/// The idempotency key of a request: that of the operation, or that of its transport.
fn requested_key(
    operation: &Operation,
    of_transport: Option<String>,
    entry: Option<usize>,
) -> Option<RequestedKey> {
    let own = operation.idempotency_key.clone();
    let own = own.map(|text| RequestedKey { text, entry: None });
    own.or(of_transport.map(|text| RequestedKey { text, entry }))
}

/// The owner of the buckets to charge: the user, or an API key with a quota class of its own. `None` for an invalid token
/// and for an API key that is not known.
fn rate_key(presented: &Presented) -> Option<RateKey> {
    match presented {
        Presented::Key(_, Some(key)) if key.quota_class.is_some() => Some(RateKey::Key(key.id)),
        _ => presented.claimed().map(RateKey::User),
    }
}

/// As [`rate_key`], for an authenticated caller.
fn viewer_key(viewer: &Viewer) -> RateKey {
    match viewer.key() {
        Some(key) if key.quota_class.is_some() => RateKey::Key(key.id),
        _ => RateKey::User(viewer.id()),
    }
}

/// A charged operation.
#[derive(Default)]
struct Entry {
    decision: Decision,
    /// The caller, if they were authenticated before the charge.
    viewer: Option<Viewer>,
    /// What was known of the caller when they were charged, if they have yet to be authenticated.
    expected: Option<Expected>,
    /// The credential that has yet to be authenticated.
    presented: Option<Presented>,
}

/// The charge of an operation.
struct Charging<'a> {
    services: &'a Services,
    operation: &'a Operation,
    rate_key: RateKey,
}

impl Charging<'_> {
    /// Charges an operation with the quota class of an earlier request, or after authentication. A key that this process
    /// has not seen yet is charged to the network first: it pays for keys that do not exist, and the user for those that
    /// do.
    ///
    /// # Errors
    /// The operation is refused as a whole, or the credential is not valid.
    async fn enter(
        &mut self,
        client: &Client,
        mut presented: Option<Presented>,
        inside: bool,
    ) -> Result<Entry, Answer> {
        let Services {
            accounts,
            limiter,
            loader,
            ..
        } = self.services;
        // A stream must see the end of its session, so its watch begins before the read.
        let recent = presented
            .as_ref()
            .filter(|_| self.operation.kind() != OperationType::Subscription)
            .and_then(|presented| accounts.recent(presented));
        if let Some((user, grant)) = recent {
            let viewer = Viewer::new(user, grant, &self.services.rulebook);
            self.rate_key = viewer_key(&viewer);
            return self.enter_as(client, viewer).await;
        }
        if let Some(key) = presented.as_mut().filter(|key| key.is_new_key()) {
            let decision = self.charge(client, None).await;
            let mut decision = self.decide(client, decision)?;
            accounts.identify(loader, key).await;
            if key.claimed().is_none() {
                return Ok(Entry {
                    decision,
                    presented,
                    ..Entry::default()
                });
            }
            limiter.refund(&mut decision).await;
        }
        if let Some(rate_key) = presented.as_ref().and_then(rate_key) {
            self.rate_key = rate_key;
        }
        let expected = presented
            .as_ref()
            .and_then(|presented| accounts.expected(presented));
        if expected.is_some() || matches!(self.rate_key, RateKey::Network(_)) {
            let class = expected.as_ref().and_then(Expected::quota_class);
            let mut decision = self.charge(client, class).await;
            let is_check_due = decision.has_refusals()
                && expected
                    .as_ref()
                    .is_some_and(|known| known.standing.is_check_due(limiter.monotonic()));
            if !is_check_due {
                return Ok(Entry {
                    decision: self.decide(client, decision)?,
                    expected,
                    presented,
                    ..Entry::default()
                });
            }
            limiter.refund(&mut decision).await;
        }
        let Some(presented) = presented else {
            return Ok(Entry::default());
        };
        match authenticate(self.services, presented, client, inside).await {
            Ok(viewer) => self.enter_as(client, viewer).await,
            Err(error) => Err(self
                .unauthenticated(client, Decision::default(), error)
                .await),
        }
    }

    /// Charges the operation of an authenticated viewer.
    async fn enter_as(&self, client: &Client, viewer: Viewer) -> Result<Entry, Answer> {
        let decision = self.charge(client, viewer.quota_class()).await;
        Ok(Entry {
            decision: self.decide(client, decision)?,
            viewer: Some(viewer),
            ..Entry::default()
        })
    }

    async fn charge(&self, client: &Client, class: Option<&str>) -> Decision {
        self.charge_to(self.rate_key, client, class).await
    }

    async fn charge_to(&self, rate_key: RateKey, client: &Client, class: Option<&str>) -> Decision {
        let payer = Payer {
            rate_key,
            address: client.address,
            class,
        };
        let whole = self.operation.kind() != OperationType::Query;
        let limiter = &self.services.limiter;
        limiter.charge(payer, &self.operation.roots, whole).await
    }

    /// Records the refusals of a decision.
    ///
    /// # Errors
    /// The operation is refused as a whole.
    fn decide(&self, client: &Client, decision: Decision) -> Result<Decision, Answer> {
        self.record(client, &decision, self.rate_key);
        if decision.is_refused {
            return Err(Answer::limited(decision));
        }
        Ok(decision)
    }

    fn record(&self, client: &Client, decision: &Decision, rate_key: RateKey) {
        let actor = match rate_key {
            RateKey::User(user) => Some(user),
            RateKey::Key(_) | RateKey::Network(_) => None,
        };
        for quota in &decision.quotas {
            if quota.retry_in.is_some() {
                let details = match &quota.field {
                    Some(field) => json!({ "field": field }),
                    None => json!({ "tier": quota.tier.label() }),
                };
                let audit = &self.services.accounts.audit;
                audit.record(AuditAction::RateLimited, client, actor, None, details);
            }
        }
    }

    /// The answer to a credential that is not valid. Its user must not be charged; the client's address is charged instead.
    async fn unauthenticated(
        &self,
        client: &Client,
        mut decision: Decision,
        error: Error,
    ) -> Answer {
        if !matches!(self.rate_key, RateKey::Network(_)) {
            self.services.limiter.refund(&mut decision).await;
            let network = RateKey::Network(client.address);
            decision = self.charge_to(network, client, None).await;
            self.record(client, &decision, network);
            if decision.is_refused {
                return Answer::limited(decision);
            }
        }
        failed(error, client, decision)
    }
}

/// Checks that the API key of a viewer, if there is one, allows an operation.
///
/// # Errors
/// `FORBIDDEN`; the audit log has an entry.
fn permit(
    services: &Services,
    viewer: &Viewer,
    operation: &Operation,
    client: &Client,
) -> Result<(), Error> {
    let Some(key) = viewer.key() else {
        return Ok(());
    };
    let scope = match operation.kind() {
        OperationType::Query | OperationType::Subscription => ApiKeyScope::Read,
        OperationType::Mutation => ApiKeyScope::Write,
    };
    let refusal = operation.roots.iter().find_map(|field| {
        let access = properties(&field.name).keys;
        match access {
            KeyAccess::None => Some(Error::not_for_keys(&field.name)),
            KeyAccess::Unlimited if viewer.is_limited() => {
                Some(Error::not_for_limited_keys(&field.name))
            }
            KeyAccess::All | KeyAccess::Unlimited => None,
        }
    });
    let lacks = (!scope.is_of(key)).then(|| Error::missing_scope(scope.name()));
    let Some(error) = refusal.or(lacks) else {
        return Ok(());
    };
    let (audit, actor) = (&services.accounts.audit, Some(viewer.id()));
    let target = Some((Kind::ApiKey, key.id));
    audit.record_of(AuditAction::Refused, client, actor, target, json!({}));
    Err(error)
}

/// Authenticates an access token or an API key.
///
/// # Errors
/// It is not valid, or its user may not sign in.
pub(crate) async fn authenticate(
    services: &Services,
    presented: Presented,
    client: &Client,
    runs_inside: bool,
) -> Result<Viewer, Error> {
    let found = services
        .accounts
        .authenticate(&services.loader, presented, client, runs_inside);
    let (user, grant) = found.await?;
    Ok(Viewer::new(user, grant, &services.rulebook))
}
