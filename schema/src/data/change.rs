//! Changes: each one is applied completely or not at all, together with its events.
//!
//! A change either runs in a transaction from its first read ([`change`]), or is a draft ([`draft`](super::draft)): it
//! reads first and writes once.

use std::{any::Any, mem, sync::Arc};

use async_graphql::Context;
use chrono::{DateTime, Utc};
use sea_orm::{
    Condition, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    FromQueryResult, PrimaryKeyTrait, QueryFilter, QuerySelect,
    sea_query::{Expr, LockType},
};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::{
    access::Viewer,
    audit::AuditAction,
    auth::{Accounts, take_effect},
    data::{
        Noun,
        noun::{self, RowOf},
    },
    db::{Rule, WriterGuard, is_taken, retry_on_conflict, touch},
    error::{Code, Error},
    events::{Ended, NewEvent, Origin, append},
    id::Kind,
    input::UserError,
    request::{Request, RequestExt},
};

/// The result of a change: the rows of its payload, or the errors of its input.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The ids of the rows, the main one first.
    pub(crate) rows: Vec<Uuid>,
    pub(crate) errors: Vec<UserError>,
    /// Whether an earlier request applied the change, so that the viewer may no longer be allowed to read the rows.
    pub(crate) is_past: bool,
    /// The row of the main object as the change has written it.
    written: Option<Arc<dyn Any + Send + Sync>>,
}

impl Outcome {
    /// The input was refused, and nothing has changed. `row` is the object concerned, if there is one.
    pub(crate) fn refused(row: Option<Uuid>, errors: Vec<UserError>) -> Self {
        Self {
            rows: row.into_iter().collect(),
            errors,
            ..Self::default()
        }
    }

    /// Adds the row of the main object, so that it need not be read again.
    pub(crate) fn with_row<M: Send + Sync + 'static>(self, row: M) -> Self {
        Self {
            written: Some(Arc::new(row)),
            ..self
        }
    }

    /// The object of the first row in its current state.
    pub(crate) async fn row<N: Noun>(&self, ctx: &Context<'_>) -> Result<Option<N>, Error> {
        let written = self.written.clone().map(Arc::downcast::<RowOf<N>>);
        if let Some(Ok(row)) = written {
            return Ok(Some(N::from(row)));
        }
        match self.rows.first() {
            Some(id) => self.load(ctx, *id).await,
            None => Ok(None),
        }
    }

    /// The object of a row in its current state.
    pub(crate) async fn load<N: Noun>(
        &self,
        ctx: &Context<'_>,
        id: Uuid,
    ) -> Result<Option<N>, Error> {
        let request = ctx.request();
        if self.is_past {
            return noun::load(request, id).await;
        }
        let row = request.row::<N::Entity>(id).await?;
        Ok(row.map(N::from))
    }
}

/// Why the work of a mutation ends without a commit.
pub(crate) enum Stop {
    /// The input is refused; the payload shows why.
    Refused(Vec<UserError>),
    /// The request fails.
    Failed(Error),
}

impl From<UserError> for Stop {
    fn from(error: UserError) -> Self {
        Self::Refused(vec![error])
    }
}

impl From<Vec<UserError>> for Stop {
    fn from(errors: Vec<UserError>) -> Self {
        Self::Refused(errors)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<DbErr> for Stop {
    fn from(error: DbErr) -> Self {
        Self::Failed(error.into())
    }
}

/// The result of a statement that writes a unique value; a duplicate is refused with `taken`.
///
/// # Errors
/// The value is taken, or the statement failed.
pub(crate) fn unique<T>(
    result: Result<T, DbErr>,
    taken: impl FnOnce() -> UserError,
) -> Result<T, Stop> {
    result.map_err(|error| {
        if is_taken(&error) {
            taken().into()
        } else {
            error.into()
        }
    })
}

/// Makes the change of a mutation: `work` runs in a transaction, and again if it lost against a concurrent transaction.
/// Without [`Change::commit`] nothing has changed. `about` is the row that the payload shows if the input is refused.
///
/// # Errors
/// Those of the work; `CONFLICT` if every attempt lost.
pub(crate) async fn change<'a, F>(
    ctx: &'a Context<'a>,
    about: Option<Uuid>,
    work: impl Fn(Change<'a>) -> F,
) -> Result<Outcome, Error>
where
    F: Future<Output = Result<Outcome, Stop>>,
{
    retry_on_conflict(|| async {
        match begin(ctx).await? {
            Ok((transaction, guard)) => {
                let change = Change::new(ctx, transaction, Some(guard))?;
                settle(ctx, about, work(change).await)
            }
            Err(past) => Ok(past),
        }
    })
    .await
}

/// Begins the transaction of a change. `Err` is the outcome of an earlier request with the same idempotency key.
pub(super) async fn begin(
    ctx: &Context<'_>,
) -> Result<Result<(DatabaseTransaction, WriterGuard), Outcome>, Error> {
    let request = ctx.request();
    request.viewer()?;
    let (transaction, guard) = request.services.writer.begin().await?;
    if let Some(key) = &request.key
        && let Some(rows) = key.begin(ctx, &transaction).await?
    {
        return Ok(Err(Outcome {
            rows,
            is_past: true,
            ..Outcome::default()
        }));
    }
    Ok(Ok((transaction, guard)))
}

/// The outcome of the work of a change.
pub(super) fn settle(
    ctx: &Context<'_>,
    about: Option<Uuid>,
    result: Result<Outcome, Stop>,
) -> Result<Outcome, Error> {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(Stop::Refused(errors)) => Outcome::refused(about, errors),
        Err(Stop::Failed(error)) => return Err(error),
    };
    let key = ctx.request().key.as_ref();
    if let Some(key) = key.filter(|_| outcome.errors.is_empty()) {
        key.made();
    }
    Ok(outcome)
}

/// A running change: in a transaction, or a [`Draft`](super::Draft).
pub(crate) struct Change<'a, S = DatabaseTransaction> {
    /// The transaction for all reads and writes, or the draft.
    pub(crate) transaction: S,
    /// The time of the change.
    pub(crate) now: DateTime<Utc>,
    /// The user who makes the change.
    pub(crate) viewer: &'a Viewer,
    pub(super) ctx: &'a Context<'a>,
    pub(super) request: &'a Request,
    pub(super) events: Vec<NewEvent>,
    notes: Vec<(AuditAction, Kind, Uuid, Json)>,
    ended: Vec<Ended>,
    /// Held until the change ends.
    pub(super) guard: Option<WriterGuard>,
}

impl<'a, S> Change<'a, S> {
    pub(super) fn new(
        ctx: &'a Context<'a>,
        transaction: S,
        guard: Option<WriterGuard>,
    ) -> Result<Self, Error> {
        let request = ctx.request();
        Ok(Self {
            transaction,
            now: request.now(),
            viewer: request.viewer()?,
            ctx,
            request,
            events: Vec::new(),
            notes: Vec::new(),
            ended: Vec::new(),
            guard,
        })
    }

    /// The accounts.
    pub(crate) fn accounts(&self) -> &'a Accounts {
        self.request.accounts()
    }

    /// Adds an event. Events are written with the commit, in the order of the calls.
    pub(crate) fn append(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Adds an audit log entry, which is recorded after the commit: the action, the row, and further details.
    pub(crate) fn note(&mut self, action: AuditAction, kind: Kind, id: Uuid, details: Json) {
        self.notes.push((action, kind, id, details));
    }

    /// Adds sessions that end with the commit.
    pub(crate) fn end(&mut self, ended: Ended) {
        self.ended.push(ended);
    }

    /// Takes the transaction or the draft out of the change.
    pub(super) fn take(self) -> (Change<'a, ()>, S) {
        let change = Change {
            transaction: (),
            now: self.now,
            viewer: self.viewer,
            ctx: self.ctx,
            request: self.request,
            events: self.events,
            notes: self.notes,
            ended: self.ended,
            guard: self.guard,
        };
        (change, self.transaction)
    }

    /// The author and the request, for the events.
    pub(super) fn origin(&self) -> Origin<'a> {
        Origin {
            user: Some(self.viewer.id()),
            agent: self.viewer.agent(),
            request: self.request.client.request_id.as_str(),
        }
    }

    /// Notifies the bus and the audit log after the commit. `duplicates` events were dropped.
    pub(super) fn committed(self, duplicates: u64, rows: Vec<Uuid>) -> Outcome {
        if let Some(key) = &self.request.key {
            key.made();
        }
        for ended in self.ended {
            self.request.accounts().ended(ended);
        }
        self.request.services.bus.committed(duplicates);
        let (audit, client) = (&self.request.accounts().audit, &self.request.client);
        for (action, kind, id, mut details) in self.notes {
            if let (Some(key), Json::Object(details)) = (self.viewer.key(), &mut details) {
                let id = Kind::ApiKey.id(key.id);
                details.insert("apiKey".to_owned(), json!(id.as_str()));
            }
            let actor = Some(self.viewer.id());
            audit.record_of(action, client, actor, Some((kind, id)), details);
        }
        Outcome {
            rows,
            ..Outcome::default()
        }
    }

    /// `FORBIDDEN`: the viewer may read the row, but may not change it like this. Recorded in the audit log.
    pub(crate) fn forbidden(&self, kind: Kind, id: Uuid) -> Error {
        let audit = &self.request.accounts().audit;
        let (actor, target) = (Some(self.viewer.id()), kind.id(id));
        let details = json!({ "target": target.as_str() });
        audit.record(
            AuditAction::Refused,
            &self.request.client,
            actor,
            None,
            details,
        );
        Error::new(
            Code::Forbidden,
            format!(
                "You may read this {}, but this action is not permitted.",
                kind.prefix()
            ),
        )
    }
}

impl Change<'_> {
    /// Commits the transaction, and notifies the bus. A change of an account returns when it is in effect everywhere.
    pub(crate) async fn commit(mut self, rows: Vec<Uuid>) -> Result<Outcome, Stop> {
        let events = mem::take(&mut self.events);
        let window = self.request.services.bus.window();
        let origin = self.origin();
        let changes_account =
            !self.ended.is_empty() || events.iter().any(NewEvent::changes_account);
        let duplicates = append(&self.transaction, origin, events, self.now, window).await?;
        if let Some(key) = &self.request.key {
            key.note(self.ctx, &self.transaction, &rows).await?;
        }
        let writer = &self.request.services.writer;
        let (change, transaction) = self.take();
        writer.commit(transaction).await?;
        let outcome = change.committed(duplicates, rows);
        if changes_account {
            take_effect().await;
        }
        Ok(outcome)
    }

    /// A row that `rule` lets the viewer read, locked against other changes until the end of this one.
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

    /// As [`Change::row`], for a row of which drafts depend on the revision.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`.
    pub(crate) async fn touched<E: EntityTrait>(
        &self,
        condition: Condition,
        field: &str,
    ) -> Result<E::Model, Error> {
        let row = if self.transaction.get_database_backend() == DbBackend::Postgres {
            let touch = touch::<E>().cond_where(condition).returning_all().take();
            let row = self.transaction.query_one(&touch).await?;
            row.map(|row| E::Model::from_query_result(&row, ""))
                .transpose()?
        } else {
            E::find().filter(condition).one(&self.transaction).await?
        };
        row.ok_or_else(|| Error::not_found(field))
    }

    /// As [`Change::row`], for a row that is to be deleted: until the end of this change no reference to it can be
    /// added.
    pub(crate) async fn lock_for_delete<E>(
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

    /// A row that everyone may read and that is to be referenced. It cannot be deleted until the end of this change.
    /// `None` without an id.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`.
    pub(crate) async fn lock_reference<E>(
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

    /// Whether there is a row that matches the condition.
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
}
