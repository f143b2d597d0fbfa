//! Personas: characters that agents take on.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, connection::EmptyFields};
use gathering_entity::{model, persona};
use sea_orm::{ColumnTrait, Condition, sea_query::Expr};

use crate::{
    ctx::Door,
    error::Error,
    id::Kind,
    model::Model,
    page::{Connection, Listed, Order, Page},
    read::Rule,
    scalar::DateTime,
    text,
};

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
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
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
    async fn prompt(&self) -> Option<&str> {
        self.0.prompt.as_deref()
    }

    /// What it is like; at most 50 words.
    async fn traits(&self) -> &[String] {
        &self.0.traits.0
    }

    /// What it is able to do; at most 50 words.
    async fn competencies(&self) -> &[String] {
        &self.0.competencies.0
    }

    /// What it knows best; at most 50 words.
    async fn specializations(&self) -> &[String] {
        &self.0.specializations.0
    }

    /// The languages it speaks; at most 50.
    async fn languages(&self) -> &[String] {
        &self.0.languages.0
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
            .map(|category| text::filter(&category, "category"))
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
                        text::contains(Expr::col(persona::Column::NameKey.as_column_ref()), &search)
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
