//! Service accounts.

use super::*;
use crate::accounts::audit::until_recorded;
use crate::support::actor::{GUEST, code, faults};
use gathering_entity::user as users;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

/// Creates a service account that the demo user owns.
async fn service(server: &TestServer) -> Value {
    let admin = server.actor(ADMIN).await;
    let owner = server.actor(OWNER).await.id().await;
    let selection =
        "user { id name kind role email isActive owner { id } } userErrors { field code }";
    let input = json!({ "name": "Crawler", "ownerId": owner });
    let answer = admin.mutate("createServiceAccount", selection, input).await;
    let service = answer["data"]["createServiceAccount"]["user"].clone();
    let expected = json!({ "id": service["id"], "name": "Crawler", "kind": "SERVICE", "role": "USER",
        "email": null, "isActive": true, "owner": { "id": owner } });
    assert_eq!(service, expected, "{answer}");
    service["id"].clone()
}

#[tokio::test]
async fn a_service_account_works_with_keys_and_cannot_sign_in() {
    let server = TestServer::start().await;
    let service = service(&server).await;
    let owner = server.actor(OWNER).await;
    let input = json!({ "name": "A", "scopes": ["READ", "WRITE"], "userId": service });
    let key = create(&owner, input.clone()).await;
    let caller = server.with_token(&key.secret);
    assert_eq!(caller.id().await, service);
    let agent = caller
        .saved("createAgent", json!({ "name": "Of the service" }))
        .await;
    assert!(agent["id"].is_string());
    let guest = server.actor(GUEST).await;
    let refusal = guest.mutate("createApiKey", CREATED, input.clone()).await;
    assert_eq!(code(&refusal), "FORBIDDEN");
    let list = "query ($id: ID) { apiKeys(userId: $id) { nodes { id user { id } } } }";
    for actor in [&owner, &server.actor(ADMIN).await] {
        let keys = actor.ask(list, json!({ "id": service })).await;
        assert_eq!(keys["apiKeys"]["nodes"][0]["id"], key.id);
    }
    assert_eq!(
        code(&guest.answer(list, json!({ "id": service })).await),
        "FORBIDDEN"
    );
    create(&server.actor(ADMIN).await, input).await;

    // The answer to a sign-in is that to a wrong password.
    let db = server.database().connect().await;
    let row = users::Entity::find().filter(users::Column::Kind.eq(users::UserKind::Service));
    let row = row
        .one(&db)
        .await
        .expect("reads")
        .expect("a service account");
    let anonymous = server.anonymous();
    let refused = anonymous.try_login(&row.email, "").await;
    let wrong = anonymous
        .try_login("nobody@example.com", "a wrong password")
        .await;
    assert_eq!(refused["errors"], wrong["errors"]);
    until_recorded(&db, "user.service_created", 1).await;
    until_recorded(&db, "api_key.created", 2).await;
    db.close().await.expect("closes");

    let revoked = revoke(&owner, &key).await;
    assert!(revoked["apiKey"]["revokedAt"].is_string());
    assert_eq!(caller.who().await, unauthenticated());
}

#[tokio::test]
async fn administrators_list_and_disable_service_accounts() {
    let server = TestServer::start().await;
    let service = service(&server).await;
    let admin = server.actor(ADMIN).await;
    let input = json!({ "name": "A", "scopes": ["READ"], "userId": service });
    let key = create(&admin, input).await;
    let list = "{ users(filter: { kind: SERVICE }) { nodes { id } } }";
    let list = admin.ask(list, json!({})).await;
    assert_eq!(list["users"]["nodes"], json!([{ "id": service }]));
    let input = json!({ "userId": service, "isActive": false });
    admin.mutate("updateUser", "user { isActive }", input).await;
    let caller = server.with_token(&key.secret);
    assert_eq!(
        outcome(&caller, WHO).await,
        super::refused(403, "FORBIDDEN")
    );

    let owner = server.actor(OWNER).await;
    let answer = owner.mutate(
        "createServiceAccount",
        "user { id }",
        json!({ "name": "A", "ownerId": service }),
    );
    assert_eq!(code(&answer.await), "FORBIDDEN");
    let selection = "user { id } userErrors { field code }";
    let input = json!({ "name": "", "ownerId": service });
    let answer = admin.mutate("createServiceAccount", selection, input).await;
    let faults = faults(&answer["data"]["createServiceAccount"]);
    assert_eq!(faults, ["REQUIRED name", "INVALID ownerId"]);
}

#[tokio::test]
async fn only_administrators_create_administrative_keys() {
    let server = TestServer::start().await;
    let admin = server.actor(ADMIN).await;
    let owner = server.actor(OWNER).await;
    let input = json!({ "name": "Root", "ownerId": owner.id().await, "role": "ADMIN" });
    let answer = admin
        .mutate("createServiceAccount", "user { id }", input)
        .await;
    let service = &answer["data"]["createServiceAccount"]["user"]["id"];
    let input = json!({ "name": "A", "scopes": ["READ", "ADMIN"], "userId": service });
    let answer = owner.mutate("createApiKey", CREATED, input.clone()).await;
    assert_eq!(faults(&answer["data"]["createApiKey"]), ["INVALID scopes"]);
    let plain = create(
        &owner,
        json!({ "name": "A", "scopes": ["READ"], "userId": service }),
    )
    .await;
    let users = "{ users { totalCount } }";
    let refusal = server
        .with_token(&plain.secret)
        .answer(users, json!({}))
        .await;
    assert_eq!(
        refusal["errors"][0]["extensions"]["scope"], "ADMIN",
        "{refusal}"
    );
    let key = create(&admin, input).await;
    server.with_token(&key.secret).ask(users, json!({})).await;
}

#[tokio::test]
async fn keys_of_a_service_account_are_refused_while_its_owner_is_deactivated() {
    let server = TestServer::start().await;
    let service = service(&server).await;
    let admin = server.actor(ADMIN).await;
    let owner = server.actor(OWNER).await.id().await;
    let input = json!({ "name": "A", "scopes": ["READ"], "userId": service });
    let key = create(&admin, input).await;
    let caller = server.with_token(&key.secret);
    assert_eq!(caller.id().await, service);
    for (is_active, expected) in [
        (false, super::refused(403, "FORBIDDEN")),
        (true, (StatusCode::OK, None)),
    ] {
        let input = json!({ "userId": owner, "isActive": is_active });
        admin.mutate("updateUser", "user { isActive }", input).await;
        assert_eq!(outcome(&caller, WHO).await, expected);
    }
}
