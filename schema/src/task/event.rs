//! Events about tasks.

use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::{circle, event, task};
use sea_orm::ActiveEnum;
use serde_json::json;
use uuid::Uuid;

use crate::{
    agent::Agent,
    data::load,
    error::Error,
    event::{EventDetails, Payload},
    events::{EventType, NewEvent},
    id::Kind,
    request::RequestExt,
    task::{Task, TaskStatus},
};

/// A change of a task.
pub struct TaskChange(Arc<event::Model>);

impl From<Arc<event::Model>> for TaskChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for TaskChange {
    const NAME: &'static str = "TaskEvent";
}

#[Object]
impl TaskChange {
    /// The id of the task, even if the task has been deleted.
    async fn task_id(&self) -> ID {
        Kind::Task.id(self.0.subject_id)
    }

    /// The task in its current state; null if it has been deleted.
    async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>, Error> {
        load(ctx.request(), self.0.subject_id).await
    }

    /// The title at the time of the event.
    async fn title(&self) -> &str {
        self.0.text("title").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<TaskStatus> {
        self.0
            .value::<task::TaskStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<TaskStatus> {
        self.0.value::<task::TaskStatus>("toStatus").map(Into::into)
    }

    /// The assignee after the change; null if there is none or the viewer may not read it.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.uuid("assigneeId")).await
    }

    /// The reviewer after the change; null if there is none or the viewer may not read it.
    async fn reviewer(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.uuid("reviewerId")).await
    }

    /// The score of the assignee when the task was routed.
    async fn routing_score(&self) -> Option<f64> {
        self.0.payload.get("routingScore")?.as_f64()
    }

    /// The note or reason given with the change.
    async fn note(&self) -> Option<&str> {
        self.0.text("note")
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// The event for a task that was created, updated or deleted.
pub(super) fn edited(
    kind: EventType,
    circle: &circle::Model,
    row: &task::Model,
    changed: &[&str],
) -> NewEvent {
    let payload = json!({
        "title": row.title,
        "priority": row.priority.to_value(),
        "toStatus": row.status.to_value(),
        "changed": changed,
        "version": row.version,
    });
    about(circle, NewEvent::new(kind, row.id, payload)).agent(row.assignee_id)
}

/// The event for a task that got an assignee: with the score if it was routed, without a previous status if it is new,
/// and with the previous assignee if there was one.
pub(super) fn assigned(
    circle: &circle::Model,
    (id, title, version): (Uuid, &str, i32),
    from: Option<task::TaskStatus>,
    (agent, score): (Uuid, Option<f64>),
    left: Option<Uuid>,
) -> NewEvent {
    let mut payload = json!({
        "title": title,
        "fromStatus": from.map(|status| status.to_value()),
        "toStatus": task::TaskStatus::Assigned.to_value(),
        "assigneeId": Kind::Agent.id(agent),
        "routingScore": score,
        "version": version,
    });
    if let Some(left) = left {
        payload["fromAssigneeId"] = json!(Kind::Agent.id(left));
    }
    about(circle, NewEvent::new(EventType::TaskAssigned, id, payload)).agent(agent)
}

/// The event for a task that was taken from its assignee and is PENDING again.
pub(super) fn unassigned(
    circle: &circle::Model,
    (id, title, version): (Uuid, &str, i32),
    (from, agent): (task::TaskStatus, Option<Uuid>),
    note: Option<&str>,
) -> NewEvent {
    let payload = json!({
        "title": title,
        "fromStatus": from.to_value(),
        "toStatus": task::TaskStatus::Pending.to_value(),
        "assigneeId": null,
        "routingScore": null,
        "note": note,
        "version": version,
    });
    about(
        circle,
        NewEvent::new(EventType::TaskUnassigned, id, payload),
    )
    .agent(agent)
}

/// Addresses an event to the readers of a circle.
pub(super) fn about(circle: &circle::Model, new_event: NewEvent) -> NewEvent {
    new_event
        .owner(circle.owner_id)
        .circle(circle.id)
        .project(circle.project_id)
}
