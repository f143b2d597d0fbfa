//! Many keys, and floods of wrong keys.

use chrono::DateTime;
use gathering::config::Mode;
use gathering_entity::{List, api_key, user as users};
use sea_orm::prelude::Uuid;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait, QueryFilter, Set,
    Statement,
};

use super::*;
use crate::support::actor::faults;

#[tokio::test]
async fn a_flood_of_wrong_keys_is_charged_to_its_address() {
    let server = TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        config.limits.address = 100_000;
        config.limits.read = 20;
    })
    .await;
    let key = key_of(&server, OWNER, &["READ"]).await;
    assert_eq!(server.with_token(&key.secret).who().await, user(OWNER));
    let elsewhere = TestServer::start().await;
    let mut statuses = Vec::new();
    for n in 0..25 {
        // Half of the keys have a valid checksum.
        let wrong = if n % 2 == 0 {
            key_of(&elsewhere, OWNER, &["READ"]).await.secret
        } else {
            format!("gth_{n:036}")
        };
        statuses.push(outcome(&server.with_token(&wrong), WHO).await.0);
    }
    let unauthenticated = statuses
        .iter()
        .filter(|status| **status == StatusCode::UNAUTHORIZED);
    assert_eq!(unauthenticated.count(), 20, "{statuses:?}");
    assert!(
        statuses[20..]
            .iter()
            .all(|status| *status == StatusCode::TOO_MANY_REQUESTS)
    );
    // The user whose key the server knows has a separate bucket.
    assert_eq!(server.with_token(&key.secret).who().await, user(OWNER));
    let other = server.at_host(2).with(&key.secret);
    assert_eq!(other.who().await, user(OWNER));
}

#[tokio::test]
async fn the_first_request_with_a_key_is_charged_to_the_user() {
    let server = TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        config.limits.address = 100_000;
        config.limits.read = 5;
    })
    .await;
    let token = server.token(OWNER).await;
    let key = key_of(&server, OWNER, &["READ"]).await;
    for caller in [&key.secret, &token, &key.secret, &token, &key.secret] {
        assert_eq!(
            outcome(&server.with_token(caller), WHO).await.0,
            StatusCode::OK
        );
    }
    for caller in [&key.secret, &token] {
        let status = outcome(&server.with_token(caller), WHO).await.0;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(outcome(&server.anonymous(), WHO).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_revoked_key_is_charged_to_its_address() {
    let server = TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        config.limits.address = 100_000;
        config.limits.read = 3;
    })
    .await;
    let key = key_of(&server, OWNER, &["READ"]).await;
    let caller = server.with_token(&key.secret);
    assert_eq!(outcome(&caller, WHO).await.0, StatusCode::OK);
    revoke(&server.actor(OWNER).await, &key).await;
    for _ in 0..3 {
        let refused = super::refused(401, "UNAUTHENTICATED");
        assert_eq!(outcome(&caller, WHO).await, refused);
    }
    assert_eq!(
        outcome(&caller, WHO).await.0,
        StatusCode::TOO_MANY_REQUESTS,
        "of the network"
    );
    let owner = server.at_host(2).with(&server.token(OWNER).await);
    for _ in 0..2 {
        assert_eq!(outcome(&owner, WHO).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_user_has_a_maximum_number_of_keys() {
    let server = TestServer::with(|config| config.auth.policy.api_keys = 2).await;
    let owner = server.actor(OWNER).await;
    let input = json!({ "name": "A", "scopes": ["READ"] });
    let first = create(&owner, input.clone()).await;
    create(&owner, input.clone()).await;
    let answer = owner.mutate("createApiKey", CREATED, input.clone()).await;
    assert_eq!(faults(&answer["data"]["createApiKey"]), ["LIMIT_REACHED"]);
    revoke(&owner, &first).await;
    create(&owner, input).await;
}

#[tokio::test]
async fn ten_thousand_keys_of_a_user_are_paged_and_found_by_an_index() {
    const MANY: usize = 10_000;
    let server = TestServer::with(|config| config.auth.policy.api_keys = 10_001).await;
    let owner = server.actor(OWNER).await;
    let key = create(&owner, json!({ "name": "First", "scopes": ["READ"] })).await;
    let db = server.database().connect().await;
    let row = users::Entity::find().filter(users::Column::Email.eq(OWNER));
    let user_id = row.one(&db).await.expect("reads").expect("a user").id;
    let rows: Vec<_> = (1..MANY)
        .map(|n| api_key::ActiveModel {
            id: Set(Uuid::now_v7()),
            created_at: Set(DateTime::UNIX_EPOCH),
            user_id: Set(user_id),
            name: Set(format!("Key {n}")),
            secret_hash: Set(format!("{n:064x}")),
            prefix: Set("gth_000000".to_owned()),
            scopes: Set(List(vec!["READ".to_owned()])),
            ..Default::default()
        })
        .collect();
    for rows in rows.chunks(1_000) {
        let insert = api_key::Entity::insert_many(rows.to_vec());
        insert.exec_without_returning(&db).await.expect("inserts");
    }
    assert_eq!(api_key::Entity::find().count(&db).await, Ok(MANY as u64));
    db.execute_unprepared("ANALYZE").await.expect("analyses");

    let query =
        "query ($after: String) { apiKeys(first: 100, after: $after) { totalCount nodes { name }
        pageInfo { endCursor hasNextPage } } }";
    let (mut after, mut names) = (Value::Null, std::collections::HashSet::new());
    loop {
        let page = owner.ask(query, json!({ "after": after })).await;
        let page = &page["apiKeys"];
        assert_eq!(page["totalCount"], MANY);
        names.extend(
            page["nodes"]
                .as_array()
                .expect("nodes")
                .iter()
                .map(|node| text(&node["name"])),
        );
        if page["pageInfo"]["hasNextPage"] == false {
            break;
        }
        after = page["pageInfo"]["endCursor"].clone();
    }
    assert_eq!(names.len(), MANY);
    assert_eq!(server.with_token(&key.secret).who().await, user(OWNER));
    create(&owner, json!({ "name": "Last", "scopes": ["READ"] })).await;

    let backend = db.get_database_backend();
    let (explain, hash) = match backend {
        DbBackend::Postgres => ("EXPLAIN", "ANY (ARRAY['x', 'y'])"),
        _ => ("EXPLAIN QUERY PLAN", "IN ('x', 'y')"),
    };
    let equals = if backend == DbBackend::Postgres {
        "= "
    } else {
        ""
    };
    let page = format!(
        "user_id = {} ORDER BY id DESC LIMIT 21",
        match backend {
            DbBackend::Postgres => format!("'{user_id}'"),
            _ => format!("x'{}'", user_id.simple()),
        }
    );
    for (condition, index) in [
        (
            format!("secret_hash {equals}{hash}"),
            "api_keys_secret_hash_key",
        ),
        // PostgreSQL reads the primary key, because all keys belong to one user.
        (page, "api_keys_"),
    ] {
        let sql = format!("{explain} SELECT * FROM api_keys WHERE {condition}");
        let rows = db
            .query_all_raw(Statement::from_string(backend, sql))
            .await
            .expect("explains");
        let column = if backend == DbBackend::Postgres { 0 } else { 3 };
        let plan: Vec<String> = rows
            .iter()
            .map(|row| row.try_get_by_index(column).expect("a line"))
            .collect();
        let plan = plan.join(" ");
        let reads_all = ["Seq Scan", "Sort", "TEMP B-TREE"];
        assert!(!reads_all.iter().any(|step| plan.contains(step)), "{plan}");
        assert!(plan.contains(index), "{plan}");
    }
    db.close().await.expect("closes");
}
