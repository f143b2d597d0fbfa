//! `user`: makes and changes accounts.

use std::io::{self, IsTerminal};

use clap::{Subcommand, ValueEnum};
use gathering::StartError;
use gathering::config::Config;
use gathering::db::Database;
use gathering::server::Options;
use gathering_schema::auth::{self, Keys, Operator};

use super::output::print;

#[derive(Subcommand)]
pub(super) enum Action {
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
    /// Assign a quota class of `limits.classes` to a user
    SetQuotaClass {
        /// E-mail address of the account
        #[arg(long)]
        email: String,
        /// The name of the class; without it, the user has the standard limits
        #[arg(long)]
        class: Option<String>,
    },
    /// Set a new password, read from standard input, and end all sessions of the user
    SetPassword {
        /// E-mail address of the account
        #[arg(long)]
        email: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Role {
    /// May use their own objects and those shared with them
    User,
    /// May read and change everything
    Admin,
}

/// Runs a command on accounts.
pub(super) async fn run(
    database: &Database,
    config: &Config,
    command: impl AsyncFnOnce(&Operator) -> Result<String, StartError>,
) -> Result<(), StartError> {
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
    let policy = config.auth.policy.clone();
    let settings = auth::Settings {
        keys,
        mail: None,
        policy,
    };
    let operator = Operator::new(connection.clone(), settings, Options::default().clock);
    let operator = operator.map_err(StartError::new)?;
    let done = command(&operator).await;
    operator.finish().await;
    print(&format!("{}\n", done?));
    Ok(())
}

/// Runs a command on an account.
pub(super) async fn apply(
    operator: &Operator,
    config: &Config,
    action: Action,
) -> Result<String, StartError> {
    let done = match action {
        Action::Create { email, name, admin } => {
            let password = read_password()?;
            let local = || email.split('@').next().unwrap_or_default();
            let name = name.unwrap_or_else(|| local().chars().take(100).collect());
            let created = operator.create(&email, &name, &password, admin).await;
            created.map(|id| format!("created {}", id.as_str()))
        }
        Action::Disable { email } => {
            let done = operator.set_active(&email, false).await;
            done.map(|()| "the account is disabled".to_owned())
        }
        Action::Enable { email } => {
            let done = operator.set_active(&email, true).await;
            done.map(|()| "the account is enabled".to_owned())
        }
        Action::SetRole { email, role } => {
            let done = operator.set_role(&email, matches!(role, Role::Admin)).await;
            done.map(|()| "the role is changed".to_owned())
        }
        Action::SetQuotaClass { email, class } => {
            check_class(config, class.as_deref())?;
            let done = operator.set_quota_class(&email, class).await;
            done.map(|()| "the quota class is changed".to_owned())
        }
        Action::SetPassword { email } => {
            let password = read_password()?;
            let done = operator.set_password(&email, &password).await;
            done.map(|()| "the password is changed".to_owned())
        }
    };
    done.map_err(StartError::new)
}

/// Checks that a quota class is configured.
pub(super) fn check_class(config: &Config, class: Option<&str>) -> Result<(), StartError> {
    match class.filter(|class| !config.limits.classes.has(class)) {
        Some(class) => {
            let message = format!("limits.classes has no class {class:?}");
            Err(StartError::new(message))
        }
        None => Ok(()),
    }
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
