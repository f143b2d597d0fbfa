//! Requests from browsers and from other sites.

use super::*;

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
