//! Keys that are limited to circles, or to the circles of an agent.

use super::*;
use crate::support::actor::{GUEST, code, faults, refusal};
use crate::support::wait::until_some;

/// The demo user's agents Ada and Bob. Both are members of the circle One, and Bob of the circle Two.
struct Scene {
    server: TestServer,
    owner: Actor,
    ada: Value,
    bob: Value,
    one: Value,
    two: Value,
}

impl Scene {
    async fn new() -> Self {
        let server = TestServer::start().await;
        let owner = server.actor(OWNER).await;
        let agent = async |name: &str| {
            let agent = owner.saved("createAgent", json!({ "name": name })).await;
            agent["id"].clone()
        };
        let (ada, bob) = (agent("Ada Key").await, agent("Bob Key").await);
        let circle = async |name: &str, agents: &[&Value]| {
            let members: Vec<_> = agents.iter().map(|id| json!({ "agentId": id })).collect();
            let input = json!({ "name": name, "members": members });
            owner.saved("createCircle", input).await["id"].clone()
        };
        Self {
            one: circle("One", &[&ada, &bob]).await,
            two: circle("Two", &[&bob]).await,
            server,
            owner,
            ada,
            bob,
        }
    }

    async fn key(&self, limit: Value) -> Key {
        let mut input = json!({ "name": "A", "scopes": ["READ", "WRITE"] });
        let all = input.as_object_mut().expect("an object");
        all.extend(limit.as_object().expect("an object").clone());
        create(&self.owner, input).await
    }

    async fn caller(&self, limit: Value) -> Actor {
        self.server.with_token(&self.key(limit).await.secret)
    }

    async fn create_task(&self, actor: &Actor, circle: &Value) -> Value {
        let input = json!({ "circleId": circle, "title": "A task" });
        actor.saved("createTask", input).await
    }

    /// Removes Ada from the circle One.
    async fn remove_ada(&self) {
        let query = "query ($id: ID!) { circle(id: $id) { members { edges { membership { id } node { id } } } } }";
        let data = self.owner.ask(query, json!({ "id": self.one })).await;
        let edges = data["circle"]["members"]["edges"]
            .as_array()
            .expect("edges");
        let edge = edges.iter().find(|edge| edge["node"]["id"] == self.ada);
        let member = &edge.expect("a member")["membership"]["id"];
        self.owner
            .done("removeCircleMember", json!({ "memberId": member }))
            .await;
    }
}

const ALL: &str = "{ viewer { id email lastLoginAt } circles { totalCount nodes { name } } agents { nodes { name } }
    projects { totalCount } conversations { totalCount } tasks { totalCount nodes { circle { name } } }
    dashboard { circles { total } agents { total } } events(first: 100) { nodes { type circle { name } } } }";

fn names(list: &Value) -> Vec<String> {
    let nodes = list["nodes"].as_array().expect("nodes");
    let mut names: Vec<_> = nodes.iter().map(|node| text(&node["name"])).collect();
    names.sort();
    names
}

/// Checks that a caller reads the circles with these names and their contents, and nothing else.
async fn assert_reads(caller: &Actor, circles: &[&str], agents: &[&str]) {
    let data = caller.ask(ALL, json!({})).await;
    assert_eq!(data["viewer"]["email"], Value::Null);
    assert_eq!(names(&data["circles"]), circles);
    assert_eq!(data["circles"]["totalCount"], circles.len());
    assert_eq!(names(&data["agents"]), agents);
    assert_eq!(data["dashboard"]["circles"]["total"], circles.len());
    assert_eq!(data["dashboard"]["agents"]["total"], agents.len());
    assert_eq!(
        (
            &data["projects"]["totalCount"],
            &data["conversations"]["totalCount"]
        ),
        (&json!(0), &json!(0))
    );
    for event in data["events"]["nodes"].as_array().expect("events") {
        let kind = text(&event["type"]);
        let is_public = kind.ends_with("_CHANGED") && !kind.starts_with("AGENT");
        let circle = event["circle"]["name"].as_str();
        let is_own = circle.is_some_and(|name| circles.contains(&name));
        assert!(is_public || is_own || kind == "MEMBER_REMOVED", "{event}");
    }
}

#[tokio::test]
async fn a_key_that_is_limited_to_circles_reads_and_changes_their_contents_only() {
    let scene = Scene::new().await;
    let caller = scene.caller(json!({ "circleIds": [scene.two] })).await;
    assert_reads(&caller, &["Two"], &["Bob Key"]).await;
    let node = "query ($id: ID!) { node(id: $id) { id } }";
    for id in [&scene.two, &scene.bob] {
        caller.ask(node, json!({ "id": id })).await;
    }
    let task = scene.create_task(&scene.owner, &scene.one).await;
    for id in [&scene.one, &scene.ada, &task["id"]] {
        assert_eq!(
            code(&caller.answer(node, json!({ "id": id })).await),
            "NOT_FOUND"
        );
    }
    scene.create_task(&caller, &scene.two).await;
    let input = json!({ "circleId": scene.one, "title": "A task" });
    assert_eq!(
        caller.refused("createTask", input).await,
        "NOT_FOUND circleId"
    );
    for (name, input) in [
        ("createAgent", json!({ "name": "A" })),
        ("updateAgent", json!({ "agentId": scene.bob })),
        ("createProject", json!({ "name": "A" })),
        ("createCircle", json!({ "name": "A" })),
        ("deleteCircle", json!({ "id": scene.two })),
        (
            "shareCircle",
            json!({ "circleId": scene.two, "email": GUEST, "role": "EDITOR" }),
        ),
    ] {
        assert_eq!(caller.refused(name, input).await, "FORBIDDEN", "{name}");
    }
    let input = json!({ "circleId": scene.two, "projectId": null });
    let refusal = caller.refused("updateCircle", input).await;
    assert_eq!(refusal, "FORBIDDEN projectId");
    let input = json!({ "topic": "A talk", "participantIds": [scene.bob] });
    assert_eq!(
        caller.refused("createConversation", input).await,
        "FORBIDDEN circleId"
    );
    // Without its circles, a key reads nothing instead of everything.
    scene.owner.delete("deleteCircle", &scene.two).await;
    assert_reads(&caller, &[], &[]).await;
}

#[tokio::test]
async fn a_key_cannot_be_limited_to_objects_of_others() {
    let scene = Scene::new().await;
    let guest = scene.server.actor(GUEST).await;
    for (limit, expected) in [
        (json!({ "circleIds": [scene.one] }), "NOT_FOUND circleIds.0"),
        (json!({ "agentId": scene.ada }), "NOT_FOUND agentId"),
    ] {
        let mut input = json!({ "name": "A", "scopes": ["READ"] });
        let all = input.as_object_mut().expect("an object");
        all.extend(limit.as_object().expect("an object").clone());
        let answer = guest.mutate("createApiKey", CREATED, input).await;
        assert_eq!(refusal(&answer), expected);
    }
}

#[tokio::test]
async fn a_key_of_an_agent_acts_as_the_agent_in_its_circles() {
    let scene = Scene::new().await;
    let key = scene.key(json!({ "agentId": scene.ada })).await;
    let caller = scene.server.with_token(&key.secret);
    assert_reads(&caller, &["One"], &["Ada Key", "Bob Key"]).await;
    let task = scene.create_task(&caller, &scene.one).await;
    let events = "query ($id: ID!) { events(filter: { subjectId: $id }) { nodes { type actor { __typename id } } } }";
    let created = until_some("the event of the task", async || {
        let data = scene.owner.ask(events, json!({ "id": task["id"] })).await;
        let events = data["events"]["nodes"].as_array().expect("events");
        events.last().cloned()
    })
    .await;
    let actor = json!({ "__typename": "Agent", "id": scene.ada });
    assert_eq!(created, json!({ "type": "TASK_CREATED", "actor": actor }));

    let input = json!({ "topic": "A talk", "circleId": scene.one, "participantIds": [scene.ada, scene.bob], "startNow": true });
    let conversation = caller.saved("createConversation", input).await["id"].clone();
    let post = async |agent: Value| {
        let input =
            json!({ "conversationId": conversation, "content": "Hello.", "agentId": agent });
        let selection = "message { agent { id } author: authorName } userErrors { code }";
        caller.mutate("postMessage", selection, input).await
    };
    assert_eq!(refusal(&post(scene.bob.clone()).await), "FORBIDDEN agentId");
    let posted = post(Value::Null).await;
    assert_eq!(
        posted["data"]["postMessage"]["message"]["agent"]["id"], scene.ada,
        "{posted}"
    );

    // The agent reads its own prompt and not that of others.
    for (agent, prompt) in [(&scene.ada, "Be brief."), (&scene.bob, "Be long.")] {
        let input = json!({ "agentId": agent, "systemPrompt": prompt });
        scene.owner.done("updateAgent", input).await;
    }
    let prompt = "query ($ids: [ID!]!) { nodes(ids: $ids) { ... on Agent { systemPrompt } } }";
    let prompts = caller
        .ask(prompt, json!({ "ids": [scene.ada, scene.bob] }))
        .await;
    assert_eq!(
        prompts["nodes"],
        json!([{ "systemPrompt": "Be brief." }, { "systemPrompt": null }])
    );

    // Both limits apply.
    let both = scene
        .caller(json!({ "agentId": scene.ada, "circleIds": [scene.two] }))
        .await;
    let data = both.ask(ALL, json!({})).await;
    assert_eq!(names(&data["circles"]), [""; 0]);
    assert_eq!(names(&data["agents"]), ["Ada Key"]);

    scene.remove_ada().await;
    let data = caller.ask(ALL, json!({})).await;
    assert_eq!(names(&data["circles"]), [""; 0]);
    assert_eq!(data["tasks"]["totalCount"], 0);
    let end = json!({ "conversationId": conversation });
    scene.owner.done("cancelConversation", end).await;
    scene.owner.delete("deleteAgent", &scene.ada).await;
    assert_eq!(caller.who().await, unauthenticated());
}

#[tokio::test]
async fn a_key_of_an_agent_reviews_as_the_agent_and_not_its_own_work() {
    let scene = Scene::new().await;
    let input = json!({ "circleId": scene.one, "title": "A task", "assigneeId": scene.ada, "reviewerId": scene.bob, "requiresReview": true });
    let task = scene.owner.saved("createTask", input).await["id"].clone();
    let ada = scene.caller(json!({ "agentId": scene.ada })).await;
    ada.done("startTask", json!({ "taskId": task })).await;
    let result = json!({ "taskId": task, "result": "It is done." });
    ada.done("submitTask", result).await;
    let as_bob = json!({ "taskId": task, "reviewerId": scene.bob });
    let refusal = ada.refused("approveTask", as_bob.clone()).await;
    assert_eq!(refusal, "FORBIDDEN reviewerId");
    let selection = "task { status } userErrors { code field message }";
    let own = ada.mutate("approveTask", selection, json!({ "taskId": task }));
    let own = own.await["data"]["approveTask"].clone();
    assert_eq!(faults(&own), ["INVALID reviewerId"]);
    let bob = scene.caller(json!({ "agentId": scene.bob })).await;
    bob.done("approveTask", as_bob).await;
}

#[tokio::test]
async fn the_events_of_a_circle_end_when_the_agent_of_a_key_leaves_it() {
    let scene = Scene::new().await;
    let key = scene.key(json!({ "agentId": scene.ada })).await;
    let circle = text(&scene.one);
    let mut of_circle = Socket::subscribed(
        &scene.server,
        &key.secret,
        &format!("subscription {{ circleEvents(circleId: \"{circle}\", types: [TASK_CREATED]) {{ type }} }}"),
    )
    .await;
    let types = "[TASK_CREATED, MEMBER_ADDED, MEMBER_REMOVED, PROVIDER_CHANGED]";
    let query = format!(
        "subscription {{ events(filter: {{ types: {types} }}) {{ type circle {{ name }} }} }}"
    );
    let mut of_all = Socket::subscribed(&scene.server, &key.secret, &query).await;
    scene.create_task(&scene.owner, &scene.two).await;
    scene.create_task(&scene.owner, &scene.one).await;
    let in_one = |kind: &str| json!({ "type": kind, "circle": { "name": "One" } });
    assert_eq!(
        of_circle.value("circleEvents").await,
        json!({ "type": "TASK_CREATED" })
    );
    assert_eq!(of_all.value("events").await, in_one("TASK_CREATED"));

    scene.remove_ada().await;
    scene.create_task(&scene.owner, &scene.one).await;
    let admin = scene.server.actor(ADMIN).await;
    admin
        .saved(
            "createProvider",
            json!({ "name": "a-provider", "displayName": "A" }),
        )
        .await;
    let removed = of_all.value("events").await;
    assert_eq!(removed, json!({ "type": "MEMBER_REMOVED", "circle": null }));
    let next = of_all.value("events").await;
    assert_eq!(next, json!({ "type": "PROVIDER_CHANGED", "circle": null }));
    assert_eq!(of_circle.next().await["type"], "complete");

    let members = json!([{ "agentId": scene.ada }]);
    let input = json!({ "circleId": scene.one, "members": members });
    scene.owner.done("addCircleMembers", input).await;
    scene.create_task(&scene.owner, &scene.one).await;
    assert_eq!(of_all.value("events").await, in_one("MEMBER_ADDED"));
    assert_eq!(of_all.value("events").await, in_one("TASK_CREATED"));
}

#[tokio::test]
async fn a_stored_response_is_not_shown_to_another_key() {
    let scene = Scene::new().await;
    let limited = scene.caller(json!({ "circleIds": [scene.two] })).await;
    let mutation =
        "mutation ($input: CreateTaskInput!) { createTask(input: $input) { task { title } } }";
    let variables = json!({ "input": { "circleId": scene.one, "title": "A task" } });
    let send = async |actor: &Actor| -> Value {
        let request = actor.request(mutation, &variables);
        let request = request.header("idempotency-key", "one-key");
        request
            .send()
            .await
            .expect("an answer")
            .json()
            .await
            .expect("JSON")
    };
    let made = send(&scene.owner).await;
    assert_eq!(
        made["data"]["createTask"]["task"]["title"], "A task",
        "{made}"
    );
    assert_eq!(refusal(&send(&limited).await), "NOT_FOUND circleId");
    assert_eq!(send(&scene.owner).await["data"], made["data"]);
}
