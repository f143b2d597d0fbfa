//! The status of agents, and what their deletion requires of other objects.

use gathering_entity::{agent, circle, conversation, member, participant, task};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, ModelTrait,
    QueryFilter, QueryOrder, QuerySelect, QueryTrait, Set,
    sea_query::{Expr, ExprTrait, LockType},
};
use uuid::Uuid;

use crate::{
    agent::{AgentStatus, event},
    api_key,
    circle::members::removed,
    data::{Change, Stop, unique},
    db::is_among,
    deletion::in_use,
    error::Error,
    events::EventType,
    input::{UserError, UserErrorCode},
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

/// Deletes an agent, whose row must be locked, and revokes its API keys.
///
/// # Errors
/// `IN_USE` if it has open tasks or takes part in an open conversation.
pub(crate) async fn delete(change: &mut Change<'_>, row: agent::Model) -> Result<(), Stop> {
    check_unused(change, row.id).await?;
    leave_circles(change, row.id).await?;
    api_key::revoke_of_agent(change, row.id).await?;
    change.append(event::changed(EventType::AgentDeleted, &row, &[]));
    row.delete(&change.transaction).await?;
    Ok(())
}

/// Checks that the agent has no open tasks and takes part in no open conversation.
///
/// # Errors
/// `IN_USE`.
async fn check_unused(change: &Change<'_>, agent: Uuid) -> Result<(), Stop> {
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
async fn leave_circles(change: &mut Change<'_>, agent: Uuid) -> Result<(), Error> {
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

/// Checks that the agent takes part in no open conversation outside of circles, which belongs to its owner.
///
/// # Errors
/// `IN_USE`.
pub(crate) async fn check_transferable(change: &Change<'_>, agent: Uuid) -> Result<(), Stop> {
    let private = open_conversations(agent).and(conversation::Column::CircleId.is_null());
    if change.any::<conversation::Entity>(private).await? {
        let message = "The agent takes part in conversations outside of circles that have not ended. End them first.";
        return Err(UserError::general(UserErrorCode::InUse, message).into());
    }
    Ok(())
}

/// Changes the owner of an agent, whose row must be locked. It keeps its memberships and tasks. Its API keys act for the
/// former owner, so they are revoked.
///
/// # Errors
/// `TAKEN` if another agent of the new owner has its name; `IN_USE` as [`check_transferable`].
pub(crate) async fn change_owner(
    change: &mut Change<'_>,
    row: agent::Model,
    to: Uuid,
) -> Result<(), Stop> {
    check_transferable(change, row.id).await?;
    let (from, version) = (row.owner_id, row.version);
    let mut new = row.into_active_model();
    new.owner_id = Set(to);
    new.version = Set(version + 1);
    new.updated_at = Set(change.now);
    let row = unique(new.update(&change.transaction).await, || {
        let message = "You already have an agent with this name.";
        UserError::general(UserErrorCode::Taken, message)
    })?;
    api_key::revoke_of_agent(change, row.id).await?;
    change.append(event::owner_changed(&row, from));
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
