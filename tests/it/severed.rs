//! A PostgreSQL connection that breaks during a change: the change is applied as a whole or not at all, the response says
//! which or that the outcome is unknown, and the next change succeeds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use url::Url;

use crate::database::Database;
use crate::server::TestServer;

const COMMIT: &str = "COMMIT";
const INSERT: &str = "INSERT INTO \"projects\"";
const TIMEOUT: Duration = Duration::from_secs(1);

/// The fault injected into one message to the database.
#[derive(Clone, Copy)]
enum Fate {
    /// The connection breaks, and the message is lost.
    Lost,
    /// The connection breaks when the message is answered, and the answer is lost.
    Unanswered,
    /// The message arrives when its transaction has been idle for too long.
    Late,
}

/// The next fault, and the text of the message that it applies to.
type Plan = Arc<Mutex<Option<(&'static str, Fate)>>>;

/// The URL of a proxy in front of the database that injects the planned fault.
async fn behind_a_proxy(database: &Database, plan: &Plan) -> Url {
    let mut url = Url::parse(database.url()).expect("a URL");
    let target = (
        url.host_str().expect("a host").to_owned(),
        url.port().unwrap_or(5432),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    url.set_host(Some("127.0.0.1")).expect("is set");
    url.set_port(Some(port)).expect("is set");
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
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(1..) = read else { return };
                let message = &asked[..read.unwrap_or_default()];
                let fate = plan.lock().expect("no test has failed").take_if(|(text, _)| {
                    message.windows(text.len()).any(|part| part == text.as_bytes())
                });
                match fate {
                    Some((_, Fate::Lost)) => return,
                    Some((_, Fate::Late)) => sleep(2 * TIMEOUT).await,
                    _ => {}
                }
                if server.write_all(message).await.is_err() {
                    return;
                }
                if let Some((_, Fate::Unanswered)) = fate {
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
        let database = Database::seeded().await;
        if !database.url().starts_with("postgres") {
            return None;
        }
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

    async fn create(
        &self,
        name: &str,
        key: Option<&str>,
        fate: Option<(&'static str, Fate)>,
    ) -> Value {
        *self.plan.lock().expect("no test has failed") = fate;
        let query = "mutation ($input: CreateProjectInput!) { createProject(input: $input) {
            project { id } userErrors { code } } }";
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

    async fn projects(&self, name: &str) -> i64 {
        let select = format!("SELECT count(*) FROM projects WHERE name = '{name}'");
        let select = Statement::from_string(DbBackend::Postgres, select);
        let row = self.db.query_one_raw(select).await.expect("is asked");
        let count = row.expect("a row").try_get_by_index(0);
        count.expect("a number")
    }

    async fn events(&self, name: &str) -> i64 {
        let select = format!("SELECT count(*) FROM events WHERE payload->>'name' = '{name}'");
        let select = Statement::from_string(DbBackend::Postgres, select);
        let row = self.db.query_one_raw(select).await.expect("is asked");
        let count = row.expect("a row").try_get_by_index(0);
        count.expect("a number")
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
async fn a_commit_without_an_answer_may_have_been_made_and_is_made_once() {
    let Some(broken) = Broken::new().await else {
        return;
    };
    for (name, fate, made) in [("Unanswered", Fate::Unanswered, 1), ("Lost", Fate::Lost, 0)] {
        let answer = broken.create(name, None, Some((COMMIT, fate))).await;
        assert!(is_unknown(&answer), "{name}: {answer}");
        assert_eq!(broken.projects(name).await, made);
        assert_eq!(broken.events(name).await, made);
        let next = broken.create(&format!("After {name}"), None, None).await;
        assert!(is_created(&next), "{next}");
    }
}

#[tokio::test]
async fn a_key_makes_a_change_once_whatever_became_of_its_commit() {
    let Some(broken) = Broken::new().await else {
        return;
    };
    for (name, fate) in [("Unanswered", Fate::Unanswered), ("Lost", Fate::Lost)] {
        // The first commit is that of the key.
        let answer = broken.create(name, Some(name), Some((COMMIT, fate))).await;
        let first = is_created(&answer);
        for _ in 0..2 {
            let again = broken.create(name, Some(name), None).await;
            assert!(is_created(&again), "{name}, {first}: {again}");
        }
        assert_eq!(broken.projects(name).await, 1, "{name}");
        assert_eq!(broken.events(name).await, 1, "{name}");
    }
}

#[tokio::test]
async fn a_change_whose_connection_breaks_before_its_commit_leaves_nothing_behind() {
    let Some(broken) = Broken::new().await else {
        return;
    };
    for (name, fate) in [
        ("Lost", Fate::Lost),
        ("Unanswered", Fate::Unanswered),
        ("Late", Fate::Late),
    ] {
        let answer = broken.create(name, None, Some((INSERT, fate))).await;
        let made = i64::from(is_created(&answer));
        if made == 0 {
            let code = &answer["errors"][0]["extensions"]["code"];
            assert_eq!(code, "UNAVAILABLE", "{name}: {answer}");
            assert!(!is_unknown(&answer), "{name}: {answer}");
        }
        assert_eq!(broken.projects(name).await, made, "{name}");
        assert_eq!(broken.events(name).await, made, "{name}");
        let next = broken.create(&format!("After {name}"), None, None).await;
        assert!(is_created(&next), "{next}");
    }
}
