//! The files of the demo data, and the rows that they describe.

use gathering_entity::agent::{self, AgentStatus};
use gathering_entity::circle::{self, CircleStatus};
use gathering_entity::collaborator::{self, CollaboratorRole};
use gathering_entity::conversation::{self, ConversationStatus};
use gathering_entity::member::{self, MemberRole};
use gathering_entity::message::{self, MessageRole};
use gathering_entity::task::{self, Priority, TaskStatus};
use gathering_entity::user::{self, UserRole};
use gathering_entity::{List, model, participant, persona, project, provider};
use sea_orm::prelude::DateTimeUtc;
use sea_orm::{ActiveEnum, Set};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};

use crate::{Ids, SeedError, Table, made};

/// Everything in the files. Row n of a table is the nth of its list.
pub(crate) struct Data {
    pub(crate) users: Vec<User>,
    providers: Vec<Provider>,
    models: Vec<Model>,
    personas: Vec<Persona>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) projects: Vec<Project>,
    pub(crate) circles: Vec<Circle>,
    collaborators: Vec<Collaborator>,
    pub(crate) members: Vec<Member>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) conversations: Vec<Conversation>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct User {
    email: String,
    name: String,
    #[serde(deserialize_with = "word")]
    role: UserRole,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    display_name: String,
    #[serde(default)]
    is_local: bool,
}

/// Prices are in cents, for a million tokens.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Model {
    provider: String,
    name: String,
    display_name: String,
    input_cents: i64,
    output_cents: i64,
    #[serde(default)]
    is_deprecated: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Persona {
    name: String,
    display_name: String,
    category: String,
    role: String,
    model: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Agent {
    pub(crate) name: String,
    persona: Option<String>,
    model: Option<String>,
    competencies: Vec<String>,
    #[serde(default)]
    review_types: Vec<String>,
    #[serde(deserialize_with = "word")]
    status: AgentStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Project {
    pub(crate) name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Circle {
    pub(crate) name: String,
    pub(crate) project: Option<String>,
    #[serde(deserialize_with = "word")]
    status: CircleStatus,
    max_members: i32,
    started_at: Option<DateTimeUtc>,
    stopped_at: Option<DateTimeUtc>,
    archived_at: Option<DateTimeUtc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Collaborator {
    circle: String,
    user: String,
    #[serde(deserialize_with = "word")]
    role: CollaboratorRole,
}

/// Active unless it has left.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Member {
    pub(crate) circle: String,
    pub(crate) agent: String,
    #[serde(deserialize_with = "word")]
    pub(crate) role: MemberRole,
    joined_at: DateTimeUtc,
    left_at: Option<DateTimeUtc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Task {
    pub(crate) circle: String,
    pub(crate) title: String,
    #[serde(deserialize_with = "word")]
    pub(crate) priority: Priority,
    #[serde(deserialize_with = "word")]
    status: TaskStatus,
    assignee: Option<String>,
    reviewer: Option<String>,
    started_at: Option<DateTimeUtc>,
    submitted_at: Option<DateTimeUtc>,
    completed_at: Option<DateTimeUtc>,
    result: Option<String>,
    review_note: Option<String>,
    status_note: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Conversation {
    /// The name in its messages.
    key: String,
    pub(crate) topic: String,
    pub(crate) circle: Option<String>,
    /// The agents, in speaking order.
    participants: Vec<String>,
    #[serde(deserialize_with = "word")]
    status: ConversationStatus,
    max_turns: i32,
}

/// Written by an agent, or by the owner where none is named.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Message {
    conversation: String,
    agent: Option<String>,
    text: String,
    #[serde(default)]
    mentions: Vec<String>,
}

/// A value of an enumeration, spelled as in the database.
fn word<'de, D: Deserializer<'de>, E: ActiveEnum<Value = String>>(from: D) -> Result<E, D::Error> {
    let word = String::deserialize(from)?;
    E::try_from_value(&word).map_err(D::Error::custom)
}

impl Data {
    /// # Errors
    /// A file is malformed.
    pub(crate) fn read() -> Result<Self, SeedError> {
        Ok(Self {
            users: rows("users", include_str!("../data/users.json"))?,
            providers: rows("providers", include_str!("../data/providers.json"))?,
            models: rows("models", include_str!("../data/models.json"))?,
            personas: rows("personas", include_str!("../data/personas.json"))?,
            agents: rows("agents", include_str!("../data/agents.json"))?,
            projects: rows("projects", include_str!("../data/projects.json"))?,
            circles: rows("circles", include_str!("../data/circles.json"))?,
            collaborators: rows("collaborators", include_str!("../data/collaborators.json"))?,
            members: rows("members", include_str!("../data/members.json"))?,
            tasks: rows("tasks", include_str!("../data/tasks.json"))?,
            conversations: rows("conversations", include_str!("../data/conversations.json"))?,
            messages: rows("messages", include_str!("../data/messages.json"))?,
        })
    }

    pub(crate) fn ids(&self) -> Ids {
        let mut ids = Ids::default();
        ids.add(Table::User, self.users.iter().map(|row| &row.email));
        ids.add(Table::Provider, self.providers.iter().map(|row| &row.name));
        ids.add(Table::Model, self.models.iter().map(|row| &row.name));
        ids.add(Table::Persona, self.personas.iter().map(|row| &row.name));
        ids.add(Table::Agent, self.agents.iter().map(|row| &row.name));
        ids.add(Table::Project, self.projects.iter().map(|row| &row.name));
        ids.add(Table::Circle, self.circles.iter().map(|row| &row.name));
        let conversations = self.conversations.iter().map(|row| &row.key);
        ids.add(Table::Conversation, conversations);
        ids
    }

    pub(crate) fn users(&self, hashes: Vec<String>) -> Vec<user::ActiveModel> {
        (1..)
            .zip(self.users.iter().zip(hashes))
            .map(|(n, (row, hash))| user::ActiveModel {
                id: Set(Table::User.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(made(n)),
                email: Set(row.email.clone()),
                email_key: Set(row.email.clone()),
                name: Set(row.name.clone()),
                password_hash: Set(hash),
                role: Set(row.role),
                ..Default::default()
            })
            .collect()
    }

    pub(crate) fn providers(&self) -> Vec<provider::ActiveModel> {
        (1..)
            .zip(&self.providers)
            .map(|(n, row)| provider::ActiveModel {
                id: Set(Table::Provider.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(made(n)),
                name: Set(row.name.clone()),
                display_name: Set(row.display_name.clone()),
                is_local: Set(row.is_local),
                ..Default::default()
            })
            .collect()
    }

    pub(crate) fn models(&self, ids: &Ids) -> Result<Vec<model::ActiveModel>, SeedError> {
        each(&self.models, |n, row| {
            Ok(model::ActiveModel {
                id: Set(Table::Model.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(made(n)),
                provider_id: Set(ids.get(Table::Provider, &row.provider)?),
                name: Set(row.name.clone()),
                display_name: Set(row.display_name.clone()),
                price_input: Set(row.input_cents * 10_000),
                price_output: Set(row.output_cents * 10_000),
                is_deprecated: Set(row.is_deprecated),
                ..Default::default()
            })
        })
    }

    pub(crate) fn personas(&self, ids: &Ids) -> Result<Vec<persona::ActiveModel>, SeedError> {
        each(&self.personas, |n, row| {
            Ok(persona::ActiveModel {
                id: Set(Table::Persona.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(made(n)),
                name: Set(row.name.clone()),
                name_key: Set(row.name.clone()),
                display_name: Set(row.display_name.clone()),
                role: Set(row.role.clone()),
                category: Set(Some(row.category.clone())),
                default_model_id: Set(Some(ids.get(Table::Model, &row.model)?)),
                is_builtin: Set(true),
                ..Default::default()
            })
        })
    }

    pub(crate) fn agents(&self, ids: &Ids) -> Result<Vec<agent::ActiveModel>, SeedError> {
        each(&self.agents, |n, row| {
            Ok(agent::ActiveModel {
                id: Set(Table::Agent.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(made(n)),
                owner_id: Set(ids.owner()?),
                name: Set(row.name.clone()),
                name_key: Set(row.name.to_lowercase()),
                persona_id: Set(ids.find(Table::Persona, row.persona.as_ref())?),
                model_id: Set(ids.find(Table::Model, row.model.as_ref())?),
                competencies: Set(List(row.competencies.clone())),
                review_types: Set(List(row.review_types.clone())),
                status: Set(row.status),
                last_active_at: Set(made(n)),
                ..Default::default()
            })
        })
    }

    pub(crate) fn projects(&self, ids: &Ids) -> Result<Vec<project::ActiveModel>, SeedError> {
        each(&self.projects, |n, row| {
            Ok(project::ActiveModel {
                id: Set(Table::Project.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(made(n)),
                owner_id: Set(ids.owner()?),
                name: Set(row.name.clone()),
                name_key: Set(row.name.to_lowercase()),
                ..Default::default()
            })
        })
    }

    pub(crate) fn circles(&self, ids: &Ids) -> Result<Vec<circle::ActiveModel>, SeedError> {
        each(&self.circles, |n, row| {
            let moments = [row.started_at, row.stopped_at, row.archived_at];
            Ok(circle::ActiveModel {
                id: Set(Table::Circle.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(latest(n, moments)),
                owner_id: Set(ids.owner()?),
                project_id: Set(ids.find(Table::Project, row.project.as_ref())?),
                name: Set(row.name.clone()),
                name_key: Set(row.name.to_lowercase()),
                status: Set(row.status),
                max_members: Set(row.max_members),
                started_at: Set(row.started_at),
                stopped_at: Set(row.stopped_at),
                archived_at: Set(row.archived_at),
                ..Default::default()
            })
        })
    }

    pub(crate) fn collaborators(
        &self,
        ids: &Ids,
    ) -> Result<Vec<collaborator::ActiveModel>, SeedError> {
        each(&self.collaborators, |n, row| {
            Ok(collaborator::ActiveModel {
                id: Set(Table::Collaborator.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(made(n)),
                circle_id: Set(ids.get(Table::Circle, &row.circle)?),
                user_id: Set(ids.get(Table::User, &row.user)?),
                role: Set(row.role),
                added_by: Set(Some(ids.owner()?)),
            })
        })
    }

    pub(crate) fn members(&self, ids: &Ids) -> Result<Vec<member::ActiveModel>, SeedError> {
        each(&self.members, |n, row| {
            Ok(member::ActiveModel {
                id: Set(Table::Member.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(latest(n, [row.left_at])),
                circle_id: Set(ids.get(Table::Circle, &row.circle)?),
                agent_id: Set(ids.get(Table::Agent, &row.agent)?),
                role: Set(row.role),
                is_active: Set(row.left_at.is_none()),
                joined_at: Set(row.joined_at),
                left_at: Set(row.left_at),
                ..Default::default()
            })
        })
    }

    pub(crate) fn tasks(&self, ids: &Ids) -> Result<Vec<task::ActiveModel>, SeedError> {
        each(&self.tasks, |n, row| {
            let moments = [row.started_at, row.submitted_at, row.completed_at];
            let cycle = row.started_at.zip(row.completed_at);
            let cycle = cycle.map(|(start, end)| (end - start).num_seconds());
            let priority_rank = match row.priority {
                Priority::Low => 8,
                Priority::Medium => 5,
                Priority::High => 3,
                Priority::Critical => 1,
            };
            Ok(task::ActiveModel {
                id: Set(Table::Task.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(latest(n, moments)),
                circle_id: Set(ids.get(Table::Circle, &row.circle)?),
                title: Set(row.title.clone()),
                priority: Set(row.priority),
                priority_rank: Set(priority_rank),
                status: Set(row.status),
                assignee_id: Set(ids.find(Table::Agent, row.assignee.as_ref())?),
                reviewer_id: Set(ids.find(Table::Agent, row.reviewer.as_ref())?),
                created_by: Set(Some(ids.owner()?)),
                requires_review: Set(true),
                review_round: Set(row.submitted_at.is_some().into()),
                review_note: Set(row.review_note.clone()),
                status_note: Set(row.status_note.clone()),
                result: Set(row.result.clone()),
                started_at: Set(row.started_at),
                submitted_at: Set(row.submitted_at),
                completed_at: Set(row.completed_at),
                cycle_seconds: Set(cycle.and_then(|seconds| seconds.try_into().ok())),
                ..Default::default()
            })
        })
    }

    /// A conversation was started with its first message, and ended with its last.
    pub(crate) fn conversations(
        &self,
        ids: &Ids,
    ) -> Result<Vec<conversation::ActiveModel>, SeedError> {
        use ConversationStatus::{Active, Cancelled, Completed, Paused};
        each(&self.conversations, |n, row| {
            let messages: Vec<_> = self.messages_of(row).collect();
            let first = messages.first().map(|(n, _)| made(*n));
            let last = messages.last().map(|(n, _)| made(*n));
            let turns = messages.iter().filter(|(_, row)| row.agent.is_some());
            let turns = turns.count();
            let next = turns % row.participants.len();
            let next_speaker = matches!(row.status, Active | Paused)
                .then(|| ids.get(Table::Agent, &row.participants[next]))
                .transpose()?;
            let is_ended = matches!(row.status, Completed | Cancelled);
            Ok(conversation::ActiveModel {
                id: Set(Table::Conversation.id(n)),
                created_at: Set(made(n)),
                updated_at: Set(latest(n, [last])),
                owner_id: Set(ids.owner()?),
                circle_id: Set(ids.find(Table::Circle, row.circle.as_ref())?),
                topic: Set(row.topic.clone()),
                max_turns: Set(row.max_turns),
                turns_taken: Set(count(turns)),
                next_index: Set(count(next)),
                next_speaker_id: Set(next_speaker),
                last_seq: Set(count(messages.len())),
                status: Set(row.status),
                started_at: Set(first),
                last_message_at: Set(last),
                ended_at: Set(last.filter(|_| is_ended)),
                ..Default::default()
            })
        })
    }

    pub(crate) fn participants(
        &self,
        ids: &Ids,
    ) -> Result<Vec<participant::ActiveModel>, SeedError> {
        let of_conversation = |(n, row): (u32, &Conversation)| {
            let participants = (0..).zip(row.participants.clone());
            participants.map(move |(position, agent)| (n, position, agent))
        };
        (1..)
            .zip(&self.conversations)
            .flat_map(of_conversation)
            .map(|(n, position, agent)| {
                Ok(participant::ActiveModel {
                    conversation_id: Set(Table::Conversation.id(n)),
                    agent_id: Set(ids.get(Table::Agent, &agent)?),
                    position: Set(position),
                    joined_at: Set(made(n)),
                })
            })
            .collect()
    }

    pub(crate) fn messages(&self, ids: &Ids) -> Result<Vec<message::ActiveModel>, SeedError> {
        let owner = self
            .users
            .iter()
            .find(|user| user.email == crate::DEMO_EMAIL);
        let owner = owner.map(|user| user.name.as_str()).unwrap_or_default();
        let mut rows = Vec::with_capacity(self.messages.len());
        for conversation in &self.conversations {
            for (seq, (n, row)) in (1..).zip(self.messages_of(conversation)) {
                let agent = row.agent.as_ref();
                let mentions = row.mentions.iter().map(|name| {
                    let id = ids.get(Table::Agent, name)?;
                    Ok(id.to_string())
                });
                rows.push(message::ActiveModel {
                    id: Set(Table::Message.id(n)),
                    created_at: Set(made(n)),
                    conversation_id: Set(ids.get(Table::Conversation, &row.conversation)?),
                    seq: Set(seq),
                    role: Set(match agent {
                        Some(_) => MessageRole::Assistant,
                        None => MessageRole::User,
                    }),
                    agent_id: Set(ids.find(Table::Agent, agent)?),
                    user_id: Set(match agent {
                        Some(_) => None,
                        None => Some(ids.owner()?),
                    }),
                    author_name: Set(agent.map_or(owner, |name| name).to_owned()),
                    content: Set(row.text.clone()),
                    mentions: Set(List(mentions.collect::<Result<_, SeedError>>()?)),
                    ..Default::default()
                });
            }
        }
        Ok(rows)
    }

    /// The messages of a conversation with the numbers of their rows.
    fn messages_of(&self, conversation: &Conversation) -> impl Iterator<Item = (u32, &Message)> {
        (1..)
            .zip(&self.messages)
            .filter(|(_, row)| row.conversation == conversation.key)
    }
}

fn rows<R: DeserializeOwned>(noun: &str, text: &str) -> Result<Vec<R>, SeedError> {
    serde_json::from_str(text).map_err(|error| SeedError::Data(format!("{noun}.json: {error}")))
}

fn each<R, A>(
    rows: &[R],
    make: impl Fn(u32, &R) -> Result<A, SeedError>,
) -> Result<Vec<A>, SeedError> {
    (1..).zip(rows).map(|(n, row)| make(n, row)).collect()
}

/// When row n was last changed: the latest of these times, or its creation time.
fn latest<const N: usize>(n: u32, moments: [Option<DateTimeUtc>; N]) -> DateTimeUtc {
    moments
        .into_iter()
        .flatten()
        .fold(made(n), DateTimeUtc::max)
}

fn count(rows: usize) -> i32 {
    rows.try_into().unwrap_or(i32::MAX)
}
