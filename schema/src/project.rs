//! Projects: what circles work for.

use std::sync::Arc;

use async_graphql::{
    Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject, connection::EmptyFields,
};
use gathering_entity::{circle, event, project, user};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, ModelTrait, Set,
    sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    circle::{CircleFilter, Circles},
    data::{
        Change, Connection, Edits, Listed, NamedOrder, NamedOrderField, Order, Outcome, Page,
        change,
    },
    db::is_taken,
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    event::{EventFilter, Events},
    events::NewEvent,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::DateTime,
    user::User,
};

/// Most characters of a project's name.
const MAX_NAME: usize = 200;
/// Most characters of its description.
const MAX_DESCRIPTION: usize = 10_000;
/// Most characters of the name of a branch.
const MAX_BRANCH: usize = 100;
/// Most entries of each of its lists, and most characters of an entry.
const MAX_LIST: usize = 50;
const MAX_ENTRY: usize = 100;

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
    async fn description(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.description.as_deref())
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
    async fn tech_stack(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.tech_stack.0.as_slice())
    }

    /// The programming languages it uses; at most 50.
    async fn languages(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.languages.0.as_slice())
    }

    /// The frameworks it uses; at most 50.
    async fn frameworks(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.frameworks.0.as_slice())
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
            project::Column::Status.is_in(crate::db::distinct(
                status.into_iter().map(project::ProjectStatus::from),
            ))
        });
        Ok(Condition::all().add_option(status).add_option(
            self.search
                .map(|search| {
                    crate::db::contains(
                        Expr::col(project::Column::NameKey.as_column_ref()),
                        &search,
                    )
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

/// The outcome of a change of a project.
#[derive(SimpleObject)]
pub struct ProjectPayload {
    /// The project as it is now; null when there is none to show.
    project: Option<Project>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

impl ProjectPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            project: outcome.row::<project::Entity>(ctx).await?.map(Project),
            user_errors: outcome.errors,
        })
    }
}

/// A project that is to be made.
#[derive(InputObject)]
pub struct CreateProjectInput {
    /// The name, 1 to 200 characters, unique among the user's active projects.
    name: String,
    /// What it is about, at most 10,000 characters.
    description: Option<String>,
    /// Where its sources are kept, an http or https address without a user name.
    repository_url: Option<String>,
    /// The branch that work starts from, 1 to 100 characters.
    #[graphql(default = "main")]
    default_branch: String,
    /// The technologies it uses; at most 50, of at most 100 characters.
    tech_stack: Option<Vec<String>>,
    /// The programming languages it uses; at most 50, of at most 100 characters.
    languages: Option<Vec<String>>,
    /// The frameworks it uses; at most 50, of at most 100 characters.
    frameworks: Option<Vec<String>>,
}

/// What is to be different about a project. Fields that are left out stay as they are; null clears what may be empty.
#[derive(InputObject)]
pub struct UpdateProjectInput {
    /// The project.
    project_id: ID,
    /// The name, 1 to 200 characters, unique among its owner's active projects.
    name: MaybeUndefined<String>,
    /// What it is about, at most 10,000 characters.
    description: MaybeUndefined<String>,
    /// Where its sources are kept, an http or https address without a user name.
    repository_url: MaybeUndefined<String>,
    /// The branch that work starts from, 1 to 100 characters.
    default_branch: MaybeUndefined<String>,
    /// The technologies it uses; at most 50, of at most 100 characters.
    tech_stack: MaybeUndefined<Vec<String>>,
    /// The programming languages it uses; at most 50, of at most 100 characters.
    languages: MaybeUndefined<Vec<String>>,
    /// The frameworks it uses; at most 50, of at most 100 characters.
    frameworks: MaybeUndefined<Vec<String>>,
    /// Whether it is worked on.
    status: MaybeUndefined<ProjectStatus>,
}

/// Changes of projects.
#[derive(Default)]
pub struct ProjectMutation;

#[Object]
impl ProjectMutation {
    /// Makes a project of the signed-in user. Codes of `userErrors` beside those of the input: `TAKEN` for the name.
    async fn create_project(
        &self,
        ctx: &Context<'_>,
        input: CreateProjectInput,
    ) -> Result<ProjectPayload, Error> {
        let id = Uuid::now_v7();
        let outcome = change(ctx, async |mut change| {
            let mut check = Check::default();
            let (name, name_key) = check.name("name", &input.name, MAX_NAME);
            let mut list = |field, values: &Option<Vec<String>>| {
                check.list(
                    field,
                    values.as_deref().unwrap_or_default(),
                    MAX_LIST,
                    MAX_ENTRY,
                )
            };
            let (tech_stack, languages, frameworks) = (
                list("techStack", &input.tech_stack),
                list("languages", &input.languages),
                list("frameworks", &input.frameworks),
            );
            let row = project::Model {
                id,
                created_at: change.now,
                updated_at: change.now,
                owner_id: change.viewer.id(),
                name,
                name_key,
                description: check.optional_text(
                    "description",
                    input.description.as_deref(),
                    MAX_DESCRIPTION,
                ),
                repository_url: check.url("repositoryUrl", input.repository_url.as_deref()),
                default_branch: check.line("defaultBranch", &input.default_branch, MAX_BRANCH),
                tech_stack,
                languages,
                frameworks,
                status: project::ProjectStatus::Active,
            };
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            let insert = project::Entity::insert(row.clone().into_active_model());
            match insert.exec_without_returning(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    return Ok(Outcome::fault(None, name_taken()));
                }
                done => done?,
            };
            change.append(fact("project.created", &row, &[]));
            change.commit(vec![id]).await
        });
        ProjectPayload::new(ctx, outcome.await?).await
    }

    /// Changes a project. For its owner and administrators. Codes of `userErrors` beside those of the input: `TAKEN` for
    /// the name.
    async fn update_project(
        &self,
        ctx: &Context<'_>,
        input: UpdateProjectInput,
    ) -> Result<ProjectPayload, Error> {
        let id = Kind::Project.parse(&input.project_id, "projectId")?;
        let outcome = change(ctx, async |mut change| {
            let row = change.project(id, "projectId").await?;
            let mut check = Check::default();
            let name = check.if_given("name", &input.name);
            let name = name.map(|name| check.name("name", name, MAX_NAME));
            let (name, name_key) = name.unzip();
            let branch = check.if_given("defaultBranch", &input.default_branch);
            let branch = branch.map(|branch| check.line("defaultBranch", branch, MAX_BRANCH));
            let description = input.description.as_opt_deref();
            let description =
                description.map(|value| check.optional_text("description", value, MAX_DESCRIPTION));
            let repository = input.repository_url.as_opt_deref();
            let repository = repository.map(|value| check.url("repositoryUrl", value));
            let status = check.if_given("status", &input.status).copied();
            let mut list = |field, values: &MaybeUndefined<Vec<String>>| {
                let values = values.as_opt_deref()?.unwrap_or_default();
                Some(check.list(field, values, MAX_LIST, MAX_ENTRY))
            };
            let (tech_stack, languages, frameworks) = (
                list("techStack", &input.tech_stack),
                list("languages", &input.languages),
                list("frameworks", &input.frameworks),
            );
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            let mut new = row.into_active_model();
            let mut edits = Edits::default();
            edits.set("name", &mut new.name, name);
            if let Some(key) = name_key {
                new.name_key = Set(key);
            }
            edits.set("description", &mut new.description, description);
            edits.set("repositoryUrl", &mut new.repository_url, repository);
            edits.set("defaultBranch", &mut new.default_branch, branch);
            edits.set("techStack", &mut new.tech_stack, tech_stack);
            edits.set("languages", &mut new.languages, languages);
            edits.set("frameworks", &mut new.frameworks, frameworks);
            edits.set("status", &mut new.status, status.map(Into::into));
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = match new.update(&change.transaction).await {
                    Err(error) if is_taken(&error) => {
                        return Ok(Outcome::fault(Some(id), name_taken()));
                    }
                    done => done?,
                };
                change.append(fact("project.updated", &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        ProjectPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a project; its circles stay, without a project. For its owner and administrators.
    async fn delete_project(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Project.parse(&input.id, "id")?;
        let outcome = change(ctx, async |mut change| {
            let row = change.project(id, "id").await?;
            change.append(fact("project.deleted", &row, &[]));
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Project, id, outcome.await?).await
    }
}

impl Change<'_> {
    /// A project that the viewer may change.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
    pub(crate) async fn project(&self, id: Uuid, field: &str) -> Result<project::Model, Error> {
        let rule = &self.viewer.rules().project;
        let row = self.row::<project::Entity>(rule, id, field).await?;
        if self.viewer.is_admin() || row.owner_id == self.viewer.id() {
            Ok(row)
        } else {
            Err(self.forbidden(Kind::Project, id))
        }
    }
}

fn name_taken() -> UserError {
    let message = "Another of the owner's active projects has this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

fn fact(kind: &'static str, row: &project::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "name": row.name, "changed": changed, "updatedAt": row.updated_at });
    NewEvent::new(kind, row.id, payload)
        .owner(row.owner_id)
        .project(row.id)
}
