//! The operator's commands: signing keys and accounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gathering_entity::{audit, user as users};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::accounts::audit::entries_of;
use crate::accounts::tokens::key_of;
use crate::support::account;
use crate::support::account::{Tokens, forbidden, unauthenticated};
use crate::support::actor::{Actor, code};
use crate::support::database::{Database, PASSWORD};
use crate::support::program::{Running, gathering, refusal, run, text, typing};
use crate::support::server::{SIGNING_KEY, TestServer};

const ADA: &str = "ada@example.com";
const KEY: &str = "GATHERING__AUTH__SIGNING_KEY";
const FURTHER: &str = "GATHERING__AUTH__VERIFICATION_KEYS";

/// The program with its own data directory and without a configured key.
fn in_folder(folder: &TempDir, arguments: &str) -> Command {
    let mut command = gathering(arguments);
    command
        .env_remove(KEY)
        .env("XDG_DATA_HOME", folder.path())
        .env("GATHERING__SERVER__GRACE", "0s");
    command
}

fn serve(folder: &TempDir) -> Command {
    in_folder(folder, "serve --listen 127.0.0.1:0")
}

fn keys(folder: &TempDir) -> PathBuf {
    folder.path().join("gathering/signing-keys")
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("is read");
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn is_private(path: &Path) {
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode();
    assert_eq!(mode(path) & 0o777, 0o600);
    assert_eq!(mode(path.parent().expect("a folder")) & 0o777, 0o700);
}

fn visitor(server: &Running) -> Actor {
    Actor::new(&server.url)
}

async fn stop(mut server: Running) {
    server.signal("TERM");
    server.ends().await;
}

#[tokio::test]
async fn a_signing_key_is_created_once_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Running::start(&mut serve(&folder)).await;
    let ada = visitor(&server).register(ADA).await;
    stop(server).await;
    is_private(&keys(&folder));
    let before = lines(&keys(&folder));
    assert_eq!(before.len(), 1);

    let server = Running::start(&mut serve(&folder)).await;
    assert_eq!(
        visitor(&server).with(&ada.access).who().await,
        account::user(ADA)
    );
    visitor(&server).refresh(&ada.refresh).await;
    assert_eq!(lines(&keys(&folder)), before);

    let other = tempfile::tempdir().expect("a folder");
    let stranger = Running::start(&mut serve(&other)).await;
    assert_ne!(lines(&keys(&other)), before);
    assert_eq!(
        visitor(&stranger).with(&ada.access).who().await,
        unauthenticated()
    );
}

#[tokio::test]
async fn after_a_key_rotation_the_former_key_is_still_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Running::start(&mut serve(&folder)).await;
    let before = visitor(&server).register(ADA).await;
    let former = lines(&keys(&folder));
    let output = run(&mut in_folder(&folder, "rotate-key")).await;
    assert!(output.status.success(), "{output:?}");
    let rotated = lines(&keys(&folder));
    is_private(&keys(&folder));
    assert_eq!(rotated[1..], former);
    assert_ne!(rotated[0], former[0]);
    // Running servers still use the former key.
    let meanwhile = visitor(&server).login(ADA, PASSWORD).await;
    assert_eq!(key_of(&meanwhile.access), key_of(&before.access));
    stop(server).await;

    let server = Running::start(&mut serve(&folder)).await;
    let after = visitor(&server).login(ADA, PASSWORD).await;
    assert_ne!(key_of(&after.access), key_of(&before.access));
    for tokens in [&before, &meanwhile, &after] {
        assert_eq!(
            visitor(&server).with(&tokens.access).who().await,
            account::user(ADA)
        );
    }
    stop(server).await;

    // The key before the former one is removed.
    let output = run(&mut in_folder(&folder, "rotate-key")).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lines(&keys(&folder))[1..], rotated[..1]);
    let server = Running::start(&mut serve(&folder)).await;
    assert_eq!(
        visitor(&server).with(&after.access).who().await,
        account::user(ADA)
    );
    assert_eq!(
        visitor(&server).with(&before.access).who().await,
        unauthenticated()
    );
}

#[tokio::test]
async fn a_key_can_be_rotated_before_the_first_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(&mut in_folder(&folder, "rotate-key")).await;
    assert!(output.status.success(), "{output:?}");
    is_private(&keys(&folder));
    let server = Running::start(&mut serve(&folder)).await;
    visitor(&server).register(ADA).await;
}

#[tokio::test]
async fn configured_keys_can_be_replaced_step_by_step() {
    const FIRST: &str = "the first key: 0123456789 abcdefghijklmnop";
    const SECOND: &str = "the second key: 9876543210 qrstuvwxyz";
    let database = Database::empty().await;
    let folder = tempfile::tempdir().expect("a folder");
    let start = async |key: &str, further: &str| {
        let mut command = serve(&folder);
        command
            .env("DATABASE_URL", database.url())
            .env(KEY, key)
            .env(FURTHER, further);
        Running::start(&mut command).await
    };
    let server = start(FIRST, "").await;
    let first = visitor(&server).register(ADA).await;
    let ahead = start(FIRST, SECOND).await;
    let both = start(SECOND, &format!("{FIRST} , ")).await;
    let second = visitor(&both).login(ADA, PASSWORD).await;
    assert_ne!(key_of(&first.access), key_of(&second.access));
    let only = start(SECOND, "").await;
    for (server, believes_first, believes_second) in [
        (&server, true, false),
        (&ahead, true, true),
        (&both, true, true),
        (&only, false, true),
    ] {
        for (tokens, is_believed) in [(&first, believes_first), (&second, believes_second)] {
            let expected = if is_believed {
                account::user(ADA)
            } else {
                unauthenticated()
            };
            assert_eq!(visitor(server).with(&tokens.access).who().await, expected);
        }
    }
    // A session remains valid after the key that signed its tokens is removed.
    visitor(&only).refresh(&first.refresh).await;
    // Configured keys are not written to a file.
    assert!(!keys(&folder).exists());
    let mut rotate = in_folder(&folder, "rotate-key");
    let line = refusal(rotate.env("DATABASE_URL", database.url()).env(KEY, FIRST)).await;
    assert!(line.contains("auth.verification_keys"), "{line}");
    assert!(!keys(&folder).exists());
}

#[tokio::test]
async fn a_weak_key_is_refused_and_not_printed() {
    let database = Database::empty().await;
    let folder = tempfile::tempdir().expect("a folder");
    let good = "a good key: 0123456789 abcdefghijklmnop";
    for (key, further, why) in [
        ("hush-hush-hush", "", "too short"),
        (&"hush".repeat(16), "", "too easy to guess"),
        (&"h".repeat(64), "", "too easy to guess"),
        (good, "hush-hush-hush", "too short"),
        (
            good,
            &format!("{good},{}", "hush".repeat(16)),
            "too easy to guess",
        ),
    ] {
        let mut command = serve(&folder);
        command
            .env("DATABASE_URL", database.url())
            .env(KEY, key)
            .env(FURTHER, further);
        let line = refusal(&mut command).await;
        assert!(
            line.contains("auth.signing_key") && line.contains(why),
            "{line}"
        );
        assert!(line.contains("openssl rand"), "{line}");
        assert!(!line.contains("hush") && !line.contains(good), "{line}");
    }
}

#[tokio::test]
async fn postgres_requires_a_configured_key() {
    let Some(database) = Database::empty().await.only_on_postgres() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    for arguments in [
        "serve --listen 127.0.0.1:0",
        "serve --migrate --listen 127.0.0.1:0",
    ] {
        let mut command = in_folder(&folder, arguments);
        let line = refusal(command.env("DATABASE_URL", database.url())).await;
        assert!(
            line.contains("set GATHERING__AUTH__SIGNING_KEY to"),
            "{line}"
        );
    }
    let mut rotate = in_folder(&folder, "rotate-key");
    let line = refusal(rotate.env("DATABASE_URL", database.url())).await;
    assert!(line.contains("auth.verification_keys"), "{line}");
    assert!(!keys(&folder).exists());
}

#[tokio::test]
async fn servers_started_concurrently_use_the_same_key() {
    for _ in 0..3 {
        let folder = tempfile::tempdir().expect("a folder");
        let [mut one, mut two] = [serve(&folder), serve(&folder)];
        let (one, two) = tokio::join!(Running::start(&mut one), Running::start(&mut two));
        let ada = visitor(&one).register(ADA).await;
        assert_eq!(
            visitor(&two).with(&ada.access).who().await,
            account::user(ADA)
        );
        let next = visitor(&two).refresh(&ada.refresh).await;
        assert_eq!(
            visitor(&one).with(&next.access).who().await,
            account::user(ADA)
        );
        assert_eq!(lines(&keys(&folder)).len(), 1);
    }
}

#[tokio::test]
async fn an_unusable_key_file_is_named_in_the_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = keys(&folder);
    fs::create_dir_all(path.parent().expect("a folder")).expect("is made");
    // Suppresses the log lines about the database, which is created first.
    let refused = async || refusal(serve(&folder).env("GATHERING__LOG__FILTER", "error")).await;
    for content in ["", "\n", "short\n", &"a".repeat(44)] {
        fs::write(&path, content).expect("is written");
        let line = refused().await;
        assert!(line.contains(&path.display().to_string()), "{line}");
        assert!(!line.contains("aaaa") && !line.contains("short"), "{line}");
        // The file is not replaced, because valid tokens may depend on it.
        assert_eq!(fs::read_to_string(&path).expect("is read"), *content);
    }
    fs::remove_file(&path).expect("is removed");
    fs::create_dir(&path).expect("is made");
    let line = refused().await;
    assert!(line.contains(&path.display().to_string()), "{line}");
}

#[tokio::test]
async fn the_token_printed_by_the_demo_is_valid() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut command = in_folder(&temporary, "demo");
    command
        .env("TMPDIR", temporary.path())
        .env("GATHERING__SERVER__LISTEN", "127.0.0.1:0");
    let mut demo = Running::start(&mut command).await;
    let mut said = async |name: &str| {
        let line = demo.line().await;
        let value = line.strip_prefix(name).unwrap_or_else(|| panic!("{line}"));
        value.to_owned()
    };
    let email = said("email: ").await;
    let password = said("password: ").await;
    let token = said("token: ").await;
    let visitor = visitor(&demo);
    assert_eq!(visitor.with(&token).who().await, account::user(&email));
    visitor.login(&email, &password).await;
    visitor
        .with(&token)
        .mutate("logout", "revokedTokens", json!({}))
        .await;
    assert_eq!(visitor.with(&token).who().await, unauthenticated());
    // The demo leaves no key file behind.
    assert!(!keys(&temporary).exists());
}

/// A database, and the commands that change its accounts.
struct Operated {
    database: Arc<Database>,
    folder: TempDir,
}

impl Operated {
    async fn new() -> Self {
        Self {
            database: Arc::new(Database::empty().await),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = in_folder(&self.folder, arguments);
        command.env("DATABASE_URL", self.database.url());
        command
    }

    /// The output of a command, which must succeed.
    async fn said(&self, arguments: &str, input: &str) -> String {
        let output = run(typing(&mut self.command(arguments), input)).await;
        assert!(output.status.success(), "{arguments}: {output:?}");
        text(&output.stdout).to_owned()
    }

    /// The one-line error of a command, which must fail.
    async fn refused(&self, arguments: &str, input: &str) -> String {
        refusal(typing(&mut self.command(arguments), input)).await
    }

    async fn server(&self) -> TestServer {
        TestServer::on(Arc::clone(&self.database), |_| ()).await
    }

    async fn row(&self, email: &str) -> users::Model {
        let db = self.database.connect().await;
        let find = users::Entity::find().filter(users::Column::EmailKey.eq(email));
        find.one(&db).await.expect("reads").expect("a user")
    }

    /// The only entry of an action.
    async fn entry(&self, action: &str) -> audit::Model {
        let mut entries = entries_of(&self.database, action).await;
        assert_eq!(entries.len(), 1, "{entries:?}");
        let entry = entries.remove(0);
        assert_eq!(entry.actor_id, None);
        assert_eq!(entry.client_ip, None);
        assert_eq!(entry.request_id, None);
        assert_eq!(entry.user_agent.as_deref(), Some("gathering user"));
        entry
    }
}

#[tokio::test]
async fn audit_entries_are_written_before_the_server_exits() {
    let operated = Operated::new().await;
    let mut command = operated.command("serve --listen 127.0.0.1:0");
    let server = Running::start(command.env(KEY, SIGNING_KEY)).await;
    let visitor = visitor(&server);
    visitor.register(ADA).await;
    for _ in 0..10 {
        visitor.try_login(ADA, "a wrong password").await;
        visitor
            .with("not a token")
            .who()
            .await
            .expect_err("is refused");
    }
    stop(server).await;
    let count = async |action| entries_of(&operated.database, action).await.len();
    assert_eq!(count("auth.registered").await, 1);
    assert_eq!(count("auth.login_failed").await, 10);
    assert_eq!(count("auth.locked").await, 1);
    let rejected = entries_of(&operated.database, "auth.token_rejected").await;
    assert_eq!(rejected.len(), 2, "{rejected:?}");
    assert_eq!(rejected[1].details["count"], 9);
}

#[tokio::test]
async fn the_first_administrator_is_created_on_the_command_line() {
    let operated = Operated::new().await;
    let said = operated
        .said(
            "user create --admin --email Root@Example.com",
            "a long password\n",
        )
        .await;
    assert!(
        said.starts_with("created user_") && said.lines().count() == 1,
        "{said}"
    );
    let root = operated.row("root@example.com").await;
    assert_eq!(root.email, "Root@Example.com");
    assert_eq!(root.name, "Root");
    assert_eq!(root.role, users::UserRole::Admin);
    let entry = operated.entry("user.created").await;
    assert_eq!(entry.target_id, Some(root.id));
    assert_eq!(entry.details, json!({ "role": "ADMIN" }));

    let server = operated.server().await;
    let visitor = server.anonymous();
    let tokens = visitor.login("root@example.com", "a long password").await;
    assert_eq!(
        visitor.with(&tokens.access).id().await,
        said.trim()["created ".len()..]
    );
    let answer = visitor
        .with(&tokens.access)
        .answer("{ users { totalCount } }", json!({}))
        .await;
    assert_eq!(answer["data"]["users"]["totalCount"], 1);
}

#[tokio::test]
async fn an_account_is_created_with_the_password_from_standard_input() {
    let operated = Operated::new().await;
    let server = operated.server().await;
    let visitor = server.anonymous();
    for (n, typed, password) in [
        (0, "  with blanks  \n", "  with blanks  "),
        (1, "from Windows\r\n", "from Windows"),
        (2, "without an end", "without an end"),
        (3, "the first line\nand another\n", "the first line"),
        (4, "p\u{e4}ssw\u{f6}rd\n", "pa\u{308}sswo\u{308}rd"),
    ] {
        let email = format!("user{n}@example.com");
        operated
            .said(&format!("user create --name Ada --email {email}"), typed)
            .await;
        visitor.login(&email, password).await;
        let row = operated.row(&email).await;
        assert_eq!(row.name, "Ada");
        assert_eq!(row.role, users::UserRole::User);
    }
    // The name is taken from the address, up to the maximum length.
    let local = "x".repeat(150);
    operated
        .said(
            &format!("user create --email {local}@example.com"),
            "a long password\n",
        )
        .await;
    assert_eq!(
        operated.row(&format!("{local}@example.com")).await.name,
        "x".repeat(100)
    );
}

#[tokio::test]
async fn a_refused_account_creation_is_reported_in_one_line() {
    let operated = Operated::new().await;
    operated
        .said(&format!("user create --email {ADA}"), "a long password\n")
        .await;
    let long = format!("user create --email b@c --name {}", "x".repeat(101));
    for (arguments, input, why) in [
        (
            "user create --email ADA@example.com",
            "a long password\n",
            "there is an account",
        ),
        (
            "user create --email bob@example.com",
            "short\n",
            "at least 8 characters",
        ),
        (
            "user create --email bob@example.com",
            "",
            "`password` must not be empty",
        ),
        (
            "user create --email bob@example.com",
            &"x".repeat(129),
            "at most 128 characters",
        ),
        (
            "user create --email bob",
            "a long password\n",
            "must be an e-mail address",
        ),
        (&long, "a long password\n", "at most 100 characters"),
    ] {
        let line = operated.refused(arguments, input).await;
        assert!(line.contains(why), "{line}");
        assert!(!line.contains("a long password"), "{line}");
    }
    // There is no argument for the password, because arguments appear in the shell history and in the process list.
    let mut command =
        operated.command("user create --email bob@example.com --password secret-secret");
    assert_eq!(run(&mut command).await.status.code(), Some(2));
    operated.entry("user.created").await;
    let db = operated.database.connect().await;
    assert_eq!(
        users::Entity::find().all(&db).await.expect("reads").len(),
        1
    );
}

#[tokio::test]
async fn changing_an_unknown_account_is_refused() {
    let operated = Operated::new().await;
    for command in ["disable", "enable", "set-role --role admin", "set-password"] {
        let arguments = format!("user {command} --email unknown@example.com");
        let line = operated.refused(&arguments, "a long password\n").await;
        assert!(line.contains("there is no account"), "{line}");
    }
    assert!(
        entries_of(&operated.database, "user.changed")
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn api_keys_are_created_listed_and_revoked_on_the_command_line() {
    let operated = Operated::new().await;
    let server = operated.server().await;
    let visitor = server.anonymous();
    visitor.register(ADA).await;
    let create =
        format!("key create --email {ADA} --name Worker --scope read --scope write --days 7");
    let said = operated.said(&create, "").await;
    let [id, key] = ["id: ", "key: "].map(|name| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    });
    assert_eq!(visitor.with(&key).who().await, account::user(ADA));
    let list = format!("key list --email {ADA}");
    let listed = operated.said(&list, "").await;
    assert!(
        listed.starts_with(&id) && listed.contains("READ,WRITE"),
        "{listed}"
    );
    assert!(
        listed.contains(&key[..10]) && !listed.contains(&key),
        "{listed}"
    );
    operated.said(&format!("key revoke {id}"), "").await;
    assert_eq!(visitor.with(&key).who().await, unauthenticated());
    assert_eq!(operated.said(&list, "").await.trim(), "");
    operated.entry("api_key.created").await;
    operated.entry("api_key.revoked").await;
    for (arguments, why) in [
        (
            "key create --email nobody@example.com --name A",
            "there is no account",
        ),
        (
            &format!("key create --email {ADA} --name A --scope admin"),
            "administrators",
        ),
        (
            &format!("key create --email {ADA} --name A --circle x"),
            "must be an id",
        ),
        (
            "key revoke key_01h455vb4pex5vsknk084sn02q",
            "there is no API key",
        ),
    ] {
        let line = operated.refused(arguments, "").await;
        assert!(line.contains(why), "{line}");
    }
}

#[tokio::test]
async fn disabling_a_user_on_the_command_line_revokes_their_tokens() {
    let operated = Operated::new().await;
    let server = operated.server().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    assert_eq!(visitor.with(&ada.access).who().await, account::user(ADA));
    operated
        .said("user disable --email ADA@example.com", "")
        .await;
    assert_eq!(visitor.with(&ada.access).who().await, forbidden());
    assert_eq!(
        code(&visitor.try_refresh(&ada.refresh).await),
        "UNAUTHENTICATED"
    );
    assert_eq!(code(&visitor.try_login(ADA, PASSWORD).await), "FORBIDDEN");
    let entry = operated.entry("user.changed").await;
    assert_eq!(entry.target_id, Some(operated.row(ADA).await.id));
    let expected = json!({
        "changed": ["isActive"], "role": "USER", "isActive": false, "quotaClass": null,
    });
    assert_eq!(entry.details, expected);

    // Repeating the command changes nothing and succeeds.
    operated
        .said(&format!("user disable --email {ADA}"), "")
        .await;
    operated.entry("user.changed").await;
    operated
        .said(&format!("user enable --email {ADA}"), "")
        .await;
    assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());
    visitor.login(ADA, PASSWORD).await;
}

#[tokio::test]
async fn a_role_set_on_the_command_line_takes_effect_immediately() {
    let operated = Operated::new().await;
    let server = operated.server().await;
    let visitor = server.anonymous();
    let mut session: Tokens = visitor.register(ADA).await;
    for (role, is_admin) in [("admin", true), ("user", false)] {
        operated
            .said(&format!("user set-role --role {role} --email {ADA}"), "")
            .await;
        assert_eq!(visitor.with(&session.access).who().await, unauthenticated());
        session = visitor.refresh(&session.refresh).await;
        let answer = visitor
            .with(&session.access)
            .answer("{ users { totalCount } }", json!({}))
            .await;
        assert_eq!(
            answer["data"]["users"]["totalCount"].is_number(),
            is_admin,
            "{answer}"
        );
    }
    let mut command = operated.command("user set-role --role owner --email ada@example.com");
    assert_eq!(run(&mut command).await.status.code(), Some(2));
    assert_eq!(
        entries_of(&operated.database, "user.changed").await.len(),
        2
    );
}

#[tokio::test]
async fn a_password_set_on_the_command_line_ends_every_session() {
    let operated = Operated::new().await;
    let server = operated.server().await;
    let visitor = server.anonymous();
    let ada = visitor.register(ADA).await;
    let command = format!("user set-password --email {ADA}");
    let line = operated.refused(&command, "short\n").await;
    assert!(line.contains("at least 8 characters"), "{line}");
    assert_eq!(visitor.with(&ada.access).who().await, account::user(ADA));

    operated.said(&command, "another password\n").await;
    assert_eq!(visitor.with(&ada.access).who().await, unauthenticated());
    assert_eq!(
        code(&visitor.try_refresh(&ada.refresh).await),
        "UNAUTHENTICATED"
    );
    assert_eq!(
        code(&visitor.try_login(ADA, PASSWORD).await),
        "UNAUTHENTICATED"
    );
    visitor.login(ADA, "another password").await;
    let entry = operated.entry("auth.password_changed").await;
    assert_eq!(entry.target_id, Some(operated.row(ADA).await.id));
    assert_eq!(entry.details, json!({}));
}

#[tokio::test]
async fn the_database_is_migrated_before_accounts_are_created() {
    let operated = Operated {
        database: Arc::new(Database::bare().await),
        folder: tempfile::tempdir().expect("a folder"),
    };
    let command = format!("user create --admin --email {ADA}");
    if operated.database.is_postgres() {
        let line = operated.refused(&command, "a long password\n").await;
        assert!(line.contains("run `gathering migrate`"), "{line}");
        operated.said("migrate", "").await;
    }
    operated.said(&command, "a long password\n").await;
    assert_eq!(operated.row(ADA).await.role, users::UserRole::Admin);
}
