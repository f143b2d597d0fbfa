//! The demo data.

use super::*;

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
    insert_user(&db, "existing@example.com").await;
    let before = dump(&db).await;
    let refused = seed::seed(&db, PASSWORD).await;
    assert!(matches!(refused, Err(SeedError::Occupied)), "{refused:?}");
    assert_eq!(dump(&db).await, before);
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
    let received: Vec<_> = events
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
    assert_eq!(received, expected);
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
