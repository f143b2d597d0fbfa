//! How responses report rate limits: headers, extensions, and `Query.rateLimit`.

use std::collections::BTreeMap;

use chrono::Utc;
use gathering::config::Origins;
use reqwest::header::{ACCEPT, CONTENT_TYPE, ORIGIN};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sfv::{BareItem, List, ListEntry, Parser};

use super::{Answer, HERE, PLENTY, THERE, VIEWER, aliases, ask, attempt, from, let_in, serve};
use crate::support::server::TestServer;

/// The items of a structured list of strings, each with its integer parameters.
fn list(text: &str) -> BTreeMap<String, BTreeMap<String, i64>> {
    let list: List = Parser::new(text).parse().expect("a structured list");
    let items = list.into_iter().map(|entry| {
        let ListEntry::Item(item) = entry else {
            panic!("an inner list: {text}")
        };
        let BareItem::String(name) = item.bare_item else {
            panic!("no string: {text}")
        };
        let numbers = item.params.into_iter().map(|(key, value)| {
            let BareItem::Integer(number) = value else {
                panic!("no whole number: {text}")
            };
            (key.as_str().to_owned(), i64::from(number))
        });
        (name.as_str().to_owned(), numbers.collect())
    });
    items.collect()
}

/// Asserts that all rate limit headers are present, valid, and consistent with each other.
fn assert_consistent(answer: &Answer, what: &str) {
    let [limit, remaining, reset] =
        ["limit", "remaining", "reset"].map(|name| answer.number(&format!("x-ratelimit-{name}")));
    let states = list(answer.header("ratelimit"));
    let policies = list(answer.header("ratelimit-policy"));
    assert!(!states.is_empty(), "{what}");
    assert!(states.keys().eq(policies.keys()), "{what}");
    for (tier, policy) in &policies {
        let state = &states[tier];
        assert!(
            ["auth", "write", "read", "health", "cost"].contains(&tier.as_str()),
            "{what}"
        );
        assert!(
            policy.keys().eq(["q", "w"]) && state.keys().eq(["r", "t"]),
            "{what}"
        );
        assert_eq!(policy["w"], 60, "{what}");
        assert!((0..=policy["q"]).contains(&state["r"]), "{what}");
        assert!((0..=60).contains(&state["t"]), "{what}");
        if let Some(wait) = answer.headers.get("retry-after") {
            let wait: i64 = wait.to_str().expect("text").parse().expect("seconds");
            assert!(wait >= state["t"], "{what}: {wait} s, {states:?}");
        }
    }
    // Complexity points are not compared with requests.
    let requests = states.iter().filter(|(tier, _)| *tier != "cost");
    let tightest = requests.map(|(_, state)| state["r"]).min();
    assert_eq!(Some(remaining), tightest, "{what}");
    let is_of = |tier: &String| policies[tier]["q"] == limit && states[tier]["r"] == remaining;
    assert!(states.keys().any(is_of), "{what}");
    let now = Utc::now().timestamp();
    assert!((now - 60..=now + 61).contains(&reset), "{what}: {reset}");
    if answer.status == StatusCode::TOO_MANY_REQUESTS {
        assert!(answer.headers.contains_key("retry-after"), "{what}");
    }
}

#[tokio::test]
async fn every_response_has_consistent_rate_limit_headers() {
    let server = serve(|config| {
        config.limits.read = 2;
        config.server.body_limit = 1 << 10;
    })
    .await;
    assert_eq!(let_in(&server, THERE, None, VIEWER, 2).await, 2);
    let post = || from(&server, HERE);
    let query = |query: &str| post().json(&json!({ "query": query }));
    let get = |path: &str| server.request(Method::GET, path);
    let response = "application/graphql-response+json";
    let cases: Vec<(u16, RequestBuilder)> = vec![
        (200, query("{ __typename }")),
        (
            200,
            query("mutation { logout(input: {}) { revokedTokens } }"),
        ),
        (200, query("{ nothing }")),
        (400, query("{ nothing }").header(ACCEPT, response)),
        (400, query("{").header(ACCEPT, response)),
        (
            400,
            post().header(CONTENT_TYPE, "application/json").body("{"),
        ),
        (401, query(VIEWER).bearer_auth("nonsense")),
        (401, query(VIEWER).header("Authorization", "Basic eDp5")),
        (405, server.request(Method::PUT, "/graphql")),
        (406, query(VIEWER).header(ACCEPT, "image/png")),
        (413, query(&"x".repeat(2 << 10))),
        (415, post().header(CONTENT_TYPE, "text/plain").body("{}")),
        (429, query(VIEWER).header("X-Forwarded-For", THERE)),
        (404, get("/nowhere")),
        (405, server.request(Method::DELETE, "/health")),
        (200, get("/health")),
        (200, get("/health/live")),
        (200, get("/health/ready")),
        (200, get("/metrics")),
        (200, get("/graphql").header(ACCEPT, "text/html")),
        (
            200,
            get("/graphql?query={__typename}").header("GraphQL-Require-Preflight", "1"),
        ),
        (
            405,
            get("/graphql?query=mutation{__typename}").header("GraphQL-Require-Preflight", "1"),
        ),
        (204, server.request(Method::OPTIONS, "/graphql")),
    ];
    for (status, request) in cases {
        let what = format!("{request:?}");
        let answer = Answer::to(request).await;
        assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.body);
        assert_consistent(&answer, &what);
    }
}

#[tokio::test]
async fn a_request_refused_as_a_whole_has_rate_limit_headers() {
    let server = serve(|config| config.limits.address = 2).await;
    for path in ["/graphql", "/health", "/metrics"] {
        for _ in 0..2 {
            let request = server
                .request(Method::GET, path)
                .header(ACCEPT, "text/html");
            assert_eq!(Answer::to(request).await.status, StatusCode::OK, "{path}");
        }
        let answer = Answer::to(server.request(Method::GET, path)).await;
        assert!(answer.is_refused(), "{path}");
        assert_consistent(&answer, path);
        assert_eq!(answer.number("retry-after"), 30);
        super::assert_refusal(&answer.body["errors"][0], "HEALTH", 2, 30);
        assert_eq!(
            answer.body["errors"][0].get("path"),
            None,
            "{}",
            answer.body
        );
        assert_eq!(
            answer.header("content-type"),
            "application/graphql-response+json; charset=utf-8"
        );
    }
}

#[tokio::test]
async fn the_headers_report_the_tightest_bucket_used() {
    let server = serve(|config| {
        config.limits.read = 10;
        config.limits.address = 6;
    })
    .await;
    // A query also takes from the bucket of all requests.
    for left in [5, 4, 3] {
        let answer = ask(&server, HERE, None, VIEWER).await;
        assert_consistent(&answer, "a query");
        assert_eq!(answer.number("x-ratelimit-limit"), 6);
        assert_eq!(answer.number("x-ratelimit-remaining"), left);
        let states = list(answer.header("ratelimit"));
        assert_eq!(states["read"]["r"], 4 + left);
    }
    let answer = ask(&server, HERE, None, &aliases("viewer { id }", 7)).await;
    assert_consistent(&answer, "many of one");
    assert_eq!(answer.number("x-ratelimit-limit"), 10);
    assert_eq!(answer.number("x-ratelimit-remaining"), 0);

    // For sign-ins, the bucket of the address is reported, for all accounts.
    let server = serve(|_| ()).await;
    let four = aliases(&attempt("ada@example.com"), 4);
    ask(&server, HERE, None, &format!("mutation {four}")).await;
    let two = [attempt("new@example.com"), attempt("ada@example.com")];
    let two = format!("mutation {{ a: {} b: {} }}", two[0], two[1]);
    let answer = ask(&server, THERE, None, &two).await;
    assert_eq!(answer.quota("login")["remaining"], 3, "{}", answer.body);
    assert_eq!(answer.number("x-ratelimit-remaining"), 3);
}

#[tokio::test]
async fn retry_after_is_the_longest_wait_of_all_tiers() {
    let server = serve(|config| {
        config.limits.read = 60;
        config.limits.health = 6;
    })
    .await;
    for (field, times) in [("serverInfo { name }", 6), ("viewer { id }", 20)] {
        for _ in 0..=times / 20 * 2 {
            let answer = ask(&server, HERE, None, &aliases(field, times)).await;
            assert_eq!(answer.codes(), [""; 0]);
        }
    }
    let answer = ask(&server, HERE, None, "{ viewer { id } serverInfo { name } }").await;
    assert!(answer.is_refused());
    let waits = answer.body["errors"].as_array().expect("errors").iter();
    let waits: Vec<_> = waits
        .map(|error| &error["extensions"]["retryAfter"])
        .collect();
    assert_eq!(waits, [&json!(1), &json!(10)]);
    assert_eq!(answer.number("retry-after"), 10);
    assert_consistent(&answer, "two tiers");
}

#[tokio::test]
async fn cors_exposes_the_rate_limit_headers() {
    let server = serve(|config| {
        config.server.cors_origins = Origins(vec!["https://app.example.com".to_owned()]);
        config.limits.read = 1;
        config.limits.address = 3;
    })
    .await;
    // Allowed, refused by the field's bucket, and refused by the bucket of all requests.
    for is_refused in [false, true, true, true] {
        let request = from(&server, HERE).json(&json!({ "query": "{ __typename }" }));
        let answer = Answer::to(request.header(ORIGIN, "https://app.example.com")).await;
        assert_eq!(answer.is_refused(), is_refused);
        assert_consistent(&answer, "from another site");
        let exposed = answer
            .header("access-control-expose-headers")
            .to_lowercase();
        let exposed: Vec<_> = exposed.split(',').map(str::trim).collect();
        for name in [
            "retry-after",
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            "ratelimit",
            "ratelimit-policy",
            "x-ratelimit-class",
        ] {
            assert!(exposed.contains(&name), "{name}");
        }
    }
}

/// The quotas of used fields that `Query.rateLimit` reports.
async fn states(server: &TestServer, token: Option<&str>) -> Vec<Value> {
    let query =
        "{ rateLimit { field tier class limit windowSeconds cost used remaining resetAt } }";
    let answer = ask(server, HERE, token, query).await;
    let states = answer.body["data"]["rateLimit"].as_array();
    let mut states = states.expect("a list").clone();
    states.retain(|state| state["field"].is_string());
    states
}

#[tokio::test]
async fn extensions_headers_and_query_report_the_same_quotas() {
    let server = serve(|config| config.limits.read = 20).await;
    let token = server.token("demo@example.com").await;
    assert_eq!(states(&server, Some(&token)).await, [Value::Null; 0]);
    let query = "{ a: viewer { id } b: viewer { id } circles(first: 1) { nodes { id } } serverInfo { name } }";
    let answer = ask(&server, HERE, Some(&token), query).await;
    let account = answer.body["extensions"]["rateLimit"]
        .as_array()
        .expect("a list");
    let states = states(&server, Some(&token)).await;
    assert_eq!((account.len(), states.len()), (3, 3));
    for (field, tier, limit, cost) in [
        ("viewer", "READ", 20, 2),
        ("circles", "READ", 20, 1),
        ("serverInfo", "HEALTH", 300, 1),
    ] {
        let quota = answer.quota(field);
        let left = limit - cost;
        for (name, value) in [
            ("tier", json!(tier)),
            ("limit", json!(limit)),
            ("cost", json!(cost)),
            ("remaining", json!(left)),
            ("used", json!(cost)),
            ("windowSeconds", json!(60)),
        ] {
            assert_eq!(quota[name], value, "{field}");
        }
        let state = states.iter().find(|state| state["field"] == field);
        let state = state.expect("is known");
        for name in ["tier", "limit", "windowSeconds", "used", "remaining"] {
            assert_eq!(state[name], quota[name], "{field}");
        }
        assert_eq!(state["cost"], 0, "of the operation that reports it");
    }
    assert_eq!(answer.number("x-ratelimit-limit"), 20);
    assert_eq!(answer.number("x-ratelimit-remaining"), 18);
    assert_eq!(
        list(answer.header("ratelimit"))["read"],
        BTreeMap::from([("r".to_owned(), 18), ("t".to_owned(), 6)])
    );
    assert_eq!(
        answer
            .header("ratelimit-policy")
            .matches("\"read\";q=20;w=60")
            .count(),
        1
    );
}

#[tokio::test]
async fn the_rate_limit_query_is_free() {
    let server = serve(|config| config.limits.address = PLENTY).await;
    let token = server.token("demo@example.com").await;
    ask(&server, HERE, Some(&token), VIEWER).await;
    let before = states(&server, Some(&token)).await;
    for _ in 0..50 {
        let many = aliases("rateLimit { field remaining }", 20);
        let answer = ask(&server, HERE, Some(&token), &many).await;
        assert_eq!(answer.codes(), [""; 0]);
        assert_eq!(answer.body.get("extensions"), None);
    }
    let after = states(&server, Some(&token)).await;
    assert_eq!((before.len(), after.len()), (1, 1));
    for name in ["field", "remaining"] {
        assert_eq!(before[0][name], after[0][name]);
    }
}
