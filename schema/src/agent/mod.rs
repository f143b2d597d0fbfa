//! Agents: the configured AI workers.

pub mod event;

use crate::db::Rule;
use std::{ops::RangeInclusive, sync::Arc};

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{
    List, agent, circle, conversation, member, message, model, participant, persona, task, user,
};
use sea_orm::{
    ActiveEnum, ActiveModelTrait, ActiveValue, ColumnTrait, Condition, ConnectionTrait, DbBackend,
    EntityTrait, FromQueryResult, IntoActiveModel, ModelTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait, Set,
    sea_query::{
        self, Expr, ExprTrait, Func, JoinType, LockType, NullOrdering, Query, SelectStatement,
    },
};
use serde_json::json;
use uuid::Uuid;

use crate::data::Noun;
use crate::{
    access::Viewer,
    catalogue::{model::Model, persona::Persona},
    circle::{
        CircleFilter,
        members::{AgentCircles, removed, reviewing},
    },
    conversation::{Conversation, ConversationFilter},
    data::{
        Change, Connection, Edits, Order, Outcome, Page, SortDirection, change, check_version,
        list_size,
    },
    db::{PageQuery, Totals, is_among, is_taken},
    deletion::{DeleteInput, DeletePayload, in_use},
    error::Error,
    event::{EventFilter, Events},
    events::{EventType, NewEvent},
    id::Kind,
    input::{Check, UserError, UserErrorCode, entries},
    request::RequestExt,
    scalar::DateTime,
    task::{Task, TaskFilter, TaskOrder},
    text,
    user::User,
};

/// Maximum length of an agent's name, in characters.
const MAX_NAME: usize = 100;
/// Maximum length of a system prompt, in characters.
pub(crate) const MAX_PROMPT: usize = 20_000;
/// Maximum length of a communication style, in characters.
pub(crate) const MAX_STYLE: usize = 50;
/// Maximum number of entries of a list field, and maximum length of an entry in characters.
pub(crate) const MAX_LIST: usize = 50;
pub(crate) const MAX_ENTRY: usize = 100;
/// The allowed sampling temperatures.
pub(crate) const TEMPERATURE: RangeInclusive<f64> = 0.0..=2.0;
/// The temperature if neither the input nor the persona sets one.
const USUAL_TEMPERATURE: f64 = 0.7;
/// The allowed review strictness.
const STRICTNESS: RangeInclusive<f64> = 0.0..=1.0;

/// Maximum number of tasks in [`AgentActivity`].
const RECENT_TASKS: u64 = 10;
/// Maximum number of conversations in [`AgentActivity`].
const RECENT_CONVERSATIONS: u64 = 5;

/// The status of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "agent::AgentStatus")]
pub enum AgentStatus {
    /// Ready for work.
    Idle,
    /// Working: at least one of its tasks is `IN_PROGRESS`.
    Busy,
    /// Taken offline by its owner; no tasks are routed to it.
    Offline,
}

/// A configured AI worker.
pub struct Agent(pub(crate) Arc<agent::Model>);

/// A configured AI worker: persona, model, prompt and competencies. Visible to its owner, to readers of the circles in
/// which it is an active member, and to administrators.
#[Object]
impl Agent {
    /// The id of the agent, `agent_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Agent.id(self.0.id)
    }

    /// The owner.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.owner_id).await?;
        row.map(User::new).ok_or_else(|| Error::not_found("owner"))
    }

    /// The name, unique among its owner's agents; at most 100 characters.
    pub(crate) async fn name(&self) -> &str {
        &self.0.name
    }

    /// The persona it is based on.
    async fn persona(&self, ctx: &Context<'_>) -> Result<Option<Persona>, Error> {
        let Some(id) = self.0.persona_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<persona::Entity>(id).await?.map(Persona))
    }

    /// The language model it runs on.
    async fn model(&self, ctx: &Context<'_>) -> Result<Option<Model>, Error> {
        let Some(id) = self.0.model_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<model::Entity>(id).await?.map(Model))
    }

    /// The system prompt, at most 20,000 characters. Null unless the viewer is its owner or an administrator.
    async fn system_prompt(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        let viewer = ctx.request().viewer()?;
        let may_read = viewer.is_admin() || viewer.id() == self.0.owner_id;
        let prompt = self.0.system_prompt.as_deref();
        ctx.request().text(prompt.filter(|_| may_read))
    }

    /// The status.
    async fn status(&self) -> AgentStatus {
        self.0.status.into()
    }

    /// When it was last active: it posted a message, or one of its tasks changed status.
    async fn last_active_at(&self) -> DateTime {
        self.0.last_active_at.into()
    }

    /// The personality traits, at most 50 entries.
    async fn traits(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.traits.0.as_slice())
    }

    /// The competencies, at most 50 entries.
    async fn competencies(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.competencies.0.as_slice())
    }

    /// The areas of specialization, at most 50 entries.
    async fn specializations(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.specializations.0.as_slice())
    }

    /// The review types it handles; `all` means every type.
    async fn review_types(&self) -> &[String] {
        &self.0.review_types.0
    }

    /// The communication style, at most 50 characters.
    async fn communication_style(&self) -> Option<&str> {
        self.0.communication_style.as_deref()
    }

    /// The strictness as a reviewer, from 0 (lenient) to 1 (strict).
    async fn review_strictness(&self) -> f64 {
        self.0.review_strictness
    }

    /// The sampling temperature of its responses, from 0 to 2.
    async fn temperature(&self) -> f64 {
        self.0.temperature
    }

    /// The maximum number of output tokens per response; null for the model's limit.
    async fn max_tokens(&self) -> Option<i32> {
        self.0.max_tokens
    }

    /// When it was created.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// The version, incremented by each edit. Pass it as `expectedVersion` to detect concurrent changes.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// Recent activity, limited to what the viewer may read.
    async fn recent_activity(&self) -> AgentActivity {
        AgentActivity { agent: self.0.id }
    }

    /// The circles of which it is an active member and that the viewer may read, ordered by join time.
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

    /// The assigned tasks that the viewer may read. Newest first unless `orderBy` is given.
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
    ) -> Result<Connection<Task>, Error> {
        let readable = ctx.request().viewer()?.tasks();
        Connection::of(
            task::Column::AssigneeId,
            self.0.id,
            Condition::all()
                .add(readable)
                .add(TaskFilter::condition(filter)?),
            Task::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The conversations in which it takes part and that the viewer may read, newest first.
    async fn conversations(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ConversationFilter>,
    ) -> Result<Connection<Conversation>, Error> {
        let condition = ConversationFilter::condition(filter)?;
        Connection::select(
            conversations(ctx.request().viewer()?, condition),
            Some((participant::Column::AgentId.as_column_ref(), self.0.id)),
            Order::descending([conversation::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The events that concern it and that the viewer may read, newest first.
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
            gathering_entity::event::Column::AgentId,
            self.0.id,
            filter,
            &Page::new(first, after, last, before)?,
        )
    }
}

impl Agent {
    /// Loads the agent with this row id; `None` if the viewer may not read it.
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

/// Selects the conversations in which an agent takes part and that the viewer may read, joined with the participation.
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

/// The recent activity of an agent.
pub struct AgentActivity {
    agent: Uuid,
}

/// The recent activity of an agent: totals, latest conversations and latest tasks. Limited to what the viewer may read.
#[Object]
impl AgentActivity {
    /// The number of messages written by the agent.
    async fn total_messages(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.messages)
    }

    /// The number of completed tasks assigned to the agent.
    async fn completed_tasks(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.completed)
    }

    /// The number of tasks assigned to the agent that are `IN_PROGRESS`.
    async fn active_tasks(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.active)
    }

    /// The number of conversations with a message from the agent.
    async fn conversations_participated(&self, ctx: &Context<'_>) -> Result<i64, Error> {
        Ok(self.totals(ctx).await?.conversations)
    }

    /// The five most recently started conversations in which it takes part; those not started come last.
    #[graphql(directive = list_size::apply(Some(5), None, None))]
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
        let pages = PageQuery::<RecentConversation>::new(
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
    #[graphql(directive = list_size::apply(Some(10), None, None))]
    async fn recent_tasks(&self, ctx: &Context<'_>) -> Result<Vec<Task>, Error> {
        let select = task::Entity::find()
            .filter(ctx.request().viewer()?.tasks())
            .order_by_desc(task::Column::Id)
            .limit(RECENT_TASKS)
            .into_query();
        let pages = PageQuery::<task::Model>::new(
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

/// A conversation in which an agent takes part, with message counts.
#[derive(SimpleObject)]
pub struct AgentConversation {
    /// The conversation.
    conversation: Conversation,
    /// The number of messages in it written by the agent.
    own_messages: i64,
    /// The total number of messages in it.
    total_messages: i64,
}

impl From<Arc<agent::Model>> for Agent {
    fn from(row: Arc<agent::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Agent {
    type Entity = agent::Entity;
    const KIND: Kind = Kind::Agent;
    const NAME: &'static str = "Agent";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        Some(viewer.rules().agent.clone())
    }
}

/// The fields by which agents can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum AgentOrderField {
    /// When it was created.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// The case-folded name, in code point order.
    Name,
    /// When it was last active: it posted a message, or one of its tasks changed status.
    LastActiveAt,
}

/// Orders a list of agents.
#[derive(Clone, Copy, InputObject)]
pub struct AgentOrder {
    /// The field to order by.
    field: AgentOrderField,
    /// The sort direction.
    #[graphql(default_with = "SortDirection::Desc")]
    direction: SortDirection,
}

impl Agent {
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

/// Filters a list of agents. All conditions must match; an empty list matches nothing.
#[derive(InputObject)]
pub struct AgentFilter {
    /// Only agents with one of these statuses.
    status: Option<Vec<AgentStatus>>,
    /// Only agents that run on this model.
    model_id: Option<ID>,
    /// Only agents with this persona.
    persona_id: Option<ID>,
    /// Only agents with exactly this competency, case-insensitive; at most 100 characters.
    competency: Option<String>,
    /// Only agents whose name contains this text, case-insensitive; at most 100 characters.
    search: Option<String>,
}

impl AgentFilter {
    fn condition(self, backend: DbBackend) -> Result<Condition, Error> {
        let status = self.status.map(|status| {
            agent::Column::Status.is_in(crate::db::distinct(
                status.into_iter().map(agent::AgentStatus::from),
            ))
        });
        let model = Kind::Model.parse_opt(self.model_id.as_ref(), "modelId")?;
        let persona = Kind::Persona.parse_opt(self.persona_id.as_ref(), "personaId")?;
        let competency = self
            .competency
            .map(|competency| crate::db::filter(&competency, "competency"))
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
                        crate::db::contains(
                            Expr::col(agent::Column::NameKey.as_column_ref()),
                            &search,
                        )
                    })
                    .transpose()?,
            ))
    }
}

/// Whether a list column contains an entry. PostgreSQL and SQLite need different SQL for it.
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

/// Agent queries.
#[derive(Default)]
pub struct AgentQuery;

#[Object]
impl AgentQuery {
    /// Fetches an agent by id. `NOT_FOUND` if it does not exist or the viewer may not read it.
    async fn agent(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Agent>, Error> {
        let rule = &ctx.request().viewer()?.rules().agent;
        let row = ctx
            .request()
            .look_up::<agent::Entity>(Kind::Agent, rule, &id)
            .await?;
        Ok(Some(Agent(row)))
    }

    /// Lists the agents that the viewer may read. Newest first unless `orderBy` is given.
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
    ) -> Result<Connection<Agent>, Error> {
        let request = ctx.request();
        let condition = filter
            .map(|filter| filter.condition(request.services.backend))
            .transpose()?;
        Connection::new(
            Condition::all()
                .add(request.viewer()?.agents())
                .add(condition.unwrap_or_else(Condition::all)),
            Agent::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// Payload of `createAgent` and `updateAgent`.
#[derive(SimpleObject)]
pub struct AgentPayload {
    /// The agent in its current state; null if there is none.
    agent: Option<Agent>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl AgentPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            agent: outcome.row::<Agent>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `createAgent`.
#[derive(InputObject)]
pub struct CreateAgentInput {
    /// The name, 1 to 100 characters, unique among the caller's agents.
    name: String,
    /// The persona it is based on. `NOT_FOUND` if there is no such persona.
    persona_id: Option<ID>,
    /// The language model; defaults to that of the persona. `NOT_FOUND` if there is no such model.
    model_id: Option<ID>,
    /// The system prompt, at most 20,000 characters.
    system_prompt: Option<String>,
    /// The personality traits; at most 50 entries of at most 100 characters.
    traits: Option<Vec<String>>,
    /// The competencies; at most 50 entries of at most 100 characters, stored in lower case.
    competencies: Option<Vec<String>>,
    /// The areas of specialization; at most 50 entries of at most 100 characters.
    specializations: Option<Vec<String>>,
    /// The review types it handles: at most 10 values of `ReviewType`, or `all`. Stored in lower case.
    review_types: Option<Vec<String>>,
    /// The communication style, at most 50 characters.
    communication_style: Option<String>,
    /// The strictness as a reviewer, from 0 (lenient) to 1 (strict).
    #[graphql(default = 0.7)]
    review_strictness: f64,
    /// The sampling temperature of its responses, from 0 to 2. Defaults to that of the persona, else 0.7.
    temperature: Option<f64>,
    /// The maximum number of output tokens per response, at least 1. Defaults to the model's limit.
    max_tokens: Option<i32>,
}

/// Input for `updateAgent`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateAgentInput {
    /// The agent.
    agent_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
    /// The name, 1 to 100 characters, unique among its owner's agents.
    name: MaybeUndefined<String>,
    /// The persona it is based on; its defaults are not applied again. `NOT_FOUND` if there is no such persona.
    persona_id: MaybeUndefined<ID>,
    /// The language model. `NOT_FOUND` if there is no such model.
    model_id: MaybeUndefined<ID>,
    /// The system prompt, at most 20,000 characters.
    system_prompt: MaybeUndefined<String>,
    /// The personality traits; at most 50 entries of at most 100 characters.
    traits: MaybeUndefined<Vec<String>>,
    /// The competencies; at most 50 entries of at most 100 characters, stored in lower case.
    competencies: MaybeUndefined<Vec<String>>,
    /// The areas of specialization; at most 50 entries of at most 100 characters.
    specializations: MaybeUndefined<Vec<String>>,
    /// The review types it handles: at most 10 values of `ReviewType`, or `all`. Stored in lower case.
    review_types: MaybeUndefined<Vec<String>>,
    /// The communication style, at most 50 characters.
    communication_style: MaybeUndefined<String>,
    /// The strictness as a reviewer, from 0 (lenient) to 1 (strict).
    review_strictness: MaybeUndefined<f64>,
    /// The sampling temperature of its responses, from 0 to 2.
    temperature: MaybeUndefined<f64>,
    /// The maximum number of output tokens per response, at least 1; null for the model's limit.
    max_tokens: MaybeUndefined<i32>,
    /// `OFFLINE` stops routing of tasks to the agent; `IDLE` takes it back into service. It becomes `BUSY` immediately
    /// if one of its tasks is `IN_PROGRESS`. `BUSY` itself is `INVALID`: the server sets it.
    status: MaybeUndefined<AgentStatus>,
}

impl CreateAgentInput {
    /// Builds the row and adds validation errors to `check`.
    fn row(&self, change: &Change<'_>, id: Uuid, check: &mut Check) -> agent::Model {
        let (name, name_key) = check.name("name", &self.name, MAX_NAME);
        let prompt = self.system_prompt.as_deref();
        let style = self.communication_style.as_deref();
        let mut list = |field, words: &Option<Vec<String>>| {
            let words = words.as_deref().unwrap_or_default();
            check.list(field, words, MAX_LIST, MAX_ENTRY)
        };
        let traits = list("traits", &self.traits);
        let specializations = list("specializations", &self.specializations);
        let competencies = self.competencies.as_deref().unwrap_or_default();
        let reviews = self.review_types.as_deref().unwrap_or_default();
        let temperature = self.temperature.unwrap_or(USUAL_TEMPERATURE);
        agent::Model {
            id,
            created_at: change.now,
            updated_at: change.now,
            version: 1,
            owner_id: change.viewer.id(),
            name,
            name_key,
            persona_id: None,
            model_id: None,
            system_prompt: check.optional_text("systemPrompt", prompt, MAX_PROMPT),
            traits,
            competencies: check.words("competencies", competencies, MAX_LIST, MAX_ENTRY),
            specializations,
            review_types: reviewing(check, "reviewTypes", reviews),
            communication_style: check.optional_line("communicationStyle", style, MAX_STYLE),
            competency_scores: json!({}),
            review_strictness: check.range("reviewStrictness", self.review_strictness, STRICTNESS),
            temperature: check.range("temperature", temperature, TEMPERATURE),
            max_tokens: max_tokens(check, self.max_tokens),
            status: agent::AgentStatus::Idle,
            reviews_total: 0,
            reviews_approved: 0,
            last_active_at: change.now,
        }
    }
}

impl UpdateAgentInput {
    /// Applies the changed fields and adds validation errors to `check`. The status, the persona and the model are
    /// handled by the caller.
    fn apply(&self, new: &mut agent::ActiveModel, check: &mut Check, edits: &mut Edits) {
        let name = check.if_given("name", &self.name);
        let name = name.map(|name| check.name("name", name, MAX_NAME));
        let (name, name_key) = name.unzip();
        edits.set("name", &mut new.name, name);
        if let Some(key) = name_key {
            new.name_key = Set(key);
        }
        let prompt = self.system_prompt.as_opt_deref();
        let prompt = prompt.map(|text| check.optional_text("systemPrompt", text, MAX_PROMPT));
        edits.set("systemPrompt", &mut new.system_prompt, prompt);
        let mut list =
            |field, words: &MaybeUndefined<Vec<String>>, column: &mut ActiveValue<List>| {
                let words = entries(words);
                let words = words.map(|words| check.list(field, words, MAX_LIST, MAX_ENTRY));
                edits.set(field, column, words);
            };
        list("traits", &self.traits, &mut new.traits);
        list(
            "specializations",
            &self.specializations,
            &mut new.specializations,
        );
        let words = entries(&self.competencies)
            .map(|words| check.words("competencies", words, MAX_LIST, MAX_ENTRY));
        edits.set("competencies", &mut new.competencies, words);
        let words = entries(&self.review_types).map(|words| reviewing(check, "reviewTypes", words));
        edits.set("reviewTypes", &mut new.review_types, words);
        let style = self.communication_style.as_opt_deref();
        let style = style.map(|line| check.optional_line("communicationStyle", line, MAX_STYLE));
        edits.set("communicationStyle", &mut new.communication_style, style);
        let mut number = |field,
                          value: &MaybeUndefined<f64>,
                          bounds: RangeInclusive<f64>,
                          column: &mut ActiveValue<f64>| {
            let value = check.if_given(field, value);
            let value = value.map(|value| check.range(field, *value, bounds));
            edits.set(field, column, value);
        };
        number(
            "reviewStrictness",
            &self.review_strictness,
            STRICTNESS,
            &mut new.review_strictness,
        );
        number(
            "temperature",
            &self.temperature,
            TEMPERATURE,
            &mut new.temperature,
        );
        let tokens = self.max_tokens.as_opt_ref();
        let tokens = tokens.map(|tokens| max_tokens(check, tokens.copied()));
        edits.set("maxTokens", &mut new.max_tokens, tokens);
    }
}

/// Agent mutations.
#[derive(Default)]
pub struct AgentMutation;

#[Object]
impl AgentMutation {
    /// Creates an agent owned by the caller. `userErrors` codes besides input validation: `TAKEN` (name).
    async fn create_agent(
        &self,
        ctx: &Context<'_>,
        input: CreateAgentInput,
    ) -> Result<AgentPayload, Error> {
        let persona = Kind::Persona.parse_opt(input.persona_id.as_ref(), "personaId")?;
        let model = Kind::Model.parse_opt(input.model_id.as_ref(), "modelId")?;
        let id = Uuid::now_v7();
        let outcome = change(ctx, None, async |mut change| {
            let persona = change.lock_reference::<persona::Entity>(persona, "personaId");
            let persona = persona.await?;
            let preferred = persona
                .as_ref()
                .and_then(|persona| persona.default_model_id);
            let model = model.or(preferred);
            change
                .lock_reference::<model::Entity>(model, "modelId")
                .await?;
            let mut check = Check::default();
            let mut row = input.row(&change, id, &mut check);
            row.model_id = model;
            if let Some(persona) = persona {
                row.persona_id = Some(persona.id);
                row.temperature = input.temperature.unwrap_or(persona.default_temperature);
            }
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            let insert = agent::Entity::insert(row.clone().into_active_model());
            match insert.exec_without_returning(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    return Ok(Outcome::fault(None, name_taken()));
                }
                done => done?,
            };
            change.append(fact(EventType::AgentCreated, &row, &[]));
            change.commit(vec![id]).await
        });
        AgentPayload::new(ctx, outcome.await?).await
    }

    /// Updates an agent. Requires its owner or an administrator. `userErrors` codes besides input validation: `TAKEN`
    /// (name); `CONFLICT` (version).
    async fn update_agent(
        &self,
        ctx: &Context<'_>,
        input: UpdateAgentInput,
    ) -> Result<AgentPayload, Error> {
        let id = Kind::Agent.parse(&input.agent_id, "agentId")?;
        let persona = Kind::Persona.parse_new(&input.persona_id, "personaId")?;
        let model = Kind::Model.parse_new(&input.model_id, "modelId")?;
        let outcome = change(ctx, None, async |mut change| {
            let rule = &change.viewer.rules().agent;
            let row = change.row::<agent::Entity>(rule, id, "agentId").await?;
            change.check_agent(&row)?;
            if let Err(conflict) = check_version(input.expected_version, row.version) {
                return Ok(Outcome::fault(Some(id), conflict));
            }
            let character =
                change.lock_reference::<persona::Entity>(persona.flatten(), "personaId");
            character.await?;
            let engine = change.lock_reference::<model::Entity>(model.flatten(), "modelId");
            engine.await?;

            let (from, version) = (row.status, row.version);
            let mut new = row.into_active_model();
            let (mut check, mut edits) = (Check::default(), Edits::default());
            input.apply(&mut new, &mut check, &mut edits);
            edits.set("personaId", &mut new.persona_id, persona);
            edits.set("modelId", &mut new.model_id, model);
            let status = check.if_given("status", &input.status).copied();
            if status == Some(AgentStatus::Busy) {
                let message = "BUSY is set by the server and cannot be requested.";
                check.fault("status", UserErrorCode::Invalid, message);
            }
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }

            let to = change.status(id, from, status).await?;
            if edits.is_empty() && to == from {
                return change.commit(vec![id]).await;
            }
            new.status = Set(to);
            new.version = Set(version + 1);
            new.updated_at = Set(change.now);
            let row = match new.update(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    return Ok(Outcome::fault(Some(id), name_taken()));
                }
                done => done?,
            };
            if !edits.is_empty() {
                change.append(fact(EventType::AgentUpdated, &row, edits.names()));
            }
            if to != from {
                change.append(status_changed(&row, from));
            }
            change.commit(vec![id]).await
        });
        AgentPayload::new(ctx, outcome.await?).await
    }

    /// Deletes an agent. It leaves its circles; its messages are kept. Requires its owner or an administrator.
    /// `userErrors` codes: `CONFLICT` (version); `IN_USE` while it has a task that is neither `PENDING` nor ended, or
    /// takes part in a conversation that has not ended.
    async fn delete_agent(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Agent.parse(&input.id, "id")?;
        let outcome = change(ctx, None, async |mut change| {
            let rule = &change.viewer.rules().agent;
            let row = change
                .lock_for_delete::<agent::Entity>(rule, id, "id")
                .await?;
            change.check_agent(&row)?;
            if let Err(conflict) = check_version(input.expected_version, row.version) {
                return Ok(Outcome::fault(Some(id), conflict));
            }
            if change.any::<task::Entity>(in_hand(id)).await? {
                let message = "The agent has open tasks. Reassign or end them first.";
                return Ok(Outcome::fault(Some(id), in_use(message)));
            }
            if change.any::<conversation::Entity>(talks_in(id)).await? {
                let message =
                    "The agent takes part in conversations that have not ended. End them first.";
                return Ok(Outcome::fault(Some(id), in_use(message)));
            }
            change.leave_circles(id).await?;
            change.append(fact(EventType::AgentDeleted, &row, &[]));
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Agent, id, outcome.await?).await
    }
}

impl Change<'_> {
    /// # Errors
    /// `FORBIDDEN` for an agent that the viewer may read, but not change.
    fn check_agent(&self, row: &agent::Model) -> Result<(), Error> {
        if self.viewer.is_admin() || row.owner_id == self.viewer.id() {
            Ok(())
        } else {
            Err(self.forbidden(Kind::Agent, row.id))
        }
    }

    /// Appends a `member.removed` event for each circle that a deleted agent leaves.
    async fn leave_circles(&mut self, agent: Uuid) -> Result<(), Error> {
        // Locked, so that a concurrent removal does not append the same event.
        let members = member::Entity::find()
            .filter(member::Column::AgentId.eq(agent))
            .filter(member::Column::IsActive.eq(true))
            .order_by_asc(member::Column::Id)
            .lock(LockType::Update)
            .all(&self.transaction)
            .await?;
        let backend = self.transaction.get_database_backend();
        let ids: Vec<_> = members.iter().map(|row| row.circle_id).collect();
        let circles = circle::Entity::find()
            .filter(is_among(backend, circle::Column::Id.as_column_ref(), &ids))
            .all(&self.transaction)
            .await?;
        for mut row in members {
            row.updated_at = self.now;
            if let Some(circle) = circles.iter().find(|circle| circle.id == row.circle_id) {
                self.append(removed(circle, &row));
            }
        }
        Ok(())
    }

    /// The new status when the owner takes an agent offline or back into service.
    async fn status(
        &self,
        agent: Uuid,
        from: agent::AgentStatus,
        wanted: Option<AgentStatus>,
    ) -> Result<agent::AgentStatus, Error> {
        use agent::AgentStatus::{Busy, Idle, Offline};
        Ok(match wanted {
            Some(AgentStatus::Offline) => Offline,
            Some(AgentStatus::Idle) if from == Offline => {
                let in_progress = task::Column::AssigneeId
                    .eq(agent)
                    .and(task::Column::Status.eq(task::TaskStatus::InProgress));
                let is_busy = self.any::<task::Entity>(in_progress).await?;
                if is_busy { Busy } else { Idle }
            }
            _ => from,
        })
    }
}

/// Tasks assigned to an agent that have not ended.
fn in_hand(agent: Uuid) -> Expr {
    use task::TaskStatus::{Assigned, Blocked, ChangesRequested, InProgress, InReview};
    let open = [Assigned, InProgress, InReview, ChangesRequested, Blocked];
    task::Column::AssigneeId
        .eq(agent)
        .and(task::Column::Status.is_in(open))
}

/// Conversations in which an agent takes part and that have not ended.
fn talks_in(agent: Uuid) -> Expr {
    use conversation::ConversationStatus::{Active, Paused, Pending};
    let parts = participant::Entity::find()
        .select_only()
        .column(participant::Column::ConversationId)
        .filter(participant::Column::AgentId.eq(agent))
        .into_query();
    conversation::Column::Id
        .in_subquery(parts)
        .and(conversation::Column::Status.is_in([Pending, Active, Paused]))
}

fn max_tokens(check: &mut Check, value: Option<i32>) -> Option<i32> {
    value.map(|value| check.range("maxTokens", value, 1..=i32::MAX))
}

fn name_taken() -> UserError {
    let message = "The owner already has an agent with this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

fn fact(kind: EventType, row: &agent::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "name": row.name, "changed": changed, "version": row.version });
    NewEvent::new(kind, row.id, payload)
        .owner(row.owner_id)
        .agent(row.id)
}

/// The event for a changed agent status.
fn status_changed(row: &agent::Model, from: agent::AgentStatus) -> NewEvent {
    let payload = json!({
        "name": row.name,
        "fromStatus": from.to_value(),
        "toStatus": row.status.to_value(),
        "version": row.version,
    });
    NewEvent::new(EventType::AgentStatusChanged, row.id, payload)
        .owner(row.owner_id)
        .agent(row.id)
}
