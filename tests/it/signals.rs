//! The signals that end a server or reload its configuration.

use std::fs;
use std::process::Stdio;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::ChildStderr;

use crate::process::{ask, demo};
use crate::support::actor::{Actor, client};
use crate::support::database::{Database, PASSWORD};
use crate::support::program::{Running, gathering, refusal, run, text};
use crate::support::server::until_ready_is;
use crate::support::wait::{until, within};

#[tokio::test]
async fn sigterm_lets_a_request_in_flight_finish() {
    let database = Database::seeded().await;
    let mut command = gathering("serve --listen 127.0.0.1:0");
    command
        .env("DATABASE_URL", database.url())
        .env("GATHERING__SERVER__GRACE", "0s");
    let mut server = Running::start(&mut command).await;
    let address = server.url.trim_start_matches("http://").to_owned();

    let body = r#"{"query":"{ viewer { name } }"}"#;
    let mut request = TcpStream::connect(&address).await.expect("connects");
    // `100 Continue` shows that the server is handling the request.
    let head = format!(
        "POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    request.write_all(head.as_bytes()).await.expect("is sent");
    let mut proceed = [0; 25];
    let read = request.read_exact(&mut proceed);
    within("an answer", read).await.expect("an answer");
    assert_eq!(&proceed, b"HTTP/1.1 100 Continue\r\n\r\n");

    server.signal("TERM");
    until("a server that does not listen any more", async || {
        TcpStream::connect(&address).await.is_err()
    })
    .await;

    request.write_all(body.as_bytes()).await.expect("is sent");
    let mut answer = String::new();
    let read = request.read_to_string(&mut answer);
    within("an answer", read).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains(r#""data":{"viewer""#), "{answer}");
    server.ends().await;
}

#[tokio::test]
async fn a_second_signal_ends_the_grace_period() {
    let database = Database::seeded().await;
    let mut command = gathering("serve --listen 127.0.0.1:0");
    command
        .env("DATABASE_URL", database.url())
        .env("GATHERING__SERVER__GRACE", "10m");
    let mut server = Running::start(&mut command).await;
    let ready = format!("{}/health/ready", server.url);
    until_ready_is(&ready, StatusCode::OK).await;

    server.signal("TERM");
    until_ready_is(&ready, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(
        ask(&server.url, "{ __typename }").await["data"]["__typename"],
        "Query"
    );
    server.signal("TERM");
    server.ends().await;
}

/// Reads the log of a server until a line contains this text.
async fn until_logged(log: &mut Lines<BufReader<ChildStderr>>, what: &str) {
    let said = async {
        loop {
            let line = log.next_line().await.expect("is read").expect("a line");
            if line.contains(what) {
                break;
            }
        }
    };
    within(format!("{what} in the log"), said).await;
}

/// The rate limit policy that the server reports, and the status of a request.
async fn limit(url: &str) -> (String, StatusCode) {
    let request = client().post(format!("{url}/graphql"));
    let request = request.json(&json!({ "query": "{ __typename }" }));
    let answer = request.send().await.expect("an answer");
    let policy = answer.headers()["ratelimit-policy"].to_str();
    (policy.expect("text").to_owned(), answer.status())
}

#[tokio::test]
async fn sighup_reloads_the_rate_limits_and_ignores_an_invalid_file() {
    let database = Database::seeded().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gathering.toml");
    // The server must not read a part of the file.
    let write = |toml: &str| {
        let next = folder.path().join("next.toml");
        fs::write(&next, toml).expect("is written");
        fs::rename(&next, &file).expect("is renamed");
    };
    write("[limits]\nread = 1000\n");
    let mut command = gathering("serve --listen 127.0.0.1:0 --config");
    command
        .arg(&file)
        .env("DATABASE_URL", database.url())
        .env_remove("GATHERING__LIMITS__MODE")
        .stderr(Stdio::piped());
    let mut server = Running::start(&mut command).await;
    let log = server.errors();
    let mut log = BufReader::new(log).lines();
    let (policy, _) = limit(&server.url).await;
    assert!(policy.contains("\"read\";q=1000;"), "{policy}");

    write("[limits]\nread = 1\n");
    server.signal("HUP");
    until_logged(&mut log, "reloaded the rate limits").await;
    // What the first request has used of the former limit is regained within 60 milliseconds.
    until("an accepted request", async || {
        let (policy, status) = limit(&server.url).await;
        assert!(policy.contains("\"read\";q=1;"), "{policy}");
        status == StatusCode::OK
    })
    .await;

    for broken in ["[limits]\nread = 0\n", "[limits]\nreed = 5\n", "[limits"] {
        write(broken);
        server.signal("HUP");
        until_logged(&mut log, "cannot be read").await;
        let (policy, _) = limit(&server.url).await;
        assert!(policy.contains("\"read\";q=1;"), "{broken}: {policy}");
    }
    let (policy, status) = limit(&server.url).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{policy}");

    write("[limits]\nmode = \"observe\"\n");
    server.signal("HUP");
    until_logged(&mut log, "reloaded the rate limits").await;
    let (policy, status) = limit(&server.url).await;
    assert!(policy.contains("\"read\";q=120;"), "{policy}");
    assert_eq!(status, StatusCode::OK);

    write("[limits]\naddress = 2\n");
    server.signal("HUP");
    until_logged(&mut log, "reloaded the rate limits").await;
    // A route whose only bucket is that of the address.
    let answer = reqwest::get(format!("{}/health/live", server.url)).await;
    let policy = answer.expect("an answer").headers()["ratelimit-policy"].clone();
    assert_eq!(policy, "\"health\";q=2;w=60");
    server.signal("INT");
    server.ends().await;
}

#[tokio::test]
async fn sighup_changes_quota_classes_under_load() {
    let database = Database::seeded().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gathering.toml");
    let write = |classes: &str| {
        let toml = format!("[limits]\nread = 1\naddress = 100000\n{classes}");
        fs::write(&file, toml).expect("is written");
    };
    let class =
        |read: u32| format!("[limits.classes]\nruntime = {{ read = {read}, write = \"x10\" }}\n");
    write(&class(300));
    let program = |arguments: &str| {
        let mut command = gathering(arguments);
        command
            .env("GATHERING_CONFIG", &file)
            .env("DATABASE_URL", database.url())
            .env_remove("GATHERING__LIMITS__MODE");
        command
    };
    let set = "user set-quota-class --email demo@example.com --class";
    let unknown = refusal(&mut program(&format!("{set} none"))).await;
    assert_eq!(unknown.trim_end(), "limits.classes has no class \"none\"");
    let output = run(&mut program(&format!("{set} runtime"))).await;
    assert_eq!(
        text(&output.stdout),
        "the quota class is changed\n",
        "{output:?}"
    );

    let mut server =
        Running::start(program("serve --listen 127.0.0.1:0").stderr(Stdio::piped())).await;
    let log = server.errors();
    let mut log = BufReader::new(log).lines();
    let caller = Actor::new(&server.url)
        .login("demo@example.com", PASSWORD)
        .await
        .access;
    let caller = Actor::new(&server.url).with(&caller);
    let send = async || caller.send("{ viewer { id } }", json!({})).await;
    for read in [600, 300, 450] {
        write(&class(read));
        server.signal("HUP");
        let requests = join_all((0..50).map(|_| send()));
        let reloaded = until_logged(&mut log, "reloaded the rate limits");
        let (answers, ()) = tokio::join!(requests, reloaded);
        for answer in answers {
            assert_eq!(answer.status(), StatusCode::OK);
        }
        let policy = send().await.headers()["ratelimit-policy"].clone();
        let policy = policy.to_str().expect("text").to_owned();
        assert!(policy.contains(&format!("\"read\";q={read};")), "{policy}");
    }
    // Most of the requests are still counted.
    write(&class(30));
    server.signal("HUP");
    until_logged(&mut log, "reloaded the rate limits").await;
    assert_eq!(send().await.status(), StatusCode::TOO_MANY_REQUESTS);

    write("[limits.classes]\nruntime = { reed = 5 }\n");
    server.signal("HUP");
    until_logged(
        &mut log,
        "limits.classes has an invalid class `runtime`: `reed` is not one of",
    )
    .await;
    write("");
    server.signal("HUP");
    until_logged(&mut log, "reloaded the rate limits").await;
    let refused = send().await;
    assert!(
        refused.headers()["ratelimit-policy"]
            .to_str()
            .expect("text")
            .contains("\"read\";q=1;")
    );
    until_logged(&mut log, "is not in `limits.classes`").await;
    server.signal("INT");
    server.ends().await;
}

#[tokio::test]
async fn an_idle_connection_does_not_delay_shutdown() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut command = demo(&temporary);
    let mut demo = Running::start(command.env("GATHERING__SERVER__DRAIN", "10m")).await;
    let address = demo.url.trim_start_matches("http://").to_owned();
    let unused = TcpStream::connect(&address).await.expect("connects");
    demo.signal("INT");
    demo.ends().await;
    drop(unused);
}
