//! The inputs of the circle and member mutations.

use std::ops::RangeInclusive;

use async_graphql::{ID, InputObject, MaybeUndefined};
use gathering_entity::circle;
use sea_orm::Set;
use uuid::Uuid;

use crate::{
    circle::{CollaboratorRole, members::MemberRole},
    data::Edits,
    error::Error,
    id::Kind,
    input::Check,
};

/// Maximum length of a circle's name, in characters.
const MAX_NAME: usize = 100;
/// Maximum length of a display name, in characters.
const MAX_DISPLAY_NAME: usize = 200;
/// Maximum length of a description, in characters.
const MAX_DESCRIPTION: usize = 10_000;
/// The allowed values of `maxMembers`.
pub(super) const MEMBERS: RangeInclusive<i32> = 1..=500;
/// The allowed values of `maxConcurrentTasks`.
const CONCURRENT_TASKS: RangeInclusive<i32> = 1..=100;

/// Input for `createCircle`.
#[derive(InputObject)]
pub struct CreateCircleInput {
    /// The name, 1 to 100 characters, unique among the caller's circles that are not archived.
    name: String,
    /// The display name, at most 200 characters.
    display_name: Option<String>,
    /// The description, at most 10,000 characters.
    description: Option<String>,
    /// The project it belongs to. Circle readers can read it, so only its owner or an administrator may link it.
    project_id: Option<ID>,
    /// Whether tasks require a review by default.
    #[graphql(default = true)]
    require_review: bool,
    /// Whether pending tasks are assigned automatically while the circle is running.
    #[graphql(default = true)]
    auto_route: bool,
    /// The maximum number of active members, from 1 to 500.
    #[graphql(default = 50)]
    max_members: i32,
    /// The number of active tasks at which routing stops, from 1 to 100.
    /// Active tasks are `ASSIGNED`, `IN_PROGRESS`, `IN_REVIEW` or `CHANGES_REQUESTED`.
    #[graphql(default = 5)]
    max_concurrent_tasks: i32,
    /// The initial members: the caller's agents, each once; at most 100 and at most `maxMembers`.
    pub(super) members: Option<Vec<NewMemberInput>>,
    /// Whether to start it immediately.
    #[graphql(default = false)]
    pub(super) start_now: bool,
}

/// Input for `updateCircle`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateCircleInput {
    /// The circle.
    pub(super) circle_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
    /// The name, 1 to 100 characters, unique among its owner's circles that are not archived.
    name: MaybeUndefined<String>,
    /// The display name, at most 200 characters.
    display_name: MaybeUndefined<String>,
    /// The description, at most 10,000 characters.
    description: MaybeUndefined<String>,
    /// The project it belongs to.
    /// Circle readers can read it, so only the project's owner or an administrator may link it.
    project_id: MaybeUndefined<ID>,
    /// Whether tasks require a review by default. Existing tasks are not changed.
    require_review: MaybeUndefined<bool>,
    /// Whether pending tasks are assigned automatically while the circle is running.
    auto_route: MaybeUndefined<bool>,
    /// The maximum number of active members, from 1 to 500; not less than the current number.
    max_members: MaybeUndefined<i32>,
    /// The number of active tasks at which routing stops, from 1 to 100.
    /// Active tasks are `ASSIGNED`, `IN_PROGRESS`, `IN_REVIEW` or `CHANGES_REQUESTED`.
    max_concurrent_tasks: MaybeUndefined<i32>,
}

/// The fields of a circle in an input, which are validated in the same way for a new and an existing circle.
pub(super) struct Fields<'i> {
    name: MaybeUndefined<&'i str>,
    display_name: MaybeUndefined<&'i str>,
    description: MaybeUndefined<&'i str>,
    pub(super) project: MaybeUndefined<Uuid>,
    require_review: MaybeUndefined<bool>,
    auto_route: MaybeUndefined<bool>,
    pub(super) max_members: MaybeUndefined<i32>,
    max_concurrent_tasks: MaybeUndefined<i32>,
}

impl CreateCircleInput {
    /// The fields that the input gives.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an id that is not a project id.
    pub(super) fn fields(&self) -> Result<Fields<'_>, Error> {
        let project = Kind::Project.parse_opt(self.project_id.as_ref(), "projectId")?;
        Ok(Fields {
            name: MaybeUndefined::Value(&self.name),
            display_name: Some(self.display_name.as_deref()).into(),
            description: Some(self.description.as_deref()).into(),
            project: Some(project).into(),
            require_review: MaybeUndefined::Value(self.require_review),
            auto_route: MaybeUndefined::Value(self.auto_route),
            max_members: MaybeUndefined::Value(self.max_members),
            max_concurrent_tasks: MaybeUndefined::Value(self.max_concurrent_tasks),
        })
    }
}

impl UpdateCircleInput {
    /// The fields that the input gives.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` for an id that is not a project id.
    pub(super) fn fields(&self) -> Result<Fields<'_>, Error> {
        let project = self.project_id.as_opt_ref();
        let project = project.map(|id| Kind::Project.parse_opt(id, "projectId"));
        Ok(Fields {
            name: self.name.as_opt_deref().into(),
            display_name: self.display_name.as_opt_deref().into(),
            description: self.description.as_opt_deref().into(),
            project: project.transpose()?.into(),
            require_review: self.require_review,
            auto_route: self.auto_route,
            max_members: self.max_members,
            max_concurrent_tasks: self.max_concurrent_tasks,
        })
    }
}

impl Fields<'_> {
    /// Validates the given fields and sets them. `members` are the allowed values of `maxMembers`.
    pub(super) fn apply(
        &self,
        new: &mut circle::ActiveModel,
        members: RangeInclusive<i32>,
        check: &mut Check,
    ) -> Edits {
        let name = check.if_given("name", &self.name);
        let (name, key) = name.map(|name| check.name("name", name, MAX_NAME)).unzip();
        let display_name = self.display_name.as_opt_deref();
        let display_name =
            display_name.map(|value| check.optional_line("displayName", value, MAX_DISPLAY_NAME));
        let description = self.description.as_opt_deref();
        let description =
            description.map(|value| check.optional_text("description", value, MAX_DESCRIPTION));
        let review = check.if_given("requireReview", &self.require_review);
        let route = check.if_given("autoRoute", &self.auto_route);
        let max_members = check.if_given("maxMembers", &self.max_members);
        let max_members = max_members.map(|most| check.range("maxMembers", *most, members));
        let field = "maxConcurrentTasks";
        let tasks = check.if_given(field, &self.max_concurrent_tasks);
        let tasks = tasks.map(|most| check.range(field, *most, CONCURRENT_TASKS));
        let mut edits = Edits::default();
        if let Some(key) = key {
            new.name_key = Set(key);
        }
        edits.set("name", &mut new.name, name);
        edits.set("displayName", &mut new.display_name, display_name);
        edits.set("description", &mut new.description, description);
        edits.set("projectId", &mut new.project_id, self.project.into());
        edits.set("requireReview", &mut new.require_review, review.copied());
        edits.set("autoRoute", &mut new.auto_route, route.copied());
        edits.set("maxMembers", &mut new.max_members, max_members);
        edits.set(field, &mut new.max_concurrent_tasks, tasks);
        edits
    }
}

/// Input for a status transition of a circle, such as `startCircle`.
#[derive(InputObject)]
pub struct CircleActionInput {
    /// The circle.
    pub(super) circle_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
}

/// Input for `shareCircle`.
#[derive(InputObject)]
pub struct ShareCircleInput {
    /// The circle.
    pub(super) circle_id: ID,
    /// The e-mail address of the user's account, case-insensitive.
    pub(super) email: String,
    /// The role to grant.
    pub(super) role: CollaboratorRole,
}

/// Input for `unshareCircle`.
#[derive(InputObject)]
pub struct UnshareCircleInput {
    /// The circle.
    pub(super) circle_id: ID,
    /// The user.
    pub(super) user_id: ID,
}

/// An agent to add to a circle.
#[derive(InputObject)]
pub struct NewMemberInput {
    /// The agent. Only its owner or an administrator may add it to a circle.
    pub(super) agent_id: ID,
    /// The role in the circle.
    #[graphql(default_with = "MemberRole::Member")]
    pub(super) role: MemberRole,
    /// The competencies in this circle, instead of the agent's own; at most 50 of at most 100 characters.
    pub(super) competencies: Option<Vec<String>>,
    /// The review types in this circle, instead of the agent's own. At most 10 values of `ReviewType`, or `all`.
    pub(super) review_types: Option<Vec<String>>,
}

/// Input for `addCircleMembers`.
#[derive(InputObject)]
pub struct AddCircleMembersInput {
    /// The circle.
    pub(super) circle_id: ID,
    /// The agents to add: 1 to 100, each once.
    pub(super) members: Vec<NewMemberInput>,
}

/// Input for `updateCircleMember`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateCircleMemberInput {
    /// The membership.
    pub(super) member_id: ID,
    /// The role of the agent in the circle.
    pub(super) role: MaybeUndefined<MemberRole>,
    /// The competencies in this circle; at most 50 entries of at most 100 characters.
    /// If empty, those of the agent apply.
    pub(super) competencies: MaybeUndefined<Vec<String>>,
    /// The review types in this circle: at most 10 values of `ReviewType`, or `all`.
    /// If empty, those of the agent apply.
    pub(super) review_types: MaybeUndefined<Vec<String>>,
}

/// Input for `removeCircleMember`.
#[derive(InputObject)]
pub struct RemoveCircleMemberInput {
    /// The membership.
    pub(super) member_id: ID,
}
