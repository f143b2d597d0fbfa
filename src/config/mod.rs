//! The configuration: the only module that reads the environment, and the single list of settings.
//!
//! A value comes from its default, the TOML file, a well-known variable such as `DATABASE_URL`, or
//! `GATHERING__SECTION__KEY`; a later source overrides an earlier one. Unknown keys are errors, so that a typing error
//! does not silently leave the default.

mod keys;
mod load;
mod value;

use gathering_schema::events;
use gathering_schema::rate_limit::Rates;
use gathering_settings::{Group, settings};

pub use gathering_schema::Trust;
pub use gathering_schema::rate_limit::{Mode, Scope};
pub use keys::{
    Auth, Data, Database, Demo, Graphql, Log, LogFormat, Mail, Redis, Server, Subscriptions, Trace,
    Usage,
};
pub use value::{
    CollectorUrl, DatabaseUrl, Encryption, MailServer, MailUrl, Networks, Origins, Ratio, Secret,
};

settings! {
    /// All settings, by section.
    pub struct Config {
        /// The HTTP server.
        server: Server, prefix "server.";
        /// The database and its connection pool.
        database: Database, prefix "database.";
        /// Live events.
        events: events::Settings, prefix "events.";
        /// State shared by several instances, in addition to the database.
        redis: Redis, prefix "redis.";
        /// Rate limits of root fields; reloaded on SIGHUP.
        limits: Rates, prefix "limits.";
        /// Limits of one GraphQL operation.
        graphql: Graphql, prefix "graphql.";
        /// Long-lived connections: WebSocket connections and response streams over HTTP.
        subscriptions: Subscriptions, prefix "subscriptions.";
        /// Accounts, tokens and the audit log.
        auth: Auth, prefix "auth.";
        /// Mails to the users, which recover and verify their accounts.
        mail: Mail, prefix "mail.";
        /// The files of the server.
        data: Data, prefix "data.";
        /// The demo data of the commands `seed` and `demo`.
        demo: Demo, prefix "demo.";
        /// The log on standard error.
        log: Log, prefix "log.";
        /// Traces of operations, sent to a collector (OpenTelemetry).
        trace: Trace, prefix "trace.";
    }
}

impl Config {
    /// The effective configuration as TOML with a comment on each key, secrets masked.
    pub fn show(&self) -> String {
        let mut shown = self.clone();
        let mut lines = vec![
            "# Set a key in the file of --config or GATHERING_CONFIG, or with the variable GATHERING__SECTION__KEY.".to_owned(),
        ];
        let mut section = "";
        let keys = shown.keys();
        for key in &keys {
            let (of, name) = key.path.split_once('.').unwrap_or_default();
            if of != section {
                section = of;
                lines.extend([String::new(), format!("[{section}]")]);
            }
            lines.extend(key.about.iter().map(|line| format!("#{line}")));
            lines.push(format!("{name} = {}", key.value.show()));
        }
        lines.join("\n") + "\n"
    }
}
