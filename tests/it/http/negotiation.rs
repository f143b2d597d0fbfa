//! Media types and statuses of responses.

use super::*;

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
