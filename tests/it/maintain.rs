//! The commands that check and copy a database, `doctor` and `backup`, and the reference of the settings.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use futures_util::future::join_all;
use gathering::config::Config;
use gathering_entity::journal;
use sea_orm::{ConnectionTrait, EntityTrait};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;
use uuid::Uuid;

use crate::support::actor::{ADMIN, Actor};
use crate::support::database::{Database, PASSWORD};
use crate::support::program::{Running, gathering, refusal, run, text};

/// The findings of `doctor`: verdict and name of each, and the whole output.
fn findings(output: &Output) -> (Vec<(&str, &str)>, &str) {
    let all = text(&output.stdout);
    let findings = all.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let verdict = words
            .next()
            .filter(|word| ["ok", "warn", "FAIL"].contains(word))?;
        Some((verdict, words.next()?))
    });
    (findings.collect(), all)
}

#[tokio::test]
async fn doctor_finds_no_failure_in_a_good_configuration() {
    let database = Database::seeded().await;
    let output = run(gathering("doctor").env("DATABASE_URL", database.url())).await;
    let (found, all) = findings(&output);
    assert!(output.status.success(), "{output:?}");
    for name in ["settings", "keys", "database", "migrations"] {
        assert!(found.contains(&("ok", name)), "{name}: {all}");
    }
    let other = if database.is_postgres() {
        ["connections", "clock"]
    } else {
        ["disk", "files"]
    };
    for name in other {
        assert!(found.iter().any(|found| found.1 == name), "{name}: {all}");
    }
    assert!(all.contains("no check failed"), "{all}");
}

#[tokio::test]
async fn doctor_creates_no_database_and_no_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut doctor = gathering("doctor");
    doctor
        .env_remove("GATHERING__AUTH__SIGNING_KEY")
        .env("XDG_DATA_HOME", folder.path());
    let output = run(&mut doctor).await;
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("does not exist yet"));
    assert_eq!(fs::read_dir(folder.path()).expect("is read").count(), 0);
}

#[tokio::test]
async fn doctor_reports_pending_migrations_a_weak_key_and_a_missing_redis() {
    let database = Database::bare().await;
    // The port is free again afterwards.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let redis = format!("redis://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let mut doctor = gathering("doctor");
    doctor
        .env("DATABASE_URL", database.url())
        .env("GATHERING__AUTH__SIGNING_KEY", "short")
        .env("REDIS_URL", redis);
    let output = run(&mut doctor).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (found, all) = findings(&output);
    for name in ["keys", "redis"] {
        assert!(found.contains(&("FAIL", name)), "{name}: {all}");
    }
    if database.is_postgres() {
        assert!(found.contains(&("FAIL", "migrations")), "{all}");
        assert!(all.contains("gathering migrate"), "{all}");
    }
    let error = text(&output.stderr);
    assert!(error.starts_with("error: checks failed: "), "{error}");
}

#[tokio::test]
async fn doctor_reports_a_damaged_file() {
    let Some(database) = Database::seeded().await.only_on_sqlite() else {
        return;
    };
    let file = database.file().expect("a file");
    let mut bytes = fs::read(&file).expect("is read");
    // Pages after the first one, which contains the schema.
    let end = bytes.len();
    bytes[40_000..end - 4_096].fill(0xAA);
    fs::write(&file, bytes).expect("is written");
    let output = run(gathering("doctor").env("DATABASE_URL", database.url())).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (found, all) = findings(&output);
    assert!(found.contains(&("FAIL", "database")), "{all}");
    assert!(all.contains("is damaged"), "{all}");
}

const CREATE: &str =
    "mutation ($name: String!) { createProject(input: { name: $name }) { project { id } } }";

#[tokio::test]
async fn a_backup_during_writes_contains_every_earlier_change() {
    let Some(database) = Database::seeded().await.only_on_sqlite() else {
        return;
    };
    let server =
        Running::start(gathering("serve --listen 127.0.0.1:0").env("DATABASE_URL", database.url()))
            .await;
    let tokens = Actor::new(&server.url).login(ADMIN, PASSWORD).await;
    let admin = Actor::new(&server.url).with(&tokens.access);
    let create = async |name: String| {
        let data = admin.ask(CREATE, json!({ "name": name })).await;
        data["createProject"]["project"]["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    };
    let before = join_all((0..20).map(|n| create(format!("Before {n}")))).await;

    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy.db");
    let arguments = format!("backup {}", copy.display());
    let mut backup = gathering(&arguments);
    backup.env("DATABASE_URL", database.url());
    let (output, _) = tokio::join!(
        run(&mut backup),
        join_all((0..40).map(|n| create(format!("During {n}"))))
    );
    assert!(output.status.success(), "{output:?}");
    let mode = fs::metadata(&copy).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = refusal(&mut backup).await;
    assert!(again.contains("choose another file"), "{again}");
    let files = fs::read_dir(folder.path()).expect("is read").count();
    assert_eq!(files, 1, "no temporary file is left");

    let url = format!("sqlite://{}", copy.display());
    let doctor = run(gathering("doctor").env("DATABASE_URL", &url)).await;
    assert!(doctor.status.success(), "{doctor:?}");
    let restored =
        Running::start(gathering("serve --listen 127.0.0.1:0").env("DATABASE_URL", &url)).await;
    let list = "{ projects(first: 100) { nodes { id } } }";
    let restored = Actor::new(&restored.url).with(&tokens.access);
    let data: Value = restored.ask(list, json!({})).await;
    let epoch = async |url: &str| {
        let db = sea_orm::Database::connect(url).await.expect("connects");
        let journal = journal::Entity::find().one(&db).await.expect("reads");
        db.close().await.expect("closes");
        journal.expect("a row").epoch
    };
    assert_ne!(epoch(&url).await, epoch(database.url()).await);
    let nodes = data["projects"]["nodes"]
        .as_array()
        .expect("projects")
        .iter();
    let ids: HashSet<_> = nodes.filter_map(|node| node["id"].as_str()).collect();
    for id in &before {
        assert!(ids.contains(id.as_str()), "{id} is missing");
    }
}

#[tokio::test]
async fn backup_names_the_tool_of_postgresql_and_creates_no_database() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy");
    let arguments = format!("backup {}", copy.display());
    let url = "postgres://me:secret@127.0.0.1:1/gathering";
    let error = refusal(gathering(&arguments).env("DATABASE_URL", url)).await;
    assert!(
        error.contains("pg_dump") && !error.contains("secret"),
        "{error}"
    );

    let missing = folder.path().join("missing.db");
    let url = format!("sqlite://{}", missing.display());
    let error = refusal(gathering(&arguments).env("DATABASE_URL", url)).await;
    assert!(error.contains("does not exist"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).expect("is read").count(), 0);
}

#[test]
fn the_reference_of_the_settings_is_current() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/settings.toml");
    let reference = Config::default().show();
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(file, &reference).expect("is written");
    }
    let committed = fs::read_to_string(file).expect("is read");
    assert!(committed == reference, "rerun with UPDATE_SNAPSHOTS=1");
}

#[tokio::test]
async fn a_role_without_the_right_to_migrate_serves_a_migrated_database() {
    let Some(database) = Database::seeded().await.only_on_postgres() else {
        return;
    };
    let db = database.connect().await;
    let role = format!("serves_{}", Uuid::now_v7().simple());
    let tables = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public";
    for statement in [
        format!("CREATE ROLE {role} LOGIN PASSWORD '{role}'"),
        format!("GRANT {tables} TO {role}"),
    ] {
        db.execute_unprepared(&statement)
            .await
            .expect("is executed");
    }
    let as_role = |database: &Database| {
        let mut url = Url::parse(database.url()).expect("a URL");
        url.set_username(&role).expect("is set");
        url.set_password(Some(&role)).expect("is set");
        url
    };
    let url = as_role(&database);
    let output = run(gathering("doctor").env("DATABASE_URL", url.as_str())).await;
    let (found, all) = findings(&output);
    assert!(output.status.success(), "{output:?}");
    assert!(found.contains(&("ok", "privileges")), "{all}");
    let mut serve = gathering("serve --migrate --listen 127.0.0.1:0");
    let mut server = Running::start(serve.env("DATABASE_URL", url.as_str())).await;
    let admin = Actor::new(&server.url).signed_in(ADMIN).await;
    let data = admin.ask(CREATE, json!({ "name": "Served" })).await;
    assert!(data["createProject"]["project"]["id"].is_string(), "{data}");
    server.signal("INT");
    server.ends().await;

    let bare = Database::bare().await;
    let url = as_role(&bare);
    let error = refusal(gathering("migrate").env("DATABASE_URL", url.as_str())).await;
    assert!(error.contains("owner"), "{error}");
    for statement in [format!("DROP OWNED BY {role}"), format!("DROP ROLE {role}")] {
        db.execute_unprepared(&statement)
            .await
            .expect("is executed");
    }
}
