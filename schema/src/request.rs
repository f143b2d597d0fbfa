//! The only door from a resolver to the world: who asks, the loader, the clock.

use crate::db::Loader;
use crate::db::Writer;
use crate::rate_limit::Limiter;
use std::time::Duration;
use std::time::Instant;
use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use async_graphql::{Context, ID};
use chrono::{DateTime, SubsecRound, Utc};
use sea_orm::{DatabaseConnection, DbBackend, EntityTrait};
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    access::{Rulebook, Viewer},
    audit::{AuditAction, Client},
    auth::Accounts,
    clock::Clock,
    db::{Batch, PendingBatches, RowsByKey, Rule},
    error::{Code, Error},
    events::{BATCH, Bus},
    health::Probe,
    id::Kind,
    idempotency::{Key, Turns},
    limits::Limits,
    rate_limit::RateKey,
};

/// How long a subscriber waits for a database that does not answer.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);

/// How much the answers that a subscription holds ready may weigh, in bytes, as far as the last ones tell.
const BURST_BYTES: usize = 256 << 10;

/// How much of what happens is told of at once while nothing is known of its weight.
const FIRST_BURST: usize = 8;

/// One operation under way.
pub(crate) struct Request {
    pub(crate) services: Arc<Services>,
    pub(crate) viewer: Option<Viewer>,
    pub(crate) client: Client,
    /// Whose rate buckets the operation takes from.
    pub(crate) rate_key: RateKey,
    pub(crate) waiting: Arc<PendingBatches>,
    /// Under which key the operation may be sent again.
    pub(crate) key: Option<Key>,
    /// How far a subscription has come.
    pub(crate) progress: Progress,
    /// The bytes of text in the response so far.
    pub(crate) text: AtomicU64,
}

/// A text value counted against `graphql.text_bytes`.
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

/// How far a subscription has come.
#[derive(Default)]
pub(crate) struct Progress {
    /// The cursor of the event behind which the client wants to go on, whatever the operation says.
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

    /// Most of what happens that is told of at once.
    pub(crate) fn burst(&self) -> usize {
        self.burst.load(Ordering::Relaxed)
    }

    /// So many answers weigh so much: the next burst is to weigh little enough.
    pub(crate) fn weighed(&self, answers: usize, bytes: usize) {
        let affordable = BURST_BYTES * answers / bytes.max(1);
        let most = BATCH.min(2 * self.burst());
        self.burst
            .store(affordable.clamp(1, most), Ordering::Relaxed);
    }

    /// The subscription's arguments are in order, and it waits for its first event.
    pub(crate) fn started(&self) {
        self.is_started.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_started(&self) -> bool {
        self.is_started.load(Ordering::Relaxed)
    }

    /// The subscription cannot go on; what is answered next says why.
    pub(crate) fn failed(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// What is answered next is about the events at these cursors, in order; `None` for what is no event.
    pub(crate) fn passed(&self, cursors: Vec<Option<String>>) {
        *self.cursors.lock().unwrap_or_else(PoisonError::into_inner) = cursors;
    }

    /// The cursors of the events that the latest answers are about, once.
    pub(crate) fn take_cursors(&self) -> Vec<Option<String>> {
        mem::take(&mut *self.cursors.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Opens the door.
pub(crate) trait RequestExt {
    /// The operation that the resolver is part of.
    fn request(&self) -> &Request;

    /// The same, for what lives longer than the resolver.
    fn shared(&self) -> Arc<Request>;
}

impl RequestExt for Context<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "every other access goes through here"
    )]
    fn request(&self) -> &Request {
        self.data_unchecked::<Arc<Request>>()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "every other access goes through here"
    )]
    fn shared(&self) -> Arc<Request> {
        Arc::clone(self.data_unchecked::<Arc<Request>>())
    }
}

impl Request {
    /// Adds a text to the size of the response. Complexity alone does not bound the length of texts.
    ///
    /// # Errors
    /// `QUERY_TOO_COMPLEX` if the response exceeds the limit.
    pub(crate) fn text<T: Text>(&self, text: T) -> Result<T, Error> {
        let limit = self.services.limits.text_bytes;
        let bytes = text.bytes() as u64;
        if bytes == 0 {
            return Ok(text);
        }
        let actual = self.text.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if actual <= limit {
            return Ok(text);
        }
        let message = format!(
            "The response exceeds {limit} bytes of text. Request smaller pages or fewer text fields."
        );
        Err(Error::new(Code::QueryTooComplex, message).with("limit", limit))
    }

    /// The signed-in user.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when nobody is.
    pub(crate) fn viewer(&self) -> Result<&Viewer, Error> {
        self.viewer.as_ref().ok_or_else(Error::unauthenticated)
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
        let (trail, actor) = (&self.accounts().trail, Some(viewer.id()));
        trail.record(AuditAction::Refused, &self.client, actor, None, json!({}));
        Err(Error::admins_only())
    }

    /// Whether who asked may still be answered, long after they began to ask.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when their token has expired or was revoked, `FORBIDDEN` when their account is deactivated, and
    /// whatever keeps the database from answering.
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

    /// The time, in the database's precision.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        (self.services.clock)().trunc_subsecs(6)
    }

    /// The answer of a batch for one key.
    pub(crate) async fn load<B: Batch>(&self, batch: B, key: B::Key) -> Result<B::Value, Error> {
        self.services.loader.load(&self.waiting, batch, key).await
    }

    /// A row whose id came from something the viewer may read, and which may therefore be read too.
    pub(crate) async fn row<E>(&self, id: Uuid) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        self.load(RowsByKey::<E>::by_id(Rule::default()), id).await
    }

    /// A row if a rule lets the viewer read it.
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

    /// As [`Request::readable`], for a stream: it waits for a database that does not answer, since what it was about to
    /// tell would be lost.
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

    /// The row that a client asks for by its public id.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an id of another kind, `NOT_FOUND` where there is nothing that the viewer can read.
    pub(crate) async fn look_up<E>(
        &self,
        kind: Kind,
        rule: &Rule,
        id: &ID,
    ) -> Result<Arc<E::Model>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        let key = kind.parse(id, "id")?;
        self.readable::<E>(rule, key)
            .await?
            .ok_or_else(|| Error::not_found("id"))
    }
}

/// What all operations share.
pub(crate) struct Services {
    pub(crate) backend: DbBackend,
    pub(crate) loader: Loader,
    pub(crate) limits: Limits,
    pub(crate) look: Probe,
    pub(crate) rulebook: Rulebook,
    pub(crate) started_at: DateTime<Utc>,
    /// The same moment, by a clock that does not jump.
    pub(crate) began: Instant,
    pub(crate) clock: Clock,
    pub(crate) accounts: Accounts,
    pub(crate) limiter: Limiter,
    pub(crate) bus: Arc<Bus>,
    pub(crate) db: DatabaseConnection,
    pub(crate) writer: Writer,
    /// Requests under one idempotency key.
    pub(crate) turns: Arc<Turns>,
    /// Tells the history of this database from that of others.
    pub(crate) epoch: Uuid,
}
