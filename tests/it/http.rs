//! GraphQL over HTTP: the refusals, status codes and headers of `/graphql`, and the playground.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::TestServer;

const JSON: &str = "application/json";
const RESPONSE: &str = "application/graphql-response+json";
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
const TYPENAME: &str = r#"{"query":"{ __typename }"}"#;
const ATELIER: &str = "circle_01ke6p4zk8e03r000000000001";

fn post(server: &TestServer, body: impl Into<reqwest::Body>) -> RequestBuilder {
    let request = server.request(Method::POST, "/graphql");
    request.header(CONTENT_TYPE, JSON).body(body)
}

/// A GET request with these parameters, which are encoded here.
fn get(server: &TestServer, parameters: &[(&str, &str)]) -> RequestBuilder {
    let encoded = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    server.request(Method::GET, &format!("/graphql?{encoded}"))
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

async fn body(response: Response) -> Value {
    response.json().await.expect("JSON")
}

fn content_type(response: &Response) -> &str {
    let value = response.headers()[CONTENT_TYPE].to_str().expect("text");
    value
        .strip_suffix("; charset=utf-8")
        .expect("the charset is named")
}

/// Asserts a request error with this status and code, in the media type that applies to every status, and returns its
/// message.
async fn assert_refused(response: Response, status: StatusCode, code: &str) -> String {
    assert_eq!(response.status(), status);
    assert_eq!(content_type(&response), RESPONSE);
    let body = body(response).await;
    assert_eq!(body["errors"][0]["extensions"]["code"], code, "{body}");
    assert!(body.get("data").is_none(), "{body}");
    let message = body["errors"][0]["message"].as_str().expect("a message");
    for engine in ["serde", "expected `", "invalid type", "async", "Error("] {
        assert!(!message.contains(engine), "{message}");
    }
    message.to_owned()
}

/// Sends these bytes and returns the response up to the end of its headers.
async fn raw(server: &TestServer, request: &str) -> String {
    let address = server.url("");
    let address = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = request.replace("HOST", address);
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 4096];
        let n = stream.read(&mut part).await.expect("reads");
        assert_ne!(n, 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..n]);
    }
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn responses_have_the_media_type_that_the_client_prefers() {
    let server = TestServer::start().await;
    for (accept, expected) in [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        ("application/json; charset=utf-8", JSON),
        ("APPLICATION/JSON", JSON),
        (RESPONSE, RESPONSE),
        (
            "application/graphql-response+json, application/json;q=0.9",
            RESPONSE,
        ),
        (
            "application/json;q=0.9, application/graphql-response+json",
            RESPONSE,
        ),
        (
            "application/json;q=0.8, application/graphql-response+json;q=0.5",
            JSON,
        ),
        ("application/json, application/graphql-response+json", JSON),
        (
            "application/graphql-response+json, application/json",
            RESPONSE,
        ),
        ("application/graphql-response+json, */*", RESPONSE),
        ("application/json;q=0, */*", RESPONSE),
        ("text/html;q=0.1, application/json;q=0.2", JSON),
        ("nonsense, application/json", JSON),
        ("text/html, */*;q=0.1", JSON),
    ] {
        let mut request = post(&server, TYPENAME);
        if !accept.is_empty() {
            request = request.header(ACCEPT, accept);
        }
        let response = send(request).await;
        assert_eq!(response.status(), StatusCode::OK, "{accept}");
        assert_eq!(content_type(&response), expected, "{accept}");
        assert_eq!(response.headers()["vary"], "Accept", "{accept}");
        assert_eq!(response.headers()["cache-control"], "no-store", "{accept}");
        assert_eq!(
            body(response).await,
            json!({ "data": { "__typename": "Query" } })
        );
    }
}

#[tokio::test]
async fn two_accept_headers_are_combined() {
    let server = TestServer::start().await;
    let request = post(&server, TYPENAME).header(ACCEPT, "text/plain");
    let response = send(request.header(ACCEPT, RESPONSE)).await;
    assert_eq!(content_type(&response), RESPONSE);
}

#[tokio::test]
async fn unsupported_media_types_are_not_acceptable() {
    let server = TestServer::start().await;
    for accept in [
        "text/plain",
        "application/xml",
        "application/json;q=0",
        "*/*;q=0",
        "json",
        "text/html",
    ] {
        let response = send(post(&server, TYPENAME).header(ACCEPT, accept)).await;
        let message = assert_refused(response, StatusCode::NOT_ACCEPTABLE, "BAD_USER_INPUT").await;
        assert!(message.contains(RESPONSE), "{message}");
    }
    let response =
        send(get(&server, &[("query", "{ __typename }")]).header(ACCEPT, "image/png")).await;
    assert_refused(response, StatusCode::NOT_ACCEPTABLE, "BAD_USER_INPUT").await;
}

#[tokio::test]
async fn the_content_type_must_be_json_in_utf8() {
    let server = TestServer::start().await;
    for good in [
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        r#"Application/JSON; charset="utf-8""#,
        "application/json; profile=x",
    ] {
        let request = server
            .request(Method::POST, "/graphql")
            .header(CONTENT_TYPE, good);
        assert_eq!(
            send(request.body(TYPENAME)).await.status(),
            StatusCode::OK,
            "{good}"
        );
    }
    for bad in [
        "",
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/graphql",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json; charset=iso-8859-1",
    ] {
        let request = server.request(Method::POST, "/graphql").body(TYPENAME);
        let request = if bad.is_empty() {
            request
        } else {
            request.header(CONTENT_TYPE, bad)
        };
        // A preflight header does not make another content type acceptable.
        let response = send(request.header("GraphQL-Require-Preflight", "1")).await;
        assert_refused(
            response,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "BAD_USER_INPUT",
        )
        .await;
    }
    let response = send(post(&server, TYPENAME).header("content-encoding", "gzip")).await;
    assert_refused(
        response,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "BAD_USER_INPUT",
    )
    .await;
}

#[tokio::test]
async fn a_malformed_body_is_refused_with_the_reason() {
    let server = TestServer::start().await;
    for (body, said) in [
        ("", "empty"),
        ("  \n", "empty"),
        ("null", "must be a JSON object"),
        ("7", "must be a JSON object"),
        (r#""{ __typename }""#, "must be a JSON object"),
        ("{ __typename }", "line 1, column 3"),
        ("{\n \"query\": \"{ __typename }\",\n}", "line 3"),
        (r#"{"query":"{ __typename }"} {}"#, "valid JSON"),
        (r#"{"query":"\ud800"}"#, "valid JSON"),
        (
            r#"{"query":"{ __typename }","variables":{"n":1e999}}"#,
            "valid JSON",
        ),
        ("{}", "`query` is missing"),
        (r#"{"qeury":"{ __typename }"}"#, "`query` is missing"),
        (r#"{"query":null}"#, "`query` is missing"),
        (r#"{"query":7}"#, "`query` must be a string"),
        (
            r#"{"query":["{ __typename }"]}"#,
            "`query` must be a string",
        ),
        (
            r#"{"query":"{ __typename }","operationName":{}}"#,
            "`operationName` must be a string",
        ),
        (
            r#"{"query":"{ __typename }","variables":"{}"}"#,
            "`variables` must be an object",
        ),
        (
            r#"{"query":"{ __typename }","variables":[]}"#,
            "`variables` must be an object",
        ),
        (
            r#"{"query":"{ __typename }","extensions":false}"#,
            "`extensions` must be an object",
        ),
        (r#"{"documentId":1}"#, "`documentId` must be a string"),
        (
            r#"{"query":"{ __typename }","query":"{ a }"}"#,
            "`query` is given twice",
        ),
        (
            r#"[{"query":"{ __typename }"}]"#,
            "one operation per request",
        ),
    ] {
        for accept in [JSON, RESPONSE] {
            let response = send(post(&server, body).header(ACCEPT, accept)).await;
            let message = assert_refused(response, StatusCode::BAD_REQUEST, "BAD_USER_INPUT").await;
            assert!(message.contains(said), "{body}: {message}");
        }
    }
    let deep = "[".repeat(100_000);
    let response = send(post(&server, format!(r#"{{"query":{deep}"#))).await;
    assert_refused(response, StatusCode::BAD_REQUEST, "BAD_USER_INPUT").await;
}

#[tokio::test]
async fn a_body_must_be_utf8() {
    let server = TestServer::start().await;
    let response = send(post(
        &server,
        b"{\"query\":\"{ __typename \xff}\"}".to_vec(),
    ))
    .await;
    let message = assert_refused(response, StatusCode::BAD_REQUEST, "BAD_USER_INPUT").await;
    assert!(message.contains("UTF-8"), "{message}");
}

#[tokio::test]
async fn unknown_and_null_members_are_ignored() {
    let server = TestServer::start().await;
    let request = json!({
        "query": "{ __typename }",
        "operationName": null,
        "variables": null,
        "extensions": null,
        "id": 7,
        "onError": "NULL",
    });
    let response = send(post(&server, request.to_string())).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(body(response).await["data"]["__typename"], "Query");
}

#[tokio::test]
async fn a_body_may_be_at_most_as_long_as_the_limit() {
    let server = TestServer::with(|config| config.server.body_limit = 1024).await;
    let of_length = |n: usize| TYPENAME.to_owned() + &" ".repeat(n - TYPENAME.len());
    let exactly = send(post(&server, of_length(1024))).await;
    assert_eq!(exactly.status(), StatusCode::OK);

    for longer in [1025, 3 << 20] {
        let response = send(post(&server, of_length(longer))).await;
        let message =
            assert_refused(response, StatusCode::PAYLOAD_TOO_LARGE, "BAD_USER_INPUT").await;
        assert!(message.contains("1024 bytes"), "{message}");
    }
}

#[tokio::test]
async fn a_too_long_body_is_refused_before_it_is_read() {
    let server = TestServer::with(|config| config.server.body_limit = 1024).await;
    let head = "POST /graphql HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n";
    let declared = raw(
        &server,
        &format!("{head}Content-Length: 99999999999\r\n\r\n{{"),
    )
    .await;
    assert!(declared.starts_with("HTTP/1.1 413 "), "{declared}");

    let part = " ".repeat(1025);
    let chunked = raw(
        &server,
        &format!("{head}Transfer-Encoding: chunked\r\n\r\n401\r\n{part}\r\n"),
    )
    .await;
    assert!(chunked.starts_with("HTTP/1.1 413 "), "{chunked}");

    // A client that expects `100 Continue` gets the refusal instead.
    let asked = raw(
        &server,
        &format!("{head}Content-Length: 9999\r\nExpect: 100-continue\r\n\r\n"),
    )
    .await;
    assert!(asked.starts_with("HTTP/1.1 413 "), "{asked}");
}

#[tokio::test]
async fn a_client_that_writes_its_whole_body_first_gets_the_refusal() {
    let server = TestServer::start().await;
    for _ in 0..10 {
        let body = " ".repeat(4 << 20);
        let request = server.request(Method::POST, "/graphql").body(body);
        let response = send(request.header(CONTENT_TYPE, "text/plain")).await;
        assert_refused(
            response,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "BAD_USER_INPUT",
        )
        .await;
    }
}

#[tokio::test]
async fn an_incomplete_body_times_out() {
    let server =
        TestServer::with(|config| config.server.body_timeout = Duration::from_millis(20)).await;
    let head = "POST /graphql HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n";
    let answer = raw(&server, &format!("{head}Content-Length: 100\r\n\r\n{{")).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn queries_are_accepted_by_get() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let by_id = "query A { __typename } query B($id: ID!) { circle(id: $id) { name } }";
    let variables = json!({ "id": ATELIER }).to_string();
    let request = get(
        &server,
        &[
            ("query", by_id),
            ("operationName", "B"),
            ("variables", &variables),
            ("extensions", "{}"),
            ("unknown", "1"),
        ],
    );
    let response = send(request.bearer_auth(token)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(content_type(&response), JSON);
    assert_eq!(
        body(response).await,
        json!({ "data": { "circle": { "name": "Atelier" } } })
    );

    let empty = [
        ("query", "{ __typename }"),
        ("operationName", ""),
        ("variables", ""),
        ("extensions", "null"),
    ];
    assert_eq!(send(get(&server, &empty)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn get_parameters_are_validated_like_a_body() {
    let server = TestServer::start().await;
    let query = ("query", "{ __typename }");
    for (parameters, said) in [
        (&[][..], "`query` is missing"),
        (&[("query", "")], "`query` is missing"),
        (
            &[query, ("variables", "{")],
            "`variables` must be valid JSON",
        ),
        (
            &[query, ("variables", "[]")],
            "`variables` must be an object",
        ),
        (
            &[query, ("extensions", "7")],
            "`extensions` must be an object",
        ),
        (&[query, query], "`query` is given twice"),
    ] {
        let response = send(get(&server, parameters)).await;
        let message = assert_refused(response, StatusCode::BAD_REQUEST, "BAD_USER_INPUT").await;
        assert!(message.contains(said), "{message}");
    }
    let response = server.get("/graphql?query=%ff").await;
    let message = assert_refused(response, StatusCode::BAD_REQUEST, "BAD_USER_INPUT").await;
    assert!(message.contains("UTF-8"), "{message}");
}

#[tokio::test]
async fn unsupported_methods_list_the_allowed_ones() {
    let server = TestServer::start().await;
    for method in [Method::PUT, Method::PATCH, Method::DELETE, Method::TRACE] {
        let response = send(server.request(method, "/graphql")).await;
        assert_eq!(response.headers()["allow"], "GET, HEAD, POST, OPTIONS");
        assert_refused(response, StatusCode::METHOD_NOT_ALLOWED, "BAD_USER_INPUT").await;
    }
    let response = send(server.request(Method::OPTIONS, "/graphql")).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(response.headers()["allow"], "GET, HEAD, POST, OPTIONS");
    assert!(
        response
            .headers()
            .get("access-control-allow-origin")
            .is_none()
    );
}

#[tokio::test]
async fn head_answers_like_get_without_the_body() {
    let server = TestServer::start().await;
    let of_get = server.get("/graphql?query={__typename}").await;
    let of_head = send(server.request(Method::HEAD, "/graphql?query={__typename}")).await;
    let without_its_own = |response: &Response| -> HeaderMap {
        let mut headers = response.headers().clone();
        headers.remove("date");
        headers.remove("x-request-id");
        headers
    };
    assert_eq!(of_head.status(), of_get.status());
    assert_eq!(without_its_own(&of_head), without_its_own(&of_get));
    assert!(of_head.bytes().await.expect("a body").is_empty());
}

#[tokio::test]
async fn cross_site_get_requests_are_refused() {
    let server = TestServer::start().await;
    let own = server.url("");
    let query = [("query", "{ __typename }")];
    for (name, value) in [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "https://elsewhere.example"),
        ("Origin", "http://127.0.0.1:1"),
        ("Origin", "null"),
    ] {
        let response = send(get(&server, &query).header(name, value)).await;
        let message = assert_refused(response, StatusCode::FORBIDDEN, "FORBIDDEN").await;
        assert!(message.contains("GraphQL-Require-Preflight"), "{message}");

        for proof in [
            "GraphQL-Require-Preflight",
            "Apollo-Require-Preflight",
            "X-Apollo-Operation-Name",
        ] {
            let request = get(&server, &query).header(name, value).header(proof, "1");
            assert_eq!(
                send(request).await.status(),
                StatusCode::OK,
                "{name}: {value}, {proof}"
            );
        }
        let request = get(&server, &query)
            .header(name, value)
            .header(CONTENT_TYPE, JSON);
        assert_eq!(
            send(request).await.status(),
            StatusCode::OK,
            "{name}: {value}"
        );
    }
    for (name, value) in [
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Site", "none"),
        ("Origin", &own),
    ] {
        let request = get(&server, &query).header(name, value);
        assert_eq!(
            send(request).await.status(),
            StatusCode::OK,
            "{name}: {value}"
        );
    }
}

#[tokio::test]
async fn the_demo_server_refuses_foreign_host_names() {
    let server = TestServer::demo().await;
    for host in [
        "elsewhere.example",
        "elsewhere.example:8000",
        "localhost.elsewhere.example",
        "127.0.0.1.example",
    ] {
        let response = send(post(&server, TYPENAME).header("host", host)).await;
        assert_refused(response, StatusCode::MISDIRECTED_REQUEST, "FORBIDDEN").await;
    }
    for host in [
        "localhost",
        "localhost:8000",
        "127.0.0.1",
        "[::1]:8000",
        "[::1]",
    ] {
        let response = send(post(&server, TYPENAME).header("host", host)).await;
        assert_eq!(response.status(), StatusCode::OK, "{host}");
    }
    let other = TestServer::start().await;
    let response = send(post(&other, TYPENAME).header("host", "elsewhere.example")).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_error_is_200_in_json_and_400_in_graphql_response_json() {
    let server = TestServer::start().await;
    for (operation, code) in [
        (json!({ "query": "{" }), "GRAPHQL_PARSE_FAILED"),
        (
            json!({ "query": "{ nothing }" }),
            "GRAPHQL_VALIDATION_FAILED",
        ),
        (
            json!({ "query": "query ($id: ID!) { circle(id: $id) { id } }" }),
            "BAD_USER_INPUT",
        ),
        (
            json!({ "query": "query A { __typename } query B { __typename }" }),
            "GRAPHQL_VALIDATION_FAILED",
        ),
        (
            json!({ "query": "query A { __typename }", "operationName": "B" }),
            "GRAPHQL_VALIDATION_FAILED",
        ),
        (
            json!({ "extensions": { "persistedQuery": { "version": 1, "sha256Hash": "0".repeat(64) } } }),
            "PERSISTED_QUERY_NOT_FOUND",
        ),
    ] {
        for (accept, status) in [(JSON, StatusCode::OK), (RESPONSE, StatusCode::BAD_REQUEST)] {
            let response = send(post(&server, operation.to_string()).header(ACCEPT, accept)).await;
            assert_eq!(response.status(), status, "{operation}");
            assert_eq!(content_type(&response), accept, "{operation}");
            let body = body(response).await;
            assert!(body.get("data").is_none(), "{body}");
            assert_eq!(body["errors"][0]["extensions"]["code"], code, "{body}");
        }
    }
}

#[tokio::test]
async fn a_partial_result_has_status_200() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let query = json!({ "query": r#"{ __typename circle(id: "circle_7zzzzzzzzzzzzzzzzzzzzzzzzz") { id } }"# });
    for accept in [JSON, RESPONSE] {
        let request = post(&server, query.to_string()).bearer_auth(&token);
        let response = send(request.header(ACCEPT, accept)).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = body(response).await;
        assert_eq!(
            body["data"],
            json!({ "__typename": "Query", "circle": null })
        );
        assert_eq!(body["errors"][0]["extensions"]["code"], "NOT_FOUND");
    }
}

#[tokio::test]
async fn a_batch_is_answered_in_order() {
    let server = TestServer::with(|config| config.graphql.batch = 10).await;
    let circle = json!({
        "query": "query ($id: ID!) { circle(id: $id) { name } }",
        "variables": { "id": ATELIER },
    });
    let typename = json!({ "query": "{ __typename }" });
    let batch = json!([typename, { "query": "{" }, circle]);
    let token = server.token("demo@example.com").await;
    let response = send(post(&server, batch.to_string()).bearer_auth(token)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(content_type(&response), JSON);
    let answers = body(response).await;
    assert_eq!(answers.as_array().map(Vec::len), Some(3));
    assert_eq!(answers[0], json!({ "data": { "__typename": "Query" } }));
    assert_eq!(
        answers[1]["errors"][0]["extensions"]["code"],
        "GRAPHQL_PARSE_FAILED"
    );
    assert!(answers[1].get("data").is_none());
    assert_eq!(
        answers[2],
        json!({ "data": { "circle": { "name": "Atelier" } } })
    );

    let nothing_ran = json!([{ "query": "{" }, { "query": "}" }]).to_string();
    let response = send(post(&server, nothing_ran).header(ACCEPT, RESPONSE)).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(body(response).await.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_too_long_or_malformed_batch_is_refused_as_a_whole() {
    let server = TestServer::with(|config| config.graphql.batch = 10).await;
    let operation = json!({ "query": "{ __typename }" });
    for (batch, said) in [
        (json!([]), "1 to 10 operations, not 0"),
        (
            Value::Array(vec![operation.clone(); 11]),
            "1 to 10 operations, not 11",
        ),
        (
            json!([operation, { "query": 7 }]),
            "`[1].query` must be a string",
        ),
        (json!([operation, {}]), "`[1].query` is missing"),
        (json!([operation, 7]), "must be a JSON object"),
        (json!([[operation]]), "must be a JSON object"),
    ] {
        let response = send(post(&server, batch.to_string())).await;
        let message = assert_refused(response, StatusCode::BAD_REQUEST, "BAD_USER_INPUT").await;
        assert!(message.contains(said), "{message}");
    }
}

#[tokio::test]
async fn usage_is_reported_on_request_to_permitted_callers() {
    use gathering::config::Usage;

    for (usage, user, shown) in [
        (Usage::Everyone, "demo@example.com", true),
        (Usage::Admin, "demo@example.com", false),
        (Usage::Admin, "admin@example.com", true),
        (Usage::Off, "admin@example.com", false),
    ] {
        let server = TestServer::with(|config| config.graphql.usage = usage).await;
        let token = server.token(user).await;
        for (asked, expected) in [("1", shown), ("0", false)] {
            let request = post(&server, TYPENAME).bearer_auth(&token);
            let response = send(request.header("X-Gathering-Usage", asked)).await;
            let body = body(response).await;
            let given = body.pointer("/extensions/usage").is_some();
            assert_eq!(given, expected, "{usage:?} {user} {asked}: {body}");
        }
    }
}

/// The challenge for a refused token (RFC 6750).
const CHALLENGE: &str = r#"Bearer realm="gathering", error="invalid_token""#;

/// Asserts the refusal of a token, with headers that forbid caching and sniffing.
async fn assert_unauthenticated(response: Response, said: &str) {
    let headers = response.headers();
    assert_eq!(headers["www-authenticate"], CHALLENGE, "{said}");
    assert_eq!(headers["cache-control"], "no-store", "{said}");
    assert_eq!(headers["x-content-type-options"], "nosniff", "{said}");
    assert_eq!(headers["referrer-policy"], "no-referrer", "{said}");
    assert!(headers.contains_key("content-security-policy"), "{said}");
    let message = assert_refused(response, StatusCode::UNAUTHORIZED, "UNAUTHENTICATED").await;
    assert!(message.contains(said), "{message}");
}

#[tokio::test]
async fn a_valid_token_authenticates_its_user_and_no_token_means_anonymous() {
    let server = TestServer::start().await;
    let [query, body] = ["{ viewer { name } }", r#"{"query":"{ viewer { name } }"}"#];
    for (email, name) in [
        ("demo@example.com", "Dana Demo"),
        ("guest@example.com", "Grace Guest"),
    ] {
        let token = server.token(email).await;
        let expected = json!({ "data": { "viewer": { "name": name } } });
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let authorization = format!("{scheme} {token}");
            for request in [post(&server, body), get(&server, &[("query", query)])] {
                let response = send(request.header("authorization", &authorization)).await;
                assert_eq!(response.status(), StatusCode::OK, "{scheme}");
                assert_eq!(self::body(response).await, expected, "{scheme}");
            }
        }
        // A token in the URL is ignored, because URLs end up in logs and histories.
        let in_url = [
            ("query", query),
            ("access_token", &*token),
            ("authorization", &*token),
        ];
        for request in [post(&server, body), get(&server, &in_url)] {
            let response = send(request).await;
            assert_eq!(response.status(), StatusCode::OK);
            let nobody = json!({ "data": { "viewer": null } });
            assert_eq!(self::body(response).await, nobody);
        }
    }
}

#[tokio::test]
async fn an_invalid_token_is_401_even_for_public_fields() {
    let server = TestServer::start().await;
    let expired = server.token("demo@example.com").await;
    server.pass(2 * 3600);
    let good = server.token("demo@example.com").await;
    let tampered = format!("{}x", &good[..good.len() - 1]);
    for (token, said) in [
        ("nonsense", "not valid"),
        ("a.b.c", "not valid"),
        (&*tampered, "not valid"),
        (&*expired, "expired"),
    ] {
        for accept in [JSON, RESPONSE] {
            let query = [("query", "{ __typename }")];
            for request in [post(&server, TYPENAME), get(&server, &query)] {
                let request = request.bearer_auth(token).header(ACCEPT, accept);
                assert_unauthenticated(send(request).await, said).await;
            }
        }
    }
    let wrong = post(&server, r#"{"query":"{ nothing }"}"#).header(ACCEPT, RESPONSE);
    let response = send(wrong.bearer_auth(good)).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn authorization_is_one_header_with_one_bearer_token() {
    let server = TestServer::start().await;
    let token = server.token("demo@example.com").await;
    let bearer = format!("Bearer {token}");
    for (values, said) in [
        (&[&*bearer, &*bearer][..], "not several"),
        (&[&*bearer, "Basic ZGVtbzpkZW1v"], "not several"),
        (&["Basic ZGVtbzpkZW1v"], "must be `Bearer`"),
        (&[&*format!("Token {token}")], "must be `Bearer`"),
        (&[&*token], "must be `Bearer`"),
        (&["Bearer"], "must be `Bearer`"),
        (&["Bearer  "], "must be `Bearer`"),
        (&[""], "must be `Bearer`"),
        (&[&*format!("{bearer}, {bearer}")], "not valid"),
    ] {
        let mut request = post(&server, TYPENAME);
        for value in values {
            request = request.header("authorization", *value);
        }
        assert_unauthenticated(send(request).await, said).await;
    }
}

#[tokio::test]
async fn a_batch_with_an_invalid_token_is_refused_as_a_whole() {
    let server = TestServer::with(|config| config.graphql.batch = 10).await;
    let batch = json!([{ "query": "{ __typename }" }, { "query": "{ __typename }" }]);
    let response = send(post(&server, batch.to_string()).bearer_auth("nonsense")).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.headers()["www-authenticate"], CHALLENGE);
    let answers = body(response).await;
    for place in 0..2 {
        assert!(answers[place].get("data").is_none(), "{answers}");
        let code = &answers[place]["errors"][0]["extensions"]["code"];
        assert_eq!(code, "UNAUTHENTICATED", "{answers}");
    }
}

#[tokio::test]
async fn sign_in_mutations_ignore_an_expired_token() {
    let server = TestServer::start().await;
    let expired = server.token("demo@example.com").await;
    server.pass(2 * 3600);
    let expired = Some(&*expired);
    let field = r#"login(input: {email: "demo@example.com", password: "gathering-demo"}) { refreshToken viewer { name } }"#;
    let login = format!("mutation {{ {field} }}");
    let answer = server.ask(expired, &login, json!({})).await;
    assert_eq!(answer["data"]["login"]["viewer"]["name"], "Dana Demo");

    let refresh = "mutation ($token: String!) { refreshSession(input: {refreshToken: $token}) { viewer { name } } }";
    let token = &answer["data"]["login"]["refreshToken"];
    let answer = server.ask(expired, refresh, json!({ "token": token }));
    let name = &answer.await["data"]["refreshSession"]["viewer"]["name"];
    assert_eq!(name, "Dana Demo");

    let hidden = format!("mutation {{ ...A }} fragment A on Mutation {{ {field} }}");
    let answer = server.ask(expired, &hidden, json!({})).await;
    assert_eq!(answer["data"]["login"]["viewer"]["name"], "Dana Demo");

    let register = r#"mutation { register(input: {email: "new@example.com", password: "a long password", name: "New"}) { viewer { name } } }"#;
    let answer = server.ask(expired, register, json!({})).await;
    assert_eq!(answer["data"]["register"]["viewer"]["name"], "New");

    // With any other field in the operation, the token is checked.
    for other in [
        "mutation { login(input: {email: \"\", password: \"\"}) { viewer { id } } logout(input: {}) { revokedTokens } }",
        "mutation { logout(input: {}) { revokedTokens } }",
    ] {
        let response = server.send(expired, other, json!({})).await;
        assert_unauthenticated(response, "expired").await;
    }
}

fn listed(response: &Response, header: &str) -> Vec<String> {
    let lines = response.headers().get_all(header).iter();
    let lines = lines.map(|line| line.to_str().expect("text"));
    lines
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect()
}

fn preflight(server: &TestServer, origin: &str) -> RequestBuilder {
    server
        .request(Method::OPTIONS, "/graphql")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,x-request-id",
        )
}

#[tokio::test]
async fn only_configured_origins_are_allowed_by_cors() {
    use gathering::config::Origins;

    const APP: &str = "https://app.example.com";
    let server = TestServer::with(|config| {
        config.server.cors_origins =
            Origins(vec![APP.to_owned(), "http://localhost:3000".to_owned()]);
    })
    .await;
    for origin in [APP, "http://localhost:3000"] {
        let response = send(preflight(&server, origin)).await;
        assert!(response.status().is_success());
        let headers = response.headers();
        assert_eq!(headers["x-request-id"].len(), 32);
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["access-control-allow-origin"], origin);
        assert!(!headers.contains_key("access-control-allow-credentials"));
        let methods = listed(&response, "access-control-allow-methods");
        assert_eq!(methods, ["get", "post"]);
        let allowed = listed(&response, "access-control-allow-headers");
        for name in [
            "authorization",
            "content-type",
            "graphql-require-preflight",
            "x-request-id",
        ] {
            assert!(allowed.iter().any(|allowed| allowed == name), "{name}");
        }
        assert!(listed(&response, "vary").contains(&"origin".to_owned()));
    }
    let good = server.token("demo@example.com").await;
    for origin in [
        Some(APP),
        None,
        Some("https://elsewhere.example"),
        Some("null"),
    ] {
        let may = origin == Some(APP);
        if let Some(origin) = origin.filter(|_| !may) {
            let response = send(preflight(&server, origin)).await;
            let headers = response.headers();
            assert!(!headers.contains_key("access-control-allow-origin"));
        }
        for (token, status) in [
            (&*good, StatusCode::OK),
            ("nonsense", StatusCode::UNAUTHORIZED),
        ] {
            for request in [
                post(&server, TYPENAME),
                get(&server, &[("query", "{ __typename }")]),
            ] {
                let mut request = request.bearer_auth(token);
                if let Some(origin) = origin {
                    request = request.header("origin", origin);
                }
                let response = send(request).await;
                assert_eq!(response.status(), status, "{origin:?}");
                let allowed = response.headers().get("access-control-allow-origin");
                let allowed = allowed.map(|origin| origin.to_str().expect("text"));
                assert_eq!(allowed, origin.filter(|_| may));
                let exposed = listed(&response, "access-control-expose-headers");
                for name in ["x-request-id", "retry-after"] {
                    assert!(exposed.iter().any(|exposed| exposed == name), "{name}");
                }
                // `Vary` keeps caches from mixing different responses.
                let vary = listed(&response, "vary");
                for name in ["accept", "origin"] {
                    assert!(vary.iter().any(|vary| vary == name), "{vary:?}");
                }
                assert_eq!(response.headers()["x-content-type-options"], "nosniff");
            }
        }
    }
}

#[tokio::test]
async fn a_wildcard_allows_every_origin_by_cors() {
    use gathering::config::Origins;

    let server = TestServer::with(|config| {
        config.server.cors_origins = Origins(vec!["*".to_owned()]);
    })
    .await;
    let response = send(preflight(&server, "https://elsewhere.example")).await;
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    // With `*`, a browser sends a token only if the header is listed by name.
    let allowed = listed(&response, "access-control-allow-headers");
    assert!(allowed.contains(&"authorization".to_owned()), "{allowed:?}");
    let request = post(&server, TYPENAME).header("origin", "https://elsewhere.example");
    let response = send(request).await;
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn too_complex_documents_are_refused_over_http() {
    let server = TestServer::start().await;
    // Each fragment doubles the one before; fully expanded, the document would be too large for any machine.
    let doubling = |n: usize| format!("fragment F{n} on Query {{ ...F{m} ...F{m} }} ", m = n + 1);
    let doublings = (0..60).map(doubling).collect::<Vec<_>>().concat();
    let bomb = format!("{{ ...F0 }} {doublings} fragment F60 on Query {{ __typename }}");
    let aliases: Vec<String> = (0..500).map(|n| format!("a{n}: __typename")).collect();
    let aliases = aliases.join(" ");
    let deep = "{ a ".repeat(3_000) + &"}".repeat(3_000);
    // Repeated selections are merged.
    for document in [bomb, format!("{{ {} }}", "__typename ".repeat(500))] {
        let request = json!({ "query": document }).to_string();
        let response = send(post(&server, request).header(ACCEPT, RESPONSE)).await;
        let data = &body(response).await["data"];
        assert_eq!(*data, json!({ "__typename": "Query" }));
    }
    for document in [
        format!("{{ {aliases} }}"),
        format!("{{ {} }}", "a ".repeat(50_000)),
        deep,
        format!("{{ __typename }} #{}", "x".repeat(64 << 10)),
    ] {
        let request = json!({ "query": document }).to_string();
        let response = send(post(&server, request).header(ACCEPT, RESPONSE)).await;
        let shown: String = document.chars().take(60).collect();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{shown}");
        let body = body(response).await;
        let code = &body["errors"][0]["extensions"]["code"];
        assert_eq!(code, "QUERY_TOO_COMPLEX", "{shown}: {body}");
        assert!(body.get("data").is_none(), "{shown}: {body}");
    }
    assert_eq!(server.get("/health/ready").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn every_response_has_security_headers() {
    let server = TestServer::start().await;
    for path in [
        "/",
        "/graphql",
        "/graphql?query={__typename}",
        "/graphql/assets/none",
        "/health",
        "/nowhere",
    ] {
        let response = server.get(path).await;
        let headers = response.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        let policy = headers["content-security-policy"].to_str().expect("text");
        assert!(policy.contains("default-src 'none'"), "{path}");
        assert!(policy.contains("frame-ancestors 'none'"), "{path}");
    }
}

#[tokio::test]
async fn the_playground_has_a_strict_content_security_policy() {
    let server = TestServer::start().await;
    for path in ["/graphql", "/graphql?query={__typename}", "/"] {
        // A link on another site may open the page, because the page itself sends no operation.
        let request = server.request(Method::GET, path).header(ACCEPT, BROWSER);
        let response = send(request.header("Sec-Fetch-Site", "cross-site")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(content_type(&response), "text/html");
        let policy = response.headers()["content-security-policy"]
            .to_str()
            .expect("text")
            .to_owned();
        for part in [
            "default-src 'none'",
            "script-src 'self';",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe-eval"), "{policy}");
        assert!(response.text().await.expect("text").contains("Gathering"));
    }
}

#[expect(clippy::print_stdout, reason = "reports that the test was skipped")]
#[tokio::test]
async fn the_playground_loads_only_embedded_assets() {
    let server = TestServer::start().await;
    let page = send(
        server
            .request(Method::GET, "/graphql")
            .header(ACCEPT, BROWSER),
    )
    .await;
    let page = page.text().await.expect("text");
    let assets: Vec<&str> = page
        .split('"')
        .filter(|part| part.starts_with("/graphql/assets/"))
        .collect();
    if assets.is_empty() {
        println!("skipped: this build has no playground");
        assert!(
            page.contains("npm"),
            "the page must explain how to build the playground: {page}"
        );
        return;
    }
    assert!(
        !page.contains("//"),
        "the page must load nothing from another origin: {page}"
    );
    for asset in assets {
        let plain = server.get(asset).await;
        assert_eq!(plain.status(), StatusCode::OK, "{asset}");
        assert_eq!(
            plain.headers()["cache-control"],
            "public, max-age=31536000, immutable"
        );
        assert_eq!(plain.headers()["vary"], "Accept-Encoding");
        let kind = plain.headers()[CONTENT_TYPE]
            .to_str()
            .expect("text")
            .to_owned();
        let (_, extension) = asset.rsplit_once('.').expect("an extension");
        let expected = match extension {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => panic!("{asset} has an unknown extension"),
        };
        assert_eq!(kind, expected, "{asset}");

        let packed = server
            .request(Method::GET, asset)
            .header("accept-encoding", "br, gzip");
        let packed = send(packed).await;
        assert_eq!(packed.headers()["content-encoding"], "gzip", "{asset}");
        let (packed, plain) = (
            packed.bytes().await.expect("bytes"),
            plain.bytes().await.expect("bytes"),
        );
        assert!(packed.len() < plain.len(), "{asset}");
    }
    let unknown = server.get("/graphql/assets/index.js").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_playground_can_be_turned_off() {
    let server = TestServer::with(|config| config.server.playground = false).await;
    let response = send(
        server
            .request(Method::GET, "/graphql")
            .header(ACCEPT, "text/html"),
    )
    .await;
    assert_refused(response, StatusCode::NOT_ACCEPTABLE, "BAD_USER_INPUT").await;
    assert_eq!(server.get("/").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(send(post(&server, TYPENAME)).await.status(), StatusCode::OK);
}
