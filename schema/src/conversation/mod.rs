//! Conversations: turn-based exchanges of messages between agents.

pub mod event;
pub mod messages;
mod prose;
mod turns;

use crate::Viewer;
use crate::db::Rule;
use crate::events::EventType;
use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    sync::Arc,
};

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use chrono::Utc;
use futures_util::future::try_join_all;
use gathering_entity::{agent, circle, conversation, member, message, participant, task, user};
use sea_orm::{
    ActiveEnum, ActiveModelBehavior, ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait,
    EntityTrait, FromQueryResult, IntoActiveModel, ModelTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait, Set,
    sea_query::{Expr, ExprTrait, JoinType, LockType},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::data::Noun;
use crate::{
    agent::Agent,
    circle::{Access, Circle, check_open},
    conversation::{
        messages::{Message, MessageFilter},
        turns::{Participant, Talk},
    },
    data::{Change, Connection, Edits, Listed, Order, Outcome, Page, change, check_version},
    db::PageQuery,
    deletion::{DeleteInput, DeletePayload},
    error::{Code, Error},
    events::NewEvent,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
    task::Task,
    user::User,
};

/// Maximum number of messages in a transcript.
const MAX_TRANSCRIPT: i32 = 500;
/// Maximum length of a topic, in characters.
const MAX_TOPIC: usize = 500;
/// Maximum length of an initial prompt, in characters.
const MAX_PROMPT: usize = 20_000;
/// Maximum length of a summary, in characters.
const MAX_SUMMARY: usize = 20_000;
/// Maximum length of an end reason, in characters.
const MAX_REASON: usize = 500;
/// Maximum number of participants.
const MAX_PARTICIPANTS: usize = 20;
/// The allowed values of `maxTurns` in an input.
const TURNS: RangeInclusive<i32> = 1..=50;

/// The strategy that selects the next speaker of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "conversation::TurnStrategy")]
pub enum TurnStrategy {
    /// Participants speak in the order of their positions.
    RoundRobin,
    /// The first mentioned participant speaks next; without a mention, as in `ROUND_ROBIN`.
    MentionBased,
    /// The first mentioned participant speaks next; without a mention, any that did not speak last. An agent may also
    /// speak out of turn.
    FreeForm,
    /// The facilitator selects each speaker and speaks again after each of them.
    FacilitatorLed,
}

/// The status of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "conversation::ConversationStatus")]
pub enum ConversationStatus {
    /// Not yet started.
    Pending,
    /// Started: agents take turns.
    Active,
    /// Paused: agents take no turns; users may still post messages.
    Paused,
    /// Ended normally.
    Completed,
    /// Ended because turns failed repeatedly.
    Failed,
    /// Ended before completion.
    Cancelled,
}

/// A turn-based conversation between agents.
pub struct Conversation(pub(crate) Arc<conversation::Model>);

/// A turn-based conversation between agents and users. Visible to readers of its circle, or to its owner if it has no
/// circle, and to administrators.
#[Object]
impl Conversation {
    /// The id of the conversation, `conversation_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Conversation.id(self.0.id)
    }

    /// The owner.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.owner_id).await?;
        row.map(User::new).ok_or_else(|| Error::not_found("owner"))
    }

    /// The circle it belongs to.
    async fn circle(&self, ctx: &Context<'_>) -> Result<Option<Circle>, Error> {
        let Some(id) = self.0.circle_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<circle::Entity>(id).await?.map(Circle))
    }

    /// The task it is about.
    async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>, Error> {
        Task::readable(ctx, self.0.task_id).await
    }

    /// The topic, a single line of at most 500 characters.
    async fn topic(&self) -> &str {
        &self.0.topic
    }

    /// The initial prompt for the participants, at most 20,000 characters.
    async fn initial_prompt(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.initial_prompt.as_deref())
    }

    /// The status.
    async fn status(&self) -> ConversationStatus {
        self.0.status.into()
    }

    /// The turn strategy, which selects the next speaker.
    async fn turn_strategy(&self) -> TurnStrategy {
        self.0.turn_strategy.into()
    }

    /// The facilitating participant; only with `FACILITATOR_LED`.
    async fn facilitator(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.facilitator_id).await
    }

    /// The number of turns after which it ends, from 1 to 200.
    async fn max_turns(&self) -> i32 {
        self.0.max_turns
    }

    /// The number of turns taken. Only messages of agents are turns.
    async fn turns_taken(&self) -> i32 {
        self.0.turns_taken
    }

    /// The agent whose turn it is; null before the start and after the end.
    async fn next_speaker(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.next_speaker_id).await
    }

    /// The summary, at most 20,000 characters.
    async fn summary(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.summary.as_deref())
    }

    /// The reason for the end, at most 500 characters.
    async fn end_reason(&self) -> Option<&str> {
        self.0.end_reason.as_deref()
    }

    /// When it was started.
    async fn started_at(&self) -> Option<DateTime> {
        self.0.started_at.map(DateTime)
    }

    /// When its last message was posted.
    async fn last_message_at(&self) -> Option<DateTime> {
        self.0.last_message_at.map(DateTime)
    }

    /// When it ended.
    async fn ended_at(&self) -> Option<DateTime> {
        self.0.ended_at.map(DateTime)
    }

    /// When it was created.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// The version, incremented by each edit and status transition. Pass it as `expectedVersion` to detect concurrent
    /// changes.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// The participants that the viewer may read, in speaking order.
    async fn participants(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Result<Connection<Participants>, Error> {
        let viewer = ctx.request().viewer()?;
        let mut condition = Condition::all();
        if !viewer.is_admin() {
            let readable = agent::Entity::find()
                .select_only()
                .column(agent::Column::Id)
                .filter(viewer.agents())
                .into_query();
            condition = condition.add(participant::Column::AgentId.in_subquery(readable));
        }
        Connection::of(
            participant::Column::ConversationId,
            self.0.id,
            condition,
            Order::ascending([participant::Column::Position]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The messages, oldest first.
    async fn messages(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<MessageFilter>,
    ) -> Result<Connection<Message>, Error> {
        Connection::of(
            message::Column::ConversationId,
            self.0.id,
            MessageFilter::condition(filter)?,
            Order::ascending([message::Column::Seq]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The last messages as plain text: `[HH:MM:SS] Name: text` for each, in UTC.
    async fn transcript(
        &self,
        ctx: &Context<'_>,
        #[graphql(default = 100, desc = "The number of messages, from 1 to 500.")] last: i32,
    ) -> Result<String, Error> {
        let count = match u64::try_from(last) {
            Ok(count) if (1..=MAX_TRANSCRIPT).contains(&last) => count,
            _ => {
                return Err(Error::bad_input(format!(
                    "`last` must be from 1 to {MAX_TRANSCRIPT}."
                ))
                .field("last"));
            }
        };
        let select = message::Entity::find()
            .order_by_desc(message::Column::Seq)
            .limit(count)
            .into_query();
        let pages = PageQuery::<message::Model>::new(
            "transcript",
            select,
            Some(message::Column::ConversationId.as_column_ref()),
        );
        let rows = ctx.request().load(pages, self.0.id).await?;
        let lines: Vec<_> = rows
            .iter()
            .rev()
            .map(|row| {
                format!(
                    "[{}] {}: {}",
                    row.created_at.format("%H:%M:%S"),
                    row.author_name,
                    row.content
                )
            })
            .collect();
        Ok(lines.join("\n"))
    }
}

impl Conversation {
    /// Loads the conversation with this row id; `None` if the viewer may not read it.
    pub(crate) async fn readable(ctx: &Context<'_>, id: Uuid) -> Result<Option<Self>, Error> {
        let rule = &ctx.request().viewer()?.rules().conversation;
        Ok(ctx
            .request()
            .readable::<conversation::Entity>(rule, id)
            .await?
            .map(Self))
    }
}

impl From<Arc<conversation::Model>> for Conversation {
    fn from(row: Arc<conversation::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Conversation {
    type Entity = conversation::Entity;
    const KIND: Kind = Kind::Conversation;
    const NAME: &'static str = "Conversation";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        Some(viewer.rules().conversation.clone())
    }
}

/// Marker type for connections of a conversation's participants.
pub struct Participants;

impl Listed for Participants {
    type Entity = participant::Entity;
    type Node = Agent;
    type Extra = Participation;
    const NAME: &'static str = "Participant";

    async fn nodes(
        ctx: &Context<'_>,
        rows: &[Arc<participant::Model>],
    ) -> Result<Vec<Option<Agent>>, Error> {
        let agents = rows
            .iter()
            .map(|row| ctx.request().row::<agent::Entity>(row.agent_id));
        Ok(try_join_all(agents)
            .await?
            .into_iter()
            .map(|agent| agent.map(Agent))
            .collect())
    }

    fn extra(row: &Arc<participant::Model>) -> Participation {
        Participation {
            position: row.position,
            joined_at: row.joined_at.into(),
        }
    }
}

/// Edge fields of a conversation's participant.
#[derive(SimpleObject)]
pub struct Participation {
    /// The agent's position in the speaking order, from 0.
    position: i32,
    /// When the agent joined.
    joined_at: DateTime,
}

/// Filters a list of conversations. All conditions must match; an empty list matches nothing.
#[derive(InputObject)]
pub struct ConversationFilter {
    /// Only conversations of this circle.
    circle_id: Option<ID>,
    /// Only conversations about this task.
    task_id: Option<ID>,
    /// Only conversations in which this agent takes part.
    agent_id: Option<ID>,
    /// Only conversations with one of these statuses.
    status: Option<Vec<ConversationStatus>>,
}

impl ConversationFilter {
    pub(crate) fn condition(filter: Option<Self>) -> Result<Condition, Error> {
        use conversation::Column::{CircleId, Id, Status, TaskId};
        let Some(filter) = filter else {
            return Ok(Condition::all());
        };
        let circle = Kind::Circle.parse_opt(filter.circle_id.as_ref(), "circleId")?;
        let task = Kind::Task.parse_opt(filter.task_id.as_ref(), "taskId")?;
        let agent = Kind::Agent.parse_opt(filter.agent_id.as_ref(), "agentId")?;
        let with_agent = agent.map(|id| {
            let conversations = participant::Entity::find()
                .select_only()
                .column(participant::Column::ConversationId)
                .filter(participant::Column::AgentId.eq(id))
                .into_query();
            Id.in_subquery(conversations)
        });
        let status = filter
            .status
            .map(|list| crate::db::is_one_of::<conversation::ConversationStatus>(Status, list));
        Ok(Condition::all()
            .add_option(circle.map(|id| CircleId.eq(id)))
            .add_option(task.map(|id| TaskId.eq(id)))
            .add_option(with_agent)
            .add_option(status))
    }
}

/// Conversation queries.
#[derive(Default)]
pub struct ConversationQuery;

#[Object]
impl ConversationQuery {
    /// Fetches a conversation by id. `NOT_FOUND` if it does not exist or the viewer may not read it.
    async fn conversation(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Conversation>, Error> {
        let rule = &ctx.request().viewer()?.rules().conversation;
        let row = ctx
            .request()
            .look_up::<conversation::Entity>(Kind::Conversation, rule, &id)
            .await?;
        Ok(Some(Conversation(row)))
    }

    /// Lists the conversations that the viewer may read, newest first.
    async fn conversations(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ConversationFilter>,
    ) -> Result<Connection<Conversation>, Error> {
        let readable = ctx.request().viewer()?.conversations();
        Connection::new(
            Condition::all()
                .add(readable)
                .add(ConversationFilter::condition(filter)?),
            Order::descending([conversation::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// Payload of the conversation mutations.
#[derive(SimpleObject)]
pub struct ConversationPayload {
    /// The conversation in its current state; null if there is none.
    conversation: Option<Conversation>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl ConversationPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            conversation: outcome.row::<Conversation>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `createConversation`.
#[derive(InputObject)]
pub struct CreateConversationInput {
    /// The topic, a single line of 1 to 500 characters.
    topic: String,
    /// The participants, in speaking order. In a circle: 2 to 20 active members; without a circle: 1 to 20 agents of
    /// the caller.
    participant_ids: Vec<ID>,
    /// The circle in which it takes place.
    circle_id: Option<ID>,
    /// The task it is about; must belong to the circle.
    task_id: Option<ID>,
    /// The initial prompt for the participants, at most 20,000 characters.
    initial_prompt: Option<String>,
    /// The turn strategy, which selects the next speaker.
    #[graphql(default_with = "TurnStrategy::RoundRobin")]
    turn_strategy: TurnStrategy,
    /// The facilitating participant. Required with `FACILITATOR_LED`, otherwise not allowed.
    facilitator_id: Option<ID>,
    /// The number of turns after which it ends, from 1 to 50.
    #[graphql(default = 10)]
    max_turns: i32,
    /// Whether to start it immediately.
    #[graphql(default = false)]
    start_now: bool,
}

/// Input for `updateConversation`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateConversationInput {
    /// The conversation.
    conversation_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
    /// The topic, a single line of 1 to 500 characters.
    topic: MaybeUndefined<String>,
    /// The summary, at most 20,000 characters.
    summary: MaybeUndefined<String>,
    /// The number of turns after which it ends, from 1 to 50. It must be greater than the number of turns taken, or,
    /// once the conversation has ended, not less.
    max_turns: MaybeUndefined<i32>,
}

/// Input for a status transition of a conversation, such as `startConversation`.
#[derive(InputObject)]
pub struct ConversationActionInput {
    /// The conversation.
    conversation_id: ID,
    /// The reason, at most 500 characters. Stored as `endReason` if the conversation is completed or cancelled.
    reason: Option<String>,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// A status transition of a conversation.
struct Step {
    event: EventType,
    from: &'static [ConversationStatus],
    to: ConversationStatus,
    /// The past participle for error messages.
    done: &'static str,
    /// The machine-readable end reason, if the step ends the conversation.
    reason: Option<&'static str>,
}

const START: Step = Step {
    event: EventType::ConversationStarted,
    from: &[ConversationStatus::Pending],
    to: ConversationStatus::Active,
    done: "started",
    reason: None,
};

const PAUSE: Step = Step {
    event: EventType::ConversationPaused,
    from: &[ConversationStatus::Active],
    to: ConversationStatus::Paused,
    done: "paused",
    reason: None,
};

const RESUME: Step = Step {
    event: EventType::ConversationResumed,
    from: &[ConversationStatus::Paused],
    to: ConversationStatus::Active,
    done: "resumed",
    reason: None,
};

const COMPLETE: Step = Step {
    event: EventType::ConversationEnded,
    from: &[ConversationStatus::Active],
    to: ConversationStatus::Completed,
    done: "completed",
    reason: Some("completed"),
};

const CANCEL: Step = Step {
    event: EventType::ConversationEnded,
    from: &[
        ConversationStatus::Pending,
        ConversationStatus::Active,
        ConversationStatus::Paused,
    ],
    to: ConversationStatus::Cancelled,
    done: "cancelled",
    reason: Some("cancelled"),
};

/// Conversation mutations.
#[derive(Default)]
pub struct ConversationMutation;

#[Object]
impl ConversationMutation {
    /// Creates a conversation in a circle, or without one among the caller's own agents. A circle requires editor
    /// access. `userErrors` codes besides input validation: `NOT_MEMBER` for a participant that is not an active member
    /// of the circle; `INVALID` for a participant that is listed twice, for a facilitator that is not needed or not a
    /// participant, and for a task of another circle; `BAD_TRANSITION` in an archived circle.
    async fn create_conversation(
        &self,
        ctx: &Context<'_>,
        input: CreateConversationInput,
    ) -> Result<ConversationPayload, Error> {
        let id = Uuid::now_v7();
        let new = NewConversation::parse(&input)?;
        let outcome = change(ctx, None, async |mut change| {
            let circle = match new.circle {
                Some(id) => Some(change.circle(id, "circleId", Access::Editor).await?),
                None => None,
            };
            if let Some(Err(fault)) = circle.as_ref().map(check_open) {
                return Ok(Outcome::fault(None, fault));
            }
            let mut check = Check::default();
            let topic = check.line("topic", &input.topic, MAX_TOPIC);
            let initial_prompt =
                check.optional_text("initialPrompt", input.initial_prompt.as_deref(), MAX_PROMPT);
            let max_turns = check.range("maxTurns", input.max_turns, TURNS);
            new.check(&mut check, input.turn_strategy);
            if new.participants.len() <= MAX_PARTICIPANTS {
                change.check_speakers(&mut check, &new).await?;
            }
            change.check_task(&mut check, &new).await?;
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            let mut row = conversation::Model {
                id,
                created_at: change.now,
                updated_at: change.now,
                version: 1,
                owner_id: change.viewer.id(),
                circle_id: new.circle,
                task_id: new.task,
                topic,
                initial_prompt,
                turn_strategy: input.turn_strategy.into(),
                facilitator_id: new.facilitator,
                max_turns,
                turns_taken: 0,
                next_index: 0,
                next_speaker_id: None,
                last_seq: 0,
                status: conversation::ConversationStatus::Pending,
                summary: None,
                end_reason: None,
                started_at: None,
                last_message_at: None,
                ended_at: None,
            };
            let place = EventScope::of(&row, circle.as_ref());
            change.append(place.told(
                EventType::ConversationCreated,
                &row,
                json!({ "changed": [] }),
            ));
            if input.start_now {
                let mut ids = new.participants.iter().copied();
                row.next_speaker_id = turns::opening(new.facilitator, &mut ids);
                row.status = START.to.into();
                row.started_at = Some(change.now);
                row.version += 1;
                let from = conversation::ConversationStatus::Pending;
                change.append(place.moved(&START, &row, from));
            }
            conversation::Entity::insert(row.into_active_model())
                .exec_without_returning(&change.transaction)
                .await?;
            let participants =
                (0..)
                    .zip(&new.participants)
                    .map(|(position, agent)| participant::ActiveModel {
                        conversation_id: Set(id),
                        agent_id: Set(*agent),
                        position: Set(position),
                        joined_at: Set(change.now),
                    });
            participant::Entity::insert_many(participants)
                .exec_without_returning(&change.transaction)
                .await?;
            change.commit(vec![id]).await
        });
        ConversationPayload::new(ctx, outcome.await?).await
    }

    /// Updates a conversation in any status. Requires editor access to its circle; without a circle, its owner or an
    /// administrator. `userErrors` codes besides input validation: `CONFLICT`; `BAD_TRANSITION` in an archived circle.
    async fn update_conversation(
        &self,
        ctx: &Context<'_>,
        input: UpdateConversationInput,
    ) -> Result<ConversationPayload, Error> {
        let id = Kind::Conversation.parse(&input.conversation_id, "conversationId")?;
        let outcome = change(ctx, None, async |mut change| {
            let (row, place) = match change.conversation(id, "conversationId").await? {
                Ok(held) => held,
                Err(fault) => return Ok(Outcome::fault(Some(id), fault)),
            };
            if let Err(fault) = check_version(input.expected_version, row.version) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut check = Check::default();
            let topic = check.if_given("topic", &input.topic);
            let topic = topic.map(|topic| check.line("topic", topic, MAX_TOPIC));
            let summary = input.summary.as_opt_deref();
            let summary = summary.map(|value| check.optional_text("summary", value, MAX_SUMMARY));
            let max_turns = check.if_given("maxTurns", &input.max_turns).copied();
            // An unchanged value may be outside the allowed range.
            let max_turns = max_turns.filter(|turns| *turns != row.max_turns);
            let max_turns = max_turns.map(|turns| check.range("maxTurns", turns, TURNS));
            // The last turn ends a conversation, so one that has not ended needs at least one turn left.
            let taken = row.turns_taken;
            let least = taken + i32::from(row.ended_at.is_none());
            if max_turns.is_some_and(|turns| TURNS.contains(&turns) && turns < least) {
                let message = format!(
                    "`maxTurns` must be at least {least}: {taken} turns were taken already."
                );
                check.fault("maxTurns", UserErrorCode::OutOfRange, message);
            }
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let version = row.version + 1;
            let mut new = row.into_active_model();
            let mut edits = Edits::default();
            edits.set("topic", &mut new.topic, topic);
            edits.set("summary", &mut new.summary, summary);
            edits.set("maxTurns", &mut new.max_turns, max_turns);
            if !edits.is_empty() {
                new.version = Set(version);
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                let changed = json!({ "changed": edits.names() });
                change.append(place.told(EventType::ConversationUpdated, &row, changed));
            }
            change.commit(vec![id]).await
        });
        ConversationPayload::new(ctx, outcome.await?).await
    }

    /// Starts a `PENDING` conversation: it becomes `ACTIVE` and its first speaker is set. Requires editor access to its
    /// circle; without a circle, its owner or an administrator. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn start_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &START, &input).await
    }

    /// Pauses an `ACTIVE` conversation: agents take no turns, users may still post messages. Requires editor access to
    /// its circle; without a circle, its owner or an administrator. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn pause_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &PAUSE, &input).await
    }

    /// Resumes a `PAUSED` conversation: it becomes `ACTIVE`. Requires editor access to its circle; without a circle,
    /// its owner or an administrator. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn resume_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &RESUME, &input).await
    }

    /// Ends an `ACTIVE` conversation as `COMPLETED`. Requires editor access to its circle; without a circle, its owner
    /// or an administrator. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn complete_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &COMPLETE, &input).await
    }

    /// Cancels a `PENDING`, `ACTIVE` or `PAUSED` conversation: it becomes `CANCELLED`. Requires editor access to its
    /// circle; without a circle, its owner or an administrator. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn cancel_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &CANCEL, &input).await
    }

    /// Deletes a conversation that is not `ACTIVE`, with its messages. Requires editor access to its circle; without a
    /// circle, its owner or an administrator. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn delete_conversation(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Conversation.parse(&input.id, "id")?;
        let outcome = change(ctx, None, async |mut change| {
            let (row, place) = match change.conversation(id, "id").await? {
                Ok(held) => held,
                Err(fault) => return Ok(Outcome::fault(Some(id), fault)),
            };
            if let Err(fault) = check_version(input.expected_version, row.version) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            if row.status == conversation::ConversationStatus::Active {
                return Ok(Outcome::fault(Some(id), cannot(row.status, "deleted")));
            }
            change.append(place.told(
                EventType::ConversationDeleted,
                &row,
                json!({ "changed": [] }),
            ));
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Conversation, id, outcome.await?).await
    }
}

/// Applies a status transition to a conversation.
async fn transit(
    ctx: &Context<'_>,
    step: &'static Step,
    input: &ConversationActionInput,
) -> Result<ConversationPayload, Error> {
    let id = Kind::Conversation.parse(&input.conversation_id, "conversationId")?;
    let outcome = change(ctx, None, async |mut change| {
        let (row, place) = match change.conversation(id, "conversationId").await? {
            Ok(held) => held,
            Err(fault) => return Ok(Outcome::fault(Some(id), fault)),
        };
        let allowed = check_version(input.expected_version, row.version);
        if let Err(fault) = allowed.and_then(|()| step.check(&row)) {
            return Ok(Outcome::fault(Some(id), fault));
        }
        let mut check = Check::default();
        let reason = check.optional_text("reason", input.reason.as_deref(), MAX_REASON);
        if let Err(faults) = check.faults() {
            return Ok(Outcome::refused(Some(id), faults));
        }
        let from = row.status;
        let now = change.now;
        let begins = from == conversation::ConversationStatus::Pending
            && step.to == ConversationStatus::Active;
        let opening = if begins {
            let participants = change.participants(id).await?;
            let mut ids = participants.iter().map(|participant| participant.id);
            turns::opening(row.facilitator_id, &mut ids)
        } else {
            row.next_speaker_id
        };
        let version = row.version + 1;
        let mut new = row.into_active_model();
        new.version = Set(version);
        if begins {
            new.started_at = Set(Some(now));
            new.next_speaker_id = Set(opening);
        }
        step.apply(&mut new, reason, now);
        let row = new.update(&change.transaction).await?;
        change.append(place.moved(step, &row, from));
        change.commit(vec![id]).await
    });
    ConversationPayload::new(ctx, outcome.await?).await
}

impl Step {
    /// Applies the step to the row. If it ends the conversation, `words` becomes the end reason, or else the step's own
    /// reason.
    fn apply(
        &self,
        new: &mut conversation::ActiveModel,
        words: Option<String>,
        now: chrono::DateTime<Utc>,
    ) {
        new.status = Set(self.to.into());
        new.updated_at = Set(now);
        if let Some(reason) = self.reason {
            new.ended_at = Set(Some(now));
            new.next_speaker_id = Set(None);
            new.end_reason = Set(Some(words.unwrap_or_else(|| reason.to_owned())));
        }
    }

    /// The event payload: the status before and after, and the end reason.
    fn payload(&self, from: conversation::ConversationStatus) -> Value {
        let to = conversation::ConversationStatus::from(self.to);
        let mut payload = json!({ "fromStatus": from.to_value(), "toStatus": to.to_value() });
        if let Some(reason) = self.reason {
            payload["reason"] = json!(reason);
        }
        payload
    }

    /// Checks that the conversation's status allows the step.
    fn check(&self, row: &conversation::Model) -> Result<(), UserError> {
        if self.from.contains(&row.status.into()) {
            return Ok(());
        }
        Err(cannot(row.status, self.done))
    }
}

fn cannot(status: conversation::ConversationStatus, done: &str) -> UserError {
    UserError::cannot("conversation", &status.to_value(), done)
}

/// The parsed ids of a [`CreateConversationInput`].
struct NewConversation {
    circle: Option<Uuid>,
    task: Option<Uuid>,
    facilitator: Option<Uuid>,
    participants: Vec<Uuid>,
}

impl NewConversation {
    fn parse(input: &CreateConversationInput) -> Result<Self, Error> {
        let participants = input.participant_ids.iter().enumerate();
        Ok(Self {
            circle: Kind::Circle.parse_opt(input.circle_id.as_ref(), "circleId")?,
            task: Kind::Task.parse_opt(input.task_id.as_ref(), "taskId")?,
            facilitator: Kind::Agent.parse_opt(input.facilitator_id.as_ref(), "facilitatorId")?,
            participants: participants
                .map(|(n, id)| Kind::Agent.parse(id, &format!("participantIds.{n}")))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Checks the number of participants, that each is listed once, and the facilitator.
    fn check(&self, check: &mut Check, strategy: TurnStrategy) {
        let field = "participantIds";
        if self.participants.len() > MAX_PARTICIPANTS {
            let message = format!("`{field}` must have at most {MAX_PARTICIPANTS} entries.");
            check.fault(field, UserErrorCode::TooMany, message);
        } else if self.participants.is_empty() {
            let message = format!("`{field}` must not be empty.");
            check.fault(field, UserErrorCode::Required, message);
        } else if self.circle.is_some() && self.participants.len() < 2 {
            let message = "A conversation in a circle needs at least 2 participants.";
            check.fault(field, UserErrorCode::Invalid, message);
        } else {
            for (n, _) in self.repeated() {
                let message = "This agent is listed twice.";
                check.fault(&format!("{field}.{n}"), UserErrorCode::Invalid, message);
            }
        }
        let is_led = strategy == TurnStrategy::FacilitatorLed;
        let (code, message) = match self.facilitator {
            None if is_led => (
                UserErrorCode::Required,
                "A FACILITATOR_LED conversation requires a facilitator.",
            ),
            Some(_) if !is_led => (
                UserErrorCode::Invalid,
                "Only a FACILITATOR_LED conversation has a facilitator.",
            ),
            Some(id) if !self.participants.contains(&id) => (
                UserErrorCode::Invalid,
                "The facilitator must be one of the participants.",
            ),
            _ => return,
        };
        check.fault("facilitatorId", code, message);
    }

    /// The repeated participants, with their index in the list.
    fn repeated(&self) -> impl Iterator<Item = (usize, Uuid)> {
        let mut known = HashSet::new();
        let all = self.participants.iter().copied().enumerate();
        all.filter(move |(_, id)| !known.insert(*id))
    }
}

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
    fn of(row: &conversation::Model, circle: Option<&circle::Model>) -> Self {
        circle.map_or(
            Self {
                owner: row.owner_id,
                circle: None,
                project: None,
            },
            Self::in_circle,
        )
    }

    fn in_circle(circle: &circle::Model) -> Self {
        Self {
            owner: circle.owner_id,
            circle: Some(circle.id),
            project: circle.project_id,
        }
    }

    /// Creates an event in this scope.
    pub(crate) fn fact(self, kind: EventType, subject: Uuid, payload: Value) -> NewEvent {
        NewEvent::new(kind, subject, payload)
            .owner(self.owner)
            .circle(self.circle)
            .project(self.project)
    }

    /// Creates an event of a conversation: `payload`, which must be an object, extended by topic and version.
    pub(crate) fn told(
        self,
        kind: EventType,
        row: &conversation::Model,
        mut payload: Value,
    ) -> NewEvent {
        payload["topic"] = json!(row.topic);
        payload["version"] = json!(row.version);
        self.fact(kind, row.id, payload)
    }

    /// Creates the event of a status transition.
    fn moved(
        self,
        step: &Step,
        row: &conversation::Model,
        from: conversation::ConversationStatus,
    ) -> NewEvent {
        self.told(step.event, row, step.payload(from))
    }
}

impl<'a> Talk<'a> {
    /// The turn state of a conversation row.
    pub(crate) fn of(row: &conversation::Model, participants: &'a [Participant]) -> Self {
        Self {
            conversation: row.id,
            strategy: row.turn_strategy,
            facilitator: row.facilitator_id,
            participants,
            turns: row.turns_taken,
            pointer: row.next_index,
        }
    }
}

impl Change<'_> {
    /// Loads and locks a conversation that the viewer may change, with its event scope. The inner error means that its
    /// circle is archived.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`; `FORBIDDEN`; `CONFLICT` if its circle is deleted concurrently.
    pub(crate) async fn conversation(
        &self,
        id: Uuid,
        field: &str,
    ) -> Result<Result<(conversation::Model, EventScope), UserError>, Error> {
        let rule = &self.viewer.rules().conversation;
        // The circle must be locked first, and only the conversation's row names it.
        let held = conversation::Entity::find_by_id(id).filter(rule.condition());
        let held = held.one(&self.transaction).await?;
        let held = held.ok_or_else(|| Error::not_found(field))?;
        let circle = match held.circle_id {
            Some(circle) => match self.circle(circle, field, Access::Editor).await {
                // The circle was deleted after the row was read. Without a circle, only the owner may change the
                // conversation.
                Err(error) if error.code == Code::NotFound => return Err(Error::conflict()),
                circle => Some(circle?),
            },
            None => None,
        };
        let row = self.row::<conversation::Entity>(rule, id, field).await?;
        let place = EventScope::of(&row, circle.as_ref());
        let is_open = circle.as_ref().map_or(Ok(()), check_open);
        Ok(is_open.map(|()| (row, place)))
    }

    /// The participants of a conversation, in the order of their positions.
    pub(crate) async fn participants(&self, id: Uuid) -> Result<Vec<Participant>, Error> {
        let mut select = agent::Entity::find()
            .select_only()
            .columns([
                agent::Column::Id,
                agent::Column::Name,
                agent::Column::ModelId,
            ])
            .filter(participant::Column::ConversationId.eq(id))
            .order_by_asc(participant::Column::Position)
            .into_query();
        let same = Expr::col(participant::Column::AgentId.as_column_ref())
            .equals(agent::Column::Id.as_column_ref());
        select.join(JoinType::InnerJoin, participant::Entity, same);
        let rows = self.transaction.query_all(&select).await?;
        let rows = rows
            .iter()
            .map(|row| Participant::from_query_result(row, ""));
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Checks that the participants are active members of the circle, or, without one, the viewer's own agents. Locks
    /// the agents against deletion until the transaction ends.
    ///
    /// # Errors
    /// `NOT_FOUND` and `FORBIDDEN`, naming the first such agent.
    async fn check_speakers(&self, check: &mut Check, new: &NewConversation) -> Result<(), Error> {
        let ids = || new.participants.iter().copied();
        let rule = &self.viewer.rules().agent;
        let agents: Vec<(Uuid, Uuid)> = agent::Entity::find()
            .select_only()
            .columns([agent::Column::Id, agent::Column::OwnerId])
            .filter(rule.condition())
            .filter(agent::Column::Id.is_in(ids()))
            .order_by_asc(agent::Column::Id)
            .lock(LockType::Share)
            .into_tuple()
            .all(&self.transaction)
            .await?;
        let agents: HashMap<_, _> = agents.into_iter().collect();
        let field = |n: usize| format!("participantIds.{n}");
        if let Some(n) = ids().position(|id| !agents.contains_key(&id)) {
            return Err(Error::not_found(&field(n)));
        }
        let Some(circle) = new.circle else {
            let is_foreign = |(_, id): &(usize, Uuid)| agents[id] != self.viewer.id();
            return match ids().enumerate().find(is_foreign) {
                Some((n, id)) => Err(self.forbidden(Kind::Agent, id).field(&field(n))),
                None => Ok(()),
            };
        };
        let members: HashSet<Uuid> = member::Entity::find()
            .select_only()
            .column(member::Column::AgentId)
            .filter(member::Column::CircleId.eq(circle))
            .filter(member::Column::IsActive.eq(true))
            .filter(member::Column::AgentId.is_in(ids()))
            .into_tuple()
            .all(&self.transaction)
            .await?
            .into_iter()
            .collect();
        let repeated: HashSet<_> = new.repeated().map(|(n, _)| n).collect();
        for (n, id) in ids().enumerate() {
            if !members.contains(&id) && !repeated.contains(&n) {
                let message = "The agent is not an active member of the circle.";
                check.fault(&field(n), UserErrorCode::NotMember, message);
            }
        }
        Ok(())
    }

    /// Checks that the task belongs to the circle.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    async fn check_task(&self, check: &mut Check, new: &NewConversation) -> Result<(), Error> {
        let Some(id) = new.task else { return Ok(()) };
        let task = task::Entity::find_by_id(id).filter(self.viewer.rules().task.condition());
        let task = task.one(&self.transaction).await?;
        let task = task.ok_or_else(|| Error::not_found("taskId"))?;
        if new.circle != Some(task.circle_id) {
            let message = "The task must belong to the circle of the conversation.";
            check.fault("taskId", UserErrorCode::Invalid, message);
        }
        Ok(())
    }

    /// Pauses the active conversations of a circle that is stopped or archived.
    pub(crate) async fn pause_conversations(
        &mut self,
        circle: &circle::Model,
    ) -> Result<(), Error> {
        self.move_conversations(circle, &PAUSE).await
    }

    /// Cancels the conversations of a circle that is deleted. Otherwise agents of other users would continue to work
    /// for the conversation's owner.
    pub(crate) async fn cancel_conversations(
        &mut self,
        circle: &circle::Model,
    ) -> Result<(), Error> {
        self.move_conversations(circle, &CANCEL).await
    }

    /// Applies a status transition, in one statement, to all conversations of a circle whose status allows it.
    async fn move_conversations(
        &mut self,
        circle: &circle::Model,
        step: &Step,
    ) -> Result<(), Error> {
        use conversation::Column::{CircleId, Id, OwnerId, Status, Topic, Version};
        let from = step.from.iter().copied();
        let movable = Condition::all()
            .add(CircleId.eq(circle.id))
            .add(Status.is_in(from.map(conversation::ConversationStatus::from)));
        let moved: Vec<(Uuid, Uuid, String, i32, conversation::ConversationStatus)> =
            conversation::Entity::find()
                .select_only()
                .columns([Id, OwnerId, Topic, Version, Status])
                .filter(movable.clone())
                .order_by_asc(Id)
                .lock(LockType::NoKeyUpdate)
                .into_tuple()
                .all(&self.transaction)
                .await?;
        if moved.is_empty() {
            return Ok(());
        }
        let mut new = conversation::ActiveModel::new();
        step.apply(&mut new, None, self.now);
        conversation::Entity::update_many()
            .set(new)
            .col_expr(Version, Expr::col(Version).add(1))
            .filter(movable)
            .exec(&self.transaction)
            .await?;
        for (id, owner, topic, version, from) in moved {
            let mut payload = step.payload(from);
            payload["topic"] = json!(topic);
            payload["version"] = json!(version + 1);
            let fact = EventScope::in_circle(circle).fact(step.event, id, payload);
            // After the circle's deletion, only the owner may read the conversation.
            let ends = step.event == CANCEL.event;
            self.append(if ends { fact.owner(owner) } else { fact });
        }
        Ok(())
    }
}
