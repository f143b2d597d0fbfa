//! The audit log: its entries, access to it, and retention.

use std::sync::Arc;
use std::time::Duration;

use chrono::{SubsecRound, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use gathering::config::Config;
use gathering::health::Health;
use gathering::server::{self, Options};
use gathering_entity::{audit, lockout, refresh_token, revoked_token};
use gathering_schema::auth::Keys;
use gathering_schema::{Clock, Graph, Pool};
use reqwest::StatusCode;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, Set,
};
use serde_json::{Value, json};

use super::CHANGED;
use crate::support::account::{ADA, BOB, SIGNED_IN, Tokens, tokens};
use crate::support::actor::{ADMIN, Actor, client_builder, code};
use crate::support::counted::Statements;
use crate::support::database::{Database, PASSWORD};
use crate::support::server::{SIGNING_KEY, TestServer};
use crate::support::wait::{until, until_some};

async fn entries(db: &DatabaseConnection, action: &str) -> Vec<audit::Model> {
    let find = audit::Entity::find().filter(audit::Column::Action.eq(action));
    find.order_by_asc(audit::Column::Id)
        .all(db)
        .await
        .expect("reads")
}

/// The entries of an action, oldest first.
pub(crate) async fn entries_of(database: &Arc<Database>, action: &str) -> Vec<audit::Model> {
    entries(&database.connect().await, action).await
}

/// Waits until an action has this many entries, because entries are written in the background.
pub(crate) async fn until_recorded(db: &DatabaseConnection, action: &str, count: usize) {
    until(format!("{count} entries of {action}"), async || {
        let found = entries(db, action).await.len();
        assert!(found <= count, "{action}: {found}");
        found == count
    })
    .await;
}

/// Deletes the rows that will have expired `ahead` from now, as the server does periodically.
pub(crate) async fn purge(database: &Database, ahead: Duration) {
    let config = Config::default();
    let ahead = TimeDelta::from_std(ahead).expect("within bounds");
    let keys = Keys::new(SIGNING_KEY.as_bytes(), &[""; 0]).expect("is strong");
    let clock: Clock = Arc::new(move || Utc::now() + ahead);
    let health = Health::new(Arc::clone(&clock));
    let monotonic = Options::default().monotonic;
    let settings = server::settings(&config, keys, clock, monotonic, &health);
    let pool = Pool::new(database.connect().await, Arc::<Statements>::default());
    let made = Graph::new(pool, settings.expect("is read"));
    let (graph, _works) = made.await.expect("is made");
    graph.purge().await.expect("purges");
}

const LOG: &str = "query($action: String!) { auditLog(first: 100, filter: { action: $action }) { nodes { \
    action severity actor { name } clientIp userAgent requestId targetId details createdAt } } }";

/// Waits for an audit log entry and returns it as an administrator reads it.
async fn recorded(admin: &Actor, token: &str, request: &str, action: &str) -> Value {
    until_some(format!("{action} of {request} in the log"), async || {
        let answer = admin
            .with(token)
            .answer(LOG, json!({ "action": action }))
            .await;
        let nodes = answer["data"]["auditLog"]["nodes"].as_array();
        let mut nodes = nodes.unwrap_or_else(|| panic!("{answer}")).iter();
        nodes.find(|entry| entry["requestId"] == request).cloned()
    })
    .await
}

/// Performs each audited action of a user, in a request named after it, and returns the user's id.
async fn live(visitor: &Actor) -> Value {
    let wrong = "a wrong password";

    let ada = visitor.named("r-register").register(ADA).await;
    let id = visitor.with(&ada.access).id().await;
    let stolen = visitor.named("r-login").login(ADA, PASSWORD).await;
    visitor.named("r-failed").try_login(ADA, wrong).await;
    for n in 1..=5 {
        let name = format!("r-unknown-{n}");
        visitor
            .named(&name)
            .try_login("unknown@example.com", wrong)
            .await;
    }
    visitor.named("r-refresh").refresh(&stolen.refresh).await;
    visitor.named("r-reuse").try_refresh(&stolen.refresh).await;
    let other = visitor.login(ADA, PASSWORD).await;
    let input = json!({ "sessionId": visitor.with(&other.access).session().await });
    let revoke = visitor.named("r-revoke");
    revoke
        .with(&ada.access)
        .mutate("revokeSession", "revokedSessionId", input)
        .await;
    let other = visitor.login(ADA, PASSWORD).await;
    let logout = visitor.named("r-logout");
    logout
        .with(&other.access)
        .mutate("logout", "revokedTokens", json!({}))
        .await;
    let input = json!({ "currentPassword": PASSWORD, "newPassword": "another password" });
    let change = visitor.named("r-password");
    let changed = change
        .with(&ada.access)
        .mutate("changePassword", SIGNED_IN, input)
        .await;
    let ada = tokens(&changed["data"]["changePassword"]);
    visitor
        .named("r-token")
        .with("not a token")
        .who()
        .await
        .expect_err("is refused");
    visitor
        .named("r-refused")
        .with(&ada.access)
        .answer("{ users { totalCount } }", json!({}))
        .await;
    id
}

#[tokio::test]
async fn audit_entries_name_the_actor_the_target_and_the_client() {
    let server = TestServer::start().await;
    let admin = server.anonymous();
    let admins = admin.login(ADMIN, PASSWORD).await.access;
    let id = live(&server.at_host(2)).await;
    let input = json!({ "userId": id, "role": "ADMIN", "name": "Ada" });
    admin
        .named("r-update")
        .with(&admins)
        .mutate("updateUser", CHANGED, input)
        .await;

    // The request id, the action, the severity, the actor, and whether the target is Ada.
    for (request, action, severity, actor, is_to_ada) in [
        ("r-register", "auth.registered", "INFO", Some("Ada"), true),
        ("r-login", "auth.login_succeeded", "INFO", Some("Ada"), true),
        ("r-failed", "auth.login_failed", "WARNING", None, true),
        ("r-unknown-1", "auth.login_failed", "WARNING", None, false),
        ("r-unknown-5", "auth.locked", "HIGH", None, false),
        ("r-refresh", "auth.refreshed", "INFO", Some("Ada"), true),
        ("r-reuse", "auth.refresh_reused", "HIGH", Some("Ada"), true),
        (
            "r-revoke",
            "auth.session_revoked",
            "INFO",
            Some("Ada"),
            true,
        ),
        ("r-logout", "auth.logged_out", "INFO", Some("Ada"), true),
        (
            "r-password",
            "auth.password_changed",
            "WARNING",
            Some("Ada"),
            true,
        ),
        ("r-token", "auth.token_rejected", "WARNING", None, false),
        ("r-refused", "auth.refused", "WARNING", Some("Ada"), false),
        (
            "r-update",
            "user.changed",
            "WARNING",
            Some("Ada Admin"),
            true,
        ),
    ] {
        let entry = recorded(&admin, &admins, request, action).await;
        let address = if request == "r-update" {
            "127.0.0.1"
        } else {
            "127.0.0.2"
        };
        assert_eq!(entry["action"], action);
        assert_eq!(entry["severity"], severity, "{action}");
        assert_eq!(entry["actor"]["name"].as_str(), actor, "{action}");
        assert_eq!(
            entry["targetId"],
            if is_to_ada { id.clone() } else { Value::Null },
            "{action}"
        );
        assert_eq!(entry["clientIp"], address, "{action}");
        assert_eq!(entry["userAgent"], "visitor/1.0", "{action}");
    }
    let changed = recorded(&admin, &admins, "r-update", "user.changed").await;
    let expected = json!({
        "changed": ["name", "role"], "role": "ADMIN", "isActive": true, "quotaClass": null,
    });
    assert_eq!(changed["details"], expected);
}

#[tokio::test]
async fn only_administrators_read_the_audit_log() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let admin = visitor.login(ADMIN, PASSWORD).await;
    until_recorded(&server.database().connect().await, "auth.registered", 1).await;
    let all = "{ auditLog(first: 1) { totalCount nodes { id } } }";
    let answer = visitor.with(&admin.access).answer(all, json!({})).await;
    let entry = &answer["data"]["auditLog"]["nodes"][0]["id"];
    assert!(entry.is_string(), "{answer}");
    let named = async |token| {
        let query = "query($id: ID!) { node(id: $id) { id } }";
        let variables = json!({ "id": entry });
        visitor.as_caller(token).answer(query, variables).await
    };
    assert_eq!(
        named(Some(admin.access.as_str())).await["data"]["node"]["id"],
        *entry
    );
    for (token, refusal) in [
        (None, "UNAUTHENTICATED"),
        (Some(ada.access.as_str()), "FORBIDDEN"),
    ] {
        assert_eq!(
            code(&visitor.as_caller(token).answer(all, json!({})).await),
            refusal
        );
        let answer = named(token).await;
        assert!(answer["data"]["node"].is_null(), "{answer}");
    }
}

#[tokio::test]
async fn the_audit_log_is_complete_at_shutdown_and_holds_no_secrets() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let mut secrets = ["example", PASSWORD, "a wrong password", "mistyped"]
        .map(str::to_owned)
        .to_vec();
    let mut keep = |tokens: Tokens| {
        secrets.extend([tokens.access.clone(), tokens.refresh.clone()]);
        secrets.extend(tokens.access.split('.').map(str::to_owned));
        tokens
    };
    let ada = keep(visitor.register(ADA).await);
    let next = keep(visitor.refresh(&ada.refresh).await);
    visitor.try_refresh(&ada.refresh).await;
    visitor.try_refresh("mistyped").await;
    let again = keep(visitor.login("Ada@EXAMPLE.com", PASSWORD).await);
    for _ in 0..6 {
        visitor.try_login(ADA, "a wrong password").await;
    }
    visitor.try_login("mistyped", "mistyped").await;
    visitor
        .with("mistyped")
        .who()
        .await
        .expect_err("is refused");
    visitor
        .with(&next.access)
        .who()
        .await
        .expect_err("is refused");
    visitor
        .with(&again.access)
        .answer(
            "{ users(filter: { search: \"mistyped\" }) { totalCount } }",
            json!({}),
        )
        .await;
    let input = json!({ "refreshToken": again.refresh });
    visitor
        .with(&again.access)
        .mutate("logout", "revokedTokens", input)
        .await;

    let database = server.end().await;
    let rows = audit::Entity::find()
        .all(&database.connect().await)
        .await
        .expect("reads");
    let mut actions: Vec<_> = rows.iter().map(|row| row.action.as_str()).collect();
    actions.sort_unstable();
    actions.dedup();
    assert_eq!(
        actions,
        [
            "auth.locked",
            "auth.logged_out",
            "auth.login_failed",
            "auth.login_succeeded",
            "auth.refresh_reused",
            "auth.refreshed",
            "auth.refused",
            "auth.registered",
            "auth.token_rejected",
        ]
    );
    for row in rows {
        let details = row.details.to_string();
        for secret in &secrets {
            assert!(
                !details.contains(secret.as_str()),
                "{}: {details}",
                row.action
            );
        }
    }
}

#[tokio::test]
async fn thousands_of_bad_tokens_create_few_audit_entries() {
    const TIMES: u64 = 2_000;
    let server = TestServer::start().await;
    let stranger = server.at_host(2);
    let attempts = stream::iter(0..TIMES).map(|n| {
        let stranger = stranger.clone();
        async move { stranger.with(&format!("not.a.token{n}")).who().await }
    });
    let refused = attempts
        .buffer_unordered(32)
        .all(async |caller| caller == super::unauthenticated());
    let honest = async {
        let visitor = server.anonymous();
        let bob = visitor.named("r-bob").register(BOB).await;
        visitor
            .named("r-typo")
            .with(&bob.access[1..])
            .who()
            .await
            .expect_err("is refused");
        let admin = visitor.login(ADMIN, PASSWORD).await;
        recorded(&visitor, &admin.access, "r-bob", "auth.registered").await;
        recorded(&visitor, &admin.access, "r-typo", "auth.token_rejected").await;
    };
    let (refused, ()) = futures_util::future::join(refused, honest).await;
    assert!(refused);

    let rejected = entries_of(&server.end().await, "auth.token_rejected").await;
    let of = |address: &'static str| {
        rejected
            .iter()
            .filter(move |entry| entry.client_ip.as_deref() == Some(address))
    };
    // One entry for the first attempt, and counts of the others after each minute and at shutdown.
    let counts = of("127.0.0.2").map(|entry| entry.details["count"].as_u64().unwrap_or(1));
    assert_eq!(counts.sum::<u64>(), TIMES);
    assert!((2..=8).contains(&of("127.0.0.2").count()), "{rejected:?}");
    assert_eq!(of("127.0.0.1").count(), 1);
}

#[tokio::test]
async fn long_headers_do_not_exceed_the_limits_of_an_audit_entry() {
    let server = TestServer::start().await;
    let client = client_builder().user_agent("x".repeat(5_000));
    let client = client.build().expect("a client");
    let body = json!({ "query": "{ __typename }" });
    let request = client
        .post(server.url("/graphql"))
        .json(&body)
        .bearer_auth("x");
    let response = request
        .header("x-request-id", "y".repeat(5_000))
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let given = response.headers()["x-request-id"]
        .to_str()
        .expect("text")
        .to_owned();
    let rejected = entries_of(&server.end().await, "auth.token_rejected").await;
    assert_eq!(rejected[0].user_agent, Some("x".repeat(255)));
    assert_eq!(rejected[0].request_id, Some(given));
}

/// The number of revocations, refresh tokens, failure counters, known networks, and audit log entries.
async fn kept(db: &DatabaseConnection) -> [u64; 5] {
    [
        revoked_token::Entity::find().count(db).await,
        refresh_token::Entity::find().count(db).await,
        lockout::Entity::find()
            .filter(lockout::Column::Failures.ne(0))
            .count(db)
            .await,
        lockout::Entity::find()
            .filter(lockout::Column::Failures.eq(0))
            .count(db)
            .await,
        audit::Entity::find().count(db).await,
    ]
    .map(|count| count.expect("counts"))
}

#[tokio::test]
async fn the_purge_deletes_only_expired_rows() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    visitor
        .with(&ada.access)
        .mutate("logout", "revokedTokens", json!({}))
        .await;
    visitor.try_login("unknown@example.com", PASSWORD).await;
    let database = server.end().await;
    let db = database.connect().await;
    let before = kept(&db).await;
    assert_eq!(before, [1, 1, 3, 1, 3]);

    let hours = |hours| Duration::from_hours(hours);
    let days = |days: u64| Duration::from_hours(24 * days);
    for (ahead, expected) in [
        (Duration::from_mins(14), [1, 1, 3, 1, 3]),
        (hours(23), [1, 1, 3, 1, 3]),
        // The clock of the instance may be a day fast; the token of the revocation is valid for at most an hour.
        (hours(24), [1, 1, 0, 1, 3]),
        (hours(26), [0, 1, 0, 1, 3]),
        // A refresh token lasts 30 days, and its reuse is detected for 7 days more.
        (days(36), [0, 1, 0, 1, 3]),
        (days(38), [0, 0, 0, 1, 3]),
        (days(89), [0, 0, 0, 1, 3]),
        (days(91), [0, 0, 0, 0, 3]),
        (days(364), [0, 0, 0, 0, 3]),
        (days(366), [0, 0, 0, 0, 0]),
    ] {
        purge(&database, ahead).await;
        assert_eq!(kept(&db).await, expected, "{ahead:?}");
    }
}

#[tokio::test]
async fn the_purge_deletes_more_rows_than_one_statement_can() {
    let database = Database::empty().await;
    let db = database.connect().await;
    for batch in 0..5 {
        let rows = (0..500).map(|n| lockout::ActiveModel {
            key: Set(format!("{:064}", batch * 500 + n)),
            failures: Set(1),
            locked_until: Set(None),
            expires_at: Set(Utc::now().trunc_subsecs(6)),
        });
        lockout::Entity::insert_many(rows)
            .exec_without_returning(&db)
            .await
            .expect("writes");
    }
    purge(&database, Duration::from_mins(1)).await;
    assert_eq!(lockout::Entity::find().count(&db).await.expect("counts"), 0);
}
