//! The server: start from a configuration, and shutdown.
//!
//! The server listens before it is ready, and becomes unready before it stops listening. The pool is opened at start and
//! closed last.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::Utc;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gathering_schema::auth::{self, Keys, MailSettings, Mailer};
use gathering_schema::rate_limit::Rates;
use gathering_schema::{Answer, Clock, Graph, MonotonicClock, Settings, Trust, TrustedDocuments};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::config::{self, Config};
use crate::connections::ConnectionLimit;
use crate::db::Database;
use crate::health::Health;
use crate::http::{Gate, Routes};
use crate::listener::{App, accept};
use crate::mail::LogMailer;
use crate::metrics::Metrics;
use crate::playground::SignIn;
use crate::trace::Traces;
use crate::{StartError, keys, mail};

/// Maximum wait for a background task to finish, and for the pool to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server. Dropping it stops it immediately.
pub struct Server {
    address: SocketAddr,
    database: Database,
    health: Arc<Health>,
    graph: Graph,
    gate: Gate,
    stop: oneshot::Sender<()>,
    accepting: Task,
    /// Stops `recording`, `sending` and `exporting`.
    stop_writing: oneshot::Sender<()>,
    recording: Task,
    sending: Option<Task>,
    /// Sends the traces.
    exporting: Option<Task>,
    /// The purge, the relay of events and the writer of the uses of API keys. They run until the pool is closed.
    background: Vec<Task>,
}

/// Options of a start that are not part of the configuration.
pub struct Options {
    /// Whether a PostgreSQL database is migrated too.
    pub migrate: bool,
    /// The user as whom the playground signs its visitors in.
    pub sign_in: Option<SignIn>,
    /// Whether mails are written to the log, tokens included, instead of sent.
    pub logs_mails: bool,
    /// Returns the current time.
    pub clock: Clock,
    /// The monotonic clock, unaffected by changes of the system time.
    pub monotonic: MonotonicClock,
}

impl Default for Options {
    fn default() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the system clock")]
        let clock: Clock = Arc::new(Utc::now);
        let started = Instant::now();
        Self {
            migrate: false,
            sign_in: None,
            logs_mails: false,
            clock,
            monotonic: Arc::new(move || {
                i64::try_from(started.elapsed().as_micros()).unwrap_or(i64::MAX)
            }),
        }
    }
}

/// A task that is aborted when its handle is dropped.
struct Task(JoinHandle<()>);

impl Task {
    fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the server owns the task and ends it"
        )]
        Self(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// Binds the address, opens the database, migrates it (SQLite always, PostgreSQL if `options.migrate` is set) and
    /// serves.
    ///
    /// # Errors
    /// The address is in use, the database cannot be used or has pending migrations, or a signing key is missing.
    pub fn start(config: Config, options: Options) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(async move {
            let listen = config.server.listen;
            let listener = TcpListener::bind(listen)
                .await
                .map_err(|error| cannot_listen(listen, &error))?;
            let address = listener
                .local_addr()
                .map_err(|error| cannot_listen(listen, &error))?;

            let health = Health::new(Arc::clone(&options.clock));
            let app = Arc::new(App {
                starting: Routes::starting(health.routes()),
                serving: OnceLock::new(),
            });
            let connection_limit = ConnectionLimit::new(&config.subscriptions);
            let (stop, stopped) = oneshot::channel();
            let accepting = Task::spawn(accept(
                listener,
                Arc::clone(&app),
                config.server.clone(),
                connection_limit.clone(),
                stopped,
            ));

            let (traces, export) = Traces::new(&config.trace)?.unzip();
            let database = Database::open(&config.database).await?;
            let has_key = !config.auth.signing_key.expose().is_empty();
            let is_read_only = database.is_read_only();
            let keys = if is_read_only && !has_key {
                // Sign-in is impossible with a read-only database, so a temporary key is sufficient.
                Keys::random().map_err(|error| StartError::new(error.to_string()))?
            } else {
                keys::load(&config)?
            };
            bring_up_to_date(&database, &config, options.migrate).await?;
            let Options {
                clock,
                monotonic,
                sign_in,
                logs_mails,
                ..
            } = options;
            let trusted = config.server.trusted_proxies.0.clone();
            let gate = Gate::new(&config.limits, trusted, clock.clone(), monotonic.clone());
            let mut settings = settings(&config, keys, clock, monotonic, &health)?;
            if logs_mails {
                settings.accounts.mail = mail_settings(&config, Some(Arc::new(LogMailer)));
            }
            let created = Graph::new(database.pool().clone(), settings);
            let (graph, mut background) = created.await.map_err(StartError::new)?;
            background.relay.catch_up(!is_read_only).await;
            let metrics = Metrics::new();
            let others = metrics.routes(
                graph.clone(),
                database.clone(),
                connection_limit.clone(),
                gate.clone(),
                Arc::clone(&health),
                traces.clone(),
            );
            let others = others.merge(health.routes());
            let routes = Routes::serving(
                graph.clone(),
                config,
                sign_in.as_ref(),
                connection_limit,
                gate.clone(),
                (metrics, traces),
                others,
            );
            app.serving.get_or_init(|| routes);
            health.started(database.clone(), graph.clone());
            let (stop_writing, writing_stopped) = oneshot::channel::<()>();
            // If the server is dropped, the sender of the signal is too: stop then as well.
            let stopped = writing_stopped.map(drop).shared();
            let recording = background.audit_writer.run(stopped.clone().boxed());
            let recording = Task::spawn(recording);
            let noting = background.key_use_writer.run();
            let mail_sender = background.mail_sender.filter(|_| !is_read_only);
            let sending =
                mail_sender.map(|sender| Task::spawn(sender.run(stopped.clone().boxed())));
            let exporting = export.map(|export| Task::spawn(export.run(stopped)));
            let mut background = vec![
                Task::spawn(purge(graph.clone())),
                Task::spawn(background.relay.run(!is_read_only)),
            ];
            background.extend((!is_read_only).then(|| Task::spawn(noting)));
            Ok(Self {
                address,
                database,
                health,
                graph,
                gate,
                stop,
                accepting,
                stop_writing,
                recording,
                sending,
                exporting,
                background,
            })
        })
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The graph that the server serves, for another transport.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Number of statements sent to the database.
    pub fn statements(&self) -> u64 {
        self.database.statements()
    }

    /// Replaces the rate limits by those of a reloaded configuration.
    pub fn set_rates(&self, rates: Rates) {
        self.gate.set_rates(&rates);
        self.graph.set_rates(rates);
    }

    /// Deletes expired rows; the server also does this every hour.
    ///
    /// # Errors
    /// The database cannot be written; the cause is logged.
    pub fn purge(&self) -> BoxFuture<'_, Result<(), Answer>> {
        Box::pin(async move { self.graph.purge().await })
    }

    /// Creates an access token for a user, on behalf of the operator.
    ///
    /// # Errors
    /// The user does not exist, or the database cannot be read.
    pub fn operator_token<'a>(
        &'a self,
        email: &'a str,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<String, StartError>> {
        Box::pin(async move {
            let token = self
                .graph
                .operator_token(email, lifetime)
                .await
                .ok()
                .flatten();
            token.ok_or_else(|| StartError::new(format!("no user has the e-mail address {email}")))
        })
    }

    /// Shuts the server down gracefully. It is unready immediately, and continues to serve requests and to deliver events
    /// for `grace`. Then it accepts no new connections, notifies subscriptions, and lets running requests finish within
    /// the configured time. At the end the audit log is written, the mails that are being sent are marked as sent, the
    /// traces are sent, and the pool is closed last.
    pub fn shut_down(self, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // An async block captures only the fields that it uses; the others would be dropped immediately.
            let mut server = self;
            server.health.draining();
            tokio::time::sleep(grace).await;
            // The receiver is dropped only if the task has ended.
            let _ = server.stop.send(());
            let _ = (&mut server.accepting.0).await;
            let _ = server.stop_writing.send(());
            let recorded = tokio::time::timeout(CLOSE_TIMEOUT, &mut server.recording.0);
            let sent = tokio::time::timeout(CLOSE_TIMEOUT, async {
                if let Some(task) = &mut server.sending {
                    let _ = (&mut task.0).await;
                }
            });
            let exported = tokio::time::timeout(CLOSE_TIMEOUT, async {
                if let Some(task) = &mut server.exporting {
                    let _ = (&mut task.0).await;
                }
            });
            let (recorded, sent, exported) = tokio::join!(recorded, sent, exported);
            if recorded.is_err() {
                tracing::error!("the audit log could not be written completely");
            }
            if sent.is_err() {
                tracing::warn!("mails were still being sent; they may be sent again");
            }
            if exported.is_err() {
                tracing::warn!("the last traces could not be sent");
            }
            drop(server.sending);
            drop(server.exporting);
            drop(server.background);
            if tokio::time::timeout(CLOSE_TIMEOUT, server.database.close())
                .await
                .is_err()
            {
                tracing::warn!("statements were still running when the pool was closed");
            }
        })
    }
}

/// The first deletion of expired rows after the start, and the interval afterwards.
const FIRST_PURGE: Duration = Duration::from_mins(5);
const PURGE: Duration = Duration::from_hours(1);

/// The settings of the graph from a configuration.
///
/// # Errors
/// The manifest of trusted documents cannot be read, or the mail server is not configured completely.
pub fn settings(
    config: &Config,
    keys: Keys,
    clock: Clock,
    monotonic: MonotonicClock,
    health: &Arc<Health>,
) -> Result<Settings, StartError> {
    let redis = config.redis.url.expose();
    Ok(Settings {
        limits: config.graphql.limits.clone(),
        trusted: trusted(&config.graphql)?,
        accounts: auth::Settings {
            keys,
            mail: mail_settings(config, mail::mailer(&config.mail)?),
            policy: config.auth.policy.clone(),
        },
        rates: config.limits.clone(),
        redis: (!redis.is_empty()).then(|| redis.to_owned()),
        clock,
        monotonic,
        events: config.events.clone(),
        monitor: health.monitor(),
    })
}

fn mail_settings(config: &Config, mailer: Option<Arc<dyn Mailer>>) -> Option<MailSettings> {
    let links = config.mail.links.clone();
    mailer.map(|mailer| MailSettings { mailer, links })
}

/// Deletes expired rows periodically; retries sooner after a failure.
async fn purge(graph: Graph) {
    let mut pause = FIRST_PURGE;
    loop {
        tokio::time::sleep(pause).await;
        pause = match graph.purge().await {
            Ok(()) => PURGE,
            Err(_) => FIRST_PURGE,
        };
    }
}

fn trusted(settings: &config::Graphql) -> Result<TrustedDocuments, StartError> {
    let trust = settings.trusted_documents;
    if trust == Trust::Any {
        let documents = HashMap::new();
        return Ok(TrustedDocuments { trust, documents });
    }
    let path = settings.manifest.display();
    let text = std::fs::read_to_string(&settings.manifest).map_err(|error| {
        StartError::new(format!("graphql.manifest: {path} cannot be read: {error}"))
    })?;
    let documents = serde_json::from_str(&text).map_err(|error| {
        StartError::new(format!(
            "graphql.manifest: {path} must be a JSON object from id to document: {error}"
        ))
    })?;
    Ok(TrustedDocuments { trust, documents })
}

async fn bring_up_to_date(
    database: &Database,
    config: &Config,
    migrate: bool,
) -> Result<(), StartError> {
    let connection = database.connection();
    let pending = gathering_migration::pending(connection).await?;
    if pending == 0 {
        return Ok(());
    }
    if database.is_read_only() {
        return Err(StartError::new(format!(
            "the database {} is not up to date and not writable: change its permissions",
            config.database.url,
        )));
    }
    if config.database.url.is_postgres() && !migrate {
        return Err(StartError::new(format!(
            "the database is not up to date (pending migrations: {pending}): run `gathering migrate`, or start with `gathering serve --migrate`",
        )));
    }
    gathering_migration::up(connection).await?;
    tracing::info!(migrations = pending, "migrated the database");
    Ok(())
}

fn cannot_listen(listen: SocketAddr, error: &io::Error) -> StartError {
    StartError::new(match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "cannot listen on {listen}: the port is in use; end the program that uses it, or choose another with --listen {}:0 (0 picks a free one)",
            listen.ip(),
        ),
        _ => format!("cannot listen on {listen} ({error}): choose another address with --listen"),
    })
}
