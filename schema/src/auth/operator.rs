//! Account operations of the server's operator, from a command line instead of a request.

use async_graphql::{ID, MaybeUndefined};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use gathering_entity::user::UserRole;
use sea_orm::DatabaseConnection;

use crate::{
    access::ApiKeyScope,
    audit::{AuditWriter, Client},
    auth::{Accounts, Amendment, MAX_USER_NAME, NewKey, Profile, Settings, check_password},
    clock::Clock,
    db::{Writer, distinct},
    error::Error,
    id::Kind,
    input::{Check, UserError},
};

/// Creates and changes accounts. The audit log contains the operations only after [`finish`](Operator::finish).
pub struct Operator {
    accounts: Accounts,
    audit_writer: AuditWriter,
    client: Client,
}

/// A new API key.
pub struct KeyInput {
    /// The name.
    pub name: String,
    /// The operations that the key allows.
    pub scopes: Vec<ApiKeyScope>,
    /// The id of the agent on whose behalf the key acts.
    pub agent: Option<String>,
    /// The ids of the circles to which the key is limited; empty for a key that is not limited.
    pub circles: Vec<String>,
    /// When the key expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// The name of the class of its rate limits.
    pub quota_class: Option<String>,
}

/// A human-readable error message of one line.
pub type Reason = String;

impl Operator {
    /// # Errors
    /// The settings are invalid.
    pub fn new(db: DatabaseConnection, settings: Settings, clock: Clock) -> Result<Self, Reason> {
        let (accounts, audit_writer) =
            Accounts::new(db.clone(), Writer::new(db), settings, clock, None)?;
        let client = Client {
            user_agent: Some("gathering user".to_owned()),
            ..Client::default()
        };
        Ok(Self {
            accounts,
            audit_writer,
            client,
        })
    }

    /// Creates an account.
    ///
    /// # Errors
    /// The e-mail address, the name or the password is invalid, or the address has an account.
    pub fn create<'a>(
        &'a self,
        email: &'a str,
        name: &'a str,
        password: &'a str,
        is_admin: bool,
    ) -> BoxFuture<'a, Result<ID, Reason>> {
        Box::pin(async move {
            let mut check = Check::default();
            let email = check.email("email", email);
            let name = check.line("name", name, MAX_USER_NAME);
            check_password(&mut check, "password", password);
            check.faults().map_err(messages)?;
            let profile = Profile::person(email, name, role(is_admin));
            let user = self.accounts.create(&self.client, &profile, password).await;
            let user = user.map_err(line)?;
            let user = user.ok_or("there is an account with this e-mail address already")?;
            Ok(Kind::User.id(user.id))
        })
    }

    /// Activates or deactivates a user. Deactivation ends all of their sessions.
    ///
    /// # Errors
    /// There is no such user.
    pub fn set_active<'a>(
        &'a self,
        email: &'a str,
        is_active: bool,
    ) -> BoxFuture<'a, Result<(), Reason>> {
        Box::pin(async move {
            let amendment = Amendment {
                is_active: Some(is_active),
                ..Amendment::default()
            };
            self.change(email, &amendment).await
        })
    }

    /// Grants or revokes the role ADMIN.
    ///
    /// # Errors
    /// There is no such user.
    pub fn set_role<'a>(
        &'a self,
        email: &'a str,
        is_admin: bool,
    ) -> BoxFuture<'a, Result<(), Reason>> {
        Box::pin(async move {
            let amendment = Amendment {
                role: Some(role(is_admin)),
                ..Amendment::default()
            };
            self.change(email, &amendment).await
        })
    }

    /// Assigns a quota class to a user, or removes it. The class is not checked.
    ///
    /// # Errors
    /// There is no such user.
    pub fn set_quota_class<'a>(
        &'a self,
        email: &'a str,
        class: Option<String>,
    ) -> BoxFuture<'a, Result<(), Reason>> {
        Box::pin(async move {
            let amendment = Amendment {
                quota_class: class.map_or(MaybeUndefined::Null, MaybeUndefined::Value),
                ..Amendment::default()
            };
            self.change(email, &amendment).await
        })
    }

    /// Changes a user's password and ends all of their sessions.
    ///
    /// # Errors
    /// The password is invalid, or there is no such user.
    pub fn set_password<'a>(
        &'a self,
        email: &'a str,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), Reason>> {
        Box::pin(async move {
            let mut check = Check::default();
            check_password(&mut check, "password", password);
            check.faults().map_err(messages)?;
            let done = self.accounts.set_password(&self.client, email, password);
            done.await
                .map_err(line)?
                .then_some(())
                .ok_or_else(no_account)
        })
    }

    /// Creates an API key. Returns its id and its secret.
    ///
    /// # Errors
    /// The input is invalid, or there is no such user.
    pub fn create_key<'a>(
        &'a self,
        email: &'a str,
        key: &'a KeyInput,
    ) -> BoxFuture<'a, Result<(ID, String), Reason>> {
        Box::pin(async move {
            let parse = |kind: Kind, id: &String, field| kind.parse(&ID(id.clone()), field);
            let agent = key.agent.as_ref();
            let agent = agent.map(|id| parse(Kind::Agent, id, "agent")).transpose();
            let circles = key
                .circles
                .iter()
                .map(|id| parse(Kind::Circle, id, "circle"));
            let circles = circles.collect::<Result<Vec<_>, _>>().map_err(line)?;
            let new = NewKey {
                name: &key.name,
                scopes: &key.scopes,
                agent: agent.map_err(line)?,
                circles: Some(distinct(circles)).filter(|circles| !circles.is_empty()),
                expires_at: key.expires_at,
                quota_class: key.quota_class.as_deref(),
                is_class_allowed: true,
            };
            let created = self.accounts.operate_create_key(&self.client, email, &new);
            let created = created.await.map_err(line)?.ok_or_else(no_account)?;
            let (row, secret) = created.map_err(messages)?;
            Ok((Kind::ApiKey.id(row.id), secret))
        })
    }

    /// The API keys of a user that can be used, newest first: one line for each.
    ///
    /// # Errors
    /// There is no such user.
    pub fn keys<'a>(&'a self, email: &'a str) -> BoxFuture<'a, Result<Vec<String>, Reason>> {
        Box::pin(async move {
            let keys = self.accounts.keys_by_email(email).await.map_err(line)?;
            let keys = keys.ok_or_else(no_account)?;
            let date = |at: Option<DateTime<Utc>>, none: &str| {
                at.map_or_else(|| none.to_owned(), |at| at.format("%Y-%m-%d").to_string())
            };
            let lines = keys.iter().map(|key| {
                format!(
                    "{}  {}…  {}  expires {}  used {}  {}",
                    Kind::ApiKey.id(key.id).as_str(),
                    key.prefix,
                    key.scopes.0.join(","),
                    date(key.expires_at, "never"),
                    date(key.last_used_at, "never"),
                    key.name
                )
            });
            Ok(lines.collect())
        })
    }

    /// Revokes an API key, and ends its streams and connections.
    ///
    /// # Errors
    /// There is no such key.
    pub fn revoke_key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Reason>> {
        Box::pin(async move {
            let id = Kind::ApiKey.parse(&ID(id.to_owned()), "id").map_err(line)?;
            let revoked = self.accounts.operate_revoke_key(&self.client, id).await;
            let revoked = revoked.map_err(line)?.then_some(());
            revoked.ok_or_else(|| "there is no API key with this id".to_owned())
        })
    }

    /// Writes the recorded operations to the audit log.
    pub fn finish(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            drop(self.accounts);
            self.audit_writer
                .run(Box::pin(std::future::pending()))
                .await;
        })
    }

    async fn change(&self, email: &str, amendment: &Amendment) -> Result<(), Reason> {
        let changed = self.accounts.amend_by_email(&self.client, email, amendment);
        let changed = changed.await.map_err(line)?;
        changed.map(drop).ok_or_else(no_account)
    }
}

fn role(is_admin: bool) -> UserRole {
    if is_admin {
        UserRole::Admin
    } else {
        UserRole::User
    }
}

fn no_account() -> Reason {
    "there is no account with this e-mail address".to_owned()
}

fn messages(faults: Vec<UserError>) -> Reason {
    let messages: Vec<_> = faults.into_iter().map(|fault| fault.message).collect();
    messages.join(" ")
}

fn line(error: Error) -> Reason {
    error.message.into_owned()
}
