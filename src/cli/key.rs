//! `key`: creates, lists and revokes API keys.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use gathering::StartError;
use gathering::config::Config;
use gathering::server::Options;
use gathering_schema::ApiKeyScope;
use gathering_schema::auth::{KeyInput, Operator};

use super::user;

#[derive(Subcommand)]
pub(super) enum Action {
    /// Create an API key and print it
    ///
    /// The key is shown once; the database has only its hash.
    Create {
        /// E-mail address of the user on whose behalf the key acts
        #[arg(long)]
        email: String,
        /// Name of the key
        #[arg(long)]
        name: String,
        /// Operations that the key allows; may be repeated [default: read]
        #[arg(long = "scope", value_name = "SCOPE", default_values = ["read"], hide_default_value = true)]
        scopes: Vec<Scope>,
        /// Id of an agent of the user: the key acts as this agent, in the circles of the agent only
        #[arg(long, value_name = "ID")]
        agent: Option<String>,
        /// Id of a circle to which the key is limited; may be repeated
        #[arg(long = "circle", value_name = "ID")]
        circles: Vec<String>,
        /// Days until the key expires [default: never]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: Option<u32>,
        /// Name of the class of its rate limits
        #[arg(long, value_name = "NAME")]
        quota_class: Option<String>,
    },
    /// List the API keys of a user that can be used
    List {
        /// E-mail address of the user
        #[arg(long)]
        email: String,
    },
    /// Revoke an API key, immediately and on every instance
    Revoke {
        /// Id of the key, as in the list
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Scope {
    /// Queries and subscriptions
    Read,
    /// Mutations
    Write,
    /// Fields for administrators, if the user is one
    Admin,
}

impl From<Scope> for ApiKeyScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Read => Self::Read,
            Scope::Write => Self::Write,
            Scope::Admin => Self::Admin,
        }
    }
}

/// Runs a command on API keys.
pub(super) async fn apply(
    operator: &Operator,
    config: &Config,
    action: Action,
) -> Result<String, StartError> {
    let done = match action {
        Action::Create {
            email,
            name,
            scopes,
            agent,
            circles,
            days,
            quota_class,
        } => {
            user::check_class(config, quota_class.as_deref())?;
            let now = (Options::default().clock)();
            let days = days.map(|days| Duration::from_hours(24 * u64::from(days)));
            let key = KeyInput {
                name,
                scopes: scopes.into_iter().map(ApiKeyScope::from).collect(),
                agent,
                circles,
                expires_at: days.map(|days| now + days),
                quota_class,
            };
            let created = operator.create_key(&email, &key).await;
            created.map(|(id, secret)| format!("id: {}\nkey: {secret}", id.as_str()))
        }
        Action::List { email } => operator.keys(&email).await.map(|lines| lines.join("\n")),
        Action::Revoke { id } => {
            let revoked = operator.revoke_key(&id).await;
            revoked.map(|()| "the key is revoked".to_owned())
        }
    };
    done.map_err(StartError::new)
}
