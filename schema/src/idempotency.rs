//! Idempotent mutations: a request with the same key from the same user returns the first response again.
//!
//! Follows
//! [draft-ietf-httpapi-idempotency-key-header](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/).
//! A request is recorded under its key before it runs, with its fingerprint; its response is recorded afterwards. In
//! between, each change records its result in its own transaction: a request that is interrupted at any point resumes
//! there, and one that is sent twice at the same time applies its changes once.
//!
//! A request that changes nothing, because it is refused, fails or is interrupted before, leaves its key free. A change
//! locks the row of its request and checks that the key still belongs to it, so a key is never reassigned during a
//! change.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
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
use uuid::Uuid;

use crate::{
    access::Viewer,
    db::{Writer, is_taken, retry_on_conflict},
    error::{Code, Error},
    root_field::{Secret, properties},
    text,
};

/// Maximum length of a key, in characters.
const MAX_KEY: usize = 255;

/// How long a response is stored.
const KEPT: TimeDelta = TimeDelta::days(1);

/// Maximum size of a stored response, in bytes. A larger one is rebuilt from the results of its changes.
const MAX_ANSWER: usize = 256 << 10;

/// The idempotency key of a request.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    user: Uuid,
    text: String,
    /// A hash of the request.
    fingerprint: String,
    /// When the request was first sent; the same for all of its rows.
    sent_at: DateTime<Utc>,
    done: Arc<Done>,
}

/// The state of a key in one execution.
#[derive(Debug, Default)]
struct Done {
    /// A change was applied, or there was nothing to change.
    made: AtomicBool,
    /// A change was found that another execution has applied.
    found: AtomicBool,
}

/// A key as sent by the client.
pub(crate) struct RequestedKey {
    pub(crate) text: String,
    /// The index of the operation in a batch that was sent with the key. Each entry has a separate key.
    pub(crate) entry: Option<usize>,
}

/// The recorded state of a request.
pub(crate) enum Known {
    /// It has no response yet.
    Nothing(Key),
    /// Its stored response.
    Answer(Value),
}

impl Key {
    /// Creates the key of a request.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an invalid key, or if the response contains a secret and cannot be stored.
    pub(crate) fn new<'a>(
        viewer: Option<&Viewer>,
        requested: &RequestedKey,
        fingerprint: String,
        mut fields: impl Iterator<Item = &'a Name>,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let key = requested.text.as_str();
        // A string of structured fields (RFC 9651), or without quotes.
        let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
        let key = bare.unwrap_or(key);
        let is_key =
            (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|c| c.is_ascii_graphic());
        if !is_key {
            return Err(refuse(format!(
                "An idempotency key must have 1 to {MAX_KEY} visible ASCII characters, such as a UUID."
            )));
        }
        if let Some(field) = fields.find(|field| properties(field).secret == Secret::Unrepeatable) {
            return Err(refuse(format!(
                "`{field}` handles a secret and its response is not stored: send it without an idempotency key."
            )));
        }
        let viewer = viewer.ok_or_else(Error::unauthenticated)?;
        let api_key = viewer.key().map(|key| key.id);
        // The first entry of a batch keeps the plain key, so that a batch of one equals a single request.
        let entry = requested.entry.filter(|place| *place > 0);
        let text = if api_key.is_none() && entry.is_none() {
            key.to_owned()
        } else {
            // A client cannot send a key with a space. A response of one API key is not shown to another one, which may
            // have fewer rights.
            let key = text::hex(&Sha256::digest(key.as_bytes()));
            let parts = [
                entry.map(|place| place.to_string()),
                api_key.map(|id| id.to_string()),
            ];
            let parts = parts.into_iter().flatten();
            parts.fold(key, |text, part| format!("{text} {part}"))
        };
        Ok(Self {
            user: viewer.id(),
            text,
            fingerprint,
            sent_at: now,
            done: Arc::default(),
        })
    }

    /// Records a request, or finds its earlier record.
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

    /// Identifies the key among those of all users.
    pub(crate) fn identity(&self) -> (Uuid, String) {
        (self.user, self.text.clone())
    }

    /// Marks the key as used: a change was applied, or there was nothing to change.
    pub(crate) fn made(&self) {
        self.done.made.store(true, Ordering::Relaxed);
    }

    /// Whether this execution has used the key, or found it used.
    pub(crate) fn is_used(&self) -> bool {
        self.is_replayed() || self.done.made.load(Ordering::Relaxed)
    }

    /// Whether all changes of this execution were applied by another one.
    pub(crate) fn is_replayed(&self) -> bool {
        self.done.found.load(Ordering::Relaxed) && !self.done.made.load(Ordering::Relaxed)
    }

    /// Records the request. Returns the earlier record of the key, if there is one.
    async fn write_down(&self, writer: &Writer) -> Result<Option<idempotency::Model>, Error> {
        let (transaction, _guard) = writer.begin().await?;
        self.forget(&transaction).await?;
        let row = self.row(String::new(), Some(self.fingerprint.clone()));
        let insert = idempotency::Entity::insert(row.into_active_model());
        let insert = insert.on_conflict(OnConflict::new().do_nothing().to_owned());
        let is_new = insert.exec_without_returning(&transaction).await? == 1;
        let mut known = None;
        if !is_new {
            // The conflicting row may have been released in the meantime.
            let row = self.lock(&transaction).await?;
            let row = row.ok_or_else(Error::conflict)?;
            let is_other = row.fingerprint.as_ref() != Some(&self.fingerprint);
            if is_other && row.outcome.is_none() && !self.has_changed(&transaction).await? {
                self.take_over(&transaction).await?;
            } else {
                known = Some(row);
            }
        }
        // Nothing of the request has run, so a failed commit has no unknown outcome.
        transaction.commit().await?;
        Ok(known)
    }

    /// Takes over the key of another request, which has changed nothing and has no response. If that request is still
    /// running, its next change is refused.
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

    /// Locks the row of the request. Until the transaction ends, no other change is applied under the key.
    async fn lock(
        &self,
        transaction: &DatabaseTransaction,
    ) -> Result<Option<idempotency::Model>, Error> {
        let row = idempotency::Entity::find_by_id(self.place("")).lock(LockType::Update);
        Ok(row.one(transaction).await?)
    }

    /// Selects the changes that were applied under the key.
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

    /// Stores the response of a request unless a retry could get a better one. Without a stored response, the request
    /// can still be retried.
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
            let (transaction, _guard) = writer.begin().await?;
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
            tracing::warn!("cannot store the response of an idempotency key");
        }
    }

    /// Deletes the record of a request that has changed nothing, so that its key is free again. Does not delete the
    /// record of another request that has taken over the key, or one under which another attempt has applied a change.
    pub(crate) async fn release(self, writer: &Writer) {
        let released = async {
            let (transaction, _guard) = writer.begin().await?;
            // The lock waits for a running change, so that the next statement sees it.
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
            tracing::warn!("cannot release an idempotency key");
        }
    }

    /// The earlier result of a root field's change. If there is none, no other request applies the change until this
    /// transaction ends.
    ///
    /// # Errors
    /// `CONFLICT` if another request with the same key is applying the change, `BAD_USER_INPUT` if the key now belongs
    /// to another request.
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

    /// Records the result of a root field's change.
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

    /// Deletes an expired record.
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

/// The error for a key that belongs to another request.
fn another_request() -> Error {
    refuse("Another request was sent under this idempotency key. Choose a new one.".to_owned())
}

/// A hash of the request.
pub(crate) fn fingerprint(document: &str, operation: Option<&str>, variables: &Value) -> String {
    let whole = json!([document, operation, variables]).to_string();
    text::hex(&Sha256::digest(whole.as_bytes()))
}

/// The root field, as a hash of its response key, which has no maximum length.
fn field(ctx: &Context<'_>) -> String {
    let key = &ctx.item.node.response_key().node;
    text::hex(&Sha256::digest(key.as_bytes()))
}

/// Deletes expired records.
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
