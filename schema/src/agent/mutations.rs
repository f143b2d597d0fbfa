//! The mutations of agents.

use async_graphql::{Context, Object, SimpleObject};
use gathering_entity::{agent, model, persona};
use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, ModelTrait, Set, TryIntoModel};
use serde_json::json;
use uuid::Uuid;

use crate::{
    agent::{
        Agent, AgentStatus, event,
        inputs::{AgentFields, CreateAgentInput, DEFAULT_TEMPERATURE, UpdateAgentInput},
        workflow,
    },
    data::{Change, Edits, Outcome, change, check_version, unique},
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
        let outcome = change(ctx, None, async |mut change| {
            let persona = change
                .lock_reference::<persona::Entity>(persona, "personaId")
                .await?;
            let default_model = persona.as_ref().and_then(|row| row.default_model_id);
            let model = model.or(default_model);
            change
                .lock_reference::<model::Entity>(model, "modelId")
                .await?;
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
            let insert = agent::Entity::insert(row.clone().into_active_model());
            let inserted = insert.exec_without_returning(&change.transaction).await;
            unique(inserted, name_taken)?;
            change.append(event::changed(EventType::AgentCreated, &row, &[]));
            change.commit(vec![id]).await
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
        let outcome = change(ctx, Some(id), async |mut change| {
            let rule = &change.viewer.rules().agent;
            let row = change.row::<agent::Entity>(rule, id, "agentId").await?;
            let row = editable(&change, row)?;
            check_version(input.expected_version, row.version)?;
            change
                .lock_reference::<persona::Entity>(persona.flatten(), "personaId")
                .await?;
            change
                .lock_reference::<model::Entity>(model.flatten(), "modelId")
                .await?;

            let (from, version) = (row.status, row.version);
            let mut new = row.into_active_model();
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

            let to = workflow::new_status(&change, id, from, status).await?;
            if edits.is_empty() && to == from {
                return change.commit(vec![id]).await;
            }
            new.status = Set(to);
            new.version = Set(version + 1);
            new.updated_at = Set(change.now);
            let row = unique(new.update(&change.transaction).await, name_taken)?;
            if !edits.is_empty() {
                change.append(event::changed(EventType::AgentUpdated, &row, edits.names()));
            }
            if to != from {
                change.append(event::status_changed(&row, from));
            }
            change.commit(vec![id]).await
        });
        AgentPayload::new(ctx, outcome.await?).await
    }

    /// Deletes an agent.
    /// It leaves its circles; its messages are kept. Requires its owner or an administrator. `userErrors` codes:
    /// `CONFLICT` (version); `IN_USE` while it has a task that is neither `PENDING` nor ended, or takes part in a
    /// conversation that has not ended.
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
            workflow::check_unused(&change, id).await?;
            workflow::leave_circles(&mut change, id).await?;
            change.append(event::changed(EventType::AgentDeleted, &row, &[]));
            row.delete(&change.transaction).await?;
            change.commit(vec![]).await
        });
        DeletePayload::new(ctx, Kind::Agent, id, outcome.await?).await
    }
}

/// Returns the agent if the viewer may change it.
///
/// # Errors
/// `FORBIDDEN` for an agent that the viewer may read, but not change.
fn editable(change: &Change<'_>, row: agent::Model) -> Result<agent::Model, Error> {
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
