//! The end of keys: revocation, expiry, and the user's account.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gathering::config::Config;
use gathering_entity::api_key;
use sea_orm::EntityTrait;
use tokio::task::JoinSet;

use super::*;
use crate::accounts::audit::until_recorded;
use crate::support::database::PASSWORD;
use crate::support::wait::{until, until_some, within};

/// Waits until a subscription ends with `UNAUTHENTICATED` and its WebSocket closes with 4403.
async fn until_shut_out(socket: &mut Socket) {
    let error = socket
        .skip_to("the end of a stream", |message| message["type"] == "error")
        .await;
    let code = &error["payload"][0]["extensions"]["code"];
    assert_eq!(code, "UNAUTHENTICATED", "{error}");
    assert_eq!(socket.closed().await.0, 4403);
}

/// Allows many connections of one client, which send no keep-alives during a test.
fn many(config: &mut Config) {
    config.subscriptions.connections_per_client = 200;
    config.subscriptions.keep_alive = Duration::from_hours(1);
}

async fn serve() -> TestServer {
    TestServer::with(many).await
}

#[tokio::test]
async fn revocation_ends_fifty_connections_and_every_later_request() {
    let server = serve().await;
    let beside = server.beside(many).await;
    let key = key_of(&server, OWNER, &["READ"]).await;
    let mut sockets = Vec::new();
    for _ in 0..25 {
        for on in [&server, &beside] {
            sockets.push(Socket::greeted(on, Some(&key.secret)).await);
        }
    }
    for socket in &mut sockets {
        socket.subscribe("1", EVENTS).await;
    }
    server.until_subscribers_exceed(24).await;
    beside.until_subscribers_exceed(24).await;
    let is_revoked = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for n in 0..20 {
        let on = if n % 2 == 0 { &server } else { &beside };
        let (caller, is_revoked) = (on.with_token(&key.secret), Arc::clone(&is_revoked));
        readers.spawn(async move {
            loop {
                // Read before the request, so that a request that begins after the revocation must be refused.
                let is_over = is_revoked.load(Ordering::Acquire);
                let (status, _) = outcome(&caller, "{ circles { nodes { name } } }").await;
                if is_over {
                    break status;
                }
            }
        });
    }
    let revoked = revoke(&server.actor(OWNER).await, &key).await;
    is_revoked.store(true, Ordering::Release);
    assert!(revoked["apiKey"]["revokedAt"].is_string(), "{revoked}");
    for status in within("the readers", readers.join_all()).await {
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    for socket in &mut sockets {
        until_shut_out(socket).await;
    }
    for on in [&server, &beside] {
        assert_eq!(on.with_token(&key.secret).who().await, unauthenticated());
    }
    let db = server.database().connect().await;
    until_recorded(&db, "api_key.revoked", 1).await;
    // A second revocation changes nothing.
    let again = revoke(&server.actor(OWNER).await, &key).await;
    assert_eq!(again, revoked);
    until_recorded(&db, "api_key.revoked", 1).await;
    db.close().await.expect("closes");
}

#[tokio::test]
async fn a_key_expires() {
    let server = serve().await;
    let at = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    let input = json!({ "name": "A", "scopes": ["READ"], "expiresAt": at });
    let key = create(&server.actor(OWNER).await, input).await;
    let caller = server.with_token(&key.secret);
    assert_eq!(caller.who().await, user(OWNER));
    let mut socket = Socket::subscribed(&server, &key.secret, EVENTS).await;
    server.pass(3_601);
    assert_eq!(caller.who().await, unauthenticated());
    until_shut_out(&mut socket).await;
    let list =
        "{ apiKeys { totalCount } all: apiKeys(filter: { includeInactive: true }) { totalCount } }";
    let list = server.actor(OWNER).await.ask(list, json!({})).await;
    assert_eq!(
        (&list["apiKeys"]["totalCount"], &list["all"]["totalCount"]),
        (&json!(0), &json!(1))
    );
}

#[tokio::test]
async fn a_key_is_refused_while_its_user_is_deactivated() {
    let server = serve().await;
    let admin = server.actor(ADMIN).await;
    let key = key_of(&server, OWNER, &["READ"]).await;
    let caller = server.with_token(&key.secret);
    let mut socket = Socket::subscribed(&server, &key.secret, EVENTS).await;
    let id = server.actor(OWNER).await.id().await;
    let set = async |is_active: bool| {
        let input = json!({ "userId": id, "isActive": is_active });
        let answer = admin.mutate("updateUser", "user { isActive }", input).await;
        assert_eq!(
            answer["data"]["updateUser"]["user"]["isActive"], is_active,
            "{answer}"
        );
    };
    set(false).await;
    assert_eq!(outcome(&caller, WHO).await, refused(403, "FORBIDDEN"));
    until_shut_out(&mut socket).await;
    set(true).await;
    assert_eq!(caller.who().await, user(OWNER));
}

#[tokio::test]
async fn a_key_loses_the_rights_that_its_user_loses() {
    let server = serve().await;
    let second = server.anonymous().register("second@example.com").await;
    let second = server.with_token(&second.access).id().await;
    let admin = server.actor(ADMIN).await;
    let promote = async |role: &str| {
        let input = json!({ "userId": second, "role": role });
        let answer = admin.mutate("updateUser", "user { role }", input).await;
        assert_eq!(
            answer["data"]["updateUser"]["user"]["role"], role,
            "{answer}"
        );
    };
    promote("ADMIN").await;
    let key = key_of(&server, "second@example.com", &["READ", "ADMIN"]).await;
    let caller = server.with_token(&key.secret);
    let users = "{ users { totalCount } }";
    assert_eq!(outcome(&caller, users).await, (StatusCode::OK, None));
    let mut socket = Socket::subscribed(&server, &key.secret, EVENTS).await;
    promote("USER").await;
    until_shut_out(&mut socket).await;
    assert_eq!(
        outcome(&caller, users).await,
        (StatusCode::OK, Some("FORBIDDEN".to_owned()))
    );
    assert_eq!(outcome(&caller, WHO).await, (StatusCode::OK, None));
    promote("ADMIN").await;
    assert_eq!(outcome(&caller, users).await, (StatusCode::OK, None));
}

#[tokio::test]
async fn the_deletion_of_an_agent_ends_its_keys() {
    let server = serve().await;
    let owner = server.actor(OWNER).await;
    let agent = owner.saved("createAgent", json!({ "name": "Ada" })).await;
    let input = json!({ "name": "A", "scopes": ["READ"], "agentId": agent["id"] });
    let key = create(&owner, input).await;
    let caller = server.with_token(&key.secret);
    let mut socket = Socket::subscribed(&server, &key.secret, EVENTS).await;
    assert_eq!(outcome(&caller, WHO).await, (StatusCode::OK, None));
    owner.delete("deleteAgent", &agent["id"]).await;
    assert_eq!(caller.who().await, unauthenticated());
    until_shut_out(&mut socket).await;
    let db = server.database().connect().await;
    until_recorded(&db, "api_key.revoked", 1).await;
}

#[tokio::test]
async fn a_key_survives_a_new_password_and_a_sign_out() {
    let server = serve().await;
    let signed_in = server.anonymous().login(OWNER, PASSWORD).await;
    let owner = server.with_token(&signed_in.access);
    let key = create(&owner, json!({ "name": "A", "scopes": ["READ"] })).await;
    let mut socket = Socket::subscribed(&server, &key.secret, EVENTS).await;
    let input = json!({ "currentPassword": PASSWORD, "newPassword": "another password" });
    let answer = owner.mutate("changePassword", "accessToken", input).await;
    let token = text(&answer["data"]["changePassword"]["accessToken"]);
    let leave = "mutation { logout(input: { everywhere: true }) { revokedTokens } }";
    server.with_token(&token).ask(leave, json!({})).await;
    assert_eq!(server.with_token(&token).who().await, unauthenticated());
    assert_eq!(server.with_token(&key.secret).who().await, user(OWNER));
    server
        .actor(OWNER)
        .await
        .saved("createProject", json!({ "name": "After all" }))
        .await;
    let event = socket.skip_to("an event", |message| {
        message["payload"]["data"]["events"]["type"] == "PROJECT_CREATED"
    });
    event.await;
}

#[tokio::test]
async fn the_last_use_is_written_at_most_once_a_minute() {
    let server = serve().await;
    let key = key_of(&server, OWNER, &["READ"]).await;
    let caller = server.with_token(&key.secret);
    let db = server.database().connect().await;
    let last = async || {
        let row = api_key::Entity::find().one(&db).await.expect("reads");
        row.expect("a key").last_used_at
    };
    assert_eq!(last().await, None);
    caller.who().await.expect("a user");
    let first = until_some("the first use", async || last().await).await;
    // The use of another key is written after this one would be.
    let other = key_of(&server, ADMIN, &["READ"]).await;
    caller.who().await.expect("a user");
    server
        .with_token(&other.secret)
        .who()
        .await
        .expect("a user");
    let query = "query { apiKeys { nodes { lastUsedAt } } }";
    let admin = server.actor(ADMIN).await;
    until("the use of the other key", async || {
        admin.ask(query, json!({})).await["apiKeys"]["nodes"][0]["lastUsedAt"].is_string()
    })
    .await;
    let rows = api_key::Entity::find().all(&db).await.expect("reads");
    assert!(rows.iter().any(|row| row.last_used_at == Some(first)));
    server.pass(61);
    caller.who().await.expect("a user");
    until("a later use", async || {
        let rows = api_key::Entity::find().all(&db).await.expect("reads");
        rows.iter()
            .any(|row| row.last_used_at > Some(first + chrono::TimeDelta::seconds(60)))
    })
    .await;
    db.close().await.expect("closes");
}
