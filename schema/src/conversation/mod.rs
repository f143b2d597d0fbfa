//! Conversations: turn-based exchanges of messages between agents.

pub mod event;
mod inputs;
pub mod messages;
mod mutations;
mod prose;
mod turns;
pub(crate) mod workflow;

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};
use futures_util::future::try_join_all;
use gathering_entity::{agent, circle, conversation, message, participant, user};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait,
    sea_query::{self, Expr, ExprTrait, JoinType, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Viewer,
    agent::Agent,
    circle::{Circle, check_open},
    conversation::{
        event::EventScope,
        messages::{Message, MessageFilter},
        turns::Participant,
    },
    data::{
        Change, Column, Connection, EdgeField, Entries, FieldsOf, Listed, Noun, One, Order, Page,
        Stop, by_id,
    },
    db::{PageQuery, Rule, is_one_of},
    error::{Code, Error},
    id::Kind,
    request::RequestExt,
    scalar::DateTime,
    task::Task,
    user::User,
};

pub use mutations::ConversationMutation;

/// Maximum number of messages in a transcript.
const MAX_TRANSCRIPT: i32 = 500;

/// The strategy that selects the next speaker of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "conversation::TurnStrategy")]
pub enum TurnStrategy {
    /// Participants speak in the order of their positions.
    RoundRobin,
    /// The first mentioned participant speaks next; without a mention, as in `ROUND_ROBIN`.
    MentionBased,
    /// The first mentioned participant speaks next; without a mention, any that did not speak last.
    /// An agent may also speak out of turn.
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

/// A turn-based conversation between agents and users.
/// Visible to readers of its circle, or to its owner if it has no circle, and to administrators.
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

    /// The version, incremented by each edit and status transition.
    /// Pass it as `expectedVersion` to detect concurrent changes.
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
        let page = Page::new(first, after, last, before)?;
        Self::list_participants(self.0.id, ctx.request().viewer()?, &page)
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
        Self::list_messages(self.0.id, filter, &Page::new(first, after, last, before)?)
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

    fn fields() -> FieldsOf<Self> {
        use conversation::Column::{
            CircleId, CreatedAt, EndReason, EndedAt, FacilitatorId, InitialPrompt, LastMessageAt,
            MaxTurns, NextSpeakerId, OwnerId, StartedAt, Status, Summary, TaskId, Topic,
            TurnStrategy, TurnsTaken, UpdatedAt, Version,
        };
        FieldsOf::new()
            .by_id("conversation")
            .all("conversations", |list| {
                Self::list(list.viewer, list.get("filter")?, &list.page)
            })
            .columns([Topic, Status, TurnStrategy, MaxTurns, TurnsTaken, EndReason])
            .columns([
                StartedAt,
                LastMessageAt,
                EndedAt,
                CreatedAt,
                UpdatedAt,
                Version,
            ])
            .texts([InitialPrompt, Summary])
            .one::<User>("owner", OwnerId)
            .one::<Circle>("circle", CircleId)
            .one_readable::<Task>("task", TaskId)
            .one_readable::<Agent>("facilitator", FacilitatorId)
            .one_readable::<Agent>("nextSpeaker", NextSpeakerId)
            .list("participants", |list| {
                Self::list_participants(list.parent, list.viewer, &list.page)
            })
            .list("messages", |list| {
                Self::list_messages(list.parent, list.get("filter")?, &list.page)
            })
    }
}

impl Conversation {
    fn list(
        viewer: &Viewer,
        filter: Option<ConversationFilter>,
        page: &Page,
    ) -> Result<Connection<Self>, Error> {
        let filter = ConversationFilter::condition(filter)?;
        let order = Order::descending([conversation::Column::Id]);
        Connection::within(viewer.all_conversations(), filter, order, page)
    }

    fn list_participants(
        conversation: Uuid,
        viewer: &Viewer,
        page: &Page,
    ) -> Result<Connection<Participants>, Error> {
        use participant::Column::{AgentId, ConversationId, Position};
        let mut condition = Condition::all();
        if !viewer.is_admin() {
            let readable = agent::Entity::find()
                .select_only()
                .column(agent::Column::Id)
                .filter(viewer.agents())
                .into_query();
            condition = condition.add(AgentId.in_subquery(readable));
        }
        let order = Order::ascending([Position]);
        Connection::of(ConversationId, conversation, condition, order, page)
    }

    fn list_messages(
        conversation: Uuid,
        filter: Option<MessageFilter>,
        page: &Page,
    ) -> Result<Connection<Message>, Error> {
        let condition = MessageFilter::condition(filter)?;
        let order = Order::ascending([message::Column::Seq]);
        Connection::of(
            message::Column::ConversationId,
            conversation,
            condition,
            order,
            page,
        )
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

    fn entries() -> Option<Entries> {
        use participant::Column::{AgentId, JoinedAt, Position};
        Some(Entries {
            node: Some(One::to::<Agent>(AgentId)),
            row: String::new(),
            extra: vec![
                ("position", EdgeField::Column(Column::of(Position))),
                ("joinedAt", EdgeField::Column(Column::of(JoinedAt))),
            ],
        })
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
            .map(|list| is_one_of::<conversation::ConversationStatus>(Status, list));
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
        by_id(ctx, &id).await
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
        let page = Page::new(first, after, last, before)?;
        Conversation::list(ctx.request().viewer()?, filter, &page)
    }
}

/// Loads and locks a conversation that the viewer may change, with its event scope. Refused if its circle is archived.
///
/// # Errors
/// `NOT_FOUND`, naming `field`; `FORBIDDEN`; `CONFLICT` if its circle is deleted concurrently.
pub(crate) async fn editable(
    change: &Change<'_>,
    id: Uuid,
    field: &str,
) -> Result<(conversation::Model, EventScope), Stop> {
    let rule = &change.viewer.rules().conversation;
    // The circle must be locked first, and only the conversation's row names it.
    let held = conversation::Entity::find_by_id(id).filter(rule.condition());
    let held = held.one(&change.transaction).await?;
    let held = held.ok_or_else(|| Error::not_found(field))?;
    let circle = match held.circle_id {
        Some(circle) => match crate::circle::editable(change, circle, field).await {
            // The circle was deleted after the row was read. Without a circle, only the owner may change the
            // conversation.
            Err(error) if error.code == Code::NotFound => return Err(Error::conflict().into()),
            circle => Some(circle?),
        },
        None => None,
    };
    let row = change.row::<conversation::Entity>(rule, id, field).await?;
    if let Some(circle) = &circle {
        check_open(circle)?;
    }
    let scope = EventScope::of(&row, circle.as_ref());
    Ok((row, scope))
}

/// The participants of a conversation, in the order of their positions.
pub(crate) async fn participants(change: &Change<'_>, id: Uuid) -> Result<Vec<Participant>, Error> {
    let mut select = participants_of(Expr::val(id));
    select.order_by(
        participant::Column::Position.as_column_ref(),
        sea_query::Order::Asc,
    );
    let rows = change.transaction.query_all(&select).await?;
    let rows = rows
        .iter()
        .map(|row| Participant::from_query_result(row, ""));
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Selects the participants of a conversation.
fn participants_of(conversation: Expr) -> SelectStatement {
    let of = Expr::col(participant::Column::ConversationId.as_column_ref());
    let mut select = agent::Entity::find()
        .select_only()
        .columns([
            agent::Column::Id,
            agent::Column::Name,
            agent::Column::ModelId,
        ])
        .filter(of.eq(conversation))
        .into_query();
    let same = Expr::col(participant::Column::AgentId.as_column_ref())
        .equals(agent::Column::Id.as_column_ref());
    select.join(JoinType::InnerJoin, participant::Entity, same);
    select
}
