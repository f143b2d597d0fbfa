//! Circles: creation, updates, state changes, sharing, deletion, and their events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::Utc;
use futures_util::future::join_all;
use gathering::config::Config;
use gathering::serve;
use gathering_entity::event;
use gathering_schema::auth::Keys;
use gathering_schema::{Caller, Client, Graph, Params, Usage};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::server::{SIGNING_KEY, TestServer};

pub(crate) const OWNER: &str = "demo@example.com";
pub(crate) const ADMIN: &str = "admin@example.com";
/// Can read `LIBRARY` and edit `WORKSHOP`.
pub(crate) const GUEST: &str = "guest@example.com";

pub(crate) const ATELIER: &str = "Atelier";
pub(crate) const LIBRARY: &str = "Library";
pub(crate) const WORKSHOP: &str = "Workshop";

/// A well-formed id without a row.
const NO_PROJECT: &str = "project_01h455vb4pex5vsknk084sn02q";
const NOBODY: &str = "user_01h455vb4pex5vsknk084sn02q";

/// The fields selected of a changed circle.
const CIRCLE: &str = "circle { id name displayName description status version requireReview autoRoute maxMembers \
    maxConcurrentTasks startedAt stoppedAt archivedAt updatedAt project { id } members(first: 100) { totalCount nodes { id } } \
    collaborators { edges { role node { id } } } }";

/// A server with the demo data, with helpers for mutations and for the events that they create.
pub(crate) struct Studio {
    pub(crate) server: TestServer,
}

impl Studio {
    pub(crate) async fn open() -> Self {
        Self {
            server: TestServer::start().await,
        }
    }

    /// The complete response to a user's request.
    pub(crate) async fn ask(&self, who: &str, query: &str, variables: Value) -> Value {
        let token = self.server.token(who).await;
        self.server.ask(Some(&token), query, variables).await
    }

    /// The data of a user's query, which must not fail.
    pub(crate) async fn read(&self, who: &str, query: &str, variables: Value) -> Value {
        let answer = self.ask(who, query, variables).await;
        assert_eq!(answer.get("errors"), None, "{query}");
        answer["data"].clone()
    }

    /// The complete response to a mutation.
    pub(crate) async fn mutate(&self, who: &str, name: &str, input: Value) -> Value {
        let (ty, selection) = match name {
            "createCircle" => ("CreateCircleInput", CIRCLE),
            "updateCircle" => ("UpdateCircleInput", CIRCLE),
            "shareCircle" => ("ShareCircleInput", CIRCLE),
            "unshareCircle" => ("UnshareCircleInput", CIRCLE),
            "deleteCircle" => (
                "DeleteInput",
                "deletedId current { ... on Circle { id status version } }",
            ),
            "addCircleMembers" => (
                "AddCircleMembersInput",
                "circle { id members { totalCount } } members { id role competencies reviewTypes isActive joinedAt leftAt agent { id } }",
            ),
            "updateCircleMember" => (
                "UpdateCircleMemberInput",
                "member { id role competencies reviewTypes isActive }",
            ),
            "removeCircleMember" => ("RemoveCircleMemberInput", "member { id isActive leftAt }"),
            _ => ("CircleActionInput", CIRCLE),
        };
        let query = format!(
            "mutation ($input: {ty}!) {{ {name}(input: $input) {{ {selection} userErrors {{ field code message }} }} }}"
        );
        self.ask(who, &query, json!({ "input": input })).await
    }

    /// The payload of a mutation, which must not fail.
    pub(crate) async fn payload(&self, who: &str, name: &str, input: Value) -> Value {
        let answer = self.mutate(who, name, input).await;
        assert_eq!(answer.get("errors"), None, "{name}: {answer}");
        answer["data"][name].clone()
    }

    /// The payload of a mutation, which must have no user errors.
    pub(crate) async fn done(&self, who: &str, name: &str, input: Value) -> Value {
        let payload = self.payload(who, name, input).await;
        assert_eq!(payload["userErrors"], json!([]), "{name}");
        payload
    }

    /// The user errors of a mutation, as `CODE field.path`.
    pub(crate) async fn faults(&self, who: &str, name: &str, input: Value) -> Vec<String> {
        faults(&self.payload(who, name, input).await)
    }

    /// The code of the error that a mutation fails with, and the field that it names.
    pub(crate) async fn refused(&self, who: &str, name: &str, input: Value) -> (Value, Value) {
        let answer = self.mutate(who, name, input).await;
        let error = &answer["errors"][0]["extensions"];
        assert_eq!(answer["data"], Value::Null, "{name}: {answer}");
        (error["code"].clone(), error["field"].clone())
    }

    /// The id of a circle of the demo data.
    pub(crate) async fn circle(&self, name: &str) -> Value {
        let query = "query ($name: String) { circles(first: 100, filter: { search: $name }) { nodes { id name } } }";
        let data = self.read(ADMIN, query, json!({ "name": name })).await;
        data["circles"]["nodes"][0]["id"].clone()
    }

    /// The id of a user.
    pub(crate) async fn user(&self, email: &str) -> Value {
        self.read(email, "{ viewer { id } }", json!({})).await["viewer"]["id"].clone()
    }

    /// The ids of agents of the owner, newest first.
    pub(crate) async fn agents(&self) -> Vec<Value> {
        let query = "{ agents(first: 100) { nodes { id } } }";
        let data = self.read(OWNER, query, json!({})).await;
        let nodes = data["agents"]["nodes"].as_array().expect("agents");
        nodes.iter().map(|node| node["id"].clone()).collect()
    }

    /// The ids of the projects of the owner, oldest first.
    async fn projects(&self) -> Vec<Value> {
        let query = "{ projects(last: 100) { nodes { id } } }";
        let data = self.read(OWNER, query, json!({})).await;
        let nodes = data["projects"]["nodes"].as_array().expect("projects");
        nodes.iter().rev().map(|node| node["id"].clone()).collect()
    }

    /// Waits until all events have a position and returns the cursor of the latest.
    pub(crate) async fn mark(&self) -> String {
        let db = self.server.database().connect().await;
        let waiting = event::Entity::find().filter(event::Column::Position.is_null());
        while waiting.clone().count(&db).await.expect("reads") > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        db.close().await.expect("closes");
        let query = "{ events(first: 1) { pageInfo { startCursor } } }";
        let data = self.read(ADMIN, query, json!({})).await;
        let cursor = data["events"]["pageInfo"]["startCursor"].as_str();
        cursor.expect("a cursor").to_owned()
    }

    /// Waits for this many events after the cursor and returns them, oldest first. The events of a transaction appear
    /// together.
    pub(crate) async fn events(&self, since: &str, count: usize) -> Vec<Value> {
        const EVENTS: &str = "query ($since: String) { events(last: 100, before: $since) { nodes { type circle { id } project { id } actor { id }
            ... on CircleEvent { name from: fromStatus to: toStatus changed }
            ... on SharingEvent { user { id } role }
            ... on MemberEvent { agentId part: role changed }
            ... on TaskEvent { fromTask: fromStatus toTask: toStatus }
            ... on ConversationEvent { fromTalk: fromStatus toTalk: toStatus }
            ... on AgentEvent { agentId fromAgent: fromStatus toAgent: toStatus } } } }";
        for _ in 0..3_000 {
            let data = self.read(ADMIN, EVENTS, json!({ "since": since })).await;
            let nodes = data["events"]["nodes"].as_array().expect("events");
            if nodes.len() >= count {
                return nodes.iter().rev().cloned().collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} events were not announced");
    }

    /// Waits for this many events after the cursor and returns their types, oldest first.
    pub(crate) async fn announced(&self, since: &str, count: usize) -> Vec<String> {
        let events = self.events(since, count).await;
        let types = events.iter().map(|event| event["type"].as_str());
        types.map(|ty| ty.expect("a type").to_owned()).collect()
    }

    /// Creates a circle of the owner in this state.
    async fn in_state(&self, name: &str, status: &str) -> Value {
        let input = json!({ "name": name });
        let circle = self.done(OWNER, "createCircle", input).await["circle"]["id"].clone();
        let steps: &[&str] = match status {
            "CREATED" => &[],
            "RUNNING" => &["startCircle"],
            "PAUSED" => &["startCircle", "pauseCircle"],
            "STOPPED" => &["startCircle", "stopCircle"],
            _ => &["archiveCircle"],
        };
        for step in steps {
            self.done(OWNER, step, json!({ "circleId": circle })).await;
        }
        circle
    }
}

/// The user errors of a payload, as `CODE field.path`.
pub(crate) fn faults(payload: &Value) -> Vec<String> {
    let errors = payload["userErrors"].as_array().expect("user errors");
    let texts = errors.iter().map(|error| {
        let path = error["field"].as_array().into_iter().flatten();
        let path: Vec<_> = path.filter_map(Value::as_str).collect();
        format!(
            "{} {}",
            error["code"].as_str().expect("a code"),
            path.join(".")
        )
    });
    texts.map(|text| text.trim_end().to_owned()).collect()
}

fn of(circle: &Value) -> Value {
    json!({ "circleId": circle })
}

#[tokio::test]
async fn a_circle_can_be_created_with_members_and_started_in_one_request() {
    let studio = Studio::open().await;
    let (agents, projects) = (studio.agents().await, studio.projects().await);
    let since = studio.mark().await;
    let input = json!({
        "name": "  New  ", "displayName": "A new circle", "description": "First\r\nsecond", "projectId": projects[3],
        "requireReview": false, "autoRoute": false, "maxMembers": 3, "maxConcurrentTasks": 7, "startNow": true,
        "members": [
            { "agentId": agents[1], "role": "LEAD", "competencies": [" Rust ", "rust", "SQL"], "reviewTypes": ["CODE", "all"] },
            { "agentId": agents[0] },
        ],
    });
    let circle = studio.done(OWNER, "createCircle", input).await["circle"].clone();
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
    let data = studio
        .read(OWNER, query, json!({ "id": circle["id"] }))
        .await;
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
    let user = studio.user(OWNER).await;
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
    assert_eq!(studio.events(&since, 4).await, expected);

    let db = studio.server.database().connect().await;
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
    let studio = Studio::open().await;
    let agents = studio.agents().await;
    let count = "{ circles { totalCount } }";
    let before = studio.read(OWNER, count, json!({})).await;
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
    let payload = studio.payload(OWNER, "createCircle", input).await;
    assert_eq!(faults(&payload), expected);
    assert_eq!(payload["circle"], Value::Null);

    let member = |agent: &Value| json!({ "agentId": agent });
    let many: Vec<_> = agents.iter().chain(&agents[..1]).map(member).collect();
    let input = json!({ "name": "Crowd", "maxMembers": 500, "members": many });
    assert_eq!(
        studio.faults(OWNER, "createCircle", input).await,
        ["TOO_MANY members"]
    );
    let few: Vec<_> = agents[..3].iter().map(member).collect();
    let input = json!({ "name": "Crowd", "maxMembers": 2, "members": few });
    assert_eq!(
        studio.faults(OWNER, "createCircle", input).await,
        ["LIMIT_REACHED members"]
    );
    // Some letters fold to several characters.
    let input = json!({ "name": "ﷺ".repeat(6) });
    assert_eq!(
        studio.faults(OWNER, "createCircle", input).await,
        ["TOO_LONG name"]
    );
    let input = json!({ "name": "Crowd", "maxMembers": 0, "members": few });
    assert_eq!(
        studio.faults(OWNER, "createCircle", input).await,
        ["OUT_OF_RANGE maxMembers"]
    );
    let input = json!({ "name": "ATELIER", "members": few });
    assert_eq!(
        studio.faults(OWNER, "createCircle", input).await,
        ["TAKEN name"]
    );
    let input = json!({ "name": "Crowd", "members": [{ "agentId": "agent_1" }] });
    let (code, field) = studio.refused(OWNER, "createCircle", input).await;
    assert_eq!(
        (code, field),
        (json!("BAD_USER_INPUT"), json!("members.0.agentId"))
    );
    assert_eq!(studio.read(OWNER, count, json!({})).await, before);
    // Circle names are unique per owner.
    studio
        .done(GUEST, "createCircle", json!({ "name": ATELIER }))
        .await;
}

#[tokio::test]
async fn a_circle_cannot_use_agents_or_projects_of_other_users() {
    let studio = Studio::open().await;
    let (atelier, projects) = (studio.circle(ATELIER).await, studio.projects().await);
    let input = json!({ "circleId": atelier, "email": GUEST, "role": "EDITOR" });
    studio.done(OWNER, "shareCircle", input).await;
    let query = "query ($id: ID!) { circle(id: $id) { members(first: 1) { nodes { id } } } }";
    let data = studio.read(GUEST, query, json!({ "id": atelier })).await;
    let shared = &data["circle"]["members"]["nodes"][0]["id"];
    let mut hidden = Value::Null;
    for agent in studio.agents().await {
        let answer = studio.ask(
            GUEST,
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
        let refused = studio
            .refused(GUEST, "createCircle", input(agents, project))
            .await;
        let field = if field.is_empty() {
            Value::Null
        } else {
            json!(field)
        };
        assert_eq!(refused, (json!(code), field));
        studio
            .done(ADMIN, "createCircle", {
                let mut input = input(agents, project);
                input["name"] = json!(format!("{code} {}", agents.len()));
                input
            })
            .await;
    }
    // An existing link to another user's project can be kept, but a new one is refused.
    let mine = studio
        .done(GUEST, "createCircle", json!({ "name": "Mine" }))
        .await["circle"]["id"]
        .clone();
    let update =
        |project: &Value| json!({ "circleId": mine, "projectId": project, "name": "Mine" });
    studio
        .done(ADMIN, "updateCircle", update(&projects[1]))
        .await;
    studio
        .done(GUEST, "updateCircle", update(&projects[1]))
        .await;
    let refused = studio
        .refused(GUEST, "updateCircle", update(&projects[0]))
        .await;
    assert_eq!(refused.0, "FORBIDDEN");
    let refused = studio
        .refused(GUEST, "updateCircle", update(&projects[2]))
        .await;
    assert_eq!(refused, (json!("NOT_FOUND"), json!("projectId")));
    let circle = studio
        .done(GUEST, "updateCircle", update(&Value::Null))
        .await;
    assert_eq!(circle["circle"]["project"], Value::Null);
}

#[tokio::test]
async fn creating_a_circle_of_any_size_takes_at_most_eight_statements() {
    const CREATE: &str = "mutation W1NewCircle($input: CreateCircleInput!) {
      createCircle(input: $input) { circle { id name status version members { totalCount } } userErrors { field code message } }
    }";
    /// The statements that authentication takes.
    const AUTHENTICATION: u64 = 1;
    let studio = Studio::open().await;
    let (agents, projects) = (studio.agents().await, studio.projects().await);
    // A separate graph without event delivery, because its statements would be counted too.
    let statements = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&statements);
    let mut db = studio.server.database().connect().await;
    db.set_metric_callback(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let keys = Keys::new(SIGNING_KEY.as_bytes(), &[""; 0]).expect("is strong");
    let steady = serve::Options::default().steady;
    let settings = serve::settings(&Config::default(), keys, Arc::new(Utc::now), steady);
    let (graph, _works) = Graph::new(db, settings.expect("is read"))
        .await
        .expect("is made");
    for (who, sizes) in [(OWNER, [0, 20, 100]), (ADMIN, [0, 20, 100])] {
        let token = studio.server.token(who).await;
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
                let params = Params {
                    query: Some(CREATE.to_owned()),
                    variables: variables.as_object().cloned(),
                    ..Params::default()
                };
                let operation = graph.prepare(params).expect("is well formed");
                let caller = Caller {
                    token: Some(&token),
                    client: Client::default(),
                    usage: Usage::Off,
                    after: None,
                    idempotency_key: None,
                    batch_entry: None,
                };
                let before = statements.load(Ordering::Relaxed);
                let answer = graph.answer(operation, caller).await;
                let sent = statements.load(Ordering::Relaxed) - before - AUTHENTICATION;
                let answer = serde_json::to_value(&answer).expect("JSON");
                let payload = &answer["data"]["createCircle"];
                assert_eq!(payload["circle"]["members"]["totalCount"], size, "{answer}");
                assert!(sent <= 8, "{size} members took {sent} statements");
            }
        }
    }
}

#[tokio::test]
async fn circle_transitions_succeed_only_from_their_allowed_states() {
    const STATES: [&str; 5] = ["CREATED", "RUNNING", "PAUSED", "STOPPED", "ARCHIVED"];
    let studio = Studio::open().await;
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
            let id = studio.in_state(&format!("{step} {state}"), state).await;
            let query = format!(
                "query ($id: ID!) {{ {} }}",
                CIRCLE.replacen("circle", "circle(id: $id)", 1)
            );
            let before = studio.read(OWNER, &query, json!({ "id": id })).await["circle"].clone();
            let since = studio.mark().await;
            let payload = studio.payload(OWNER, step, of(&id)).await;
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
                let events = studio.events(&since, 1).await;
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
    let studio = Studio::open().await;
    for round in 0..5 {
        let id = studio.in_state(&format!("Round {round}"), "CREATED").await;
        let since = studio.mark().await;
        let starts = (0..4).map(|_| studio.payload(OWNER, "startCircle", of(&id)));
        let mut outcomes: Vec<_> = join_all(starts).await.iter().map(faults).collect();
        outcomes.sort();
        let refused = vec!["BAD_TRANSITION".to_owned()];
        assert_eq!(
            outcomes,
            [vec![], refused.clone(), refused.clone(), refused]
        );
        assert_eq!(studio.announced(&since, 1).await, ["CIRCLE_STARTED"]);
    }
}

#[tokio::test]
async fn an_outdated_version_prevents_every_change_of_a_circle() {
    let studio = Studio::open().await;
    let id = studio.in_state("Old", "STOPPED").await;
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
        let payload = studio.payload(OWNER, name, input.clone()).await;
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
    studio.done(OWNER, "updateCircle", input).await;
    // The second of two updates of the same version gets a conflict.
    let input = json!({ "circleId": id, "expectedVersion": 3 });
    assert_eq!(
        studio.faults(OWNER, "startCircle", input).await,
        ["CONFLICT expectedVersion"]
    );
}

#[tokio::test]
async fn a_circle_update_changes_and_announces_only_the_given_fields() {
    let studio = Studio::open().await;
    let projects = studio.projects().await;
    let input = json!({ "name": "Plain", "displayName": "Plain", "description": "Plain", "projectId": projects[0] });
    let id = studio.done(OWNER, "createCircle", input).await["circle"]["id"].clone();
    let since = studio.mark().await;
    let update = |fields: Value| {
        let mut input = fields;
        input["circleId"] = id.clone();
        input
    };

    let same = update(
        json!({ "name": " Plain", "displayName": "Plain", "maxMembers": 50, "projectId": projects[0] }),
    );
    let circle = studio.done(OWNER, "updateCircle", same).await["circle"].clone();
    assert_eq!(circle["version"], 1);
    let fields = json!({
        "name": "PLAIN", "displayName": null, "description": " ", "projectId": null, "requireReview": false, "autoRoute": false,
        "maxMembers": 1, "maxConcurrentTasks": 100,
    });
    let circle = studio.done(OWNER, "updateCircle", update(fields)).await["circle"].clone();
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
    studio
        .done(
            OWNER,
            "updateCircle",
            update(json!({ "projectId": projects[1] })),
        )
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
    let events = studio.events(&since, 2).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| (&event["type"], &event["changed"], &event["project"]))
        .collect();
    assert_eq!(
        told,
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
    let faults = studio.faults(OWNER, "updateCircle", update(nothing)).await;
    let required = [
        "REQUIRED name",
        "REQUIRED requireReview",
        "REQUIRED autoRoute",
        "REQUIRED maxMembers",
        "REQUIRED maxConcurrentTasks",
    ];
    assert_eq!(faults, required);
    assert_eq!(
        studio
            .faults(OWNER, "updateCircle", update(json!({ "name": "atelier" })))
            .await,
        ["TAKEN name"]
    );
    // Atelier has 20 active members and two who left.
    let atelier = studio.circle(ATELIER).await;
    let least = |most: i32| json!({ "circleId": atelier, "maxMembers": most });
    assert_eq!(
        studio.faults(OWNER, "updateCircle", least(19)).await,
        ["OUT_OF_RANGE maxMembers"]
    );
    assert_eq!(
        studio.faults(OWNER, "updateCircle", least(0)).await,
        ["OUT_OF_RANGE maxMembers"]
    );
    studio.done(OWNER, "updateCircle", least(20)).await;
}

#[tokio::test]
async fn starting_a_circle_assigns_its_pending_tasks() {
    let studio = Studio::open().await;
    let id = studio.circle("Pause").await;
    let input = json!({ "circleId": id, "maxConcurrentTasks": 100 });
    studio.done(OWNER, "updateCircle", input).await;
    let since = studio.mark().await;
    studio.done(OWNER, "startCircle", of(&id)).await;
    let expected = [
        "CIRCLE_STARTED",
        "TASK_ASSIGNED",
        "TASK_ASSIGNED",
        "TASK_ASSIGNED",
    ];
    assert_eq!(studio.announced(&since, 4).await, expected);
}

#[tokio::test]
async fn stopping_a_circle_pauses_its_conversations() {
    let studio = Studio::open().await;
    let id = studio.circle(ATELIER).await;
    let active = "query ($id: ID!) { circle(id: $id) { conversations(filter: { status: [ACTIVE] }) { totalCount } } }";
    let count = async || {
        let data = studio.read(OWNER, active, json!({ "id": id })).await;
        data["circle"]["conversations"]["totalCount"]
            .as_u64()
            .expect("a count")
    };
    let held = usize::try_from(count().await).expect("fits");
    assert!(held > 0);
    let since = studio.mark().await;
    studio.done(OWNER, "stopCircle", of(&id)).await;
    assert_eq!(count().await, 0);
    let mut expected = vec!["CONVERSATION_PAUSED"; held + 1];
    expected[0] = "CIRCLE_STOPPED";
    assert_eq!(studio.announced(&since, held + 1).await, expected);
}

#[tokio::test]
async fn an_archived_circle_cannot_be_changed_until_it_is_restored() {
    let studio = Studio::open().await;
    let (id, agents) = (studio.circle("Archive").await, studio.agents().await);
    let query = "query ($id: ID!) { circle(id: $id) { version members(first: 1) { edges { membership { id } } } } }";
    let before = studio.read(OWNER, query, json!({ "id": id })).await;
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
                json!({ "circleId": id, "userId": studio.user(GUEST).await }),
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
                studio.faults(who, name, input).await,
                ["BAD_TRANSITION"],
                "{name}"
            );
        }
    }
    assert_eq!(studio.read(OWNER, query, json!({ "id": id })).await, before);

    // Another circle can use its name until then.
    let other = studio.in_state("Archive", "CREATED").await;
    assert_eq!(
        studio.faults(OWNER, "restoreCircle", of(&id)).await,
        ["TAKEN"]
    );
    let input = json!({ "circleId": other, "name": "Other" });
    studio.done(OWNER, "updateCircle", input).await;
    let circle = studio.done(OWNER, "restoreCircle", of(&id)).await["circle"].clone();
    assert_eq!(
        (&circle["status"], &circle["archivedAt"]),
        (&json!("STOPPED"), &Value::Null)
    );
    let input = json!({ "circleId": id, "name": "Restored" });
    studio.done(OWNER, "updateCircle", input).await;
}

#[tokio::test]
async fn deleting_a_circle_deletes_its_tasks_and_keeps_its_conversations() {
    let studio = Studio::open().await;
    let id = studio.circle("North").await;
    let inside = "query ($id: ID!) { circle(id: $id) { tasks(first: 100) { nodes { id status assignee { id } } }
        members(first: 100) { edges { membership { id } node { id status } } } conversations { nodes { id status } } } }";
    let before = studio.read(OWNER, inside, json!({ "id": id })).await["circle"].clone();
    let delete = json!({ "id": id });
    for (step, state) in [("", "RUNNING"), ("pauseCircle", "PAUSED")] {
        if !step.is_empty() {
            studio.done(OWNER, step, of(&id)).await;
        }
        let payload = studio.payload(OWNER, "deleteCircle", delete.clone()).await;
        assert_eq!(faults(&payload), ["BAD_TRANSITION"]);
        assert_eq!(payload["deletedId"], Value::Null);
        assert_eq!(
            (&payload["current"]["id"], &payload["current"]["status"]),
            (&id, &json!(state))
        );
    }
    studio.done(OWNER, "stopCircle", of(&id)).await;

    // Agents that had work only in this circle become idle.
    let at_work = "{ tasks(first: 100, filter: { status: [IN_PROGRESS] }) { nodes { circle { id } assignee { id status } } } }";
    let data = studio.read(OWNER, at_work, json!({})).await;
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
    let since = studio.mark().await;
    let payload = studio.done(OWNER, "deleteCircle", delete.clone()).await;
    assert_eq!(
        payload,
        json!({ "deletedId": id, "current": null, "userErrors": [] })
    );
    let mut events = studio.events(&since, 1 + freed.len()).await;
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
        let data = studio
            .read(OWNER, query, json!({ "id": agent["id"] }))
            .await;
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
        let answer = studio.ask(ADMIN, node, json!({ "id": gone })).await;
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "NOT_FOUND",
            "{gone}"
        );
    }
    let owner = studio.user(OWNER).await;
    let conversations = of("conversations", "id");
    assert_eq!(conversations.len(), 4);
    for kept in conversations {
        let data = studio.read(OWNER, node, json!({ "id": kept })).await;
        assert_eq!(
            data["node"],
            json!({ "__typename": "Conversation", "circle": null, "owner": { "id": owner } })
        );
    }
    let refused = studio.refused(OWNER, "deleteCircle", delete).await;
    assert_eq!(refused, (json!("NOT_FOUND"), json!("id")));
}

#[tokio::test]
async fn a_circle_is_shared_by_e_mail_address_and_can_be_left() {
    let studio = Studio::open().await;
    let (id, guest) = (studio.circle(ATELIER).await, studio.user(GUEST).await);
    let since = studio.mark().await;
    let share = |email: &str, role: &str| json!({ "circleId": id, "email": email, "role": role });
    let collaborators =
        |role: &str| json!({ "edges": [{ "role": role, "node": { "id": guest } }] });
    let refused = studio.refused(GUEST, "startCircle", of(&id)).await;
    assert_eq!(refused, (json!("NOT_FOUND"), json!("circleId")));
    for role in ["VIEWER", "VIEWER", "EDITOR"] {
        let circle = studio
            .done(OWNER, "shareCircle", share(" Guest@EXAMPLE.com ", role))
            .await["circle"]
            .clone();
        assert_eq!(circle["collaborators"], collaborators(role));
        assert_eq!(circle["version"], 1);
    }
    assert_eq!(
        studio.faults(GUEST, "startCircle", of(&id)).await,
        ["BAD_TRANSITION"]
    );
    assert_eq!(
        studio.refused(GUEST, "archiveCircle", of(&id)).await.0,
        "FORBIDDEN"
    );
    let nobody = json!({ "circleId": id, "userId": NOBODY });
    let refused = studio.refused(OWNER, "unshareCircle", nobody).await;
    assert_eq!(refused, (json!("NOT_FOUND"), json!("userId")));
    // After leaving, the guest can no longer read the circle.
    let unshare = json!({ "circleId": id, "userId": guest });
    let payload = studio.done(GUEST, "unshareCircle", unshare.clone()).await;
    assert_eq!(payload["circle"], Value::Null);
    assert_eq!(
        studio.faults(OWNER, "unshareCircle", unshare.clone()).await,
        ["INVALID userId"]
    );
    assert_eq!(
        studio
            .refused(GUEST, "unshareCircle", unshare.clone())
            .await
            .0,
        "NOT_FOUND"
    );
    studio
        .done(ADMIN, "shareCircle", share(GUEST, "VIEWER"))
        .await;
    assert_eq!(
        studio.refused(GUEST, "startCircle", of(&id)).await.0,
        "FORBIDDEN"
    );
    let circle = studio.done(OWNER, "unshareCircle", unshare).await["circle"].clone();
    assert_eq!(circle["collaborators"], json!({ "edges": [] }));

    let told = |ty: &str, role: Value| (json!(ty), role);
    let events = studio.events(&since, 5).await;
    let events: Vec<_> = events
        .iter()
        .map(|event| {
            assert_eq!(event["user"]["id"], guest);
            told(
                event["type"].as_str().expect("a type"),
                event["role"].clone(),
            )
        })
        .collect();
    let expected = [
        told("CIRCLE_SHARED", json!("VIEWER")),
        told("CIRCLE_SHARED", json!("EDITOR")),
        told("CIRCLE_UNSHARED", Value::Null),
        told("CIRCLE_SHARED", json!("VIEWER")),
        told("CIRCLE_UNSHARED", Value::Null),
    ];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn sharing_with_a_deactivated_user_fails_like_with_an_unknown_address() {
    let studio = Studio::open().await;
    let id = studio.circle(ATELIER).await;
    let share = |email: &str| json!({ "circleId": id, "email": email, "role": "VIEWER" });
    let unknown = studio
        .payload(OWNER, "shareCircle", share("nobody@example.com"))
        .await;
    assert_eq!(faults(&unknown), ["INVALID email"]);
    let guest = studio.user(GUEST).await;
    let deactivate = "mutation ($id: ID!) { updateUser(input: { userId: $id, isActive: false }) { userErrors { code } } }";
    studio.read(ADMIN, deactivate, json!({ "id": guest })).await;
    assert_eq!(
        studio.payload(OWNER, "shareCircle", share(GUEST)).await,
        unknown
    );
    assert_eq!(
        studio.faults(ADMIN, "shareCircle", share(OWNER)).await,
        ["INVALID email"]
    );
    assert_eq!(
        studio.faults(OWNER, "shareCircle", share("nobody")).await,
        ["INVALID email"]
    );
}

#[tokio::test]
async fn circle_mutations_require_the_matching_access_level() {
    let studio = Studio::open().await;
    let (library, workshop) = (studio.circle(LIBRARY).await, studio.circle(WORKSHOP).await);
    let demo = studio.user(OWNER).await;
    for (name, editor_may) in [
        ("startCircle", true),
        ("pauseCircle", true),
        ("stopCircle", true),
        ("updateCircle", false),
        ("archiveCircle", false),
        ("restoreCircle", false),
        ("deleteCircle", false),
        ("shareCircle", false),
        ("unshareCircle", false),
    ] {
        let input = |id: &Value| match name {
            "updateCircle" => json!({ "circleId": id, "name": "Taken over" }),
            "deleteCircle" => json!({ "id": id }),
            "shareCircle" => json!({ "circleId": id, "email": ADMIN, "role": "EDITOR" }),
            "unshareCircle" => json!({ "circleId": id, "userId": demo }),
            _ => of(id),
        };
        assert_eq!(
            studio.refused(GUEST, name, input(&library)).await.0,
            "FORBIDDEN",
            "{name}"
        );
        let answer = studio.mutate(GUEST, name, input(&workshop)).await;
        let code = &answer["errors"][0]["extensions"]["code"];
        assert_eq!(*code == "FORBIDDEN", !editor_may, "{name}: {answer}");
    }
}
