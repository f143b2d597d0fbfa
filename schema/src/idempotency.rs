//! Requests that may be sent again: the same key from the same user gives the first answer again.
//!
//! After [draft-ietf-httpapi-idempotency-key-header](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/).
//! A request is written down under its key before it runs, with what it asks for; its answer when it has run. In between,
//! each change notes what it came to in its own transaction: a request that was cut off, whenever that was, goes on where
//! it was, and one that is sent twice at the same time changes once.
//!
//! A request that changes nothing, because it is refused, fails or is cut off before, leaves its key free for another. A
//! change locks the row of its request and looks whether the key still belongs to it, so a key is never given away under
//! a change.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use async_graphql::{Context, Name};
use chrono::{DateTime, TimeDelta, Utc};
use gathering_entity::idempotency::{self, Column};
use sea_orm::{
    ColumnTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, IntoActiveModel,
    QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, LockType, OnConflict, SelectStatement},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use uuid::Uuid;

use crate::{
    db::{Writer, is_taken, retry_on_conflict},
    error::{Code, Error},
    root_field::properties,
    text,
};

/// Most characters of a key.
const MAX_KEY: usize = 255;

/// How long an answer is kept.
const KEPT: TimeDelta = TimeDelta::days(1);

/// Longest answer that is kept, in bytes. A longer one is made anew of what the changes came to.
const MAX_ANSWER: usize = 256 << 10;

/// The key of a request.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    user: Uuid,
    text: String,
    /// What the request asks for, as a hash.
    fingerprint: String,
    /// When the request was first sent; all rows of a request are of the same age.
    sent_at: DateTime<Utc>,
    done: Arc<Done>,
}

/// What has been done under a key by one execution.
#[derive(Debug, Default)]
struct Done {
    /// A change was made, or there was nothing to change.
    made: AtomicBool,
    /// A change was found that another execution has made.
    found: AtomicBool,
}

/// A key as the client has sent it.
pub(crate) struct RequestedKey {
    pub(crate) text: String,
    /// The place of the operation in a batch that was sent under the key. Each entry has a key of its own.
    pub(crate) entry: Option<usize>,
}

/// What is known of a request.
pub(crate) enum Known {
    /// It has not been answered.
    Nothing(Key),
    /// Its answer.
    Answer(Value),
}

impl Key {
    /// The key of a request.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an invalid key, or if the response contains a secret and cannot be stored.
    pub(crate) fn new<'a>(
        user: Option<Uuid>,
        wanted: &RequestedKey,
        fingerprint: String,
        mut fields: impl Iterator<Item = &'a Name>,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let key = wanted.text.as_str();
        // As a string of structured fields (RFC 9651), or bare.
        let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
        let key = bare.unwrap_or(key);
        let is_key =
            (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|c| c.is_ascii_graphic());
        if !is_key {
            return Err(refuse(format!(
                "An idempotency key has 1 to {MAX_KEY} visible ASCII characters, such as a UUID."
            )));
        }
        if let Some(field) = fields.find(|field| properties(field).is_secret) {
            return Err(refuse(format!(
                "The answer of `{field}` is a secret and is not kept: send it without an idempotency key."
            )));
        }
        let text = match wanted.entry {
            // A key with a space is none that a client can send. A batch of one is as good as its request alone.
            Some(place) if place > 0 => {
                format!("{} {place}", text::hex(&Sha256::digest(key.as_bytes())))
            }
            _ => key.to_owned(),
        };
        Ok(Self {
            user: user.ok_or_else(Error::unauthenticated)?,
            text,
            fingerprint,
            sent_at: now,
            done: Arc::default(),
        })
    }

    /// Writes a request down, or finds what was written down before.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for a key that belongs to another request.
    pub(crate) async fn claim(mut self, writer: &Writer) -> Result<Known, Error> {
        let Some(row) = retry_on_conflict(|| self.write_down(writer)).await? else {
            return Ok(Known::Nothing(self));
        };
        if row.fingerprint.as_ref() != Some(&self.fingerprint) {
            return Err(another_request());
        }
        self.sent_at = row.created_at;
        Ok(row.outcome.map_or(Known::Nothing(self), Known::Answer))
    }

    /// Something was changed under the key, or there was nothing to change: the key is used up.
    pub(crate) fn made(&self) {
        self.done.made.store(true, Ordering::Relaxed);
    }

    /// Whether this execution has used the key up, or found that it is.
    pub(crate) fn is_used(&self) -> bool {
        self.is_replayed() || self.done.made.load(Ordering::Relaxed)
    }

    /// Whether all that this execution came to was done by another.
    pub(crate) fn is_replayed(&self) -> bool {
        self.done.found.load(Ordering::Relaxed) && !self.done.made.load(Ordering::Relaxed)
    }

    /// Writes the request down. Answers what was written down under the key before, if anything was.
    async fn write_down(&self, writer: &Writer) -> Result<Option<idempotency::Model>, Error> {
        let (transaction, _turn) = writer.begin().await?;
        self.forget(&transaction).await?;
        let row = self.row(String::new(), Some(self.fingerprint.clone()));
        let insert = idempotency::Entity::insert(row.into_active_model());
        let insert = insert.on_conflict(OnConflict::new().do_nothing().to_owned());
        let is_new = insert.exec_without_returning(&transaction).await? == 1;
        let mut known = None;
        if !is_new {
            // What was in the way may have been released since.
            let row = self.lock(&transaction).await?;
            let row = row.ok_or_else(Error::conflict)?;
            let is_other = row.fingerprint.as_ref() != Some(&self.fingerprint);
            if is_other && row.outcome.is_none() && !self.has_changed(&transaction).await? {
                self.take_over(&transaction).await?;
            } else {
                known = Some(row);
            }
        }
        // Nothing of the request has run, so this failure leaves nothing unknown.
        transaction.commit().await?;
        Ok(known)
    }

    /// Takes the place of another request, which has changed nothing and was never answered. Should it still be under
    /// way, it is refused when it is about to change something.
    async fn take_over(&self, transaction: &DatabaseTransaction) -> Result<(), Error> {
        idempotency::Entity::update_many()
            .col_expr(Column::Fingerprint, Expr::value(&self.fingerprint))
            .col_expr(Column::CreatedAt, Expr::value(self.sent_at))
            .filter(self.is_this())
            .filter(Column::Field.eq(""))
            .exec(transaction)
            .await?;
        Ok(())
    }

    /// The row of the request as a whole. No change is made under the key by another until this transaction ends.
    async fn lock(
        &self,
        transaction: &DatabaseTransaction,
    ) -> Result<Option<idempotency::Model>, Error> {
        let row = idempotency::Entity::find_by_id(self.place("")).lock(LockType::Update);
        Ok(row.one(transaction).await?)
    }

    /// The changes that were made under the key.
    fn changes(&self) -> SelectStatement {
        idempotency::Entity::find()
            .select_only()
            .column(Column::Field)
            .filter(self.is_this())
            .filter(Column::Field.ne(""))
            .into_query()
    }

    async fn has_changed(&self, transaction: &DatabaseTransaction) -> Result<bool, Error> {
        let changes = idempotency::Entity::find()
            .filter(self.is_this())
            .filter(Column::Field.ne(""));
        Ok(changes.one(transaction).await?.is_some())
    }

    /// Keeps the answer of a request, if another attempt could not come to a better one. Without it, the request can
    /// still be sent again.
    pub(crate) async fn keep(self, writer: &Writer, answer: Value, codes: &[Option<Code>]) {
        let is_final = |code: &Option<Code>| {
            !matches!(
                code,
                None | Some(
                    Code::Conflict
                        | Code::Internal
                        | Code::RateLimited
                        | Code::Timeout
                        | Code::Unavailable
                )
            )
        };
        if !codes.iter().all(is_final) || answer.to_string().len() > MAX_ANSWER {
            return;
        }
        let kept = async {
            let (transaction, _turn) = writer.begin().await?;
            idempotency::Entity::update_many()
                .col_expr(Column::Outcome, answer.into())
                .filter(self.is_this())
                .filter(Column::Field.eq(""))
                .filter(Column::Fingerprint.eq(&self.fingerprint))
                .filter(Column::Outcome.is_null())
                .exec(&transaction)
                .await?;
            writer.commit(transaction).await?;
            Ok::<_, Error>(())
        };
        if kept.await.is_err() {
            // The cause has been logged.
            tracing::warn!("an answer was not kept for its idempotency key");
        }
    }

    /// Forgets a request that has changed nothing, so that its key is free for what was meant. Another that has come
    /// under the key meanwhile stays, and so does one of which another attempt has made a part.
    pub(crate) async fn release(self, writer: &Writer) {
        let released = async {
            let (transaction, _turn) = writer.begin().await?;
            // A change that is under way ends first, and is seen by the next statement. Without the lock it would not be.
            if self.lock(&transaction).await?.is_none() {
                return Ok(());
            }
            idempotency::Entity::delete_many()
                .filter(self.is_this())
                .filter(Column::Field.eq(""))
                .filter(Column::Fingerprint.eq(&self.fingerprint))
                .filter(Column::Outcome.is_null())
                .filter(Expr::not_exists(self.changes()))
                .exec(&transaction)
                .await?;
            writer.commit(transaction).await?;
            Ok::<_, Error>(())
        };
        if released.await.is_err() {
            // The cause has been logged.
            tracing::warn!("an idempotency key was not released");
        }
    }

    /// What the change of a root field has come to before. If it has not been made, nobody else makes it until this
    /// transaction ends.
    ///
    /// # Errors
    /// `CONFLICT` when another request under the same key has made the change in this moment, `BAD_USER_INPUT` when the key
    /// belongs to another request by now.
    pub(crate) async fn begin(
        &self,
        ctx: &Context<'_>,
        transaction: &DatabaseTransaction,
    ) -> Result<Option<Vec<Uuid>>, Error> {
        let insert = async |row: idempotency::Model| {
            let insert = idempotency::Entity::insert(row.into_active_model());
            match insert.exec_without_returning(transaction).await {
                Err(error) if is_taken(&error) => Err(Error::conflict()),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(()),
            }
        };
        match self.lock(transaction).await? {
            Some(row) if row.fingerprint.as_ref() == Some(&self.fingerprint) => {}
            Some(_) => return Err(another_request()),
            // An equal request, which has changed nothing, has released the key.
            None => insert(self.row(String::new(), Some(self.fingerprint.clone()))).await?,
        }
        let field = field(ctx);
        let place = self.place(&field);
        let row = idempotency::Entity::find_by_id(place)
            .one(transaction)
            .await?;
        if let Some(row) = row {
            self.done.found.store(true, Ordering::Relaxed);
            let rows = row
                .outcome
                .and_then(|rows| serde_json::from_value(rows).ok());
            return Ok(Some(rows.unwrap_or_default()));
        }
        insert(self.row(field, None)).await?;
        Ok(None)
    }

    /// Notes what the change of a root field comes to.
    pub(crate) async fn note(
        &self,
        ctx: &Context<'_>,
        transaction: &DatabaseTransaction,
        rows: &[Uuid],
    ) -> Result<(), Error> {
        idempotency::Entity::update_many()
            .col_expr(Column::Outcome, json!(rows).into())
            .filter(self.is_this())
            .filter(Column::Field.eq(field(ctx)))
            .exec(transaction)
            .await?;
        Ok(())
    }

    /// Forgets a request that is kept no longer.
    async fn forget(&self, transaction: &DatabaseTransaction) -> Result<(), Error> {
        idempotency::Entity::delete_many()
            .filter(self.is_this())
            .filter(Column::CreatedAt.lt(self.sent_at - KEPT))
            .exec(transaction)
            .await?;
        Ok(())
    }

    fn row(&self, field: String, fingerprint: Option<String>) -> idempotency::Model {
        idempotency::Model {
            user_id: self.user,
            key: self.text.clone(),
            field,
            fingerprint,
            outcome: None,
            created_at: self.sent_at,
        }
    }

    fn place(&self, field: &str) -> (Uuid, String, String) {
        (self.user, self.text.clone(), field.to_owned())
    }

    fn is_this(&self) -> sea_orm::Condition {
        sea_orm::Condition::all()
            .add(Column::UserId.eq(self.user))
            .add(Column::Key.eq(&self.text))
    }
}

fn refuse(message: String) -> Error {
    Error::bad_input(message).field("idempotencyKey")
}

/// The key belongs to another request.
fn another_request() -> Error {
    refuse("Another request was sent under this idempotency key. Choose a new one.".to_owned())
}

/// Requests under one key take turns on an instance: the second finds the answer of the first. Those of several instances
/// are kept apart by the database, change by change.
#[derive(Default)]
pub(crate) struct Turns(Mutex<Waiting>);

/// By user and key.
type Waiting = HashMap<(Uuid, String), Weak<AsyncMutex<()>>>;

/// A turn under a key, until it is dropped.
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
    _place: Place,
}

/// A place among the requests under a key. The last one that leaves takes the entry along.
struct Place {
    key: (Uuid, String),
    mutex: Option<Arc<AsyncMutex<()>>>,
    turns: Arc<Turns>,
}

impl Turns {
    /// Waits for a turn.
    pub(crate) async fn take(self: &Arc<Self>, key: &Key) -> Turn {
        let key = (key.user, key.text.clone());
        let mutex = {
            let mut all = self.lock();
            let entry = all.entry(key.clone()).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let mutex = Arc::default();
                *entry = Arc::downgrade(&mutex);
                mutex
            })
        };
        let place = Place {
            key,
            mutex: Some(Arc::clone(&mutex)),
            turns: Arc::clone(self),
        };
        Turn {
            _guard: mutex.lock_owned().await,
            _place: place,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.turns.lock();
        drop(self.mutex.take());
        if all
            .get(&self.key)
            .is_some_and(|entry| entry.strong_count() == 0)
        {
            all.remove(&self.key);
        }
    }
}

/// What a request asks for, as a hash.
pub(crate) fn fingerprint(document: &str, operation: Option<&str>, variables: &Value) -> String {
    let whole = json!([document, operation, variables]).to_string();
    text::hex(&Sha256::digest(whole.as_bytes()))
}

/// A root field, by the key of its answer, of whatever length.
fn field(ctx: &Context<'_>) -> String {
    let key = &ctx.item.node.response_key().node;
    text::hex(&Sha256::digest(key.as_bytes()))
}

/// Deletes what is kept no longer.
///
/// # Errors
/// The database cannot be written.
pub(crate) async fn purge(db: &DatabaseConnection, now: DateTime<Utc>) -> Result<(), Error> {
    let old = Column::CreatedAt.lt(now - KEPT);
    idempotency::Entity::delete_many()
        .filter(old)
        .exec(db)
        .await?;
    Ok(())
}
