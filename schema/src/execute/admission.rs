//! Decides whether an operation may run, and on whose behalf.

use async_graphql::{Name, parser::types::OperationType};
use chrono::Utc;
use serde_json::json;
use uuid::Uuid;

use crate::{
    access::Viewer,
    audit::{AuditAction, Client},
    auth::TokenClaims,
    error::Error,
    events::Watch,
    execute::Usage,
    idempotency::{Key, RequestedKey},
    operation::Operation,
    rate_limit::{Decision, RateKey},
    request::Services,
    response::Answer,
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

/// An admitted operation with its caller, and its refused root fields.
pub(crate) struct Run {
    pub(crate) operation: Operation,
    pub(crate) client: Client,
    pub(crate) viewer: Option<Viewer>,
    pub(crate) rate_key: RateKey,
    /// The session of a subscription.
    pub(crate) watch: Option<Watch>,
    pub(crate) usage: bool,
    pub(crate) after: Option<String>,
    /// The idempotency key sent by the client, and the key under which the request is recorded.
    pub(crate) requested_key: Option<RequestedKey>,
    pub(crate) key: Option<Key>,
    /// The response keys of refused root fields.
    pub(crate) refused: Vec<Name>,
}

/// Decides whether an operation may run, and authenticates its caller.
///
/// # Errors
/// A request error, ready to be sent.
pub(crate) async fn admit(
    services: &Services,
    operation: Operation,
    caller: Caller<'_>,
) -> Result<(Run, Decision), Answer> {
    let client = &caller.client;
    let own_key = operation
        .idempotency_key
        .clone()
        .map(|text| RequestedKey { text, entry: None });
    let requested_key = own_key.or(caller.idempotency_key.map(|text| RequestedKey {
        text,
        entry: caller.batch_entry,
    }));
    let token = caller.token.filter(|_| !operation.signs_in());
    let presented = token.map(|token| services.accounts.read(token));
    let rate_key = match presented.as_ref().and_then(TokenClaims::claimed) {
        Some(user) => RateKey::User(user),
        None => RateKey::Network(client.address),
    };
    let whole = operation.kind() != OperationType::Query;
    let charge = services
        .limiter
        .charge(&rate_key, client.address, &operation.roots, whole);
    let mut decision = charge.await;
    record_refusals(services, &decision, &rate_key, client);
    if decision.is_refused {
        return Err(Answer::limited(decision));
    }
    let is_stream = operation.kind() == OperationType::Subscription;
    let watched = presented.as_ref().filter(|_| is_stream);
    let watch = watched.and_then(|presented| services.accounts.watch(presented));
    let viewer = match presented {
        Some(presented) => match authenticate(services, presented, client).await {
            Ok(viewer) => Some(viewer),
            Err(error) => {
                let answer = Answer::failed(error, &client.request_id);
                if matches!(rate_key, RateKey::User(_)) {
                    // The token is invalid, so its user must not be charged; charge the client's address instead.
                    services.limiter.refund(&mut decision).await;
                    let rate_key = RateKey::Network(client.address);
                    let limiter = &services.limiter;
                    let charge = limiter.charge(&rate_key, client.address, &operation.roots, whole);
                    decision = charge.await;
                    record_refusals(services, &decision, &rate_key, client);
                    if decision.is_refused {
                        return Err(Answer::limited(decision));
                    }
                }
                return Err(answer.with_quotas(decision.quotas));
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
        requested_key,
        key: None,
        viewer,
        rate_key,
        watch,
        refused: decision
            .refused
            .iter()
            .map(|(field, _)| field.key.clone())
            .collect(),
    };
    Ok((run, decision))
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

/// Authenticates an access token.
///
/// # Errors
/// The token is not valid, or its user may not sign in.
pub(crate) async fn authenticate(
    services: &Services,
    presented: TokenClaims,
    client: &Client,
) -> Result<Viewer, Error> {
    let found = services
        .accounts
        .authenticate(&services.loader, presented, client);
    match found.await {
        Ok((user, session, until)) => Ok(Viewer::new(user, session, until, &services.rulebook)),
        Err(error) => Err(error),
    }
}
