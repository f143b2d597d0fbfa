//! The server: from a configuration to a listening address, and back down.
//!
//! The rule: it listens before it is ready and is unready before it stops listening. Whatever a connection does, it is
//! bounded: in its header, in its time, in its number. The pool is opened at start and closed last.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::{from_fn, map_response};
use axum::response::{IntoResponse, Response};
use gathering_schema::{Graph, Limits, Trust, TrustedDocuments};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::{self, Config};
use crate::db::Database;
use crate::health::Health;
use crate::{StartError, http, telemetry};

/// Longest header of a request, start line included, in bytes: a query by GET fits.
const HEADER_LIMIT: usize = 64 << 10;

/// Longest wait for the pool to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server. Dropping it ends it at once.
pub struct Server {
    address: SocketAddr,
    database: Database,
    health: Arc<Health>,
    stop: oneshot::Sender<()>,
    accepting: Task,
}

/// A task that ends with its handle.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// Listens, opens the database, brings it up to date and serves. SQLite is migrated; PostgreSQL only when `migrate`
    /// says so.
    ///
    /// # Errors
    /// The address is taken, the database cannot be used, or it waits for migrations.
    pub async fn start(config: Config, migrate: bool) -> Result<Self, StartError> {
        let listen = config.server.listen;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|error| cannot_listen(listen, &error))?;
        let address = listener
            .local_addr()
            .map_err(|error| cannot_listen(listen, &error))?;

        let health = Health::new();
        let app = Arc::new(App {
            starting: outer(health.routes().fallback(starting)),
            serving: OnceLock::new(),
        });
        let (stop, stopped) = oneshot::channel();
        #[expect(
            clippy::disallowed_methods,
            reason = "the task belongs to the server, which ends it"
        )]
        let accepting = Task(tokio::spawn(accept(
            listener,
            Arc::clone(&app),
            config.server.clone(),
            stopped,
        )));

        let database = Database::open(&config.database).await?;
        bring_up_to_date(&database, &config, migrate).await?;
        let graph = Graph::new(
            database.connection().clone(),
            limits(&config.graphql),
            trusted(&config.graphql)?,
        );
        let routes = http::routes(graph, config);
        app.serving
            .get_or_init(|| outer(health.routes().merge(routes).fallback(nowhere)));
        health.started(database.clone());
        Ok(Self {
            address,
            database,
            health,
            stop,
            accepting,
        })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many statements the server has sent to its database.
    pub fn statements(&self) -> u64 {
        self.database.statements()
    }

    /// Ends the server: unready now, no new connections after `grace`, then requests in flight finish as long as the
    /// configuration lets them, and the pool closes last.
    pub async fn shut_down(mut self, grace: Duration) {
        self.health.draining();
        tokio::time::sleep(grace).await;
        // The other end is gone only if the task is, and then there is nothing to stop.
        let _ = self.stop.send(());
        let _ = (&mut self.accepting.0).await;
        if tokio::time::timeout(CLOSE_TIMEOUT, self.database.close())
            .await
            .is_err()
        {
            tracing::warn!("statements were still running when the pool was closed");
        }
    }
}

/// What answers a connection's requests.
struct App {
    /// Until the graph is there.
    starting: Router,
    serving: OnceLock<Router>,
}

/// What every response passes.
fn outer(routes: Router) -> Router {
    routes
        .layer(map_response(http::harden))
        .layer(from_fn(telemetry::observe))
}

fn limits(settings: &config::Graphql) -> Limits {
    Limits {
        document_bytes: settings.document_bytes,
        tokens: settings.tokens,
        root_fields: settings.root_fields,
        depth: settings.depth,
        complexity: settings.complexity,
        timeout: settings.timeout,
        parsed_documents: settings.parsed_documents,
        persisted_queries: settings.persisted_queries,
        introspection: settings.introspection,
    }
}

fn trusted(settings: &config::Graphql) -> Result<TrustedDocuments, StartError> {
    let trust = match settings.trusted_documents {
        config::TrustedDocuments::Off => return Ok(TrustedDocuments::default()),
        config::TrustedDocuments::Audit => Trust::Audit,
        config::TrustedDocuments::Enforce => Trust::Enforce,
    };
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
            "the database {} is not up to date and cannot be written: change its permissions",
            config.database.url,
        )));
    }
    if config.database.url.is_postgres() && !migrate {
        return Err(StartError::new(format!(
            "the database is not up to date (pending migrations: {pending}): run `gathering migrate`, or start with `gathering serve --migrate`",
        )));
    }
    gathering_migration::up(connection).await?;
    tracing::info!(migrations = pending, "brought the database up to date");
    Ok(())
}

fn cannot_listen(listen: SocketAddr, error: &io::Error) -> StartError {
    StartError::new(match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "cannot listen on {listen}: the port is taken; end the program that has it, or choose another with --listen {}:0 (0 picks a free one)",
            listen.ip(),
        ),
        _ => format!("cannot listen on {listen} ({error}): choose another address with --listen"),
    })
}

async fn starting() -> Response {
    let body = r#"{"errors":[{"message":"The server is starting.","extensions":{"code":"UNAVAILABLE","retryAfter":1}}]}"#;
    let headers = [
        (
            CONTENT_TYPE,
            "application/graphql-response+json; charset=utf-8",
        ),
        (RETRY_AFTER, "1"),
    ];
    (StatusCode::SERVICE_UNAVAILABLE, headers, body).into_response()
}

async fn nowhere() -> Response {
    (
        StatusCode::NOT_FOUND,
        "Nothing is here. The API is at /graphql.\n",
    )
        .into_response()
}

/// Takes connections until told to stop, then lets their requests finish.
async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    settings: config::Server,
    mut stopped: oneshot::Receiver<()>,
) {
    let room = Arc::new(Semaphore::new(settings.max_connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_buf_size(HEADER_LIMIT);
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            biased;
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => continue,
            (permit, accepted) = next => match accepted {
                Ok((stream, _)) => (permit, stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    // Out of files or memory: others must finish first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let app = Arc::clone(&app);
        let service = service_fn(move |request| {
            let router = app.serving.get().unwrap_or(&app.starting).clone();
            TowerToHyperService::new(router).call(request)
        });
        let connection =
            graceful.watch(http.serve_connection(io(stream, settings.write_timeout), service));
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection failed");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(settings.drain, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "requests were still running when the server stopped"
        );
    }
}

/// A connection that sends at once, and that the system cuts off when what was sent is not taken in time.
fn io(stream: TcpStream, write_timeout: Duration) -> TokioIo<TcpStream> {
    let socket = SockRef::from(&stream);
    let set = socket.set_tcp_nodelay(true);
    if let Err(error) = set.and_then(|()| socket.set_tcp_user_timeout(Some(write_timeout))) {
        tracing::debug!(%error, "a connection keeps its defaults");
    }
    TokioIo::new(stream)
}
