//! The effects of an accepted transfer.

use super::*;
use crate::support::account::unauthenticated;
use crate::support::events::Socket;
use crate::support::wait::until_some;

#[tokio::test]
async fn the_new_owner_gets_the_rights_of_the_owner_and_the_former_one_loses_them() {
    let demo = Demo::start().await;
    let [from, to] = [demo.owner.id().await, demo.guest.id().await];
    for thing in THINGS {
        let id = thing.create(&demo.owner, "Given").await;
        let offered = thing.offer(&demo.owner, &id, " Guest@EXAMPLE.com ").await;
        assert_eq!(offered["kind"], thing.kind);
        assert_eq!(offered["status"], "PENDING");
        assert_eq!(offered["name"], "Given");
        assert_eq!(offered["resolvedAt"], Value::Null);
        assert_eq!(offered["fromUser"]["id"], from);
        assert_eq!(offered["requestedBy"]["id"], from);
        assert_eq!(offered["toUser"]["id"], to);
        assert_eq!(offered["resource"]["id"], id);
        // The request changes no rights. The new owner sees the name, but not the object.
        let query =
            "query ($id: ID!) { node(id: $id) { ... on Transfer { name resource { id } } } }";
        let seen = demo.guest.ask(query, json!({ "id": offered["id"] })).await;
        assert_eq!(seen["node"], json!({ "name": "Given", "resource": null }));
        let update = || thing.named(&id, "Renamed");
        let unknown = format!("NOT_FOUND {}", thing.id);
        assert_eq!(demo.guest.refused(thing.update, update()).await, unknown);
        assert_eq!(owner(&demo, &id).await, OWNER);

        let since = demo.mark().await;
        let accepted = transferred(&demo.guest, "acceptTransfer", this(&offered)).await;
        assert_eq!(accepted["status"], "ACCEPTED");
        assert!(accepted["resolvedAt"].is_string());
        assert_eq!(accepted["resource"]["id"], id);
        assert_eq!(owner(&demo, &id).await, GUEST);
        let mut events = vec![thing.event, "TRANSFER_ACCEPTED"];
        if thing.kind == "CIRCLE" {
            events.insert(1, "CIRCLE_SHARED");
        }
        assert_eq!(demo.announced(&since, events.len()).await, events);
        let refused = demo.owner.refused(thing.update, update()).await;
        let expected = if thing.kind == "CIRCLE" {
            "FORBIDDEN"
        } else {
            &*unknown
        };
        assert_eq!(refused, expected);
        let saved = demo.guest.saved(thing.update, update()).await;
        assert_eq!(saved["name"], "Renamed");
        if thing.kind != "PROJECT" {
            assert_eq!(saved["version"], 3);
        }
        demo.guest.delete(thing.delete, &id).await;
    }
}

#[tokio::test]
async fn a_circle_keeps_its_contents_and_its_former_owner_edits_it() {
    let demo = Demo::start().await;
    // The guest is a collaborator of this circle.
    let id = demo.circle(crate::support::actor::WORKSHOP).await;
    let contents = async |actor: &Actor| {
        let query =
            "query ($id: ID!) { circle(id: $id) { version members(first: 100) { nodes { id } }
            tasks(first: 100) { nodes { id status assignee { id } } } conversations { totalCount }
            project { id } viewerAccess collaborators { edges { role node { email } } } } }";
        actor.ask(query, json!({ "id": id })).await["circle"].clone()
    };
    let before = contents(&demo.owner).await;
    assert_eq!(contents(&demo.guest).await["viewerAccess"], "EDITOR");
    CIRCLE.give(&id, &demo.owner, GUEST, &demo.guest).await;
    let after = contents(&demo.guest).await;
    for field in ["members", "tasks", "conversations", "project"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    let version = before["version"].as_i64().map(|version| version + 1);
    assert_eq!(after["version"].as_i64(), version);
    assert_eq!(after["viewerAccess"], "OWNER");
    assert_eq!(contents(&demo.owner).await["viewerAccess"], "EDITOR");
    let edges = contents(&demo.admin).await["collaborators"]["edges"].clone();
    let expected = json!([{ "role": "EDITOR", "node": { "email": OWNER } }]);
    assert_eq!(edges, expected);
    // The former owner may leave, and then reads nothing.
    let leave = json!({ "circleId": id, "userId": demo.owner.id().await });
    demo.owner.done("unshareCircle", leave).await;
    let update = CIRCLE.named(&id, "Mine");
    let refused = demo.owner.refused("updateCircle", update).await;
    assert_eq!(refused, "NOT_FOUND circleId");
}

#[tokio::test]
async fn an_agent_keeps_its_memberships_and_tasks() {
    let demo = Demo::start().await;
    let agent = AGENT.create(&demo.owner, "Ada").await;
    let input = json!({ "name": "Home", "members": [{ "agentId": agent }], "startNow": true });
    let circle = demo.owner.saved("createCircle", input).await["id"].clone();
    let input = json!({ "circleId": circle, "title": "Work", "assigneeId": agent });
    let task = demo.owner.saved("createTask", input).await["id"].clone();
    let start = json!({ "taskId": task });
    demo.owner.done("startTask", start).await;
    let prompt = json!({ "agentId": agent, "systemPrompt": "A secret." });
    demo.owner.done("updateAgent", prompt).await;
    AGENT.give(&agent, &demo.owner, GUEST, &demo.guest).await;
    let query = "query ($id: ID!) { agent(id: $id) { systemPrompt status } }";
    let variables = json!({ "id": agent });
    let mine = demo.guest.ask(query, variables.clone()).await["agent"].clone();
    assert_eq!(
        mine,
        json!({ "systemPrompt": "A secret.", "status": "BUSY" })
    );
    let theirs = demo.owner.ask(query, variables).await["agent"].clone();
    assert_eq!(theirs, json!({ "systemPrompt": null, "status": "BUSY" }));
    let query = "query ($id: ID!) { circle(id: $id) { members { nodes { id } } tasks { nodes { status assignee { id } } } } }";
    let data = demo.owner.ask(query, json!({ "id": circle })).await;
    let expected = json!({
        "members": { "nodes": [{ "id": agent }] },
        "tasks": { "nodes": [{ "status": "IN_PROGRESS", "assignee": { "id": agent } }] },
    });
    assert_eq!(data["circle"], expected);
    let input = json!({ "taskId": task, "result": "Done." });
    demo.owner.done("submitTask", input).await;
}

#[tokio::test]
async fn the_keys_of_a_transferred_agent_lose_their_access() {
    let demo = Demo::start().await;
    let agent = AGENT.create(&demo.owner, "Ada").await;
    let input = json!({ "name": "Home", "members": [{ "agentId": agent }] });
    let circle = demo.owner.saved("createCircle", input).await["id"].clone();
    let key = async |limit: Value| {
        let mut input = json!({ "name": "A key", "scopes": ["READ", "WRITE"] });
        let all = input.as_object_mut().expect("an object");
        all.extend(limit.as_object().expect("an object").clone());
        let created = demo.owner.mutate("createApiKey", "secret", input).await;
        let secret = created["data"]["createApiKey"]["secret"].as_str();
        secret.unwrap_or_else(|| panic!("{created}")).to_owned()
    };
    let of_agent = key(json!({ "agentId": agent })).await;
    let of_circle = key(json!({ "circleIds": [circle] })).await;
    let subscription = "subscription { events { type } }";
    let mut socket = Socket::subscribed(&demo.server, &of_agent, subscription).await;
    AGENT.give(&agent, &demo.owner, GUEST, &demo.guest).await;
    let caller = demo.server.with_token(&of_agent);
    assert_eq!(caller.who().await, unauthenticated());
    let is_end = |message: &Value| message["type"] == "error";
    let error = socket.skip_to("the end of the stream", is_end).await;
    let code = &error["payload"][0]["extensions"]["code"];
    assert_eq!(code, "UNAUTHENTICATED", "{error}");
    assert_eq!(socket.closed().await.0, 4403);
    // No new key of the former owner can act as the agent.
    let input = json!({ "name": "Another", "scopes": ["READ"], "agentId": agent });
    let answer = demo.owner.mutate("createApiKey", "secret", input).await;
    assert_eq!(refusal(&answer), "NOT_FOUND agentId");

    // A key for a circle has the rights that its user still has.
    let caller = demo.server.with_token(&of_circle);
    let query = "query ($id: ID!) { circle(id: $id) { viewerAccess } }";
    let read = async || caller.answer(query, json!({ "id": circle })).await;
    assert_eq!(read().await["data"]["circle"]["viewerAccess"], "OWNER");
    let stream = format!("subscription {{ circleEvents(circleId: {circle}) {{ type }} }}");
    let mut socket = Socket::subscribed(&demo.server, &of_circle, &stream).await;
    CIRCLE.give(&circle, &demo.owner, GUEST, &demo.guest).await;
    let events = [
        socket.value("circleEvents").await["type"].clone(),
        socket.value("circleEvents").await["type"].clone(),
    ];
    assert_eq!(events, ["CIRCLE_OWNER_CHANGED", "CIRCLE_SHARED"]);
    assert_eq!(read().await["data"]["circle"]["viewerAccess"], "EDITOR");
    let update = CIRCLE.named(&circle, "Mine");
    assert_eq!(caller.refused("updateCircle", update).await, "FORBIDDEN");
    let unshare = json!({ "circleId": circle, "userId": demo.owner.id().await });
    demo.guest.done("unshareCircle", unshare).await;
    assert_eq!(refusal(&read().await), "NOT_FOUND id");
}

#[tokio::test]
async fn each_user_receives_the_events_of_the_other() {
    let demo = Demo::start().await;
    let types = async |actor: &Actor, count: usize| {
        let query = "{ events(first: 100) { nodes { type ... on TransferEvent { transferId transfer { id status } } } } }";
        until_some("events of transfers", async || {
            let data = actor.ask(query, json!({})).await;
            let nodes = data["events"]["nodes"].as_array().expect("nodes");
            let own = nodes
                .iter()
                .rev()
                .filter(|node| node["transferId"].is_string());
            let own: Vec<_> = own.cloned().collect();
            (own.len() >= count).then_some(own)
        })
        .await
    };
    let id = PROJECT.create(&demo.owner, "Given").await;
    let declined = PROJECT.offer(&demo.owner, &id, GUEST).await;
    transferred(&demo.guest, "declineTransfer", this(&declined)).await;
    let cancelled = PROJECT.offer(&demo.owner, &id, GUEST).await;
    transferred(&demo.owner, "cancelTransfer", this(&cancelled)).await;
    let accepted = PROJECT.offer(&demo.owner, &id, GUEST).await;
    transferred(&demo.guest, "acceptTransfer", this(&accepted)).await;
    let event = |kind: &str, transfer: &Value, status: &str| {
        let id = &transfer["id"];
        json!({ "type": kind, "transferId": id, "transfer": { "id": id, "status": status } })
    };
    let expected = [
        event("TRANSFER_REQUESTED", &declined, "DECLINED"),
        event("TRANSFER_REQUESTED", &cancelled, "CANCELLED"),
        event("TRANSFER_CANCELLED", &cancelled, "CANCELLED"),
        event("TRANSFER_REQUESTED", &accepted, "ACCEPTED"),
    ];
    assert_eq!(types(&demo.guest, 4).await, expected);
    let expected = [
        event("TRANSFER_DECLINED", &declined, "DECLINED"),
        event("TRANSFER_ACCEPTED", &accepted, "ACCEPTED"),
    ];
    assert_eq!(types(&demo.owner, 2).await, expected);
    let [from, to] = [demo.owner.id().await, demo.guest.id().await];
    let query = "{ events(first: 1, filter: { types: [PROJECT_OWNER_CHANGED] }) { nodes {
        ... on ProjectEvent { projectId changed previousOwner { id } newOwner { id } } } } }";
    let data = demo.guest.ask(query, json!({})).await;
    let expected = json!({
        "projectId": id,
        "changed": ["owner"],
        "previousOwner": { "id": from },
        "newOwner": { "id": to },
    });
    assert_eq!(data["events"]["nodes"][0], expected);
}

#[tokio::test]
async fn a_name_clash_leaves_the_transfer_pending() {
    let demo = Demo::start().await;
    for thing in THINGS {
        let id = thing.create(&demo.owner, "Clash").await;
        let other = thing.create(&demo.guest, "CLASH").await;
        let offered = thing.offer(&demo.owner, &id, GUEST).await;
        let refused = payload(&demo.guest, "acceptTransfer", this(&offered)).await;
        assert_eq!(faults(&refused), ["TAKEN"]);
        assert_eq!(refused["transfer"]["status"], "PENDING");
        assert_eq!(owner(&demo, &id).await, OWNER);
        let renamed = thing.named(&other, "No clash");
        demo.guest.done(thing.update, renamed).await;
        transferred(&demo.guest, "acceptTransfer", this(&offered)).await;
        assert_eq!(owner(&demo, &id).await, GUEST);
    }
}

#[tokio::test]
async fn an_agent_in_an_open_private_conversation_is_not_transferred() {
    let demo = Demo::start().await;
    let id = AGENT.create(&demo.owner, "Ada").await;
    let offered = AGENT.offer(&demo.owner, &id, GUEST).await;
    let input = json!({ "topic": "Private", "participantIds": [id] });
    let talk = demo.owner.saved("createConversation", input).await["id"].clone();
    let refused = payload(&demo.guest, "acceptTransfer", this(&offered)).await;
    assert_eq!(faults(&refused), ["IN_USE"]);
    transferred(&demo.owner, "cancelTransfer", this(&offered)).await;
    let refused = payload(&demo.owner, "transferAgent", AGENT.to(&id, GUEST)).await;
    assert_eq!(faults(&refused), ["IN_USE"]);
    let cancel = json!({ "conversationId": talk });
    demo.owner.done("cancelConversation", cancel).await;
    AGENT.give(&id, &demo.owner, GUEST, &demo.guest).await;
}

#[tokio::test]
async fn a_repeated_acceptance_with_the_same_key_changes_nothing() {
    let demo = Demo::start().await;
    let id = CIRCLE.create(&demo.owner, "Given").await;
    let offered = CIRCLE.offer(&demo.owner, &id, GUEST).await;
    let query = "mutation ($input: TransferActionInput!) { acceptTransfer(input: $input) {
        transfer { id status } userErrors { code } } }";
    let since = demo.mark().await;
    let expected = json!({
        "transfer": { "id": offered["id"], "status": "ACCEPTED" },
        "userErrors": [],
    });
    for _ in 0..2 {
        let request = demo
            .guest
            .request(query, &json!({ "input": this(&offered) }));
        let request = request.header("idempotency-key", "accept-the-circle");
        let answer = request.send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(answer["data"]["acceptTransfer"], expected, "{answer}");
    }
    let events = ["CIRCLE_OWNER_CHANGED", "CIRCLE_SHARED", "TRANSFER_ACCEPTED"];
    assert_eq!(demo.announced(&since, 3).await, events);
}
