//! Projects that circles work on.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{List, circle, event, project, user};
use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, Condition, EntityTrait, IntoActiveModel,
    ModelTrait, QueryFilter, QuerySelect, QueryTrait, Set, TryIntoModel, sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    access::Viewer,
    circle::{Circle, CircleFilter},
    data::{
        Change, Connection, Edits, FieldsOf, NamedOrder, NamedOrderField, Noun, Order, Outcome,
        Page, Stop, by_id, change, unique,
    },
    db::{Rule, contains, is_one_of},
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    event::{EventDetails, EventFilter, Events, Payload, user_in},
    events::{EventType, NewEvent},
    id::Kind,
    input::{Check, UserError, UserErrorCode, entries},
    request::RequestExt,
    scalar::DateTime,
    user::User,
};

/// Maximum length of a project's name, in characters.
const MAX_NAME: usize = 200;
/// Maximum length of a description, in characters.
const MAX_DESCRIPTION: usize = 10_000;
/// Maximum length of a branch name, in characters.
const MAX_BRANCH: usize = 100;
/// Maximum number of entries of a list field, and maximum length of an entry in characters.
const MAX_LIST: usize = 50;
const MAX_ENTRY: usize = 100;

/// The status of a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "project::ProjectStatus")]
pub enum ProjectStatus {
    /// Active: not archived.
    Active,
    /// Archived. Its name may be reused.
    Archived,
}

/// A project that circles work on.
pub struct Project(pub(crate) Arc<project::Model>);

/// A project that circles work on. Visible to its owner, to readers of a linked circle, and to administrators.
#[Object]
impl Project {
    /// The id of the project, `project_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Project.id(self.0.id)
    }

    /// The owner.
    async fn owner(&self, ctx: &Context<'_>) -> Result<User, Error> {
        let row = ctx.request().row::<user::Entity>(self.0.owner_id).await?;
        row.map(User::new).ok_or_else(|| Error::not_found("owner"))
    }

    /// The name, unique among its owner's active projects; at most 200 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The description, at most 10,000 characters.
    async fn description(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.description.as_deref())
    }

    /// The http or https URL of the source repository.
    async fn repository_url(&self) -> Option<&str> {
        self.0.repository_url.as_deref()
    }

    /// The default branch, at most 100 characters.
    async fn default_branch(&self) -> &str {
        &self.0.default_branch
    }

    /// The status.
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

    /// When it was created.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// The linked circles that the caller may read, newest first unless `orderBy` is set.
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
        Self::list_circles(self.0.id, ctx.request().viewer()?, filter, order_by, &page)
    }

    /// The events of the project that the caller may read, newest first.
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

impl From<Arc<project::Model>> for Project {
    fn from(row: Arc<project::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Project {
    type Entity = project::Entity;
    const KIND: Kind = Kind::Project;
    const NAME: &'static str = "Project";

    fn readable(viewer: &Viewer) -> Option<Rule> {
        Some(viewer.rules().project.clone())
    }

    fn fields() -> FieldsOf<Self> {
        use project::Column::{
            CreatedAt, DefaultBranch, Description, Frameworks, Languages, Name, OwnerId,
            RepositoryUrl, Status, TechStack, UpdatedAt,
        };
        FieldsOf::new()
            .by_id("project")
            .all("projects", |list| {
                let order = list.get("orderBy")?;
                Self::list(list.viewer, list.get("filter")?, order, &list.page)
            })
            .columns([
                Name,
                RepositoryUrl,
                DefaultBranch,
                Status,
                CreatedAt,
                UpdatedAt,
            ])
            .texts([Description, TechStack, Languages, Frameworks])
            .one::<User>("owner", OwnerId)
            .list("circles", |list| {
                let (filter, order) = (list.get("filter")?, list.get("orderBy")?);
                Self::list_circles(list.parent, list.viewer, filter, order, &list.page)
            })
    }
}

impl Project {
    fn list(
        viewer: &Viewer,
        filter: Option<ProjectFilter>,
        order: Option<NamedOrder>,
        page: &Page,
    ) -> Result<Connection<Self>, Error> {
        let filter = filter.map(ProjectFilter::condition).transpose()?;
        let condition = Condition::all()
            .add(viewer.projects())
            .add(filter.unwrap_or_else(Condition::all));
        Connection::new(condition, Self::order(order), page)
    }

    fn list_circles(
        project: Uuid,
        viewer: &Viewer,
        filter: Option<CircleFilter>,
        order: Option<NamedOrder>,
        page: &Page,
    ) -> Result<Connection<Circle>, Error> {
        let condition = Condition::all()
            .add(viewer.circles())
            .add(CircleFilter::condition(filter, viewer)?);
        Connection::of(
            circle::Column::ProjectId,
            project,
            condition,
            Circle::order(order),
            page,
        )
    }

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

/// Filters a list of projects. All conditions must hold; an empty list matches nothing.
#[derive(InputObject)]
pub struct ProjectFilter {
    /// Only projects with one of these statuses.
    status: Option<Vec<ProjectStatus>>,
    /// Only projects whose name contains this text, ignoring case; at most 100 characters.
    search: Option<String>,
}

impl ProjectFilter {
    fn condition(self) -> Result<Condition, Error> {
        let status = self
            .status
            .map(|list| is_one_of::<project::ProjectStatus>(project::Column::Status, list));
        Ok(Condition::all().add_option(status).add_option(
            self.search
                .map(|search| {
                    contains(Expr::col(project::Column::NameKey.as_column_ref()), &search)
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
        by_id(ctx, &id).await
    }

    /// The projects that the caller may read, newest first unless `orderBy` is set.
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
    ) -> Result<Connection<Project>, Error> {
        let page = Page::new(first, after, last, before)?;
        Project::list(ctx.request().viewer()?, filter, order_by, &page)
    }
}

/// Payload of `createProject` and `updateProject`.
#[derive(SimpleObject)]
pub struct ProjectPayload {
    /// The project in its current state; null if there is none.
    project: Option<Project>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl ProjectPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            project: outcome.row::<Project>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `createProject`.
#[derive(InputObject)]
pub struct CreateProjectInput {
    /// The name, 1 to 200 characters, unique among the caller's active projects.
    name: String,
    /// The description, at most 10,000 characters.
    description: Option<String>,
    /// The http or https URL of the source repository, without a user name.
    repository_url: Option<String>,
    /// The default branch, 1 to 100 characters.
    #[graphql(default = "main")]
    default_branch: String,
    /// The technologies it uses; at most 50, each of at most 100 characters.
    tech_stack: Option<Vec<String>>,
    /// The programming languages it uses; at most 50, each of at most 100 characters.
    languages: Option<Vec<String>>,
    /// The frameworks it uses; at most 50, each of at most 100 characters.
    frameworks: Option<Vec<String>>,
}

/// Input for `updateProject`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateProjectInput {
    /// The id of the project.
    project_id: ID,
    #[graphql(flatten)]
    fields: ProjectFields,
}

/// The fields that can be created and updated. An undefined field keeps its value.
#[derive(InputObject)]
struct ProjectFields {
    /// The name, 1 to 200 characters, unique among its owner's active projects.
    name: MaybeUndefined<String>,
    /// The description, at most 10,000 characters.
    description: MaybeUndefined<String>,
    /// The http or https URL of the source repository, without a user name.
    repository_url: MaybeUndefined<String>,
    /// The default branch, 1 to 100 characters.
    default_branch: MaybeUndefined<String>,
    /// The technologies it uses; at most 50, each of at most 100 characters.
    tech_stack: MaybeUndefined<Vec<String>>,
    /// The programming languages it uses; at most 50, each of at most 100 characters.
    languages: MaybeUndefined<Vec<String>>,
    /// The frameworks it uses; at most 50, each of at most 100 characters.
    frameworks: MaybeUndefined<Vec<String>>,
    /// The status.
    status: MaybeUndefined<ProjectStatus>,
}

impl From<CreateProjectInput> for ProjectFields {
    fn from(input: CreateProjectInput) -> Self {
        Self {
            name: MaybeUndefined::Value(input.name),
            description: Some(input.description).into(),
            repository_url: Some(input.repository_url).into(),
            default_branch: MaybeUndefined::Value(input.default_branch),
            tech_stack: Some(input.tech_stack).into(),
            languages: Some(input.languages).into(),
            frameworks: Some(input.frameworks).into(),
            status: MaybeUndefined::Value(ProjectStatus::Active),
        }
    }
}

impl ProjectFields {
    /// Applies the fields to the row, and collects the errors of the input.
    fn apply(&self, new: &mut project::ActiveModel, check: &mut Check, edits: &mut Edits) {
        let name = check.if_given("name", &self.name);
        let name = name.map(|name| check.name("name", name, MAX_NAME));
        let (name, name_key) = name.unzip();
        edits.set("name", &mut new.name, name);
        if let Some(key) = name_key {
            new.name_key = Set(key);
        }
        let description = self.description.as_opt_deref();
        let description =
            description.map(|value| check.optional_text("description", value, MAX_DESCRIPTION));
        edits.set("description", &mut new.description, description);
        let repository = self.repository_url.as_opt_deref();
        let repository = repository.map(|value| check.url("repositoryUrl", value));
        edits.set("repositoryUrl", &mut new.repository_url, repository);
        let branch = check.if_given("defaultBranch", &self.default_branch);
        let branch = branch.map(|branch| check.line("defaultBranch", branch, MAX_BRANCH));
        edits.set("defaultBranch", &mut new.default_branch, branch);
        let mut list =
            |field, values: &MaybeUndefined<Vec<String>>, column: &mut ActiveValue<List>| {
                let values = entries(values);
                let values = values.map(|values| check.list(field, values, MAX_LIST, MAX_ENTRY));
                edits.set(field, column, values);
            };
        list("techStack", &self.tech_stack, &mut new.tech_stack);
        list("languages", &self.languages, &mut new.languages);
        list("frameworks", &self.frameworks, &mut new.frameworks);
        let status = check.if_given("status", &self.status).copied();
        edits.set("status", &mut new.status, status.map(Into::into));
    }
}

/// Mutations of projects.
#[derive(Default)]
pub struct ProjectMutation;

#[Object]
impl ProjectMutation {
    /// Creates a project owned by the caller. `userErrors`: validation codes, and `TAKEN` for the name.
    async fn create_project(
        &self,
        ctx: &Context<'_>,
        input: CreateProjectInput,
    ) -> Result<ProjectPayload, Error> {
        let id = Uuid::now_v7();
        let fields = ProjectFields::from(input);
        let outcome = change(ctx, None, async |mut change| {
            let mut new = project::ActiveModel {
                id: Set(id),
                created_at: Set(change.now),
                updated_at: Set(change.now),
                owner_id: Set(change.viewer.id()),
                ..Default::default()
            };
            let mut check = Check::default();
            fields.apply(&mut new, &mut check, &mut Edits::default());
            check.faults()?;
            let row = new.try_into_model()?;
            let insert = project::Entity::insert(row.clone().into_active_model());
            let inserted = insert.exec_without_returning(&change.transaction).await;
            unique(inserted, name_taken)?;
            change.append(changed(EventType::ProjectCreated, &row, &[]));
            change.commit(vec![id]).await
        });
        ProjectPayload::new(ctx, outcome.await?).await
    }

    /// Updates a project. For its owner and administrators. `userErrors`: validation codes, and `TAKEN` for the name.
    async fn update_project(
        &self,
        ctx: &Context<'_>,
        input: UpdateProjectInput,
    ) -> Result<ProjectPayload, Error> {
        let id = Kind::Project.parse(&input.project_id, "projectId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let row = editable(&change, id, "projectId").await?;
            let mut new = row.into_active_model();
            let (mut check, mut edits) = (Check::default(), Edits::default());
            input.fields.apply(&mut new, &mut check, &mut edits);
            check.faults()?;
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = unique(new.update(&change.transaction).await, name_taken)?;
                change.append(changed(EventType::ProjectUpdated, &row, edits.names()));
            }
            change.commit(vec![id]).await
        });
        ProjectPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a project. Its circles are kept without a project. For its owner and administrators.
    async fn delete_project(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Project.parse(&input.id, "id")?;
        let outcome = change(ctx, None, async |mut change| {
            let row = editable(&change, id, "id").await?;
            delete(&mut change, row).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Project, id, outcome.await?).await
    }
}

/// Deletes a project, whose row must be locked. Its circles are kept without a project.
pub(crate) async fn delete(change: &mut Change<'_>, row: project::Model) -> Result<(), Error> {
    change.append(changed(EventType::ProjectDeleted, &row, &[]));
    row.delete(&change.transaction).await?;
    Ok(())
}

/// Loads a project that the viewer may change.
///
/// # Errors
/// `NOT_FOUND`, naming `field`; `FORBIDDEN`.
pub(crate) async fn editable(
    change: &Change<'_>,
    id: Uuid,
    field: &str,
) -> Result<project::Model, Error> {
    let rule = &change.viewer.rules().project;
    let row = change.row::<project::Entity>(rule, id, field).await?;
    check_owner(change, id, row.owner_id)?;
    Ok(row)
}

/// The owner of a project that the viewer may read, as a column; NULL if there is none.
pub(crate) fn owner(viewer: &Viewer, id: Uuid) -> Expr {
    let owner = project::Entity::find_by_id(id)
        .select_only()
        .column(project::Column::OwnerId)
        .filter(viewer.rules().project.condition());
    Expr::from(owner.into_query())
}

/// Checks that the viewer may change a project of this owner.
///
/// # Errors
/// `FORBIDDEN`.
pub(crate) fn check_owner<S>(change: &Change<'_, S>, id: Uuid, owner: Uuid) -> Result<(), Error> {
    if change.viewer.is_admin() || owner == change.viewer.id() {
        Ok(())
    } else {
        Err(change.forbidden(Kind::Project, id))
    }
}

/// Changes the owner of a project, whose row must be locked. Its circles keep it.
///
/// # Errors
/// `TAKEN` if another active project of the new owner has its name.
pub(crate) async fn change_owner(
    change: &mut Change<'_>,
    row: project::Model,
    to: Uuid,
) -> Result<(), Stop> {
    let from = row.owner_id;
    let mut new = row.into_active_model();
    new.owner_id = Set(to);
    new.updated_at = Set(change.now);
    let row = unique(new.update(&change.transaction).await, || {
        let message = "You already have an active project with this name.";
        UserError::general(UserErrorCode::Taken, message)
    })?;
    let payload = json!({
        "name": row.name,
        "changed": ["owner"],
        "updatedAt": row.updated_at,
        "previousOwnerId": Kind::User.id(from).as_str(),
        "newOwnerId": Kind::User.id(to).as_str(),
    });
    let new_event = NewEvent::new(EventType::ProjectOwnerChanged, row.id, payload);
    change.append(new_event.owner(to).project(row.id));
    Ok(())
}

fn name_taken() -> UserError {
    let message = "Another of the owner's active projects has this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

fn changed(kind: EventType, row: &project::Model, changed: &[&str]) -> NewEvent {
    let payload = json!({ "name": row.name, "changed": changed, "updatedAt": row.updated_at });
    NewEvent::new(kind, row.id, payload)
        .owner(row.owner_id)
        .project(row.id)
}

/// A change of a project.
pub struct ProjectChange(Arc<event::Model>);

impl From<Arc<event::Model>> for ProjectChange {
    fn from(row: Arc<event::Model>) -> Self {
        Self(row)
    }
}

impl EventDetails for ProjectChange {
    const NAME: &'static str = "ProjectEvent";
}

#[Object]
impl ProjectChange {
    /// The id of the project, even if the project has been deleted.
    async fn project_id(&self) -> ID {
        Kind::Project.id(self.0.subject_id)
    }

    /// The name at the time of the event.
    async fn name(&self) -> &str {
        self.0.text("name").unwrap_or_default()
    }

    /// The owner before the change; null if the owner has not changed.
    async fn previous_owner(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        user_in(ctx, &self.0, "previousOwnerId").await
    }

    /// The owner after the change; null if the owner has not changed.
    async fn new_owner(&self, ctx: &Context<'_>) -> Result<Option<User>, Error> {
        user_in(ctx, &self.0, "newOwnerId").await
    }

    /// The names of the fields that changed.
    async fn changed(&self) -> Vec<String> {
        self.0.changed()
    }
}
