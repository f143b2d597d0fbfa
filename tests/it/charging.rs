//! Rate limit charges: only fields that run are charged, to the caller they run for, and `retryAfter` is sufficient.

use gathering::config::{Config, Mode};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::server::TestServer;

async fn serve(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        config.limits.address = 100_000;
        change(config);
    })
    .await
}

/// The field repeated under this many aliases.
fn aliases(count: usize, field: &str) -> String {
    let fields: Vec<_> = (0..count).map(|n| format!("a{n}: {field}")).collect();
    fields.join(" ")
}

/// The fields that a response was charged for.
fn charged(answer: &Value) -> Vec<&str> {
    let quotas = answer["extensions"]["rateLimit"].as_array();
    let quotas = quotas.into_iter().flatten();
    quotas
        .map(|quota| quota["field"].as_str().expect("a field"))
        .collect()
}

#[tokio::test]
async fn a_field_is_charged_exactly_when_it_runs() {
    let server = serve(|_| ()).await;
    for (query, variables, runs) in [
        (
            "{ viewer @skip(if: true) { id } serverInfo { name } }",
            json!({}),
            false,
        ),
        (
            "{ viewer @include(if: true) { id } serverInfo { name } }",
            json!({}),
            true,
        ),
        (
            "query ($s: Boolean!) { viewer @skip(if: $s) { id } serverInfo { name } }",
            json!({ "s": true }),
            false,
        ),
        (
            "query ($s: Boolean!) { viewer @skip(if: $s) { id } serverInfo { name } }",
            json!({ "s": false }),
            true,
        ),
        (
            "query ($s: Boolean = true) { viewer @skip(if: $s) { id } serverInfo { name } }",
            json!({}),
            false,
        ),
        (
            "query ($s: Boolean = true) { viewer @include(if: $s) { id } serverInfo { name } }",
            json!({}),
            true,
        ),
        (
            "query ($s: Boolean = true) { viewer @skip(if: $s) { id } serverInfo { name } }",
            json!({ "s": false }),
            true,
        ),
        (
            "query ($s: Boolean = false) { ...F @include(if: $s) serverInfo { name } } fragment F on Query { viewer { id } }",
            json!({}),
            false,
        ),
        (
            "query ($s: Boolean = false) { ... @skip(if: $s) { viewer { id } } serverInfo { name } }",
            json!({}),
            true,
        ),
    ] {
        let answer = server.graphql(query, variables).await;
        assert_eq!(
            answer["data"].get("viewer").is_some(),
            runs,
            "{query}: {answer}"
        );
        assert_eq!(
            charged(&answer).contains(&"viewer"),
            runs,
            "{query}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_variable_default_does_not_exempt_sign_ins_from_the_limit() {
    let server = serve(|_| ()).await;
    let login = r#"login(input: {email: "demo@example.com", password: "wrong"}) @skip(if: $s) { accessToken }"#;
    let hidden = format!("mutation ($s: Boolean = true) {{ a: {login} b: {login} c: {login} }}");
    for _ in 0..3 {
        let answer = server.anonymous().answer(&hidden, json!({})).await;
        assert_eq!(answer["data"], json!({}), "{answer}");
    }
    let mut tried = 0;
    while server
        .anonymous()
        .send(&hidden, json!({ "s": false }))
        .await
        .status()
        == StatusCode::OK
    {
        tried += 3;
        assert!(tried <= 5);
    }
    assert_eq!(tried, 3);
}

#[tokio::test]
async fn twenty_sign_ins_with_a_very_long_address_are_rate_limited() {
    let server = serve(|_| ()).await;
    let logins = aliases(20, "login(input: $i) { accessToken }");
    let query = format!("mutation ($i: LoginInput!) {{ {logins} }}");
    let long = "\u{fdfa}".repeat(300_000);
    let variables = json!({ "i": { "email": long, "password": "x" } });
    let response = server.anonymous().send(&query, variables).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_revoked_token_is_not_charged_to_its_user() {
    let server = serve(|_| ()).await;
    let login = r#"mutation { login(input: {email: "demo@example.com", password: "gathering-demo"}) { accessToken } }"#;
    let answer = server.anonymous().answer(login, json!({})).await;
    let stolen = answer["data"]["login"]["accessToken"]
        .as_str()
        .expect("a token");
    let logout = "mutation { logout(input: {}) { revokedTokens } }";
    server.with_token(stolen).answer(logout, json!({})).await;

    let many = format!("{{ {} }}", aliases(20, "viewer { id }"));
    for _ in 0..6 {
        let status = server
            .with_token(stolen)
            .send(&many, json!({}))
            .await
            .status();
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    let status = server
        .with_token(stolen)
        .send(&many, json!({}))
        .await
        .status();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let answer = server.graphql(&many, json!({})).await;
    assert_eq!(answer["errors"], Value::Null, "{answer}");
    assert_eq!(answer["extensions"]["rateLimit"][0]["remaining"], 100);
}

#[tokio::test]
async fn a_refused_request_succeeds_completely_after_its_retry_time() {
    let server = serve(|config| config.limits.read = 20).await;
    let viewers = |count| format!("{{ {} }}", aliases(count, "viewer { id }"));
    server.graphql(&viewers(10), json!({})).await;
    let answer = server.graphql(&viewers(15), json!({})).await;
    let errors = answer["errors"].as_array().expect("refusals");
    assert_eq!(errors.len(), 5, "{answer}");
    let wait = errors[0]["extensions"]["retryAfter"]
        .as_i64()
        .expect("seconds");
    server.pass(wait);
    let answer = server.graphql(&viewers(15), json!({})).await;
    assert_eq!(answer["errors"], Value::Null, "{answer}");
}

#[tokio::test]
async fn retry_after_covers_the_slowest_of_several_tiers() {
    let server = serve(|config| {
        config.limits.read = 60;
        config.limits.health = 60;
    })
    .await;
    let token = server.token("demo@example.com").await;
    for field in ["viewer { id }", "serverInfo { name }"] {
        for _ in 0..3 {
            let query = format!("{{ {} }}", aliases(20, field));
            server.with_token(&token).answer(&query, json!({})).await;
        }
    }
    let slow = aliases(19, "serverInfo { name }");
    let query = format!("{{ viewer {{ id }} {slow} }}");
    let response = server.with_token(&token).send(&query, json!({})).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
    let seconds: u64 = header("retry-after").parse().expect("seconds");
    assert!(seconds >= 17, "{seconds}");
    for item in header("ratelimit").split(", ") {
        let until: u64 = item
            .rsplit("t=")
            .next()
            .and_then(|t| t.parse().ok())
            .expect("t");
        assert!(seconds >= until, "{seconds} {item}");
    }
}
