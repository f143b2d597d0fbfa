//! The command line: loads the configuration, runs one command, and reports an error as one line.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use gathering::StartError;
use gathering::config::{Config, DatabaseUrl};
use gathering::db::Database;
use gathering::playground::SignIn;
use gathering::serve::{self, Options, Server};
use gathering::{keys, seed, telemetry};
use gathering_schema::Graph;
use gathering_schema::auth::{Keys, Operator};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const EXAMPLES: &str = "\
Examples:
  gathering demo                                  Start a temporary server with demo data
  gathering serve                                 Serve the SQLite database in the data directory
  gathering serve --listen 127.0.0.1:0            Serve on a free port
  DATABASE_URL=postgres://me:secret@localhost/gathering gathering serve --migrate
  GATHERING__LOG__FILTER=debug gathering serve    Set one key of the configuration
  gathering user create --email me@example.com --admin
                                                  Create the first administrator
  gathering config                                Print every key with its description and value

Environment:
  DATABASE_URL             sqlite://path or postgres://user:password@host/database
  REDIS_URL                redis://host, shared by several instances for rate limits
  GATHERING_CONFIG         TOML file of the configuration
  GATHERING__SECTION__KEY  One key of it, such as GATHERING__SERVER__LISTEN
  GATHERING_DEMO_PASSWORD  Password of the users that `seed` and `demo` create";

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

/// A GraphQL API server for teams of AI agents.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// TOML file of the configuration, instead of the one in `GATHERING_CONFIG`
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the server
    ///
    /// A SQLite database is created and migrated first. A PostgreSQL database must be up to date, unless --migrate is
    /// given; several servers may then start at the same time. With PostgreSQL, `auth.signing_key` must be set; with
    /// SQLite, a key is generated and kept in the data directory.
    ///
    /// SIGTERM starts a graceful shutdown: /health/ready answers 503 immediately, new requests are served for
    /// `server.grace`, then running requests have `server.drain` to finish. Ctrl-C skips the grace period; a second
    /// signal stops the server immediately. SIGHUP reloads the rate limits from the configuration.
    Serve {
        /// Address and port to listen on; port 0 picks a free one
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
        /// Migrate a PostgreSQL database first
        #[arg(long)]
        migrate: bool,
    },
    /// Apply or revert migrations of the database
    Migrate {
        #[command(subcommand)]
        direction: Option<Direction>,
    },
    /// Fill the database with the demo data; no effect if it is already there
    Seed,
    /// Start a temporary server with demo data
    ///
    /// The database is a SQLite file in a temporary directory that is removed at the end. The playground signs its
    /// visitors in as the demo user. If port 8000 is in use, a free port is used instead.
    Demo {
        /// Address and port to listen on; port 0 picks a free one
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
    },
    /// Create and change accounts, such as the first administrator
    User {
        #[command(subcommand)]
        act: Act,
    },
    /// Generate a new key to sign access tokens from the next start on; tokens of the current key stay valid
    RotateKey,
    /// Print the GraphQL schema
    Schema,
    /// Print every key of the configuration with its description and value; secrets are masked
    Config,
}

#[derive(Clone, Copy, Subcommand)]
enum Direction {
    /// Apply pending migrations (the default)
    Up,
    /// Print the number of pending migrations
    Status,
    /// Revert all migrations; all data is lost
    Down {
        /// Confirm that all data is deleted
        #[arg(long, required = true)]
        delete_all_data: bool,
    },
}

#[derive(Subcommand)]
enum Act {
    /// Create an account
    ///
    /// The password is read from standard input: without echo from a terminal, otherwise from the first line.
    Create {
        /// E-mail address to sign in with
        #[arg(long)]
        email: String,
        /// Display name [default: the part of the e-mail address before the @]
        #[arg(long)]
        name: Option<String>,
        /// Create an administrator
        #[arg(long)]
        admin: bool,
    },
    /// Deactivate an account and end all its sessions
    Disable {
        /// E-mail address of the account
        #[arg(long)]
        email: String,
    },
    /// Reactivate an account
    Enable {
        /// E-mail address of the account
        #[arg(long)]
        email: String,
    },
    /// Change the role of a user
    SetRole {
        /// E-mail address of the account
        #[arg(long)]
        email: String,
        /// The new role
        #[arg(long)]
        role: Role,
    },
    /// Set a new password, read from standard input, and end all sessions of the user
    SetPassword {
        /// E-mail address of the account
        #[arg(long)]
        email: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// May use their own objects and those shared with them
    User,
    /// May read and change everything
    Admin,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Writing fails if standard error is closed.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), StartError> {
    let configure = || Config::load(arguments.config.as_deref());
    let start = || {
        let config = configure()?;
        telemetry::start(&config.log)?;
        Ok::<_, StartError>(config)
    };
    match arguments.command {
        Command::Schema => print(&Graph::sdl()),
        Command::Config => print(&configure()?.show()),
        Command::Serve { listen, migrate } => {
            let mut config = start()?;
            config.server.listen = listen.unwrap_or(config.server.listen);
            serve(config, migrate, configure).await?;
        }
        Command::Demo { listen } => demo(start()?, listen, configure).await?,
        Command::Migrate { direction } => {
            let direction = direction.unwrap_or(Direction::Up);
            on_database(&start()?, async |database| turn(database, direction).await).await?;
        }
        Command::User { act } => {
            let config = start()?;
            on_database(&config, async |database| {
                operate(database, &config, act).await
            })
            .await?;
        }
        Command::RotateKey => {
            keys::rotate(&start()?)?;
            print("the next start signs with a new key; tokens of the current key stay valid\n");
        }
        Command::Seed => {
            let config = start()?;
            on_database(&config, async |database| fill(database, &config).await).await?;
            print("the database contains the demo data\n");
        }
    }
    Ok(())
}

/// Opens the database, runs one task and closes it.
async fn on_database(
    config: &Config,
    work: impl AsyncFnOnce(&Database) -> Result<(), StartError>,
) -> Result<(), StartError> {
    let database = Database::open(&config.database).await?;
    let done = work(&database).await;
    database.close().await;
    done
}

async fn serve(
    config: Config,
    migrate: bool,
    configure: impl Fn() -> Result<Config, StartError>,
) -> Result<(), StartError> {
    let grace = config.server.grace;
    let options = Options {
        migrate,
        ..Options::default()
    };
    let mut signals = Signals::new()?;
    let Some(server) = signals.before(Server::start(config, options)).await? else {
        return Ok(());
    };
    print(&format!("listening on http://{}\n", server.address()));
    signals.end(server, grace, configure).await;
    Ok(())
}

async fn demo(
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
    let password = config.demo.password.expose().to_owned();
    let options = Options {
        sign_in: Some(SignIn {
            email: seed::DEMO_EMAIL.to_owned(),
            password: password.clone(),
        }),
        ..Options::default()
    };

    let wanted = config.server.listen;
    config.server.listen = listen.unwrap_or(wanted);
    if listen.is_none() && is_taken(wanted) {
        // The demo should start even if its port is in use.
        config.server.listen.set_port(0);
        tracing::warn!("{wanted} is in use; using a free port instead");
    }

    let mut signals = Signals::new()?;
    let starting = Box::pin(async {
        on_database(&config, async |database| fill(database, &config).await).await?;
        let server = Server::start(config, options).await?;
        let token = server.operator_token(seed::DEMO_EMAIL, DEMO_TOKEN).await?;
        Ok((server, token))
    });
    let Some((server, token)) = signals.before(starting).await? else {
        return Ok(());
    };
    print(&format!(
        "listening on http://{}\nemail: {}\npassword: {password}\ntoken: {token}\n{TO_TRY}",
        server.address(),
        seed::DEMO_EMAIL,
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
async fn fill(database: &Database, config: &Config) -> Result<(), StartError> {
    let connection = database.connection();
    if config.database.url.is_postgres() && gathering_migration::pending(connection).await? > 0 {
        return Err(StartError::new(
            "the database is not up to date: run `gathering migrate` first",
        ));
    }
    gathering_migration::up(connection).await?;
    let seeded = seed::seed(connection, config.demo.password.expose()).await;
    seeded.map_err(|error| StartError::new(error.to_string()))
}

/// Runs a command on an account.
async fn operate(database: &Database, config: &Config, act: Act) -> Result<(), StartError> {
    let connection = database.connection();
    if gathering_migration::pending(connection).await? > 0 {
        if config.database.url.is_postgres() {
            return Err(StartError::new(
                "the database is not up to date: run `gathering migrate` first",
            ));
        }
        gathering_migration::up(connection).await?;
    }
    let keys = Keys::random().map_err(|error| StartError::new(error.to_string()))?;
    let settings = serve::accounts(&config.auth, keys);
    let operator = Operator::new(connection.clone(), settings, Options::default().clock);
    let operator = operator.map_err(StartError::new)?;
    let done = apply(&operator, act).await;
    operator.finish().await;
    print(&format!("{}\n", done?));
    Ok(())
}

async fn apply(operator: &Operator, act: Act) -> Result<String, StartError> {
    let done = match act {
        Act::Create { email, name, admin } => {
            let password = read_password()?;
            let local = || email.split('@').next().unwrap_or_default();
            let name = name.unwrap_or_else(|| local().chars().take(100).collect());
            let made = operator.create(&email, &name, &password, admin).await;
            made.map(|id| format!("created {}", id.as_str()))
        }
        Act::Disable { email } => {
            let done = operator.set_active(&email, false).await;
            done.map(|()| "the account is disabled".to_owned())
        }
        Act::Enable { email } => {
            let done = operator.set_active(&email, true).await;
            done.map(|()| "the account is enabled".to_owned())
        }
        Act::SetRole { email, role } => {
            let done = operator.set_role(&email, matches!(role, Role::Admin)).await;
            done.map(|()| "the role is changed".to_owned())
        }
        Act::SetPassword { email } => {
            let password = read_password()?;
            let done = operator.set_password(&email, &password).await;
            done.map(|()| "the password is changed".to_owned())
        }
    };
    done.map_err(StartError::new)
}

/// Reads a password without echo from a terminal, or the first line of a pipe. An argument would be visible in the
/// shell's history and in the list of processes.
fn read_password() -> Result<String, StartError> {
    let read = if io::stdin().is_terminal() {
        rpassword::prompt_password("Password: ")
    } else {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    };
    let line = read.map_err(|error| {
        StartError::new(format!(
            "cannot read a password from standard input: {error}"
        ))
    })?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

async fn turn(database: &Database, direction: Direction) -> Result<(), StartError> {
    let connection = database.connection();
    let pending = gathering_migration::pending(connection).await?;
    match direction {
        Direction::Status if pending == 0 => print("the database is up to date\n"),
        Direction::Status => print(&format!("pending migrations: {pending}\n")),
        Direction::Up => {
            gathering_migration::up(connection).await?;
            print(&format!("applied migrations: {pending}\n"));
        }
        Direction::Down { .. } => {
            gathering_migration::down(connection).await?;
            print("all migrations are reverted\n");
        }
    }
    Ok(())
}

/// Handlers of SIGTERM, Ctrl-C and SIGHUP. Created before the server starts, so that no signal is lost.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, StartError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| StartError::new(format!("cannot wait for signals: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or Ctrl-C.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }

    /// Runs the work until it completes or a signal arrives.
    async fn before<T>(
        &mut self,
        work: impl Future<Output = Result<T, StartError>>,
    ) -> Result<Option<T>, StartError> {
        tokio::select! {
            done = work => done.map(Some),
            _ = self.next() => Ok(None),
        }
    }

    /// Runs the server until a signal arrives, then shuts it down gracefully, unless a second signal arrives. SIGHUP
    /// reloads the rate limits; if the configuration is invalid, nothing changes.
    async fn end(
        &mut self,
        server: Server,
        grace: Duration,
        configure: impl Fn() -> Result<Config, StartError>,
    ) {
        let is_polite = loop {
            tokio::select! {
                _ = self.terminate.recv() => break true,
                _ = self.interrupt.recv() => break false,
                _ = self.hangup.recv() => match configure() {
                    Ok(config) => {
                        server.set_rates(&config.limits);
                        tracing::info!("reloaded the rate limits");
                    }
                    Err(error) => tracing::error!(%error, "the configuration cannot be read; the rate limits are unchanged"),
                },
            }
        };
        tracing::info!("shutting down");
        tokio::select! {
            () = server.shut_down(if is_polite { grace } else { Duration::ZERO }) => {}
            _ = self.next() => {}
        }
    }
}

/// Writes to standard output and flushes. A closed pipe is not an error.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
