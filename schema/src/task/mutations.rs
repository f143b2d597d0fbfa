//! Mutations of tasks.

use async_graphql::{Context, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{List, circle::Model as CircleRow, task};
use sea_orm::{
    ActiveEnum, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, JoinType, ModelTrait,
    QueryFilter, QuerySelect, QueryTrait, TryIntoModel,
    sea_query::{CommonTableExpression, Expr, ExprTrait, Query, UnionType, WithClause},
};
use uuid::Uuid;

use crate::{
    circle::{self, check_open},
    data::{Change, Edits, Outcome, Stop, change, check_version},
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    task::{
        Task,
        event::{assigned, edited},
        inputs::{
            ApproveTaskInput, AssignTaskInput, CreateTaskInput, Fields, RejectTaskInput,
            SubmitTaskInput, TaskActionInput, TaskReasonInput, UpdateTaskInput, rank,
        },
        routing,
        workflow::{
            self, APPROVE, BLOCK, CANCEL, FAIL, Found, REJECT, REOPEN, START, SUBMIT, UNASSIGN,
            UNBLOCK, check_agents, check_reviewer, editable, write,
        },
    },
};

/// Payload of the task mutations.
#[derive(SimpleObject)]
pub(super) struct TaskPayload {
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

/// Task mutations.
#[derive(Default)]
pub struct TaskMutation;

#[Object]
impl TaskMutation {
    /// Creates a task.
    /// If the circle is running with `autoRoute`, it is assigned to the best-fitting member as soon as
    /// `maxConcurrentTasks` allows. Requires editor access to the circle. `userErrors` codes besides input validation:
    /// `NOT_MEMBER` for the assignee and the reviewer; `INVALID` for a reviewer that is the assignee and for a parent
    /// of another circle; `BAD_TRANSITION` in an archived circle.
    async fn create_task(
        &self,
        ctx: &Context<'_>,
        input: CreateTaskInput,
    ) -> Result<TaskPayload, Error> {
        let new = input.parse()?;
        let id = Uuid::now_v7();
        let outcome = change(ctx, None, async |mut change| {
            let circle = circle::editable(&change, new.circle_id, "circleId").await?;
            check_open(&circle)?;
            let row = blank(&change, &circle, id, new.assignee_id);
            let (row, _) = apply(&change, &new.fields, &row, true).await?;
            let row = row.try_into_model()?;
            task::Entity::insert(row.clone().into_active_model())
                .exec_without_returning(&change.transaction)
                .await?;
            change.append(edited(EventType::TaskCreated, &circle, &row, &[]));
            if let Some(agent) = row.assignee_id {
                let subject = (id, row.title.as_str(), row.version);
                change.append(assigned(&circle, subject, None, (agent, None), None));
            }
            routing::assign_pending(&mut change, &circle).await?;
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Updates a task in any status.
    /// Requires editor access to the circle. `userErrors` codes besides input validation: `NOT_MEMBER` for the
    /// reviewer; `INVALID` for a reviewer that is the assignee and for a parent that is in another circle or is a
    /// subtask of the task; `CONFLICT`; `BAD_TRANSITION` in an archived circle.
    async fn update_task(
        &self,
        ctx: &Context<'_>,
        input: UpdateTaskInput,
    ) -> Result<TaskPayload, Error> {
        let id = Kind::Task.parse(&input.task_id, "taskId")?;
        let expected_version = input.expected_version;
        let fields = input.parse()?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let Found { circle, task, .. } = editable(&change, id, "taskId", None).await?;
            check_open(&circle)?;
            check_version(expected_version, task.version)?;
            let (new, edits) = apply(&change, &fields, &task, false).await?;
            if !edits.is_empty() {
                let row = write(&change, &task, new).await?;
                change.append(edited(EventType::TaskUpdated, &circle, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a task that is `PENDING`, `COMPLETED`, `FAILED` or `CANCELLED`.
    /// Its subtasks are kept, without a parent. Requires editor access to the circle. `userErrors` codes:
    /// `BAD_TRANSITION`; `CONFLICT`.
    async fn delete_task(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Task.parse(&input.id, "id")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let Found { circle, task, .. } = editable(&change, id, "id", None).await?;
            check_open(&circle)?;
            check_version(input.expected_version, task.version)?;
            if !DELETABLE.contains(&task.status) {
                let status = task.status.to_value();
                return Err(UserError::cannot("task", &status, "deleted").into());
            }
            change.append(edited(EventType::TaskDeleted, &circle, &task, &[]));
            task.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Task, id, outcome.await?).await
    }

    /// Assigns a task to an agent, or to the best-fitting member.
    /// The task must be `PENDING`, `ASSIGNED`, `BLOCKED` or `CHANGES_REQUESTED`. Requires editor access to the circle.
    /// `userErrors` codes: `NOT_MEMBER`; `INVALID` if the agent is the reviewer or no member fits; `BAD_TRANSITION`;
    /// `CONFLICT`.
    async fn assign_task(
        &self,
        ctx: &Context<'_>,
        input: AssignTaskInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::assign(ctx, &input).await?;
        TaskPayload::new(ctx, outcome).await
    }

    /// Unassigns a task that is `ASSIGNED`, `BLOCKED` or `CHANGES_REQUESTED`: it becomes `PENDING`.
    /// If the circle is running with `autoRoute`, it is routed again. Requires editor access to the circle.
    /// `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn unassign_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, UNASSIGN, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Starts a task that is `ASSIGNED` or `CHANGES_REQUESTED`; its assignee becomes `BUSY`.
    /// Requires editor access to the circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn start_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, START, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Marks a task that is `IN_PROGRESS` as `BLOCKED`.
    /// Requires editor access to the circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn block_task(
        &self,
        ctx: &Context<'_>,
        input: TaskReasonInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, BLOCK, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Resumes a task that is `BLOCKED`: it becomes `IN_PROGRESS`.
    /// Requires editor access to the circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn unblock_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, UNBLOCK, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Submits a task that is `IN_PROGRESS`, for review or as `COMPLETED`.
    /// If a review is required and no member is its reviewer, the least loaded member that handles its review type
    /// becomes the reviewer; if there is none, the user who approves it is the reviewer. Requires editor access to the
    /// circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn submit_task(
        &self,
        ctx: &Context<'_>,
        input: SubmitTaskInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, SUBMIT, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Approves a task that is `IN_REVIEW`: it becomes `COMPLETED`.
    /// Requires editor access to the circle. `userErrors` codes: `NOT_MEMBER`; `INVALID` if the reviewer is the
    /// assignee; `BAD_TRANSITION`; `CONFLICT`.
    async fn approve_task(
        &self,
        ctx: &Context<'_>,
        input: ApproveTaskInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, APPROVE, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Rejects a task that is `IN_REVIEW`: it becomes `CHANGES_REQUESTED`.
    /// Requires editor access to the circle. `userErrors` codes: `NOT_MEMBER`; `INVALID` if the reviewer is the
    /// assignee; `BAD_TRANSITION`; `CONFLICT`.
    async fn reject_task(
        &self,
        ctx: &Context<'_>,
        input: RejectTaskInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, REJECT, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Marks an assigned task that has not ended as `FAILED`.
    /// Requires editor access to the circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn fail_task(
        &self,
        ctx: &Context<'_>,
        input: TaskReasonInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, FAIL, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Cancels a task that has not ended: it becomes `CANCELLED`.
    /// Requires editor access to the circle. `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn cancel_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, CANCEL, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }

    /// Reopens a task that is `FAILED` or `CANCELLED`: it becomes `PENDING`, without an assignee.
    /// If the circle is running with `autoRoute`, it is routed again. Requires editor access to the circle.
    /// `userErrors` codes: `BAD_TRANSITION`; `CONFLICT`.
    async fn reopen_task(
        &self,
        ctx: &Context<'_>,
        input: TaskActionInput,
    ) -> Result<TaskPayload, Error> {
        let outcome = workflow::perform(ctx, REOPEN, (&input).into());
        TaskPayload::new(ctx, outcome.await?).await
    }
}

/// The statuses in which a task may be deleted.
const DELETABLE: &[task::TaskStatus] = &[
    task::TaskStatus::Pending,
    task::TaskStatus::Completed,
    task::TaskStatus::Failed,
    task::TaskStatus::Cancelled,
];

/// A new task that has no fields yet.
fn blank(change: &Change<'_>, circle: &CircleRow, id: Uuid, assignee: Option<Uuid>) -> task::Model {
    let priority = task::Priority::Medium;
    task::Model {
        id,
        created_at: change.now,
        updated_at: change.now,
        version: 1,
        circle_id: circle.id,
        parent_id: None,
        title: String::new(),
        description: None,
        required_competencies: List::default(),
        priority,
        priority_rank: rank(priority),
        status: match assignee {
            Some(_) => task::TaskStatus::Assigned,
            None => task::TaskStatus::Pending,
        },
        assignee_id: assignee,
        reviewer_id: None,
        created_by: Some(change.viewer.id()),
        requires_review: circle.require_review,
        review_type: task::ReviewType::Quality,
        review_round: 0,
        review_note: None,
        status_note: None,
        result: None,
        artifacts: List::default(),
        estimated_hours: None,
        actual_hours: None,
        due_at: None,
        started_at: None,
        submitted_at: None,
        completed_at: None,
        cycle_seconds: None,
    }
}

/// Validates the fields of a new or an existing task, and writes them to its row.
///
/// # Errors
/// The input is refused; `NOT_FOUND` for a parent or an agent that the viewer may not read.
async fn apply(
    change: &Change<'_>,
    fields: &Fields,
    task: &task::Model,
    is_new: bool,
) -> Result<(task::ActiveModel, Edits), Stop> {
    let mut check = Check::default();
    let mut new = task.clone().into_active_model();
    let mut edits = Edits::default();
    fields.write(&mut check, &mut new, &mut edits);
    if let MaybeUndefined::Value(parent) = fields.parent_id {
        check_parent(change, task, is_new, parent, &mut check).await?;
    }
    let (assignee, reviewer) = (task.assignee_id, fields.reviewer_id.take());
    let is_other = reviewer != task.reviewer_id && reviewer != assignee;
    let agents = [
        ("assigneeId", assignee.filter(|_| is_new)),
        ("reviewerId", reviewer.filter(|_| is_other)),
    ];
    check_agents(change, task.circle_id, &agents, &mut check).await?;
    check_reviewer(&mut check, reviewer, assignee);
    check.faults()?;
    Ok((new, edits))
}

/// Adds a fault for a parent that is not in the same circle, or that is the task itself or one of its subtasks.
///
/// # Errors
/// `NOT_FOUND` for a parent that the viewer may not read.
async fn check_parent(
    change: &Change<'_>,
    row: &task::Model,
    is_new: bool,
    parent: Uuid,
    check: &mut Check,
) -> Result<(), Error> {
    let found = task::Entity::find_by_id(parent)
        .filter(change.viewer.rules().task.condition())
        .one(&change.transaction)
        .await?
        .ok_or_else(|| Error::not_found("parentId"))?;
    let message = if found.circle_id != row.circle_id {
        "The parent must be a task of the same circle."
    } else if !is_new && is_part_of(change, parent, row.id).await? {
        "A task cannot be its own subtask."
    } else {
        return Ok(());
    };
    check.fault("parentId", UserErrorCode::Invalid, message);
    Ok(())
}

/// Whether a task is another task or one of its subtasks at any depth. A single recursive statement, which
/// terminates even if the parents form a cycle.
async fn is_part_of(change: &Change<'_>, task: Uuid, whole: Uuid) -> Result<bool, Error> {
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
    Ok(change.transaction.query_one(&found).await?.is_some())
}
