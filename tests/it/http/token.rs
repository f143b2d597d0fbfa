//! The `Authorization` header.

use super::*;

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
            let anonymous = json!({ "data": { "viewer": null } });
            assert_eq!(self::body(response).await, anonymous);
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
    let expired = server.with_token(&expired);
    let field = r#"login(input: {email: "demo@example.com", password: "gathering-demo"}) { refreshToken viewer { name } }"#;
    let login = format!("mutation {{ {field} }}");
    let answer = expired.answer(&login, json!({})).await;
    assert_eq!(answer["data"]["login"]["viewer"]["name"], "Dana Demo");

    let refresh = "mutation ($token: String!) { refreshSession(input: {refreshToken: $token}) { viewer { name } } }";
    let token = &answer["data"]["login"]["refreshToken"];
    let answer = expired.answer(refresh, json!({ "token": token }));
    let name = &answer.await["data"]["refreshSession"]["viewer"]["name"];
    assert_eq!(name, "Dana Demo");

    let hidden = format!("mutation {{ ...A }} fragment A on Mutation {{ {field} }}");
    let answer = expired.answer(&hidden, json!({})).await;
    assert_eq!(answer["data"]["login"]["viewer"]["name"], "Dana Demo");

    let register = r#"mutation { register(input: {email: "new@example.com", password: "a long password", name: "New"}) { viewer { name } } }"#;
    let answer = expired.answer(register, json!({})).await;
    assert_eq!(answer["data"]["register"]["viewer"]["name"], "New");

    // With any other field in the operation, the token is checked.
    for other in [
        "mutation { login(input: {email: \"\", password: \"\"}) { viewer { id } } logout(input: {}) { revokedTokens } }",
        "mutation { logout(input: {}) { revokedTokens } }",
    ] {
        let response = expired.send(other, json!({})).await;
        assert_unauthenticated(response, "expired").await;
    }
}
