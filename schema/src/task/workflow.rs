//! Status transitions of tasks, and their effects on agents and on other tasks.

use async_graphql::Context;
use chrono::{DateTime, Utc};
use gathering_entity::{
    agent, circle, collaborator, member,
    task::{
        self,
        TaskStatus::{
            self, Assigned, Blocked, Cancelled, ChangesRequested, Completed, Failed, InProgress,
            InReview, Pending,
        },
    },
};
use sea_orm::{
    ActiveEnum, ColumnTrait, ConnectionTrait, DbErr, EntityTrait, FromQueryResult, IntoActiveModel,
    QueryFilter, QueryResult, QuerySelect, QueryTrait, Set, TryIntoModel,
    sea_query::{Expr, ExprTrait, LockType},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    circle::{Access, check_access, check_open},
    data::{Change, Outcome, change, check_version},
    db::is_among,
    error::Error,
    events::{EventType, NewEvent},
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    task::{
        event::{about, assigned, unassigned},
        inputs::{Action, AssignTaskInput},
        routing::{self, is_in_hand},
    },
    workflow::Transition,
};

const ASSIGN: Transition<TaskStatus> = Transition {
    from: &[Pending, Assigned, Blocked, ChangesRequested],
    to: Assigned,
    event: EventType::TaskAssigned,
    verb: "assigned",
};

pub(super) const UNASSIGN: Transition<TaskStatus> = Transition {
    from: &[Assigned, Blocked, ChangesRequested],
    to: Pending,
    event: EventType::TaskUnassigned,
    verb: "unassigned",
};

pub(super) const START: Transition<TaskStatus> = Transition {
    from: &[Assigned, ChangesRequested],
    to: InProgress,
    event: EventType::TaskStarted,
    verb: "started",
};

pub(super) const BLOCK: Transition<TaskStatus> = Transition {
    from: &[InProgress],
    to: Blocked,
    event: EventType::TaskBlocked,
    verb: "blocked",
};

pub(super) const UNBLOCK: Transition<TaskStatus> = Transition {
    from: &[Blocked],
    to: InProgress,
    event: EventType::TaskUnblocked,
    verb: "unblocked",
};

/// The task is `COMPLETED` after it if no review is required.
pub(super) const SUBMIT: Transition<TaskStatus> = Transition {
    from: &[InProgress],
    to: InReview,
    event: EventType::TaskSubmitted,
    verb: "submitted",
};

pub(super) const APPROVE: Transition<TaskStatus> = Transition {
    from: &[InReview],
    to: Completed,
    event: EventType::TaskApproved,
    verb: "approved",
};

pub(super) const REJECT: Transition<TaskStatus> = Transition {
    from: &[InReview],
    to: ChangesRequested,
    event: EventType::TaskRejected,
    verb: "rejected",
};

pub(super) const FAIL: Transition<TaskStatus> = Transition {
    from: &[Assigned, InProgress, InReview, ChangesRequested, Blocked],
    to: Failed,
    event: EventType::TaskFailed,
    verb: "failed",
};

pub(super) const CANCEL: Transition<TaskStatus> = Transition {
    from: &[
        Pending,
        Assigned,
        InProgress,
        InReview,
        ChangesRequested,
        Blocked,
    ],
    to: Cancelled,
    event: EventType::TaskCancelled,
    verb: "cancelled",
};

pub(super) const REOPEN: Transition<TaskStatus> = Transition {
    from: &[Failed, Cancelled],
    to: Pending,
    event: EventType::TaskReopened,
    verb: "reopened",
};

/// Performs the transition and its consequences.
pub(super) async fn perform(
    ctx: &Context<'_>,
    transition: Transition<TaskStatus>,
    action: Action<'_>,
) -> Result<Outcome, Error> {
    let id = Kind::Task.parse(action.task_id, "taskId")?;
    let reviewer = Kind::Agent.parse_opt(action.reviewer_id, "reviewerId")?;
    let decision = action.details.decision();
    change(ctx, Some(id), async |mut change| {
        let found = editable(&change, id, "taskId", reviewer).await?;
        let Found {
            circle,
            task,
            is_member,
        } = found;
        check_open(&circle)?;
        check_version(action.expected_version, task.version)?;
        transition.check("task", task.status, &task.status.to_value())?;
        let mut check = Check::default();
        let mut new = task.clone().into_active_model();
        let note = action.details.write(&mut check, &mut new);
        if !is_member {
            let agents = [("reviewerId", reviewer)];
            check_agents(&change, circle.id, &agents, &mut check).await?;
        }
        check_reviewer(&mut check, reviewer, task.assignee_id);
        check.faults()?;
        let status = enter(&mut new, transition, &task, change.now);
        if reviewer.is_some() {
            new.reviewer_id = Set(reviewer);
        }
        if status == InReview && !is_member {
            let team = routing::team(&change, circle.id).await?;
            new.reviewer_id = Set(team.reviewer(task.review_type, task.assignee_id));
        } else if decision.is_some() && !is_member {
            // A reviewer that has left the circle has not reviewed the task; the calling user has.
            new.reviewer_id = Set(None);
        }
        let after = write(&change, &task, new).await?;
        let (rows, note) = ((&task, &after), note.as_deref());
        append(&mut change, &circle, transition.event, rows, note);
        if let Some(agent) = after.assignee_id {
            let between = (task.status, status);
            involve(&mut change, &circle, agent, between, decision).await?;
        }
        let is_let_go = is_in_hand(task.status) && !is_in_hand(status);
        if is_let_go || status == Pending {
            routing::assign_pending(&mut change, &circle).await?;
        }
        change.commit(vec![id]).await
    })
    .await
}

/// Sets the status, and the columns that follow from it. Returns the new status.
fn enter(
    row: &mut task::ActiveModel,
    transition: Transition<TaskStatus>,
    task: &task::Model,
    now: DateTime<Utc>,
) -> TaskStatus {
    let status = match transition.to {
        InReview if !task.requires_review => Completed,
        status => status,
    };
    row.status = Set(status);
    match transition.event {
        EventType::TaskStarted if task.started_at.is_none() => row.started_at = Set(Some(now)),
        EventType::TaskSubmitted => row.submitted_at = Set(Some(now)),
        _ => {}
    }
    match status {
        Pending => row.assignee_id = Set(None),
        InReview => row.review_round = Set(task.review_round + 1),
        Completed => {
            row.completed_at = Set(Some(now));
            row.cycle_seconds = Set(task.started_at.map(|start| seconds(start, now)));
        }
        _ => {}
    }
    status
}

/// Appends the events of a transition.
fn append(
    change: &mut Change<'_>,
    circle: &circle::Model,
    event: EventType,
    (before, after): (&task::Model, &task::Model),
    note: Option<&str>,
) {
    if event == EventType::TaskUnassigned {
        let subject = (after.id, after.title.as_str(), after.version);
        let from = (before.status, before.assignee_id);
        change.append(unassigned(circle, subject, from, note));
        return;
    }
    let mut moved = json!({
        "title": after.title,
        "fromStatus": before.status.to_value(),
        "toStatus": after.status.to_value(),
        "assigneeId": after.assignee_id.map(|id| Kind::Agent.id(id)),
        "note": note,
        "version": after.version,
    });
    if let EventType::TaskSubmitted | EventType::TaskApproved | EventType::TaskRejected = event {
        moved["reviewerId"] = json!(after.reviewer_id.map(|id| Kind::Agent.id(id)));
        moved["round"] = json!(after.review_round);
    }
    let new_event = |event, payload| {
        about(circle, NewEvent::new(event, after.id, payload)).agent(before.assignee_id)
    };
    change.append(new_event(event, moved.clone()));
    if after.status == Completed {
        moved["note"] = json!(null);
        change.append(new_event(EventType::TaskCompleted, moved));
    }
}

/// Assigns a task to the agent of the input, or to the best-fitting member.
pub(super) async fn assign(ctx: &Context<'_>, input: &AssignTaskInput) -> Result<Outcome, Error> {
    let id = Kind::Task.parse(&input.task_id, "taskId")?;
    let agent = Kind::Agent.parse_opt(input.agent_id.as_ref(), "agentId")?;
    change(ctx, Some(id), async |mut change| {
        let found = editable(&change, id, "taskId", agent).await?;
        let Found { circle, task, .. } = found;
        check_open(&circle)?;
        check_version(input.expected_version, task.version)?;
        ASSIGN.check("task", task.status, &task.status.to_value())?;
        let mut check = Check::default();
        if agent.is_some() && agent == task.reviewer_id {
            let message = "The agent is the reviewer of the task.";
            check.fault("agentId", UserErrorCode::Invalid, message);
        } else if !found.is_member {
            let agents = [("agentId", agent)];
            check_agents(&change, circle.id, &agents, &mut check).await?;
        }
        check.faults()?;
        let to = match agent {
            Some(agent) => Some((agent, None)),
            None => routing::best_match(&change, &task).await?,
        };
        let (agent, score) = to.ok_or_else(|| {
            let message = "No member of the circle fits the task.";
            UserError::new("agentId", UserErrorCode::Invalid, message)
        })?;
        if task.status == Assigned && task.assignee_id == Some(agent) {
            let message = "The task is already assigned to this agent.";
            return Err(UserError::bad_transition(message).into());
        }
        let mut new = task.clone().into_active_model();
        new.status = Set(ASSIGN.to);
        new.assignee_id = Set(Some(agent));
        new.status_note = Set(None);
        write(&change, &task, new).await?;
        let subject = (id, task.title.as_str(), task.version + 1);
        let (from, left) = (Some(task.status), task.assignee_id);
        change.append(assigned(&circle, subject, from, (agent, score), left));
        change.commit(vec![id]).await
    })
    .await
}

fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> i32 {
    let seconds = (to - from).num_seconds().clamp(0, i32::MAX.into());
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// A task that the viewer may change, and its circle. Both are unchanged by others until the transaction ends.
pub(super) struct Found {
    pub(super) circle: circle::Model,
    pub(super) task: task::Model,
    /// Whether the given agent is an active member of the circle.
    pub(super) is_member: bool,
}

/// A task row, with the viewer's role in the circle and the membership check.
struct Seen {
    task: task::Model,
    role: Option<collaborator::CollaboratorRole>,
    is_member: bool,
}

impl FromQueryResult for Seen {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        Ok(Self {
            task: task::Model::from_query_result(row, prefix)?,
            role: row.try_get(prefix, "viewer_role")?,
            is_member: row.try_get(prefix, "is_member")?,
        })
    }
}

/// Loads a task that the viewer may change, locks its circle, and checks whether `agent`, or else the task's
/// reviewer, is an active member.
///
/// # Errors
/// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
pub(super) async fn editable(
    change: &Change<'_>,
    id: Uuid,
    field: &str,
    agent: Option<Uuid>,
) -> Result<Found, Error> {
    let of_task = task::Entity::find_by_id(id)
        .select_only()
        .column(task::Column::CircleId)
        .into_query();
    let circle = circle::Entity::find()
        .filter(circle::Column::Id.in_subquery(of_task))
        .filter(change.viewer.rules().circle.condition())
        .lock(LockType::NoKeyUpdate)
        .one(&change.transaction)
        .await?
        .ok_or_else(|| Error::not_found(field))?;
    // Only a statement that starts after the circle is locked sees the changes of concurrent transactions.
    let role = collaborator::Entity::find()
        .select_only()
        .column(collaborator::Column::Role)
        .filter(collaborator::Column::CircleId.eq(circle.id))
        .filter(collaborator::Column::UserId.eq(change.viewer.id()))
        .into_query();
    let it = Expr::col(member::Column::AgentId.as_column_ref());
    let membership = member::Entity::find()
        .select_only()
        .column(member::Column::Id)
        .filter(member::Column::CircleId.eq(circle.id))
        .filter(member::Column::IsActive.eq(true))
        .filter(match agent {
            Some(agent) => it.eq(agent),
            None => it.equals(task::Column::ReviewerId.as_column_ref()),
        })
        .into_query();
    let seen = task::Entity::find_by_id(id)
        .expr_as(Expr::from(role), "viewer_role")
        .expr_as(Expr::exists(membership), "is_member")
        .into_model::<Seen>()
        .one(&change.transaction);
    let Seen {
        task,
        role,
        is_member,
    } = seen.await?.ok_or_else(|| Error::not_found(field))?;
    check_access(change, &circle, role, field, Access::Editor)?;
    Ok(Found {
        circle,
        task,
        is_member,
    })
}

/// Writes the changed columns of a task. Returns the new row.
pub(super) async fn write(
    change: &Change<'_>,
    task: &task::Model,
    mut new: task::ActiveModel,
) -> Result<task::Model, Error> {
    new.version = Set(task.version + 1);
    new.updated_at = Set(change.now);
    let written = task::Entity::update_many()
        .set(new.clone())
        .filter(task::Column::Id.eq(task.id))
        .filter(task::Column::Status.eq(task.status))
        .filter(task::Column::Version.eq(task.version))
        .exec(&change.transaction)
        .await?;
    if written.rows_affected == 0 {
        return Err(Error::conflict());
    }
    Ok(new.try_into_model()?)
}

/// Updates the assignee after a transition of its task: the time of activity, the status (`BUSY` while a task is
/// `IN_PROGRESS`), and the review counts.
async fn involve(
    change: &mut Change<'_>,
    circle: &circle::Model,
    agent: Uuid,
    (from, to): (TaskStatus, TaskStatus),
    decision: Option<bool>,
) -> Result<(), Error> {
    use agent::Column::{Id, LastActiveAt, ReviewsApproved, ReviewsTotal, Status, UpdatedAt};
    let mut update = agent::Entity::update_many()
        .col_expr(LastActiveAt, Expr::value(change.now))
        .col_expr(UpdatedAt, Expr::value(change.now))
        .filter(Id.eq(agent));
    if let Some(is_approved) = decision {
        update = update
            .col_expr(ReviewsTotal, Expr::col(ReviewsTotal).add(1))
            .col_expr(
                ReviewsApproved,
                Expr::col(ReviewsApproved).add(i32::from(is_approved)),
            );
    }
    let at_work = InProgress;
    if (from == at_work) != (to == at_work) {
        let row = agent::Entity::find_by_id(agent)
            .lock(LockType::NoKeyUpdate)
            .one(&change.transaction)
            .await?
            .ok_or_else(Error::conflict)?;
        // Tasks in other circles may start or end at the same time. The row lock makes the later transaction see
        // the result of the earlier one.
        let status = match row.status {
            agent::AgentStatus::Offline => agent::AgentStatus::Offline,
            _ if to == at_work || is_at_work(change, agent).await? => agent::AgentStatus::Busy,
            _ => agent::AgentStatus::Idle,
        };
        if status != row.status {
            update = update.col_expr(Status, Expr::value(status.to_value()));
            let payload = json!({
                "name": row.name,
                "fromStatus": row.status.to_value(),
                "toStatus": status.to_value(),
                "version": row.version,
            });
            // Delivered to the readers of the circle and to the owner of the agent.
            let new_event = about(
                circle,
                NewEvent::new(EventType::AgentStatusChanged, agent, payload),
            );
            change.append(new_event.owner(row.owner_id).agent(agent));
        }
    }
    update.exec(&change.transaction).await?;
    Ok(())
}

/// Whether any task of an agent is `IN_PROGRESS`.
async fn is_at_work(change: &Change<'_>, agent: Uuid) -> Result<bool, Error> {
    let task: Option<Uuid> = task::Entity::find()
        .select_only()
        .column(task::Column::Id)
        .filter(task::Column::AssigneeId.eq(agent))
        .filter(task::Column::Status.eq(InProgress))
        .limit(1)
        .into_tuple()
        .one(&change.transaction)
        .await?;
    Ok(task.is_some())
}

/// Adds a fault for each agent in an input that is not an active member of the circle.
///
/// # Errors
/// `NOT_FOUND` for an agent that the viewer may not read.
pub(super) async fn check_agents(
    change: &Change<'_>,
    circle: Uuid,
    named: &[(&str, Option<Uuid>)],
    check: &mut Check,
) -> Result<(), Error> {
    let named = named
        .iter()
        .filter_map(|(field, agent)| Some((*field, (*agent)?)));
    let named: Vec<(&str, Uuid)> = named.collect();
    if named.is_empty() {
        return Ok(());
    }
    let backend = change.transaction.get_database_backend();
    let ids: Vec<Uuid> = named.iter().map(|(_, agent)| *agent).collect();
    let members: Vec<Uuid> = member::Entity::find()
        .select_only()
        .column(member::Column::AgentId)
        .filter(member::Column::CircleId.eq(circle))
        .filter(member::Column::IsActive.eq(true))
        .filter(is_among(
            backend,
            member::Column::AgentId.as_column_ref(),
            &ids,
        ))
        .into_tuple()
        .all(&change.transaction)
        .await?;
    if ids.iter().all(|agent| members.contains(agent)) {
        return Ok(());
    }
    let readable: Vec<Uuid> = agent::Entity::find()
        .select_only()
        .column(agent::Column::Id)
        .filter(change.viewer.rules().agent.condition())
        .filter(is_among(backend, agent::Column::Id.as_column_ref(), &ids))
        .into_tuple()
        .all(&change.transaction)
        .await?;
    for (field, agent) in named {
        if !readable.contains(&agent) {
            return Err(Error::not_found(field));
        }
        if !members.contains(&agent) {
            let message = "The agent is not an active member of the circle.";
            check.fault(field, UserErrorCode::NotMember, message);
        }
    }
    Ok(())
}

/// Checks that the reviewer is not the assignee.
pub(super) fn check_reviewer(check: &mut Check, reviewer: Option<Uuid>, assignee: Option<Uuid>) {
    if reviewer.is_some() && reviewer == assignee {
        let message = "The reviewer must not be the assignee.";
        check.fault("reviewerId", UserErrorCode::Invalid, message);
    }
}
