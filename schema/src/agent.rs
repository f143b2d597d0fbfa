//! Agents: the configured AI workers.

use std::sync::Arc;

use async_graphql::{
    Context, Enum, ID, InputObject, Object, SimpleObject, connection::EmptyFields,
};
use gathering_entity::{
    agent, circle, conversation, event, member, message, model, participant, persona, task, user,
};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait,
    sea_query::{self, Expr, ExprTrait, Func, JoinType, NullOrdering, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    circle::CircleFilter,
    conversation::{Conversation, ConversationFilter, Conversations},
    ctx::Door,
    error::Error,
    event::{EventFilter, Events},
    id::Kind,
    member::AgentCircles,
    model::Model,
    order::SortDirection,
    page::{Connection, Listed, Order, Page},
    persona::Persona,
    read::{Pages, Totals},
    scalar::DateTime,
    task::{Task, TaskFilter, TaskOrder, Tasks},
    text,
    user::User,
    viewer::Viewer,
};

/// Most tasks in [`AgentActivity`].
const RECENT_TASKS: u64 = 10;
/// Most conversations in [`AgentActivity`].
const RECENT_CONVERSATIONS: u64 = 5;

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "agent::AgentStatus")]
pub enum AgentStatus {
    /// Ready for work.
    Idle,
    /// At work.
    Busy,
    /// Taken out of work by its owner; nothing is routed to it.
    Offline,
}

/// A configured AI worker.
pub struct Agent(pub(crate) Arc<agent::Model>);

/// A configured AI worker: persona, model, prompt, competencies. Read by its owner, by readers of a circle in which it
/// is an active member, and by administrators.
#[Object]
impl Agent {
    /// The id of the agent, `agent_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Agent.id(self.0.id)
    }

    /// Who owns it.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.owner_id).await?;
        row.map(User::new).ok_or_else(|| Error::not_found("owner"))
    }

    /// The name, unique among its owner's agents; at most 100 characters.
    pub(crate) async fn name(&self) -> &str {
        &self.0.name
    }

    /// The character it takes on.
    async fn persona(&self, ctx: &Context<'_>) -> Result<Option<Persona>, Error> {
        let Some(id) = self.0.persona_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<persona::Entity>(id).await?.map(Persona))
    }

    /// The model it runs on.
    async fn model(&self, ctx: &Context<'_>) -> Result<Option<Model>, Error> {
        let Some(id) = self.0.model_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<model::Entity>(id).await?.map(Model))
    }

    /// What it is told before it begins, at most 20,000 characters. Null for everyone but its owner and administrators.
    async fn system_prompt(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        let viewer = ctx.request().viewer()?;
        let may_read = viewer.is_admin() || viewer.id() == self.0.owner_id;
        Ok(self.0.system_prompt.as_deref().filter(|_| may_read))
    }

    /// What it is doing.
    async fn status(&self) -> AgentStatus {
        self.0.status.into()
    }

    /// When it last did something.
    async fn last_active_at(&self) -> DateTime {
        self.0.last_active_at.into()
    }

    /// What it is like; at most 50 words.
    async fn traits(&self) -> &[String] {
        &self.0.traits.0
    }

    /// What it is able to do; at most 50 words.
    async fn competencies(&self) -> &[String] {
        &self.0.competencies.0
    }

    /// What it knows best; at most 50 words.
    async fn specializations(&self) -> &[String] {
        &self.0.specializations.0
    }

    /// The kinds of review it does, `all` for every kind.
    async fn review_types(&self) -> &[String] {
        &self.0.review_types.0
    }

    /// How it talks, at most 50 characters.
    async fn communication_style(&self) -> Option<&str> {
        self.0.communication_style.as_deref()
    }

    /// How hard it is to please as a reviewer, from 0 to 1.
    async fn review_strictness(&self) -> f64 {
        self.0.review_strictness
    }

    /// The sampling temperature of its answers, from 0 to 2.
    async fn temperature(&self) -> f64 {
        self.0.temperature
    }

    /// How many tokens it may write in one answer; null for the model's own limit.
    async fn max_tokens(&self) -> Option<i32> {
        self.0.max_tokens
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// Grows by one with every edit; give it as `expectedVersion` to change only what you saw.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// What it has been doing lately, as far as the viewer may read it.
    async fn recent_activity(&self) -> AgentActivity {
        AgentActivity { agent: self.0.id }
    }

    /// The circles in which it is an active member and which the viewer may read, in the order in which it joined.
    async fn circles(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<CircleFilter>,
    ) -> Result<Connection<AgentCircles>, Error> {
        let viewer = ctx.request().viewer()?;
        let mut condition = Condition::all().add(member::Column::IsActive.eq(true));
        if filter.is_some() || !viewer.is_admin() {
            let circles = circle::Entity::find()
                .select_only()
                .column(circle::Column::Id)
                .filter(viewer.circles())
                .filter(CircleFilter::condition(filter, viewer)?)
                .into_query();
            condition = condition.add(member::Column::CircleId.in_subquery(circles));
        }
        Connection::of(
            member::Column::AgentId,
            self.0.id,
            condition,
            Order::ascending([member::Column::JoinedAt, member::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The tasks assigned to it that the viewer may read, newest first unless `orderBy` says otherwise.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is an argument of the GraphQL field"
    )]
    async fn tasks(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<TaskFilter>,
        order_by: Option<TaskOrder>,
    ) -> Result<Connection<Tasks>, Error> {
        let readable = ctx.request().viewer()?.tasks();
        Connection::of(
            task::Column::AssigneeId,
            self.0.id,
            Condition::all()
                .add(readable)
                .add(TaskFilter::condition(filter)?),
            Tasks::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The conversations in which it takes part and which the viewer may read, newest first.
    async fn conversations(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ConversationFilter>,
    ) -> Result<Connection<Conversations>, Error> {
        let condition = ConversationFilter::condition(filter)?;
        Connection::select(
            conversations(ctx.request().viewer()?, condition),
            Some((participant::Column::AgentId.as_column_ref(), self.0.id)),
            Order::descending([conversation::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// What happened to it, as far as the viewer may read it; newest first.
    async fn events(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<EventFilter>,
    ) -> Result<Connection<Events>, Error> {
        Events::of(
            ctx,
            event::Column::AgentId,
            self.0.id,
            filter,
            &Page::new(first, after, last, before)?,
        )
    }
}

impl Agent {
    /// The agent with this row id, as far as the viewer may read it.
    pub(crate) async fn readable(
        ctx: &Context<'_>,
        id: Option<Uuid>,
    ) -> Result<Option<Self>, Error> {
        let Some(id) = id else { return Ok(None) };
        let rule = &ctx.request().viewer()?.rules().agent;
        Ok(ctx
            .request()
            .readable::<agent::Entity>(rule, id)
            .await?
            .map(Self))
    }
}

/// The conversations that an agent takes part in and the viewer may read, joined to its participation.
fn conversations(viewer: &Viewer, condition: Condition) -> SelectStatement {
    let mut select = conversation::Entity::find()
        .filter(viewer.conversations())
        .filter(condition)
        .into_query();
    let takes_part = Expr::col(participant::Column::ConversationId.as_column_ref())
        .equals(conversation::Column::Id.as_column_ref());
    select.join(JoinType::InnerJoin, participant::Entity, takes_part);
    select
}

/// What an agent has been doing lately.
pub struct AgentActivity {
    agent: Uuid,
}

/// What an agent has been doing lately, as far as the viewer may read it.
#[Object]
impl AgentActivity {
    /// Messages the agent wrote.
    async fn total_messages(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.messages)
    }

    /// Tasks assigned to the agent that are done.
    async fn completed_tasks(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.completed)
    }

    /// Tasks assigned to the agent that are `IN_PROGRESS`.
    async fn active_tasks(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.active)
    }

    /// Conversations with a message of the agent.
    async fn conversations_participated(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.conversations)
    }

    /// The five conversations it takes part in that began last, those not begun at the end.
    async fn recent_conversations(
        &self,
        ctx: &Context<'_>,
    ) -> Result<Vec<AgentConversation>, Error> {
        let mut select = conversations(ctx.request().viewer()?, Condition::all());
        let messages = || {
            Query::select()
                .expr(Func::count(Expr::val(1)))
                .from(message::Entity)
                .and_where(
                    Expr::col(message::Column::ConversationId.as_column_ref())
                        .equals(conversation::Column::Id.as_column_ref()),
                )
                .take()
        };
        let mut own = messages();
        own.and_where(
            Expr::col(message::Column::AgentId.as_column_ref())
                .equals(participant::Column::AgentId.as_column_ref()),
        );
        select
            .expr_as(own, "own_messages")
            .expr_as(messages(), "total_messages")
            .order_by_with_nulls(
                conversation::Column::StartedAt.as_column_ref(),
                sea_query::Order::Desc,
                NullOrdering::Last,
            )
            .order_by(
                conversation::Column::Id.as_column_ref(),
                sea_query::Order::Desc,
            )
            .limit(RECENT_CONVERSATIONS);
        let pages = Pages::<RecentConversation>::new(
            "recent conversations",
            select,
            Some(participant::Column::AgentId.as_column_ref()),
        );
        let rows = ctx.request().load(pages, self.agent).await?;
        Ok(rows
            .iter()
            .map(|row| AgentConversation {
                conversation: Conversation(Arc::clone(&row.conversation)),
                own_messages: row.own_messages,
                total_messages: row.total_messages,
            })
            .collect())
    }

    /// The ten newest tasks assigned to it.
    async fn recent_tasks(&self, ctx: &Context<'_>) -> Result<Vec<Task>, Error> {
        let select = task::Entity::find()
            .filter(ctx.request().viewer()?.tasks())
            .order_by_desc(task::Column::Id)
            .limit(RECENT_TASKS)
            .into_query();
        let pages = Pages::<task::Model>::new(
            "recent tasks",
            select,
            Some(task::Column::AssigneeId.as_column_ref()),
        );
        let rows = ctx.request().load(pages, self.agent).await?;
        Ok(rows.iter().map(|row| Task(Arc::clone(row))).collect())
    }
}

impl AgentActivity {
    async fn totals(&self, ctx: &Context<'_>) -> Result<ActivityTotals, Error> {
        let viewer = ctx.request().viewer()?;
        let of_agent = |column: (_, _)| Expr::col(column).equals(agent::Column::Id.as_column_ref());
        let messages = |count: sea_query::FunctionCall| {
            let mut select = Query::select()
                .expr(count)
                .from(message::Entity)
                .and_where(of_agent(message::Column::AgentId.as_column_ref()))
                .take();
            if !viewer.is_admin() {
                let readable = conversation::Entity::find()
                    .select_only()
                    .column(conversation::Column::Id)
                    .filter(viewer.conversations())
                    .into_query();
                select.and_where(message::Column::ConversationId.in_subquery(readable));
            }
            select
        };
        let tasks = |status: task::TaskStatus| {
            Query::select()
                .expr(Func::count(Expr::val(1)))
                .from(task::Entity)
                .and_where(of_agent(task::Column::AssigneeId.as_column_ref()))
                .and_where(task::Column::Status.eq(status))
                .cond_where(viewer.tasks())
                .take()
        };
        let talked_in = Expr::col(message::Column::ConversationId.as_column_ref());
        let select = agent::Entity::find()
            .select_only()
            .expr_as(messages(Func::count(Expr::val(1))), "messages")
            .expr_as(messages(Func::count_distinct(talked_in)), "conversations")
            .expr_as(tasks(task::TaskStatus::Completed), "completed")
            .expr_as(tasks(task::TaskStatus::InProgress), "active")
            .into_query();
        let totals = Totals::new(
            "agent activity",
            select,
            Some(agent::Column::Id.as_column_ref()),
        );
        ctx.request().load(totals, self.agent).await
    }
}

#[derive(Clone, Default, FromQueryResult)]
struct ActivityTotals {
    messages: i64,
    conversations: i64,
    completed: i64,
    active: i64,
}

struct RecentConversation {
    conversation: Arc<conversation::Model>,
    own_messages: i64,
    total_messages: i64,
}

impl FromQueryResult for RecentConversation {
    fn from_query_result(row: &sea_orm::QueryResult, prefix: &str) -> Result<Self, sea_orm::DbErr> {
        Ok(Self {
            conversation: Arc::new(conversation::Model::from_query_result(row, prefix)?),
            own_messages: row.try_get(prefix, "own_messages")?,
            total_messages: row.try_get(prefix, "total_messages")?,
        })
    }
}

/// A conversation an agent takes part in.
#[derive(SimpleObject)]
pub struct AgentConversation {
    /// The conversation.
    conversation: Conversation,
    /// Messages in it that the agent wrote.
    own_messages: i64,
    /// All messages in it.
    total_messages: i64,
}

/// Agents as a list.
pub struct Agents;

impl Listed for Agents {
    type Entity = agent::Entity;
    type Node = Agent;
    type Extra = EmptyFields;
    const NAME: &'static str = "Agent";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<agent::Model>],
    ) -> Result<Vec<Option<Agent>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Agent(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<agent::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// What agents may be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum AgentOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// The folded name, character by character.
    Name,
    /// When it last did something.
    LastActiveAt,
}

/// An order of agents.
#[derive(Clone, Copy, InputObject)]
pub struct AgentOrder {
    /// What to order by.
    field: AgentOrderField,
    /// Which end comes first.
    #[graphql(default_with = "SortDirection::Desc")]
    direction: SortDirection,
}

impl Agents {
    fn order(by: Option<AgentOrder>) -> Order<agent::Column> {
        use agent::Column::{Id, LastActiveAt, NameKey, UpdatedAt};
        let Some(AgentOrder { field, direction }) = by else {
            return Order::descending([Id]);
        };
        match field {
            AgentOrderField::CreatedAt => direction.over([Id]),
            AgentOrderField::UpdatedAt => direction.over([UpdatedAt, Id]),
            AgentOrderField::Name => direction.over([NameKey, Id]),
            AgentOrderField::LastActiveAt => direction.over([LastActiveAt, Id]),
        }
    }
}

/// Narrows a list of agents. All given conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct AgentFilter {
    /// Only agents in one of these states.
    status: Option<Vec<AgentStatus>>,
    /// Only agents that run on this model.
    model_id: Option<ID>,
    /// Only agents with this persona.
    persona_id: Option<ID>,
    /// Only agents with exactly this competency, whatever its case; at most 100 characters.
    competency: Option<String>,
    /// Only agents whose name contains this text, whatever its case; at most 100 characters.
    search: Option<String>,
}

impl AgentFilter {
    fn condition(self, backend: DbBackend) -> Result<Condition, Error> {
        let status = self.status.map(|status| {
            agent::Column::Status.is_in(status.into_iter().map(agent::AgentStatus::from))
        });
        let model = Kind::Model.parse_opt(self.model_id.as_ref(), "modelId")?;
        let persona = Kind::Persona.parse_opt(self.persona_id.as_ref(), "personaId")?;
        let competency = self
            .competency
            .map(|competency| text::filter(&competency, "competency"))
            .transpose()?
            .map(|competency| {
                has(
                    backend,
                    agent::Column::Competencies,
                    &text::fold(&competency),
                )
            });
        Ok(Condition::all()
            .add_option(status)
            .add_option(model.map(|id| agent::Column::ModelId.eq(id)))
            .add_option(persona.map(|id| agent::Column::PersonaId.eq(id)))
            .add_option(competency)
            .add_option(
                self.search
                    .map(|search| {
                        text::contains(Expr::col(agent::Column::NameKey.as_column_ref()), &search)
                    })
                    .transpose()?,
            ))
    }
}

/// A list column has an entry: the one condition that each database writes in its own way.
fn has(backend: DbBackend, column: agent::Column, entry: &str) -> Expr {
    let list = Expr::col(column.as_column_ref());
    if backend == DbBackend::Postgres {
        list.binary(
            sea_query::extension::postgres::PgBinOper::Contains,
            Expr::val(serde_json::json!([entry])),
        )
    } else {
        let entries = Query::select()
            .column("value")
            .from_function(Func::cust("json_each").arg(list), "entry")
            .take();
        Expr::val(entry).in_subquery(entries)
    }
}

/// Queries about agents.
#[derive(Default)]
pub struct AgentQuery;

#[Object]
impl AgentQuery {
    /// The agent with this id.
    async fn agent(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Agent>, Error> {
        let rule = &ctx.request().viewer()?.rules().agent;
        let row = ctx
            .request()
            .look_up::<agent::Entity>(Kind::Agent, rule, &id)
            .await?;
        Ok(Some(Agent(row)))
    }

    /// The agents that the viewer may read, newest first unless `orderBy` says otherwise.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is an argument of the GraphQL field"
    )]
    async fn agents(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<AgentFilter>,
        order_by: Option<AgentOrder>,
    ) -> Result<Connection<Agents>, Error> {
        let request = ctx.request();
        let condition = filter
            .map(|filter| filter.condition(request.services.backend))
            .transpose()?;
        Connection::new(
            Condition::all()
                .add(request.viewer()?.agents())
                .add(condition.unwrap_or_else(Condition::all)),
            Agents::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }
}
