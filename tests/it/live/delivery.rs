//! Delivery of events, and its order.

use reqwest::StatusCode;

use super::*;
use crate::support::actor::client;
use crate::support::wait::until;

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
    server.until_no_subscriber_is_left().await;
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
    // SQLite has one writer at a time, so no transaction can begin before another and commit after it.
    let Some(database) = Database::seeded().await.only_on_postgres() else {
        return;
    };
    let server = TestServer::on(database, looking).await;
    let db = server.database().connect().await;
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
    let Some(database) = Database::seeded().await.only_on_postgres() else {
        return;
    };
    let one = TestServer::on(database, |_| ()).await;
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
async fn instances_that_number_events_concurrently_lose_none_and_agree_on_the_order() {
    let Some(database) = Database::seeded().await.only_on_postgres() else {
        return;
    };
    let one = TestServer::on(database, |_| ()).await;
    let servers = [one.beside(|_| ()).await, one.beside(|_| ()).await, one];
    let mut listeners = Vec::new();
    for server in &servers {
        listeners.push(Listener::new(server, "").await);
    }
    // Another process holds the lock under which events are numbered.
    let db = servers[0].database().connect().await;
    let busy = db.begin().await.expect("begins");
    let lock = "SELECT pg_advisory_xact_lock(4741749311)";
    busy.execute_unprepared(lock).await.expect("locks");
    let names: Vec<_> = (10..70).map(|n| n.to_string()).collect();
    let (held, later) = names.split_at(20);
    let create_all = async |names: &[String]| {
        let all = names.iter().zip(servers.iter().cycle());
        join_all(all.map(|(name, server)| create(server, name))).await;
    };
    create_all(held).await;
    busy.commit().await.expect("commits");
    create_all(later).await;
    let mut orders = Vec::new();
    for listener in &mut listeners {
        orders.push(listener.names(names.len()).await);
    }
    let mut sorted = orders[0].clone();
    sorted.sort();
    assert_eq!(sorted, names);
    assert_eq!(orders[1], orders[0]);
    assert_eq!(orders[2], orders[0]);
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
    let received = listener.names(8 + 80).await;
    for n in 0..8 {
        let own = format!("p{n}");
        let own: Vec<_> = received
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
    // The one who does not read answers no ping either. It takes as long as the machine needs until they read, so
    // neither a missing answer nor a full socket may end the connection.
    let server = TestServer::with(|config| {
        looking(config);
        config.events.history = 64;
        config.server.write_timeout = Duration::from_hours(1);
        config.subscriptions.keep_alive = Duration::from_hours(1);
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
        let event = socket.value("events").await;
        assert_eq!(event["circle"]["name"], "Many");
    }
    // For each of three batches the actors, circles and agents, plus authentication, the events, and background
    // statements.
    let statements = server.statements() - before;
    assert!(statements <= 30, "{statements}");
}

#[tokio::test]
async fn only_an_event_equal_to_the_previous_one_is_dropped() {
    let server = TestServer::with(|config| config.events.window = Duration::from_mins(1)).await;
    let query = "{ conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { messages(first: 1, filter: { isPinned: false }) { nodes { id } } } } }";
    let answer = server.graphql(query, json!({})).await;
    let message = &answer["data"]["conversations"]["nodes"][0]["messages"]["nodes"][0]["id"];
    let query = "subscription { events(filter: { types: [MESSAGE_PINNED] }) { type } }";
    let mut socket =
        Socket::subscribed(&server, &server.token("demo@example.com").await, query).await;
    for is_pinned in [true, false, true] {
        let input = json!({ "messageId": message, "isPinned": is_pinned });
        change(&server, "pinMessage message { id }", input).await;
    }
    for _ in 0..3 {
        socket.value("events").await;
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
async fn clocks_that_differ_drop_no_event() {
    let server = TestServer::with(|config| config.events.window = Duration::from_mins(1)).await;
    let query = "{ conversations(first: 1, filter: { status: [ACTIVE] }) { nodes { messages(first: 1, filter: { isPinned: false }) { nodes { id } } } } }";
    let answer = server.graphql(query, json!({})).await;
    let message = &answer["data"]["conversations"]["nodes"][0]["messages"]["nodes"][0]["id"];
    let query = "subscription { events(filter: { types: [MESSAGE_PINNED] }) { ... on MessageEvent { isPinned } } }";
    let mut socket =
        Socket::subscribed(&server, &server.token("demo@example.com").await, query).await;
    let pin = async |is_pinned: bool| {
        let input = json!({ "messageId": message, "isPinned": is_pinned });
        change(&server, "pinMessage message { id }", input).await;
    };
    // The second change is that of an instance whose clock is an hour slow.
    for (is_pinned, clock) in [(true, 0), (false, -3600), (true, 0)] {
        server.jump(clock);
        pin(is_pinned).await;
        server.jump(-clock);
    }
    // The next one is that of an instance whose clock is an hour fast. It is undone directly in the database, so the same
    // event occurs again.
    server.jump(3600);
    pin(false).await;
    server.jump(-3600);
    let db = server.database().connect().await;
    db.execute_unprepared("UPDATE messages SET is_pinned = TRUE")
        .await
        .expect("updates");
    pin(false).await;
    for is_pinned in [true, false, true, false, false] {
        assert_eq!(socket.value("events").await["isPinned"], is_pinned);
    }
    let stats = stats(&server).await;
    assert_eq!(stats["deduplicated"], 0.0, "{stats}");
}

#[tokio::test]
async fn a_draining_server_delivers_events() {
    let server = TestServer::start().await;
    let mut listener = Listener::new(&server, "").await;
    let owner = server.actor(OWNER).await;
    let ready = server.url("/health/ready");
    let draining = tokio::spawn(server.shut_down(Duration::from_mins(10)));
    until("the server drains", async || {
        let answer = client().get(&ready).send().await.expect("an answer");
        answer.status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    owner
        .mutate("createProject", "project { id }", json!({ "name": "Late" }))
        .await;
    assert_eq!(listener.next().await["name"], "Late");
    draining.abort();
}
