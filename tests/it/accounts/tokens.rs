//! Access tokens: lifetime, signature, claims, and revocation.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::StatusCode;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::accounts::audit::entries_of;
use crate::support::account::{
    ADA, BOB, CallerResult, SIGNED_IN, Tokens, tokens, unauthenticated, user,
};
use crate::support::actor::code;
use crate::support::database::{Database, PASSWORD};
use crate::support::server::{SIGNING_KEY, TestServer};
use crate::support::wait::until;

/// The claims of a token.
pub(crate) fn claims(token: &str) -> Value {
    part(token, 1)
}

/// The id (`kid`) of the key that signed a token.
pub(crate) fn key_of(token: &str) -> Value {
    part(token, 0)["kid"].clone()
}

fn part(token: &str, place: usize) -> Value {
    let part = token.split('.').nth(place).expect("three parts");
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn encoded(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

fn kid(key: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(key)[..9])
}

fn header(key: &str) -> Value {
    json!({ "alg": "HS256", "typ": "at+jwt", "kid": kid(key) })
}

/// A token with this header and these claims, signed with HMAC-SHA-256.
fn forge(header: &Value, claims: &Value, key: &str) -> String {
    let text = format!("{}.{}", encoded(header), encoded(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length");
    mac.update(text.as_bytes());
    let signature = BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    format!("{text}.{signature}")
}

fn with(object: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut object = object.clone();
    object[name] = value.into();
    object
}

const RENAME: &str = r#"mutation { updateProfile(input: { name: "Mallory" }) { user { name } } }"#;

const OTHER_KEY: &str = "another key of the tests: 0123456789 ABCDEFGHIJ";

type Forgeries = Vec<(&'static str, String)>;

/// Tokens with a header that the server does not issue.
fn by_header(genuine: &Value) -> Forgeries {
    let (ours, theirs) = (header(SIGNING_KEY), header(OTHER_KEY));
    let signed = |header: &Value, key| forge(header, genuine, key);
    let unsigned = |header: &Value| format!("{}.{}.", encoded(header), encoded(genuine));
    let ours_with = |name, value| with(&ours, name, value);
    let none = ours_with("alg", "none");
    let brought = json!({ "kty": "oct", "k": BASE64_URL_SAFE_NO_PAD.encode(OTHER_KEY) });
    let nameless = json!({ "alg": "HS256", "typ": "at+jwt" });
    vec![
        ("no algorithm", unsigned(&none)),
        (
            "no algorithm, spelled otherwise",
            unsigned(&ours_with("alg", "nOnE")),
        ),
        ("no algorithm, but a signature", signed(&none, SIGNING_KEY)),
        (
            "another algorithm",
            signed(&ours_with("alg", "HS384"), SIGNING_KEY),
        ),
        (
            "one with public keys",
            signed(&ours_with("alg", "RS256"), SIGNING_KEY),
        ),
        (
            "another type",
            signed(&ours_with("typ", "JWT"), SIGNING_KEY),
        ),
        ("another key under our name", signed(&ours, OTHER_KEY)),
        ("another key under its name", signed(&theirs, OTHER_KEY)),
        (
            "another key, brought along",
            signed(&with(&theirs, "jwk", brought), OTHER_KEY),
        ),
        ("our key under another name", signed(&theirs, SIGNING_KEY)),
        ("our key without a name", signed(&nameless, SIGNING_KEY)),
        ("an empty key", signed(&ours_with("kid", ""), "")),
        (
            "a long header",
            signed(&with(&ours, "x", "x".repeat(20_000)), SIGNING_KEY),
        ),
    ]
}

/// Tokens signed with the server's key, with claims that the server does not issue.
fn by_claims(genuine: &Value) -> Forgeries {
    let sign = |claims: &Value| forge(&header(SIGNING_KEY), claims, SIGNING_KEY);
    let now = genuine["iat"].as_i64().expect("a time");
    let good = |from: i64, until: i64| {
        let claims = with(genuine, "iat", now + from);
        sign(&with(&claims, "exp", now + until))
    };
    let but = |name, value: Value| sign(&with(genuine, name, value));
    let mut forged = vec![
        ("a time that has not come", good(3600, 7200)),
        ("a time that is over", good(-7200, -3600)),
        ("a time that ends as it begins", good(0, 0)),
        ("another audience", but("aud", json!("elsewhere"))),
        ("another issuer", but("iss", json!("elsewhere"))),
        ("an earlier version", but("ver", json!(-1))),
        ("a later version", but("ver", json!(1))),
        (
            "unknown",
            but("sub", json!("01890a5d-ac96-774b-bcce-b302099a8057")),
        ),
        ("no user at all", but("sub", json!("' OR 1=1 --"))),
    ];
    for missing in ["iss", "aud", "sub", "jti", "sid", "iat", "exp", "ver"] {
        let mut claims = genuine.clone();
        claims.as_object_mut().expect("an object").remove(missing);
        forged.push((missing, sign(&claims)));
    }
    forged
}

/// Truncated tokens, tokens combined from those of Ada and Bob, and strings that are not tokens.
fn by_text(ada: &Tokens, bob: &Tokens) -> Forgeries {
    let whole = &ada.access;
    let (unsigned, signature) = whole.rsplit_once('.').expect("three parts");
    let (head, _) = whole.split_once('.').expect("three parts");
    let (_, of_bob) = bob.access.rsplit_once('.').expect("three parts");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let claims_of_bob = encoded(&claims(&bob.access));
    vec![
        ("a cut signature", whole[..whole.len() - 1].to_owned()),
        ("an empty signature", format!("{unsigned}.")),
        ("no signature", unsigned.to_owned()),
        (
            "another signature",
            format!("{unsigned}.{other}{}", &signature[1..]),
        ),
        ("Bob's signature", format!("{unsigned}.{of_bob}")),
        (
            "Bob's claims",
            format!("{head}.{claims_of_bob}.{signature}"),
        ),
        ("two tokens", format!("{whole}.{whole}")),
        ("a long token", format!("{whole}{}", "A".repeat(50_000))),
        ("a refresh token", ada.refresh.clone()),
        ("a word", "letmein".to_owned()),
        ("dots", "..".to_owned()),
        ("empty objects", "e30.e30.e30".to_owned()),
    ]
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let bob = visitor.register(BOB).await;
    let genuine = claims(&ada.access);

    // A token forged with the correct key is accepted, so each other forgery is refused for the part that differs.
    for (tokens, email) in [(&ada, ADA), (&bob, BOB)] {
        let forged = forge(&header(SIGNING_KEY), &claims(&tokens.access), SIGNING_KEY);
        assert_eq!(visitor.with(&forged).who().await, user(email));
    }
    let forged = [
        by_header(&genuine),
        by_claims(&genuine),
        by_text(&ada, &bob),
    ];
    for (what, token) in forged.concat() {
        let response = visitor.with(&token).send(RENAME, json!({})).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{what}");
        let challenge = response.headers()["www-authenticate"]
            .to_str()
            .expect("text");
        assert!(challenge.starts_with("Bearer "), "{challenge}");
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(code(&answer), "UNAUTHENTICATED", "{what}");
        assert_eq!(answer.get("data"), None, "{what}: {answer}");
    }
    for tokens in [&ada, &bob] {
        let answer = visitor
            .with(&tokens.access)
            .answer("{ viewer { name } }", json!({}))
            .await;
        assert_eq!(answer["data"]["viewer"]["name"], "Test User");
    }
    let changes = entries_of(&server.end().await, "user.changed").await;
    assert!(changes.is_empty());
}

#[tokio::test]
async fn malformed_authorization_headers_are_refused() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let post = || {
        visitor
            .post("/graphql")
            .json(&json!({ "query": "{ viewer { email } }" }))
    };
    let bytes = |bytes: &[u8]| reqwest::header::HeaderValue::from_bytes(bytes).expect("a value");
    for value in [
        bytes(b""),
        bytes(b"Bearer"),
        bytes(b"Bearer  "),
        bytes(b"Basic YWRhOmFkYQ=="),
        bytes(b"Bearer \xff\xfe"),
        bytes(ada.access.as_bytes()),
        bytes(format!("Bearer {0} {0}", ada.access).as_bytes()),
        bytes(format!("Bearer, {}", ada.access).as_bytes()),
    ] {
        let response = post()
            .header("authorization", &value)
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{value:?}");
    }
    let twice = post()
        .bearer_auth(&ada.access)
        .bearer_auth("x")
        .send()
        .await
        .expect("an answer");
    assert_eq!(twice.status(), StatusCode::UNAUTHORIZED);

    let lenient = post().header("authorization", format!("bearer   {} ", ada.access));
    let answer: Value = lenient
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    assert_eq!(answer["data"]["viewer"]["email"], ADA);
    // A token in the URL is ignored, because URLs end up in logs.
    let path = format!("/graphql?access_token={}", ada.access);
    let body = json!({ "query": "{ viewer { email } }" });
    let answer = visitor
        .post(&path)
        .json(&body)
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        answer.json::<Value>().await.expect("JSON")["data"]["viewer"],
        Value::Null
    );
}

#[tokio::test]
async fn only_sign_in_mutations_accept_an_invalid_token() {
    let server = TestServer::with(|config| config.graphql.batch = 2).await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    let login =
        format!(r#"login(input: {{ email: "{ADA}", password: "{PASSWORD}" }}) {{ accessToken }}"#);
    let rename = r#"updateProfile(input: { name: "Mallory" }) { user { name } }"#;
    for (query, is_refused) in [
        (format!("mutation {{ {login} }}"), false),
        (
            format!("mutation {{ __typename a: {login} b: {login} }}"),
            false,
        ),
        (format!("mutation {{ {login} {rename} }}"), true),
        (format!("mutation {{ {rename} {login} }}"), true),
        (format!("mutation {{ login: {rename} }}"), true),
        (
            format!("mutation {{ ...F }} fragment F on Mutation {{ {rename} }}"),
            true,
        ),
        (
            format!("mutation {{ ... on Mutation {{ {login} }} }}"),
            false,
        ),
        ("{ __typename }".to_owned(), true),
        ("query login { viewer { email } }".to_owned(), true),
    ] {
        let response = visitor.with("not a token").send(&query, json!({})).await;
        let status = response.status();
        let answer: Value = response.json().await.expect("JSON");
        let has_data = answer["data"].is_object();
        assert_eq!(has_data, !is_refused, "{query}: {answer}");
        assert_eq!(status == StatusCode::UNAUTHORIZED, is_refused, "{query}");
    }

    // Each entry of a batch is checked separately.
    let batch = json!([{ "query": format!("mutation {{ {login} }}") }, { "query": "{ viewer { email } }" }]);
    let request = visitor.post("/graphql").bearer_auth("x").json(&batch);
    let answers: Value = request
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    assert!(
        answers[0]["data"]["login"]["accessToken"].is_string(),
        "{answers}"
    );
    assert_eq!(code(&answers[1]), "UNAUTHENTICATED");
    assert_eq!(answers[1].get("data"), None);
}

#[tokio::test]
async fn a_token_expires_after_its_lifetime() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    server.pass(14 * 60);
    assert_eq!(visitor.with(&ada.access).who().await, user(ADA));
    server.pass(61);
    assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());

    // A refresh and a sign-in succeed even if the request carries the expired token.
    let input = json!({ "refreshToken": ada.refresh });
    let answer = visitor
        .with(&ada.access)
        .mutate("refreshSession", SIGNED_IN, input)
        .await;
    let next = tokens(&answer["data"]["refreshSession"]);
    assert_eq!(visitor.with(&next.access).who().await, user(ADA));
    let input = json!({ "email": ADA, "password": PASSWORD });
    let answer = visitor
        .with(&ada.access)
        .mutate("login", SIGNED_IN, input)
        .await;
    tokens(&answer["data"]["login"]);
}

#[tokio::test]
async fn a_token_is_refused_before_its_issue_time() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let genuine = claims(&visitor.register(ADA).await.access);
    let now = genuine["iat"].as_i64().expect("a time");
    let future = with(&with(&genuine, "iat", now + 3600), "exp", now + 7200);
    let token = forge(&header(SIGNING_KEY), &future, SIGNING_KEY);
    assert_eq!(visitor.with(&token).who().await, unauthenticated());
    server.pass(3600);
    assert_eq!(visitor.with(&token).who().await, user(ADA));
}

#[tokio::test]
async fn a_token_is_valid_for_one_issuer_and_audience() {
    let one = TestServer::start().await;
    let ada = one.anonymous().register(ADA).await;
    let same = one.beside(|_| ()).await;
    assert_eq!(same.anonymous().with(&ada.access).who().await, user(ADA));
    let other = one
        .beside(|config| config.auth.policy.audience = "elsewhere".to_owned())
        .await;
    assert_eq!(
        other.anonymous().with(&ada.access).who().await,
        unauthenticated()
    );
    let other = one
        .beside(|config| config.auth.policy.issuer = "elsewhere".to_owned())
        .await;
    assert_eq!(
        other.anonymous().with(&ada.access).who().await,
        unauthenticated()
    );
}

/// Whether a token was refused because of a server error.
fn is_ours(caller: &CallerResult) -> bool {
    caller.as_ref().is_err_and(|(status, code)| {
        status.is_server_error() && ["UNAVAILABLE", "INTERNAL"].contains(&code.as_str())
    })
}

#[tokio::test]
async fn tokens_are_refused_while_the_database_cannot_check_them() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let ended = visitor.login(ADA, PASSWORD).await;
    assert_eq!(visitor.with(&ada.access).who().await, user(ADA));
    visitor
        .with(&ended.access)
        .mutate("logout", "revokedTokens", json!({}))
        .await;
    let db = server.database().connect().await;
    for table in ["revoked_tokens", "users"] {
        let rename = async |from: &str, to: &str| {
            let statement = format!("ALTER TABLE {from} RENAME TO {to}");
            db.execute_unprepared(&statement).await.expect("renames");
        };
        let away = format!("{table}_put_away");
        rename(table, &away).await;
        // The credential was read a moment ago.
        server.jump(1);
        let caller = visitor.with(&ada.access).who().await;
        assert!(is_ours(&caller), "{table}: {caller:?}");
        let answer = visitor.with(&ada.access).answer(RENAME, json!({})).await;
        assert_eq!(answer.get("data"), None, "{answer}");
        // A token that is known to be revoked is still refused as such.
        assert_eq!(visitor.with(&ended.access).who().await, unauthenticated());
        rename(&away, table).await;
        assert_eq!(visitor.with(&ada.access).who().await, user(ADA));
    }
    let answer = visitor
        .with(&ada.access)
        .answer("{ viewer { name } }", json!({}))
        .await;
    assert_eq!(answer["data"]["viewer"]["name"], "Test User");
}

#[tokio::test]
async fn tokens_are_refused_while_postgres_is_unavailable() {
    let Some(database) = Database::seeded().await.only_on_postgres() else {
        return;
    };
    // Another database of the same server, to whose connections nothing happens.
    let beside = Database::bare().await;
    let server = TestServer::on(database, |config| {
        config.database.acquire_timeout = Duration::from_millis(200);
    })
    .await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let name = server
        .database()
        .url()
        .rsplit_once('/')
        .expect("a name")
        .1
        .to_owned();
    let db = beside.connect().await;
    let allow = async |allowed: bool| {
        let statement = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}");
        db.execute_unprepared(&statement).await.expect("is allowed");
    };

    allow(false).await;
    let cut =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    db.execute_unprepared(&cut).await.expect("cuts");
    for _ in 0..3 {
        let caller = visitor.with(&ada.access).who().await;
        assert!(is_ours(&caller), "{caller:?}");
    }
    assert!(["UNAVAILABLE", "INTERNAL"].contains(&code(&visitor.try_login(ADA, PASSWORD).await)));

    allow(true).await;
    until("an answer with the database", async || {
        visitor.with(&ada.access).who().await == user(ADA)
    })
    .await;
}

#[tokio::test]
async fn a_revocation_lasts_as_long_as_the_revoked_token() {
    let server = TestServer::on(Database::seeded().await, |_| ()).await;
    let visitor = server.anonymous();
    // The lifetime of this token is an hour, longer than that of a token from a sign-in.
    let ticket = server.token("demo@example.com").await;
    let ada = visitor.register(ADA).await;
    for token in [&ticket, &ada.access] {
        visitor
            .with(token)
            .mutate("logout", "revokedTokens", json!({}))
            .await;
    }
    server.pass(50 * 60);
    super::audit::purge(server.database(), Duration::from_mins(50)).await;
    // A new instance, which has not cached the revocation.
    let other = server.beside(|_| ()).await;
    assert_eq!(
        other.anonymous().with(&ticket).who().await,
        unauthenticated()
    );
    let message = visitor
        .with(&ticket)
        .answer("{ __typename }", json!({}))
        .await;
    assert!(
        message["errors"][0]["message"]
            .as_str()
            .expect("text")
            .contains("revoked")
    );
}

#[tokio::test]
async fn a_purge_by_an_instance_with_a_fast_clock_keeps_revocations() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    visitor
        .with(&ada.access)
        .mutate("logout", "revokedTokens", json!({}))
        .await;
    super::audit::purge(server.database(), Duration::from_hours(20)).await;
    // A new instance, which has not cached the revocation.
    let other = server.beside(|_| ()).await;
    assert_eq!(
        other.anonymous().with(&ada.access).who().await,
        unauthenticated()
    );
}

#[tokio::test]
async fn a_shorter_lifetime_does_not_shorten_older_revocations() {
    let server =
        TestServer::with(|config| config.auth.policy.access_lifetime = Duration::from_hours(1))
            .await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let session = visitor.with(&ada.access).session().await;
    // The lifetime is reduced to a minute, and then another session of the user ends the first one.
    let restarted = server
        .beside(|config| config.auth.policy.access_lifetime = Duration::from_mins(1))
        .await;
    let there = restarted.anonymous();
    let other = there.login(ADA, PASSWORD).await;
    let input = json!({ "sessionId": session });
    there
        .with(&other.access)
        .mutate("revokeSession", "revokedSessionId", input)
        .await;
    server.pass(50 * 60);
    super::audit::purge(server.database(), Duration::from_mins(50)).await;
    let fresh = server.beside(|_| ()).await;
    assert_eq!(
        fresh.anonymous().with(&ada.access).who().await,
        unauthenticated()
    );
}
