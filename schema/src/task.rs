//! Tasks: pieces of work in a circle.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, connection::EmptyFields};
use gathering_entity::{circle, conversation, task, user};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QuerySelect, QueryTrait};
use uuid::Uuid;

use crate::{
    agent::Agent,
    circle::Circle,
    conversation::{ConversationFilter, Conversations},
    ctx::Door,
    error::Error,
    id::Kind,
    order::SortDirection,
    page::{Connection, Listed, Order, Page},
    scalar::DateTime,
    user::User,
};

/// How pressing a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "task::Priority")]
pub enum Priority {
    /// Can wait.
    Low,
    /// In its turn.
    Medium,
    /// Before others.
    High,
    /// Before everything.
    Critical,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "task::TaskStatus")]
pub enum TaskStatus {
    /// Nobody has it.
    Pending,
    /// An agent has it and has not begun.
    Assigned,
    /// An agent works on it.
    InProgress,
    /// Submitted, and waiting for a review.
    InReview,
    /// Reviewed, and to be done again.
    ChangesRequested,
    /// Cannot go on for now.
    Blocked,
    /// Done.
    Completed,
    /// Given up.
    Failed,
    /// No longer wanted.
    Cancelled,
}

/// What a review looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "task::ReviewType")]
pub enum ReviewType {
    /// The code.
    Code,
    /// The design.
    Architecture,
    /// What an attacker could do with it.
    Security,
    /// The text.
    Documentation,
    /// The quality of the whole.
    Quality,
    /// All of it, before it is delivered.
    Final,
}

/// A piece of work in a circle.
pub struct Task(pub(crate) Arc<task::Model>);

/// A piece of work in a circle, assigned to one agent and usually reviewed by another. Read by whoever may read the
/// circle.
#[Object]
impl Task {
    /// The id of the task, `task_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Task.id(self.0.id)
    }

    /// The circle it belongs to.
    async fn circle(&self, ctx: &Context<'_>) -> Result<Circle, Error> {
        let row = ctx
            .request()
            .row::<circle::Entity>(self.0.circle_id)
            .await?;
        row.map(Circle).ok_or_else(|| Error::not_found("circle"))
    }

    /// The task of the same circle that it is part of.
    async fn parent(&self, ctx: &Context<'_>) -> Result<Option<Self>, Error> {
        Self::readable(ctx, self.0.parent_id).await
    }

    /// What is to be done, in one line of at most 500 characters.
    async fn title(&self) -> &str {
        &self.0.title
    }

    /// What is to be done, at most 20,000 characters.
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }

    /// What an agent must be able to do to take it; at most 50 words.
    async fn required_competencies(&self) -> &[String] {
        &self.0.required_competencies.0
    }

    /// How pressing it is.
    async fn priority(&self) -> Priority {
        self.0.priority.into()
    }

    /// Where it stands.
    async fn status(&self) -> TaskStatus {
        self.0.status.into()
    }

    /// The agent who has it.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.assignee_id).await
    }

    /// The agent who reviews it.
    async fn reviewer(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.reviewer_id).await
    }

    /// The user who made it; null when an agent or the server did.
    async fn created_by(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.created_by else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
    }

    /// Whether it is reviewed before it counts as done.
    async fn requires_review(&self) -> bool {
        self.0.requires_review
    }

    /// What its review looks at.
    async fn review_type(&self) -> ReviewType {
        self.0.review_type.into()
    }

    /// How often it was submitted for review.
    async fn review_round(&self) -> i32 {
        self.0.review_round
    }

    /// What the last review said, at most 10,000 characters.
    async fn review_note(&self) -> Option<&str> {
        self.0.review_note.as_deref()
    }

    /// Why it stands where it stands, at most 2,000 characters.
    async fn status_note(&self) -> Option<&str> {
        self.0.status_note.as_deref()
    }

    /// What came of it, at most 50,000 characters.
    async fn result(&self) -> Option<&str> {
        self.0.result.as_deref()
    }

    /// Names or addresses of what was made; at most 200.
    async fn artifacts(&self) -> &[String] {
        &self.0.artifacts.0
    }

    /// How many hours it was thought to take.
    async fn estimated_hours(&self) -> Option<f64> {
        self.0.estimated_hours
    }

    /// How many hours it took.
    async fn actual_hours(&self) -> Option<f64> {
        self.0.actual_hours
    }

    /// When it should be done.
    async fn due_at(&self) -> Option<DateTime> {
        self.0.due_at.map(DateTime)
    }

    /// When work on it first began.
    async fn started_at(&self) -> Option<DateTime> {
        self.0.started_at.map(DateTime)
    }

    /// When it was last submitted.
    async fn submitted_at(&self) -> Option<DateTime> {
        self.0.submitted_at.map(DateTime)
    }

    /// When it was done.
    async fn completed_at(&self) -> Option<DateTime> {
        self.0.completed_at.map(DateTime)
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

    /// The tasks that are part of it, newest first unless `orderBy` says otherwise.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is an argument of the GraphQL field"
    )]
    async fn subtasks(
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
            task::Column::ParentId,
            self.0.id,
            Condition::all()
                .add(readable)
                .add(TaskFilter::condition(filter)?),
            Tasks::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The conversations about it, as far as the viewer may read them; newest first.
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
        Connection::of(
            conversation::Column::TaskId,
            self.0.id,
            Condition::all()
                .add(readable)
                .add(ConversationFilter::condition(filter)?),
            Order::descending([conversation::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}

impl Task {
    /// The task with this row id, as far as the viewer may read it.
    pub(crate) async fn readable(
        ctx: &Context<'_>,
        id: Option<Uuid>,
    ) -> Result<Option<Self>, Error> {
        let Some(id) = id else { return Ok(None) };
        let rule = &ctx.request().viewer()?.rules().task;
        Ok(ctx
            .request()
            .readable::<task::Entity>(rule, id)
            .await?
            .map(Self))
    }
}

/// Tasks that are neither in review nor ended.
pub(crate) fn is_open() -> Condition {
    use task::TaskStatus::{Assigned, Blocked, ChangesRequested, InProgress, Pending};
    Condition::all().add(task::Column::Status.is_in([
        Pending,
        Assigned,
        InProgress,
        ChangesRequested,
        Blocked,
    ]))
}

/// Tasks as a list.
pub struct Tasks;

impl Listed for Tasks {
    type Entity = task::Entity;
    type Node = Task;
    type Extra = EmptyFields;
    const NAME: &'static str = "Task";

    async fn nodes(_: &Context<'_>, rows: &[Arc<task::Model>]) -> Result<Vec<Option<Task>>, Error> {
        Ok(rows.iter().map(|row| Some(Task(Arc::clone(row)))).collect())
    }

    fn extra(_: &Arc<task::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// What tasks may be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum TaskOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// How pressing it is; CRITICAL comes first in ascending order.
    Priority,
}

/// An order of tasks.
#[derive(Clone, Copy, InputObject)]
pub struct TaskOrder {
    /// What to order by.
    field: TaskOrderField,
    /// Which end comes first.
    #[graphql(default_with = "SortDirection::Desc")]
    direction: SortDirection,
}

impl Tasks {
    pub(crate) fn order(by: Option<TaskOrder>) -> Order<task::Column> {
        use task::Column::{Id, PriorityRank, UpdatedAt};
        let Some(TaskOrder { field, direction }) = by else {
            return Order::descending([Id]);
        };
        match field {
            TaskOrderField::CreatedAt => direction.over([Id]),
            TaskOrderField::UpdatedAt => direction.over([UpdatedAt, Id]),
            TaskOrderField::Priority => direction.over([PriorityRank, Id]),
        }
    }
}

/// Narrows a list of tasks. All given conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct TaskFilter {
    /// Only tasks of this circle.
    circle_id: Option<ID>,
    /// Only tasks of circles that work for this project.
    project_id: Option<ID>,
    /// Only tasks in one of these states.
    status: Option<Vec<TaskStatus>>,
    /// Only tasks of one of these priorities.
    priority: Option<Vec<Priority>>,
    /// Only tasks that this agent has.
    assignee_id: Option<ID>,
    /// Only tasks that this agent reviews.
    reviewer_id: Option<ID>,
    /// True leaves out tasks that are part of others; false leaves in only those.
    root_only: Option<bool>,
    /// Only tasks due before this instant.
    due_before: Option<DateTime>,
    /// Only tasks due after this instant.
    due_after: Option<DateTime>,
}

impl TaskFilter {
    pub(crate) fn condition(filter: Option<Self>) -> Result<Condition, Error> {
        use task::Column::{
            AssigneeId, CircleId, DueAt, ParentId, Priority as Pressing, ReviewerId, Status,
        };
        let Some(filter) = filter else {
            return Ok(Condition::all());
        };
        let project = Kind::Project.parse_opt(filter.project_id.as_ref(), "projectId")?;
        let in_project = project.map(|id| {
            let circles = circle::Entity::find()
                .select_only()
                .column(circle::Column::Id)
                .filter(circle::Column::ProjectId.eq(id))
                .into_query();
            CircleId.in_subquery(circles)
        });
        let circle = Kind::Circle.parse_opt(filter.circle_id.as_ref(), "circleId")?;
        let assignee = Kind::Agent.parse_opt(filter.assignee_id.as_ref(), "assigneeId")?;
        let reviewer = Kind::Agent.parse_opt(filter.reviewer_id.as_ref(), "reviewerId")?;
        let status = filter
            .status
            .map(|list| Status.is_in(list.into_iter().map(task::TaskStatus::from)));
        let priority = filter
            .priority
            .map(|list| Pressing.is_in(list.into_iter().map(task::Priority::from)));
        let roots = filter.root_only.map(|roots| {
            if roots {
                ParentId.is_null()
            } else {
                ParentId.is_not_null()
            }
        });
        Ok(Condition::all()
            .add_option(circle.map(|id| CircleId.eq(id)))
            .add_option(in_project)
            .add_option(status)
            .add_option(priority)
            .add_option(assignee.map(|id| AssigneeId.eq(id)))
            .add_option(reviewer.map(|id| ReviewerId.eq(id)))
            .add_option(roots)
            .add_option(filter.due_before.map(|at| DueAt.lt(at.0)))
            .add_option(filter.due_after.map(|at| DueAt.gt(at.0))))
    }
}

/// Queries about tasks.
#[derive(Default)]
pub struct TaskQuery;

#[Object]
impl TaskQuery {
    /// The task with this id.
    async fn task(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Task>, Error> {
        let rule = &ctx.request().viewer()?.rules().task;
        let row = ctx
            .request()
            .look_up::<task::Entity>(Kind::Task, rule, &id)
            .await?;
        Ok(Some(Task(row)))
    }

    /// The tasks that the viewer may read, newest first unless `orderBy` says otherwise.
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
        Connection::new(
            Condition::all()
                .add(readable)
                .add(TaskFilter::condition(filter)?),
            Tasks::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }
}
