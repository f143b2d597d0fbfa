//! The configuration: the only module that reads the environment, and the single list of settings.
//!
//! A value comes from its default, the TOML file, a well-known variable such as `DATABASE_URL`, or
//! `GATHERING__SECTION__KEY`; a later source overrides an earlier one. Unknown keys are errors, so that a typing error
//! does not silently leave the default.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::Value;
use tracing_subscriber::EnvFilter;

use crate::StartError;

/// Variables with names outside the scheme `GATHERING__SECTION__KEY`, and the keys that they set.
const ALIASES: [(&str, &str); 3] = [
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "redis.url"),
    ("GATHERING_DEMO_PASSWORD", "demo.password"),
];

/// A key while it is read, checked or shown.
struct Key<'a> {
    section: &'static str,
    name: &'static str,
    about: &'static [&'static str],
    value: &'a mut dyn Setting,
    bounds: Option<[Box<dyn Setting>; 2]>,
}

/// Declares each section and key once, with type, documentation, default and bounds.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])*
        $section:ident: $Section:ident {
            $( $(#[doc = $doc:literal])* $key:ident: $type:ty = $default:expr $(, from $low:expr, to $high:expr)?; )*
        }
    )*) => {
        /// All settings, by section.
        #[derive(Clone, Debug, Default)]
        pub struct Config {
            $( $(#[doc = $about])* pub $section: $Section, )*
        }

        $(
            $(#[doc = $about])*
            #[derive(Clone, Debug)]
            pub struct $Section {
                $( $(#[doc = $doc])* pub $key: $type, )*
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $( $key: $default, )* }
                }
            }
        )*

        impl Config {
            fn keys(&mut self) -> Vec<Key<'_>> {
                vec![$($( Key {
                    section: stringify!($section),
                    name: stringify!($key),
                    about: &[$($doc),*],
                    value: &mut self.$section.$key,
                    bounds: [$({
                        let bounds: [$type; 2] = [$low, $high];
                        bounds.map(|bound| Box::new(bound) as Box<dyn Setting>)
                    })?]
                    .into_iter()
                    .next(),
                }, )*)*]
            }
        }
    };
}

settings! {
    /// The HTTP server.
    server: Server {
        /// Address and port to listen on; port 0 picks a free one.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8000));
        /// Maximum size of a request body, in bytes.
        body_limit: usize = 1 << 20, from 1 << 10, to 64 << 20;
        /// Maximum number of open connections; further ones wait. The default fits the usual limit of 1024 open files.
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
    database: Database {
        /// `sqlite://path` or `postgres://user:password@host/database`; empty means `gathering.db` in the data directory.
        url: DatabaseUrl = DatabaseUrl(String::new());
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

    /// Live events.
    events: Events {
        /// Number of recent events kept in memory; subscribers that are further behind are served from the database.
        history: usize = 1_000, from 64, to 1_000_000;
        /// Time within which an event is dropped if it equals the latest event of its subject; 0s disables this.
        window: Duration = seconds(1), from seconds(0), to seconds(60);
        /// Interval at which the database is polled for new events, in addition to notifications.
        poll: Duration = seconds(1), from Duration::from_millis(10), to hours(1);
        /// Maximum number of events that the server's internal handlers process at the same time.
        handlers: usize = 100, from 1, to 10_000;
        /// How long events are kept, and therefore how long a subscription can be resumed.
        retention: Duration = hours(30 * 24), from hours(1), to hours(3650 * 24);
    }

    /// State shared by several instances, in addition to the database.
    redis: Redis {
        /// `redis://host` or `rediss://user:password@host`; leave empty for a single instance.
        url: Secret = Secret(String::new());
    }

    /// Rate limits of root fields; reloaded on SIGHUP.
    limits: Limits {
        /// Sign-ins and registrations per minute, per address and per account.
        auth: u32 = 5, from 1, to 1_000_000;
        /// Mutations per minute, per field.
        write: u32 = 30, from 1, to 1_000_000;
        /// Queries per minute, per field.
        read: u32 = 120, from 1, to 1_000_000;
        /// Health queries per minute, per field; also the requests of any kind per minute, per address.
        health: u32 = 300, from 1, to 1_000_000;
        /// Whether the limits apply per root field (`field`) or to all fields of a tier together (`tier`).
        scope: Scope = Scope::Field;
        /// Whether requests above a limit are refused (`enforce`) or only counted (`observe`); `off` counts nothing.
        mode: Mode = Mode::Enforce;
        /// Maximum number of buckets kept in memory; read at start only.
        buckets: usize = 100_000, from 1_000, to 100_000_000;
    }

    /// Limits of one GraphQL operation.
    graphql: Graphql {
        /// Maximum size of a document, in bytes.
        document_bytes: u64 = 32 << 10, from 1 << 10, to 1 << 20;
        /// Maximum number of tokens in a document.
        tokens: u64 = 4_000, from 100, to 100_000;
        /// Maximum number of root fields in an operation, with fragments expanded.
        root_fields: u64 = 20, from 1, to 1_000;
        /// Maximum number of aliased fields in an operation, with fragments expanded.
        aliases: u64 = 100, from 1, to 10_000;
        /// Maximum nesting depth of fields; the standard introspection query needs 15.
        depth: u64 = 16, from 1, to 100;
        /// Maximum complexity: a field costs 1 plus its selection; a list multiplies its selection by its size.
        complexity: u64 = 20_000, from 100, to 10_000_000;
        /// Maximum text in a response, in bytes. Text fields beyond the limit fail.
        text_bytes: u64 = 16 << 20, from 64 << 10, to 1 << 30;
        /// Maximum execution time of a query or mutation.
        timeout: Duration = seconds(15), from Duration::from_millis(10), to seconds(600);
        /// Maximum number of operations in a batch; 0 disables batches.
        batch: usize = 0, from 0, to 10;
        /// Capacity of the document cache and of the plan cache. A document takes one slot, plus one for each KiB of its text.
        parsed_documents: u64 = 1_000, from 1, to 100_000;
        /// Maximum number of automatic persisted queries kept in memory; 0 disables them.
        persisted_queries: u64 = 1_000, from 0, to 100_000;
        /// Whether introspection is allowed.
        introspection: bool = true;
        /// Which callers may request `extensions.usage` with the header `X-Gathering-Usage: 1`.
        usage: Usage = Usage::Everyone;
        /// Whether only operations of the manifest may run (`enforce`); `audit` also runs the others and logs them.
        trusted_documents: TrustedDocuments = TrustedDocuments::Off;
        /// JSON file of the trusted documents: an object from id to document.
        manifest: PathBuf = PathBuf::new();
    }

    /// Long-lived connections: WebSocket connections and response streams over HTTP.
    subscriptions: Subscriptions {
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
    auth: Auth {
        /// Key that signs access tokens: at least 32 random bytes, such as the output of `openssl rand -base64 48`, the
        /// same on all instances. If empty, a key is generated and kept in the data directory (SQLite only).
        signing_key: Secret = Secret(String::new());
        /// Further keys whose tokens are accepted, separated by commas: the previous or the next key during a rotation.
        verification_keys: Secret = Secret(String::new());
        /// The issuer of the tokens (the claim `iss`).
        issuer: String = "gathering".to_owned();
        /// The audience of the tokens (the claim `aud`).
        audience: String = "gathering".to_owned();
        /// Lifetime of an access token.
        access_lifetime: Duration = seconds(15 * 60), from seconds(1), to seconds(3600);
        /// Lifetime of a session that is not refreshed.
        refresh_lifetime: Duration = hours(30 * 24), from seconds(1), to hours(365 * 24);
        /// Whether users may register themselves.
        registration: bool = true;
        /// Memory of one argon2id hash, in KiB; at least the minimum that OWASP recommends.
        hash_memory: u32 = 19_456, from 19_456, to 1 << 20;
        /// Passes of one argon2id hash over its memory; at least the minimum that OWASP recommends.
        hash_passes: u32 = 2, from 2, to 100;
        /// Maximum number of passwords hashed at the same time; each uses its memory and one processor.
        hash_parallel: usize = 2, from 1, to 256;
        /// Maximum number of revoked access tokens cached in memory; all are in the database.
        revoked_tokens: u64 = 10_000, from 1, to 10_000_000;
        /// Maximum number of audit log entries that wait to be written.
        audit_queue: usize = 10_000, from 100, to 1_000_000;
        /// How long entries of the audit log are kept.
        audit_retention: Duration = hours(365 * 24), from hours(1), to hours(3650 * 24);
    }

    /// The files of the server.
    data: Data {
        /// Directory of the database file and the signing key; empty means `gathering` in `$XDG_DATA_HOME` or in `~/.local/share`.
        dir: PathBuf = PathBuf::new();
    }

    /// The demo data of the commands `seed` and `demo`.
    demo: Demo {
        /// Password of the demo users, 8 to 128 characters.
        password: Secret = Secret("gathering-demo".to_owned());
    }

    /// The log on standard error.
    log: Log {
        /// Logged levels: `error`, `warn`, `info`, `debug`, or by module such as `info,gathering=debug`.
        filter: String = "info,sea_orm_migration=warn,sqlx=warn".to_owned();
        /// One event per line: `text` for people, `json` for programs.
        format: LogFormat = LogFormat::Text;
    }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn hours(n: u64) -> Duration {
    seconds(n * 3600)
}

/// A value with a text notation, shared by the TOML file and environment variables.
trait Setting {
    /// Describes valid values, to follow "must be".
    fn expected(&self) -> String;
    /// Parses and sets the value; returns false and keeps the old value if the text is invalid.
    fn take(&mut self, text: &str) -> bool;
    /// The value for display, with secrets masked.
    fn show(&self) -> Value;
    /// The value for comparison with its bounds.
    fn magnitude(&self) -> u128 {
        0
    }
    /// Whether an invalid text must not appear in an error message.
    fn is_secret(&self) -> bool {
        false
    }
}

macro_rules! whole_numbers {
    ($($type:ty)*) => {$(
        impl Setting for $type {
            fn expected(&self) -> String {
                "a whole number".to_owned()
            }
            fn take(&mut self, text: &str) -> bool {
                text.parse().map(|n| *self = n).is_ok()
            }
            fn show(&self) -> Value {
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }
            fn magnitude(&self) -> u128 {
                u128::try_from(*self).unwrap_or(u128::MAX)
            }
        }
    )*};
}

whole_numbers!(u32 u64 usize);

impl Setting for bool {
    fn expected(&self) -> String {
        "true or false".to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        text.parse().map(|b| *self = b).is_ok()
    }
    fn show(&self) -> Value {
        Value::Boolean(*self)
    }
}

impl Setting for String {
    fn expected(&self) -> String {
        "a text".to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        text.clone_into(self);
        true
    }
    fn show(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Setting for PathBuf {
    fn expected(&self) -> String {
        "a path".to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        *self = text.into();
        true
    }
    fn show(&self) -> Value {
        Value::String(self.display().to_string())
    }
}

impl Setting for SocketAddr {
    fn expected(&self) -> String {
        r#"an address and port such as "127.0.0.1:8000""#.to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        text.parse().map(|address| *self = address).is_ok()
    }
    fn show(&self) -> Value {
        Value::String(self.to_string())
    }
}

impl Setting for Duration {
    fn expected(&self) -> String {
        r#"a duration such as "250ms", "3s", "5m" or "1h""#.to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        let (number, unit) = text.split_at(
            text.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len()),
        );
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return false,
        };
        let millis = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(factor));
        millis.map(|n| *self = Self::from_millis(n)).is_some()
    }
    fn show(&self) -> Value {
        let millis = self.as_millis();
        Value::String(match millis {
            0 => "0s".to_owned(),
            n if n.is_multiple_of(3_600_000) => format!("{}h", n / 3_600_000),
            n if n.is_multiple_of(60_000) => format!("{}m", n / 60_000),
            n if n.is_multiple_of(1_000) => format!("{}s", n / 1_000),
            n => format!("{n}ms"),
        })
    }
    fn magnitude(&self) -> u128 {
        self.as_millis()
    }
}

/// Declares an enum with a word for each variant.
macro_rules! choice {
    ($(#[doc = $about:literal])* $name:ident { $( $(#[doc = $doc:literal])* $variant:ident = $word:literal, )* }) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[doc = $doc])* $variant, )*
        }

        impl Setting for $name {
            fn expected(&self) -> String {
                format!("one of {}", [$($word),*].join(", "))
            }
            fn take(&mut self, text: &str) -> bool {
                *self = match text {
                    $( $word => Self::$variant, )*
                    _ => return false,
                };
                true
            }
            fn show(&self) -> Value {
                Value::String(match self { $( Self::$variant => $word, )* }.to_owned())
            }
        }
    };
}

choice! {
    /// Which callers may request the usage of an operation.
    Usage {
        /// All callers.
        Everyone = "everyone",
        /// Administrators.
        Admin = "admin",
        /// No caller.
        Off = "off",
    }
}

choice! {
    /// The scope of a rate limit bucket.
    Scope {
        /// One bucket per root field.
        Field = "field",
        /// One bucket per tier.
        Tier = "tier",
    }
}

choice! {
    /// The treatment of requests above a rate limit.
    Mode {
        /// They are refused.
        Enforce = "enforce",
        /// They are counted and reported, but allowed.
        Observe = "observe",
        /// Rate limits are off: nothing is counted.
        Off = "off",
    }
}

choice! {
    /// The treatment of operations that are not in the manifest.
    TrustedDocuments {
        /// No manifest is used.
        Off = "off",
        /// They run and are logged.
        Audit = "audit",
        /// They are refused.
        Enforce = "enforce",
    }
}

choice! {
    /// The format of the log.
    LogFormat {
        /// Text for people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

/// Origins, as browsers send them in the header `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins(pub Vec<String>);

impl Setting for Origins {
    fn expected(&self) -> String {
        "* or origins such as https://app.example.com, separated by commas".to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        let entries: Vec<_> = entries.map(str::to_owned).collect();
        let is_origin = |entry: &String| {
            url::Url::parse(entry).is_ok_and(|url| url.origin().ascii_serialization() == *entry)
        };
        let fits = entries == ["*"] || entries.iter().all(is_origin);
        if fits {
            self.0 = entries;
        }
        fits
    }
    fn show(&self) -> Value {
        Value::String(self.0.join(","))
    }
}

/// IP networks in CIDR notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

impl Setting for Networks {
    fn expected(&self) -> String {
        "addresses or networks such as 10.0.0.0/8, separated by commas".to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        let network = |entry: &str| {
            let address = || entry.parse::<IpAddr>().map(IpNet::from).ok();
            entry.parse().ok().or_else(address)
        };
        let networks: Option<Vec<IpNet>> = entries.map(network).collect();
        networks.map(|networks| self.0 = networks).is_some()
    }
    fn show(&self) -> Value {
        let networks: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        Value::String(networks.join(","))
    }
}

/// A text that is never displayed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Setting for Secret {
    fn expected(&self) -> String {
        "a text".to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        text.clone_into(&mut self.0);
        true
    }
    fn show(&self) -> Value {
        Value::String(if self.0.is_empty() { "" } else { "***" }.to_owned())
    }
    fn is_secret(&self) -> bool {
        true
    }
}

/// The location of the database. Displayed without its password.
#[derive(Clone)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole URL, password included.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this is PostgreSQL; it is SQLite otherwise.
    pub fn is_postgres(&self) -> bool {
        self.0.starts_with("postgres")
    }

    fn parsed(&self) -> Option<url::Url> {
        url::Url::parse(&self.0).ok()
    }

    /// The SQLite database in this file.
    pub fn sqlite(file: &Path) -> Self {
        // SQLx decodes percent signs and ends the path at a question mark.
        let path = file.display().to_string();
        Self(format!(
            "sqlite://{}",
            path.replace('%', "%25").replace('?', "%3F")
        ))
    }
}

impl std::str::FromStr for DatabaseUrl {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let url = Self(text.to_owned());
        // A special character in the password that is not percent-encoded would split the URL in another place and
        // reveal a part of the password.
        let is_whole = |parsed: url::Url| {
            let rest = [Some(parsed.path()), parsed.query()];
            parsed.fragment().is_none() && !rest.iter().flatten().any(|part| part.contains('@'))
        };
        let fits = match text.split_once(':') {
            None => text.is_empty(),
            Some(("sqlite", place)) => {
                !place.contains(":memory:") && !place.contains("mode=memory")
            }
            Some(("postgres" | "postgresql", _)) => url.parsed().is_some_and(is_whole),
            Some(_) => false,
        };
        fits.then_some(url).ok_or(())
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(mut url) = self.parsed().filter(|_| self.is_postgres()) else {
            return f.write_str(&self.0);
        };
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return f.write_str("postgres://***");
        }
        let masked: Vec<String> = url
            .query_pairs()
            .map(|(key, value)| {
                let value = if key.contains("pass") {
                    "***".into()
                } else {
                    value
                };
                format!("{key}={value}")
            })
            .collect();
        url.set_query((!masked.is_empty()).then(|| masked.join("&")).as_deref());
        write!(f, "{url}")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Setting for DatabaseUrl {
    fn expected(&self) -> String {
        "sqlite:// with the path of a file, or a URL such as postgres://user:password@host/database with characters \
         like # and / in the password percent-encoded"
            .to_owned()
    }
    fn take(&mut self, text: &str) -> bool {
        text.parse().map(|url| *self = url).is_ok()
    }
    fn show(&self) -> Value {
        Value::String(self.to_string())
    }
    fn is_secret(&self) -> bool {
        true
    }
}

impl Config {
    /// Reads the TOML file (`GATHERING_CONFIG` if `file` is `None`) and the environment, and checks every value.
    ///
    /// # Errors
    /// The file cannot be read, a key is unknown, or a value is invalid.
    pub fn load(file: Option<&Path>) -> Result<Self, StartError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the environment is read only here"
        )]
        Self::read(file, std::env::vars_os())
    }

    fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, StartError> {
        let environment: BTreeMap<String, OsString> = environment
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        let mut config = Self::default();

        let named = environment
            .get("GATHERING_CONFIG")
            .filter(|path| !path.is_empty());
        if let Some(file) = file.or(named.map(Path::new)) {
            config.apply_file(file)?;
        }
        for (name, key) in ALIASES {
            if let Some(value) = environment.get(name) {
                config.apply_variable(name, key, value)?;
            }
        }
        for (name, value) in &environment {
            // Variables with one underscore are ignored: Kubernetes sets some for a service of this name.
            if let Some(path) = name.strip_prefix("GATHERING__") {
                config.apply_variable(name, &path.to_lowercase().replace("__", "."), value)?;
            }
        }
        config.check()?;

        if config.data.dir.as_os_str().is_empty() {
            let path = |name: &str| {
                environment
                    .get(name)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from)
            };
            let home = || path("HOME").map(|home| home.join(".local/share"));
            if let Some(data) = path("XDG_DATA_HOME").or_else(home) {
                config.data.dir = data.join("gathering");
            }
        }
        if config.database.url.expose().is_empty() {
            config.database.url = DatabaseUrl::sqlite(&config.data.dir.join("gathering.db"));
        }
        Ok(config)
    }

    fn apply_file(&mut self, file: &Path) -> Result<(), StartError> {
        let name = file.display();
        let text = std::fs::read_to_string(file).map_err(|error| {
            StartError::new(format!(
                "cannot read the configuration file {name}: {error}"
            ))
        })?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start].lines().count().max(1));
            StartError::new(format!("{name}, line {line}: {}", error.message()))
        })?;
        for (section, value) in table {
            let entries = match value {
                Value::Table(entries) => entries,
                value => toml::Table::from_iter([(String::new(), value)]),
            };
            if entries.is_empty() && !self.keys().iter().any(|key| key.section == section) {
                return Err(StartError::new(format!(
                    "{name}: [{section}] is not a section"
                )));
            }
            for (key, value) in entries {
                let path = format!("{section}.{key}");
                let path = path.trim_end_matches('.');
                self.set(path, &Given::Typed(value)).map_err(|problem| {
                    StartError::new(match problem {
                        Problem::Unknown(None) => format!("{name}: {path} is not a key"),
                        Problem::Unknown(Some(near)) => {
                            format!("{name}: {path} is not a key; did you mean {near}?")
                        }
                        Problem::Unfit(why) => format!("{name}: {path} {why}"),
                    })
                })?;
            }
        }
        Ok(())
    }

    fn apply_variable(
        &mut self,
        name: &str,
        path: &str,
        value: &OsString,
    ) -> Result<(), StartError> {
        let value = value
            .to_str()
            .ok_or_else(|| StartError::new(format!("{name} is not valid UTF-8")))?;
        self.set(path, &Given::Text(value.to_owned()))
            .map_err(|problem| {
                StartError::new(match problem {
                    Problem::Unknown(None) => {
                        format!("{name} is not a known variable; `gathering config` lists them")
                    }
                    Problem::Unknown(Some(near)) => {
                        let near = near.to_uppercase().replace('.', "__");
                        format!("{name} is not a known variable; did you mean GATHERING__{near}?")
                    }
                    Problem::Unfit(why) => format!("{name} {why}"),
                })
            })
    }

    fn set(&mut self, path: &str, given: &Given) -> Result<(), Problem> {
        let mut keys = self.keys();
        let Some(key) = keys.iter_mut().find(|key| key.path() == path) else {
            return Err(Problem::Unknown(nearest(path, &keys)));
        };
        let (text, shown) = match given {
            Given::Text(text) => (Some(text.clone()), format!("{text:?}")),
            Given::Typed(value) => {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                (
                    value.same_type(&key.value.show()).then_some(text),
                    value.to_string(),
                )
            }
        };
        if text.is_some_and(|text| key.value.take(&text)) {
            return key.check_bounds();
        }
        let found = if key.value.is_secret() {
            String::new()
        } else {
            format!(", not {shown}")
        };
        Err(Problem::Unfit(format!(
            "must be {}{found}",
            key.value.expected()
        )))
    }

    fn check(&self) -> Result<(), StartError> {
        let refuse = |text: &str| Err(StartError::new(text));
        if self.database.min_connections > self.database.max_connections {
            return refuse("database.min_connections must not be above database.max_connections");
        }
        if self.graphql.trusted_documents != TrustedDocuments::Off
            && self.graphql.manifest.as_os_str().is_empty()
        {
            return refuse(
                "graphql.trusted_documents requires graphql.manifest, the file of the documents",
            );
        }
        if !(8..=128).contains(&self.demo.password.expose().chars().count()) {
            return refuse("demo.password (GATHERING_DEMO_PASSWORD) must have 8 to 128 characters");
        }
        if let Err(error) = EnvFilter::try_new(&self.log.filter) {
            return Err(StartError::new(format!(
                "log.filter {:?}: {error}",
                self.log.filter
            )));
        }
        Ok(())
    }

    /// The effective configuration as TOML with a comment on each key, secrets masked.
    pub fn show(&self) -> String {
        let mut shown = self.clone();
        let mut lines = vec![
            "# Set a key in the file of --config or GATHERING_CONFIG, or with the variable GATHERING__SECTION__KEY.".to_owned(),
        ];
        let mut section = "";
        for key in shown.keys() {
            if key.section != section {
                section = key.section;
                lines.extend([String::new(), format!("[{section}]")]);
            }
            lines.extend(key.about.iter().map(|line| format!("#{line}")));
            lines.push(format!("{} = {}", key.name, key.value.show()));
        }
        lines.join("\n") + "\n"
    }
}

/// A value from one source.
enum Given {
    /// From the file: the type must be that of the key.
    Typed(Value),
    /// From the environment: always text.
    Text(String),
}

/// Why a key cannot be set.
enum Problem {
    /// The key is unknown; the text is the most similar key.
    Unknown(Option<String>),
    /// The value is invalid; the text follows the key's name.
    Unfit(String),
}

impl Key<'_> {
    fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    fn check_bounds(&self) -> Result<(), Problem> {
        let Some([low, high]) = &self.bounds else {
            return Ok(());
        };
        if (low.magnitude()..=high.magnitude()).contains(&self.value.magnitude()) {
            return Ok(());
        }
        let (low, high, found) = (low.show(), high.show(), self.value.show());
        Err(Problem::Unfit(format!(
            "must be from {low} to {high}, not {found}"
        )))
    }
}

/// The most similar key: by path, or by name in any section.
fn nearest(path: &str, keys: &[Key<'_>]) -> Option<String> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let likeness = |key: &Key<'_>| {
        let whole = strsim::normalized_damerau_levenshtein(path, &key.path());
        let last = strsim::normalized_damerau_levenshtein(name, key.name);
        (whole.max(last), whole)
    };
    let ((score, _), key) = (keys.iter())
        .map(|key| (likeness(key), key))
        .max_by(|(a, _), (b, _)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)))?;
    (score > 0.6).then(|| key.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(environment: &[(&str, &str)]) -> Result<Config, StartError> {
        let environment = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Config::read(None, environment)
    }

    #[test]
    fn every_default_fits_its_bounds_and_its_notation() {
        for key in Config::default().keys() {
            assert!(key.check_bounds().is_ok(), "{}", key.path());
            let text = key.value.show();
            let text = text
                .as_str()
                .map_or_else(|| text.to_string(), str::to_owned);
            assert!(key.value.take(&text), "{} = {text}", key.path());
        }
    }

    #[test]
    fn durations_are_written_with_a_unit() {
        let mut duration = Duration::ZERO;
        for (text, milliseconds) in [
            ("0s", 0),
            ("250ms", 250),
            ("90s", 90_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
        ] {
            assert!(duration.take(text), "{text}");
            assert_eq!(duration.as_millis(), milliseconds);
        }
        assert_eq!(duration.show().as_str(), Some("2h"));
        for text in [
            "",
            "3",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1d",
            "99999999999999999999s",
            "9999999999999999h",
        ] {
            assert!(!duration.take(text), "{text}");
        }
    }

    #[test]
    fn the_specific_variable_wins() {
        let own = ("GATHERING__DATABASE__URL", "sqlite://own.db");
        let config = read(&[("DATABASE_URL", "sqlite://shared.db"), own]).expect("fits");
        assert_eq!(config.database.url.expose(), "sqlite://own.db");
        let other = ("GATHERING_SERVICE_HOST", "10.0.0.1");
        assert!(read(&[other]).is_ok());
    }

    #[test]
    fn the_database_is_in_the_data_directory_unless_named() {
        let url = |environment: &[_]| read(environment).expect("fits").database.url.to_string();
        assert_eq!(
            url(&[("HOME", "/home/me")]),
            "sqlite:///home/me/.local/share/gathering/gathering.db"
        );
        assert_eq!(
            url(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "/data")]),
            "sqlite:///data/gathering/gathering.db"
        );
        assert_eq!(
            url(&[("GATHERING__DATA__DIR", "/srv/50%?")]),
            "sqlite:///srv/50%25%3F/gathering.db"
        );
    }

    #[test]
    fn passwords_are_masked_wherever_a_url_has_them() {
        for (url, shown) in [
            ("postgres://me@host/db", "postgres://me@host/db"),
            (
                "postgres://me:p%40ss@host:5433/db",
                "postgres://me:***@host:5433/db",
            ),
            (
                "postgresql://host/db?user=me&password=secret",
                "postgresql://host/db?user=me&password=***",
            ),
            ("postgres://me:a@b@host/db", "postgres://me:***@host/db"),
        ] {
            let url: DatabaseUrl = url.parse().expect("fits");
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
        for url in [
            "postgres://me:a#b@host/db",
            "postgres://me:1/b@host/db",
            "postgres://me:1?b@host/db",
            "sqlite::memory:",
            "mysql://host/db",
        ] {
            assert!(url.parse::<DatabaseUrl>().is_err(), "{url}");
        }
    }

    #[test]
    fn values_are_checked_against_each_other() {
        for (environment, key) in [
            (
                [("GATHERING__DATABASE__MIN_CONNECTIONS", "21")],
                "database.min_connections",
            ),
            (
                [("GATHERING__GRAPHQL__TRUSTED_DOCUMENTS", "enforce")],
                "graphql.manifest",
            ),
            ([("GATHERING_DEMO_PASSWORD", "short")], "demo.password"),
            ([("GATHERING__LOG__FILTER", "a=b=c")], "log.filter"),
        ] {
            let error = read(&environment).expect_err("is refused").to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
