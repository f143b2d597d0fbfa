//! The request context: the only access from resolvers to the viewer, the loader and the clock.

use std::time::Duration;
use std::time::Instant;
use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use async_graphql::Context;
use chrono::{DateTime, SubsecRound, Utc};
use gathering_entity::user::UserRole;
use sea_orm::{DatabaseConnection, DbBackend, EntityTrait};
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    access::{ApiKeyScope, Rulebook, Viewer},
    audit::{AuditAction, Client},
    auth::Accounts,
    clock::Clock,
    data::Groups,
    db::{Batch, Loader, PendingBatches, RowsByKey, Rule, Turns, Writer},
    error::{Code, Error},
    events::{BATCH, Bus},
    health::Monitor,
    idempotency::Key,
    limits::Limits,
    rate_limit::{Limiter, Payer, QuotaStatus, RateKey},
};

/// How long a subscriber waits before it retries, if the database does not respond.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);

/// Maximum size of the answers that a subscription buffers, in bytes, estimated from the last ones.
const BURST_BYTES: usize = 256 << 10;

/// The size of a burst while the size of its answers is unknown.
const FIRST_BURST: usize = 8;

/// A running operation.
pub(crate) struct Request {
    pub(crate) services: Arc<Services>,
    pub(crate) viewer: Option<Viewer>,
    pub(crate) client: Client,
    /// The owner of the rate limit buckets that the operation takes from.
    pub(crate) rate_key: RateKey,
    pub(crate) pending: Arc<PendingBatches>,
    /// The idempotency key of the operation.
    pub(crate) key: Option<Key>,
    /// The progress of a subscription.
    pub(crate) progress: Progress,
    /// The bytes of text in the response so far.
    pub(crate) text: AtomicU64,
    /// The number of fields that the compiled query has written below its root fields.
    pub(crate) fields: AtomicU64,
    /// The quotas that were charged for the operation, if it reports them.
    pub(crate) charged: Vec<QuotaStatus>,
}

/// A text value that counts against `graphql.text_bytes`.
pub(crate) trait Text: Copy {
    fn bytes(self) -> usize;
}

impl Text for &str {
    fn bytes(self) -> usize {
        self.len()
    }
}

impl Text for Option<&str> {
    fn bytes(self) -> usize {
        self.map_or(0, str::len)
    }
}

impl Text for &[String] {
    fn bytes(self) -> usize {
        self.iter().map(String::len).sum()
    }
}

/// The progress of a subscription.
#[derive(Default)]
pub(crate) struct Progress {
    /// The cursor of the event after which the client resumes; overrides the argument of the operation.
    pub(crate) after: Option<String>,
    is_started: AtomicBool,
    has_failed: AtomicBool,
    cursors: Mutex<Vec<Option<String>>>,
    burst: AtomicUsize,
}

impl Progress {
    pub(crate) fn new(after: Option<String>) -> Self {
        Self {
            after,
            burst: AtomicUsize::new(FIRST_BURST),
            ..Self::default()
        }
    }

    /// Maximum number of items in a burst.
    pub(crate) fn burst(&self) -> usize {
        self.burst.load(Ordering::Relaxed)
    }

    /// Adapts the size of the next burst, given the number and the total size of the last answers.
    pub(crate) fn weighed(&self, answers: usize, bytes: usize) {
        let affordable = BURST_BYTES * answers / bytes.max(1);
        let most = BATCH.min(2 * self.burst());
        self.burst
            .store(affordable.clamp(1, most), Ordering::Relaxed);
    }

    /// Marks the subscription as started: its arguments are valid, and it waits for its first event.
    pub(crate) fn started(&self) {
        self.is_started.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_started(&self) -> bool {
        self.is_started.load(Ordering::Relaxed)
    }

    /// Marks the subscription as failed: the next answer contains the reason.
    pub(crate) fn failed(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Sets the cursors of the events in the next answers, in order; `None` for an answer without an event.
    pub(crate) fn passed(&self, cursors: Vec<Option<String>>) {
        *self.cursors.lock().unwrap_or_else(PoisonError::into_inner) = cursors;
    }

    /// Takes the cursors of the events in the latest answers.
    pub(crate) fn take_cursors(&self) -> Vec<Option<String>> {
        mem::take(&mut *self.cursors.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Access to the request from a resolver's context.
pub(crate) trait RequestExt {
    /// The operation that the resolver belongs to.
    fn request(&self) -> &Request;

    /// The same as an `Arc`, for values that outlive the resolver.
    fn shared(&self) -> Arc<Request>;
}

impl RequestExt for Context<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the only access to the data of the context"
    )]
    fn request(&self) -> &Request {
        self.data_unchecked::<Arc<Request>>()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the only access to the data of the context"
    )]
    fn shared(&self) -> Arc<Request> {
        Arc::clone(self.data_unchecked::<Arc<Request>>())
    }
}

impl Request {
    /// Adds a text to the size of the response. Complexity does not limit the length of texts.
    ///
    /// # Errors
    /// `QUERY_TOO_COMPLEX` if the response exceeds the limit.
    pub(crate) fn text<T: Text>(&self, text: T) -> Result<T, Error> {
        let limit = self.services.limits.text_bytes;
        if self.takes_text(text.bytes() as u64) {
            return Ok(text);
        }
        let message = format!(
            "The response exceeds {limit} bytes of text. Request smaller pages or fewer text fields."
        );
        Err(Error::new(Code::QueryTooComplex, message).with("limit", limit))
    }

    /// Whether the response has room for more text, which is then taken.
    pub(crate) fn takes_text(&self, bytes: u64) -> bool {
        let taken = self.text.fetch_add(bytes, Ordering::Relaxed);
        bytes == 0 || taken + bytes <= self.services.limits.text_bytes
    }

    /// Returns room that was taken for a text which is not sent.
    pub(crate) fn return_text(&self, bytes: u64) {
        self.text.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The signed-in user.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if the caller is not signed in.
    pub(crate) fn viewer(&self) -> Result<&Viewer, Error> {
        self.viewer.as_ref().ok_or_else(Error::unauthenticated)
    }

    /// The client whose rate limit buckets the operation takes from.
    pub(crate) fn payer(&self) -> Payer<'_> {
        Payer {
            rate_key: self.rate_key,
            address: self.client.address,
            class: self.viewer.as_ref().and_then(Viewer::quota_class),
        }
    }

    /// The signed-in administrator.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, or `FORBIDDEN` for other users.
    pub(crate) fn admin(&self) -> Result<&Viewer, Error> {
        let viewer = self.viewer()?;
        if viewer.is_admin() {
            return Ok(viewer);
        }
        let (audit, actor) = (&self.accounts().audit, Some(viewer.id()));
        audit.record(AuditAction::Refused, &self.client, actor, None, json!({}));
        let is_admin_with_key = viewer.key().is_some() && viewer.user.role == UserRole::Admin;
        Err(if is_admin_with_key {
            Error::missing_scope(ApiKeyScope::Admin.name())
        } else {
            Error::admins_only()
        })
    }

    /// Checks that the viewer may still receive answers, long after the operation started.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if the token has expired or was revoked, or if the account is deactivated; and database
    /// errors.
    pub(crate) async fn still_signed_in(&self) -> Result<(), Error> {
        let Some(viewer) = &self.viewer else {
            return Ok(());
        };
        let loader = &self.services.loader;
        self.accounts().still_signed_in(loader, viewer).await
    }

    /// The accounts.
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.services.accounts
    }

    /// The current time, in the precision of the database.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        (self.services.clock)().trunc_subsecs(6)
    }

    /// Loads the value of a key.
    pub(crate) async fn load<B: Batch>(&self, batch: B, key: B::Key) -> Result<B::Value, Error> {
        self.services.loader.load(&self.pending, batch, key).await
    }

    /// Loads the values of keys, in the same order.
    pub(crate) async fn load_all<B: Batch>(
        &self,
        batch: B,
        keys: &[B::Key],
    ) -> Result<Vec<B::Value>, Error> {
        let loader = &self.services.loader;
        loader.load_all(&self.pending, batch, keys).await
    }

    /// A row that the viewer may read because its id comes from an object that they may read.
    pub(crate) async fn row<E>(&self, id: Uuid) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        self.load(RowsByKey::<E>::by_id(Rule::default()), id).await
    }

    /// A row, if the rule lets the viewer read it.
    pub(crate) async fn readable<E>(
        &self,
        rule: &Rule,
        id: Uuid,
    ) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        self.load(RowsByKey::<E>::by_id(rule.clone()), id).await
    }

    /// As [`Request::readable`], for a stream: waits while the database does not respond, because the event would be
    /// lost otherwise.
    pub(crate) async fn readable_later<E>(
        &self,
        rule: &Rule,
        id: Uuid,
    ) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        loop {
            match self.readable::<E>(rule, id).await {
                Err(error) if error.is_transient() => sleep(PAUSE).await,
                done => return done,
            }
        }
    }
}

/// The services shared by all operations.
pub(crate) struct Services {
    pub(crate) backend: DbBackend,
    pub(crate) loader: Loader,
    pub(crate) limits: Limits,
    pub(crate) monitor: Arc<dyn Monitor>,
    pub(crate) rulebook: Arc<Rulebook>,
    pub(crate) started_at: DateTime<Utc>,
    /// The start time on a monotonic clock.
    pub(crate) began: Instant,
    pub(crate) clock: Clock,
    pub(crate) accounts: Accounts,
    pub(crate) limiter: Limiter,
    pub(crate) bus: Arc<Bus>,
    pub(crate) db: DatabaseConnection,
    pub(crate) writer: Writer,
    /// Serializes drafts that change the same row, and commits them together.
    pub(crate) groups: Groups,
    /// Serializes requests with the same idempotency key.
    pub(crate) turns: Arc<Turns<(Uuid, String)>>,
    /// Identifies the event history of this database. Cursors of another history are rejected.
    pub(crate) epoch: Uuid,
}
