//! Personas: reusable characters for agents.

use std::{ops::RangeInclusive, sync::Arc};

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, SimpleObject};
use gathering_entity::{List, agent, model, persona};
use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, Condition, EntityTrait, IntoActiveModel,
    ModelTrait, Set, TryIntoModel, sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    access::Viewer,
    catalogue::{Entry, model::Model},
    data::{Connection, Edits, FieldsOf, Noun, Order, Outcome, Page, by_id, change, unique},
    db::{Rule, contains, filter},
    deletion::{DeleteInput, DeletePayload, in_use},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError, UserErrorCode, entries},
    request::RequestExt,
    scalar::DateTime,
};

/// Maximum length of a persona's name, in characters.
const MAX_NAME: usize = 100;
/// Maximum length of a display name, in characters.
const MAX_DISPLAY_NAME: usize = 200;
/// Maximum length of the role, in characters.
const MAX_ROLE: usize = 200;
/// Maximum length of the category, in characters.
const MAX_CATEGORY: usize = 50;
/// Maximum length of a description, in characters.
const MAX_DESCRIPTION: usize = 10_000;
/// Maximum length of the icon's name, in characters.
const MAX_ICON: usize = 50;
/// Maximum length of the motto, in characters.
const MAX_MOTTO: usize = 500;
/// Maximum length of a system prompt, in characters.
pub(crate) const MAX_PROMPT: usize = 20_000;
/// Maximum length of a communication style, in characters.
pub(crate) const MAX_STYLE: usize = 50;
/// Maximum number of entries of a list field, and maximum length of an entry in characters.
pub(crate) const MAX_LIST: usize = 50;
pub(crate) const MAX_ENTRY: usize = 100;
/// The allowed sampling temperatures.
pub(crate) const TEMPERATURE: RangeInclusive<f64> = 0.0..=2.0;

/// A persona: a reusable character for agents.
pub struct Persona(pub(crate) Arc<persona::Model>);

/// A reusable character for agents: role, traits, prompt and a default model.
/// Part of the catalogue, which every signed-in user may read.
#[Object]
impl Persona {
    /// The id of the persona, `persona_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Persona.id(self.0.id)
    }

    /// The unique name, at most 100 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The display name, at most 200 characters.
    async fn display_name(&self) -> &str {
        &self.0.display_name
    }

    /// The role in a team, at most 200 characters.
    async fn role(&self) -> &str {
        &self.0.role
    }

    /// The category in the catalogue, at most 50 characters.
    async fn category(&self) -> Option<&str> {
        self.0.category.as_deref()
    }

    /// The description, at most 10,000 characters.
    async fn description(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.description.as_deref())
    }

    /// The name of the icon, at most 50 characters.
    async fn icon(&self) -> Option<&str> {
        self.0.icon.as_deref()
    }

    /// The motto, at most 500 characters.
    async fn motto(&self) -> Option<&str> {
        self.0.motto.as_deref()
    }

    /// The system prompt for agents with this persona, at most 20,000 characters.
    async fn prompt(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.prompt.as_deref())
    }

    /// The personality traits, at most 50 entries.
    async fn traits(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.traits.0.as_slice())
    }

    /// The competencies, at most 50 entries.
    async fn competencies(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.competencies.0.as_slice())
    }

    /// The areas of specialization, at most 50 entries.
    async fn specializations(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.specializations.0.as_slice())
    }

    /// The languages it speaks; at most 50.
    async fn languages(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.languages.0.as_slice())
    }

    /// The communication style, at most 50 characters.
    async fn communication_style(&self) -> Option<&str> {
        self.0.communication_style.as_deref()
    }

    /// The default model of agents with this persona.
    async fn default_model(&self, ctx: &Context<'_>) -> Result<Option<Model>, Error> {
        let Some(id) = self.0.default_model_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<model::Entity>(id).await?.map(Model))
    }

    /// The default sampling temperature of agents with this persona, from 0 to 2.
    async fn default_temperature(&self) -> f64 {
        self.0.default_temperature
    }

    /// Whether the persona is built in and cannot be deleted.
    async fn is_builtin(&self) -> bool {
        self.0.is_builtin
    }

    /// When it was added to the catalogue.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }
}

impl From<Arc<persona::Model>> for Persona {
    fn from(row: Arc<persona::Model>) -> Self {
        Self(row)
    }
}

impl Noun for Persona {
    type Entity = persona::Entity;
    const KIND: Kind = Kind::Persona;
    const NAME: &'static str = "Persona";

    fn readable(_: &Viewer) -> Option<Rule> {
        Some(Rule::default())
    }

    fn fields() -> FieldsOf<Self> {
        use persona::Column::{
            Category, CommunicationStyle, Competencies, CreatedAt, DefaultModelId,
            DefaultTemperature, Description, DisplayName, Icon, IsBuiltin, Languages, Motto, Name,
            Prompt, Role, Specializations, Traits, UpdatedAt,
        };
        FieldsOf::new()
            .by_id("persona")
            .all("personas", |list| {
                Self::list(list.get("filter")?, &list.page)
            })
            .columns([
                Name,
                DisplayName,
                Role,
                Category,
                Icon,
                Motto,
                CommunicationStyle,
            ])
            .columns([DefaultTemperature, IsBuiltin, CreatedAt, UpdatedAt])
            .texts([
                Description,
                Prompt,
                Traits,
                Competencies,
                Specializations,
                Languages,
            ])
            .one::<Model>("defaultModel", DefaultModelId)
    }
}

/// Filters a list of personas. All conditions must hold.
#[derive(InputObject)]
pub struct PersonaFilter {
    /// Only personas with exactly this category; at most 100 characters.
    category: Option<String>,
    /// Only built-in personas (true), or only the others (false).
    is_builtin: Option<bool>,
    /// Only personas whose name contains this text, ignoring case; at most 100 characters.
    search: Option<String>,
}

impl PersonaFilter {
    fn condition(self) -> Result<Condition, Error> {
        let category = self
            .category
            .map(|category| filter(&category, "category"))
            .transpose()?;
        Ok(Condition::all()
            .add_option(category.map(|category| persona::Column::Category.eq(category)))
            .add_option(
                self.is_builtin
                    .map(|is_builtin| persona::Column::IsBuiltin.eq(is_builtin)),
            )
            .add_option(
                self.search
                    .map(|search| {
                        contains(Expr::col(persona::Column::NameKey.as_column_ref()), &search)
                    })
                    .transpose()?,
            ))
    }
}

impl Persona {
    fn list(filter: Option<PersonaFilter>, page: &Page) -> Result<Connection<Self>, Error> {
        let filter = filter.map(PersonaFilter::condition).transpose()?;
        let order = Order::ascending([persona::Column::Id]);
        Connection::new(filter.unwrap_or_else(Condition::all), order, page)
    }
}

/// Queries about personas.
#[derive(Default)]
pub struct PersonaQuery;

#[Object]
impl PersonaQuery {
    /// The persona with this id.
    async fn persona(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Persona>, Error> {
        by_id(ctx, &id).await
    }

    /// All personas, oldest first.
    async fn personas(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<PersonaFilter>,
    ) -> Result<Connection<Persona>, Error> {
        ctx.request().viewer()?;
        Persona::list(filter, &Page::new(first, after, last, before)?)
    }
}

/// Payload of `createPersona` and `updatePersona`.
#[derive(SimpleObject)]
pub struct PersonaPayload {
    /// The persona in its current state; null if there is none.
    persona: Option<Persona>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl PersonaPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            persona: outcome.row::<Persona>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Input for `createPersona`.
#[derive(InputObject)]
pub struct CreatePersonaInput {
    /// The unique name, 1 to 100 characters.
    name: String,
    /// The display name, 1 to 200 characters.
    display_name: String,
    /// The role in a team, 1 to 200 characters.
    role: String,
    /// The category in the catalogue, at most 50 characters.
    category: Option<String>,
    /// The description, at most 10,000 characters.
    description: Option<String>,
    /// The name of the icon, at most 50 characters.
    icon: Option<String>,
    /// The motto, at most 500 characters.
    motto: Option<String>,
    /// The system prompt for agents with this persona, at most 20,000 characters.
    prompt: Option<String>,
    /// The personality traits; at most 50 entries of at most 100 characters.
    traits: Option<Vec<String>>,
    /// The competencies; at most 50 entries of at most 100 characters, stored in lower case.
    competencies: Option<Vec<String>>,
    /// The areas of specialization; at most 50 entries of at most 100 characters.
    specializations: Option<Vec<String>>,
    /// The languages it speaks; at most 50, each of at most 100 characters.
    languages: Option<Vec<String>>,
    /// The communication style, at most 50 characters.
    communication_style: Option<String>,
    /// The default model of agents with this persona; `NOT_FOUND` if there is no such model.
    default_model_id: Option<ID>,
    /// The default sampling temperature of agents with this persona, from 0 to 2.
    #[graphql(default = 0.7)]
    default_temperature: f64,
}

/// Input for `updatePersona`.
/// Omitted fields keep their value; null clears a nullable field. Agents keep the defaults that they took from the
/// persona.
#[derive(InputObject)]
pub struct UpdatePersonaInput {
    /// The id of the persona.
    persona_id: ID,
    #[graphql(flatten)]
    fields: PersonaFields,
}

/// The fields that can be created and updated. An undefined field keeps its value.
#[derive(InputObject)]
struct PersonaFields {
    /// The display name, 1 to 200 characters.
    display_name: MaybeUndefined<String>,
    /// The role in a team, 1 to 200 characters.
    role: MaybeUndefined<String>,
    /// The category in the catalogue, at most 50 characters.
    category: MaybeUndefined<String>,
    /// The description, at most 10,000 characters.
    description: MaybeUndefined<String>,
    /// The name of the icon, at most 50 characters.
    icon: MaybeUndefined<String>,
    /// The motto, at most 500 characters.
    motto: MaybeUndefined<String>,
    /// The system prompt for agents with this persona, at most 20,000 characters.
    prompt: MaybeUndefined<String>,
    /// The personality traits; at most 50 entries of at most 100 characters.
    traits: MaybeUndefined<Vec<String>>,
    /// The competencies; at most 50 entries of at most 100 characters, stored in lower case.
    competencies: MaybeUndefined<Vec<String>>,
    /// The areas of specialization; at most 50 entries of at most 100 characters.
    specializations: MaybeUndefined<Vec<String>>,
    /// The languages it speaks; at most 50, each of at most 100 characters.
    languages: MaybeUndefined<Vec<String>>,
    /// The communication style, at most 50 characters.
    communication_style: MaybeUndefined<String>,
    /// The default model of agents with this persona; `NOT_FOUND` if there is no such model.
    default_model_id: MaybeUndefined<ID>,
    /// The default sampling temperature of agents with this persona, from 0 to 2.
    default_temperature: MaybeUndefined<f64>,
}

impl CreatePersonaInput {
    /// The name, and the fields that an update can change too.
    fn into_parts(self) -> (String, PersonaFields) {
        let fields = PersonaFields {
            display_name: MaybeUndefined::Value(self.display_name),
            role: MaybeUndefined::Value(self.role),
            category: Some(self.category).into(),
            description: Some(self.description).into(),
            icon: Some(self.icon).into(),
            motto: Some(self.motto).into(),
            prompt: Some(self.prompt).into(),
            traits: Some(self.traits).into(),
            competencies: Some(self.competencies).into(),
            specializations: Some(self.specializations).into(),
            languages: Some(self.languages).into(),
            communication_style: Some(self.communication_style).into(),
            default_model_id: Some(self.default_model_id).into(),
            default_temperature: MaybeUndefined::Value(self.default_temperature),
        };
        (self.name, fields)
    }
}

impl PersonaFields {
    /// Applies the fields to the row, and collects the errors of the input. The caller handles the default model.
    fn apply(&self, new: &mut persona::ActiveModel, check: &mut Check, edits: &mut Edits) {
        let name = check.if_given("displayName", &self.display_name);
        let name = name.map(|name| check.line("displayName", name, MAX_DISPLAY_NAME));
        edits.set("displayName", &mut new.display_name, name);
        let role = check.if_given("role", &self.role);
        let role = role.map(|role| check.line("role", role, MAX_ROLE));
        edits.set("role", &mut new.role, role);
        let mut line = |field, value: &MaybeUndefined<String>, most, column: &mut Column| {
            let value = value.as_opt_deref();
            let value = value.map(|value| check.optional_line(field, value, most));
            edits.set(field, column, value);
        };
        line("category", &self.category, MAX_CATEGORY, &mut new.category);
        line("icon", &self.icon, MAX_ICON, &mut new.icon);
        line("motto", &self.motto, MAX_MOTTO, &mut new.motto);
        line(
            "communicationStyle",
            &self.communication_style,
            MAX_STYLE,
            &mut new.communication_style,
        );
        let mut text = |field, value: &MaybeUndefined<String>, most, column: &mut Column| {
            let value = value.as_opt_deref();
            let value = value.map(|value| check.optional_text(field, value, most));
            edits.set(field, column, value);
        };
        text(
            "description",
            &self.description,
            MAX_DESCRIPTION,
            &mut new.description,
        );
        text("prompt", &self.prompt, MAX_PROMPT, &mut new.prompt);
        let mut list =
            |field, words: &MaybeUndefined<Vec<String>>, column: &mut ActiveValue<List>| {
                let words = entries(words);
                let words = words.map(|words| check.list(field, words, MAX_LIST, MAX_ENTRY));
                edits.set(field, column, words);
            };
        list("traits", &self.traits, &mut new.traits);
        list(
            "specializations",
            &self.specializations,
            &mut new.specializations,
        );
        list("languages", &self.languages, &mut new.languages);
        let words = entries(&self.competencies)
            .map(|words| check.words("competencies", words, MAX_LIST, MAX_ENTRY));
        edits.set("competencies", &mut new.competencies, words);
        let temperature = check.if_given("defaultTemperature", &self.default_temperature);
        let temperature =
            temperature.map(|value| check.range("defaultTemperature", *value, TEMPERATURE));
        edits.set(
            "defaultTemperature",
            &mut new.default_temperature,
            temperature,
        );
    }
}

/// A nullable text column.
type Column = ActiveValue<Option<String>>;

/// Mutations of personas.
#[derive(Default)]
pub struct PersonaMutation;

#[Object]
impl PersonaMutation {
    /// Adds a persona to the catalogue. For administrators. `userErrors`: validation codes, and `TAKEN` for the name.
    async fn create_persona(
        &self,
        ctx: &Context<'_>,
        input: CreatePersonaInput,
    ) -> Result<PersonaPayload, Error> {
        ctx.request().admin()?;
        let (name, fields) = input.into_parts();
        let model = Kind::Model.parse_new(&fields.default_model_id, "defaultModelId")?;
        let model = model.flatten();
        let id = Uuid::now_v7();
        let outcome = change(ctx, None, async |mut change| {
            change
                .lock_reference::<model::Entity>(model, "defaultModelId")
                .await?;
            let mut check = Check::default();
            let (name, name_key) = check.name("name", &name, MAX_NAME);
            let mut new = persona::ActiveModel {
                id: Set(id),
                created_at: Set(change.now),
                updated_at: Set(change.now),
                name: Set(name),
                name_key: Set(name_key),
                default_model_id: Set(model),
                is_builtin: Set(false),
                ..Default::default()
            };
            fields.apply(&mut new, &mut check, &mut Edits::default());
            check.faults()?;
            let row = new.try_into_model()?;
            let insert = persona::Entity::insert(row.clone().into_active_model());
            let inserted = insert.exec_without_returning(&change.transaction).await;
            unique(inserted, name_taken)?;
            entry(&row).changed(&mut change, &[]);
            change.commit(vec![id]).await
        });
        PersonaPayload::new(ctx, outcome.await?).await
    }

    /// Updates a persona. For administrators.
    async fn update_persona(
        &self,
        ctx: &Context<'_>,
        input: UpdatePersonaInput,
    ) -> Result<PersonaPayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Persona.parse(&input.persona_id, "personaId")?;
        let model = Kind::Model.parse_new(&input.fields.default_model_id, "defaultModelId")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = Rule::default();
            let row = change.row::<persona::Entity>(&rule, id, "personaId");
            let mut new = row.await?.into_active_model();
            change
                .lock_reference::<model::Entity>(model.flatten(), "defaultModelId")
                .await?;
            let (mut check, mut edits) = (Check::default(), Edits::default());
            input.fields.apply(&mut new, &mut check, &mut edits);
            edits.set("defaultModelId", &mut new.default_model_id, model);
            check.faults()?;
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                entry(&row).changed(&mut change, edits.names());
            }
            change.commit(vec![id]).await
        });
        PersonaPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a persona.
    /// For administrators. `userErrors`: `PROTECTED` for a built-in persona, `IN_USE` while an agent uses it.
    async fn delete_persona(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Persona.parse(&input.id, "id")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = Rule::default();
            let row = change.lock_for_delete::<persona::Entity>(&rule, id, "id");
            let row = row.await?;
            if row.is_builtin {
                let message = "Built-in personas cannot be deleted.";
                return Err(UserError::new("id", UserErrorCode::Protected, message).into());
            }
            let agents = agent::Column::PersonaId.eq(id);
            if change.any::<agent::Entity>(agents).await? {
                let message = "Agents use this persona. Assign them another persona first.";
                return Err(in_use(message).into());
            }
            entry(&row).deleted(&mut change);
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Persona, id, outcome.await?).await
    }
}

fn name_taken() -> UserError {
    let message = "Another persona has this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}

fn entry(row: &persona::Model) -> Entry<'_> {
    Entry {
        kind: (Kind::Persona, EventType::PersonaChanged),
        id: row.id,
        name: &row.name,
        updated_at: row.updated_at,
    }
}
