//! Mutations of tasks.

use async_graphql::{Context, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{List, circle::Model as CircleRow, task};
use sea_orm::{ActiveEnum, IntoActiveModel, TryIntoModel};
use uuid::Uuid;

use crate::{
    circle::{Access, check_open},
    data::{Change, Draft, Edits, Outcome, Stop, check_version, draft},
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError},
    task::{
        Task,
        event::{assigned, edited},
        inputs::{
            ApproveTaskInput, AssignTaskInput, CreateTaskInput, Fields, RejectTaskInput,
            SubmitTaskInput, TaskActionInput, TaskReasonInput, UpdateTaskInput, rank,
        },
        routing,
        scene::{FoundReferences, Known, NewScene, Reads, References, Scene},
        workflow::{
            self, APPROVE, BLOCK, CANCEL, FAIL, REJECT, REOPEN, START, SUBMIT, UNASSIGN, UNBLOCK,
            check_reviewer,
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
        let outcome = draft(ctx, None, async |mut change| {
            let references = References {
                parent: new.fields.parent_id.take(),
                agents: vec![
                    ("assigneeId", new.assignee_id),
                    ("reviewerId", new.fields.reviewer_id.take()),
                ],
            };
            let scene = NewScene::read(&mut change, new.circle_id, &references).await?;
            let Known {
                circle: seen,
                mut situation,
            } = scene.known;
            let circle = seen
                .clone()
                .accessible(&mut change, "circleId", Access::Editor)?;
            check_open(&circle)?;
            let row = blank(&change, &circle, id, new.assignee_id);
            let (row, _) = apply(&new.fields, &row, &scene.references)?;
            let mut row = row.try_into_model()?;
            change.append(edited(EventType::TaskCreated, &circle, &row, &[]));
            if let Some(agent) = row.assignee_id {
                let subject = (id, row.title.as_str(), row.version);
                change.append(assigned(&circle, subject, None, (agent, None), None));
            }
            situation.follow(None, &row, None);
            routing::assign(&mut change, &circle, &mut situation, &mut row);
            change.insert([row.clone().into_active_model()]);
            let known = situation.is_whole().then_some(Known {
                circle: seen,
                situation,
            });
            let committed = change.commit_before(vec![id], known).await?;
            Ok(committed.with_row(row))
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
        let outcome = draft(ctx, Some(id), async |mut change| {
            let references = References {
                parent: fields.parent_id.take(),
                agents: vec![("reviewerId", fields.reviewer_id.take())],
            };
            let reads = Reads {
                references,
                ..Reads::default()
            };
            let scene = Scene::read(&mut change, id, "taskId", reads).await?;
            let (circle, task) = (scene.circle, scene.task);
            check_open(&circle)?;
            check_version(expected_version, task.version)?;
            let (new, edits) = apply(&fields, &task, &scene.references)?;
            let mut row = new.try_into_model()?;
            if !edits.is_empty() {
                row.version += 1;
                row.updated_at = change.now;
                change.update_row(id, &task, &row);
                change.append(edited(EventType::TaskUpdated, &circle, &row, edits.names()));
            }
            Ok(change.commit(vec![id]).await?.with_row(row))
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
        let outcome = draft(ctx, Some(id), async |mut change| {
            let scene = Scene::read(&mut change, id, "id", Reads::default()).await?;
            let (circle, task) = (scene.circle, scene.task);
            check_open(&circle)?;
            check_version(input.expected_version, task.version)?;
            if !DELETABLE.contains(&task.status) {
                let status = task.status.to_value();
                return Err(UserError::cannot("task", &status, "deleted").into());
            }
            change.append(edited(EventType::TaskDeleted, &circle, &task, &[]));
            change.delete::<task::Entity>(id);
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
fn blank(
    change: &Change<'_, Draft>,
    circle: &CircleRow,
    id: Uuid,
    assignee: Option<Uuid>,
) -> task::Model {
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
fn apply(
    fields: &Fields,
    task: &task::Model,
    references: &FoundReferences<'_>,
) -> Result<(task::ActiveModel, Edits), Stop> {
    let mut check = Check::default();
    let mut new = task.clone().into_active_model();
    let mut edits = Edits::default();
    fields.write(&mut check, &mut new, &mut edits);
    if let MaybeUndefined::Value(_) = fields.parent_id {
        references.check_parent(task, &mut check)?;
    }
    let (assignee, reviewer) = (task.assignee_id, fields.reviewer_id.take());
    let is_other = reviewer != task.reviewer_id && reviewer != assignee;
    references.check_agents(&mut check, |field| field == "assigneeId" || is_other)?;
    check_reviewer(&mut check, reviewer, assignee);
    check.faults()?;
    Ok((new, edits))
}
