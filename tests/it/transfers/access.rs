//! Who may see, request and answer a transfer.

use super::*;
use crate::accounts::audit::until_recorded;

#[tokio::test]
async fn a_transfer_is_visible_to_both_users_and_administrators_only() {
    let demo = Demo::start().await;
    let stranger = demo.server.anonymous().register("ada@example.com").await;
    let stranger = demo.server.with_token(&stranger.access);
    let node = "query ($id: ID!) { node(id: $id) { id } }";
    for thing in THINGS {
        let id = thing.create(&demo.owner, "Mine").await;
        let refused = failure(&stranger, thing.transfer, thing.to(&id, ADMIN)).await;
        assert_eq!(refused, format!("NOT_FOUND {}", thing.id));
        let offered = thing.offer(&demo.owner, &id, GUEST).await;
        let variables = json!({ "id": offered["id"] });
        for actor in [&demo.owner, &demo.guest, &demo.admin] {
            actor.ask(node, variables.clone()).await;
        }
        let answer = stranger.answer(node, variables).await;
        assert_eq!(refusal(&answer), "NOT_FOUND id");
        for name in ["acceptTransfer", "declineTransfer", "cancelTransfer"] {
            let refused = failure(&stranger, name, this(&offered)).await;
            assert_eq!(refused, "NOT_FOUND transferId", "{name}");
        }
        for (actor, name) in [
            (&demo.owner, "acceptTransfer"),
            (&demo.owner, "declineTransfer"),
            (&demo.admin, "acceptTransfer"),
            (&demo.admin, "declineTransfer"),
            (&demo.guest, "cancelTransfer"),
        ] {
            let refused = failure(actor, name, this(&offered)).await;
            assert_eq!(refused, "FORBIDDEN", "{name}");
        }
        assert_eq!(status(&demo, &offered).await, "PENDING");
    }
}

#[tokio::test]
async fn only_the_owner_requests_a_transfer_while_active() {
    let demo = Demo::start().await;
    let id = demo.circle(crate::support::actor::WORKSHOP).await;
    // An editor, and an administrator.
    for actor in [&demo.guest, &demo.admin] {
        let refused = failure(actor, "transferCircle", CIRCLE.to(&id, ADMIN)).await;
        assert_eq!(refused, "FORBIDDEN");
    }
    for thing in [AGENT, PROJECT] {
        let id = thing.create(&demo.owner, "Mine").await;
        let refused = failure(&demo.admin, thing.transfer, thing.to(&id, GUEST)).await;
        assert_eq!(refused, "FORBIDDEN");
    }
}

#[tokio::test]
async fn an_administrator_transfers_the_objects_of_a_deactivated_user() {
    let demo = Demo::start().await;
    let user = demo.owner.id().await;
    let mut ids = Vec::new();
    for thing in THINGS {
        ids.push(thing.create(&demo.owner, "Orphan").await);
    }
    set_active(&demo, &user, false).await;
    for (thing, id) in THINGS.into_iter().zip(&ids) {
        let offered = thing.offer(&demo.admin, id, GUEST).await;
        assert_eq!(offered["fromUser"]["id"], user);
        assert_eq!(offered["requestedBy"]["id"], demo.admin.id().await);
        transferred(&demo.guest, "acceptTransfer", this(&offered)).await;
        assert_eq!(owner(&demo, id).await, GUEST);
        if thing.kind == "CIRCLE" {
            let query = "query ($id: ID!) { circle(id: $id) { collaborators { totalCount } } }";
            let data = demo.guest.ask(query, json!({ "id": id })).await;
            assert_eq!(data["circle"]["collaborators"]["totalCount"], 0);
        }
    }
    // The new owner can be the administrator, too.
    let other = demo.circle(crate::support::actor::ATELIER).await;
    CIRCLE.give(&other, &demo.admin, ADMIN, &demo.admin).await;
    assert_eq!(owner(&demo, &other).await, ADMIN);
    until_recorded(&demo.db, "transfer.requested", 4).await;
    until_recorded(&demo.db, "transfer.accepted", 4).await;
    let query = "{ auditLog(first: 10, filter: { action: \"transfer.requested\" }) { nodes {
        severity actor { email } targetId details } } }";
    let data = demo.admin.ask(query, json!({})).await;
    let entries = data["auditLog"]["nodes"].as_array().expect("entries");
    let entry = entries.iter().find(|entry| entry["targetId"] == ids[1]);
    let entry = entry.expect("an entry");
    assert_eq!(entry["severity"], "WARNING");
    assert_eq!(entry["actor"]["email"], ADMIN);
    assert_eq!(entry["details"]["from"], user);
    assert_eq!(entry["details"]["to"], demo.guest.id().await);
}

#[tokio::test]
async fn a_deactivated_user_neither_receives_nor_accepts_a_transfer() {
    let demo = Demo::start().await;
    let guest = demo.guest.id().await;
    let id = CIRCLE.create(&demo.owner, "Kept").await;
    let offered = CIRCLE.offer(&demo.owner, &id, GUEST).await;
    set_active(&demo, &guest, false).await;
    let refused = failure(&demo.guest, "acceptTransfer", this(&offered)).await;
    assert!(
        ["UNAUTHENTICATED", "FORBIDDEN"].contains(&&*refused),
        "{refused}"
    );
    assert_eq!(owner(&demo, &id).await, OWNER);
    transferred(&demo.owner, "cancelTransfer", this(&offered)).await;
    let refused = payload(&demo.owner, "transferCircle", CIRCLE.to(&id, GUEST)).await;
    assert_eq!(faults(&refused), ["INVALID email"]);
    let input = json!({ "circleId": id, "newOwnerId": guest });
    let refused = failure(&demo.owner, "transferCircle", input).await;
    assert_eq!(refused, "NOT_FOUND newOwnerId");
}

#[tokio::test]
async fn a_key_that_is_limited_to_circles_has_no_transfers() {
    let demo = Demo::start().await;
    let id = CIRCLE.create(&demo.owner, "Mine").await;
    let offered = CIRCLE.offer(&demo.owner, &id, GUEST).await;
    let key = async |limit: Option<&Value>| {
        let mut input = json!({ "name": "A key", "scopes": ["READ", "WRITE"] });
        if let Some(circle) = limit {
            input["circleIds"] = json!([circle]);
        }
        let created = demo.owner.mutate("createApiKey", "secret", input).await;
        let secret = created["data"]["createApiKey"]["secret"].as_str();
        demo.server.with_token(secret.expect("a secret"))
    };
    let limited = key(Some(&id)).await;
    let answer = limited
        .answer("{ transfers { totalCount } }", json!({}))
        .await;
    assert_eq!(refusal(&answer), "FORBIDDEN");
    let node = "query ($id: ID!) { node(id: $id) { id } }";
    let answer = limited.answer(node, json!({ "id": offered["id"] })).await;
    assert_eq!(refusal(&answer), "NOT_FOUND id");
    let refused = failure(&limited, "cancelTransfer", this(&offered)).await;
    assert_eq!(refused, "FORBIDDEN");
    let all = key(None).await;
    assert_eq!(listed(&all, Value::Null).await, [offered["id"].clone()]);
    transferred(&all, "cancelTransfer", this(&offered)).await;
}

#[tokio::test]
async fn the_name_is_visible_while_the_transfer_is_pending_or_the_object_readable() {
    let demo = Demo::start().await;
    let node = "query ($id: ID!) { node(id: $id) { ... on Transfer { name } } }";
    for thing in THINGS {
        let id = thing.create(&demo.owner, "Open").await;
        let offered = thing.offer(&demo.owner, &id, GUEST).await;
        let variables = json!({ "id": offered["id"] });
        let name =
            async |actor: &Actor| actor.ask(node, variables.clone()).await["node"]["name"].clone();
        assert_eq!(name(&demo.guest).await, "Open");
        transferred(&demo.guest, "declineTransfer", this(&offered)).await;
        demo.owner
            .saved(thing.update, thing.named(&id, "Secret"))
            .await;
        assert_eq!(name(&demo.guest).await, json!(null), "{}", thing.kind);
        for actor in [&demo.owner, &demo.admin] {
            assert_eq!(name(actor).await, "Secret");
        }
    }
}
