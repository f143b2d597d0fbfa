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
    auth::{Presented, is_api_key},
    db::PendingBatches,
    error::Error,
    events::Watch,
    execute::{Engine, Usage},
    id::Kind,
    idempotency::RequestedKey,
    operation::Operation,
    rate_limit::{Decision, RateKey},
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
/// # Errors
/// A request error, ready to be sent.
pub(crate) async fn admit(
    engine: &Engine,
    operation: Operation,
    caller: Caller<'_>,
) -> Result<(Run, Decision), Answer> {
    let services = &*engine.services;
    let own_key = operation
        .idempotency_key
        .clone()
        .map(|text| RequestedKey { text, entry: None });
    let requested_key = own_key.or(caller.idempotency_key.map(|text| RequestedKey {
        text,
        entry: caller.batch_entry,
    }));
    let token = caller.token.filter(|_| !operation.signs_in());
    let mut presented = token.map(|token| services.accounts.read(token));
    let is_key = caller.token.is_some_and(is_api_key);
    let (rate_key, decision) =
        charge_caller(services, &operation, presented.as_mut(), &caller.client).await?;
    if presented.is_none() && is_key {
        let field = operation.roots.first().map(|field| field.name.as_str());
        let error = Error::not_for_keys(field.unwrap_or_default());
        let answer = Answer::failed(error, &caller.client.request_id);
        return Err(answer.with_quotas(decision.quotas));
    }
    let is_stream = operation.kind() == OperationType::Subscription;
    let watched = presented.as_ref().filter(|_| is_stream);
    let watch = watched.and_then(|presented| services.accounts.watch(presented));
    let expected = presented
        .as_ref()
        .filter(|_| operation.kind() == OperationType::Query && !operation.is_long)
        .and_then(|presented| services.accounts.expected(presented))
        .map(|(ids, role, grant)| Viewer::stand_in(ids, role, grant, &services.rulebook));
    let refused: Vec<_> = decision
        .refused
        .iter()
        .map(|(field, _)| field.key.clone())
        .collect();
    // A subscription has no end at which to report its cost.
    let usage = |viewer: Option<&Viewer>| {
        !is_stream
            && match caller.usage {
                Usage::Off => false,
                Usage::Admin => viewer.is_some_and(Viewer::is_admin),
                Usage::On => true,
            }
    };
    let mut context = Request {
        services: Arc::clone(&engine.services),
        pending: PendingBatches::new(usage(expected.as_ref()), caller.is_always_polled),
        viewer: expected,
        client: caller.client,
        rate_key,
        key: None,
        progress: Progress::new(caller.after),
        text: AtomicU64::new(0),
    };
    let began = context.viewer.as_ref().map(|_| Instant::now());
    let mut written = None;
    if let Some(presented) = presented {
        let inside = caller.is_always_polled;
        let authenticated = authenticate(services, presented, &context.client, inside);
        let reads = engine.read_early(&operation, &context, &refused);
        // A refusal does not wait for the reads.
        match try_join(authenticated, reads.map(Ok)).await {
            Ok((viewer, read)) => {
                let is_expected = context
                    .viewer
                    .as_ref()
                    .is_some_and(|expected| expected.is_admin() == viewer.is_admin());
                if is_expected {
                    written = read;
                } else {
                    context.text = AtomicU64::new(0);
                    context.pending =
                        PendingBatches::new(usage(Some(&viewer)), caller.is_always_polled);
                }
                if let Err(error) = permit(services, &viewer, &operation, &context.client) {
                    let answer = Answer::failed(error, &context.client.request_id);
                    return Err(answer.with_quotas(decision.quotas));
                }
                context.viewer = Some(viewer);
            }
            Err(error) => {
                return Err(unauthenticated(services, &operation, context, decision, error).await);
            }
        }
    }
    let run = Run {
        operation,
        context,
        began,
        written,
        watch,
        requested_key,
        refused,
    };
    Ok((run, decision))
}

/// Charges an operation to the user of its credential, or to the network of an anonymous caller. A key that this process
/// has not seen yet is charged to the network first: it pays for keys that do not exist, and the user for those that do.
///
/// # Errors
/// The operation is refused as a whole.
async fn charge_caller(
    services: &Services,
    operation: &Operation,
    presented: Option<&mut Presented>,
    client: &Client,
) -> Result<(RateKey, Decision), Answer> {
    let network = RateKey::Network(client.address);
    let Some(presented) = presented else {
        let decision = charge(services, operation, &network, client).await?;
        return Ok((network, decision));
    };
    if let Some(user) = presented.claimed() {
        let rate_key = RateKey::User(user);
        let decision = charge(services, operation, &rate_key, client).await?;
        return Ok((rate_key, decision));
    }
    let mut decision = charge(services, operation, &network, client).await?;
    services
        .accounts
        .identify(&services.loader, presented)
        .await;
    let Some(user) = presented.claimed() else {
        return Ok((network, decision));
    };
    services.limiter.refund(&mut decision).await;
    let rate_key = RateKey::User(user);
    let decision = charge(services, operation, &rate_key, client).await?;
    Ok((rate_key, decision))
}

/// Charges an operation to the owner of a bucket.
///
/// # Errors
/// The operation is refused as a whole.
async fn charge(
    services: &Services,
    operation: &Operation,
    rate_key: &RateKey,
    client: &Client,
) -> Result<Decision, Answer> {
    let whole = operation.kind() != OperationType::Query;
    let limiter = &services.limiter;
    let charge = limiter.charge(rate_key, client.address, &operation.roots, whole);
    let decision = charge.await;
    record_refusals(services, &decision, rate_key, client);
    if decision.is_refused {
        return Err(Answer::limited(decision));
    }
    Ok(decision)
}

/// The answer to a credential that is not valid. Its user must not be charged; the client's address is charged instead.
async fn unauthenticated(
    services: &Services,
    operation: &Operation,
    context: Request,
    mut decision: Decision,
    error: Error,
) -> Answer {
    let client = &context.client;
    if matches!(context.rate_key, RateKey::User(_)) {
        services.limiter.refund(&mut decision).await;
        let rate_key = RateKey::Network(client.address);
        decision = match charge(services, operation, &rate_key, client).await {
            Ok(decision) => decision,
            Err(limited) => return limited,
        };
    }
    Answer::failed(error, &client.request_id).with_quotas(decision.quotas)
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

fn record_refusals(services: &Services, decision: &Decision, rate_key: &RateKey, client: &Client) {
    let actor = match rate_key {
        RateKey::User(user) => Some(*user),
        RateKey::Network(_) => None,
    };
    for quota in &decision.quotas {
        if quota.retry_in.is_some() {
            let details = json!({ "field": quota.field });
            let audit = &services.accounts.audit;
            audit.record(AuditAction::RateLimited, client, actor, None, details);
        }
    }
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
