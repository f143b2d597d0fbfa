//! Tasks: pieces of work in a circle.

pub mod event;
mod inputs;
mod mutations;
pub(crate) mod routing;
mod scene;
mod team;
mod workflow;

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object};
use gathering_entity::{circle, conversation, task, user};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QuerySelect, QueryTrait};
use uuid::Uuid;

use crate::{
    access::Viewer,
    agent::Agent,
    circle::Circle,
    conversation::{Conversation, ConversationFilter},
    data::{Connection, FieldsOf, Noun, Order, Page, SortDirection, by_id, load},
    db::{Rule, is_one_of},
    error::Error,
    id::Kind,
    request::RequestExt,
    scalar::DateTime,
    user::User,
};

pub use mutations::TaskMutation;

/// The priority of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "task::Priority")]
pub enum Priority {
    /// Low priority.
    Low,
    /// Medium priority.
    Medium,
    /// High priority.
    High,
    /// The highest priority.
    Critical,
}

/// The status of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "task::TaskStatus")]
pub enum TaskStatus {
    /// Not assigned to an agent.
    Pending,
    /// Assigned to an agent, not started.
    Assigned,
    /// Started: the assignee is working on it.
    InProgress,
    /// Submitted, waiting for a review.
    InReview,
    /// Rejected in review; changes are required.
    ChangesRequested,
    /// Blocked: work cannot continue for now.
    Blocked,
    /// Completed.
    Completed,
    /// Failed: the work was given up.
    Failed,
    /// Cancelled: no longer needed.
    Cancelled,
}

/// The type of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "task::ReviewType")]
pub enum ReviewType {
    /// Review of the code.
    Code,
    /// Review of the design.
    Architecture,
    /// Review of the security.
    Security,
    /// Review of the documentation.
    Documentation,
    /// Review of the overall quality.
    Quality,
    /// Final review of everything before delivery.
    Final,
}

/// A unit of work in a circle.
pub struct Task(pub(crate) Arc<task::Model>);

/// A piece of work in a circle, assigned to one agent and usually reviewed by another.
/// Visible to readers of the circle.
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
        row.map(Circle::from)
            .ok_or_else(|| Error::not_found("circle"))
    }

    /// The parent task, in the same circle.
    async fn parent(&self, ctx: &Context<'_>) -> Result<Option<Self>, Error> {
        Self::readable(ctx, self.0.parent_id).await
    }

    /// The title, a single line of at most 500 characters.
    async fn title(&self) -> &str {
        &self.0.title
    }

    /// The description, at most 20,000 characters.
    async fn description(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.description.as_deref())
    }

    /// The competencies required of the assignee, at most 50 entries.
    async fn required_competencies(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request()
            .text(self.0.required_competencies.0.as_slice())
    }

    /// The priority.
    async fn priority(&self) -> Priority {
        self.0.priority.into()
    }

    /// The status.
    async fn status(&self) -> TaskStatus {
        self.0.status.into()
    }

    /// The agent to which it is assigned.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.assignee_id).await
    }

    /// The agent who reviews it.
    async fn reviewer(&self, ctx: &Context<'_>) -> Result<Option<Agent>, Error> {
        Agent::readable(ctx, self.0.reviewer_id).await
    }

    /// The user who created it; null if an agent or the server created it.
    async fn created_by(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        let Some(id) = self.0.created_by else {
            return Ok(None);
        };
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::from))
    }

    /// Whether a review is required before completion.
    async fn requires_review(&self) -> bool {
        self.0.requires_review
    }

    /// The type of review.
    async fn review_type(&self) -> ReviewType {
        self.0.review_type.into()
    }

    /// How many times it was submitted for review.
    async fn review_round(&self) -> i32 {
        self.0.review_round
    }

    /// The latest review comment, at most 10,000 characters.
    async fn review_note(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.review_note.as_deref())
    }

    /// The note or reason of the last status transition, at most 2,000 characters; null if none was given.
    async fn status_note(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.status_note.as_deref())
    }

    /// The result, at most 50,000 characters.
    async fn result(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.result.as_deref())
    }

    /// Names or addresses of the artifacts produced, at most 200.
    async fn artifacts(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.artifacts.0.as_slice())
    }

    /// The estimated number of hours.
    async fn estimated_hours(&self) -> Option<f64> {
        self.0.estimated_hours
    }

    /// The actual number of hours.
    async fn actual_hours(&self) -> Option<f64> {
        self.0.actual_hours
    }

    /// When it is due.
    async fn due_at(&self) -> Option<DateTime> {
        self.0.due_at.map(DateTime)
    }

    /// When work on it was first started.
    async fn started_at(&self) -> Option<DateTime> {
        self.0.started_at.map(DateTime)
    }

    /// When it was last submitted.
    async fn submitted_at(&self) -> Option<DateTime> {
        self.0.submitted_at.map(DateTime)
    }

    /// When it was completed.
    async fn completed_at(&self) -> Option<DateTime> {
        self.0.completed_at.map(DateTime)
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

    /// The subtasks. Newest first unless `orderBy` is given.
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
    ) -> Result<Connection<Task>, Error> {
        let (viewer, page) = (
            ctx.request().viewer()?,
            Page::new(first, after, last, before)?,
        );
        Self::list(Some(self.0.id), viewer, filter, order_by, &page)
    }

    /// The conversations about it that the viewer may read, newest first.
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
}

impl Task {
    /// Loads the task with this row id; `None` if the viewer may not read it.
    pub(crate) async fn readable(
        ctx: &Context<'_>,
        id: Option<Uuid>,
    ) -> Result<Option<Self>, Error> {
        let Some(id) = id else { return Ok(None) };
        load(ctx.request(), id).await
    }

    /// The tasks that the viewer may read: all, or the subtasks of one.
    fn list(
        parent: Option<Uuid>,
        viewer: &Viewer,
        filter: Option<TaskFilter>,
        order: Option<TaskOrder>,
        page: &Page,
    ) -> Result<Connection<Self>, Error> {
        let filter = TaskFilter::condition(filter)?;
        let order = Self::order(order);
        let Some(parent) = parent else {
            return Connection::within(viewer.all_tasks(), filter, order, page);
        };
        let condition = Condition::all().add(viewer.tasks()).add(filter);
        Connection::of(task::Column::ParentId, parent, condition, order, page)
    }

    fn list_conversations(
        task: Uuid,
        viewer: &Viewer,
        filter: Option<ConversationFilter>,
        page: &Page,
    ) -> Result<Connection<Conversation>, Error> {
        let condition = Condition::all()
            .add(viewer.conversations())
            .add(ConversationFilter::condition(filter)?);
        let order = Order::descending([conversation::Column::Id]);
        Connection::of(conversation::Column::TaskId, task, condition, order, page)
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

impl From<Arc<task::Model>> for Task {
    fn from(row: Arc<task::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Task {
    type Entity = task::Entity;
    const KIND: Kind = Kind::Task;
    const NAME: &'static str = "Task";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        Some(viewer.rules().task.clone())
    }

    fn fields() -> FieldsOf<Self> {
        use task::Column::{
            ActualHours, Artifacts, AssigneeId, CircleId, CompletedAt, CreatedAt, CreatedBy,
            Description, DueAt, EstimatedHours, ParentId, Priority, RequiredCompetencies,
            RequiresReview, Result, ReviewNote, ReviewRound, ReviewType, ReviewerId, StartedAt,
            Status, StatusNote, SubmittedAt, Title, UpdatedAt, Version,
        };
        FieldsOf::new()
            .by_id("task")
            .all("tasks", |list| {
                let (filter, order) = (list.get("filter")?, list.get("orderBy")?);
                Self::list(None, list.viewer, filter, order, &list.page)
            })
            .columns([
                Title,
                Priority,
                Status,
                RequiresReview,
                ReviewType,
                ReviewRound,
            ])
            .columns([EstimatedHours, ActualHours, DueAt, StartedAt, SubmittedAt])
            .columns([CompletedAt, CreatedAt, UpdatedAt, Version])
            .texts([Description, RequiredCompetencies, ReviewNote])
            .texts([StatusNote, Result, Artifacts])
            .one::<Circle>("circle", CircleId)
            .one::<User>("createdBy", CreatedBy)
            .one_readable::<Self>("parent", ParentId)
            .one_readable::<Agent>("assignee", AssigneeId)
            .one_readable::<Agent>("reviewer", ReviewerId)
            .list("subtasks", |list| {
                let (filter, order) = (list.get("filter")?, list.get("orderBy")?);
                Self::list(Some(list.parent), list.viewer, filter, order, &list.page)
            })
            .list("conversations", |list| {
                let filter = list.get("filter")?;
                Self::list_conversations(list.parent, list.viewer, filter, &list.page)
            })
    }
}

/// The fields by which tasks can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum TaskOrderField {
    /// When it was created.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// The priority; `CRITICAL` comes first in ascending order.
    Priority,
}

/// Orders a list of tasks.
#[derive(Clone, Copy, InputObject)]
pub struct TaskOrder {
    /// The field to order by.
    field: TaskOrderField,
    /// The sort direction.
    #[graphql(default_with = "SortDirection::Desc")]
    direction: SortDirection,
}

impl Task {
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

/// Filters a list of tasks. All conditions must match; an empty list matches nothing.
#[derive(InputObject)]
pub struct TaskFilter {
    /// Only tasks of this circle.
    circle_id: Option<ID>,
    /// Only tasks of circles of this project.
    project_id: Option<ID>,
    /// Only tasks with one of these statuses.
    status: Option<Vec<TaskStatus>>,
    /// Only tasks with one of these priorities.
    priority: Option<Vec<Priority>>,
    /// Only tasks that are assigned to this agent.
    assignee_id: Option<ID>,
    /// Only tasks that this agent reviews.
    reviewer_id: Option<ID>,
    /// True: only tasks without a parent; false: only subtasks.
    root_only: Option<bool>,
    /// Only tasks due before this time.
    due_before: Option<DateTime>,
    /// Only tasks due after this time.
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
            .map(|list| is_one_of::<task::TaskStatus>(Status, list));
        let priority = filter
            .priority
            .map(|list| is_one_of::<task::Priority>(Pressing, list));
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

/// Task queries.
#[derive(Default)]
pub struct TaskQuery;

#[Object]
impl TaskQuery {
    /// Fetches a task by id. `NOT_FOUND` if it does not exist or the viewer may not read it.
    async fn task(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Task>, Error> {
        by_id(ctx, &id).await
    }

    /// Lists the tasks that the viewer may read. Newest first unless `orderBy` is given.
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
        Task::list(None, ctx.request().viewer()?, filter, order_by, &page)
    }
}
