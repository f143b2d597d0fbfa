//! Circles: teams of agents.

pub mod event;
pub mod members;

use crate::events::EventType;
use std::{ops::RangeInclusive, sync::Arc};

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use futures_util::future::try_join_all;
use gathering_entity::{agent, circle, collaborator, conversation, member, project, task, user};
use sea_orm::{
    ActiveEnum, ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait,
    FromQueryResult, IntoActiveModel, ModelTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    Set,
    sea_query::{Expr, ExprTrait, Func, LockType},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::data::Noun;
use crate::{
    access::Viewer,
    auth::by_email,
    circle::members::{CircleMembers, MemberFilter, NewMemberInput},
    conversation::{Conversation, ConversationFilter},
    data::{
        Change, Connection, Edits, Listed, NamedOrder, NamedOrderField, Order, Outcome, Page,
        change, check_version,
    },
    db::{RowsByKey, Rule, Totals, count_where, is_among, is_taken},
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    event::{EventFilter, Events},
    events::NewEvent,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    project::Project,
    request::RequestExt,
    scalar::DateTime,
    task::{Task, TaskFilter, TaskOrder},
    user::User,
};

/// Maximum length of a circle's name, in characters.
const MAX_NAME: usize = 100;
/// Maximum length of a display name, in characters.
const MAX_DISPLAY_NAME: usize = 200;
/// Maximum length of a description, in characters.
const MAX_DESCRIPTION: usize = 10_000;
/// The allowed values of `maxMembers`.
const MEMBERS: RangeInclusive<i32> = 1..=500;
/// The allowed values of `maxConcurrentTasks`.
const CONCURRENT_TASKS: RangeInclusive<i32> = 1..=100;

/// The status of a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "circle::CircleStatus")]
pub enum CircleStatus {
    /// Created, not yet started.
    Created,
    /// Started. Pending tasks are assigned automatically if `autoRoute` is set.
    Running,
    /// Paused. No new tasks are routed; assigned tasks continue.
    Paused,
    /// Stopped. It can be started again.
    Stopped,
    /// Archived. It can only be read, restored or deleted; its name may be reused.
    Archived,
}

/// The role of a collaborator: a user with whom a circle is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "collaborator::CollaboratorRole")]
pub enum CollaboratorRole {
    /// Can read the circle and its contents.
    Viewer,
    /// Can also change members, tasks and conversations, and start, pause and stop the circle.
    Editor,
}

/// The access level of a user to a circle, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Enum)]
pub enum Access {
    /// Can read the circle and its contents.
    Viewer,
    /// Can also change members, tasks and conversations, and start, pause and stop the circle.
    Editor,
    /// Can also rename, share, archive and delete the circle.
    Owner,
    /// An administrator: full access to every circle.
    Admin,
}

/// A team of agents.
pub struct Circle(pub(crate) Arc<circle::Model>);

/// A team of agents with rules for routing and reviewing tasks. Visible to its owner, to users with whom it is shared,
/// and to administrators.
#[Object]
impl Circle {
    /// The id of the circle, `circle_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Circle.id(self.0.id)
    }

    /// The owner.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.owner_id).await?;
        row.map(User::new).ok_or_else(|| Error::not_found("owner"))
    }

    /// The project it belongs to.
    async fn project(&self, ctx: &Context<'_>) -> Result<Option<Project>, Error> {
        let Some(id) = self.0.project_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<project::Entity>(id).await?.map(Project))
    }

    /// The name, unique among its owner's circles that are not archived; at most 100 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The display name, at most 200 characters.
    async fn display_name(&self) -> Option<&str> {
        self.0.display_name.as_deref()
    }

    /// The description, at most 10,000 characters.
    async fn description(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.description.as_deref())
    }

    /// The status.
    async fn status(&self) -> CircleStatus {
        self.0.status.into()
    }

    /// The access level of the viewer.
    async fn viewer_access(&self, ctx: &Context<'_>) -> Result<Access, Error> {
        let viewer = ctx.request().viewer()?;
        if viewer.is_admin() {
            return Ok(Access::Admin);
        }
        if viewer.id() == self.0.owner_id {
            return Ok(Access::Owner);
        }
        let mine = Rule::new(Condition::all().add(collaborator::Column::UserId.eq(viewer.id())));
        let share = RowsByKey::<collaborator::Entity>::by(collaborator::Column::CircleId, mine);
        let share = ctx.request().load(share, self.0.id).await?;
        match share.map(|share| share.role) {
            Some(collaborator::CollaboratorRole::Editor) => Ok(Access::Editor),
            Some(collaborator::CollaboratorRole::Viewer) => Ok(Access::Viewer),
            None => Err(Error::not_found("viewerAccess")),
        }
    }

    /// Whether tasks require a review by default.
    async fn require_review(&self) -> bool {
        self.0.require_review
    }

    /// Whether pending tasks are assigned automatically while the circle is running.
    async fn auto_route(&self) -> bool {
        self.0.auto_route
    }

    /// The maximum number of active members, from 1 to 500.
    async fn max_members(&self) -> i32 {
        self.0.max_members
    }

    /// The number of active tasks at which routing stops, from 1 to 100. Active tasks are `ASSIGNED`, `IN_PROGRESS`,
    /// `IN_REVIEW` or `CHANGES_REQUESTED`.
    async fn max_concurrent_tasks(&self) -> i32 {
        self.0.max_concurrent_tasks
    }

    /// When it was last started.
    async fn started_at(&self) -> Option<DateTime> {
        self.0.started_at.map(DateTime)
    }

    /// When it was last stopped.
    async fn stopped_at(&self) -> Option<DateTime> {
        self.0.stopped_at.map(DateTime)
    }

    /// When it was archived.
    async fn archived_at(&self) -> Option<DateTime> {
        self.0.archived_at.map(DateTime)
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

    /// Task counts and the mean cycle time.
    async fn metrics(&self, ctx: &Context<'_>) -> Result<CircleMetrics, Error> {
        CircleMetrics::load(ctx, self.0.id).await
    }

    /// The members, ordered by join time. Former members are included only if the filter requests them.
    async fn members(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<MemberFilter>,
    ) -> Result<Connection<CircleMembers>, Error> {
        Connection::of(
            member::Column::CircleId,
            self.0.id,
            MemberFilter::condition(filter, ctx.request().viewer()?),
            Order::ascending([member::Column::JoinedAt, member::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The users with whom it is shared, newest first.
    async fn collaborators(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Result<Connection<CircleCollaborators>, Error> {
        Connection::of(
            collaborator::Column::CircleId,
            self.0.id,
            Condition::all(),
            Order::descending([collaborator::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The tasks. Newest first unless `orderBy` is given.
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
        ctx.request().viewer()?;
        Connection::of(
            task::Column::CircleId,
            self.0.id,
            TaskFilter::condition(filter)?,
            Task::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The conversations, newest first.
    async fn conversations(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ConversationFilter>,
    ) -> Result<Connection<Conversation>, Error> {
        Connection::of(
            conversation::Column::CircleId,
            self.0.id,
            ConversationFilter::condition(filter)?,
            Order::descending([conversation::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// The events in the circle, newest first.
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
            gathering_entity::event::Column::CircleId,
            self.0.id,
            filter,
            &Page::new(first, after, last, before)?,
        )
    }
}

/// Task counts and the mean cycle time of a circle.
#[derive(Clone, Debug, Default, FromQueryResult, SimpleObject)]
pub struct CircleMetrics {
    /// The number of tasks that are `PENDING`, `ASSIGNED`, `IN_PROGRESS`, `CHANGES_REQUESTED` or `BLOCKED`.
    open_tasks: i64,
    /// The number of tasks in review.
    in_review_tasks: i64,
    /// The number of completed tasks.
    completed_tasks: i64,
    /// The number of failed tasks.
    failed_tasks: i64,
    /// The mean time from first start to completion of completed tasks, in seconds; null if there are none.
    average_cycle_seconds: Option<f64>,
}

impl CircleMetrics {
    async fn load(ctx: &Context<'_>, circle: Uuid) -> Result<Self, Error> {
        use task::{Column::Status, TaskStatus};
        let average = Func::cast_as(
            Func::avg(Expr::case(
                Status.eq(TaskStatus::Completed),
                Expr::col(task::Column::CycleSeconds.as_column_ref()),
            )),
            "DOUBLE PRECISION",
        );
        let select = task::Entity::find()
            .select_only()
            .expr_as(count_where(crate::task::is_open()), "open_tasks")
            .expr_as(
                count_where(Status.eq(TaskStatus::InReview)),
                "in_review_tasks",
            )
            .expr_as(
                count_where(Status.eq(TaskStatus::Completed)),
                "completed_tasks",
            )
            .expr_as(count_where(Status.eq(TaskStatus::Failed)), "failed_tasks")
            .expr_as(average, "average_cycle_seconds")
            .into_query();
        let totals = Totals::new(
            "circle metrics",
            select,
            Some(task::Column::CircleId.as_column_ref()),
        );
        ctx.request().load(totals, circle).await
    }
}

impl From<Arc<circle::Model>> for Circle {
    fn from(row: Arc<circle::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Circle {
    type Entity = circle::Entity;
    const KIND: Kind = Kind::Circle;
    const NAME: &'static str = "Circle";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        Some(viewer.rules().circle.clone())
    }
}

impl Circle {
    pub(crate) fn order(by: Option<NamedOrder>) -> Order<circle::Column> {
        use circle::Column::{Id, NameKey, UpdatedAt};
        let Some(NamedOrder { field, direction }) = by else {
            return Order::descending([Id]);
        };
        match field {
            NamedOrderField::CreatedAt => direction.over([Id]),
            NamedOrderField::UpdatedAt => direction.over([UpdatedAt, Id]),
            NamedOrderField::Name => direction.over([NameKey, Id]),
        }
    }
}

/// Marker type for connections of the users with whom a circle is shared.
pub struct CircleCollaborators;

impl Listed for CircleCollaborators {
    type Entity = collaborator::Entity;
    type Node = User;
    type Extra = Collaboration;
    const NAME: &'static str = "CircleCollaborator";

    async fn nodes(
        ctx: &Context<'_>,
        rows: &[Arc<collaborator::Model>],
    ) -> Result<Vec<Option<User>>, Error> {
        let users = rows
            .iter()
            .map(|row| ctx.request().row::<user::Entity>(row.user_id));
        Ok(try_join_all(users)
            .await?
            .into_iter()
            .map(|user| user.map(User::new))
            .collect())
    }

    fn extra(row: &Arc<collaborator::Model>) -> Collaboration {
        Collaboration {
            role: row.role.into(),
            added_at: row.created_at.into(),
        }
    }
}

/// Edge fields of a circle's collaborator.
#[derive(SimpleObject)]
pub struct Collaboration {
    /// The role of the user in the circle.
    role: CollaboratorRole,
    /// When the circle was shared with the user.
    added_at: DateTime,
}

/// Filters a list of circles. All conditions must match; an empty list matches nothing.
#[derive(InputObject)]
pub struct CircleFilter {
    /// Only circles with one of these statuses.
    status: Option<Vec<CircleStatus>>,
    /// Only circles of this project.
    project_id: Option<ID>,
    /// Only circles to which the viewer has exactly one of these access levels.
    access: Option<Vec<Access>>,
    /// Only circles whose name contains this text, case-insensitive; at most 100 characters.
    search: Option<String>,
}

impl CircleFilter {
    pub(crate) fn condition(filter: Option<Self>, viewer: &Viewer) -> Result<Condition, Error> {
        let Some(filter) = filter else {
            return Ok(Condition::all());
        };
        let status = filter
            .status
            .map(|list| crate::db::is_one_of::<circle::CircleStatus>(circle::Column::Status, list));
        let project = Kind::Project.parse_opt(filter.project_id.as_ref(), "projectId")?;
        Ok(Condition::all()
            .add_option(status)
            .add_option(project.map(|id| circle::Column::ProjectId.eq(id)))
            .add_option(filter.access.map(|access| accessible(&access, viewer)))
            .add_option(
                filter
                    .search
                    .map(|search| {
                        crate::db::contains(
                            Expr::col(circle::Column::NameKey.as_column_ref()),
                            &search,
                        )
                    })
                    .transpose()?,
            ))
    }
}

/// Circles to which the viewer has exactly one of these access levels.
fn accessible(access: &[Access], viewer: &Viewer) -> Condition {
    if viewer.is_admin() {
        let all = access.contains(&Access::Admin);
        return Condition::all().add(Expr::val(all).eq(true));
    }
    let shared = |role: collaborator::CollaboratorRole| {
        let ids = collaborator::Entity::find()
            .select_only()
            .column(collaborator::Column::CircleId)
            .filter(collaborator::Column::UserId.eq(viewer.id()))
            .filter(collaborator::Column::Role.eq(role))
            .into_query();
        circle::Column::Id
            .in_subquery(ids)
            .and(circle::Column::OwnerId.ne(viewer.id()))
    };
    access.iter().fold(
        // Makes an empty list match nothing.
        Condition::any().add(Expr::val(false).eq(true)),
        |any, access| match access {
            Access::Viewer => any.add(shared(collaborator::CollaboratorRole::Viewer)),
            Access::Editor => any.add(shared(collaborator::CollaboratorRole::Editor)),
            Access::Owner => any.add(circle::Column::OwnerId.eq(viewer.id())),
            Access::Admin => any,
        },
    )
}

impl Change<'_> {
    /// Loads and locks a circle to which the viewer has at least this access. Every change to a circle or its contents
    /// locks the circle first, so concurrent changes wait until this transaction ends.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
    pub(crate) async fn circle(
        &self,
        id: Uuid,
        field: &str,
        least: Access,
    ) -> Result<circle::Model, Error> {
        let rule = &self.viewer.rules().circle;
        let row = self.row::<circle::Entity>(rule, id, field).await?;
        if self.viewer.is_admin() || row.owner_id == self.viewer.id() {
            return Ok(row);
        }
        let mine = collaborator::Entity::find()
            .filter(collaborator::Column::CircleId.eq(id))
            .filter(collaborator::Column::UserId.eq(self.viewer.id()));
        let share = mine.one(&self.transaction).await?;
        self.check_access(&row, share.map(|share| share.role), field, least)?;
        Ok(row)
    }

    /// Checks that the viewer has at least this access to a circle; `role` is the viewer's role as a collaborator, if
    /// any.
    pub(crate) fn check_access(
        &self,
        circle: &circle::Model,
        role: Option<collaborator::CollaboratorRole>,
        field: &str,
        least: Access,
    ) -> Result<(), Error> {
        if self.viewer.is_admin() || circle.owner_id == self.viewer.id() {
            return Ok(());
        }
        let access = match role {
            Some(collaborator::CollaboratorRole::Editor) => Access::Editor,
            Some(collaborator::CollaboratorRole::Viewer) => Access::Viewer,
            None => return Err(Error::not_found(field)),
        };
        if access >= least {
            Ok(())
        } else {
            Err(self.forbidden(Kind::Circle, circle.id))
        }
    }
}

/// Rejects changes to an archived circle and its contents.
pub(crate) fn check_open(circle: &circle::Model) -> Result<(), UserError> {
    if circle.status == circle::CircleStatus::Archived {
        return Err(UserError::bad_transition(
            "Nothing in an ARCHIVED circle can be changed. Restore the circle first.",
        ));
    }
    Ok(())
}

/// Circle queries.
#[derive(Default)]
pub struct CircleQuery;

#[Object]
impl CircleQuery {
    /// Fetches a circle by id. `NOT_FOUND` if it does not exist or the viewer may not read it.
    async fn circle(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Circle>, Error> {
        let rule = &ctx.request().viewer()?.rules().circle;
        let row = ctx
            .request()
            .look_up::<circle::Entity>(Kind::Circle, rule, &id)
            .await?;
        Ok(Some(Circle(row)))
    }

    /// Lists the circles that the viewer may read. Newest first unless `orderBy` is given.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is an argument of the GraphQL field"
    )]
    async fn circles(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<CircleFilter>,
        order_by: Option<NamedOrder>,
    ) -> Result<Connection<Circle>, Error> {
        let viewer = ctx.request().viewer()?;
        Connection::new(
            Condition::all()
                .add(viewer.circles())
                .add(CircleFilter::condition(filter, viewer)?),
            Circle::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }
}

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
    /// The number of active tasks at which routing stops, from 1 to 100. Active tasks are `ASSIGNED`, `IN_PROGRESS`,
    /// `IN_REVIEW` or `CHANGES_REQUESTED`.
    #[graphql(default = 5)]
    max_concurrent_tasks: i32,
    /// The initial members: the caller's agents, each once; at most 100 and at most `maxMembers`.
    members: Option<Vec<NewMemberInput>>,
    /// Whether to start it immediately.
    #[graphql(default = false)]
    start_now: bool,
}

/// Input for `updateCircle`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateCircleInput {
    /// The circle.
    circle_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
    /// The name, 1 to 100 characters, unique among its owner's circles that are not archived.
    name: MaybeUndefined<String>,
    /// The display name, at most 200 characters.
    display_name: MaybeUndefined<String>,
    /// The description, at most 10,000 characters.
    description: MaybeUndefined<String>,
    /// The project it belongs to. Circle readers can read it, so only the project's owner or an administrator may link
    /// it.
    project_id: MaybeUndefined<ID>,
    /// Whether tasks require a review by default. Existing tasks are not changed.
    require_review: MaybeUndefined<bool>,
    /// Whether pending tasks are assigned automatically while the circle is running.
    auto_route: MaybeUndefined<bool>,
    /// The maximum number of active members, from 1 to 500; not less than the current number.
    max_members: MaybeUndefined<i32>,
    /// The number of active tasks at which routing stops, from 1 to 100. Active tasks are `ASSIGNED`, `IN_PROGRESS`,
    /// `IN_REVIEW` or `CHANGES_REQUESTED`.
    max_concurrent_tasks: MaybeUndefined<i32>,
}

/// Input for a status transition of a circle, such as `startCircle`.
#[derive(InputObject)]
pub struct CircleActionInput {
    /// The circle.
    circle_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    expected_version: Option<i32>,
}

/// Input for `shareCircle`.
#[derive(InputObject)]
pub struct ShareCircleInput {
    /// The circle.
    circle_id: ID,
    /// The e-mail address of the user's account, case-insensitive.
    email: String,
    /// The role to grant.
    role: CollaboratorRole,
}

/// Input for `unshareCircle`.
#[derive(InputObject)]
pub struct UnshareCircleInput {
    /// The circle.
    circle_id: ID,
    /// The user.
    user_id: ID,
}

/// Circle mutations.
#[derive(Default)]
pub struct CircleMutation;

#[Object]
impl CircleMutation {
    /// Creates a circle owned by the caller, with its initial members, atomically. An agent or project of another user
    /// is `FORBIDDEN`, or `NOT_FOUND` if the caller may not read it. `userErrors` codes besides input validation:
    /// `TAKEN` (name); `INVALID` for an agent that is listed twice; `LIMIT_REACHED` for more `members` than
    /// `maxMembers`.
    async fn create_circle(
        &self,
        ctx: &Context<'_>,
        input: CreateCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Uuid::now_v7();
        let project = Kind::Project.parse_opt(input.project_id.as_ref(), "projectId")?;
        let joining = input.members.as_deref().unwrap_or_default();
        let agents = NewMemberInput::agents(joining)?;
        let outcome = change(ctx, None, async |mut change| {
            let mut check = Check::default();
            let (name, name_key) = check.name("name", &input.name, MAX_NAME);
            let mut row = circle::Model {
                id,
                created_at: change.now,
                updated_at: change.now,
                version: 1,
                owner_id: change.viewer.id(),
                project_id: project,
                name,
                name_key,
                display_name: check.optional_line(
                    "displayName",
                    input.display_name.as_deref(),
                    MAX_DISPLAY_NAME,
                ),
                description: check.optional_text(
                    "description",
                    input.description.as_deref(),
                    MAX_DESCRIPTION,
                ),
                status: circle::CircleStatus::Created,
                require_review: input.require_review,
                auto_route: input.auto_route,
                max_members: check.range("maxMembers", input.max_members, MEMBERS),
                max_concurrent_tasks: check.range(
                    "maxConcurrentTasks",
                    input.max_concurrent_tasks,
                    CONCURRENT_TASKS,
                ),
                started_at: None,
                stopped_at: None,
                archived_at: None,
            };
            let joiners = NewMemberInput::check(joining, &agents, &mut check);
            if let Some(project) = project {
                crate::project::editable(&change, project, "projectId").await?;
            }
            change.check_joiners(&joiners).await?;
            check_room(&mut check, &row, 0, joiners.len());
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            change.append(edited(EventType::CircleCreated, &row, &[]));
            let before = row.status;
            if input.start_now {
                // Creating and starting are two transitions, written in one statement.
                row.status = circle::CircleStatus::Running;
                row.started_at = Some(change.now);
                row.version += 1;
            }
            let insert = circle::Entity::insert(row.clone().into_active_model());
            match insert.exec_without_returning(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    return Ok(Outcome::fault(None, name_taken()));
                }
                done => done?,
            };
            change.add_members(&row, joiners, &[]).await?;
            if input.start_now {
                change.append(moved(EventType::CircleStarted, &row, before));
            }
            change.commit(vec![id]).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }

    /// Updates a circle. Requires its owner or an administrator. `userErrors` codes besides input validation: `TAKEN`
    /// (name); `OUT_OF_RANGE` for a `maxMembers` below the number of active members; `CONFLICT`; `BAD_TRANSITION` while
    /// it is `ARCHIVED`.
    async fn update_circle(
        &self,
        ctx: &Context<'_>,
        input: UpdateCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let project = match &input.project_id {
            MaybeUndefined::Undefined => None,
            project => Some(Kind::Project.parse_opt(project.value(), "projectId")?),
        };
        let outcome = change(ctx, None, async |mut change| {
            let row = change.circle(id, "circleId", Access::Owner).await?;
            let allowed =
                check_open(&row).and_then(|()| check_version(input.expected_version, row.version));
            if let Err(fault) = allowed {
                return Ok(Outcome::fault(Some(id), fault));
            }
            if let Some(project) = project.flatten()
                && row.project_id != Some(project)
            {
                crate::project::editable(&change, project, "projectId").await?;
            }
            let mut check = Check::default();
            let name = check.if_given("name", &input.name);
            let (name, key) = name.map(|name| check.name("name", name, MAX_NAME)).unzip();
            let display_name = input.display_name.as_opt_deref();
            let display_name = display_name
                .map(|value| check.optional_line("displayName", value, MAX_DISPLAY_NAME));
            let description = input.description.as_opt_deref();
            let description =
                description.map(|value| check.optional_text("description", value, MAX_DESCRIPTION));
            let review = check
                .if_given("requireReview", &input.require_review)
                .copied();
            let route = check.if_given("autoRoute", &input.auto_route).copied();
            let members = check.if_given("maxMembers", &input.max_members).copied();
            if let Some(most) = members {
                // Only a lowered limit can be below the current number of members.
                let least = if most < row.max_members && MEMBERS.contains(&most) {
                    change.count_members(id).await?
                } else {
                    *MEMBERS.start()
                };
                check.range("maxMembers", most, least..=*MEMBERS.end());
            }
            let field = "maxConcurrentTasks";
            let tasks = check.if_given(field, &input.max_concurrent_tasks).copied();
            let tasks = tasks.map(|most| check.range(field, most, CONCURRENT_TASKS));
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let version = row.version;
            let mut new = row.into_active_model();
            let mut edits = Edits::default();
            if let Some(key) = key {
                new.name_key = Set(key);
            }
            edits.set("name", &mut new.name, name);
            edits.set("displayName", &mut new.display_name, display_name);
            edits.set("description", &mut new.description, description);
            edits.set("projectId", &mut new.project_id, project);
            edits.set("requireReview", &mut new.require_review, review);
            edits.set("autoRoute", &mut new.auto_route, route);
            edits.set("maxMembers", &mut new.max_members, members);
            edits.set(field, &mut new.max_concurrent_tasks, tasks);
            if !edits.is_empty() {
                new.version = Set(version + 1);
                new.updated_at = Set(change.now);
                let row = match new.update(&change.transaction).await {
                    Err(error) if is_taken(&error) => {
                        return Ok(Outcome::fault(Some(id), name_taken()));
                    }
                    done => done?,
                };
                change.append(edited(EventType::CircleUpdated, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }

    /// Starts a circle that is `CREATED`, `PAUSED` or `STOPPED`. With `autoRoute`, its pending tasks are assigned.
    /// Requires editor access to the circle. `userErrors` codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn start_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        Step::Start.take(ctx, &input).await
    }

    /// Pauses a `RUNNING` circle: no new tasks are routed, assigned tasks continue. Requires editor access to the
    /// circle. `userErrors` codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn pause_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        Step::Pause.take(ctx, &input).await
    }

    /// Stops a `RUNNING` or `PAUSED` circle and pauses its active conversations. Requires editor access to the circle.
    /// `userErrors` codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn stop_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        Step::Stop.take(ctx, &input).await
    }

    /// Archives a circle that is `CREATED` or `STOPPED` and pauses its active conversations. An archived circle can
    /// only be read, restored or deleted; its name may be reused. Requires its owner or an administrator. `userErrors`
    /// codes: `CONFLICT`; `BAD_TRANSITION`.
    async fn archive_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        Step::Archive.take(ctx, &input).await
    }

    /// Restores an `ARCHIVED` circle; its status becomes `STOPPED`. Requires its owner or an administrator.
    /// `userErrors` codes: `TAKEN` if another circle of the owner uses the name; `CONFLICT`; `BAD_TRANSITION`.
    async fn restore_circle(
        &self,
        ctx: &Context<'_>,
        input: CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        Step::Restore.take(ctx, &input).await
    }

    /// Deletes a circle that is `CREATED`, `STOPPED` or `ARCHIVED`. Its memberships, shares and tasks are deleted too;
    /// the users with whom it was shared receive `CIRCLE_UNSHARED`. Its conversations are kept for their owners; those
    /// that have not ended become `CANCELLED`. Requires its owner or an administrator. `userErrors` codes: `CONFLICT`;
    /// `BAD_TRANSITION`.
    async fn delete_circle(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Circle.parse(&input.id, "id")?;
        let outcome = change(ctx, None, async |mut change| {
            use circle::CircleStatus::{Archived, Created, Stopped};
            let row = change.circle(id, "id", Access::Owner).await?;
            if let Err(fault) = check_version(input.expected_version, row.version) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            if ![Created, Stopped, Archived].contains(&row.status) {
                return Ok(Outcome::fault(Some(id), cannot(row.status, "deleted")));
            }
            change.cancel_conversations(&row).await?;
            change.unshare(&row).await?;
            change.append(edited(EventType::CircleDeleted, &row, &[]));
            change.free_agents(id).await?;
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Circle, id, outcome.await?).await
    }

    /// Shares a circle with another user, or changes that user's role. Requires its owner or an administrator.
    /// `userErrors` codes: `INVALID` for an `email` that belongs to no active user or to the owner; `BAD_TRANSITION`
    /// while the circle is `ARCHIVED`.
    async fn share_circle(
        &self,
        ctx: &Context<'_>,
        input: ShareCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let outcome = change(ctx, None, async |mut change| {
            let row = change.circle(id, "circleId", Access::Owner).await?;
            if let Err(fault) = check_open(&row) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let mut check = Check::default();
            let (email, _) = check.email("email", &input.email);
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let user = by_email(&change.transaction, &email).await?;
            let user = user.filter(|user| user.is_active).map(|user| user.id);
            let Some(user) = user else {
                // The response must not reveal that a deactivated account exists.
                let fault = share_fault("No active user has this e-mail address.");
                return Ok(Outcome::fault(Some(id), fault));
            };
            if user == row.owner_id {
                let fault = share_fault("This user owns the circle.");
                return Ok(Outcome::fault(Some(id), fault));
            }
            let role = input.role.into();
            if change.share(&row, user, role).await? {
                change.append(sharing(EventType::CircleShared, &row, user, Some(role)));
            }
            change.commit(vec![id]).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }

    /// Stops sharing a circle with a user. Requires its owner or an administrator; a collaborator may leave, and then
    /// `circle` is null. `NOT_FOUND` if there is no such user. `userErrors` codes: `INVALID` if the circle is not
    /// shared with the user; `BAD_TRANSITION` while the circle is `ARCHIVED`.
    async fn unshare_circle(
        &self,
        ctx: &Context<'_>,
        input: UnshareCircleInput,
    ) -> Result<CirclePayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let user = Kind::User.parse(&input.user_id, "userId")?;
        let outcome = change(ctx, None, async |mut change| {
            let leaves = user == change.viewer.id();
            let least = if leaves {
                Access::Viewer
            } else {
                Access::Owner
            };
            let row = change.circle(id, "circleId", least).await?;
            if let Err(fault) = check_open(&row) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let share = collaborator::Entity::delete_many()
                .filter(collaborator::Column::CircleId.eq(id))
                .filter(collaborator::Column::UserId.eq(user));
            let gone = share.exec(&change.transaction).await?;
            if gone.rows_affected == 0 {
                let field = "userId";
                change
                    .lock_reference::<user::Entity>(Some(user), field)
                    .await?;
                let message = "The circle is not shared with this user.";
                let fault = UserError::new(field, UserErrorCode::Invalid, message);
                return Ok(Outcome::fault(Some(id), fault));
            }
            change.append(sharing(EventType::CircleUnshared, &row, user, None));
            let reads_on = !leaves || change.viewer.is_admin();
            change.commit(Vec::from_iter(reads_on.then_some(id))).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }
}

/// A status transition of a circle.
#[derive(Clone, Copy)]
enum Step {
    Start,
    Pause,
    Stop,
    Archive,
    Restore,
}

impl Step {
    /// The source statuses, the target status, the required access, the event type, and the past participle for error
    /// messages.
    fn rule(self) -> Transition {
        use circle::CircleStatus::{Archived, Created, Paused, Running, Stopped};
        let (from, to, least, event, done): (&[_], _, _, _, _) = match self {
            Self::Start => {
                let from = &[Created, Paused, Stopped];
                (
                    from,
                    Running,
                    Access::Editor,
                    EventType::CircleStarted,
                    "started",
                )
            }
            Self::Pause => (
                &[Running],
                Paused,
                Access::Editor,
                EventType::CirclePaused,
                "paused",
            ),
            Self::Stop => {
                let from = &[Running, Paused];
                (
                    from,
                    Stopped,
                    Access::Editor,
                    EventType::CircleStopped,
                    "stopped",
                )
            }
            Self::Archive => {
                let from = &[Created, Stopped];
                (
                    from,
                    Archived,
                    Access::Owner,
                    EventType::CircleArchived,
                    "archived",
                )
            }
            Self::Restore => {
                let from = &[Archived];
                (
                    from,
                    Stopped,
                    Access::Owner,
                    EventType::CircleRestored,
                    "restored",
                )
            }
        };
        Transition {
            from,
            to,
            least,
            event,
            done,
        }
    }

    async fn take(
        self,
        ctx: &Context<'_>,
        input: &CircleActionInput,
    ) -> Result<CirclePayload, Error> {
        let id = Kind::Circle.parse(&input.circle_id, "circleId")?;
        let rule = self.rule();
        let outcome = change(ctx, None, async |mut change| {
            let row = change.circle(id, "circleId", rule.least).await?;
            if let Err(fault) = check_version(input.expected_version, row.version) {
                return Ok(Outcome::fault(Some(id), fault));
            }
            let before = row.status;
            if !rule.from.contains(&before) {
                return Ok(Outcome::fault(Some(id), cannot(before, rule.done)));
            }
            let version = row.version + 1;
            let mut new = row.into_active_model();
            new.status = Set(rule.to);
            new.version = Set(version);
            new.updated_at = Set(change.now);
            match self {
                Self::Start => new.started_at = Set(Some(change.now)),
                Self::Stop => new.stopped_at = Set(Some(change.now)),
                Self::Archive => new.archived_at = Set(Some(change.now)),
                Self::Restore => new.archived_at = Set(None),
                Self::Pause => {}
            }
            let row = match new.update(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    let message = "The owner already has another circle with this name.";
                    let fault = UserError::general(UserErrorCode::Taken, message);
                    return Ok(Outcome::fault(Some(id), fault));
                }
                done => done?,
            };
            change.append(moved(rule.event, &row, before));
            match self {
                Self::Start => change.route_pending(&row).await?,
                Self::Stop | Self::Archive => change.pause_conversations(&row).await?,
                Self::Pause | Self::Restore => {}
            }
            change.commit(vec![id]).await
        });
        CirclePayload::new(ctx, outcome.await?).await
    }
}

struct Transition {
    from: &'static [circle::CircleStatus],
    to: circle::CircleStatus,
    least: Access,
    event: EventType,
    done: &'static str,
}

impl Change<'_> {
    /// Appends a `circle.unshared` event for each collaborator of a circle.
    async fn unshare(&mut self, circle: &circle::Model) -> Result<(), Error> {
        let users: Vec<Uuid> = collaborator::Entity::find()
            .select_only()
            .column(collaborator::Column::UserId)
            .filter(collaborator::Column::CircleId.eq(circle.id))
            .order_by_asc(collaborator::Column::Id)
            .into_tuple()
            .all(&self.transaction)
            .await?;
        for user in users {
            self.append(sharing(EventType::CircleUnshared, circle, user, None));
        }
        Ok(())
    }

    /// Shares a circle with a user. Returns whether anything changed.
    async fn share(
        &self,
        circle: &circle::Model,
        user: Uuid,
        role: collaborator::CollaboratorRole,
    ) -> Result<bool, Error> {
        let share = collaborator::Entity::find()
            .filter(collaborator::Column::CircleId.eq(circle.id))
            .filter(collaborator::Column::UserId.eq(user));
        match share.one(&self.transaction).await? {
            Some(share) if share.role == role => return Ok(false),
            Some(share) => {
                let mut share = share.into_active_model();
                share.role = Set(role);
                share.updated_at = Set(self.now);
                share.update(&self.transaction).await?;
            }
            None => {
                let share = collaborator::Model {
                    id: Uuid::now_v7(),
                    created_at: self.now,
                    updated_at: self.now,
                    circle_id: circle.id,
                    user_id: user,
                    role,
                    added_by: Some(self.viewer.id()),
                };
                collaborator::Entity::insert(share.into_active_model())
                    .exec_without_returning(&self.transaction)
                    .await?;
            }
        }
        Ok(true)
    }

    /// Sets busy agents to idle if all their tasks in progress are in a circle that is being deleted.
    async fn free_agents(&mut self, circle: Uuid) -> Result<(), Error> {
        use agent::{AgentStatus, Column};
        let in_progress = || {
            task::Entity::find()
                .select_only()
                .column(task::Column::AssigneeId)
                .filter(task::Column::Status.eq(task::TaskStatus::InProgress))
        };
        let here = in_progress().filter(task::Column::CircleId.eq(circle));
        let mut agents: Vec<(Uuid, Uuid, String, i32)> = agent::Entity::find()
            .select_only()
            .columns([Column::Id, Column::OwnerId, Column::Name, Column::Version])
            .filter(Column::Status.eq(AgentStatus::Busy))
            .filter(Column::Id.in_subquery(here.into_query()))
            .order_by_asc(Column::Id)
            .lock(LockType::NoKeyUpdate)
            .into_tuple()
            .all(&self.transaction)
            .await?;
        if agents.is_empty() {
            return Ok(());
        }
        let backend = self.transaction.get_database_backend();
        let ids: Vec<_> = agents.iter().map(|(id, ..)| *id).collect();
        let assignee = task::Column::AssigneeId.as_column_ref();
        let elsewhere = in_progress()
            .filter(task::Column::CircleId.ne(circle))
            .filter(is_among(backend, assignee, &ids));
        let elsewhere: Vec<Uuid> = elsewhere.into_tuple().all(&self.transaction).await?;
        agents.retain(|(id, ..)| !elsewhere.contains(id));
        let ids: Vec<_> = agents.iter().map(|(id, ..)| *id).collect();
        agent::Entity::update_many()
            .col_expr(Column::Status, Expr::value(AgentStatus::Idle.to_value()))
            .col_expr(Column::UpdatedAt, Expr::value(self.now))
            .filter(is_among(backend, Column::Id.as_column_ref(), &ids))
            .exec(&self.transaction)
            .await?;
        for (id, owner, name, version) in agents {
            let payload = json!({
                "name": name,
                "fromStatus": AgentStatus::Busy.to_value(),
                "toStatus": AgentStatus::Idle.to_value(),
                "version": version,
            });
            let fact = NewEvent::new(EventType::AgentStatusChanged, id, payload);
            self.append(fact.owner(owner).agent(id));
        }
        Ok(())
    }
}

/// Adds a fault if the joining agents and the `present` members exceed `maxMembers`.
pub(crate) fn check_room(check: &mut Check, circle: &circle::Model, present: i32, joining: usize) {
    let room = usize::try_from(circle.max_members - present).unwrap_or_default();
    // A bound that is out of range has been reported already.
    if joining > room && MEMBERS.contains(&circle.max_members) {
        let message = format!(
            "The circle allows at most {} active members and has {present}.",
            circle.max_members
        );
        check.fault("members", UserErrorCode::LimitReached, message);
    }
}

fn cannot(status: circle::CircleStatus, done: &str) -> UserError {
    UserError::cannot("circle", &status.to_value(), done)
}

fn name_taken() -> UserError {
    let message = "The owner already has a circle with this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

fn share_fault(message: &str) -> UserError {
    UserError::new("email", UserErrorCode::Invalid, message)
}

fn fact(kind: EventType, row: &circle::Model, payload: Value) -> NewEvent {
    NewEvent::new(kind, row.id, payload)
        .owner(row.owner_id)
        .circle(row.id)
        .project(row.project_id)
}

fn edited(kind: EventType, row: &circle::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "name": row.name, "changed": changed, "version": row.version });
    fact(kind, row, payload)
}

fn moved(kind: EventType, row: &circle::Model, before: circle::CircleStatus) -> NewEvent {
    let payload = json!({
        "name": row.name,
        "fromStatus": before.to_value(),
        "toStatus": row.status.to_value(),
        "version": row.version,
    });
    fact(kind, row, payload)
}

/// Delivered to the user concerned, even if that user cannot read the circle.
fn sharing(
    kind: EventType,
    row: &circle::Model,
    user: Uuid,
    role: Option<collaborator::CollaboratorRole>,
) -> NewEvent {
    let payload = json!({
        "userId": Kind::User.id(user).as_str(),
        "role": role.map(|role| role.to_value()),
        "version": row.version,
    });
    fact(kind, row, payload).owner(user)
}
