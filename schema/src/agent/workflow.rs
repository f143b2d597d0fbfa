//! The status of agents, and what their deletion requires of other objects.

use gathering_entity::{agent, circle, conversation, member, participant, task};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, LockType},
};
use uuid::Uuid;

use crate::{
    agent::AgentStatus,
    circle::members::removed,
    data::{Change, Stop},
    db::is_among,
    deletion::in_use,
    error::Error,
};

/// The new status when the owner takes an agent offline or back into service.
pub(super) fn new_status(
    from: agent::AgentStatus,
    requested: Option<AgentStatus>,
    is_at_work: bool,
) -> agent::AgentStatus {
    use agent::AgentStatus::{Busy, Idle, Offline};
    match requested {
        Some(AgentStatus::Offline) => Offline,
        Some(AgentStatus::Idle) if from == Offline && is_at_work => Busy,
        Some(AgentStatus::Idle) if from == Offline => Idle,
        _ => from,
    }
}

/// Whether a task of the agent is `IN_PROGRESS`.
pub(super) fn is_at_work(agent: Uuid) -> Expr {
    let in_progress = task::Entity::find()
        .select_only()
        .column(task::Column::Id)
        .filter(task::Column::AssigneeId.eq(agent))
        .filter(task::Column::Status.eq(task::TaskStatus::InProgress));
    Expr::exists(in_progress.into_query())
}

/// Checks that the agent has no open tasks and takes part in no open conversation.
///
/// # Errors
/// `IN_USE`.
pub(super) async fn check_unused(change: &Change<'_>, agent: Uuid) -> Result<(), Stop> {
    if change.any::<task::Entity>(open_tasks(agent)).await? {
        let message = "The agent has open tasks. Reassign or end them first.";
        return Err(in_use(message).into());
    }
    if change
        .any::<conversation::Entity>(open_conversations(agent))
        .await?
    {
        let message = "The agent takes part in conversations that have not ended. End them first.";
        return Err(in_use(message).into());
    }
    Ok(())
}

/// Appends a `member.removed` event for each circle that a deleted agent leaves.
pub(super) async fn leave_circles(change: &mut Change<'_>, agent: Uuid) -> Result<(), Error> {
    // Locked, so that a concurrent removal does not append the same event.
    let members = member::Entity::find()
        .filter(member::Column::AgentId.eq(agent))
        .filter(member::Column::IsActive.eq(true))
        .order_by_asc(member::Column::Id)
        .lock(LockType::Update)
        .all(&change.transaction)
        .await?;
    let backend = change.transaction.get_database_backend();
    let ids: Vec<_> = members.iter().map(|row| row.circle_id).collect();
    let circles = circle::Entity::find()
        .filter(is_among(backend, circle::Column::Id.as_column_ref(), &ids))
        .all(&change.transaction)
        .await?;
    for mut row in members {
        row.updated_at = change.now;
        if let Some(circle) = circles.iter().find(|circle| circle.id == row.circle_id) {
            change.append(removed(circle, &row));
        }
    }
    Ok(())
}

/// Tasks assigned to an agent that have not ended.
fn open_tasks(agent: Uuid) -> Expr {
    use task::TaskStatus::{Assigned, Blocked, ChangesRequested, InProgress, InReview};
    let open = [Assigned, InProgress, InReview, ChangesRequested, Blocked];
    task::Column::AssigneeId
        .eq(agent)
        .and(task::Column::Status.is_in(open))
}

/// Conversations in which an agent takes part and that have not ended.
fn open_conversations(agent: Uuid) -> Expr {
    use conversation::ConversationStatus::{Active, Paused, Pending};
    let parts = participant::Entity::find()
        .select_only()
        .column(participant::Column::ConversationId)
        .filter(participant::Column::AgentId.eq(agent))
        .into_query();
    conversation::Column::Id
        .in_subquery(parts)
        .and(conversation::Column::Status.is_in([Pending, Active, Paused]))
}
