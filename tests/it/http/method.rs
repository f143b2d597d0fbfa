//! Methods, and queries by GET.

use super::*;

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
        (&[query, query], "`query` occurs more than once"),
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
