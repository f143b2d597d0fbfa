//! How circles are created.

use super::*;

#[tokio::test]
async fn a_circle_can_be_created_with_members_and_started_in_one_request() {
    let demo = Demo::start().await;
    let (agents, projects) = (demo.agents().await, demo.projects().await);
    let since = demo.mark().await;
    let input = json!({
        "name": "  New  ", "displayName": "A new circle", "description": "First\r\nsecond", "projectId": projects[3],
        "requireReview": false, "autoRoute": false, "maxMembers": 3, "maxConcurrentTasks": 7, "startNow": true,
        "members": [
            { "agentId": agents[1], "role": "LEAD", "competencies": [" Rust ", "rust", "SQL"], "reviewTypes": ["CODE", "all"] },
            { "agentId": agents[0] },
        ],
    });
    let circle = demo.owner.done("createCircle", input).await["circle"].clone();
    for (field, value) in [
        ("name", json!("New")),
        ("displayName", json!("A new circle")),
        ("description", json!("First\nsecond")),
        ("status", json!("RUNNING")),
        ("version", json!(2)),
        ("requireReview", json!(false)),
        ("autoRoute", json!(false)),
        ("maxMembers", json!(3)),
        ("maxConcurrentTasks", json!(7)),
        ("project", json!({ "id": projects[3] })),
        (
            "members",
            json!({ "totalCount": 2, "nodes": [{ "id": agents[1] }, { "id": agents[0] }] }),
        ),
        ("startedAt", circle["updatedAt"].clone()),
        ("stoppedAt", Value::Null),
    ] {
        assert_eq!(circle[field], value, "{field}");
    }
    let query = "query ($id: ID!) { circle(id: $id) { viewerAccess members { edges { membership { role competencies reviewTypes } } } } }";
    let data = demo.owner.ask(query, json!({ "id": circle["id"] })).await;
    let expected = json!({ "viewerAccess": "OWNER", "members": { "edges": [
        { "membership": { "role": "LEAD", "competencies": ["rust", "sql"], "reviewTypes": ["code", "all"] } },
        { "membership": { "role": "MEMBER", "competencies": [], "reviewTypes": [] } },
    ] } });
    assert_eq!(data["circle"], expected);

    let envelope = |mut event: Value| {
        event["circle"] = json!({ "id": circle["id"] });
        event["project"] = json!({ "id": projects[3] });
        event
    };
    let user = demo.owner.id().await;
    let expected = [
        json!({ "type": "CIRCLE_CREATED", "name": "New", "from": null, "to": null, "changed": [] }),
        json!({ "type": "MEMBER_ADDED", "agentId": agents[1], "part": "LEAD", "changed": [] }),
        json!({ "type": "MEMBER_ADDED", "agentId": agents[0], "part": "MEMBER", "changed": [] }),
        json!({ "type": "CIRCLE_STARTED", "name": "New", "from": "CREATED", "to": "RUNNING", "changed": [] }),
    ]
    .map(|mut event| {
        event["actor"] = json!({ "id": user });
        envelope(event)
    });
    assert_eq!(demo.events(&since, 4).await, expected);

    let db = demo.server.database().connect().await;
    let rows = event::Entity::find().order_by_desc(event::Column::Position);
    let rows = rows.all(&db).await.expect("reads");
    let payload = json!({ "v": 1, "name": "New", "fromStatus": "CREATED", "toStatus": "RUNNING", "version": 2 });
    assert_eq!(rows[0].payload, payload);
    let payload = json!({ "v": 1, "name": "New", "changed": [], "version": 1 });
    assert_eq!(rows[3].payload, payload);
    assert!(
        rows[..4]
            .iter()
            .all(|row| row.owner_id == rows[0].owner_id && row.owner_id.is_some())
    );
}

#[tokio::test]
async fn all_input_errors_of_a_new_circle_are_reported_and_nothing_is_created() {
    let demo = Demo::start().await;
    let agents = demo.agents().await;
    let count = "{ circles { totalCount } }";
    let before = demo.owner.ask(count, json!({})).await;
    let long = "x".repeat(101);
    let input = json!({
        "name": " ", "displayName": "x".repeat(201), "description": "a\u{7}", "maxMembers": 501, "maxConcurrentTasks": 0,
        "members": [
            { "agentId": agents[0], "competencies": [long] },
            { "agentId": agents[1], "reviewTypes": ["code", "beauty"] },
            { "agentId": agents[2] },
            { "agentId": agents[0], "competencies": vec!["word"; 51] },
        ],
    });
    let expected = [
        "REQUIRED name",
        "TOO_LONG displayName",
        "INVALID description",
        "OUT_OF_RANGE maxMembers",
        "OUT_OF_RANGE maxConcurrentTasks",
        "TOO_LONG members.0.competencies.0",
        "INVALID members.1.reviewTypes.1",
        "TOO_MANY members.3.competencies",
        "INVALID members.3.agentId",
    ];
    let payload = demo.owner.payload("createCircle", input).await;
    assert_eq!(faults(&payload), expected);
    assert_eq!(payload["circle"], Value::Null);

    let member = |agent: &Value| json!({ "agentId": agent });
    let many: Vec<_> = agents.iter().chain(&agents[..1]).map(member).collect();
    let input = json!({ "name": "Crowd", "maxMembers": 500, "members": many });
    assert_eq!(
        demo.owner.faults("createCircle", input).await,
        ["TOO_MANY members"]
    );
    let few: Vec<_> = agents[..3].iter().map(member).collect();
    let input = json!({ "name": "Crowd", "maxMembers": 2, "members": few });
    assert_eq!(
        demo.owner.faults("createCircle", input).await,
        ["LIMIT_REACHED members"]
    );
    // Some letters fold to several characters.
    let input = json!({ "name": "ﷺ".repeat(6) });
    assert_eq!(
        demo.owner.faults("createCircle", input).await,
        ["TOO_LONG name"]
    );
    let input = json!({ "name": "Crowd", "maxMembers": 0, "members": few });
    assert_eq!(
        demo.owner.faults("createCircle", input).await,
        ["OUT_OF_RANGE maxMembers"]
    );
    let input = json!({ "name": "ATELIER", "members": few });
    assert_eq!(
        demo.owner.faults("createCircle", input).await,
        ["TAKEN name"]
    );
    let input = json!({ "name": "Crowd", "members": [{ "agentId": "agent_1" }] });
    let refused = demo.owner.refused("createCircle", input).await;
    assert_eq!(refused, "BAD_USER_INPUT members.0.agentId");
    assert_eq!(demo.owner.ask(count, json!({})).await, before);
    // Circle names are unique per owner.
    demo.guest
        .done("createCircle", json!({ "name": ATELIER }))
        .await;
}

#[tokio::test]
async fn a_circle_cannot_use_agents_or_projects_of_other_users() {
    let demo = Demo::start().await;
    let (atelier, projects) = (demo.circle(ATELIER).await, demo.projects().await);
    let input = json!({ "circleId": atelier, "email": GUEST, "role": "EDITOR" });
    demo.owner.done("shareCircle", input).await;
    let query = "query ($id: ID!) { circle(id: $id) { members(first: 1) { nodes { id } } } }";
    let data = demo.guest.ask(query, json!({ "id": atelier })).await;
    let shared = &data["circle"]["members"]["nodes"][0]["id"];
    let mut hidden = Value::Null;
    for agent in demo.agents().await {
        let answer = demo.guest.answer(
            "query ($id: ID!) { agent(id: $id) { id } }",
            json!({ "id": agent }),
        );
        if answer.await["data"]["agent"].is_null() {
            hidden = agent;
            break;
        }
    }
    let input = |agents: &[&Value], project: &Value| {
        let members: Vec<_> = agents
            .iter()
            .map(|agent| json!({ "agentId": agent }))
            .collect();
        json!({ "name": "Mine", "projectId": project, "members": members })
    };
    for (agents, project, code, field) in [
        (
            &[shared][..],
            &Value::Null,
            "FORBIDDEN",
            "members.0.agentId",
        ),
        (
            &[&hidden, shared],
            &Value::Null,
            "NOT_FOUND",
            "members.0.agentId",
        ),
        (&[], &projects[0], "FORBIDDEN", ""),
        (&[], &projects[1], "NOT_FOUND", "projectId"),
    ] {
        let refused = demo
            .guest
            .refused("createCircle", input(agents, project))
            .await;
        assert_eq!(refused, format!("{code} {field}").trim_end());
        demo.admin
            .done("createCircle", {
                let mut input = input(agents, project);
                input["name"] = json!(format!("{code} {}", agents.len()));
                input
            })
            .await;
    }
    // An existing link to another user's project can be kept, but a new one is refused.
    let mine = demo
        .guest
        .done("createCircle", json!({ "name": "Mine" }))
        .await["circle"]["id"]
        .clone();
    let update =
        |project: &Value| json!({ "circleId": mine, "projectId": project, "name": "Mine" });
    demo.admin.done("updateCircle", update(&projects[1])).await;
    demo.guest.done("updateCircle", update(&projects[1])).await;
    let refused = demo
        .guest
        .refused("updateCircle", update(&projects[0]))
        .await;
    assert_eq!(refused, "FORBIDDEN");
    let refused = demo
        .guest
        .refused("updateCircle", update(&projects[2]))
        .await;
    assert_eq!(refused, "NOT_FOUND projectId");
    let circle = demo.guest.done("updateCircle", update(&Value::Null)).await;
    assert_eq!(circle["circle"]["project"], Value::Null);
}

#[tokio::test]
async fn creating_a_circle_of_any_size_takes_at_most_six_statements() {
    const CREATE: &str = "mutation W1NewCircle($input: CreateCircleInput!) {
      createCircle(input: $input) { circle { id name status version members { totalCount } } userErrors { field code message } }
    }";
    let demo = Demo::start().await;
    let (agents, projects) = (demo.agents().await, demo.projects().await);
    let graph = CountedGraph::on(&demo.server).await;
    for (who, sizes) in [(OWNER, [0, 20, 100]), (ADMIN, [0, 20, 100])] {
        let token = demo.server.token(who).await;
        for size in sizes {
            for starts in [false, true] {
                let members: Vec<_> = agents[..size]
                    .iter()
                    .map(|agent| json!({ "agentId": agent }))
                    .collect();
                let input = json!({
                    "name": format!("{size} {starts}"), "projectId": projects[0], "maxMembers": 100, "members": members,
                    "startNow": starts,
                });
                let variables = json!({ "input": input });
                let (answer, sent) = graph.cost(&token, CREATE, variables).await;
                let payload = &answer["data"]["createCircle"];
                assert_eq!(payload["circle"]["members"]["totalCount"], size, "{answer}");
                assert!(sent <= 6, "{size} members took {sent} statements");
            }
        }
    }
}
