//! Events about agents.

use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::{agent, event};
use sea_orm::ActiveEnum;
use serde_json::json;
use uuid::Uuid;

use crate::{
    agent::{Agent, AgentStatus},
    error::Error,
    event::{EventDetails, Payload, user_in},
    events::{EventType, NewEvent},
    id::Kind,
    user::User,
};

/// A change of an agent.
pub struct AgentChange(Arc<event::Model>);

impl From<Arc<event::Model>> for AgentChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for AgentChange {
    const NAME: &'static str = "AgentEvent";
}

#[Object]
impl AgentChange {
    /// The id of the agent, even if the agent has been deleted.
    async fn agent_id(&self) -> ID {
        Kind::Agent.id(self.0.subject_id)
    }

    /// The agent in its current state; null if it has been deleted or the viewer may not read it.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, Some(self.0.subject_id)).await
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<AgentStatus> {
        self.0
            .value::<agent::AgentStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<AgentStatus> {
        self.0
            .value::<agent::AgentStatus>("toStatus")
            .map(Into::into)
    }

    /// The owner before the change; null if the owner has not changed.
    async fn previous_owner(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        user_in(ctx, &self.0, "previousOwnerId").await
    }

    /// The owner after the change; null if the owner has not changed.
    async fn new_owner(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        user_in(ctx, &self.0, "newOwnerId").await
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// The event for a created, updated or deleted agent.
pub(super) fn changed(kind: EventType, row: &agent::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "name": row.name, "changed": changed, "version": row.version });
    NewEvent::new(kind, row.id, payload)
        .owner(row.owner_id)
        .agent(row.id)
}

/// The event for a changed agent status.
pub(super) fn status_changed(row: &agent::Model, from: agent::AgentStatus) -> NewEvent {
    let payload = json!({
        "name": row.name,
        "fromStatus": from.to_value(),
        "toStatus": row.status.to_value(),
        "version": row.version,
    });
    NewEvent::new(EventType::AgentStatusChanged, row.id, payload)
        .owner(row.owner_id)
        .agent(row.id)
}

/// The event for an agent with a new owner.
pub(super) fn owner_changed(row: &agent::Model, from: Uuid) -> NewEvent {
    let payload = json!({
        "name": row.name,
        "changed": ["owner"],
        "version": row.version,
        "previousOwnerId": Kind::User.id(from).as_str(),
        "newOwnerId": Kind::User.id(row.owner_id).as_str(),
    });
    NewEvent::new(EventType::AgentOwnerChanged, row.id, payload)
        .owner(row.owner_id)
        .agent(row.id)
}
