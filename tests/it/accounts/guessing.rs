//! Password guessing: lockouts, and answers that do not reveal which accounts exist.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, join_all, select};
use futures_util::stream::FuturesUnordered;
use gathering::config::Config;
use gathering_entity::{lockout, user as users};
use reqwest::header::DATE;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::json;

use crate::accounts::audit::{entries_of, until_recorded};
use crate::support::account::{ADA, BOB, SIGNED_IN};
use crate::support::actor::{Actor, code, faults};
use crate::support::database::PASSWORD;
use crate::support::server::TestServer;

const UNKNOWN: &str = "unknown@example.com";
const LOGIN: &str = "mutation($input: LoginInput!) { login(input: $input) { accessToken } }";

/// The status, headers (without the date) and body of a sign-in, to compare answers.
async fn answer(visitor: &Actor, email: &str, password: &str) -> String {
    let input = json!({ "input": { "email": email, "password": password } });
    let visitor = visitor.named("the-same-for-all");
    let response = visitor.send(LOGIN, input).await;
    let mut headers = response.headers().clone();
    headers.remove(DATE);
    let status = response.status();
    let body = response.text().await.expect("a body");
    format!("{status} {headers:?} {body}")
}

/// Fails to sign in this many times and returns the last answer.
async fn fail(visitor: &Actor, email: &str, times: usize) -> String {
    let mut last = String::new();
    for _ in 0..times {
        last = answer(visitor, email, "a wrong password").await;
    }
    assert!(last.contains("UNAUTHENTICATED"), "{last}");
    last
}

fn is_in(answer: &str) -> bool {
    answer.contains(r#""accessToken":"ey"#)
}

#[tokio::test]
async fn wrong_password_unknown_address_and_lock_get_the_same_answer() {
    let server = TestServer::start().await;
    server.anonymous().register(ADA).await;
    let stranger = server.at_host(2);
    let wrong = fail(&stranger, ADA, 1).await;
    assert_eq!(fail(&stranger, UNKNOWN, 1).await, wrong);
    for impossible in [
        "",
        " ",
        "\0",
        "ada",
        &"x".repeat(300),
        &"\u{fdfa}".repeat(300_000),
    ] {
        assert_eq!(answer(&stranger, impossible, PASSWORD).await, wrong);
    }
    for impossible in ["", "\0", &"x".repeat(1_000_000)] {
        assert_eq!(answer(&server.at_host(3), ADA, impossible).await, wrong);
    }
    for email in [ADA, UNKNOWN] {
        assert_eq!(fail(&stranger, email, 4).await, wrong);
        // The lock is active, so the correct password is refused too.
        assert_eq!(answer(&stranger, email, PASSWORD).await, wrong);
        assert_eq!(fail(&stranger, email, 1).await, wrong);
    }
    // The user's own network is not locked out.
    assert!(is_in(&answer(&server.anonymous(), ADA, PASSWORD).await));

    let database = server.end().await;
    let of_ada = users::Entity::find().filter(users::Column::EmailKey.eq(ADA));
    let ada = of_ada
        .one(&database.connect().await)
        .await
        .expect("reads")
        .expect("a user")
        .id;
    let failed = entries_of(&database, "auth.login_failed").await;
    for target in [Some(ada), None] {
        let locked = failed.iter().filter(|entry| {
            entry.client_ip.as_deref() == Some("127.0.0.2")
                && entry.target_id == target
                && entry.details == json!({ "reason": "locked" })
        });
        assert!(locked.count() >= 2, "{failed:?}");
    }
    assert_eq!(entries_of(&database, "auth.locked").await.len(), 3);
}

#[tokio::test]
async fn a_lock_expires_and_lengthens_with_further_failures() {
    let server = TestServer::start().await;
    server.anonymous().register(ADA).await;
    let stranger = server.at_host(2);
    fail(&stranger, ADA, 4).await;
    for minutes in [1, 2, 4, 8, 15, 15] {
        fail(&stranger, ADA, 1).await;
        // Attempts during a lock do not extend it.
        fail(&stranger, ADA, 3).await;
        server.pass(minutes * 60 - 30);
        assert!(!is_in(&answer(&stranger, ADA, PASSWORD).await), "{minutes}");
        server.pass(31);
    }
    assert!(is_in(&answer(&stranger, ADA, PASSWORD).await));
    // A successful sign-in resets the counter.
    fail(&stranger, ADA, 4).await;
    assert!(is_in(&answer(&stranger, ADA, PASSWORD).await));
    fail(&stranger, ADA, 5).await;
    assert!(!is_in(&answer(&stranger, ADA, PASSWORD).await));
    server.pass(61);
    assert!(is_in(&answer(&stranger, ADA, PASSWORD).await));
}

#[tokio::test]
async fn failed_sign_ins_expire_after_a_day() {
    let server = TestServer::start().await;
    server.anonymous().register(ADA).await;
    let stranger = server.at_host(2);
    fail(&stranger, ADA, 4).await;
    server.pass(24 * 3600 + 1);
    fail(&stranger, ADA, 4).await;
    assert!(is_in(&answer(&stranger, ADA, PASSWORD).await));
}

#[tokio::test]
async fn a_network_that_fails_on_many_accounts_is_locked_for_new_sign_ins() {
    let server = TestServer::start().await;
    let stranger = server.at_host(2);
    server.anonymous().register(ADA).await;
    stranger.register(BOB).await;
    for n in 0..19 {
        fail(&stranger, &format!("guess{n}@example.com"), 1).await;
    }
    assert!(is_in(&answer(&stranger, ADA, PASSWORD).await));
    fail(&stranger, "guess19@example.com", 1).await;
    for email in ["demo@example.com", "guest@example.com"] {
        assert!(!is_in(&answer(&stranger, email, PASSWORD).await));
        assert!(is_in(&answer(&server.at_host(3), email, PASSWORD).await));
    }
    // Users who have signed in from this network before can still do so.
    for email in [ADA, BOB] {
        assert!(is_in(&answer(&stranger, email, PASSWORD).await));
    }
    server.pass(61);
    assert!(is_in(
        &answer(&stranger, "demo@example.com", PASSWORD).await
    ));
}

#[tokio::test]
async fn an_account_attacked_from_many_networks_is_locked_except_for_its_owner() {
    let server = TestServer::start().await;
    let owner = server.anonymous();
    owner.register(ADA).await;
    for host in 10..34 {
        fail(&server.at_host(host), ADA, 1).await;
    }
    let fresh = server.at_host(99);
    fail(&fresh, ADA, 1).await;
    assert!(!is_in(&answer(&server.at_host(100), ADA, PASSWORD).await));
    // Other accounts are not affected.
    assert!(is_in(&answer(&fresh, "demo@example.com", PASSWORD).await));
    assert!(is_in(&answer(&owner, ADA, PASSWORD).await));
    assert!(is_in(&answer(&server.at_host(100), ADA, PASSWORD).await));
}

#[tokio::test]
async fn the_known_networks_of_an_account_are_those_of_its_latest_sign_ins() {
    let server = TestServer::start().await;
    server.anonymous().register(ADA).await;
    for host in 10..31 {
        server.pass(1);
        assert!(is_in(&answer(&server.at_host(host), ADA, PASSWORD).await));
    }
    for host in 40..65 {
        fail(&server.at_host(host), ADA, 1).await;
    }
    for (host, is_known) in [(1, false), (10, false), (30, true)] {
        let visitor = server.at_host(host);
        assert_eq!(
            is_in(&answer(&visitor, ADA, PASSWORD).await),
            is_known,
            "{host}"
        );
    }
}

#[tokio::test]
async fn untrusted_forwarding_headers_do_not_change_the_client_address() {
    let server = TestServer::start().await;
    let stranger = server.at_host(2);
    server.anonymous().register(ADA).await;
    fail(&stranger, ADA, 5).await;
    for name in ["x-forwarded-for", "forwarded", "x-real-ip"] {
        let body = json!({ "query": LOGIN, "variables": { "input": { "email": ADA, "password": PASSWORD } } });
        let request = stranger
            .post("/graphql")
            .header(name, "127.0.0.1")
            .json(&body);
        let response = request.send().await.expect("an answer");
        assert!(!is_in(&response.text().await.expect("a body")), "{name}");
    }
}

#[tokio::test]
async fn five_of_a_hundred_concurrent_guesses_are_checked() {
    let server =
        TestServer::with(|config| config.graphql.limits.timeout = Duration::from_mins(10)).await;
    server.anonymous().register(ADA).await;
    let stranger = server.at_host(2);
    let guesses = (0..100).map(async |n| {
        let guess = answer(&stranger, ADA, &format!("guess number {n}")).await;
        assert!(guess.contains("UNAUTHENTICATED"), "{guess}");
    });
    join_all(guesses).await;
    let database = server.end().await;
    let failed = entries_of(&database, "auth.login_failed").await;
    let is_locked = |entry: &&gathering_entity::audit::Model| entry.details["reason"] == "locked";
    assert_eq!(failed.len(), 100);
    assert_eq!(failed.iter().filter(is_locked).count(), 95);
    assert_eq!(entries_of(&database, "auth.locked").await.len(), 1);
}

#[tokio::test]
async fn a_second_instance_allows_at_most_one_more_guess() {
    let patient = |config: &mut Config| config.graphql.limits.timeout = Duration::from_mins(10);
    let one = TestServer::with(patient).await;
    let two = one.beside(patient).await;
    one.anonymous().register(ADA).await;
    let guesses = [&one, &two].map(|server| async move {
        let stranger = server.at_host(2);
        join_all((0..20).map(|_| fail(&stranger, ADA, 1))).await
    });
    join_all(guesses).await;
    one.end().await;
    let failed = entries_of(&two.end().await, "auth.login_failed").await;
    let checked = failed.iter().filter(|entry| entry.details == json!({}));
    assert_eq!(failed.len(), 40);
    assert!((5..=6).contains(&checked.count()), "{failed:?}");
}

#[tokio::test]
async fn a_flood_of_guesses_does_not_delay_the_owner() {
    let server =
        TestServer::with(|config| config.graphql.limits.timeout = Duration::from_mins(10)).await;
    let owner = server.anonymous();
    owner.register(ADA).await;
    let stranger = server.at_host(2);
    let mut flood: FuturesUnordered<_> = (0..100)
        .map(|_| answer(&stranger, ADA, "a wrong password"))
        .collect();
    for _ in 0..10 {
        flood.next().await.expect("an answer");
    }
    let mut signing_in = pin!(answer(&owner, ADA, PASSWORD));
    let mut before = 0;
    let signed_in = loop {
        match select(&mut signing_in, flood.next()).await {
            Either::Left((answer, _)) => break answer,
            Either::Right((Some(_), _)) => before += 1,
            Either::Right((None, signing_in)) => break signing_in.await,
        }
    };
    assert!(is_in(&signed_in));
    assert!(before < 45, "{before} were answered before the owner");
}

#[tokio::test]
async fn guesses_in_one_document_are_counted_separately() {
    let server = TestServer::start().await;
    server.anonymous().register(ADA).await;
    let stranger = server.at_host(2);
    let guesses: Vec<_> = (0..6)
        .map(|n| {
            let password = if n == 5 { PASSWORD } else { "a wrong password" };
            format!("g{n}: login(input: {{ email: \"{ADA}\", password: \"{password}\" }}) {{ accessToken }} ")
        })
        .collect();
    let answer = stranger
        .answer(&format!("mutation {{ {} }}", guesses.concat()), json!({}))
        .await;
    assert!(!answer.to_string().contains("\"ey"), "{answer}");
    assert!(!is_in(&self::answer(&stranger, ADA, PASSWORD).await));
}

#[tokio::test]
async fn a_wrong_current_password_counts_as_a_guess() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let change = async |current: &str| {
        let input = json!({ "currentPassword": current, "newPassword": "another password" });
        let answer = visitor
            .with(&ada.access)
            .mutate("changePassword", SIGNED_IN, input)
            .await;
        assert_eq!(
            faults(&answer["data"]["changePassword"]),
            ["INVALID currentPassword"]
        );
    };
    for _ in 0..5 {
        change("a wrong password").await;
    }
    change(PASSWORD).await;
    assert!(!is_in(&answer(&visitor, ADA, PASSWORD).await));
    server.pass(61);
    assert!(is_in(&answer(&visitor, ADA, PASSWORD).await));
}

#[tokio::test]
async fn a_failed_sign_in_takes_the_same_statements_for_every_address() {
    let server = TestServer::start().await;
    server.anonymous().register(ADA).await;
    let db = server.database().connect().await;
    until_recorded(&db, "auth.registered", 1).await;
    let mut host = 2;
    let mut seen = 0;
    let mut taken = async |emails: [&str; 6]| {
        // Each round uses a new network: four failures, a fifth that locks, and one during the lock.
        host += 1;
        let visitor = server.at_host(host);
        let mut statements = Vec::new();
        for email in emails {
            let before = server.settled().await;
            fail(&visitor, email, 1).await;
            seen += 1;
            until_recorded(&db, "auth.login_failed", seen).await;
            statements.push(server.settled().await - before);
        }
        // The fifth failure writes two audit log entries, in one statement or in two, so its count varies.
        statements.remove(4);
        statements
    };
    let known = taken([ADA; 6]).await;
    let unknown = taken([UNKNOWN; 6]).await;
    assert_eq!(known, unknown);
    assert!(known.iter().all(|statements| *statements > 0));
}

#[tokio::test]
async fn lockout_rows_hold_hashes_instead_of_addresses() {
    let server = TestServer::start().await;
    fail(&server.at_host(2), "my password by mistake", 1).await;
    let db = server.end().await;
    let db = db.connect().await;
    let rows = lockout::Entity::find().all(&db).await.expect("reads");
    assert_eq!(rows.len(), 3);
    assert!(
        rows.iter()
            .all(|row| row.key.len() == 64 && row.key.bytes().all(|byte| byte.is_ascii_hexdigit()))
    );
}

#[tokio::test]
async fn deactivation_is_reported_only_with_the_correct_password() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    let db = server.database().connect().await;
    let disable = users::Entity::update_many()
        .col_expr(
            users::Column::IsActive,
            sea_orm::sea_query::Expr::value(false),
        )
        .filter(users::Column::EmailKey.eq(ADA));
    disable.exec(&db).await.expect("writes");
    assert_eq!(
        fail(&visitor, ADA, 1).await,
        fail(&visitor, UNKNOWN, 1).await
    );
    assert_eq!(code(&visitor.try_login(ADA, PASSWORD).await), "FORBIDDEN");
}
