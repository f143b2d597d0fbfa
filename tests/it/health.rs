//! `/health`, request ids, and the limits of every connection.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::actor::{ADMIN, client};
use crate::support::database::Database;
use crate::support::server::{TestServer, until_ready_is};
use crate::support::wait::{until, within};

#[tokio::test]
async fn health_reports_version_uptime_and_checks() {
    let server = TestServer::start().await;
    let response = server.get("/health").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["cache-control"], "no-store");
    let health: Value = response.json().await.expect("JSON");
    assert_eq!(health["status"], "pass");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptimeSeconds"].is_u64());
    assert_eq!(health["checks"][0]["name"], "database");
    assert!(health["checks"][0]["latencyMs"].is_f64());
    let mut names = vec!["database", "pool", "writes", "events", "migrations"];
    if !server.database().is_postgres() {
        names.push("disk");
    }
    assert_eq!(
        checks(&health),
        names
            .into_iter()
            .map(|name| (name, "pass"))
            .collect::<Vec<_>>()
    );
}

/// The name and the status of each check.
fn checks(health: &Value) -> Vec<(&str, &str)> {
    let checks = health["checks"].as_array().expect("checks").iter();
    checks
        .map(|check| {
            let [name, status] = ["name", "status"].map(|key| check[key].as_str().expect("text"));
            (name, status)
        })
        .collect()
}

#[tokio::test]
async fn the_graph_reports_the_health_and_the_resources_of_the_process() {
    let server = TestServer::start().await;
    let token = server.token(ADMIN).await;
    let admin = server.caller(Some(&token));
    let query =
        "{ health { status checks { name status message latencyMs } } systemMetrics { cpuPercent
        memoryUsedBytes memoryTotalBytes databaseConnections subscriptions uptimeSeconds } }";
    let data = admin.ask(query, json!({})).await;
    let health: Value = server.get("/health").await.json().await.expect("JSON");
    let graph = &data["health"];
    assert_eq!(graph["status"], "UP", "{data}");
    let expected: Vec<_> = checks(&health)
        .iter()
        .map(|(name, _)| (*name, "UP"))
        .collect();
    assert_eq!(checks(graph), expected);
    assert!(graph["checks"][0]["latencyMs"].is_f64());
    let number = |name: &str| data["systemMetrics"][name].as_f64().expect("a number");
    assert!(number("memoryUsedBytes") > 1e6, "{data}");
    assert!(
        number("memoryUsedBytes") < number("memoryTotalBytes"),
        "{data}"
    );
    assert!(number("databaseConnections") >= 1.0, "{data}");
    assert!(number("uptimeSeconds") > 0.0, "{data}");
    assert_eq!(data["systemMetrics"]["subscriptions"], 0);
}

#[tokio::test]
async fn events_that_are_not_published_in_time_degrade_the_health() {
    let Some(database) = Database::seeded().await.only_on_postgres() else {
        return;
    };
    let server = TestServer::on(database, |_| ()).await;
    // Another process holds the lock under which events are numbered.
    let db = server.database().connect().await;
    let busy = db.begin().await.expect("begins");
    let lock = "SELECT pg_advisory_xact_lock(4741749311)";
    busy.execute_unprepared(lock).await.expect("locks");
    let create = "mutation { createProject(input: { name: \"Late\" }) { project { id } } }";
    let answer = server.graphql(create, json!({})).await;
    assert!(
        answer["data"]["createProject"]["project"]["id"].is_string(),
        "{answer}"
    );
    let until_events_are = async |expected: &str, whole: &str| {
        until(format!("events {expected} in /health"), async || {
            let response = server.get("/health").await;
            assert_eq!(response.status(), StatusCode::OK);
            let health: Value = response.json().await.expect("JSON");
            checks(&health).contains(&("events", expected)) && health["status"] == whole
        })
        .await;
    };
    until_events_are("pass", "pass").await;
    server.jump(11);
    until_events_are("warn", "warn").await;
    busy.commit().await.expect("commits");
    until_events_are("pass", "pass").await;
}

#[tokio::test]
async fn health_endpoints_allow_only_get_and_head() {
    let server = TestServer::start().await;
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(server.get(path).await.status(), StatusCode::OK, "{path}");

        let head = server
            .request(Method::HEAD, path)
            .send()
            .await
            .expect("an answer");
        assert_eq!(head.status(), StatusCode::OK, "{path}");
        assert_eq!(head.bytes().await.expect("a body").len(), 0, "{path}");

        let post = server
            .request(Method::POST, path)
            .send()
            .await
            .expect("an answer");
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(post.headers()["allow"], "GET,HEAD", "{path}");
    }
}

#[tokio::test]
async fn a_draining_server_is_not_ready_but_still_serves() {
    let server = TestServer::start().await;
    let (ready, live) = (server.url("/health/ready"), server.url("/health/live"));
    let draining = tokio::spawn(server.shut_down(Duration::from_mins(10)));
    until_ready_is(&ready, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(
        client().get(live).send().await.expect("an answer").status(),
        StatusCode::OK
    );
    draining.abort();
}

#[tokio::test]
async fn every_response_carries_a_request_id() {
    let server = TestServer::start().await;
    let response = server.get("/health/live").await;
    assert_eq!(response.headers()["x-request-id"].len(), 32);

    for path in ["/health", "/graphql", "/nothing"] {
        let request = server
            .request(Method::GET, path)
            .header("X-Request-Id", "my-request.1");
        let response = request.send().await.expect("an answer");
        assert_eq!(response.headers()["x-request-id"], "my-request.1", "{path}");
    }
    for bad in ["", "two words", "<script>", &"x".repeat(65)] {
        let request = server
            .request(Method::GET, "/health/live")
            .header("X-Request-Id", bad);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.headers()["x-request-id"].len(), 32, "{bad:?}");
    }
}

#[tokio::test]
async fn an_unknown_path_is_not_found() {
    let server = TestServer::start().await;
    let response = server.get("/nothing").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn a_connection_without_complete_headers_is_closed() {
    let server = TestServer::with(|config| {
        config.server.header_timeout = Duration::from_millis(100);
    })
    .await;
    for sent in ["", "GET /health/live HTTP/1.1\r\nHost: lo"] {
        let mut connection = connect(&server).await;
        connection
            .write_all(sent.as_bytes())
            .await
            .expect("is sent");
        let mut answer = String::new();
        let read = connection.read_to_string(&mut answer);
        within("the end of the connection", read)
            .await
            .expect("is closed");
        assert!(!answer.contains("200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn an_oversized_header_is_refused() {
    let server = TestServer::start().await;
    let mut connection = connect(&server).await;
    let header = format!(
        "GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: {}",
        "x".repeat(70_000)
    );
    // The server may close the connection before it has read everything.
    let _ = connection.write_all(header.as_bytes()).await;
    let mut answer = Vec::new();
    let read = connection.read_to_end(&mut answer);
    let _ = within("the end of the connection", read).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_until_another_ends() {
    let server = TestServer::with(|config| config.server.max_connections = 1).await;
    let request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut answer = [0; 12];
    let mut first = connect(&server).await;
    first.write_all(request).await.expect("is sent");
    let read = first.read_exact(&mut answer);
    within("an answer", read).await.expect("an answer");

    let mut second = connect(&server).await;
    second.write_all(request).await.expect("is sent");
    drop(first);
    let read = second.read_exact(&mut answer);
    within("an answer", read).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = TestServer::with(|config| {
        config.server.max_connections = 1;
        config.server.write_timeout = Duration::from_secs(1);
    })
    .await;
    let address = server
        .url("")
        .trim_start_matches("http://")
        .parse()
        .expect("an address");
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("is set");
    let mut deaf = socket.connect(address).await.expect("connects");
    let request = "GET /graphql?query={__schema{types{name,description,fields{name,description}}}} HTTP/1.1\r\n\
        Host: localhost\r\nAccept: application/json\r\nGraphQL-Require-Preflight: 1\r\n\r\n";
    deaf.write_all(request.repeat(200).as_bytes())
        .await
        .expect("is sent");

    let mut other = connect(&server).await;
    other
        .write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .expect("is sent");
    let mut answer = [0; 12];
    let read = other.read_exact(&mut answer);
    within("an answer", read).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(deaf);
}

async fn connect(server: &TestServer) -> TcpStream {
    let url = server.url("");
    TcpStream::connect(url.trim_start_matches("http://"))
        .await
        .expect("connects")
}
