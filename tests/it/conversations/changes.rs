//! The steps of a conversation, and its changes.

use super::*;

#[tokio::test]
async fn conversation_transitions_succeed_only_from_their_allowed_states() {
    let desk = Desk::open().await;
    for (step, from, to) in [
        ("start", vec!["PENDING"], "ACTIVE"),
        ("pause", vec!["ACTIVE"], "PAUSED"),
        ("resume", vec!["PAUSED"], "ACTIVE"),
        ("complete", vec!["ACTIVE"], "COMPLETED"),
        ("cancel", vec!["PENDING", "ACTIVE", "PAUSED"], "CANCELLED"),
    ] {
        for status in [
            "PENDING",
            "ACTIVE",
            "PAUSED",
            "COMPLETED",
            "FAILED",
            "CANCELLED",
        ] {
            let id = desk.talk_in(status).await;
            let before = desk.row(&id).await;
            let mark = desk.mark().await;
            let payload = desk
                .owner
                .payload(&named(step), json!({ "conversationId": id }))
                .await;
            let shown = &payload["conversation"];
            let payloads = desk.payloads_after(mark).await;
            if !from.contains(&status) {
                assert_eq!(faults(&payload), ["BAD_TRANSITION"], "{step} {status}");
                let article = if status == "ACTIVE" { "An" } else { "A" };
                let done = ["started", "paused", "resumed", "completed", "cancelled"];
                let done = done.iter().find(|done| done.starts_with(step));
                let done = done.expect("a participle");
                assert_eq!(
                    payload["userErrors"][0]["message"],
                    format!("{article} {status} conversation cannot be {done}.")
                );
                assert_eq!(shown["status"], status);
                assert_eq!(desk.row(&id).await, before);
                assert_eq!(payloads, []);
                continue;
            }
            assert_eq!(faults(&payload), [""; 0], "{step} {status}");
            assert_eq!(shown["status"], to);
            assert_eq!(shown["version"], before.version + 1);
            let is_ended = !["ACTIVE", "PAUSED"].contains(&to);
            assert_eq!(shown["endedAt"].is_string(), is_ended);
            assert_eq!(shown["nextSpeaker"].is_null(), is_ended);
            let mut payload = json!({ "topic": "What to do next", "fromStatus": status, "toStatus": to,
                "version": before.version + 1 });
            let kind = match step {
                "start" => "conversation.started",
                "pause" => "conversation.paused",
                "resume" => "conversation.resumed",
                _ => {
                    let reason = to.to_lowercase();
                    assert_eq!(shown["endReason"], reason);
                    payload["reason"] = json!(reason);
                    "conversation.ended"
                }
            };
            assert_eq!(payloads, [(kind.to_owned(), payload)]);
        }
    }
}

#[tokio::test]
async fn the_end_reason_of_a_conversation_is_stored_as_given() {
    let desk = Desk::open().await;
    for (step, word) in [("complete", "completed"), ("cancel", "cancelled")] {
        let id = desk.talk(2, json!({})).await;
        let mark = desk.mark().await;
        let long = json!({ "conversationId": id, "reason": "x".repeat(501) });
        assert_eq!(
            desk.owner.faults(&named(step), long).await,
            ["TOO_LONG reason"]
        );
        let input = json!({ "conversationId": id, "reason": " We agree. " });
        assert_eq!(
            desk.owner.saved(&named(step), input).await["endReason"],
            "We agree."
        );
        let payloads = desk.payloads_after(mark).await;
        assert_eq!(payloads.len(), 1);
        assert_eq!(payloads[0].1["reason"], word);
    }
}

#[tokio::test]
async fn concurrent_transitions_of_a_conversation_succeed_once() {
    let desk = Desk::open().await;
    let other = desk.server.beside(|_| ()).await;
    let beside = other.actor(OWNER).await;
    for (step, from) in [
        ("start", "PENDING"),
        ("complete", "ACTIVE"),
        ("resume", "PAUSED"),
    ] {
        let id = desk.talk_in(from).await;
        let mark = desk.mark().await;
        let name = named(step);
        let query = format!(
            "mutation ($id: ID!) {{ {name}(input: {{ conversationId: $id }}) {{ userErrors {{ field code }} }} }}"
        );
        let asked = (0..6).map(|n| {
            let owner = if n % 2 == 0 { &desk.owner } else { &beside };
            owner.answer(&query, json!({ "id": id }))
        });
        let mut outcomes: Vec<_> = join_all(asked)
            .await
            .iter()
            .map(|answer| faults(&answer["data"][&name]).concat())
            .collect();
        outcomes.sort();
        let mut expected = vec!["BAD_TRANSITION"; 6];
        expected[5] = "";
        expected.sort_unstable();
        assert_eq!(outcomes, expected, "{step}");
        assert_eq!(desk.payloads_after(mark).await.len(), 1);
    }
}

#[tokio::test]
async fn an_outdated_version_prevents_every_change_of_a_conversation() {
    let desk = Desk::open().await;
    let id = desk.talk_in("PAUSED").await;
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    let stale = before.version - 1;
    // The version is checked before the rest of the input.
    let mut calls = vec![(
        "updateConversation".to_owned(),
        json!({ "conversationId": id, "topic": "", "expectedVersion": stale }),
    )];
    calls.extend(STEPS.map(|step| {
        (
            named(step),
            json!({ "conversationId": id, "reason": "x".repeat(501), "expectedVersion": stale }),
        )
    }));
    for (name, input) in calls {
        let payload = desk.owner.payload(&name, input).await;
        assert_eq!(faults(&payload), ["CONFLICT expectedVersion"], "{name}");
        assert_eq!(payload["conversation"]["version"], before.version);
    }
    let input = json!({ "id": id, "expectedVersion": stale });
    let payload = desk.owner.payload("deleteConversation", input).await;
    assert_eq!(faults(&payload), ["CONFLICT expectedVersion"]);
    assert_eq!(payload["deletedId"], Value::Null);
    // The version is selected of a conversation alone.
    assert_eq!(payload["current"]["version"], before.version);
    assert_eq!(payload["current"]["id"], id);
    assert_eq!(desk.row(&id).await, before);
    assert_eq!(desk.payloads_after(mark).await, []);
    let input = json!({ "conversationId": id, "expectedVersion": before.version });
    desk.owner.saved("resumeConversation", input).await;
}

#[tokio::test]
async fn a_conversation_update_announces_only_the_changed_fields() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let mark = desk.mark().await;
    let update = |other: Value| {
        let mut input = json!({ "conversationId": id });
        merge(&mut input, other);
        desk.owner.payload("updateConversation", input)
    };
    let payload =
        update(json!({ "topic": " Another ", "summary": "So far.", "maxTurns": 12 })).await;
    let shown = &payload["conversation"];
    assert_eq!(
        [
            &shown["topic"],
            &shown["summary"],
            &shown["maxTurns"],
            &shown["version"]
        ],
        [&json!("Another"), &json!("So far."), &json!(12), &json!(3)]
    );
    for same in [
        json!({}),
        json!({ "topic": "Another", "summary": "So far.", "maxTurns": 12 }),
    ] {
        assert_eq!(update(same).await["conversation"]["version"], 3);
    }
    for (other, expected) in [
        (
            json!({ "topic": null, "maxTurns": null }),
            vec!["REQUIRED topic", "REQUIRED maxTurns"],
        ),
        (
            json!({ "summary": "x".repeat(20_001), "maxTurns": 51 }),
            vec!["TOO_LONG summary", "OUT_OF_RANGE maxTurns"],
        ),
    ] {
        let payload = update(other).await;
        assert_eq!(faults(&payload), expected);
        assert_eq!(payload["conversation"]["version"], 3);
    }
    assert_eq!(
        update(json!({ "summary": null })).await["conversation"]["summary"],
        Value::Null
    );
    // The summary can also be changed after the end.
    desk.owner
        .saved("completeConversation", json!({ "conversationId": id }))
        .await;
    let summed = update(json!({ "summary": "All of it." })).await;
    assert_eq!(summed["conversation"]["summary"], "All of it.");
    let payloads = desk.payloads_after(mark).await;
    let changed: Vec<_> = payloads
        .iter()
        .filter(|(kind, _)| kind == "conversation.updated")
        .map(|(_, payload)| (payload["changed"].clone(), payload["version"].clone()))
        .collect();
    assert_eq!(
        changed,
        [
            (json!(["topic", "summary", "maxTurns"]), json!(3)),
            (json!(["summary"]), json!(4)),
            (json!(["summary"]), json!(6)),
        ]
    );
    assert_eq!(payloads.len(), 4);
}

#[tokio::test]
async fn max_turns_cannot_be_set_below_the_turns_taken() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    desk.takes_turn(&id, 0, "One.").await;
    desk.takes_turn(&id, 1, "Two.").await;
    let most = |turns: i32| json!({ "conversationId": id, "maxTurns": turns });
    // Without a turn left the conversation would never end.
    for turns in [1, 2] {
        let payload = desk.owner.payload("updateConversation", most(turns)).await;
        assert_eq!(faults(&payload), ["OUT_OF_RANGE maxTurns"]);
        let message = "`maxTurns` must be at least 3: 2 turns were taken already.";
        assert_eq!(payload["userErrors"][0]["message"], message);
    }
    desk.owner.saved("updateConversation", most(3)).await;
    assert_eq!(desk.takes_turn(&id, 0, "Three.").await, None);
    assert_eq!(desk.row(&id).await.end_reason.as_deref(), Some("max_turns"));
    // An ended conversation takes no more turns, so the limit may equal the turns taken.
    desk.owner.saved("updateConversation", most(4)).await;
    desk.owner.saved("updateConversation", most(3)).await;
    assert_eq!(
        desk.owner.faults("updateConversation", most(2)).await,
        ["OUT_OF_RANGE maxTurns"]
    );

    // A value from before the bound existed is kept.
    let long = "{ conversations(last: 1) { nodes { id maxTurns turnsTaken topic } } }";
    let long = desk.read(long, "").await["conversations"]["nodes"][0].clone();
    assert_eq!([&long["maxTurns"], &long["turnsTaken"]], [200, 150]);
    let input = json!({ "conversationId": long["id"], "maxTurns": 200, "topic": "Another" });
    desk.owner.saved("updateConversation", input).await;
    let input = json!({ "conversationId": long["id"], "maxTurns": 50 });
    assert_eq!(
        desk.owner.faults("updateConversation", input).await,
        ["OUT_OF_RANGE maxTurns"]
    );
}

#[tokio::test]
async fn editors_change_conversations_in_a_circle_and_owners_those_outside() {
    let desk = Desk::open().await;
    let talks = "query ($id: ID!) { circle(id: $id) { conversations(first: 1, filter: { status: [ACTIVE, PAUSED, COMPLETED] })
        { nodes { id messages(first: 1) { nodes { id } } } } } }";
    let calls = |id: &Value, message: &Value| {
        let mut calls = vec![
            (
                "updateConversation".to_owned(),
                json!({ "conversationId": id, "topic": "" }),
                "conversationId",
            ),
            (
                "deleteConversation".to_owned(),
                json!({ "id": id, "expectedVersion": 0 }),
                "id",
            ),
            (
                "postMessage".to_owned(),
                json!({ "conversationId": id, "content": "" }),
                "conversationId",
            ),
            (
                "pinMessage".to_owned(),
                json!({ "messageId": message, "isPinned": false }),
                "messageId",
            ),
        ];
        let step = |step| {
            let input = json!({ "conversationId": id, "expectedVersion": 0 });
            (named(step), input, "conversationId")
        };
        calls.extend(STEPS.map(step));
        calls
    };
    // The guest can read the library, edit the workshop, and see nothing of the atelier.
    for (name, refusal) in [
        ("Library", Some("FORBIDDEN")),
        ("Workshop", None),
        ("Atelier", Some("NOT_FOUND")),
    ] {
        let (circle, team) = desk.circle(name).await;
        let data = desk.read(talks, &circle).await["circle"]["conversations"]["nodes"][0].clone();
        for (mutation, input, field) in calls(&data["id"], &data["messages"]["nodes"][0]["id"]) {
            let expected = match refusal {
                Some("NOT_FOUND") => format!("NOT_FOUND {field}"),
                Some(code) => code.to_owned(),
                None => {
                    desk.guest.payload(&mutation, input).await;
                    continue;
                }
            };
            let refused = desk.guest.refused(&mutation, input).await;
            assert_eq!(refused, expected, "{name} {mutation}");
        }
        let input = json!({ "topic": "New", "circleId": circle, "participantIds": team[..2] });
        match refusal {
            None => {
                let payload = desk.guest.payload("createConversation", input).await;
                assert_eq!(faults(&payload), [""; 0]);
                let made = desk.row(&text(&payload["conversation"]["id"])).await;
                let events = desk.events_after(Uuid::nil()).await;
                let event = events.iter().find(|event| event.subject_id == made.id);
                let event = event.expect("an event");
                // An event in a circle belongs to the circle's owner.
                assert_eq!(event.actor_user_id, Some(made.owner_id));
                assert_ne!(event.owner_id, Some(made.owner_id));
            }
            Some("NOT_FOUND") => assert_eq!(
                desk.guest.refused("createConversation", input).await,
                "NOT_FOUND circleId"
            ),
            Some(code) => {
                assert_eq!(desk.guest.refused("createConversation", input).await, code);
            }
        }
    }
    // A conversation outside circles is visible only to its owner and administrators.
    let alone = json!({ "topic": "Alone", "participantIds": [desk.team[0]], "startNow": true });
    let id = desk.owner.saved("createConversation", alone).await["id"].clone();
    let message = desk.posts(&text(&id), "Hello.").await["id"].clone();
    for (mutation, input, field) in calls(&id, &message) {
        desk.owner.payload(&mutation, input.clone()).await;
        desk.admin.payload(&mutation, input.clone()).await;
        let refused = desk.guest.refused(&mutation, input).await;
        assert_eq!(refused, format!("NOT_FOUND {field}"), "{mutation}");
    }
}

#[tokio::test]
async fn conversations_in_an_archived_circle_cannot_be_changed() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let message = desk.posts(&id, "Hello.").await["id"].clone();
    let archived = circle::Entity::find_by_id(uuid(&desk.workshop));
    let archived = archived
        .one(&desk.db)
        .await
        .expect("reads")
        .expect("a circle");
    let mut archived = archived.into_active_model();
    archived.status = Set(CircleStatus::Archived);
    let update = circle::Entity::update(archived).exec(&desk.db);
    update.await.expect("updates");
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    let mut calls = vec![
        ("createConversation".to_owned(), desk.draft(2)),
        (
            "updateConversation".to_owned(),
            json!({ "conversationId": id, "topic": "Another" }),
        ),
        ("deleteConversation".to_owned(), json!({ "id": id })),
        (
            "postMessage".to_owned(),
            json!({ "conversationId": id, "content": "Hello?" }),
        ),
        (
            "pinMessage".to_owned(),
            json!({ "messageId": message, "isPinned": true }),
        ),
    ];
    calls.extend(STEPS.map(|step| (named(step), json!({ "conversationId": id }))));
    for (name, input) in calls {
        assert_eq!(
            desk.owner.faults(&name, input).await,
            ["BAD_TRANSITION"],
            "{name}"
        );
    }
    assert_eq!(desk.row(&id).await, before);
    assert_eq!(desk.payloads_after(mark).await, []);
}

#[tokio::test]
async fn deleting_a_conversation_deletes_its_messages() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let first = desk.posts(&id, "Hello.").await["id"].clone();
    let answer = json!({ "conversationId": id, "content": "Hello!", "parentId": first });
    desk.owner.saved("postMessage", answer).await;
    let input = json!({ "id": id });
    let payload = desk
        .owner
        .payload("deleteConversation", input.clone())
        .await;
    assert_eq!(faults(&payload), ["BAD_TRANSITION"]);
    assert_eq!(payload["current"]["id"], *id);
    desk.owner
        .saved("completeConversation", json!({ "conversationId": id }))
        .await;
    let mark = desk.mark().await;
    let payload = desk
        .owner
        .payload("deleteConversation", input.clone())
        .await;
    assert_eq!(payload["deletedId"], *id);
    assert_eq!(payload["current"], Value::Null);
    let key = uuid(&id);
    let messages = message::Entity::find().filter(message::Column::ConversationId.eq(key));
    let participants =
        participant::Entity::find().filter(participant::Column::ConversationId.eq(key));
    assert_eq!(messages.count(&desk.db).await.expect("counts"), 0);
    assert_eq!(participants.count(&desk.db).await.expect("counts"), 0);
    let payload = json!({ "topic": "What to do next", "changed": [], "version": 3 });
    assert_eq!(
        desk.payloads_after(mark).await,
        [("conversation.deleted".to_owned(), payload)]
    );
    assert_eq!(
        desk.owner.refused("deleteConversation", input).await,
        "NOT_FOUND id"
    );
    for status in ["PENDING", "PAUSED", "FAILED", "CANCELLED"] {
        let input = json!({ "id": desk.talk_in(status).await });
        assert_eq!(
            desk.owner.faults("deleteConversation", input).await,
            [""; 0],
            "{status}"
        );
    }
}
