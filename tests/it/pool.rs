//! The connection pool: its size, its behavior when full, and its recovery.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, select};
use futures_util::join;
use gathering::config;
use reqwest::StatusCode;
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::counted::CountedGraph;
use crate::support::database::{Database, number};
use crate::support::server::{TestServer, until_ready_is};
use crate::support::wait::until;

/// An operation of one statement, on a table that tests can lock.
const CIRCLES: &str = "{ circles(first: 1) { nodes { name } } }";

/// The same operation for another page size: equal pages would share a statement.
fn page(number: usize) -> String {
    format!("{{ circles(first: {number}) {{ nodes {{ name }} }} }}")
}

/// The responses to this many concurrent requests, each with its own statement.
async fn crowd(server: &TestServer, size: usize) -> Vec<Value> {
    join_all((1..=size).map(async |number| server.graphql(&page(number), json!({})).await)).await
}

/// The number of active database sessions of the server under test.
const AT_WORK: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE datname = current_database() AND application_name = 'gathering' AND state = 'active'";

/// The metric of the callers that wait for a connection.
const WAITING: &str = "gathering_database_callers_waiting";

const CUT: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
    WHERE datname = current_database() AND application_name = 'gathering'";

async fn until_at_work(db: &DatabaseConnection, sessions: i64) {
    until(format!("{sessions} sessions at work"), async || {
        number(db, AT_WORK).await >= sessions
    })
    .await;
}

/// A seeded PostgreSQL database; `None` on SQLite.
async fn postgres() -> Option<Database> {
    Database::seeded().await.only_on_postgres()
}

fn name(answer: &Value) -> &str {
    answer["data"]["circles"]["nodes"][0]["name"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn mutations_that_wait_for_a_row_leave_connections_to_queries() {
    const CREATE: &str =
        "mutation ($input: CreateTaskInput!) { createTask(input: $input) { task { id } } }";
    let Some(database) = postgres().await else {
        return;
    };
    let db = database.connect().await;
    let server = TestServer::on(database, |config| {
        config.database.min_connections = 1;
        config.database.max_connections = 4;
    })
    .await;
    let actor = server.actor("demo@example.com").await;
    name(&actor.answer(CIRCLES, json!({})).await);

    let lock = db.begin().await.expect("begins");
    lock.execute_unprepared("SELECT FROM circles WHERE name = 'Atelier' FOR UPDATE")
        .await
        .expect("locks");
    let create = async |number: usize| {
        let input = json!({ "circleId": "circle_01ke6p4zk8e03r000000000001", "title": "A task" });
        let request = actor.request(CREATE, &json!({ "input": input }));
        let request = request.header("Idempotency-Key", format!("task-{number}"));
        let response = request.send().await.expect("an answer");
        response.json::<Value>().await.expect("JSON")
    };
    let observed = async {
        until_at_work(&db, 3).await;
        server.until_metric_is(WAITING, 9).await;
        name(&actor.answer(CIRCLES, json!({})).await);
        lock.rollback().await.expect("rolls back");
    };
    let (created, ()) = join!(join_all((0..12).map(create)), observed);
    for answer in created {
        assert!(
            answer["data"]["createTask"]["task"]["id"].is_string(),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn forty_requests_share_twenty_connections() {
    let Some(database) = postgres().await else {
        return;
    };
    let db = database.connect().await;
    let minute = Duration::from_mins(1);
    let server = TestServer::on(database, |config| {
        config.database.acquire_timeout = minute;
        config.database.statement_timeout = minute;
        config.graphql.limits.timeout = minute;
    })
    .await;
    name(&server.graphql(CIRCLES, json!({})).await);

    let lock = db.begin().await.expect("begins");
    lock.execute_unprepared("LOCK TABLE circles IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locks");
    let requests = crowd(&server, 40);
    let observed = async {
        until_at_work(&db, 20).await;
        assert_eq!(server.get("/health/live").await.status(), StatusCode::OK);
        assert_eq!(number(&db, AT_WORK).await, 20);
        // The credentials of the requests are checked in one or two further statements.
        let is_counted = async || (20..=22).contains(&server.metric(WAITING).await);
        until("callers that wait", is_counted).await;
        lock.commit().await.expect("unlocks");
    };
    let (answers, ()) = tokio::join!(requests, observed);
    answers.iter().map(name).for_each(drop);
    server.until_metric_is(WAITING, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(
    clippy::print_stdout,
    reason = "prints durations, which are too unreliable to assert"
)]
async fn forty_slow_requests_are_all_served() {
    let Some(database) = postgres().await else {
        return;
    };
    let db = database.connect().await;
    let slow = "ALTER TABLE circles RENAME TO slow_circles; CREATE VIEW circles AS \
        SELECT * FROM slow_circles WHERE (SELECT pg_sleep(0.1)::text) IS NOT NULL";
    db.execute_unprepared(slow).await.expect("slows down");
    let server = TestServer::on(database, |config| {
        config.database.min_connections = 20;
        config.database.acquire_timeout = Duration::from_mins(1);
    })
    .await;
    // Lets each connection prepare the statement.
    crowd(&server, 40).await;

    let started = Instant::now();
    let requests = crowd(&server, 40);
    let live = async {
        until_at_work(&db, 1).await;
        let asked = Instant::now();
        assert_eq!(server.get("/health/live").await.status(), StatusCode::OK);
        asked.elapsed()
    };
    let ((answers, took), live) = tokio::join!(async { (requests.await, started.elapsed()) }, live);
    answers.iter().map(name).for_each(drop);
    println!(
        "40 requests of 100 ms over 20 connections: {took:?}; /health/live meanwhile: {live:?}"
    );
}

#[tokio::test]
async fn a_full_pool_reports_when_to_retry() {
    let Some(database) = postgres().await else {
        return;
    };
    let db = database.connect().await;
    let server = TestServer::on(database, |config| {
        config.database.min_connections = 0;
        config.database.max_connections = 2;
        config.database.acquire_timeout = Duration::from_secs(1);
    })
    .await;
    name(&server.graphql(CIRCLES, json!({})).await);

    let lock = db.begin().await.expect("begins");
    lock.execute_unprepared("LOCK TABLE circles IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locks");
    let held_up = crowd(&server, 2);
    let observed = async {
        until_at_work(&db, 2).await;
        let answer = server.graphql(&page(3), json!({})).await;
        assert_eq!(server.get("/health/live").await.status(), StatusCode::OK);
        lock.commit().await.expect("unlocks");
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "UNAVAILABLE",
            "{answer}"
        );
        assert!(
            answer["errors"][0]["extensions"]["retryAfter"].as_u64() >= Some(1),
            "{answer}"
        );
    };
    let (answers, ()) = tokio::join!(held_up, observed);
    answers.iter().map(name).for_each(drop);
    name(&server.graphql(CIRCLES, json!({})).await);
}

#[tokio::test]
async fn connections_closed_by_the_database_are_replaced() {
    let Some(database) = postgres().await else {
        return;
    };
    let db = database.connect().await;
    let server = TestServer::on(database, |_| ()).await;
    crowd(&server, 20).await;

    assert!(number(&db, CUT).await >= 4);
    // The first request succeeds, or fails as unavailable.
    let first = server.graphql(CIRCLES, json!({})).await;
    assert!(
        first["errors"].is_null() || is_unavailable(&first),
        "{first}"
    );
    for _ in 0..20 {
        name(&server.graphql(CIRCLES, json!({})).await);
    }
}

fn is_unavailable(answer: &Value) -> bool {
    answer["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
}

#[tokio::test]
async fn connections_lost_under_load_are_reported_only_as_unavailable() {
    let Some(database) = postgres().await else {
        return;
    };
    let db = database.connect().await;
    let server = TestServer::on(database, |_| ()).await;
    // Authenticates the caller before the connections are cut.
    name(&server.graphql(CIRCLES, json!({})).await);
    let load = join_all((0..64).map(async |_| {
        for _ in 0..5 {
            let answer = server.graphql(CIRCLES, json!({})).await;
            assert!(
                answer["errors"].is_null() || is_unavailable(&answer),
                "{answer}"
            );
        }
    }));
    let cuts = async {
        for _ in 0..5 {
            number(&db, CUT).await;
        }
    };
    tokio::join!(load, cuts);
    server.graphql(CIRCLES, json!({})).await;
    name(&server.graphql(CIRCLES, json!({})).await);
}

/// The route to a database, which a test can interrupt.
enum Way {
    File(PathBuf),
    Proxy {
        url: String,
        is_open: watch::Sender<bool>,
    },
}

impl Way {
    async fn to(database: &Database) -> Self {
        if let Some(file) = database.file() {
            return Self::File(file);
        }
        let (listener, url, database) = database.proxy().await;
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut is_open, database) = (is_open.clone(), database.clone());
                tokio::spawn(async move {
                    if !*is_open.borrow_and_update() {
                        return;
                    }
                    let mut server = TcpStream::connect(database).await.expect("connects");
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = is_open.changed() => {}
                    }
                });
            }
        });
        Self::Proxy {
            url: url.into(),
            is_open: open,
        }
    }

    fn set_open(&self, open: bool) {
        match self {
            Self::Proxy { is_open, .. } => _ = is_open.send_replace(open),
            Self::File(here) => {
                let away = here.with_extension("away");
                let (from, to) = if open { (&away, here) } else { (here, &away) };
                fs::rename(from, to).expect("is moved");
            }
        }
    }
}

#[tokio::test]
async fn the_server_recovers_from_a_database_outage_without_a_restart() {
    let database = Database::seeded().await;
    let way = Way::to(&database).await;
    let url = match &way {
        Way::File(_) => database.url(),
        Way::Proxy { url, .. } => url,
    };
    let url = url.parse().expect("a URL");
    let server = TestServer::on(database, |config| {
        config.database.url = url;
        config.database.acquire_timeout = Duration::from_secs(3);
    })
    .await;
    name(&server.graphql(CIRCLES, json!({})).await);
    for _ in 0..2 {
        way.set_open(false);
        until_ready_is(
            &server.url("/health/ready"),
            StatusCode::SERVICE_UNAVAILABLE,
        )
        .await;
        let answer = server.graphql(CIRCLES, json!({})).await;
        assert!(is_unavailable(&answer), "{answer}");
        assert_eq!(server.get("/health/live").await.status(), StatusCode::OK);

        way.set_open(true);
        until_ready_is(&server.url("/health/ready"), StatusCode::OK).await;
        name(&server.graphql(CIRCLES, json!({})).await);
    }
}

#[tokio::test]
async fn reads_one_after_the_other_share_a_connection_and_return_it() {
    const READS: usize = 8;
    let Some(database) = postgres().await else {
        return;
    };
    let sessions = database.connect().await;
    let connections = 4 * u32::try_from(READS).expect("is small");
    let settings = config::Database {
        url: database.url().parse().expect("a database URL"),
        min_connections: connections,
        max_connections: connections,
        ..config::Database::default()
    };
    let server = TestServer::on(database, |_| ()).await;
    let token = server.token("demo@example.com").await;
    let db = gathering::db::Database::open(&settings)
        .await
        .expect("opens");
    let graph = CountedGraph::over(db.connection().clone()).await;
    // A connection is kept for a moment only, in which a slow machine may not read so often.
    until("reads that share connections", async || {
        let begin = number(
            &sessions,
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
        )
        .await;
        for _ in 0..READS {
            graph.cost(&token, CIRCLES, json!({})).await;
        }
        let used = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'gathering' AND query LIKE 'SELECT%' \
             AND extract(epoch FROM query_start) * 1000000 > {begin}"
        );
        let used = number(&sessions, &used).await;
        assert!(used > 0, "reads are observed");
        used < i64::try_from(READS).expect("is small")
    })
    .await;
    until("connections return", async || db.connections().in_use == 0).await;
}

#[tokio::test]
async fn a_restored_sqlite_file_is_read_without_a_restart() {
    let Some(database) = Database::seeded().await.only_on_sqlite() else {
        return;
    };
    let other = Database::seeded().await;
    let db = other.connect().await;
    db.execute_unprepared("UPDATE circles SET name = 'Restored'")
        .await
        .expect("is changed");
    db.close().await.expect("closes");
    let here = database.file().expect("a file");
    let server = TestServer::on(database, |_| ()).await;
    assert_ne!(name(&server.graphql(CIRCLES, json!({})).await), "Restored");
    for log in ["db-wal", "db-shm"] {
        fs::remove_file(here.with_extension(log)).expect("was there");
    }
    fs::rename(other.file().expect("a file"), here).expect("is restored");
    assert_eq!(name(&server.graphql(CIRCLES, json!({})).await), "Restored");
}

#[tokio::test]
async fn sixty_four_readers_and_a_writer_do_not_block_each_other() {
    let database = Database::seeded().await;
    let db = database.connect().await;
    let server = TestServer::on(database, |_| ()).await;
    let readers = join_all((0..64).map(async |_| {
        for _ in 0..5 {
            name(&server.graphql(CIRCLES, json!({})).await);
        }
    }));
    let writer = async {
        loop {
            let update = "UPDATE tasks SET updated_at = updated_at";
            db.execute_unprepared(update).await.expect("is written");
        }
    };
    select(readers, Box::pin(writer)).await;
}

#[tokio::test]
async fn sqlite_does_not_plan_a_statement_again_for_other_parameters() {
    let Some(database) = Database::seeded().await.only_on_sqlite() else {
        return;
    };
    // SQLite does not report its plans; the option may be lost with `.cargo/config.toml`.
    let stable =
        "SELECT count(*) FROM pragma_compile_options WHERE compile_options = 'ENABLE_QPSG'";
    assert_eq!(number(&database.connect().await, stable).await, 1);
}

#[tokio::test]
async fn statements_are_planned_once_for_each_connection() {
    let Some(database) = postgres().await else {
        return;
    };
    let settings = config::Database {
        url: database.url().parse().expect("a database URL"),
        min_connections: 1,
        max_connections: 1,
        ..config::Database::default()
    };
    let server = TestServer::on(database, |_| ()).await;
    let token = server.token("demo@example.com").await;
    let db = gathering::db::Database::open(&settings)
        .await
        .expect("opens");
    let db = db.connection().clone();
    let graph = CountedGraph::over(db.clone()).await;
    let query = "query ($id: ID!) { agent(id: $id) { name model { displayName } } }";
    let variables = json!({ "id": "agent_01ke6p4zk8e02r000000000001" });
    for _ in 0..20 {
        let (answer, _) = graph.cost(&token, query, variables.clone()).await;
        assert!(answer["data"]["agent"]["name"].is_string(), "{answer}");
    }
    for table in ["agents", "users"] {
        let plans = |kind: &str| {
            format!(
                r#"SELECT sum({kind}_plans)::bigint FROM pg_prepared_statements
                WHERE statement LIKE 'SELECT "{table}"."id"%ANY(%'"#
            )
        };
        assert_eq!(number(&db, &plans("custom")).await, 0, "{table}");
        assert!(number(&db, &plans("generic")).await >= 20, "{table}");
    }
    for (name, value) in [("jit", "off"), ("max_parallel_workers_per_gather", "0")] {
        let settings = format!(
            "SELECT count(*) FROM pg_settings WHERE name = '{name}' AND setting = '{value}'"
        );
        assert_eq!(number(&db, &settings).await, 1, "{name}");
    }
}
