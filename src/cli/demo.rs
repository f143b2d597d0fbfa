//! `seed` and `demo`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use gathering::StartError;
use gathering::config::{Config, DatabaseUrl, MailUrl};
use gathering::db::Database;
use gathering::playground::SignIn;
use gathering::server::{Options, Server};
use gathering_demo::DEMO_EMAIL;

use super::database::on_database;
use super::output::print;
use super::serve::Signals;

const TO_TRY: &str = r#"
Three example queries for the playground at the address above:

  # A circle: its members, their models and their recent activity
  { circle(id: "circle_01ke6p4zk8e03r000000000001") { name members(first: 20) { edges { membership { role }
    node { name status model { displayName provider { name isLocal } } recentActivity { totalMessages completedTasks } } } } } }

  # The dashboard: agents, circles and tasks
  { viewer { name } dashboard { agents { total busy idle } circles { total running } tasks { open inReview } } }

  # The board: the first tasks of every running circle, in a handful of statements
  { circles(first: 5, filter: {status: [RUNNING]}) { nodes { name tasks(first: 3) { totalCount nodes { title status assignee { name } } } } } }
"#;

/// Serves a separate database with the demo data until a signal is received.
pub(super) async fn demo(
    mut config: Config,
    listen: Option<SocketAddr>,
    configure: impl Fn() -> Result<Config, StartError>,
) -> Result<(), StartError> {
    let directory = tempfile::Builder::new()
        .prefix("gathering-demo-")
        .tempdir()
        .map_err(|error| {
            StartError::new(format!("cannot create a temporary directory: {error}"))
        })?;
    config.database.url = DatabaseUrl::sqlite(&directory.path().join("demo.db"));
    directory.path().clone_into(&mut config.data.dir);
    // The demo users have no mailboxes.
    config.mail.url = MailUrl::default();
    let password = config.demo.password.expose().to_owned();
    let options = Options {
        sign_in: Some(SignIn {
            email: DEMO_EMAIL.to_owned(),
            password: password.clone(),
        }),
        logs_mails: true,
        ..Options::default()
    };

    let configured = config.server.listen;
    config.server.listen = listen.unwrap_or(configured);
    if listen.is_none() && is_taken(configured) {
        // The demo should start even if its port is in use.
        config.server.listen.set_port(0);
        tracing::warn!("{configured} is in use; using a free port instead");
    }

    let mut signals = Signals::new()?;
    let starting = Box::pin(async {
        on_database(&config, async |database| fill(database, &config).await).await?;
        let server = Server::start(config, options).await?;
        let token = server.operator_token(DEMO_EMAIL, DEMO_TOKEN).await?;
        Ok((server, token))
    });
    let Some((server, token)) = signals.before(starting).await? else {
        return Ok(());
    };
    print(&format!(
        "listening on http://{}\nemail: {}\npassword: {password}\ntoken: {token}\n{TO_TRY}",
        server.address(),
        DEMO_EMAIL,
    ));
    signals.end(server, Duration::ZERO, configure).await;
    Ok(())
}

/// Lifetime of the token that `demo` prints: longer than a demo runs.
const DEMO_TOKEN: Duration = Duration::from_hours(30 * 24);

fn is_taken(address: SocketAddr) -> bool {
    std::net::TcpListener::bind(address)
        .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Migrates a SQLite database, and fills the database with the demo data.
pub(super) async fn fill(database: &Database, config: &Config) -> Result<(), StartError> {
    let connection = database.connection();
    if config.database.url.is_postgres() && gathering_migration::pending(connection).await? > 0 {
        return Err(StartError::new(
            "the database is not up to date: run `gathering migrate` first",
        ));
    }
    gathering_migration::up(connection).await?;
    let seeded = gathering_demo::seed(connection, config.demo.password.expose()).await;
    seeded.map_err(|error| StartError::new(error.to_string()))
}
