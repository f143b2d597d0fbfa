//! A PostgreSQL connection that breaks during a change: the change is applied as a whole or not at all, the response says
//! which or that the outcome is unknown, and the next change succeeds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;
use url::Url;

use crate::support::database::Database;
use crate::support::server::TestServer;

const TIMEOUT: Duration = Duration::from_secs(1);

/// The fault injected into one message to the database.
#[derive(Clone, Copy)]
enum Fate {
    /// The connection breaks, and the message is lost.
    Lost,
    /// The connection breaks when the message is answered, and the answer is lost.
    Unanswered,
    /// The message arrives after its transaction has exceeded the idle timeout.
    Late,
}

/// The message that the fault applies to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    /// The first message that contains the name of the project.
    Name,
    /// The commit of the transaction with that message.
    Commit,
}

struct Fault {
    name: String,
    message: Message,
    fate: Fate,
}

/// The next fault.
type Plan = Arc<Mutex<Option<Fault>>>;

/// The fault for a message, if it is due. `is_named` is set once the connection has sent the fault's name.
fn fate(plan: &Plan, message: &[u8], is_named: &mut bool) -> Option<Fate> {
    let has = |text: &str| {
        message
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let mut plan = plan.lock().expect("no test has failed");
    let fault = plan.take_if(|fault| {
        *is_named |= has(&fault.name);
        *is_named && (fault.message == Message::Name || has("COMMIT"))
    });
    fault.map(|fault| fault.fate)
}

/// The URL of a proxy in front of the database that injects the planned fault.
async fn behind_a_proxy(database: &Database, plan: &Plan) -> Url {
    let (listener, url, target) = database.proxy().await;
    let plan = Arc::clone(plan);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(target.clone()).await.expect("connects");
            tokio::spawn(pass_on(client, server, Arc::clone(&plan)));
        }
    });
    url
}

async fn pass_on(mut client: TcpStream, mut server: TcpStream, plan: Plan) {
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut is_named = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(1..) = read else { return };
                let message = &asked[..read.unwrap_or_default()];
                let fate = fate(&plan, message, &mut is_named);
                match fate {
                    Some(Fate::Lost) => return,
                    Some(Fate::Late) => sleep(2 * TIMEOUT).await,
                    _ => {}
                }
                if server.write_all(message).await.is_err() {
                    return;
                }
                if let Some(Fate::Unanswered) = fate {
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(1..) = read else { return };
                if client.write_all(&answered[..read.unwrap_or_default()]).await.is_err() {
                    return;
                }
            }
        }
    }
}

struct Broken {
    server: TestServer,
    db: DatabaseConnection,
    token: String,
    plan: Plan,
}

impl Broken {
    /// `None` on SQLite, which has no network connection.
    async fn new() -> Option<Self> {
        let database = Database::seeded().await.only_on_postgres()?;
        let plan = Plan::default();
        let url = behind_a_proxy(&database, &plan).await;
        let db = database.connect().await;
        let server = TestServer::on(database, |config| {
            config.database.url = url.as_str().parse().expect("a URL");
            config.database.statement_timeout = TIMEOUT;
        })
        .await;
        let token = server.token("demo@example.com").await;
        let broken = Self {
            server,
            db,
            token,
            plan,
        };
        let created = broken.create("Before", None, None).await;
        assert!(is_created(&created), "{created}");
        Some(broken)
    }

    async fn create(&self, name: &str, key: Option<&str>, fault: Option<(Message, Fate)>) -> Value {
        let query = "mutation ($input: CreateProjectInput!) { createProject(input: $input) {
            project { id } userErrors { code } } }";
        self.mutate(query, name, key, fault).await
    }

    /// Creates an agent, which is a single statement.
    async fn create_agent(&self, name: &str, fate: Option<Fate>) -> Value {
        let query = "mutation ($input: CreateAgentInput!) { createAgent(input: $input) {
            agent { id } userErrors { code } } }";
        let fault = fate.map(|fate| (Message::Name, fate));
        self.mutate(query, name, None, fault).await
    }

    async fn mutate(
        &self,
        query: &str,
        name: &str,
        key: Option<&str>,
        fault: Option<(Message, Fate)>,
    ) -> Value {
        *self.plan.lock().expect("no test has failed") = fault.map(|(message, fate)| Fault {
            name: name.to_owned(),
            message,
            fate,
        });
        let body = json!({ "query": query, "variables": { "input": { "name": name } } });
        let mut request = self.server.request(Method::POST, "/graphql").json(&body);
        request = request.bearer_auth(&self.token);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = request.send().await.expect("an answer");
        let is_done = self.plan.lock().expect("no test has failed").is_none();
        assert!(is_done, "the message was not seen");
        answer.json().await.expect("JSON")
    }

    /// The number of projects and agents with that name, and of events about them.
    async fn saved(&self, name: &str) -> (i64, i64) {
        let select = format!(
            "SELECT (SELECT count(*) FROM projects WHERE name = '{name}')
                + (SELECT count(*) FROM agents WHERE name = '{name}'),
            (SELECT count(*) FROM events WHERE payload->>'name' = '{name}')"
        );
        let select = Statement::from_string(DbBackend::Postgres, select);
        let row = self.db.query_one_raw(select).await.expect("is asked");
        let row = row.expect("a row");
        let count = |column| row.try_get_by_index(column).expect("a number");
        (count(0), count(1))
    }
}

fn is_created(answer: &Value) -> bool {
    answer["data"]["createProject"]["project"]["id"].is_string()
}

/// Whether the response says that the outcome is unknown.
fn is_unknown(answer: &Value) -> bool {
    let extensions = &answer["errors"][0]["extensions"];
    extensions["code"] == "UNAVAILABLE" && extensions["outcome"] == "UNKNOWN"
}

#[tokio::test]
async fn the_outcome_of_a_commit_without_a_response_is_reported_as_unknown() {
    let Some(broken) = Broken::new().await else {
        return;
    };
    for (name, fate, made) in [("Unanswered", Fate::Unanswered, 1), ("Lost", Fate::Lost, 0)] {
        let answer = broken
            .create(name, None, Some((Message::Commit, fate)))
            .await;
        assert!(is_unknown(&answer), "{name}: {answer}");
        assert_eq!(broken.saved(name).await, (made, made), "{name}");
        let next = broken.create(&format!("After {name}"), None, None).await;
        assert!(is_created(&next), "{next}");
    }
}

#[tokio::test]
async fn the_outcome_of_a_statement_that_commits_without_a_response_is_reported_as_unknown() {
    let Some(broken) = Broken::new().await else {
        return;
    };
    for (name, fate, made) in [("Unanswered", Fate::Unanswered, 1), ("Lost", Fate::Lost, 0)] {
        let answer = broken.create_agent(name, Some(fate)).await;
        assert!(is_unknown(&answer), "{name}: {answer}");
        assert_eq!(broken.saved(name).await, (made, made), "{name}");
        let next = broken.create_agent(&format!("After {name}"), None).await;
        let agent = &next["data"]["createAgent"]["agent"]["id"];
        assert!(agent.is_string(), "{next}");
    }
}

#[tokio::test]
async fn an_idempotency_key_applies_a_change_once_after_a_broken_commit() {
    let Some(broken) = Broken::new().await else {
        return;
    };
    for (name, fate) in [("Unanswered", Fate::Unanswered), ("Lost", Fate::Lost)] {
        let answer = broken
            .create(name, Some(name), Some((Message::Commit, fate)))
            .await;
        let first = is_created(&answer);
        for _ in 0..2 {
            let again = broken.create(name, Some(name), None).await;
            assert!(is_created(&again), "{name}, {first}: {again}");
        }
        assert_eq!(broken.saved(name).await, (1, 1), "{name}");
    }
}

#[tokio::test]
async fn a_connection_lost_before_the_commit_leaves_no_partial_change() {
    let Some(broken) = Broken::new().await else {
        return;
    };
    for (name, fate) in [
        ("Lost", Fate::Lost),
        ("Unanswered", Fate::Unanswered),
        ("Late", Fate::Late),
    ] {
        let answer = broken.create(name, None, Some((Message::Name, fate))).await;
        let made = i64::from(is_created(&answer));
        if made == 0 {
            let code = &answer["errors"][0]["extensions"]["code"];
            assert_eq!(code, "UNAVAILABLE", "{name}: {answer}");
            assert!(!is_unknown(&answer), "{name}: {answer}");
        }
        assert_eq!(broken.saved(name).await, (made, made), "{name}");
        let next = broken.create(&format!("After {name}"), None, None).await;
        assert!(is_created(&next), "{next}");
    }
}
