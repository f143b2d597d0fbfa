//! The mutations of agents.

use async_graphql::{Context, Object, SimpleObject};
use gathering_entity::{agent, model, persona};
use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, IdenStatic, IntoActiveModel, QueryFilter,
    QueryResult, QuerySelect, QueryTrait, Set, TryIntoModel,
    sea_query::{Expr, Query, SelectStatement},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    agent::{
        Agent, AgentStatus, event,
        inputs::{AgentFields, CreateAgentInput, DEFAULT_TEMPERATURE, UpdateAgentInput},
        workflow,
    },
    data::{Change, Edits, Outcome, change, check_version, draft},
    db::revision,
    deletion::{DeleteInput, DeletePayload},
    error::Error,
    events::EventType,
    id::Kind,
    input::{Check, UserError, UserErrorCode},
};

/// Payload of `createAgent` and `updateAgent`.
#[derive(SimpleObject)]
pub struct AgentPayload {
    /// The agent in its current state; null if there is none.
    agent: Option<Agent>,
    /// Errors that the caller can correct; empty on success.
    user_errors: Vec<UserError>,
}

impl AgentPayload {
    async fn new(ctx: &Context<'_>, outcome: Outcome) -> Result<Self, Error> {
        Ok(Self {
            agent: outcome.row::<Agent>(ctx).await?,
            user_errors: outcome.errors,
        })
    }
}

/// Agent mutations.
#[derive(Default)]
pub struct AgentMutation;

#[Object]
impl AgentMutation {
    /// Creates an agent owned by the caller. `userErrors` codes besides input validation: `TAKEN` (name).
    async fn create_agent(
        &self,
        ctx: &Context<'_>,
        input: CreateAgentInput,
    ) -> Result<AgentPayload, Error> {
        let fields = AgentFields::from(input);
        let persona = Kind::Persona.parse_new(&fields.persona_id, "personaId")?;
        let model = Kind::Model.parse_new(&fields.model_id, "modelId")?;
        let (persona, model) = (persona.flatten(), model.flatten());
        let id = Uuid::now_v7();
        let outcome = draft(ctx, None, async |mut change| {
            let references = References { persona, model };
            let mut persona_row = None;
            if persona.is_some() || model.is_some() {
                let mut select = Query::select();
                references.select(&mut select);
                let row = change
                    .read(change.build(&select))
                    .await?
                    .ok_or_else(Error::conflict)?;
                persona_row = references.found(&row)?;
            }
            let persona = persona_row;
            let default_model = persona.as_ref().and_then(|row| row.default_model_id);
            let model = model.or(default_model);
            let mut new = agent::ActiveModel {
                id: Set(id),
                created_at: Set(change.now),
                updated_at: Set(change.now),
                version: Set(1),
                owner_id: Set(change.viewer.id()),
                persona_id: Set(persona.as_ref().map(|persona| persona.id)),
                model_id: Set(model),
                competency_scores: Set(json!({})),
                temperature: Set(persona.map_or(DEFAULT_TEMPERATURE, |row| row.default_temperature)),
                status: Set(agent::AgentStatus::Idle),
                reviews_total: Set(0),
                reviews_approved: Set(0),
                last_active_at: Set(change.now),
                ..Default::default()
            };
            let mut check = Check::default();
            fields.apply(&mut new, &mut check, &mut Edits::default());
            check.faults()?;
            let row = new.try_into_model()?;
            change.unique(name_taken);
            change.insert([row.clone().into_active_model()]);
            change.append(event::changed(EventType::AgentCreated, &row, &[]));
            Ok(change.commit(vec![id]).await?.with_row(row))
        });
        AgentPayload::new(ctx, outcome.await?).await
    }

    /// Updates an agent.
    /// Requires its owner or an administrator. `userErrors` codes besides input validation: `TAKEN` (name); `CONFLICT`
    /// (version).
    async fn update_agent(
        &self,
        ctx: &Context<'_>,
        input: UpdateAgentInput,
    ) -> Result<AgentPayload, Error> {
        let id = Kind::Agent.parse(&input.agent_id, "agentId")?;
        let persona = Kind::Persona.parse_new(&input.fields.persona_id, "personaId")?;
        let model = Kind::Model.parse_new(&input.fields.model_id, "modelId")?;
        let references = References {
            persona: persona.flatten(),
            model: model.flatten(),
        };
        let outcome = draft(ctx, Some(id), async |mut change| {
            let is_agent = change.viewer.rules().agent.and(agent::Column::Id.eq(id));
            change.reserve::<agent::Entity>(is_agent.clone()).await?;
            let mut select = agent::Entity::find().filter(is_agent).into_query();
            select
                .expr_as(revision::<agent::Entity>(change.backend()), "revision")
                .expr_as(workflow::is_at_work(id), "is_at_work");
            references.select(&mut select);
            let read = change.read(change.build(&select)).await?;
            let read = read.ok_or_else(|| Error::not_found("agentId"))?;
            let row = editable(&change, agent::Model::from_query_result(&read, "")?)?;
            let revision: String = read.try_get("", "revision")?;
            change.hold::<agent::Entity>(id, &revision);
            check_version(input.expected_version, row.version)?;
            references.found(&read)?;
            let (from, version) = (row.status, row.version);
            let mut new = row.clone().into_active_model();
            let (mut check, mut edits) = (Check::default(), Edits::default());
            input.fields.apply(&mut new, &mut check, &mut edits);
            edits.set("personaId", &mut new.persona_id, persona);
            edits.set("modelId", &mut new.model_id, model);
            let status = check.if_given("status", &input.status).copied();
            if status == Some(AgentStatus::Busy) {
                let message = "BUSY is set by the server and cannot be requested.";
                check.fault("status", UserErrorCode::Invalid, message);
            }
            check.faults()?;

            let is_at_work: bool = read.try_get("", "is_at_work")?;
            let to = workflow::new_status(from, status, is_at_work);
            if edits.is_empty() && to == from {
                return Ok(change.commit(vec![id]).await?.with_row(row));
            }
            new.status = Set(to);
            new.version = Set(version + 1);
            new.updated_at = Set(change.now);
            let before = row;
            let row = new.try_into_model()?;
            change.unique(name_taken);
            change.update_row(id, &before, &row);
            if !edits.is_empty() {
                change.append(event::changed(EventType::AgentUpdated, &row, edits.names()));
            }
            if to != from {
                change.append(event::status_changed(&row, from));
            }
            Ok(change.commit(vec![id]).await?.with_row(row))
        });
        AgentPayload::new(ctx, outcome.await?).await
    }

    /// Deletes an agent.
    /// It leaves its circles, and its API keys are revoked; its messages are kept. Requires its owner or an
    /// administrator. `userErrors` codes: `CONFLICT` (version); `IN_USE` while it has a task that is neither `PENDING`
    /// nor ended, or takes part in a conversation that has not ended.
    async fn delete_agent(
        &self,
        ctx: &Context<'_>,
        input: DeleteInput,
    ) -> Result<DeletePayload, Error> {
        let id = Kind::Agent.parse(&input.id, "id")?;
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = &change.viewer.rules().agent;
            let row = change
                .lock_for_delete::<agent::Entity>(rule, id, "id")
                .await?;
            let row = editable(&change, row)?;
            check_version(input.expected_version, row.version)?;
            workflow::delete(&mut change, row).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Agent, id, outcome.await?).await
    }
}

/// The persona and the model that an input names.
struct References {
    persona: Option<Uuid>,
    model: Option<Uuid>,
}

/// The defaults of the persona that an input names.
struct FoundPersona {
    id: Uuid,
    default_model_id: Option<Uuid>,
    default_temperature: f64,
}

impl References {
    /// Adds the columns of [`References::found`].
    fn select(&self, select: &mut SelectStatement) {
        use persona::Column::{DefaultModelId, DefaultTemperature, Id};
        if let Some(id) = self.persona {
            for column in [Id, DefaultModelId, DefaultTemperature] {
                let value = persona::Entity::find_by_id(id).select_only().column(column);
                let name = format!("persona_{}", column.as_str());
                select.expr_as(Expr::from(value.into_query()), name);
            }
        }
        if let Some(id) = self.model {
            let model = model::Entity::find_by_id(id)
                .select_only()
                .column(model::Column::Id);
            select.expr_as(Expr::from(model.into_query()), "found_model_id");
        }
    }

    /// # Errors
    /// `NOT_FOUND` if there is no such persona or model.
    fn found(&self, row: &QueryResult) -> Result<Option<FoundPersona>, Error> {
        let mut found = None;
        if self.persona.is_some() {
            let id: Option<Uuid> = row.try_get("persona_", "id")?;
            found = Some(FoundPersona {
                id: id.ok_or_else(|| Error::not_found("personaId"))?,
                default_model_id: row.try_get("persona_", "default_model_id")?,
                default_temperature: row.try_get("persona_", "default_temperature")?,
            });
        }
        if self.model.is_some() {
            let id: Option<Uuid> = row.try_get("found_", "model_id")?;
            id.ok_or_else(|| Error::not_found("modelId"))?;
        }
        Ok(found)
    }
}

/// Returns the agent if the viewer may change it.
///
/// # Errors
/// `FORBIDDEN` for an agent that the viewer may read, but not change.
pub(crate) fn editable<S>(
    change: &Change<'_, S>,
    row: agent::Model,
) -> Result<agent::Model, Error> {
    if change.viewer.is_admin() || row.owner_id == change.viewer.id() {
        Ok(row)
    } else {
        Err(change.forbidden(Kind::Agent, row.id))
    }
}

fn name_taken() -> UserError {
    let message = "The owner already has an agent with this name.";
    UserError::new("name", UserErrorCode::Taken, message)
}
