//! Tasks: pieces of work in a circle.

pub(crate) mod routing;

use std::sync::Arc;

use async_graphql::{
    Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject, connection::EmptyFields,
};
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

use crate::{
    agent::Agent,
    circle::{Access, Circle, check_open},
    conversation::{ConversationFilter, Conversations},
    data::{
        Change, Connection, Edits, Listed, Order, Outcome, Page, SortDirection, change,
        check_version,
    },
    db::is_among,
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    events::NewEvent,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
    task::routing::{about, assigned, is_in_hand, unassigned},
    user::User,
};

/// Most characters of a task's title.
const MAX_TITLE: usize = 500;
/// Most characters of its description.
const MAX_DESCRIPTION: usize = 20_000;
/// Most entries of what it requires, and most characters of an entry.
const MAX_LIST: usize = 50;
const MAX_ENTRY: usize = 100;
/// Most characters of a note or a reason.
const MAX_NOTE: usize = 2_000;
/// Most characters of what a review says.
const MAX_REVIEW: usize = 10_000;
/// Most characters of what came of it.
const MAX_RESULT: usize = 50_000;
/// Most names of what was made, and most characters of a name.
const MAX_ARTIFACTS: usize = 200;
const MAX_ARTIFACT: usize = 500;

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
    async fn description(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.description.as_deref())
    }

    /// What an agent must be able to do to take it; at most 50 words.
    async fn required_competencies(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request()
            .text(self.0.required_competencies.0.as_slice())
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

    /// What was last said in a review, at most 10,000 characters.
    async fn review_note(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.review_note.as_deref())
    }

    /// Why it stands where it stands, at most 2,000 characters; null when the last transition gave no reason.
    async fn status_note(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.status_note.as_deref())
    }

    /// What came of it, at most 50,000 characters.
    async fn result(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.result.as_deref())
    }

    /// Names or addresses of what was made; at most 200.
    async fn artifacts(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.artifacts.0.as_slice())
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
        let status = filter.status.map(|list| {
            Status.is_in(crate::db::distinct(
                list.into_iter().map(task::TaskStatus::from),
            ))
        });
        let priority = filter.priority.map(|list| {
            Pressing.is_in(crate::db::distinct(
                list.into_iter().map(task::Priority::from),
            ))
        });
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

/// The outcome of a change of a task.
#[derive(SimpleObject)]
pub struct TaskPayload {
    /// The task as it is now; null when there is none to show.
    task: Option<Task>,
    /// What was wrong with the input, or with the state of the task.
    user_errors: Vec<UserError>,
}

impl TaskPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            task: outcome.row::<task::Entity>(ctx).await?.map(Task),
            user_errors: outcome.errors,
        })
    }
}

/// A task that is to be made.
#[derive(InputObject)]
pub struct CreateTaskInput {
    /// The circle it belongs to.
    circle_id: ID,
    /// The task of the same circle that it is part of.
    parent_id: Option<ID>,
    /// What is to be done, in one line of 1 to 500 characters.
    title: String,
    /// What is to be done, at most 20,000 characters.
    description: Option<String>,
    /// What an agent must be able to do to take it; at most 50, of at most 100 characters.
    required_competencies: Option<Vec<String>>,
    /// How pressing it is.
    #[graphql(default_with = "Priority::Medium")]
    priority: Priority,
    /// The agent who has it from the start, an active member of the circle. Without one it waits to be routed.
    assignee_id: Option<ID>,
    /// The agent who reviews it: an active member of the circle, and not the assignee.
    reviewer_id: Option<ID>,
    /// Whether it is reviewed before it counts as done; as the circle says when left out.
    requires_review: Option<bool>,
    /// What its review looks at.
    #[graphql(default_with = "ReviewType::Quality")]
    review_type: ReviewType,
    /// How many hours it is thought to take, 0 or more.
    estimated_hours: Option<f64>,
    /// When it should be done.
    due_at: Option<DateTime>,
}

/// What is to be different about a task. Fields that are left out stay as they are; null clears what may be empty. Where
/// the task stands is changed by the mutations of its transitions.
#[derive(InputObject)]
pub struct UpdateTaskInput {
    /// The task.
    task_id: ID,
    /// Change it only at this version.
    expected_version: Option<i32>,
    /// The task of the same circle that it is part of; not itself or a part of it.
    parent_id: MaybeUndefined<ID>,
    /// What is to be done, in one line of 1 to 500 characters.
    title: MaybeUndefined<String>,
    /// What is to be done, at most 20,000 characters.
    description: MaybeUndefined<String>,
    /// What an agent must be able to do to take it; at most 50, of at most 100 characters.
    required_competencies: MaybeUndefined<Vec<String>>,
    /// How pressing it is.
    priority: MaybeUndefined<Priority>,
    /// The agent who reviews it: an active member of the circle, and not the assignee.
    reviewer_id: MaybeUndefined<ID>,
    /// Whether it is reviewed before it counts as done.
    requires_review: MaybeUndefined<bool>,
    /// What its review looks at.
    review_type: MaybeUndefined<ReviewType>,
    /// How many hours it is thought to take, 0 or more.
    estimated_hours: MaybeUndefined<f64>,
    /// How many hours it took, 0 or more.
    actual_hours: MaybeUndefined<f64>,
    /// When it should be done.
    due_at: MaybeUndefined<DateTime>,
}

/// Who is to have a task.
#[derive(InputObject)]
pub struct AssignTaskInput {
    /// The task.
    task_id: ID,
    /// The agent, an active member of the circle and not the reviewer; the member who fits best when left out.
    agent_id: Option<ID>,
    /// Do it only at this version.
    expected_version: Option<i32>,
}

/// A transition of a task that may be commented.
#[derive(InputObject)]
pub struct TaskActionInput {
    /// The task.
    task_id: ID,
    /// Why, at most 2,000 characters: takes the place of the task's `statusNote`.
    note: Option<String>,
    /// Do it only at this version.
    expected_version: Option<i32>,
}

/// A transition of a task that needs a reason.
#[derive(InputObject)]
pub struct TaskReasonInput {
    /// The task.
    task_id: ID,
    /// Why, 1 to 2,000 characters: takes the place of the task's `statusNote`.
    reason: String,
    /// Do it only at this version.
    expected_version: Option<i32>,
}

/// What came of a task.
#[derive(InputObject)]
pub struct SubmitTaskInput {
    /// The task.
    task_id: ID,
    /// What came of it, 1 to 50,000 characters.
    result: String,
    /// Names or addresses of what was made; at most 200, of at most 500 characters. Those that were there stay when left
    /// out.
    artifacts: Option<Vec<String>>,
    /// How many hours it took, 0 or more.
    actual_hours: Option<f64>,
    /// Do it only at this version.
    expected_version: Option<i32>,
}

/// A review that finds a task done.
#[derive(InputObject)]
pub struct ApproveTaskInput {
    /// The task.
    task_id: ID,
    /// The agent who has reviewed it, an active member of the circle and not the assignee; when left out the task's
    /// reviewer, or nobody when that one has left the circle.
    reviewer_id: Option<ID>,
    /// What the review says, at most 10,000 characters; without it, what was said last stays.
    comment: Option<String>,
    /// Do it only at this version.
    expected_version: Option<i32>,
}

/// A review that finds a task not done.
#[derive(InputObject)]
pub struct RejectTaskInput {
    /// The task.
    task_id: ID,
    /// The agent who has reviewed it, an active member of the circle and not the assignee; when left out the task's
    /// reviewer, or nobody when that one has left the circle.
    reviewer_id: Option<ID>,
    /// What is to be changed, 1 to 10,000 characters.
    reason: String,
    /// Do it only at this version.
    expected_version: Option<i32>,
}

/// Changes of tasks.
#[derive(Default)]
pub struct TaskMutation;

#[Object]
impl TaskMutation {
    /// Makes a task. Where the circle runs and routes, it goes to the member who fits best as soon as there is room. For
    /// editors of the circle. Codes of `userErrors` beside those of the input: `NOT_MEMBER` for assignee and reviewer,
    /// `INVALID` for a reviewer who is the assignee and a parent of another circle, `BAD_TRANSITION` in an archived
    /// circle.
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
        let outcome = change(ctx, async |mut change| {
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
            change.append(edited("task.created", &circle, &row, &[]));
            if let Some(agent) = assignee {
                let subject = (id, row.title.as_str(), row.version);
                change.append(assigned(&circle, subject, None, (agent, None), None));
            }
            change.route_pending(&circle).await?;
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Changes what a task says, wherever it stands. For editors of its circle. Codes of `userErrors` beside those of the
    /// input: `NOT_MEMBER` for the reviewer, `INVALID` for a reviewer who is the assignee and a parent of another circle or
    /// that is part of the task, `CONFLICT`, `BAD_TRANSITION` in an archived circle.
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
        let outcome = change(ctx, async |mut change| {
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
                change.append(edited("task.updated", &circle, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a task that is PENDING, COMPLETED, FAILED or CANCELLED; the tasks that are part of it stay, on their own. For
    /// editors of its circle. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn delete_task(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Task.parse(&input.id, "id")?;
        let outcome = change(ctx, async |mut change| {
            let Found { circle, task, .. } = change.task(id, "id", None).await?;
            let allowed = check_open(&circle)
                .and_then(|()| check_version(input.expected_version, task.version))
                .and_then(|()| check_status(task.status, DELETABLE, "deleted"));
            if let Err(fault) = allowed {
                return Ok(Outcome::fault(Some(id), fault));
            }
            change.append(edited("task.deleted", &circle, &task, &[]));
            task.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Task, id, outcome.await?).await
    }

    /// Gives a task that is PENDING, ASSIGNED, BLOCKED or `CHANGES_REQUESTED` to an agent, or to the member who fits best.
    /// For editors of its circle. Codes of `userErrors`: `NOT_MEMBER`, `INVALID` when the agent is the reviewer or no
    /// member fits, `BAD_TRANSITION`, `CONFLICT`.
    async fn assign_task(
        &self,
        ctx: &Context<'_>,
        input: AssignTaskInput,
    ) -> Result<TaskPayload, Error> {
        let id = Kind::Task.parse(&input.task_id, "taskId")?;
        let agent = Kind::Agent.parse_opt(input.agent_id.as_ref(), "agentId")?;
        let outcome = change(ctx, async |mut change| {
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
                let fault = UserError::bad_transition("The agent has the task already.");
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

    /// Takes a task that is ASSIGNED, BLOCKED or `CHANGES_REQUESTED` from its agent, so that it is PENDING; where the circle
    /// runs and routes, it is routed again. For editors of its circle. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn unassign_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Unassign(&input).take(ctx).await
    }

    /// Begins a task that is ASSIGNED or `CHANGES_REQUESTED`; its agent is BUSY. For editors of its circle. Codes of
    /// `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn start_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Start(&input).take(ctx).await
    }

    /// Says that a task `IN_PROGRESS` cannot go on for now. For editors of its circle. Codes of `userErrors`:
    /// `BAD_TRANSITION`, `CONFLICT`.
    async fn block_task(
        &self,
        ctx: &Context<'_>,
        input: TaskReasonInput,
    ) -> Result<TaskPayload, Error> {
        Step::Block(&input).take(ctx).await
    }

    /// Goes on with a task that is BLOCKED. For editors of its circle. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn unblock_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Unblock(&input).take(ctx).await
    }

    /// Hands in a task `IN_PROGRESS`: for review where it needs one, otherwise it is COMPLETED. A reviewer is found when it
    /// has none who is a member: the one with most time of those who do reviews of its type; without any, it is reviewed by
    /// the user who approves it. For editors of its circle. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn submit_task(
        &self,
        ctx: &Context<'_>,
        input: SubmitTaskInput,
    ) -> Result<TaskPayload, Error> {
        Step::Submit(&input).take(ctx).await
    }

    /// Finds a task `IN_REVIEW` done: it is COMPLETED. For editors of its circle. Codes of `userErrors`: `NOT_MEMBER`,
    /// `INVALID` when the reviewer is the assignee, `BAD_TRANSITION`, `CONFLICT`.
    async fn approve_task(
        &self,
        ctx: &Context<'_>,
        input: ApproveTaskInput,
    ) -> Result<TaskPayload, Error> {
        Step::Approve(&input).take(ctx).await
    }

    /// Finds a task `IN_REVIEW` not done: its state is `CHANGES_REQUESTED`. For editors of its circle. Codes of `userErrors`:
    /// `NOT_MEMBER`, `INVALID` when the reviewer is the assignee, `BAD_TRANSITION`, `CONFLICT`.
    async fn reject_task(
        &self,
        ctx: &Context<'_>,
        input: RejectTaskInput,
    ) -> Result<TaskPayload, Error> {
        Step::Reject(&input).take(ctx).await
    }

    /// Gives up a task that an agent has and that is not done. For editors of its circle. Codes of `userErrors`:
    /// `BAD_TRANSITION`, `CONFLICT`.
    async fn fail_task(
        &self,
        ctx: &Context<'_>,
        input: TaskReasonInput,
    ) -> Result<TaskPayload, Error> {
        Step::Fail(&input).take(ctx).await
    }

    /// Says that a task that is not ended is no longer wanted. For editors of its circle. Codes of `userErrors`:
    /// `BAD_TRANSITION`, `CONFLICT`.
    async fn cancel_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Cancel(&input).take(ctx).await
    }

    /// Makes a task that is FAILED or CANCELLED PENDING, without an assignee; where the circle runs and routes, it is routed
    /// again. For editors of its circle. Codes of `userErrors`: `BAD_TRANSITION`, `CONFLICT`.
    async fn reopen_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        Step::Reopen(&input).take(ctx).await
    }
}

/// Where a task may be deleted.
const DELETABLE: &[task::TaskStatus] = &[
    task::TaskStatus::Pending,
    task::TaskStatus::Completed,
    task::TaskStatus::Failed,
    task::TaskStatus::Cancelled,
];

/// Where a task may be given to an agent.
const ASSIGNABLE: &[task::TaskStatus] = &[
    task::TaskStatus::Pending,
    task::TaskStatus::Assigned,
    task::TaskStatus::Blocked,
    task::TaskStatus::ChangesRequested,
];

/// A transition of a task, with what is said about it.
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
    /// The task, and the version that it must have.
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

    /// Who is said to have reviewed the task.
    fn reviewer(&self) -> Result<Option<Uuid>, Error> {
        let id = match self {
            Self::Approve(input) => input.reviewer_id.as_ref(),
            Self::Reject(input) => input.reviewer_id.as_ref(),
            _ => None,
        };
        Kind::Agent.parse_opt(id, "reviewerId")
    }

    /// Where the task may be taken from, and how the event is called that tells of it.
    fn rule(&self) -> (&'static [task::TaskStatus], &'static str) {
        use task::TaskStatus::{
            Assigned, Blocked, Cancelled, ChangesRequested, Failed, InProgress, InReview, Pending,
        };
        match self {
            Self::Unassign(_) => (&[Assigned, Blocked, ChangesRequested], "task.unassigned"),
            Self::Start(_) => (&[Assigned, ChangesRequested], "task.started"),
            Self::Block(_) => (&[InProgress], "task.blocked"),
            Self::Unblock(_) => (&[Blocked], "task.unblocked"),
            Self::Submit(_) => (&[InProgress], "task.submitted"),
            Self::Approve(_) => (&[InReview], "task.approved"),
            Self::Reject(_) => (&[InReview], "task.rejected"),
            Self::Fail(_) => (
                &[Assigned, InProgress, InReview, ChangesRequested, Blocked],
                "task.failed",
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
                "task.cancelled",
            ),
            Self::Reopen(_) => (&[Failed, Cancelled], "task.reopened"),
        }
    }

    /// What it makes of a task, and what is said about it. A reviewer who is named takes the place of the task's.
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
        // Why the task stood where it stood does not say why it stands elsewhere.
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

    /// Whether it is a review, and then whether the work was approved.
    fn verdict(&self) -> Option<bool> {
        match self {
            Self::Approve(_) => Some(true),
            Self::Reject(_) => Some(false),
            _ => None,
        }
    }

    /// Takes the step, and whatever follows from it.
    async fn take(self, ctx: &Context<'_>) -> Result<TaskPayload, Error> {
        let (id, version) = self.subject();
        let id = Kind::Task.parse(id, "taskId")?;
        let reviewer = self.reviewer()?;
        let outcome = change(ctx, async |mut change| {
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
                // Who has left the circle has not reviewed it: the user who calls this has.
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

    /// Tells of the transition of a task from what it was to what it is.
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
            change.append(fact("task.completed", moved));
        }
    }
}

/// What the event of this name says has been done.
fn done(kind: &str) -> &str {
    kind.trim_start_matches("task.")
}

/// What is done to a task must be possible where it stands.
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

/// The priority as a number, the most pressing first.
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

/// Tells that a task was made, changed or deleted.
fn edited(
    kind: &'static str,
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
    /// A number of hours.
    fn hours(&mut self, field: &str, hours: f64) -> f64 {
        if !(hours.is_finite() && hours >= 0.0) {
            let message = format!("`{field}` must be 0 or more.");
            self.fault(field, UserErrorCode::OutOfRange, message);
        }
        hours
    }

    /// Nobody reviews their own work.
    fn reviewer(&mut self, reviewer: Option<Uuid>, assignee: Option<Uuid>) {
        if reviewer.is_some() && reviewer == assignee {
            let message = "The reviewer must be another agent than the assignee.";
            self.fault("reviewerId", UserErrorCode::Invalid, message);
        }
    }
}

/// A task that the viewer may change, and its circle. Both are as they are until the change is done.
struct Found {
    circle: circle::Model,
    task: task::Model,
    /// Whether the agent that was asked about is an active member of the circle.
    is_member: bool,
}

/// A task as it is read for a change.
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
    /// A task that the viewer may change, its circle being locked, and whether an agent, or else the task's reviewer, is
    /// an active member.
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
        // Only a statement that begins when the circle is locked sees what others did before.
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

    /// Writes what is new about a task. Answers what it is then.
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

    /// What the transition of a task means for the agent who has it: it was active, it is BUSY as long as anything of its
    /// is `IN_PROGRESS`, and a review counts.
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
            // In other circles it may begin and end work at this moment: whoever comes later sees what the other did.
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
                // Whoever reads the circle is told, and whoever owns the agent.
                let fact = about(
                    circle,
                    NewEvent::new("agent.status_changed", agent, payload),
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

    /// Faults every agent that is named in an input and is no active member of the circle.
    ///
    /// # Errors
    /// `NOT_FOUND` for one that the viewer cannot even read.
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
                let message = "The agent is no active member of the circle.";
                check.fault(field, UserErrorCode::NotMember, message);
            }
        }
        Ok(())
    }

    /// Faults a parent that is not of the same circle, or that is a part of the task.
    ///
    /// # Errors
    /// `NOT_FOUND` for one that the viewer cannot read.
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
            "A task cannot be a part of itself."
        } else {
            return Ok(());
        };
        check.fault("parentId", UserErrorCode::Invalid, message);
        Ok(())
    }

    /// Whether a task is another, or a part of it, however many tasks lie between. In one statement, which ends also when
    /// tasks are parts of each other in a circle.
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
