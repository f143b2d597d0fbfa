//! Traces: the spans of operations, batches and statements, their context, and what a collector that is down does.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::{join, join_all};
use reqwest::Response;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::support::actor::{Actor, OWNER};
use crate::support::collector::{Collector, Span};
use crate::support::database::{Database, PASSWORD};
use crate::support::events::{PROTOCOL, Socket, connect};
use crate::support::program::{Running, gathering};
use crate::support::server::TestServer;
use crate::support::wait::{until, until_some};

const CIRCLE: &str = "circle_01ke6p4zk8e03r000000000001";

/// The acceptance query of a team.
const TEAM: &str = "query Team($id: ID!) {
  circle(id: $id) { id name members(first: 100) { edges { membership { role joinedAt } node { id name status
    model { id displayName provider { id name isLocal } } } } pageInfo { hasNextPage endCursor } }
  tasks(first: 1) { nodes { id } } }
}";

/// The trace id and the span id of a client.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector, and a server that sends it this share of its traces.
async fn tracing(share: f64) -> (Collector, TestServer) {
    let collector = Collector::start().await;
    let server = TestServer::with(|config| collector.receives(config, share)).await;
    (collector, server)
}

/// The response to an operation of this name whose client is traced, or not, with a trace context.
async fn send(actor: &Actor, name: &str, traceparent: &str) -> Response {
    let query = format!("query {name} {{ circles(first: 1) {{ nodes {{ name }} }} }}");
    let request = actor.request(&query, &json!({}));
    let request = request.header("traceparent", traceparent);
    let request = request.header("tracestate", "vendor=7");
    request.send().await.expect("an answer")
}

fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

#[tokio::test]
async fn an_operation_has_spans_of_its_batches_and_their_statements() {
    let (collector, server) = tracing(1.0).await;
    let owner = server.actor(OWNER).await;
    // The second request finds the caller in the caches.
    for _ in 0..2 {
        owner.ask("{ viewer { id } }", json!({})).await;
    }
    let request = owner.request(TEAM, &json!({ "id": CIRCLE }));
    let request = request
        .header("x-gathering-usage", "1")
        .header("x-request-id", "r-7");
    let answer: Value = request
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    let usage = &answer["extensions"]["usage"];
    let (root, spans) = collector.operation("Team").await;

    assert_eq!(
        (root.name.as_str(), root.kind, root.status),
        ("query", 2, 0)
    );
    assert_eq!(root.parent, "");
    assert_eq!(root.text("graphql.operation.type"), "query");
    assert_eq!(root.text("gathering.request.id"), "r-7");
    assert_eq!(root.number("http.response.status_code"), Some(200));
    assert_eq!(root.attributes.get("error.type"), None);
    assert_eq!(root.resource["service.name"], "gathering");

    let (batches, statements): (Vec<Span>, Vec<Span>) =
        spans.into_iter().partition(|span| span.kind == 1);
    let mut expected: BTreeMap<&str, i64> = BTreeMap::new();
    for batch in usage["batches"].as_array().expect("batches") {
        expected.insert(
            batch["name"].as_str().expect("a name"),
            batch["keys"].as_i64().expect("a number"),
        );
    }
    assert!(expected.len() > 1, "{usage}");
    let of_query: Vec<&Span> = batches
        .iter()
        .filter(|batch| expected.contains_key(batch.name.as_str()))
        .collect();
    let found = of_query.iter().map(|batch| {
        let keys = batch.number("gathering.batch.keys");
        (batch.name.as_str(), keys.expect("a number"))
    });
    assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
    let rows = of_query
        .iter()
        .filter_map(|batch| batch.number("gathering.batch.rows"));
    assert_eq!(Some(rows.sum::<i64>()), usage["rows"].as_i64());
    let ids: BTreeSet<&str> = of_query.iter().map(|batch| batch.id.as_str()).collect();
    let of_query = statements
        .iter()
        .filter(|span| ids.contains(span.parent.as_str()));
    assert_eq!(Some(of_query.count() as u64), usage["statements"].as_u64());

    for batch in &batches {
        assert_eq!(batch.parent, root.id, "{batch:?}");
    }
    let system = if server.database().url().starts_with("postgres") {
        "postgresql"
    } else {
        "sqlite"
    };
    for statement in &statements {
        assert_eq!(statement.kind, 3, "{statement:?}");
        assert_eq!(statement.text("db.system.name"), system);
        assert!(statement.text("db.query.text").starts_with(&statement.name));
        let parents = batches.iter().chain([&root]);
        let mut parents = parents.filter(|span| span.id == statement.parent);
        assert!(parents.next().is_some(), "{statement:?}");
        let ((start, end), (from, to)) = (statement.times, root.times);
        assert!(start <= end && from <= end && end <= to, "{statement:?}");
    }
}

#[tokio::test]
async fn a_mutation_has_spans_of_the_statements_that_it_writes_with() {
    let (collector, server) = tracing(1.0).await;
    let owner = server.actor(OWNER).await;
    let mutation = "mutation Create($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }";
    owner
        .ask(mutation, json!({ "input": { "name": "Everest" } }))
        .await;
    let (root, spans) = collector.operation("Create").await;
    assert_eq!(root.name, "mutation");
    let written = spans.iter().any(|span| {
        let text = span.text("db.query.text");
        span.parent == root.id && text.contains("INSERT INTO") && text.contains("projects")
    });
    assert!(written, "{spans:?}");
    for span in collector.spans() {
        assert!(!span.text("db.query.text").contains("Everest"), "{span:?}");
    }
}

#[tokio::test]
async fn the_trace_of_the_client_is_continued_if_the_client_is_traced() {
    let (collector, server) = tracing(0.0).await;
    let owner = server.actor(OWNER).await;
    let response = send(&owner, "Continued", &sampled()).await;
    let context = response.headers()["traceresponse"].to_str();
    let context = context.expect("text").to_owned();
    let (root, spans) = collector.operation("Continued").await;
    assert_eq!((root.trace.as_str(), root.parent.as_str()), (TRACE, PARENT));
    assert_eq!(root.state, "vendor=7");
    assert_eq!(context, format!("00-{TRACE}-{}-01", root.id));
    assert!(!spans.is_empty());

    let (collector, server) = tracing(1.0).await;
    let owner = server.actor(OWNER).await;
    let response = send(&owner, "Untraced", &format!("00-{TRACE}-{PARENT}-00")).await;
    assert_eq!(response.headers().get("traceresponse"), None);
    send(&owner, "Traced", &sampled()).await;
    collector.operation("Traced").await;
    let untraced = collector.spans().into_iter();
    let mut untraced = untraced.filter(|span| span.text("graphql.operation.name") == "Untraced");
    assert!(untraced.next().is_none());
}

#[tokio::test]
async fn a_malformed_context_counts_as_absent() {
    let (collector, server) = tracing(1.0).await;
    let owner = server.actor(OWNER).await;
    for (number, context) in [
        String::new(),
        "nonsense".to_owned(),
        format!("00-{TRACE}-{PARENT}"),
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("00-{TRACE}-{PARENT}-01-00"),
        format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
        format!("00-{}-{PARENT}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("Malformed{number}");
        let response = send(&owner, &name, &context).await;
        assert_eq!(response.status(), 200, "{context}");
        let (root, _) = collector.operation(&name).await;
        assert_eq!(root.parent, "", "{context}");
        assert_ne!(root.trace, TRACE, "{context}");
        assert_eq!(root.state, "", "{context}");
    }
}

#[tokio::test]
async fn a_share_of_the_operations_is_traced() {
    let (collector, server) = tracing(0.0).await;
    let owner = server.actor(OWNER).await;
    for _ in 0..20 {
        owner.ask("query Never { viewer { id } }", json!({})).await;
    }
    send(&owner, "Last", &sampled()).await;
    let (last, _) = collector.operation("Last").await;
    assert!(
        collector
            .spans()
            .iter()
            .all(|span| span.trace == last.trace)
    );

    let (collector, server) = tracing(0.5).await;
    let owner = server.actor(OWNER).await;
    for _ in 0..200 {
        owner.ask("query Some { __typename }", json!({})).await;
    }
    send(&owner, "Last", &sampled()).await;
    collector.operation("Last").await;
    let spans = collector.spans();
    let traced = spans
        .iter()
        .filter(|span| span.text("graphql.operation.name") == "Some");
    // Fewer than 1 in 10^20 runs are outside of this range.
    assert!((30..170).contains(&traced.count()));
}

#[tokio::test]
async fn an_error_has_its_code_and_fails_the_span_if_the_server_is_at_fault() {
    let (collector, server) = tracing(1.0).await;
    let owner = server.actor(OWNER).await;
    let query = "query Wrong($id: ID!) { circle(id: $id) { name } }";
    let answer = owner.answer(query, json!({ "id": "not an id" })).await;
    let code = answer["errors"][0]["extensions"]["code"].as_str();
    let (root, _) = collector.operation("Wrong").await;
    assert_eq!(Some(root.text("error.type")), code);
    assert_eq!(root.status, 0);

    let db = server.database().connect().await;
    db.execute_unprepared("ALTER TABLE projects RENAME TO gone")
        .await
        .expect("is renamed");
    let query = "query Broken { projects { nodes { name } } }";
    let response = owner.send(query, json!({})).await;
    let status = i64::from(response.status().as_u16());
    let answer: Value = response.json().await.expect("JSON");
    assert_eq!(
        answer["errors"][0]["extensions"]["code"], "INTERNAL",
        "{answer}"
    );
    let (root, spans) = collector.operation("Broken").await;
    assert_eq!((root.text("error.type"), root.status), ("INTERNAL", 2));
    assert_eq!(root.number("http.response.status_code"), Some(status));
    for kind in [1, 3] {
        let failed = spans.iter().filter(|span| span.kind == kind);
        assert!(failed.map(|span| span.status).any(|status| status == 2));
    }
}

#[tokio::test]
async fn operations_over_websocket_and_in_batches_are_traced() {
    let collector = Collector::start().await;
    let server = TestServer::with(|config| {
        collector.receives(config, 1.0);
        config.graphql.batch = 2;
    })
    .await;
    let token = server.token(OWNER).await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    for name in ["First", "Second"] {
        let query = format!("query {name} {{ circles(first: 2) {{ nodes {{ name }} }} }}");
        socket.run("1", &query).await;
    }
    let (first, spans) = collector.operation("First").await;
    assert!(spans.iter().any(|span| span.kind == 3), "{spans:?}");
    let (second, _) = collector.operation("Second").await;
    assert_ne!(first.trace, second.trace);

    let context = sampled();
    let headers = [PROTOCOL, ("traceparent", context.as_str())];
    let (mut socket, _) = connect(&server, &headers).await.expect("a WebSocket");
    socket.init(Some(&token)).await;
    socket.run("1", "query Continued { viewer { id } }").await;
    let (root, _) = collector.operation("Continued").await;
    assert_eq!((root.trace.as_str(), root.parent.as_str()), (TRACE, PARENT));

    let entries =
        ["A", "B"].map(|name| json!({ "query": format!("query {name} {{ __typename }}") }));
    let request = server.with_token(&token).post("/graphql").json(&entries);
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    let (a, _) = collector.operation("A").await;
    let (b, _) = collector.operation("B").await;
    assert_eq!((a.name.as_str(), b.name.as_str()), ("query", "query"));
}

#[tokio::test]
async fn the_events_of_a_subscription_are_not_part_of_its_span() {
    let (collector, server) = tracing(1.0).await;
    let owner = server.actor(OWNER).await;
    let subscription = "subscription Watch { events { type project: actor { name } } }";
    let token = server.token(OWNER).await;
    let mut socket = Socket::subscribed(&server, &token, subscription).await;
    owner
        .saved("createProject", json!({ "name": "Everest" }))
        .await;
    socket.next().await;
    owner
        .ask("query Later { circles { nodes { name } } }", json!({}))
        .await;
    collector.operation("Later").await;
    let (root, spans) = collector.operation("Watch").await;
    assert_eq!(root.name, "subscription");
    for span in spans {
        assert!(span.times.0 <= root.times.1, "{span:?}");
    }
}

#[tokio::test]
async fn a_batch_of_several_operations_is_linked_to_them() {
    let (collector, server) = tracing(1.0).await;
    let owner = server.actor(OWNER).await;
    let linked = until_some("a shared batch", async || {
        let requests = (0..20).map(|_| owner.ask(TEAM, json!({ "id": CIRCLE })));
        join_all(requests).await;
        let mut spans = collector.spans().into_iter();
        spans.find(|span| !span.links.is_empty())
    })
    .await;
    assert_eq!(linked.kind, 1);
    let operations = until_some("the spans of the operations", async || {
        let mut operations = collector.spans();
        operations.retain(|span| linked.links.contains(&span.id) || linked.parent == span.id);
        (operations.len() > linked.links.len()).then_some(operations)
    })
    .await;
    assert!(
        operations.iter().all(|span| span.kind == 2),
        "{operations:?}"
    );
    assert!(!linked.links.contains(&linked.parent));
}

#[tokio::test]
async fn a_collector_that_is_down_does_not_disturb_requests() {
    let (collector, server) = tracing(1.0).await;
    collector.refuse(true);
    let owner = server.actor(OWNER).await;
    owner.ask("query Lost { viewer { id } }", json!({})).await;
    let lost = r#"gathering_trace_spans_total{outcome="lost"}"#;
    until("lost spans", async || server.metric(lost).await > 0).await;
    assert!(collector.spans().is_empty());
    collector.refuse(false);
    owner.ask("query Kept { viewer { id } }", json!({})).await;
    collector.operation("Kept").await;
    let sent = r#"gathering_trace_spans_total{outcome="sent"}"#;
    until("sent spans", async || server.metric(sent).await > 0).await;
    // The last spans are sent or lost, and the server ends.
    owner.ask("query Last { viewer { id } }", json!({})).await;
    drop(collector);
    server.shut_down(Duration::ZERO).await;
}

#[tokio::test]
async fn neither_traces_nor_logs_have_a_token_an_address_or_a_variable() {
    const SECRET: &str = "a text that only its reader may see";
    let collector = Collector::start().await;
    let database = Database::seeded().await;
    let mut command = gathering("serve --listen 127.0.0.1:0");
    command
        .env("DATABASE_URL", database.url())
        .env("GATHERING__LOG__FILTER", "info,gathering=debug")
        .env("GATHERING__LOG__FORMAT", "json")
        .env("GATHERING__TRACE__ENDPOINT", collector.url())
        .env("GATHERING__TRACE__SAMPLE", "1.0")
        .env(
            "GATHERING__TRACE__HEADERS",
            "authorization=Bearer%20collector",
        )
        .env("GATHERING__TRACE__SERVICE_NAME", "team")
        .stderr(Stdio::piped());
    let mut running = Running::start(&mut command).await;
    let mut errors = running.errors();
    let log = async {
        let mut log = String::new();
        errors.read_to_string(&mut log).await.expect("is read");
        log
    };
    let work = async {
        let owner = Actor::new(&running.url).signed_in(OWNER).await;
        let named = owner.named("r-7");
        let input = json!({ "input": { "name": SECRET } });
        let mutation = "mutation Create($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }";
        named.ask(mutation, input).await;
        let query = format!(
            "query Search {{ agents(filter: {{ search: \"{SECRET}\" }}) {{ totalCount }} }}"
        );
        owner.answer(&query, json!({})).await;
        send(&owner.named("r-8"), "Continued", &sampled()).await;
        // The shutdown sends the spans.
        running.signal("TERM");
        running.ends().await;
        owner.token().to_owned()
    };
    let (log, token) = join(log, work).await;
    let (root, _) = collector.operation("Create").await;
    assert_eq!(root.resource["service.name"], "team");
    assert_eq!(
        collector.authorization().as_deref(),
        Some("Bearer collector")
    );
    collector.operation("Search").await;
    let sent = String::from_utf8_lossy(&collector.bytes()).into_owned();
    assert!(sent.contains("INSERT INTO"));
    for secret in [SECRET, &token, OWNER, PASSWORD, "Bearer"] {
        assert!(!sent.contains(secret), "{secret}");
        assert!(!log.contains(secret), "{secret}: {log}");
    }

    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |id: &str| {
        let lines = lines.iter().filter(move |line| line["request_id"] == id);
        lines.cloned().collect::<Vec<_>>()
    };
    let answered = of("r-7");
    assert!(!answered.is_empty(), "{log}");
    for line in answered {
        assert_eq!(line["message"], "answered");
        assert_eq!(line["trace_id"], root.trace.as_str(), "{line}");
        assert_eq!(
            (&line["level"], &line["path"]),
            (&json!("DEBUG"), &json!("/graphql"))
        );
    }
    for line in of("r-8") {
        assert_eq!(line["trace_id"], TRACE, "{line}");
    }
}

#[tokio::test]
async fn a_log_without_traces_has_the_trace_id_of_the_client() {
    let database = Database::seeded().await;
    let mut command = gathering("serve --listen 127.0.0.1:0");
    command
        .env("DATABASE_URL", database.url())
        .env("GATHERING__LOG__FILTER", "gathering=debug")
        .env("GATHERING__LOG__FORMAT", "json")
        .env("GATHERING__SERVER__GRACE", "0s")
        .stderr(Stdio::piped());
    let mut running = Running::start(&mut command).await;
    let mut errors = running.errors();
    let visitor = Actor::new(&running.url);
    let response = send(&visitor.named("r-9"), "Anonymous", &sampled()).await;
    assert_eq!(response.headers().get("traceresponse"), None);
    running.signal("TERM");
    running.ends().await;
    let mut log = String::new();
    errors.read_to_string(&mut log).await.expect("is read");
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lines: Vec<Value> = lines.filter(|line| line["request_id"] == "r-9").collect();
    assert!(!lines.is_empty(), "{log}");
    assert!(lines.iter().all(|line| line["trace_id"] == TRACE), "{log}");
}
