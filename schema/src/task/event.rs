//! Events about tasks.

use crate::task::Agent;
use crate::task::Task;
use crate::task::TaskStatus;
use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::event;

use crate::{
    error::Error,
    event::{EventDetails, Payload},
    id::Kind,
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
        Task::readable(ctx, Some(self.0.subject_id)).await
    }

    /// The title at the time of the event.
    async fn title(&self) -> &str {
        self.0.text("title").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<TaskStatus> {
        self.0
            .value::<gathering_entity::task::TaskStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<TaskStatus> {
        self.0
            .value::<gathering_entity::task::TaskStatus>("toStatus")
            .map(Into::into)
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
