//! Rate limit settings: scope, mode, clock changes, and metrics.

use gathering::config::{Mode, Scope};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use serde_json::json;

use super::{
    Answer, HERE, THERE, VIEWER, aliases, ask, assert_refusal, attempt, from, let_in, serve,
};
use crate::support::server::TestServer;

/// A day in seconds.
const DAY: i64 = 86_400;

#[tokio::test]
async fn wall_clock_changes_do_not_affect_decisions() {
    let server = serve(|config| config.limits.read = 3).await;
    assert_eq!(let_in(&server, HERE, None, VIEWER, 4).await, 3);
    for jump in [1, DAY, -2 * DAY, DAY, 400 * DAY, -400 * DAY] {
        server.jump(jump);
        let answer = ask(&server, HERE, None, VIEWER).await;
        assert!(answer.is_refused(), "{jump}");
        assert_refusal(&answer.body["errors"][0], "READ", 3, 20);
    }
    // Elapsed time still counts.
    server.jump(-DAY);
    server.pass(20);
    assert_eq!(let_in(&server, HERE, None, VIEWER, 2).await, 1);
    server.jump(-DAY);
    server.pass(60);
    assert_eq!(let_in(&server, HERE, None, VIEWER, 4).await, 3);
}

#[tokio::test]
async fn fields_of_one_tier_can_share_a_bucket() {
    let server = serve(|config| {
        config.limits.read = 4;
        config.limits.auth = 3;
        config.limits.scope = Scope::Tier;
    })
    .await;
    let answer = ask(
        &server,
        HERE,
        None,
        "{ viewer { id } a: viewer { id } __typename }",
    )
    .await;
    assert_eq!(answer.codes(), [""; 0]);
    for field in ["viewer", "__typename"] {
        assert_eq!(answer.quota(field)["remaining"], 1, "{field}");
    }
    let query = "{ __type(name: \"Query\") { name } serverInfo { name } viewer { id } }";
    let answer = ask(&server, HERE, None, query).await;
    let data = json!({ "__type": { "name": "Query" }, "serverInfo": { "name": "Gathering" }, "viewer": null });
    assert_eq!(answer.body["data"], data);
    assert_eq!(answer.codes(), ["RATE_LIMITED"]);
    // The wait until the whole request fits.
    assert_refusal(&answer.body["errors"][0], "READ", 4, 30);
    assert!(
        ask(&server, HERE, None, "{ __typename }")
            .await
            .is_refused()
    );

    let states = ask(
        &server,
        HERE,
        None,
        "{ rateLimit { field tier remaining } }",
    )
    .await;
    let states = states.body["data"]["rateLimit"]
        .as_array()
        .expect("a list")
        .clone();
    let read: Vec<_> = states
        .iter()
        .filter(|state| state["tier"] == "READ")
        .collect();
    assert!(
        read.len() > 10 && read.iter().all(|state| state["remaining"] == 0),
        "{states:?}"
    );

    // Sign-ins share one bucket per address.
    let refresh = r#"refreshSession(input: {refreshToken: "x"}) { accessToken }"#;
    let two = format!("mutation {{ {} {refresh} }}", attempt("ada@example.com"));
    assert!(!ask(&server, HERE, None, &two).await.is_refused());
    assert!(ask(&server, HERE, None, &two).await.is_refused());
    assert!(
        !ask(&server, HERE, None, &format!("mutation {{ {refresh} }}"))
            .await
            .is_refused()
    );
    assert!(!ask(&server, THERE, None, &two).await.is_refused());
}

/// The numbers of allowed and refused fields of a tier in `/metrics`.
async fn counted(server: &TestServer, tier: &str) -> [u64; 2] {
    numbers(
        server,
        &format!(r#"rate_limit_fields_total{{tier="{tier}","#),
    )
    .await
}

/// The metrics of the requests of all addresses.
async fn requests(server: &TestServer) -> [u64; 2] {
    numbers(server, "address_limit_requests_total{").await
}

/// The numbers of allowed and refused requests in a metric.
async fn numbers(server: &TestServer, metric: &str) -> [u64; 2] {
    let metrics = server.get("/metrics").await.text().await.expect("text");
    ["allowed", "refused"].map(|outcome| {
        let name = format!(r#"gathering_{metric}outcome="{outcome}"}} "#);
        let mut lines = metrics.lines();
        let number = lines.find_map(|line| line.strip_prefix(&name));
        number
            .unwrap_or_else(|| panic!("no {name}: {metrics}"))
            .parse()
            .expect("a number")
    })
}

#[tokio::test]
async fn observe_mode_refuses_nothing_and_counts_everything() {
    let server = serve(|config| {
        config.limits.mode = Mode::Observe;
        config.limits.read = 2;
        config.limits.address = 4;
    })
    .await;
    for left in [1, 0, 0, 0, 0] {
        let answer = ask(&server, HERE, None, VIEWER).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body["data"], json!({ "viewer": null }));
        assert_eq!(answer.codes(), [""; 0]);
        assert_eq!(answer.quota("viewer")["remaining"], left);
        assert_eq!(answer.number("x-ratelimit-remaining"), left);
        assert_eq!(answer.headers.get("retry-after"), None);
    }
    assert_eq!(counted(&server, "read").await, [2, 3]);
    // Three fields of another client, of which two would have been let in.
    let answer = ask(&server, THERE, None, &aliases("viewer { id }", 3)).await;
    assert_eq!(answer.codes(), [""; 0]);
    assert_eq!(counted(&server, "read").await, [4, 4]);
    assert_eq!(requests(&server).await[1], 1);

    let attempts = format!("mutation {}", aliases(&attempt("ada@example.com"), 6));
    let answer = ask(&server, THERE, None, &attempts).await;
    assert_eq!(answer.codes(), ["UNAUTHENTICATED"; 6]);
    assert_eq!(counted(&server, "auth").await, [5, 1]);
}

#[tokio::test]
async fn disabled_limits_count_and_report_nothing() {
    let server = serve(|config| {
        config.limits.mode = Mode::Off;
        config.limits.read = 1;
        config.limits.address = 1;
    })
    .await;
    for _ in 0..3 {
        let answer = ask(&server, HERE, None, "{ viewer { id } rateLimit { field } }").await;
        assert_eq!(
            answer.body,
            json!({ "data": { "viewer": null, "rateLimit": [] } })
        );
        let names = answer.headers.keys().map(HeaderName::as_str);
        let received: Vec<_> = names.filter(|name| name.contains("ratelimit")).collect();
        assert_eq!(received, [""; 0]);
    }
    assert_eq!(counted(&server, "read").await, [0, 0]);
    assert_eq!(requests(&server).await, [0, 0]);
}

#[tokio::test]
async fn metrics_cover_each_tier_and_cache_and_contain_no_secrets() {
    let server = serve(|config| {
        config.limits.read = 2;
        config.redis.url = String::new().into();
    })
    .await;
    let token = server.token("demo@example.com").await;
    let answer = ask(&server, HERE, Some(&token), &aliases("viewer { id }", 5)).await;
    assert_eq!(answer.codes().len(), 3);
    let login = format!("mutation {{ {} }}", attempt("ada@example.com"));
    ask(&server, HERE, None, &login).await;
    let logout = format!(
        "mutation {}",
        aliases("logout(input: {}) { revokedTokens }", 2)
    );
    ask(&server, HERE, None, &logout).await;
    let too_many = format!("mutation {}", aliases(&attempt("bob@example.com"), 6));
    assert!(ask(&server, HERE, None, &too_many).await.is_refused());
    assert_eq!(counted(&server, "read").await, [2, 3]);
    assert_eq!(counted(&server, "auth").await, [1, 6]);
    assert_eq!(counted(&server, "write").await, [2, 0]);
    assert_eq!(
        requests(&server).await,
        [8, 0],
        "four operations and four requests of the metrics"
    );

    for (accept, content_type) in [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        (
            Some("text/plain"),
            "text/plain; version=0.0.4; charset=utf-8",
        ),
        (
            Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ] {
        let mut request = server.request(Method::GET, "/metrics");
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.headers()[CONTENT_TYPE], content_type);
        let text = response.text().await.expect("text");
        // The older format declares a counter by its full name and has no end marker.
        let is_older = content_type.starts_with("text/plain");
        let described = text.contains("# TYPE gathering_events_published_total counter\n");
        let ended = text.ends_with("# EOF\n");
        assert_eq!((described, ended), (is_older, !is_older), "{text}");
        for cache in [
            "rate_buckets",
            "viewer_rules",
            "revoked_tokens",
            "verified_tokens",
            "roles",
            "parsed_documents",
            "persisted_queries",
        ] {
            for metric in ["entries", "hits_total", "misses_total", "evictions_total"] {
                let line = format!("gathering_cache_{metric}{{cache=\"{cache}\"}} ");
                assert!(text.contains(&line), "{line}");
            }
        }
        assert!(text.contains("\ngathering_rate_limit_alone 0\n"), "{text}");
        for secret in [HERE, "example.com", "user:", &token, "not this one"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, number) = line.rsplit_once(' ').expect("a sample");
            assert!(name.starts_with("gathering_"), "{line}");
            assert!(number.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[tokio::test]
async fn the_number_of_buckets_is_bounded() {
    let server = serve(|config| {
        config.limits.buckets = 1_000;
        // One bucket per client.
        config.limits.cost = 0;
    })
    .await;
    let spent = format!("mutation {}", aliases(&attempt("ada@example.com"), 5));
    ask(&server, HERE, None, &spent).await;
    for place in 0..1_100 {
        let address = format!("10.0.{}.{}", place / 256, place % 256);
        let request = from(&server, &address).json(&json!({ "query": VIEWER }));
        assert!(!Answer::to(request).await.is_refused());
    }
    let metrics = server.get("/metrics").await.text().await.expect("text");
    let entries = metrics
        .lines()
        .find_map(|line| line.strip_prefix("gathering_cache_entries{cache=\"rate_buckets\"} "));
    let entries: u64 = entries.expect("is counted").parse().expect("a number");
    assert!((500..=1_010).contains(&entries), "{entries}");
    // The flood has not evicted the exhausted bucket.
    let one = format!("mutation {{ {} }}", attempt("ada@example.com"));
    assert!(ask(&server, HERE, None, &one).await.is_refused());
}
