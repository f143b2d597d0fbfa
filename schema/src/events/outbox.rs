//! The outbox: a change writes its events in its own transaction.
//!
//! A row without a position is not published yet. Positions are assigned after the commit, so that a subscriber who
//! reads everything after a position misses nothing, however long another transaction takes.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use gathering_entity::event;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{db::is_among, error::Error, events::EventType};

/// The channel on which instances notify each other of new positions (PostgreSQL).
pub(super) const CHANNEL: &str = "gathering_events";

/// The version of the payloads.
const VERSION: i32 = 1;

/// Maximum number of rows in one statement.
const ROWS: usize = 1_000;

/// An event to append.
#[derive(Clone, Debug)]
pub(crate) struct NewEvent {
    kind: EventType,
    subject: Uuid,
    owner: Option<Uuid>,
    circle: Option<Uuid>,
    project: Option<Uuid>,
    agent: Option<Uuid>,
    by_agent: bool,
    payload: Value,
}

impl NewEvent {
    /// Creates an event: its type, the row, and an object as the payload,
    /// which never contains a secret, a prompt or a whole message.
    pub(crate) fn new(kind: EventType, subject: Uuid, payload: Value) -> Self {
        Self {
            kind,
            subject,
            owner: None,
            circle: None,
            project: None,
            agent: None,
            by_agent: false,
            payload,
        }
    }

    /// Sets the owner, who receives the event.
    pub(crate) fn owner(self, owner: Uuid) -> Self {
        Self {
            owner: Some(owner),
            ..self
        }
    }

    /// Sets the circle, whose readers receive the event.
    pub(crate) fn circle(self, circle: impl Into<Option<Uuid>>) -> Self {
        Self {
            circle: circle.into(),
            ..self
        }
    }

    /// Sets the project.
    pub(crate) fn project(self, project: impl Into<Option<Uuid>>) -> Self {
        Self {
            project: project.into(),
            ..self
        }
    }

    /// Sets the agent that the event concerns.
    pub(crate) fn agent(self, agent: impl Into<Option<Uuid>>) -> Self {
        Self {
            agent: agent.into(),
            ..self
        }
    }

    /// Marks the agent as the actor, even if a user caused the action.
    pub(crate) fn by_agent(self) -> Self {
        Self {
            by_agent: true,
            ..self
        }
    }

    fn into_row(self, user: Option<Uuid>, request: &str, now: DateTime<Utc>) -> event::Model {
        let mut payload = self.payload;
        if let Value::Object(payload) = &mut payload {
            payload.insert("v".to_owned(), json!(VERSION));
        }
        let subject_type = self.kind.dotted().split('.').next().unwrap_or_default();
        event::Model {
            id: Uuid::now_v7(),
            position: None,
            kind: self.kind.dotted().to_owned(),
            subject_type: subject_type.to_owned(),
            subject_id: self.subject,
            owner_id: self.owner,
            circle_id: self.circle,
            project_id: self.project,
            agent_id: self.agent,
            actor_user_id: user,
            actor_agent_id: self.agent.filter(|_| self.by_agent),
            payload,
            request_id: Some(request.to_owned()).filter(|id| !id.is_empty()),
            occurred_at: now,
        }
    }
}

/// Appends events to the transaction that causes them, with the user who made the change (`None` for the server itself)
/// and the request. Returns the number of dropped duplicates: events equal to the latest event of their subject, if
/// that one is younger than `window`.
pub(crate) async fn append(
    transaction: &DatabaseTransaction,
    (user, request): (Option<Uuid>, &str),
    events: Vec<NewEvent>,
    now: DateTime<Utc>,
    window: Duration,
) -> Result<u64, Error> {
    if events.is_empty() {
        return Ok(0);
    }
    let all = events.len();
    let mut latest = latest(transaction, &events, now, window).await?;
    let mut rows = Vec::with_capacity(all);
    for event in events {
        let row = event.into_row(user, request, now);
        let before = latest.get(&row.subject_id);
        if !before.is_some_and(|before| is_duplicate(before, &row)) {
            latest.insert(row.subject_id, row.clone());
            rows.push(row);
        }
    }
    let duplicates = all - rows.len();
    // Databases limit the number of values in a statement.
    for rows in rows.chunks(ROWS) {
        let rows = rows.iter().cloned().map(IntoActiveModel::into_active_model);
        event::Entity::insert_many(rows)
            .exec_without_returning(transaction)
            .await?;
    }
    Ok(duplicates as u64)
}

/// The latest event of each subject of the new events, if it is younger than `window`.
async fn latest(
    transaction: &DatabaseTransaction,
    events: &[NewEvent],
    now: DateTime<Utc>,
    window: Duration,
) -> Result<HashMap<Uuid, event::Model>, Error> {
    // A new subject has no events yet, and an event with a version is never a duplicate.
    let may_repeat = |event: &&NewEvent| {
        !event.kind.dotted().ends_with(".created") && event.payload.get("version").is_none()
    };
    let subjects: Vec<Uuid> = events
        .iter()
        .filter(may_repeat)
        .map(|event| event.subject)
        .collect();
    if window.is_zero() || subjects.is_empty() {
        return Ok(HashMap::new());
    }
    let backend = transaction.get_database_backend();
    let mut latest = HashMap::new();
    for subjects in subjects.chunks(ROWS) {
        let column = event::Column::SubjectId.as_column_ref();
        let rows = event::Entity::find()
            .filter(is_among(backend, column, subjects))
            .filter(event::Column::OccurredAt.gt(now - window))
            .order_by_asc(event::Column::Id)
            .all(transaction)
            .await?;
        latest.extend(rows.into_iter().map(|row| (row.subject_id, row)));
    }
    Ok(latest)
}

fn is_duplicate(one: &event::Model, other: &event::Model) -> bool {
    one.kind == other.kind
        && one.circle_id == other.circle_id
        && one.actor_user_id == other.actor_user_id
        && one.actor_agent_id == other.actor_agent_id
        && one.payload == other.payload
}

/// Assigns positions to committed events that have none, in the order in which they were written; a later change of a
/// subject is written later. Notifies other instances, with the name of this one in `own`. Returns whether there may be
/// more.
pub(super) async fn number(transaction: &DatabaseTransaction, own: Uuid) -> Result<bool, Error> {
    const MOST: u64 = 1_000;
    let order = match transaction.get_database_backend() {
        DbBackend::Postgres => {
            // One instance numbers events at a time. The commit releases the lock.
            transaction
                .execute_unprepared("SELECT pg_advisory_xact_lock(4741749311)")
                .await?;
            "written"
        }
        _ => "rowid",
    };
    let numbered = transaction
        .execute_unprepared(&format!(
            "UPDATE events SET position = fresh.position FROM ( \
               SELECT id, (SELECT coalesce(max(position), 0) FROM events) + row_number() OVER (ORDER BY {order}) AS position \
               FROM events WHERE position IS NULL ORDER BY {order} LIMIT {MOST} \
             ) AS fresh WHERE events.id = fresh.id"
        ))
        .await?
        .rows_affected();
    if numbered > 0 && transaction.get_database_backend() == DbBackend::Postgres {
        transaction
            .execute_unprepared(&format!("NOTIFY {CHANNEL}, '{own}'"))
            .await?;
    }
    Ok(numbered == MOST)
}
