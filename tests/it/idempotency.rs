//! Idempotency keys: a repeated request of the same user with the same key changes once and gets the first response.

use futures_util::future::join_all;
use gathering_entity::{idempotency, project};
use reqwest::Method;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use crate::support::database::PASSWORD;
use crate::support::server::TestServer;

const CREATE: &str = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { \
    project { id name } userErrors { field code } } }";

/// Creates a project with this name under this key.
async fn create(server: &TestServer, token: &str, key: &str, name: &str) -> Value {
    let body = json!({ "query": CREATE, "variables": { "input": { "name": name } } });
    send(server, token, key, &body).await
}

async fn send(server: &TestServer, token: &str, key: &str, body: &Value) -> Value {
    let request = server.request(Method::POST, "/graphql").bearer_auth(token);
    let request = request.header("Idempotency-Key", key).json(body);
    let response = request.send().await.expect("an answer");
    response.json().await.expect("JSON")
}

/// The number of projects with this name.
async fn count(server: &TestServer, name: &str) -> u64 {
    let db = server.database().connect().await;
    let projects = project::Entity::find().filter(project::Column::Name.eq(name));
    projects.count(&db).await.expect("counts")
}

/// Resets the stored requests to the state in which a crash before the response leaves them.
async fn forget_answers(db: &DatabaseConnection) {
    let none = Expr::value(Option::<Value>::None);
    let forget = idempotency::Entity::update_many()
        .col_expr(idempotency::Column::Outcome, none)
        .filter(idempotency::Column::Field.eq(""));
    forget.exec(db).await.expect("updates");
}

fn is_replayed(answer: &Value) -> bool {
    answer["extensions"]["idempotency"]["isReplayed"] == true
}

#[tokio::test]
async fn the_same_key_replays_the_first_response_and_changes_once() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let first = create(&server, &token, "key-1", "Once").await;
    assert!(
        first["data"]["createProject"]["project"]["id"].is_string(),
        "{first}"
    );
    assert!(!is_replayed(&first));

    let id = &first["data"]["createProject"]["project"]["id"];
    let rename = "mutation ($input: UpdateProjectInput!) { updateProject(input: $input) { project { name } } }";
    let input = json!({ "projectId": id, "name": "Renamed" });
    server
        .with_token(&token)
        .answer(rename, json!({ "input": input }))
        .await;

    for key in ["key-1", "\"key-1\""] {
        let again = create(&server, &token, key, "Once").await;
        assert_eq!(again["data"], first["data"]);
        assert!(is_replayed(&again), "{again}");
    }
    let body = json!({ "query": CREATE, "variables": { "input": { "name": "Once" } },
        "extensions": { "idempotencyKey": "key-1" } });
    let request = server.request(Method::POST, "/graphql").bearer_auth(&token);
    let again: Value = request
        .json(&body)
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    assert_eq!(again["data"], first["data"]);
    assert_eq!(count(&server, "Once").await, 0);
    assert_eq!(count(&server, "Renamed").await, 1);

    let other = create(&server, &token, "key-2", "Once").await;
    assert!(!is_replayed(&other));
    assert_ne!(other["data"], first["data"]);
}

#[tokio::test]
async fn a_different_request_under_the_same_key_is_refused() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    create(&server, &token, "key", "One").await;
    let two = create(&server, &token, "key", "Two").await;
    assert_eq!(two["errors"][0]["extensions"]["code"], "BAD_USER_INPUT");
    assert_eq!(two["errors"][0]["extensions"]["field"], "idempotencyKey");
    assert!(two.get("data").is_none());
    let document = CREATE.replace("userErrors { field code }", "userErrors { code }");
    let body = json!({ "query": document, "variables": { "input": { "name": "One" } } });
    let other = send(&server, &token, "key", &body).await;
    assert_eq!(other["errors"][0]["extensions"]["field"], "idempotencyKey");
    assert_eq!(count(&server, "Two").await, 0);

    // Keys of different users are independent.
    let guest = server.token("guest@example.com").await;
    let theirs = create(&server, &guest, "key", "Two").await;
    assert!(theirs["data"]["createProject"]["project"]["id"].is_string());
}

#[tokio::test]
async fn a_retry_after_a_crash_finds_finished_changes_and_makes_the_rest() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let document = "mutation ($a: CreateProjectInput!, $b: CreateProjectInput!) { \
        a: createProject(input: $a) { project { id name } userErrors { code } } \
        b: createProject(input: $b) { project { id name } userErrors { code } } }";
    let body =
        json!({ "query": document, "variables": { "a": { "name": "A" }, "b": { "name": "B" } } });
    let first = send(&server, &token, "key", &body).await;
    assert!(first["data"]["b"]["project"]["id"].is_string(), "{first}");

    // The state after a crash before the response, and after one before the second change.
    let db = server.database().connect().await;
    forget_answers(&db).await;
    let again = send(&server, &token, "key", &body).await;
    assert!(is_replayed(&again), "{again}");
    assert_eq!(again["data"], first["data"]);

    let b = project::Entity::delete_many().filter(project::Column::Name.eq("B"));
    b.exec(&db).await.expect("deletes");
    let noted = idempotency::Entity::find().filter(idempotency::Column::Field.ne(""));
    let noted = noted.all(&db).await.expect("reads");
    assert_eq!(noted.len(), 2);
    let id = |key: &str| {
        first["data"][key]["project"]["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    };
    let b_row = gathering_schema::id::parse(&async_graphql::ID(id("b")))
        .expect("an id")
        .1;
    for row in noted {
        if row.outcome == Some(json!([b_row])) {
            let place = (row.user_id, row.key, row.field);
            idempotency::Entity::delete_by_id(place)
                .exec(&db)
                .await
                .expect("deletes");
        }
    }
    forget_answers(&db).await;
    let last = send(&server, &token, "key", &body).await;
    assert!(!is_replayed(&last), "{last}");
    assert_eq!(last["data"]["a"], first["data"]["a"]);
    assert_eq!(last["data"]["b"]["project"]["name"], "B");
    assert_ne!(last["data"]["b"]["project"]["id"], id("b"));
    assert_eq!(
        (count(&server, "A").await, count(&server, "B").await),
        (1, 1)
    );
}

#[tokio::test]
async fn retrying_an_interrupted_request_does_not_change_an_account_again() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let admin = server.token("admin@example.com").await;
    let db = server.database().connect().await;
    let visitor = server.anonymous();
    let user = &visitor.with(&token).id().await;
    let profile = |name: &str| {
        let query =
            "mutation ($name: String) { updateProfile(input: { name: $name }) { user { name } } }";
        json!({ "query": query, "variables": { "name": name } })
    };
    let account = |name: &str| {
        let query = "mutation ($user: ID!, $name: String) { \
            updateUser(input: { userId: $user, name: $name }) { user { name } } }";
        json!({ "query": query, "variables": { "user": user, "name": name } })
    };
    for (token, field, change) in [
        (&token, "updateProfile", &profile as &dyn Fn(&str) -> Value),
        (&admin, "updateUser", &account),
    ] {
        let made = send(&server, token, field, &change("First")).await;
        assert_eq!(made["data"][field]["user"]["name"], "First", "{made}");
        send(&server, token, &format!("{field}-later"), &change("Second")).await;
        forget_answers(&db).await;
        let again = send(&server, token, field, &change("First")).await;
        assert_eq!(again["data"][field]["user"]["name"], "Second", "{again}");
    }

    let other = visitor.login("demo@example.com", PASSWORD).await;
    let query =
        "mutation ($id: ID!) { revokeSession(input: { sessionId: $id }) { revokedSessionId } }";
    let session = visitor.with(&other.access).session().await;
    let end = json!({ "query": query, "variables": { "id": session } });
    let ended = send(&server, &token, "end", &end).await;
    assert!(ended["data"]["revokeSession"].is_object(), "{ended}");
    forget_answers(&db).await;
    let again = send(&server, &token, "end", &end).await;
    assert_eq!(again["data"], ended["data"], "{again}");
}

#[tokio::test]
async fn sessions_can_be_revoked_concurrently() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let token = server.token("demo@example.com").await;
    let mut ends = Vec::new();
    for _ in 0..5 {
        let other = visitor.login("demo@example.com", PASSWORD).await;
        let session = visitor.with(&other.access).session().await;
        let query =
            "mutation ($id: ID!) { revokeSession(input: { sessionId: $id }) { revokedSessionId } }";
        ends.push(json!({ "query": query, "variables": { "id": session } }));
    }
    let (server, token) = (&server, &token);
    let ended = ends
        .iter()
        .enumerate()
        .map(async |(n, end)| send(server, token, &format!("end-{n}"), end).await);
    for answer in join_all(ended).await {
        assert!(answer["data"]["revokeSession"].is_object(), "{answer}");
    }
}

/// Asserts that all responses but one are marked as replayed.
fn assert_one_is_first(answers: &[Value]) {
    let first = answers.iter().filter(|answer| !is_replayed(answer)).count();
    assert_eq!(first, 1, "{answers:?}");
}

#[tokio::test]
async fn twenty_concurrent_identical_requests_change_once() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    // Archived projects may share a name, so only the key prevents a second project.
    let document = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }";
    let body = json!({ "query": document, "variables": { "input": { "name": "Race" } } });
    let answers = join_all((0..20).map(|_| send(&server, &token, "race", &body))).await;
    assert_one_is_first(&answers);
    let ids: Vec<_> = answers
        .iter()
        .map(|answer| answer["data"]["createProject"]["project"]["id"].as_str())
        .collect();
    assert!(ids[0].is_some(), "{}", answers[0]);
    assert!(ids.iter().all(|id| *id == ids[0]), "{answers:?}");
    assert_eq!(count(&server, "Race").await, 1);
}

#[tokio::test]
async fn concurrent_identical_requests_on_two_instances_change_once() {
    let one = TestServer::start().await;
    let two = one.beside(|_| ()).await;
    let token = one.token("demo@example.com").await;
    let body = json!({ "query": CREATE, "variables": { "input": { "name": "Race" } } });
    let sends = (0..20).map(|n| {
        let server = if n % 2 == 0 { &one } else { &two };
        send(server, &token, "race", &body)
    });
    let answers = join_all(sends).await;
    assert_one_is_first(&answers);
    let ids = answers
        .iter()
        .map(|answer| &answer["data"]["createProject"]["project"]["id"]);
    let ids: Vec<_> = ids.collect();
    assert!(ids[0].is_string(), "{}", answers[0]);
    assert!(ids.iter().all(|id| *id == ids[0]), "{answers:?}");
    assert_eq!(count(&one, "Race").await, 1);
}

#[tokio::test]
async fn concurrent_identical_requests_with_several_changes_change_once() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let fields = ["A", "B", "C"].map(|name| {
        format!("{name}: createProject(input: {{ name: \"{name}\" }}) {{ project {{ id }} }} ")
    });
    let body = json!({ "query": format!("mutation {{ {} }}", fields.concat()) });
    let answers = join_all((0..10).map(|_| send(&server, &token, "race", &body))).await;
    assert_one_is_first(&answers);
    assert!(
        answers
            .iter()
            .all(|answer| answer["data"] == answers[0]["data"])
    );
    for name in ["A", "B", "C"] {
        assert_eq!(count(&server, name).await, 1);
    }
}

#[tokio::test]
async fn a_request_that_changed_nothing_leaves_its_key_free() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let none = "project_00000000000000000000000000";
    let update = |id: &str| {
        let query = "mutation ($id: ID!) { updateProject(input: { projectId: $id, name: \"N\" }) { project { id } } }";
        json!({ "query": query, "variables": { "id": id } })
    };
    let create = |name: &str, selection: &str| {
        let query = format!(
            "mutation ($input: CreateProjectInput!) {{ createProject(input: $input) {{ {selection} }} }}"
        );
        json!({ "query": query, "variables": { "input": { "name": name } } })
    };
    let catalogue = "mutation { createProvider(input: { name: \"p\", displayName: \"P\" }) { provider { id } } }";
    let refused = [
        // Input errors, whether they are selected or not.
        create("Atlas", "userErrors { code }"),
        create("Atlas", "project { id }"),
        create("", "userErrors { code }"),
        // An id of another type, and an id without a row.
        update("agent_00000000000000000000000000"),
        update(none),
        // Only administrators may do this.
        json!({ "query": catalogue }),
        json!({ "query": "mutation { updateProfile(input: { name: null }) { userErrors { code } } }" }),
        // Several fields of which none changes anything.
        json!({ "query": "mutation { a: createProject(input: { name: \"Atlas\" }) { userErrors { code } } \
            b: createProject(input: { name: \"\" }) { userErrors { code } } }" }),
    ];
    for (n, body) in refused.iter().enumerate() {
        let key = format!("key-{n}");
        // The client may repeat the mistake.
        for _ in 0..2 {
            let answer = send(&server, &token, &key, body).await;
            assert!(!is_replayed(&answer), "{answer}");
            let field = &answer["errors"][0]["extensions"]["field"];
            assert_ne!(field, "idempotencyKey", "{answer}");
        }
        let name = format!("Corrected {n}");
        let right = create(&name, "project { id }");
        let made = send(&server, &token, &key, &right).await;
        let id = &made["data"]["createProject"]["project"]["id"];
        assert!(id.is_string(), "{body}: {made}");
        let again = send(&server, &token, &key, &right).await;
        assert!(is_replayed(&again), "{again}");
        assert_eq!(again["data"], made["data"]);
        let late = send(&server, &token, &key, body).await;
        let field = &late["errors"][0]["extensions"]["field"];
        assert_eq!(field, "idempotencyKey", "{body}: {late}");
        assert_eq!(count(&server, &name).await, 1);
    }
}

#[tokio::test]
async fn a_refused_request_can_succeed_later_under_the_same_key() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let first = create(&server, &token, "key", "Atlas").await;
    let errors = &first["data"]["createProject"]["userErrors"];
    assert_eq!(errors, &json!([{ "field": ["name"], "code": "TAKEN" }]));
    let db = server.database().connect().await;
    let atlas = project::Entity::delete_many().filter(project::Column::Name.eq("Atlas"));
    atlas.exec(&db).await.expect("deletes");
    let made = create(&server, &token, "key", "Atlas").await;
    assert!(
        made["data"]["createProject"]["project"]["id"].is_string(),
        "{made}"
    );
    assert_eq!(count(&server, "Atlas").await, 1);
}

#[tokio::test]
async fn a_partly_successful_or_unchanged_request_keeps_its_key() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let part = json!({ "query": "mutation { a: createProject(input: { name: \"Part\" }) { project { id } } \
        b: createProject(input: { name: \"Atlas\" }) { userErrors { code } } }" });
    let viewer = server.graphql("{ viewer { name } }", json!({})).await;
    let name = &viewer["data"]["viewer"]["name"];
    let same = json!({ "query": "mutation ($name: String) { updateProfile(input: { name: $name }) { user { name } } }",
            "variables": { "name": name } });
    for (key, body) in [("part", &part), ("same", &same)] {
        let made = send(&server, &token, key, body).await;
        assert!(made["data"].is_object() && !is_replayed(&made), "{made}");
        let again = send(&server, &token, key, body).await;
        assert!(is_replayed(&again), "{again}");
        assert_eq!(again["data"], made["data"]);
        let other = create(&server, &token, key, "Other").await;
        assert_eq!(other["errors"][0]["extensions"]["field"], "idempotencyKey");
    }
    assert_eq!(count(&server, "Part").await, 1);
    assert_eq!(count(&server, "Other").await, 0);
}

#[tokio::test]
async fn concurrent_wrong_and_corrected_requests_change_once() {
    let server = TestServer::start().await;
    let other = server.beside(|_| ()).await;
    let token = server.token("demo@example.com").await;
    for round in 0..5 {
        let key = format!("key-{round}");
        let name = format!("Corrected {round}");
        let body =
            |name: &str| json!({ "query": CREATE, "variables": { "input": { "name": name } } });
        let (wrong, right) = (body("Atlas"), body(&name));
        let sends = (0..20).map(|n| {
            let server = if n % 4 < 2 { &server } else { &other };
            send(
                server,
                &token,
                &key,
                if n % 2 == 0 { &wrong } else { &right },
            )
        });
        join_all(sends).await;
        let made = send(&server, &token, &key, &right).await;
        let id = &made["data"]["createProject"]["project"]["id"];
        assert!(id.is_string(), "{made}");
        assert_eq!(count(&server, &name).await, 1);
    }
}

#[tokio::test]
async fn a_crash_before_any_change_leaves_the_key_free() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    create(&server, &token, "key", "Crashed").await;
    let db = server.database().connect().await;
    let fields = idempotency::Entity::delete_many().filter(idempotency::Column::Field.ne(""));
    fields.exec(&db).await.expect("deletes");
    forget_answers(&db).await;
    let made = create(&server, &token, "key", "Corrected").await;
    let id = &made["data"]["createProject"]["project"]["id"];
    assert!(id.is_string(), "{made}");
    assert!(is_replayed(
        &create(&server, &token, "key", "Corrected").await
    ));
    let late = create(&server, &token, "key", "Crashed").await;
    assert_eq!(late["errors"][0]["extensions"]["field"], "idempotencyKey");
}

#[tokio::test]
async fn each_entry_of_a_batch_has_its_own_key() {
    let server = TestServer::with(|config| config.graphql.batch = 10).await;
    let token = server.token("demo@example.com").await;
    let one = |name: &str| json!({ "query": CREATE, "variables": { "input": { "name": name } } });
    let mut own = one("Own");
    own["extensions"] = json!({ "idempotencyKey": "own" });
    // Two equal entries are two changes.
    let update = "mutation { createProject(input: { name: \"Twice\" }) { project { id } userErrors { code } } }";
    let same = json!({ "query": update });
    let batch =
        json!([one("First"), one("Second"), own, same, same, { "query": "{ viewer { id } }" }]);
    let longest = "k".repeat(255);
    for key in ["key", &longest] {
        let first = send(&server, &token, key, &batch).await;
        let first = first
            .as_array()
            .unwrap_or_else(|| panic!("{first}"))
            .clone();
        assert_eq!(first.len(), 6);
        if key == "key" {
            for answer in &first[..3] {
                let id = &answer["data"]["createProject"]["project"]["id"];
                assert!(id.is_string() && !is_replayed(answer), "{answer}");
            }
            let made = [&first[3], &first[4]].map(|answer| {
                assert!(!is_replayed(answer), "{answer}");
                answer["data"]["createProject"]["project"].is_object()
            });
            assert!(made[0] != made[1], "{first:?}");
        }
        assert!(first[5]["data"]["viewer"]["id"].is_string());
    }
    let again = send(&server, &token, "key", &batch).await;
    for place in 0..3 {
        assert!(is_replayed(&again[place]), "{again}");
    }
    for name in ["First", "Second", "Own"] {
        assert_eq!(count(&server, name).await, 1);
    }
    // The first entry uses the key of the batch itself.
    let first = create(&server, &token, "key", "First").await;
    assert!(is_replayed(&first), "{first}");
    let own = create(&server, &token, "own", "Own").await;
    assert!(is_replayed(&own), "{own}");
    // A different batch under the same key is refused entry by entry.
    let other = json!([one("First"), one("Third")]);
    let other = send(&server, &token, "key", &other).await;
    assert!(is_replayed(&other[0]), "{other}");
    let field = &other[1]["errors"][0]["extensions"]["field"];
    assert_eq!(field, "idempotencyKey", "{other}");
}

#[tokio::test]
async fn an_invalid_request_leaves_its_key_free() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let mistaken = json!({ "query": CREATE.replace("id name", "id nam"),
        "variables": { "input": { "name": "Meant" } } });
    let wrong = json!({ "query": CREATE, "variables": { "input": { "title": "Meant" } } });
    for (body, expected) in [
        (&mistaken, "GRAPHQL_VALIDATION_FAILED"),
        (&wrong, "BAD_USER_INPUT"),
    ] {
        let refused = send(&server, &token, "key", body).await;
        let code = &refused["errors"][0]["extensions"]["code"];
        assert_eq!(code, expected, "{refused}");
        assert!(refused.get("data").is_none());
    }
    let made = create(&server, &token, "key", "Meant").await;
    let id = &made["data"]["createProject"]["project"]["id"];
    assert!(id.is_string(), "{made}");
    // The key is taken now, and stays taken when the invalid request is repeated.
    let late = send(&server, &token, "key", &mistaken).await;
    let code = &late["errors"][0]["extensions"]["code"];
    assert_eq!(code, "GRAPHQL_VALIDATION_FAILED");
    assert!(is_replayed(&create(&server, &token, "key", "Meant").await));

    let right = json!({ "query": CREATE, "variables": { "input": { "name": "Raced" } } });
    let mixed = (0..20).map(|n| {
        let body = if n % 2 == 0 { &mistaken } else { &right };
        send(&server, &token, "race", body)
    });
    join_all(mixed).await;
    let made = create(&server, &token, "race", "Raced").await;
    let id = &made["data"]["createProject"]["project"]["id"];
    assert!(id.is_string(), "{made}");
    assert_eq!(count(&server, "Raced").await, 1);
}

#[tokio::test]
async fn a_key_expires_after_a_day() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    create(&server, &token, "key", "Day one").await;
    server.pass(25 * 3_600);
    let token = server.token("demo@example.com").await;
    let next = create(&server, &token, "key", "Day two").await;
    assert!(
        next["data"]["createProject"]["project"]["id"].is_string(),
        "{next}"
    );
    assert!(!is_replayed(&next));
}

#[tokio::test]
async fn malformed_keys_and_keys_on_secret_mutations_are_refused() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    for key in ["", "two words", &"k".repeat(256), "\"\""] {
        let answer = create(&server, &token, key, "Never").await;
        assert_eq!(
            answer["errors"][0]["extensions"]["field"], "idempotencyKey",
            "{answer}"
        );
    }
    assert_eq!(count(&server, "Never").await, 0);
    let change = json!({ "query": "mutation { changePassword(input: { currentPassword: \"a\", newPassword: \"b\" }) { accessToken } }" });
    let answer = send(&server, &token, "key", &change).await;
    assert_eq!(answer["errors"][0]["extensions"]["field"], "idempotencyKey");
    // Without a signed-in user the key has no owner.
    let login = json!({ "query": "mutation { login(input: { email: \"a@b\", password: \"c\" }) { accessToken } }" });
    let answer = send(&server, &token, "key", &login).await;
    assert_eq!(
        answer["errors"][0]["extensions"]["code"], "BAD_USER_INPUT",
        "{answer}"
    );
    // A query changes nothing and ignores the key.
    let query = json!({ "query": "{ viewer { id } }" });
    let answer = send(&server, &token, "two words", &query).await;
    assert!(answer["data"]["viewer"]["id"].is_string());
}

#[tokio::test]
async fn a_request_resumed_late_expires_as_a_whole() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    // The request was recorded, and then the server was killed.
    create(&server, &token, "key", "Late").await;
    let db = server.database().connect().await;
    let fields = idempotency::Entity::delete_many().filter(idempotency::Column::Field.ne(""));
    fields.exec(&db).await.expect("deletes");
    forget_answers(&db).await;
    let made = project::Entity::delete_many().filter(project::Column::Name.eq("Late"));
    made.exec(&db).await.expect("deletes");
    // The request is repeated 20 hours later, and the key is used again after it has expired.
    server.pass(20 * 3_600);
    let token = server.token("demo@example.com").await;
    let late = create(&server, &token, "key", "Late").await;
    assert!(
        late["data"]["createProject"]["project"]["id"].is_string(),
        "{late}"
    );
    server.pass(5 * 3_600);
    server.purge().await;
    let token = server.token("demo@example.com").await;
    let new = create(&server, &token, "key", "New").await;
    assert_eq!(
        new["data"]["createProject"]["project"]["name"], "New",
        "{new}"
    );
    assert_eq!(count(&server, "New").await, 1);
}

#[tokio::test]
async fn a_stored_response_is_replayed_byte_for_byte() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let created = "mutation { createAgent(input: { name: \"Stale\" }) { agent { id } } }";
    let created = server.with_token(&token).answer(created, json!({})).await;
    let agent = created["data"]["createAgent"]["agent"]["id"].as_str();
    let agent = agent.unwrap_or_else(|| panic!("{created}"));
    let query = format!(
        "mutation {{ createProject(input: {{ name: \"Byte\" }}) {{ project {{ name id }} userErrors {{ code message }} }}
        deleteAgent(input: {{ id: \"{agent}\", expectedVersion: 99 }}) {{ __typename current {{
            ... on Agent {{ n: name v: version }} ... on Circle {{ n: name z: displayName }}
            ... on Project {{ n: name }} __typename id }} userErrors {{ code }} }} }}"
    );
    let text = async || {
        let request = server.request(Method::POST, "/graphql").bearer_auth(&token);
        let request = request.header("idempotency-key", "bytes");
        let response = request.json(&json!({ "query": query })).send().await;
        response.expect("an answer").text().await.expect("a text")
    };
    let data = |text: &str| {
        let start = text.find("\"data\":").expect("data");
        let end = text.rfind(",\"extensions\"").unwrap_or(text.len() - 1);
        text[start..end].to_owned()
    };
    let (first, again) = (text().await, text().await);
    assert!(first.contains("\"v\":"), "{first}");
    assert!(again.contains("\"isReplayed\":true"), "{again}");
    assert_eq!(data(&again), data(&first));
}
