//! Several instances that share a Redis server, and their limits while it is unavailable.
//!
//! These tests start their own Redis server, and pass without testing if Redis is not installed.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use gathering::config::Config;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::{HERE, PLENTY, THERE, VIEWER, ask, serve};
use crate::support::program::signal;
use crate::support::server::TestServer;
use crate::support::skip::skip;
use crate::support::wait::until;

/// The longest allowed duration of requests while Redis does not respond, with a wide margin.
const BOUND: Duration = Duration::from_secs(2);

/// A Redis server that is stopped when this value is dropped.
struct Redis {
    process: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Redis {
    /// Returns `None` if Redis is not installed.
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let address = free().await;
        let Some(process) = Self::run(address, &folder).await else {
            skip("needs redis-server");
            return None;
        };
        Some(Self {
            process,
            address,
            folder,
        })
    }

    async fn run(address: SocketAddr, folder: &TempDir) -> Option<Child> {
        let port = address.port().to_string();
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let process = command.spawn().ok()?;
        until("a Redis that answers", async || is_ready(address).await).await;
        Some(process)
    }

    async fn kill(&mut self) {
        self.process.kill().await.expect("is killed");
    }

    /// Starts it again on the same address, without data.
    async fn restart(&mut self) {
        let process = Self::run(self.address, &self.folder).await;
        self.process = process.expect("is installed");
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

async fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    listener.local_addr().expect("an address")
}

async fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return false;
    };
    let mut answer = [0; 7];
    stream.write_all(b"PING\r\n").await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && &answer == b"+PONG\r\n"
}

/// A server that uses this Redis.
async fn on(url: &str, change: impl FnOnce(&mut Config)) -> TestServer {
    serve(|config| {
        config.redis.url = url.to_owned().into();
        config.limits.health = PLENTY;
        config.limits.address = PLENTY;
        change(config);
    })
    .await
}

/// The status of the server and of Redis in `/health`.
async fn health(server: &TestServer) -> [Value; 2] {
    let report: Value = server.get("/health").await.json().await.expect("JSON");
    let mut checks = report["checks"].as_array().expect("checks").iter();
    let redis = checks.find(|check| check["name"] == "redis");
    [&report["status"], &redis.expect("a check")["status"]].map(Value::clone)
}

/// Whether `/health` and `/metrics` report that the server limits by itself.
async fn is_alone(server: &TestServer) -> bool {
    let [whole, redis] = health(server).await;
    assert_eq!(whole, redis);
    let ready = server.get("/health/ready").await;
    assert!(ready.status().is_success());
    let metrics = server.get("/metrics").await.text().await.expect("text");
    let says = |alone| metrics.contains(&format!("\ngathering_rate_limit_alone {alone}\n"));
    assert!(says(0) != says(1), "{metrics}");
    // Redis may become unavailable between these requests, but the server does not retry before time passes.
    redis == "warn" && says(1)
}

/// Waits until the server uses Redis again.
async fn until_back(server: &TestServer) {
    until("a server that asks Redis again", async || {
        if !is_alone(server).await {
            return true;
        }
        // The server retries once a second.
        server.pass(2);
        ask(server, THERE, None, "{ serverInfo { name } }").await;
        false
    })
    .await;
}

/// The result of an experiment in which Redis makes every decision. On a busy machine Redis may time out, and the
/// experiment is repeated. An instance that has timed out once does not retry before time passes.
async fn decided<T>(servers: &[&TestServer], experiment: impl AsyncFn(usize) -> T) -> T {
    for attempt in 0..FIELDS.len() {
        for server in servers {
            until_back(server).await;
        }
        let outcome = experiment(attempt).await;
        let mut missed = false;
        for server in servers {
            missed |= is_alone(server).await;
        }
        if !missed {
            return outcome;
        }
    }
    panic!("Redis never answers in time")
}

/// Fields with separate buckets.
const FIELDS: [&str; 12] = [
    "viewer { id }",
    "circles { totalCount }",
    "tasks { totalCount }",
    "agents { totalCount }",
    "projects { totalCount }",
    "providers { totalCount }",
    "models { totalCount }",
    "personas { totalCount }",
    "conversations { totalCount }",
    "events { totalCount }",
    "dashboard { __typename }",
    "sessions { totalCount }",
];

/// Whether each of two requests for a field is allowed, with a quota of one a minute.
async fn twice(server: &TestServer, field: &str) -> [bool; 2] {
    let query = format!("{{ {field} }}");
    let asked = Instant::now();
    let first = ask(server, HERE, None, &query).await;
    let second = ask(server, HERE, None, &query).await;
    assert!(asked.elapsed() < BOUND, "{field}: {:?}", asked.elapsed());
    [!first.is_refused(), !second.is_refused()]
}

#[tokio::test]
async fn two_instances_together_have_the_limit_of_one() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let url = redis.url();
    let (one, other) = tokio::join!(on(&url, |_| ()), on(&url, |_| ()));
    let (let_in, took) = decided(&[&one, &other], async |attempt| {
        let address = format!("198.51.100.{attempt}");
        let began = Instant::now();
        let requests = stream::iter(0..240).map(|place| {
            let server = if place % 2 == 0 { &one } else { &other };
            ask(server, &address, None, VIEWER)
        });
        let let_in = requests
            .buffer_unordered(8)
            .filter(|answer| std::future::ready(!answer.is_refused()));
        (let_in.count().await, began.elapsed())
    })
    .await;
    // Redis uses its own clock, which refills one token every half second.
    let regained = usize::try_from(took.as_millis() / 500).expect("not long") + 1;
    assert!(let_in >= 120, "{let_in}");
    assert!(let_in <= 120 + regained, "{let_in}, {regained} regained");
}

#[tokio::test]
async fn the_quota_of_a_user_is_shared_between_instances() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let one_a_minute = |config: &mut Config| config.limits.read = 1;
    let one = on(&redis.url(), one_a_minute).await;
    let other = on(&redis.url(), one_a_minute).await;
    let answers = decided(&[&one, &other], async |attempt| {
        let query = format!("{{ {} }}", FIELDS[attempt]);
        let [here, there] = [
            one.token("demo@example.com").await,
            other.token("demo@example.com").await,
        ];
        let first = ask(&one, HERE, Some(&here), &query).await;
        let second = ask(&other, THERE, Some(&there), &query).await;
        // The clocks of the instances have no effect.
        one.pass(3_000);
        let third = ask(&one, HERE, Some(&here), &query).await;
        [first, second, third]
    })
    .await;
    assert!(!answers[0].is_refused());
    for answer in &answers[1..] {
        assert!(answer.is_refused());
        assert!((1..=60).contains(&answer.number("retry-after")));
    }
}

#[tokio::test]
async fn an_instance_limits_by_itself_while_redis_is_down() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let server = on(&redis.url(), |config| config.limits.read = 1).await;
    let let_in = decided(&[&server], async |attempt| {
        twice(&server, FIELDS[attempt]).await
    })
    .await;
    assert_eq!(let_in, [true, false]);

    redis.kill().await;
    for field in FIELDS {
        assert_eq!(twice(&server, field).await, [true, false], "{field}");
    }
    assert!(is_alone(&server).await);
    let admin = server.token("admin@example.com").await;
    let query = "{ health { status checks { name status message } } }";
    let answer = ask(&server, HERE, Some(&admin), query).await;
    let report = &answer.body["data"]["health"];
    assert_eq!(report["status"], "DEGRADED", "{}", answer.body);
    let check = json!({
        "name": "redis",
        "status": "DEGRADED",
        "message": "Redis does not respond: each instance applies the limits separately.",
    });
    assert_eq!(report["checks"][1], check);

    redis.restart().await;
    // The instance's own buckets, which are exhausted, are no longer used.
    let let_in = decided(&[&server], async |attempt| {
        twice(&server, FIELDS[attempt]).await
    })
    .await;
    assert_eq!(let_in, [true, false]);
}

#[tokio::test]
async fn requests_do_not_wait_for_a_stalled_redis() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let server = on(&redis.url(), |config| config.limits.read = 1).await;
    for field in ["__typename", "__schema { __typename }"] {
        until_back(&server).await;
        signal(&redis.process, "STOP");
        assert_eq!(twice(&server, field).await, [true, false]);
        assert!(is_alone(&server).await);
        signal(&redis.process, "CONT");
        until_back(&server).await;
    }
    let let_in = decided(&[&server], async |attempt| {
        twice(&server, FIELDS[attempt]).await
    })
    .await;
    assert_eq!(let_in, [true, false]);
}

/// A listener that is not Redis: it accepts connections and sends these bytes.
async fn impostor(words: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let talk = async move {
        let mut connections = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            // The client may have disconnected.
            let _ = stream.write_all(words).await;
            connections.push(stream);
        }
    };
    (address, tokio::spawn(talk))
}

#[tokio::test]
async fn a_server_starts_and_limits_without_a_working_redis() {
    let (silent, silence) = impostor(b"").await;
    let (loud, noise) = impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let closed = free().await;
    for address in [silent, loud, closed] {
        let server = on(&format!("redis://{address}"), |config| {
            config.limits.read = 1;
        })
        .await;
        for field in FIELDS {
            assert_eq!(twice(&server, field).await, [true, false], "{address}");
            assert!(is_alone(&server).await, "{address}");
            server.pass(2);
        }
    }
    silence.abort();
    noise.abort();
}
