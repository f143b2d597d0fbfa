//! The program: its output, errors, configuration and start.

use std::fs;
use std::path::Path;

use reqwest::StatusCode;
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::support::actor::client;
use crate::support::database::Database;
use crate::support::program::{Running, ends, gathering, refusal, run, signal, text};
use crate::support::server::{TestServer, until_ready_is};
use crate::support::wait::until;

#[tokio::test]
async fn help_lists_commands_and_variables() {
    let output = run(&mut gathering("--help")).await;
    assert!(output.status.success());
    let help = text(&output.stdout);
    for word in [
        "serve",
        "migrate",
        "seed",
        "demo",
        "schema",
        "config",
        "--config",
        "DATABASE_URL",
        "GATHERING_CONFIG",
        "GATHERING__SECTION__KEY",
        "gathering serve --listen 127.0.0.1:0",
    ] {
        assert!(help.contains(word), "{word}");
    }
}

#[tokio::test]
async fn configuration_comes_from_file_and_environment_and_hides_secrets() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gathering.toml");
    let toml = "[server]\ngrace = \"7s\"\nlisten = \"127.0.0.1:1\"\n[graphql]\ndepth = 9\n";
    fs::write(&file, toml).expect("is written");
    let mut command = gathering("config");
    command
        .env("GATHERING_CONFIG", &file)
        .env("DATABASE_URL", "postgres://me:hidden1@localhost/gathering")
        .env("GATHERING_DEMO_PASSWORD", "hidden2!")
        .env("GATHERING__SERVER__LISTEN", "127.0.0.1:2");
    let output = run(&mut command).await;
    assert!(output.status.success(), "{output:?}");
    let shown = text(&output.stdout);
    assert!(!shown.contains("hidden"), "{shown}");

    let shown: toml::Table = shown.parse().expect("is TOML");
    assert_eq!(shown["server"]["grace"].as_str(), Some("7s"));
    assert_eq!(shown["server"]["listen"].as_str(), Some("127.0.0.1:2"));
    assert_eq!(shown["graphql"]["depth"].as_integer(), Some(9));
    assert_eq!(
        shown["database"]["url"].as_str(),
        Some("postgres://me:***@localhost/gathering")
    );
}

#[tokio::test]
async fn unknown_settings_are_refused_with_a_suggestion() {
    let variable =
        refusal(gathering("config").env("GATHERING__SERVER__LISEN", "127.0.0.1:0")).await;
    assert!(
        variable.contains("did you mean GATHERING__SERVER__LISTEN?"),
        "{variable}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gathering.toml");
    for (toml, suggestion) in [
        (
            "[server]\nlisen = 1",
            "server.lisen is not a key; did you mean server.listen?",
        ),
        ("[databse]\nurl = ''", "did you mean database.url?"),
        ("listen = ''", "did you mean server.listen?"),
        ("[nothing]", "[nothing] is not a section"),
    ] {
        fs::write(&file, toml).expect("is written");
        let line = refusal(gathering("config --config").arg(&file)).await;
        assert!(line.contains(suggestion), "{line}");
    }
}

#[tokio::test]
async fn an_invalid_setting_is_refused_by_name() {
    for (name, value, why) in [
        (
            "GATHERING__SERVER__LISTEN",
            "8000",
            "must be an address and port such as",
        ),
        (
            "GATHERING__SERVER__PLAYGROUND",
            "maybe",
            "must be true or false",
        ),
        (
            "GATHERING__GRAPHQL__TIMEOUT",
            "15",
            "must be a duration such as",
        ),
        ("GATHERING__GRAPHQL__DEPTH", "-1", "must be a whole number"),
        (
            "GATHERING__GRAPHQL__DEPTH",
            "0",
            "must be from 1 to 100, not 0",
        ),
        (
            "GATHERING__GRAPHQL__USAGE",
            "all",
            "must be one of everyone, admin, off",
        ),
        (
            "DATABASE_URL",
            "mysql://localhost/gathering",
            "must be sqlite://",
        ),
    ] {
        let line = refusal(gathering("config").env(name, value)).await;
        assert!(line.starts_with(&format!("{name} {why}")), "{line}");
    }
    let secret = "postgres://me:hid#den@localhost/gathering";
    let line = refusal(gathering("serve").env("DATABASE_URL", secret)).await;
    assert!(
        line.contains("percent-encoded") && !line.contains("hid"),
        "{line}"
    );
}

#[tokio::test]
async fn an_unusable_database_is_reported_in_one_line_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| format!("sqlite://{}/{name}", folder.path().display());
    fs::write(
        folder.path().join("text"),
        "This is no database, but long enough to be one.".repeat(99),
    )
    .expect("is written");
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds")
        .local_addr()
        .expect("a port");

    for (url, why) in [
        (path("text"), "is not a SQLite database: move it away"),
        (path(""), "is a directory: set the path of a file"),
        (path("text/below.db"), "cannot be created"),
        (
            format!("postgres://me:hidden@{free}/gathering"),
            "start it, or correct DATABASE_URL",
        ),
    ] {
        let line = refusal(gathering("serve --listen 127.0.0.1:0").env("DATABASE_URL", &url)).await;
        assert!(line.contains(why), "{line}");
        assert!(!line.contains("hidden"), "{line}");
    }
}

#[tokio::test]
async fn refusals_of_postgres_are_reported() {
    let Some(database) = Database::empty().await.only_on_postgres() else {
        return;
    };
    let url = url::Url::parse(database.url()).expect("a URL");
    let mut nameless = url.clone();
    nameless.set_path("no_such_database");
    let mut stranger = url;
    stranger.set_username("no_such_user").expect("has a host");
    for (url, why) in [
        (nameless, "has no database \"no_such_database\": create it"),
        (stranger, "\"no_such_user\""),
    ] {
        let line =
            refusal(gathering("serve --listen 127.0.0.1:0").env("DATABASE_URL", url.as_str()))
                .await;
        assert!(line.contains(why), "{line}");
    }
}

#[tokio::test]
async fn a_locked_sqlite_database_is_refused_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/locked.db?mode=rwc", folder.path().display());
    let other = sea_orm::Database::connect(&url).await.expect("connects");
    other
        .execute_unprepared("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")
        .await
        .expect("locks");
    let line = refusal(gathering("serve --listen 127.0.0.1:0").env("DATABASE_URL", &url)).await;
    assert!(line.contains("is locked by another process"), "{line}");
}

#[tokio::test]
async fn a_read_only_sqlite_database_is_served() {
    let Some(database) = Database::seeded().await.only_on_sqlite() else {
        return;
    };
    let url = database.url().replace("mode=rwc", "mode=ro");
    let url = url.parse().expect("a database URL");
    let server = TestServer::on(database, |config| config.database.url = url).await;
    // Signing in would write, but a token that another server has signed with the same key is valid.
    let token = TestServer::start().await.token("demo@example.com").await;
    let caller = server.with_token(&token);
    let answer = caller.answer("{ viewer { name } }", json!({})).await;
    assert_eq!(answer["data"]["viewer"]["name"], "Dana Demo", "{answer}");
}

/// The response to a query.
pub(crate) async fn ask(url: &str, query: &str) -> Value {
    ask_as(None, url, query).await
}

async fn ask_as(token: Option<&str>, url: &str, query: &str) -> Value {
    let mut request = client()
        .post(format!("{url}/graphql"))
        .json(&json!({ "query": query }));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON")
}

#[tokio::test]
async fn an_unusable_manifest_is_named_in_the_error() {
    let database = Database::empty().await;
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = folder.path().join("manifest.json");
    for (json, why) in [
        (None, "cannot be read"),
        (Some("[]"), "must be a JSON object from id to document"),
    ] {
        if let Some(json) = json {
            fs::write(&manifest, json).expect("is written");
        }
        let mut command = gathering("serve --listen 127.0.0.1:0");
        command
            .env("DATABASE_URL", database.url())
            .env("GATHERING__GRAPHQL__TRUSTED_DOCUMENTS", "enforce")
            .env("GATHERING__GRAPHQL__MANIFEST", &manifest);
        let line = refusal(&mut command).await;
        assert!(
            line.starts_with("graphql.manifest: ") && line.contains(why),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_port_in_use_is_named_in_the_error() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = taken.local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/gathering.db", folder.path().display());
    let line =
        refusal(gathering(&format!("serve --listen {address}")).env("DATABASE_URL", url)).await;
    assert!(
        line.contains(&format!("cannot listen on {address}: the port is in use")),
        "{line}"
    );
}

/// A demo whose data is in this folder.
pub(crate) fn demo(temporary: &TempDir) -> Command {
    let mut command = gathering("demo");
    command
        .env("TMPDIR", temporary.path())
        .env("GATHERING__SERVER__LISTEN", "127.0.0.1:0");
    command
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}

#[tokio::test]
async fn the_demo_runs_without_setup_and_leaves_no_files_behind() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut demo = Running::start(&mut demo(&temporary)).await;
    assert_eq!(demo.line().await, "email: demo@example.com");
    assert_eq!(demo.line().await, "password: gathering-demo");
    let token = demo.line().await;
    let token = token.strip_prefix("token: ").expect("a token");
    assert!(!is_empty(temporary.path()));

    // Every printed query works. A query is an indented block below its title.
    let mut queries: Vec<String> = Vec::new();
    while queries.len() < 3 || !queries[2].ends_with("} }") {
        let line = demo.line().await;
        match line.strip_prefix("  ") {
            Some(title) if title.starts_with('#') => queries.push(String::new()),
            Some(code) => queries.last_mut().expect("a title").push_str(code),
            None => {}
        }
    }
    for query in queries {
        let answer = ask_as(Some(token), &demo.url, &query).await;
        assert!(
            answer["data"].is_object() && answer["errors"].is_null(),
            "{query}: {answer}"
        );
    }

    demo.signal("INT");
    demo.ends().await;
    assert!(is_empty(temporary.path()));
}

#[tokio::test]
async fn the_demo_uses_another_port_if_its_own_is_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = taken.local_addr().expect("an address").to_string();
    let temporary = tempfile::tempdir().expect("a folder");
    let demo = Running::start(demo(&temporary).env("GATHERING__SERVER__LISTEN", &address)).await;
    assert!(!demo.url.ends_with(&address));
    assert_eq!(
        ask(&demo.url, "{ __typename }").await["data"],
        json!({ "__typename": "Query" })
    );
}

#[tokio::test]
async fn an_invalid_redis_url_is_reported_without_its_value() {
    let database = Database::empty().await;
    for url in [
        "redis://:hidden@127.0.0.1:none",
        "http://:hidden@127.0.0.1",
        "hidden",
    ] {
        let mut command = gathering("serve --listen 127.0.0.1:0");
        command
            .env("DATABASE_URL", database.url())
            .env("REDIS_URL", url);
        let line = refusal(&mut command).await;
        assert!(
            line.starts_with("REDIS_URL cannot be used") && !line.contains("hidden"),
            "{line}"
        );
    }
}

/// A server on a SQLite database without tables, which cannot finish starting while another transaction writes.
async fn kept_from_starting(database: &Database) -> (Command, String, DatabaseTransaction) {
    let db = database.connect().await;
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let writing = db.begin_with_options(options).await.expect("begins");
    let free = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = free.local_addr().expect("an address");
    let mut command = gathering(&format!("serve --listen {address}"));
    command.env("DATABASE_URL", database.url());
    (command, format!("http://{address}"), writing)
}

async fn until_alive(url: &str) {
    until(format!("a server at {url}"), async || {
        client()
            .get(format!("{url}/health/live"))
            .send()
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_starting_server_is_live_but_not_ready() {
    let Some(database) = Database::bare().await.only_on_sqlite() else {
        return;
    };
    let (mut command, url, writing) = kept_from_starting(&database).await;
    let observe = async {
        until_alive(&url).await;
        let ready = client()
            .get(format!("{url}/health/ready"))
            .send()
            .await
            .expect("an answer");
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            ready.text().await.expect("a body"),
            r#"{"status":"starting"}"#
        );
        let answer = ask(&url, "{ __typename }").await;
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "UNAVAILABLE",
            "{answer}"
        );
        writing.rollback().await.expect("ends");
    };
    let (server, ()) = tokio::join!(Running::start(&mut command), observe);
    until_ready_is(&format!("{}/health/ready", server.url), StatusCode::OK).await;
}

#[tokio::test]
async fn a_starting_server_can_be_stopped() {
    let Some(database) = Database::bare().await.only_on_sqlite() else {
        return;
    };
    let (mut command, url, _writing) = kept_from_starting(&database).await;
    let mut child = command.spawn().expect("runs");
    until_alive(&url).await;
    signal(&child, "TERM");
    ends(&mut child).await;
}

#[tokio::test]
async fn two_servers_started_concurrently_migrate_once() {
    let database = Database::bare().await;
    let serve = || {
        let mut command = gathering("serve --migrate --listen 127.0.0.1:0");
        command.env("DATABASE_URL", database.url());
        command
    };
    let (mut first, mut second) = (serve(), serve());
    let (first, second) = tokio::join!(Running::start(&mut first), Running::start(&mut second));
    for server in [first, second] {
        let status = client()
            .get(format!("{}/health/ready", server.url))
            .send()
            .await
            .expect("an answer")
            .status();
        assert_eq!(status, StatusCode::OK);
    }
    let db = database.connect().await;
    assert_eq!(
        gathering_migration::pending(&db).await.expect("is asked"),
        0
    );
}

#[tokio::test]
async fn postgres_is_migrated_only_on_request() {
    let Some(database) = Database::bare().await.only_on_postgres() else {
        return;
    };
    let serve = || {
        let mut command = gathering("serve --listen 127.0.0.1:0");
        command.env("DATABASE_URL", database.url());
        command
    };
    let line = refusal(&mut serve()).await;
    assert!(line.contains("run `gathering migrate`"), "{line}");
    let seed = refusal(gathering("seed").env("DATABASE_URL", database.url())).await;
    assert!(seed.contains("run `gathering migrate`"), "{seed}");
    Running::start(serve().arg("--migrate")).await;
}

#[tokio::test]
async fn migrations_can_be_applied_and_reverted() {
    let database = Database::bare().await;
    for (arguments, said) in [
        ("migrate status", "pending migrations: "),
        ("migrate", "applied migrations: "),
        ("migrate up", "applied migrations: 0"),
        ("migrate status", "up to date"),
        ("seed", "contains the demo data"),
        ("seed", "contains the demo data"),
        (
            "migrate down --delete-all-data",
            "all migrations are reverted",
        ),
        ("migrate status", "pending migrations: "),
    ] {
        let output = run(gathering(arguments).env("DATABASE_URL", database.url())).await;
        assert!(output.status.success(), "{arguments}: {output:?}");
        assert!(
            text(&output.stdout).contains(said),
            "{arguments}: {output:?}"
        );
    }
    let output = run(gathering("migrate down").env("DATABASE_URL", database.url())).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test]
async fn the_schema_is_printed_without_a_database() {
    let output = run(gathering("schema").env("DATABASE_URL", "postgres://127.0.0.1:1/none")).await;
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("type Query"));
}
