//! The steps of a circle, and its changes.

use super::*;

#[tokio::test]
async fn circle_transitions_succeed_only_from_their_allowed_states() {
    const STATES: [&str; 5] = ["CREATED", "RUNNING", "PAUSED", "STOPPED", "ARCHIVED"];
    let demo = Demo::start().await;
    for (step, from, to, event, moment) in [
        (
            "startCircle",
            &["CREATED", "PAUSED", "STOPPED"][..],
            "RUNNING",
            "CIRCLE_STARTED",
            "startedAt",
        ),
        ("pauseCircle", &["RUNNING"], "PAUSED", "CIRCLE_PAUSED", ""),
        (
            "stopCircle",
            &["RUNNING", "PAUSED"],
            "STOPPED",
            "CIRCLE_STOPPED",
            "stoppedAt",
        ),
        (
            "archiveCircle",
            &["CREATED", "STOPPED"],
            "ARCHIVED",
            "CIRCLE_ARCHIVED",
            "archivedAt",
        ),
        (
            "restoreCircle",
            &["ARCHIVED"],
            "STOPPED",
            "CIRCLE_RESTORED",
            "",
        ),
    ] {
        for state in STATES {
            let id = demo.in_state(&format!("{step} {state}"), state).await;
            let query = format!(
                "query ($id: ID!) {{ circle(id: $id) {{ {} }} }}",
                selected("Circle").1
            );
            let before = demo.owner.ask(&query, json!({ "id": id })).await["circle"].clone();
            let since = demo.mark().await;
            let payload = demo.owner.payload(step, of(&id)).await;
            let circle = &payload["circle"];
            if from.contains(&state) {
                assert_eq!(faults(&payload), [""; 0], "{step} {state}");
                assert_eq!(circle["status"], to);
                assert_eq!(
                    circle["version"].as_i64(),
                    before["version"].as_i64().map(|version| version + 1)
                );
                if !moment.is_empty() {
                    assert_eq!(circle[moment], circle["updatedAt"], "{step} {state}");
                }
                assert_eq!(
                    circle["archivedAt"].is_null(),
                    to != "ARCHIVED",
                    "{step} {state}"
                );
                let events = demo.events(&since, 1).await;
                assert_eq!(events.len(), 1, "{events:?}");
                assert_eq!(events[0]["type"], event);
                assert_eq!(
                    (&events[0]["from"], &events[0]["to"]),
                    (&json!(state), &json!(to))
                );
            } else {
                assert_eq!(faults(&payload), ["BAD_TRANSITION"], "{step} {state}");
                assert_eq!(*circle, before, "{step} {state}");
                let article = if state == "ARCHIVED" { "An" } else { "A" };
                let message = payload["userErrors"][0]["message"]
                    .as_str()
                    .expect("a message");
                assert!(
                    message.starts_with(&format!("{article} {state} circle cannot be ")),
                    "{message}"
                );
            }
        }
    }
}

#[tokio::test]
async fn concurrent_starts_of_a_circle_succeed_once() {
    let demo = Demo::start().await;
    for round in 0..5 {
        let id = demo.in_state(&format!("Round {round}"), "CREATED").await;
        let since = demo.mark().await;
        let starts = (0..4).map(|_| demo.owner.payload("startCircle", of(&id)));
        let mut outcomes: Vec<_> = join_all(starts).await.iter().map(faults).collect();
        outcomes.sort();
        let refused = vec!["BAD_TRANSITION".to_owned()];
        assert_eq!(
            outcomes,
            [vec![], refused.clone(), refused.clone(), refused]
        );
        assert_eq!(demo.announced(&since, 1).await, ["CIRCLE_STARTED"]);
    }
}

#[tokio::test]
async fn an_outdated_version_prevents_every_change_of_a_circle() {
    let demo = Demo::start().await;
    let id = demo.in_state("Old", "STOPPED").await;
    for (name, mut input) in [
        ("updateCircle", json!({ "circleId": id, "name": "New" })),
        // The version is checked before the rest of the input.
        (
            "updateCircle",
            json!({ "circleId": id, "name": "", "projectId": NO_PROJECT }),
        ),
        ("startCircle", of(&id)),
        ("archiveCircle", of(&id)),
        ("deleteCircle", json!({ "id": id })),
    ] {
        input["expectedVersion"] = json!(2);
        let payload = demo.owner.payload(name, input.clone()).await;
        assert_eq!(faults(&payload), ["CONFLICT expectedVersion"], "{name}");
        let shown = if name == "deleteCircle" {
            "current"
        } else {
            "circle"
        };
        assert_eq!(
            (&payload[shown]["status"], &payload[shown]["version"]),
            (&json!("STOPPED"), &json!(3))
        );
    }
    let input = json!({ "circleId": id, "name": "New", "expectedVersion": 3 });
    demo.owner.done("updateCircle", input).await;
    // The second of two updates of the same version gets a conflict.
    let input = json!({ "circleId": id, "expectedVersion": 3 });
    assert_eq!(
        demo.owner.faults("startCircle", input).await,
        ["CONFLICT expectedVersion"]
    );
}

#[tokio::test]
async fn a_circle_update_changes_and_announces_only_the_given_fields() {
    let demo = Demo::start().await;
    let projects = demo.projects().await;
    let input = json!({ "name": "Plain", "displayName": "Plain", "description": "Plain", "projectId": projects[0] });
    let id = demo.owner.done("createCircle", input).await["circle"]["id"].clone();
    let since = demo.mark().await;
    let update = |fields: Value| {
        let mut input = fields;
        input["circleId"] = id.clone();
        input
    };

    let same = update(
        json!({ "name": " Plain", "displayName": "Plain", "maxMembers": 50, "projectId": projects[0] }),
    );
    let circle = demo.owner.done("updateCircle", same).await["circle"].clone();
    assert_eq!(circle["version"], 1);
    let fields = json!({
        "name": "PLAIN", "displayName": null, "description": " ", "projectId": null, "requireReview": false, "autoRoute": false,
        "maxMembers": 1, "maxConcurrentTasks": 100,
    });
    let circle = demo.owner.done("updateCircle", update(fields)).await["circle"].clone();
    for (field, value) in [
        ("name", json!("PLAIN")),
        ("displayName", Value::Null),
        ("description", Value::Null),
        ("project", Value::Null),
        ("requireReview", json!(false)),
        ("autoRoute", json!(false)),
        ("maxMembers", json!(1)),
        ("maxConcurrentTasks", json!(100)),
        ("version", json!(2)),
    ] {
        assert_eq!(circle[field], value, "{field}");
    }
    demo.owner
        .done("updateCircle", update(json!({ "projectId": projects[1] })))
        .await;
    let changed = [
        "name",
        "displayName",
        "description",
        "projectId",
        "requireReview",
        "autoRoute",
        "maxMembers",
        "maxConcurrentTasks",
    ];
    let events = demo.events(&since, 2).await;
    let received: Vec<_> = events
        .iter()
        .map(|event| (&event["type"], &event["changed"], &event["project"]))
        .collect();
    assert_eq!(
        received,
        [
            (&json!("CIRCLE_UPDATED"), &json!(changed), &Value::Null),
            (
                &json!("CIRCLE_UPDATED"),
                &json!(["projectId"]),
                &json!({ "id": projects[1] })
            ),
        ]
    );

    let nothing = json!({ "name": null, "requireReview": null, "autoRoute": null, "maxMembers": null, "maxConcurrentTasks": null });
    let faults = demo.owner.faults("updateCircle", update(nothing)).await;
    let required = [
        "REQUIRED name",
        "REQUIRED requireReview",
        "REQUIRED autoRoute",
        "REQUIRED maxMembers",
        "REQUIRED maxConcurrentTasks",
    ];
    assert_eq!(faults, required);
    assert_eq!(
        demo.owner
            .faults("updateCircle", update(json!({ "name": "atelier" })))
            .await,
        ["TAKEN name"]
    );
    // Atelier has 20 active members and two who left.
    let atelier = demo.circle(ATELIER).await;
    let least = |most: i32| json!({ "circleId": atelier, "maxMembers": most });
    assert_eq!(
        demo.owner.faults("updateCircle", least(19)).await,
        ["OUT_OF_RANGE maxMembers"]
    );
    assert_eq!(
        demo.owner.faults("updateCircle", least(0)).await,
        ["OUT_OF_RANGE maxMembers"]
    );
    demo.owner.done("updateCircle", least(20)).await;
}

#[tokio::test]
async fn starting_a_circle_assigns_its_pending_tasks() {
    let demo = Demo::start().await;
    let id = demo.circle("Pause").await;
    let input = json!({ "circleId": id, "maxConcurrentTasks": 100 });
    demo.owner.done("updateCircle", input).await;
    let since = demo.mark().await;
    demo.owner.done("startCircle", of(&id)).await;
    let expected = [
        "CIRCLE_STARTED",
        "TASK_ASSIGNED",
        "TASK_ASSIGNED",
        "TASK_ASSIGNED",
    ];
    assert_eq!(demo.announced(&since, 4).await, expected);
}

#[tokio::test]
async fn stopping_a_circle_pauses_its_conversations() {
    let demo = Demo::start().await;
    let id = demo.circle(ATELIER).await;
    let active = "query ($id: ID!) { circle(id: $id) { conversations(filter: { status: [ACTIVE] }) { totalCount } } }";
    let count = async || {
        let data = demo.owner.ask(active, json!({ "id": id })).await;
        data["circle"]["conversations"]["totalCount"]
            .as_u64()
            .expect("a count")
    };
    let held = usize::try_from(count().await).expect("fits");
    assert!(held > 0);
    let since = demo.mark().await;
    demo.owner.done("stopCircle", of(&id)).await;
    assert_eq!(count().await, 0);
    let mut expected = vec!["CONVERSATION_PAUSED"; held + 1];
    expected[0] = "CIRCLE_STOPPED";
    assert_eq!(demo.announced(&since, held + 1).await, expected);
}

#[tokio::test]
async fn an_archived_circle_cannot_be_changed_until_it_is_restored() {
    let demo = Demo::start().await;
    let (id, agents) = (demo.circle("Archive").await, demo.agents().await);
    let query = "query ($id: ID!) { circle(id: $id) { version members(first: 1) { edges { membership { id } } } } }";
    let before = demo.owner.ask(query, json!({ "id": id })).await;
    let member = &before["circle"]["members"]["edges"][0]["membership"]["id"];
    for who in [OWNER, ADMIN] {
        for (name, input) in [
            ("updateCircle", json!({ "circleId": id, "name": "Other" })),
            (
                "updateCircle",
                json!({ "circleId": id, "name": "", "projectId": NO_PROJECT, "expectedVersion": 0 }),
            ),
            (
                "shareCircle",
                json!({ "circleId": id, "email": GUEST, "role": "VIEWER" }),
            ),
            (
                "shareCircle",
                json!({ "circleId": id, "email": "", "role": "VIEWER" }),
            ),
            (
                "unshareCircle",
                json!({ "circleId": id, "userId": demo.guest.id().await }),
            ),
            (
                "addCircleMembers",
                json!({ "circleId": id, "members": [{ "agentId": agents[0] }] }),
            ),
            (
                "updateCircleMember",
                json!({ "memberId": member, "role": "OBSERVER" }),
            ),
            ("removeCircleMember", json!({ "memberId": member })),
        ] {
            assert_eq!(
                demo.actor(who).faults(name, input).await,
                ["BAD_TRANSITION"],
                "{name}"
            );
        }
    }
    assert_eq!(demo.owner.ask(query, json!({ "id": id })).await, before);

    // Another circle can use its name until then.
    let other = demo.in_state("Archive", "CREATED").await;
    assert_eq!(demo.owner.faults("restoreCircle", of(&id)).await, ["TAKEN"]);
    let input = json!({ "circleId": other, "name": "Other" });
    demo.owner.done("updateCircle", input).await;
    let circle = demo.owner.done("restoreCircle", of(&id)).await["circle"].clone();
    assert_eq!(
        (&circle["status"], &circle["archivedAt"]),
        (&json!("STOPPED"), &Value::Null)
    );
    let input = json!({ "circleId": id, "name": "Restored" });
    demo.owner.done("updateCircle", input).await;
}

#[tokio::test]
async fn deleting_a_circle_deletes_its_tasks_and_keeps_its_conversations() {
    let demo = Demo::start().await;
    let id = demo.circle("North").await;
    let inside = "query ($id: ID!) { circle(id: $id) { tasks(first: 100) { nodes { id status assignee { id } } }
        members(first: 100) { edges { membership { id } node { id status } } } conversations { nodes { id status } } } }";
    let before = demo.owner.ask(inside, json!({ "id": id })).await["circle"].clone();
    let delete = json!({ "id": id });
    for (step, state) in [("", "RUNNING"), ("pauseCircle", "PAUSED")] {
        if !step.is_empty() {
            demo.owner.done(step, of(&id)).await;
        }
        let payload = demo.owner.payload("deleteCircle", delete.clone()).await;
        assert_eq!(faults(&payload), ["BAD_TRANSITION"]);
        assert_eq!(payload["deletedId"], Value::Null);
        assert_eq!(
            (&payload["current"]["id"], &payload["current"]["status"]),
            (&id, &json!(state))
        );
    }
    demo.owner.done("stopCircle", of(&id)).await;

    // Agents that had work only in this circle become idle.
    let at_work = "{ tasks(first: 100, filter: { status: [IN_PROGRESS] }) { nodes { circle { id } assignee { id status } } } }";
    let data = demo.owner.ask(at_work, json!({})).await;
    let tasks = data["tasks"]["nodes"].as_array().expect("tasks");
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        tasks.iter().partition(|task| task["circle"]["id"] == id);
    let is_elsewhere = |agent: &&Value| {
        elsewhere
            .iter()
            .any(|task| task["assignee"]["id"] == agent["id"])
    };
    let mut freed: Vec<_> = here
        .iter()
        .map(|task| &task["assignee"])
        .filter(|agent| !is_elsewhere(agent))
        .collect();
    freed.sort_by_key(|agent| agent["id"].as_str());
    freed.dedup();
    assert!(!freed.is_empty());
    let since = demo.mark().await;
    let payload = demo.owner.done("deleteCircle", delete.clone()).await;
    assert_eq!(
        payload,
        json!({ "deletedId": id, "current": null, "userErrors": [] })
    );
    let mut events = demo.events(&since, 1 + freed.len()).await;
    // The tests of conversations cover these events.
    events.retain(|event| event["type"] != "CONVERSATION_ENDED");
    assert_eq!(events.len(), 1 + freed.len());
    assert_eq!(
        (&events[0]["type"], &events[0]["name"]),
        (&json!("CIRCLE_DELETED"), &json!("North"))
    );
    for (event, agent) in events[1..].iter().zip(&freed) {
        assert_eq!(event["type"], "AGENT_STATUS_CHANGED");
        assert_eq!(
            (&event["agentId"], &event["toAgent"]),
            (&agent["id"], &json!("IDLE"))
        );
    }
    for agent in freed {
        let query = "query ($id: ID!) { agent(id: $id) { status } }";
        let data = demo.owner.ask(query, json!({ "id": agent["id"] })).await;
        assert_eq!(data["agent"]["status"], "IDLE");
    }

    let node = "query ($id: ID!) { node(id: $id) { __typename ... on Conversation { circle { id } owner { id } } } }";
    let of = |list: &str, field: &str| {
        let nodes = before[list]["nodes"].as_array().expect("nodes").iter();
        nodes.map(|node| node[field].clone()).collect::<Vec<_>>()
    };
    let members = before["members"]["edges"].as_array().expect("members");
    let members = members.iter().map(|edge| edge["membership"]["id"].clone());
    for gone in of("tasks", "id")
        .into_iter()
        .chain(members)
        .chain([id.clone()])
    {
        let answer = demo.admin.answer(node, json!({ "id": gone })).await;
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "NOT_FOUND",
            "{gone}"
        );
    }
    let owner = demo.owner.id().await;
    let conversations = of("conversations", "id");
    assert_eq!(conversations.len(), 4);
    for kept in conversations {
        let data = demo.owner.ask(node, json!({ "id": kept })).await;
        assert_eq!(
            data["node"],
            json!({ "__typename": "Conversation", "circle": null, "owner": { "id": owner } })
        );
    }
    let refused = demo.owner.refused("deleteCircle", delete).await;
    assert_eq!(refused, "NOT_FOUND id");
}
