//! New passwords by mail: the tokens, their mails, and what a new password ends.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;
use gathering::config::{Config, Mode};
use gathering_entity::{mail, user as users};
use reqwest::header::DATE;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::accounts::audit::entries_of;
use crate::support::account::{ADA, BOB, unauthenticated, user};
use crate::support::actor::{ADMIN, Actor, OWNER, code, faults};
use crate::support::counted::CountedGraph;
use crate::support::database::PASSWORD;
use crate::support::events::{EVENTS, Socket};
use crate::support::program::{Running, gathering};
use crate::support::server::TestServer;
use crate::support::smtp::{MailServer, Received, token_in};
use crate::support::wait::{until, within};

pub(crate) const RESET: &str = "Set a new password";
pub(crate) const VERIFY: &str = "Verify your e-mail address";

pub(crate) const ACCEPTED: &str = "accepted userErrors { field code message }";

pub(crate) const NEW: &str = "a new password";

impl Actor {
    /// The complete response to a request for a new password.
    pub(crate) async fn request_reset(&self, email: &str) -> Value {
        let input = json!({ "email": email });
        self.mutate("requestPasswordReset", ACCEPTED, input).await
    }

    /// The complete response to a new password with a token.
    pub(crate) async fn reset(&self, token: &str, password: &str) -> Value {
        let input = json!({ "token": token, "newPassword": password });
        self.mutate("resetPassword", ACCEPTED, input).await
    }

    /// The complete response to a token that verifies an address.
    pub(crate) async fn verify(&self, token: &str) -> Value {
        let input = json!({ "token": token });
        self.mutate("verifyEmail", ACCEPTED, input).await
    }
}

/// Fails unless a mutation was accepted.
#[track_caller]
pub(crate) fn accepted(answer: &Value, mutation: &str) {
    let payload = &answer["data"][mutation];
    assert_eq!(
        *payload,
        json!({ "accepted": true, "userErrors": [] }),
        "{answer}"
    );
}

/// A server that sends mails, and the mail server.
pub(crate) async fn serve() -> (TestServer, MailServer) {
    let mails = MailServer::start().await;
    let server = TestServer::with(|config| mails.configure(config)).await;
    (server, mails)
}

/// The mails in the queue that are to be sent.
pub(crate) async fn waiting(db: &DatabaseConnection) -> u64 {
    let waiting = mail::Entity::find().filter(mail::Column::DueAt.is_not_null());
    waiting.count(db).await.expect("reads")
}

/// Waits until every mail was sent.
pub(crate) async fn until_sent(db: &DatabaseConnection) {
    until("an empty queue of mails", async || waiting(db).await == 0).await;
}

#[tokio::test]
async fn a_token_from_a_mail_sets_a_new_password_and_ends_every_session() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let input = json!({ "name": "A key", "scopes": ["READ"] });
    let owner = visitor.with(&ada.access);
    let key = owner.mutate("createApiKey", "secret", input).await;
    let key = key["data"]["createApiKey"]["secret"].clone();
    let key = visitor.with(key.as_str().expect("a key"));
    let mut socket = Socket::subscribed(&server, &ada.access, EVENTS).await;
    let stranger = server.at_host(2);
    for _ in 0..5 {
        stranger.try_login(ADA, "a wrong password").await;
    }

    accepted(&stranger.request_reset(ADA).await, "requestPasswordReset");
    let token = mails.token_for(ADA, RESET).await;
    assert_eq!(visitor.with(&ada.access).who().await, user(ADA));
    let short = stranger.reset(&token, "short").await;
    assert_eq!(
        faults(&short["data"]["resetPassword"]),
        ["TOO_SHORT newPassword"]
    );
    accepted(&stranger.reset(&token, NEW).await, "resetPassword");

    assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());
    assert_eq!(
        code(&visitor.try_refresh(&ada.refresh).await),
        "UNAUTHENTICATED"
    );
    let ended = socket.skip_to("the end of a stream", |message| message["type"] == "error");
    let ended = ended.await;
    let ended = &ended["payload"][0]["extensions"]["code"];
    assert_eq!(ended, "UNAUTHENTICATED");
    // The address was unverified, so another person may have created the key.
    assert_eq!(key.who().await, unauthenticated());
    // The lock is cleared.
    let now = stranger.login(ADA, NEW).await;
    assert_eq!(
        code(&visitor.try_login(ADA, PASSWORD).await),
        "UNAUTHENTICATED"
    );
    let query = "{ viewer { emailVerifiedAt } }";
    let viewer = visitor.with(&now.access).ask(query, json!({})).await;
    assert!(viewer["viewer"]["emailVerifiedAt"].is_string(), "{viewer}");

    let database = server.end().await;
    for action in ["auth.password_reset_requested", "auth.password_reset"] {
        let entries = entries_of(&database, action).await;
        assert_eq!(entries.len(), 1, "{action}");
        assert!(entries[0].target_id.is_some());
        assert_eq!(entries[0].details, json!({}));
    }
    let entries = entries_of(&database, "api_key.revoked").await;
    assert_eq!(entries.len(), 1);
}

#[tokio::test]
async fn the_api_keys_of_a_verified_user_stay_valid_after_a_reset() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let token = mails.token_for(ADA, VERIFY).await;
    accepted(&visitor.verify(&token).await, "verifyEmail");
    let input = json!({ "name": "A key", "scopes": ["READ"] });
    let owner = visitor.with(&ada.access);
    let key = owner.mutate("createApiKey", "secret", input).await;
    let key = &key["data"]["createApiKey"]["secret"];
    let key = visitor.with(key.as_str().expect("a key"));
    visitor.request_reset(ADA).await;
    let token = mails.token_for(ADA, RESET).await;
    accepted(&visitor.reset(&token, NEW).await, "resetPassword");
    assert_eq!(key.who().await, user(ADA));
}

#[tokio::test]
async fn a_token_sent_to_another_address_than_the_users_is_refused() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    visitor.request_reset(ADA).await;
    let token = mails.token_for(ADA, RESET).await;
    let db = server.database().connect().await;
    users::Entity::update_many()
        .col_expr(users::Column::Email, Expr::value(BOB))
        .col_expr(users::Column::EmailKey, Expr::value(BOB))
        .filter(users::Column::EmailKey.eq(ADA))
        .exec(&db)
        .await
        .expect("writes");
    assert_eq!(code(&visitor.reset(&token, NEW).await), "UNAUTHENTICATED");
    visitor.login(BOB, PASSWORD).await;
}

#[tokio::test]
async fn a_token_works_once_and_only_until_another_is_requested() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    visitor.request_reset(ADA).await;
    let first = mails.token_for(ADA, RESET).await;
    visitor.request_reset(ADA).await;
    // The mails: the verification, and two tokens for a new password.
    let second = mails.nth_mail(ADA, 3).await.token();
    assert_ne!(first, second);
    let refused = visitor.reset(&first, NEW).await;
    assert_eq!(code(&refused), "UNAUTHENTICATED");
    // A request of another user changes nothing.
    visitor.register(BOB).await;
    visitor.request_reset(BOB).await;
    accepted(&visitor.reset(&second, NEW).await, "resetPassword");
    let again = visitor.reset(&second, "another new password").await;
    let unknown = visitor.reset(&format!("gtr_{}", "0".repeat(64)), NEW).await;
    for other in [again, unknown, visitor.reset("", NEW).await] {
        assert_eq!(
            other["errors"][0]["message"],
            refused["errors"][0]["message"]
        );
        assert_eq!(code(&other), "UNAUTHENTICATED");
        assert!(other["data"].is_null(), "{other}");
    }
    visitor.login(ADA, NEW).await;
    let database = server.end().await;
    let refused = entries_of(&database, "auth.token_rejected").await;
    assert!(!refused.is_empty());
    for entry in &refused {
        assert_eq!(entry.details["reason"], "unusable token from a mail");
    }
}

#[tokio::test]
async fn a_token_ends_with_its_time_with_another_new_password_and_with_its_account() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let db = server.database().connect().await;
    let mut received = 1;
    let mut token = async || {
        visitor.request_reset(ADA).await;
        received += 1;
        mails.nth_mail(ADA, received).await.token()
    };
    let late = token().await;
    let changed = token().await;
    let input = json!({ "currentPassword": PASSWORD, "newPassword": NEW });
    let ada = visitor.with(&ada.access);
    let answer = ada.mutate("changePassword", "accessToken", input).await;
    assert!(
        answer["data"]["changePassword"]["accessToken"].is_string(),
        "{answer}"
    );
    assert_eq!(code(&visitor.reset(&changed, NEW).await), "UNAUTHENTICATED");
    let deactivated = token().await;
    let admin = server.actor(ADMIN).await;
    let id = server.actor(ADA).await.id().await;
    let activate = async |is_active: bool| {
        let input = json!({ "userId": id, "isActive": is_active });
        let answer = admin.mutate("updateUser", "user { isActive }", input).await;
        assert_eq!(answer["data"]["updateUser"]["user"]["isActive"], is_active);
    };
    activate(false).await;
    assert_eq!(
        code(&visitor.reset(&deactivated, NEW).await),
        "UNAUTHENTICATED"
    );
    activate(true).await;
    assert_eq!(
        code(&visitor.reset(&deactivated, NEW).await),
        "UNAUTHENTICATED"
    );
    assert_eq!(code(&visitor.reset(&late, NEW).await), "UNAUTHENTICATED");

    server.pass(3601);
    let expired = token().await;
    server.pass(3601);
    assert_eq!(code(&visitor.reset(&expired, NEW).await), "UNAUTHENTICATED");
    until_sent(&db).await;
    server.purge().await;
    let resets =
        mail::Entity::find().filter(mail::Column::Purpose.eq(mail::MailPurpose::ResetPassword));
    assert_eq!(resets.count(&db).await.expect("reads"), 0);
    visitor.login(ADA, NEW).await;
}

#[tokio::test]
async fn of_a_thousand_requests_few_send_a_mail_and_one_token_is_left() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    for _ in 0..50 {
        let requests = (0..20).map(|_| visitor.request_reset(ADA));
        let mut requests: FuturesUnordered<_> = requests.collect();
        while let Some(answer) = requests.next().await {
            accepted(&answer, "requestPasswordReset");
        }
    }
    let db = server.database().connect().await;
    until_sent(&db).await;
    let sent = mails.mails_to(ADA);
    let sent: Vec<_> = sent.iter().filter(|mail| mail.subject == RESET).collect();
    assert!((1..=3).contains(&sent.len()), "{sent:?}");
    let usable = mail::Entity::find()
        .filter(mail::Column::Purpose.eq(mail::MailPurpose::ResetPassword))
        .filter(mail::Column::TokenHash.is_not_null());
    assert_eq!(usable.count(&db).await.expect("reads"), 1);
    // The owner can use the latest mail.
    let mut accepted = 0;
    for mail in &sent {
        let answer = visitor.reset(&mail.token(), NEW).await;
        accepted += usize::from(answer["data"]["resetPassword"]["accepted"] == true);
    }
    assert_eq!(accepted, 1);
    visitor.login(ADA, NEW).await;
    // Later requests are served again.
    server.pass(3601);
    let before = mails.mails_to(ADA).len();
    visitor.request_reset(ADA).await;
    mails.nth_mail(ADA, before + 1).await;
}

#[tokio::test]
async fn of_two_concurrent_uses_of_a_token_one_wins() {
    let (server, mails) = serve().await;
    let beside = server.beside(|config| mails.configure(config)).await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    for round in 0..5 {
        visitor.request_reset(ADA).await;
        let token = mails.nth_mail(ADA, 2 + round).await.token();
        let (one, other) = (server.at_host(2), beside.at_host(3));
        let passwords = ["the first one's", "the second one's"];
        let answers = join(
            one.reset(&token, passwords[0]),
            other.reset(&token, passwords[1]),
        );
        let answers = <[Value; 2]>::from(answers.await);
        let won = answers.iter().position(|answer| answer["data"].is_object());
        let won = won.expect("a winner");
        accepted(&answers[won], "resetPassword");
        assert_eq!(code(&answers[1 - won]), "UNAUTHENTICATED");
        visitor.login(ADA, passwords[won]).await;
        let lost = visitor.try_login(ADA, passwords[1 - won]).await;
        assert_eq!(code(&lost), "UNAUTHENTICATED");
        server.pass(3601);
    }
}

/// Addresses of all kinds: of an active user, of no account, of a deactivated user, of a service account, and invalid
/// ones.
async fn addresses(server: &TestServer) -> Vec<String> {
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    visitor.register(BOB).await;
    let db = server.database().connect().await;
    users::Entity::update_many()
        .col_expr(users::Column::IsActive, Expr::value(false))
        .filter(users::Column::EmailKey.eq(BOB))
        .exec(&db)
        .await
        .expect("writes");
    let admin = server.actor(ADMIN).await;
    let owner = server.actor(OWNER).await.id().await;
    let input = json!({ "name": "A service", "ownerId": owner });
    let created = admin
        .mutate("createServiceAccount", "user { id }", input)
        .await;
    assert!(
        created["data"]["createServiceAccount"]["user"].is_object(),
        "{created}"
    );
    let service = users::Entity::find().filter(users::Column::Kind.eq(users::UserKind::Service));
    let service = service.one(&db).await.expect("reads").expect("a user");
    let others = ["unknown@example.com", "ada", "", "\0", &"x".repeat(300)].map(str::to_owned);
    let known = [ADA.to_owned(), BOB.to_owned(), service.email];
    known.into_iter().chain(others).collect()
}

#[tokio::test]
async fn a_request_gets_the_same_answer_for_every_address() {
    let (server, mails) = serve().await;
    let addresses = addresses(&server).await;
    let answer = async |email: &str| {
        let query = "mutation($input: RequestPasswordResetInput!) { requestPasswordReset(input: $input) { accepted } }";
        let visitor = server.anonymous().named("the-same-for-all");
        let input = json!({ "input": { "email": email } });
        let response = visitor.send(query, input).await;
        let (status, mut headers) = (response.status(), response.headers().clone());
        headers.remove(DATE);
        format!(
            "{status} {headers:?} {}",
            response.text().await.expect("a body")
        )
    };
    let first = answer(ADA).await;
    assert!(first.contains(r#"{"accepted":true}"#), "{first}");
    for email in &addresses {
        // More often than mails are sent.
        for _ in 0..4 {
            assert_eq!(answer(email).await, first, "{email}");
        }
    }
    let db = server.database().connect().await;
    until_sent(&db).await;
    // Beside the verification of Ada and Bob, only Ada got mails: at most three, and fewer if a request came before the
    // mail of an earlier one was sent.
    let resets = mails.mails_to(ADA).len() - 1;
    assert!((1..=3).contains(&resets), "{resets}");
    assert_eq!(mails.mails_to(BOB).len(), 1);
    assert_eq!(mails.count(), resets + 2);
    // An address without an account may be a password that was typed into the wrong field.
    let rows = mail::Entity::find().all(&db).await.expect("reads");
    assert!(!format!("{rows:?}").contains("unknown@"), "{rows:?}");
}

#[tokio::test]
async fn a_request_takes_the_same_statements_for_every_address() {
    let server = TestServer::start().await;
    let addresses = addresses(&server).await;
    let mut config = Config::default();
    config.mail.url = "smtp://127.0.0.1:9".parse().expect("a URL");
    config.mail.from = "gathering@example.com".to_owned();
    config.limits.mode = Mode::Off;
    let graph = CountedGraph::with(server.database().connect().await, &config).await;
    let query =
        "mutation($email: String!) { requestPasswordReset(input: { email: $email }) { accepted } }";
    let mut counts = Vec::new();
    for email in &addresses {
        let mut taken = Vec::new();
        for _ in 0..5 {
            let (answer, statements) = graph.cost("", query, json!({ "email": email })).await;
            assert_eq!(answer["data"]["requestPasswordReset"]["accepted"], true);
            taken.push(statements);
        }
        counts.push(taken);
    }
    // The invalid addresses count as the same one, so only the first of them is within the limit of mails.
    for (email, taken) in addresses.iter().zip(&counts).take(5) {
        assert_eq!(*taken, counts[0], "{email}");
    }
}

#[tokio::test]
async fn the_database_has_no_token() {
    let (server, mails) = serve().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    visitor.request_reset(ADA).await;
    mails.nth_mail(ADA, 2).await;
    let tokens: Vec<_> = mails.mails_to(ADA).iter().map(Received::token).collect();
    let database: Arc<_> = server.end().await;
    let db = database.connect().await;
    let rows = mail::Entity::find().all(&db).await.expect("reads");
    let mut stored = format!("{rows:?}").into_bytes();
    db.close().await.expect("closes");
    if let Some(file) = database.file() {
        stored = fs::read(file).expect("reads");
    }
    let holds = |text: &str| {
        stored
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(holds(ADA));
    for token in &tokens {
        assert!(!holds(token) && !holds(&token[4..]));
    }
}

#[tokio::test]
async fn without_a_mail_server_every_request_gets_the_same_error() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let ada = visitor.with(&ada.access);
    let mut errors = Vec::new();
    for email in [ADA, "unknown@example.com", "", "\0"] {
        errors.push(visitor.request_reset(email).await);
        for password in [PASSWORD, "a wrong password"] {
            let input = json!({ "email": email, "currentPassword": password });
            errors.push(ada.mutate("changeEmail", ACCEPTED, input).await);
        }
    }
    let query = "mutation { requestEmailVerification { accepted } }";
    errors.push(ada.answer(query, json!({})).await);
    for answer in &errors {
        assert_eq!(code(answer), "FORBIDDEN", "{answer}");
        assert_eq!(
            answer["errors"][0]["message"],
            errors[0]["errors"][0]["message"]
        );
    }
    let db = server.database().connect().await;
    assert_eq!(mail::Entity::find().count(&db).await.expect("reads"), 0);
}

#[tokio::test]
async fn the_mutations_are_not_available_with_an_api_key() {
    let (server, _mails) = serve().await;
    let owner = server.actor(OWNER).await;
    let input = json!({ "name": "A key", "scopes": ["READ", "WRITE"] });
    let created = owner.mutate("createApiKey", "secret", input).await;
    let key = &created["data"]["createApiKey"]["secret"];
    let key = server.with_token(key.as_str().expect("a key"));
    let input = json!({ "email": ADA, "currentPassword": PASSWORD });
    for answer in [
        key.request_reset(OWNER).await,
        key.reset("gtr_", NEW).await,
        key.verify("gtr_").await,
        key.mutate("changeEmail", ACCEPTED, input).await,
        key.answer(
            "mutation { requestEmailVerification { accepted } }",
            json!({}),
        )
        .await,
    ] {
        assert_eq!(code(&answer), "FORBIDDEN", "{answer}");
    }
}

#[tokio::test]
async fn no_line_of_the_log_has_a_token_an_address_or_a_password() {
    let mails = MailServer::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = gathering("serve --listen 127.0.0.1:0");
    command
        .env("GATHERING__DATA__DIR", folder.path())
        .env("GATHERING__MAIL__URL", mails.url())
        .env("GATHERING__MAIL__FROM", "gathering@example.com")
        .env("GATHERING__LOG__FILTER", "debug")
        .stderr(Stdio::piped());
    let mut running = Running::start(&mut command).await;
    let mut errors = running.errors();
    let log = async {
        let mut log = String::new();
        errors.read_to_string(&mut log).await.expect("is read");
        log
    };
    let work = async {
        let visitor = Actor::new(&running.url);
        let ada = visitor.register(ADA).await;
        let verification = mails.token_for(ADA, VERIFY).await;
        accepted(&visitor.verify(&verification).await, "verifyEmail");
        let input = json!({ "email": BOB, "currentPassword": PASSWORD });
        let ada = visitor.with(&ada.access);
        ada.mutate("changeEmail", ACCEPTED, input).await;
        visitor.request_reset(ADA).await;
        let token = mails.token_for(ADA, RESET).await;
        accepted(&visitor.reset(&token, NEW).await, "resetPassword");
        let _stopped = mails.stop();
        visitor.request_reset(ADA).await;
        // The failure is logged.
        let file = folder.path().join("gathering.db").display().to_string();
        let db = sea_orm::Database::connect(format!("sqlite://{file}")).await;
        let db = db.expect("connects");
        until("a failed attempt", async || {
            let rows = mail::Entity::find().all(&db).await.expect("reads");
            let mut failed = rows.iter().filter(|row| row.due_at.is_some());
            failed.next_back().is_some_and(|row| row.attempts > 0)
        })
        .await;
        running.signal("TERM");
        running.ends().await;
        [verification, token]
    };
    let (log, tokens) = join(log, work).await;
    assert!(log.contains("cannot send a mail"), "{log}");
    let secrets = [ADA, BOB, PASSWORD, NEW, "gtr_"];
    let secrets = secrets
        .into_iter()
        .chain(tokens.iter().map(|token| &token[4..]));
    for secret in secrets {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}

#[tokio::test]
async fn the_demo_writes_mails_to_its_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = gathering("demo --listen 127.0.0.1:0");
    // The demo sends nothing.
    command
        .env("TMPDIR", folder.path())
        .env("GATHERING__MAIL__URL", "smtp://127.0.0.1:9")
        .stderr(Stdio::piped());
    let mut demo = Running::start(&mut command).await;
    let mut lines = BufReader::new(demo.errors()).lines();
    let visitor = Actor::new(&demo.url);
    accepted(&visitor.request_reset(OWNER).await, "requestPasswordReset");
    let token = within("a token in the log", async {
        loop {
            let line = lines.next_line().await.expect("is read");
            if let Some(token) = token_in(&line.expect("a line")) {
                break token;
            }
        }
    });
    accepted(&visitor.reset(&token.await, NEW).await, "resetPassword");
    visitor.login(OWNER, NEW).await;
    demo.signal("TERM");
    demo.ends().await;
}
