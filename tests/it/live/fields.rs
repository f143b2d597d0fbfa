//! The fields of `Subscription`.

use super::*;

#[tokio::test]
async fn a_subscription_has_exactly_one_root_field() {
    let server = TestServer::start().await;
    for query in [
        "subscription { a: events { id } b: events { id } }",
        "subscription { events { id } agentStatusChanged { id } }",
        "subscription { events { id } ...F } fragment F on Subscription { other: events { id } }",
        "subscription { events { id } ... { events(after: \"x\") { id } } }",
        "subscription { events @skip(if: false) { id } }",
        "subscription { ... @include(if: true) { events { id } } }",
        "subscription { __typename }",
    ] {
        let error = refused(&server, query).await;
        assert_eq!(error["code"], "GRAPHQL_VALIDATION_FAILED", "{query}");
    }
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let query = "subscription { ...F ... on Subscription { events { type } } } \
        fragment F on Subscription { events { ...Name } } \
        fragment Name on ProjectEvent { name }";
    socket.subscribe("1", query).await;
    server.until_subscribers_exceed(0).await;
    create(&server, "One").await;
    let message = socket.next().await;
    let expected = json!({ "events": { "name": "One", "type": "PROJECT_CREATED" } });
    assert_eq!(message["payload"]["data"], expected, "{message}");
}

#[tokio::test]
async fn a_subscription_to_an_unreadable_object_is_refused() {
    let server = TestServer::start().await;
    let circle = "circle_01h455vb4pex5vsknk084sn02q";
    for (query, code) in [
        (format!("circleEvents(circleId: \"{circle}\") {{ id }}"), "NOT_FOUND"),
        (format!("taskUpdated(circleId: \"{circle}\") {{ id }}"), "NOT_FOUND"),
        ("taskUpdated { id }".to_owned(), "BAD_USER_INPUT"),
        ("taskUpdated(assigneeId: \"agent_01h455vb4pex5vsknk084sn02q\") { id }".to_owned(), "NOT_FOUND"),
        ("agentStatusChanged(agentIds: [\"agent_01h455vb4pex5vsknk084sn02q\"]) { id }".to_owned(), "NOT_FOUND"),
        ("conversationUpdates(conversationId: \"conversation_01h455vb4pex5vsknk084sn02q\") { conversation { id } }".to_owned(), "NOT_FOUND"),
        (format!("conversationUpdates(conversationId: \"{circle}\") {{ conversation {{ id }} }}"), "BAD_USER_INPUT"),
    ] {
        let error = refused(&server, &format!("subscription {{ {query} }}")).await;
        assert_eq!(error["code"], code, "{query}");
    }
    let mut socket = Socket::greeted(&server, None).await;
    socket
        .subscribe("1", "subscription { events { id } }")
        .await;
    let message = socket.next().await;
    assert_eq!(
        message["payload"][0]["extensions"]["code"], "UNAUTHENTICATED",
        "{message}"
    );
    assert_eq!(server.subscribers().await, 0);
}

#[tokio::test]
async fn task_updates_of_an_assignee_include_reassignments() {
    let server = TestServer::start().await;
    let (circle, members) = shared_circle(&server).await;
    let [one, other] = [&members[0], &members[1]];
    let query = format!(
        "subscription {{ taskUpdated(assigneeId: \"{one}\") {{ id status assignee {{ id }} }} }}"
    );
    let mut socket =
        Socket::subscribed(&server, &server.token("demo@example.com").await, &query).await;
    let input = json!({ "circleId": circle, "title": "A task", "assigneeId": one });
    let made = change(&server, "createTask task { id }", input).await;
    let task = &made["task"]["id"];
    let first = socket.value("taskUpdated").await;
    assert_eq!(
        (&first["id"], &first["assignee"]["id"]),
        (task, &json!(one))
    );
    change(
        &server,
        "assignTask task { id }",
        json!({ "taskId": task, "agentId": other }),
    )
    .await;
    let lost = socket.value("taskUpdated").await;
    assert_eq!(
        (&lost["id"], &lost["assignee"]["id"]),
        (task, &json!(other))
    );
    // Later changes of the task are not delivered, because another agent has it.
    change(&server, "startTask task { id }", json!({ "taskId": task })).await;
    let input = json!({ "circleId": circle, "title": "Another", "assigneeId": one });
    let next = change(&server, "createTask task { id }", input).await;
    assert_eq!(socket.value("taskUpdated").await["id"], next["task"]["id"]);
}

#[tokio::test]
async fn agent_status_changes_reach_users_who_can_read_the_agent() {
    let server = TestServer::start().await;
    let (circle, _) = shared_circle(&server).await;
    let query = format!("{{ circle(id: \"{circle}\") {{ members {{ nodes {{ id status }} }} }} }}");
    let answer = server.graphql(&query, json!({})).await;
    let members = answer["data"]["circle"]["members"]["nodes"].as_array();
    let mut members = members.expect("members").iter();
    let idle = members.find(|agent| agent["status"] == "IDLE");
    let agent = idle.expect("an idle agent")["id"].clone();
    let query =
        format!("subscription {{ agentStatusChanged(agentIds: [{agent}]) {{ id status }} }}");
    let mut guest =
        Socket::subscribed(&server, &server.token("guest@example.com").await, &query).await;
    let query = "subscription { agentStatusChanged { id status } }";
    let mut owner =
        Socket::subscribed(&server, &server.token("demo@example.com").await, query).await;
    let input = json!({ "circleId": circle, "title": "A task", "assigneeId": agent });
    let made = change(&server, "createTask task { id }", input).await;
    let input = json!({ "taskId": made["task"]["id"] });
    change(&server, "startTask task { id }", input).await;
    for socket in [&mut guest, &mut owner] {
        let received = socket.value("agentStatusChanged").await;
        assert_eq!(received, json!({ "id": agent, "status": "BUSY" }));
    }
}

#[tokio::test]
async fn a_conversation_can_be_followed_from_any_message_to_its_end() {
    let server = TestServer::start().await;
    let (circle, members) = shared_circle(&server).await;
    let input = json!({ "topic": "A talk", "circleId": circle, "participantIds": members, "startNow": true });
    let made = change(&server, "createConversation conversation { id }", input).await;
    let id = made["conversation"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let post = |content: &str, agent: Option<&String>| json!({ "conversationId": id, "content": content, "agentId": agent });
    for content in ["one", "two", "three"] {
        change(&server, "postMessage message { seq }", post(content, None)).await;
    }
    let query = format!(
        "subscription {{ conversationUpdates(conversationId: \"{id}\", afterSeq: 1) {{ __typename \
         conversation {{ id }} ... on MessageAdded {{ message {{ seq content }} }} \
         ... on TurnCompleted {{ turn nextSpeaker {{ id }} }} ... on ConversationEnded {{ reason }} }} }}"
    );
    let mut socket =
        Socket::subscribed(&server, &server.token("guest@example.com").await, &query).await;
    for (seq, content) in [(2, "two"), (3, "three")] {
        let update = socket.value("conversationUpdates").await;
        assert_eq!(
            update["message"],
            json!({ "seq": seq, "content": content }),
            "{update}"
        );
    }
    // Messages of other conversations are not delivered.
    let input = json!({ "topic": "Another", "participantIds": members, "startNow": true });
    let made = change(&server, "createConversation conversation { id }", input).await;
    let input = json!({ "conversationId": made["conversation"]["id"], "content": "elsewhere" });
    change(&server, "postMessage message { seq }", input).await;
    change(
        &server,
        "postMessage message { seq }",
        post("four", Some(&members[0])),
    )
    .await;
    let update = socket.value("conversationUpdates").await;
    assert_eq!(update["message"], json!({ "seq": 4, "content": "four" }));
    let update = socket.value("conversationUpdates").await;
    assert_eq!(
        (&update["__typename"], &update["turn"]),
        (&json!("TurnCompleted"), &json!(1))
    );
    assert_eq!(update["nextSpeaker"]["id"], members[1]);
    change(
        &server,
        "completeConversation conversation { id }",
        json!({ "conversationId": id }),
    )
    .await;
    let update = socket.value("conversationUpdates").await;
    assert_eq!(
        (&update["__typename"], &update["reason"]),
        (&json!("ConversationEnded"), &json!("completed"))
    );
    let stats = stats(&server).await;
    assert_eq!(stats["delivered"], 3.0, "{stats}");
}
