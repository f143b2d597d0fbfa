//! Models: the language models that agents run on.

use std::sync::Arc;

use async_graphql::{
    Context, ID, InputObject, MaybeUndefined, Object, SimpleObject, connection::EmptyFields,
};
use gathering_entity::{agent, model, provider};
use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, Condition, EntityTrait, IntoActiveModel,
    ModelTrait, Set,
};
use uuid::Uuid;

use crate::{
    catalogue::{Entry, provider::Provider},
    data::{Connection, Edits, Listed, Order, Outcome, Page, change},
    db::{Rule, is_taken},
    deletion::{DeleteInput, DeletePayload, in_use},
    error::Error,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
    request::RequestExt,
    scalar::{DateTime, Decimal},
};

/// Most characters of a model's name.
const MAX_NAME: usize = 100;
/// Most characters of the name shown to people.
const MAX_DISPLAY_NAME: usize = 200;
/// What is free.
const FREE: Decimal = Decimal { micros: 0 };

/// A language model.
pub struct Model(pub(crate) Arc<model::Model>);

/// A language model with its prices and abilities. Part of the catalogue that every signed-in user may read.
#[Object]
impl Model {
    /// The id of the model, `model_…`.
    pub(crate) async fn id(&self) -> ID {
        Kind::Model.id(self.0.id)
    }

    /// Who runs it.
    async fn provider(&self, ctx: &Context<'_>) -> Result<Provider, Error> {
        let row = ctx
            .request()
            .row::<provider::Entity>(self.0.provider_id)
            .await?;
        row.map(Provider)
            .ok_or_else(|| Error::not_found("provider"))
    }

    /// The name by which the provider's API knows it; unique for each provider, at most 100 characters.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The name shown to people, at most 200 characters.
    async fn display_name(&self) -> &str {
        &self.0.display_name
    }

    /// How many tokens it can take in at once.
    async fn context_window(&self) -> i32 {
        self.0.context_window
    }

    /// How many tokens it can write in one answer.
    async fn max_output(&self) -> i32 {
        self.0.max_output
    }

    /// US dollars for a million tokens of input.
    async fn price_input(&self) -> Decimal {
        Decimal {
            micros: self.0.price_input,
        }
    }

    /// US dollars for a million tokens of output.
    async fn price_output(&self) -> Decimal {
        Decimal {
            micros: self.0.price_output,
        }
    }

    /// US dollars for a million tokens read from the provider's cache.
    async fn price_cache_read(&self) -> Decimal {
        Decimal {
            micros: self.0.price_cache_read,
        }
    }

    /// US dollars for a million tokens written to the provider's cache.
    async fn price_cache_write(&self) -> Decimal {
        Decimal {
            micros: self.0.price_cache_write,
        }
    }

    /// Whether it understands pictures.
    async fn supports_vision(&self) -> bool {
        self.0.supports_vision
    }

    /// Whether it can call tools.
    async fn supports_tools(&self) -> bool {
        self.0.supports_tools
    }

    /// Whether its answer can be read while it is written.
    async fn supports_streaming(&self) -> bool {
        self.0.supports_streaming
    }

    /// Whether it can think before it answers.
    async fn supports_thinking(&self) -> bool {
        self.0.supports_thinking
    }

    /// Whether its provider will retire it.
    async fn is_deprecated(&self) -> bool {
        self.0.is_deprecated
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

/// Models as a list.
pub struct Models;

impl Listed for Models {
    type Entity = model::Entity;
    type Node = Model;
    type Extra = EmptyFields;
    const NAME: &'static str = "Model";

    async fn nodes(
        _: &Context<'_>,
        rows: &[Arc<model::Model>],
    ) -> Result<Vec<Option<Model>>, Error> {
        Ok(rows
            .iter()
            .map(|row| Some(Model(Arc::clone(row))))
            .collect())
    }

    fn extra(_: &Arc<model::Model>) -> EmptyFields {
        EmptyFields
    }
}

/// Narrows a list of models. All given conditions must hold.
#[derive(InputObject)]
pub struct ModelFilter {
    /// Only models of this provider.
    provider_id: Option<ID>,
    /// Whether deprecated models are listed too.
    #[graphql(default_with = "Some(false)")]
    include_deprecated: Option<bool>,
    /// Only models that understand pictures, or only those that do not.
    supports_vision: Option<bool>,
    /// Only models that can call tools, or only those that cannot.
    supports_tools: Option<bool>,
}

impl ModelFilter {
    /// Without a filter deprecated models are left out as well.
    pub(crate) fn condition(filter: Option<Self>) -> Result<Condition, Error> {
        let Some(filter) = filter else {
            return Ok(Condition::all().add(model::Column::IsDeprecated.eq(false)));
        };
        let provider = Kind::Provider.parse_opt(filter.provider_id.as_ref(), "providerId")?;
        let current = (!filter.include_deprecated.unwrap_or_default())
            .then(|| model::Column::IsDeprecated.eq(false));
        Ok(Condition::all()
            .add_option(provider.map(|id| model::Column::ProviderId.eq(id)))
            .add_option(current)
            .add_option(
                filter
                    .supports_vision
                    .map(|is| model::Column::SupportsVision.eq(is)),
            )
            .add_option(
                filter
                    .supports_tools
                    .map(|is| model::Column::SupportsTools.eq(is)),
            ))
    }
}

/// Queries about models.
#[derive(Default)]
pub struct ModelQuery;

#[Object]
impl ModelQuery {
    /// The model with this id.
    async fn model(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Model>, Error> {
        ctx.request().viewer()?;
        let row = ctx
            .request()
            .look_up::<model::Entity>(Kind::Model, &Rule::default(), &id)
            .await?;
        Ok(Some(Model(row)))
    }

    /// All models, in the order in which they were added; deprecated ones only when the filter includes them.
    async fn models(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ModelFilter>,
    ) -> Result<Connection<Models>, Error> {
        ctx.request().viewer()?;
        Connection::new(
            ModelFilter::condition(filter)?,
            Order::ascending([model::Column::Id]),
            &Page::new(first, after, last, before)?,
        )
    }
}

/// The outcome of a change of a model.
#[derive(SimpleObject)]
pub struct ModelPayload {
    /// The model as it is now; null when there is none to show.
    model: Option<Model>,
    /// What was wrong with the input.
    user_errors: Vec<UserError>,
}

impl ModelPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            model: outcome.row::<model::Entity>(ctx).await?.map(Model),
            user_errors: outcome.errors,
        })
    }
}

/// A model that is to be added.
#[derive(InputObject)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an ability of its own, and a field"
)]
pub struct CreateModelInput {
    /// Who runs it; `NOT_FOUND` when there is no such provider.
    provider_id: ID,
    /// The name by which the provider's API knows it, 1 to 100 characters; unique for each provider.
    name: String,
    /// The name shown to people, 1 to 200 characters.
    display_name: String,
    /// How many tokens it can take in at once, at least 1.
    #[graphql(default = 128_000)]
    context_window: i32,
    /// How many tokens it can write in one answer, at least 1.
    #[graphql(default = 4_096)]
    max_output: i32,
    /// US dollars for a million tokens of input, not negative.
    #[graphql(default_with = "FREE")]
    price_input: Decimal,
    /// US dollars for a million tokens of output, not negative.
    #[graphql(default_with = "FREE")]
    price_output: Decimal,
    /// US dollars for a million tokens read from the provider's cache, not negative.
    #[graphql(default_with = "FREE")]
    price_cache_read: Decimal,
    /// US dollars for a million tokens written to the provider's cache, not negative.
    #[graphql(default_with = "FREE")]
    price_cache_write: Decimal,
    /// Whether it understands pictures.
    #[graphql(default = false)]
    supports_vision: bool,
    /// Whether it can call tools.
    #[graphql(default = true)]
    supports_tools: bool,
    /// Whether its answer can be read while it is written.
    #[graphql(default = true)]
    supports_streaming: bool,
    /// Whether it can think before it answers.
    #[graphql(default = false)]
    supports_thinking: bool,
}

/// What is to be different about a model. Fields that are left out stay as they are; none can be cleared.
#[derive(InputObject)]
pub struct UpdateModelInput {
    /// The model.
    model_id: ID,
    /// The name shown to people, 1 to 200 characters.
    display_name: MaybeUndefined<String>,
    /// How many tokens it can take in at once, at least 1.
    context_window: MaybeUndefined<i32>,
    /// How many tokens it can write in one answer, at least 1.
    max_output: MaybeUndefined<i32>,
    /// US dollars for a million tokens of input, not negative.
    price_input: MaybeUndefined<Decimal>,
    /// US dollars for a million tokens of output, not negative.
    price_output: MaybeUndefined<Decimal>,
    /// US dollars for a million tokens read from the provider's cache, not negative.
    price_cache_read: MaybeUndefined<Decimal>,
    /// US dollars for a million tokens written to the provider's cache, not negative.
    price_cache_write: MaybeUndefined<Decimal>,
    /// Whether it understands pictures.
    supports_vision: MaybeUndefined<bool>,
    /// Whether it can call tools.
    supports_tools: MaybeUndefined<bool>,
    /// Whether its answer can be read while it is written.
    supports_streaming: MaybeUndefined<bool>,
    /// Whether it can think before it answers.
    supports_thinking: MaybeUndefined<bool>,
    /// Whether its provider will retire it.
    is_deprecated: MaybeUndefined<bool>,
}

impl UpdateModelInput {
    /// Sets what is different, and adds the faults of the input.
    fn apply(&self, new: &mut model::ActiveModel, check: &mut Check, edits: &mut Edits) {
        let name = check.if_given("displayName", &self.display_name);
        let name = name.map(|name| check.line("displayName", name, MAX_DISPLAY_NAME));
        edits.set("displayName", &mut new.display_name, name);
        let mut number = |field, value: &MaybeUndefined<i32>, column: &mut ActiveValue<i32>| {
            let value = check.if_given(field, value);
            let value = value.map(|value| check.range(field, *value, 1..=i32::MAX));
            edits.set(field, column, value);
        };
        number(
            "contextWindow",
            &self.context_window,
            &mut new.context_window,
        );
        number("maxOutput", &self.max_output, &mut new.max_output);
        let mut price = |field, value: &MaybeUndefined<Decimal>, column: &mut ActiveValue<i64>| {
            let value = check.if_given(field, value);
            let value = value.map(|value| micros(check, field, *value));
            edits.set(field, column, value);
        };
        price("priceInput", &self.price_input, &mut new.price_input);
        price("priceOutput", &self.price_output, &mut new.price_output);
        price(
            "priceCacheRead",
            &self.price_cache_read,
            &mut new.price_cache_read,
        );
        price(
            "priceCacheWrite",
            &self.price_cache_write,
            &mut new.price_cache_write,
        );
        let mut flag = |field, value: &MaybeUndefined<bool>, column: &mut ActiveValue<bool>| {
            edits.set(field, column, check.if_given(field, value).copied());
        };
        flag(
            "supportsVision",
            &self.supports_vision,
            &mut new.supports_vision,
        );
        flag(
            "supportsTools",
            &self.supports_tools,
            &mut new.supports_tools,
        );
        flag(
            "supportsStreaming",
            &self.supports_streaming,
            &mut new.supports_streaming,
        );
        flag(
            "supportsThinking",
            &self.supports_thinking,
            &mut new.supports_thinking,
        );
        flag("isDeprecated", &self.is_deprecated, &mut new.is_deprecated);
    }
}

/// Changes of models.
#[derive(Default)]
pub struct ModelMutation;

#[Object]
impl ModelMutation {
    /// Adds a model to the catalogue. For administrators. Codes of `userErrors` beside those of the input: `TAKEN` for the
    /// name.
    async fn create_model(
        &self,
        ctx: &Context<'_>,
        input: CreateModelInput,
    ) -> Result<ModelPayload, Error> {
        ctx.request().admin()?;
        let provider = Kind::Provider.parse(&input.provider_id, "providerId")?;
        let id = Uuid::now_v7();
        let outcome = change(ctx, async |mut change| {
            let runs_it = change.lock_reference::<provider::Entity>(Some(provider), "providerId");
            runs_it.await?;
            let mut check = Check::default();
            let whole = 1..=i32::MAX;
            let row = model::Model {
                id,
                created_at: change.now,
                updated_at: change.now,
                provider_id: provider,
                name: check.exact_line("name", &input.name, MAX_NAME),
                display_name: check.line("displayName", &input.display_name, MAX_DISPLAY_NAME),
                price_input: micros(&mut check, "priceInput", input.price_input),
                price_output: micros(&mut check, "priceOutput", input.price_output),
                price_cache_read: micros(&mut check, "priceCacheRead", input.price_cache_read),
                price_cache_write: micros(&mut check, "priceCacheWrite", input.price_cache_write),
                context_window: check.range("contextWindow", input.context_window, whole.clone()),
                max_output: check.range("maxOutput", input.max_output, whole),
                supports_vision: input.supports_vision,
                supports_tools: input.supports_tools,
                supports_streaming: input.supports_streaming,
                supports_thinking: input.supports_thinking,
                is_deprecated: false,
            };
            if let Err(faults) = check.faults() {
                return Ok(Outcome::refused(None, faults));
            }
            let insert = model::Entity::insert(row.clone().into_active_model());
            match insert.exec_without_returning(&change.transaction).await {
                Err(error) if is_taken(&error) => {
                    let message = "Another model of the provider has this name.";
                    let taken = UserError::new("name", UserErrorCode::Taken, message);
                    return Ok(Outcome::fault(None, taken));
                }
                done => done?,
            };
            entry(&row).changed(&mut change, &[]);
            change.commit(vec![id]).await
        });
        ModelPayload::new(ctx, outcome.await?).await
    }

    /// Changes a model. For administrators.
    async fn update_model(
        &self,
        ctx: &Context<'_>,
        input: UpdateModelInput,
    ) -> Result<ModelPayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Model.parse(&input.model_id, "modelId")?;
        let outcome = change(ctx, async |mut change| {
            let rule = Rule::default();
            let row = change.row::<model::Entity>(&rule, id, "modelId");
            let mut new = row.await?.into_active_model();
            let (mut check, mut edits) = (Check::default(), Edits::default());
            input.apply(&mut new, &mut check, &mut edits);
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
        ModelPayload::new(ctx, outcome.await?).await
    }

    /// Deletes a model; personas that prefer it prefer none from then on. For administrators. Codes of `userErrors`: `IN_USE`
    /// while an agent runs on it.
    async fn delete_model(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        ctx.request().admin()?;
        let id = Kind::Model.parse(&input.id, "id")?;
        let outcome = change(ctx, async |mut change| {
            let rule = Rule::default();
            let row = change.lock_for_delete::<model::Entity>(&rule, id, "id");
            let row = row.await?;
            let agents = agent::Column::ModelId.eq(id);
            if change.any::<agent::Entity>(agents).await? {
                let message =
                    "Agents run on the model. Give them another first, or mark it as deprecated.";
                return Ok(Outcome::fault(Some(id), in_use(message)));
            }
            entry(&row).deleted(&mut change);
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Model, id, outcome.await?).await
    }
}

/// A price in millionths of a US dollar.
fn micros(check: &mut Check, field: &str, price: Decimal) -> i64 {
    if price.micros < 0 {
        let message = format!("`{field}` must not be negative.");
        check.fault(field, UserErrorCode::OutOfRange, message);
    }
    price.micros
}

fn entry(row: &model::Model) -> Entry<'_> {
    Entry {
        kind: (Kind::Model, "model.changed"),
        id: row.id,
        name: &row.name,
        updated_at: row.updated_at,
    }
}
