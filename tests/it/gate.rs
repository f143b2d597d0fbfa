//! The gate in front of everything: how many requests and messages each address may send.
//!
//! The clock of the server advances only when a test advances it.

use gathering::config::{Config, Mode, Networks};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::events::Socket;
use crate::support::server::TestServer;

const HERE: &str = "192.0.2.1";
const THERE: &str = "192.0.2.2";

async fn serve(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        let local = "127.0.0.0/8".parse().expect("a network");
        config.server.trusted_proxies = Networks(vec![local]);
        change(config);
    })
    .await
}

async fn request(server: &TestServer, address: &str) -> Response {
    let request = server.request(Method::POST, "/graphql");
    let request = request.header("X-Forwarded-For", address);
    // An operation without a root field that is charged.
    let request = request.json(&json!({ "query": "{ rateLimit { field } }" }));
    request.send().await.expect("an answer")
}

fn number(response: &Response, name: &str) -> i64 {
    let value = response.headers()[name].to_str().expect("text");
    value.parse().expect("a number")
}

#[tokio::test]
async fn two_addresses_are_limited_independently_and_return_when_told() {
    let server = serve(|config| config.limits.address = 6).await;
    for left in (0..6).rev() {
        let response = request(&server, HERE).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(number(&response, "x-ratelimit-limit"), 6);
        assert_eq!(number(&response, "x-ratelimit-remaining"), left);
    }
    let refused = request(&server, HERE).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(number(&refused, "retry-after"), 10);
    assert_eq!(number(&refused, "x-ratelimit-remaining"), 0);
    assert_eq!(refused.headers()["ratelimit"], "\"health\";r=0;t=10");
    assert_eq!(refused.headers()["ratelimit-policy"], "\"health\";q=6;w=60");
    let body: Value = refused.json().await.expect("JSON");
    assert_eq!(body["errors"][0]["extensions"]["retryAfterMs"], 10_000);
    assert_eq!(request(&server, THERE).await.status(), StatusCode::OK);

    server.pass(9);
    let refused = request(&server, HERE).await;
    assert_eq!(number(&refused, "retry-after"), 1);
    server.pass(1);
    assert_eq!(request(&server, HERE).await.status(), StatusCode::OK);
    let refused = request(&server, HERE).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn addresses_in_memory_are_bounded_and_the_latest_are_remembered() {
    let server = serve(|config| {
        config.limits.buckets = 1_000;
        config.limits.address = 2;
    })
    .await;
    for number in 0..1_100 {
        let address = format!("10.0.{}.{}", number / 256, number % 256);
        assert_eq!(request(&server, &address).await.status(), StatusCode::OK);
    }
    for status in [200, 200, 429] {
        assert_eq!(request(&server, HERE).await.status(), status);
    }
    for number in 0..300 {
        let address = format!("10.1.{}.{}", number / 256, number % 256);
        assert_eq!(request(&server, &address).await.status(), StatusCode::OK);
    }
    assert_eq!(request(&server, HERE).await.status(), 429);
    let buckets = server.metric("gathering_address_limit_buckets").await;
    assert_eq!(buckets, 1_000);
    let refused = "gathering_address_limit_requests_total{outcome=\"refused\"}";
    assert_eq!(server.metric(refused).await, 2);
}

#[tokio::test]
async fn each_message_of_a_websocket_counts_for_its_address() {
    let server = serve(|config| config.limits.address = 5).await;
    let mut socket = Socket::greeted(&server, None).await;
    for id in ["1", "2", "3"] {
        socket.subscribe(id, "{ __typename }").await;
        assert_eq!(socket.next().await["type"], "next");
        assert_eq!(socket.next().await["type"], "complete");
    }
    // The same address by HTTP has no more than its messages have left.
    assert_eq!(request(&server, "127.0.0.1").await.status(), 429);
    assert_eq!(request(&server, HERE).await.status(), 200);
    socket.send(json!({ "type": "ping" })).await;
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 1013);
    assert_eq!(reason, "Too many messages. Retry in 12 s.");
}

#[tokio::test]
async fn a_refused_request_reaches_no_database() {
    let server = serve(|config| config.limits.address = 1).await;
    let token = server.token("demo@example.com").await;
    assert_eq!(request(&server, HERE).await.status(), 200);
    let before = server.statements();
    for _ in 0..20 {
        let refused = server.request(Method::POST, "/graphql").bearer_auth(&token);
        let refused = refused.header("X-Forwarded-For", HERE);
        let refused = refused.json(&json!({ "query": "{ viewer { id } }" }));
        assert_eq!(refused.send().await.expect("an answer").status(), 429);
    }
    assert_eq!(server.statements(), before);
}
