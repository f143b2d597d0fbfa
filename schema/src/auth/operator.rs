//! Account operations of the server's operator, from a command line instead of a request.

use async_graphql::{ID, MaybeUndefined};
use futures_util::future::BoxFuture;
use gathering_entity::user::UserRole;
use sea_orm::DatabaseConnection;

use crate::{
    audit::{AuditWriter, Client},
    auth::{Accounts, Amendment, MAX_USER_NAME, Profile, Settings, check_password},
    clock::Clock,
    db::Writer,
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
            let (email, email_key) = check.email("email", email);
            let name = check.line("name", name, MAX_USER_NAME);
            check_password(&mut check, "password", password);
            check.faults().map_err(messages)?;
            let profile = Profile {
                email,
                email_key,
                name,
                role: role(is_admin),
            };
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
