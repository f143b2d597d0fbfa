//! Agents: the configured AI workers.

mod activity;
pub mod event;
mod inputs;
mod mutations;
mod workflow;

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object};
use gathering_entity::{
    agent, circle, conversation, member, model, participant, persona, task, user,
};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{self, Expr, ExprTrait, Func, Query},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    access::Viewer,
    catalogue::{model::Model, persona::Persona},
    circle::{CircleFilter, members::AgentCircles},
    conversation::{Conversation, ConversationFilter},
    data::{Connection, FieldsOf, Noun, Order, Page, SortDirection, by_id, load},
    db::{Rule, contains, filter, is_one_of},
    error::Error,
    event::{EventFilter, Events},
    id::Kind,
    request::RequestExt,
    scalar::DateTime,
    task::{Task, TaskFilter, TaskOrder},
    text,
    user::User,
};

pub use activity::{AgentActivity, AgentConversation};
pub use inputs::{CreateAgentInput, UpdateAgentInput};
pub(crate) use mutations::editable;
pub use mutations::{AgentMutation, AgentPayload};
pub(crate) use workflow::{change_owner, check_transferable, delete};

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

/// A configured AI worker: persona, model, prompt and competencies.
/// Visible to its owner, to readers of the circles in which it is an active member, and to administrators.
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
        let may_read = viewer.knows_agent(&self.0);
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

    /// Recent activity, limited to the objects that the viewer may read.
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
        let page = Page::new(first, after, last, before)?;
        Self::list_circles(self.0.id, ctx.request().viewer()?, filter, &page)
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
        let page = Page::new(first, after, last, before)?;
        Self::list_tasks(self.0.id, ctx.request().viewer()?, filter, order_by, &page)
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
        let page = Page::new(first, after, last, before)?;
        Self::list_conversations(self.0.id, ctx.request().viewer()?, filter, &page)
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
        load(ctx.request(), id).await
    }
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

    fn fields() -> FieldsOf<Self> {
        use agent::Column::{
            CommunicationStyle, Competencies, CreatedAt, LastActiveAt, MaxTokens, ModelId, Name,
            OwnerId, PersonaId, ReviewStrictness, ReviewTypes, Specializations, Status,
            Temperature, Traits, UpdatedAt, Version,
        };
        FieldsOf::new()
            .by_id("agent")
            .all("agents", |list| {
                let (filter, order) = (list.get("filter")?, list.get("orderBy")?);
                Self::list(list.viewer, list.backend, filter, order, &list.page)
            })
            .columns([Name, Status, LastActiveAt, ReviewTypes, CommunicationStyle])
            .columns([ReviewStrictness, Temperature, MaxTokens])
            .columns([CreatedAt, UpdatedAt, Version])
            .texts([Traits, Competencies, Specializations])
            .one::<User>("owner", OwnerId)
            .one::<Persona>("persona", PersonaId)
            .one::<Model>("model", ModelId)
            .list("circles", |list| {
                Self::list_circles(list.parent, list.viewer, list.get("filter")?, &list.page)
            })
            .list("tasks", |list| {
                let (filter, order) = (list.get("filter")?, list.get("orderBy")?);
                Self::list_tasks(list.parent, list.viewer, filter, order, &list.page)
            })
            .list("conversations", |list| {
                let filter = list.get("filter")?;
                Self::list_conversations(list.parent, list.viewer, filter, &list.page)
            })
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
    fn list(
        viewer: &Viewer,
        backend: DbBackend,
        filter: Option<AgentFilter>,
        order: Option<AgentOrder>,
        page: &Page,
    ) -> Result<Connection<Self>, Error> {
        let filter = filter.map(|filter| filter.condition(backend)).transpose()?;
        let condition = Condition::all()
            .add(viewer.agents())
            .add(filter.unwrap_or_else(Condition::all));
        Connection::new(condition, Self::order(order), page)
    }

    fn list_circles(
        agent: Uuid,
        viewer: &Viewer,
        filter: Option<CircleFilter>,
        page: &Page,
    ) -> Result<Connection<AgentCircles>, Error> {
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
        let order = Order::ascending([member::Column::JoinedAt, member::Column::Id]);
        Connection::of(member::Column::AgentId, agent, condition, order, page)
    }

    fn list_tasks(
        agent: Uuid,
        viewer: &Viewer,
        filter: Option<TaskFilter>,
        order: Option<TaskOrder>,
        page: &Page,
    ) -> Result<Connection<Task>, Error> {
        let condition = Condition::all()
            .add(viewer.tasks())
            .add(TaskFilter::condition(filter)?);
        Connection::of(
            task::Column::AssigneeId,
            agent,
            condition,
            Task::order(order),
            page,
        )
    }

    fn list_conversations(
        agent: Uuid,
        viewer: &Viewer,
        filter: Option<ConversationFilter>,
        page: &Page,
    ) -> Result<Connection<Conversation>, Error> {
        let condition = ConversationFilter::condition(filter)?;
        let select = activity::conversations(viewer, condition);
        let parent = (participant::Column::AgentId.as_column_ref(), agent);
        let order = Order::descending([conversation::Column::Id]);
        Connection::select(select, Some(parent), order, page)
    }

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
        let status = self
            .status
            .map(|list| is_one_of::<agent::AgentStatus>(agent::Column::Status, list));
        let model = Kind::Model.parse_opt(self.model_id.as_ref(), "modelId")?;
        let persona = Kind::Persona.parse_opt(self.persona_id.as_ref(), "personaId")?;
        let competency = self
            .competency
            .map(|competency| filter(&competency, "competency"))
            .transpose()?
            .map(|competency| {
                contains_entry(
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
                        contains(Expr::col(agent::Column::NameKey.as_column_ref()), &search)
                    })
                    .transpose()?,
            ))
    }
}

/// Whether a list column contains an entry. PostgreSQL and SQLite need different SQL for it.
fn contains_entry(backend: DbBackend, column: agent::Column, entry: &str) -> Expr {
    let list = Expr::col(column.as_column_ref());
    if backend == DbBackend::Postgres {
        list.binary(
            sea_query::extension::postgres::PgBinOper::Contains,
            Expr::val(json!([entry])),
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
        by_id(ctx, &id).await
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
        let (request, page) = (ctx.request(), Page::new(first, after, last, before)?);
        let backend = request.services.backend;
        Agent::list(request.viewer()?, backend, filter, order_by, &page)
    }
}
