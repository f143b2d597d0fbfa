//! Tasks: pieces of work in a circle.

pub mod event;
pub(crate) mod routing;

use crate::Viewer;
use crate::db::Rule;
use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use chrono::Utc;
use gathering_entity::{List, agent, circle, collaborator, conversation, member, task, user};
use sea_orm::{
    ActiveEnum, ColumnTrait, Condition, ConnectionTrait, DbErr, EntityTrait, FromQueryResult,
    IntoActiveModel, JoinType, ModelTrait, QueryFilter, QueryResult, QuerySelect, QueryTrait, Set,
    TryIntoModel,
    sea_query::{CommonTableExpression, Expr, ExprTrait, LockType, Query, UnionType, WithClause},
};
use serde_json::json;
use uuid::Uuid;

use crate::data::Noun;
use crate::{
    agent::Agent,
    circle::{Access, Circle, check_open},
    conversation::{Conversation, ConversationFilter},
    data::{Change, Connection, Edits, Order, Outcome, Page, SortDirection, change, check_version},
    db::is_among,
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    events::{EventType, NewEvent},
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
    task::routing::{about, assigned, is_in_hand, unassigned},
    user::User,
};

/// Maximum length of a task's title, in characters.
const MAX_TITLE: usize = 500;
/// Maximum length of a description, in characters.
const MAX_DESCRIPTION: usize = 20_000;
/// Maximum number of required competencies, and maximum length of one in characters.
const MAX_LIST: usize = 50;
const MAX_ENTRY: usize = 100;
/// Maximum length of a note or a reason, in characters.
const MAX_NOTE: usize = 2_000;
/// Maximum length of a review comment, in characters.
const MAX_REVIEW: usize = 10_000;
/// Maximum length of a result, in characters.
const MAX_RESULT: usize = 50_000;
/// Maximum number of artifacts, and maximum length of an artifact's name in characters.
const MAX_ARTIFACTS: usize = 200;
const MAX_ARTIFACT: usize = 500;

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

/// A piece of work in a circle, assigned to one agent and usually reviewed by another. Visible to readers of the
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
        Ok(ctx.request().row::<user::Entity>(id).await?.map(User::new))
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

    /// The version, incremented by each edit and status transition. Pass it as `expectedVersion` to detect concurrent
    /// changes.
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
        let readable = ctx.request().viewer()?.tasks();
        Connection::of(
            task::Column::ParentId,
            self.0.id,
            Condition::all()
                .add(readable)
                .add(TaskFilter::condition(filter)?),
            Task::order(order_by),
            &Page::new(first, after, last, before)?,
        )
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
    /// Loads the task with this row id; `None` if the viewer may not read it.
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
            .map(|list| crate::db::is_one_of::<task::TaskStatus>(Status, list));
        let priority = filter
            .priority
            .map(|list| crate::db::is_one_of::<task::Priority>(Pressing, list));
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
        let rule = &ctx.request().viewer()?.rules().task;
        let row = ctx
            .request()
            .look_up::<task::Entity>(Kind::Task, rule, &id)
            .await?;
        Ok(Some(Task(row)))
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
        let readable = ctx.request().viewer()?.tasks();
        Connection::new(
            Condition::all()
                .add(readable)
                .add(TaskFilter::condition(filter)?),
            Task::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// Payload of the task mutations.
#[derive(SimpleObject)]
pub struct TaskPayload {
    /// The task in its current state; null if there is none.
    task: Option<Task>,
    /// Errors that the caller can correct, in the input or in the state of the task; empty on success.
    user_errors: Vec<UserError>,
}

impl TaskPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            task: outcome.row::<Task>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `createTask`.
#[derive(InputObject)]
pub struct CreateTaskInput {
    /// The circle it belongs to.
    circle_id: ID,
    /// The parent task, in the same circle.
    parent_id: Option<ID>,
    /// The title, a single line of 1 to 500 characters.
    title: String,
    /// The description, at most 20,000 characters.
    description: Option<String>,
    /// The competencies required of the assignee; at most 50 entries of at most 100 characters.
    required_competencies: Option<Vec<String>>,
    /// The priority.
    #[graphql(default_with = "Priority::Medium")]
    priority: Priority,
    /// The assignee, an active member of the circle. If omitted, the task waits to be routed.
    assignee_id: Option<ID>,
    /// The reviewer, an active member of the circle other than the assignee.
    reviewer_id: Option<ID>,
    /// Whether a review is required before completion; defaults to `requireReview` of the circle.
    requires_review: Option<bool>,
    /// The type of review.
    #[graphql(default_with = "ReviewType::Quality")]
    review_type: ReviewType,
    /// The estimated number of hours, 0 or more.
    estimated_hours: Option<f64>,
    /// When it is due.
    due_at: Option<DateTime>,
}

/// Input for `updateTask`. Omitted fields keep their value; null clears a nullable field. The status is changed by
/// other mutations, such as `startTask`.
#[derive(InputObject)]
pub struct UpdateTaskInput {
    /// The task.
    task_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
    /// The parent task, in the same circle; neither the task itself nor one of its subtasks.
    parent_id: MaybeUndefined<ID>,
    /// The title, a single line of 1 to 500 characters.
    title: MaybeUndefined<String>,
    /// The description, at most 20,000 characters.
    description: MaybeUndefined<String>,
    /// The competencies required of the assignee; at most 50 entries of at most 100 characters.
    required_competencies: MaybeUndefined<Vec<String>>,
    /// The priority.
    priority: MaybeUndefined<Priority>,
    /// The reviewer, an active member of the circle other than the assignee.
    reviewer_id: MaybeUndefined<ID>,
    /// Whether a review is required before completion.
    requires_review: MaybeUndefined<bool>,
    /// The type of review.
    review_type: MaybeUndefined<ReviewType>,
    /// The estimated number of hours, 0 or more.
    estimated_hours: MaybeUndefined<f64>,
    /// The actual number of hours, 0 or more.
    actual_hours: MaybeUndefined<f64>,
    /// When it is due.
    due_at: MaybeUndefined<DateTime>,
}

/// Input for `assignTask`.
#[derive(InputObject)]
pub struct AssignTaskInput {
    /// The task.
    task_id: ID,
    /// The agent, an active member of the circle other than the reviewer. If omitted, the best-fitting member.
    agent_id: Option<ID>,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// Input for a status transition of a task with an optional note, such as `startTask`.
#[derive(InputObject)]
pub struct TaskActionInput {
    /// The task.
    task_id: ID,
    /// The note, at most 2,000 characters. Replaces the `statusNote` of the task.
    note: Option<String>,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// Input for a status transition of a task with a required reason, such as `blockTask`.
#[derive(InputObject)]
pub struct TaskReasonInput {
    /// The task.
    task_id: ID,
    /// The reason, 1 to 2,000 characters. Replaces the `statusNote` of the task.
    reason: String,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// Input for `submitTask`.
#[derive(InputObject)]
pub struct SubmitTaskInput {
    /// The task.
    task_id: ID,
    /// The result, 1 to 50,000 characters.
    result: String,
    /// Names or addresses of the artifacts produced; at most 200 of at most 500 characters. If omitted, the existing
    /// ones are kept.
    artifacts: Option<Vec<String>>,
    /// The actual number of hours, 0 or more.
    actual_hours: Option<f64>,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// Input for `approveTask`.
#[derive(InputObject)]
pub struct ApproveTaskInput {
    /// The task.
    task_id: ID,
    /// The reviewer, an active member of the circle other than the assignee. Defaults to the reviewer of the task, or
    /// to none if that agent has left the circle.
    reviewer_id: Option<ID>,
    /// The review comment, at most 10,000 characters. If omitted, the previous comment is kept.
    comment: Option<String>,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// Input for `rejectTask`.
#[derive(InputObject)]
pub struct RejectTaskInput {
    /// The task.
    task_id: ID,
    /// The reviewer, an active member of the circle other than the assignee. Defaults to the reviewer of the task, or
    /// to none if that agent has left the circle.
    reviewer_id: Option<ID>,
    /// The required changes, 1 to 10,000 characters.
    reason: String,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// Task mutations.
#[derive(Default)]
pub struct TaskMutation;

#[Object]
impl TaskMutation {
    /// Creates a task. If the circle is running with `autoRoute`, it is assigned to the best-fitting member as soon as
    /// `maxConcurrentTasks` allows. Requires editor access to the circle. `userErrors` codes besides input validation:
    /// `NOT_MEMBER` for the assignee and the reviewer; `INVALID` for a reviewer that is the assignee and for a parent
    /// of another circle; `BAD_TRANSITION` in an archived circle.
    async fn create_task(
        &self,
        ctx: &Context<'_>,
        input: CreateTaskInput,
    ) -> Result<TaskPayload, Error> {
        let circle = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let parent = Kind::Task.parse_opt(input.parent_id.as_ref(), "parentId")?;
        let assignee = Kind::Agent.parse_opt(input.assignee_id.as_ref(), "assigneeId")?;
        let reviewer = Kind::Agent.parse_opt(input.reviewer_id.as_ref(), "reviewerId")?;
        let id = Uuid::now_v7();
        let outcome = change(ctx, None, async |mut change| {
            let circle = change.circle(circle, "circleId", Access::Editor).await?;
            if let Err(fault) = check_open(&circle) {
                return Ok(Outcome::fault(None, fault));
            }
            let mut check = Check::default();
            let title = check.line("title", &input.title, MAX_TITLE);
            let description = input.description.as_deref();
            let description = check.optional_text("description", description, MAX_DESCRIPTION);
            let required = input.required_competencies.as_deref().unwrap_or_default();
            let required = check.words("requiredCompetencies", required, MAX_LIST, MAX_ENTRY);
            let estimated_hours = input.estimated_hours;
            let estimated_hours = estimated_hours.map(|hours| check.hours("estimatedHours", hours));
            if let Some(parent) = parent {
                change
                    .check_task_parent(circle.id, None, parent, &mut check)
                    .await?;
            }
            let other = reviewer.filter(|_| reviewer != assignee);
            let agents = [("assigneeId", assignee), ("reviewerId", other)];
            change
                .check_task_agents(circle.id, &agents, &mut check)
                .await?;
            check.reviewer(reviewer, assignee);
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            let priority: task::Priority = input.priority.into();
            let status = match assignee {
                Some(_) => task::TaskStatus::Assigned,
                None => task::TaskStatus::Pending,
            };
            let row = task::Model {
                id,
                created_at: change.now,
                updated_at: change.now,
                version: 1,
                circle_id: circle.id,
                parent_id: parent,
                title,
                description,
                required_competencies: required,
                priority,
                priority_rank: rank(priority),
                status,
                assignee_id: assignee,
                reviewer_id: reviewer,
                created_by: Some(change.viewer.id()),
                requires_review: input.requires_review.unwrap_or(circle.require_review),
                review_type: input.review_type.into(),
                review_round: 0,
                review_note: None,
                status_note: None,
                result: None,
                artifacts: List::default(),
                estimated_hours,
                actual_hours: None,
                due_at: input.due_at.map(|at| at.0),
                started_at: None,
                submitted_at: None,
                completed_at: None,
                cycle_seconds: None,
            };
            task::Entity::insert(row.clone().into_active_model())
                .exec_without_returning(&change.transaction)
                .await?;
            change.append(edited(EventType::TaskCreated, &circle, &row, &[]));
            if let Some(agent) = assignee {
                let subject = (id, row.title.as_str(), row.version);
                change.append(assigned(&circle, subject, None, (agent, None), None));
            }
            change.route_pending(&circle).await?;
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Updates a task in any status. Requires editor access to the circle. `userErrors` codes besides input validation:
    /// `NOT_MEMBER` for the reviewer; `INVALID` for a reviewer that is the assignee and for a parent that is in another
    /// circle or is a subtask of the task; `CONFLICT`; `BAD_TRANSITION` in an archived circle.
    async fn update_task(
        &self,
        ctx: &Context<'_>,
        input: UpdateTaskInput,
    ) -> Result<TaskPayload, Error> {
        let id = Kind::Task.parse(&input.task_id, "taskId")?;
        let parse = |kind: Kind, id: &MaybeUndefined<ID>, field: &str| {
            let id = id.clone().map_value(|id| kind.parse(&id, field));
            id.transpose()
        };
        let parent = parse(Kind::Task, &input.parent_id, "parentId")?;
        let reviewer = parse(Kind::Agent, &input.reviewer_id, "reviewerId")?;
        let outcome = change(ctx, None, async |mut change| {
            let Found { circle, task, .. } = change.task(id, "taskId", None).await?;
            let allowed = check_open(&circle)
                .and_then(|()| check_version(input.expected_version, task.version));
            if let Err(fault) = allowed {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut check = Check::default();
            let title = check.if_given("title", &input.title);
            let title = title.map(|title| check.line("title", title, MAX_TITLE));
            let description = input.description.as_opt_deref();
            let description =
                description.map(|value| check.optional_text("description", value, MAX_DESCRIPTION));
            let required = input.required_competencies.as_opt_deref();
            let required = required.map(|words| {
                let words = words.unwrap_or_default();
                check.words("requiredCompetencies", words, MAX_LIST, MAX_ENTRY)
            });
            let priority = check.if_given("priority", &input.priority).copied();
            let requires_review = check
                .if_given("requiresReview", &input.requires_review)
                .copied();
            let review_type = check.if_given("reviewType", &input.review_type).copied();
            let mut hours = |field, value: &MaybeUndefined<f64>| {
                let value = value.as_opt_ref()?;
                Some(value.map(|hours| check.hours(field, *hours)))
            };
            let estimated = hours("estimatedHours", &input.estimated_hours);
            let actual = hours("actualHours", &input.actual_hours);
            if let MaybeUndefined::Value(parent) = parent {
                change
                    .check_task_parent(circle.id, Some(id), parent, &mut check)
                    .await?;
            }
            let named = reviewer.value().copied();
            let is_new = named != task.reviewer_id && named != task.assignee_id;
            let other = named.filter(|_| is_new);
            let agents = [("reviewerId", other)];
            change
                .check_task_agents(circle.id, &agents, &mut check)
                .await?;
            check.reviewer(named, task.assignee_id);
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let mut new = task.clone().into_active_model();
            let mut edits = Edits::default();
            let priority = priority.map(task::Priority::from);
            if let Some(priority) = priority {
                new.priority_rank = Set(rank(priority));
            }
            let parent = parent.as_opt_ref().map(Option::<&Uuid>::copied);
            edits.set("parentId", &mut new.parent_id, parent);
            edits.set("title", &mut new.title, title);
            edits.set("description", &mut new.description, description);
            edits.set(
                "requiredCompetencies",
                &mut new.required_competencies,
                required,
            );
            edits.set("priority", &mut new.priority, priority);
            let reviewer = reviewer.as_opt_ref().map(Option::<&Uuid>::copied);
            edits.set("reviewerId", &mut new.reviewer_id, reviewer);
            edits.set("requiresReview", &mut new.requires_review, requires_review);
            edits.set(
                "reviewType",
                &mut new.review_type,
                review_type.map(Into::into),
            );
            edits.set("estimatedHours", &mut new.estimated_hours, estimated);
            edits.set("actualHours", &mut new.actual_hours, actual);
            let due_at = input.due_at.as_opt_ref();
            let due_at = due_at.map(|at| at.map(|at| at.0));
            edits.set("dueAt", &mut new.due_at, due_at);
            if !edits.is_empty() {
                let row = change.write_task(&task, new).await?;
                change.append(edited(EventType::TaskUpdated, &circle, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a task that is `PENDING`, `COMPLETED`, `FAILED` or `CANCELLED`. Its subtasks are kept, without a parent.
    /// Requires editor access to the circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn delete_task(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Task.parse(&input.id, "id")?;
        let outcome = change(ctx, None, async |mut change| {
            let Found { circle, task, .. } = change.task(id, "id", None).await?;
            let allowed = check_open(&circle)
                .and_then(|()| check_version(input.expected_version, task.version))
                .and_then(|()| check_status(task.status, DELETABLE, "deleted"));
            if let Err(fault) = allowed {
                return Ok(Outcome::fault(Some(id), fault));
            }
            change.append(edited(EventType::TaskDeleted, &circle, &task, &[]));
            task.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Task, id, outcome.await?).await
    }

    /// Assigns a task to an agent, or to the best-fitting member. The task must be `PENDING`, `ASSIGNED`, `BLOCKED` or
    /// `CHANGES_REQUESTED`. Requires editor access to the circle. `userErrors` codes: `NOT_MEMBER`; `INVALID` if the
    /// agent is the reviewer or no member fits; `BAD_TRANSITION`; `CONFLICT`.
    async fn assign_task(
        &self,
        ctx: &Context<'_>,
        input: AssignTaskInput,
    ) -> Result<TaskPayload, Error> {
        let id = Kind::Task.parse(&input.task_id, "taskId")?;
        let agent = Kind::Agent.parse_opt(input.agent_id.as_ref(), "agentId")?;
        let outcome = change(ctx, None, async |mut change| {
            let found = change.task(id, "taskId", agent).await?;
            let Found { circle, task, .. } = found;
            let allowed = check_open(&circle)
                .and_then(|()| check_version(input.expected_version, task.version))
                .and_then(|()| check_status(task.status, ASSIGNABLE, "assigned"));
            if let Err(fault) = allowed {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut check = Check::default();
            if agent.is_some() && agent == task.reviewer_id {
                let message = "The agent is the reviewer of the task.";
                check.fault("agentId", UserErrorCode::Invalid, message);
            } else if !found.is_member {
                let agents = [("agentId", agent)];
                change
                    .check_task_agents(circle.id, &agents, &mut check)
                    .await?;
            }
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let to = match agent {
                Some(agent) => Some((agent, None)),
                None => change.fitting(&task).await?,
            };
            let Some((agent, score)) = to else {
                let message = "No member of the circle fits the task.";
                let fault = UserError::new("agentId", UserErrorCode::Invalid, message);
                return Ok(Outcome::fault(Some(id), fault));
            };
            if task.status == task::TaskStatus::Assigned && task.assignee_id == Some(agent) {
                let fault =
                    UserError::bad_transition("The task is already assigned to this agent.");
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut new = task.clone().into_active_model();
            new.status = Set(task::TaskStatus::Assigned);
            new.assignee_id = Set(Some(agent));
            new.status_note = Set(None);
            change.write_task(&task, new).await?;
            let subject = (id, task.title.as_str(), task.version + 1);
            let from = Some(task.status);
            change.append(assigned(
                &circle,
                subject,
                from,
                (agent, score),
                task.assignee_id,
            ));
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Unassigns a task that is `ASSIGNED`, `BLOCKED` or `CHANGES_REQUESTED`: it becomes `PENDING`. If the circle is
    /// running with `autoRoute`, it is routed again. Requires editor access to the circle. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn unassign_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Unassign(&input).take(ctx).await
    }

    /// Starts a task that is `ASSIGNED` or `CHANGES_REQUESTED`; its assignee becomes `BUSY`. Requires editor access to
    /// the circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn start_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Start(&input).take(ctx).await
    }

    /// Marks a task that is `IN_PROGRESS` as `BLOCKED`. Requires editor access to the circle. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn block_task(
        &self,
        ctx: &Context<'_>,
        input: TaskReasonInput,
    ) -> Result<TaskPayload, Error> {
        Step::Block(&input).take(ctx).await
    }

    /// Resumes a task that is `BLOCKED`: it becomes `IN_PROGRESS`. Requires editor access to the circle. `userErrors`
    /// codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn unblock_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Unblock(&input).take(ctx).await
    }

    /// Submits a task that is `IN_PROGRESS`, for review or as `COMPLETED`. If a review is required and no member is its
    /// reviewer, the least loaded member that handles its review type becomes the reviewer; if there is none, the user
    /// who approves it is the reviewer. Requires editor access to the circle. `userErrors` codes: `BAD_TRANSITION`;
    /// `CONFLICT`.
    async fn submit_task(
        &self,
        ctx: &Context<'_>,
        input: SubmitTaskInput,
    ) -> Result<TaskPayload, Error> {
        Step::Submit(&input).take(ctx).await
    }

    /// Approves a task that is `IN_REVIEW`: it becomes `COMPLETED`. Requires editor access to the circle. `userErrors`
    /// codes: `NOT_MEMBER`; `INVALID` if the reviewer is the assignee; `BAD_TRANSITION`; `CONFLICT`.
    async fn approve_task(
        &self,
        ctx: &Context<'_>,
        input: ApproveTaskInput,
    ) -> Result<TaskPayload, Error> {
        Step::Approve(&input).take(ctx).await
    }

    /// Rejects a task that is `IN_REVIEW`: it becomes `CHANGES_REQUESTED`. Requires editor access to the circle.
    /// `userErrors` codes: `NOT_MEMBER`; `INVALID` if the reviewer is the assignee; `BAD_TRANSITION`; `CONFLICT`.
    async fn reject_task(
        &self,
        ctx: &Context<'_>,
        input: RejectTaskInput,
    ) -> Result<TaskPayload, Error> {
        Step::Reject(&input).take(ctx).await
    }

    /// Marks an assigned task that has not ended as `FAILED`. Requires editor access to the circle. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn fail_task(
        &self,
        ctx: &Context<'_>,
        input: TaskReasonInput,
    ) -> Result<TaskPayload, Error> {
        Step::Fail(&input).take(ctx).await
    }

    /// Cancels a task that has not ended: it becomes `CANCELLED`. Requires editor access to the circle. `userErrors`
    /// codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn cancel_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Cancel(&input).take(ctx).await
    }

    /// Reopens a task that is `FAILED` or `CANCELLED`: it becomes `PENDING`, without an assignee. If the circle is
    /// running with `autoRoute`, it is routed again. Requires editor access to the circle. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn reopen_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Reopen(&input).take(ctx).await
    }
}

/// The statuses in which a task may be deleted.
const DELETABLE: &[task::TaskStatus] = &[
    task::TaskStatus::Pending,
    task::TaskStatus::Completed,
    task::TaskStatus::Failed,
    task::TaskStatus::Cancelled,
];

/// The statuses in which a task may be assigned.
const ASSIGNABLE: &[task::TaskStatus] = &[
    task::TaskStatus::Pending,
    task::TaskStatus::Assigned,
    task::TaskStatus::Blocked,
    task::TaskStatus::ChangesRequested,
];

/// A status transition of a task, with its input.
enum Step<'a> {
    Unassign(&'a TaskActionInput),
    Start(&'a TaskActionInput),
    Block(&'a TaskReasonInput),
    Unblock(&'a TaskActionInput),
    Submit(&'a SubmitTaskInput),
    Approve(&'a ApproveTaskInput),
    Reject(&'a RejectTaskInput),
    Fail(&'a TaskReasonInput),
    Cancel(&'a TaskActionInput),
    Reopen(&'a TaskActionInput),
}

impl Step<'_> {
    /// The task id and the expected version.
    fn subject(&self) -> (&ID, Option<i32>) {
        match self {
            Self::Unassign(input)
            | Self::Start(input)
            | Self::Unblock(input)
            | Self::Cancel(input)
            | Self::Reopen(input) => (&input.task_id, input.expected_version),
            Self::Block(input) | Self::Fail(input) => (&input.task_id, input.expected_version),
            Self::Submit(input) => (&input.task_id, input.expected_version),
            Self::Approve(input) => (&input.task_id, input.expected_version),
            Self::Reject(input) => (&input.task_id, input.expected_version),
        }
    }

    /// The reviewer that the input names.
    fn reviewer(&self) -> Result<Option<Uuid>, Error> {
        let id = match self {
            Self::Approve(input) => input.reviewer_id.as_ref(),
            Self::Reject(input) => input.reviewer_id.as_ref(),
            _ => None,
        };
        Kind::Agent.parse_opt(id, "reviewerId")
    }

    /// The source statuses and the event type.
    fn rule(&self) -> (&'static [task::TaskStatus], EventType) {
        use task::TaskStatus::{
            Assigned, Blocked, Cancelled, ChangesRequested, Failed, InProgress, InReview, Pending,
        };
        match self {
            Self::Unassign(_) => (
                &[Assigned, Blocked, ChangesRequested],
                EventType::TaskUnassigned,
            ),
            Self::Start(_) => (&[Assigned, ChangesRequested], EventType::TaskStarted),
            Self::Block(_) => (&[InProgress], EventType::TaskBlocked),
            Self::Unblock(_) => (&[Blocked], EventType::TaskUnblocked),
            Self::Submit(_) => (&[InProgress], EventType::TaskSubmitted),
            Self::Approve(_) => (&[InReview], EventType::TaskApproved),
            Self::Reject(_) => (&[InReview], EventType::TaskRejected),
            Self::Fail(_) => (
                &[Assigned, InProgress, InReview, ChangesRequested, Blocked],
                EventType::TaskFailed,
            ),
            Self::Cancel(_) => (
                &[
                    Pending,
                    Assigned,
                    InProgress,
                    InReview,
                    ChangesRequested,
                    Blocked,
                ],
                EventType::TaskCancelled,
            ),
            Self::Reopen(_) => (&[Failed, Cancelled], EventType::TaskReopened),
        }
    }

    /// Applies the step to the row and returns the note for the event. A reviewer named by the input replaces that of
    /// the task.
    fn apply(
        &self,
        check: &mut Check,
        task: &task::Model,
        reviewer: Option<Uuid>,
        now: chrono::DateTime<Utc>,
    ) -> (task::ActiveModel, Option<String>) {
        use task::TaskStatus::{
            Blocked, Cancelled, ChangesRequested, Completed, Failed, InProgress, InReview, Pending,
        };
        let mut new = task.clone().into_active_model();
        // The note explains the previous status only.
        new.status_note = Set(None);
        let complete = |new: &mut task::ActiveModel| {
            new.status = Set(Completed);
            new.completed_at = Set(Some(now));
            new.cycle_seconds = Set(task.started_at.map(|start| seconds(start, now)));
        };
        let note = match self {
            Self::Unassign(input)
            | Self::Start(input)
            | Self::Unblock(input)
            | Self::Cancel(input)
            | Self::Reopen(input) => {
                let note = check.optional_text("note", input.note.as_deref(), MAX_NOTE);
                new.status_note = Set(note.clone());
                note
            }
            Self::Block(input) | Self::Fail(input) => {
                let reason = check.text("reason", &input.reason, MAX_NOTE);
                new.status_note = Set(Some(reason.clone()));
                Some(reason)
            }
            Self::Submit(input) => {
                new.result = Set(Some(check.text("result", &input.result, MAX_RESULT)));
                if let Some(artifacts) = &input.artifacts {
                    let artifacts = check.list("artifacts", artifacts, MAX_ARTIFACTS, MAX_ARTIFACT);
                    new.artifacts = Set(artifacts);
                }
                if let Some(hours) = input.actual_hours {
                    new.actual_hours = Set(Some(check.hours("actualHours", hours)));
                }
                None
            }
            Self::Approve(input) => {
                let comment = input.comment.as_deref();
                let comment = check.optional_text("comment", comment, MAX_REVIEW);
                if comment.is_some() {
                    new.review_note = Set(comment.clone());
                }
                comment
            }
            Self::Reject(input) => {
                let reason = check.text("reason", &input.reason, MAX_REVIEW);
                new.review_note = Set(Some(reason.clone()));
                Some(reason)
            }
        };
        match self {
            Self::Unassign(_) | Self::Reopen(_) => {
                new.status = Set(Pending);
                new.assignee_id = Set(None);
            }
            Self::Start(_) => {
                new.status = Set(InProgress);
                if task.started_at.is_none() {
                    new.started_at = Set(Some(now));
                }
            }
            Self::Block(_) => new.status = Set(Blocked),
            Self::Unblock(_) => new.status = Set(InProgress),
            Self::Submit(_) => {
                new.submitted_at = Set(Some(now));
                if task.requires_review {
                    new.status = Set(InReview);
                    new.review_round = Set(task.review_round + 1);
                } else {
                    complete(&mut new);
                }
            }
            Self::Approve(_) => complete(&mut new),
            Self::Reject(_) => new.status = Set(ChangesRequested),
            Self::Fail(_) => new.status = Set(Failed),
            Self::Cancel(_) => new.status = Set(Cancelled),
        }
        if reviewer.is_some() {
            new.reviewer_id = Set(reviewer);
        }
        (new, note)
    }

    /// For a review, whether the work was approved; otherwise `None`.
    fn verdict(&self) -> Option<bool> {
        match self {
            Self::Approve(_) => Some(true),
            Self::Reject(_) => Some(false),
            _ => None,
        }
    }

    /// Performs the transition and its consequences.
    async fn take(self, ctx: &Context<'_>) -> Result<TaskPayload, Error> {
        let (id, version) = self.subject();
        let id = Kind::Task.parse(id, "taskId")?;
        let reviewer = self.reviewer()?;
        let outcome = change(ctx, None, async |mut change| {
            let found = change.task(id, "taskId", reviewer).await?;
            let Found {
                circle,
                task,
                is_member,
            } = found;
            let (from, kind) = self.rule();
            let allowed = check_open(&circle)
                .and_then(|()| check_version(version, task.version))
                .and_then(|()| check_status(task.status, from, done(kind)));
            if let Err(fault) = allowed {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut check = Check::default();
            let (mut new, note) = self.apply(&mut check, &task, reviewer, change.now);
            if !is_member {
                let agents = [("reviewerId", reviewer)];
                change
                    .check_task_agents(circle.id, &agents, &mut check)
                    .await?;
            }
            check.reviewer(reviewer, task.assignee_id);
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let status = *new.status.try_as_ref().unwrap_or(&task.status);
            if status == task::TaskStatus::InReview && !is_member {
                let team = change.team(circle.id).await?;
                new.reviewer_id = Set(team.reviewer(task.review_type, task.assignee_id));
            } else if self.verdict().is_some() && !is_member {
                // A reviewer that has left the circle has not reviewed the task; the calling user has.
                new.reviewer_id = Set(None);
            }
            let after = change.write_task(&task, new).await?;
            self.tell(&mut change, &circle, (&task, &after), note.as_deref());
            if let Some(agent) = after.assignee_id {
                let between = (task.status, status);
                change
                    .involve(&circle, agent, between, self.verdict())
                    .await?;
            }
            let is_let_go = is_in_hand(task.status) && !is_in_hand(status);
            if is_let_go || status == task::TaskStatus::Pending {
                change.route_pending(&circle).await?;
            }
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Appends the events of a transition.
    fn tell(
        &self,
        change: &mut Change<'_>,
        circle: &circle::Model,
        (before, after): (&task::Model, &task::Model),
        note: Option<&str>,
    ) {
        let mut moved = json!({
            "title": after.title,
            "fromStatus": before.status.to_value(),
            "toStatus": after.status.to_value(),
            "assigneeId": after.assignee_id.map(|id| Kind::Agent.id(id)),
            "note": note,
            "version": after.version,
        });
        match self {
            Self::Unassign(_) => {
                let subject = (after.id, after.title.as_str(), after.version);
                let from = (before.status, before.assignee_id);
                change.append(unassigned(circle, subject, from, note));
                return;
            }
            Self::Submit(_) | Self::Approve(_) | Self::Reject(_) => {
                moved["reviewerId"] = json!(after.reviewer_id.map(|id| Kind::Agent.id(id)));
                moved["round"] = json!(after.review_round);
            }
            _ => {}
        }
        let fact = |kind, payload| {
            about(circle, NewEvent::new(kind, after.id, payload)).agent(before.assignee_id)
        };
        let (_, kind) = self.rule();
        change.append(fact(kind, moved.clone()));
        if after.status == task::TaskStatus::Completed {
            moved["note"] = json!(null);
            change.append(fact(EventType::TaskCompleted, moved));
        }
    }
}

/// The past participle in an event type, for error messages.
fn done(kind: EventType) -> &'static str {
    kind.dotted().trim_start_matches("task.")
}

/// Checks that the task's status allows the transition.
fn check_status(
    status: task::TaskStatus,
    allowed: &[task::TaskStatus],
    done: &str,
) -> Result<(), UserError> {
    if allowed.contains(&status) {
        return Ok(());
    }
    Err(UserError::cannot("task", &status.to_value(), done))
}

/// The priority as a number; the lowest number is the most urgent.
fn rank(priority: task::Priority) -> i32 {
    match priority {
        task::Priority::Critical => 1,
        task::Priority::High => 3,
        task::Priority::Medium => 5,
        task::Priority::Low => 8,
    }
}

fn seconds(from: chrono::DateTime<Utc>, to: chrono::DateTime<Utc>) -> i32 {
    let seconds = (to - from).num_seconds().clamp(0, i32::MAX.into());
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// The event for a task that was created, updated or deleted.
fn edited(
    kind: EventType,
    circle: &circle::Model,
    row: &task::Model,
    changed: &[&str],
) -> NewEvent {
    let payload = json!({
        "title": row.title,
        "priority": row.priority.to_value(),
        "toStatus": row.status.to_value(),
        "changed": changed,
        "version": row.version,
    });
    about(circle, NewEvent::new(kind, row.id, payload)).agent(row.assignee_id)
}

impl Check {
    /// Checks a number of hours.
    fn hours(&mut self, field: &str, hours: f64) -> f64 {
        if !(hours.is_finite() && hours >= 0.0) {
            let message = format!("`{field}` must be 0 or more.");
            self.fault(field, UserErrorCode::OutOfRange, message);
        }
        hours
    }

    /// Checks that the reviewer is not the assignee.
    fn reviewer(&mut self, reviewer: Option<Uuid>, assignee: Option<Uuid>) {
        if reviewer.is_some() && reviewer == assignee {
            let message = "The reviewer must not be the assignee.";
            self.fault("reviewerId", UserErrorCode::Invalid, message);
        }
    }
}

/// A task that the viewer may change, and its circle. Both are unchanged by others until the transaction ends.
struct Found {
    circle: circle::Model,
    task: task::Model,
    /// Whether the given agent is an active member of the circle.
    is_member: bool,
}

/// A task row, with the viewer's role in the circle and the membership check.
struct Seen {
    task: task::Model,
    role: Option<collaborator::CollaboratorRole>,
    is_member: bool,
}

impl FromQueryResult for Seen {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        Ok(Self {
            task: task::Model::from_query_result(row, prefix)?,
            role: row.try_get(prefix, "viewer_role")?,
            is_member: row.try_get(prefix, "is_member")?,
        })
    }
}

impl Change<'_> {
    /// Loads a task that the viewer may change, locks its circle, and checks whether `agent`, or else the task's
    /// reviewer, is an active member.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
    async fn task(&self, id: Uuid, field: &str, agent: Option<Uuid>) -> Result<Found, Error> {
        let of_task = task::Entity::find_by_id(id)
            .select_only()
            .column(task::Column::CircleId)
            .into_query();
        let circle = circle::Entity::find()
            .filter(circle::Column::Id.in_subquery(of_task))
            .filter(self.viewer.rules().circle.condition())
            .lock(LockType::NoKeyUpdate)
            .one(&self.transaction)
            .await?
            .ok_or_else(|| Error::not_found(field))?;
        // Only a statement that starts after the circle is locked sees the changes of concurrent transactions.
        let role = collaborator::Entity::find()
            .select_only()
            .column(collaborator::Column::Role)
            .filter(collaborator::Column::CircleId.eq(circle.id))
            .filter(collaborator::Column::UserId.eq(self.viewer.id()))
            .into_query();
        let it = Expr::col(member::Column::AgentId.as_column_ref());
        let membership = member::Entity::find()
            .select_only()
            .column(member::Column::Id)
            .filter(member::Column::CircleId.eq(circle.id))
            .filter(member::Column::IsActive.eq(true))
            .filter(match agent {
                Some(agent) => it.eq(agent),
                None => it.equals(task::Column::ReviewerId.as_column_ref()),
            })
            .into_query();
        let seen = task::Entity::find_by_id(id)
            .expr_as(Expr::from(role), "viewer_role")
            .expr_as(Expr::exists(membership), "is_member")
            .into_model::<Seen>()
            .one(&self.transaction);
        let Seen {
            task,
            role,
            is_member,
        } = seen.await?.ok_or_else(|| Error::not_found(field))?;
        self.check_access(&circle, role, field, Access::Editor)?;
        Ok(Found {
            circle,
            task,
            is_member,
        })
    }

    /// Writes the changed columns of a task. Returns the new row.
    async fn write_task(
        &self,
        task: &task::Model,
        mut new: task::ActiveModel,
    ) -> Result<task::Model, Error> {
        new.version = Set(task.version + 1);
        new.updated_at = Set(self.now);
        let written = task::Entity::update_many()
            .set(new.clone())
            .filter(task::Column::Id.eq(task.id))
            .filter(task::Column::Status.eq(task.status))
            .filter(task::Column::Version.eq(task.version))
            .exec(&self.transaction)
            .await?;
        if written.rows_affected == 0 {
            return Err(Error::conflict());
        }
        Ok(new.try_into_model()?)
    }

    /// Updates the assignee after a transition of its task: the time of activity, the status (`BUSY` while a task is
    /// `IN_PROGRESS`), and the review counts.
    async fn involve(
        &mut self,
        circle: &circle::Model,
        agent: Uuid,
        (from, to): (task::TaskStatus, task::TaskStatus),
        verdict: Option<bool>,
    ) -> Result<(), Error> {
        use agent::Column::{Id, LastActiveAt, ReviewsApproved, ReviewsTotal, Status, UpdatedAt};
        let mut update = agent::Entity::update_many()
            .col_expr(LastActiveAt, Expr::value(self.now))
            .col_expr(UpdatedAt, Expr::value(self.now))
            .filter(Id.eq(agent));
        if let Some(is_approved) = verdict {
            update = update
                .col_expr(ReviewsTotal, Expr::col(ReviewsTotal).add(1))
                .col_expr(
                    ReviewsApproved,
                    Expr::col(ReviewsApproved).add(i32::from(is_approved)),
                );
        }
        let at_work = task::TaskStatus::InProgress;
        if (from == at_work) != (to == at_work) {
            let row = agent::Entity::find_by_id(agent)
                .lock(LockType::NoKeyUpdate)
                .one(&self.transaction)
                .await?
                .ok_or_else(Error::conflict)?;
            // Tasks in other circles may start or end at the same time. The row lock makes the later transaction see
            // the result of the earlier one.
            let status = match row.status {
                agent::AgentStatus::Offline => agent::AgentStatus::Offline,
                _ if to == at_work || self.is_at_work(agent).await? => agent::AgentStatus::Busy,
                _ => agent::AgentStatus::Idle,
            };
            if status != row.status {
                update = update.col_expr(Status, Expr::value(status.to_value()));
                let payload = json!({
                    "name": row.name,
                    "fromStatus": row.status.to_value(),
                    "toStatus": status.to_value(),
                    "version": row.version,
                });
                // Delivered to the readers of the circle and to the owner of the agent.
                let fact = about(
                    circle,
                    NewEvent::new(EventType::AgentStatusChanged, agent, payload),
                );
                self.append(fact.owner(row.owner_id).agent(agent));
            }
        }
        update.exec(&self.transaction).await?;
        Ok(())
    }

    /// Whether any task of an agent is `IN_PROGRESS`.
    async fn is_at_work(&self, agent: Uuid) -> Result<bool, Error> {
        let task: Option<Uuid> = task::Entity::find()
            .select_only()
            .column(task::Column::Id)
            .filter(task::Column::AssigneeId.eq(agent))
            .filter(task::Column::Status.eq(task::TaskStatus::InProgress))
            .limit(1)
            .into_tuple()
            .one(&self.transaction)
            .await?;
        Ok(task.is_some())
    }

    /// Adds a fault for each agent in an input that is not an active member of the circle.
    ///
    /// # Errors
    /// `NOT_FOUND` for an agent that the viewer may not read.
    async fn check_task_agents(
        &self,
        circle: Uuid,
        named: &[(&str, Option<Uuid>)],
        check: &mut Check,
    ) -> Result<(), Error> {
        let named = named
            .iter()
            .filter_map(|(field, agent)| Some((*field, (*agent)?)));
        let named: Vec<(&str, Uuid)> = named.collect();
        if named.is_empty() {
            return Ok(());
        }
        let backend = self.transaction.get_database_backend();
        let ids: Vec<Uuid> = named.iter().map(|(_, agent)| *agent).collect();
        let members: Vec<Uuid> = member::Entity::find()
            .select_only()
            .column(member::Column::AgentId)
            .filter(member::Column::CircleId.eq(circle))
            .filter(member::Column::IsActive.eq(true))
            .filter(is_among(
                backend,
                member::Column::AgentId.as_column_ref(),
                &ids,
            ))
            .into_tuple()
            .all(&self.transaction)
            .await?;
        if ids.iter().all(|agent| members.contains(agent)) {
            return Ok(());
        }
        let readable: Vec<Uuid> = agent::Entity::find()
            .select_only()
            .column(agent::Column::Id)
            .filter(self.viewer.rules().agent.condition())
            .filter(is_among(backend, agent::Column::Id.as_column_ref(), &ids))
            .into_tuple()
            .all(&self.transaction)
            .await?;
        for (field, agent) in named {
            if !readable.contains(&agent) {
                return Err(Error::not_found(field));
            }
            if !members.contains(&agent) {
                let message = "The agent is not an active member of the circle.";
                check.fault(field, UserErrorCode::NotMember, message);
            }
        }
        Ok(())
    }

    /// Adds a fault for a parent that is not in the same circle, or that is the task itself or one of its subtasks.
    ///
    /// # Errors
    /// `NOT_FOUND` for a parent that the viewer may not read.
    async fn check_task_parent(
        &self,
        circle: Uuid,
        task: Option<Uuid>,
        parent: Uuid,
        check: &mut Check,
    ) -> Result<(), Error> {
        let row = task::Entity::find_by_id(parent)
            .filter(self.viewer.rules().task.condition())
            .one(&self.transaction)
            .await?
            .ok_or_else(|| Error::not_found("parentId"))?;
        let message = if row.circle_id != circle {
            "The parent must be a task of the same circle."
        } else if let Some(task) = task
            && self.is_part_of(parent, task).await?
        {
            "A task cannot be its own subtask."
        } else {
            return Ok(());
        };
        check.fault("parentId", UserErrorCode::Invalid, message);
        Ok(())
    }

    /// Whether a task is another task or one of its subtasks at any depth. A single recursive statement, which
    /// terminates even if the parents form a cycle.
    async fn is_part_of(&self, task: Uuid, whole: Uuid) -> Result<bool, Error> {
        use task::Column::{Id, ParentId};
        let above = task::Entity::find()
            .select_only()
            .columns([Id, ParentId])
            .into_query();
        let of_those = Expr::col(Id.as_column_ref()).equals(("above", "parent_id"));
        let mut all = task::Entity::find_by_id(task)
            .select_only()
            .columns([Id, ParentId])
            .into_query();
        all.union(
            UnionType::Distinct,
            above
                .clone()
                .join(JoinType::InnerJoin, "above", of_those)
                .take(),
        );
        let above = CommonTableExpression::new()
            .table_name("above")
            .columns(["id", "parent_id"])
            .query(all)
            .to_owned();
        let found = Query::select()
            .column("id")
            .from("above")
            .and_where(Expr::col("id").eq(whole))
            .take()
            .with(WithClause::new().recursive(true).cte(above).to_owned());
        Ok(self.transaction.query_one(&found).await?.is_some())
    }
}
