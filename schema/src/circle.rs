//! Circles: teams of agents.

use std::sync::Arc;

use async_graphql::{
    Context, Enum, ID, InputObject, Object, SimpleObject, connection::EmptyFields,
};
use futures_util::future::try_join_all;
use gathering_entity::{circle, collaborator, conversation, event, member, project, task, user};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, FromQueryResult, QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, Func},
};

use uuid::Uuid;

use crate::{
    conversation::{ConversationFilter, Conversations},
    ctx::Door,
    error::Error,
    event::{EventFilter, Events},
    id::Kind,
    member::{CircleMembers, MemberFilter},
    order::{NamedOrder, NamedOrderField},
    page::{Connection, Listed, Order, Page},
    project::Project,
    read::{Keyed, Rule, Totals, count_where},
    scalar::DateTime,
    task::{TaskFilter, TaskOrder, Tasks},
    text,
    user::User,
    user_error::UserError,
    viewer::Viewer,
    write::Change,
};

/// Where a circle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "circle::CircleStatus")]
pub enum CircleStatus {
    /// Made, not yet started.
    Created,
    /// At work: tasks are routed by themselves where the circle routes.
    Running,
    /// No new work is routed; work in hand goes on.
    Paused,
    /// Work has ended; it may be started again.
    Stopped,
    /// Put away: it can only be read, restored or deleted, and its name is free again.
    Archived,
}

/// What someone with whom a circle is shared may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "collaborator::CollaboratorRole")]
pub enum CollaboratorRole {
    /// Reads the circle and everything in it.
    Viewer,
    /// Also changes members, tasks and conversations, and starts, pauses and stops the circle.
    Editor,
}

/// What a user may do with a circle, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Enum)]
pub enum Access {
    /// Reads the circle and everything in it.
    Viewer,
    /// Also changes members, tasks and conversations, and starts, pauses and stops the circle.
    Editor,
    /// Also renames, shares, archives and deletes the circle.
    Owner,
    /// May do all of it everywhere.
    Admin,
}

/// A team of agents.
pub struct Circle(pub(crate) Arc<circle::Model>);

/// A team of agents with rules for routing and reviewing work. Read by its owner, by those it is shared with, and by
/// administrators.
#[Object]
impl Circle {
    /// The id of the circle, `circle_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Circle.id(self.0.id)
    }

    /// Who owns it.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.owner_id).await?;
        row.map(User::new).ok_or_else(|| Error::not_found("owner"))
    }

    /// The project it works for.
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

    /// A longer name shown to people, at most 200 characters.
    async fn display_name(&self) -> Option<&str> {
        self.0.display_name.as_deref()
    }

    /// What it is for, at most 10,000 characters.
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }

    /// Where it stands.
    async fn status(&self) -> CircleStatus {
        self.0.status.into()
    }

    /// What the viewer may do with it.
    async fn viewer_access(&self, ctx: &Context<'_>) -> Result<Access, Error> {
        let viewer = ctx.request().viewer()?;
        if viewer.is_admin() {
            return Ok(Access::Admin);
        }
        if viewer.id() == self.0.owner_id {
            return Ok(Access::Owner);
        }
        let mine = Rule::new(Condition::all().add(collaborator::Column::UserId.eq(viewer.id())));
        let share = Keyed::<collaborator::Entity>::by(collaborator::Column::CircleId, mine);
        let share = ctx.request().load(share, self.0.id).await?;
        match share.map(|share| share.role) {
            Some(collaborator::CollaboratorRole::Editor) => Ok(Access::Editor),
            Some(collaborator::CollaboratorRole::Viewer) => Ok(Access::Viewer),
            None => Err(Error::not_found("viewerAccess")),
        }
    }

    /// Whether its tasks are reviewed unless they say otherwise.
    async fn require_review(&self) -> bool {
        self.0.require_review
    }

    /// Whether its tasks find their agents by themselves while it runs.
    async fn auto_route(&self) -> bool {
        self.0.auto_route
    }

    /// How many active members it may have, from 1 to 500.
    async fn max_members(&self) -> i32 {
        self.0.max_members
    }

    /// How many of its tasks may be in hand before no more are routed, from 1 to 100.
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

    /// When it was put away.
    async fn archived_at(&self) -> Option<DateTime> {
        self.0.archived_at.map(DateTime)
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

    /// How its work stands.
    async fn metrics(&self, ctx: &Context<'_>) -> Result<CircleMetrics, Error> {
        CircleMetrics::load(ctx, self.0.id).await
    }

    /// Its members, in the order in which they joined; those who left only when the filter includes them.
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

    /// Its tasks, newest first unless `orderBy` says otherwise.
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
        ctx.request().viewer()?;
        Connection::of(
            task::Column::CircleId,
            self.0.id,
            TaskFilter::condition(filter)?,
            Tasks::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }

    /// Its conversations, newest first.
    async fn conversations(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ConversationFilter>,
    ) -> Result<Connection<Conversations>, Error> {
        Connection::of(
            conversation::Column::CircleId,
            self.0.id,
            ConversationFilter::condition(filter)?,
            Order::descending([conversation::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }

    /// What happened in it, newest first.
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
            event::Column::CircleId,
            self.0.id,
            filter,
            &Page::new(first, after, last, before)?,
        )
    }
}

/// How the work of a circle stands.
#[derive(Clone, Debug, Default, FromQueryResult, SimpleObject)]
pub struct CircleMetrics {
    /// Tasks that are PENDING, ASSIGNED, `IN_PROGRESS`, `CHANGES_REQUESTED` or BLOCKED.
    open_tasks: i64,
    /// Tasks that wait for a review.
    in_review_tasks: i64,
    /// Tasks that are done.
    completed_tasks: i64,
    /// Tasks that were given up.
    failed_tasks: i64,
    /// Mean time in seconds from the first start of a completed task to its completion; null without any.
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

/// Circles as a list.
pub struct Circles;

impl Listed for Circles {
    type Entity = circle::Entity;
    type Node = Circle;
    type Extra = EmptyFields;
    const NAME: &'static str = "Circle";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<circle::Model>],
    ) -> Result<Vec<Option<Circle>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Circle(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<circle::Model>) -> EmptyFields {
        EmptyFields
    }
}

impl Circles {
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

/// The users with whom a circle is shared, as a list.
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

/// What an edge to a collaborator says of the share.
#[derive(SimpleObject)]
pub struct Collaboration {
    /// What the user may do.
    role: CollaboratorRole,
    /// Since when the circle is shared with the user.
    added_at: DateTime,
}

/// Narrows a list of circles. All given conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct CircleFilter {
    /// Only circles in one of these states.
    status: Option<Vec<CircleStatus>>,
    /// Only circles that work for this project.
    project_id: Option<ID>,
    /// Only circles with which the viewer may do just this.
    access: Option<Vec<Access>>,
    /// Only circles whose name contains this text, whatever its case; at most 100 characters.
    search: Option<String>,
}

impl CircleFilter {
    pub(crate) fn condition(filter: Option<Self>, viewer: &Viewer) -> Result<Condition, Error> {
        let Some(filter) = filter else {
            return Ok(Condition::all());
        };
        let status = filter.status.map(|status| {
            circle::Column::Status.is_in(status.into_iter().map(circle::CircleStatus::from))
        });
        let project = Kind::Project.parse_opt(filter.project_id.as_ref(), "projectId")?;
        Ok(Condition::all()
            .add_option(status)
            .add_option(project.map(|id| circle::Column::ProjectId.eq(id)))
            .add_option(filter.access.map(|access| accessible(&access, viewer)))
            .add_option(
                filter
                    .search
                    .map(|search| {
                        text::contains(Expr::col(circle::Column::NameKey.as_column_ref()), &search)
                    })
                    .transpose()?,
            ))
    }
}

/// Circles with which the viewer may do just one of these.
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
        // Keeps an empty list from matching everything.
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
    /// A circle with which the viewer may do at least this much. Nobody else changes it, or anything in it, until this
    /// change is done: whatever is changed in a circle takes its circle first.
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
        let access = match share.map(|share| share.role) {
            Some(collaborator::CollaboratorRole::Editor) => Access::Editor,
            Some(collaborator::CollaboratorRole::Viewer) => Access::Viewer,
            None => return Err(Error::not_found(field)),
        };
        if access >= least {
            Ok(row)
        } else {
            Err(self.forbidden(Kind::Circle, id))
        }
    }
}

/// What is in a circle that was put away stays as it is.
pub(crate) fn check_open(circle: &circle::Model) -> Result<(), UserError> {
    if circle.status == circle::CircleStatus::Archived {
        return Err(UserError::bad_transition(
            "Nothing in an ARCHIVED circle can be changed. Restore the circle first.",
        ));
    }
    Ok(())
}

/// Queries about circles.
#[derive(Default)]
pub struct CircleQuery;

#[Object]
impl CircleQuery {
    /// The circle with this id.
    async fn circle(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Circle>, Error> {
        let rule = &ctx.request().viewer()?.rules().circle;
        let row = ctx
            .request()
            .look_up::<circle::Entity>(Kind::Circle, rule, &id)
            .await?;
        Ok(Some(Circle(row)))
    }

    /// The circles that the viewer may read, newest first unless `orderBy` says otherwise.
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
    ) -> Result<Connection<Circles>, Error> {
        let viewer = ctx.request().viewer()?;
        Connection::new(
            Condition::all()
                .add(viewer.circles())
                .add(CircleFilter::condition(filter, viewer)?),
            Circles::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }
}
