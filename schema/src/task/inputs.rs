//! Inputs of the task mutations, and their validation.

use async_graphql::{ID, InputObject, MaybeUndefined};
use chrono::Utc;
use gathering_entity::task;
use sea_orm::Set;
use uuid::Uuid;

use crate::{
    data::Edits,
    error::Error,
    id::Kind,
    input::{Check, UserErrorCode, entries},
    scalar::DateTime,
    task::{Priority, ReviewType},
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

/// Input for `createTask`.
#[derive(InputObject)]
pub(super) struct CreateTaskInput {
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

/// Input for `updateTask`.
/// Omitted fields keep their value; null clears a nullable field. The status is changed by other mutations, such as
/// `startTask`.
#[derive(InputObject)]
pub(super) struct UpdateTaskInput {
    /// The task.
    pub(super) task_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
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
pub(super) struct AssignTaskInput {
    /// The task.
    pub(super) task_id: ID,
    /// The agent, an active member of the circle other than the reviewer. If omitted, the best-fitting member.
    pub(super) agent_id: Option<ID>,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// Input for a status transition of a task with an optional note, such as `startTask`.
#[derive(InputObject)]
pub(super) struct TaskActionInput {
    /// The task.
    pub(super) task_id: ID,
    /// The note, at most 2,000 characters. Replaces the `statusNote` of the task.
    note: Option<String>,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// Input for a status transition of a task with a required reason, such as `blockTask`.
#[derive(InputObject)]
pub(super) struct TaskReasonInput {
    /// The task.
    pub(super) task_id: ID,
    /// The reason, 1 to 2,000 characters. Replaces the `statusNote` of the task.
    reason: String,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// Input for `submitTask`.
#[derive(InputObject)]
pub(super) struct SubmitTaskInput {
    /// The task.
    pub(super) task_id: ID,
    /// The result, 1 to 50,000 characters.
    result: String,
    /// Names or addresses of the artifacts produced; at most 200 of at most 500 characters.
    /// If omitted, the existing ones are kept.
    artifacts: Option<Vec<String>>,
    /// The actual number of hours, 0 or more.
    actual_hours: Option<f64>,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// Input for `approveTask`.
#[derive(InputObject)]
pub(super) struct ApproveTaskInput {
    /// The task.
    pub(super) task_id: ID,
    /// The reviewer, an active member of the circle other than the assignee.
    /// Defaults to the reviewer of the task, or to none if that agent has left the circle.
    reviewer_id: Option<ID>,
    /// The review comment, at most 10,000 characters. If omitted, the previous comment is kept.
    comment: Option<String>,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// Input for `rejectTask`.
#[derive(InputObject)]
pub(super) struct RejectTaskInput {
    /// The task.
    pub(super) task_id: ID,
    /// The reviewer, an active member of the circle other than the assignee.
    /// Defaults to the reviewer of the task, or to none if that agent has left the circle.
    reviewer_id: Option<ID>,
    /// The required changes, 1 to 10,000 characters.
    reason: String,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// The fields that `createTask` and `updateTask` set. An undefined field keeps its value.
pub(super) struct Fields {
    pub(super) parent_id: MaybeUndefined<Uuid>,
    title: MaybeUndefined<String>,
    description: MaybeUndefined<String>,
    required_competencies: MaybeUndefined<Vec<String>>,
    priority: MaybeUndefined<Priority>,
    pub(super) reviewer_id: MaybeUndefined<Uuid>,
    requires_review: MaybeUndefined<bool>,
    review_type: MaybeUndefined<ReviewType>,
    estimated_hours: MaybeUndefined<f64>,
    actual_hours: MaybeUndefined<f64>,
    due_at: MaybeUndefined<chrono::DateTime<Utc>>,
}

/// The circle, the assignee and the fields of a new task.
pub(super) struct NewTask {
    pub(super) circle_id: Uuid,
    pub(super) assignee_id: Option<Uuid>,
    pub(super) fields: Fields,
}

impl CreateTaskInput {
    pub(super) fn parse(self) -> Result<NewTask, Error> {
        let circle_id = Kind::Circle.parse(&self.circle_id, "circleId")?;
        let parent_id = Kind::Task.parse_opt(self.parent_id.as_ref(), "parentId")?;
        let assignee_id = Kind::Agent.parse_opt(self.assignee_id.as_ref(), "assigneeId")?;
        let reviewer_id = Kind::Agent.parse_opt(self.reviewer_id.as_ref(), "reviewerId")?;
        let fields = Fields {
            parent_id: or_undefined(parent_id),
            title: MaybeUndefined::Value(self.title),
            description: or_undefined(self.description),
            required_competencies: or_undefined(self.required_competencies),
            priority: MaybeUndefined::Value(self.priority),
            reviewer_id: or_undefined(reviewer_id),
            requires_review: or_undefined(self.requires_review),
            review_type: MaybeUndefined::Value(self.review_type),
            estimated_hours: or_undefined(self.estimated_hours),
            actual_hours: MaybeUndefined::Undefined,
            due_at: or_undefined(self.due_at.map(|at| at.0)),
        };
        Ok(NewTask {
            circle_id,
            assignee_id,
            fields,
        })
    }
}

/// Null and absent are the same in an input that creates.
fn or_undefined<T>(value: Option<T>) -> MaybeUndefined<T> {
    value.map_or(MaybeUndefined::Undefined, MaybeUndefined::Value)
}

impl UpdateTaskInput {
    pub(super) fn parse(self) -> Result<Fields, Error> {
        let parse = |kind: Kind, id: MaybeUndefined<ID>, field: &str| {
            let id = id.map_value(|id| kind.parse(&id, field));
            id.transpose()
        };
        Ok(Fields {
            parent_id: parse(Kind::Task, self.parent_id, "parentId")?,
            title: self.title,
            description: self.description,
            required_competencies: self.required_competencies,
            priority: self.priority,
            reviewer_id: parse(Kind::Agent, self.reviewer_id, "reviewerId")?,
            requires_review: self.requires_review,
            review_type: self.review_type,
            estimated_hours: self.estimated_hours,
            actual_hours: self.actual_hours,
            due_at: self.due_at.map_value(|at| at.0),
        })
    }
}

impl Fields {
    /// Checks the fields and writes them to a row.
    pub(super) fn write(&self, check: &mut Check, row: &mut task::ActiveModel, edits: &mut Edits) {
        edits.set("parentId", &mut row.parent_id, self.parent_id.into());
        let title = check.if_given("title", &self.title);
        let title = title.map(|title| check.line("title", title, MAX_TITLE));
        edits.set("title", &mut row.title, title);
        let description = self.description.as_opt_deref();
        let description =
            description.map(|value| check.optional_text("description", value, MAX_DESCRIPTION));
        edits.set("description", &mut row.description, description);
        let required = entries(&self.required_competencies);
        let required =
            required.map(|words| check.words("requiredCompetencies", words, MAX_LIST, MAX_ENTRY));
        let competencies = &mut row.required_competencies;
        edits.set("requiredCompetencies", competencies, required);
        let priority = check.if_given("priority", &self.priority).copied();
        let priority = priority.map(task::Priority::from);
        if let Some(priority) = priority {
            row.priority_rank = Set(rank(priority));
        }
        edits.set("priority", &mut row.priority, priority);
        edits.set("reviewerId", &mut row.reviewer_id, self.reviewer_id.into());
        let requires_review = check.if_given("requiresReview", &self.requires_review);
        let requires_review = requires_review.copied();
        edits.set("requiresReview", &mut row.requires_review, requires_review);
        let review_type = check.if_given("reviewType", &self.review_type).copied();
        let review_type = review_type.map(Into::into);
        edits.set("reviewType", &mut row.review_type, review_type);
        let mut hours = |field, value: MaybeUndefined<f64>| {
            let value: Option<Option<f64>> = value.into();
            Some(value?.map(|hours| check_hours(check, field, hours)))
        };
        let estimated = hours("estimatedHours", self.estimated_hours);
        edits.set("estimatedHours", &mut row.estimated_hours, estimated);
        let actual = hours("actualHours", self.actual_hours);
        edits.set("actualHours", &mut row.actual_hours, actual);
        edits.set("dueAt", &mut row.due_at, self.due_at.into());
    }
}

/// The input of a status transition.
pub(super) struct Action<'a> {
    pub(super) task_id: &'a ID,
    pub(super) expected_version: Option<i32>,
    pub(super) reviewer_id: Option<&'a ID>,
    pub(super) details: Details<'a>,
}

/// The part of the input of a status transition that is written to the row.
pub(super) enum Details<'a> {
    Note(Option<&'a str>),
    Reason(&'a str),
    Submission(&'a SubmitTaskInput),
    Approval(Option<&'a str>),
    Rejection(&'a str),
}

impl<'a> From<&'a TaskActionInput> for Action<'a> {
    fn from(input: &'a TaskActionInput) -> Self {
        Self {
            task_id: &input.task_id,
            expected_version: input.expected_version,
            reviewer_id: None,
            details: Details::Note(input.note.as_deref()),
        }
    }
}

impl<'a> From<&'a TaskReasonInput> for Action<'a> {
    fn from(input: &'a TaskReasonInput) -> Self {
        Self {
            task_id: &input.task_id,
            expected_version: input.expected_version,
            reviewer_id: None,
            details: Details::Reason(&input.reason),
        }
    }
}

impl<'a> From<&'a SubmitTaskInput> for Action<'a> {
    fn from(input: &'a SubmitTaskInput) -> Self {
        Self {
            task_id: &input.task_id,
            expected_version: input.expected_version,
            reviewer_id: None,
            details: Details::Submission(input),
        }
    }
}

impl<'a> From<&'a ApproveTaskInput> for Action<'a> {
    fn from(input: &'a ApproveTaskInput) -> Self {
        Self {
            task_id: &input.task_id,
            expected_version: input.expected_version,
            reviewer_id: input.reviewer_id.as_ref(),
            details: Details::Approval(input.comment.as_deref()),
        }
    }
}

impl<'a> From<&'a RejectTaskInput> for Action<'a> {
    fn from(input: &'a RejectTaskInput) -> Self {
        Self {
            task_id: &input.task_id,
            expected_version: input.expected_version,
            reviewer_id: input.reviewer_id.as_ref(),
            details: Details::Rejection(&input.reason),
        }
    }
}

impl Details<'_> {
    /// Checks the details and writes them to a row. Returns the note for the event.
    pub(super) fn write(&self, check: &mut Check, row: &mut task::ActiveModel) -> Option<String> {
        // The note explains the previous status only.
        row.status_note = Set(None);
        match self {
            Self::Note(note) => {
                let note = check.optional_text("note", *note, MAX_NOTE);
                row.status_note = Set(note.clone());
                note
            }
            Self::Reason(reason) => {
                let reason = check.text("reason", reason, MAX_NOTE);
                row.status_note = Set(Some(reason.clone()));
                Some(reason)
            }
            Self::Submission(input) => {
                row.result = Set(Some(check.text("result", &input.result, MAX_RESULT)));
                if let Some(artifacts) = &input.artifacts {
                    let artifacts = check.list("artifacts", artifacts, MAX_ARTIFACTS, MAX_ARTIFACT);
                    row.artifacts = Set(artifacts);
                }
                if let Some(hours) = input.actual_hours {
                    row.actual_hours = Set(Some(check_hours(check, "actualHours", hours)));
                }
                None
            }
            Self::Approval(comment) => {
                let comment = check.optional_text("comment", *comment, MAX_REVIEW);
                if comment.is_some() {
                    row.review_note = Set(comment.clone());
                }
                comment
            }
            Self::Rejection(reason) => {
                let reason = check.text("reason", reason, MAX_REVIEW);
                row.review_note = Set(Some(reason.clone()));
                Some(reason)
            }
        }
    }

    /// For a review, whether the work was approved; otherwise `None`.
    pub(super) fn decision(&self) -> Option<bool> {
        match self {
            Self::Approval(_) => Some(true),
            Self::Rejection(_) => Some(false),
            _ => None,
        }
    }
}

/// Checks a number of hours.
fn check_hours(check: &mut Check, field: &str, hours: f64) -> f64 {
    if !(hours.is_finite() && hours >= 0.0) {
        let message = format!("`{field}` must be 0 or more.");
        check.fault(field, UserErrorCode::OutOfRange, message);
    }
    hours
}

/// The priority as a number; the lowest number is the most urgent.
pub(super) fn rank(priority: task::Priority) -> i32 {
    match priority {
        task::Priority::Critical => 1,
        task::Priority::High => 3,
        task::Priority::Medium => 5,
        task::Priority::Low => 8,
    }
}
