//! Bodies and batches.

use super::*;

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
            "`query` occurs more than once",
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
