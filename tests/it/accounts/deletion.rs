//! The deletion of accounts: what prevents it, what is erased, what stays, and concurrent requests.

use futures_util::future::join;
use gathering_entity::{api_key, audit, idempotency, lockout, mail, refresh_token, transfer, user};
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};

use crate::accounts::audit::{entries_of, until_recorded};
use crate::support::account::{ADA, BOB, Tokens, unauthenticated};
use crate::support::actor::{ADMIN, Actor, Demo, GUEST, OWNER, code, faults};
use crate::support::database::PASSWORD;
use crate::support::events::{EVENTS, Socket};
use crate::support::server::TestServer;
use crate::support::smtp::MailServer;
use crate::support::wait::within;

const DELETED: &str = "deletedUserId userErrors { field code message }";

const ROUNDS: usize = 5;

impl Actor {
    /// The complete response to the deletion of the caller's account, or of another one.
    async fn try_delete(&self, input: Value) -> Value {
        let mut whole = json!({ "currentPassword": PASSWORD });
        whole
            .as_object_mut()
            .expect("an object")
            .extend(input.as_object().expect("an object").clone());
        self.mutate("deleteAccount", DELETED, whole).await
    }

    /// The same client with a new API key.
    async fn with_key(&self, input: Value) -> Self {
        let answer = self.mutate("createApiKey", "secret", input).await;
        let secret = answer["data"]["createApiKey"]["secret"].as_str();
        self.with(secret.unwrap_or_else(|| panic!("{answer}")))
    }

    /// The user errors of a deletion that is refused.
    async fn delete_refused(&self, input: Value) -> Vec<String> {
        let answer = self.try_delete(input).await;
        let payload = &answer["data"]["deleteAccount"];
        assert_eq!(payload["deletedUserId"], Value::Null, "{answer}");
        faults(payload)
    }

    /// Deletes an account, which must succeed.
    async fn delete_account(&self, user: &Value, input: Value) {
        let answer = self.try_delete(input).await;
        let expected = json!({ "deletedUserId": user, "userErrors": [] });
        assert_eq!(answer["data"]["deleteAccount"], expected, "{answer}");
    }
}

/// All rows of the database that could contain personal data, as text.
async fn everything(db: &sea_orm::DatabaseConnection) -> String {
    let users = user::Entity::find().all(db).await.expect("reads");
    let audit = audit::Entity::find().all(db).await.expect("reads");
    let mails = mail::Entity::find().all(db).await.expect("reads");
    let keys = api_key::Entity::find().all(db).await.expect("reads");
    let transfers = transfer::Entity::find().all(db).await.expect("reads");
    let messages = gathering_entity::message::Entity::find().all(db).await;
    let messages = messages
        .expect("reads")
        .into_iter()
        .map(|row| row.author_name);
    let messages: Vec<_> = messages.collect();
    let events = gathering_entity::event::Entity::find().all(db).await;
    let events = events.expect("reads");
    let keyed = idempotency::Entity::find().all(db).await.expect("reads");
    format!(
        "{users:?} {audit:?} {mails:?} {keys:?} {transfers:?} {messages:?} {events:?} {keyed:?}"
    )
}

async fn assert_no_trace(db: &sea_orm::DatabaseConnection, words: &[&str]) {
    let all = everything(db).await.to_lowercase();
    for word in words {
        assert!(!all.contains(word), "{word}");
    }
}

#[tokio::test]
async fn a_deleted_account_leaves_ids_and_no_personal_data() {
    let mails = MailServer::start().await;
    let server = TestServer::with(|config| mails.configure(config)).await;
    let demo = Demo::on(server).await;
    let visitor = demo.server.anonymous();
    let input = json!({ "email": ADA, "password": PASSWORD, "name": "Ada Lovelace" });
    let answer = visitor.mutate("register", crate::support::account::SIGNED_IN, input);
    let tokens = crate::support::account::tokens(&answer.await["data"]["register"]);
    let ada = visitor.with(&tokens.access);
    let id = ada.id().await;

    // The user reads and writes in a circle of another user, and has a key, an offer and a private conversation.
    let circle = demo.circle("Workshop").await;
    let share = json!({ "circleId": circle, "email": ADA, "role": "EDITOR" });
    demo.owner.done("shareCircle", share).await;
    let query = "query ($id: ID!) { circle(id: $id) { conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { id } } } }";
    let talk = ada.ask(query, json!({ "id": circle })).await;
    let talk = &talk["circle"]["conversations"]["nodes"][0]["id"];
    let message = json!({ "conversationId": talk, "content": "Good morning." });
    let message = ada.mutate("postMessage", "message { id }", message).await;
    let message = &message["data"]["postMessage"]["message"]["id"];
    assert!(message.is_string(), "{message}");
    let key = json!({ "name": "Ada's notebook", "scopes": ["READ"] });
    let key = ada.with_key(key).await;
    key.who().await.expect("is valid");
    let project = demo
        .owner
        .saved("createProject", json!({ "name": "Offered" }))
        .await;
    let offer = json!({ "projectId": project["id"], "email": ADA });
    let offer = demo
        .owner
        .mutate("transferProject", "transfer { id }", offer)
        .await;
    let offer = offer["data"]["transferProject"]["transfer"]["id"].clone();
    let beside = demo.server.beside(|_| ()).await;
    let mut here = Socket::subscribed(&demo.server, &tokens.access, EVENTS).await;
    let mut elsewhere = Socket::subscribed(&beside, &tokens.access, EVENTS).await;

    let since = demo.mark().await;
    ada.delete_account(&id, json!({})).await;

    for socket in [&mut here, &mut elsewhere] {
        let ended = socket.skip_to("the end of a stream", |message| message["type"] == "error");
        let ended = ended.await;
        assert_eq!(ended["payload"][0]["extensions"]["code"], "UNAUTHENTICATED");
    }
    assert_eq!(ada.who().await, unauthenticated());
    assert_eq!(key.who().await, unauthenticated());
    assert_eq!(
        code(&visitor.try_refresh(&tokens.refresh).await),
        "UNAUTHENTICATED"
    );
    assert_eq!(
        code(&visitor.try_login(ADA, PASSWORD).await),
        "UNAUTHENTICATED"
    );

    // Others see that the user is gone.
    let query = "query ($user: ID!, $message: ID!, $offer: ID!) {
        user: node(id: $user) { ... on User { name email isActive deletedAt role } }
        message: node(id: $message) { ... on Message { content authorName user { id name } } }
        offer: node(id: $offer) { ... on Transfer { status } }
        users(first: 100) { nodes { id } } }";
    let variables = json!({ "user": id, "message": message, "offer": offer });
    let data = demo.admin.ask(query, variables).await;
    let deleted_at = data["user"]["deletedAt"].clone();
    assert!(deleted_at.is_string());
    assert_eq!(
        data["user"],
        json!({ "name": "Deleted user", "email": null, "isActive": false, "deletedAt": deleted_at, "role": "USER" })
    );
    let author = json!({ "id": id, "name": "Deleted user" });
    assert_eq!(
        data["message"],
        json!({ "content": "Good morning.", "authorName": "Deleted user", "user": author })
    );
    assert_eq!(data["offer"]["status"], "DECLINED");
    let users = data["users"]["nodes"].as_array().expect("nodes");
    assert!(!users.iter().any(|user| user["id"] == id));
    let events = demo.announced(&since, 3).await;
    assert_eq!(
        events,
        ["CIRCLE_UNSHARED", "TRANSFER_DECLINED", "USER_DELETED"]
    );

    until_recorded(&demo.db, "user.deleted", 1).await;
    assert_no_trace(&demo.db, &["ada@", "lovelace", "notebook"]).await;
    let sessions = refresh_token::Entity::find().count(&demo.db).await;
    assert_eq!(sessions, Ok(0));
    // The three counters of the failed sign-in above; no known network.
    let counters = lockout::Entity::find().count(&demo.db).await;
    assert_eq!(counters, Ok(3));

    // The address is free, and the old account stays deleted.
    let again = visitor.register(ADA).await;
    assert_ne!(visitor.with(&again.access).id().await, id);
    demo.admin
        .delete_account(&id, json!({ "userId": id }))
        .await;
    let enable = json!({ "userId": id, "isActive": true });
    let refused = demo.admin.mutate("updateUser", "user { id }", enable).await;
    assert_eq!(code(&refused), "NOT_FOUND");
    drop((here, elsewhere));
    beside.end().await;
    let database = demo.server.end().await;
    let entries = entries_of(&database, "user.deleted").await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].actor_id, entries[0].target_id);
}

#[tokio::test]
async fn an_account_with_objects_that_others_use_is_not_deleted() {
    let demo = Demo::start().await;
    let id = demo.owner.id().await;
    assert_eq!(demo.owner.delete_refused(json!({})).await, ["IN_USE"]);
    // The circles are shared with the guest.
    let with_all = json!({ "deleteOwned": true });
    assert_eq!(
        demo.owner.delete_refused(with_all.clone()).await,
        ["IN_USE"]
    );
    let guest = demo.guest.id().await;
    for name in ["Library", "Workshop"] {
        let input = json!({ "circleId": demo.circle(name).await, "userId": guest });
        demo.owner.done("unshareCircle", input).await;
    }
    demo.owner.delete_account(&id, with_all).await;
    let query =
        "query ($id: ID!) { circles { totalCount } agents { totalCount } projects { totalCount }
        conversations { totalCount } tasks { totalCount } node(id: $id) { ... on User { name } } }";
    let data = demo.admin.ask(query, json!({ "id": id })).await;
    for list in ["circles", "agents", "projects", "conversations", "tasks"] {
        assert_eq!(data[list]["totalCount"], 0, "{list}: {data}");
    }
    assert_eq!(data["node"]["name"], "Deleted user");
}

#[tokio::test]
async fn agents_and_projects_in_circles_of_others_prevent_the_deletion() {
    let demo = Demo::start().await;
    let visitor = demo.server.anonymous();
    let ada = visitor.with(&visitor.register(ADA).await.access);
    let circle = demo.circle("Workshop").await;
    let share = json!({ "circleId": circle, "email": ADA, "role": "EDITOR" });
    demo.owner.done("shareCircle", share).await;
    let agent = ada.saved("createAgent", json!({ "name": "Helper" })).await;
    let add = json!({ "circleId": circle, "members": [{ "agentId": agent["id"] }] });
    let member = ada.done("addCircleMembers", add).await["members"][0]["id"].clone();
    let with_all = json!({ "deleteOwned": true });
    assert_eq!(ada.delete_refused(with_all.clone()).await, ["IN_USE"]);
    let remove = json!({ "memberId": member });
    demo.owner.done("removeCircleMember", remove).await;
    let id = ada.id().await;
    ada.delete_account(&id, with_all).await;
}

#[tokio::test]
async fn the_deletion_needs_the_password_and_for_others_an_administrator() {
    let demo = Demo::start().await;
    let wrong = json!({ "currentPassword": "not this one" });
    assert_eq!(
        demo.guest.delete_refused(wrong).await,
        ["INVALID currentPassword"]
    );
    let other = json!({ "userId": demo.owner.id().await });
    let refused = demo.guest.try_delete(other).await;
    assert_eq!(code(&refused), "FORBIDDEN");
    let none = json!({ "userId": demo.circle("Library").await });
    let refused = demo.admin.try_delete(none).await;
    assert_eq!(code(&refused), "BAD_USER_INPUT");
    // An administrator deletes the account of the guest, but not their own while it is the last one.
    let guest = demo.guest.id().await;
    demo.admin
        .delete_account(&guest, json!({ "userId": guest }))
        .await;
    assert_eq!(demo.guest.who().await, unauthenticated());
    assert_eq!(demo.admin.delete_refused(json!({})).await, ["PROTECTED"]);
    assert_eq!(demo.admin.who().await, Ok(ADMIN.to_owned()));
}

#[tokio::test]
async fn two_administrators_do_not_delete_each_other() {
    let demo = Demo::start().await;
    let visitor = demo.server.anonymous();
    visitor.register(ADA).await;
    let ada = visitor.with(&visitor.login(ADA, PASSWORD).await.access);
    let id = ada.id().await;
    let promote = json!({ "userId": id, "role": "ADMIN" });
    demo.admin
        .mutate("updateUser", "user { id }", promote)
        .await;
    let beside = demo.server.beside(|_| ()).await;
    let ada = beside.anonymous();
    let ada = ada.with(&ada.login(ADA, PASSWORD).await.access);
    let admin = demo.admin.id().await;
    let (one, other) = join(
        demo.admin.try_delete(json!({ "userId": id })),
        ada.try_delete(json!({ "userId": admin })),
    )
    .await;
    let done = |answer: &Value| answer["data"]["deleteAccount"]["deletedUserId"].is_string();
    assert!(done(&one) != done(&other), "{one} {other}");
}

#[tokio::test]
async fn a_service_account_is_deleted_with_its_owner() {
    let demo = Demo::start().await;
    let visitor = demo.server.anonymous();
    let ada = visitor.with(&visitor.register(ADA).await.access);
    let id = ada.id().await;
    let create = json!({ "name": "Robot", "ownerId": id });
    let service = demo
        .admin
        .mutate("createServiceAccount", "user { id }", create)
        .await;
    let service = service["data"]["createServiceAccount"]["user"]["id"].clone();
    let key = json!({ "name": "Key", "scopes": ["READ", "WRITE"], "userId": service });
    let key = ada.with_key(key).await;
    key.saved("createProject", json!({ "name": "Of the robot" }))
        .await;
    assert_eq!(ada.delete_refused(json!({})).await, ["IN_USE"]);
    ada.delete_account(&id, json!({ "deleteOwned": true }))
        .await;
    assert_eq!(key.who().await, unauthenticated());
    let query = "query ($id: ID!) { node(id: $id) { ... on User { name kind owner { id } } } }";
    let data = demo.admin.ask(query, json!({ "id": service })).await;
    let expected = json!({ "name": "Deleted user", "kind": "SERVICE", "owner": null });
    assert_eq!(data["node"], expected);
}

/// Runs another request of a user together with the deletion of the account on another instance.
async fn against<T>(
    demo: &Demo,
    beside: &TestServer,
    email: &str,
    other: impl AsyncFn(Actor, Tokens) -> T,
) -> (Value, T) {
    let visitor = demo.server.anonymous();
    let tokens = visitor.register(email).await;
    let user = visitor.with(&tokens.access);
    let elsewhere = beside.anonymous().with(&tokens.access);
    let id = user.id().await;
    let (answer, other) = within(
        "two requests",
        join(user.try_delete(json!({})), other(elsewhere, tokens)),
    )
    .await;
    if answer["data"]["deleteAccount"]["deletedUserId"].is_string() {
        assert_eq!(user.who().await, unauthenticated());
        let tokens = refresh_token::Entity::find()
            .all(&demo.db)
            .await
            .expect("reads");
        let of_user = |row: &&refresh_token::Model| row.user_id == crate::changes::uuid(&id);
        assert_eq!(tokens.iter().filter(of_user).count(), 0);
        let keys = api_key::Entity::find().count(&demo.db).await;
        assert_eq!(keys, Ok(0));
    }
    (answer, other)
}

#[tokio::test]
async fn no_session_or_key_survives_a_deletion_at_the_same_time() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    let is_done = |answer: &Value| answer["data"]["deleteAccount"]["deletedUserId"].is_string();
    for _ in 0..ROUNDS {
        let (deleted, signed_in) = against(&demo, &beside, ADA, async |user, _| {
            user.try_login(ADA, PASSWORD).await
        })
        .await;
        assert!(is_done(&deleted), "{deleted}");
        if let Some(token) = signed_in["data"]["login"]["accessToken"].as_str() {
            assert_eq!(demo.server.with_token(token).who().await, unauthenticated());
        }
        let (deleted, refreshed) = against(&demo, &beside, ADA, async |user, tokens| {
            user.try_refresh(&tokens.refresh).await
        })
        .await;
        assert!(is_done(&deleted), "{deleted}");
        if let Some(token) = refreshed["data"]["refreshSession"]["accessToken"].as_str() {
            assert_eq!(demo.server.with_token(token).who().await, unauthenticated());
        }
        let (deleted, created) = against(&demo, &beside, BOB, async |user, _| {
            let input = json!({ "name": "Key", "scopes": ["READ"] });
            user.mutate("createApiKey", "secret", input).await
        })
        .await;
        assert!(is_done(&deleted), "{deleted}");
        if let Some(token) = created["data"]["createApiKey"]["secret"].as_str() {
            assert_eq!(demo.server.with_token(token).who().await, unauthenticated());
        }
    }
}

#[tokio::test]
async fn a_transfer_and_a_deletion_of_its_new_owner_do_not_both_succeed() {
    let demo = Demo::start().await;
    let beside = demo.server.beside(|_| ()).await;
    for round in 0..ROUNDS {
        let name = format!("Round {round}");
        let project = demo
            .owner
            .saved("createProject", json!({ "name": name }))
            .await;
        let project = &project["id"];
        let (deleted, accepted) = against(&demo, &beside, ADA, async |user, _| {
            let offer = json!({ "projectId": project, "email": ADA });
            let offer = demo
                .owner
                .mutate("transferProject", "transfer { id }", offer)
                .await;
            let offer = &offer["data"]["transferProject"]["transfer"]["id"];
            let input = json!({ "transferId": offer });
            user.mutate("acceptTransfer", "transfer { status }", input)
                .await
        })
        .await;
        let is_deleted = deleted["data"]["deleteAccount"]["deletedUserId"].is_string();
        let status = &accepted["data"]["acceptTransfer"]["transfer"]["status"];
        assert!(
            !(is_deleted && status == "ACCEPTED"),
            "{deleted} {accepted}"
        );
        let query = "query ($id: ID!) { project(id: $id) { owner { email } } }";
        let data = demo.admin.ask(query, json!({ "id": project })).await;
        if is_deleted {
            assert_eq!(data["project"]["owner"]["email"], OWNER);
        } else {
            let user = demo.server.anonymous();
            let user = user.with(&user.login(ADA, PASSWORD).await.access);
            let id = user.id().await;
            user.delete_account(&id, json!({ "deleteOwned": true }))
                .await;
        }
    }
    assert_eq!(demo.guest.who().await, Ok(GUEST.to_owned()));
}
