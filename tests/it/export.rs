//! `export` and `import`: between SQLite and PostgreSQL, interrupted, damaged, and of one circle.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use chrono::{SubsecRound, Utc};
use gathering_entity::revoked_token::{self, RevocationReason};
use gathering_entity::{agent, circle, collaborator, conversation, message, task, user};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter,
    QueryOrder, Set,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::actor::{ADMIN, GUEST, OWNER};
use crate::support::database::{Database, PASSWORD};
use crate::support::program::{gathering, refusal, run, text, typing};
use crate::support::server::TestServer;
use crate::support::world;

/// A folder for exports.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes an export, and returns its lines.
    async fn export(&self, database: &Database, name: &str, arguments: &str) -> Vec<String> {
        let file = self.file(name);
        let arguments = format!("export {arguments} {}", file.display());
        let output = run(gathering(&arguments).env("DATABASE_URL", database.url())).await;
        assert!(output.status.success(), "{output:?}");
        let mode = fs::metadata(&file).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let all = fs::read_to_string(&file).expect("is read");
        all.lines().map(str::to_owned).collect()
    }

    /// Writes lines to a file.
    fn write(&self, name: &str, lines: &[String]) -> PathBuf {
        let file = self.file(name);
        fs::write(&file, lines.join("\n") + "\n").expect("is written");
        file
    }
}

fn importing(database: &Database, arguments: &str, file: &Path) -> tokio::process::Command {
    let mut command = gathering(&format!("import {arguments} {}", file.display()));
    command.env("DATABASE_URL", database.url());
    command
}

async fn import(database: &Database, arguments: &str, file: &Path) -> Output {
    let output = run(&mut importing(database, arguments, file)).await;
    assert!(output.status.success(), "{output:?}");
    output
}

/// A database with a row in every table that is exported.
async fn full() -> Database {
    let database = world::database().await;
    let db = database.connect().await;
    let users = user::Entity::find().order_by_asc(user::Column::Id);
    let users = users.all(&db).await.expect("reads");
    let now = Utc::now().trunc_subsecs(6);
    let row = revoked_token::ActiveModel {
        jti: Set(Uuid::now_v7()),
        created_at: Set(now),
        user_id: Set(users[0].id),
        expires_at: Set(now),
        revoked_at: Set(now),
        reason: Set(RevocationReason::Logout),
    };
    row.insert(&db).await.expect("inserts");
    // A service account that is older than its owner.
    let mut service: user::ActiveModel = users[0].clone().into();
    service.id = Set(Uuid::from_u128(1));
    service.email = Set("1@service.invalid".to_owned());
    service.email_key = Set("1@service.invalid".to_owned());
    service.password_hash = Set(String::new());
    service.kind = Set(user::UserKind::Service);
    service.owner_id = Set(Some(users[1].id));
    service.insert(&db).await.expect("inserts");
    db.close().await.expect("closes");
    database
}

#[tokio::test]
async fn all_rows_survive_the_way_through_both_databases() {
    let folder = Folder::new();
    let source = full().await;
    let first = folder.export(&source, "first", "").await;
    let file = Database::empty_file().await;
    import(&file, "", &folder.file("first")).await;
    let second = folder.export(&file, "second", "").await;
    let other = Database::empty().await;
    import(&other, "", &folder.file("second")).await;
    let third = folder.export(&other, "third", "").await;
    // The header has the time.
    assert!(first[1..] == second[1..], "the first import");
    assert!(first[1..] == third[1..], "the second import");

    let end: Value = serde_json::from_str(first.last().expect("an end")).expect("JSON");
    let exported = end["end"].as_object().expect("counts");
    let mut tables: Vec<&str> = exported.keys().map(String::as_str).collect();
    tables.extend(crate::data::TRANSIENT);
    tables.sort_unstable();
    assert_eq!(
        tables,
        crate::data::tables(),
        "each table is exported or transient"
    );

    // Passwords and keys still work, and events continue.
    let server = TestServer::on(other, |_| ()).await;
    let demo = server.actor(OWNER).await;
    let before = demo
        .ask("{ events(first: 1) { nodes { id } } }", json!({}))
        .await;
    demo.saved("createProject", json!({ "name": "A new one" }))
        .await;
    crate::support::wait::until("a new event", async || {
        let after = demo
            .ask("{ events(first: 1) { nodes { id } } }", json!({}))
            .await;
        after != before
    })
    .await;
}

#[tokio::test]
async fn an_export_without_credentials_has_no_hash() {
    let folder = Folder::new();
    let source = full().await;
    let lines = folder
        .export(&source, "safe", "--without-credentials")
        .await;
    let all = lines.join("\n");
    for secret in ["$argon2", "secret_hash", "token_hash"] {
        assert!(!all.contains(secret), "{secret}");
    }
    let other = Database::empty().await;
    import(&other, "", &folder.file("safe")).await;
    let server = TestServer::on(other, |_| ()).await;
    let answer = server.anonymous().try_login(OWNER, PASSWORD).await;
    assert_eq!(crate::support::actor::code(&answer), "UNAUTHENTICATED");
}

#[tokio::test]
async fn an_interrupted_import_is_continued_by_repeating_it() {
    let folder = Folder::new();
    let source = full().await;
    let all = folder.export(&source, "all", "").await;
    let other = Database::empty().await;
    let half = all[..all.len() / 2].join("\n") + "\n";
    let mut command = importing(&other, "", Path::new("-"));
    let output = run(typing(&mut command, &half)).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("incomplete"), "{output:?}");
    let output = import(&other, "", &folder.file("all")).await;
    assert!(
        text(&output.stdout).contains("users: 7 lines, 0 rows added"),
        "{output:?}"
    );
    let again = folder.export(&other, "again", "").await;
    assert!(all[1..] == again[1..]);
    let output = import(&other, "", &folder.file("all")).await;
    let report = text(&output.stdout);
    assert!(
        report.lines().all(|line| line.ends_with(" 0 rows added")),
        "{report}"
    );
}

#[tokio::test]
async fn a_damaged_export_is_refused_with_the_number_of_the_line() {
    let folder = Folder::new();
    let source = Database::seeded().await;
    let all = folder.export(&source, "all", "").await;
    let other = Database::empty().await;
    let truncated = folder.write("truncated", &all[..all.len() - 1]);
    let refused = refusal(&mut importing(&other, "", &truncated)).await;
    assert!(refused.contains("nothing is imported"), "{refused}");
    let db = other.connect().await;
    assert_eq!(user::Entity::find().count(&db).await, Ok(0));

    let with = |line: usize, from: &str, to: &str| {
        let mut lines = all.clone();
        assert!(lines[line].contains(from), "{}", lines[line]);
        lines[line] = lines[line].replace(from, to);
        folder.write("damaged", &lines)
    };
    for (line, from, to, reason) in [
        (
            0,
            "\"gathering_export\":1",
            "\"gathering_export\":2",
            "the format 2",
        ),
        (0, "m00", "m99", "use the same version"),
        (0, "gathering_export", "other", "not an export"),
        (
            1,
            "\"users\"",
            "\"sinks\"",
            "line 2: the table \"sinks\" is unknown",
        ),
        (
            1,
            "\"name\"",
            "\"nom\"",
            "line 2: the column name is missing",
        ),
        (
            2,
            "\"PERSON\"",
            "\"PET\"",
            "line 3: the value of kind is invalid",
        ),
        (2, "\"row\"", "\"rows\"", "line 3: it is not a row"),
    ] {
        let file = with(line, from, to);
        let mut command = importing(&other, "", &file);
        let output = run(&mut command).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(reason), "{output:?}");
        // The rest of the transaction is not imported.
        assert_eq!(user::Entity::find().count(&db).await, Ok(0));
    }
    let mut missing = all.clone();
    missing.remove(all.len() / 2);
    let file = folder.write("missing", &missing);
    let output = run(&mut importing(&other, "", &file)).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[tokio::test]
async fn an_export_overwrites_no_file() {
    let folder = Folder::new();
    let source = Database::seeded().await;
    folder.export(&source, "all", "").await;
    let arguments = format!("export {}", folder.file("all").display());
    let refused = refusal(gathering(&arguments).env("DATABASE_URL", source.url())).await;
    assert!(refused.contains("choose another file"), "{refused}");
    let refused = refusal(
        gathering("export --circle user_01ke6p4zk8e03r000000000001 -")
            .env("DATABASE_URL", source.url()),
    )
    .await;
    assert!(refused.contains("not the id of a circle"), "{refused}");
}

async fn named(db: &DatabaseConnection, name: &str) -> Vec<circle::Model> {
    let circles = circle::Entity::find().filter(circle::Column::Name.eq(name));
    circles.all(db).await.expect("reads")
}

/// The number of tasks, and of messages, of a circle.
async fn contents(db: &DatabaseConnection, circle: Uuid) -> (u64, u64) {
    let tasks = task::Entity::find().filter(task::Column::CircleId.eq(circle));
    let conversations =
        conversation::Entity::find().filter(conversation::Column::CircleId.eq(circle));
    let conversations = conversations.all(db).await.expect("reads");
    let ids = conversations.iter().map(|row| row.id);
    let messages = message::Entity::find().filter(message::Column::ConversationId.is_in(ids));
    let tasks = tasks.count(db).await.expect("counts");
    (tasks, messages.count(db).await.expect("counts"))
}

#[tokio::test]
async fn a_circle_is_imported_twice_with_new_ids() {
    let folder = Folder::new();
    let source = Database::seeded().await;
    let db = source.connect().await;
    let server = TestServer::on(source, |_| ()).await;
    let source = server.database();
    let workshop = named(&db, "Workshop").await.remove(0);
    let id = gathering_schema::id::Kind::Circle.id(workshop.id);
    let arguments = format!("--circle {}", id.as_str());
    let lines = folder.export(source, "circle", &arguments).await;
    let all = lines.join("\n");
    for secret in ["$argon2", "audit_log", "\"events\"", "refresh"] {
        assert!(!all.contains(secret), "{secret}");
    }
    let expected = contents(&db, workshop.id).await;
    assert!(expected.0 > 0 && expected.1 > 0);
    let agents = agent::Entity::find().count(&db).await.expect("counts");

    // Into the same database, as copies.
    for (key, name) in [("one", "Workshop (2)"), ("two", "Workshop (3)")] {
        for _ in 0..2 {
            let arguments = format!("--map-ids={key}");
            import(source, &arguments, &folder.file("circle")).await;
        }
        let copies = named(&db, name).await;
        assert_eq!(copies.len(), 1, "{name}");
        let copy = &copies[0];
        assert_eq!(copy.owner_id, workshop.owner_id);
        assert_eq!(contents(&db, copy.id).await, expected);
    }
    let now = agent::Entity::find().count(&db).await.expect("counts");
    assert!(now > agents);
    // The server shows and changes the copy.
    let owner = server.actor(OWNER).await;
    let query =
        "{ circles(first: 2, filter: { search: \"Workshop (\" }) { nodes { id version } } }";
    let copies = owner.ask(query, json!({})).await;
    let copy = &copies["circles"]["nodes"][1];
    let input = json!({ "circleId": copy["id"], "name": "Renamed" });
    let renamed = owner.saved("updateCircle", input).await;
    assert_eq!(renamed["id"], copy["id"], "{copies}");

    // Into a database without its users.
    let other = Database::empty().await;
    let refused = run(&mut importing(&other, "", &folder.file("circle"))).await;
    assert!(text(&refused.stderr).contains("--owner"), "{refused:?}");
    let mut create = gathering("user create --email new@example.com");
    let created = run(typing(create.env("DATABASE_URL", other.url()), PASSWORD)).await;
    assert!(created.status.success(), "{created:?}");
    import(&other, "--owner new@example.com", &folder.file("circle")).await;
    let db = other.connect().await;
    let copy = named(&db, "Workshop").await.remove(0);
    assert_eq!(copy.id, workshop.id);
    assert_eq!(contents(&db, copy.id).await, expected);
    let owner = user::Entity::find_by_id(copy.owner_id).one(&db).await;
    assert_eq!(
        owner.expect("reads").expect("a user").email,
        "new@example.com"
    );
    let shares = collaborator::Entity::find().count(&db).await;
    assert_eq!(shares, Ok(0), "the guest is replaced, too");
    for email in [ADMIN, OWNER, GUEST] {
        let users = user::Entity::find().filter(user::Column::Email.eq(email));
        assert_eq!(users.count(&db).await, Ok(0));
    }
}
