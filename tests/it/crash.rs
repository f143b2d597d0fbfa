//! A server that is killed while it writes: acknowledged changes are stored once, and their events are delivered in
//! order.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use gathering_entity::{event, project};
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::actor::{Actor, OWNER};
use crate::support::database::Database;
use crate::support::program::{Running, gathering};
use crate::support::wait::{until, within};

/// How many changes are acknowledged before the server is killed.
const ACKNOWLEDGED: usize = 1_000;

/// The number of concurrent writers.
const WRITERS: usize = 32;

/// The number of updates of each project.
const STEPS: usize = 4;

/// Collects the names and cursors of project events until `enough` returns true or the stream breaks off.
async fn listen(
    actor: &Actor,
    after: Option<&str>,
    received: &Mutex<Vec<(String, String)>>,
    began: &AtomicBool,
    enough: impl Fn(&[(String, String)]) -> bool,
) {
    let query = "subscription { events(filter: { types: [PROJECT_CREATED, PROJECT_UPDATED] }) \
        { ... on ProjectEvent { name } } }";
    let mut request = actor.request(query, &json!({}));
    request = request.header("Accept", "text/event-stream");
    if let Some(after) = after {
        request = request.header("Last-Event-ID", after);
    }
    let mut response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let mut text = String::new();
    while let Ok(Some(piece)) = response.chunk().await {
        began.store(true, Ordering::SeqCst);
        text.push_str(std::str::from_utf8(&piece).expect("text"));
        while let Some((message, rest)) = text.split_once("\n\n") {
            let line = |name: &str| {
                let mut lines = message.lines();
                lines.find_map(|line| line.strip_prefix(name))
            };
            if let (Some(cursor), Some(data)) = (line("id: "), line("data: ")) {
                let data: Value = serde_json::from_str(data).expect("JSON");
                let name = data["data"]["events"]["name"].as_str().expect("a name");
                let mut received = received.lock().expect("no panic");
                received.push((name.to_owned(), cursor.to_owned()));
                if enough(&received) {
                    return;
                }
            }
            text = rest.to_owned();
        }
    }
}

/// Splits a project's name into its key and the number of its updates.
fn parse(name: &str) -> (String, usize) {
    let (own, step) = name.rsplit_once(' ').expect("a step");
    (own.to_owned(), step.parse().expect("a number"))
}

/// The number of updates of each project.
async fn projects(db: &DatabaseConnection) -> HashMap<String, usize> {
    let projects = project::Entity::find().filter(project::Column::Name.starts_with("writer"));
    let projects = projects.all(db).await.expect("reads");
    projects
        .iter()
        .map(|project| parse(&project.name))
        .collect()
}

/// The steps in the events of each project, ordered by position.
async fn events(db: &DatabaseConnection) -> HashMap<String, Vec<usize>> {
    let rows = event::Entity::find()
        .filter(event::Column::SubjectType.eq("project"))
        .order_by_asc(event::Column::Position);
    let mut events: HashMap<String, Vec<usize>> = HashMap::new();
    for row in rows.all(db).await.expect("reads") {
        let name = row.payload["name"].as_str().expect("a name");
        if name.starts_with("writer") {
            assert!(row.position.is_some(), "{name} has a position");
            let (own, step) = parse(name);
            events.entry(own).or_default().push(step);
        }
    }
    events
}

#[tokio::test]
async fn acknowledged_changes_survive_a_kill_and_their_events_arrive_in_order() {
    let database = Database::seeded().await;
    let serve = || {
        let mut command = gathering("serve --listen 127.0.0.1:0");
        command.env("DATABASE_URL", database.url());
        command
    };
    let server = Running::start(&mut serve()).await;
    let visitor = Actor::new(&server.url).signed_in(OWNER).await;

    let received = Arc::new(Mutex::new(Vec::new()));
    let began = Arc::new(AtomicBool::new(false));
    let mut work = JoinSet::new();
    let (listener, log, open) = (visitor.clone(), Arc::clone(&received), Arc::clone(&began));
    work.spawn(async move { listen(&listener, None, &log, &open, |_| false).await });
    until("the beginning of the stream", async || {
        began.load(Ordering::SeqCst)
    })
    .await;

    let acknowledged: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let count = Arc::new(AtomicUsize::new(0));
    for writer in 0..WRITERS {
        let (visitor, acknowledged, count) = (
            visitor.clone(),
            Arc::clone(&acknowledged),
            Arc::clone(&count),
        );
        work.spawn(async move {
            for n in 0.. {
                let own = format!("writer {writer} {n}");
                let mut id = Value::Null;
                for step in 0..=STEPS {
                    let name = format!("{own} {step}");
                    let (query, input) = if step == 0 {
                        let query = "mutation ($input: CreateProjectInput!) { change: createProject(input: $input) { project { id } } }";
                        (query, json!({ "name": name }))
                    } else {
                        let query = "mutation ($input: UpdateProjectInput!) { change: updateProject(input: $input) { project { id } } }";
                        (query, json!({ "projectId": id, "name": name }))
                    };
                    let Some(answer) = visitor.try_answer(query, json!({ "input": input })).await else {
                        return;
                    };
                    id = answer["data"]["change"]["project"]["id"].clone();
                    assert!(id.is_string(), "{answer}");
                    acknowledged.lock().expect("no panic").insert(own.clone(), step);
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    let has_received = || !received.lock().expect("no panic").is_empty();
    until("enough acknowledged changes and an event", async || {
        count.load(Ordering::SeqCst) >= ACKNOWLEDGED && has_received()
    })
    .await;
    server.signal("KILL");
    within("the end of all callers", work.join_all()).await;
    drop(server);

    let server = Running::start(&mut serve()).await;
    let visitor = Actor::new(&server.url).signed_in(OWNER).await;
    let acknowledged = acknowledged.lock().expect("no panic").clone();
    let before = received.lock().expect("no panic").clone();
    // Resumes after the last event that the listener had received.
    let seen = before.last().map(|(_, cursor)| cursor.clone());
    let db = database.connect().await;
    let all: usize = projects(&db).await.values().map(|step| step + 1).sum();
    // The listener may have received all events before the kill.
    let has_all = before.len() >= all;
    let received = Mutex::new(before);
    if !has_all {
        let began = AtomicBool::new(false);
        let listening = listen(&visitor, seen.as_deref(), &received, &began, |received| {
            received.len() >= all
        });
        within("all events", listening).await;
    }

    let (projects, events) = (projects(&db).await, events(&db).await);
    for (project, step) in &acknowledged {
        assert!(
            projects.get(project) >= Some(step),
            "{project} {step} was acknowledged but is not stored"
        );
    }
    let mut heard: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, _) in received.into_inner().expect("no panic") {
        let (project, step) = parse(&name);
        heard.entry(project).or_default().push(step);
    }
    assert_eq!(heard.len(), projects.len());
    for (project, last) in projects {
        let steps: Vec<usize> = (0..=last).collect();
        assert_eq!(events[&project], steps, "one event for each change");
        assert_eq!(
            heard[&project], steps,
            "the events of {project} arrive once and in order"
        );
    }
}
