//! Account events, which the user concerned and administrators can read.

use std::sync::Arc;

use chrono::Utc;
use gathering::config::Config;
use gathering::health::Health;
use gathering::server::{self, Options};
use gathering_entity::event;
use gathering_schema::Clock;
use gathering_schema::auth::{Keys, Operator};
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};

use super::CHANGED;
use crate::changes::{rows, uuid};
use crate::support::account::{ADA, BOB, SIGNED_IN, Tokens, tokens};
use crate::support::actor::{ADMIN, Actor};
use crate::support::database::{Database, PASSWORD};
use crate::support::server::{SIGNING_KEY, TestServer};
use crate::support::wait::until_some;

const EVENTS: &str = "query($user: ID!) { events(first: 100, filter: { subjectId: $user }) { nodes { type actor { id } \
    circle { id } ... on UserEvent { userId user { id } reason changed } } } }";

/// Waits for this many events of a user and returns them as the token's user reads them, oldest first.
async fn read(visitor: &Actor, token: &str, user: &Value, count: usize) -> Vec<Value> {
    until_some(format!("{count} events of {user}"), async || {
        let answer = visitor
            .with(token)
            .answer(EVENTS, json!({ "user": user }))
            .await;
        let nodes = answer["data"]["events"]["nodes"].as_array();
        let nodes = nodes.unwrap_or_else(|| panic!("{answer}"));
        (nodes.len() >= count).then(|| {
            assert_eq!(nodes.len(), count, "{nodes:?}");
            nodes.iter().rev().cloned().collect()
        })
    })
    .await
}

/// The expected event of a user: its type, actor, changed fields, and reason.
fn event(user: &Value, what: &str, actor: &Value, changed: &[&str], reason: Option<&str>) -> Value {
    let actor = if actor.is_null() {
        Value::Null
    } else {
        json!({ "id": actor })
    };
    json!({
        "type": format!("USER_{what}"), "actor": actor, "circle": null, "userId": user, "user": { "id": user },
        "reason": reason, "changed": changed,
    })
}

/// Makes every change to a new user that creates an event, and some that create none.
async fn live(visitor: &Actor, admins: &Tokens, ada: Tokens, id: &Value) -> Tokens {
    let named = json!({ "name": "Ada L." });
    // The second update changes nothing.
    for _ in 0..2 {
        visitor
            .with(&ada.access)
            .mutate("updateProfile", CHANGED, named.clone())
            .await;
    }
    let input = json!({ "currentPassword": PASSWORD, "newPassword": "another password" });
    let changed = visitor
        .with(&ada.access)
        .mutate("changePassword", SIGNED_IN, input)
        .await;
    let ada = tokens(&changed["data"]["changePassword"]);
    for input in [
        json!({ "userId": id, "name": "Ada", "role": "ADMIN" }),
        json!({ "userId": id, "role": "ADMIN" }),
        json!({ "userId": id, "isActive": false }),
        json!({ "userId": id, "isActive": true, "role": "USER" }),
    ] {
        visitor
            .with(&admins.access)
            .mutate("updateUser", CHANGED, input)
            .await;
    }
    assert!(visitor.with(&ada.access).who().await.is_err());
    // Ending one session creates no event, unless its refresh token was reused.
    let ada = visitor.login(ADA, "another password").await;
    visitor
        .with(&ada.access)
        .mutate("logout", "revokedTokens", json!({}))
        .await;
    let ada = visitor.login(ADA, "another password").await;
    visitor.refresh(&ada.refresh).await;
    for _ in 0..2 {
        visitor.try_refresh(&ada.refresh).await;
    }
    let ada = visitor.login(ADA, "another password").await;
    let everywhere = json!({ "everywhere": true });
    visitor
        .with(&ada.access)
        .mutate("logout", "revokedTokens", everywhere)
        .await;
    visitor.login(ADA, "another password").await
}

#[tokio::test]
async fn account_events_reach_only_the_user_and_administrators() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let admins = visitor.login(ADMIN, PASSWORD).await;
    let admin = visitor.with(&admins.access).id().await;
    let registered = visitor.named("r-register").register(ADA).await;
    let id = visitor.with(&registered.access).id().await;
    let ada = live(&visitor, &admins, registered, &id).await;
    let of = |what, actor, changed: &[&str], reason| event(&id, what, actor, changed, reason);
    let expected = [
        of("REGISTERED", &id, &[], None),
        of("UPDATED", &id, &["name"], None),
        of("TOKENS_REVOKED", &id, &[], Some("PASSWORD_CHANGED")),
        of("UPDATED", &admin, &["name", "role"], None),
        of("TOKENS_REVOKED", &admin, &[], Some("ADMIN")),
        of("UPDATED", &admin, &["isActive"], None),
        of("TOKENS_REVOKED", &admin, &[], Some("ADMIN")),
        of("UPDATED", &admin, &["role", "isActive"], None),
        of("TOKENS_REVOKED", &admin, &[], Some("ADMIN")),
        of("TOKENS_REVOKED", &id, &[], Some("REUSE")),
        of("TOKENS_REVOKED", &id, &[], Some("LOGOUT")),
    ];
    let count = expected.len();
    assert_eq!(read(&visitor, &ada.access, &id, count).await, expected);
    assert_eq!(read(&visitor, &admins.access, &id, count).await, expected);
    // Other users cannot read the events.
    let bob = visitor.register(BOB).await;
    assert_eq!(read(&visitor, &bob.access, &id, 0).await, [Value::Null; 0]);

    let rows = rows(&server.database().connect().await, uuid(&id)).await;
    assert_eq!(rows[0].request_id.as_deref(), Some("r-register"));
    for row in &rows {
        assert_eq!(row.owner_id, Some(uuid(&id)));
        let payload = row.payload.as_object().expect("an object");
        let keys: Vec<_> = payload.keys().map(String::as_str).collect();
        let says = if row.kind == "user.tokens_revoked" {
            vec!["at", "reason", "v"]
        } else {
            vec!["changed", "updatedAt", "v"]
        };
        assert_eq!(keys, says);
        let text = row.payload.to_string();
        for secret in ["password", "Ada", "example", &ada.refresh] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn only_locks_of_existing_accounts_create_events() {
    let server = TestServer::start().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let id = visitor.with(&ada.access).id().await;
    let db = server.database().connect().await;
    let count = async || event::Entity::find().count(&db).await.expect("counts");
    let before = count().await;
    let stranger = server.at_host(2);
    for _ in 0..6 {
        stranger.try_login("unknown@example.com", PASSWORD).await;
    }
    assert_eq!(count().await, before);
    let stranger = server.at_host(3);
    for _ in 0..2 {
        // The fifth failure locks and the sixth is not checked; after the lock ends, the next failure locks again.
        for _ in 0..6 {
            stranger.try_login(ADA, "a wrong password").await;
        }
        server.pass(61);
    }
    assert_eq!(count().await, before + 2);
    let locked = event(&id, "LOCKED", &Value::Null, &[], Some("FAILED_LOGINS"));
    let received = read(&visitor, &ada.access, &id, 3).await;
    assert_eq!(received[1..], [locked.clone(), locked]);
}

#[tokio::test]
async fn operator_changes_create_events_without_an_actor() {
    let database = Arc::new(Database::empty().await);
    let keys = Keys::new(SIGNING_KEY.as_bytes(), &[""; 0]).expect("is strong");
    let clock: Clock = Arc::new(Utc::now);
    let settings = server::settings(
        &Config::default(),
        keys,
        clock.clone(),
        Options::default().monotonic,
        &Health::new(clock.clone()),
    );
    let accounts = settings.expect("is read").accounts;
    let db = database.connect().await;
    let operator = Operator::new(db.clone(), accounts, clock).expect("is made");
    let made = operator.create(ADA, "Ada", PASSWORD, true).await;
    let id = json!(made.expect("is made").as_str());
    operator
        .create(ADA, "Ada", PASSWORD, true)
        .await
        .expect_err("is taken");
    operator.set_role(ADA, false).await.expect("is changed");
    operator.set_role(ADA, false).await.expect("is unchanged");
    operator.set_active(ADA, false).await.expect("is changed");
    operator.set_active(ADA, true).await.expect("is changed");
    let changed = operator.set_password(ADA, "another password").await;
    changed.expect("is changed");
    operator.finish().await;

    // The server publishes the operator's events when it starts.
    let server = TestServer::on(database, |_| ()).await;
    let visitor = server.anonymous();
    let ada = visitor.login(ADA, "another password").await;
    let of = |what, changed: &[&str], reason| event(&id, what, &Value::Null, changed, reason);
    let expected = [
        of("REGISTERED", &[], None),
        of("UPDATED", &["role"], None),
        of("TOKENS_REVOKED", &[], Some("ADMIN")),
        of("UPDATED", &["isActive"], None),
        of("TOKENS_REVOKED", &[], Some("ADMIN")),
        of("UPDATED", &["isActive"], None),
        of("TOKENS_REVOKED", &[], Some("PASSWORD_CHANGED")),
    ];
    let received = read(&visitor, &ada.access, &id, expected.len()).await;
    assert_eq!(received, expected);
}
