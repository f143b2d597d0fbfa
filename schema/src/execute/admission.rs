//! Decides whether an operation may run, and on whose behalf.

use std::sync::{Arc, atomic::AtomicU64};

use async_graphql::{Name, parser::types::OperationType};
use chrono::Utc;
use futures_util::{FutureExt, future::try_join};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    access::Viewer,
    audit::{AuditAction, Client},
    auth::{Standing, TokenClaims},
    db::PendingBatches,
    error::Error,
    events::Watch,
    execute::{Engine, Usage},
    idempotency::RequestedKey,
    operation::Operation,
    rate_limit::{Decision, Payer, RateKey},
    request::{Progress, Request, Services},
    response::{Answer, Written},
};

/// The caller of an operation, and the options of the request.
#[derive(Debug, Default)]
pub struct Caller<'a> {
    /// The access token, if one was sent.
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

/// The owner of an access token.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// Watches the session of the token while a connection depends on it.
    pub watch: Option<Watch>,
    /// The user's row id.
    pub user: Uuid,
    /// When the token expires.
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
    let charging = Charging {
        services,
        operation: &operation,
        rate_key: match presented.as_ref().and_then(TokenClaims::claimed) {
            Some(user) => RateKey::User(user),
            None => RateKey::Network(caller.client.address),
        },
    };
    let client = &caller.client;
    let is_stream = operation.kind() == OperationType::Subscription;
    let watched = presented.as_ref().filter(|_| is_stream);
    let watch = watched.and_then(|presented| services.accounts.watch(presented));
    let inside = caller.is_always_polled;
    let Entry {
        mut decision,
        viewer,
        standing,
        presented,
    } = charging.enter(client, presented, inside).await?;
    let expected = standing
        .as_ref()
        .filter(|_| operation.kind() == OperationType::Query && !operation.is_long)
        .map(|(user, known)| Viewer::stand_in(*user, known.role, &services.rulebook));
    let refused = decision.refused_keys();
    // A subscription has no end at which to report its cost.
    let usage = |viewer: Option<&Viewer>| {
        !is_stream
            && match caller.usage {
                Usage::Off => false,
                Usage::Admin => viewer.is_some_and(Viewer::is_admin),
                Usage::On => true,
            }
    };
    let viewer = viewer.or(expected);
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
    if let Some(claims) = presented {
        let authenticated = authenticate(services, claims, &context.client, inside);
        let reads = engine.read_early(&operation, &context, &refused);
        // A refusal does not wait for the reads.
        match try_join(authenticated, reads.map(Ok)).await {
            Ok((viewer, read)) => {
                if class_of(standing.as_ref()) != viewer.quota_class() {
                    services.limiter.refund(&mut decision).await;
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
                return Err(charging
                    .unauthenticated(&context.client, decision, error)
                    .await);
            }
        }
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

/// The user of a token, and their standing at an earlier request.
type Expected = (Uuid, Arc<Standing>);

/// The quota class at an earlier request.
fn class_of(expected: Option<&Expected>) -> Option<&str> {
    expected.and_then(|(_, standing)| standing.class.as_deref())
}

/// A charged operation.
struct Entry {
    decision: Decision,
    /// The caller, if they were authenticated before the charge.
    viewer: Option<Viewer>,
    /// The standing with which the caller was charged, if they have yet to be authenticated.
    standing: Option<Expected>,
    /// The token that has yet to be authenticated.
    presented: Option<TokenClaims>,
}

/// The charge of an operation.
struct Charging<'a> {
    services: &'a Services,
    operation: &'a Operation,
    rate_key: RateKey,
}

impl Charging<'_> {
    /// Charges an operation with the quota class of an earlier request, or after authentication.
    ///
    /// # Errors
    /// The operation is refused as a whole, or the token is not valid.
    async fn enter(
        &self,
        client: &Client,
        presented: Option<TokenClaims>,
        inside: bool,
    ) -> Result<Entry, Answer> {
        let Services {
            accounts, limiter, ..
        } = self.services;
        let standing = presented
            .as_ref()
            .and_then(|claims| accounts.expected(claims));
        if standing.is_some() || matches!(self.rate_key, RateKey::Network(_)) {
            let mut decision = self.charge(client, class_of(standing.as_ref())).await;
            let known = standing.as_ref().filter(|_| decision.has_refusals());
            if !known.is_some_and(|(_, known)| known.is_check_due(limiter.monotonic())) {
                return Ok(Entry {
                    decision: self.decide(client, decision)?,
                    viewer: None,
                    standing,
                    presented,
                });
            }
            limiter.refund(&mut decision).await;
        }
        let mut entry = Entry {
            decision: Decision::default(),
            viewer: None,
            standing: None,
            presented: None,
        };
        if let Some(claims) = presented {
            match authenticate(self.services, claims, client, inside).await {
                Ok(viewer) => {
                    let decision = self.charge(client, viewer.quota_class()).await;
                    entry.decision = self.decide(client, decision)?;
                    entry.viewer = Some(viewer);
                }
                Err(error) => {
                    return Err(self.unauthenticated(client, entry.decision, error).await);
                }
            }
        }
        Ok(entry)
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
            RateKey::Network(_) => None,
        };
        for quota in &decision.quotas {
            if quota.retry_in.is_some() {
                let details = match &quota.field {
                    Some(field) => json!({ "field": field }),
                    None => json!({ "tier": quota.tier.name().to_uppercase() }),
                };
                let audit = &self.services.accounts.audit;
                audit.record(AuditAction::RateLimited, client, actor, None, details);
            }
        }
    }

    /// The answer to a token that is not valid. Its user must not be charged; the client's address is charged instead.
    async fn unauthenticated(
        &self,
        client: &Client,
        mut decision: Decision,
        error: Error,
    ) -> Answer {
        if matches!(self.rate_key, RateKey::User(_)) {
            self.services.limiter.refund(&mut decision).await;
            let network = RateKey::Network(client.address);
            decision = self.charge_to(network, client, None).await;
            self.record(client, &decision, network);
            if decision.is_refused {
                return Answer::limited(decision);
            }
        }
        Answer::failed(error, &client.request_id).with_quotas(decision.quotas)
    }
}

/// Authenticates an access token.
///
/// # Errors
/// The token is not valid, or its user may not sign in.
pub(crate) async fn authenticate(
    services: &Services,
    presented: TokenClaims,
    client: &Client,
    runs_inside: bool,
) -> Result<Viewer, Error> {
    let found = services
        .accounts
        .authenticate(&services.loader, presented, client, runs_inside);
    match found.await {
        Ok((user, session, until)) => Ok(Viewer::new(user, session, until, &services.rulebook)),
        Err(error) => Err(error),
    }
}
