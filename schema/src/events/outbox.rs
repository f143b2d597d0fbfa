//! The outbox: a change writes its events in its own transaction.
//!
//! A row without a position is not published yet. Positions are assigned after the commit, so that a subscriber who
//! reads everything after a position misses nothing, however long another transaction takes.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use gathering_entity::event;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    IntoActiveModel, Iterable, QueryFilter, Statement,
    sea_query::{Expr, ExprTrait, Func, IntoIden, Query},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    db::{InsertSelected, Writer, Writes, is_among, is_taken},
    error::Error,
    events::EventType,
    storage,
};

/// The channel on which instances notify each other of new positions (PostgreSQL).
pub(super) const CHANNEL: &str = "gathering_events";

/// The version of the payloads.
const VERSION: i32 = 1;

/// Maximum number of subjects in one statement on SQLite.
const SUBJECTS: usize = 1_000;

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

    /// Whether it reports a change of an account that authentication reads.
    pub(crate) fn changes_account(&self) -> bool {
        matches!(
            self.kind,
            EventType::UserUpdated | EventType::UserDeleted | EventType::UserTokensRevoked
        )
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

    fn into_row(self, origin: Origin<'_>, now: DateTime<Utc>) -> event::Model {
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
            actor_user_id: origin.user,
            actor_agent_id: self.agent.filter(|_| self.by_agent).or(origin.agent),
            payload,
            request_id: Some(origin.request.to_owned()).filter(|id| !id.is_empty()),
            occurred_at: now,
        }
    }
}

/// The author of a change, and the request.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The user; `None` for the server itself.
    pub(crate) user: Option<Uuid>,
    /// The agent on whose behalf the user's API key acts.
    pub(crate) agent: Option<Uuid>,
    pub(crate) request: &'a str,
}

/// Appends events to the transaction that causes them. Returns the number of dropped duplicates: events equal to the
/// latest event of their subject, if that one is less than `window` away.
pub(crate) async fn append(
    transaction: &DatabaseTransaction,
    origin: Origin<'_>,
    events: Vec<NewEvent>,
    now: DateTime<Utc>,
    window: Duration,
) -> Result<u64, Error> {
    if events.is_empty() {
        return Ok(0);
    }
    let all = events.len();
    let rows = event_rows(origin, events, now);
    let appended = if transaction.get_database_backend() == DbBackend::Postgres {
        let events = selected(rows, now, window);
        let appended = Writes::default().execute(transaction, events).await?;
        appended.unwrap_or_default()
    } else {
        append_rows(transaction, rows, now, window).await?
    };
    Ok(all.saturating_sub(appended) as u64)
}

/// As [`append`], for rows on SQLite. Returns the number of appended rows.
pub(crate) async fn append_rows(
    transaction: &DatabaseTransaction,
    rows: Vec<event::Model>,
    now: DateTime<Utc>,
    window: Duration,
) -> Result<usize, DbErr> {
    let latest = latest(transaction, &rows, now, window).await?;
    let rows = unrepeated(rows, latest);
    let appended = rows.len();
    let mut writes = Writes::default();
    writes.insert(
        rows.into_iter().map(IntoActiveModel::into_active_model),
        None,
    );
    writes.apply(transaction).await?;
    Ok(appended)
}

/// The rows that are not equal to the previous event of their subject; `latest` are those in the database.
fn unrepeated(
    mut rows: Vec<event::Model>,
    mut latest: HashMap<Uuid, event::Model>,
) -> Vec<event::Model> {
    rows.retain(|row| {
        let before = latest.get(&row.subject_id);
        let is_new = !before.is_some_and(|before| is_duplicate(before, row));
        if is_new {
            latest.insert(row.subject_id, row.clone());
        }
        is_new
    });
    rows
}

/// The rows of the events of a change, without those that are equal to the previous event of their subject.
pub(crate) fn event_rows(
    origin: Origin<'_>,
    events: Vec<NewEvent>,
    now: DateTime<Utc>,
) -> Vec<event::Model> {
    let rows = events.into_iter().map(|event| event.into_row(origin, now));
    unrepeated(rows.collect(), HashMap::new())
}

/// The insert of event rows as [`append`] does it, as part of a statement for PostgreSQL, which has one parameter for
/// all rows. `None` without rows.
pub(crate) fn selected(
    rows: Vec<event::Model>,
    now: DateTime<Utc>,
    window: Duration,
) -> Option<InsertSelected> {
    if rows.is_empty() {
        return None;
    }
    // Only the first event of a subject can repeat one that is in the database.
    let mut subjects = HashSet::new();
    let firsts = rows.iter().filter(|row| subjects.insert(row.subject_id));
    let firsts: Vec<Uuid> = firsts
        .filter(|row| !window.is_zero() && may_repeat(&row.kind, &row.payload))
        .map(|row| row.id)
        .collect();
    let rows = rows.into_iter().map(|row| {
        json!({
            "id": row.id,
            "type": row.kind,
            "subject_type": row.subject_type,
            "subject_id": row.subject_id,
            "owner_id": row.owner_id,
            "circle_id": row.circle_id,
            "project_id": row.project_id,
            "agent_id": row.agent_id,
            "actor_user_id": row.actor_user_id,
            "actor_agent_id": row.actor_agent_id,
            "payload": row.payload,
            "request_id": row.request_id,
            "occurred_at": row.occurred_at,
        })
    });
    let rows = Value::Array(rows.collect());
    let columns =
        || event::Column::iter().filter(|column| !matches!(column, event::Column::Position));
    // The function has the name of the table, so that the columns of the entity are its columns.
    let mut select = Query::select();
    select
        .columns(columns().map(|column| column.as_column_ref()))
        .from_function(
            Func::cust("jsonb_populate_recordset")
                .arg(Expr::cust("NULL::events"))
                .arg(Expr::val(rows)),
            event::Entity,
        );
    if !firsts.is_empty() {
        let id = event::Column::Id.as_column_ref();
        let is_repeated = Expr::cust_with_values(
            "EXISTS (SELECT FROM ( \
               SELECT * FROM events AS known WHERE known.subject_id = events.subject_id \
               ORDER BY known.position DESC NULLS FIRST, known.written DESC LIMIT 1 \
             ) AS latest WHERE latest.occurred_at > $1 AND latest.occurred_at < $2 \
               AND latest.type = events.type AND latest.payload = events.payload \
               AND latest.circle_id IS NOT DISTINCT FROM events.circle_id \
               AND latest.actor_user_id IS NOT DISTINCT FROM events.actor_user_id \
               AND latest.actor_agent_id IS NOT DISTINCT FROM events.actor_agent_id)",
            [now - window, now + window],
        );
        select.and_where(
            is_among(DbBackend::Postgres, id, &firsts)
                .and(is_repeated)
                .not(),
        );
    }
    Some(InsertSelected {
        table: event::Entity.into_iden(),
        columns: columns().map(IntoIden::into_iden).collect(),
        select,
    })
}

/// Whether an event can be equal to the previous one of its subject: a new subject has no events yet, and an event with
/// a version is never a duplicate.
fn may_repeat(kind: &str, payload: &Value) -> bool {
    !kind.ends_with(".created") && payload.get("version").is_none()
}

/// The latest event of each subject of the new events on SQLite, if it is less than `window` away: the clock of the
/// instance that wrote it may be ahead.
async fn latest(
    transaction: &DatabaseTransaction,
    rows: &[event::Model],
    now: DateTime<Utc>,
    window: Duration,
) -> Result<HashMap<Uuid, event::Model>, DbErr> {
    let subjects: Vec<Uuid> = rows
        .iter()
        .filter(|row| may_repeat(&row.kind, &row.payload))
        .map(|row| row.subject_id)
        .collect();
    if window.is_zero() || subjects.is_empty() {
        return Ok(HashMap::new());
    }
    // Ids and times are not in the order of writing, because the clocks of instances differ.
    let is_latest = "events.rowid = \
        (SELECT max(known.rowid) FROM events AS known WHERE known.subject_id = events.subject_id)";
    let mut latest = HashMap::new();
    for subjects in subjects.chunks(SUBJECTS) {
        let column = event::Column::SubjectId.as_column_ref();
        let rows = event::Entity::find()
            .filter(is_among(DbBackend::Sqlite, column, subjects))
            .filter(event::Column::OccurredAt.gt(now - window))
            .filter(event::Column::OccurredAt.lt(now + window))
            .filter(Expr::cust(is_latest))
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

/// How far events have been numbered.
pub(super) enum Numbered {
    All,
    /// There may be more.
    Part,
    /// Another instance was numbering events at the same time.
    Busy,
}

/// Assigns positions to committed events that have none, in the order in which they were written; a later change of a
/// subject is written later. Notifies other instances, with the name of this one in `own`.
pub(super) async fn number(writer: &Writer, own: Uuid) -> Result<Numbered, Error> {
    const MOST: u64 = 1_000;
    let update = |order: &str, condition: &str| {
        format!(
            "UPDATE events SET position = fresh.position FROM ( \
               SELECT id, (SELECT coalesce(max(position), 0) FROM events) + row_number() OVER (ORDER BY {order}) AS position \
               FROM events WHERE position IS NULL {condition} ORDER BY {order} LIMIT {MOST} \
             ) AS fresh WHERE events.id = fresh.id"
        )
    };
    let numbered = if let Some(db) = writer.postgres() {
        // One instance numbers events at a time. A statement that was sent before another instance released the lock may
        // not see its positions, and fails then: positions are unique.
        let statement = format!(
            "WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(4741749311) AS is_own), \
             numbered AS ({} RETURNING 1) \
             SELECT (SELECT is_own FROM turn) AS is_own, count(*) AS numbered, \
             CASE WHEN count(*) > 0 THEN pg_notify('{CHANNEL}', '{own}') END FROM numbered",
            // An event that another instance has numbered since the snapshot keeps its position.
            update("written", "AND (SELECT is_own FROM turn)") + " AND events.position IS NULL",
        );
        let statement = Statement::from_string(DbBackend::Postgres, statement);
        let row = match db.query_one_raw(statement).await {
            Err(cause) if is_taken(&cause) => return Ok(Numbered::Busy),
            row => row.map_err(Error::of_commit)?,
        };
        storage::committed();
        let row = row.ok_or_else(Error::conflict)?;
        if !row.try_get("", "is_own")? {
            return Ok(Numbered::Busy);
        }
        u64::try_from(row.try_get::<i64>("", "numbered")?).unwrap_or_default()
    } else {
        let (transaction, _guard) = writer.begin().await?;
        let numbered = transaction.execute_unprepared(&update("rowid", "")).await?;
        writer.commit(transaction).await?;
        numbered.rows_affected()
    };
    Ok(if numbered == MOST {
        Numbered::Part
    } else {
        Numbered::All
    })
}
