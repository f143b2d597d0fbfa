//! Messages: numbered contributions to a conversation.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, connection::EmptyFields};
use futures_util::future::try_join_all;
use gathering_entity::{conversation, message, model, user};
use sea_orm::{ColumnTrait, Condition};
use uuid::Uuid;

use crate::{
    agent::Agent, conversation::Conversation, ctx::Door, error::Error, id::Kind, model::Model,
    page::Listed, scalar::DateTime, user::User,
};

/// In what part a message was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "message::MessageRole")]
pub enum MessageRole {
    /// By a user.
    User,
    /// By an agent.
    Assistant,
    /// By the server.
    System,
    /// By a tool an agent called.
    Tool,
}

/// One contribution to a conversation.
pub struct Message(pub(crate) Arc<message::Model>);

/// One numbered contribution to a conversation. Read by whoever may read the conversation.
#[Object]
impl Message {
    /// The id of the message, `message_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Message.id(self.0.id)
    }

    /// The conversation it belongs to.
    async fn conversation(&self, ctx: &Context<'_>) -> Result<Conversation, Error> {
        let row = ctx
            .request()
            .row::<conversation::Entity>(self.0.conversation_id)
            .await?;
        row.map(Conversation)
            .ok_or_else(|| Error::not_found("conversation"))
    }

    /// Its number in the conversation, from 1 without gaps.
    async fn seq(&self) -> i32 {
        self.0.seq
    }

    /// In what part it was written.
    async fn role(&self) -> MessageRole {
        self.0.role.into()
    }

    /// The agent who wrote it.
    async fn agent(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.agent_id).await
    }

    /// The user who wrote it.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.user_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
    }

    /// The name of its author when it was written, at most 200 characters.
    async fn author_name(&self) -> &str {
        &self.0.author_name
    }

    /// What it says, at most 100,000 characters.
    async fn content(&self) -> &str {
        &self.0.content
    }

    /// The participants it mentions and the viewer may read, in the order of appearance; at most 20.
    async fn mentions(&self, ctx: &Context<'_>) -> Result<Vec<Agent>, Error> {
        let ids = self
            .0
            .mentions
            .0
            .iter()
            .filter_map(|id| Uuid::parse_str(id).ok());
        let agents = try_join_all(ids.map(|id| Agent::readable(ctx, Some(id)))).await?;
        Ok(agents.into_iter().flatten().collect())
    }

    /// The message it answers.
    async fn parent(&self, ctx: &Context<'_>) -> Result<Option<Self>, Error> {
        let Some(id) = self.0.parent_id else {
            return Ok(None);
        };
        Self::readable(ctx, id).await
    }

    /// Whether it was marked as worth keeping in sight.
    async fn is_pinned(&self) -> bool {
        self.0.is_pinned
    }

    /// The model that wrote it.
    async fn model(&self, ctx: &Context<'_>) -> Result<Option<Model>, Error> {
        let Some(id) = self.0.model_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<model::Entity>(id).await?.map(Model))
    }

    /// How many tokens the model took in.
    async fn tokens_input(&self) -> Option<i32> {
        self.0.tokens_input
    }

    /// How many tokens the model wrote.
    async fn tokens_output(&self) -> Option<i32> {
        self.0.tokens_output
    }

    /// When it was written.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }
}

impl Message {
    /// The message with this row id, as far as the viewer may read it.
    pub(crate) async fn readable(ctx: &Context<'_>, id: Uuid) -> Result<Option<Self>, Error> {
        let rule = &ctx.request().viewer()?.rules().message;
        Ok(ctx
            .request()
            .readable::<message::Entity>(rule, id)
            .await?
            .map(Self))
    }
}

/// Messages as a list.
pub struct Messages;

impl Listed for Messages {
    type Entity = message::Entity;
    type Node = Message;
    type Extra = EmptyFields;
    const NAME: &'static str = "Message";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<message::Model>],
    ) -> Result<Vec<Option<Message>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Message(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<message::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// Narrows a list of messages. All given conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct MessageFilter {
    /// Only messages written in one of these parts.
    role: Option<Vec<MessageRole>>,
    /// Only messages of this agent.
    agent_id: Option<ID>,
    /// Only pinned messages, or only the others.
    is_pinned: Option<bool>,
}

impl MessageFilter {
    pub(crate) fn condition(filter: Option<Self>) -> Result<Condition, Error> {
        use message::Column::{AgentId, IsPinned, Role};
        let Some(filter) = filter else {
            return Ok(Condition::all());
        };
        let agent = Kind::Agent.parse_opt(filter.agent_id.as_ref(), "agentId")?;
        let role = filter
            .role
            .map(|role| Role.is_in(role.into_iter().map(message::MessageRole::from)));
        Ok(Condition::all()
            .add_option(role)
            .add_option(agent.map(|id| AgentId.eq(id)))
            .add_option(filter.is_pinned.map(|is_pinned| IsPinned.eq(is_pinned))))
    }
}
