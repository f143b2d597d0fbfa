//! Conversations: ordered talks between agents.

use std::sync::Arc;

use async_graphql::{
    Context, Enum, ID, InputObject, Object, SimpleObject, connection::EmptyFields,
};
use futures_util::future::try_join_all;
use gathering_entity::{agent, circle, conversation, message, participant, user};
use sea_orm::{
    ActiveEnum, ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait,
    sea_query::{Expr, ExprTrait, LockType},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    agent::Agent,
    circle::Circle,
    ctx::Door,
    error::Error,
    id::Kind,
    live::Fact,
    message::{MessageFilter, Messages},
    page::{Connection, Listed, Order, Page},
    read::Pages,
    scalar::DateTime,
    task::Task,
    user::User,
    write::Change,
};

/// Most lines of a transcript.
const MAX_TRANSCRIPT: i32 = 500;

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
    async fn initial_prompt(&self) -> Option<&str> {
        self.0.initial_prompt.as_deref()
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
    async fn summary(&self) -> Option<&str> {
        self.0.summary.as_deref()
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
        let pages = Pages::<message::Model>::new(
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
            Status.is_in(
                status
                    .into_iter()
                    .map(conversation::ConversationStatus::from),
            )
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

/// Where a conversation is held, and with that who is told of it.
#[derive(Clone, Copy)]
struct Place {
    owner: Uuid,
    circle: Option<Uuid>,
    project: Option<Uuid>,
}

impl Place {
    /// In a circle: what happens there is its owner's.
    fn in_circle(circle: &circle::Model) -> Self {
        Self {
            owner: circle.owner_id,
            circle: Some(circle.id),
            project: circle.project_id,
        }
    }

    fn fact(self, kind: &'static str, subject: Uuid, payload: Value) -> Fact {
        Fact::new(kind, subject, payload)
            .owner(self.owner)
            .circle(self.circle)
            .project(self.project)
    }
}

impl Change<'_> {
    /// Holds the active conversations of a circle that stops.
    pub(crate) async fn pause_conversations(
        &mut self,
        circle: &circle::Model,
    ) -> Result<(), Error> {
        use conversation::{
            Column::{CircleId, Id, Status, Topic, UpdatedAt, Version},
            ConversationStatus::{Active, Paused},
        };
        let active: Vec<(Uuid, String, i32)> = conversation::Entity::find()
            .select_only()
            .columns([Id, Topic, Version])
            .filter(CircleId.eq(circle.id))
            .filter(Status.eq(Active))
            .order_by_asc(Id)
            .lock(LockType::NoKeyUpdate)
            .into_tuple()
            .all(&self.transaction)
            .await?;
        if active.is_empty() {
            return Ok(());
        }
        conversation::Entity::update_many()
            .col_expr(Status, Expr::value(Paused.to_value()))
            .col_expr(Version, Expr::col(Version).add(1))
            .col_expr(UpdatedAt, Expr::value(self.now))
            .filter(CircleId.eq(circle.id))
            .filter(Status.eq(Active))
            .exec(&self.transaction)
            .await?;
        for (id, topic, version) in active {
            let payload = json!({
                "topic": topic,
                "fromStatus": Active.to_value(),
                "toStatus": Paused.to_value(),
                "version": version + 1,
            });
            self.announce(Place::in_circle(circle).fact("conversation.paused", id, payload));
        }
        Ok(())
    }
}
