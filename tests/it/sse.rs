//! Streams over HTTP: Server-Sent Events, and Apollo's multipart subscriptions.

use std::time::Duration;

use gathering::config::{Mode, Networks};
use gathering_entity::event;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use crate::support::events::{EVENTS, answers, flood, happen, read_until, replay};
use crate::support::server::TestServer;

const SSE: &str = "text/event-stream";
const MULTIPART: &str = "multipart/mixed;boundary=graphql;subscriptionSpec=1.0,application/json";
const MULTIPART_ALONE: &str = "multipart/mixed;subscriptionSpec=\"1.0\"";
const TYPENAME: &str = "{ __typename }";

async fn request(server: &TestServer, accept: &str, query: &str) -> RequestBuilder {
    let token = server.token("demo@example.com").await;
    let request = server.request(Method::POST, "/graphql").bearer_auth(token);
    request
        .header(ACCEPT, accept)
        .json(&json!({ "query": query }))
}

async fn ask(server: &TestServer, accept: &str, query: &str) -> Response {
    let request = request(server, accept, query).await;
    request.send().await.expect("an answer")
}

/// The contents of the parts of a multipart body.
fn parts(text: &str) -> Vec<Value> {
    let parts = text.split("\r\n--graphql").skip(1);
    let bodies = parts.filter_map(|part| {
        let (head, body) = part.split_once("\r\n\r\n")?;
        assert_eq!(head, "\r\nContent-Type: application/json");
        Some(body)
    });
    bodies
        .map(|json| serde_json::from_str(json).expect("JSON"))
        .collect()
}

async fn assert_nothing_is_left(server: &TestServer) {
    for transport in ["sse", "multipart"] {
        let name = format!("gathering_streams{{transport=\"{transport}\"}}");
        server.until_metric_is(&name, 0).await;
    }
}

#[tokio::test]
async fn a_query_over_sse_is_one_event_and_the_end() {
    let server = TestServer::start().await;
    let response = ask(&server, SSE, TYPENAME).await;
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers();
    assert_eq!(headers[CONTENT_TYPE], "text/event-stream; charset=utf-8");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert_eq!(headers["vary"], "Accept");
    let text = response.text().await.expect("text");
    assert_eq!(
        text,
        "retry: 2000\n\nevent: next\ndata: {\"data\":{\"__typename\":\"Query\"}}\n\nevent: complete\ndata:\n\n"
    );
}

#[tokio::test]
async fn event_source_requests_are_served_by_get() {
    let server = TestServer::start().await;
    let get = |site: &'static str, query: &str| {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let request = server.request(Method::GET, &format!("/graphql?query={query}"));
        let request = request.header(ACCEPT, SSE);
        request.header("sec-fetch-site", site).send()
    };
    let text = get("same-origin", TYPENAME).await.expect("an answer");
    let text = text.text().await.expect("text");
    assert_eq!(
        answers(&text),
        [json!({ "data": { "__typename": "Query" } })]
    );
    let forged = get("cross-site", TYPENAME).await.expect("an answer");
    assert_eq!(forged.status(), StatusCode::FORBIDDEN);
    let mutation = "mutation { __typename }";
    let mutation = get("same-origin", mutation).await.expect("an answer");
    assert_eq!(mutation.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_subscription_over_sse_sends_one_event_per_result() {
    let server = TestServer::start().await;
    let mut response = ask(&server, SSE, &replay(&server, 3).await).await;
    assert_eq!(response.status(), StatusCode::OK);
    let text = read_until(&mut response, 3, "event: next").await;
    let answers = answers(&text);
    let events: Vec<&Value> = answers
        .iter()
        .map(|answer| &answer["data"]["events"])
        .collect();
    assert_eq!(events.len(), 3, "{text}");
    let ids: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .collect();
    let cursors: Vec<&str> = events
        .iter()
        .filter_map(|event| event["cursor"].as_str())
        .collect();
    assert_eq!(ids, cursors);

    // Later events arrive on the same stream.
    happen(&server, 1).await;
    read_until(&mut response, 1, "event: next").await;
    drop(response);
    assert_nothing_is_left(&server).await;

    // A browser that reconnects sends the last id it received, and the stream resumes after it.
    let again = request(&server, SSE, EVENTS).await;
    let again = again.header("Last-Event-ID", ids[0]).send().await;
    let text = read_until(&mut again.expect("an answer"), 3, "event: next").await;
    assert!(text.contains(ids[1]) && text.contains(ids[2]), "{text}");
    assert!(!text.contains(ids[0]), "{text}");
}

#[tokio::test]
async fn a_conversation_stream_resumes_after_the_last_event_id() {
    let server = TestServer::start().await;
    let query = "{ conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { id } } }";
    let found = server.graphql(query, json!({})).await;
    let id = &found["data"]["conversations"]["nodes"][0]["id"];
    let query = format!(
        "subscription {{ conversationUpdates(conversationId: {id}, afterSeq: 0) \
         {{ ... on MessageAdded {{ message {{ content }} }} }} }}"
    );
    let post = async |content: &str| {
        let post = "mutation ($input: PostMessageInput!) { postMessage(input: $input) { message { id } } }";
        let input = json!({ "input": { "conversationId": id, "content": content } });
        let posted = server.graphql(post, input).await;
        assert!(
            posted["data"]["postMessage"]["message"].is_object(),
            "{posted}"
        );
    };
    let mut response = ask(&server, SSE, &query).await;
    read_until(&mut response, 1, "event: next").await;
    // A message that is posted while the server reads the earlier ones is one of them, and has no id.
    let mut number = 0;
    let seen = loop {
        number += 1;
        let content = format!("seen {number}");
        post(&content).await;
        let text = read_until(&mut response, 1, &content).await;
        let mut ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
        if let Some(id) = ids.next_back() {
            break id.to_owned();
        }
        assert!(number < 100, "no message has an id");
    };
    drop(response);
    post("unseen").await;
    let again = request(&server, SSE, &query).await;
    let again = again.header("Last-Event-ID", seen);
    let mut again = again.send().await.expect("an answer");
    let text = read_until(&mut again, 1, "event: next").await;
    let first = &answers(&text)[0]["data"]["conversationUpdates"]["message"]["content"];
    assert_eq!(first, "unseen");
}

#[tokio::test]
async fn streams_have_rate_limit_headers() {
    let server = TestServer::with(|config| config.limits.mode = Mode::Enforce).await;
    for accept in [SSE, MULTIPART] {
        for query in [TYPENAME, EVENTS] {
            let response = ask(&server, accept, query).await;
            assert!(response.headers().contains_key("x-ratelimit-remaining"));
        }
    }
    let response = ask(&server, SSE, EVENTS).await;
    assert_eq!(response.headers()["x-ratelimit-limit"], "120");
    assert_eq!(response.headers()["x-ratelimit-remaining"], "117");
}

#[tokio::test]
async fn an_operation_error_is_sent_as_an_event_and_ends_the_stream() {
    let server = TestServer::start().await;
    for (query, code) in [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("{ nonsense }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription { nonsense }", "GRAPHQL_VALIDATION_FAILED"),
    ] {
        let response = ask(&server, SSE, query).await;
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.expect("text");
        let answers = answers(&text);
        assert_eq!(answers.len(), 1, "{text}");
        assert_eq!(answers[0]["errors"][0]["extensions"]["code"], code);
        assert!(text.ends_with("event: complete\ndata:\n\n"), "{text}");

        let response = ask(&server, MULTIPART, query).await;
        if query.starts_with("sub") {
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        }
    }
}

#[tokio::test]
async fn refused_streams_have_an_error_status() {
    let server = TestServer::with(|config| {
        config.limits.mode = Mode::Enforce;
        config.limits.read = 1;
    })
    .await;
    for accept in [SSE, MULTIPART] {
        let bad = request(&server, accept, EVENTS).await;
        let bad = bad.header("authorization", "Bearer nonsense").send().await;
        assert_eq!(bad.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    }
    let first = ask(&server, SSE, EVENTS).await;
    assert_eq!(first.status(), StatusCode::OK);
    for accept in [SSE, MULTIPART] {
        let second = ask(&server, accept, EVENTS).await;
        assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(second.headers().contains_key("retry-after"));
        let body: Value = second.json().await.expect("JSON");
        assert_eq!(body["errors"][0]["extensions"]["code"], "RATE_LIMITED");
    }
}

#[tokio::test]
async fn a_subscription_over_plain_http_lists_the_supported_transports() {
    let server = TestServer::start().await;
    for accept in [
        "*/*",
        "application/json",
        "multipart/mixed;deferSpec=20220824,application/json",
    ] {
        let response = ask(&server, accept, EVENTS).await;
        assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE);
        let body: Value = response.json().await.expect("JSON");
        let message = body["errors"][0]["message"].as_str().expect("a message");
        for way in [
            "text/event-stream",
            "multipart/mixed",
            "graphql-transport-ws",
        ] {
            assert!(message.contains(way), "{message}");
        }
    }
    // A client that accepts both media types gets the one that fits the operation.
    let either = "application/json, text/event-stream";
    let plain = ask(&server, either, TYPENAME).await;
    assert_eq!(
        plain.headers()[CONTENT_TYPE],
        "application/json; charset=utf-8"
    );
    let stream = ask(&server, either, EVENTS).await;
    assert_eq!(
        stream.headers()[CONTENT_TYPE],
        "text/event-stream; charset=utf-8"
    );
}

#[tokio::test]
async fn an_idle_stream_sends_keep_alives() {
    let server = TestServer::with(|config| {
        config.subscriptions.keep_alive = Duration::from_millis(20);
    })
    .await;
    let mut response = ask(&server, SSE, EVENTS).await;
    read_until(&mut response, 1, "\n\n:\n\n:\n\n").await;
    let mut response = ask(&server, MULTIPART, EVENTS).await;
    let text = read_until(&mut response, 1, "{}\r\n--graphql").await;
    assert_eq!(parts(&text)[0], json!({}));
}

#[tokio::test]
async fn a_missed_events_message_has_a_cursor_to_resume_from() {
    let server = TestServer::start().await;
    let mut response = ask(&server, SSE, &replay(&server, 3).await).await;
    let text = read_until(&mut response, 3, "event: next").await;
    let first = text.lines().find_map(|line| line.strip_prefix("id: "));
    let cursor = first.expect("an id").to_owned();
    drop(response);
    let db = server.database().connect().await;
    let all = event::Entity::find().count(&db).await.expect("counts");
    let old = event::Column::Position.lt(i64::try_from(all).expect("a position"));
    let deleted = event::Entity::delete_many().filter(old).exec(&db).await;
    assert_eq!(deleted.expect("deletes").rows_affected, all - 1);
    let server = TestServer::on(server.end().await, |_| ()).await;
    let late = request(&server, SSE, EVENTS).await;
    let late = late.header("Last-Event-ID", cursor).send().await;
    let text = read_until(&mut late.expect("an answer"), 1, "event: next").await;
    let missed = &answers(&text)[0]["data"]["events"];
    assert_eq!(missed["type"], "EVENTS_MISSED");
    let id = text.lines().find_map(|line| line.strip_prefix("id: "));
    assert_eq!(id, missed["cursor"].as_str());
}

#[tokio::test]
async fn a_multipart_subscription_sends_one_part_per_result() {
    let server = TestServer::start().await;
    let mut response = ask(&server, MULTIPART, &replay(&server, 3).await).await;
    assert_eq!(response.status(), StatusCode::OK);
    let content_type = response.headers()[CONTENT_TYPE].to_str().expect("text");
    assert_eq!(
        content_type,
        "multipart/mixed; boundary=\"graphql\"; subscriptionSpec=1.0"
    );
    let text = read_until(&mut response, 4, "\r\n--graphql").await;
    let parts = parts(&text);
    assert_eq!(parts.len(), 3, "{text}");
    let is_event = |part: &Value| part["payload"]["data"]["events"].is_object();
    assert!(parts.iter().all(is_event), "{text}");
    assert!(text.starts_with("\r\n--graphql\r\n"), "{text}");

    // A query is one part, followed by the end.
    let text = ask(&server, MULTIPART_ALONE, TYPENAME).await.text().await;
    assert_eq!(
        text.expect("text"),
        "\r\n--graphql\r\nContent-Type: application/json\r\n\r\n{\"payload\":{\"data\":{\"__typename\":\"Query\"}}}\r\n--graphql--\r\n"
    );
}

#[tokio::test]
async fn an_expired_token_ends_its_stream() {
    let server = TestServer::start().await;
    let query = replay(&server, 1).await;
    let mut events = ask(&server, SSE, &query).await;
    let mut multipart = ask(&server, MULTIPART, &query).await;
    read_until(&mut events, 1, "event: next").await;
    read_until(&mut multipart, 1, "payload").await;
    server.pass(2 * 3600);
    let text = read_until(&mut events, 1, "event: complete").await;
    let last = answers(&text);
    let last = last.last().expect("an event");
    assert_eq!(last["errors"][0]["extensions"]["code"], "UNAUTHENTICATED");
    let text = read_until(&mut multipart, 1, "--graphql--").await;
    // The boundary before this part arrived with the event.
    let parts = parts(&format!("\r\n--graphql{text}"));
    let last = parts.last().expect("a part");
    assert_eq!(last["payload"], Value::Null);
    assert_eq!(last["errors"][0]["extensions"]["code"], "UNAUTHENTICATED");
}

#[tokio::test]
async fn streams_are_limited_like_connections() {
    let server = TestServer::with(|config| {
        let local = "127.0.0.0/8".parse().expect("a network");
        config.server.trusted_proxies = Networks(vec![local]);
        config.subscriptions.connections = 3;
        config.subscriptions.connections_per_client = 2;
    })
    .await;
    let from = async |address: &str, accept: &str| {
        let request = request(&server, accept, EVENTS).await;
        let request = request.header("x-forwarded-for", address);
        request.send().await.expect("an answer")
    };
    let held = [
        from("192.0.2.1", SSE).await,
        from("192.0.2.1", MULTIPART).await,
    ];
    let third = from("192.0.2.1", SSE).await;
    assert_eq!(third.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(third.headers()["retry-after"], "5");
    let other = from("192.0.2.2", SSE).await;
    assert_eq!(other.status(), StatusCode::OK);
    let fourth = from("192.0.2.3", SSE).await;
    assert_eq!(fourth.status(), StatusCode::SERVICE_UNAVAILABLE);
    let body: Value = fourth.json().await.expect("JSON");
    assert_eq!(
        body["errors"][0]["extensions"],
        json!({ "code": "UNAVAILABLE", "retryAfter": 5 })
    );
    drop((held, other));
    assert_nothing_is_left(&server).await;
    assert_eq!(from("192.0.2.3", SSE).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = TestServer::with(|config| {
        config.server.write_timeout = Duration::from_secs(5);
    })
    .await;
    let response = ask(&server, SSE, &flood(&server).await).await;
    assert_eq!(
        server.metric(r#"gathering_streams{transport="sse"}"#).await,
        1
    );
    assert_nothing_is_left(&server).await;
    drop(response);
}

#[tokio::test]
async fn a_stopping_server_ends_streams_without_a_complete_event() {
    let server = TestServer::start().await;
    let query = replay(&server, 1).await;
    let mut events = ask(&server, SSE, &query).await;
    let mut multipart = ask(&server, MULTIPART, &query).await;
    read_until(&mut events, 1, "event: next").await;
    read_until(&mut multipart, 1, "payload").await;
    let stopping = server.shut_down(Duration::ZERO);
    let (events, multipart, ()) = tokio::join!(events.text(), multipart.text(), stopping);
    let events = events.expect("a proper end");
    assert!(!events.contains("complete"), "{events}");
    let multipart = multipart.expect("a proper end");
    assert!(!multipart.contains("--graphql--"), "{multipart}");
}
