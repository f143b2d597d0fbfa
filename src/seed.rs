//! The demo data: the same rows in every database, so that guides, tests and benchmarks can rely on them.
//!
//! Row n of a table, starting at 1, was created n seconds after `start`. Its UUID has that timestamp, and the table's
//! number and n instead of the random bits. Columns that are not set have their default.

use std::collections::HashSet;
use std::fmt;

use argon2::{Argon2, PasswordHasher};
use chrono::TimeDelta;
use gathering_entity::agent::{self, AgentStatus};
use gathering_entity::circle::{self, CircleStatus};
use gathering_entity::collaborator::{self, CollaboratorRole};
use gathering_entity::conversation::{self, ConversationStatus};
use gathering_entity::member::{self, MemberRole};
use gathering_entity::message::{self, MessageRole};
use gathering_entity::task::{self, Priority, TaskStatus};
use gathering_entity::user::{self, UserRole};
use gathering_entity::{List, event, model, participant, persona, project, provider};
use sea_orm::prelude::{DateTimeUtc, Uuid};
use sea_orm::{
    ActiveEnum, ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseConnection,
    DatabaseTransaction, DbBackend, DbErr, EntityTrait, PaginatorTrait, QueryFilter, Set,
    SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use serde_json::{Value, json};

/// The e-mail address of the user who owns the demo data.
pub const DEMO_EMAIL: &str = "demo@example.com";

const DEMO_NAME: &str = "Dana Demo";

/// Why the demo data was not inserted.
#[derive(Debug)]
pub enum SeedError {
    /// The database has users that are not part of the demo data; nothing was written.
    Occupied,
    /// The password cannot be hashed.
    Password,
    /// A statement failed; nothing was written.
    Database(DbErr),
}

impl fmt::Display for SeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Occupied => {
                f.write_str("the database already has users; the demo data needs an empty database")
            }
            Self::Password => f.write_str("the demo password cannot be hashed; choose another"),
            Self::Database(error) => write!(f, "the demo data could not be written: {error}"),
        }
    }
}

impl std::error::Error for SeedError {}

impl From<DbErr> for SeedError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// Inserts the demo data into a migrated database in one transaction; does nothing if it is already there. All demo
/// users get this password.
///
/// # Errors
/// If the database has other users, or cannot be written.
pub async fn seed(db: &DatabaseConnection, password: &str) -> Result<(), SeedError> {
    let transaction = db
        .begin_with_options(TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        })
        .await?;
    if transaction.get_database_backend() == DbBackend::Postgres {
        // A concurrent run waits here and then finds the users of the first one.
        transaction
            .execute_unprepared("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")
            .await?;
    }
    let ours = [1, 2, 3].map(|n| Table::User.id(n));
    let others = user::Entity::find().filter(user::Column::Id.is_not_in(ours));
    if others.count(&transaction).await? > 0 {
        return Err(SeedError::Occupied);
    }
    if user::Entity::find().count(&transaction).await? == 0 {
        fill(&transaction, hashes(password).await?).await?;
        transaction.commit().await?;
    }
    Ok(())
}

/// Returns one hash per user, each with its own salt. The crate's defaults are those that OWASP recommends: argon2id
/// with 19 MiB, two passes and one lane.
async fn hashes(password: &str) -> Result<[String; 3], SeedError> {
    let password = password.to_owned();
    let hash = move || {
        let hash = || Argon2::default().hash_password(password.as_bytes());
        Ok([hash()?, hash()?, hash()?].map(|hash| hash.to_string()))
    };
    let hashes: Result<_, argon2::password_hash::Error> = tokio::task::spawn_blocking(hash)
        .await
        .map_err(|_| SeedError::Password)?;
    hashes.map_err(|_| SeedError::Password)
}

async fn fill(db: &DatabaseTransaction, hashes: [String; 3]) -> Result<(), DbErr> {
    let (seats, jobs, talks) = (seats(), jobs(), talks());
    let events = events(&seats, &jobs, &talks);
    insert(db, users(hashes)).await?;
    insert(db, providers()).await?;
    insert(db, models()).await?;
    insert(db, personas()).await?;
    insert(db, agents(&jobs)).await?;
    insert(db, projects()).await?;
    insert(db, circles()).await?;
    insert(db, collaborators()).await?;
    insert(db, seats.iter().map(Seat::row)).await?;
    insert(db, jobs.iter().map(Job::row)).await?;
    insert(db, talks.iter().map(Talk::row)).await?;
    insert(db, talks.iter().flat_map(Talk::participants)).await?;
    insert(db, talks.iter().flat_map(Talk::messages)).await?;
    insert(db, events).await
}

/// Inserts rows that set the same columns, in batches below the limit of bound parameters of either database.
async fn insert<A: ActiveModelTrait>(
    db: &DatabaseTransaction,
    rows: impl IntoIterator<Item = A>,
) -> Result<(), DbErr> {
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        A::Entity::insert_many(rows.by_ref().take(500))
            .exec_without_returning(db)
            .await?;
    }
    Ok(())
}

/// A table, with its number in the ids of its rows.
#[derive(Clone, Copy)]
enum Table {
    User = 1,
    Provider,
    Model,
    Persona,
    Agent,
    Project,
    Circle,
    Collaborator,
    Member,
    Task,
    Conversation,
    Message,
    Event,
}

impl Table {
    /// The id of row n.
    fn id(self, n: u32) -> Uuid {
        const VERSION: u128 = 7 << 76;
        const VARIANT: u128 = 0b10 << 62;
        let milliseconds = u128::from(made(n).timestamp_millis().unsigned_abs());
        Uuid::from_u128(
            milliseconds << 80 | VERSION | (self as u128) << 64 | VARIANT | u128::from(n),
        )
    }
}

/// 2026-01-05T09:00:00Z.
fn start() -> DateTimeUtc {
    DateTimeUtc::UNIX_EPOCH + seconds(1_767_603_600)
}

/// When row n of a table was created.
fn made(n: u32) -> DateTimeUtc {
    start() + seconds(n)
}

fn seconds(n: u32) -> TimeDelta {
    TimeDelta::seconds(n.into())
}

/// The owner of all demo objects.
fn demo() -> Uuid {
    Table::User.id(2)
}

fn users(hashes: [String; 3]) -> Vec<user::ActiveModel> {
    [
        ("admin@example.com", "Ada Admin", UserRole::Admin),
        (DEMO_EMAIL, DEMO_NAME, UserRole::User),
        ("guest@example.com", "Grace Guest", UserRole::User),
    ]
    .into_iter()
    .zip(hashes)
    .zip(1..)
    .map(|(((email, name, role), hash), n)| user::ActiveModel {
        id: Set(Table::User.id(n)),
        created_at: Set(made(n)),
        updated_at: Set(made(n)),
        email: Set(email.to_owned()),
        email_key: Set(email.to_owned()),
        name: Set(name.to_owned()),
        password_hash: Set(hash),
        role: Set(role),
        ..Default::default()
    })
    .collect()
}

struct Provider {
    name: &'static str,
    display_name: &'static str,
    models: &'static [Model],
}

/// Name, display name, and the prices of a million input and output tokens, in cents.
type Model = (&'static str, &'static str, i64, i64);

const PROVIDERS: [Provider; 8] = [
    Provider {
        name: "anthropic",
        display_name: "Anthropic",
        models: &[
            ("claude-opus-4-5", "Claude Opus 4.5", 1500, 7500),
            ("claude-sonnet-4", "Claude Sonnet 4", 300, 1500),
            ("claude-haiku-3-5", "Claude Haiku 3.5", 80, 400),
        ],
    },
    Provider {
        name: "openai",
        display_name: "OpenAI",
        models: &[
            ("gpt-4o", "GPT-4o", 250, 1000),
            ("gpt-4o-mini", "GPT-4o mini", 15, 60),
            ("o1", "o1", 1500, 6000),
            ("o3-mini", "o3-mini", 110, 440),
        ],
    },
    Provider {
        name: "deepseek",
        display_name: "DeepSeek",
        models: &[
            ("deepseek-v3", "DeepSeek V3", 27, 110),
            ("deepseek-r1", "DeepSeek R1", 55, 219),
            ("deepseek-coder", "DeepSeek Coder", 14, 28),
        ],
    },
    Provider {
        name: "mistral",
        display_name: "Mistral",
        models: &[
            ("mistral-large", "Mistral Large", 200, 600),
            ("mistral-small", "Mistral Small", 20, 60),
            ("codestral", "Codestral", 30, 90),
            ("pixtral-large", "Pixtral Large", 200, 600),
        ],
    },
    Provider {
        name: "google",
        display_name: "Google",
        models: &[
            ("gemini-2-flash", "Gemini 2 Flash", 10, 40),
            ("gemini-2-pro", "Gemini 2 Pro", 125, 500),
        ],
    },
    Provider {
        name: "ollama",
        display_name: "Ollama",
        models: &[
            ("llama-3-3-70b", "Llama 3.3 70B", 0, 0),
            ("llama-3-2", "Llama 3.2", 0, 0),
            ("qwen-2-5-coder", "Qwen 2.5 Coder", 0, 0),
            ("deepseek-r1-local", "DeepSeek R1 (local)", 0, 0),
            ("mistral-local", "Mistral (local)", 0, 0),
        ],
    },
    Provider {
        name: "groq",
        display_name: "Groq",
        models: &[
            ("groq-llama-3-3-70b", "Llama 3.3 70B on Groq", 59, 79),
            ("groq-mixtral", "Mixtral on Groq", 24, 24),
        ],
    },
    Provider {
        name: "together",
        display_name: "Together",
        models: &[],
    },
];

/// The deprecated models: the last ones of two providers.
const DEPRECATED: [&str; 2] = ["o3-mini", "groq-mixtral"];

fn providers() -> impl Iterator<Item = provider::ActiveModel> {
    (1..)
        .zip(PROVIDERS)
        .map(|(n, provider)| provider::ActiveModel {
            id: Set(Table::Provider.id(n)),
            created_at: Set(made(n)),
            updated_at: Set(made(n)),
            name: Set(provider.name.to_owned()),
            display_name: Set(provider.display_name.to_owned()),
            is_local: Set(provider.name == "ollama"),
            ..Default::default()
        })
}

fn models() -> impl Iterator<Item = model::ActiveModel> {
    let of_providers = (1..).zip(PROVIDERS);
    let models = of_providers.flat_map(|(p, provider)| provider.models.iter().map(move |m| (p, m)));
    (1..).zip(models).map(
        |(n, (p, (name, display_name, input, output)))| model::ActiveModel {
            id: Set(Table::Model.id(n)),
            created_at: Set(made(n)),
            updated_at: Set(made(n)),
            provider_id: Set(Table::Provider.id(p)),
            name: Set((*name).to_owned()),
            display_name: Set((*display_name).to_owned()),
            price_input: Set(input * 10_000),
            price_output: Set(output * 10_000),
            is_deprecated: Set(DEPRECATED.contains(name)),
            ..Default::default()
        },
    )
}

/// The model that the nth persona or agent uses.
fn model_of(n: u32) -> Uuid {
    Table::Model.id(n % 23 + 1)
}

/// Name, display name, category and role.
const PERSONAS: [[&str; 4]; 12] = [
    [
        "architect",
        "Architect",
        "tech",
        "Designs systems and their interfaces",
    ],
    [
        "reviewer",
        "Reviewer",
        "tech",
        "Reviews changes and reports problems",
    ],
    [
        "analyst",
        "Analyst",
        "business",
        "Analyses data and reports findings",
    ],
    [
        "strategist",
        "Strategist",
        "business",
        "Compares options and plans ahead",
    ],
    ["writer", "Writer", "creative", "Writes clear documentation"],
    [
        "designer",
        "Designer",
        "creative",
        "Designs user interfaces",
    ],
    ["mentor", "Mentor", "coaching", "Trains and supports others"],
    [
        "facilitator",
        "Facilitator",
        "coaching",
        "Moderates discussions",
    ],
    [
        "counsel",
        "Counsel",
        "legal",
        "Advises on contracts and licences",
    ],
    [
        "auditor",
        "Auditor",
        "legal",
        "Checks that rules are followed",
    ],
    ["researcher", "Researcher", "research", "Researches facts"],
    ["librarian", "Librarian", "research", "Organizes knowledge"],
];

fn personas() -> impl Iterator<Item = persona::ActiveModel> {
    (1..).zip(PERSONAS).map(
        |(n, [name, display_name, category, role])| persona::ActiveModel {
            id: Set(Table::Persona.id(n)),
            created_at: Set(made(n)),
            updated_at: Set(made(n)),
            name: Set(name.to_owned()),
            name_key: Set(name.to_owned()),
            display_name: Set(display_name.to_owned()),
            role: Set(role.to_owned()),
            category: Set(Some(category.to_owned())),
            default_model_id: Set(Some(model_of(n))),
            is_builtin: Set(true),
            ..Default::default()
        },
    )
}

const AGENTS: u32 = 150;

const GIVEN_NAMES: [&str; 30] = [
    "Ada", "Alan", "Anita", "Barbara", "Bjarne", "Carol", "Dana", "Dennis", "Donald", "Edsger",
    "Elena", "Emmy", "Erik", "Frances", "Grace", "Guido", "Hedy", "Ivan", "Jean", "John", "Karen",
    "Ken", "Lena", "Linus", "Margaret", "Niklaus", "Radia", "Sophie", "Tony", "Vera",
];

const COMPETENCIES: [&str; 12] = [
    "rust", "sql", "graphql", "testing", "design", "writing", "research", "planning", "security",
    "legal", "data", "support",
];

/// The element at an index modulo the length.
fn nth<T: Copy>(elements: &[T], index: u32) -> T {
    elements[index as usize % elements.len()]
}

fn agent_name(n: u32) -> String {
    format!("{} {}", nth(&GIVEN_NAMES, n - 1), (n - 1) / 30 + 1)
}

fn agents(jobs: &[Job]) -> impl Iterator<Item = agent::ActiveModel> {
    let busy: HashSet<u32> = jobs
        .iter()
        .filter(|job| job.status() == TaskStatus::InProgress)
        .filter_map(Job::assignee)
        .collect();
    (1..=AGENTS).map(move |n| {
        let name = agent_name(n);
        let competencies = [n, 5 * n + 3].map(|at| nth(&COMPETENCIES, at));
        let review_types: &[&str] = if n % 4 == 0 { &["all"] } else { &[] };
        agent::ActiveModel {
            id: Set(Table::Agent.id(n)),
            created_at: Set(made(n)),
            updated_at: Set(made(n)),
            owner_id: Set(demo()),
            name_key: Set(name.to_lowercase()),
            name: Set(name),
            persona_id: Set((n % 7 != 0).then(|| Table::Persona.id(n % 12 + 1))),
            model_id: Set((n % 10 != 0).then(|| model_of(n))),
            competencies: Set(list(&competencies)),
            review_types: Set(list(review_types)),
            status: Set(if n % 20 == 0 {
                AgentStatus::Offline
            } else if busy.contains(&n) {
                AgentStatus::Busy
            } else {
                AgentStatus::Idle
            }),
            last_active_at: Set(made(n)),
            ..Default::default()
        }
    })
}

fn list(words: &[&str]) -> List {
    List(words.iter().map(ToString::to_string).collect())
}

const PROJECTS: [&str; 4] = ["Atlas", "Beacon", "Compass", "Dune"];

fn projects() -> impl Iterator<Item = project::ActiveModel> {
    (1..).zip(PROJECTS).map(|(n, name)| project::ActiveModel {
        id: Set(Table::Project.id(n)),
        created_at: Set(made(n)),
        updated_at: Set(made(n)),
        owner_id: Set(demo()),
        name: Set(name.to_owned()),
        name_key: Set(name.to_lowercase()),
        ..Default::default()
    })
}

struct Circle {
    name: &'static str,
    status: CircleStatus,
    /// Number of active members.
    members: u32,
    tasks: u32,
}

const CIRCLES: [Circle; 12] = {
    use CircleStatus::{Archived, Created, Paused, Running, Stopped};
    const fn circle(name: &'static str, status: CircleStatus, members: u32, tasks: u32) -> Circle {
        Circle {
            name,
            status,
            members,
            tasks,
        }
    }
    [
        circle("Atelier", Running, 20, 60),
        circle("Assembly", Running, 100, 200),
        circle("Solo", Running, 1, 10),
        circle("Empty", Created, 0, 0),
        circle("Library", Running, 8, 20),
        circle("Workshop", Running, 8, 20),
        circle("Pause", Paused, 5, 20),
        circle("Stop", Stopped, 5, 20),
        circle("Archive", Archived, 5, 20),
        circle("North", Running, 10, 20),
        circle("East", Running, 10, 20),
        circle("South", Running, 10, 20),
    ]
};

/// The project of a circle.
fn project_of(circle: u32) -> Option<Uuid> {
    (circle <= 4).then(|| Table::Project.id(circle))
}

/// The agent of member j of a circle, from 0.
fn member_agent(circle: u32, j: u32) -> u32 {
    (7 * circle + j) % AGENTS + 1
}

/// A circle was started a minute after its creation, stopped after a day, and archived after two days.
fn circles() -> impl Iterator<Item = circle::ActiveModel> {
    use CircleStatus::{Archived, Created, Stopped};
    (1..).zip(CIRCLES).map(|(n, circle)| {
        let started_at = (circle.status != Created).then(|| made(n) + TimeDelta::minutes(1));
        let stopped_at =
            matches!(circle.status, Stopped | Archived).then(|| made(n) + TimeDelta::days(1));
        let archived_at = (circle.status == Archived).then(|| made(n) + TimeDelta::days(2));
        circle::ActiveModel {
            id: Set(Table::Circle.id(n)),
            created_at: Set(made(n)),
            updated_at: Set(latest(n, [started_at, stopped_at, archived_at])),
            owner_id: Set(demo()),
            project_id: Set(project_of(n)),
            name: Set(circle.name.to_owned()),
            name_key: Set(circle.name.to_lowercase()),
            status: Set(circle.status),
            max_members: Set(if n == 2 { 200 } else { 50 }),
            started_at: Set(started_at),
            stopped_at: Set(stopped_at),
            archived_at: Set(archived_at),
            ..Default::default()
        }
    })
}

/// When row n was last changed: the latest of these times, or its creation time.
fn latest<const N: usize>(n: u32, moments: [Option<DateTimeUtc>; N]) -> DateTimeUtc {
    moments
        .into_iter()
        .flatten()
        .fold(made(n), DateTimeUtc::max)
}

fn collaborators() -> impl Iterator<Item = collaborator::ActiveModel> {
    let roles = [(5, CollaboratorRole::Viewer), (6, CollaboratorRole::Editor)];
    (1..)
        .zip(roles)
        .map(|(n, (circle, role))| collaborator::ActiveModel {
            id: Set(Table::Collaborator.id(n)),
            created_at: Set(made(n)),
            updated_at: Set(made(n)),
            circle_id: Set(Table::Circle.id(circle)),
            user_id: Set(Table::User.id(3)),
            role: Set(role),
            added_by: Set(Some(demo())),
        })
}

/// Row n of the members: member j of its circle, from 0.
struct Seat {
    n: u32,
    circle: u32,
    j: u32,
    is_active: bool,
}

fn seats() -> Vec<Seat> {
    let of_circle = |(circle, size): (u32, u32)| {
        let left = if circle == 1 { 2 } else { 0 };
        (0..size + left).map(move |j| (circle, j, j < size))
    };
    let sizes = CIRCLES.map(|circle| circle.members);
    let all = (1..).zip(sizes).flat_map(of_circle);
    (1..)
        .zip(all)
        .map(|(n, (circle, j, is_active))| Seat {
            n,
            circle,
            j,
            is_active,
        })
        .collect()
}

impl Seat {
    fn agent(&self) -> Uuid {
        Table::Agent.id(member_agent(self.circle, self.j))
    }

    fn role(&self) -> MemberRole {
        match self.j {
            0 => MemberRole::Lead,
            j if j % 5 == 4 => MemberRole::Reviewer,
            _ => MemberRole::Member,
        }
    }

    /// Members who left did so an hour after joining.
    fn row(&self) -> member::ActiveModel {
        let joined_at = start() + TimeDelta::minutes(self.j.into());
        let left_at = (!self.is_active).then(|| joined_at + TimeDelta::hours(1));
        member::ActiveModel {
            id: Set(Table::Member.id(self.n)),
            created_at: Set(made(self.n)),
            updated_at: Set(latest(self.n, [left_at])),
            circle_id: Set(Table::Circle.id(self.circle)),
            agent_id: Set(self.agent()),
            role: Set(self.role()),
            is_active: Set(self.is_active),
            joined_at: Set(joined_at),
            left_at: Set(left_at),
            ..Default::default()
        }
    }
}

/// Row n of the tasks: task i of its circle, from 0.
struct Job {
    n: u32,
    circle: u32,
    i: u32,
    /// Number of active members of the circle.
    members: u32,
}

fn jobs() -> Vec<Job> {
    let all = (1..).zip(CIRCLES).flat_map(|(n, circle)| {
        let Circle { members, tasks, .. } = circle;
        (0..tasks).map(move |i| (n, i, members))
    });
    (1..)
        .zip(all)
        .map(|(n, (circle, i, members))| Job {
            n,
            circle,
            i,
            members,
        })
        .collect()
}

const VERBS: [&str; 7] = [
    "Draft", "Review", "Test", "Measure", "Document", "Simplify", "Plan",
];

const THINGS: [&str; 11] = [
    "the sign-in page",
    "the search index",
    "the weekly report",
    "the import of old data",
    "the price list",
    "the onboarding guide",
    "the backup",
    "the public interface",
    "the error messages",
    "the release",
    "the mobile view",
];

impl Job {
    fn title(&self) -> String {
        format!("{} {}", nth(&VERBS, self.n), nth(&THINGS, self.n))
    }

    fn priority(&self) -> (Priority, i32) {
        nth(
            &[
                (Priority::Low, 8),
                (Priority::Medium, 5),
                (Priority::High, 3),
                (Priority::Critical, 1),
            ],
            self.i,
        )
    }

    fn status(&self) -> TaskStatus {
        match self.i % 20 {
            0..=5 => TaskStatus::Completed,
            6..=8 => TaskStatus::InProgress,
            9..=10 => TaskStatus::InReview,
            11..=13 => TaskStatus::Pending,
            14..=15 => TaskStatus::Assigned,
            16 => TaskStatus::ChangesRequested,
            17 => TaskStatus::Blocked,
            18 => TaskStatus::Failed,
            _ => TaskStatus::Cancelled,
        }
    }

    fn is_assigned(&self) -> bool {
        !matches!(self.status(), TaskStatus::Pending | TaskStatus::Cancelled)
    }

    fn assignee(&self) -> Option<u32> {
        self.is_assigned()
            .then(|| member_agent(self.circle, self.i % self.members))
    }

    fn reviewer(&self) -> Option<u32> {
        (self.is_assigned() && self.members > 1)
            .then(|| member_agent(self.circle, (self.i + 1) % self.members))
    }

    /// A task was started ten minutes after its creation, submitted one to eight hours later, and completed half an
    /// hour after that.
    fn row(&self) -> task::ActiveModel {
        let status = self.status();
        let is_completed = status == TaskStatus::Completed;
        let is_submitted =
            is_completed || matches!(status, TaskStatus::InReview | TaskStatus::ChangesRequested);
        let is_started = self.is_assigned() && status != TaskStatus::Assigned;

        let start = made(self.n) + TimeDelta::minutes(10);
        let work = (self.n % 8 + 1) * 3600;
        let cycle = work + 1800;
        let started_at = is_started.then_some(start);
        let submitted_at = is_submitted.then(|| start + seconds(work));
        let completed_at = is_completed.then(|| start + seconds(cycle));

        let note = match status {
            TaskStatus::Blocked => Some("Waiting for an external answer."),
            TaskStatus::Failed => Some("Not possible with the available data."),
            _ => None,
        };
        let review = (status == TaskStatus::ChangesRequested)
            .then_some("The approach is right; the details need more work.");
        let (priority, priority_rank) = self.priority();
        task::ActiveModel {
            id: Set(Table::Task.id(self.n)),
            created_at: Set(made(self.n)),
            updated_at: Set(latest(self.n, [started_at, submitted_at, completed_at])),
            circle_id: Set(Table::Circle.id(self.circle)),
            title: Set(self.title()),
            priority: Set(priority),
            priority_rank: Set(priority_rank),
            status: Set(status),
            assignee_id: Set(self.assignee().map(|n| Table::Agent.id(n))),
            reviewer_id: Set(self.reviewer().map(|n| Table::Agent.id(n))),
            created_by: Set(Some(demo())),
            requires_review: Set(true),
            review_round: Set(is_submitted.into()),
            review_note: Set(review.map(str::to_owned)),
            status_note: Set(note.map(str::to_owned)),
            result: Set(is_submitted.then(|| "Done as described.".to_owned())),
            started_at: Set(started_at),
            submitted_at: Set(submitted_at),
            completed_at: Set(completed_at),
            cycle_seconds: Set(is_completed.then(|| cycle.cast_signed())),
            ..Default::default()
        }
    }
}

/// Row n of the conversations.
struct Talk {
    n: u32,
    circle: Option<u32>,
    participants: u32,
    status: ConversationStatus,
    max_turns: u32,
    /// The row of its first message.
    first: u32,
    messages: u32,
}

const TOPICS: [&str; 10] = [
    "Scope of the next release",
    "How we review each other's work",
    "Where time is spent",
    "Common problems of new users",
    "Which metrics we track",
    "Naming conventions",
    "What to leave out",
    "How to test the import",
    "On-call schedule",
    "What we learned last week",
];

const REMARKS: [&str; 7] = [
    "I would start with the smallest step that can be demonstrated.",
    "The usual case is covered; the empty and the very large cases are not yet.",
    "Two of the open questions are settled; the third needs a decision by the owner.",
    "Let us keep the interface and change the implementation.",
    "The numbers match the last run, so the change can stay.",
    "Before we continue, we should write down the decision and its reasons.",
    "A draft is ready; please comment by tomorrow.",
];

const QUESTIONS: [&str; 3] = [
    "What is missing before this can be published?",
    "Which of the two options do you prefer, and why?",
    "What is the status, in one sentence?",
];

fn talks() -> Vec<Talk> {
    const HOSTS: [u32; 7] = [1, 2, 5, 6, 10, 11, 12];
    (1..=40)
        .map(|n| match n {
            1..=2 => Talk {
                n,
                circle: Some(n),
                participants: 5,
                status: ConversationStatus::Active,
                max_turns: 200,
                first: (n - 1) * 200 + 1,
                messages: 200,
            },
            3..=30 => Talk {
                n,
                circle: Some(nth(&HOSTS, (n - 3) / 4)),
                participants: 3,
                status: match n - 3 {
                    0..14 => ConversationStatus::Completed,
                    14..22 => ConversationStatus::Active,
                    22..26 => ConversationStatus::Paused,
                    _ => ConversationStatus::Cancelled,
                },
                max_turns: 20,
                first: 400 + (n - 3) * 20 + 1,
                messages: 20,
            },
            _ => Talk {
                n,
                circle: None,
                participants: 2,
                status: ConversationStatus::Pending,
                max_turns: 10,
                first: 0,
                messages: 0,
            },
        })
        .collect()
}

/// How many of the first messages are turns of agents: every fourth message is by a user.
fn turns(messages: u32) -> u32 {
    messages - messages / 4
}

impl Talk {
    fn topic(&self) -> &'static str {
        nth(&TOPICS, self.n)
    }

    /// The agent whose turn it is after this number of turns.
    fn speaker(&self, turns: u32) -> u32 {
        let position = turns % self.participants;
        match self.circle {
            Some(circle) => member_agent(circle, position),
            None => position + 1,
        }
    }

    /// A conversation was started with its first message, and ended with its last one.
    fn row(&self) -> conversation::ActiveModel {
        use ConversationStatus::{Active, Cancelled, Completed, Paused};
        let is_started = self.messages > 0;
        let is_open = matches!(self.status, Active | Paused);
        let is_ended = matches!(self.status, Completed | Cancelled);
        let last = is_started.then(|| made(self.first + self.messages - 1));
        let taken = turns(self.messages);
        conversation::ActiveModel {
            id: Set(Table::Conversation.id(self.n)),
            created_at: Set(made(self.n)),
            updated_at: Set(latest(self.n, [last])),
            owner_id: Set(demo()),
            circle_id: Set(self.circle.map(|n| Table::Circle.id(n))),
            topic: Set(self.topic().to_owned()),
            max_turns: Set(self.max_turns.cast_signed()),
            turns_taken: Set(taken.cast_signed()),
            next_index: Set((taken % self.participants).cast_signed()),
            next_speaker_id: Set(is_open.then(|| Table::Agent.id(self.speaker(taken)))),
            last_seq: Set(self.messages.cast_signed()),
            status: Set(self.status),
            started_at: Set(is_started.then(|| made(self.first))),
            last_message_at: Set(last),
            ended_at: Set(last.filter(|_| is_ended)),
            ..Default::default()
        }
    }

    fn participants(&self) -> impl Iterator<Item = participant::ActiveModel> {
        (0..self.participants).map(|position| participant::ActiveModel {
            conversation_id: Set(Table::Conversation.id(self.n)),
            agent_id: Set(Table::Agent.id(self.speaker(position))),
            position: Set(position.cast_signed()),
            joined_at: Set(made(self.n)),
        })
    }

    fn messages(&self) -> impl Iterator<Item = message::ActiveModel> {
        (1..=self.messages).map(|seq| {
            let n = self.first + seq - 1;
            let agent = (seq % 4 != 0).then(|| self.speaker(turns(seq) - 1));
            let mentioned = (seq % 10 == 0).then(|| self.speaker(turns(seq)));
            let text = match agent {
                Some(_) => nth(&REMARKS, n),
                None => nth(&QUESTIONS, n / 4),
            };
            message::ActiveModel {
                id: Set(Table::Message.id(n)),
                created_at: Set(made(n)),
                conversation_id: Set(Table::Conversation.id(self.n)),
                seq: Set(seq.cast_signed()),
                role: Set(match agent {
                    Some(_) => MessageRole::Assistant,
                    None => MessageRole::User,
                }),
                agent_id: Set(agent.map(|n| Table::Agent.id(n))),
                user_id: Set(agent.is_none().then(demo)),
                author_name: Set(agent.map_or_else(|| DEMO_NAME.to_owned(), agent_name)),
                content: Set(match mentioned {
                    Some(agent) => format!("@{}: {text}", agent_name(agent)),
                    None => text.to_owned(),
                }),
                mentions: Set(List(
                    mentioned
                        .map(|n| Table::Agent.id(n).to_string())
                        .into_iter()
                        .collect(),
                )),
                ..Default::default()
            }
        })
    }
}

/// The fields of an event that differ between events.
#[derive(Default)]
struct Fact {
    /// The event type; its prefix is the subject's type.
    kind: &'static str,
    subject: Uuid,
    circle: Option<u32>,
    project: Option<Uuid>,
    agent: Option<Uuid>,
    payload: Value,
}

/// One event for each created row, with positions in the same order.
fn events(
    seats: &[Seat],
    jobs: &[Job],
    talks: &[Talk],
) -> impl Iterator<Item = event::ActiveModel> {
    let of_agents = (1..=AGENTS).map(|n| Fact {
        kind: "agent.created",
        subject: Table::Agent.id(n),
        agent: Some(Table::Agent.id(n)),
        payload: json!({"v": 1, "version": 1, "name": agent_name(n), "changed": []}),
        ..Fact::default()
    });
    let of_projects = (1..).zip(PROJECTS).map(|(n, name)| Fact {
        kind: "project.created",
        subject: Table::Project.id(n),
        project: Some(Table::Project.id(n)),
        payload: json!({"v": 1, "name": name, "changed": []}),
        ..Fact::default()
    });
    let of_circles = (1..).zip(CIRCLES).map(|(n, circle)| Fact {
        kind: "circle.created",
        subject: Table::Circle.id(n),
        circle: Some(n),
        payload: json!({"v": 1, "version": 1, "name": circle.name, "changed": []}),
        ..Fact::default()
    });
    let of_members = seats.iter().map(|seat| Fact {
        kind: "member.added",
        subject: Table::Member.id(seat.n),
        circle: Some(seat.circle),
        agent: Some(seat.agent()),
        payload: json!({
            "v": 1,
            "circleId": Table::Circle.id(seat.circle),
            "agentId": seat.agent(),
            "role": seat.role().to_value(),
            "changed": [],
        }),
        ..Fact::default()
    });
    let of_tasks = jobs.iter().map(|job| Fact {
        kind: "task.created",
        subject: Table::Task.id(job.n),
        circle: Some(job.circle),
        payload: json!({
            "v": 1,
            "version": 1,
            "title": job.title(),
            "priority": job.priority().0.to_value(),
            "toStatus": TaskStatus::Pending.to_value(),
            "changed": [],
        }),
        ..Fact::default()
    });
    let of_conversations = talks.iter().map(|talk| Fact {
        kind: "conversation.created",
        subject: Table::Conversation.id(talk.n),
        circle: talk.circle,
        payload: json!({"v": 1, "version": 1, "topic": talk.topic(), "changed": []}),
        ..Fact::default()
    });
    let all = of_agents
        .chain(of_projects)
        .chain(of_circles)
        .chain(of_members)
        .chain(of_tasks)
        .chain(of_conversations);
    (1..).zip(all).map(|(n, fact)| event::ActiveModel {
        id: Set(Table::Event.id(n)),
        position: Set(Some(n.into())),
        kind: Set(fact.kind.to_owned()),
        subject_type: Set(fact.kind.split('.').take(1).collect()),
        subject_id: Set(fact.subject),
        owner_id: Set(Some(demo())),
        circle_id: Set(fact.circle.map(|n| Table::Circle.id(n))),
        project_id: Set(fact.project.or(fact.circle.and_then(project_of))),
        agent_id: Set(fact.agent),
        actor_user_id: Set(Some(demo())),
        payload: Set(fact.payload),
        occurred_at: Set(made(n)),
        ..Default::default()
    })
}
