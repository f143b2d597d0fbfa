//! Messages and turns.

use super::*;

#[tokio::test]
async fn users_post_to_active_or_paused_conversations_and_agents_only_to_active_ones() {
    let desk = Desk::open().await;
    for (status, user, agent) in [
        ("PENDING", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
        ("ACTIVE", vec![], vec![]),
        ("PAUSED", vec![], vec!["BAD_TRANSITION"]),
        ("COMPLETED", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
        ("FAILED", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
        ("CANCELLED", vec!["BAD_TRANSITION"], vec!["BAD_TRANSITION"]),
    ] {
        let id = desk.talk_in(status).await;
        let before = desk.row(&id).await;
        let input = json!({ "conversationId": id, "content": "Hello." });
        assert_eq!(
            desk.owner.faults("postMessage", input).await,
            user,
            "{status}"
        );
        let turn = desk.turn(&id, 0, "Hello.");
        assert_eq!(
            desk.owner.faults("postMessage", turn).await,
            agent,
            "{status}"
        );
        let after = desk.row(&id).await;
        assert_eq!(after.version, before.version);
        assert_eq!(after.status, before.status);
        if user.len() + agent.len() == 2 {
            assert_eq!(after, before);
        }
    }
}

#[tokio::test]
async fn all_input_errors_of_a_message_are_reported_and_nothing_is_added() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    let other = desk.talk(2, json!({})).await;
    let foreign = desk.posts(&other, "Elsewhere.").await["id"].clone();
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    for (other, expected) in [
        (
            json!({ "content": " \n", "agentId": desk.team[5], "parentId": foreign }),
            vec!["REQUIRED content", "NOT_MEMBER agentId", "INVALID parentId"],
        ),
        (
            json!({ "content": "x".repeat(100_001) }),
            vec!["TOO_LONG content"],
        ),
        (json!({ "content": "a\u{0}b" }), vec!["INVALID content"]),
        (json!({ "agentId": desk.team[1] }), vec!["INVALID agentId"]),
    ] {
        let mut input = json!({ "conversationId": id, "content": "Hello." });
        merge(&mut input, other);
        assert_eq!(desk.owner.faults("postMessage", input).await, expected);
    }
    let atelier =
        "query ($id: ID!) { circle(id: $id) { conversations(first: 1, filter: { status: [ACTIVE] })
        { nodes { messages(first: 1) { nodes { id } } } } } }";
    let hidden = desk.read(atelier, &desk.circle("Atelier").await.0).await["circle"]["conversations"]
        ["nodes"][0]["messages"]["nodes"][0]["id"]
        .clone();
    let input = json!({ "conversationId": id, "content": "Hello.", "parentId": hidden });
    assert_eq!(
        desk.guest.refused("postMessage", input).await,
        "NOT_FOUND parentId"
    );
    assert_eq!(desk.row(&id).await, before);
    assert_eq!(desk.payloads_after(mark).await, []);
    let input = json!({ "conversationId": id, "content": "x".repeat(100_000) });
    desk.owner.saved("postMessage", input).await;
}

#[tokio::test]
async fn a_message_has_its_author_mentions_and_parent() {
    let desk = Desk::open().await;
    let id = desk.talk(3, json!({})).await;
    let names = "query ($id: ID!) { circle(id: $id) { members(first: 3) { nodes { name model { id } lastActiveAt } } } }";
    let people = desk.read(names, &desk.workshop).await["circle"]["members"]["nodes"].clone();
    let name = |n: usize| text(&people[n]["name"]);
    let mark = desk.mark().await;
    let body = format!(
        "  @{} and @{}: {}",
        name(2).to_uppercase(),
        name(1),
        "ä".repeat(300)
    );
    let asked = desk.posts(&id, &body).await;
    assert_eq!(asked["seq"], 1);
    assert_eq!(asked["role"], "USER");
    assert_eq!(asked["authorName"], "Dana Demo");
    assert_eq!(asked["user"]["name"], "Dana Demo");
    assert_eq!(asked["agent"], Value::Null);
    assert_eq!(asked["content"], body.trim());
    assert_eq!(
        asked["mentions"],
        json!([{ "id": desk.team[2] }, { "id": desk.team[1] }])
    );
    let mut turn = desk.turn(&id, 0, "I heard you.");
    turn["parentId"] = asked["id"].clone();
    let said = desk.owner.saved("postMessage", turn).await;
    assert_eq!(said["seq"], 2);
    assert_eq!(said["role"], "ASSISTANT");
    assert_eq!(said["authorName"], *name(0));
    assert_eq!(said["agent"]["id"], *desk.team[0]);
    assert_eq!(said["user"], Value::Null);
    assert_eq!(said["model"], people[0]["model"]);
    assert_eq!(said["parent"]["id"], asked["id"]);
    assert_eq!(said["mentions"], json!([]));
    let talk = &said["conversation"];
    assert_eq!([&talk["turnsTaken"], &talk["version"]], [1, 2]);
    assert!(talk["lastMessageAt"].is_string());
    let after = desk.read(names, &desk.workshop).await["circle"]["members"]["nodes"].clone();
    assert_ne!(after[0]["lastActiveAt"], people[0]["lastActiveAt"]);
    assert_eq!(after[1], people[1]);

    let row = message::Entity::find_by_id(uuid(&text(&asked["id"])));
    let row = row.one(&desk.db).await.expect("reads").expect("a message");
    assert_eq!(
        row.mentions.0,
        [2, 1].map(|n| uuid(&desk.team[n]).to_string())
    );
    let excerpt: String = body.trim().chars().take(200).collect();
    let events = desk.events_after(mark).await;
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    let kinds_expected = [
        "message.added",
        "message.added",
        "conversation.turn_completed",
    ];
    assert_eq!(kinds, kinds_expected);
    let payload = |seq: i32, role: &str, excerpt: &str| json!({ "conversationId": id, "seq": seq, "role": role, "excerpt": excerpt, "v": 1 });
    assert_eq!(events[0].payload, payload(1, "USER", &excerpt));
    assert_eq!(events[0].agent_id, None);
    assert_eq!(events[1].payload, payload(2, "ASSISTANT", "I heard you."));
    // The event also names the user who posted for the agent.
    for event in &events {
        assert_eq!(event.actor_user_id, row.user_id);
    }
    let speaker = Some(uuid(&desk.team[0]));
    for event in &events[1..] {
        assert_eq!([event.agent_id, event.actor_agent_id], [speaker, speaker]);
        assert_eq!(event.circle_id, Some(uuid(&desk.workshop)));
    }
    let payload = json!({ "topic": "What to do next", "turn": 1, "nextSpeakerId": desk.team[1],
        "version": 2, "v": 1 });
    assert_eq!(events[2].payload, payload);
}

#[tokio::test]
async fn the_last_turn_or_an_end_marker_completes_a_conversation() {
    let desk = Desk::open().await;
    for (turns, words, reason) in [
        (2, "That is all I know.", "max_turns"),
        (10, "So be it. [Terminé]", "marker"),
        (2, "[done]", "marker"),
    ] {
        let id = desk.talk(2, json!({ "maxTurns": turns })).await;
        desk.posts(&id, "Write [DONE] when you are.").await;
        assert_eq!(desk.takes_turn(&id, 0, "I am not done.").await, Some(1));
        let mark = desk.mark().await;
        let last = desk
            .owner
            .saved("postMessage", desk.turn(&id, 1, words))
            .await;
        let talk = &last["conversation"];
        assert_eq!(talk["status"], "COMPLETED");
        assert_eq!(talk["endReason"], reason);
        assert_eq!(talk["nextSpeaker"], Value::Null);
        assert_eq!([&talk["turnsTaken"], &talk["version"]], [2, 3]);
        assert!(desk.row(&id).await.ended_at.is_some());
        let topic = "What to do next";
        let expected = [
            (
                "message.added",
                json!({ "conversationId": id, "seq": 3, "role": "ASSISTANT", "excerpt": words }),
            ),
            (
                "conversation.turn_completed",
                json!({ "topic": topic, "turn": 2, "nextSpeakerId": null, "version": 2 }),
            ),
            (
                "conversation.ended",
                json!({ "topic": topic, "fromStatus": "ACTIVE", "toStatus": "COMPLETED", "reason": reason, "version": 3 }),
            ),
        ];
        let events = desk.payloads_after(mark).await;
        assert_eq!(
            events,
            expected.map(|(kind, payload)| (kind.to_owned(), payload))
        );
        let speaker = Some(uuid(&desk.team[1]));
        for event in desk.events_after(mark).await {
            assert_eq!(event.actor_agent_id, speaker);
        }
        let late = json!({ "conversationId": id, "content": "One more thing." });
        assert_eq!(
            desk.owner.faults("postMessage", late).await,
            ["BAD_TRANSITION"]
        );
    }
}

#[tokio::test]
async fn each_turn_strategy_selects_the_next_speaker() {
    let desk = Desk::open().await;
    let names = "query ($id: ID!) { circle(id: $id) { members(first: 4) { nodes { name } } } }";
    let people = desk.read(names, &desk.workshop).await["circle"]["members"]["nodes"].clone();
    let name = |n: usize| text(&people[n]["name"]);
    let at = |n: usize| format!("Well, @{}?", name(n));
    let strategy = |name: &str| json!({ "turnStrategy": name });

    let id = desk.talk(3, strategy("ROUND_ROBIN")).await;
    for (speaker, next) in [(0, 1), (1, 2), (2, 0), (0, 1)] {
        assert_eq!(desk.takes_turn(&id, speaker, &at(0)).await, Some(next));
        assert_eq!(desk.next(&desk.posts(&id, &at(0)).await), Some(next));
    }

    let id = desk.talk(4, strategy("MENTION_BASED")).await;
    assert_eq!(desk.next(&desk.posts(&id, &at(2)).await), Some(2));
    assert_eq!(desk.takes_turn(&id, 2, &at(3)).await, Some(3));
    // The round robin continues with the second, then the third.
    assert_eq!(desk.next(&desk.posts(&id, "Hm.").await), Some(1));
    assert_eq!(desk.takes_turn(&id, 1, &at(1)).await, Some(2));

    let id = desk.talk(4, strategy("FREE_FORM")).await;
    assert_eq!(desk.takes_turn(&id, 3, &at(2)).await, Some(2));
    let next = desk.takes_turn(&id, 1, "Out of turn.").await;
    assert!(next.is_some_and(|next| next != 1));
    assert_eq!(desk.next(&desk.posts(&id, "Hm.").await), next);
    let stranger = desk.turn(&id, 5, "And I?");
    assert_eq!(
        desk.owner.faults("postMessage", stranger).await,
        ["NOT_MEMBER agentId"]
    );

    let mut led = strategy("FACILITATOR_LED");
    led["facilitatorId"] = json!(desk.team[1]);
    let id = desk.talk(4, led).await;
    let ask = format!("Let me ask {} first.", name(3));
    for (speaker, words, next) in [
        (1, ask.as_str(), 3),
        (3, &at(0), 1),
        (1, "Who else?", 1),
        (1, &at(0), 0),
    ] {
        assert_eq!(desk.takes_turn(&id, speaker, words).await, Some(next));
    }
}

#[tokio::test]
async fn concurrent_messages_are_numbered_without_gaps() {
    const EACH: usize = 12;
    let desk = Desk::open().await;
    let other = desk.server.beside(|_| ()).await;
    let beside = other.actor(OWNER).await;
    let alone = json!({ "topic": "Alone", "participantIds": desk.team[..2], "startNow": true });
    let alone = desk.owner.saved("createConversation", alone).await;
    let talks = [desk.talk(2, json!({})).await, text(&alone["id"])];
    let post = "mutation ($input: PostMessageInput!) { postMessage(input: $input) { message { seq } userErrors { field code } } }";
    let mark = desk.mark().await;
    let posts = (0..2 * EACH).map(|n| {
        let owner = if n % 3 == 0 { &beside } else { &desk.owner };
        let input = json!({ "conversationId": talks[n % 2], "content": format!("Number {n}.") });
        owner.answer(post, json!({ "input": input }))
    });
    // At the same time, several requests take the turn of the same agent.
    let turns = (0..6).map(|n| {
        let owner = if n % 2 == 0 { &beside } else { &desk.owner };
        let input = desk.turn(&talks[0], 0, "My turn.");
        owner.answer(post, json!({ "input": input }))
    });
    let (posts, turns) = futures_util::future::join(join_all(posts), join_all(turns)).await;
    for answer in &posts {
        let payload = &answer["data"]["postMessage"];
        assert!(payload["message"]["seq"].is_i64(), "{answer}");
    }
    let mut outcomes: Vec<_> = turns
        .iter()
        .map(|answer| faults(&answer["data"]["postMessage"]).concat())
        .collect();
    outcomes.sort();
    assert_eq!(outcomes[0], "");
    assert_eq!(outcomes[1..], ["INVALID agentId"; 5]);

    for (talk, count) in talks.iter().zip([EACH + 1, EACH]) {
        let row = desk.row(talk).await;
        let messages = message::Entity::find()
            .filter(message::Column::ConversationId.eq(row.id))
            .order_by_asc(message::Column::Seq);
        let messages = messages.all(&desk.db).await.expect("reads");
        let seqs: Vec<_> = messages.iter().map(|message| message.seq).collect();
        let expected: Vec<_> = (1..).take(count).collect();
        assert_eq!(seqs, expected);
        assert_eq!(Some(&row.last_seq), expected.last());
        assert_eq!(row.turns_taken, i32::from(count > EACH));
    }
    let added = desk.payloads_after(mark).await;
    let added = added.iter().filter(|(kind, _)| kind == "message.added");
    let numbers: BTreeSet<_> = added
        .map(|(_, payload)| format!("{} {}", payload["conversationId"], payload["seq"]))
        .collect();
    assert_eq!(numbers.len(), 2 * EACH + 1);
}

#[tokio::test]
async fn posting_to_a_conversation_of_any_size_takes_few_statements() {
    let desk = Desk::open().await;
    let (assembly, crowd) = desk.circle("Assembly").await;
    let long = "query ($id: ID!) { circle(id: $id) { conversations(last: 1) { nodes { id nextSpeaker { id } } } } }";
    let long = desk.read(long, &assembly).await["circle"]["conversations"]["nodes"][0].clone();
    let mut talks = vec![(text(&long["id"]), text(&long["nextSpeaker"]["id"]))];
    for size in [2, 20] {
        let input = json!({ "topic": "Much", "circleId": assembly, "participantIds": crowd[..size], "startNow": true });
        let made = desk.owner.saved("createConversation", input).await;
        talks.push((text(&made["id"]), crowd[0].clone()));
    }
    let post = "mutation ($input: PostMessageInput!) { postMessage(input: $input) { message { id seq } userErrors { code } } }";
    for (id, agent) in talks {
        for input in [
            json!({ "conversationId": id, "content": "Hello.", "agentId": agent }),
            json!({ "conversationId": id, "content": "Hello." }),
        ] {
            let before = desk.server.statements();
            let answer = desk.owner.answer(post, json!({ "input": input })).await;
            assert!(
                answer["data"]["postMessage"]["message"]["id"].is_string(),
                "{answer}"
            );
            let statements = desk.server.statements() - before;
            assert!(statements <= 12 + BESIDE, "{statements}");
        }
    }
}

#[tokio::test]
async fn pinning_a_pinned_message_again_creates_no_event() {
    let desk = Desk::open().await;
    let id = desk.talk(2, json!({})).await;
    desk.takes_turn(&id, 0, "Remember this.").await;
    let said = desk.posts(&id, "I will.").await["id"].clone();
    let turn = "query ($id: ID!) { conversation(id: $id) { messages(first: 1) { nodes { id } } } }";
    let turn = desk.read(turn, &id).await["conversation"]["messages"]["nodes"][0]["id"].clone();
    desk.owner
        .saved("completeConversation", json!({ "conversationId": id }))
        .await;
    let before = desk.row(&id).await;
    let mark = desk.mark().await;
    let pin = |message: &Value, is_pinned: bool| {
        desk.owner.saved(
            "pinMessage",
            json!({ "messageId": message, "isPinned": is_pinned }),
        )
    };
    assert_eq!(pin(&said, false).await["isPinned"], false);
    for pinned in join_all((0..4).map(|_| pin(&turn, true))).await {
        assert_eq!(pinned["isPinned"], true);
    }
    assert_eq!(pin(&turn, false).await["isPinned"], false);
    assert_eq!(pin(&turn, true).await["isPinned"], true);
    let pinned = |is_pinned: bool| {
        let payload = json!({ "conversationId": id, "seq": 1, "role": "ASSISTANT", "excerpt": "Remember this.",
            "isPinned": is_pinned });
        ("message.pinned".to_owned(), payload)
    };
    assert_eq!(
        desk.payloads_after(mark).await,
        [pinned(true), pinned(false), pinned(true)]
    );
    for event in desk.events_after(mark).await {
        assert_eq!(event.agent_id, Some(uuid(&desk.team[0])));
        assert_eq!(event.actor_user_id, Some(before.owner_id));
        assert_eq!(event.actor_agent_id, None);
    }
    assert_eq!(desk.row(&id).await, before);
}

#[tokio::test]
async fn conversation_events_appear_in_the_feed_of_the_circle() {
    let desk = Desk::open().await;
    let latest = desk.demo.mark().await;
    let id = desk.talk(2, json!({ "maxTurns": 1 })).await;
    desk.posts(&id, "Say it in one sentence.").await;
    desk.takes_turn(&id, 0, "As you wish.").await;
    let said = "query ($id: ID!) { conversation(id: $id) { messages(last: 1) { nodes { id } } } }";
    let said = desk.read(said, &id).await["conversation"]["messages"]["nodes"][0]["id"].clone();
    desk.owner
        .saved("pinMessage", json!({ "messageId": said, "isPinned": true }))
        .await;

    let feed = "query ($id: ID!, $before: String) { circle(id: $id) { events(last: 50, before: $before) { nodes { type actor { __typename }
        ... on ConversationEvent { conversationId fromStatus toStatus turn reason }
        ... on MessageEvent { conversationId seq excerpt isPinned message { content } } } } } }";
    let variables = json!({ "id": desk.workshop, "before": latest });
    let nodes: Vec<Value> = until_some("seven events", async || {
        let data = desk.guest.ask(feed, variables.clone()).await;
        let nodes = list(&data["circle"]["events"]["nodes"]);
        (nodes.len() >= 7).then(|| nodes.rev().cloned().collect())
    })
    .await;
    let (user, agent) = (
        json!({ "__typename": "User" }),
        json!({ "__typename": "Agent" }),
    );
    let of = |kind: &str, actor: &Value, other: Value| {
        let mut node = json!({ "type": kind, "actor": actor, "conversationId": id });
        merge(&mut node, other);
        node
    };
    let step = |from: Value, to: Value, turn: Value, reason: Value| json!({ "fromStatus": from, "toStatus": to, "turn": turn, "reason": reason });
    let said = |seq: i32, words: &str, is_pinned: Value| {
        json!({ "seq": seq, "excerpt": words, "isPinned": is_pinned,
        "message": { "content": words } })
    };
    let none = || Value::Null;
    assert_eq!(
        nodes,
        [
            of(
                "CONVERSATION_CREATED",
                &user,
                step(none(), none(), none(), none())
            ),
            of(
                "CONVERSATION_STARTED",
                &user,
                step(json!("PENDING"), json!("ACTIVE"), none(), none())
            ),
            of(
                "MESSAGE_ADDED",
                &user,
                said(1, "Say it in one sentence.", none())
            ),
            of("MESSAGE_ADDED", &agent, said(2, "As you wish.", none())),
            of(
                "CONVERSATION_TURN_COMPLETED",
                &agent,
                step(none(), none(), json!(1), none())
            ),
            of(
                "CONVERSATION_ENDED",
                &agent,
                step(
                    json!("ACTIVE"),
                    json!("COMPLETED"),
                    none(),
                    json!("max_turns")
                )
            ),
            of(
                "MESSAGE_PINNED",
                &user,
                said(2, "As you wish.", json!(true))
            ),
        ]
    );
}
