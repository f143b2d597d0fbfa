//! The settings that this crate uses.
//!
//! Those of the graph are declared in the schema crate, each beside the code that it bounds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use gathering_schema::{Limits, Trust, auth};
use gathering_settings::{choice, settings};

use super::value::{CollectorUrl, DatabaseUrl, MailUrl, Networks, Origins, Ratio, Secret};

settings! {
    /// The HTTP server.
    pub struct Server {
        /// Address and port to listen on; port 0 picks a free one.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8000));
        /// Maximum size of a request body, in bytes.
        body_limit: usize = 1 << 20, from 1 << 10, to 64 << 20;
        /// Maximum number of open connections; further ones wait. The default fits the usual limit of 1024 open files. An
        /// HTTP/2 connection has up to 100 requests at a time.
        max_connections: usize = 900, from 1, to 100_000;
        /// Maximum time to receive the header of a request; therefore also the idle timeout of a connection.
        header_timeout: Duration = seconds(30), from seconds(1), to seconds(600);
        /// Maximum time to receive the body of a request.
        body_timeout: Duration = seconds(30), from seconds(1), to seconds(600);
        /// Maximum time for a client to receive the data sent to it.
        write_timeout: Duration = seconds(30), from seconds(1), to seconds(600);
        /// After SIGTERM, how long new requests are still served while `/health/ready` answers 503.
        grace: Duration = seconds(5), from seconds(0), to seconds(600);
        /// After the grace period, maximum time for running requests to finish.
        drain: Duration = seconds(20), from seconds(0), to seconds(600);
        /// Trusted proxies in front of the server, as networks such as `10.0.0.0/8`, separated by commas. The client's
        /// address is read from their headers `Forwarded` and `X-Forwarded-For`.
        trusted_proxies: Networks = Networks(Vec::new());
        /// Origins allowed to call this server (CORS), separated by commas, such as `https://app.example.com`; `*`
        /// allows all.
        cors_origins: Origins = Origins(Vec::new());
        /// Whether the playground is served to browsers at `/graphql`.
        playground: bool = true;
    }

    /// The database and its connection pool.
    pub struct Database {
        /// `sqlite://path` or `postgres://user:password@host/database`; empty means `gathering.db` in the data directory.
        url: DatabaseUrl = DatabaseUrl::default();
        /// Minimum number of open connections.
        min_connections: u32 = 4, from 0, to 1000;
        /// Maximum number of open connections.
        max_connections: u32 = 20, from 1, to 1000;
        /// Maximum wait for a connection of the pool; after that, a request fails with `UNAVAILABLE`.
        acquire_timeout: Duration = seconds(3), from Duration::from_millis(10), to seconds(60);
        /// Maximum execution time of one statement (PostgreSQL).
        statement_timeout: Duration = seconds(10), from Duration::from_millis(10), to seconds(600);
        /// Idle time after which a connection is tested before use.
        ping_after: Duration = seconds(30), from seconds(0), to seconds(600);
    }

    /// State shared by several instances, in addition to the database.
    pub struct Redis {
        /// `redis://host` or `rediss://user:password@host`; leave empty for a single instance.
        url: Secret = Secret::default();
    }

    /// Limits of one GraphQL operation.
    pub struct Graphql {
        /// The limits of an operation.
        limits: Limits, prefix "";
        /// Maximum number of operations in a batch; 0 disables batches.
        batch: usize = 0, from 0, to 10;
        /// Which callers may request `extensions.usage` with the header `X-Gathering-Usage: 1`.
        usage: Usage = Usage::Everyone;
        /// Whether only operations of the manifest may run (`enforce`); `audit` also runs the others and logs them.
        trusted_documents: Trust = Trust::Any;
        /// JSON file of the trusted documents: an object from id to document.
        manifest: PathBuf = PathBuf::new();
    }

    /// Long-lived connections: WebSocket connections and response streams over HTTP.
    pub struct Subscriptions {
        /// Maximum number of WebSocket connections and streams. The default leaves room for requests within
        /// `server.max_connections`.
        connections: usize = 500, from 1, to 100_000;
        /// Maximum number of them from one address (IPv6: from one /64).
        connections_per_client: usize = 10, from 1, to 100_000;
        /// Maximum number of concurrent operations on one WebSocket connection.
        operations: usize = 20, from 1, to 1_000;
        /// Maximum size of a message from a WebSocket client, in bytes.
        message_bytes: usize = 64 << 10, from 1 << 10, to 64 << 20;
        /// Maximum wait for `connection_init` on a new WebSocket connection.
        init_timeout: Duration = seconds(10), from Duration::from_millis(10), to seconds(600);
        /// Interval of keep-alives: pings on a WebSocket connection, or an idle time on a stream. A WebSocket client
        /// that answers neither of two pings is disconnected when the third is due.
        keep_alive: Duration = seconds(20), from Duration::from_millis(10), to seconds(600);
    }

    /// Accounts, tokens and the audit log.
    pub struct Auth {
        /// Key that signs access tokens: at least 32 random bytes, such as the output of `openssl rand -base64 48`, the
        /// same on all instances. If empty, a key is generated and kept in the data directory (SQLite only).
        signing_key: Secret = Secret::default();
        /// Further keys whose tokens are accepted, separated by commas: the previous or the next key during a rotation.
        verification_keys: Secret = Secret::default();
        /// Tokens, passwords and the audit log.
        policy: auth::Policy, prefix "";
    }

    /// Mails to the users, which recover and verify their accounts.
    pub struct Mail {
        /// Mail server: `smtp://user:password@host:587` (STARTTLS, required unless the host is this machine) or
        /// `smtps://user:password@host` (TLS); `?tls=none` sends unencrypted. Leave empty to send no mails.
        url: MailUrl = MailUrl::default();
        /// Sender of the mails, such as `Gathering <gathering@example.com>`.
        from: String = String::new();
        /// The links in mails.
        links: auth::MailLinks, prefix "";
    }

    /// The files of the server.
    pub struct Data {
        /// Directory of the database file and the signing key; empty means `gathering` in `$XDG_DATA_HOME` or in `~/.local/share`.
        dir: PathBuf = PathBuf::new();
    }

    /// The demo data of the commands `seed` and `demo`.
    pub struct Demo {
        /// Password of the demo users, 8 to 128 characters.
        password: Secret = "gathering-demo".to_owned().into();
    }

    /// The log on standard error.
    pub struct Log {
        /// Logged levels: `error`, `warn`, `info`, `debug`, or by module such as `info,gathering=debug`.
        filter: String = "info,sea_orm_migration=warn,sqlx=warn".to_owned();
        /// One event per line: `text` for people, `json` for programs.
        format: LogFormat = LogFormat::Text;
    }

    /// Traces of operations, sent to a collector (OpenTelemetry).
    pub struct Trace {
        /// Collector that receives the traces by OTLP over HTTP, such as `http://127.0.0.1:4318`; the path `/v1/traces`
        /// is added. Leave empty to send none.
        endpoint: CollectorUrl = CollectorUrl::default();
        /// Share of the operations that are traced, from 0.0 to 1.0. A request with the header `traceparent` is traced
        /// if its sender traces it.
        sample: Ratio = Ratio(0.1);
        /// Headers for the collector as `name=value`, separated by commas, such as `authorization=Bearer%20…`; values
        /// are percent-encoded.
        headers: Secret = Secret::default();
        /// Name of this service in the traces.
        service_name: String = "gathering".to_owned();
    }
}

choice! {
    /// Which callers may request the usage of an operation.
    pub enum Usage {
        /// All callers.
        Everyone = "everyone",
        /// Administrators.
        Admin = "admin",
        /// No caller.
        Off = "off",
    }

    /// The format of the log.
    pub enum LogFormat {
        /// Text for people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
