//! The circle and member mutations.

use async_graphql::{Context, Object, SimpleObject};
use futures_util::future::{try_join, try_join_all};
use gathering_entity::{circle, member};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, FromQueryResult, IntoActiveModel, Set, TryIntoModel,
    sea_query::Query,
};
use uuid::Uuid;

use crate::{
    auth::by_email,
    circle::{
        Access, Circle, check_open, event,
        inputs::{
            AddCircleMembersInput, CircleActionInput, CreateCircleInput, MEMBERS, NewMemberInput,
            RemoveCircleMemberInput, ShareCircleInput, UnshareCircleInput, UpdateCircleInput,
            UpdateCircleMemberInput,
        },
        members::{self, CircleMember, Known},
        sharing::{self, Seen},
        workflow,
    },
    data::{Edits, Outcome, change, check_version, draft, unique},
    db::list_from,
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError, UserErrorCode, entries},
    project,
    task::routing,
};

/// Payload of the circle mutations.
#[derive(SimpleObject)]
pub struct CirclePayload {
    /// The circle in its current state; null if there is none or the caller can no longer read it.
    circle: Option<Circle>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl CirclePayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            circle: outcome.row::<Circle>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Payload of `updateCircleMember` and `removeCircleMember`.
#[derive(SimpleObject)]
pub struct CircleMemberPayload {
    /// The membership in its current state; null if there is none.
    member: Option<CircleMember>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl CircleMemberPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            member: outcome.row::<CircleMember>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Payload of `addCircleMembers`.
#[derive(SimpleObject)]
pub struct CircleMembersPayload {
    /// The circle in its current state; null if there is none or the caller can no longer read it.
    circle: Option<Circle>,
    /// The memberships of the added agents, in the order of the input; empty if none was added.
    members: Vec<CircleMember>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl CircleMembersPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        let joined = outcome.rows.iter().skip(1);
        let joined = joined.map(|id| outcome.load::<CircleMember>(ctx, *id));
        let (circle, members) = try_join(outcome.row::<Circle>(ctx), try_join_all(joined)).await?;
        Ok(Self {
            circle,
            members: members.into_iter().flatten().collect(),
            user_errors: outcome.errors,
        })
    }
}

/// Circle mutations.
#[derive(Default)]
pub struct CircleMutation;

#[Object]
impl CircleMutation {
    /// Creates a circle owned by the caller, with its initial members, atomically.
    /// An agent or project of another user is `FORBIDDEN`, or `NOT_FOUND` if the caller may not read it. `userErrors`
    /// codes besides input validation: `TAKEN` (name); `INVALID` for an agent that is listed twice; `LIMIT_REACHED` for
    /// more `members` than `maxMembers`.
    async fn create_circle(
        &self,
        ctx: &Context<'_>,
        input: CreateCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Uuid::now_v7();
        let fields = input.fields()?;
        let joining = input.members.as_deref().unwrap_or_default();
        let agents = NewMemberInput::agents(joining)?;
        let outcome = draft(ctx, None, async |mut change| {
            let mut check = Check::default();
            let mut new = circle::ActiveModel {
                id: Set(id),
                created_at: Set(change.now),
                updated_at: Set(change.now),
                version: Set(1),
                owner_id: Set(change.viewer.id()),
                status: Set(circle::CircleStatus::Created),
                started_at: Set(None),
                stopped_at: Set(None),
                archived_at: Set(None),
                ..Default::default()
            };
            fields.apply(&mut new, MEMBERS, &mut check);
            let mut row = new.try_into_model()?;
            let joiners = NewMemberInput::check(joining, &agents, &mut check);
            let project = fields.project.value().copied();
            let mut known = Vec::new();
            if project.is_some() || !joiners.is_empty() {
                let mut select = Query::select();
                select.expr_as(Known::column(&change, &joiners, id), "known");
                if let Some(project) = project {
                    select.expr_as(project::owner(change.viewer, project), "project_owner");
                }
                let read = change
                    .read(change.build(&select))
                    .await?
                    .ok_or_else(Error::conflict)?;
                if let Some(project) = project {
                    let owner: Option<Uuid> = read.try_get("", "project_owner")?;
                    let owner = owner.ok_or_else(|| Error::not_found("projectId"))?;
                    project::check_owner(&change, project, owner)?;
                }
                known = list_from(&read, "known")?;
            }
            members::check_joiners(&change, &joiners, &known)?;
            members::check_room(&mut check, &row, 0, joiners.len());
            check.faults()?;
            change.append(event::edited(EventType::CircleCreated, &row, &[]));
            let before = row.status;
            if input.start_now {
                // Creating and starting are two transitions, written in one statement.
                row.status = workflow::START.to;
                row.started_at = Some(change.now);
                row.version += 1;
            }
            change.unique(name_taken);
            change.insert([row.clone().into_active_model()]);
            members::add(&mut change, &row, joiners, &known);
            if input.start_now {
                change.append(event::moved(workflow::START.event, &row, before));
            }
            Ok(change.commit(vec![id]).await?.with_row(row))
        });
        CirclePayload::new(ctx, outcome.await?).await
    }

    /// Updates a circle.
    /// Requires its owner or an administrator. `userErrors` codes besides input validation: `TAKEN` (name);
    /// `OUT_OF_RANGE` for a `maxMembers` below the number of active members; `CONFLICT`; `BAD_TRANSITION` while it is
    /// `ARCHIVED`.
    async fn update_circle(
        &self,
        ctx: &Context<'_>,
        input: UpdateCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let fields = input.fields()?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let row = sharing::accessible(&change, id, "circleId", Access::Owner).await?;
            check_open(&row)?;
            check_version(input.expected_version, row.version)?;
            if change.viewer.is_limited() && !fields.project.is_undefined() {
                // The link decides who else may read the project.
                let error = Error::not_for_limited_keys("projectId");
                return Err(error.field("projectId").into());
            }
            if let Some(project) = fields.project.value()
                && row.project_id != Some(*project)
            {
                project::editable(&change, *project, "projectId").await?;
            }
            // Only a lowered limit can be below the current number of members.
            let least = match fields.max_members.value() {
                Some(most) if *most < row.max_members && MEMBERS.contains(most) => {
                    members::count(&change, id).await?
                }
                _ => *MEMBERS.start(),
            };
            let version = row.version;
            let mut new = row.into_active_model();
            let mut check = Check::default();
            let edits = fields.apply(&mut new, least..=*MEMBERS.end(), &mut check);
            check.faults()?;
            if !edits.is_empty() {
                new.version = Set(version + 1);
                new.updated_at = Set(change.now);
                let row = unique(new.update(&change.transaction).await, name_taken)?;
                change.append(event::edited(EventType::CircleUpdated, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }

    /// Starts a circle that is `CREATED`, `PAUSED` or `STOPPED`.
    /// With `autoRoute`, its pending tasks are assigned. Requires editor access to the circle. `userErrors` codes:
    /// `CONFLICT`; `BAD_TRANSITION`.
    async fn start_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        let outcome = workflow::run(ctx, &input, workflow::START, Access::Editor).await?;
        CirclePayload::new(ctx, outcome).await
    }

    /// Pauses a `RUNNING` circle: no new tasks are routed, assigned tasks continue.
    /// Requires editor access to the circle. `userErrors` codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn pause_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        let outcome = workflow::run(ctx, &input, workflow::PAUSE, Access::Editor).await?;
        CirclePayload::new(ctx, outcome).await
    }

    /// Stops a `RUNNING` or `PAUSED` circle and pauses its active conversations.
    /// Requires editor access to the circle. `userErrors` codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn stop_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        let outcome = workflow::run(ctx, &input, workflow::STOP, Access::Editor).await?;
        CirclePayload::new(ctx, outcome).await
    }

    /// Archives a circle that is `CREATED` or `STOPPED` and pauses its active conversations.
    /// An archived circle can only be read, restored, transferred or deleted; its name may be reused. Requires its owner or an
    /// administrator. `userErrors` codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn archive_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        let outcome = workflow::run(ctx, &input, workflow::ARCHIVE, Access::Owner).await?;
        CirclePayload::new(ctx, outcome).await
    }

    /// Restores an `ARCHIVED` circle; its status becomes `STOPPED`. Requires its owner or an administrator.
    /// `userErrors` codes: `TAKEN` if another circle of the owner uses the name; `CONFLICT`; `BAD_TRANSITION`.
    async fn restore_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        let outcome = workflow::run(ctx, &input, workflow::RESTORE, Access::Owner).await?;
        CirclePayload::new(ctx, outcome).await
    }

    /// Deletes a circle that is `CREATED`, `STOPPED` or `ARCHIVED`.
    /// Its memberships, shares and tasks are deleted too; the users with whom it was shared receive `CIRCLE_UNSHARED`.
    /// Its conversations are kept for their owners; those that have not ended become `CANCELLED`. Requires its owner or
    /// an administrator. `userErrors` codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn delete_circle(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Circle.parse(&input.id, "id")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let row = sharing::accessible(&change, id, "id", Access::Owner).await?;
            check_version(input.expected_version, row.version)?;
            workflow::check_deletable(&row)?;
            workflow::delete(&mut change, row).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Circle, id, outcome.await?).await
    }

    /// Shares a circle with another user, or changes that user's role.
    /// Requires its owner or an administrator. `userErrors` codes: `INVALID` for an `email` that belongs to no active
    /// user or to the owner; `BAD_TRANSITION` while the circle is `ARCHIVED`.
    async fn share_circle(
        &self,
        ctx: &Context<'_>,
        input: ShareCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let row = sharing::accessible(&change, id, "circleId", Access::Owner).await?;
            check_open(&row)?;
            let mut check = Check::default();
            let (email, _) = check.email("email", &input.email);
            check.faults()?;
            let user = by_email(&change.transaction, &email).await?;
            let user = user.filter(|user| user.is_active).map(|user| user.id);
            // The response must not reveal that a deactivated account exists.
            let user =
                user.ok_or_else(|| share_fault("No active user has this e-mail address."))?;
            if user == row.owner_id {
                return Err(share_fault("This user owns the circle.").into());
            }
            sharing::share(&mut change, &row, user, input.role.into()).await?;
            change.commit(vec![id]).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }

    /// Stops sharing a circle with a user.
    /// Requires its owner or an administrator; a collaborator may leave, and then `circle` is null. `NOT_FOUND` if
    /// there is no such user. `userErrors` codes: `INVALID` if the circle is not shared with the user; `BAD_TRANSITION`
    /// while the circle is `ARCHIVED`.
    async fn unshare_circle(
        &self,
        ctx: &Context<'_>,
        input: UnshareCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let user = Kind::User.parse(&input.user_id, "userId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let leaves = user == change.viewer.id();
            let least = if leaves {
                Access::Viewer
            } else {
                Access::Owner
            };
            let row = sharing::accessible(&change, id, "circleId", least).await?;
            check_open(&row)?;
            sharing::unshare(&mut change, &row, user).await?;
            let reads_on = !leaves || change.viewer.is_admin();
            change.commit(Vec::from_iter(reads_on.then_some(id))).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }
}

/// Member mutations.
#[derive(Default)]
pub struct MemberMutation;

#[Object]
impl MemberMutation {
    /// Adds agents to a circle, all of them or none; former members rejoin.
    /// Requires editor access to the circle and ownership of the agents, or an administrator: an agent of another user
    /// is `FORBIDDEN`, or `NOT_FOUND` if the caller may not read it. `userErrors` codes besides input validation:
    /// `TAKEN` for an agent that is already an active member; `INVALID` for an agent that is listed twice;
    /// `LIMIT_REACHED` for more than the circle's `maxMembers`; `BAD_TRANSITION` while the circle is `ARCHIVED`.
    async fn add_circle_members(
        &self,
        ctx: &Context<'_>,
        input: AddCircleMembersInput,
    ) -> Result<CircleMembersPayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let agents = NewMemberInput::agents(&input.members)?;
        let outcome = draft(ctx, Some(id), async |mut change| {
            let mut check = Check::default();
            let joiners = NewMemberInput::check(&input.members, &agents, &mut check);
            let is_circle = change.viewer.rules().circle.and(circle::Column::Id.eq(id));
            change.take_turn(id).await;
            change.reserve::<circle::Entity>(is_circle.clone()).await?;
            let mut select = Query::select();
            select
                .from(circle::Entity)
                .cond_where(is_circle)
                .expr_as(members::present(), "present")
                .expr_as(Known::column(&change, &joiners, id), "known");
            Seen::select(&mut select, &change);
            let row = change.read(change.build(&select)).await?;
            let row = row.ok_or_else(|| Error::not_found("circleId"))?;
            let circle = Seen::from_query_result(&row, "")?;
            let circle = circle.accessible(&mut change, "circleId", Access::Editor)?;
            check_open(&circle)?;
            if agents.is_empty() {
                check.required("members");
            }
            let known: Vec<Known> = list_from(&row, "known")?;
            members::check_joiners(&change, &joiners, &known)?;
            let fresh = members::check_absent(&mut check, &joiners, &known);
            let present: i64 = row.try_get("", "present")?;
            let present = i32::try_from(present).unwrap_or(i32::MAX);
            members::check_room(&mut check, &circle, present, fresh);
            check.faults()?;
            let mut rows = vec![id];
            rows.extend(members::add(&mut change, &circle, joiners, &known));
            Ok(change.commit(rows).await?.with_row(circle))
        });
        CircleMembersPayload::new(ctx, outcome.await?).await
    }

    /// Updates an active membership.
    /// Requires editor access to the circle. `userErrors` codes besides input validation: `NOT_MEMBER` if the agent has
    /// left; `BAD_TRANSITION` while the circle is `ARCHIVED`.
    async fn update_circle_member(
        &self,
        ctx: &Context<'_>,
        input: UpdateCircleMemberInput,
    ) -> Result<CircleMemberPayload, Error> {
        let id = Kind::Member.parse(&input.member_id, "memberId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let (circle, row) = members::editable(&change, id, "memberId").await?;
            check_open(&circle)?;
            members::check_present(&row)?;
            let mut check = Check::default();
            let role = check.if_given("role", &input.role);
            let role = role.map(|role| member::MemberRole::from(*role));
            let competencies = entries(&input.competencies);
            let competencies =
                competencies.map(|values| members::competent(&mut check, "competencies", values));
            let reviews = entries(&input.review_types);
            let reviews =
                reviews.map(|values| members::reviewing(&mut check, "reviewTypes", values));
            check.faults()?;
            let mut new = row.into_active_model();
            let mut edits = Edits::default();
            edits.set("role", &mut new.role, role);
            edits.set("competencies", &mut new.competencies, competencies);
            edits.set("reviewTypes", &mut new.review_types, reviews);
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                change.append(event::membership(
                    EventType::MemberUpdated,
                    &circle,
                    &row,
                    edits.names(),
                ));
            }
            change.commit(vec![id]).await
        });
        CircleMemberPayload::new(ctx, outcome.await?).await
    }

    /// Removes an agent from a circle.
    /// Its tasks there that are `ASSIGNED`, `CHANGES_REQUESTED` or `BLOCKED` become `PENDING`. Requires editor access
    /// to the circle. `userErrors` codes: `NOT_MEMBER` if the agent has left already; `IN_USE` while one of its tasks
    /// there is `IN_PROGRESS` or `IN_REVIEW`; `BAD_TRANSITION` while the circle is `ARCHIVED`.
    async fn remove_circle_member(
        &self,
        ctx: &Context<'_>,
        input: RemoveCircleMemberInput,
    ) -> Result<CircleMemberPayload, Error> {
        let id = Kind::Member.parse(&input.member_id, "memberId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let (circle, row) = members::editable(&change, id, "memberId").await?;
            check_open(&circle)?;
            members::check_present(&row)?;
            let mut new = row.into_active_model();
            new.is_active = Set(false);
            new.left_at = Set(Some(change.now));
            new.updated_at = Set(change.now);
            let row = new.update(&change.transaction).await?;
            change.append(members::removed(&circle, &row));
            routing::release(&mut change, &circle, row.agent_id).await?;
            change.commit(vec![id]).await
        });
        CircleMemberPayload::new(ctx, outcome.await?).await
    }
}

fn name_taken() -> UserError {
    let message = "The owner already has a circle with this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

fn share_fault(message: &str) -> UserError {
    UserError::new("email", UserErrorCode::Invalid, message)
}
