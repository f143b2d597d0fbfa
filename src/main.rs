//! The command line: reads the configuration, does one thing, and says in one line why it could not.

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
  gathering demo                                  A throw-away server with demo data
  gathering serve                                 Serve the SQLite database in the data directory
  gathering serve --listen 127.0.0.1:0            Serve on a free port
  DATABASE_URL=postgres://me:secret@localhost/gathering gathering serve --migrate
  GATHERING__LOG__FILTER=debug gathering serve    Set one key of the configuration
  gathering user create --email me@example.com --admin
                                                  Make the first administrator
  gathering config                                Show every key, its meaning and its value

Environment:
  DATABASE_URL             sqlite://path or postgres://user:password@host/database
  REDIS_URL                redis://host, which several instances share for their rate limits
  GATHERING_CONFIG         The TOML file of the configuration
  GATHERING__SECTION__KEY  One key of it, such as GATHERING__SERVER__LISTEN
  GATHERING_DEMO_PASSWORD  Password of the users that `seed` and `demo` make";

const TO_TRY: &str = r#"
Three queries worth trying in the playground, which a browser finds at the address above:

  # The team: twenty members, what they run on, and what they did last
  { circle(id: "circle_01ke6p4zk8e03r000000000001") { name members(first: 20) { edges { membership { role }
    node { name status model { displayName provider { name isLocal } } recentActivity { totalMessages completedTasks } } } } } }

  # The desk: what is going on now
  { viewer { name } dashboard { agents { total busy idle } circles { total running } tasks { open inReview } } }

  # The board: the first tasks of every running circle, in a handful of statements
  { circles(first: 5, filter: {status: [RUNNING]}) { nodes { name tasks(first: 3) { totalCount nodes { title status assignee { name } } } } } }
"#;

/// A GraphQL API server for teams of AI agents.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// The TOML file of the configuration, instead of the one in `GATHERING_CONFIG`
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the database
    ///
    /// A SQLite database is made and brought up to date first. A PostgreSQL database must be up to date, unless
    /// --migrate is given; several servers may then start at the same time. Beside PostgreSQL `auth.signing_key` must be
    /// set; beside SQLite a key is made and kept in the data directory.
    ///
    /// SIGTERM ends the server politely: /health/ready answers 503 at once, new requests are served for `server.grace`
    /// more, those in flight have `server.drain` to finish. Ctrl-C leaves out the grace; a second signal ends at once.
    /// SIGHUP has the rate limits of the configuration read again.
    Serve {
        /// Address and port to listen on; port 0 picks a free one
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
        /// Bring a PostgreSQL database up to date first
        #[arg(long)]
        migrate: bool,
    },
    /// Bring the database up to date, or back
    Migrate {
        #[command(subcommand)]
        direction: Option<Direction>,
    },
    /// Fill the database with the demo data; doing it again changes nothing
    Seed,
    /// Serve throw-away demo data: needs nothing, leaves nothing behind
    ///
    /// The database is a SQLite file in a directory that is removed at the end. The playground signs itself in as the
    /// demo user. Where port 8000 is taken, a free one is used.
    Demo {
        /// Address and port to listen on; port 0 picks a free one
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
    },
    /// Make and change accounts: the way to the first administrator
    User {
        #[command(subcommand)]
        act: Act,
    },
    /// Sign access tokens with a new key from the next start on; those of the present one stay good
    RotateKey,
    /// Print the GraphQL schema
    Schema,
    /// Print every key of the configuration, its meaning and its value, secrets masked
    Config,
}

#[derive(Clone, Copy, Subcommand)]
enum Direction {
    /// Apply what is pending (the default)
    Up,
    /// Say how many migrations are pending
    Status,
    /// Take every migration back; all data is lost
    Down {
        /// Yes, delete all data
        #[arg(long, required = true)]
        delete_all_data: bool,
    },
}

#[derive(Subcommand)]
enum Act {
    /// Make an account
    ///
    /// The password is read from standard input, where it is not echoed; without a terminal, its first line.
    Create {
        /// The e-mail address to sign in with
        #[arg(long)]
        email: String,
        /// The name shown to others [default: the part of the e-mail address before the @]
        #[arg(long)]
        name: Option<String>,
        /// Make an administrator
        #[arg(long)]
        admin: bool,
    },
    /// Keep a user from signing in, and end all their sessions
    Disable {
        /// The e-mail address of the account
        #[arg(long)]
        email: String,
    },
    /// Let a disabled user sign in again
    Enable {
        /// The e-mail address of the account
        #[arg(long)]
        email: String,
    },
    /// Make a user an administrator, or a plain user again
    SetRole {
        /// The e-mail address of the account
        #[arg(long)]
        email: String,
        /// What the user may do from now on
        #[arg(long)]
        role: Role,
    },
    /// Give a user a new password, read from standard input, and end all their sessions
    SetPassword {
        /// The e-mail address of the account
        #[arg(long)]
        email: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// Works with what is theirs and what is shared with them
    User,
    /// May read and change everything
    Admin,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
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
            print("the next start signs with a new key; tokens of the present one stay good\n");
        }
        Command::Seed => {
            let config = start()?;
            on_database(&config, async |database| fill(database, &config).await).await?;
            print("the demo data is in place\n");
        }
    }
    Ok(())
}

/// Opens the database for one piece of work.
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
        .map_err(|error| StartError::new(format!("cannot make a temporary directory: {error}")))?;
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
        // Whoever tries the demo wants to see it, not to look for the program that has the port.
        config.server.listen.set_port(0);
        tracing::warn!("{wanted} is taken, a free port is used instead");
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

/// How long the token is good that `demo` prints: as long as anybody tries it.
const DEMO_TOKEN: Duration = Duration::from_hours(30 * 24);

fn is_taken(address: SocketAddr) -> bool {
    std::net::TcpListener::bind(address)
        .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Brings the database up to date if it is SQLite, and seeds it.
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

/// Makes or changes an account.
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
            made.map(|id| format!("made {}", id.as_str()))
        }
        Act::Disable { email } => {
            let done = operator.set_active(&email, false).await;
            done.map(|()| "the user can no longer sign in".to_owned())
        }
        Act::Enable { email } => {
            let done = operator.set_active(&email, true).await;
            done.map(|()| "the user can sign in".to_owned())
        }
        Act::SetRole { email, role } => {
            let done = operator.set_role(&email, matches!(role, Role::Admin)).await;
            done.map(|()| "the user has the new role".to_owned())
        }
        Act::SetPassword { email } => {
            let password = read_password()?;
            let done = operator.set_password(&email, &password).await;
            done.map(|()| "the user has the new password".to_owned())
        }
    };
    done.map_err(StartError::new)
}

/// A password, typed without an echo, or the first line of what is piped in. As an argument it would be in the
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
            print("took every migration back\n");
        }
    }
    Ok(())
}

/// SIGTERM and Ctrl-C, heard from when this is made: before anybody can know that there is something to end.
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

    /// Waits for the next signal.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }

    /// Does the work unless a signal comes before its end.
    async fn before<T>(
        &mut self,
        work: impl Future<Output = Result<T, StartError>>,
    ) -> Result<Option<T>, StartError> {
        tokio::select! {
            done = work => done.map(Some),
            _ = self.next() => Ok(None),
        }
    }

    /// Runs the server until a signal comes, and ends it politely, unless a second one comes. SIGHUP has it take the rate
    /// limits of the configuration as it is then; one that cannot be read changes nothing.
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
                        tracing::info!("took the rate limits of the configuration");
                    }
                    Err(error) => tracing::error!(%error, "the configuration cannot be read"),
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

/// Writes to standard output at once. A reader who has gone is not an error of ours.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
