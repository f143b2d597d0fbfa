//! Events about circles, their sharing and their members.

use crate::agent::Agent;
use crate::circle::CircleStatus;
use crate::circle::CollaboratorRole;
use crate::circle::members::MemberRole;
use crate::user::User;
use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::{event, member, user};

use crate::{
    error::Error,
    event::{EventDetails, Payload},
    id::Kind,
    request::RequestExt,
};

/// A change of a circle.
pub struct CircleChange(Arc<event::Model>);

impl From<Arc<event::Model>> for CircleChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for CircleChange {
    const NAME: &'static str = "CircleEvent";
}

#[Object]
impl CircleChange {
    /// The id of the circle, even if the circle has been deleted.
    async fn circle_id(&self) -> ID {
        Kind::Circle.id(self.0.subject_id)
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<CircleStatus> {
        self.0
            .value::<gathering_entity::circle::CircleStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<CircleStatus> {
        self.0
            .value::<gathering_entity::circle::CircleStatus>("toStatus")
            .map(Into::into)
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a circle's sharing.
pub struct SharingChange(Arc<event::Model>);

impl From<Arc<event::Model>> for SharingChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for SharingChange {
    const NAME: &'static str = "SharingEvent";
}

#[Object]
impl SharingChange {
    /// The id of the circle, even if the circle has been deleted.
    async fn circle_id(&self) -> ID {
        Kind::Circle.id(self.0.subject_id)
    }

    /// The user with whom the circle was shared or is no longer shared.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.uuid("userId") else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
    }

    /// The role of the user after the change; null if the circle is no longer shared.
    async fn role(&self) -> Option<CollaboratorRole> {
        self.0
            .value::<gathering_entity::collaborator::CollaboratorRole>("role")
            .map(Into::into)
    }
}

/// A change of a member.
pub struct MemberChange(Arc<event::Model>);

impl From<Arc<event::Model>> for MemberChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for MemberChange {
    const NAME: &'static str = "MemberEvent";
}

#[Object]
impl MemberChange {
    /// The id of the circle, even if the circle has been deleted.
    async fn circle_id(&self) -> Result<ID, Error> {
        self.0
            .circle_id
            .map(|id| Kind::Circle.id(id))
            .ok_or_else(Error::internal)
    }

    /// The id of the membership.
    async fn member_id(&self) -> ID {
        Kind::Member.id(self.0.subject_id)
    }

    /// The id of the agent, even if the agent has been deleted.
    async fn agent_id(&self) -> Result<ID, Error> {
        self.0
            .agent_id
            .or_else(|| self.0.uuid("agentId"))
            .map(|id| Kind::Agent.id(id))
            .ok_or_else(Error::internal)
    }

    /// The agent in its current state; null if it has been deleted or the viewer may not read it.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.agent_id.or_else(|| self.0.uuid("agentId"))).await
    }

    /// The role of the agent in the circle.
    async fn role(&self) -> MemberRole {
        self.0
            .value::<gathering_entity::member::MemberRole>("role")
            .unwrap_or(member::MemberRole::Member)
            .into()
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}
