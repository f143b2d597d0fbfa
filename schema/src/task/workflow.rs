//! Status transitions of tasks, and their effects on agents and on other tasks.

use async_graphql::Context;
use chrono::{DateTime, Utc};
use gathering_entity::{
    agent, circle,
    task::{
        self,
        TaskStatus::{
            self, Assigned, Blocked, Cancelled, ChangesRequested, Completed, Failed, InProgress,
            InReview, Pending,
        },
    },
};
use sea_orm::{
    ActiveEnum, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Set, TryIntoModel,
    sea_query::{Expr, ExprTrait},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    circle::check_open,
    data::{Change, Draft, Outcome, check_version, draft},
    error::Error,
    events::{EventType, NewEvent},
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    task::{
        event::{about, assigned, unassigned},
        inputs::{Action, AssignTaskInput},
        routing::{self, Effects, is_in_hand},
        scene::{Assignee, Reads, References, Scene},
        team::best_match,
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
    // Whether the transition may let the circle route tasks.
    let may_route = match transition.to {
        Pending | InReview | Blocked | Completed | Failed | Cancelled => true,
        Assigned | InProgress | ChangesRequested => false,
    };
    draft(ctx, Some(id), async |mut change| {
        // A key of an agent reviews as this agent.
        let of_key = change.viewer.agent().filter(|_| decision.is_some());
        let reviewer = reviewer.or(of_key);
        if of_key.is_some() && reviewer != of_key {
            return Err(Error::another_agent("reviewerId").into());
        }
        let reads = Reads {
            references: References {
                agents: vec![("reviewerId", reviewer)],
                ..References::default()
            },
            agent: reviewer,
            assignee: transition.to != Pending,
            team: (transition.to == InReview).then(|| task::Column::RequiresReview.eq(true)),
            routing: may_route.then_some(Effects {
                adds: transition.to == Pending,
                frees: true,
            }),
        };
        let scene = Scene::read(&mut change, id, "taskId", reads).await?;
        let (circle, task) = (scene.circle, scene.task);
        check_open(&circle)?;
        check_version(action.expected_version, task.version)?;
        transition.check("task", task.status, &task.status.to_value())?;
        let mut check = Check::default();
        let mut new = task.clone().into_active_model();
        let note = action.details.write(&mut check, &mut new);
        scene.references.check_agents(&mut check, |_| true)?;
        check_reviewer(&mut check, reviewer, task.assignee_id);
        check.faults()?;
        let status = enter(&mut new, transition, &task, change.now);
        if reviewer.is_some() {
            new.reviewer_id = Set(reviewer);
        }
        if status == InReview && !scene.is_member {
            let team = scene.team.unwrap_or_default();
            new.reviewer_id = Set(team.reviewer(task.review_type, task.assignee_id));
        } else if decision.is_some() && !scene.is_member {
            // A reviewer that has left the circle has not reviewed the task; the calling user has.
            new.reviewer_id = Set(None);
        }
        new.version = Set(task.version + 1);
        new.updated_at = Set(change.now);
        let mut after = new.try_into_model()?;
        append(
            &mut change,
            &circle,
            transition.event,
            (&task, &after),
            note.as_deref(),
        );
        if let Some(assignee) = &scene.assignee {
            let between = (task.status, status);
            involve(&mut change, &circle, assignee, between, decision);
        }
        let is_let_go = is_in_hand(task.status) && !is_in_hand(status);
        if let Some(mut situation) = scene.situation
            && (is_let_go || status == Pending)
        {
            situation.follow(Some(&task), &after, decision);
            routing::assign(&mut change, &circle, &mut situation, &mut after);
        }
        change.update_row(id, &task, &after);
        Ok(change.commit(vec![id]).await?.with_row(after))
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
    change: &mut Change<'_, Draft>,
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
    draft(ctx, Some(id), async |mut change| {
        let reads = Reads {
            references: References {
                agents: vec![("agentId", agent)],
                ..References::default()
            },
            team: agent.is_none().then(|| Expr::val(true)),
            ..Reads::default()
        };
        let scene = Scene::read(&mut change, id, "taskId", reads).await?;
        let (circle, task) = (scene.circle, scene.task);
        check_open(&circle)?;
        check_version(input.expected_version, task.version)?;
        ASSIGN.check("task", task.status, &task.status.to_value())?;
        let mut check = Check::default();
        if agent.is_some() && agent == task.reviewer_id {
            let message = "The agent is the reviewer of the task.";
            check.fault("agentId", UserErrorCode::Invalid, message);
        } else {
            scene.references.check_agents(&mut check, |_| true)?;
        }
        check.faults()?;
        let best = |team| best_match(team, &task);
        let best = scene.team.and_then(best);
        let to = agent.map(|agent| (agent, None));
        let to = to.or(best.map(|(agent, score)| (agent, Some(score))));
        let (agent, score) = to.ok_or_else(|| {
            let message = "No member of the circle fits the task.";
            UserError::new("agentId", UserErrorCode::Invalid, message)
        })?;
        if task.status == Assigned && task.assignee_id == Some(agent) {
            let message = "The task is already assigned to this agent.";
            return Err(UserError::bad_transition(message).into());
        }
        let after = task::Model {
            status: ASSIGN.to,
            assignee_id: Some(agent),
            status_note: None,
            version: task.version + 1,
            updated_at: change.now,
            ..task.clone()
        };
        change.update_row(id, &task, &after);
        let subject = (id, task.title.as_str(), after.version);
        let (from, left) = (Some(task.status), task.assignee_id);
        change.append(assigned(&circle, subject, from, (agent, score), left));
        Ok(change.commit(vec![id]).await?.with_row(after))
    })
    .await
}

fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> i32 {
    let seconds = (to - from).num_seconds().clamp(0, i32::MAX.into());
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// Updates the assignee after a transition of its task: the time of activity, the status (`BUSY` while a task is
/// `IN_PROGRESS`), and the review counts.
fn involve(
    change: &mut Change<'_, Draft>,
    circle: &circle::Model,
    assignee: &Assignee,
    (from, to): (TaskStatus, TaskStatus),
    decision: Option<bool>,
) {
    use agent::Column::{Id, LastActiveAt, ReviewsApproved, ReviewsTotal, Status, UpdatedAt};
    let agent = assignee.id;
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
        // Tasks in other circles may start or end at the same time. They change the revision of the agent.
        change.hold::<agent::Entity>(agent, &assignee.revision);
        let status = match assignee.status {
            agent::AgentStatus::Offline => agent::AgentStatus::Offline,
            _ if to == at_work || assignee.is_at_work => agent::AgentStatus::Busy,
            _ => agent::AgentStatus::Idle,
        };
        if status != assignee.status {
            update = update.col_expr(Status, Expr::value(status.to_value()));
            let payload = json!({
                "name": assignee.name,
                "fromStatus": assignee.status.to_value(),
                "toStatus": status.to_value(),
                "version": assignee.version,
            });
            // Delivered to the readers of the circle and to the owner of the agent.
            let new_event = about(
                circle,
                NewEvent::new(EventType::AgentStatusChanged, agent, payload),
            );
            change.append(new_event.owner(assignee.owner_id).agent(agent));
        }
    }
    change.update(update);
}

/// Checks that the reviewer is not the assignee.
pub(super) fn check_reviewer(check: &mut Check, reviewer: Option<Uuid>, assignee: Option<Uuid>) {
    if reviewer.is_some() && reviewer == assignee {
        let message = "The reviewer must not be the assignee.";
        check.fault("reviewerId", UserErrorCode::Invalid, message);
    }
}
