//! Messages: numbered contributions to a conversation.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};
use futures_util::future::try_join_all;
use gathering_entity::{List, agent, circle, conversation, message, model, participant, user};
use sea_orm::{
    ActiveEnum, ColumnTrait, Condition, DbErr, EntityTrait, FromQueryResult, IntoActiveModel,
    JoinType, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Set,
    sea_query::{Expr, ExprTrait, IntoCondition, SelectStatement},
};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::{
    Viewer,
    agent::Agent,
    catalogue::model::Model,
    circle::{Access, Seen, check_open},
    conversation::{
        Conversation, editable,
        event::EventScope,
        participants_of,
        turns::{self, LastMessage, Participant, TurnState},
        workflow::{self, COMPLETE},
    },
    data::{Change, Draft, FieldsOf, Noun, Outcome, Stop, change, draft, load},
    db::{Rule, Stored, is_one_of, json_rows, list_from, revision},
    error::Error,
    events::{EventType, NewEvent},
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
    text,
    user::User,
};

/// Maximum length of a message, in characters.
const MAX_CONTENT: usize = 100_000;
/// Maximum length of the excerpt in a message event, in characters.
const MAX_EXCERPT: usize = 200;

/// The role of the author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "message::MessageRole")]
pub enum MessageRole {
    /// Written by a user.
    User,
    /// Written by an agent.
    Assistant,
    /// Written by the server.
    System,
    /// Written by a tool that an agent called.
    Tool,
}

/// A message in a conversation.
pub struct Message(pub(crate) Arc<message::Model>);

/// A numbered message in a conversation. Visible to readers of the conversation.
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

    /// The sequence number in the conversation, from 1 without gaps.
    async fn seq(&self) -> i32 {
        self.0.seq
    }

    /// The role of the author.
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

    /// The author's name at the time of writing, at most 200 characters.
    async fn author_name(&self) -> &str {
        &self.0.author_name
    }

    /// The content, at most 100,000 characters.
    async fn content(&self, ctx: &Context<'_>) -> Result<&str, Error> {
        ctx.request().text(self.0.content.as_str())
    }

    /// The mentioned participants that the viewer may read, in order of appearance; at most 20.
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

    /// The message it replies to.
    async fn parent(&self, ctx: &Context<'_>) -> Result<Option<Self>, Error> {
        let Some(id) = self.0.parent_id else {
            return Ok(None);
        };
        load(ctx.request(), id).await
    }

    /// Whether it is pinned.
    async fn is_pinned(&self) -> bool {
        self.0.is_pinned
    }

    /// The model that generated it.
    async fn model(&self, ctx: &Context<'_>) -> Result<Option<Model>, Error> {
        let Some(id) = self.0.model_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<model::Entity>(id).await?.map(Model))
    }

    /// The number of input tokens of the model.
    async fn tokens_input(&self) -> Option<i32> {
        self.0.tokens_input
    }

    /// The number of output tokens of the model.
    async fn tokens_output(&self) -> Option<i32> {
        self.0.tokens_output
    }

    /// When it was written.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }
}

impl From<Arc<message::Model>> for Message {
    fn from(row: Arc<message::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Message {
    type Entity = message::Entity;
    const KIND: Kind = Kind::Message;
    const NAME: &'static str = "Message";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        Some(viewer.rules().message.clone())
    }

    fn fields() -> FieldsOf<Self> {
        use message::Column::{
            AgentId, AuthorName, Content, ConversationId, CreatedAt, IsPinned, ModelId, ParentId,
            Role, Seq, TokensInput, TokensOutput, UserId,
        };
        FieldsOf::new()
            .columns([
                Seq,
                Role,
                AuthorName,
                IsPinned,
                TokensInput,
                TokensOutput,
                CreatedAt,
            ])
            .texts([Content])
            .one::<Conversation>("conversation", ConversationId)
            .one::<User>("user", UserId)
            .one::<Model>("model", ModelId)
            .one_readable::<Agent>("agent", AgentId)
            .one_readable::<Self>("parent", ParentId)
    }
}

/// Filters a list of messages. All conditions must match; an empty list matches nothing.
#[derive(InputObject)]
pub struct MessageFilter {
    /// Only messages with one of these author roles.
    role: Option<Vec<MessageRole>>,
    /// Only messages of this agent.
    agent_id: Option<ID>,
    /// True: only pinned messages; false: only messages that are not pinned.
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
            .map(|list| is_one_of::<message::MessageRole>(Role, list));
        Ok(Condition::all()
            .add_option(role)
            .add_option(agent.map(|id| AgentId.eq(id)))
            .add_option(filter.is_pinned.map(|is_pinned| IsPinned.eq(is_pinned))))
    }
}

/// Payload of `postMessage` and `pinMessage`.
#[derive(SimpleObject)]
pub struct MessagePayload {
    /// The message in its current state; null if there is none.
    message: Option<Message>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl MessagePayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            message: outcome.row::<Message>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `postMessage`.
#[derive(InputObject)]
pub struct PostMessageInput {
    /// The conversation.
    conversation_id: ID,
    /// The content, 1 to 100,000 characters.
    /// `@` followed by a participant's name is a mention, except in code, URLs and e-mail addresses.
    content: String,
    /// The participant whose turn this is; if omitted, the message is from the caller.
    agent_id: Option<ID>,
    /// The message to reply to, in the same conversation.
    parent_id: Option<ID>,
}

/// Input for `pinMessage`.
#[derive(InputObject)]
pub struct PinMessageInput {
    /// The message.
    message_id: ID,
    /// True to pin the message, false to unpin it.
    is_pinned: bool,
}

/// Message mutations.
#[derive(Default)]
pub struct MessageMutation;

#[Object]
impl MessageMutation {
    /// Posts a message to a conversation.
    /// With an API key of an agent, `agentId` is this agent. Without `agentId` it is a message of the caller and requires that the conversation is `ACTIVE` or `PAUSED`; with
    /// `agentId` it is a turn of the agent and requires that it is `ACTIVE`. The conversation ends with turn number
    /// `maxTurns`, or with an agent's message that contains `[DONE]`, `[COMPLETE]`, `[FIN]` or `[TERMINÉ]`. Requires
    /// editor access to the conversation's circle; without a circle, its owner or an administrator. `userErrors` codes
    /// besides input validation: `NOT_MEMBER` for an agent that is not a participant; `INVALID` for an agent whose turn
    /// it is not and for a parent of another conversation; `BAD_TRANSITION`.
    async fn post_message(
        &self,
        ctx: &Context<'_>,
        input: PostMessageInput,
    ) -> Result<MessagePayload, Error> {
        let id = Uuid::now_v7();
        let conversation = Kind::Conversation.parse(&input.conversation_id, "conversationId")?;
        let agent = Kind::Agent.parse_opt(input.agent_id.as_ref(), "agentId")?;
        let of_key = ctx.request().viewer()?.agent();
        let agent = agent.or(of_key);
        if of_key.is_some() && agent != of_key {
            return Err(Error::another_agent("agentId"));
        }
        let parent = Kind::Message.parse_opt(input.parent_id.as_ref(), "parentId")?;
        let outcome = draft(ctx, None, async |mut change| {
            let scene = Scene::read(&mut change, conversation, (agent, parent)).await?;
            let (row, scope, participants) = (scene.row, scene.scope, scene.participants);
            let mut check = Check::default();
            let content = check.text("content", &input.content, MAX_CONTENT);
            let speaker = match agent {
                Some(agent) => check_speaker(&mut check, &row, &participants, agent),
                None => None,
            };
            if parent.is_some() {
                let of = scene.parent_conversation;
                if of.ok_or_else(|| Error::not_found("parentId"))? != row.id {
                    let message = "The parent must be a message of the same conversation.";
                    check.fault("parentId", UserErrorCode::Invalid, message);
                }
            }
            check.faults()?;
            check_status(&row, agent.is_some())?;
            let folded = text::fold(&content);
            let mentions = turns::mentions(&folded, &participants);
            let last = LastMessage {
                author: agent,
                last_turn: agent.or(scene.last_turn),
                text: &folded,
                mentions: &mentions,
            };
            let effect = MessageEffect::of(&row, &participants, &last);
            let message = message::Model {
                id,
                created_at: change.now,
                conversation_id: row.id,
                seq: row.last_seq + 1,
                role: match speaker {
                    Some(_) => message::MessageRole::Assistant,
                    None => message::MessageRole::User,
                },
                agent_id: agent,
                user_id: agent.is_none().then(|| change.viewer.id()),
                author_name: match speaker {
                    Some(speaker) => speaker.name.clone(),
                    None => change.viewer.user.name.clone(),
                },
                content,
                mentions: List(mentions.iter().map(Uuid::to_string).collect()),
                parent_id: parent,
                is_pinned: false,
                model_id: speaker.and_then(|speaker| speaker.model_id),
                tokens_input: None,
                tokens_output: None,
                thinking_ms: None,
                tool_calls: None,
                tool_results: None,
            };
            add(&mut change, &row, scope, &message, &effect);
            Ok(change.commit(vec![id]).await?.with_row(message))
        });
        MessagePayload::new(ctx, outcome.await?).await
    }

    /// Pins or unpins a message, in any status of its conversation.
    /// Requires editor access to the conversation's circle; without a circle, its owner or an administrator.
    /// `userErrors` code: `BAD_TRANSITION` in an archived circle.
    async fn pin_message(
        &self,
        ctx: &Context<'_>,
        input: PinMessageInput,
    ) -> Result<MessagePayload, Error> {
        let id = Kind::Message.parse(&input.message_id, "messageId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let row = readable(&change, id, "messageId").await?;
            let (conversation, scope) = editable(&change, row.conversation_id, "messageId").await?;
            let pinned = message::Entity::update_many()
                .col_expr(message::Column::IsPinned, input.is_pinned.into())
                .filter(message::Column::Id.eq(id))
                .filter(message::Column::IsPinned.ne(input.is_pinned))
                .exec(&change.transaction)
                .await?;
            if pinned.rows_affected > 0 {
                let payload = json!({
                    "conversationId": Kind::Conversation.id(conversation.id),
                    "seq": row.seq,
                    "role": row.role.to_value(),
                    "excerpt": excerpt(&row.content),
                    "isPinned": input.is_pinned,
                });
                let event = scope.new_event(EventType::MessagePinned, id, payload);
                change.append(event.agent(row.agent_id));
            }
            change.commit(vec![id]).await
        });
        MessagePayload::new(ctx, outcome.await?).await
    }
}

/// The effect of a message on its conversation.
struct MessageEffect {
    turns_taken: i32,
    next_index: i32,
    next_speaker: Option<Uuid>,
    /// The end reason, if the message ends the conversation.
    end: Option<&'static str>,
}

impl MessageEffect {
    fn of(
        row: &conversation::Model,
        participants: &[Participant],
        message: &LastMessage<'_>,
    ) -> Self {
        let mut state = TurnState::of(row, participants);
        let mut end = None;
        if message.author.is_some() {
            let count = i32::try_from(participants.len()).unwrap_or(i32::MAX);
            state.turns_taken += 1;
            state.next_index = (state.next_index + 1) % count;
            if turns::ends_conversation(message.text) {
                end = Some("marker");
            } else if state.turns_taken >= row.max_turns {
                end = Some("max_turns");
            }
        }
        Self {
            turns_taken: state.turns_taken,
            next_index: state.next_index,
            next_speaker: if end.is_none() {
                state.next_speaker(message)
            } else {
                None
            },
            end,
        }
    }
}

/// Checks that the agent is a participant and that it is its turn.
fn check_speaker<'p>(
    check: &mut Check,
    row: &conversation::Model,
    participants: &'p [Participant],
    agent: Uuid,
) -> Option<&'p Participant> {
    let speaker = participants.iter().find(|one| one.id == agent);
    let is_free = row.turn_strategy == conversation::TurnStrategy::FreeForm;
    if speaker.is_none() {
        let message = "The agent is not a participant of the conversation.";
        check.fault("agentId", UserErrorCode::NotMember, message);
    } else if row.status == conversation::ConversationStatus::Active
        && !is_free
        && row.next_speaker_id != Some(agent)
    {
        let message = "It is the turn of another participant: the conversation's `nextSpeaker`.";
        check.fault("agentId", UserErrorCode::Invalid, message);
    }
    speaker
}

/// The beginning of a message, for its events.
fn excerpt(content: &str) -> String {
    content.chars().take(MAX_EXCERPT).collect()
}

/// Checks that the conversation's status allows a message or a turn.
fn check_status(row: &conversation::Model, is_turn: bool) -> Result<(), UserError> {
    use conversation::ConversationStatus::{Active, Paused};
    let what = if is_turn { "turns" } else { "messages" };
    match row.status {
        Active => Ok(()),
        Paused if !is_turn => Ok(()),
        other => Err(UserError::bad_transition(format!(
            "A {} conversation accepts no {what}.",
            other.to_value()
        ))),
    }
}

/// Loads a message that the viewer may read.
async fn readable(change: &Change<'_>, id: Uuid, field: &str) -> Result<message::Model, Error> {
    let rule = &change.viewer.rules().message;
    let row = message::Entity::find_by_id(id).filter(rule.condition());
    let row = row.one(&change.transaction).await?;
    row.ok_or_else(|| Error::not_found(field))
}

/// A conversation to which the viewer may post, and what was read with it. The commit depends on the conversation and
/// its circle.
struct Scene {
    row: conversation::Model,
    scope: EventScope,
    participants: Vec<Participant>,
    /// The conversation of the parent message, if the viewer may read that message.
    parent_conversation: Option<Uuid>,
    /// The agent who took the last turn; not read for a turn of an agent.
    last_turn: Option<Uuid>,
}

/// A participant with its position in the conversation.
#[derive(Deserialize)]
struct Seat {
    position: i32,
    #[serde(flatten)]
    participant: Participant,
}

impl Scene {
    /// # Errors
    /// `NOT_FOUND`, `FORBIDDEN`; `BAD_TRANSITION` if its circle is archived.
    async fn read(
        change: &mut Change<'_, Draft>,
        id: Uuid,
        (agent, parent): (Option<Uuid>, Option<Uuid>),
    ) -> Result<Self, Stop> {
        use conversation::Column::{CircleId, Id};
        const FIELD: &str = "conversationId";
        let rules = change.viewer.rules();
        let is_this = rules.conversation.and(Id.eq(id));
        let this = conversation::Entity::find().filter(is_this.clone());
        let circle = this.clone().select_only().column(CircleId).into_query();
        let is_circle = circle::Column::Id.in_subquery(circle);
        change
            .reserve::<circle::Entity>(is_circle.into_condition())
            .await?;
        change.reserve::<conversation::Entity>(is_this).await?;
        let of_circle =
            Expr::col(CircleId.as_column_ref()).equals(circle::Column::Id.as_column_ref());
        let mut select = this.into_query();
        select
            .join(JoinType::LeftJoin, circle::Entity, of_circle)
            .expr_as(
                revision::<conversation::Entity>(change.backend()),
                "revision",
            );
        Seen::select(&mut select, change);
        let seats = participants_of(Expr::col(Id.as_column_ref()))
            .column(participant::Column::Position.as_column_ref())
            .take();
        let columns = [
            ("id", Stored::Uuid),
            ("name", Stored::Plain),
            ("model_id", Stored::Uuid),
            ("position", Stored::Plain),
        ];
        let seats = json_rows(change.backend(), seats, &columns);
        select.expr_as(seats, "participants");
        if let Some(parent) = parent {
            let of = message::Entity::find_by_id(parent)
                .select_only()
                .column(message::Column::ConversationId)
                .filter(rules.message.condition())
                .into_query();
            select.expr_as(Expr::from(of), "parent_conversation");
        }
        if agent.is_none() {
            select.expr_as(Expr::from(last_turn()), "last_turn");
        }
        let row = Seen::read(change, &select).await?;
        let row = row.ok_or_else(|| Error::not_found(FIELD))?;
        let circle = match Seen::optional(&row)? {
            Some(circle) => Some(circle.accessible(change, FIELD, Access::Editor)?),
            None => None,
        };
        if let Some(circle) = &circle {
            check_open(circle)?;
        }
        let revision: String = row.try_get("", "revision")?;
        change.hold::<conversation::Entity>(id, &revision);
        let mut seats: Vec<Seat> = list_from(&row, "participants")?;
        seats.sort_by_key(|seat| seat.position);
        let found = |column: &str, is_read: bool| -> Result<Option<Uuid>, DbErr> {
            if is_read {
                row.try_get("", column)
            } else {
                Ok(None)
            }
        };
        let parent_conversation = found("parent_conversation", parent.is_some())?;
        let last_turn = found("last_turn", agent.is_none())?;
        let row = conversation::Model::from_query_result(&row, "")?;
        Ok(Self {
            scope: EventScope::of(&row, circle.as_ref()),
            row,
            participants: seats.into_iter().map(|seat| seat.participant).collect(),
            parent_conversation,
            last_turn,
        })
    }
}

/// The agent who took the last turn in the conversation of the outer query.
fn last_turn() -> SelectStatement {
    let conversation = Expr::col(message::Column::ConversationId.as_column_ref());
    message::Entity::find()
        .select_only()
        .column(message::Column::AgentId)
        .filter(conversation.equals(conversation::Column::Id.as_column_ref()))
        .filter(message::Column::AgentId.is_not_null())
        .order_by_desc(message::Column::Seq)
        .limit(1)
        .into_query()
}

/// Inserts a message, updates its conversation and appends the events.
fn add(
    change: &mut Change<'_, Draft>,
    row: &conversation::Model,
    scope: EventScope,
    message: &message::Model,
    effect: &MessageEffect,
) {
    let now = change.now;
    let mut new = conversation::ActiveModel {
        last_seq: Set(message.seq),
        last_message_at: Set(Some(now)),
        updated_at: Set(now),
        next_speaker_id: Set(effect.next_speaker),
        next_index: Set(effect.next_index),
        turns_taken: Set(effect.turns_taken),
        ..Default::default()
    };
    let ended = effect.end.map(|reason| {
        let version = row.version + 1;
        new.version = Set(version);
        workflow::apply(&COMPLETE, &mut new, Some(reason.to_owned()), now);
        let payload = workflow::payload(&COMPLETE, row.status, Some(reason));
        let row = conversation::Model {
            version,
            ..row.clone()
        };
        scope.conversation_event(COMPLETE.event, &row, payload)
    });
    let of_row = conversation::Column::Id.eq(row.id);
    change.update(conversation::Entity::update_many().set(new).filter(of_row));

    let agent = message.agent_id;
    let by = |event: NewEvent| match agent {
        Some(agent) => event.agent(agent).by_agent(),
        None => event,
    };
    let payload = json!({
        "conversationId": Kind::Conversation.id(row.id),
        "seq": message.seq,
        "role": message.role.to_value(),
        "excerpt": excerpt(&message.content),
    });
    change.append(by(scope.new_event(
        EventType::MessageAdded,
        message.id,
        payload,
    )));
    change.insert([message.clone().into_active_model()]);
    let Some(agent) = agent else { return };

    let next = effect.next_speaker.map(|id| Kind::Agent.id(id));
    let payload = json!({ "turn": effect.turns_taken, "nextSpeakerId": next });
    change.append(by(scope.conversation_event(
        EventType::ConversationTurnCompleted,
        row,
        payload,
    )));
    if let Some(ended) = ended {
        change.append(by(ended));
    }
    let active = agent::Entity::update_many()
        .col_expr(agent::Column::LastActiveAt, Expr::value(now))
        .col_expr(agent::Column::UpdatedAt, Expr::value(now))
        .filter(agent::Column::Id.eq(agent));
    change.update(active);
}
