//! Events about circles, their sharing and their members.

use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::{circle, collaborator, event, member};
use sea_orm::ActiveEnum;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    agent::Agent,
    circle::{CircleStatus, CollaboratorRole, members::MemberRole},
    error::Error,
    event::{EventDetails, Payload, user_in},
    events::{EventType, NewEvent},
    id::Kind,
    user::User,
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
            .value::<circle::CircleStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<CircleStatus> {
        self.0
            .value::<circle::CircleStatus>("toStatus")
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
        user_in(ctx, &self.0, "userId").await
    }

    /// The role of the user after the change; null if the circle is no longer shared.
    async fn role(&self) -> Option<CollaboratorRole> {
        self.0
            .value::<collaborator::CollaboratorRole>("role")
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
            .value::<member::MemberRole>("role")
            .unwrap_or(member::MemberRole::Member)
            .into()
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

fn circle_event(kind: EventType, row: &circle::Model, payload: Value) -> NewEvent {
    NewEvent::new(kind, row.id, payload)
        .owner(row.owner_id)
        .circle(row.id)
        .project(row.project_id)
}

/// The event for a circle that was created, updated or deleted.
pub(super) fn edited(kind: EventType, row: &circle::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "name": row.name, "changed": changed, "version": row.version });
    circle_event(kind, row, payload)
}

/// The event for a changed circle status.
pub(super) fn moved(
    kind: EventType,
    row: &circle::Model,
    before: circle::CircleStatus,
) -> NewEvent {
    let payload = json!({
        "name": row.name,
        "fromStatus": before.to_value(),
        "toStatus": row.status.to_value(),
        "version": row.version,
    });
    circle_event(kind, row, payload)
}

/// The event for a circle with a new owner.
pub(super) fn owner_changed(row: &circle::Model, from: Uuid) -> NewEvent {
    let payload = json!({
        "name": row.name,
        "changed": ["owner"],
        "version": row.version,
        "previousOwnerId": Kind::User.id(from).as_str(),
        "newOwnerId": Kind::User.id(row.owner_id).as_str(),
    });
    circle_event(EventType::CircleOwnerChanged, row, payload)
}

/// The event for a changed collaborator. Delivered to the user concerned, even if that user cannot read the circle.
pub(super) fn collaboration(
    kind: EventType,
    row: &circle::Model,
    user: Uuid,
    role: Option<collaborator::CollaboratorRole>,
) -> NewEvent {
    let payload = json!({
        "userId": Kind::User.id(user).as_str(),
        "role": role.map(|role| role.to_value()),
        "version": row.version,
    });
    circle_event(kind, row, payload).owner(user)
}

/// The event for a changed membership.
pub(super) fn membership(
    kind: EventType,
    circle: &circle::Model,
    row: &member::Model,
    changed: &[&str],
) -> NewEvent {
    let payload = json!({
        "circleId": Kind::Circle.id(row.circle_id).as_str(),
        "agentId": Kind::Agent.id(row.agent_id).as_str(),
        "role": row.role.to_value(),
        "changed": changed,
        "updatedAt": row.updated_at,
    });
    NewEvent::new(kind, row.id, payload)
        .owner(circle.owner_id)
        .circle(circle.id)
        .project(circle.project_id)
        .agent(row.agent_id)
}
