//! Conversations: ordered talks between agents.

pub mod messages;
mod prose;
mod turns;

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    sync::Arc,
};

use async_graphql::{
    Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject, connection::EmptyFields,
};
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

use crate::{
    agent::Agent,
    circle::{Access, Circle, check_open},
    conversation::{
        messages::{MessageFilter, Messages},
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

/// Most lines of a transcript.
const MAX_TRANSCRIPT: i32 = 500;
/// Most characters of a topic.
const MAX_TOPIC: usize = 500;
/// Most characters of what participants are told first.
const MAX_PROMPT: usize = 20_000;
/// Most characters of a summary.
const MAX_SUMMARY: usize = 20_000;
/// Most characters of why a conversation ended.
const MAX_REASON: usize = 500;
/// Most agents that take part.
const MAX_PARTICIPANTS: usize = 20;
/// How many turns may be asked for.
const TURNS: RangeInclusive<i32> = 1..=50;

/// Who speaks next in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "conversation::TurnStrategy")]
pub enum TurnStrategy {
    /// The participants in the order of their positions.
    RoundRobin,
    /// Whoever was mentioned, else as in `ROUND_ROBIN`.
    MentionBased,
    /// Whoever was mentioned, else anyone who did not speak last; an agent may also speak out of turn.
    FreeForm,
    /// Whoever the facilitator calls upon, and after each of them the facilitator.
    FacilitatorLed,
}

/// Where a conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "conversation::ConversationStatus")]
pub enum ConversationStatus {
    /// Not yet begun.
    Pending,
    /// Agents take turns.
    Active,
    /// Held; users may still write.
    Paused,
    /// Ended as it should.
    Completed,
    /// Ended because turns kept failing.
    Failed,
    /// Ended before its time.
    Cancelled,
}

/// An ordered talk between agents.
pub struct Conversation(pub(crate) Arc<conversation::Model>);

/// An ordered talk between agents, and users, under a turn strategy. Read by whoever may read its circle, or, without
/// one, by its owner; and by administrators.
#[Object]
impl Conversation {
    /// The id of the conversation, `conversation_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Conversation.id(self.0.id)
    }

    /// Who owns it.
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

    /// What it is about, in one line of at most 500 characters.
    async fn topic(&self) -> &str {
        &self.0.topic
    }

    /// What the participants are told before they begin, at most 20,000 characters.
    async fn initial_prompt(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.initial_prompt.as_deref())
    }

    /// Where it stands.
    async fn status(&self) -> ConversationStatus {
        self.0.status.into()
    }

    /// Who speaks next.
    async fn turn_strategy(&self) -> TurnStrategy {
        self.0.turn_strategy.into()
    }

    /// The participant that leads it, under `FACILITATOR_LED`.
    async fn facilitator(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.facilitator_id).await
    }

    /// After how many turns it ends, from 1 to 200.
    async fn max_turns(&self) -> i32 {
        self.0.max_turns
    }

    /// How many turns were taken: messages of agents, not of users.
    async fn turns_taken(&self) -> i32 {
        self.0.turns_taken
    }

    /// The agent whose turn it is; null before it begins and after it ended.
    async fn next_speaker(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.next_speaker_id).await
    }

    /// What was said, in short; at most 20,000 characters.
    async fn summary(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.summary.as_deref())
    }

    /// Why it ended, at most 500 characters.
    async fn end_reason(&self) -> Option<&str> {
        self.0.end_reason.as_deref()
    }

    /// When it began.
    async fn started_at(&self) -> Option<DateTime> {
        self.0.started_at.map(DateTime)
    }

    /// When its last message was written.
    async fn last_message_at(&self) -> Option<DateTime> {
        self.0.last_message_at.map(DateTime)
    }

    /// When it ended.
    async fn ended_at(&self) -> Option<DateTime> {
        self.0.ended_at.map(DateTime)
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// Grows by one with every edit and every transition; give it as `expectedVersion` to change only what you saw.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// The agents that take part and that the viewer may read, in the order of their positions.
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

    /// Its messages, oldest first.
    async fn messages(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<MessageFilter>,
    ) -> Result<Connection<Messages>, Error> {
        Connection::of(
            message::Column::ConversationId,
            self.0.id,
            MessageFilter::condition(filter)?,
            Order::ascending([message::Column::Seq]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// Its last messages as plain text, one `[HH:MM:SS] Name: text` in UTC for each.
    async fn transcript(
        &self,
        ctx: &Context<'_>,
        #[graphql(default = 100, desc = "How many messages, from 1 to 500.")] last: i32,
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
    /// The conversation with this row id, as far as the viewer may read it.
    pub(crate) async fn readable(ctx: &Context<'_>, id: Uuid) -> Result<Option<Self>, Error> {
        let rule = &ctx.request().viewer()?.rules().conversation;
        Ok(ctx
            .request()
            .readable::<conversation::Entity>(rule, id)
            .await?
            .map(Self))
    }
}

/// Conversations as a list.
pub struct Conversations;

impl Listed for Conversations {
    type Entity = conversation::Entity;
    type Node = Conversation;
    type Extra = EmptyFields;
    const NAME: &'static str = "Conversation";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<conversation::Model>],
    ) -> Result<Vec<Option<Conversation>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Conversation(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<conversation::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// The agents that take part in a conversation, as a list.
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

/// What an edge to a participant says of its part.
#[derive(SimpleObject)]
pub struct Participation {
    /// The agent's place in the order of speaking, from 0.
    position: i32,
    /// When the agent joined.
    joined_at: DateTime,
}

/// Narrows a list of conversations. All given conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct ConversationFilter {
    /// Only conversations of this circle.
    circle_id: Option<ID>,
    /// Only conversations about this task.
    task_id: Option<ID>,
    /// Only conversations in which this agent takes part.
    agent_id: Option<ID>,
    /// Only conversations in one of these states.
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
        let status = filter.status.map(|status| {
            Status.is_in(crate::db::distinct(
                status
                    .into_iter()
                    .map(conversation::ConversationStatus::from),
            ))
        });
        Ok(Condition::all()
            .add_option(circle.map(|id| CircleId.eq(id)))
            .add_option(task.map(|id| TaskId.eq(id)))
            .add_option(with_agent)
            .add_option(status))
    }
}

/// Queries about conversations.
#[derive(Default)]
pub struct ConversationQuery;

#[Object]
impl ConversationQuery {
    /// The conversation with this id.
    async fn conversation(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Conversation>, Error> {
        let rule = &ctx.request().viewer()?.rules().conversation;
        let row = ctx
            .request()
            .look_up::<conversation::Entity>(Kind::Conversation, rule, &id)
            .await?;
        Ok(Some(Conversation(row)))
    }

    /// The conversations that the viewer may read, newest first.
    async fn conversations(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ConversationFilter>,
    ) -> Result<Connection<Conversations>, Error> {
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

/// The outcome of a change of a conversation.
#[derive(SimpleObject)]
pub struct ConversationPayload {
    /// The conversation as it is now; null when there is none to show.
    conversation: Option<Conversation>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

impl ConversationPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        let row = outcome.row::<conversation::Entity>(ctx).await?;
        Ok(Self {
            conversation: row.map(Conversation),
            user_errors: outcome.errors,
        })
    }
}

/// A conversation that is to be made.
#[derive(InputObject)]
pub struct CreateConversationInput {
    /// What it is about, 1 to 500 characters in one line.
    topic: String,
    /// The agents that take part, in the order of speaking: 2 to 20 active members of the circle, or, without a circle,
    /// 1 to 20 agents of the user.
    participant_ids: Vec<ID>,
    /// The circle it is held in.
    circle_id: Option<ID>,
    /// The task it is about, one of the circle's.
    task_id: Option<ID>,
    /// What the participants are told before they begin, at most 20,000 characters.
    initial_prompt: Option<String>,
    /// Who speaks next.
    #[graphql(default_with = "TurnStrategy::RoundRobin")]
    turn_strategy: TurnStrategy,
    /// The participant that leads it: under `FACILITATOR_LED`, and only there.
    facilitator_id: Option<ID>,
    /// After how many turns it ends, from 1 to 50.
    #[graphql(default = 10)]
    max_turns: i32,
    /// Whether it starts at once.
    #[graphql(default = false)]
    start_now: bool,
}

/// What is to be different about a conversation. Fields that are left out stay as they are; null clears what may be
/// empty.
#[derive(InputObject)]
pub struct UpdateConversationInput {
    /// The conversation.
    conversation_id: ID,
    /// Change it only at this version.
    expected_version: Option<i32>,
    /// What it is about, 1 to 500 characters in one line.
    topic: MaybeUndefined<String>,
    /// What was said, in short; at most 20,000 characters.
    summary: MaybeUndefined<String>,
    /// After how many turns it ends, from 1 to 50: more than were taken, or, once it has ended, no fewer.
    max_turns: MaybeUndefined<i32>,
}

/// A conversation that is to be moved on.
#[derive(InputObject)]
pub struct ConversationActionInput {
    /// The conversation.
    conversation_id: ID,
    /// Why, at most 500 characters. Kept as `endReason` of a conversation that is completed or cancelled.
    reason: Option<String>,
    /// Do it only at this version.
    expected_version: Option<i32>,
}

/// A step of a conversation from one state to another.
struct Step {
    event: &'static str,
    from: &'static [ConversationStatus],
    to: ConversationStatus,
    /// What is done to it: it is …
    done: &'static str,
    /// Why it ends with this, for programs.
    reason: Option<&'static str>,
}

const START: Step = Step {
    event: "conversation.started",
    from: &[ConversationStatus::Pending],
    to: ConversationStatus::Active,
    done: "started",
    reason: None,
};

const PAUSE: Step = Step {
    event: "conversation.paused",
    from: &[ConversationStatus::Active],
    to: ConversationStatus::Paused,
    done: "paused",
    reason: None,
};

const RESUME: Step = Step {
    event: "conversation.resumed",
    from: &[ConversationStatus::Paused],
    to: ConversationStatus::Active,
    done: "resumed",
    reason: None,
};

const COMPLETE: Step = Step {
    event: "conversation.ended",
    from: &[ConversationStatus::Active],
    to: ConversationStatus::Completed,
    done: "completed",
    reason: Some("completed"),
};

const CANCEL: Step = Step {
    event: "conversation.ended",
    from: &[
        ConversationStatus::Pending,
        ConversationStatus::Active,
        ConversationStatus::Paused,
    ],
    to: ConversationStatus::Cancelled,
    done: "cancelled",
    reason: Some("cancelled"),
};

/// Changes of conversations.
#[derive(Default)]
pub struct ConversationMutation;

#[Object]
impl ConversationMutation {
    /// Makes a conversation: in a circle, for its editors, or, without one, among the user's own agents. Codes of
    /// `userErrors` beside those of the input: `NOT_MEMBER` for a participant that is no active member of the circle;
    /// `INVALID` for one that is named twice, for a facilitator that is not needed or takes no part, and for a task of
    /// another circle; `BAD_TRANSITION` in an archived circle.
    async fn create_conversation(
        &self,
        ctx: &Context<'_>,
        input: CreateConversationInput,
    ) -> Result<ConversationPayload, Error> {
        let id = Uuid::now_v7();
        let new = NewConversation::parse(&input)?;
        let outcome = change(ctx, async |mut change| {
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
            change.append(place.told("conversation.created", &row, json!({ "changed": [] })));
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

    /// Changes a conversation, in whatever state it is. For editors of its circle; without one, for its owner and
    /// administrators. Codes of `userErrors` beside those of the input: `CONFLICT`, and `BAD_TRANSITION` in an archived
    /// circle.
    async fn update_conversation(
        &self,
        ctx: &Context<'_>,
        input: UpdateConversationInput,
    ) -> Result<ConversationPayload, Error> {
        let id = Kind::Conversation.parse(&input.conversation_id, "conversationId")?;
        let outcome = change(ctx, async |mut change| {
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
            // A number that stays as it is may be beyond what can be asked for.
            let max_turns = max_turns.filter(|turns| *turns != row.max_turns);
            let max_turns = max_turns.map(|turns| check.range("maxTurns", turns, TURNS));
            // The last turn ends a conversation: one that goes on has a turn left.
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
                change.append(place.told("conversation.updated", &row, changed));
            }
            change.commit(vec![id]).await
        });
        ConversationPayload::new(ctx, outcome.await?).await
    }

    /// Starts a PENDING conversation: it is ACTIVE, and its first speaker is known. For editors of its circle; without
    /// one, for its owner and administrators. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn start_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &START, &input).await
    }

    /// Pauses an ACTIVE conversation: agents take no turns, users may still write. For editors of its circle; without
    /// one, for its owner and administrators. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn pause_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &PAUSE, &input).await
    }

    /// Lets a PAUSED conversation go on: it is ACTIVE again. For editors of its circle; without one, for its owner and
    /// administrators. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn resume_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &RESUME, &input).await
    }

    /// Ends an ACTIVE conversation as COMPLETED. For editors of its circle; without one, for its owner and
    /// administrators. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn complete_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &COMPLETE, &input).await
    }

    /// Ends a PENDING, ACTIVE or PAUSED conversation as CANCELLED. For editors of its circle; without one, for its owner
    /// and administrators. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn cancel_conversation(
        &self,
        ctx: &Context<'_>,
        input: ConversationActionInput,
    ) -> Result<ConversationPayload, Error> {
        transit(ctx, &CANCEL, &input).await
    }

    /// Deletes a conversation that is not ACTIVE, with its messages. For editors of its circle; without one, for its
    /// owner and administrators. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn delete_conversation(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Conversation.parse(&input.id, "id")?;
        let outcome = change(ctx, async |mut change| {
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
            change.append(place.told("conversation.deleted", &row, json!({ "changed": [] })));
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Conversation, id, outcome.await?).await
    }
}

/// Moves a conversation one step on.
async fn transit(
    ctx: &Context<'_>,
    step: &'static Step,
    input: &ConversationActionInput,
) -> Result<ConversationPayload, Error> {
    let id = Kind::Conversation.parse(&input.conversation_id, "conversationId")?;
    let outcome = change(ctx, async |mut change| {
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
    /// Sets what is different once it is taken; a conversation that ends keeps the words of who ended it as the reason.
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

    /// What its event says of where it leads from and to.
    fn payload(&self, from: conversation::ConversationStatus) -> Value {
        let to = conversation::ConversationStatus::from(self.to);
        let mut payload = json!({ "fromStatus": from.to_value(), "toStatus": to.to_value() });
        if let Some(reason) = self.reason {
            payload["reason"] = json!(reason);
        }
        payload
    }

    /// Whether the conversation's state allows it.
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

/// The ids of a conversation that is to be made.
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

    /// How many take part, each once, and who leads.
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
                let message = "This agent takes part already.";
                check.fault(&format!("{field}.{n}"), UserErrorCode::Invalid, message);
            }
        }
        let is_led = strategy == TurnStrategy::FacilitatorLed;
        let (code, message) = match self.facilitator {
            None if is_led => (
                UserErrorCode::Required,
                "A FACILITATOR_LED conversation needs a facilitator.",
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

    /// The participants that are named again, by their place in the list.
    fn repeated(&self) -> impl Iterator<Item = (usize, Uuid)> {
        let mut known = HashSet::new();
        let all = self.participants.iter().copied().enumerate();
        all.filter(move |(_, id)| !known.insert(*id))
    }
}

/// Where a conversation is held, and with that who is told of it.
#[derive(Clone, Copy)]
pub(crate) struct EventScope {
    owner: Uuid,
    circle: Option<Uuid>,
    project: Option<Uuid>,
}

impl EventScope {
    /// What happens in a circle is told to the circle's owner: whoever owns the conversation may no longer read the circle.
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

    /// Something that happened there.
    pub(crate) fn fact(self, kind: &'static str, subject: Uuid, payload: Value) -> NewEvent {
        NewEvent::new(kind, subject, payload)
            .owner(self.owner)
            .circle(self.circle)
            .project(self.project)
    }

    /// Something that happened to a conversation: `payload`, an object, and what is said each time.
    pub(crate) fn told(
        self,
        kind: &'static str,
        row: &conversation::Model,
        mut payload: Value,
    ) -> NewEvent {
        payload["topic"] = json!(row.topic);
        payload["version"] = json!(row.version);
        self.fact(kind, row.id, payload)
    }

    /// A conversation was moved on from a state.
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
    /// What the row says of who speaks next.
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
    /// A conversation that the viewer may change, and where it is held; or why nothing there can be changed.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`; `FORBIDDEN`; `CONFLICT` when its circle goes in the same moment.
    pub(crate) async fn conversation(
        &self,
        id: Uuid,
        field: &str,
    ) -> Result<Result<(conversation::Model, EventScope), UserError>, Error> {
        let rule = &self.viewer.rules().conversation;
        // Its circle comes first, and only the conversation knows which that is.
        let held = conversation::Entity::find_by_id(id).filter(rule.condition());
        let held = held.one(&self.transaction).await?;
        let held = held.ok_or_else(|| Error::not_found(field))?;
        let circle = match held.circle_id {
            Some(circle) => match self.circle(circle, field, Access::Editor).await {
                // It was there a moment ago. A conversation that has lost its circle is its owner's alone to change.
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

    /// Those who are to take part are active members of the circle, or, without one, the viewer's own agents. Nobody
    /// deletes them until this change is done.
    ///
    /// # Errors
    /// `NOT_FOUND` and `FORBIDDEN`, naming the first.
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
                let message = "The agent is no active member of the circle.";
                check.fault(&field(n), UserErrorCode::NotMember, message);
            }
        }
        Ok(())
    }

    /// The task is one of the circle's.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    async fn check_task(&self, check: &mut Check, new: &NewConversation) -> Result<(), Error> {
        let Some(id) = new.task else { return Ok(()) };
        let task = task::Entity::find_by_id(id).filter(self.viewer.rules().task.condition());
        let task = task.one(&self.transaction).await?;
        let task = task.ok_or_else(|| Error::not_found("taskId"))?;
        if new.circle != Some(task.circle_id) {
            let message = "The task must be one of the circle that the conversation is held in.";
            check.fault("taskId", UserErrorCode::Invalid, message);
        }
        Ok(())
    }

    /// Holds the active conversations of a circle in which work ends.
    pub(crate) async fn pause_conversations(
        &mut self,
        circle: &circle::Model,
    ) -> Result<(), Error> {
        self.move_conversations(circle, &PAUSE).await
    }

    /// Ends the conversations of a circle that is to be deleted: without it, agents that belong to others would go on
    /// working for whoever owns the conversation.
    pub(crate) async fn cancel_conversations(
        &mut self,
        circle: &circle::Model,
    ) -> Result<(), Error> {
        self.move_conversations(circle, &CANCEL).await
    }

    /// Moves on all conversations of a circle whose state allows it, in one statement.
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
            // What ends with its circle is its owner's alone from then on.
            let ends = step.event == CANCEL.event;
            self.append(if ends { fact.owner(owner) } else { fact });
        }
        Ok(())
    }
}
