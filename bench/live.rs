//! Load generator for live events; run by `bench/live.sh`.
//!
//! - `live fanout URL TOKEN PID SUBSCRIBERS SILENT CIRCLES`: subscribers receive every event; SILENT of them do not
//!   read. Meanwhile, circles of 100 members each are created: 101 events per circle.
//! - `live steady URL TOKEN SUBSCRIBERS RATE SECONDS`: subscribers receive every event while projects are renamed RATE
//!   times a second.
//! - `live abort URL TOKEN PID CONNECTS`: connections are reset at each stage of the handshake.
//! - `live storm URL TOKEN SECONDS`: projects are renamed as fast as the server allows; prints each acknowledged name.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a benchmark prints its results and reads the clock"
)]

use std::env;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::{SinkExt, StreamExt};
use reqwest::Client;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Members of each circle.
const MEMBERS: usize = 100;

/// One in this many events is sampled for its delay.
const SAMPLE: u64 = 64;

/// Number of concurrent mutations.
const WRITERS: u64 = 16;

const PUBLISHED: &str = "gathering_events_published_total";
const SUBSCRIBERS: &str = "gathering_event_subscribers";

#[derive(Clone)]
struct Api {
    client: Client,
    url: String,
    token: String,
    /// Fields that subscribers select on an event, in addition to `cursor` and `occurredAt`.
    fields: String,
}

impl Api {
    async fn ask(&self, query: &str, variables: Value) -> Option<Value> {
        let body = json!({ "query": query, "variables": variables });
        let url = format!("{}/graphql", self.url);
        let request = self.client.post(url).bearer_auth(&self.token).json(&body);
        let answer: Value = request.send().await.ok()?.json().await.ok()?;
        assert!(answer.get("errors").is_none(), "{answer}");
        Some(answer["data"].clone())
    }

    /// The value of a metric in `/metrics`.
    async fn metric(&self, name: &str) -> f64 {
        let response = self.client.get(format!("{}/metrics", self.url)).send();
        let text = response.await.expect("an answer").text().await;
        let text = text.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.unwrap_or_else(|| panic!("no {name}"));
        number.trim().parse().expect("a number")
    }

    /// Waits until the server has published this many events since its start.
    async fn handed_out(&self, events: f64) {
        while self.metric(PUBLISHED).await < events {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Subscribes with `subscribers` connections, each of which receives `events` events. The first `silent` of them do
    /// not read until `done` is set.
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    async fn listen(
        &self,
        subscribers: u64,
        silent: u64,
        events: u64,
        done: &Arc<AtomicBool>,
    ) -> JoinSet<(bool, Heard)> {
        let mut listeners = JoinSet::new();
        for n in 0..subscribers {
            let mut socket = self.subscribe().await;
            let done = Arc::clone(done);
            listeners.spawn(async move {
                while n < silent && !done.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let sample = (n >= silent).then_some(n % SAMPLE);
                (n < silent, hear(&mut socket, events, sample).await)
            });
        }
        while self.metric(SUBSCRIBERS).await < subscribers as f64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        listeners
    }

    async fn connect(&self) -> TcpStream {
        let address = self.url.replace("http://", "");
        TcpStream::connect(address).await.expect("connects")
    }

    async fn upgrade(&self) -> WebSocketStream<TcpStream> {
        let url = format!("{}/graphql", self.url.replace("http://", "ws://"));
        let mut request = url.into_client_request().expect("a request");
        let protocol = "graphql-transport-ws".parse().expect("a header");
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        let stream = self.connect().await;
        let (socket, _) = client_async(request, stream).await.expect("a WebSocket");
        socket
    }

    async fn init(&self, socket: &mut WebSocketStream<TcpStream>) {
        let payload = json!({ "authorization": format!("Bearer {}", self.token) });
        send(
            socket,
            &json!({ "type": "connection_init", "payload": payload }),
        )
        .await;
    }

    async fn subscribe(&self) -> WebSocketStream<TcpStream> {
        let mut socket = self.upgrade().await;
        self.init(&mut socket).await;
        let ack = socket.next().await.expect("an answer").expect("a message");
        assert!(
            ack.to_text().is_ok_and(|text| text.contains("ack")),
            "{ack}"
        );
        let query = format!(
            "subscription {{ events {{ cursor occurredAt {} }} }}",
            self.fields
        );
        let message = json!({ "id": "1", "type": "subscribe", "payload": { "query": query } });
        send(&mut socket, &message).await;
        socket
    }
}

async fn send(socket: &mut WebSocketStream<TcpStream>, message: &Value) {
    let sent = socket.send(Message::text(message.to_string())).await;
    sent.expect("is sent");
}

/// The resident memory of a process, in MiB.
fn memory(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    kilobytes
        .and_then(|n| n.parse::<u64>().ok())
        .expect("a number")
        / 1024
}

/// The given percentile of sorted values.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn print_delays(mut delays: Vec<f64>) {
    delays.sort_by(f64::total_cmp);
    println!(
        "change to delivery:      {:>8.1} ms median, {:.1} ms p99, {:.1} ms at most",
        percentile(&delays, 50),
        percentile(&delays, 99),
        percentile(&delays, 100)
    );
}

/// Creates circles and returns the elapsed time.
async fn publish(api: &Api, run: &str, circles: u64) -> Duration {
    let query =
        "{ agents(first: 100, orderBy: { field: CREATED_AT, direction: ASC }) { nodes { id } } }";
    let agents = api.ask(query, json!({})).await.expect("an answer");
    let members: Vec<Value> = agents["agents"]["nodes"]
        .as_array()
        .expect("agents")
        .iter()
        .map(|agent| json!({ "agentId": agent["id"] }))
        .collect();
    assert_eq!(members.len(), MEMBERS);
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (api, next, members, run) = (
            api.clone(),
            Arc::clone(&next),
            members.clone(),
            run.to_owned(),
        );
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= circles {
                    return;
                }
                let query = "mutation ($input: CreateCircleInput!) { createCircle(input: $input) { \
                    circle { id } userErrors { message } } }";
                let input =
                    json!({ "name": format!("{run} {n}"), "maxMembers": 100, "members": members });
                let answer = api.ask(query, json!({ "input": input })).await;
                let answer = answer.expect("an answer");
                assert!(
                    answer["createCircle"]["circle"]["id"].is_string(),
                    "{answer}"
                );
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("no panic");
    }
    began.elapsed()
}

/// The result of one subscriber.
struct Heard {
    count: u64,
    /// The close code, if the connection was closed before all events arrived.
    closed: Option<u16>,
    /// Milliseconds from the change to its arrival, of the sampled events.
    delays: Vec<f64>,
}

/// Receives until `events` events have arrived or the server closes the connection.
async fn hear(socket: &mut WebSocketStream<TcpStream>, events: u64, sample: Option<u64>) -> Heard {
    let mut heard = Heard {
        count: 0,
        closed: None,
        delays: Vec::new(),
    };
    while heard.count < events {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                heard.count += 1;
                if sample == Some(heard.count % SAMPLE) {
                    let at = text.find("occurredAt\":\"").expect("a time") + 13;
                    let moment = DateTime::parse_from_rfc3339(&text[at..at + 27]);
                    let delay = Utc::now() - moment.expect("a time").to_utc();
                    heard.delays.push(delay.as_seconds_f64() * 1e3);
                }
            }
            Some(Ok(Message::Close(frame))) => {
                heard.closed = frame.map(|frame| u16::from(frame.code));
                break;
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                heard.closed = Some(1006);
                break;
            }
        }
    }
    heard
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers that are printed with few digits"
)]
async fn fanout(api: Api, pid: String, subscribers: u64, silent: u64, circles: u64) {
    let events = circles * (MEMBERS as u64 + 1);
    println!("memory before:           {:>8} MiB", memory(&pid));
    let before = api.metric(PUBLISHED).await;
    let alone = publish(&api, "alone", circles).await;
    let rate = |took: Duration| events as f64 / took.as_secs_f64();
    println!("published, no listeners: {:>8.0} events/s", rate(alone));

    api.handed_out(before + events as f64).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut listeners = api.listen(subscribers, silent, events, &done).await;
    println!("memory, all subscribed:  {:>8} MiB", memory(&pid));

    let peak = Arc::new(AtomicU64::new(0));
    let (watched, highest) = (pid.clone(), Arc::clone(&peak));
    let sampling = tokio::spawn(async move {
        loop {
            highest.fetch_max(memory(&watched), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let began = Instant::now();
    let took = publish(&api, "together", circles).await;
    println!(
        "published, all listen:   {:>8.0} events/s ({:.2} of the rate without listeners)",
        rate(took),
        alone.as_secs_f64() / took.as_secs_f64()
    );
    let (mut delays, mut received, mut complete) = (Vec::new(), 0, 0);
    let mut left = subscribers - silent;
    let mut told = Vec::new();
    while let Some(ended) = listeners.join_next().await {
        let (is_silent, mut heard) = ended.expect("no panic");
        if is_silent {
            told.push((heard.count, heard.closed));
            continue;
        }
        received += heard.count;
        complete += u64::from(heard.count == events);
        delays.append(&mut heard.delays);
        left -= 1;
        if left == 0 {
            let took = began.elapsed();
            println!(
                "delivered:               {:>8.0} events/s ({received} in {:.1} s; {complete} of {} complete)",
                received as f64 / took.as_secs_f64(),
                took.as_secs_f64(),
                subscribers - silent
            );
            println!(
                "memory, peak:            {:>8} MiB",
                peak.load(Ordering::Relaxed)
            );
            done.store(true, Ordering::Relaxed);
        }
    }
    sampling.abort();
    print_delays(delays);
    println!("silent subscribers (events received afterwards, close code): {told:?}");
    while api.metric(SUBSCRIBERS).await > 0.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let published = api.metric(PUBLISHED).await - before;
    println!(
        "events published:        {published:>8.0} of {}",
        2 * events
    );
    println!("memory after:            {:>8} MiB", memory(&pid));
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers that are printed with few digits"
)]
async fn steady(api: Api, subscribers: u64, rate: u64, seconds: u64) {
    let changes = (rate * seconds).div_ceil(WRITERS);
    let mut projects = Vec::new();
    for writer in 0..WRITERS {
        let made = create_project(&api, &format!("steady {writer}")).await;
        projects.push(made.expect("an answer"));
    }
    // Wait for the earlier events, so that only the measured ones reach the subscribers.
    api.handed_out(WRITERS as f64).await;
    let done = Arc::default();
    let listeners = api.listen(subscribers, 0, WRITERS * changes, &done).await;
    let mut writers = JoinSet::new();
    let pace = Duration::from_secs_f64(WRITERS as f64 / rate as f64);
    let began = Instant::now();
    for (writer, project) in (0..).zip(projects) {
        let api = api.clone();
        writers.spawn(async move {
            let first =
                tokio::time::Instant::now() + pace.mul_f64(f64::from(writer) / WRITERS as f64);
            let mut paces = tokio::time::interval_at(first, pace);
            for change in 0..changes {
                paces.tick().await;
                let name = format!("steady {writer} {change}");
                let renamed = rename_project(&api, &project, &name).await;
                renamed.expect("an answer");
            }
        });
    }
    writers.join_all().await;
    let rate = (WRITERS * changes) as f64 / began.elapsed().as_secs_f64();
    let heard: Vec<Heard> = listeners
        .join_all()
        .await
        .into_iter()
        .map(|(_, heard)| heard)
        .collect();
    let complete = heard
        .iter()
        .filter(|heard| heard.count == WRITERS * changes)
        .count();
    println!(
        "changes:                 {rate:>8.0} a second, received completely by {complete} of {subscribers}"
    );
    print_delays(heard.into_iter().flat_map(|heard| heard.delays).collect());
}

async fn create_project(api: &Api, name: &str) -> Option<Value> {
    let query = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }";
    let made = api.ask(query, json!({ "input": { "name": name } })).await?;
    Some(made["createProject"]["project"]["id"].clone())
}

async fn rename_project(api: &Api, id: &Value, name: &str) -> Option<Value> {
    let query = "mutation ($input: UpdateProjectInput!) { updateProject(input: $input) { project { name } } }";
    let input = json!({ "projectId": id, "name": name });
    api.ask(query, json!({ "input": input })).await
}

async fn abort(api: Api, pid: String, connects: u64) {
    const STAGES: u64 = 7;
    println!("memory before: {:>6} MiB", memory(&pid));
    let mut at_once = JoinSet::new();
    for n in 0..connects {
        if at_once.len() >= 64 {
            at_once.join_next().await;
        }
        let api = api.clone();
        at_once.spawn(async move {
            let break_off = |stream: &TcpStream| {
                // Close with a TCP reset, like a crashed client.
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            };
            match n % STAGES {
                0 => break_off(&api.connect().await),
                1 => {
                    let mut stream = api.connect().await;
                    let _ = stream.write_all(b"GET /graphql HTTP/1.1\r\nUpgr").await;
                    break_off(&stream);
                }
                stage => {
                    let mut socket = api.upgrade().await;
                    if stage >= 3 {
                        api.init(&mut socket).await;
                    }
                    if stage >= 4 {
                        let _ = socket.next().await;
                    }
                    if stage >= 5 {
                        let query = "subscription { events { id } }";
                        let message = json!({ "id": "1", "type": "subscribe", "payload": { "query": query } });
                        send(&mut socket, &message).await;
                    }
                    if stage >= 6 {
                        // An incomplete frame.
                        let _ = socket.get_mut().write_all(&[0x81, 0xfe, 0x10]).await;
                    }
                    break_off(socket.get_ref());
                }
            }
        });
    }
    while let Some(done) = at_once.join_next().await {
        done.expect("no panic");
    }
    let names = [
        "gathering_websocket_connections",
        "gathering_streams{transport=\"websocket\"}",
        "gathering_event_subscribers",
    ];
    let began = Instant::now();
    for name in names {
        while api.metric(name).await > 0.0 {
            assert!(began.elapsed() < Duration::from_mins(1), "{name} is not 0");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    println!(
        "{connects} connections aborted; all closed after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    println!("memory after:  {:>6} MiB", memory(&pid));
}

async fn storm(api: Api, seconds: u64) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut writers = JoinSet::new();
    for writer in 0..64 {
        let api = api.clone();
        writers.spawn(async move {
            let mut count = 0;
            let Some(project) = create_project(&api, &format!("storm {writer}")).await else {
                return count;
            };
            while Instant::now() < deadline {
                let name = format!("storm {writer} {count}");
                if rename_project(&api, &project, &name).await.is_none() {
                    break;
                }
                println!("{name}");
                count += 1;
            }
            count
        });
    }
    let began = Instant::now();
    let mut count: u64 = 0;
    while let Some(done) = writers.join_next().await {
        count += done.expect("no panic");
    }
    eprintln!(
        "{count} changes acknowledged, {} per second",
        u128::from(count) * 1_000 / began.elapsed().as_millis().max(1)
    );
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize| arguments[at].parse().expect("a number");
    let api = Api {
        client: Client::builder().no_proxy().build().expect("a client"),
        url: arguments[1].clone(),
        token: arguments[2].clone(),
        fields: env::var("BENCH_FIELDS").unwrap_or_else(|_| "id type".to_owned()),
    };
    match arguments[0].as_str() {
        "fanout" => {
            let pid = arguments[3].clone();
            fanout(api, pid, number(4), number(5), number(6)).await;
        }
        "steady" => steady(api, number(3), number(4), number(5)).await,
        "abort" => abort(api, arguments[3].clone(), number(4)).await,
        "storm" => storm(api, number(3)).await,
        other => panic!("unknown load: {other}"),
    }
}
