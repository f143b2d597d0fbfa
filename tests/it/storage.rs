//! A database whose writes fail: acknowledged changes are in the file, refused ones are not, `/health` reports the
//! failure, and the server accepts changes again without a restart.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures_util::future::join_all;
use gathering_entity::{project, user};
use reqwest::StatusCode;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::sqlx::{ConnectOptions, Connection, Executor};
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::actor::{Actor, OWNER};
use crate::support::database::Database;
use crate::support::program::{Running, gathering, run, typing};
use crate::support::skip::skip;
use crate::support::wait::until;

/// More projects than fit within any of the limits below.
const MANY: usize = 2_000;

const CREATE: &str = "mutation ($input: CreateProjectInput!) { change: createProject(input: $input) { \
    project { id } userErrors { code } } }";

const RENAME: &str = "mutation ($input: UpdateProfileInput!) { change: updateProfile(input: $input) { \
    user { name } userErrors { code } } }";

const READ: &str = "{ viewer { name } projects(first: 1) { totalCount } }";

/// A signed-in client of a server in a separate process.
struct Caller(Actor);

impl Caller {
    async fn of(server: &Running) -> Self {
        Self(Actor::new(&server.url).signed_in(OWNER).await)
    }

    /// Whether a change is acknowledged. Otherwise it must be refused as `UNAVAILABLE`, with a message without
    /// internals.
    async fn change(&self, query: &str, input: Value) -> bool {
        let answer = self.0.answer(query, json!({ "input": input })).await;
        if answer["errors"].is_null() {
            assert_eq!(
                answer["data"]["change"]["userErrors"],
                json!([]),
                "{answer}"
            );
            return true;
        }
        let error = &answer["errors"][0];
        assert_eq!(error["extensions"]["code"], "UNAVAILABLE", "{answer}");
        let message = error["message"].as_str().expect("a message");
        for internal in ["SQL", "sqlite", "code:", "disk I/O", "/"] {
            assert!(!message.contains(internal), "{message}");
        }
        false
    }

    async fn create(&self, name: &str) -> bool {
        let description = "d".repeat(9_000);
        let input = json!({ "name": name, "description": description });
        self.change(CREATE, input).await
    }

    async fn rename(&self, name: &str) -> bool {
        self.change(RENAME, json!({ "name": name })).await
    }

    /// The state that sixteen concurrent requests read, which must be the same for all.
    async fn state(&self) -> (String, u64) {
        let answers = join_all((0..16).map(|_| self.0.answer(READ, json!({})))).await;
        let first = &answers[0]["data"];
        for answer in &answers {
            assert_eq!(&answer["data"], first, "{answer}");
        }
        let name = first["viewer"]["name"].as_str().expect("a name").to_owned();
        let count = first["projects"]["totalCount"].as_u64().expect("a number");
        (name, count)
    }

    async fn health(&self) -> (StatusCode, Value) {
        let response = self.0.get("/health").await;
        (response.status(), response.json().await.expect("JSON"))
    }

    /// Waits until `/health` reports this status of writes, together with this overall status.
    async fn until_writes_are(&self, writes: &str, whole: &str) {
        until(format!("writes {writes} in /health"), async || {
            let (status, health) = self.health().await;
            assert_eq!(status, StatusCode::OK, "reads are served: {health}");
            let checks = health["checks"].as_array().expect("checks");
            let is = |check: &&Value| check["name"] == "writes";
            let check = checks.iter().find(is).expect("a check of writes");
            let is_it = check["status"] == writes;
            if is_it {
                assert_eq!(health["status"], whole, "{health}");
            }
            is_it
        })
        .await;
    }

    async fn is_ready(&self) -> bool {
        self.0.get("/health/ready").await.status() == StatusCode::OK
    }
}

/// A copy of the demo data in this folder.
async fn copy_into(folder: &Path) -> Option<PathBuf> {
    let database = Database::seeded().await.only_on_sqlite()?;
    let path = database.file().expect("a file");
    let copy = folder.join("gathering.db");
    std::fs::copy(path, &copy).expect("copies");
    Some(copy)
}

fn url(file: &Path) -> String {
    format!("sqlite://{}?mode=rwc", file.display())
}

fn serve(file: &Path) -> Command {
    let mut command = gathering("serve --listen 127.0.0.1:0");
    command.env("DATABASE_URL", url(file));
    command
}

/// The same command, started by another program with these arguments.
fn through(program: &str, arguments: &[&str], command: &Command) -> Command {
    let command = command.as_std();
    let mut outer = Command::new(program);
    outer.args(arguments).kill_on_drop(true);
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Whether a program succeeds.
async fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stderr(Stdio::null());
    matches!(command.output().await, Ok(output) if output.status.success())
}

async fn open(file: &Path) -> DatabaseConnection {
    let url = url(file).replace("mode=rwc", "mode=ro");
    sea_orm::Database::connect(url).await.expect("opens")
}

/// Fills the available space, continues while there is none, and again when there is some. At the end the file must
/// hold exactly the acknowledged changes.
async fn fill_and_heal(mut server: Running, file: &Path, make_room: impl AsyncFnOnce(&Running)) {
    let caller = Caller::of(&server).await;
    let (mut name, before) = caller.state().await;
    caller.until_writes_are("pass", "pass").await;

    let mut made = Vec::new();
    let mut refused = Vec::new();
    for number in 0..MANY {
        let project = format!("filling {number}");
        if !caller.create(&project).await {
            refused.push(project);
            break;
        }
        made.push(project);
    }
    assert!(!made.is_empty() && !refused.is_empty(), "{}", made.len());
    for number in 0..8 {
        let next = format!("Name {number}");
        if caller.rename(&next).await {
            name = next;
        }
        let project = format!("full {number}");
        if caller.create(&project).await {
            made.push(project);
        } else {
            refused.push(project);
        }
    }
    assert!(refused.len() > 2, "{refused:?}");
    let count = before + made.len() as u64;
    assert_eq!(caller.state().await, (name.clone(), count));
    caller.until_writes_are("fail", "warn").await;
    assert!(caller.is_ready().await);

    make_room(&server).await;
    // No client writes in the meantime.
    caller.until_writes_are("pass", "pass").await;
    for number in 0..12 {
        let project = format!("healed {number}");
        assert!(caller.create(&project).await, "{project} is refused");
        made.push(project);
        name = format!("Healed {number}");
        assert!(caller.rename(&name).await, "{name} is refused");
        let count = before + made.len() as u64;
        assert_eq!(caller.state().await, (name.clone(), count));
    }
    server.signal("TERM");
    server.ends().await;

    let db = open(file).await;
    let named = |names: &[String]| {
        let names = project::Column::Name.is_in(names.iter().map(String::as_str));
        project::Entity::find().filter(names)
    };
    let kept = named(&made).count(&db).await.expect("counts");
    assert_eq!(
        kept,
        made.len() as u64,
        "acknowledged changes are in the file"
    );
    let kept = named(&refused).count(&db).await.expect("counts");
    assert_eq!(kept, 0, "refused changes are not in the file");
    let named = user::Entity::find().filter(user::Column::Name.eq(name));
    assert_eq!(named.count(&db).await.expect("counts"), 1);
}

/// A file size limit, which SQLite sees as an I/O error.
#[tokio::test]
async fn acknowledged_changes_survive_a_file_size_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(file) = copy_into(folder.path()).await else {
        return;
    };
    // Without the trap, the signal would end the process.
    let script = "trap '' XFSZ; ulimit -S -f 3072; exec \"$0\" \"$@\"";
    let server = Running::start(&mut through("bash", &["-c", script], &serve(&file))).await;
    fill_and_heal(server, &file, async |server| {
        let process = server.id().to_string();
        let raised = succeeds("prlimit", &["--pid", &process, "--fsize=unlimited"]).await;
        assert!(raised, "prlimit raises the limit");
    })
    .await;
}

/// An in-memory file system whose size can be changed.
struct Disk(TempDir);

impl Disk {
    /// Returns `None` if this process is not allowed to mount one.
    async fn of(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let size = format!("size={size}");
        let path = folder.path().to_str().expect("a path");
        let mounted = succeeds("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", path]).await;
        mounted.then_some(Self(folder))
    }

    async fn remount(&self, options: &str) -> bool {
        let options = format!("remount,{options}");
        let path = self.0.path().to_str().expect("a path");
        succeeds("mount", &["-o", &options, path]).await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut unmount = std::process::Command::new("umount");
        // A server that is still shutting down keeps the mount busy, so it is detached lazily.
        let _ = unmount.arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn acknowledged_changes_survive_a_full_disk() {
    let Some(disk) = Disk::of("12m").await else {
        return skip("needs the right to mount a file system");
    };
    let Some(file) = copy_into(disk.0.path()).await else {
        return;
    };
    let server = Running::start(&mut serve(&file)).await;
    fill_and_heal(server, &file, async |_| {
        assert!(
            disk.remount("size=200m").await,
            "the file system is enlarged"
        );
    })
    .await;
}

#[tokio::test]
async fn writes_resume_after_another_process_releases_its_lock() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(file) = copy_into(folder.path()).await else {
        return;
    };
    let server = Running::start(&mut serve(&file)).await;
    let caller = Caller::of(&server).await;
    assert!(caller.rename("Before").await);

    let other = SqliteConnectOptions::new().filename(&file);
    let mut other = other.connect().await.expect("connects");
    other.execute("BEGIN EXCLUSIVE").await.expect("locks");
    let refused = join_all(["One", "Two"].map(|name| caller.rename(name))).await;
    assert_eq!(refused, [false, false]);
    assert_eq!(caller.state().await.0, "Before");
    caller.until_writes_are("fail", "warn").await;
    assert!(caller.is_ready().await);

    other.execute("ROLLBACK").await.expect("unlocks");
    other.close().await.expect("closes");
    caller.until_writes_are("pass", "pass").await;
    for number in 0..12 {
        let name = format!("After {number}");
        assert!(caller.rename(&name).await);
        assert_eq!(caller.state().await.0, name);
    }
}

/// A connection that was opened while the file was read-only stays read-only.
#[tokio::test]
async fn writes_resume_after_a_read_only_file_becomes_writable() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(file) = copy_into(folder.path()).await else {
        return;
    };
    let command = serve(&file);
    // File permissions apply to root only without the capabilities to override them.
    let bound = ["--bounding-set=-dac_override,-dac_read_search"];
    let is_root = succeeds("bash", &["-c", "((EUID == 0))"]).await;
    let mut command = if is_root {
        through("setpriv", &bound, &command)
    } else {
        command
    };
    let server = Running::start(&mut command).await;
    let caller = Caller::of(&server).await;
    assert!(caller.rename("Before").await);

    let set = async |mode: &str| {
        let all = ["", "-wal", "-shm"].map(|end| format!("{}{end}", file.display()));
        let all = all.each_ref().map(String::as_str);
        assert!(succeeds("chmod", &[&[mode][..], &all].concat()).await);
        // Makes the server open new connections.
        let (here, away) = (file.as_path(), file.with_extension("away"));
        std::fs::rename(here, &away).expect("is moved");
        caller.health().await;
        std::fs::rename(&away, here).expect("is moved back");
    };
    set("0444").await;
    let mut attempts = 0;
    until(
        "the refusal of a change of a file that can only be read",
        async || {
            // Connections are used in turn, and one of them is new.
            attempts += 1;
            for _ in 0..attempts % 7 {
                caller.0.answer(READ, json!({})).await;
            }
            !caller.rename("Refused").await
        },
    )
    .await;
    until("readiness", async || caller.is_ready().await).await;
    caller.until_writes_are("fail", "warn").await;
    assert!(caller.is_ready().await);
    caller.state().await;

    let all = ["", "-wal", "-shm"].map(|end| format!("{}{end}", file.display()));
    let all = all.each_ref().map(String::as_str);
    assert!(succeeds("chmod", &[&["0644"][..], &all].concat()).await);
    caller.until_writes_are("pass", "pass").await;
    for number in 0..12 {
        let name = format!("After {number}");
        assert!(caller.rename(&name).await, "{name} is refused");
        assert_eq!(caller.state().await.0, name);
    }
}

/// An operator's command on a full disk succeeds or fails, and reports which.
#[tokio::test]
async fn a_command_on_a_full_disk_fails_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(file) = copy_into(folder.path()).await else {
        return;
    };
    let mut command = gathering("user create --email new@example.com --name New");
    command.env("DATABASE_URL", url(&file));
    let size = std::fs::metadata(&file).expect("is there").len() / 1_024;
    let script = format!(
        "trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"",
        size.min(32)
    );
    let mut command = through("bash", &["-c", &script], &command);
    let output = run(typing(&mut command, "a long password\n")).await;
    assert!(!output.status.success(), "{output:?}");
    let db = open(&file).await;
    let made = user::Entity::find().filter(user::Column::Email.eq("new@example.com"));
    assert_eq!(made.count(&db).await.expect("counts"), 0);
}
