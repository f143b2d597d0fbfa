//! Personas: characters that agents take on.

use std::sync::Arc;

use async_graphql::{
    Context, ID, InputObject, MaybeUndefined, Object, SimpleObject, connection::EmptyFields,
};
use gathering_entity::{List, agent, model, persona};
use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, Condition, EntityTrait, IntoActiveModel,
    ModelTrait, Set, sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    agent::{MAX_ENTRY, MAX_LIST, MAX_PROMPT, MAX_STYLE, TEMPERATURE},
    catalogue::{Entry, model::Model},
    data::{Connection, Edits, Listed, Order, Outcome, Page, change},
    db::{Rule, is_taken},
    deletion::{DeleteInput, DeletePayload, in_use},
    error::Error,
    id::Kind,
    input::{Check, UserError, UserErrorCode, entries},
    request::RequestExt,
    scalar::DateTime,
};

/// Most characters of a persona's name.
const MAX_NAME: usize = 100;
/// Most characters of the name shown to people.
const MAX_DISPLAY_NAME: usize = 200;
/// Most characters of what it does in a team.
const MAX_ROLE: usize = 200;
/// Most characters of its category.
const MAX_CATEGORY: usize = 50;
/// Most characters of its description.
const MAX_DESCRIPTION: usize = 10_000;
/// Most characters of the name of its picture.
const MAX_ICON: usize = 50;
/// Most characters of its motto.
const MAX_MOTTO: usize = 500;

/// A reusable character.
pub struct Persona(pub(crate) Arc<persona::Model>);

/// A reusable character for agents: role, traits, prompt and a default model. Part of the catalogue that every
/// signed-in user may read.
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

    /// The name shown to people, at most 200 characters.
    async fn display_name(&self) -> &str {
        &self.0.display_name
    }

    /// What it does in a team, at most 200 characters.
    async fn role(&self) -> &str {
        &self.0.role
    }

    /// The shelf on which it stands in the catalogue, at most 50 characters.
    async fn category(&self) -> Option<&str> {
        self.0.category.as_deref()
    }

    /// What it is for, at most 10,000 characters.
    async fn description(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.description.as_deref())
    }

    /// The name of a picture, at most 50 characters.
    async fn icon(&self) -> Option<&str> {
        self.0.icon.as_deref()
    }

    /// A line that it lives by, at most 500 characters.
    async fn motto(&self) -> Option<&str> {
        self.0.motto.as_deref()
    }

    /// What its agents are told before they begin, at most 20,000 characters.
    async fn prompt(&self, ctx: &Context<'_>) -> Result<Option<&str>, Error> {
        ctx.request().text(self.0.prompt.as_deref())
    }

    /// What it is like; at most 50 words.
    async fn traits(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.traits.0.as_slice())
    }

    /// What it is able to do; at most 50 words.
    async fn competencies(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.competencies.0.as_slice())
    }

    /// What it knows best; at most 50 words.
    async fn specializations(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.specializations.0.as_slice())
    }

    /// The languages it speaks; at most 50.
    async fn languages(&self, ctx: &Context<'_>) -> Result<&[String], Error> {
        ctx.request().text(self.0.languages.0.as_slice())
    }

    /// How it talks, at most 50 characters.
    async fn communication_style(&self) -> Option<&str> {
        self.0.communication_style.as_deref()
    }

    /// The model its agents run on unless they name another.
    async fn default_model(&self, ctx: &Context<'_>) -> Result<Option<Model>, Error> {
        let Some(id) = self.0.default_model_id else {
            return Ok(None);
        };
        Ok(ctx.request().row::<model::Entity>(id).await?.map(Model))
    }

    /// The sampling temperature of its agents unless they name another, from 0 to 2.
    async fn default_temperature(&self) -> f64 {
        self.0.default_temperature
    }

    /// Whether it came with Gathering and cannot be deleted.
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

/// Personas as a list.
pub struct Personas;

impl Listed for Personas {
    type Entity = persona::Entity;
    type Node = Persona;
    type Extra = EmptyFields;
    const NAME: &'static str = "Persona";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<persona::Model>],
    ) -> Result<Vec<Option<Persona>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Persona(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<persona::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// Narrows a list of personas. All given conditions must hold.
#[derive(InputObject)]
pub struct PersonaFilter {
    /// Only personas of exactly this category, at most 100 characters.
    category: Option<String>,
    /// Only personas that came with Gathering, or only the others.
    is_builtin: Option<bool>,
    /// Only personas whose name contains this text, whatever its case; at most 100 characters.
    search: Option<String>,
}

impl PersonaFilter {
    fn condition(self) -> Result<Condition, Error> {
        let category = self
            .category
            .map(|category| crate::db::filter(&category, "category"))
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
                        crate::db::contains(
                            Expr::col(persona::Column::NameKey.as_column_ref()),
                            &search,
                        )
                    })
                    .transpose()?,
            ))
    }
}

/// Queries about personas.
#[derive(Default)]
pub struct PersonaQuery;

#[Object]
impl PersonaQuery {
    /// The persona with this id.
    async fn persona(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Persona>, Error> {
        ctx.request().viewer()?;
        let row = ctx
            .request()
            .look_up::<persona::Entity>(Kind::Persona, &Rule::default(), &id)
            .await?;
        Ok(Some(Persona(row)))
    }

    /// All personas, in the order in which they were added.
    async fn personas(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<PersonaFilter>,
    ) -> Result<Connection<Personas>, Error> {
        ctx.request().viewer()?;
        let condition = filter
            .map(PersonaFilter::condition)
            .transpose()?
            .unwrap_or_else(Condition::all);
        Connection::new(
            condition,
            Order::ascending([persona::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// The outcome of a change of a persona.
#[derive(SimpleObject)]
pub struct PersonaPayload {
    /// The persona as it is now; null when there is none to show.
    persona: Option<Persona>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

impl PersonaPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            persona: outcome.row::<persona::Entity>(ctx).await?.map(Persona),
            user_errors: outcome.errors,
        })
    }
}

/// A persona that is to be added.
#[derive(InputObject)]
pub struct CreatePersonaInput {
    /// The unique name, 1 to 100 characters.
    name: String,
    /// The name shown to people, 1 to 200 characters.
    display_name: String,
    /// What it does in a team, 1 to 200 characters.
    role: String,
    /// The shelf on which it stands in the catalogue, at most 50 characters.
    category: Option<String>,
    /// What it is for, at most 10,000 characters.
    description: Option<String>,
    /// The name of a picture, at most 50 characters.
    icon: Option<String>,
    /// A line that it lives by, at most 500 characters.
    motto: Option<String>,
    /// What its agents are told before they begin, at most 20,000 characters.
    prompt: Option<String>,
    /// What it is like; at most 50 words of at most 100 characters.
    traits: Option<Vec<String>>,
    /// What it is able to do; at most 50 words of at most 100 characters, kept in lower case.
    competencies: Option<Vec<String>>,
    /// What it knows best; at most 50 words of at most 100 characters.
    specializations: Option<Vec<String>>,
    /// The languages it speaks; at most 50, of at most 100 characters.
    languages: Option<Vec<String>>,
    /// How it talks, at most 50 characters.
    communication_style: Option<String>,
    /// The model its agents run on unless they name another; `NOT_FOUND` when there is no such model.
    default_model_id: Option<ID>,
    /// The sampling temperature of its agents unless they name another, from 0 to 2.
    #[graphql(default = 0.7)]
    default_temperature: f64,
}

/// What is to be different about a persona. Fields that are left out stay as they are; null clears what may be empty.
/// Agents that took a default from it keep what they took.
#[derive(InputObject)]
pub struct UpdatePersonaInput {
    /// The persona.
    persona_id: ID,
    /// The name shown to people, 1 to 200 characters.
    display_name: MaybeUndefined<String>,
    /// What it does in a team, 1 to 200 characters.
    role: MaybeUndefined<String>,
    /// The shelf on which it stands in the catalogue, at most 50 characters.
    category: MaybeUndefined<String>,
    /// What it is for, at most 10,000 characters.
    description: MaybeUndefined<String>,
    /// The name of a picture, at most 50 characters.
    icon: MaybeUndefined<String>,
    /// A line that it lives by, at most 500 characters.
    motto: MaybeUndefined<String>,
    /// What its agents are told before they begin, at most 20,000 characters.
    prompt: MaybeUndefined<String>,
    /// What it is like; at most 50 words of at most 100 characters.
    traits: MaybeUndefined<Vec<String>>,
    /// What it is able to do; at most 50 words of at most 100 characters, kept in lower case.
    competencies: MaybeUndefined<Vec<String>>,
    /// What it knows best; at most 50 words of at most 100 characters.
    specializations: MaybeUndefined<Vec<String>>,
    /// The languages it speaks; at most 50, of at most 100 characters.
    languages: MaybeUndefined<Vec<String>>,
    /// How it talks, at most 50 characters.
    communication_style: MaybeUndefined<String>,
    /// The model its agents run on unless they name another; `NOT_FOUND` when there is no such model.
    default_model_id: MaybeUndefined<ID>,
    /// The sampling temperature of its agents unless they name another, from 0 to 2.
    default_temperature: MaybeUndefined<f64>,
}

impl CreatePersonaInput {
    /// The row, with the faults of the input added.
    fn row(
        &self,
        id: Uuid,
        now: chrono::DateTime<chrono::Utc>,
        model: Option<Uuid>,
        check: &mut Check,
    ) -> persona::Model {
        let (name, name_key) = check.name("name", &self.name, MAX_NAME);
        let display_name = check.line("displayName", &self.display_name, MAX_DISPLAY_NAME);
        let role = check.line("role", &self.role, MAX_ROLE);
        let mut line =
            |field, text: &Option<String>, most| check.optional_line(field, text.as_deref(), most);
        let category = line("category", &self.category, MAX_CATEGORY);
        let icon = line("icon", &self.icon, MAX_ICON);
        let motto = line("motto", &self.motto, MAX_MOTTO);
        let style = line("communicationStyle", &self.communication_style, MAX_STYLE);
        let mut text =
            |field, text: &Option<String>, most| check.optional_text(field, text.as_deref(), most);
        let description = text("description", &self.description, MAX_DESCRIPTION);
        let prompt = text("prompt", &self.prompt, MAX_PROMPT);
        let mut list = |field, words: &Option<Vec<String>>| {
            let words = words.as_deref().unwrap_or_default();
            check.list(field, words, MAX_LIST, MAX_ENTRY)
        };
        let traits = list("traits", &self.traits);
        let specializations = list("specializations", &self.specializations);
        let languages = list("languages", &self.languages);
        let competencies = self.competencies.as_deref().unwrap_or_default();
        let competencies = check.words("competencies", competencies, MAX_LIST, MAX_ENTRY);
        let temperature = self.default_temperature;
        persona::Model {
            id,
            created_at: now,
            updated_at: now,
            name,
            name_key,
            display_name,
            role,
            category,
            description,
            icon,
            motto,
            prompt,
            traits,
            competencies,
            specializations,
            languages,
            communication_style: style,
            default_model_id: model,
            default_temperature: check.range("defaultTemperature", temperature, TEMPERATURE),
            is_builtin: false,
        }
    }
}

impl UpdatePersonaInput {
    /// Sets what is different, and adds the faults of the input.
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

/// A text that may be missing.
type Column = ActiveValue<Option<String>>;

/// Changes of personas.
#[derive(Default)]
pub struct PersonaMutation;

#[Object]
impl PersonaMutation {
    /// Adds a persona to the catalogue. For administrators. Codes of `userErrors` beside those of the input: `TAKEN` for the
    /// name.
    async fn create_persona(
        &self,
        ctx: &Context<'_>,
        input: CreatePersonaInput,
    ) -> Result<PersonaPayload, Error> {
        ctx.request().admin()?;
        let model = Kind::Model.parse_opt(input.default_model_id.as_ref(), "defaultModelId")?;
        let id = Uuid::now_v7();
        let outcome = change(ctx, async |mut change| {
            let preferred = change.lock_reference::<model::Entity>(model, "defaultModelId");
            preferred.await?;
            let mut check = Check::default();
            let row = input.row(id, change.now, model, &mut check);
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            let insert = persona::Entity::insert(row.clone().into_active_model());
            match insert.exec_without_returning(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    let message = "Another persona has this name.";
                    let taken = UserError::new("name", UserErrorCode::Taken, message);
                    return Ok(Outcome::fault(None, taken));
                }
                done => done?,
            };
            entry(&row).changed(&mut change, &[]);
            change.commit(vec![id]).await
        });
        PersonaPayload::new(ctx, outcome.await?).await
    }

    /// Changes a persona. For administrators.
    async fn update_persona(
        &self,
        ctx: &Context<'_>,
        input: UpdatePersonaInput,
    ) -> Result<PersonaPayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Persona.parse(&input.persona_id, "personaId")?;
        let model = Kind::Model.parse_new(&input.default_model_id, "defaultModelId")?;
        let outcome = change(ctx, async |mut change| {
            let rule = Rule::default();
            let row = change.row::<persona::Entity>(&rule, id, "personaId");
            let mut new = row.await?.into_active_model();
            let preferred =
                change.lock_reference::<model::Entity>(model.flatten(), "defaultModelId");
            preferred.await?;
            let (mut check, mut edits) = (Check::default(), Edits::default());
            input.apply(&mut new, &mut check, &mut edits);
            edits.set("defaultModelId", &mut new.default_model_id, model);
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(Some(id), faults));
            }
            if !edits.is_empty() {
                new.updated_at = Set(change.now);
                let row = new.update(&change.transaction).await?;
                entry(&row).changed(&mut change, edits.names());
            }
            change.commit(vec![id]).await
        });
        PersonaPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a persona. For administrators. Codes of `userErrors`: `PROTECTED` for one that came with Gathering, `IN_USE`
    /// while an agent has it.
    async fn delete_persona(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Persona.parse(&input.id, "id")?;
        let outcome = change(ctx, async |mut change| {
            let rule = Rule::default();
            let row = change.lock_for_delete::<persona::Entity>(&rule, id, "id");
            let row = row.await?;
            if row.is_builtin {
                let message = "The persona came with Gathering and cannot be deleted.";
                let protected = UserError::new("id", UserErrorCode::Protected, message);
                return Ok(Outcome::fault(Some(id), protected));
            }
            let agents = agent::Column::PersonaId.eq(id);
            if change.any::<agent::Entity>(agents).await? {
                let message = "Agents have the persona. Give them another first.";
                return Ok(Outcome::fault(Some(id), in_use(message)));
            }
            entry(&row).deleted(&mut change);
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Persona, id, outcome.await?).await
    }
}

fn entry(row: &persona::Model) -> Entry<'_> {
    Entry {
        kind: (Kind::Persona, "persona.changed"),
        id: row.id,
        name: &row.name,
        updated_at: row.updated_at,
    }
}
