//! Requests for transfers: their inputs, their end without a new owner, and lists.

use super::*;
use crate::accounts::audit::until_recorded;
use crate::support::counted::CountedGraph;

#[tokio::test]
async fn the_input_of_a_request_is_validated() {
    let demo = Demo::start().await;
    let guest = demo.guest.id().await;
    let service = json!({ "name": "Robot", "ownerId": demo.owner.id().await });
    let service = demo
        .admin
        .mutate("createServiceAccount", "user { id }", service)
        .await;
    let service = &service["data"]["createServiceAccount"]["user"]["id"];
    assert!(service.is_string());
    for thing in THINGS {
        let id = thing.create(&demo.owner, "Kept").await;
        let input = |fields: Value| {
            let mut input = fields;
            input[thing.id] = id.clone();
            input
        };
        for (fields, expected) in [
            (json!({}), "INVALID email"),
            (
                json!({ "newOwnerId": guest, "email": GUEST }),
                "INVALID newOwnerId",
            ),
            (json!({ "email": OWNER }), "INVALID email"),
            (json!({ "email": "nobody@example.com" }), "INVALID email"),
            (json!({ "email": "nobody" }), "INVALID email"),
            (
                json!({ "newOwnerId": demo.owner.id().await }),
                "INVALID newOwnerId",
            ),
            (json!({ "newOwnerId": service }), "INVALID newOwnerId"),
            (
                json!({ "email": GUEST, "message": "x".repeat(1_001) }),
                "TOO_LONG message",
            ),
        ] {
            let refused = payload(&demo.owner, thing.transfer, input(fields.clone())).await;
            assert_eq!(faults(&refused), [expected], "{fields}");
            assert_eq!(refused["transfer"], Value::Null);
        }
        let unknown = input(json!({ "newOwnerId": "user_01h455vb4pex5vsknk084sn02q" }));
        let refused = failure(&demo.owner, thing.transfer, unknown).await;
        assert_eq!(refused, "NOT_FOUND newOwnerId");
        let note = input(json!({ "newOwnerId": guest, "message": "  Please.  " }));
        let offered = transferred(&demo.owner, thing.transfer, note).await;
        assert_eq!(offered["message"], "Please.");
        // At most one is pending.
        let again = payload(&demo.owner, thing.transfer, thing.to(&id, ADMIN)).await;
        assert_eq!(faults(&again), ["BAD_TRANSITION"]);
    }
}

#[tokio::test]
async fn declined_and_cancelled_transfers_cannot_be_accepted() {
    let demo = Demo::start().await;
    for thing in THINGS {
        let id = thing.create(&demo.owner, "Kept").await;
        for (actor, name, end) in [
            (&demo.guest, "declineTransfer", "DECLINED"),
            (&demo.owner, "cancelTransfer", "CANCELLED"),
            (&demo.admin, "cancelTransfer", "CANCELLED"),
        ] {
            let offered = thing.offer(&demo.owner, &id, GUEST).await;
            let ended = transferred(actor, name, this(&offered)).await;
            assert_eq!(ended["status"], end);
            assert!(ended["resolvedAt"].is_string());
            for (actor, name) in [
                (&demo.guest, "acceptTransfer"),
                (&demo.guest, "declineTransfer"),
                (&demo.owner, "cancelTransfer"),
            ] {
                let refused = payload(actor, name, this(&offered)).await;
                assert_eq!(faults(&refused), ["BAD_TRANSITION"], "{name}");
                assert_eq!(refused["transfer"]["status"], end);
            }
        }
        assert_eq!(owner(&demo, &id).await, OWNER);
    }
    until_recorded(&demo.db, "transfer.requested", 9).await;
    until_recorded(&demo.db, "transfer.declined", 3).await;
    until_recorded(&demo.db, "transfer.cancelled", 6).await;
}

#[tokio::test]
async fn a_transfer_expires_and_does_not_block_another() {
    let mut demo = Demo::start().await;
    let id = CIRCLE.create(&demo.owner, "Kept").await;
    let offered = CIRCLE.offer(&demo.owner, &id, GUEST).await;
    let pending = json!({ "status": ["PENDING"] });
    let expired = json!({ "status": ["EXPIRED"] });
    assert_eq!(listed(&demo.guest, pending.clone()).await.len(), 1);
    demo.server.pass(7 * 24 * 3_600);
    for (actor, email) in [
        (&mut demo.owner, OWNER),
        (&mut demo.guest, GUEST),
        (&mut demo.admin, ADMIN),
    ] {
        *actor = demo.server.actor(email).await;
    }
    assert_eq!(status(&demo, &offered).await, "EXPIRED");
    assert_eq!(listed(&demo.guest, pending.clone()).await, [Value::Null; 0]);
    assert_eq!(listed(&demo.guest, expired.clone()).await.len(), 1);
    let refused = payload(&demo.guest, "acceptTransfer", this(&offered)).await;
    assert_eq!(faults(&refused), ["BAD_TRANSITION"]);
    assert!(refused["transfer"]["resolvedAt"].is_string());
    let next = CIRCLE.offer(&demo.owner, &id, GUEST).await;
    assert_eq!(status(&demo, &offered).await, "EXPIRED");
    assert_eq!(listed(&demo.guest, pending).await, [next["id"].clone()]);
    assert_eq!(listed(&demo.guest, expired).await, [offered["id"].clone()]);
    transferred(&demo.guest, "acceptTransfer", this(&next)).await;

    // Both are deleted 30 days after they have expired.
    demo.server.pass(29 * 24 * 3_600);
    demo.server.purge().await;
    demo.admin = demo.server.actor(ADMIN).await;
    assert_eq!(listed(&demo.admin, Value::Null).await.len(), 2);
    demo.server.pass(9 * 24 * 3_600);
    demo.server.purge().await;
    demo.admin = demo.server.actor(ADMIN).await;
    assert_eq!(listed(&demo.admin, Value::Null).await, [Value::Null; 0]);
}

#[tokio::test]
async fn a_transfer_is_deleted_with_its_object() {
    let demo = Demo::start().await;
    for thing in THINGS {
        let id = thing.create(&demo.owner, "Doomed").await;
        let offered = thing.offer(&demo.owner, &id, GUEST).await;
        demo.owner.delete(thing.delete, &id).await;
        let refused = failure(&demo.guest, "acceptTransfer", this(&offered)).await;
        assert_eq!(refused, "NOT_FOUND transferId");
    }
    assert_eq!(listed(&demo.admin, Value::Null).await, [Value::Null; 0]);
}

#[tokio::test]
async fn transfers_are_listed_by_direction_and_status() {
    let demo = Demo::start().await;
    let mut ids = Vec::new();
    for thing in THINGS {
        let out = thing.create(&demo.owner, "Out").await;
        let out = thing.offer(&demo.owner, &out, GUEST).await;
        let back = thing.create(&demo.guest, "In").await;
        let back = thing.offer(&demo.guest, &back, OWNER).await;
        transferred(&demo.owner, "declineTransfer", this(&back)).await;
        ids.extend([out["id"].clone(), back["id"].clone()]);
    }
    ids.reverse();
    let every = |n: usize| -> Vec<Value> { ids.iter().skip(n).step_by(2).cloned().collect() };
    let incoming = json!({ "direction": "INCOMING" });
    let outgoing = json!({ "direction": "OUTGOING" });
    for actor in [&demo.owner, &demo.guest, &demo.admin] {
        assert_eq!(listed(actor, Value::Null).await, ids);
        assert_eq!(
            listed(actor, json!({ "status": ["PENDING"] })).await,
            every(1)
        );
        assert_eq!(
            listed(actor, json!({ "status": ["DECLINED"] })).await,
            every(0)
        );
        let all = json!({ "status": ["DECLINED", "PENDING", "ACCEPTED"] });
        assert_eq!(listed(actor, all).await, ids);
        assert_eq!(listed(actor, json!({ "status": [] })).await, every(6));
    }
    assert_eq!(listed(&demo.owner, outgoing.clone()).await, every(1));
    assert_eq!(listed(&demo.owner, incoming.clone()).await, every(0));
    assert_eq!(listed(&demo.guest, outgoing.clone()).await, every(0));
    assert_eq!(listed(&demo.guest, incoming.clone()).await, every(1));
    assert_eq!(listed(&demo.admin, outgoing).await, every(6));
    assert_eq!(listed(&demo.admin, incoming).await, every(6));
    let stranger = demo.server.anonymous().register("ada@example.com").await;
    let stranger = demo.server.with_token(&stranger.access);
    assert_eq!(listed(&stranger, Value::Null).await, every(6));
}

#[tokio::test]
async fn a_list_takes_the_same_statements_for_any_number_of_transfers() {
    let demo = Demo::start().await;
    let graph = CountedGraph::on(&demo.server).await;
    let query =
        "query ($first: Int) { transfers(first: $first) { nodes { id kind name status message
        fromUser { name } toUser { name } requestedBy { name }
        resource { id ... on Circle { name } ... on Agent { name } ... on Project { name } } } } }";
    let mut costs = Vec::new();
    for times in [1, 49] {
        for n in 0..times {
            for thing in THINGS {
                let id = thing.create(&demo.owner, &format!("{times} {n}")).await;
                thing.offer(&demo.owner, &id, GUEST).await;
            }
        }
        let first = json!({ "first": 100 });
        let (answer, cost) = graph.cost(demo.owner.token(), query, first).await;
        let nodes = answer["data"]["transfers"]["nodes"].as_array();
        assert_eq!(nodes.map(Vec::len), Some((3 * times).min(100)), "{answer}");
        costs.push(cost);
    }
    assert_eq!(costs[0], costs[1]);
    // The list; and in each of two steps at most a statement per type.
    assert!(costs[0] <= 8, "{costs:?}");
}
