//! The budget of complexity points.

use gathering::config::Config;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Answer, HERE, THERE, VIEWER, aliases, ask, from, serve};
use crate::support::server::TestServer;

const DEMO: &str = "demo@example.com";

/// A query that needs and uses 100 points.
fn hundred() -> String {
    format!("{{ serverInfo {} }}", aliases("name", 99))
}

/// A server with this budget.
async fn with_budget(cost: u32) -> TestServer {
    serve(|config| config.limits.cost = cost).await
}

/// The number of fields in a response.
fn fields(data: &Value) -> u64 {
    match data {
        Value::Array(items) => items.iter().map(fields).sum(),
        Value::Object(object) => object.values().map(|value| 1 + fields(value)).sum(),
        _ => 0,
    }
}

#[tokio::test]
async fn what_a_response_does_not_use_is_returned() {
    let compiled = |_: &mut Config| ();
    let resolved = |config: &mut Config| config.graphql.limits.compiled_queries = 0;
    for change in [compiled as fn(&mut Config), resolved] {
        let server = serve(change).await;
        let token = server.token(DEMO).await;
        let mut used = 0;
        for (query, requested) in [
            ("{ viewer { id name } }", 3),
            (
                "{ circles(first: 100) { nodes { id name } totalCount } }",
                203,
            ),
            (
                "{ circles { edges { cursor node { id members(first: 50) { edges { membership { role } node { name } } } } } } }",
                4_102,
            ),
            (
                "{ node(id: \"circle_01ke6p4zk8e03r000000000001\") { __typename id ... on Circle { name } } }",
                4,
            ),
            (
                "{ circle(id: \"circle_01ke6p4zk8e03r000000000001\") { name } }",
                2,
            ),
            (
                "{ circle(id: \"circle_01ke6p4zk8e03r0000000000zz\") { name } a: __typename }",
                3,
            ),
        ] {
            let answer = ask(&server, HERE, Some(&token), query).await;
            let cost = &answer.body["extensions"]["cost"];
            let actual = fields(&answer.body["data"]);
            assert_eq!(cost["requested"], requested, "{query}: {cost}");
            assert_eq!(cost["actual"], actual, "{query}: {}", answer.body);
            assert!((1..=requested).contains(&actual), "{query}: {actual}");
            used += actual;
            assert_eq!(cost["used"], used, "{query}");
            assert_eq!(cost["remaining"], 1_200_000 - used, "{query}");
            assert_eq!(cost["limit"], 1_200_000);
        }
    }
}

#[tokio::test]
async fn an_error_below_a_root_field_returns_nothing() {
    let server = with_budget(1_200_000).await;
    let token = server.token(DEMO).await;
    // The invalid argument makes everything null that was read before.
    let query = "{ circles(first: 5) { nodes { id members(first: 5) { nodes { id circles(first: 0) { nodes { id } } } } } } }";
    let answer = ask(&server, HERE, Some(&token), query).await;
    assert_eq!(answer.body["data"], Value::Null, "{}", answer.body);
    assert_eq!(answer.codes()[0], "BAD_USER_INPUT");
    let cost = &answer.body["extensions"]["cost"];
    assert_eq!(cost["used"], cost["requested"], "{cost}");
    assert_eq!(cost.get("actual"), None);
}

/// Asserts that a response refuses for lack of points.
fn assert_lacks(answer: &Answer, limit: u32, remaining: u32, wait_ms: u64) {
    assert!(answer.is_refused(), "{}", answer.body);
    let extensions = &answer.body["errors"][0]["extensions"];
    for (name, value) in [
        ("code", json!("RATE_LIMITED")),
        ("tier", json!("COST")),
        ("limit", json!(limit)),
        ("windowSeconds", json!(60)),
        ("remaining", json!(remaining)),
        ("retryAfter", json!(wait_ms.div_ceil(1_000))),
        ("retryAfterMs", json!(wait_ms)),
    ] {
        assert_eq!(extensions[name], value, "{name}: {}", answer.body);
    }
    let wait = answer.number("retry-after").unsigned_abs();
    assert_eq!(wait, wait_ms.div_ceil(1_000));
    assert_eq!(answer.number("x-ratelimit-limit"), i64::from(limit));
    assert_eq!(answer.number("x-ratelimit-remaining"), i64::from(remaining));
    let cost = &answer.body["extensions"]["cost"];
    assert_eq!(
        (&cost["limit"], &cost["remaining"]),
        (&json!(limit), &json!(remaining))
    );
    assert_eq!(cost.get("actual"), None);
}

#[tokio::test]
async fn an_operation_without_enough_points_is_refused_until_they_are_regained() {
    let server = with_budget(250).await;
    for left in [150, 50] {
        let answer = ask(&server, HERE, None, &hundred()).await;
        assert_eq!(answer.body["extensions"]["cost"]["remaining"], left);
        let state = format!("\"cost\";r={left};");
        assert!(answer.header("ratelimit").contains(&state));
        assert!(
            answer
                .header("ratelimit-policy")
                .contains("\"cost\";q=250;w=60")
        );
    }
    for _ in 0..2 {
        let answer = ask(&server, HERE, None, &hundred()).await;
        assert_lacks(&answer, 250, 50, 12_000);
        // The tier is not charged.
        assert_eq!(answer.quota("serverInfo")["remaining"], 298);
    }
    let states = "{ rateLimit { field tier limit cost used remaining } }";
    let answer = ask(&server, HERE, None, states).await;
    let states = answer.body["data"]["rateLimit"].as_array().expect("a list");
    let expected = json!({
        "field": null, "tier": "COST", "limit": 250, "cost": 0, "used": 200, "remaining": 50,
    });
    assert!(states.contains(&expected), "{states:?}");
    // Less is still possible, also from elsewhere.
    assert_eq!(ask(&server, HERE, None, VIEWER).await.codes(), [""; 0]);
    assert_eq!(ask(&server, THERE, None, &hundred()).await.codes(), [""; 0]);
    server.pass(12);
    let answer = ask(&server, HERE, None, &hundred()).await;
    assert_lacks(&answer, 250, 99, 240);
    server.pass(1);
    assert_eq!(ask(&server, HERE, None, &hundred()).await.codes(), [""; 0]);
    assert_eq!(
        server
            .metric("gathering_rate_limit_fields_total{tier=\"cost\",outcome=\"refused\"}")
            .await,
        3
    );
}

#[tokio::test]
async fn an_operation_above_the_budget_is_refused() {
    let server = with_budget(99).await;
    let answer = ask(&server, HERE, None, &hundred()).await;
    assert!(answer.is_refused());
    let message = answer.body["errors"][0]["message"].as_str().expect("text");
    assert!(
        message.contains("99 points per minute, but this one needs 100"),
        "{message}"
    );
}

#[tokio::test]
async fn free_fields_are_answered_without_points() {
    let server = with_budget(100).await;
    ask(&server, HERE, None, &hundred()).await;
    let query = "{ serverInfo { name } rateLimit { tier remaining } viewer { id } }";
    let answer = ask(&server, HERE, None, query).await;
    assert_eq!(answer.status, StatusCode::OK);
    let data = &answer.body["data"];
    assert_eq!(
        (&data["serverInfo"], &data["viewer"]),
        (&Value::Null, &Value::Null)
    );
    let state = json!({ "tier": "COST", "remaining": 0 });
    assert!(
        data["rateLimit"]
            .as_array()
            .expect("a list")
            .contains(&state)
    );
    assert_eq!(answer.codes(), ["RATE_LIMITED"; 2]);
    assert_eq!(answer.body["errors"][1]["extensions"]["tier"], "COST");
    assert_eq!(answer.body["errors"][1]["path"], json!(["viewer"]));
}

#[tokio::test]
async fn mutations_and_subscriptions_are_charged_before_they_start() {
    let server = with_budget(100).await;
    let token = server.token(DEMO).await;
    let rename = r#"mutation { updateProfile(input: {name: "Dana"}) { user { name } } }"#;
    let answer = ask(&server, HERE, Some(&token), rename).await;
    assert_eq!(answer.body["extensions"]["cost"]["requested"], 3);
    let request = from(&server, HERE)
        .bearer_auth(&token)
        .header("accept", "text/event-stream");
    let request = request.json(&json!({ "query": "subscription { events { cursor id type } }" }));
    let stream = request.send().await.expect("an answer");
    assert_eq!(stream.status(), StatusCode::OK);
    let states = "{ rateLimit { tier used } }";
    let answer = ask(&server, HERE, Some(&token), states).await;
    let used = answer.body["data"]["rateLimit"]
        .as_array()
        .expect("a list")
        .iter();
    let used = used
        .filter(|state| state["tier"] == "COST")
        .map(|state| state["used"].clone());
    assert_eq!(
        used.collect::<Vec<_>>(),
        [json!(7)],
        "three, and four for the subscription"
    );

    let rest = format!("{{ serverInfo {} }}", aliases("name", 92));
    let answer = ask(&server, HERE, Some(&token), &rest).await;
    assert_eq!(answer.body["extensions"]["cost"]["remaining"], 0);
    assert!(ask(&server, HERE, Some(&token), rename).await.is_refused());
    let refused = ask(
        &server,
        HERE,
        Some(&token),
        "subscription { events { cursor } }",
    )
    .await;
    let text = refused.body["errors"][0]["extensions"]["tier"].as_str();
    assert_eq!(
        (refused.status, text),
        (StatusCode::TOO_MANY_REQUESTS, Some("COST"))
    );
}

#[tokio::test]
async fn what_did_not_run_costs_nothing() {
    let server = serve(|config| {
        config.limits.read = 1;
        config.limits.cost = 1_000;
    })
    .await;
    let token = server.token(DEMO).await;
    // A revoked token is charged to the network.
    let logout = "mutation { logout(input: {everywhere: true}) { revokedTokens } }";
    let answer = ask(&server, HERE, Some(&token), logout).await;
    assert_eq!(answer.body["extensions"]["cost"]["used"], 2);
    let answer = ask(&server, HERE, Some(&token), &hundred()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        answer.body["extensions"]["cost"]["used"], 100,
        "of the network"
    );
    let token = server.token(DEMO).await;
    let answer = ask(&server, HERE, Some(&token), VIEWER).await;
    assert_eq!(answer.body["extensions"]["cost"]["used"], 4, "of the user");
    // Fields that their tier refuses are returned.
    let query = "{ viewer { id name } serverInfo { name } }";
    let answer = ask(&server, HERE, Some(&token), query).await;
    assert_eq!(answer.codes(), ["RATE_LIMITED"]);
    let cost = &answer.body["extensions"]["cost"];
    assert_eq!(
        (&cost["requested"], &cost["actual"], &cost["used"]),
        (&json!(5), &json!(2), &json!(6))
    );
    // An operation that is refused as a whole takes nothing.
    let answer = ask(&server, HERE, Some(&token), VIEWER).await;
    assert!(answer.is_refused());
    assert_eq!(answer.body["extensions"]["cost"]["used"], 6);
}

#[tokio::test]
async fn a_budget_of_zero_is_no_limit() {
    let server = with_budget(0).await;
    let answer = ask(&server, HERE, None, &hundred()).await;
    assert_eq!(answer.codes(), [""; 0]);
    assert_eq!(answer.body["extensions"].get("cost"), None);
    assert!(!answer.header("ratelimit").contains("cost"));
}
