//! Routing: assigns tasks to the team of their circle.
//!
//! The caller holds the lock on the circle's row, or is a draft that depends on it, so that of two concurrent changes the
//! later one sees the assignments of the earlier one.

use std::mem;

use chrono::{DateTime, Utc};
use gathering_entity::{List, circle, task};
use sea_orm::{
    ActiveEnum, ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, FromQueryResult,
    QueryFilter, QueryOrder, QueryResult, QuerySelect, QueryTrait, UpdateMany,
    sea_query::{CaseStatement, Expr, ExprTrait, Order, Query, SelectStatement},
};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    data::{Change, Draft, Stop},
    db::{Stored, is_among, json_rows, list_from},
    error::Error,
    events::NewEvent,
    input::{UserError, UserErrorCode},
    task::{
        event::{assigned, unassigned},
        team::{Team, Work, count_in, has_status},
    },
};

/// Maximum number of pending tasks that are considered, highest priority first. Bounds the cost of tasks that no agent
/// can do.
const MOST_LOOKED_AT: usize = 500;

/// The statuses in which a task counts towards the circle's `max_concurrent_tasks`.
const IN_HAND: [task::TaskStatus; 4] = [
    task::TaskStatus::Assigned,
    task::TaskStatus::InProgress,
    task::TaskStatus::InReview,
    task::TaskStatus::ChangesRequested,
];

/// Whether a task with this status counts towards the circle's `max_concurrent_tasks`.
pub(super) fn is_in_hand(status: task::TaskStatus) -> bool {
    IN_HAND.contains(&status)
}

/// A PENDING task to be routed.
#[derive(Deserialize)]
pub(super) struct Pending {
    pub(crate) id: Uuid,
    title: String,
    required_competencies: List,
    priority_rank: i32,
    reviewer_id: Option<Uuid>,
    pub(crate) version: i32,
}

impl From<&task::Model> for Pending {
    fn from(task: &task::Model) -> Self {
        Self {
            id: task.id,
            title: task.title.clone(),
            required_competencies: task.required_competencies.clone(),
            priority_rank: task.priority_rank,
            reviewer_id: task.reviewer_id,
            version: task.version,
        }
    }
}

/// A task that is assigned to an agent by its score.
pub(super) struct Routed {
    pub(crate) task: Pending,
    pub(crate) agent: Uuid,
    score: f64,
}

/// The work that waits in a circle, and who can do it. Empty if the circle is not RUNNING or does not route
/// automatically.
pub(super) struct Situation {
    is_routing: bool,
    /// The PENDING tasks, highest priority first.
    waiting: Vec<Pending>,
    /// How many of the circle's tasks count towards `max_concurrent_tasks`.
    in_hand: i64,
    team: Team,
}

/// What a change may do before it routes, beyond what the database shows.
#[derive(Clone, Copy, Default)]
pub(super) struct Effects {
    /// It may add a PENDING task.
    pub(super) adds: bool,
    /// It may take a task out of hand.
    pub(super) frees: bool,
}

impl Situation {
    /// Adds the columns of [`Situation::from_row`] except the team to a select from circles. Returns the condition under
    /// which the team is needed.
    pub(super) fn select(
        select: &mut SelectStatement,
        backend: DbBackend,
        effects: Effects,
    ) -> Expr {
        use circle::Column::{AutoRoute, Id, MaxConcurrentTasks, Status};
        let is_here = Expr::col(task::Column::CircleId.as_column_ref()).equals(Id.as_column_ref());
        let in_hand = count_in(IN_HAND, &is_here);
        let is_routing = Expr::col(Status.as_column_ref())
            .eq(circle::CircleStatus::Running.to_value())
            .and(Expr::col(AutoRoute.as_column_ref()).eq(true));
        let room = Expr::col(MaxConcurrentTasks.as_column_ref());
        // In a full circle, a change that frees nothing must not read the tasks that wait.
        let has_room = if effects.frees {
            in_hand.clone().lte(room)
        } else {
            in_hand.clone().lt(room)
        };
        let waiting = Query::select()
            .from(task::Entity)
            .and_where(is_here)
            .and_where(has_status(task::TaskStatus::Pending))
            .take();
        let pending = (waiting.clone())
            .columns(PENDING.map(|(column, _)| (task::Entity, column)))
            .order_by(task::Column::PriorityRank.as_column_ref(), Order::Asc)
            .order_by(task::Column::Id.as_column_ref(), Order::Asc)
            .limit(MOST_LOOKED_AT as u64)
            .take();
        let mut needs_team = is_routing.clone().and(has_room.clone());
        if !effects.adds {
            let any = waiting.clone().expr(Expr::val(1)).take();
            needs_team = needs_team.and(Expr::exists(any));
        }
        let pending = json_rows(backend, pending, &PENDING);
        let pending = Expr::case(is_routing.clone().and(has_room), pending);
        let in_hand = Expr::case(is_routing, in_hand);
        select
            .expr_as(pending, "pending")
            .expr_as(in_hand, "in_hand");
        needs_team
    }

    pub(crate) fn from_row(row: &QueryResult) -> Result<Self, DbErr> {
        let in_hand: Option<i64> = row.try_get("", "in_hand")?;
        let mut waiting: Vec<Pending> = list_from(row, "pending")?;
        waiting.sort_by_key(|task| (task.priority_rank, task.id));
        Ok(Self {
            is_routing: in_hand.is_some(),
            waiting,
            in_hand: in_hand.unwrap_or_default(),
            team: Team::from_row(row)?,
        })
    }

    /// Takes over the effects of a change of a task.
    pub(crate) fn follow(
        &mut self,
        before: Option<&task::Model>,
        after: &task::Model,
        decision: Option<bool>,
    ) {
        self.team.follow(before, after);
        if let (Some(agent), Some(is_approved)) = (after.assignee_id, decision) {
            self.team.review(agent, is_approved);
        }
        let in_hand = |task: &task::Model| i64::from(is_in_hand(task.status));
        self.in_hand += in_hand(after) - before.map_or(0, in_hand);
        self.waiting.retain(|task| task.id != after.id);
        if after.status == task::TaskStatus::Pending {
            let key = (after.priority_rank, after.id);
            let at = self
                .waiting
                .partition_point(|task| (task.priority_rank, task.id) < key);
            self.waiting.insert(at, after.into());
            self.waiting.truncate(MOST_LOOKED_AT);
        }
    }

    /// Whether a later change need not read the tasks that wait: none was left out.
    pub(crate) fn is_whole(&self) -> bool {
        self.waiting.len() < MOST_LOOKED_AT
    }

    /// Routes the PENDING tasks in order of priority, up to `max_concurrent_tasks`. The others keep waiting.
    pub(crate) fn route(&mut self, circle: &circle::Model) -> Vec<Routed> {
        let mut routed = Vec::new();
        if !self.is_routing {
            return routed;
        }
        let mut waiting = mem::take(&mut self.waiting).into_iter();
        while self.in_hand < i64::from(circle.max_concurrent_tasks)
            && let Some(task) = waiting.next()
        {
            let work = Work {
                required: &task.required_competencies,
                priority_rank: task.priority_rank,
                reviewer: task.reviewer_id,
            };
            if let Some((agent, score)) = self.team.best(&work) {
                self.team.weigh(agent, 1);
                self.in_hand += 1;
                routed.push(Routed { task, agent, score });
            } else {
                self.waiting.push(task);
            }
        }
        self.waiting.extend(waiting);
        routed
    }
}

impl Routed {
    /// The event for the assignment.
    pub(crate) fn event(&self, circle: &circle::Model) -> NewEvent {
        let subject = (
            self.task.id,
            self.task.title.as_str(),
            self.task.version + 1,
        );
        let to = (self.agent, Some(self.score));
        assigned(circle, subject, Some(task::TaskStatus::Pending), to, None)
    }
}

/// The columns of [`Pending`].
const PENDING: [(&str, Stored); 6] = [
    ("id", Stored::Uuid),
    ("title", Stored::Plain),
    ("required_competencies", Stored::Json),
    ("priority_rank", Stored::Plain),
    ("reviewer_id", Stored::Uuid),
    ("version", Stored::Plain),
];

/// A task assigned to an agent who leaves the circle.
#[derive(FromQueryResult)]
struct Held {
    id: Uuid,
    title: String,
    status: task::TaskStatus,
    version: i32,
}

/// Routes the circle's PENDING tasks in order of priority, up to `max_concurrent_tasks`. Does nothing if the circle
/// is not RUNNING or does not route automatically. Call it last, with the circle locked and up to date: its writes
/// depend on the earlier ones. Takes at most two statements, regardless of the number of tasks.
pub(crate) async fn assign_pending(
    change: &mut Change<'_>,
    circle: &circle::Model,
) -> Result<(), Error> {
    if circle.status != circle::CircleStatus::Running || !circle.auto_route {
        return Ok(());
    }
    let backend = change.transaction.get_database_backend();
    let mut select = circle::Entity::find_by_id(circle.id)
        .select_only()
        .into_query();
    let needs_team = Situation::select(&mut select, backend, Effects::default());
    Team::select(&mut select, backend, needs_team);
    let row = change.transaction.query_one(&select).await?;
    let row = row.ok_or_else(Error::conflict)?;
    let mut situation = Situation::from_row(&row)?;
    let routed = situation.route(circle);
    if let Some(update) = give(backend, change.now, &routed) {
        let updated = update.exec(&change.transaction).await?;
        if updated.rows_affected != routed.len() as u64 {
            return Err(Error::conflict());
        }
    }
    for one in &routed {
        change.append(one.event(circle));
    }
    Ok(())
}

/// As [`assign_pending`], for a draft that has changed the task `own`, which may be routed itself. `situation` is that
/// after the change.
pub(super) fn assign(
    change: &mut Change<'_, Draft>,
    circle: &circle::Model,
    situation: &mut Situation,
    own: &mut task::Model,
) {
    let mut others = situation.route(circle);
    for one in &others {
        change.append(one.event(circle));
        if one.task.id == own.id {
            own.status = task::TaskStatus::Assigned;
            own.assignee_id = Some(one.agent);
            own.status_note = None;
            own.version += 1;
        }
    }
    others.retain(|one| one.task.id != own.id);
    if let Some(update) = give(change.backend(), change.now, &others) {
        change.update(update);
    }
}

/// Releases the tasks of an agent who leaves a circle: tasks that are assigned, blocked or returned from a review
/// become PENDING and are routed again. Reviews are kept; a task that is submitted later gets another reviewer if
/// its reviewer is no longer a member.
///
/// Call it with the circle locked, after the membership was deactivated, so that no task is routed back. If the
/// agent has work in progress or in review, the result is `IN_USE` and the change must be dropped.
pub(crate) async fn release(
    change: &mut Change<'_>,
    circle: &circle::Model,
    agent: Uuid,
) -> Result<(), Stop> {
    use task::TaskStatus::{Assigned, Blocked, ChangesRequested, InProgress, InReview};
    let held = task::Entity::find()
        .select_only()
        .columns([
            task::Column::Id,
            task::Column::Title,
            task::Column::Status,
            task::Column::Version,
        ])
        .filter(task::Column::CircleId.eq(circle.id))
        .filter(task::Column::AssigneeId.eq(agent))
        .filter(task::Column::Status.is_in([
            Assigned,
            Blocked,
            ChangesRequested,
            InProgress,
            InReview,
        ]))
        .order_by_asc(task::Column::Id)
        .into_model::<Held>()
        .all(&change.transaction)
        .await?;
    if held
        .iter()
        .any(|task| matches!(task.status, InProgress | InReview))
    {
        let message = "The agent has work in progress or in review in this circle.";
        return Err(UserError::general(UserErrorCode::InUse, message).into());
    }
    if !held.is_empty() {
        task::Entity::update_many()
            .col_expr(
                task::Column::Status,
                Expr::value(task::TaskStatus::Pending.to_value()),
            )
            .col_expr(task::Column::AssigneeId, Expr::value(None::<Uuid>))
            .col_expr(task::Column::StatusNote, Expr::value(None::<String>))
            .col_expr(
                task::Column::Version,
                Expr::col(task::Column::Version).add(1),
            )
            .col_expr(task::Column::UpdatedAt, Expr::value(change.now))
            .filter(task::Column::CircleId.eq(circle.id))
            .filter(task::Column::AssigneeId.eq(agent))
            .filter(task::Column::Status.is_in([Assigned, Blocked, ChangesRequested]))
            .exec(&change.transaction)
            .await?;
        for task in &held {
            let subject = (task.id, task.title.as_str(), task.version + 1);
            let from = (task.status, Some(agent));
            change.append(unassigned(circle, subject, from, None));
        }
        assign_pending(change, circle).await?;
    }
    Ok(())
}

/// Assigns PENDING tasks to agents, in one statement. `None` without tasks.
pub(super) fn give(
    backend: DbBackend,
    now: DateTime<Utc>,
    tasks: &[Routed],
) -> Option<UpdateMany<task::Entity>> {
    if tasks.is_empty() {
        return None;
    }
    let mut to = CaseStatement::new();
    for one in tasks {
        to = to.case(task::Column::Id.eq(one.task.id), Expr::val(one.agent));
    }
    let ids: Vec<Uuid> = tasks.iter().map(|one| one.task.id).collect();
    let update = task::Entity::update_many()
        .col_expr(
            task::Column::Status,
            Expr::value(task::TaskStatus::Assigned.to_value()),
        )
        .col_expr(task::Column::AssigneeId, to.into())
        .col_expr(task::Column::StatusNote, Expr::value(None::<String>))
        .col_expr(
            task::Column::Version,
            Expr::col(task::Column::Version).add(1),
        )
        .col_expr(task::Column::UpdatedAt, Expr::value(now))
        .filter(is_among(backend, task::Column::Id.as_column_ref(), &ids))
        .filter(task::Column::Status.eq(task::TaskStatus::Pending));
    Some(update)
}
