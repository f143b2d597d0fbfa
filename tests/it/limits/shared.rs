//! Several instances that share a Redis server, and their limits while it is unavailable.
//!
//! These tests start their own Redis server, and pass without testing if Redis is not installed.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use gathering::config::{Config, Mode};
use gathering_settings::Setting;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{HERE, PLENTY, THERE, VIEWER, aliases, ask, serve};
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
        Self::with(&[]).await
    }

    /// As [`Redis::start`], with these options.
    async fn with(options: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let address = free().await;
        let Some(process) = Self::run(address, &folder, options).await else {
            skip("needs redis-server");
            return None;
        };
        Some(Self {
            process,
            address,
            folder,
        })
    }

    async fn run(address: SocketAddr, folder: &TempDir, options: &[&str]) -> Option<Child> {
        let port = address.port().to_string();
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(folder.path())
            .args(options)
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let process = command.spawn().ok()?;
        until("a Redis that answers", async || is_ready(address).await).await;
        Some(process)
    }

    /// Deletes all data.
    async fn flush(&self) {
        assert_eq!(self.answer("FLUSHALL").await, "+OK\r\n");
    }

    /// The answer to a command, which fits into one packet.
    async fn answer(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("connects");
        let command = format!("{command}\r\n");
        let sent = stream.write_all(command.as_bytes()).await;
        sent.expect("is sent");
        let mut answer = vec![0; 16 << 10];
        let length = stream.read(&mut answer).await.expect("an answer");
        answer.truncate(length);
        String::from_utf8(answer).expect("text")
    }

    async fn kill(&mut self) {
        self.process.kill().await.expect("is killed");
    }

    /// Starts it again on the same address, without data.
    async fn restart(&mut self) {
        let process = Self::run(self.address, &self.folder, &[]).await;
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

/// The number of decisions that a server has taken without Redis.
async fn local_decisions(server: &TestServer) -> u64 {
    server
        .metric("gathering_rate_limit_local_decisions_total")
        .await
}

/// The result of an experiment in which Redis makes every decision. On a busy machine Redis may time out, and the
/// experiment is repeated.
async fn decided<T>(servers: &[&TestServer], experiment: impl AsyncFn(usize) -> T) -> T {
    for attempt in 0..FIELDS.len() {
        let mut before = Vec::new();
        for server in servers {
            until_back(server).await;
            before.push(local_decisions(server).await);
        }
        let outcome = experiment(attempt).await;
        let mut after = Vec::new();
        for server in servers {
            after.push(local_decisions(server).await);
        }
        if before == after {
            return outcome;
        }
    }
    panic!("Redis never answers in time")
}

/// Sends requests until the server does not wait for Redis.
async fn until_alone(server: &TestServer) {
    until("a server that limits by itself", async || {
        ask(server, THERE, None, "{ serverInfo { name } }").await;
        is_alone(server).await
    })
    .await;
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
async fn instances_at_different_nodes_of_a_cluster_share_a_quota() {
    let ports = [free().await, free().await].map(|address| address.port().to_string());
    let options = ports
        .each_ref()
        .map(|port| ["--cluster-enabled", "yes", "--cluster-port", port]);
    let (Some(owner), Some(empty)) =
        tokio::join!(Redis::with(&options[0]), Redis::with(&options[1]))
    else {
        return;
    };
    let slots = owner.answer("CLUSTER ADDSLOTSRANGE 0 16383").await;
    assert_eq!(slots, "+OK\r\n");
    let meet = format!(
        "CLUSTER MEET 127.0.0.1 {} {}",
        owner.address.port(),
        ports[0]
    );
    assert_eq!(empty.answer(&meet).await, "+OK\r\n");
    until("a node that knows the owner of the slots", async || {
        empty
            .answer("GET {gathering-limits}:")
            .await
            .starts_with("-MOVED")
    })
    .await;

    let one_a_minute = |config: &mut Config| config.limits.read = 1;
    let one = on(&owner.url(), one_a_minute).await;
    let other = on(&empty.url(), one_a_minute).await;
    let let_in = decided(&[&one, &other], async |attempt| {
        let query = format!("{{ {} }}", FIELDS[attempt]);
        let token = one.token("demo@example.com").await;
        let first = ask(&other, HERE, Some(&token), &query).await;
        let second = ask(&one, THERE, Some(&token), &query).await;
        [!first.is_refused(), !second.is_refused()]
    })
    .await;
    assert_eq!(let_in, [true, false]);
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
    let checks = report["checks"].as_array().expect("checks");
    assert!(checks.contains(&check), "{report}");

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
        until_alone(&server).await;
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
            until_alone(&server).await;
            server.pass(2);
        }
    }
    silence.abort();
    noise.abort();
}

/// A proxy in front of Redis, which can hold answers back.
struct Proxy {
    address: SocketAddr,
    is_held: watch::Sender<bool>,
    /// The number of calls of the script.
    calls: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn before(redis: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let (is_held, held) = watch::channel(false);
        let calls = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&calls);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(redis).await.expect("connects");
                let (mut requests, mut answers) = client.into_split();
                let (mut replies, mut commands) = server.into_split();
                let (mut held, counter) = (held.clone(), Arc::clone(&counter));
                connections.spawn(async move {
                    let mut bytes = [0; 1 << 14];
                    while let Ok(length @ 1..) = requests.read(&mut bytes).await {
                        let text = String::from_utf8_lossy(&bytes[..length]);
                        let calls = text.matches("EVALSHA").count() as u64;
                        counter.fetch_add(calls, Ordering::Relaxed);
                        if commands.write_all(&bytes[..length]).await.is_err() {
                            break;
                        }
                    }
                });
                connections.spawn(async move {
                    let mut bytes = [0; 1 << 14];
                    while let Ok(length @ 1..) = replies.read(&mut bytes).await {
                        let released = held.wait_for(|is_held| !is_held).await.is_ok();
                        if !released || answers.write_all(&bytes[..length]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self {
            address,
            is_held,
            calls,
            task,
        }
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    fn hold(&self, is_held: bool) {
        self.is_held.send_replace(is_held);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn several_slow_answers_in_a_row_move_an_instance_to_its_own_buckets() {
    const INFO: &str = "{ serverInfo { name } }";
    let Some(redis) = Redis::start().await else {
        return;
    };
    let proxy = Proxy::before(redis.address).await;
    let server = on(&proxy.url(), |_| ()).await;
    // One slow answer, and one that is in time, again and again.
    for turn in 0..4 {
        until("a decision of Redis", async || {
            let before = local_decisions(&server).await;
            ask(&server, THERE, None, INFO).await;
            local_decisions(&server).await == before
        })
        .await;
        let before = local_decisions(&server).await;
        proxy.hold(true);
        // Concurrent requests wait for the same slow answer.
        let requests = (0..10).map(|_| ask(&server, THERE, None, INFO));
        for answer in join_all(requests).await {
            assert!(!answer.is_refused());
        }
        proxy.hold(false);
        assert_eq!(local_decisions(&server).await, before + 10);
        assert!(!is_alone(&server).await, "{turn}");
    }
    proxy.hold(true);
    for _ in 0..3 {
        ask(&server, THERE, None, INFO).await;
    }
    assert!(is_alone(&server).await);
    proxy.hold(false);
    until_back(&server).await;
}

/// The quota class of the tests, in the notation of the configuration.
const RUNTIME: &str = r#"{ runtime = { read = 60, cost = "x2" } }"#;

/// Assigns the class to the demo user.
async fn assign_runtime(server: &TestServer) {
    let admin = server.actor("admin@example.com").await;
    let token = server.token("demo@example.com").await;
    let answer = ask(server, HERE, Some(&token), VIEWER).await;
    let user = &answer.body["data"]["viewer"]["id"];
    let input = json!({ "userId": user, "quotaClass": "runtime" });
    let payload = "user { quotaClass } userErrors { code }";
    let answer = admin.mutate("updateUser", payload, input).await;
    assert_eq!(
        answer["data"]["updateUser"]["user"]["quotaClass"], "runtime",
        "{answer}"
    );
}

/// Two instances with one Redis and one database, whose demo user has the class.
async fn pair(redis: &Redis, change: impl Fn(&mut Config)) -> [TestServer; 2] {
    let url = redis.url();
    let change = |config: &mut Config| {
        assert!(config.limits.classes.set(RUNTIME));
        config.redis.url = url.clone().into();
        config.limits.mode = Mode::Enforce;
        config.limits.read = 30;
        config.limits.health = PLENTY;
        config.limits.write = PLENTY;
        config.limits.address = PLENTY;
        change(config);
    };
    let one = serve(change).await;
    assign_runtime(&one).await;
    let other = one.beside(change).await;
    [one, other]
}

/// How many of these queries of the demo user two instances allow, and the time that they take.
async fn spend(servers: &[TestServer; 2], query: &str, requests: usize) -> (usize, Duration) {
    let token = servers[0].token("demo@example.com").await;
    let token = Some(token.as_str());
    let began = Instant::now();
    let requests =
        stream::iter(0..requests).map(|place| ask(&servers[place % 2], HERE, token, query));
    let let_in = requests
        .buffer_unordered(8)
        .filter(|answer| std::future::ready(!answer.is_refused()));
    (let_in.count().await, began.elapsed())
}

#[tokio::test]
async fn two_instances_spend_the_quota_of_one_class() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let servers = pair(&redis, |_| ()).await;
    let [one, other] = &servers;
    let (let_in, took) = decided(&[one, other], async |_| {
        redis.flush().await;
        spend(&servers, "{ circles { totalCount } }", 120).await
    })
    .await;
    let regained = usize::try_from(took.as_millis() / 1_000).expect("not long") + 1;
    assert!(
        (60..=60 + regained).contains(&let_in),
        "{let_in}, {regained} regained"
    );
}

#[tokio::test]
async fn two_instances_spend_one_budget_of_points() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    // The class has twice as much: 2,000 points, for twenty of these queries.
    let servers = pair(&redis, |config| config.limits.cost = 1_000).await;
    let [one, other] = &servers;
    let query = format!("{{ serverInfo {} }}", aliases("name", 99));
    let (let_in, took) = decided(&[one, other], async |_| {
        redis.flush().await;
        spend(&servers, &query, 60).await
    })
    .await;
    let regained = usize::try_from(took.as_millis() / 3_000).expect("not long") + 1;
    assert!(
        (20..=20 + regained).contains(&let_in),
        "{let_in}, {regained} regained"
    );
}

#[tokio::test]
async fn unused_points_are_returned_without_a_further_call_of_redis() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let proxy = Proxy::before(redis.address).await;
    // Each query needs 102 points and uses few, so the budget is enough only if the others are returned.
    let change = |config: &mut Config| {
        config.limits.read = PLENTY;
        config.limits.cost = 5_000;
    };
    let server = on(&proxy.url(), change).await;
    let query = "{ circles(first: 100) { nodes { id } } }";
    let token = server.token("demo@example.com").await;
    let (calls, took) = decided(&[&server], async |_| {
        redis.flush().await;
        let (before, began) = (proxy.calls.load(Ordering::Relaxed), Instant::now());
        for _ in 0..200 {
            let answer = ask(&server, HERE, Some(&token), query).await;
            let cost = &answer.body["extensions"]["cost"];
            assert_eq!((answer.codes(), &cost["requested"]), (vec![], &json!(102)));
        }
        let calls = proxy.calls.load(Ordering::Relaxed) - before;
        (calls, began.elapsed())
    })
    .await;
    // The credits that are left are sent once a second.
    assert!((200..=202 + took.as_secs()).contains(&calls), "{calls}");
}
