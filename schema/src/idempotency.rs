//! Requests that may be sent again: the same key from the same user gives the first answer again.
//!
//! After [draft-ietf-httpapi-idempotency-key-header](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/).
//! A request is written down under its key before it runs, with what it asks for; its answer when it has run. In between,
//! each change notes what it came to in its own transaction: a request that was cut off, whenever that was, goes on where
//! it was, and one that is sent twice at the same time changes once.

use async_graphql::{Context, Name};
use chrono::{DateTime, TimeDelta, Utc};
use gathering_entity::idempotency::{self, Column};
use sea_orm::{
    ColumnTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, IntoActiveModel,
    QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, OnConflict},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    error::{Code, Error},
    text,
    write::{Outcome, Writer, is_taken, settle},
};

/// Most characters of a key.
const MAX_KEY: usize = 255;

/// How long an answer is kept.
const KEPT: TimeDelta = TimeDelta::days(1);

/// Longest answer that is kept, in bytes. A longer one is made anew of what the changes came to.
const MAX_ANSWER: usize = 256 << 10;

/// Mutations whose answer is a secret, which is not to be kept.
const SECRET: [&str; 4] = ["login", "register", "refreshSession", "changePassword"];

/// The key of a request.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    user: Uuid,
    text: String,
    /// What the request asks for, as a hash.
    fingerprint: String,
    /// When the request was first sent; all rows of a request are of the same age.
    sent_at: DateTime<Utc>,
}

/// What is known of a request.
pub(crate) enum Known {
    /// It has not been answered.
    Nothing(Key),
    /// Its answer.
    Answer(Value),
}

impl Key {
    /// Writes a request down, or finds what was written down before.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for a key that is no key, that a secret would be kept under, or that belongs to another request.
    pub(crate) async fn claim<'a>(
        writer: &Writer,
        (user, key): (Option<Uuid>, &str),
        fingerprint: String,
        mut fields: impl Iterator<Item = &'a Name>,
        now: DateTime<Utc>,
    ) -> Result<Known, Error> {
        let refuse = |message: String| Error::bad_input(message).field("idempotencyKey");
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
        if let Some(field) = fields.find(|field| SECRET.contains(&field.as_str())) {
            return Err(refuse(format!(
                "The answer of `{field}` is a secret and is not kept: send it without an idempotency key."
            )));
        }
        let mut key = Self {
            user: user.ok_or_else(Error::unauthenticated)?,
            text: key.to_owned(),
            fingerprint,
            sent_at: now,
        };
        let Some(row) = settle(|| key.write_down(writer)).await? else {
            return Ok(Known::Nothing(key));
        };
        if row.fingerprint.as_ref() != Some(&key.fingerprint) {
            let message = "Another request was sent under this idempotency key. Choose a new one.";
            return Err(refuse(message.to_owned()));
        }
        key.sent_at = row.created_at;
        Ok(row.outcome.map_or(Known::Nothing(key), Known::Answer))
    }

    /// Writes the request down. Answers what was written down under the key before, if anything was.
    async fn write_down(&self, writer: &Writer) -> Result<Option<idempotency::Model>, Error> {
        let (transaction, _turn) = writer.begin().await?;
        self.forget(&transaction).await?;
        let row = self.row(String::new(), Some(self.fingerprint.clone()));
        let insert = idempotency::Entity::insert(row.into_active_model());
        let insert = insert.on_conflict(OnConflict::new().do_nothing().to_owned());
        let is_new = insert.exec_without_returning(&transaction).await? == 1;
        let known = if is_new {
            None
        } else {
            let row = idempotency::Entity::find_by_id(self.place(""));
            // What was in the way may have been released since.
            Some(row.one(&transaction).await?.ok_or_else(Error::conflict)?)
        };
        // Nothing of the request has run, so this failure leaves nothing unknown.
        transaction.commit().await?;
        Ok(known)
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

    /// Forgets a request that was refused as a whole, so that its key is free for what was meant. Another that has come
    /// under the key meanwhile stays, and so does one of which an earlier attempt has made a part.
    pub(crate) async fn release(self, writer: &Writer) {
        let ran = idempotency::Entity::find()
            .select_only()
            .column(Column::Field)
            .filter(self.is_this())
            .filter(Column::Field.ne(""))
            .into_query();
        let released = async {
            let (transaction, _turn) = writer.begin().await?;
            idempotency::Entity::delete_many()
                .filter(self.is_this())
                .filter(Column::Fingerprint.eq(&self.fingerprint))
                .filter(Column::Outcome.is_null())
                .filter(Expr::not_exists(ran))
                .exec(&transaction)
                .await?;
            writer.commit(transaction).await?;
            Ok::<_, Error>(())
        };
        if released.await.is_err() {
            // The cause has been logged.
            tracing::warn!("an idempotency key stays taken by a request of which nothing ran");
        }
    }

    /// What the change of a root field has come to before. If it has not been made, nobody else makes it until this
    /// transaction ends.
    ///
    /// # Errors
    /// `CONFLICT` when another request under the same key has made the change in this moment.
    pub(crate) async fn begin(
        &self,
        ctx: &Context<'_>,
        transaction: &DatabaseTransaction,
    ) -> Result<Option<Outcome>, Error> {
        let field = field(ctx);
        let place = self.place(&field);
        let row = idempotency::Entity::find_by_id(place)
            .one(transaction)
            .await?;
        if let Some(row) = row {
            let rows = row
                .outcome
                .and_then(|rows| serde_json::from_value(rows).ok());
            return Ok(Some(Outcome {
                rows: rows.unwrap_or_default(),
                is_past: true,
                ..Outcome::default()
            }));
        }
        let insert = idempotency::Entity::insert(self.row(field, None).into_active_model());
        match insert.exec_without_returning(transaction).await {
            Err(error) if is_taken(&error) => Err(Error::conflict()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(None),
        }
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
