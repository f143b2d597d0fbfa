//! The inputs of the mutations of agents, and their validation.

use std::ops::RangeInclusive;

use async_graphql::{ID, InputObject, MaybeUndefined};
use gathering_entity::{List, agent};
use sea_orm::{ActiveValue, Set};

use crate::{
    agent::AgentStatus,
    catalogue::persona::{MAX_ENTRY, MAX_LIST, MAX_PROMPT, MAX_STYLE, TEMPERATURE},
    circle::members::reviewing,
    data::Edits,
    input::{Check, entries},
};

/// Maximum length of an agent's name, in characters.
const MAX_NAME: usize = 100;
/// The temperature if neither the input nor the persona sets one.
pub(super) const DEFAULT_TEMPERATURE: f64 = 0.7;
/// The allowed review strictness.
const STRICTNESS: RangeInclusive<f64> = 0.0..=1.0;

/// Input for `createAgent`.
#[derive(InputObject)]
pub struct CreateAgentInput {
    /// The name, 1 to 100 characters, unique among the caller's agents.
    name: String,
    /// The persona it is based on. `NOT_FOUND` if there is no such persona.
    persona_id: Option<ID>,
    /// The language model; defaults to that of the persona. `NOT_FOUND` if there is no such model.
    model_id: Option<ID>,
    /// The system prompt, at most 20,000 characters.
    system_prompt: Option<String>,
    /// The personality traits; at most 50 entries of at most 100 characters.
    traits: Option<Vec<String>>,
    /// The competencies; at most 50 entries of at most 100 characters, stored in lower case.
    competencies: Option<Vec<String>>,
    /// The areas of specialization; at most 50 entries of at most 100 characters.
    specializations: Option<Vec<String>>,
    /// The review types it handles: at most 10 values of `ReviewType`, or `all`. Stored in lower case.
    review_types: Option<Vec<String>>,
    /// The communication style, at most 50 characters.
    communication_style: Option<String>,
    /// The strictness as a reviewer, from 0 (lenient) to 1 (strict).
    #[graphql(default = 0.7)]
    review_strictness: f64,
    /// The sampling temperature of its responses, from 0 to 2. Defaults to that of the persona, else 0.7.
    temperature: Option<f64>,
    /// The maximum number of output tokens per response, at least 1. Defaults to the model's limit.
    max_tokens: Option<i32>,
}

/// Input for `updateAgent`. Omitted fields keep their value; null clears a nullable field.
#[derive(InputObject)]
pub struct UpdateAgentInput {
    /// The agent.
    pub(super) agent_id: ID,
    /// Fails with `CONFLICT` unless this is the current version.
    pub(super) expected_version: Option<i32>,
    #[graphql(flatten)]
    pub(super) fields: AgentFields,
    /// `OFFLINE` stops routing of tasks to the agent; `IDLE` takes it back into service.
    /// It becomes `BUSY` immediately if one of its tasks is `IN_PROGRESS`. `BUSY` itself is `INVALID`: the server sets
    /// it.
    pub(super) status: MaybeUndefined<AgentStatus>,
}

/// The fields that can be created and updated. An undefined field keeps its value.
#[derive(InputObject)]
pub(super) struct AgentFields {
    /// The name, 1 to 100 characters, unique among its owner's agents.
    name: MaybeUndefined<String>,
    /// The persona it is based on; its defaults are not applied again. `NOT_FOUND` if there is no such persona.
    pub(super) persona_id: MaybeUndefined<ID>,
    /// The language model. `NOT_FOUND` if there is no such model.
    pub(super) model_id: MaybeUndefined<ID>,
    /// The system prompt, at most 20,000 characters.
    system_prompt: MaybeUndefined<String>,
    /// The personality traits; at most 50 entries of at most 100 characters.
    traits: MaybeUndefined<Vec<String>>,
    /// The competencies; at most 50 entries of at most 100 characters, stored in lower case.
    competencies: MaybeUndefined<Vec<String>>,
    /// The areas of specialization; at most 50 entries of at most 100 characters.
    specializations: MaybeUndefined<Vec<String>>,
    /// The review types it handles: at most 10 values of `ReviewType`, or `all`. Stored in lower case.
    review_types: MaybeUndefined<Vec<String>>,
    /// The communication style, at most 50 characters.
    communication_style: MaybeUndefined<String>,
    /// The strictness as a reviewer, from 0 (lenient) to 1 (strict).
    review_strictness: MaybeUndefined<f64>,
    /// The sampling temperature of its responses, from 0 to 2.
    temperature: MaybeUndefined<f64>,
    /// The maximum number of output tokens per response, at least 1; null for the model's limit.
    max_tokens: MaybeUndefined<i32>,
}

impl From<CreateAgentInput> for AgentFields {
    fn from(input: CreateAgentInput) -> Self {
        Self {
            name: MaybeUndefined::Value(input.name),
            persona_id: Some(input.persona_id).into(),
            model_id: Some(input.model_id).into(),
            system_prompt: Some(input.system_prompt).into(),
            traits: Some(input.traits).into(),
            competencies: Some(input.competencies).into(),
            specializations: Some(input.specializations).into(),
            review_types: Some(input.review_types).into(),
            communication_style: Some(input.communication_style).into(),
            review_strictness: MaybeUndefined::Value(input.review_strictness),
            temperature: input.temperature.map(Some).into(),
            max_tokens: Some(input.max_tokens).into(),
        }
    }
}

impl AgentFields {
    /// Applies the changed fields and adds validation errors to `check`. The persona and the model are handled by the
    /// caller.
    pub(super) fn apply(&self, new: &mut agent::ActiveModel, check: &mut Check, edits: &mut Edits) {
        let name = check.if_given("name", &self.name);
        let name = name.map(|name| check.name("name", name, MAX_NAME));
        let (name, name_key) = name.unzip();
        edits.set("name", &mut new.name, name);
        if let Some(key) = name_key {
            new.name_key = Set(key);
        }
        let prompt = self.system_prompt.as_opt_deref();
        let prompt = prompt.map(|text| check.optional_text("systemPrompt", text, MAX_PROMPT));
        edits.set("systemPrompt", &mut new.system_prompt, prompt);
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
        let words = entries(&self.competencies)
            .map(|words| check.words("competencies", words, MAX_LIST, MAX_ENTRY));
        edits.set("competencies", &mut new.competencies, words);
        let words = entries(&self.review_types).map(|words| reviewing(check, "reviewTypes", words));
        edits.set("reviewTypes", &mut new.review_types, words);
        let style = self.communication_style.as_opt_deref();
        let style = style.map(|line| check.optional_line("communicationStyle", line, MAX_STYLE));
        edits.set("communicationStyle", &mut new.communication_style, style);
        let mut number = |field,
                          value: &MaybeUndefined<f64>,
                          bounds: RangeInclusive<f64>,
                          column: &mut ActiveValue<f64>| {
            let value = check.if_given(field, value);
            let value = value.map(|value| check.range(field, *value, bounds));
            edits.set(field, column, value);
        };
        number(
            "reviewStrictness",
            &self.review_strictness,
            STRICTNESS,
            &mut new.review_strictness,
        );
        number(
            "temperature",
            &self.temperature,
            TEMPERATURE,
            &mut new.temperature,
        );
        let tokens = self.max_tokens.as_opt_ref();
        let tokens = tokens.map(|tokens| max_tokens(check, tokens.copied()));
        edits.set("maxTokens", &mut new.max_tokens, tokens);
    }
}

fn max_tokens(check: &mut Check, value: Option<i32>) -> Option<i32> {
    value.map(|value| check.range("maxTokens", value, 1..=i32::MAX))
}
