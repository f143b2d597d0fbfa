//! How conversations are created, and who takes part in them.

use super::*;

#[tokio::test]
async fn creating_a_conversation_keeps_the_order_of_its_participants() {
    let desk = Desk::open().await;
    let mark = desk.mark().await;
    let task =
        "query ($id: ID!) { circle(id: $id) { project { id } tasks(first: 1) { nodes { id } } } }";
    let circle = desk.read(task, &desk.workshop).await["circle"].clone();
    let task = &circle["tasks"]["nodes"][0]["id"];
    let order = [4, 0, 2].map(|n| desk.team[n].clone());
    let made = desk.owner
        .saved(
            "createConversation",
            json!({
                "topic": "  What to do next ", "participantIds": order, "circleId": desk.workshop, "taskId": task,
                "initialPrompt": "Be brief.\r\nBe kind.", "turnStrategy": "FACILITATOR_LED", "facilitatorId": order[1],
                "maxTurns": 50,
            }),
        )
        .await;
    for (field, value) in [
        ("status", json!("PENDING")),
        ("version", json!(1)),
        ("topic", json!("What to do next")),
        ("initialPrompt", json!("Be brief.\nBe kind.")),
        ("turnStrategy", json!("FACILITATOR_LED")),
        ("maxTurns", json!(50)),
        ("turnsTaken", json!(0)),
        ("nextSpeaker", Value::Null),
        ("startedAt", Value::Null),
        ("facilitator", json!({ "id": order[1] })),
        ("owner", json!({ "name": "Dana Demo" })),
        ("circle", json!({ "id": desk.workshop })),
        ("task", json!({ "id": task })),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    let edges: Vec<_> = (0..)
        .zip(&order)
        .map(|(n, id)| json!({ "position": n, "node": { "id": id } }))
        .collect();
    assert_eq!(made["participants"]["edges"], json!(edges));

    let events = desk.events_after(mark).await;
    assert_eq!(events.len(), 1);
    let row = desk.row(&text(&made["id"])).await;
    let (event, demo) = (&events[0], row.owner_id);
    assert_eq!(event.kind, "conversation.created");
    assert_eq!(event.subject_id, row.id);
    assert_eq!(event.owner_id, Some(demo));
    assert_eq!(event.actor_user_id, Some(demo));
    assert_eq!(event.circle_id, Some(uuid(&desk.workshop)));
    assert_eq!(
        event.project_id.map(|_| ()),
        circle["project"]["id"].as_str().map(|_| ())
    );
    let payload = json!({ "topic": "What to do next", "changed": [], "version": 1, "v": 1 });
    assert_eq!(event.payload, payload);
}

#[tokio::test]
async fn a_conversation_can_be_started_on_creation() {
    let desk = Desk::open().await;
    let mark = desk.mark().await;
    let mut input = desk.draft(3);
    input["startNow"] = json!(true);
    let made = desk.owner.saved("createConversation", input.clone()).await;
    assert_eq!(made["status"], "ACTIVE");
    assert_eq!(made["version"], 2);
    assert!(made["startedAt"].is_string());
    assert_eq!(made["nextSpeaker"]["id"], *desk.team[0]);
    assert_eq!(made["maxTurns"], 10);
    let topic = "What to do next";
    let payloads = desk.payloads_after(mark).await;
    let expected = [
        (
            "conversation.created",
            json!({ "topic": topic, "changed": [], "version": 1 }),
        ),
        (
            "conversation.started",
            json!({ "topic": topic, "fromStatus": "PENDING", "toStatus": "ACTIVE", "version": 2 }),
        ),
    ];
    assert_eq!(
        payloads,
        expected.map(|(kind, payload)| (kind.to_owned(), payload))
    );

    merge(
        &mut input,
        json!({ "turnStrategy": "FACILITATOR_LED", "facilitatorId": desk.team[2] }),
    );
    let led = desk.owner.saved("createConversation", input).await;
    assert_eq!(led["nextSpeaker"]["id"], *desk.team[2]);
}

#[tokio::test]
async fn all_input_errors_of_a_conversation_are_reported_together() {
    let desk = Desk::open().await;
    let mark = desk.mark().await;
    let team = &desk.team;
    let mut crowd = Vec::new();
    for name in ["Assembly", "Atelier"] {
        crowd = desk.circle(name).await.1;
        if crowd.len() > 20 {
            break;
        }
    }
    let stranger = crowd
        .iter()
        .find(|id| !team.contains(id))
        .expect("an agent");
    let cases = [
        (
            json!({ "topic": " ", "maxTurns": 51, "participantIds": [team[0], team[0], stranger], "facilitatorId": team[1] }),
            vec![
                "REQUIRED topic",
                "OUT_OF_RANGE maxTurns",
                "INVALID participantIds.1",
                "INVALID facilitatorId",
                "NOT_MEMBER participantIds.2",
            ],
        ),
        (
            json!({ "topic": "x".repeat(501), "maxTurns": 0 }),
            vec!["TOO_LONG topic", "OUT_OF_RANGE maxTurns"],
        ),
        (
            json!({ "topic": "Two\nlines", "initialPrompt": "x".repeat(20_001) }),
            vec!["INVALID topic", "TOO_LONG initialPrompt"],
        ),
        (
            json!({ "participantIds": [] }),
            vec!["REQUIRED participantIds"],
        ),
        (
            json!({ "participantIds": [team[0]] }),
            vec!["INVALID participantIds"],
        ),
        (
            json!({ "participantIds": crowd[..21] }),
            vec!["TOO_MANY participantIds"],
        ),
        (
            json!({ "turnStrategy": "FACILITATOR_LED" }),
            vec!["REQUIRED facilitatorId"],
        ),
        (
            json!({ "turnStrategy": "FACILITATOR_LED", "facilitatorId": team[5] }),
            vec!["INVALID facilitatorId"],
        ),
    ];
    for (other, expected) in cases {
        let mut input = desk.draft(2);
        merge(&mut input, other);
        let payload = desk
            .owner
            .payload("createConversation", input.clone())
            .await;
        assert_eq!(faults(&payload), expected, "{input}");
        assert_eq!(payload["conversation"], Value::Null);
    }
    assert_eq!(desk.payloads_after(mark).await, []);
}

#[tokio::test]
async fn the_smallest_and_largest_conversations_are_accepted() {
    let desk = Desk::open().await;
    let (circle, crowd) = desk.circle("Assembly").await;
    for (size, turns) in [(2, 1), (20, 50)] {
        let input = json!({ "topic": "x".repeat(500), "circleId": circle, "participantIds": crowd[..size],
            "maxTurns": turns, "initialPrompt": "x".repeat(20_000) });
        let made = desk.owner.saved("createConversation", input).await;
        assert_eq!(list(&made["participants"]["edges"]).count(), size);
    }
}

#[tokio::test]
async fn participants_are_active_members_or_outside_circles_the_users_own_agents() {
    let desk = Desk::open().await;
    let all = "query ($id: ID!) { circle(id: $id) { members(first: 100, filter: { includeInactive: true }) {
        edges { membership { isActive } node { id } } } } }";
    let atelier = desk.circle("Atelier").await.0;
    let members = desk.read(all, &atelier).await["circle"]["members"]["edges"].clone();
    let left = list(&members)
        .find(|edge| edge["membership"]["isActive"] == false)
        .map(|edge| edge["node"]["id"].clone())
        .expect("a member who left");
    let input = json!({ "topic": "Who is here", "circleId": atelier,
        "participantIds": [members[0]["node"]["id"], left] });
    assert_eq!(
        desk.owner.faults("createConversation", input).await,
        ["NOT_MEMBER participantIds.1"]
    );

    // The guest can read the members of the workshop, but not an agent that is only in the atelier.
    let alone = |ids: Value| json!({ "topic": "Alone", "participantIds": ids });
    let create = "createConversation";
    let hidden = list(&members).find(|edge| {
        let id = edge["node"]["id"].as_str().expect("an id");
        !desk.team.iter().any(|member| member == id)
    });
    let hidden = &hidden.expect("an agent outside the workshop")["node"]["id"];
    let own = "mutation { createAgent(input: { name: \"Own\" }) { agent { id } } }";
    let own = desk.guest.answer(own, json!({})).await;
    let own = &own["data"]["createAgent"]["agent"]["id"];
    let input = alone(json!([own, desk.team[1], desk.team[0]]));
    assert_eq!(
        desk.guest.refused(create, input).await,
        "FORBIDDEN participantIds.1"
    );
    let input = alone(json!([desk.team[0], hidden]));
    assert_eq!(
        desk.guest.refused(create, input).await,
        "NOT_FOUND participantIds.1"
    );
    let mut input = desk.draft(1);
    input["participantIds"] = json!([desk.team[0], hidden]);
    assert_eq!(
        desk.guest.refused(create, input).await,
        "NOT_FOUND participantIds.1"
    );
    let input = alone(json!([desk.workshop]));
    assert_eq!(
        desk.guest.refused(create, input).await,
        "BAD_USER_INPUT participantIds.0"
    );

    // A user's own agent may be the only participant. Agents of other users are refused, even for an administrator.
    let made = desk.owner.saved(create, alone(json!([hidden]))).await;
    assert_eq!(made["circle"], Value::Null);
    assert_eq!(
        desk.admin.refused(create, alone(json!([hidden]))).await,
        "FORBIDDEN participantIds.0"
    );
}

#[tokio::test]
async fn the_task_of_a_conversation_must_belong_to_its_circle() {
    let desk = Desk::open().await;
    let tasks = "query ($id: ID!) { circle(id: $id) { tasks(first: 1) { nodes { id } } } }";
    let atelier = desk.circle("Atelier").await.0;
    let foreign = desk.read(tasks, &atelier).await["circle"]["tasks"]["nodes"][0]["id"].clone();
    let mut input = desk.draft(2);
    input["taskId"] = foreign;
    assert_eq!(
        desk.owner.faults("createConversation", input.clone()).await,
        ["INVALID taskId"]
    );
    assert_eq!(
        desk.guest.refused("createConversation", input).await,
        "NOT_FOUND taskId"
    );
    let own = desk.read(tasks, &desk.workshop).await["circle"]["tasks"]["nodes"][0]["id"].clone();
    let alone = json!({ "topic": "Alone", "participantIds": [desk.team[0]], "taskId": own });
    assert_eq!(
        desk.owner.faults("createConversation", alone).await,
        ["INVALID taskId"]
    );
}

#[tokio::test]
async fn creating_a_conversation_of_twenty_takes_few_statements() {
    let desk = Desk::open().await;
    let (assembly, crowd) = desk.circle("Assembly").await;
    let create = "mutation ($input: CreateConversationInput!) { createConversation(input: $input) { conversation { id } userErrors { code } } }";
    for size in [2, 20] {
        let input = json!({ "topic": "Many", "circleId": assembly, "participantIds": crowd[..size], "startNow": true });
        let before = desk.server.statements();
        let answer = desk.owner.answer(create, json!({ "input": input }));
        assert!(answer.await["data"]["createConversation"]["conversation"]["id"].is_string());
        let statements = desk.server.statements() - before;
        assert!(statements <= 9 + BESIDE, "{statements}");
    }
}
