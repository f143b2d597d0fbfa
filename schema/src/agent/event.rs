//! Events about agents.

use crate::agent::Agent;
use crate::agent::AgentStatus;
use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::event;

use crate::{
    error::Error,
    event::{EventDetails, Payload},
    id::Kind,
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
            .value::<gathering_entity::agent::AgentStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<AgentStatus> {
        self.0
            .value::<gathering_entity::agent::AgentStatus>("toStatus")
            .map(Into::into)
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}
