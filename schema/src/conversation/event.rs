//! Events about conversations and messages.

use std::sync::Arc;

use async_graphql::{Context, ID, Object};
use gathering_entity::{circle, conversation, event};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    conversation::{Conversation, ConversationStatus, messages::Message},
    data::load,
    error::Error,
    event::{EventDetails, Payload},
    events::{EventType, NewEvent},
    id::Kind,
    request::RequestExt,
};

/// The circle and project of a conversation, and the user to whom its events are addressed.
#[derive(Clone, Copy)]
pub(crate) struct EventScope {
    owner: Uuid,
    circle: Option<Uuid>,
    project: Option<Uuid>,
}

impl EventScope {
    /// Events in a circle are addressed to the circle's owner, because the conversation's owner may have lost access to
    /// the circle.
    pub(super) fn of(row: &conversation::Model, circle: Option<&circle::Model>) -> Self {
        circle.map_or(
            Self {
                owner: row.owner_id,
                circle: None,
                project: None,
            },
            Self::in_circle,
        )
    }

    pub(super) fn in_circle(circle: &circle::Model) -> Self {
        Self {
            owner: circle.owner_id,
            circle: Some(circle.id),
            project: circle.project_id,
        }
    }

    /// Creates an event in this scope.
    pub(super) fn new_event(self, kind: EventType, subject: Uuid, payload: Value) -> NewEvent {
        NewEvent::new(kind, subject, payload)
            .owner(self.owner)
            .circle(self.circle)
            .project(self.project)
    }

    /// Creates an event of a conversation: `payload`, which must be an object, extended by topic and version.
    pub(super) fn conversation_event(
        self,
        kind: EventType,
        row: &conversation::Model,
        mut payload: Value,
    ) -> NewEvent {
        payload["topic"] = json!(row.topic);
        payload["version"] = json!(row.version);
        self.new_event(kind, row.id, payload)
    }
}

/// A change of a conversation.
pub struct ConversationChange(Arc<event::Model>);

impl From<Arc<event::Model>> for ConversationChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for ConversationChange {
    const NAME: &'static str = "ConversationEvent";
}

#[Object]
impl ConversationChange {
    /// The id of the conversation, even if the conversation has been deleted.
    async fn conversation_id(&self) -> ID {
        Kind::Conversation.id(self.0.subject_id)
    }

    /// The conversation in its current state; null if it has been deleted.
    async fn conversation(&self, ctx: &Context<'_>) -> Result<Option<Conversation>, Error> {
        load(ctx.request(), self.0.subject_id).await
    }

    /// The topic at the time of the event.
    async fn topic(&self) -> &str {
        self.0.text("topic").unwrap_or_default()
    }

    /// The status before the change.
    async fn from_status(&self) -> Option<ConversationStatus> {
        self.0
            .value::<conversation::ConversationStatus>("fromStatus")
            .map(Into::into)
    }

    /// The status after the change.
    async fn to_status(&self) -> Option<ConversationStatus> {
        self.0
            .value::<conversation::ConversationStatus>("toStatus")
            .map(Into::into)
    }

    /// The number of the turn.
    async fn turn(&self) -> Option<i32> {
        self.0.number("turn")
    }

    /// The reason for the end.
    async fn reason(&self) -> Option<&str> {
        self.0.text("reason")
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}

/// A change of a message.
pub struct MessageChange(Arc<event::Model>);

impl From<Arc<event::Model>> for MessageChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for MessageChange {
    const NAME: &'static str = "MessageEvent";
}

#[Object]
impl MessageChange {
    /// The id of the conversation, even if the conversation has been deleted.
    async fn conversation_id(&self) -> Result<ID, Error> {
        let id = self.0.uuid("conversationId").ok_or_else(Error::internal)?;
        Ok(Kind::Conversation.id(id))
    }

    /// The conversation in its current state; null if it has been deleted.
    async fn conversation(&self, ctx: &Context<'_>) -> Result<Option<Conversation>, Error> {
        let Some(id) = self.0.uuid("conversationId") else {
            return Ok(None);
        };
        load(ctx.request(), id).await
    }

    /// The id of the message.
    async fn message_id(&self) -> ID {
        Kind::Message.id(self.0.subject_id)
    }

    /// The message; null if it has been deleted.
    async fn message(&self, ctx: &Context<'_>) -> Result<Option<Message>, Error> {
        load(ctx.request(), self.0.subject_id).await
    }

    /// The sequence number in the conversation.
    async fn seq(&self) -> i32 {
        self.0.number("seq").unwrap_or_default()
    }

    /// The beginning of the content, at most 200 characters.
    async fn excerpt(&self) -> &str {
        self.0.text("excerpt").unwrap_or_default()
    }

    /// Whether the message was pinned, with `MESSAGE_PINNED`; null with `MESSAGE_ADDED`.
    async fn is_pinned(&self) -> Option<bool> {
        self.0.flag("isPinned")
    }
}
