//! Changes: each in a transaction of its own that is there as a whole or not at all, together with the events that tell
//! of it.

use async_graphql::Context;
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    PrimaryKeyTrait, QueryFilter, QuerySelect, SqlErr, SqliteTransactionMode, TransactionOptions,
    TransactionTrait, Value,
    sea_query::{Expr, LockType},
};
use serde_json::{Value as Json, json};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    auth::Act,
    ctx::{Door, Request},
    error::{Code, Error},
    id::Kind,
    live::{Ended, Fact, announce},
    read::Rule,
    storage,
    user_error::{UserError, UserErrorCode},
    viewer::Viewer,
};

/// How often a change that lost against others at the same time is tried.
const ATTEMPTS: usize = 4;

/// Where changes are made.
#[derive(Clone)]
pub(crate) struct Writer {
    db: DatabaseConnection,
    /// SQLite has one writer at a time, and lets those who wait try again and again, in no order: under load some would
    /// try in vain until their time is over. Here they queue.
    queue: Option<Arc<Mutex<()>>>,
}

/// A place at the head of the queue of writers, until it is dropped.
pub(crate) type Turn = Option<OwnedMutexGuard<()>>;

impl Writer {
    pub(crate) fn new(db: DatabaseConnection) -> Self {
        let queues = db.get_database_backend() == DbBackend::Sqlite;
        Self {
            db,
            queue: queues.then(Arc::default),
        }
    }

    /// Begins a transaction; one that is dropped before its commit leaves nothing behind. SQLite locks at once: a
    /// transaction that reads first and then writes is refused when another has written meanwhile. On PostgreSQL the work
    /// locks the rows it relies on.
    ///
    /// BEGIN runs to its end also when the caller is dropped: the driver forgets a PostgreSQL transaction whose BEGIN
    /// was not waited for, and its connection would go back to the pool with the transaction open.
    pub(crate) async fn begin(&self) -> Result<(DatabaseTransaction, Turn), Error> {
        let writer = self.clone();
        let begin = async move {
            let turn = match writer.queue {
                Some(queue) => Some(queue.lock_owned().await),
                None => None,
            };
            let options = TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            };
            Ok((writer.db.begin_with_options(options).await?, turn))
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "it is bounded by the time limits of the pool and of the database"
        )]
        let task = tokio::spawn(begin.in_current_span());
        task.await
            .unwrap_or_else(|failure| match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::unavailable("The server is shutting down.")),
            })
    }

    /// Makes everything that was written in a transaction stand.
    ///
    /// # Errors
    /// The transaction was not committed; or the database did not say whether it was, which the error tells.
    pub(crate) async fn commit(&self, transaction: DatabaseTransaction) -> Result<(), Error> {
        transaction.commit().await.map_err(Error::of_commit)?;
        storage::committed();
        Ok(())
    }
}

/// Makes a change that is one transaction, and again when it lost against others at the same time.
///
/// # Errors
/// Those of the change; `CONFLICT` when others won each time.
pub(crate) async fn settle<T, F>(change: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut attempt = 1;
    loop {
        match change().await {
            Err(error) if error.code == Code::Conflict && attempt < ATTEMPTS => attempt += 1,
            done => return done,
        }
    }
}

/// What a change came to: the rows that its payload shows, or what was wrong with the input.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The ids of the rows, the most important first.
    pub(crate) rows: Vec<Uuid>,
    pub(crate) errors: Vec<UserError>,
    /// Whether the change was made by an earlier request, so that the viewer may no longer read the rows.
    pub(crate) is_past: bool,
}

impl Outcome {
    /// The input was refused, and nothing has changed. `row` is what it is about, if there is such a thing.
    pub(crate) fn refused(row: Option<Uuid>, errors: Vec<UserError>) -> Self {
        Self {
            rows: row.into_iter().collect(),
            errors,
            is_past: false,
        }
    }

    /// As [`Outcome::refused`], for one reason.
    pub(crate) fn fault(row: Option<Uuid>, error: UserError) -> Self {
        Self::refused(row, vec![error])
    }

    /// The first row as it is now.
    pub(crate) async fn row<E>(&self, ctx: &Context<'_>) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        match self.rows.first() {
            Some(id) => self.load::<E>(ctx, *id).await,
            None => Ok(None),
        }
    }

    /// A row as it is now.
    pub(crate) async fn load<E>(
        &self,
        ctx: &Context<'_>,
        id: Uuid,
    ) -> Result<Option<Arc<E::Model>>, Error>
    where
        E: EntityTrait<Model: Send + Sync>,
    {
        let request = ctx.request();
        let rule = if self.is_past {
            let rules = request.viewer()?.rules();
            rules.of_table(E::default().table_name())
        } else {
            Rule::default()
        };
        request.readable::<E>(&rule, id).await
    }
}

/// Makes the change of a mutation: `work` runs in a transaction, and again when it lost against others at the same time.
/// What it returns without [`Change::commit`] has not happened.
///
/// # Errors
/// Those of the work; `CONFLICT` when others won each time.
pub(crate) async fn change<'a, F>(
    ctx: &'a Context<'a>,
    work: impl Fn(Change<'a>) -> F,
) -> Result<Outcome, Error>
where
    F: Future<Output = Result<Outcome, Error>>,
{
    let request = ctx.request();
    let viewer = request.viewer()?;
    settle(|| async {
        let (transaction, turn) = request.services.writer.begin().await?;
        let now = request.now();
        if let Some(key) = &request.key
            && let Some(outcome) = key.begin(ctx, &transaction).await?
        {
            return Ok(outcome);
        }
        let change = Change {
            transaction,
            now,
            viewer,
            ctx,
            request,
            facts: Vec::new(),
            notes: Vec::new(),
            ended: Vec::new(),
            _turn: turn,
        };
        let outcome = work(change).await?;
        if let Some(key) = request.key.as_ref().filter(|_| outcome.errors.is_empty()) {
            key.made();
        }
        Ok(outcome)
    })
    .await
}

/// A change under way.
pub(crate) struct Change<'a> {
    /// Where all of it is read and written.
    pub(crate) transaction: DatabaseTransaction,
    /// When it happens.
    pub(crate) now: DateTime<Utc>,
    /// Who makes it.
    pub(crate) viewer: &'a Viewer,
    ctx: &'a Context<'a>,
    request: &'a Request,
    facts: Vec<Fact>,
    notes: Vec<(Act, Kind, Uuid, Json)>,
    ended: Vec<Ended>,
    _turn: Turn,
}

impl Change<'_> {
    /// Adds an event, written with the commit, in the order of the calls.
    pub(crate) fn announce(&mut self, fact: Fact) {
        self.facts.push(fact);
    }

    /// Adds an entry to the audit log, made after the commit: what was done to which row, and more about it.
    pub(crate) fn note(&mut self, act: Act, kind: Kind, id: Uuid, details: Json) {
        self.notes.push((act, kind, id, details));
    }

    /// Adds sessions that end with the commit.
    pub(crate) fn end(&mut self, ended: Ended) {
        self.ended.push(ended);
    }

    /// Makes everything that was written stand, and tells those who listen.
    pub(crate) async fn commit(self, rows: Vec<Uuid>) -> Result<Outcome, Error> {
        let bus = &self.request.services.bus;
        let origin = (
            Some(self.viewer.id()),
            self.request.client.request_id.as_str(),
        );
        let window = bus.window();
        let duplicates = announce(&self.transaction, origin, self.facts, self.now, window).await?;
        if let Some(key) = &self.request.key {
            key.note(self.ctx, &self.transaction, &rows).await?;
        }
        let writer = &self.request.services.writer;
        writer.commit(self.transaction).await?;
        if let Some(key) = &self.request.key {
            key.made();
        }
        for ended in self.ended {
            self.request.accounts().ended(ended);
        }
        bus.committed(duplicates);
        let (trail, client) = (&self.request.accounts().trail, &self.request.client);
        for (act, kind, id, details) in self.notes {
            let actor = Some(self.viewer.id());
            trail.record_of(act, client, actor, Some((kind, id)), details);
        }
        Ok(Outcome {
            rows,
            ..Outcome::default()
        })
    }

    /// A row that `rule` lets the viewer read. Nobody else changes it until this change is done.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`.
    pub(crate) async fn row<E>(&self, rule: &Rule, id: Uuid, field: &str) -> Result<E::Model, Error>
    where
        E: EntityTrait,
        Uuid: Into<<E::PrimaryKey as PrimaryKeyTrait>::ValueType>,
    {
        self.locked::<E>(LockType::NoKeyUpdate, rule, id, field)
            .await
    }

    /// As [`Change::row`], of a row that is to be deleted: nothing comes to refer to it until this change is done.
    pub(crate) async fn doomed<E>(
        &self,
        rule: &Rule,
        id: Uuid,
        field: &str,
    ) -> Result<E::Model, Error>
    where
        E: EntityTrait,
        Uuid: Into<<E::PrimaryKey as PrimaryKeyTrait>::ValueType>,
    {
        self.locked::<E>(LockType::Update, rule, id, field).await
    }

    /// A row that everyone may read and that is to be referred to; it stays until this change is done. `None` without an
    /// id.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`.
    pub(crate) async fn referred<E>(
        &self,
        id: Option<Uuid>,
        field: &str,
    ) -> Result<Option<E::Model>, Error>
    where
        E: EntityTrait,
        Uuid: Into<<E::PrimaryKey as PrimaryKeyTrait>::ValueType>,
    {
        let Some(id) = id else { return Ok(None) };
        let rule = Rule::default();
        let row = self.locked::<E>(LockType::KeyShare, &rule, id, field);
        row.await.map(Some)
    }

    async fn locked<E>(
        &self,
        lock: LockType,
        rule: &Rule,
        id: Uuid,
        field: &str,
    ) -> Result<E::Model, Error>
    where
        E: EntityTrait,
        Uuid: Into<<E::PrimaryKey as PrimaryKeyTrait>::ValueType>,
    {
        let select = E::find_by_id(id).filter(rule.condition());
        let row = select.lock(lock).one(&self.transaction).await?;
        row.ok_or_else(|| Error::not_found(field))
    }

    /// Whether there is a row like this.
    pub(crate) async fn any<E: EntityTrait>(&self, condition: Expr) -> Result<bool, Error> {
        let row = E::find()
            .select_only()
            .expr(Expr::val(1))
            .filter(condition)
            .limit(1)
            .into_tuple::<i32>()
            .one(&self.transaction);
        Ok(row.await?.is_some())
    }

    /// `FORBIDDEN`: the viewer may read this, but not do that to it. Goes into the audit log.
    pub(crate) fn forbidden(&self, kind: Kind, id: Uuid) -> Error {
        let trail = &self.request.accounts().trail;
        let (actor, target) = (Some(self.viewer.id()), kind.id(id));
        let details = json!({ "target": target.as_str() });
        trail.record(Act::Refused, &self.request.client, actor, None, details);
        Error::new(
            Code::Forbidden,
            format!("You may see this {}, but not do that.", kind.prefix()),
        )
    }
}

/// The fields of a row that an update changes.
#[derive(Default)]
pub(crate) struct Edits(Vec<&'static str>);

impl Edits {
    /// Sets a field to a value, if there is one and it is another than the field has.
    pub(crate) fn set<V>(
        &mut self,
        name: &'static str,
        field: &mut ActiveValue<V>,
        value: Option<V>,
    ) where
        V: Into<Value> + PartialEq,
    {
        if let Some(value) = value.filter(|value| field.try_as_ref() != Some(value)) {
            *field = ActiveValue::Set(value);
            self.0.push(name);
        }
    }

    /// The names of the fields that changed.
    pub(crate) fn names(&self) -> &[&'static str] {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a version says that is not the one the client has seen.
pub(crate) fn check_version(expected: Option<i32>, version: i32) -> Result<(), UserError> {
    match expected {
        Some(expected) if expected != version => {
            let message = format!("It has been changed in the meantime: its version is {version}.");
            Err(UserError::new(
                "expectedVersion",
                UserErrorCode::Conflict,
                message,
            ))
        }
        _ => Ok(()),
    }
}

/// Whether a statement failed because another row has the same unique value. Its transaction can only be dropped.
pub(crate) fn is_taken(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}
