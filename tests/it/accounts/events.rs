//! What is announced of accounts: to the user concerned and to administrators.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use gathering::config::Config;
use gathering::serve::{self, Options};
use gathering_entity::event;
use gathering_schema::auth::{Keys, Operator};
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};

use super::{ADA, ADMIN, BOB, CHANGED, SIGNED_IN, Tokens, Visitor, tokens};
use crate::changes::{rows, uuid};
use crate::database::{Database, PASSWORD};
use crate::server::{SIGNING_KEY, TestServer};

const EVENTS: &str = "query($user: ID!) { events(first: 100, filter: { subjectId: $user }) { nodes { type actor { id } \
    circle { id } ... on UserEvent { userId user { id } reason changed } } } }";

/// The events of a user as somebody reads them, oldest first, once there are as many.
async fn read(visitor: &Visitor, token: &str, user: &Value, count: usize) -> Vec<Value> {
    for _ in 0..3_000 {
        let answer = visitor
            .ask(Some(token), EVENTS, json!({ "user": user }))
            .await;
        let nodes = answer["data"]["events"]["nodes"].as_array();
        let nodes = nodes.unwrap_or_else(|| panic!("{answer}"));
        if nodes.len() >= count {
            assert_eq!(nodes.len(), count, "{nodes:?}");
            return nodes.iter().rev().cloned().collect();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{user} has no {count} events");
}

/// An event of a user: what, who did it, which fields changed, and why.
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

/// Changes what can be changed about a user who has just registered, and announces it.
async fn live(visitor: &Visitor, admins: &Tokens, ada: Tokens, id: &Value) -> Tokens {
    let named = json!({ "name": "Ada L." });
    // The second time nothing changes.
    for _ in 0..2 {
        visitor
            .mutate(Some(&ada.access), "updateProfile", CHANGED, named.clone())
            .await;
    }
    let input = json!({ "currentPassword": PASSWORD, "newPassword": "another password" });
    let changed = visitor
        .mutate(Some(&ada.access), "changePassword", SIGNED_IN, input)
        .await;
    let ada = tokens(&changed["data"]["changePassword"]);
    for input in [
        json!({ "userId": id, "name": "Ada", "role": "ADMIN" }),
        json!({ "userId": id, "role": "ADMIN" }),
        json!({ "userId": id, "isActive": false }),
        json!({ "userId": id, "isActive": true, "role": "USER" }),
    ] {
        visitor
            .mutate(Some(&admins.access), "updateUser", CHANGED, input)
            .await;
    }
    assert!(visitor.who(&ada.access).await.is_err());
    // What ends one session is told nobody, but when it was stolen.
    let ada = visitor.login(ADA, "another password").await;
    visitor
        .mutate(Some(&ada.access), "logout", "revokedTokens", json!({}))
        .await;
    let ada = visitor.login(ADA, "another password").await;
    visitor.refresh(&ada.refresh).await;
    for _ in 0..2 {
        visitor.try_refresh(&ada.refresh).await;
    }
    let ada = visitor.login(ADA, "another password").await;
    let everywhere = json!({ "everywhere": true });
    visitor
        .mutate(Some(&ada.access), "logout", "revokedTokens", everywhere)
        .await;
    visitor.login(ADA, "another password").await
}

#[tokio::test]
async fn a_user_and_administrators_are_told_what_happens_to_the_account() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let admins = visitor.login(ADMIN, PASSWORD).await;
    let admin = visitor.id(&admins.access).await;
    let registered = visitor.named("r-register").register(ADA).await;
    let id = visitor.id(&registered.access).await;
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
    // Nobody else is.
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
async fn a_user_is_told_of_every_lock_and_nobody_of_an_account_that_is_not() {
    let server = TestServer::start().await;
    let visitor = Visitor::new(&server);
    let ada = visitor.register(ADA).await;
    let id = visitor.id(&ada.access).await;
    let db = server.database().connect().await;
    let count = async || event::Entity::find().count(&db).await.expect("counts");
    let before = count().await;
    let stranger = Visitor::at(&server, 2);
    for _ in 0..6 {
        stranger.try_login("nobody@example.com", PASSWORD).await;
    }
    assert_eq!(count().await, before);
    let stranger = Visitor::at(&server, 3);
    for _ in 0..2 {
        // The fifth locks, the sixth is not looked at, and when the lock has ended the next locks anew.
        for _ in 0..6 {
            stranger.try_login(ADA, "a wrong password").await;
        }
        server.pass(61);
    }
    assert_eq!(count().await, before + 2);
    let locked = event(&id, "LOCKED", &Value::Null, &[], Some("FAILED_LOGINS"));
    let told = read(&visitor, &ada.access, &id, 3).await;
    assert_eq!(told[1..], [locked.clone(), locked]);
}

#[tokio::test]
async fn what_the_operator_does_is_announced_as_the_servers_doing() {
    let database = Arc::new(Database::empty().await);
    let keys = Keys::new(SIGNING_KEY.as_bytes(), &[""; 0]).expect("is strong");
    let clock = Arc::new(Utc::now);
    let settings = serve::settings(
        &Config::default(),
        keys,
        clock.clone(),
        Options::default().steady,
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
    operator.set_role(ADA, false).await.expect("is as it was");
    operator.set_active(ADA, false).await.expect("is changed");
    operator.set_active(ADA, true).await.expect("is changed");
    let changed = operator.set_password(ADA, "another password").await;
    changed.expect("is changed");
    operator.finish().await;

    // A server finds them when it starts.
    let server = TestServer::on(database, |_| ()).await;
    let visitor = Visitor::new(&server);
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
    let told = read(&visitor, &ada.access, &id, expected.len()).await;
    assert_eq!(told, expected);
}
