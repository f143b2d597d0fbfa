//! The constraints and the collation of the database.

use super::*;

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
    // PostgreSQL has a type for moments, which has one form.
    let Some(database) = full().await.only_on_sqlite() else {
        return;
    };
    let db = database.connect().await;
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
    let events = event::Entity::find().count(&db).await;
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
        events,
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

#[tokio::test]
async fn an_object_has_at_most_one_pending_transfer() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let offer = |circle: Option<Uuid>, agent: Option<Uuid>, to: u32| transfer::ActiveModel {
        id: Set(Uuid::now_v7()),
        created_at: Set(start()),
        circle_id: Set(circle),
        agent_id: Set(agent),
        from_user_id: Set(id(1, 2)),
        to_user_id: Set(id(1, to)),
        status: Set(TransferStatus::Pending),
        expires_at: Set(start()),
        ..Default::default()
    };
    let insert = async |row: transfer::ActiveModel| {
        let insert = transfer::Entity::insert(row);
        insert.exec_without_returning(&db).await
    };
    let (circle, agent) = (Some(id(7, 1)), Some(id(5, 1)));
    insert(offer(circle, None, 1)).await.expect("inserts");
    insert(offer(None, agent, 1)).await.expect("inserts");
    let taken = violation(insert(offer(circle, None, 3)).await);
    assert!(
        matches!(taken, SqlErr::UniqueConstraintViolation(_)),
        "{taken:?}"
    );
    let mut declined = offer(circle, None, 3);
    declined.status = Set(TransferStatus::Declined);
    declined.resolved_at = Set(Some(start()));
    insert(declined).await.expect("inserts");
    let mut unresolved = offer(Some(id(7, 2)), None, 3);
    unresolved.status = Set(TransferStatus::Declined);
    for row in [
        offer(None, None, 1),
        offer(Some(id(7, 2)), Some(id(5, 2)), 1),
        // From a user to the same one.
        offer(Some(id(7, 2)), None, 2),
        unresolved,
    ] {
        let refused = insert(row).await.expect_err("refused").to_string();
        assert!(
            refused.to_lowercase().contains("check constraint"),
            "{refused}"
        );
    }
    circle::Entity::delete_by_id(id(7, 1))
        .exec(&db)
        .await
        .expect("deletes");
    assert_eq!(transfer::Entity::find().count(&db).await, Ok(1));
}
