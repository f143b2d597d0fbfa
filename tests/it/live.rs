//! Live events: every committed event is delivered, in order, and nothing else is.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use futures_util::future::join_all;
use gathering_entity::event;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, TransactionTrait,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accounts::Visitor;
use crate::database::Database;
use crate::server::TestServer;
use crate::ws::Socket;

const CREATE: &str = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { \
    project { id } userErrors { code } } }";

/// The row of a catalogue event, to insert as if another process had written it.
fn row(n: u128, subject: u128, now: DateTime<Utc>) -> event::Model {
    event::Model {
        id: Uuid::now_v7(),
        position: None,
        kind: "persona.changed".to_owned(),
        subject_type: "persona".to_owned(),
        subject_id: Uuid::from_u128(subject),
        owner_id: None,
        circle_id: None,
        project_id: None,
        agent_id: None,
        actor_user_id: None,
        actor_agent_id: None,
        payload: json!({ "v": 1, "name": n.to_string(), "changed": [], "padding": "x".repeat(100) }),
        request_id: None,
        occurred_at: now,
    }
}

fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

async fn insert(db: &impl ConnectionTrait, rows: Vec<event::Model>) {
    for rows in rows.chunks(500) {
        let rows = rows.iter().cloned().map(IntoActiveModel::into_active_model);
        event::Entity::insert_many(rows)
            .exec_without_returning(db)
            .await
            .expect("inserts");
    }
}

/// A server that polls for events that other processes have written.
async fn looking() -> TestServer {
    TestServer::with(|config| config.events.poll = Duration::from_millis(20)).await
}

async fn create(server: &TestServer, name: &str) -> Value {
    server
        .graphql(CREATE, json!({ "input": { "name": name } }))
        .await
}

/// A subscriber to events.
struct Listener {
    socket: Socket,
    id: String,
}

impl Listener {
    /// Subscribes as the demo user, and waits until the subscription has started.
    async fn new(server: &TestServer, arguments: &str) -> Self {
        let token = server.token("demo@example.com").await;
        Self::of(server, &token, arguments).await
    }

    async fn of(server: &TestServer, token: &str, arguments: &str) -> Self {
        let fields = "__typename type cursor ... on ProjectEvent { name } \
            ... on CatalogueEvent { name } ... on EventsMissed { oldestKept }";
        let query = format!("subscription {{ events{arguments} {{ {fields} }} }}");
        let mut socket = Socket::greeted(server, Some(token)).await;
        let before = server.subscribers().await;
        socket.subscribe("1", &query).await;
        until_more_than(server, before).await;
        Self {
            socket,
            id: "1".to_owned(),
        }
    }

    async fn next(&mut self) -> Value {
        let message = self.socket.next().await;
        assert_eq!(message["id"], self.id, "{message}");
        assert_eq!(message["type"], "next", "{message}");
        message["payload"]["data"]["events"].clone()
    }

    async fn names(&mut self, count: usize) -> Vec<String> {
        let mut names = Vec::with_capacity(count);
        for _ in 0..count {
            let event = self.next().await;
            names.push(event["name"].as_str().expect("a name").to_owned());
        }
        names
    }
}

async fn stats(server: &TestServer) -> Value {
    let admin = server.token("admin@example.com").await;
    let query = "{ eventBusStats { published delivered deduplicated lagged handlerErrors \
        subscribers historySize } }";
    let answer = server.ask(Some(&admin), query, json!({})).await;
    answer["data"]["eventBusStats"].clone()
}

/// The error with which a subscription is refused.
async fn refused(server: &TestServer, query: &str) -> Value {
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(server, Some(&token)).await;
    socket.subscribe("1", query).await;
    let message = socket.next().await;
    assert_eq!(message["type"], "error", "{message}");
    message["payload"][0]["extensions"].clone()
}

#[tokio::test]
async fn only_committed_changes_are_delivered() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    create(&server, "One").await;
    let taken = create(&server, "One").await;
    assert_eq!(
        taken["data"]["createProject"]["userErrors"][0]["code"],
        "TAKEN"
    );
    create(&server, "Two").await;
    let one = listener.next().await;
    assert_eq!(one["__typename"], "ProjectEvent");
    assert_eq!(one["type"], "PROJECT_CREATED");
    assert_eq!(one["name"], "One");
    assert_eq!(listener.next().await["name"], "Two");
    let stats = stats(&server).await;
    assert_eq!(
        (&stats["published"], &stats["delivered"]),
        (&json!(2.0), &json!(2.0))
    );
    assert_eq!(
        (&stats["historySize"], &stats["subscribers"]),
        (&json!(2), &json!(1))
    );
    drop(listener);
    while server.subscribers().await > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_resumed_subscription_misses_nothing_even_after_a_restart() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    create(&server, "0").await;
    let cursor = listener.next().await["cursor"].clone();
    drop(listener);
    for n in 1..=5 {
        create(&server, &n.to_string()).await;
    }
    let arguments = format!("(after: {cursor})");
    for _ in 0..2 {
        let mut again = Listener::new(&server, &arguments).await;
        assert_eq!(again.names(5).await, ["1", "2", "3", "4", "5"]);
    }
    let database = server.end().await;
    let server = TestServer::on(database, |_| ()).await;
    let mut again = Listener::new(&server, &arguments).await;
    assert_eq!(again.names(5).await, ["1", "2", "3", "4", "5"]);
    create(&server, "6").await;
    assert_eq!(again.names(1).await, ["6"]);
}

#[tokio::test]
async fn a_filter_applies_to_live_and_replayed_events() {
    let server = TestServer::start().await;
    let mut all = Listener::new(&server, "").await;
    let one = create(&server, "One").await;
    let id = &one["data"]["createProject"]["project"]["id"];
    create(&server, "Two").await;
    let start = all.next().await["cursor"].clone();
    let update = "mutation ($input: UpdateProjectInput!) { updateProject(input: $input) { project { id } } }";
    let input = json!({ "projectId": id, "name": "One again" });
    let live = format!("(filter: {{ types: [PROJECT_UPDATED], projectId: {id} }})");
    let mut live = Listener::new(&server, &live).await;
    server.graphql(update, json!({ "input": input })).await;
    assert_eq!(live.names(1).await, ["One again"]);
    let again = format!("(filter: {{ subjectId: {id} }}, after: {start})");
    let mut again = Listener::new(&server, &again).await;
    assert_eq!(again.names(1).await, ["One again"]);
}

#[tokio::test]
async fn events_of_a_late_commit_are_delivered_late_and_not_lost() {
    let server = looking().await;
    let db = server.database().connect().await;
    if db.get_database_backend() != DbBackend::Postgres {
        // SQLite has one writer at a time, so no transaction can begin before another and commit after it.
        return;
    }
    let mut listener = Listener::new(&server, "").await;
    let now = now();
    let slow = db.begin().await.expect("begins");
    insert(&slow, vec![row(1, 1, now)]).await;
    insert(&db, vec![row(2, 2, now)]).await;
    let second = listener.next().await;
    assert_eq!(second["name"], "2");
    slow.commit().await.expect("commits");
    assert_eq!(listener.names(1).await, ["1"]);
    // A subscriber that had received only the second event when the connection broke receives the first.
    let after = format!("(after: {})", second["cursor"]);
    let mut again = Listener::new(&server, &after).await;
    assert_eq!(again.names(1).await, ["1"]);
}

#[tokio::test]
async fn events_of_one_instance_reach_the_others_immediately() {
    let one = TestServer::start().await;
    if one.database().connect().await.get_database_backend() != DbBackend::Postgres {
        return;
    }
    // This instance does not poll: the database notifies it.
    let other = one.beside(|_| ()).await;
    let mut listener = Listener::new(&other, "").await;
    let names: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    for name in &names {
        create(&one, name).await;
    }
    assert_eq!(listener.names(20).await, names);
}

#[tokio::test]
async fn events_of_a_subject_keep_their_order_under_concurrency() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    let names: Vec<_> = (0..8).map(|n| format!("p{n}")).collect();
    let made = join_all(names.iter().map(|name| create(&server, name))).await;
    let update = "mutation ($input: UpdateProjectInput!) { updateProject(input: $input) { project { id } } }";
    let work = made.iter().enumerate().map(|(n, made)| {
        let id = &made["data"]["createProject"]["project"]["id"];
        let server = &server;
        async move {
            for step in 0..10 {
                let input = json!({ "projectId": id, "name": format!("p{n} {step}") });
                let answer = server.graphql(update, json!({ "input": input })).await;
                assert_eq!(
                    answer["data"]["updateProject"]["project"]["id"], *id,
                    "{answer}"
                );
            }
        }
    });
    join_all(work).await;
    let told = listener.names(8 + 80).await;
    for n in 0..8 {
        let own = format!("p{n}");
        let own: Vec<_> = told
            .iter()
            .filter(|name| name.split(' ').next() == Some(&own))
            .collect();
        let expected = (0..10).map(|step| format!("p{n} {step}"));
        let expected: Vec<_> = [format!("p{n}")].into_iter().chain(expected).collect();
        assert_eq!(own, expected.iter().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_slow_subscriber_is_served_from_the_table_and_delays_no_other() {
    const EVENTS: u128 = 20_000;
    let server = TestServer::with(|config| {
        config.events.poll = Duration::from_millis(20);
        config.events.history = 64;
        config.server.write_timeout = Duration::from_mins(5);
    })
    .await;
    let db = server.database().connect().await;
    let mut idle = Listener::new(&server, "").await;
    let mut eager = Listener::new(&server, "").await;
    let now = now();
    insert(&db, (0..EVENTS).map(|n| row(n, n % 10, now)).collect()).await;
    let expected: Vec<_> = (0..EVENTS).map(|n| n.to_string()).collect();
    assert_eq!(eager.names(expected.len()).await, expected);
    let seen = stats(&server).await;
    assert!(seen["lagged"].as_f64() >= Some(1.0), "{seen}");
    assert_eq!(seen["historySize"], 64);
    assert_eq!(idle.names(expected.len()).await, expected);
}

#[tokio::test]
async fn a_cursor_of_another_database_is_refused() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    create(&server, "One").await;
    let cursor = listener.next().await["cursor"].clone();

    // The same position in the history of another database.
    let stranger = Database::empty().await;
    let db = stranger.connect().await;
    gathering::seed::seed(&db, "gathering-demo")
        .await
        .expect("seeds");
    let stranger = TestServer::on(stranger, |_| ()).await;
    let foreign = format!("subscription {{ events(after: {cursor}) {{ id }} }}");
    create(&stranger, "One").await;
    let error = refused(&stranger, &foreign).await;
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("BAD_USER_INPUT"), &json!("after"))
    );
    let page = format!("{{ events(after: {cursor}) {{ nodes {{ id }} }} }}");
    let answer = stranger.graphql(&page, json!({})).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "BAD_USER_INPUT");

    // A position that this history has not reached, as after the restore of a backup.
    let db = server.database().connect().await;
    let newest = event::Entity::find().order_by_desc(event::Column::Position);
    let newest = newest.one(&db).await.expect("reads").expect("an event");
    event::Entity::delete_by_id(newest.id)
        .exec(&db)
        .await
        .expect("deletes");
    let server = TestServer::on(server.end().await, |_| ()).await;
    let future = format!("subscription {{ events(after: {cursor}) {{ id }} }}");
    let error = refused(&server, &future).await;
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("BAD_USER_INPUT"), &json!("after"))
    );
    for garbage in ["", "garbage", "AAAA"] {
        let query = format!("subscription {{ events(after: \"{garbage}\") {{ id }} }}");
        assert_eq!(refused(&server, &query).await["code"], "BAD_USER_INPUT");
    }
}

#[tokio::test]
async fn resuming_too_late_reports_missed_events_and_delivers_the_rest() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    for name in ["One", "Two", "Three"] {
        create(&server, name).await;
    }
    let cursor = listener.next().await["cursor"].clone();
    let two = listener.next().await;
    let three = listener.next().await;
    drop(listener);
    let db = server.database().connect().await;
    let kept = event::Entity::find().order_by_desc(event::Column::Position);
    let kept = kept.one(&db).await.expect("reads").expect("an event");
    let old = event::Column::Position.lt(kept.position);
    event::Entity::delete_many()
        .filter(old)
        .exec(&db)
        .await
        .expect("deletes");
    let server = TestServer::on(server.end().await, |_| ()).await;

    let after = format!("(after: {cursor})");
    let mut late = Listener::new(&server, &after).await;
    let missed = late.next().await;
    assert_eq!(missed["__typename"], "EventsMissed");
    assert_eq!(missed["type"], "EVENTS_MISSED");
    assert_eq!(missed["oldestKept"], three["cursor"]);
    assert_eq!(late.names(1).await, ["Three"]);
    // After this cursor, and after the one before the oldest kept event, no more events are missed.
    for cursor in [&missed["cursor"], &two["cursor"]] {
        let mut again = Listener::new(&server, &format!("(after: {cursor})")).await;
        assert_eq!(again.names(1).await, ["Three"]);
    }
}

#[tokio::test]
async fn retention_deletes_old_events_and_positions_continue() {
    let retention = Duration::from_hours(3_650 * 24);
    let server = TestServer::with(|config| config.events.retention = retention).await;
    let db = server.database().connect().await;
    let count = || event::Entity::find().count(&db);
    assert_eq!(count().await, Ok(820));
    server.purge().await;
    assert_eq!(count().await, Ok(820));
    server.pass(3_650 * 86_400);
    server.purge().await;
    assert_eq!(count().await, Ok(1), "the newest event is kept");
    let mut listener = Listener::new(&server, "").await;
    create(&server, "One").await;
    listener.next().await;
    let newest = event::Entity::find().order_by_desc(event::Column::Position);
    let newest = newest.one(&db).await.expect("reads").expect("an event");
    assert_eq!(newest.position, Some(821));
}

#[tokio::test]
async fn a_subscription_has_exactly_one_root_field() {
    let server = TestServer::start().await;
    for query in [
        "subscription { a: events { id } b: events { id } }",
        "subscription { events { id } agentStatusChanged { id } }",
        "subscription { events { id } ...F } fragment F on Subscription { other: events { id } }",
        "subscription { events { id } ... { events(after: \"x\") { id } } }",
        "subscription { events @skip(if: false) { id } }",
        "subscription { ... @include(if: true) { events { id } } }",
        "subscription { __typename }",
    ] {
        let error = refused(&server, query).await;
        assert_eq!(error["code"], "GRAPHQL_VALIDATION_FAILED", "{query}");
    }
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let query = "subscription { ...F ... on Subscription { events { type } } } \
        fragment F on Subscription { events { ...Name } } \
        fragment Name on ProjectEvent { name }";
    socket.subscribe("1", query).await;
    until_more_than(&server, 0).await;
    create(&server, "One").await;
    let message = socket.next().await;
    let expected = json!({ "events": { "name": "One", "type": "PROJECT_CREATED" } });
    assert_eq!(message["payload"]["data"], expected, "{message}");
}

#[tokio::test]
async fn a_subscription_to_an_unreadable_object_is_refused() {
    let server = TestServer::start().await;
    let circle = "circle_01h455vb4pex5vsknk084sn02q";
    for (query, code) in [
        (format!("circleEvents(circleId: \"{circle}\") {{ id }}"), "NOT_FOUND"),
        (format!("taskUpdated(circleId: \"{circle}\") {{ id }}"), "NOT_FOUND"),
        ("taskUpdated { id }".to_owned(), "BAD_USER_INPUT"),
        ("taskUpdated(assigneeId: \"agent_01h455vb4pex5vsknk084sn02q\") { id }".to_owned(), "NOT_FOUND"),
        ("agentStatusChanged(agentIds: [\"agent_01h455vb4pex5vsknk084sn02q\"]) { id }".to_owned(), "NOT_FOUND"),
        ("conversationUpdates(conversationId: \"conversation_01h455vb4pex5vsknk084sn02q\") { conversation { id } }".to_owned(), "NOT_FOUND"),
        (format!("conversationUpdates(conversationId: \"{circle}\") {{ conversation {{ id }} }}"), "BAD_USER_INPUT"),
    ] {
        let error = refused(&server, &format!("subscription {{ {query} }}")).await;
        assert_eq!(error["code"], code, "{query}");
    }
    let mut socket = Socket::greeted(&server, None).await;
    socket
        .subscribe("1", "subscription { events { id } }")
        .await;
    let message = socket.next().await;
    assert_eq!(
        message["payload"][0]["extensions"]["code"], "UNAUTHENTICATED",
        "{message}"
    );
    assert_eq!(server.subscribers().await, 0);
}

/// The field's value in the next message of a subscription.
async fn told(socket: &mut Socket, field: &str) -> Value {
    let message = socket.next().await;
    assert_eq!(message["type"], "next", "{message}");
    message["payload"]["data"][field].clone()
}

/// Runs a mutation, which must succeed, and returns its payload.
async fn change(server: &TestServer, mutation: &str, input: Value) -> Value {
    let name = mutation.split(' ').next().expect("a name");
    let kind = format!("{}{}Input", name[..1].to_uppercase(), &name[1..]);
    let kind = match name {
        "startTask" | "unassignTask" => "TaskActionInput".to_owned(),
        "startConversation" | "completeConversation" => "ConversationActionInput".to_owned(),
        "stopCircle" => "CircleActionInput".to_owned(),
        "deleteCircle" => "DeleteInput".to_owned(),
        _ => kind,
    };
    let selection = mutation.split_once(' ').expect("a selection").1;
    let query = format!(
        "mutation ($input: {kind}!) {{ {name}(input: $input) {{ {selection} userErrors {{ code message }} }} }}"
    );
    let answer = server.graphql(&query, json!({ "input": input })).await;
    let payload = &answer["data"][name];
    assert_eq!(payload["userErrors"], json!([]), "{answer}");
    payload.clone()
}

/// Subscribes, and waits until the subscription has started.
async fn subscribed(server: &TestServer, email: &str, query: &str) -> Socket {
    let token = server.token(email).await;
    let mut socket = Socket::greeted(server, Some(&token)).await;
    let before = server.subscribers().await;
    socket.subscribe("1", query).await;
    until_more_than(server, before).await;
    socket
}

/// Waits until there are more subscribers than before.
pub(crate) async fn until_more_than(server: &TestServer, before: i64) {
    let begun = async {
        while server.subscribers().await <= before {
            tokio::task::yield_now().await;
        }
    };
    let begun = tokio::time::timeout(Duration::from_secs(30), begun).await;
    begun.expect("a subscription begins");
}

/// A circle that the guest can read, and two of its members.
async fn shared_circle(server: &TestServer) -> (String, Vec<String>) {
    let query = "{ circles(filter: { search: \"Workshop\" }) { nodes { id members(first: 2) { nodes { id } } } } }";
    let answer = server.graphql(query, json!({})).await;
    let circle = &answer["data"]["circles"]["nodes"][0];
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    let members = circle["members"]["nodes"].as_array().expect("members");
    let members = members.iter().map(|member| text(&member["id"])).collect();
    (text(&circle["id"]), members)
}

#[tokio::test]
async fn losing_access_to_a_circle_ends_its_events_in_an_open_stream() {
    let server = TestServer::start().await;
    let (circle, _) = shared_circle(&server).await;
    let query =
        "subscription { events { type ... on TaskEvent { title } ... on ProjectEvent { name } } }";
    let mut guest = subscribed(&server, "guest@example.com", query).await;
    let task = |title: &str| json!({ "circleId": circle, "title": title, "assigneeId": null });
    change(&server, "createTask task { id }", task("before")).await;
    let event = told(&mut guest, "events").await;
    assert_eq!(event, json!({ "type": "TASK_CREATED", "title": "before" }));
    let token = server.token("guest@example.com").await;
    let viewer = server
        .ask(Some(&token), "{ viewer { id } }", json!({}))
        .await;
    let input = json!({ "circleId": circle, "userId": viewer["data"]["viewer"]["id"] });
    change(&server, "unshareCircle circle { id }", input).await;
    change(&server, "createTask task { id }", task("after")).await;
    // The guest still receives its own events; an earlier event would have arrived before this one.
    let own = json!({ "input": { "name": "Own" } });
    server.ask(Some(&token), CREATE, own).await;
    let mut heard = Vec::new();
    while heard.last() != Some(&json!("PROJECT_CREATED")) {
        let event = told(&mut guest, "events").await;
        assert_ne!(event["title"], "after");
        heard.push(event["type"].clone());
    }
    assert!(heard.contains(&json!("CIRCLE_UNSHARED")), "{heard:?}");
}

async fn delete_circle(server: &TestServer, id: &str) {
    change(
        server,
        "stopCircle circle { id }",
        json!({ "circleId": id }),
    )
    .await;
    change(server, "deleteCircle deletedId", json!({ "id": id })).await;
}

#[tokio::test]
async fn losing_access_to_a_circle_is_also_reported_on_replay_and_in_lists() {
    let server = TestServer::start().await;
    let (circle, members) = shared_circle(&server).await;
    let token = server.token("guest@example.com").await;
    let create = "mutation ($input: CreateConversationInput!) { createConversation(input: $input) { conversation { id } } }";
    let input = json!({ "topic": "A talk", "circleId": circle, "participantIds": members });
    let made = server
        .ask(Some(&token), create, json!({ "input": input }))
        .await;
    let talk = &made["data"]["createConversation"]["conversation"]["id"];
    let query =
        format!("subscription {{ conversationUpdates(conversationId: {talk}) {{ __typename }} }}");
    let mut owner = subscribed(&server, "demo@example.com", &query).await;
    let mut guest = Listener::of(&server, &token, "").await;
    let own = json!({ "input": { "name": "Own" } });
    server.ask(Some(&token), CREATE, own).await;
    let cursor = guest.next().await["cursor"].clone();
    delete_circle(&server, &circle).await;
    let heard = async |guest: &mut Listener| {
        for end in ["CONVERSATION_ENDED", "CIRCLE_UNSHARED"] {
            while guest.next().await["type"] != end {}
        }
    };
    heard(&mut guest).await;
    // The conversation now belongs to the guest alone, so the owner's stream ends.
    assert_eq!(owner.next().await, json!({ "id": "1", "type": "complete" }));
    drop(guest);
    let server = TestServer::on(server.end().await, |_| ()).await;
    let mut again = Listener::of(&server, &token, &format!("(after: {cursor})")).await;
    heard(&mut again).await;
    let query = "{ events(first: 1) { nodes { type } } }";
    let listed = server.ask(Some(&token), query, json!({})).await;
    assert_eq!(
        listed["data"]["events"]["nodes"][0]["type"],
        "CIRCLE_UNSHARED"
    );
}

#[tokio::test]
async fn a_circle_stream_ends_when_access_is_lost() {
    let server = TestServer::start().await;
    let (circle, _) = shared_circle(&server).await;
    let query = format!("subscription {{ circleEvents(circleId: \"{circle}\") {{ type }} }}");
    let mut guest = subscribed(&server, "guest@example.com", &query).await;
    let mut owner = subscribed(&server, "demo@example.com", &query).await;
    // A stream that is filtered to other types ends too.
    let tasks = query.replace(')', ", types: [TASK_CREATED])");
    let mut listless = subscribed(&server, "guest@example.com", &tasks).await;
    let ended = async |socket: &mut Socket| {
        let message = socket.next().await;
        assert_eq!(message, json!({ "id": "1", "type": "complete" }));
    };
    let guest_id = Visitor::new(&server)
        .id(&server.token("guest@example.com").await)
        .await;
    let input = json!({ "circleId": circle, "userId": guest_id });
    change(&server, "unshareCircle circle { id }", input).await;
    let unshared = json!({ "type": "CIRCLE_UNSHARED" });
    assert_eq!(told(&mut guest, "circleEvents").await, unshared);
    ended(&mut guest).await;
    ended(&mut listless).await;
    assert_eq!(told(&mut owner, "circleEvents").await, unshared);
    delete_circle(&server, &circle).await;
    while told(&mut owner, "circleEvents").await["type"] != "CIRCLE_DELETED" {}
    ended(&mut owner).await;
}

#[tokio::test]
async fn a_burst_of_events_is_resolved_in_few_statements() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    create(&server, "Before").await;
    let cursor = listener.next().await["cursor"].clone();
    drop(listener);
    let query = "{ agents(first: 50) { nodes { id } } }";
    let agents = server.graphql(query, json!({})).await;
    let agents = agents["data"]["agents"]["nodes"].as_array();
    let members = agents.expect("agents").iter();
    let members: Vec<_> = members
        .map(|agent| json!({ "agentId": agent["id"] }))
        .collect();
    let input = json!({ "name": "Many", "maxMembers": 50, "members": members });
    change(&server, "createCircle circle { id }", input).await;
    let query = format!(
        "subscription {{ events(after: {cursor}) {{ actor {{ name }} circle {{ name }} \
         ... on MemberEvent {{ agent {{ name }} }} }} }}"
    );
    let token = server.token("demo@example.com").await;
    let mut socket = Socket::greeted(&server, Some(&token)).await;
    let before = server.statements();
    socket.subscribe("1", &query).await;
    for _ in 0..51 {
        let event = told(&mut socket, "events").await;
        assert_eq!(event["circle"]["name"], "Many");
    }
    // For each of three batches the actors, circles and agents, plus authentication, the events, and background
    // statements.
    let statements = server.statements() - before;
    assert!(statements <= 30, "{statements}");
}

#[tokio::test]
async fn task_updates_of_an_assignee_include_reassignments() {
    let server = TestServer::start().await;
    let (circle, members) = shared_circle(&server).await;
    let [one, other] = [&members[0], &members[1]];
    let query = format!(
        "subscription {{ taskUpdated(assigneeId: \"{one}\") {{ id status assignee {{ id }} }} }}"
    );
    let mut socket = subscribed(&server, "demo@example.com", &query).await;
    let input = json!({ "circleId": circle, "title": "A task", "assigneeId": one });
    let made = change(&server, "createTask task { id }", input).await;
    let task = &made["task"]["id"];
    let first = told(&mut socket, "taskUpdated").await;
    assert_eq!(
        (&first["id"], &first["assignee"]["id"]),
        (task, &json!(one))
    );
    change(
        &server,
        "assignTask task { id }",
        json!({ "taskId": task, "agentId": other }),
    )
    .await;
    let lost = told(&mut socket, "taskUpdated").await;
    assert_eq!(
        (&lost["id"], &lost["assignee"]["id"]),
        (task, &json!(other))
    );
    // Later changes of the task are not delivered, because another agent has it.
    change(&server, "startTask task { id }", json!({ "taskId": task })).await;
    let input = json!({ "circleId": circle, "title": "Another", "assigneeId": one });
    let next = change(&server, "createTask task { id }", input).await;
    assert_eq!(
        told(&mut socket, "taskUpdated").await["id"],
        next["task"]["id"]
    );
}

#[tokio::test]
async fn agent_status_changes_reach_users_who_can_read_the_agent() {
    let server = TestServer::start().await;
    let (circle, _) = shared_circle(&server).await;
    let query = format!("{{ circle(id: \"{circle}\") {{ members {{ nodes {{ id status }} }} }} }}");
    let answer = server.graphql(&query, json!({})).await;
    let members = answer["data"]["circle"]["members"]["nodes"].as_array();
    let mut members = members.expect("members").iter();
    let idle = members.find(|agent| agent["status"] == "IDLE");
    let agent = idle.expect("an idle agent")["id"].clone();
    let query =
        format!("subscription {{ agentStatusChanged(agentIds: [{agent}]) {{ id status }} }}");
    let mut guest = subscribed(&server, "guest@example.com", &query).await;
    let query = "subscription { agentStatusChanged { id status } }";
    let mut owner = subscribed(&server, "demo@example.com", query).await;
    let input = json!({ "circleId": circle, "title": "A task", "assigneeId": agent });
    let made = change(&server, "createTask task { id }", input).await;
    let input = json!({ "taskId": made["task"]["id"] });
    change(&server, "startTask task { id }", input).await;
    for socket in [&mut guest, &mut owner] {
        let told = told(socket, "agentStatusChanged").await;
        assert_eq!(told, json!({ "id": agent, "status": "BUSY" }));
    }
}

#[tokio::test]
async fn a_conversation_can_be_followed_from_any_message_to_its_end() {
    let server = TestServer::start().await;
    let (circle, members) = shared_circle(&server).await;
    let input = json!({ "topic": "A talk", "circleId": circle, "participantIds": members, "startNow": true });
    let made = change(&server, "createConversation conversation { id }", input).await;
    let id = made["conversation"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let post = |content: &str, agent: Option<&String>| json!({ "conversationId": id, "content": content, "agentId": agent });
    for content in ["one", "two", "three"] {
        change(&server, "postMessage message { seq }", post(content, None)).await;
    }
    let query = format!(
        "subscription {{ conversationUpdates(conversationId: \"{id}\", afterSeq: 1) {{ __typename \
         conversation {{ id }} ... on MessageAdded {{ message {{ seq content }} }} \
         ... on TurnCompleted {{ turn nextSpeaker {{ id }} }} ... on ConversationEnded {{ reason }} }} }}"
    );
    let mut socket = subscribed(&server, "guest@example.com", &query).await;
    for (seq, content) in [(2, "two"), (3, "three")] {
        let update = told(&mut socket, "conversationUpdates").await;
        assert_eq!(
            update["message"],
            json!({ "seq": seq, "content": content }),
            "{update}"
        );
    }
    // Messages of other conversations are not delivered.
    let input = json!({ "topic": "Another", "participantIds": members, "startNow": true });
    let made = change(&server, "createConversation conversation { id }", input).await;
    let input = json!({ "conversationId": made["conversation"]["id"], "content": "elsewhere" });
    change(&server, "postMessage message { seq }", input).await;
    change(
        &server,
        "postMessage message { seq }",
        post("four", Some(&members[0])),
    )
    .await;
    let update = told(&mut socket, "conversationUpdates").await;
    assert_eq!(update["message"], json!({ "seq": 4, "content": "four" }));
    let update = told(&mut socket, "conversationUpdates").await;
    assert_eq!(
        (&update["__typename"], &update["turn"]),
        (&json!("TurnCompleted"), &json!(1))
    );
    assert_eq!(update["nextSpeaker"]["id"], members[1]);
    change(
        &server,
        "completeConversation conversation { id }",
        json!({ "conversationId": id }),
    )
    .await;
    let update = told(&mut socket, "conversationUpdates").await;
    assert_eq!(
        (&update["__typename"], &update["reason"]),
        (&json!("ConversationEnded"), &json!("completed"))
    );
    let stats = stats(&server).await;
    assert_eq!(stats["delivered"], 3.0, "{stats}");
}

#[tokio::test]
async fn only_an_event_equal_to_the_previous_one_is_dropped() {
    let server = TestServer::with(|config| config.events.window = Duration::from_mins(1)).await;
    let query = "{ conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { messages(first: 1, filter: { isPinned: false }) { nodes { id } } } } }";
    let answer = server.graphql(query, json!({})).await;
    let message = &answer["data"]["conversations"]["nodes"][0]["messages"]["nodes"][0]["id"];
    let query = "subscription { events(filter: { types: [MESSAGE_PINNED] }) { type } }";
    let mut socket = subscribed(&server, "demo@example.com", query).await;
    for is_pinned in [true, false, true] {
        let input = json!({ "messageId": message, "isPinned": is_pinned });
        change(&server, "pinMessage message { id }", input).await;
    }
    for _ in 0..3 {
        told(&mut socket, "events").await;
    }
    // The change is undone directly in the database, so the same event occurs again.
    let db = server.database().connect().await;
    db.execute_unprepared("UPDATE messages SET is_pinned = FALSE")
        .await
        .expect("updates");
    let input = json!({ "messageId": message, "isPinned": true });
    change(&server, "pinMessage message { id }", input).await;
    let stats = stats(&server).await;
    assert_eq!(stats["deduplicated"], 1.0, "{stats}");
}

#[tokio::test]
async fn last_event_id_takes_precedence_over_the_after_argument() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    for name in ["One", "Two", "Three"] {
        create(&server, name).await;
    }
    let one = listener.next().await["cursor"].clone();
    let two = listener.next().await["cursor"].clone();
    let query =
        format!("subscription {{ events(after: {one}) {{ ... on ProjectEvent {{ name }} }} }}");
    let token = server.token("demo@example.com").await;
    let request = server
        .request(reqwest::Method::POST, "/graphql")
        .bearer_auth(&token);
    let request = request
        .header("accept", "text/event-stream")
        .header("last-event-id", two.as_str().expect("a cursor"));
    let mut response = request
        .json(&json!({ "query": query }))
        .send()
        .await
        .expect("an answer");
    let mut text = String::new();
    while !text.contains("data: ") {
        let piece = response.chunk().await.expect("a piece").expect("no end");
        text.push_str(std::str::from_utf8(&piece).expect("text"));
    }
    assert!(text.contains("Three") && !text.contains("Two"), "{text}");
}
