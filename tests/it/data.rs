//! The database schema, its constraints and orderings, and the demo data.

use std::collections::{BTreeMap, BTreeSet};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier};
use chrono::TimeDelta;
use gathering::seed::{self, SeedError};
use gathering_entity::agent::{self, AgentStatus};
use gathering_entity::circle::{self, CircleStatus};
use gathering_entity::collaborator::{self, CollaboratorRole};
use gathering_entity::conversation::{self, ConversationStatus};
use gathering_entity::member::{self, MemberRole};
use gathering_entity::message::{self, MessageRole};
use gathering_entity::project::{self, ProjectStatus};
use gathering_entity::task::{self, Priority, TaskStatus};
use gathering_entity::user::{self, UserRole};
use gathering_entity::{
    audit, event, idempotency, journal, lockout, model, participant, persona, provider,
    refresh_token, revoked_token,
};
use sea_orm::prelude::{DateTimeUtc, Uuid};
use sea_orm::sea_query::{ColumnType, Expr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityName, EntityTrait,
    IdenStatic, IntoActiveModel, Iterable, PaginatorTrait, QueryFilter, QueryOrder, Set, SqlErr,
    Statement,
};
use serde_json::json;

use crate::database::{Database, PASSWORD};

/// Invokes a macro for each entity.
macro_rules! for_each_entity {
    ($do:ident) => {
        $do!(user);
        $do!(refresh_token);
        $do!(revoked_token);
        $do!(lockout);
        $do!(audit);
        $do!(provider);
        $do!(model);
        $do!(persona);
        $do!(agent);
        $do!(project);
        $do!(circle);
        $do!(collaborator);
        $do!(member);
        $do!(task);
        $do!(conversation);
        $do!(participant);
        $do!(message);
        $do!(event);
        $do!(journal);
        $do!(idempotency);
    };
}

/// The id of row `n` of table `table` in the demo data.
fn id(table: u128, n: u32) -> Uuid {
    let made = u128::from(
        (start() + TimeDelta::seconds(n.into()))
            .timestamp_millis()
            .unsigned_abs(),
    );
    Uuid::from_u128(made << 80 | 7 << 76 | table << 64 | 2 << 62 | u128::from(n))
}

fn start() -> DateTimeUtc {
    "2026-01-05T09:00:00Z".parse().expect("a moment")
}

async fn rows(db: &DatabaseConnection, sql: &str) -> Vec<Vec<String>> {
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(statement).await.expect("answers");
    rows.iter()
        .map(|row| {
            (0..row.column_names().len())
                .map(|at| row.try_get_by_index(at).expect("text"))
                .collect()
        })
        .collect()
}

/// The columns of each table with their type and nullability, from the database's catalogue.
async fn catalogue(db: &DatabaseConnection) -> BTreeMap<String, BTreeMap<String, (String, bool)>> {
    let sql = match db.get_database_backend() {
        DbBackend::Postgres => {
            "SELECT table_name::text, column_name::text, data_type::text, is_nullable::text \
             FROM information_schema.columns WHERE table_schema = 'public' AND is_identity = 'NO'"
        }
        _ => {
            "SELECT t.name, c.name, c.type, iif(c.\"notnull\", 'NO', 'YES') \
             FROM sqlite_schema t, pragma_table_info(t.name) c \
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
        }
    };
    let mut tables: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
    for row in rows(db, sql).await {
        let [table, column, kind, nullable] = row.try_into().expect("four columns");
        let column = (column, (kind, nullable == "YES"));
        tables.entry(table).or_default().extend([column]);
    }
    tables.remove("seaql_migrations");
    tables
}

/// The columns of each table according to its entity, with the database's names of types.
fn expected(backend: DbBackend) -> BTreeMap<String, BTreeMap<String, (String, bool)>> {
    let mut tables = BTreeMap::new();
    macro_rules! add {
        ($entity:ident) => {
            let columns = $entity::Column::iter().map(|column| {
                let definition = column.def();
                let kind = kind(definition.get_column_type(), backend);
                (
                    column.as_str().to_owned(),
                    (kind.to_owned(), definition.is_null()),
                )
            });
            let table = $entity::Entity.table_name().to_owned();
            tables.insert(table, columns.collect());
        };
    }
    for_each_entity!(add);
    tables
}

fn kind(column: &ColumnType, backend: DbBackend) -> &'static str {
    let (postgres, sqlite) = match column {
        ColumnType::Uuid => ("uuid", "BLOB"),
        ColumnType::Text | ColumnType::String(_) => ("text", "TEXT"),
        ColumnType::Integer => ("integer", "INTEGER"),
        ColumnType::BigInteger => ("bigint", "INTEGER"),
        ColumnType::Double => ("double precision", "REAL"),
        ColumnType::Boolean => ("boolean", "INTEGER"),
        ColumnType::TimestampWithTimeZone => ("timestamp with time zone", "TEXT"),
        ColumnType::Json | ColumnType::JsonBinary => ("jsonb", "TEXT"),
        other => panic!("no entity has a column of the type {other:?}"),
    };
    match backend {
        DbBackend::Postgres => postgres,
        _ => sqlite,
    }
}

#[tokio::test]
async fn every_table_matches_its_entity() {
    let database = Database::empty().await;
    let db = database.connect().await;
    assert_eq!(catalogue(&db).await, expected(db.get_database_backend()));
}

/// The definitions of all tables, constraints and indexes in the database's catalogue.
async fn definitions(db: &DatabaseConnection) -> BTreeSet<Vec<String>> {
    let sql = match db.get_database_backend() {
        DbBackend::Postgres => {
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' \
             UNION ALL SELECT conrelid::regclass::text || ' ' || pg_get_constraintdef(oid) \
               FROM pg_constraint WHERE connamespace = 'public'::regnamespace \
             UNION ALL SELECT table_name || ' ' || column_name || ' ' || data_type \
               || coalesce(collation_name, '') || coalesce(column_default, '') \
               FROM information_schema.columns WHERE table_schema = 'public' \
             UNION ALL SELECT relname || ' ' || relkind::text FROM pg_class \
               WHERE relnamespace = 'public'::regnamespace"
        }
        _ => "SELECT name || ' ' || coalesce(sql, '') FROM sqlite_schema",
    };
    rows(db, sql).await.into_iter().collect()
}

#[tokio::test]
async fn migrating_down_removes_everything_and_up_creates_it_again() {
    let database = Database::bare().await;
    let db = database.connect().await;
    let nothing = definitions(&db).await;
    assert_eq!(gathering_migration::pending(&db).await, Ok(4));
    assert_eq!(definitions(&db).await, nothing, "`pending` writes nothing");

    gathering_migration::up(&db).await.expect("up");
    assert_eq!(gathering_migration::pending(&db).await, Ok(0));
    let all = definitions(&db).await;
    assert_ne!(all, nothing);

    gathering_migration::down(&db).await.expect("down");
    assert_eq!(definitions(&db).await, nothing);

    gathering_migration::up(&db).await.expect("up again");
    assert_eq!(definitions(&db).await, all);
}

#[tokio::test]
async fn concurrent_migrations_all_succeed() {
    let database = Database::bare().await;
    let mut instances = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let db = database.connect().await;
        instances.spawn(async move { gathering_migration::up(&db).await });
    }
    while let Some(up) = instances.join_next().await {
        assert_eq!(up.expect("no panic"), Ok(()));
    }
    let db = database.connect().await;
    assert_eq!(gathering_migration::pending(&db).await, Ok(0));
    assert_eq!(catalogue(&db).await, expected(db.get_database_backend()));
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let database = Database::empty().await;
    let db = database.connect().await;
    db.execute_unprepared("INSERT INTO seaql_migrations VALUES ('m9999_future', 0)")
        .await
        .expect("inserts");
    let pending = gathering_migration::pending(&db).await.map(drop);
    for refused in [pending, gathering_migration::up(&db).await] {
        let line = refused.expect_err("refused").to_string();
        assert!(line.contains("newer version of Gathering"), "{line}");
    }
}

/// All rows of the database as text, without the password hashes.
async fn dump(db: &DatabaseConnection) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    macro_rules! add {
        ($entity:ident) => {
            for row in $entity::Entity::find().all(db).await.expect("reads") {
                let mut text = format!("{row:?}");
                if let Some((head, tail)) = text.split_once("$argon2id$") {
                    let (_, tail) = tail.split_once('"').expect("a quote");
                    text = format!("{head}{tail}");
                }
                assert!(all.insert(text), "each row occurs once");
            }
        };
    }
    for_each_entity!(add);
    // The epoch differs between databases.
    all.retain(|row| !row.contains("epoch"));
    all
}

#[tokio::test]
async fn seeding_creates_the_same_rows_every_time() {
    let (one, other) = (Database::seeded().await, Database::empty().await);
    let (one, other) = (one.connect().await, other.connect().await);
    seed::seed(&other, "another password").await.expect("seeds");
    assert_eq!(dump(&one).await, dump(&other).await);
}

#[tokio::test]
async fn seeding_again_changes_nothing() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let hashes = || user::Entity::find().order_by_asc(user::Column::Id).all(&db);
    let users = hashes().await.expect("reads");
    // Changes after the first seeding are kept.
    circle::Entity::delete_by_id(id(7, 4))
        .exec(&db)
        .await
        .expect("deletes");
    let before = dump(&db).await;
    seed::seed(&db, "another password").await.expect("seeds");
    assert_eq!(dump(&db).await, before);
    assert_eq!(hashes().await.expect("reads"), users);
}

#[tokio::test]
async fn concurrent_seeding_all_succeeds() {
    let database = Database::empty().await;
    let (one, other) = (database.connect().await, database.connect().await);
    let both = tokio::join!(seed::seed(&one, PASSWORD), seed::seed(&other, PASSWORD));
    assert!(matches!(both, (Ok(()), Ok(()))), "{both:?}");
    assert_eq!(task::Entity::find().count(&one).await, Ok(430));
}

#[tokio::test]
async fn a_database_with_other_users_is_not_seeded() {
    let database = Database::empty().await;
    let db = database.connect().await;
    insert_user(&db, "somebody@example.com").await;
    let before = dump(&db).await;
    let refused = seed::seed(&db, PASSWORD).await;
    assert!(matches!(refused, Err(SeedError::Occupied)), "{refused:?}");
    assert_eq!(dump(&db).await, before);
}

async fn insert_user(db: &DatabaseConnection, email: &str) -> Uuid {
    let id = Uuid::now_v7();
    let user = user::ActiveModel {
        id: Set(id),
        created_at: Set(start()),
        updated_at: Set(start()),
        email: Set(email.to_owned()),
        email_key: Set(email.to_owned()),
        name: Set("Somebody".to_owned()),
        password_hash: Set(String::new()),
        ..Default::default()
    };
    user::Entity::insert(user).exec(db).await.expect("inserts");
    id
}

#[tokio::test]
async fn the_demo_data_has_the_expected_ids_and_counts() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    assert_eq!(id(7, 1).to_string(), "019b8d62-7e68-7007-8000-000000000001");
    for (n, (table, rows)) in [
        ("users", 3),
        ("providers", 8),
        ("models", 23),
        ("personas", 12),
        ("agents", 150),
        ("projects", 4),
        ("circles", 12),
        ("circle_collaborators", 2),
        ("circle_members", 184),
        ("tasks", 430),
        ("conversations", 40),
        ("messages", 960),
        ("events", 820),
    ]
    .into_iter()
    .enumerate()
    {
        let made = if table == "events" {
            "occurred_at"
        } else {
            "created_at"
        };
        let sql = format!("SELECT id, {made} FROM {table} ORDER BY id");
        let statement = Statement::from_string(db.get_database_backend(), sql);
        let found = db.query_all_raw(statement).await.expect("answers");
        assert_eq!(found.len(), rows, "{table}");
        for (row, n_of_row) in found.iter().zip(1..) {
            let (found, made): (Uuid, DateTimeUtc) = (
                row.try_get_by_index(0).expect("an id"),
                row.try_get_by_index(1).expect("a moment"),
            );
            assert_eq!(found, id(n as u128 + 1, n_of_row), "{table}");
            assert_eq!(
                made,
                start() + TimeDelta::seconds(n_of_row.into()),
                "{table}"
            );
        }
    }
}

async fn circles(db: &DatabaseConnection) -> Vec<circle::Model> {
    let circles = circle::Entity::find().order_by_asc(circle::Column::Id);
    circles.all(db).await.expect("reads")
}

#[tokio::test]
async fn demo_users_have_the_expected_roles_and_password() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let users = user::Entity::find().order_by_asc(user::Column::Id);
    let users = users.all(&db).await.expect("reads");
    let found: Vec<_> = users.iter().map(|user| (&*user.email, user.role)).collect();
    assert_eq!(
        found,
        [
            ("admin@example.com", UserRole::Admin),
            ("demo@example.com", UserRole::User),
            ("guest@example.com", UserRole::User),
        ]
    );
    assert_eq!(users[0].name, "Ada Admin");
    for user in &users {
        let hash = user.password_hash.as_str();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        let hash = PasswordHash::new(hash).expect("a hash");
        let verified = Argon2::default().verify_password(PASSWORD.as_bytes(), &hash);
        assert_eq!(verified, Ok(()));
    }
    let collaborators = collaborator::Entity::find().order_by_asc(collaborator::Column::Id);
    let shared: Vec<_> = collaborators.all(&db).await.expect("reads");
    let shared: Vec<_> = shared
        .iter()
        .map(|c| (c.circle_id, c.user_id, c.role))
        .collect();
    assert_eq!(
        shared,
        [
            (id(7, 5), id(1, 3), CollaboratorRole::Viewer),
            (id(7, 6), id(1, 3), CollaboratorRole::Editor),
        ]
    );
}

#[tokio::test]
async fn the_demo_catalogue_has_the_expected_models_and_prices() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let models = model::Entity::find().order_by_asc(model::Column::Id);
    let models = models.all(&db).await.expect("reads");
    let providers = provider::Entity::find().order_by_asc(provider::Column::Id);
    let providers = providers.all(&db).await.expect("reads");
    let per_provider: Vec<_> = providers
        .iter()
        .map(|p| {
            let models = models
                .iter()
                .filter(|model| model.provider_id == p.id)
                .count();
            (&*p.name, models, p.is_local)
        })
        .collect();
    assert_eq!(
        per_provider,
        [
            ("anthropic", 3, false),
            ("openai", 4, false),
            ("deepseek", 3, false),
            ("mistral", 4, false),
            ("google", 2, false),
            ("ollama", 5, true),
            ("groq", 2, false),
            ("together", 0, false),
        ]
    );
    let deprecated = models.iter().filter(|model| model.is_deprecated);
    let deprecated: Vec<_> = deprecated.map(|model| &*model.name).collect();
    assert_eq!(deprecated, ["o3-mini", "groq-mixtral"]);
    let price = |n: usize| {
        (
            &*models[n - 1].name,
            models[n - 1].price_input,
            models[n - 1].price_output,
        )
    };
    assert_eq!(price(1), ("claude-opus-4-5", 15_000_000, 75_000_000));
    assert_eq!(price(5), ("gpt-4o-mini", 150_000, 600_000));
    assert_eq!(price(23), ("groq-mixtral", 240_000, 240_000));
    assert_eq!(
        (models[0].context_window, models[0].supports_tools),
        (128_000, true)
    );

    let personas = persona::Entity::find().order_by_asc(persona::Column::Id);
    for (persona, n) in personas.all(&db).await.expect("reads").iter().zip(1..) {
        assert_eq!(persona.default_model_id, Some(id(3, n % 23 + 1)));
        assert!(persona.is_builtin);
    }
}

#[tokio::test]
async fn demo_agents_have_fields_derived_from_their_numbers() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let agents = agent::Entity::find().order_by_asc(agent::Column::Id);
    let agents = agents.all(&db).await.expect("reads");
    let tasks = task::Entity::find().filter(task::Column::Status.eq(TaskStatus::InProgress));
    let tasks = tasks.all(&db).await.expect("reads");
    let busy: BTreeSet<_> = tasks.iter().filter_map(|task| task.assignee_id).collect();
    for (agent, n) in agents.iter().zip(1..) {
        assert_eq!(agent.persona_id, (n % 7 != 0).then(|| id(4, n % 12 + 1)));
        assert_eq!(agent.model_id, (n % 10 != 0).then(|| id(3, n % 23 + 1)));
        assert_eq!(
            agent.review_types.0,
            if n % 4 == 0 { vec!["all"] } else { vec![] }
        );
        assert_eq!(agent.owner_id, id(1, 2));
        assert_eq!(agent.version, 1);
        let status = match n % 20 {
            0 => AgentStatus::Offline,
            _ if busy.contains(&agent.id) => AgentStatus::Busy,
            _ => AgentStatus::Idle,
        };
        assert_eq!(agent.status, status);
    }
    let first = &agents[0];
    assert_eq!((&*first.name, &*first.name_key), ("Ada 1", "ada 1"));
    assert_eq!(first.competencies.0, ["sql", "security"]);
    assert_eq!(agents[30].name, "Ada 2");
    assert_eq!(agents[149].name, "Vera 5");
    for status in [AgentStatus::Idle, AgentStatus::Busy, AgentStatus::Offline] {
        assert!(
            agents.iter().any(|agent| agent.status == status),
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn demo_circles_have_the_expected_members_and_tasks() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let members = member::Entity::find().order_by_asc(member::Column::Id);
    let members = members.all(&db).await.expect("reads");
    let tasks = task::Entity::find().all(&db).await.expect("reads");
    let circles = circles(&db).await;
    let found: Vec<_> = circles
        .iter()
        .map(|circle| {
            let of = members
                .iter()
                .filter(|member| member.circle_id == circle.id);
            let (active, left): (Vec<_>, Vec<_>) = of.partition(|member| member.is_active);
            let tasks = tasks
                .iter()
                .filter(|task| task.circle_id == circle.id)
                .count();
            (
                &*circle.name,
                circle.status,
                active.len(),
                left.len(),
                tasks,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("Atelier", CircleStatus::Running, 20, 2, 60),
            ("Assembly", CircleStatus::Running, 100, 0, 200),
            ("Solo", CircleStatus::Running, 1, 0, 10),
            ("Empty", CircleStatus::Created, 0, 0, 0),
            ("Library", CircleStatus::Running, 8, 0, 20),
            ("Workshop", CircleStatus::Running, 8, 0, 20),
            ("Pause", CircleStatus::Paused, 5, 0, 20),
            ("Stop", CircleStatus::Stopped, 5, 0, 20),
            ("Archive", CircleStatus::Archived, 5, 0, 20),
            ("North", CircleStatus::Running, 10, 0, 20),
            ("East", CircleStatus::Running, 10, 0, 20),
            ("South", CircleStatus::Running, 10, 0, 20),
        ]
    );
    for (circle, n) in circles.iter().zip(1..) {
        assert_eq!(circle.project_id, (n <= 4).then(|| id(6, n)));
        assert_eq!(circle.max_members, if n == 2 { 200 } else { 50 });
        assert_eq!(
            circle.started_at.is_some(),
            circle.status != CircleStatus::Created
        );
        let of = members
            .iter()
            .filter(|member| member.circle_id == circle.id);
        for (member, j) in of.zip(0..) {
            assert_eq!(member.agent_id, id(5, (7 * n + j) % 150 + 1));
            assert_eq!(member.joined_at, start() + TimeDelta::minutes(j.into()));
            assert_eq!(member.left_at.is_some(), n == 1 && j >= 20);
            let role = match j {
                0 => MemberRole::Lead,
                _ if j % 5 == 4 => MemberRole::Reviewer,
                _ => MemberRole::Member,
            };
            assert_eq!(member.role, role);
        }
    }
}

#[tokio::test]
async fn demo_tasks_have_fields_consistent_with_their_status() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let sizes: [u32; 12] = [20, 100, 1, 0, 8, 8, 5, 5, 5, 10, 10, 10];
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for (circle, n) in circles(&db).await.iter().zip(1..) {
        let tasks = task::Entity::find().filter(task::Column::CircleId.eq(circle.id));
        let tasks = tasks.order_by_asc(task::Column::Id).all(&db).await;
        let size = sizes[n as usize - 1];
        for (task, i) in tasks.expect("reads").iter().zip(0..) {
            let status = match i % 20 {
                0..6 => TaskStatus::Completed,
                6..9 => TaskStatus::InProgress,
                9..11 => TaskStatus::InReview,
                11..14 => TaskStatus::Pending,
                14..16 => TaskStatus::Assigned,
                16 => TaskStatus::ChangesRequested,
                17 => TaskStatus::Blocked,
                18 => TaskStatus::Failed,
                _ => TaskStatus::Cancelled,
            };
            assert_eq!(task.status, status);
            *counts.entry(format!("{status:?}")).or_default() += 1;

            let priorities = [
                Priority::Low,
                Priority::Medium,
                Priority::High,
                Priority::Critical,
            ];
            assert_eq!(task.priority, priorities[i as usize % 4]);

            let member = |j| id(5, (7 * n + j % size) % 150 + 1);
            let assigned = !matches!(status, TaskStatus::Pending | TaskStatus::Cancelled);
            assert_eq!(task.assignee_id, assigned.then(|| member(i)));
            assert_eq!(
                task.reviewer_id,
                (assigned && size > 1).then(|| member(i + 1))
            );

            let completed = status == TaskStatus::Completed;
            let submitted =
                completed || matches!(status, TaskStatus::InReview | TaskStatus::ChangesRequested);
            let started = assigned && status != TaskStatus::Assigned;
            assert_eq!(task.started_at.is_some(), started);
            assert_eq!(task.submitted_at.is_some(), submitted);
            assert_eq!(task.result.is_some(), submitted);
            assert_eq!(task.review_round, i32::from(submitted));
            assert_eq!(task.completed_at.is_some(), completed);
            let cycle = task
                .completed_at
                .zip(task.started_at)
                .map(|(end, start)| end - start);
            assert_eq!(
                task.cycle_seconds.map(i64::from),
                cycle.map(|cycle| cycle.num_seconds())
            );
            let moments = [
                Some(task.created_at),
                task.started_at,
                task.submitted_at,
                task.completed_at,
            ];
            assert!(moments.iter().flatten().is_sorted(), "{moments:?}");
            assert!(
                moments
                    .iter()
                    .flatten()
                    .all(|moment| *moment <= task.updated_at)
            );
        }
    }
    let counts: Vec<_> = counts
        .iter()
        .map(|(status, count)| (&**status, *count))
        .collect();
    assert_eq!(
        counts,
        [
            ("Assigned", 42),
            ("Blocked", 21),
            ("Cancelled", 21),
            ("ChangesRequested", 21),
            ("Completed", 132),
            ("Failed", 21),
            ("InProgress", 66),
            ("InReview", 43),
            ("Pending", 63),
        ]
    );
}

/// The conversations, each with its participants and messages in order.
async fn talks(
    db: &DatabaseConnection,
) -> Vec<(conversation::Model, Vec<Uuid>, Vec<message::Model>)> {
    let mut talks = vec![];
    let conversations = conversation::Entity::find().order_by_asc(conversation::Column::Id);
    for conversation in conversations.all(db).await.expect("reads") {
        let of = participant::Column::ConversationId.eq(conversation.id);
        let participants = participant::Entity::find().filter(of);
        let participants = participants.order_by_asc(participant::Column::Position);
        let participants = participants.all(db).await.expect("reads");
        let agents = participants.iter().map(|p| p.agent_id).collect();
        let of = message::Column::ConversationId.eq(conversation.id);
        let messages = message::Entity::find().filter(of);
        let messages = messages.order_by_asc(message::Column::Seq).all(db).await;
        talks.push((conversation, agents, messages.expect("reads")));
    }
    talks
}

#[tokio::test]
async fn demo_conversations_are_between_the_first_members_of_their_circles() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let mut kinds: BTreeMap<_, u32> = BTreeMap::new();
    for ((conversation, participants, messages), n) in talks(&db).await.iter().zip(1..) {
        let circle = match n {
            1..=2 => Some(n),
            3..=30 => Some([1, 2, 5, 6, 10, 11, 12][(n as usize - 3) / 4]),
            _ => None,
        };
        assert_eq!(conversation.circle_id, circle.map(|circle| id(7, circle)));
        let first = circle.map_or(0, |circle| 7 * circle);
        for (agent, j) in participants.iter().zip(0..) {
            assert_eq!(*agent, id(5, (first + j) % 150 + 1));
        }
        let kind = format!(
            "{:?}: {} participants, {} messages, at most {} turns",
            conversation.status,
            participants.len(),
            messages.len(),
            conversation.max_turns
        );
        *kinds.entry(kind).or_default() += 1;
    }
    let kinds: Vec<_> = kinds
        .iter()
        .map(|(kind, count)| (*count, &**kind))
        .collect();
    assert_eq!(
        kinds,
        [
            (8, "Active: 3 participants, 20 messages, at most 20 turns"),
            (2, "Active: 5 participants, 200 messages, at most 200 turns"),
            (
                2,
                "Cancelled: 3 participants, 20 messages, at most 20 turns"
            ),
            (
                14,
                "Completed: 3 participants, 20 messages, at most 20 turns"
            ),
            (4, "Paused: 3 participants, 20 messages, at most 20 turns"),
            (10, "Pending: 2 participants, 0 messages, at most 10 turns"),
        ]
    );
}

#[tokio::test]
async fn demo_messages_follow_round_robin_and_match_their_conversations() {
    use ConversationStatus::{Active, Cancelled, Completed, Paused};
    let database = Database::seeded().await;
    let db = database.connect().await;
    for (conversation, participants, messages) in talks(&db).await {
        let speaker = |turns: usize| participants[turns % participants.len()];
        let mut turns = 0;
        for (message, seq) in messages.iter().zip(1..) {
            assert_eq!(message.seq, seq);
            let author = (message.role, message.agent_id, message.user_id);
            if seq % 4 == 0 {
                assert_eq!(author, (MessageRole::User, None, Some(id(1, 2))));
            } else {
                assert_eq!(author, (MessageRole::Assistant, Some(speaker(turns)), None));
                turns += 1;
            }
            let next = (seq % 10 == 0).then(|| speaker(turns).to_string());
            assert_eq!(message.mentions.0, Vec::from_iter(next));
        }
        assert_eq!(usize::try_from(conversation.last_seq), Ok(messages.len()));
        assert_eq!(usize::try_from(conversation.turns_taken), Ok(turns));
        assert_eq!(
            usize::try_from(conversation.next_index),
            Ok(turns % participants.len())
        );
        let is_open = matches!(conversation.status, Active | Paused);
        assert_eq!(
            conversation.next_speaker_id,
            is_open.then(|| speaker(turns))
        );
        let last = messages.last().map(|message| message.created_at);
        assert_eq!(
            conversation.started_at,
            messages.first().map(|first| first.created_at)
        );
        assert_eq!(conversation.last_message_at, last);
        let is_ended = matches!(conversation.status, Completed | Cancelled);
        assert_eq!(conversation.ended_at, last.filter(|_| is_ended));
    }
}

#[tokio::test]
async fn demo_events_cover_every_object_in_order() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let events = event::Entity::find().order_by_asc(event::Column::Position);
    let events = events.all(&db).await.expect("reads");
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.position, &*event.kind, event.subject_id))
        .collect();
    let subjects = [
        ("agent.created", 5, 150),
        ("project.created", 6, 4),
        ("circle.created", 7, 12),
        ("member.added", 9, 184),
        ("task.created", 10, 430),
        ("conversation.created", 11, 40),
    ];
    let expected: Vec<_> = subjects
        .into_iter()
        .flat_map(|(kind, table, count)| (1..=count).map(move |n| (kind, id(table, n))))
        .zip(1..)
        .map(|((kind, subject), position)| (Some(position), kind, subject))
        .collect();
    assert_eq!(told, expected);
    for event in &events {
        assert_eq!(event.owner_id, Some(id(1, 2)));
        assert_eq!(event.payload["v"], 1);
        assert!(event.kind.starts_with(&event.subject_type));
    }
    let of_member = &events[166];
    assert_eq!(of_member.circle_id, Some(id(7, 1)));
    assert_eq!(of_member.project_id, Some(id(6, 1)));
    assert_eq!(of_member.payload["role"], "LEAD");
}

/// Sets a column of a table's last row only, so that no unique index is violated.
async fn set(db: &DatabaseConnection, table: &str, column: &str, value: &str) -> Result<(), DbErr> {
    let last = format!("(SELECT id FROM {table} ORDER BY id DESC LIMIT 1)");
    let statement = format!("UPDATE {table} SET {column} = {value} WHERE id = {last}");
    let changed = db.execute_unprepared(&statement).await?;
    assert_eq!(changed.rows_affected(), 1, "{table} has rows");
    Ok(())
}

/// The demo data, and a row in each table that the seed leaves empty.
async fn full() -> Database {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let entry = audit::ActiveModel {
        id: Set(Uuid::now_v7()),
        created_at: Set(start()),
        action: Set("test".to_owned()),
        ..Default::default()
    };
    audit::Entity::insert(entry)
        .exec(&db)
        .await
        .expect("inserts");
    database
}

#[tokio::test]
async fn values_out_of_bounds_are_refused() {
    let database = full().await;
    let db = database.connect().await;
    for (table, column, value) in [
        ("users", "role", "'ROOT'"),
        ("audit_log", "severity", "'LOW'"),
        ("providers", "name", "'Open AI'"),
        ("providers", "name", "'_local'"),
        ("models", "price_input", "-1"),
        ("models", "context_window", "0"),
        ("personas", "default_temperature", "2.1"),
        ("agents", "review_strictness", "-0.1"),
        ("agents", "max_tokens", "0"),
        ("agents", "status", "'ASLEEP'"),
        ("projects", "status", "'active'"),
        ("circles", "max_members", "0"),
        ("circles", "max_members", "501"),
        ("circles", "max_concurrent_tasks", "101"),
        ("circle_collaborators", "role", "'OWNER'"),
        ("circle_members", "is_active", "FALSE"),
        ("tasks", "priority_rank", "4"),
        ("tasks", "estimated_hours", "-1"),
        ("tasks", "review_type", "'NONE'"),
        ("tasks", "artifacts", "'{}'"),
        ("conversations", "max_turns", "201"),
        ("conversations", "turn_strategy", "'RANDOM'"),
        ("messages", "role", "'ROBOT'"),
        ("events", "payload", "'[]'"),
    ] {
        let error = set(&db, table, column, value).await;
        let error = error.expect_err(&format!("{table}.{column} took {value}"));
        let error = error.to_string().to_lowercase();
        assert!(
            error.contains("check constraint"),
            "{table}.{column}: {error}"
        );
    }
}

#[tokio::test]
async fn lengths_are_counted_in_characters() {
    let database = full().await;
    let db = database.connect().await;
    for (table, column, least, most) in [
        ("users", "email", 3, 254),
        ("users", "name", 1, 100),
        ("audit_log", "action", 0, 100),
        ("providers", "api_base_url", 0, 2048),
        ("models", "name", 1, 100),
        ("personas", "name_key", 0, 100),
        ("agents", "system_prompt", 0, 20_000),
        ("projects", "default_branch", 1, 100),
        ("circles", "display_name", 0, 200),
        ("tasks", "title", 1, 500),
        ("tasks", "result", 0, 50_000),
        ("conversations", "topic", 1, 500),
        ("messages", "content", 1, 100_000),
        ("events", "type", 0, 60),
    ] {
        for (length, fits) in [
            (least, true),
            (most, true),
            (most + 1, false),
            (least.max(1) - 1, least == 0),
        ] {
            let value = format!("'{}'", "ü".repeat(length));
            let taken = set(&db, table, column, &value).await;
            assert_eq!(
                taken.is_ok(),
                fits,
                "{length} characters in {table}.{column}: {taken:?}"
            );
        }
    }
}

#[tokio::test]
async fn values_of_another_type_are_refused() {
    let database = full().await;
    let db = database.connect().await;
    for (table, column, value) in [
        ("users", "name", "NULL"),
        ("users", "is_active", "'perhaps'"),
        ("agents", "traits", "'not JSON'"),
        ("agents", "traits", "NULL"),
        ("agents", "owner_id", "'user'"),
        ("agents", "temperature", "'warm'"),
        ("tasks", "version", "2147483648"),
        ("tasks", "version", "'first'"),
        ("tasks", "due_at", "'tomorrow at noon'"),
        ("events", "position", "'last'"),
        ("events", "occurred_at", "NULL"),
        ("messages", "tool_calls", "'{'"),
    ] {
        let taken = set(&db, table, column, value).await;
        assert!(taken.is_err(), "{table}.{column} took {value}");
    }
}

#[tokio::test]
async fn timestamps_in_other_formats_are_refused() {
    let database = full().await;
    let db = database.connect().await;
    if db.get_database_backend() != DbBackend::Sqlite {
        return; // PostgreSQL has a timestamp type with one format.
    }
    for (value, fits) in [
        ("'2026-01-05T09:00:00+00:00'", true),
        ("'2026-01-05T09:00:00.123456+00:00'", true),
        ("'2026-01-05T09:00:00.123456789+00:00'", false),
        ("'2026-01-05T10:00:00+01:00'", false),
        ("'2026-01-05T09:00:00Z'", false),
        ("CURRENT_TIMESTAMP", false),
    ] {
        let taken = set(&db, "events", "occurred_at", value).await;
        assert_eq!(taken.is_ok(), fits, "{value}: {taken:?}");
    }
}

fn violation<T: std::fmt::Debug>(result: Result<T, DbErr>) -> SqlErr {
    result
        .expect_err("refused")
        .sql_err()
        .expect("a constraint's refusal")
}

#[tokio::test]
async fn foreign_keys_must_refer_to_existing_rows() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let nowhere = || Expr::value(Uuid::now_v7());
    macro_rules! refused {
        ($entity:ident, $column:ident) => {
            let update =
                $entity::Entity::update_many().col_expr($entity::Column::$column, nowhere());
            let refused = violation(update.exec(&db).await);
            assert!(
                matches!(refused, SqlErr::ForeignKeyConstraintViolation(_)),
                "{refused:?}"
            );
        };
    }
    refused!(model, ProviderId);
    refused!(persona, DefaultModelId);
    refused!(agent, OwnerId);
    refused!(agent, PersonaId);
    refused!(agent, ModelId);
    refused!(project, OwnerId);
    refused!(circle, ProjectId);
    refused!(collaborator, AddedBy);
    refused!(task, ParentId);
    refused!(task, AssigneeId);
    refused!(conversation, TaskId);
    refused!(conversation, NextSpeakerId);
    refused!(message, UserId);
    refused!(message, ModelId);
}

#[tokio::test]
async fn rows_in_use_cannot_be_deleted() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    for refused in [
        provider::Entity::delete_by_id(id(2, 1)).exec(&db).await,
        model::Entity::delete_by_id(id(3, 2)).exec(&db).await,
        persona::Entity::delete_by_id(id(4, 2)).exec(&db).await,
        user::Entity::delete_by_id(id(1, 2)).exec(&db).await,
    ] {
        let refused = refused.expect_err("refused").to_string();
        let reason = "foreign key constraint";
        assert!(refused.to_lowercase().contains(reason), "{refused}");
    }
}

#[tokio::test]
async fn deleting_a_row_deletes_its_parts_and_clears_other_references() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    project::Entity::delete_by_id(id(6, 1))
        .exec(&db)
        .await
        .expect("deletes");
    let atelier = circle::Entity::find_by_id(id(7, 1))
        .one(&db)
        .await
        .expect("reads");
    assert_eq!(atelier.expect("is there").project_id, None);

    circle::Entity::delete_by_id(id(7, 1))
        .exec(&db)
        .await
        .expect("deletes");
    assert_eq!(member::Entity::find().count(&db).await, Ok(184 - 22));
    assert_eq!(task::Entity::find().count(&db).await, Ok(430 - 60));
    let talk = conversation::Entity::find_by_id(id(11, 1))
        .one(&db)
        .await
        .expect("reads");
    assert_eq!(talk.expect("the conversation is kept").circle_id, None);

    let speaker = agent::Entity::delete_by_id(id(5, 8)).exec(&db).await;
    assert_eq!(speaker.expect("deletes").rows_affected, 1);
    let message = message::Entity::find_by_id(id(12, 1))
        .one(&db)
        .await
        .expect("reads");
    assert_eq!(message.expect("stays").agent_id, None);

    conversation::Entity::delete_by_id(id(11, 1))
        .exec(&db)
        .await
        .expect("deletes");
    assert_eq!(message::Entity::find().count(&db).await, Ok(960 - 200));
    assert_eq!(
        event::Entity::find().count(&db).await,
        Ok(820),
        "events are kept"
    );
}

#[tokio::test]
async fn a_name_is_taken_until_its_row_is_archived() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let rename = |to: &str| {
        circle::Entity::update_many()
            .col_expr(circle::Column::NameKey, Expr::value(to))
            .filter(circle::Column::Id.eq(id(7, 12)))
            .exec(&db)
    };
    let taken = violation(rename("north").await);
    assert!(
        matches!(taken, SqlErr::UniqueConstraintViolation(_)),
        "{taken:?}"
    );
    rename("archive")
        .await
        .expect("the name of an archived circle can be reused");

    let project = project::Entity::find_by_id(id(6, 1))
        .one(&db)
        .await
        .expect("reads");
    let mut again = project.expect("is there").into_active_model();
    again.id = Set(Uuid::now_v7());
    let taken = violation(project::Entity::insert(again.clone()).exec(&db).await);
    assert!(
        matches!(taken, SqlErr::UniqueConstraintViolation(_)),
        "{taken:?}"
    );
    again.status = Set(ProjectStatus::Archived);
    project::Entity::insert(again)
        .exec(&db)
        .await
        .expect("archived projects may share a name");
}

#[tokio::test]
async fn stored_timestamps_sort_chronologically() {
    let database = Database::empty().await;
    let db = database.connect().await;
    let micros = [
        0, 1, 10, 999, 1_000, 1_001, 99_999, 100_000, 100_001, 120_000, 123_456, 999_999,
    ];
    let moments: Vec<_> = (-1..=1)
        .flat_map(|second| {
            micros.map(|micro| TimeDelta::seconds(second) + TimeDelta::microseconds(micro))
        })
        .map(|after| start() + after)
        .collect();
    for moment in moments.iter().rev() {
        let event = event::ActiveModel {
            id: Set(Uuid::now_v7()),
            kind: Set("test".to_owned()),
            subject_type: Set("test".to_owned()),
            subject_id: Set(Uuid::now_v7()),
            payload: Set(json!({})),
            occurred_at: Set(*moment),
            ..Default::default()
        };
        event::Entity::insert(event)
            .exec(&db)
            .await
            .expect("inserts");
    }
    let events = event::Entity::find().order_by_asc(event::Column::OccurredAt);
    let stored = events.all(&db).await.expect("reads");
    let stored: Vec<_> = stored.iter().map(|event| event.occurred_at).collect();
    assert_eq!(stored, moments);
    for (at, moment) in moments.iter().enumerate() {
        let earlier = event::Entity::find().filter(event::Column::OccurredAt.lt(*moment));
        assert_eq!(earlier.count(&db).await, Ok(at as u64), "before {moment}");
    }
}

#[tokio::test]
async fn folded_names_are_ordered_by_their_bytes() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let mut keys = ["zoe", "a b", "a-b", "ab", "a_b", "ä", "z", "a", "1", "é"];
    for (key, n) in keys.iter().zip(1..) {
        circle::Entity::update_many()
            .col_expr(circle::Column::NameKey, Expr::value(*key))
            .filter(circle::Column::Id.eq(id(7, n)))
            .exec(&db)
            .await
            .expect("renames");
    }
    let circles = circle::Entity::find()
        .filter(circle::Column::Id.lte(id(7, 10)))
        .order_by_asc(circle::Column::NameKey);
    let circles = circles.all(&db).await.expect("reads");
    keys.sort_unstable();
    assert_eq!(
        circles
            .iter()
            .map(|circle| &*circle.name_key)
            .collect::<Vec<_>>(),
        keys
    );
}
