//! Circles: teams of agents.

pub mod event;
pub mod inputs;
pub mod members;
pub mod mutations;
pub mod sharing;
mod workflow;

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};
use gathering_entity::{circle, collaborator, conversation, member, project, task, user};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, QuerySelect, QueryTrait,
    sea_query::{Expr, Func},
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    circle::{
        members::{CircleMembers, MemberFilter},
        sharing::{CircleCollaborators, with_access},
    },
    conversation::{Conversation, ConversationFilter},
    data::{Connection, FieldsOf, NamedOrder, NamedOrderField, Noun, Order, Page, by_id},
    db::{RowsByKey, Rule, Totals, count_where},
    error::Error,
    event::{EventFilter, Events},
    id::Kind,
    input::UserError,
    project::Project,
    request::RequestExt,
    scalar::DateTime,
    task::{Task, TaskFilter, TaskOrder},
    user::User,
};

pub use mutations::{CircleMutation, MemberMutation};
pub use sharing::{Access, CollaboratorRole};
pub(crate) use sharing::{Seen, accessible, change_owner, editable, leave_all};
pub(crate) use workflow::delete;

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
    /// Archived. It can only be read, restored, transferred or deleted; its name may be reused.
    Archived,
}

/// A team of agents.
pub struct Circle(pub(crate) Arc<circle::Model>);

/// A team of agents with rules for routing and reviewing tasks.
/// Visible to its owner, to users with whom it is shared, and to administrators.
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

    /// The number of active tasks at which routing stops, from 1 to 100.
    /// Active tasks are `ASSIGNED`, `IN_PROGRESS`, `IN_REVIEW` or `CHANGES_REQUESTED`.
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

    /// The version, incremented by each edit and status transition.
    /// Pass it as `expectedVersion` to detect concurrent changes.
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
        let page = Page::new(first, after, last, before)?;
        Self::list_members(self.0.id, ctx.request().viewer()?, filter, &page)
    }

    /// The users with whom it is shared, newest first.
    async fn collaborators(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Result<Connection<CircleCollaborators>, Error> {
        Self::list_collaborators(self.0.id, &Page::new(first, after, last, before)?)
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
        let page = Page::new(first, after, last, before)?;
        Self::list_tasks(self.0.id, filter, order_by, &page)
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
        let page = Page::new(first, after, last, before)?;
        Self::list_conversations(self.0.id, filter, &page)
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

    fn fields() -> FieldsOf<Self> {
        use circle::Column::{
            ArchivedAt, AutoRoute, CreatedAt, Description, DisplayName, MaxConcurrentTasks,
            MaxMembers, Name, OwnerId, ProjectId, RequireReview, StartedAt, Status, StoppedAt,
            UpdatedAt, Version,
        };
        FieldsOf::new()
            .by_id("circle")
            .all("circles", |list| {
                let order = list.get("orderBy")?;
                Self::list(list.viewer, list.get("filter")?, order, &list.page)
            })
            .columns([Name, DisplayName, Status, RequireReview, AutoRoute])
            .columns([MaxMembers, MaxConcurrentTasks, StartedAt, StoppedAt])
            .columns([ArchivedAt, CreatedAt, UpdatedAt, Version])
            .texts([Description])
            .one::<User>("owner", OwnerId)
            .one::<Project>("project", ProjectId)
            .list("members", |list| {
                let filter = MemberFilter::of_active(list.get("filter")?)?;
                Self::list_members(list.parent, list.viewer, filter, &list.page)
            })
            .list("collaborators", |list| {
                Self::list_collaborators(list.parent, &list.page)
            })
            .list("tasks", |list| {
                let (filter, order) = (list.get("filter")?, list.get("orderBy")?);
                Self::list_tasks(list.parent, filter, order, &list.page)
            })
            .list("conversations", |list| {
                Self::list_conversations(list.parent, list.get("filter")?, &list.page)
            })
    }
}

impl Circle {
    fn list(
        viewer: &Viewer,
        filter: Option<CircleFilter>,
        order: Option<NamedOrder>,
        page: &Page,
    ) -> Result<Connection<Self>, Error> {
        let condition = Condition::all()
            .add(viewer.circles())
            .add(CircleFilter::condition(filter, viewer)?);
        Connection::new(condition, Self::order(order), page)
    }

    fn list_members(
        circle: Uuid,
        viewer: &Viewer,
        filter: Option<MemberFilter>,
        page: &Page,
    ) -> Result<Connection<CircleMembers>, Error> {
        let condition = MemberFilter::condition(filter, viewer);
        let order = Order::ascending([member::Column::JoinedAt, member::Column::Id]);
        Connection::of(member::Column::CircleId, circle, condition, order, page)
    }

    fn list_collaborators(
        circle: Uuid,
        page: &Page,
    ) -> Result<Connection<CircleCollaborators>, Error> {
        let order = Order::descending([collaborator::Column::Id]);
        let column = collaborator::Column::CircleId;
        Connection::of(column, circle, Condition::all(), order, page)
    }

    fn list_tasks(
        circle: Uuid,
        filter: Option<TaskFilter>,
        order: Option<TaskOrder>,
        page: &Page,
    ) -> Result<Connection<Task>, Error> {
        let condition = TaskFilter::condition(filter)?;
        Connection::of(
            task::Column::CircleId,
            circle,
            condition,
            Task::order(order),
            page,
        )
    }

    fn list_conversations(
        circle: Uuid,
        filter: Option<ConversationFilter>,
        page: &Page,
    ) -> Result<Connection<Conversation>, Error> {
        let condition = ConversationFilter::condition(filter)?;
        let order = Order::descending([conversation::Column::Id]);
        Connection::of(
            conversation::Column::CircleId,
            circle,
            condition,
            order,
            page,
        )
    }

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
        let status = filter.status.map(|status| {
            circle::Column::Status.is_in(crate::db::distinct(
                status.into_iter().map(circle::CircleStatus::from),
            ))
        });
        let project = Kind::Project.parse_opt(filter.project_id.as_ref(), "projectId")?;
        Ok(Condition::all()
            .add_option(status)
            .add_option(project.map(|id| circle::Column::ProjectId.eq(id)))
            .add_option(filter.access.map(|access| with_access(&access, viewer)))
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
        by_id(ctx, &id).await
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
        let page = Page::new(first, after, last, before)?;
        Circle::list(ctx.request().viewer()?, filter, order_by, &page)
    }
}
