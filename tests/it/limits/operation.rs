//! The charges of operations, and the refusal of operations over the limit.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use gathering_entity::lockout;
use reqwest::StatusCode;
use reqwest::header::ACCEPT;
use sea_orm::EntityTrait;
use serde_json::{Value, json};

use super::{
    Answer, HERE, PLENTY, THERE, VIEWER, aliases, ask, assert_refusal, attempt, from, let_in, serve,
};
use crate::support::actor::client;
use crate::support::database::PASSWORD;
use crate::support::server::TestServer;

/// The number of failed sign-ins. All of them failed because of the password.
async fn tried(server: &TestServer) -> i32 {
    let db = server.database().connect().await;
    let rows = lockout::Entity::find().all(&db).await.expect("is read");
    db.close().await.expect("closes");
    let failures = rows.iter().map(|row| row.failures);
    failures.max().unwrap_or_default()
}

#[tokio::test]
async fn twenty_sign_ins_in_one_document_are_refused_without_being_tried() {
    let server = serve(|_| ()).await;
    let attempts = format!("mutation {}", aliases(&attempt("ada@example.com"), 20));
    let answer = ask(&server, HERE, None, &attempts).await;
    assert!(answer.is_refused());
    assert_eq!(answer.codes(), ["RATE_LIMITED"; 20]);
    assert_eq!(tried(&server).await, 0);

    // The refused operation was not charged.
    let attempt = format!("mutation {{ {} }}", attempt("ada@example.com"));
    assert_eq!(let_in(&server, HERE, None, &attempt, 10).await, 5);
    assert_eq!(tried(&server).await, 5);
}

#[tokio::test]
async fn sign_ins_in_fragments_are_counted_individually() {
    let attempt = attempt("ada@example.com");
    let spreads = format!(
        "mutation {{ ...A ...B ...C }} fragment A on Mutation {{ a: {attempt} b: {attempt} }}
        fragment B on Mutation {{ c: {attempt} d: {attempt} }} fragment C on Mutation {{ e: {attempt} f: {attempt} }}"
    );
    let nested = format!(
        "mutation {{ ...A }} fragment A on Mutation {{ ...B d: {attempt} e: {attempt} f: {attempt} }}
        fragment B on Mutation {{ ... on Mutation {{ a: {attempt} ... {{ b: {attempt} c: {attempt} }} }} }}"
    );
    let inline = (0..6)
        .map(|n| format!("... {{ a{n}: {attempt} }} "))
        .collect::<Vec<_>>()
        .concat();
    let inline = format!("mutation {{ {inline} }}");
    for six in [spreads, nested, inline] {
        let server = serve(|_| ()).await;
        let answer = ask(&server, HERE, None, &six).await;
        assert!(answer.is_refused(), "{six}");
        assert_eq!(answer.quota("login")["cost"], 6, "{six}");
        assert_eq!(tried(&server).await, 0, "{six}");
    }
}

#[tokio::test]
async fn equal_sign_ins_are_counted_once() {
    let server = serve(|_| ()).await;
    let attempt = attempt("ada@example.com");
    let equal = format!(
        "mutation {{ {attempt} {attempt} ...A ...A }} fragment A on Mutation {{ {attempt} }}"
    );
    let answer = ask(&server, HERE, None, &equal).await;
    assert_eq!(answer.quota("login")["cost"], 1);
    assert_eq!(tried(&server).await, 1);
}

#[tokio::test]
async fn skipped_fields_are_not_charged() {
    let server = serve(|_| ()).await;
    let attempt = attempt("ada@example.com");
    let left_out = [
        "@skip(if: true)",
        "@include(if: false)",
        "@skip(if: $yes)",
        "@include(if: $no)",
        "@include(if: $default)",
        "@include(if: true) @skip(if: true)",
    ];
    let mut fields = Vec::new();
    for (place, directives) in left_out.iter().enumerate() {
        let field = attempt.replacen(
            " { accessToken",
            &format!(" {directives} {{ accessToken"),
            1,
        );
        let nested = format!("... {directives} {{ b{place}: {attempt} }} ...A {directives}");
        fields.push(format!("a{place}: {field} {nested}"));
    }
    let fields = fields.join(" ");
    let query = format!(
        "mutation ($yes: Boolean!, $no: Boolean!, $default: Boolean = false) {{ one: {attempt} {fields} }}
        fragment A on Mutation {{ c: {attempt} }}"
    );
    let body = json!({ "query": query, "variables": { "yes": true, "no": false } });
    let answer = Answer::to(from(&server, HERE).json(&body)).await;
    assert_eq!(answer.codes(), ["UNAUTHENTICATED"], "{}", answer.body);
    assert_eq!(answer.quota("login")["cost"], 1);
    assert_eq!(answer.quota("login")["remaining"], 4);
    assert_eq!(tried(&server).await, 1);
}

#[tokio::test]
async fn a_batch_is_charged_entry_by_entry() {
    let server = serve(|config| config.graphql.batch = 10).await;
    let attempt = format!("mutation {{ {} }}", attempt("ada@example.com"));
    let batch = vec![json!({ "query": attempt }); 10];
    let answer = Answer::to(from(&server, HERE).json(&batch)).await;
    assert_eq!(answer.status, StatusCode::OK);
    let entries = answer.body.as_array().expect("a batch").iter();
    let codes: Vec<_> = entries
        .map(|entry| {
            entry["errors"][0]["extensions"]["code"]
                .as_str()
                .expect("a code")
        })
        .collect();
    let refused = codes.iter().filter(|code| **code == "RATE_LIMITED").count();
    let failed = codes
        .iter()
        .filter(|code| **code == "UNAUTHENTICATED")
        .count();
    assert_eq!((failed, refused), (5, 5), "{codes:?}");
    assert_eq!(answer.number("x-ratelimit-remaining"), 0);
    assert_eq!(tried(&server).await, 5);

    let answer = Answer::to(from(&server, HERE).json(&batch)).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.number("retry-after"), 12);
    assert_eq!(tried(&server).await, 5);
}

#[tokio::test]
async fn two_connections_of_a_client_share_a_quota() {
    let server = serve(|_| ()).await;
    let attempt = format!("mutation {{ {} }}", attempt("ada@example.com"));
    let connection = async || {
        // Each client opens its own connection.
        let client = client();
        let mut let_in = 0;
        for _ in 0..5 {
            let request = client
                .post(server.url("/graphql"))
                .json(&json!({ "query": attempt }));
            let_in += u32::from(!Answer::to(request).await.is_refused());
        }
        let_in
    };
    let (one, other) = tokio::join!(connection(), connection());
    assert_eq!(one + other, 5);
    assert_eq!(tried(&server).await, 5);
}

#[tokio::test]
async fn concurrent_requests_are_allowed_exactly_up_to_the_limit() {
    let server = serve(|config| config.limits.address = PLENTY).await;
    let requests = stream::iter(0..1_000).map(|_| ask(&server, HERE, None, VIEWER));
    let let_in = requests
        .buffer_unordered(100)
        .filter(|answer| std::future::ready(!answer.is_refused()))
        .count();
    assert_eq!(let_in.await, 120);
}

#[tokio::test]
async fn refused_query_fields_are_null_and_the_rest_is_served() {
    let server = serve(|config| config.limits.read = 3).await;
    let token = server.token("demo@example.com").await;
    let circles = "{ circles(first: 1) { nodes { id } } }";
    assert_eq!(let_in(&server, HERE, Some(&token), circles, 3).await, 3);
    server.pass(5);

    // The schema forbids null here, but a refused field must not discard the other fields.
    let query = "{\n  viewer { name }\n  c: circles { nodes { id } }\n  serverInfo { name }\n}";
    let before = Utc::now();
    let answer = ask(&server, HERE, Some(&token), query).await;
    let after = Utc::now();
    assert_eq!(answer.status, StatusCode::OK);
    let data = json!({ "viewer": { "name": "Dana Demo" }, "c": null, "serverInfo": { "name": "Gathering" } });
    assert_eq!(answer.body["data"], data);
    let order = answer.body["data"].as_object().expect("data").keys();
    assert_eq!(order.len(), 3);
    let errors = answer.body["errors"].as_array().expect("errors");
    assert_eq!(errors.len(), 1, "{}", answer.body);
    assert_eq!(errors[0]["path"], json!(["c"]));
    assert_eq!(errors[0]["locations"], json!([{ "line": 3, "column": 3 }]));
    assert_refusal(&errors[0], "READ", 3, 15);
    let reset = errors[0]["extensions"]["resetAt"].as_str().expect("a time");
    let reset: DateTime<Utc> = reset.parse().expect("a time");
    let slack = Duration::from_millis(1);
    let [soonest, latest] = [before, after].map(|time| time + Duration::from_mins(1));
    assert!(
        soonest - slack <= reset && reset <= latest + slack,
        "{reset}"
    );

    let circles = answer.quota("circles");
    assert_eq!(
        (&circles["remaining"], &circles["cost"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(answer.quota("viewer")["remaining"], 2);
    assert_eq!(answer.number("x-ratelimit-remaining"), 0);
}

#[tokio::test]
async fn a_refused_field_is_rate_limited_even_if_its_arguments_are_invalid() {
    let server = serve(|config| config.limits.read = 1).await;
    let token = server.token("demo@example.com").await;
    let task = r#"task(id: "nonsense") { id }"#;
    let query = format!("{{ a: {task} b: {task} }}");
    let answer = ask(&server, HERE, Some(&token), &query).await;
    assert_eq!(answer.codes(), ["BAD_USER_INPUT", "RATE_LIMITED"]);
    assert_eq!(answer.body["data"], json!({ "a": null, "b": null }));
    assert!(ask(&server, HERE, Some(&token), &query).await.is_refused());
}

#[tokio::test]
async fn aliases_are_served_in_order_up_to_the_limit() {
    let server = serve(|config| config.limits.read = 5).await;
    for (field, served) in [
        ("viewer { id }", json!(null)),
        ("__typename", json!("Query")),
        (
            "__schema { queryType { name } }",
            json!({ "queryType": { "name": "Query" } }),
        ),
        (
            r#"__type(name: "Query") { name }"#,
            json!({ "name": "Query" }),
        ),
    ] {
        let three = ask(&server, HERE, None, &aliases(field, 3)).await;
        assert_eq!(three.codes(), [""; 0], "{field}");
        let query = format!("{{ c: {field} ... on Query {{ a: {field} }} b: {field} }}");
        let answer = ask(&server, HERE, None, &query).await;
        assert_eq!(answer.status, StatusCode::OK, "{field}");
        assert_eq!(answer.body["data"]["c"], served, "{field}: {}", answer.body);
        assert_eq!(answer.body["data"]["a"], served, "{field}: {}", answer.body);
        assert_eq!(
            answer.body["data"]["b"],
            Value::Null,
            "{field}: {}",
            answer.body
        );
        assert_eq!(answer.codes(), ["RATE_LIMITED"], "{field}");
        assert_eq!(answer.body["errors"][0]["path"], json!(["b"]), "{field}");
        let name = field.split([' ', '(']).next().expect("a name");
        let quota = answer.quota(name);
        assert_eq!(
            (&quota["cost"], &quota["remaining"]),
            (&json!(3), &json!(0))
        );
    }
}

#[tokio::test]
async fn introspection_fields_are_refused_individually() {
    let server = serve(|config| config.limits.read = 2).await;
    let query = |first: &str, second: &str| {
        format!(
            "{{ {first} {second} s: __schema {{ queryType {{ name }} }} t: __type(name: \"Query\") {{ name }} }}"
        )
    };
    let answer = ask(
        &server,
        HERE,
        None,
        &query("a: __typename b: __typename", "c: __typename"),
    )
    .await;
    let data = json!({
        "a": "Query", "b": "Query", "c": null,
        "s": { "queryType": { "name": "Query" } }, "t": { "name": "Query" },
    });
    assert_eq!(answer.body["data"], data);
    let answer = ask(
        &server,
        THERE,
        None,
        &query("a: __type(name: \"ID\") { name }", "viewer { id }"),
    )
    .await;
    assert_eq!(answer.codes(), [""; 0]);
    let answer = ask(&server, THERE, None, &query("viewer { id }", "")).await;
    let data = json!({ "viewer": null, "s": { "queryType": { "name": "Query" } }, "t": null });
    assert_eq!(answer.body["data"], data);
    assert_eq!(answer.codes(), ["RATE_LIMITED"]);
    let answer = ask(&server, THERE, None, &query("", "")).await;
    assert!(answer.is_refused());
}

#[tokio::test]
async fn the_rate_limit_query_is_answered_next_to_refused_fields() {
    let server = serve(|config| config.limits.read = 1).await;
    assert_eq!(let_in(&server, HERE, None, VIEWER, 1).await, 1);
    let query = "{ viewer { id } rateLimit { field remaining } }";
    let answer = ask(&server, HERE, None, query).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body["data"]["viewer"], json!(null));
    let states = answer.body["data"]["rateLimit"].as_array();
    let state = json!({ "field": "viewer", "remaining": 0 });
    assert!(states.expect("a list").contains(&state), "{}", answer.body);
    assert_eq!(answer.codes(), ["RATE_LIMITED"]);
}

#[tokio::test]
async fn a_mutation_over_the_limit_is_refused_as_a_whole() {
    let server = serve(|config| config.limits.write = 2).await;
    let login = format!(
        r#"mutation {{ login(input: {{email: "demo@example.com", password: "{PASSWORD}"}}) {{ accessToken }} }}"#
    );
    let session = ask(&server, HERE, None, &login).await;
    let token = session.body["data"]["login"]["accessToken"]
        .as_str()
        .expect("a token");
    let rename =
        |name: &str| format!(r#"updateProfile(input: {{name: "{name}"}}) {{ user {{ name }} }}"#);
    for _ in 0..2 {
        let answer = ask(
            &server,
            HERE,
            Some(token),
            &format!("mutation {{ {} }}", rename("Dana")),
        )
        .await;
        assert_eq!(answer.body["data"]["updateProfile"]["user"]["name"], "Dana");
    }
    let logout = "logout(input: {everywhere: true}) { revokedTokens }";
    let other = rename("Test User");
    for fields in [format!("{logout} {other}"), format!("{other} {logout}")] {
        let answer = ask(
            &server,
            HERE,
            Some(token),
            &format!("mutation {{ {fields} }}"),
        )
        .await;
        assert!(answer.is_refused(), "{}", answer.body);
        // Each field has an error, in document order.
        assert_eq!(answer.codes(), ["RATE_LIMITED"; 2]);
        assert_eq!(answer.quota("logout")["remaining"], 2);
    }
    let answer = ask(
        &server,
        HERE,
        Some(token),
        "{ viewer { name } rateLimit { field } }",
    )
    .await;
    assert_eq!(answer.body["data"]["viewer"]["name"], "Dana");
    let known = answer.body["data"]["rateLimit"]
        .as_array()
        .expect("a list")
        .iter();
    let known: Vec<_> = known.filter_map(|state| state["field"].as_str()).collect();
    assert!(
        known.contains(&"updateProfile") && !known.contains(&"logout"),
        "{known:?}"
    );
}

#[tokio::test]
async fn a_fully_refused_operation_is_429_for_every_accept_header() {
    let server = serve(|config| config.limits.read = 1).await;
    assert_eq!(let_in(&server, HERE, None, VIEWER, 1).await, 1);
    for accept in [
        None,
        Some("*/*"),
        Some("application/json"),
        Some("application/graphql-response+json"),
        Some("application/json;q=0.9, application/graphql-response+json;q=0.1"),
    ] {
        let mut request = from(&server, HERE).json(&json!({ "query": VIEWER }));
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        let answer = Answer::to(request).await;
        assert!(answer.is_refused(), "{accept:?}");
        assert_eq!(
            answer.header("content-type"),
            "application/graphql-response+json; charset=utf-8"
        );
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.number("retry-after"), 60);
        assert_refusal(&answer.body["errors"][0], "READ", 1, 60);
    }
}

#[tokio::test]
async fn invalid_operations_are_refunded_and_failed_ones_are_not() {
    let server = serve(|config| config.limits.read = 3).await;
    for invalid in [
        "{ viewer { nothing } }",
        "{ viewer { id } nothing }",
        "{ viewer(id: 1) { id } }",
        "query ($n: Int) { viewer { id } circles(first: $n, nothing: 1) { nodes { id } } }",
        "{ viewer }",
    ] {
        let answer = ask(&server, HERE, None, invalid).await;
        assert_eq!(answer.codes()[0], "GRAPHQL_VALIDATION_FAILED", "{invalid}");
    }
    assert_eq!(let_in(&server, HERE, None, VIEWER, 5).await, 3);

    let attempt = attempt("ada@example.com");
    for _ in 0..9 {
        let invalid = format!("mutation {{ {attempt} nothing }}");
        let answer = ask(&server, HERE, None, &invalid).await;
        assert_eq!(answer.codes()[0], "GRAPHQL_VALIDATION_FAILED");
    }
    assert_eq!(
        let_in(&server, HERE, None, &format!("mutation {{ {attempt} }}"), 9).await,
        5
    );

    let token = server.token("demo@example.com").await;
    let absent = r#"{ circle(id: "circle_01ke6p4zk8e03rzzzzzzzzzzzz") { id } }"#;
    for code in ["NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "RATE_LIMITED"] {
        let answer = ask(&server, HERE, Some(&token), absent).await;
        assert_eq!(answer.codes(), [code]);
    }
}

#[tokio::test]
async fn a_quota_of_five_a_minute_refills_one_every_twelve_seconds() {
    let server = serve(|config| config.limits.read = 5).await;
    assert_eq!(let_in(&server, HERE, None, VIEWER, 6).await, 5);
    let mut moments = Vec::new();
    for second in 1..=90 {
        server.pass(1);
        let answer = ask(&server, HERE, None, VIEWER).await;
        if !answer.is_refused() {
            moments.push(second);
        }
    }
    assert_eq!(moments, [12, 24, 36, 48, 60, 72, 84]);
    // After a minute without requests, the bucket is full again.
    server.pass(60);
    assert_eq!(let_in(&server, HERE, None, VIEWER, 6).await, 5);
}

#[tokio::test]
async fn the_next_request_is_allowed_exactly_after_retry_after() {
    let server = serve(|config| config.limits.read = 7).await;
    let query = aliases("viewer { id }", 7);
    assert_eq!(ask(&server, HERE, None, &query).await.codes(), [""; 0]);
    for _ in 0..5 {
        let refused = ask(&server, HERE, None, VIEWER).await;
        assert!(refused.is_refused());
        let wait = refused.number("retry-after");
        let exact = &refused.body["errors"][0]["extensions"]["retryAfterMs"];
        let exact = exact.as_i64().expect("milliseconds");
        assert_eq!(wait, (exact + 999) / 1_000);
        server.pass(wait - 1);
        assert!(ask(&server, HERE, None, VIEWER).await.is_refused());
        server.pass(1);
        assert!(!ask(&server, HERE, None, VIEWER).await.is_refused());
    }
}

#[tokio::test]
async fn a_too_complex_operation_is_charged_as_one_request() {
    let server = serve(|config| {
        config.limits.read = 3;
        config.limits.address = 5;
        config.graphql.limits.root_fields = 10;
    })
    .await;
    for left in (0..5).rev() {
        let answer = ask(&server, HERE, None, &aliases("viewer { id }", 11)).await;
        assert_eq!(answer.codes(), ["QUERY_TOO_COMPLEX"]);
        assert_eq!(answer.number("x-ratelimit-limit"), 5);
        assert_eq!(answer.number("x-ratelimit-remaining"), left);
    }
    assert!(ask(&server, HERE, None, VIEWER).await.is_refused());
    server.pass(60);
    assert_eq!(let_in(&server, HERE, None, VIEWER, 4).await, 3);
}
