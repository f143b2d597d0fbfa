//! The limit on the total text of a response.

use serde_json::{Value, json};

use crate::support::events::Socket;
use crate::support::server::TestServer;

const LIMIT: u64 = 64 << 10;

/// A server, and a project whose description has a bit more than half of the allowed text.
async fn large() -> (TestServer, Value) {
    let server = TestServer::with(|config| config.graphql.limits.text_bytes = LIMIT).await;
    let create = "mutation ($input: CreateProjectInput!) {
        createProject(input: $input) { project { id } userErrors { code } } }";
    let input = json!({ "name": "Large", "description": "😀".repeat(8_500) });
    let created = server.graphql(create, json!({ "input": input })).await;
    let id = created["data"]["createProject"]["project"]["id"].clone();
    assert!(id.is_string(), "{created}");
    (server, id)
}

fn assert_too_long(answer: &Value) {
    let errors = answer["errors"].as_array().expect("errors");
    assert!(!errors.is_empty(), "{answer}");
    for error in errors {
        assert_eq!(error["extensions"]["code"], "QUERY_TOO_COMPLEX");
        assert_eq!(error["extensions"]["limit"], LIMIT);
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains("65536 bytes of text"), "{message}");
    }
}

#[tokio::test]
async fn the_text_of_a_response_is_limited_across_aliases_and_lists() {
    let (server, id) = large().await;
    let once = "query ($id: ID!) { project(id: $id) { description } }";
    for _ in 0..3 {
        let answer = server.graphql(once, json!({ "id": id })).await;
        let text = answer["data"]["project"]["description"].as_str();
        assert_eq!(
            text.map(str::len),
            Some(34_000),
            "each response has its own limit"
        );
    }
    for (query, fails) in [
        (
            "query ($id: ID!) { project(id: $id) { id a: description b: description } }",
            1,
        ),
        (
            "query ($id: ID!) { a: project(id: $id) { description } b: project(id: $id) { description } }",
            1,
        ),
        (
            "query ($id: ID!) { nodes(ids: [$id, $id, $id, $id]) { ... on Project { description } } }",
            3,
        ),
    ] {
        let answer = server.graphql(query, json!({ "id": id })).await;
        assert_too_long(&answer);
        assert_eq!(answer["errors"].as_array().map(Vec::len), Some(fails));
        assert_eq!(answer.to_string().matches(&"😀".repeat(8_500)).count(), 1);
    }
}

#[tokio::test]
async fn an_object_whose_nullable_fields_all_fail_is_kept() {
    let (server, id) = large().await;
    let query = "query ($id: ID!) { a: project(id: $id) { description } b: project(id: $id) { description } }";
    let answer = server.graphql(query, json!({ "id": id })).await;
    assert_too_long(&answer);
    let of = |key: &str| answer["data"][key].clone();
    let is_null = |key: &str| of(key) == json!({ "description": null });
    assert!(is_null("a") != is_null("b"), "{:?}", answer["data"]);

    let query =
        "query ($id: ID!) { projects { nodes { description } } project(id: $id) { description } }";
    let answer = server.graphql(query, json!({ "id": id })).await;
    assert_too_long(&answer);
    assert!(answer["data"]["projects"]["nodes"].is_array());
    assert!(answer["data"]["project"].is_object());
}

#[tokio::test]
async fn a_mutation_over_the_text_limit_still_returns_its_other_fields() {
    let (server, id) = large().await;
    let update = "mutation ($input: UpdateProjectInput!) { updateProject(input: $input) {
        project { name a: description b: description } userErrors { code } } }";
    let input = json!({ "projectId": id, "name": "Renamed" });
    let answer = server.graphql(update, json!({ "input": input })).await;
    assert_too_long(&answer);
    assert_eq!(
        answer["data"]["updateProject"]["project"]["name"],
        "Renamed"
    );
}

#[tokio::test]
async fn each_event_has_its_own_text_limit() {
    let (server, id) = large().await;
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let before = server.subscribers().await;
    let query = "subscription { events { ... on ProjectEvent { project { description } } } }";
    socket.subscribe("1", query).await;
    server.until_subscribers_exceed(before).await;
    let update = "mutation ($input: UpdateProjectInput!) { updateProject(input: $input) { userErrors { code } } }";
    for name in ["One", "Two", "Three"] {
        let input = json!({ "projectId": id, "name": name });
        let updated = server.graphql(update, json!({ "input": input })).await;
        assert_eq!(updated["data"]["updateProject"]["userErrors"], json!([]));
        let event = socket.next().await;
        let text = event["payload"]["data"]["events"]["project"]["description"].as_str();
        assert_eq!(text.map(str::len), Some(34_000), "{event}");
    }
}
