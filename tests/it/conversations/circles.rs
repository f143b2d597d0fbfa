//! Conversations in circles that are changed, archived or deleted.

use super::*;

/// A circle of the demo user that the guest can edit, with two agents, and conversations of the guest in these states.
struct Room {
    circle: Value,
    agents: Vec<Value>,
    talks: Vec<Value>,
}

impl Desk {
    async fn room(&self, name: &str, states: &[&str]) -> Room {
        let mut agents = Vec::new();
        for number in [1, 2] {
            let input = json!({ "name": format!("{name} {number}") });
            let made = self.owner.done("createAgent", input);
            agents.push(made.await["agent"]["id"].clone());
        }
        let members: Vec<_> = agents.iter().map(|id| json!({ "agentId": id })).collect();
        let input = json!({ "name": name, "members": members });
        let made = self.owner.done("createCircle", input);
        let circle = made.await["circle"]["id"].clone();
        let input = json!({ "circleId": circle, "email": "guest@example.com", "role": "EDITOR" });
        self.owner.done("shareCircle", input).await;
        let mut talks = Vec::new();
        for state in states {
            let input = json!({ "topic": state, "circleId": circle, "participantIds": agents,
                "startNow": *state != "PENDING" });
            let made = self.guest.payload("createConversation", input).await;
            let id = made["conversation"]["id"].clone();
            let step = match *state {
                "PAUSED" => "pauseConversation",
                "COMPLETED" => "completeConversation",
                _ => "",
            };
            if !step.is_empty() {
                self.guest
                    .payload(step, json!({ "conversationId": id }))
                    .await;
            }
            talks.push(id);
        }
        Room {
            circle,
            agents,
            talks,
        }
    }
}

#[tokio::test]
async fn deleting_a_circle_ends_its_conversations() {
    let desk = Desk::open().await;
    let room = desk
        .room("Gone", &["PENDING", "ACTIVE", "PAUSED", "COMPLETED"])
        .await;
    let ids: Vec<_> = room.talks.iter().map(text).collect();
    let completed = desk.row(&ids[3]).await;
    let mark = desk.mark().await;
    let input = json!({ "id": room.circle });
    desk.owner.done("deleteCircle", input).await;

    let events = desk.events_after(mark).await;
    let circle = Some(uuid(&text(&room.circle)));
    assert_eq!(events.len(), 5);
    for (n, (from, version)) in [("PENDING", 2), ("ACTIVE", 3), ("PAUSED", 4)]
        .iter()
        .enumerate()
    {
        let row = desk.row(&ids[n]).await;
        assert_eq!(row.status, ConversationStatus::Cancelled);
        assert_eq!((row.circle_id, row.version), (None, *version));
        assert_eq!(row.end_reason.as_deref(), Some("cancelled"));
        assert_eq!(row.next_speaker_id, None);
        assert_eq!(row.ended_at, Some(row.updated_at));
        let event = &events[n];
        assert_eq!(event.kind, "conversation.ended");
        assert_eq!((event.subject_id, event.circle_id), (row.id, circle));
        let payload = json!({ "topic": from, "fromStatus": from, "toStatus": "CANCELLED", "reason": "cancelled",
            "version": version, "v": 1 });
        assert_eq!(event.payload, payload);
    }
    assert_eq!(events[3].kind, "circle.unshared");
    assert_eq!(events[4].kind, "circle.deleted");
    let left = desk.row(&ids[3]).await;
    assert_eq!(left.circle_id, None);
    assert_eq!(
        (left.status, left.version),
        (ConversationStatus::Completed, completed.version)
    );

    // Agents of other users can no longer be used there, and their owner can delete them.
    for id in &room.talks {
        let turn = json!({ "conversationId": id, "content": "Go on.", "agentId": room.agents[0] });
        let payload = desk.guest.payload("postMessage", turn).await;
        assert!(faults(&payload).contains(&"BAD_TRANSITION".to_owned()));
    }
    for id in &room.agents {
        let input = json!({ "id": id });
        desk.owner.done("deleteAgent", input).await;
    }
}

#[tokio::test]
async fn deleting_a_circle_with_any_number_of_conversations_takes_few_statements() {
    let desk = Desk::open().await;
    for size in [1, 12] {
        let room = desk
            .room(&format!("Room {size}"), &vec!["ACTIVE"; size])
            .await;
        let before = desk.server.statements();
        let input = json!({ "id": room.circle });
        desk.owner.done("deleteCircle", input).await;
        let statements = desk.server.statements() - before;
        assert!(statements <= 7 + BESIDE, "{size}: {statements}");
    }
}

#[tokio::test]
async fn archiving_a_circle_pauses_its_conversations() {
    let desk = Desk::open().await;
    let room = desk.room("Away", &["PENDING", "ACTIVE"]).await;
    let mark = desk.mark().await;
    let input = json!({ "circleId": room.circle });
    desk.owner.done("archiveCircle", input).await;
    let [pending, active] = [0, 1].map(|n| text(&room.talks[n]));
    assert_eq!(desk.row(&pending).await.status, ConversationStatus::Pending);
    assert_eq!(desk.row(&active).await.status, ConversationStatus::Paused);
    let payloads = desk.payloads_after(mark).await;
    let kinds: Vec<_> = payloads.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["circle.archived", "conversation.paused"]);
    let payload =
        json!({ "topic": "ACTIVE", "fromStatus": "ACTIVE", "toStatus": "PAUSED", "version": 3 });
    assert_eq!(payloads[1].1, payload);
}

#[tokio::test]
async fn a_conversation_update_succeeds_while_its_circle_is_deleted() {
    const WAITING: &str = "SELECT count(*) FROM pg_stat_activity \
        WHERE datname = current_database() AND application_name = 'gathering' AND wait_event_type = 'Lock'";
    let desk = Desk::open().await;
    let id = desk.talk_in("PAUSED").await;
    let gone = desk.db.begin().await.expect("begins");
    circle::Entity::delete_by_id(uuid(&desk.workshop))
        .exec(&gone)
        .await
        .expect("deletes");
    let input = json!({ "conversationId": id, "topic": "Another" });
    // The credential was read a moment ago.
    desk.server.jump(1);
    let before = desk.server.statements();
    let mut changed = pin!(desk.owner.saved("updateConversation", input));
    let waits = async || {
        if desk.server.database().is_postgres() {
            number(&desk.db, WAITING).await > 0
        } else {
            // The caller has been authenticated. The change waits for the other writer.
            desk.server.statements() > before
        }
    };
    tokio::select! {
        changed = &mut changed => panic!("it did not wait: {changed}"),
        () = until("the change that waits for the circle", waits) => {}
    }
    gone.commit().await.expect("commits");
    let changed = changed.await;
    assert_eq!(
        (&changed["topic"], &changed["circle"]),
        (&json!("Another"), &Value::Null)
    );
}

#[tokio::test]
async fn losing_access_to_a_circle_ends_access_to_its_conversation_events() {
    let desk = Desk::open().await;
    let room = desk.room("Left", &["ACTIVE"]).await;
    let input = json!({ "circleId": room.circle, "userId": desk.guest.id().await });
    desk.owner.done("unshareCircle", input).await;
    let message = desk.posts(&text(&room.talks[0]), "Between us.").await;
    let query = "query ($id: ID!) { events(filter: { subjectId: $id }) { nodes { ... on MessageEvent { excerpt } } } }";
    let variables = json!({ "id": message["id"] });
    let heard = async |actor: &Actor| {
        let data = actor.ask(query, variables.clone()).await;
        data["events"]["nodes"].clone()
    };
    let expected = json!([{ "excerpt": "Between us." }]);
    until("the event of the message", async || {
        heard(&desk.owner).await == expected
    })
    .await;
    assert_eq!(heard(&desk.guest).await, json!([]));
}
