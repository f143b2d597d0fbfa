//! Projects: what circles work for.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, connection::EmptyFields};
use gathering_entity::{circle, event, project, user};
use sea_orm::{ColumnTrait, Condition, sea_query::Expr};

use crate::{
    circle::{CircleFilter, Circles},
    ctx::Door,
    error::Error,
    event::{EventFilter, Events},
    id::Kind,
    order::{NamedOrder, NamedOrderField},
    page::{Connection, Listed, Order, Page},
    scalar::DateTime,
    text,
    user::User,
};

/// Whether a project is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "project::ProjectStatus")]
pub enum ProjectStatus {
    /// Worked on.
    Active,
    /// Put away; its name is free again.
    Archived,
}

/// What circles work for.
pub struct Project(pub(crate) Arc<project::Model>);

/// What circles work for. Read by its owner, by readers of a circle linked to it, and by administrators.
#[Object]
impl Project {
    /// The id of the project, `project_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Project.id(self.0.id)
    }

    /// Who owns it.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.owner_id).await?;
        row.map(User::new).ok_or_else(|| Error::not_found("owner"))
    }

    /// The name, unique among its owner's active projects; at most 200 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is about, at most 10,000 characters.
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }

    /// Where its sources are kept, an http or https address.
    async fn repository_url(&self) -> Option<&str> {
        self.0.repository_url.as_deref()
    }

    /// The branch that work starts from, at most 100 characters.
    async fn default_branch(&self) -> &str {
        &self.0.default_branch
    }

    /// Whether it is worked on.
    async fn status(&self) -> ProjectStatus {
        self.0.status.into()
    }

    /// The technologies it uses; at most 50.
    async fn tech_stack(&self) -> &[String] {
        &self.0.tech_stack.0
    }

    /// The programming languages it uses; at most 50.
    async fn languages(&self) -> &[String] {
        &self.0.languages.0
    }

    /// The frameworks it uses; at most 50.
    async fn frameworks(&self) -> &[String] {
        &self.0.frameworks.0
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// The circles that work for it, as far as the viewer may read them; newest first unless `orderBy` says otherwise.
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
        Connection::of(
            circle::Column::ProjectId,
            self.0.id,
            Condition::all()
                .add(viewer.circles())
                .add(CircleFilter::condition(filter, viewer)?),
            Circles::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }

    /// What happened in it, as far as the viewer may read it; newest first.
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
            event::Column::ProjectId,
            self.0.id,
            filter,
            &Page::new(first, after, last, before)?,
        )
    }
}

/// Projects as a list.
pub struct Projects;

impl Listed for Projects {
    type Entity = project::Entity;
    type Node = Project;
    type Extra = EmptyFields;
    const NAME: &'static str = "Project";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<project::Model>],
    ) -> Result<Vec<Option<Project>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Project(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<project::Model>) -> EmptyFields {
        EmptyFields
    }
}

impl Projects {
    fn order(by: Option<NamedOrder>) -> Order<project::Column> {
        use project::Column::{Id, NameKey, UpdatedAt};
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

/// Narrows a list of projects. All given conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct ProjectFilter {
    /// Only projects in one of these states.
    status: Option<Vec<ProjectStatus>>,
    /// Only projects whose name contains this text, whatever its case; at most 100 characters.
    search: Option<String>,
}

impl ProjectFilter {
    fn condition(self) -> Result<Condition, Error> {
        let status = self.status.map(|status| {
            project::Column::Status.is_in(status.into_iter().map(project::ProjectStatus::from))
        });
        Ok(Condition::all().add_option(status).add_option(
            self.search
                .map(|search| {
                    text::contains(Expr::col(project::Column::NameKey.as_column_ref()), &search)
                })
                .transpose()?,
        ))
    }
}

/// Queries about projects.
#[derive(Default)]
pub struct ProjectQuery;

#[Object]
impl ProjectQuery {
    /// The project with this id.
    async fn project(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Project>, Error> {
        let rule = &ctx.request().viewer()?.rules().project;
        let row = ctx
            .request()
            .look_up::<project::Entity>(Kind::Project, rule, &id)
            .await?;
        Ok(Some(Project(row)))
    }

    /// The projects that the viewer may read, newest first unless `orderBy` says otherwise.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is an argument of the GraphQL field"
    )]
    async fn projects(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ProjectFilter>,
        order_by: Option<NamedOrder>,
    ) -> Result<Connection<Projects>, Error> {
        let condition = filter
            .map(ProjectFilter::condition)
            .transpose()?
            .unwrap_or_else(Condition::all);
        Connection::new(
            Condition::all()
                .add(ctx.request().viewer()?.projects())
                .add(condition),
            Projects::order(order_by),
            &Page::new(first, after, last, before)?,
        )
    }
}
