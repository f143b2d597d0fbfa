//! Quota classes: their limits, how they are assigned, and changes of the configuration.

use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use gathering_schema::rate_limit::{Classes, Mode, Rates};
use gathering_settings::Setting;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Answer, HERE, PLENTY, VIEWER, aliases, ask, let_in, serve};
use crate::support::actor::faults;
use crate::support::server::TestServer;

const DEMO: &str = "demo@example.com";

/// A query that reads early and without the executor.
const COMPILED: &str = "{ circles(first: 1) { nodes { id name } } }";

/// Quota classes in the notation of the configuration.
fn classes(text: &str) -> Classes {
    let mut classes = Classes::default();
    assert!(classes.set(text), "{:?}", classes.problem(text));
    classes
}

/// The row id of a user in the graph.
async fn id_of(server: &TestServer, token: &str) -> Value {
    let answer = ask(server, HERE, Some(token), VIEWER).await;
    answer.body["data"]["viewer"]["id"].clone()
}

/// The payload of an assignment of a class by an administrator.
async fn assign(server: &TestServer, user: &Value, class: &Value) -> Value {
    let admin = server.actor("admin@example.com").await;
    let input = json!({ "userId": user, "quotaClass": class });
    let payload = "user { quotaClass } userErrors { field code message }";
    admin.mutate("updateUser", payload, input).await
}

/// The states of `Query.rateLimit`.
async fn states(server: &TestServer, token: Option<&str>) -> Vec<Value> {
    let query = "{ rateLimit { field tier class limit windowSeconds cost used remaining } }";
    let answer = ask(server, HERE, token, query).await;
    let states = answer.body["data"]["rateLimit"].as_array();
    states.expect("a list").clone()
}

#[tokio::test]
async fn a_class_changes_the_limits_of_its_users_and_is_reported() {
    let server = serve(|config| {
        config.limits.read = 4;
        config.limits.classes = classes(r#"{ runtime = { read = 10, write = "x2" } }"#);
    })
    .await;
    let token = server.token(DEMO).await;
    let user = id_of(&server, &token).await;
    let answer = ask(&server, HERE, Some(&token), &aliases("viewer { id }", 2)).await;
    assert_eq!(answer.quota("viewer")["remaining"], 1);
    assert_eq!(answer.quota("viewer").get("class"), None);
    assert!(!answer.headers.contains_key("x-ratelimit-class"));

    let assigned = assign(&server, &user, &json!("runtime")).await;
    let payload = &assigned["data"]["updateUser"];
    assert_eq!(payload["user"]["quotaClass"], "runtime", "{assigned}");
    // The amount used is kept: three, and this one.
    let answer = ask(&server, HERE, Some(&token), VIEWER).await;
    let quota = answer.quota("viewer").clone();
    let reported = [
        "class",
        "limit",
        "used",
        "remaining",
        "cost",
        "windowSeconds",
    ];
    let expected = [
        json!("runtime"),
        json!(10),
        json!(4),
        json!(6),
        json!(1),
        json!(60),
    ];
    assert_eq!(reported.map(|name| quota[name].clone()), expected);
    assert_eq!(answer.header("x-ratelimit-class"), "runtime");
    assert_eq!(answer.number("x-ratelimit-limit"), 10);
    assert_eq!(answer.number("x-ratelimit-remaining"), 6);
    assert!(
        answer
            .header("ratelimit-policy")
            .contains("\"read\";q=10;w=60")
    );
    assert!(answer.header("ratelimit").contains("\"read\";r=6;"));

    let states = states(&server, Some(&token)).await;
    let state = states.iter().find(|state| state["field"] == "viewer");
    let state = state.expect("is reported");
    for name in [
        "tier",
        "class",
        "limit",
        "windowSeconds",
        "used",
        "remaining",
    ] {
        assert_eq!(state[name], quota[name], "{name}");
    }
    // Tiers without a used field, and complexity. A network has no class.
    for (tier, class, limit) in [
        ("AUTH", Value::Null, 5),
        ("WRITE", json!("runtime"), 60),
        ("HEALTH", json!("runtime"), 300),
        ("COST", json!("runtime"), 1_200_000),
    ] {
        let of_tier = states.iter().filter(|state| state["tier"] == tier);
        let of_tier: Vec<_> = of_tier.collect();
        let [state] = of_tier[..] else {
            panic!("{tier}: {states:?}")
        };
        assert_eq!(state["field"], Value::Null);
        assert_eq!((&state["class"], &state["limit"]), (&class, &json!(limit)));
    }
    assert_eq!(let_in(&server, HERE, Some(&token), VIEWER, 8).await, 6);

    // Without the class, the standard limit applies, and the amount used is still kept: ten, of which seven are regained.
    assign(&server, &user, &Value::Null).await;
    assert!(ask(&server, HERE, Some(&token), VIEWER).await.is_refused());
    server.pass(42);
    assert_eq!(let_in(&server, HERE, Some(&token), VIEWER, 2).await, 1);
}

#[tokio::test]
async fn a_refused_user_gets_a_new_class_immediately() {
    let server = serve(|config| {
        config.limits.read = 1;
        config.limits.classes = classes("{ runtime = { read = 10 } }");
    })
    .await;
    let token = server.token(DEMO).await;
    let user = id_of(&server, &token).await;
    for query in [COMPILED, VIEWER] {
        let_in(&server, HERE, Some(&token), query, 3).await;
        assert!(ask(&server, HERE, Some(&token), query).await.is_refused());
    }
    assign(&server, &user, &json!("runtime")).await;
    // A refusal is checked once a second.
    server.pass(1);
    assert_eq!(let_in(&server, HERE, Some(&token), COMPILED, 12).await, 9);
    // So does another instance, which has not changed the user.
    let other = server
        .beside(|config| {
            config.limits = Rates {
                read: 1,
                classes: classes("{ runtime = { read = 10 } }"),
                mode: Mode::Enforce,
                ..Rates::default()
            };
        })
        .await;
    assert_eq!(let_in(&other, HERE, Some(&token), COMPILED, 12).await, 10);
    assign(&server, &user, &Value::Null).await;
    other.pass(60);
    // The change is found by authentication, after the charge with the former class.
    assert_eq!(let_in(&other, HERE, Some(&token), COMPILED, 3).await, 1);
}

#[tokio::test]
async fn only_administrators_assign_classes_and_only_configured_ones() {
    let server = serve(|config| config.limits.classes = classes("{ runtime = {} }")).await;
    let token = server.token(DEMO).await;
    let user = id_of(&server, &token).await;
    let answer = assign(&server, &user, &json!("unknown")).await;
    assert_eq!(
        faults(&answer["data"]["updateUser"]),
        ["INVALID quotaClass"]
    );
    let input = json!({ "userId": user, "quotaClass": "runtime" });
    let payload = "user { quotaClass } userErrors { code }";
    let answer = server
        .with_token(&token)
        .mutate("updateUser", payload, input)
        .await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "FORBIDDEN");
    assign(&server, &user, &json!("runtime")).await;
    let query = "{ viewer { quotaClass } }";
    let answer = ask(&server, HERE, Some(&token), query).await;
    assert_eq!(answer.body["data"]["viewer"]["quotaClass"], "runtime");
}

#[tokio::test]
async fn a_class_takes_no_statement() {
    let server = serve(|config| {
        config.limits.read = PLENTY;
        config.limits.classes = classes("{ runtime = { read = 50 } }");
    })
    .await;
    let token = server.token(DEMO).await;
    let user = id_of(&server, &token).await;
    let mut counts = Vec::new();
    for (class, limit) in [(Value::Null, PLENTY), (json!("runtime"), 50)] {
        assign(&server, &user, &class).await;
        // The first request of the class is charged again.
        ask(&server, HERE, Some(&token), COMPILED).await;
        let before = server.settled().await;
        let answer = ask(&server, HERE, Some(&token), COMPILED).await;
        assert_eq!(answer.quota("circles")["limit"], limit);
        counts.push(server.settled().await - before);
    }
    assert_eq!(counts[0], counts[1]);
    assert!(counts[0] <= 3, "{counts:?}");
}

#[tokio::test]
async fn a_class_that_is_no_longer_configured_has_the_standard_limits() {
    let server = serve(|config| {
        config.limits.read = 3;
        config.limits.classes = classes("{ runtime = { read = 10 } }");
    })
    .await;
    let token = server.token(DEMO).await;
    let user = id_of(&server, &token).await;
    assign(&server, &user, &json!("runtime")).await;
    let answer = ask(&server, HERE, Some(&token), VIEWER).await;
    assert_eq!(answer.quota("viewer")["limit"], 10);
    let without = Rates {
        read: 3,
        ..Rates::default()
    };
    server.graph().set_rates(without.clone());
    let answer = ask(&server, HERE, Some(&token), VIEWER).await;
    assert_eq!(answer.quota("viewer")["limit"], 3);
    assert_eq!(answer.quota("viewer")["remaining"], 0);
    assert_eq!(answer.quota("viewer").get("class"), None);
    let query = "{ viewer { quotaClass } }";
    assert_eq!(
        ask(&server, HERE, Some(&token), query).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
    server.graph().set_rates(Rates {
        classes: classes("{ runtime = { read = 10 } }"),
        ..without
    });
    assert_eq!(let_in(&server, HERE, Some(&token), query, 10).await, 7);
}

#[tokio::test]
async fn a_reload_under_load_refuses_no_request_and_loses_no_count() {
    const REQUESTS: u32 = 400;
    let rates = |read: u32| Rates {
        read: 10,
        address: PLENTY,
        classes: classes(&format!("{{ runtime = {{ read = {read} }} }}")),
        ..Rates::default()
    };
    let server = serve(|config| config.limits = rates(1_000)).await;
    let token = server.token(DEMO).await;
    let user = id_of(&server, &token).await;
    assign(&server, &user, &json!("runtime")).await;
    server.pass(60);
    let started = AtomicU32::new(0);
    let client = async || {
        while started.fetch_add(1, Ordering::Relaxed) < REQUESTS {
            let answer: Answer = ask(&server, HERE, Some(&token), COMPILED).await;
            assert_eq!(answer.codes(), [""; 0], "{}", answer.body);
        }
    };
    let reload = async {
        for turn in 0_u32.. {
            server
                .graph()
                .set_rates(rates([400, 1_000, 777][turn as usize % 3]));
            if started.load(Ordering::Relaxed) >= REQUESTS {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(join_all((0..8).map(|_| client())), reload);
    server.graph().set_rates(rates(1_000));
    let states = states(&server, Some(&token)).await;
    let state = states.iter().find(|state| state["field"] == "circles");
    // The clock has not advanced, so every request is still counted.
    assert_eq!(state.expect("is reported")["used"], REQUESTS);
}

#[tokio::test]
async fn an_api_key_with_a_class_has_limits_of_its_own() {
    let server = serve(|config| {
        config.limits.read = 3;
        config.limits.classes = classes("{ runtime = { read = 10 } }");
    })
    .await;
    let create = async |user: &str, class: Value| {
        let actor = server.actor(user).await;
        let input = json!({ "name": "Worker", "scopes": ["READ"], "quotaClass": class });
        let selection = "secret apiKey { quotaClass } userErrors { field code message }";
        actor.mutate("createApiKey", selection, input).await
    };
    let refused = create(DEMO, json!("runtime")).await;
    assert_eq!(
        faults(&refused["data"]["createApiKey"]),
        ["INVALID quotaClass"]
    );
    let refused = create("admin@example.com", json!("unknown")).await;
    assert_eq!(
        faults(&refused["data"]["createApiKey"]),
        ["INVALID quotaClass"]
    );
    let mut secrets = Vec::new();
    for class in [json!("runtime"), Value::Null] {
        let created = create("admin@example.com", class.clone()).await;
        let payload = &created["data"]["createApiKey"];
        assert_eq!(payload["apiKey"]["quotaClass"], class, "{created}");
        secrets.push(payload["secret"].as_str().expect("a secret").to_owned());
    }
    // The key without a class and the user share three requests.
    let token = server.token("admin@example.com").await;
    for (secret, remaining) in [(&token, 2), (&secrets[1], 1), (&token, 0)] {
        let answer = ask(&server, HERE, Some(secret), VIEWER).await;
        assert_eq!(answer.quota("viewer")["limit"], 3);
        assert_eq!(answer.quota("viewer")["remaining"], remaining);
    }
    for remaining in (0..10).rev() {
        let answer = ask(&server, HERE, Some(&secrets[0]), VIEWER).await;
        assert_eq!(answer.quota("viewer")["class"], "runtime");
        assert_eq!(answer.quota("viewer")["remaining"], remaining);
    }
    for secret in &secrets {
        let answer = ask(&server, HERE, Some(secret), VIEWER).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    }
}
