//! Edge cases of requests to `/graphql`: empty members, charsets and byte order marks, headers that are not text, and
//! the headers that CORS allows.

use gathering::config::Origins;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::events::{EVENTS, Socket};
use crate::support::server::TestServer;

const JSON: &str = "application/json";
const SSE: &str = "text/event-stream";
const TYPENAME: &str = r#"{"query":"{ __typename }"}"#;
const CREATE: &str = r#"{"query":"mutation { createProject(input: {name: \"Edge\"}) { project { id } userErrors { code } } }"}"#;

fn post(server: &TestServer, body: impl Into<reqwest::Body>) -> RequestBuilder {
    let request = server.request(Method::POST, "/graphql");
    request.header(CONTENT_TYPE, JSON).body(body)
}

fn get(server: &TestServer, parameters: &[(&str, &str)]) -> RequestBuilder {
    let encoded = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    server.request(Method::GET, &format!("/graphql?{encoded}"))
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

/// The status and the error code of a refusal.
async fn refusal(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body: Value = response.json().await.expect("JSON");
    assert!(body.get("data").is_none(), "{body}");
    let code = body["errors"][0]["extensions"]["code"].as_str();
    (status, code.expect("a code").to_owned())
}

/// A header value in Latin-1, which is not valid UTF-8.
fn latin(text: &str) -> HeaderValue {
    let bytes: Vec<u8> = text
        .chars()
        .map(|c| u8::try_from(c).expect("Latin-1"))
        .collect();
    HeaderValue::from_bytes(&bytes).expect("a header")
}

/// The answer to these members over each transport: the data, or the message of the first error.
async fn everywhere(server: &TestServer, members: &[(&str, &str)]) -> [String; 4] {
    let said = |answer: &Value| match answer["errors"][0]["message"].as_str() {
        Some(message) => message.replace("payload.", ""),
        None => answer["data"].to_string(),
    };
    let by_get: Value = send(get(server, members)).await.json().await.expect("JSON");
    let object: Value = members
        .iter()
        .copied()
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let by_post = send(post(server, object.to_string())).await;
    let by_post: Value = by_post.json().await.expect("JSON");
    let stream = send(post(server, object.to_string()).header(ACCEPT, SSE)).await;
    let text = stream.text().await.expect("text");
    let events = text.lines().find_map(|line| line.strip_prefix("data: {"));
    let events = events.map_or(text.clone(), |rest| format!("{{{rest}"));
    let by_events: Value = serde_json::from_str(&events).expect("JSON");
    let mut socket = Socket::greeted(server, None).await;
    socket
        .send(json!({ "id": "1", "type": "subscribe", "payload": object }))
        .await;
    let by_socket = match socket.frame_or_close().await {
        Ok(message) if message["type"] == "next" => said(&message["payload"]),
        Ok(message) => said(&json!({ "errors": message["payload"] })),
        Err(reason) => reason.replace("payload.", ""),
    };
    [said(&by_get), said(&by_post), said(&by_events), by_socket]
}

#[tokio::test]
async fn empty_members_count_as_absent_on_every_transport() {
    let server = TestServer::start().await;
    let query = ("query", "{ __typename }");
    let data = r#"{"__typename":"Query"}"#;
    for empty in ["operationName", "variables", "extensions", "documentId"] {
        let said = everywhere(&server, &[query, (empty, "")]).await;
        assert_eq!(said, [data; 4], "{empty}");
    }
    let said = everywhere(&server, &[("query", ""), ("operationName", "")]).await;
    assert_eq!(said, ["`query` is missing."; 4]);
    let several = ("query", "query A { __typename } query B { __typename }");
    let absent = everywhere(&server, &[several]).await;
    let empty = everywhere(&server, &[several, ("operationName", "")]).await;
    assert_eq!(empty, absent);
    assert!(empty.iter().all(|said| *said == empty[0]), "{empty:?}");
    let unknown = everywhere(&server, &[several, ("operationName", " ")]).await;
    assert_ne!(unknown, absent);

    // A repeated member is refused even if one of them is empty.
    let twice = get(&server, &[("query", ""), query]);
    assert_eq!(
        refusal(send(twice).await).await,
        (StatusCode::BAD_REQUEST, "BAD_USER_INPUT".to_owned())
    );
    let twice = post(&server, r#"{"query":"","query":"{ __typename }"}"#);
    assert_eq!(
        refusal(send(twice).await).await,
        (StatusCode::BAD_REQUEST, "BAD_USER_INPUT".to_owned())
    );
}

#[tokio::test]
async fn both_spellings_of_the_utf8_charset_are_accepted() {
    let server = TestServer::start().await;
    for charset in [
        "utf-8",
        "UTF-8",
        "utf8",
        "UTF8",
        "Utf8",
        "\"utf8\"",
        "\"UTF-8\"",
        " utf8 ",
    ] {
        let request = server.request(Method::POST, "/graphql").body(TYPENAME);
        let request = request.header(CONTENT_TYPE, format!("{JSON}; Charset={charset}"));
        assert_eq!(send(request).await.status(), StatusCode::OK, "{charset}");
    }
    for charset in ["utf", "utf-16", "utf-8x", "latin1", "", "\"\""] {
        let request = server.request(Method::POST, "/graphql").body(TYPENAME);
        let request = request.header(CONTENT_TYPE, format!("{JSON}; charset={charset}"));
        let status = send(request).await.status();
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{charset}");
    }
    // With two content types, the intended one is ambiguous.
    let request = post(&server, TYPENAME).header(CONTENT_TYPE, "text/plain");
    assert_eq!(
        send(request).await.status(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    for (coding, status) in [
        ("Identity", StatusCode::OK),
        ("br", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        let request = post(&server, TYPENAME).header("content-encoding", coding);
        assert_eq!(send(request).await.status(), status, "{coding}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_before_json_is_ignored() {
    let server = TestServer::start().await;
    for body in [
        format!("\u{feff}{TYPENAME}"),
        format!("\u{feff}\r\n {TYPENAME}"),
    ] {
        let response = send(post(&server, body)).await;
        let body: Value = response.json().await.expect("JSON");
        assert_eq!(body, json!({ "data": { "__typename": "Query" } }));
    }
    let batch = TestServer::with(|config| config.graphql.batch = 2).await;
    let response = send(post(&batch, format!("\u{feff}[{TYPENAME}]"))).await;
    assert_eq!(response.status(), StatusCode::OK);

    let members = [
        ("query", "{ __typename }"),
        ("variables", "\u{feff}{}"),
        ("extensions", "\u{feff}{}"),
    ];
    assert_eq!(send(get(&server, &members)).await.status(), StatusCode::OK);

    let mut socket = Socket::greeted(&server, None).await;
    socket.send_text("\u{feff}{\"type\":\"ping\"}").await;
    assert_eq!(socket.next().await, json!({ "type": "pong" }));

    for bad in ["\u{feff}", "\u{feff}\u{feff}{}", " \u{feff}{}"] {
        let refused = refusal(send(post(&server, bad)).await).await;
        assert_eq!(
            refused,
            (StatusCode::BAD_REQUEST, "BAD_USER_INPUT".to_owned()),
            "{bad:?}"
        );
    }
    // The byte order mark of UTF-16.
    let wide: Vec<u8> = TYPENAME.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let refused = refusal(send(post(&server, [vec![0xff, 0xfe], wide].concat())).await).await;
    assert_eq!(refused.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn cors_allows_the_headers_of_common_clients() {
    const APP: &str = "https://app.example.com";
    let server = TestServer::with(|config| {
        config.server.cors_origins = Origins(vec![APP.to_owned()]);
    })
    .await;
    for name in [
        "accept",
        "authorization",
        "content-type",
        "apollographql-client-name",
        "apollographql-client-version",
        "apollo-require-preflight",
        "x-apollo-operation-name",
        "x-apollo-operation-id",
        "graphql-require-preflight",
        "last-event-id",
        "idempotency-key",
        "x-gathering-usage",
        "x-request-id",
        "x-requested-with",
        "traceparent",
        "tracestate",
        "baggage",
        "sentry-trace",
        "cache-control",
    ] {
        let preflight = server
            .request(Method::OPTIONS, "/graphql")
            .header("origin", APP)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", name);
        let response = send(preflight).await;
        let allowed = &response.headers()["access-control-allow-headers"];
        let allowed = allowed.to_str().expect("text").to_ascii_lowercase();
        assert!(
            allowed.split(',').any(|allowed| allowed.trim() == name),
            "{name}: {allowed}"
        );
        // Headers that only a proxy may set are not allowed.
        for other in ["x-forwarded-for", "forwarded", "cookie", "*"] {
            assert!(
                !allowed.split(',').any(|allowed| allowed.trim() == other),
                "{allowed}"
            );
        }
    }
}

#[tokio::test]
async fn a_header_that_is_not_text_does_not_count_as_absent() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let subscribe = json!({ "query": EVENTS }).to_string();
    let events = |id: HeaderValue| {
        let request = post(&server, subscribe.clone()).bearer_auth(&token);
        request.header(ACCEPT, SSE).header("last-event-id", id)
    };
    let bad = send(events(HeaderValue::from_static("nonsense"))).await;
    let (status, bad) = (bad.status(), bad.text().await.expect("text"));
    for id in [
        latin("caf\u{e9}"),
        HeaderValue::from_bytes("日本".as_bytes()).expect("a header"),
    ] {
        let response = send(events(id)).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.text().await.expect("text"), bad);
    }
    assert!(bad.contains("BAD_USER_INPUT"), "{bad}");
    let multipart = post(&server, subscribe.clone()).bearer_auth(&token);
    let multipart = multipart.header(ACCEPT, "multipart/mixed;subscriptionSpec=1.0");
    let multipart = multipart.header("last-event-id", latin("\u{e9}"));
    let refused = refusal(send(multipart).await).await;
    assert_eq!(
        refused,
        (StatusCode::BAD_REQUEST, "BAD_USER_INPUT".to_owned())
    );

    for key in [latin("caf\u{e9}"), HeaderValue::from_static("")] {
        let request = post(&server, CREATE).bearer_auth(&token);
        let answer = send(request.header("idempotency-key", key)).await;
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "BAD_USER_INPUT",
            "{answer}"
        );
    }
    let request = post(&server, TYPENAME).header("authorization", latin("Bearer caf\u{e9}"));
    let refused = refusal(send(request).await).await;
    assert_eq!(
        refused,
        (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED".to_owned())
    );

    // A media type that is not text is not acceptable; a parameter that is not text is ignored.
    let request = post(&server, TYPENAME).header(ACCEPT, latin("text/\u{e9}"));
    assert_eq!(send(request).await.status(), StatusCode::NOT_ACCEPTABLE);
    let request = post(&server, TYPENAME).header(ACCEPT, latin("text/event-stream; x=\"\u{e9}\""));
    let response = send(request).await;
    assert!(
        response.headers()[CONTENT_TYPE]
            .to_str()
            .expect("text")
            .starts_with(SSE)
    );
}

#[tokio::test]
async fn repeated_headers_with_different_values_are_refused() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    for name in ["idempotency-key", "last-event-id", "x-gathering-usage"] {
        let request = post(&server, CREATE).bearer_auth(&token);
        let request = request.header(name, "one").header(name, "two");
        let refused = refusal(send(request).await).await;
        assert_eq!(
            refused,
            (StatusCode::BAD_REQUEST, "BAD_USER_INPUT".to_owned()),
            "{name}"
        );
    }
    let query = r#"{ projects(filter: {search: "Edge"}) { totalCount } }"#;
    let found = server.graphql(query, json!({})).await;
    assert_eq!(found["data"]["projects"]["totalCount"], 0, "{found}");
}
