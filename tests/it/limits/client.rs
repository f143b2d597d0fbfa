//! Which client is charged: the signed-in user, else the address, and the address for each request.

use std::net::IpAddr;

use gathering::config::{Networks, Origins};
use reqwest::header::{ACCEPT, CONTENT_TYPE, ORIGIN};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;

use super::{Answer, HERE, PLENTY, THERE, VIEWER, aliases, ask, attempt, from, let_in, serve};
use crate::support::actor::client_builder;
use crate::support::database::PASSWORD;
use crate::support::server::TestServer;

/// The response to an anonymous query with these headers.
async fn forwarded(server: &TestServer, headers: &[(&str, &str)]) -> Answer {
    let mut request = server.request(Method::POST, "/graphql");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::to(request.json(&json!({ "query": VIEWER }))).await
}

#[tokio::test]
async fn an_address_may_send_three_hundred_invalid_requests_a_minute() {
    let server = serve(|_| ()).await;
    for _ in 0..300 {
        let answer = ask(&server, HERE, None, "{").await;
        assert_eq!(answer.codes(), ["GRAPHQL_PARSE_FAILED"]);
    }
    assert!(ask(&server, HERE, None, "{").await.is_refused());
    assert!(ask(&server, HERE, None, VIEWER).await.is_refused());
    assert!(!ask(&server, THERE, None, VIEWER).await.is_refused());
    server.pass(1);
    assert_eq!(let_in(&server, HERE, None, VIEWER, 6).await, 5);
}

#[tokio::test]
async fn every_kind_of_request_is_limited_per_address() {
    const LET_IN: u32 = 5;
    type Flood = fn(&TestServer) -> RequestBuilder;
    let server = serve(|config| config.limits.address = LET_IN).await;
    let floods: [(StatusCode, Flood); 9] = [
        (StatusCode::UNAUTHORIZED, |server| {
            let request = from(server, "").bearer_auth("nonsense");
            request.json(&json!({ "query": VIEWER }))
        }),
        (StatusCode::BAD_REQUEST, |server| {
            let request = from(server, "").header(CONTENT_TYPE, "application/json");
            request.body("no JSON")
        }),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, |server| {
            from(server, "").body("no JSON")
        }),
        (StatusCode::PAYLOAD_TOO_LARGE, |server| {
            let request = from(server, "").header(CONTENT_TYPE, "application/json");
            request.body("x".repeat(2 << 20))
        }),
        (StatusCode::OK, |server| {
            server
                .request(Method::GET, "/graphql")
                .header(ACCEPT, "text/html")
        }),
        (StatusCode::NO_CONTENT, |server| {
            server.request(Method::OPTIONS, "/graphql")
        }),
        (StatusCode::OK, |server| {
            let introspection = "{ __schema { types { name } } }";
            from(server, "").json(&json!({ "query": introspection }))
        }),
        (StatusCode::NOT_FOUND, |server| {
            server.request(Method::GET, "/wp-login.php")
        }),
        (StatusCode::OK, |server| {
            // The field `rateLimit` is free, but its request is charged.
            from(server, "").json(&json!({ "query": "{ rateLimit { field } }" }))
        }),
    ];
    for (place, (status, flood)) in floods.into_iter().enumerate() {
        let address = format!("203.0.113.{place}");
        let request = || {
            let (client, request) = flood(&server).build_split();
            let mut request = request.expect("a request");
            let address = address.parse().expect("a header");
            request.headers_mut().insert("x-forwarded-for", address);
            RequestBuilder::from_parts(client, request)
        };
        for _ in 0..LET_IN {
            let answer = Answer::to(request()).await;
            assert_eq!(answer.status, status, "{place}: {}", answer.body);
        }
        assert!(Answer::to(request()).await.is_refused(), "{place}");
    }
}

#[tokio::test]
async fn graphql_health_and_metrics_have_separate_buckets() {
    let server = serve(|config| config.limits.address = 2).await;
    let routes = ["/graphql", "/health/live", "/metrics"];
    for flooded in routes {
        let get = async |path: &str| {
            let request = server
                .request(Method::GET, path)
                .header(ACCEPT, "text/html");
            Answer::to(request).await
        };
        for _ in 0..2 {
            assert_eq!(get(flooded).await.status, StatusCode::OK, "{flooded}");
        }
        assert!(get(flooded).await.is_refused(), "{flooded}");
        server.pass(30);
        for path in routes {
            assert_eq!(get(path).await.status, StatusCode::OK, "{flooded}: {path}");
        }
        server.pass(60);
    }
    // All health endpoints share one bucket.
    for path in ["/health", "/health/live"] {
        let request = server.request(Method::GET, path);
        assert_eq!(Answer::to(request).await.status, StatusCode::OK);
    }
    assert!(
        Answer::to(server.request(Method::GET, "/health/ready"))
            .await
            .is_refused()
    );
}

#[tokio::test]
async fn preflight_requests_are_free() {
    let server = serve(|config| {
        config.server.cors_origins = Origins(vec!["*".to_owned()]);
        config.limits.address = 1;
    })
    .await;
    for _ in 0..10 {
        let request = server.request(Method::OPTIONS, "/graphql");
        let request = request
            .header(ORIGIN, "https://app.example.com")
            .header("Access-Control-Request-Method", "POST");
        let answer = Answer::to(request).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers.get("ratelimit"), None);
    }
    let request = server.request(Method::POST, "/graphql");
    let answer = Answer::to(request.json(&json!({ "query": VIEWER }))).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn an_untrusted_client_cannot_choose_its_address() {
    let server = serve(|config| {
        config.server.trusted_proxies = Networks(Vec::new());
        config.limits.read = 3;
    })
    .await;
    for place in 0..3 {
        let (other, standard) = (format!("192.0.2.{place}"), format!("for=192.0.2.{place}"));
        let headers = [("X-Forwarded-For", &*other), ("Forwarded", &standard)];
        assert!(!forwarded(&server, &headers[..place]).await.is_refused());
    }
    for headers in [
        &[][..],
        &[("X-Forwarded-For", "198.51.100.7")],
        &[("Forwarded", "for=198.51.100.7")],
        &[("X-Forwarded-For", "127.0.0.2, 198.51.100.7, 127.0.0.3")],
        &[("X-Real-IP", "198.51.100.7")],
    ] {
        assert!(
            forwarded(&server, headers).await.is_refused(),
            "{headers:?}"
        );
    }
    // A client that connects from another address has its own bucket.
    let elsewhere: IpAddr = "127.0.0.2".parse().expect("an address");
    let client = client_builder().local_address(elsewhere);
    let client = client.build().expect("a client");
    for left in [2, 1, 0] {
        let request = client.post(server.url("/graphql"));
        let answer = Answer::to(request.json(&json!({ "query": VIEWER }))).await;
        assert_eq!(answer.quota("viewer")["remaining"], left);
    }
}

#[tokio::test]
async fn behind_trusted_proxies_the_nearest_untrusted_address_is_charged() {
    let server = serve(|config| config.limits.read = 5).await;
    let own = "127.0.0.9, ".repeat(20);
    for (place, hops) in [
        HERE.to_owned(),
        format!("198.51.100.1, {HERE}"),
        format!("198.51.100.2, {HERE}, 127.0.0.9, 127.0.0.8"),
        // The rest of a long list is ignored.
        format!("{}{HERE}", "198.51.100.3, ".repeat(99)),
        format!("garbage, {HERE}, {own}127.0.0.8"),
    ]
    .iter()
    .enumerate()
    {
        let answer = forwarded(&server, &[("X-Forwarded-For", hops)]).await;
        assert_eq!(answer.quota("viewer")["remaining"], 4 - place, "{hops}");
    }
    assert!(
        forwarded(&server, &[("X-Forwarded-For", HERE)])
            .await
            .is_refused()
    );
    let standard = format!("for=198.51.100.1, for=\"{HERE}:4711\";proto=https");
    assert!(
        forwarded(&server, &[("Forwarded", &standard)])
            .await
            .is_refused()
    );
    let lines = [
        ("X-Forwarded-For", "198.51.100.1"),
        ("X-Forwarded-For", HERE),
    ];
    assert!(forwarded(&server, &lines).await.is_refused());

    // Another client is not affected. After a hundred proxies, one of them counts as the client.
    assert!(
        !forwarded(&server, &[("X-Forwarded-For", THERE)])
            .await
            .is_refused()
    );
    let endless = format!("198.51.100.1{}", ", 127.0.0.7".repeat(99));
    for left in [4, 3] {
        let answer = forwarded(&server, &[("X-Forwarded-For", &endless)]).await;
        assert_eq!(answer.quota("viewer")["remaining"], left);
    }
    let proxy = forwarded(&server, &[("X-Forwarded-For", "127.0.0.7")]).await;
    assert_eq!(proxy.quota("viewer")["remaining"], 2);
}

#[tokio::test]
async fn conflicting_forwarding_headers_are_both_ignored() {
    let server = serve(|config| config.limits.read = 3).await;
    for (place, refused) in [false, false, false, true].into_iter().enumerate() {
        // A proxy that writes one of the headers may forward the other as the client sent it.
        let forged = format!("198.51.100.{place}");
        let standard = format!("for={forged}");
        let headers = [("X-Forwarded-For", HERE), ("Forwarded", &*standard)];
        assert_eq!(forwarded(&server, &headers).await.is_refused(), refused);
    }
    for (place, refused) in [true, true].into_iter().enumerate() {
        let forged = format!("198.51.100.{place}");
        let standard = format!("for={HERE}");
        let headers = [("X-Forwarded-For", &*forged), ("Forwarded", &*standard)];
        assert_eq!(forwarded(&server, &headers).await.is_refused(), refused);
    }
    let standard = format!("for={HERE}");
    let agreed = [("X-Forwarded-For", HERE), ("Forwarded", &*standard)];
    let answer = forwarded(&server, &agreed).await;
    assert_eq!(answer.quota("viewer")["remaining"], 2);
}

#[tokio::test]
async fn the_addresses_of_one_ipv6_network_share_a_bucket() {
    let server = serve(|config| config.limits.read = 3).await;
    for address in [
        "2001:db8:1:2::1",
        "2001:db8:1:2:ffff:ffff:ffff:ffff",
        "[2001:db8:1:2:dead::beef]:4711",
    ] {
        let answer = ask(&server, address, None, VIEWER).await;
        assert!(!answer.is_refused(), "{address}");
    }
    for address in ["2001:db8:1:2::4", "2001:0db8:0001:0002::"] {
        assert!(
            ask(&server, address, None, VIEWER).await.is_refused(),
            "{address}"
        );
    }
    assert!(
        !ask(&server, "2001:db8:1:3::1", None, VIEWER)
            .await
            .is_refused()
    );
    // An IPv4-mapped IPv6 address counts as the IPv4 address.
    assert_eq!(let_in(&server, HERE, None, VIEWER, 3).await, 3);
    assert!(
        ask(&server, &format!("::ffff:{HERE}"), None, VIEWER)
            .await
            .is_refused()
    );
}

/// Signs in from this address and returns the access token.
async fn sign_in(server: &TestServer, address: &str, email: &str) -> String {
    let login = format!(
        r#"mutation {{ login(input: {{email: "{email}", password: "{PASSWORD}"}}) {{ accessToken }} }}"#
    );
    let answer = ask(server, address, None, &login).await;
    let token = answer.body["data"]["login"]["accessToken"].as_str();
    token.expect("a token").to_owned()
}

#[tokio::test]
async fn a_user_has_one_quota_across_addresses_sessions_and_tokens() {
    let server = serve(|config| config.limits.read = 3).await;
    let first = sign_in(&server, "198.51.100.1", "demo@example.com").await;
    assert_eq!(let_in(&server, HERE, Some(&first), VIEWER, 4).await, 3);
    assert!(ask(&server, THERE, Some(&first), VIEWER).await.is_refused());

    let second = sign_in(&server, "198.51.100.2", "demo@example.com").await;
    assert!(ask(&server, HERE, Some(&second), VIEWER).await.is_refused());
    let logout = "mutation { logout(input: {}) { revokedTokens } }";
    let answer = ask(&server, HERE, Some(&first), logout).await;
    assert_eq!(answer.codes(), [""; 0]);
    let third = sign_in(&server, "198.51.100.3", "demo@example.com").await;
    let ticket = server.token("demo@example.com").await;
    for token in [&third, &ticket] {
        assert!(ask(&server, THERE, Some(token), VIEWER).await.is_refused());
    }
    // Neither the address nor another user at that address is charged.
    let other = server.token("guest@example.com").await;
    assert_eq!(let_in(&server, HERE, Some(&other), VIEWER, 4).await, 3);
    assert_eq!(let_in(&server, HERE, None, VIEWER, 4).await, 3);
    // The quota refills over time.
    server.pass(20);
    assert_eq!(let_in(&server, HERE, Some(&third), VIEWER, 2).await, 1);
}

#[tokio::test]
async fn an_invalid_token_is_charged_to_the_address() {
    let server = serve(|config| config.limits.read = 3).await;
    let token = server.token("demo@example.com").await;
    // The demo user's claims with an invalid signature.
    let signed = token.rsplit_once('.').expect("a signature").0;
    let forged = format!("{signed}.{}", "A".repeat(43));
    for bad in ["nonsense", &forged, "a.b.c"] {
        let answer = ask(&server, HERE, Some(bad), VIEWER).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    for bad in [Some("nonsense"), Some(&*forged), None] {
        assert!(ask(&server, HERE, bad, VIEWER).await.is_refused());
    }
    assert_eq!(let_in(&server, HERE, Some(&token), VIEWER, 4).await, 3);
    // A revoked token is charged to the address too.
    let revoked = sign_in(&server, "198.51.100.1", "guest@example.com").await;
    let logout = "mutation { logout(input: {}) { revokedTokens } }";
    ask(&server, HERE, Some(&revoked), logout).await;
    for left in [2, 1, 0] {
        let answer = ask(&server, "198.51.100.2", Some(&revoked), VIEWER).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.quota("viewer")["remaining"], left);
    }
    assert!(
        ask(&server, "198.51.100.2", Some(&revoked), VIEWER)
            .await
            .is_refused()
    );
    let guest = server.token("guest@example.com").await;
    assert_eq!(
        let_in(&server, "198.51.100.2", Some(&guest), VIEWER, 4).await,
        3
    );
    // An expired token is charged to the address too.
    server.jump(7_200);
    let answer = ask(&server, THERE, Some(&token), VIEWER).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.quota("viewer")["remaining"], 2);
}

#[tokio::test]
async fn attempts_on_an_account_from_elsewhere_do_not_keep_its_owner_from_signing_in() {
    let server = serve(|_| ()).await;
    // Five a minute from each of four networks, all on the account of the owner.
    for place in 0..4 {
        let address = format!("198.51.100.{place}");
        let guesses = format!("mutation {}", aliases(&attempt("demo@example.com"), 5));
        let answer = ask(&server, &address, None, &guesses).await;
        assert_eq!(answer.codes(), ["UNAUTHENTICATED"; 5]);
        assert!(ask(&server, &address, None, &guesses).await.is_refused());
    }
    assert!(!sign_in(&server, HERE, "demo@example.com").await.is_empty());
}

#[tokio::test]
async fn a_network_spends_its_sign_ins_on_any_account() {
    let server = serve(|_| ()).await;
    let attempts = [
        "ada@example.com",
        "ADA@example.com",
        " ada@Example.com ",
        "\\u0061da@example.com",
        "bob@example.com",
    ];
    for (place, email) in attempts.into_iter().enumerate() {
        let answer = ask(
            &server,
            HERE,
            None,
            &format!("mutation {{ {} }}", attempt(email)),
        )
        .await;
        assert_eq!(answer.codes(), ["UNAUTHENTICATED"], "{email}");
        assert_eq!(answer.quota("login")["remaining"], 4 - place, "{email}");
    }
    for email in ["ada@example.com", "eve@example.com"] {
        let query = format!("mutation {{ {} }}", attempt(email));
        assert!(
            ask(&server, HERE, None, &query).await.is_refused(),
            "{email}"
        );
    }
}

#[tokio::test]
async fn sign_ins_of_signed_in_users_are_also_charged_to_the_address() {
    let server = serve(|config| {
        config.limits.auth = 2;
        config.limits.write = PLENTY;
    })
    .await;
    let logout = "logout(input: {}) { revokedTokens }";
    for (place, email) in ["admin@example.com", "guest@example.com", "demo@example.com"]
        .into_iter()
        .enumerate()
    {
        let token = server.token(email).await;
        let login = attempt(&format!("{place}@example.com"));
        let query = format!("mutation {{ {login} {logout} }}");
        let answer = ask(&server, HERE, Some(&token), &query).await;
        assert_eq!(answer.is_refused(), place == 2, "{}", answer.body);
    }
    let query = format!(
        "mutation {}",
        aliases(
            "refreshSession(input: {refreshToken: \"x\"}) { accessToken }",
            2
        )
    );
    assert!(!ask(&server, HERE, None, &query).await.is_refused());
    assert!(ask(&server, HERE, None, &query).await.is_refused());
}
