//! The commands and their arguments.

mod backup;
mod database;
mod demo;
mod doctor;
mod export;
mod import;
mod key;
mod output;
mod rows;
mod serve;
mod user;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gathering::config::Config;
use gathering::{StartError, keys, telemetry};
use gathering_schema::Graph;

use self::database::on_database;
use self::output::print;

const EXAMPLES: &str = "\
Examples:
  gathering demo                                  Start a temporary server with demo data
  gathering serve                                 Serve the SQLite database in the data directory
  gathering serve --listen 127.0.0.1:0            Serve on a free port
  DATABASE_URL=postgres://me:secret@localhost/gathering gathering serve --migrate
  GATHERING__LOG__FILTER=debug gathering serve    Set one key of the configuration
  gathering user create --email me@example.com --admin
                                                  Create the first administrator
  gathering key create --email me@example.com --name ci --scope read --scope write
                                                  Create an API key for a program
  gathering export all.jsonl                      Write all data to a file, for another database
  gathering config                                Print every key with its description and value

Environment:
  DATABASE_URL             sqlite://path or postgres://user:password@host/database
  REDIS_URL                redis://host, shared by several instances for rate limits
  GATHERING_CONFIG         TOML file of the configuration
  GATHERING__SECTION__KEY  One key of it, such as GATHERING__SERVER__LISTEN
  GATHERING_DEMO_PASSWORD  Password of the users that `seed` and `demo` create";

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
        direction: Option<database::Direction>,
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
        action: user::Action,
    },
    /// Create, list and revoke API keys, with which programs authenticate
    Key {
        #[command(subcommand)]
        action: key::Action,
    },
    /// Copy the SQLite database to a new file while servers use it
    ///
    /// The copy is consistent, and only its owner can read it. To restore it, stop the server, delete the files of the
    /// database that end in `-wal` and `-shm`, and move the copy to the place of the database. Clients then cannot resume
    /// subscriptions with earlier cursors. A PostgreSQL database is copied with `pg_dump`.
    Backup {
        /// The file to create; it must not exist
        file: PathBuf,
    },
    /// Write the data as JSON lines to a new file while servers use the database
    ///
    /// The export is one snapshot, and can be imported into SQLite and PostgreSQL. It contains everything but sessions,
    /// mails, idempotency keys and failed sign-ins: users sign in again. It contains password hashes and the hashes of
    /// API keys, unless --without-credentials is given; only its owner can read it.
    ///
    /// With --circle: the circle with its collaborators, members, tasks, conversations and messages, and the agents,
    /// project and catalogue that these refer to. Of users, it contains the ids and e-mail addresses.
    Export {
        /// Export one circle
        #[arg(long, value_name = "ID")]
        circle: Option<String>,
        /// Leave out password hashes and API keys
        #[arg(long)]
        without_credentials: bool,
        /// The file to create, which must not exist; `-` is standard output
        file: PathBuf,
    },
    /// Add the rows of an export to the database
    ///
    /// A row that exists, by its primary key, is left as it is: an interrupted import is continued by repeating the
    /// command. Rows are committed 500 at a time. Servers may use the database; clients receive no events about the rows.
    /// An incomplete file is refused, and so is an export of a version with other tables.
    Import {
        /// Import the circle of an export as a copy with new ids, derived from KEY; repeat KEY to continue an import
        #[arg(long, value_name = "KEY", num_args = 0..=1, require_equals = true, default_missing_value = "")]
        map_ids: Option<String>,
        /// The e-mail address of the user who replaces users that this database does not have, for the export of a circle
        #[arg(long, value_name = "EMAIL")]
        owner: Option<String>,
        /// Leave out the events, for a database that has its own
        #[arg(long)]
        without_events: bool,
        /// The file; `-` is standard input
        file: PathBuf,
    },
    /// Check the configuration, the database, Redis and the machine, and print what to do
    ///
    /// Changes no data and generates no key. The exit status is 1 if a check fails, which would prevent a start or endanger data.
    Doctor,
    /// Generate a new key to sign access tokens from the next start on; tokens of the current key stay valid
    RotateKey,
    /// Print the GraphQL schema
    Schema,
    /// Print every key of the configuration with its description and value; secrets are masked
    Config,
}

/// Runs the command. An error is one line.
pub(crate) async fn main() -> ExitCode {
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
            serve::serve(config, migrate, configure).await?;
        }
        Command::Demo { listen } => demo::demo(start()?, listen, configure).await?,
        Command::Migrate { direction } => {
            let direction = direction.unwrap_or(database::Direction::Up);
            on_database(&start()?, async |database| {
                database::migrate(database, direction).await
            })
            .await?;
        }
        Command::User { action } => {
            let config = start()?;
            on_database(&config, async |database| {
                user::run(database, &config, async |operator| {
                    user::apply(operator, &config, action).await
                })
                .await
            })
            .await?;
        }
        Command::Key { action } => {
            let config = start()?;
            on_database(&config, async |database| {
                user::run(database, &config, async |operator| {
                    key::apply(operator, &config, action).await
                })
                .await
            })
            .await?;
        }
        Command::Backup { file } => backup::backup(&start()?, &file).await?,
        Command::Export {
            circle,
            without_credentials,
            file,
        } => {
            let scope = export::Scope::new(circle.as_deref(), without_credentials)?;
            on_database(&start()?, async |database| {
                export::export(database, scope, &file).await
            })
            .await?;
        }
        Command::Import {
            map_ids,
            owner,
            without_events,
            file,
        } => {
            let map_ids = map_ids.map(|key| {
                if key.is_empty() {
                    import::random_key()
                } else {
                    key
                }
            });
            if let Some(key) = &map_ids {
                print(&format!("to continue this import: --map-ids={key}\n"));
            }
            let options = import::Options {
                owner,
                map_ids,
                without_events,
            };
            on_database(&start()?, async |database| {
                import::import(database, options, &file).await
            })
            .await?;
        }
        Command::Doctor => doctor::doctor(&start()?).await?,
        Command::RotateKey => {
            keys::rotate(&start()?)?;
            print("the next start signs with a new key; tokens of the current key stay valid\n");
        }
        Command::Seed => {
            let config = start()?;
            on_database(&config, async |database| {
                demo::fill(database, &config).await
            })
            .await?;
            print("the database contains the demo data\n");
        }
    }
    Ok(())
}
