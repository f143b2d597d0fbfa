//! How many round trips to the database mutations take.

use sea_orm::ConnectOptions;

use super::*;
use crate::support::counted::CountedGraph;
use crate::support::round_trips::RoundTrips;

/// A graph whose round trips are counted: on PostgreSQL all messages that wait for an answer, BEGIN and COMMIT included;
/// on SQLite the statements.
struct Counted {
    graph: CountedGraph,
    trips: Option<RoundTrips>,
    token: String,
    _server: TestServer,
}

impl Counted {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let database = server.database();
        let trips = database.is_postgres().then(RoundTrips::default);
        let graph = match &trips {
            Some(trips) => {
                let mut options = ConnectOptions::new(trips.proxy(database).await);
                // Statements are prepared once for each connection.
                options.max_connections(1).test_before_acquire(false);
                let db = sea_orm::Database::connect(options).await.expect("connects");
                CountedGraph::over(db).await
            }
            None => CountedGraph::on(&server).await,
        };
        Self {
            graph,
            trips,
            token: server.token("demo@example.com").await,
            _server: server,
        }
    }

    /// The payload of a mutation, which must succeed, and its round trips beside the authentication.
    async fn mutate(&self, name: &str, selection: &str, input: &Value) -> (Value, u64) {
        let kind = format!("{}{}Input", name[..1].to_uppercase(), &name[1..]);
        let kind = match name {
            "startTask" | "cancelTask" | "unassignTask" | "reopenTask" => "TaskActionInput",
            "blockTask" => "TaskReasonInput",
            "startCircle" => "CircleActionInput",
            "deleteTask" => "DeleteInput",
            _ => &kind,
        };
        let query = format!(
            "mutation ($input: {kind}!) {{ {name}(input: $input) {{ {selection} userErrors {{ code field }} }} }}"
        );
        let before = self.trips.as_ref().map(RoundTrips::count);
        let variables = json!({ "input": input });
        let (answer, statements) = self.graph.cost(&self.token, &query, variables).await;
        let payload = answer["data"][name].clone();
        assert_eq!(payload["userErrors"], json!([]), "{name}: {answer}");
        let trips = self.trips.as_ref().zip(before);
        let cost = trips.map_or(statements, |(trips, before)| {
            trips.count() - before - AUTHENTICATION
        });
        (payload, cost)
    }

    async fn id(&self, name: &str, object: &str, input: Value) -> Value {
        let (payload, _) = self
            .mutate(name, &format!("{object} {{ id }}"), &input)
            .await;
        payload[object]["id"].clone()
    }

    async fn task(&self, circle: &Value, assignee: Option<&Value>) -> Value {
        let input = json!({ "circleId": circle, "title": "A task", "assigneeId": assignee });
        self.id("createTask", "task", input).await
    }

    /// Runs a mutation on each input. One of them takes at most this many round trips; a statement that is sent for the
    /// first time takes another one, which prepares it.
    async fn takes(&self, most: u64, name: &str, selection: &str, inputs: &[Value]) {
        let mut least = u64::MAX;
        for input in inputs {
            let (_, cost) = self.mutate(name, selection, input).await;
            least = least.min(cost);
        }
        assert!(least <= most, "{name} took {least} round trips, not {most}");
        assert_ne!(least, 0, "{name} was not counted");
    }

    /// The number for this database.
    fn most(&self, postgres: u64, sqlite: u64) -> u64 {
        if self.trips.is_some() {
            postgres
        } else {
            sqlite
        }
    }
}

#[expect(clippy::too_many_lines, reason = "the mutations build on one another")]
#[tokio::test]
async fn mutations_stay_within_their_round_trips() {
    const TASK: &str = "task { id version status }";
    let counted = Counted::start().await;
    let mut agents = Vec::new();
    for name in ["Ada", "Ben", "Cleo"] {
        let input = json!({ "name": format!("{name} of the test") });
        agents.push(counted.id("createAgent", "agent", input).await);
    }
    let members = json!([{ "agentId": agents[0] }, { "agentId": agents[1] }]);
    let mut circles = Vec::new();
    for name in ["Calm", "Busy", "Third", "Fourth"] {
        let members = if circles.len() < 2 {
            members.clone()
        } else {
            json!([])
        };
        let input = json!({ "name": name, "members": members });
        circles.push(counted.id("createCircle", "circle", input).await);
    }
    let (calm, busy) = (&circles[0], &circles[1]);
    counted
        .id("startCircle", "circle", json!({ "circleId": busy }))
        .await;

    let new = |circle: &Value| json!({ "circleId": circle, "title": "A task" });
    counted
        .takes(counted.most(2, 3), "createTask", TASK, &vec![new(calm); 2])
        .await;
    counted
        .takes(counted.most(2, 3), "createTask", TASK, &vec![new(busy); 2])
        .await;
    let parent = counted.task(calm, None).await;
    let full = json!({
        "circleId": calm, "title": "A task", "parentId": parent, "assigneeId": agents[0], "reviewerId": agents[1],
    });
    counted
        .takes(counted.most(2, 3), "createTask", TASK, &vec![full; 2])
        .await;

    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(counted.task(calm, Some(&agents[0])).await);
    }
    let of = |more: Value| {
        let inputs = tasks.iter().map(|task| {
            let mut input = more.clone();
            input["taskId"] = task.clone();
            input
        });
        inputs.collect::<Vec<_>>()
    };
    let most = counted.most(2, 4);
    counted.takes(most, "startTask", TASK, &of(json!({}))).await;
    counted
        .takes(
            most,
            "updateTask",
            TASK,
            &of(json!({ "title": "Another title" })),
        )
        .await;
    counted
        .takes(most, "submitTask", TASK, &of(json!({ "result": "Done." })))
        .await;
    counted
        .takes(most, "approveTask", TASK, &of(json!({})))
        .await;
    let done: Vec<_> = tasks.iter().map(|task| json!({ "id": task })).collect();
    counted.takes(most, "deleteTask", "deletedId", &done).await;
    let mut tasks = Vec::new();
    for _ in 0..2 {
        tasks.push(counted.task(calm, None).await);
    }
    let assign = |agent: Option<&Value>| {
        let inputs = tasks
            .iter()
            .map(|task| json!({ "taskId": task, "agentId": agent }));
        inputs.collect::<Vec<_>>()
    };
    counted
        .takes(most, "assignTask", TASK, &assign(Some(&agents[1])))
        .await;
    counted
        .takes(most, "assignTask", TASK, &assign(Some(&agents[0])))
        .await;

    let talk = json!({
        "topic": "A topic", "circleId": calm, "participantIds": agents[..2], "turnStrategy": "FREE_FORM",
        "startNow": true,
    });
    let talk = counted.id("createConversation", "conversation", talk).await;
    let post = |agent: Option<&Value>| json!({ "conversationId": talk, "agentId": agent, "content": "A message." });
    let message = "message { id seq }";
    counted
        .takes(
            counted.most(2, 5),
            "postMessage",
            message,
            &vec![post(None); 2],
        )
        .await;
    let turn = post(Some(&agents[0]));
    counted
        .takes(counted.most(2, 6), "postMessage", message, &vec![turn; 2])
        .await;

    let agent = |name: &str| json!({ "name": name });
    let inputs = [agent("Dora of the test"), agent("Emil of the test")];
    counted
        .takes(
            counted.most(1, 2),
            "createAgent",
            "agent { id name }",
            &inputs,
        )
        .await;
    let rename = |name: &str| json!({ "agentId": agents[2], "name": name });
    let inputs = [rename("Flora of the test"), rename("Gus of the test")];
    counted
        .takes(
            counted.most(2, 3),
            "updateAgent",
            "agent { id name }",
            &inputs,
        )
        .await;
    let circle = |name: &str| json!({ "name": name, "members": members });
    let inputs = [circle("Fifth"), circle("Sixth")];
    counted
        .takes(
            counted.most(2, 5),
            "createCircle",
            "circle { id name }",
            &inputs,
        )
        .await;
    let add = |circle: &Value| json!({ "circleId": circle, "members": members });
    let inputs = [add(&circles[2]), add(&circles[3])];
    counted
        .takes(
            counted.most(3, 5),
            "addCircleMembers",
            "circle { id name }",
            &inputs,
        )
        .await;
}
