//! Access rights of subscribers.

use super::*;

#[tokio::test]
async fn losing_access_to_a_circle_ends_its_events_in_an_open_stream() {
    let server = TestServer::start().await;
    let (circle, _) = shared_circle(&server).await;
    let query =
        "subscription { events { type ... on TaskEvent { title } ... on ProjectEvent { name } } }";
    let mut guest =
        Socket::subscribed(&server, &server.token("guest@example.com").await, query).await;
    let task = |title: &str| json!({ "circleId": circle, "title": title, "assigneeId": null });
    change(&server, "createTask task { id }", task("before")).await;
    let event = guest.value("events").await;
    assert_eq!(event, json!({ "type": "TASK_CREATED", "title": "before" }));
    let token = server.token("guest@example.com").await;
    let viewer = server
        .with_token(&token)
        .answer("{ viewer { id } }", json!({}))
        .await;
    let input = json!({ "circleId": circle, "userId": viewer["data"]["viewer"]["id"] });
    change(&server, "unshareCircle circle { id }", input).await;
    change(&server, "createTask task { id }", task("after")).await;
    // The guest still receives its own events; an earlier event would have arrived before this one.
    let own = json!({ "input": { "name": "Own" } });
    server.with_token(&token).answer(CREATE, own).await;
    let mut heard = Vec::new();
    while heard.last() != Some(&json!("PROJECT_CREATED")) {
        let event = guest.value("events").await;
        assert_ne!(event["title"], "after");
        heard.push(event["type"].clone());
    }
    assert!(heard.contains(&json!("CIRCLE_UNSHARED")), "{heard:?}");
}

async fn delete_circle(server: &TestServer, id: &str) {
    change(
        server,
        "stopCircle circle { id }",
        json!({ "circleId": id }),
    )
    .await;
    change(server, "deleteCircle deletedId", json!({ "id": id })).await;
}

#[tokio::test]
async fn losing_access_to_a_circle_is_also_reported_on_replay_and_in_lists() {
    let server = TestServer::start().await;
    let (circle, members) = shared_circle(&server).await;
    let token = server.token("guest@example.com").await;
    let create = "mutation ($input: CreateConversationInput!) { createConversation(input: $input) { conversation { id } } }";
    let input = json!({ "topic": "A talk", "circleId": circle, "participantIds": members });
    let made = server
        .with_token(&token)
        .answer(create, json!({ "input": input }))
        .await;
    let talk = &made["data"]["createConversation"]["conversation"]["id"];
    let query =
        format!("subscription {{ conversationUpdates(conversationId: {talk}) {{ __typename }} }}");
    let mut owner =
        Socket::subscribed(&server, &server.token("demo@example.com").await, &query).await;
    let mut guest = Listener::of(&server, &token, "").await;
    let own = json!({ "input": { "name": "Own" } });
    server.with_token(&token).answer(CREATE, own).await;
    let cursor = guest.next().await["cursor"].clone();
    delete_circle(&server, &circle).await;
    let heard = async |guest: &mut Listener| {
        for end in ["CONVERSATION_ENDED", "CIRCLE_UNSHARED"] {
            let heard = async { while guest.next().await["type"] != end {} };
            within(end, heard).await;
        }
    };
    heard(&mut guest).await;
    // The conversation now belongs to the guest alone, so the owner's stream ends.
    assert_eq!(owner.next().await, json!({ "id": "1", "type": "complete" }));
    drop(guest);
    let server = TestServer::on(server.end().await, |_| ()).await;
    let mut again = Listener::of(&server, &token, &format!("(after: {cursor})")).await;
    heard(&mut again).await;
    let query = "{ events(first: 1) { nodes { type } } }";
    let listed = server.with_token(&token).answer(query, json!({})).await;
    assert_eq!(
        listed["data"]["events"]["nodes"][0]["type"],
        "CIRCLE_UNSHARED"
    );
}

#[tokio::test]
async fn a_circle_stream_ends_when_access_is_lost() {
    let server = TestServer::start().await;
    let (circle, _) = shared_circle(&server).await;
    let query = format!("subscription {{ circleEvents(circleId: \"{circle}\") {{ type }} }}");
    let mut guest =
        Socket::subscribed(&server, &server.token("guest@example.com").await, &query).await;
    let mut owner =
        Socket::subscribed(&server, &server.token("demo@example.com").await, &query).await;
    // A stream that is filtered to other types ends too.
    let tasks = query.replace(')', ", types: [TASK_CREATED])");
    let mut listless =
        Socket::subscribed(&server, &server.token("guest@example.com").await, &tasks).await;
    let ended = async |socket: &mut Socket| {
        let message = socket.next().await;
        assert_eq!(message, json!({ "id": "1", "type": "complete" }));
    };
    let guest_id = server.actor(GUEST).await.id().await;
    let input = json!({ "circleId": circle, "userId": guest_id });
    change(&server, "unshareCircle circle { id }", input).await;
    let unshared = json!({ "type": "CIRCLE_UNSHARED" });
    assert_eq!(guest.value("circleEvents").await, unshared);
    ended(&mut guest).await;
    ended(&mut listless).await;
    assert_eq!(owner.value("circleEvents").await, unshared);
    delete_circle(&server, &circle).await;
    let deleted = async { while owner.value("circleEvents").await["type"] != "CIRCLE_DELETED" {} };
    within("the deletion of the circle", deleted).await;
    ended(&mut owner).await;
}
