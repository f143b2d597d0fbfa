//! Status changes of circles, and their effects on tasks, conversations and agents.

use async_graphql::Context;
use circle::CircleStatus::{self, Archived, Created, Paused, Running, Stopped};
use gathering_entity::{agent, circle, task};
use sea_orm::{
    ActiveEnum, ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel,
    ModelTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Set,
    sea_query::{Expr, LockType},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    circle::{
        Access, accessible,
        event::{edited, moved},
        inputs::CircleActionInput,
        sharing,
    },
    conversation,
    data::{Change, Outcome, change, check_version, unique},
    db::is_among,
    error::Error,
    events::{EventType, NewEvent},
    id::Kind,
    input::{UserError, UserErrorCode},
    task::routing,
    workflow::Transition,
};

pub(super) const START: Transition<CircleStatus> = Transition {
    from: &[Created, Paused, Stopped],
    to: Running,
    event: EventType::CircleStarted,
    verb: "started",
};
pub(super) const PAUSE: Transition<CircleStatus> = Transition {
    from: &[Running],
    to: Paused,
    event: EventType::CirclePaused,
    verb: "paused",
};
pub(super) const STOP: Transition<CircleStatus> = Transition {
    from: &[Running, Paused],
    to: Stopped,
    event: EventType::CircleStopped,
    verb: "stopped",
};
pub(super) const ARCHIVE: Transition<CircleStatus> = Transition {
    from: &[Created, Stopped],
    to: Archived,
    event: EventType::CircleArchived,
    verb: "archived",
};
pub(super) const RESTORE: Transition<CircleStatus> = Transition {
    from: &[Archived],
    to: Stopped,
    event: EventType::CircleRestored,
    verb: "restored",
};

/// Makes a status transition, which requires at least the access `least`.
pub(super) async fn run(
    ctx: &Context<'_>,
    input: &CircleActionInput,
    transition: Transition<CircleStatus>,
    least: Access,
) -> Result<Outcome, Error> {
    let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
    change(ctx, Some(id), async |mut change| {
        let row = accessible(&change, id, "circleId", least).await?;
        check_version(input.expected_version, row.version)?;
        let before = row.status;
        transition.check("circle", before, &before.to_value())?;
        let version = row.version + 1;
        let mut new = row.into_active_model();
        new.status = Set(transition.to);
        new.version = Set(version);
        new.updated_at = Set(change.now);
        match (before, transition.to) {
            (Archived, _) => new.archived_at = Set(None),
            (_, Running) => new.started_at = Set(Some(change.now)),
            (_, Stopped) => new.stopped_at = Set(Some(change.now)),
            (_, Archived) => new.archived_at = Set(Some(change.now)),
            (_, Created | Paused) => {}
        }
        let row = unique(new.update(&change.transaction).await, || {
            let message = "The owner already has another circle with this name.";
            UserError::general(UserErrorCode::Taken, message)
        })?;
        change.append(moved(transition.event, &row, before));
        match (before, transition.to) {
            (_, Running) => routing::assign_pending(&mut change, &row).await?,
            (Archived, _) | (_, Created | Paused) => {}
            (_, Stopped | Archived) => conversation::workflow::pause_all(&mut change, &row).await?,
        }
        change.commit(vec![id]).await
    })
    .await
}

/// Checks that the status of a circle allows its deletion.
pub(super) fn check_deletable(circle: &circle::Model) -> Result<(), UserError> {
    if [Created, Stopped, Archived].contains(&circle.status) {
        Ok(())
    } else {
        let status = circle.status.to_value();
        Err(UserError::cannot("circle", &status, "deleted"))
    }
}

/// Deletes a circle, whose row must be locked, with everything in it except its conversations.
pub(crate) async fn delete(change: &mut Change<'_>, row: circle::Model) -> Result<(), Error> {
    conversation::workflow::cancel_all(change, &row).await?;
    sharing::unshare_all(change, &row).await?;
    change.append(edited(EventType::CircleDeleted, &row, &[]));
    free_agents(change, row.id).await?;
    row.delete(&change.transaction).await?;
    Ok(())
}

/// Sets busy agents to idle if all their tasks in progress are in a circle that is being deleted.
async fn free_agents(change: &mut Change<'_>, circle: Uuid) -> Result<(), Error> {
    use agent::{AgentStatus, Column};
    let in_progress = || {
        task::Entity::find()
            .select_only()
            .column(task::Column::AssigneeId)
            .filter(task::Column::Status.eq(task::TaskStatus::InProgress))
    };
    let here = in_progress().filter(task::Column::CircleId.eq(circle));
    let mut agents: Vec<(Uuid, Uuid, String, i32)> = agent::Entity::find()
        .select_only()
        .columns([Column::Id, Column::OwnerId, Column::Name, Column::Version])
        .filter(Column::Status.eq(AgentStatus::Busy))
        .filter(Column::Id.in_subquery(here.into_query()))
        .order_by_asc(Column::Id)
        .lock(LockType::NoKeyUpdate)
        .into_tuple()
        .all(&change.transaction)
        .await?;
    if agents.is_empty() {
        return Ok(());
    }
    let backend = change.transaction.get_database_backend();
    let locked: Vec<_> = agents.iter().map(|(id, ..)| *id).collect();
    let assignee = task::Column::AssigneeId.as_column_ref();
    let elsewhere = in_progress()
        .filter(task::Column::CircleId.ne(circle))
        .filter(is_among(backend, assignee, &locked));
    let elsewhere: Vec<Uuid> = elsewhere.into_tuple().all(&change.transaction).await?;
    agents.retain(|(id, ..)| !elsewhere.contains(id));
    let free: Vec<_> = agents.iter().map(|(id, ..)| *id).collect();
    let is_among = |ids: &[Uuid]| is_among(backend, Column::Id.as_column_ref(), ids);
    let idle = Expr::value(AgentStatus::Idle.to_value());
    let status = Expr::case(is_among(&free), idle).finally(Expr::col(Column::Status));
    // The agents that stay busy are updated too: a concurrent draft depends on their revision.
    agent::Entity::update_many()
        .col_expr(Column::Status, status.into())
        .col_expr(Column::UpdatedAt, Expr::value(change.now))
        .filter(is_among(&locked))
        .exec(&change.transaction)
        .await?;
    for (id, owner, name, version) in agents {
        let payload = json!({
            "name": name,
            "fromStatus": AgentStatus::Busy.to_value(),
            "toStatus": AgentStatus::Idle.to_value(),
            "version": version,
        });
        let new_event = NewEvent::new(EventType::AgentStatusChanged, id, payload);
        change.append(new_event.owner(owner).agent(id));
    }
    Ok(())
}
