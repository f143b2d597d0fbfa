//! Errors as sent to clients, and the place where internal causes are logged.
//!
//! [`Error`] does not implement `Display`: the blanket conversion into `async_graphql::Error` does not apply, so `?`
//! never turns an internal cause into client text. A cause is logged once, here, when it becomes an [`Error`].

use std::borrow::Cow;

use async_graphql::ServerError;
use async_graphql::{ErrorExtensionValues, Value};
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{
        self,
        error::DatabaseError,
        postgres::{PgDatabaseError, PgSeverity},
    },
};

use crate::storage::{self, StorageError};

/// The stable `extensions.code` of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The access token is missing, invalid, expired or revoked.
    Unauthenticated,
    /// The caller is signed in and may read the object, but may not do this.
    Forbidden,
    /// The id refers to no object that the caller can read.
    NotFound,
    /// An argument is malformed.
    BadUserInput,
    /// The write lost against concurrent writes.
    Conflict,
    /// A rate limit is exceeded.
    RateLimited,
    /// The document exceeds an operation limit.
    QueryTooComplex,
    /// The request exceeded its time limit.
    Timeout,
    /// A component that the request needs cannot be reached.
    Unavailable,
    /// Any other error. The cause is logged and never sent.
    Internal,
    /// The document has a syntax error.
    ParseFailed,
    /// The document does not match the schema.
    ValidationFailed,
    /// The hash refers to no document that this server stores.
    PersistedQueryNotFound,
}

impl Code {
    pub(crate) const ALL: [Self; 13] = [
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::BadUserInput,
        Self::Conflict,
        Self::RateLimited,
        Self::QueryTooComplex,
        Self::Timeout,
        Self::Unavailable,
        Self::Internal,
        Self::ParseFailed,
        Self::ValidationFailed,
        Self::PersistedQueryNotFound,
    ];

    /// The code as sent to clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::BadUserInput => "BAD_USER_INPUT",
            Self::Conflict => "CONFLICT",
            Self::RateLimited => "RATE_LIMITED",
            Self::QueryTooComplex => "QUERY_TOO_COMPLEX",
            Self::Timeout => "TIMEOUT",
            Self::Unavailable => "UNAVAILABLE",
            Self::Internal => "INTERNAL",
            Self::ParseFailed => "GRAPHQL_PARSE_FAILED",
            Self::ValidationFailed => "GRAPHQL_VALIDATION_FAILED",
            Self::PersistedQueryNotFound => "PERSISTED_QUERY_NOT_FOUND",
        }
    }
}

/// An error as sent to clients.
#[derive(Clone, Debug)]
pub struct Error {
    pub(crate) code: Code,
    pub(crate) message: Cow<'static, str>,
    pub(crate) extensions: Vec<(&'static str, Value)>,
}

impl Error {
    /// An error with a human-readable message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            extensions: Vec::new(),
        }
    }

    /// `BAD_USER_INPUT`.
    pub(crate) fn bad_input(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadUserInput, message)
    }

    /// `NOT_FOUND` for the id given as `field`.
    pub(crate) fn not_found(field: &str) -> Self {
        Self::new(
            Code::NotFound,
            format!("`{field}` refers to no object that you can read."),
        )
        .field(field)
    }

    /// `UNAUTHENTICATED`.
    pub(crate) fn unauthenticated() -> Self {
        Self::new(Code::Unauthenticated, "Authentication is required.")
    }

    /// `UNAUTHENTICATED` for a token that this server did not issue.
    pub(crate) fn token_invalid() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The access token is not valid. Sign in to get one.",
        )
    }

    /// `UNAUTHENTICATED` for an expired token.
    pub(crate) fn token_expired() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The access token has expired. Get another one with `refreshSession`.",
        )
    }

    /// `UNAUTHENTICATED` for a token whose session has ended.
    pub(crate) fn token_revoked() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The access token has been revoked. Sign in again.",
        )
    }

    /// `UNAUTHENTICATED` for an API key that does not exist.
    pub(crate) fn key_invalid() -> Self {
        Self::new(Code::Unauthenticated, "The API key is not valid.")
    }

    /// `UNAUTHENTICATED` for an expired API key.
    pub(crate) fn key_expired() -> Self {
        Self::new(Code::Unauthenticated, "The API key has expired.")
    }

    /// `UNAUTHENTICATED` for an API key that was revoked, or whose rights have changed while a stream was open.
    pub(crate) fn key_revoked() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The API key has been revoked, or its rights have changed.",
        )
    }

    /// `FORBIDDEN` for a root field that is not open to API keys.
    pub(crate) fn not_for_keys(field: &str) -> Self {
        Self::new(
            Code::Forbidden,
            format!("`{field}` is not available with an API key. Sign in with a password."),
        )
    }

    /// `FORBIDDEN` for a root field that is not open to API keys that are limited to circles.
    pub(crate) fn not_for_limited_keys(field: &str) -> Self {
        Self::new(
            Code::Forbidden,
            format!("`{field}` is not available with an API key that is limited to circles."),
        )
    }

    /// `FORBIDDEN` for the id of another agent than that of the API key.
    pub(crate) fn another_agent(field: &str) -> Self {
        Self::new(Code::Forbidden, "The API key acts as another agent.").field(field)
    }

    /// `FORBIDDEN` for an operation that needs a scope which the API key lacks.
    pub(crate) fn missing_scope(scope: &'static str) -> Self {
        Self::new(
            Code::Forbidden,
            format!("The API key lacks the scope {scope}."),
        )
        .with("scope", scope)
    }

    /// `UNAUTHENTICATED` for every failed sign-in, independent of the reason.
    pub(crate) fn bad_credentials() -> Self {
        Self::new(
            Code::Unauthenticated,
            "Wrong e-mail address or password, or too many attempts. After several failures, wait a few minutes.",
        )
    }

    /// `UNAUTHENTICATED` for a refresh token that cannot be used.
    pub(crate) fn bad_refresh_token() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The refresh token cannot be used. Sign in again.",
        )
    }

    /// `UNAUTHENTICATED` for a token from a mail that cannot be used, independent of the reason.
    pub(crate) fn bad_mail_token() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The token cannot be used: it is wrong, was used or replaced, or has expired. Request a new one.",
        )
    }

    /// `FORBIDDEN` for a mutation that sends mails, if none are configured.
    pub(crate) fn no_mail() -> Self {
        Self::new(
            Code::Forbidden,
            "This server sends no mails. Ask its operator.",
        )
    }

    /// `FORBIDDEN` for a deactivated account.
    pub(crate) fn deactivated() -> Self {
        Self::new(
            Code::Forbidden,
            "This account is deactivated. Ask an administrator.",
        )
    }

    /// `FORBIDDEN` for users who are not administrators.
    pub(crate) fn admins_only() -> Self {
        Self::new(Code::Forbidden, "Administrator access is required.")
    }

    /// `INTERNAL`; the cause has been logged.
    pub(crate) fn internal() -> Self {
        Self::new(
            Code::Internal,
            "Internal server error. Please report the request id.",
        )
    }

    /// `CONFLICT`.
    pub(crate) fn conflict() -> Self {
        Self::new(Code::Conflict, "Concurrent update. Please retry.")
    }

    /// `UNAVAILABLE`; a retry after one second may succeed.
    pub(crate) fn unavailable(message: &'static str) -> Self {
        Self::new(Code::Unavailable, message).with("retryAfter", 1)
    }

    /// `TIMEOUT`.
    pub(crate) fn timeout() -> Self {
        Self::new(Code::Timeout, "The request timed out. Request less data.").with("retryAfter", 1)
    }

    /// `TIMEOUT` of a mutation.
    pub(crate) fn change_timeout() -> Self {
        Self::new(
            Code::Timeout,
            "The request timed out. The change may have been applied. Check before you retry, or retry with the same \
             idempotency key.",
        )
        .with("outcome", "UNKNOWN")
    }

    /// `UNAVAILABLE` for a change with an unknown outcome. Sets no `retryAfter`, because a retry could apply it twice.
    pub(crate) fn outcome_unknown() -> Self {
        Self::new(
            Code::Unavailable,
            "The database did not confirm the commit. The change may have been applied. Check before you retry, or \
             retry with the same idempotency key.",
        )
        .with("outcome", "UNKNOWN")
    }

    /// The client error for a failed commit, or for a failed statement that commits.
    pub(crate) fn of_commit(cause: DbErr) -> Self {
        let is_sent = !matches!(cause, DbErr::Conn(_) | DbErr::ConnectionAcquire(_));
        let is_unknown =
            is_sent && (is_disconnect(&cause) || storage_error(&cause) == Some(StorageError::Io));
        let error = Self::from(cause);
        if is_unknown {
            Self::outcome_unknown()
        } else {
            error
        }
    }

    /// Whether a retry may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.code, Code::Timeout | Code::Unavailable)
    }

    /// Names the invalid argument.
    #[must_use]
    pub(crate) fn field(self, field: &str) -> Self {
        self.with("field", field)
    }

    /// Names the expected prefix of an id.
    #[must_use]
    pub(crate) fn expected(self, prefix: &'static str) -> Self {
        self.with("expected", prefix)
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.extensions.push((name, value.into()));
        self
    }

    pub(crate) fn extension_values(&self) -> ErrorExtensionValues {
        let mut values = ErrorExtensionValues::default();
        values.set("code", self.code.as_str());
        for (name, value) in &self.extensions {
            values.set(name, value.clone());
        }
        values
    }
}

/// The errors of a request that was refused before its execution.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Vec<ServerError>);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let mut refused = ServerError::new(error.message.clone(), None);
        refused.extensions = Some(error.extension_values());
        Self(vec![refused])
    }
}

impl From<Error> for async_graphql::Error {
    fn from(error: Error) -> Self {
        Self {
            extensions: Some(error.extension_values()),
            message: error.message.into_owned(),
            source: None,
        }
    }
}

fn driver_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

fn storage_error(error: &DbErr) -> Option<StorageError> {
    StorageError::of(driver_error(error)?.as_database_error()?)
}

/// Whether a statement failed because the connection was lost.
pub(crate) fn is_disconnect(error: &DbErr) -> bool {
    match driver_error(error) {
        Some(
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed,
        ) => true,
        Some(sqlx::Error::Database(error)) => ends_connection(&**error),
        _ => false,
    }
}

/// PostgreSQL closes the connection after an error of the severity FATAL or PANIC: on shutdown, startup or a crash,
/// when an operator ends the session, and when a transaction is idle for too long. Class 08 contains connection
/// exceptions; 40003 is a statement whose completion is unknown.
fn ends_connection(error: &dyn DatabaseError) -> bool {
    let severity = error
        .try_downcast_ref::<PgDatabaseError>()
        .map(PgDatabaseError::severity);
    matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic))
        || (error.code()).is_some_and(|code| code.starts_with("08") || code == "40003")
}

impl From<DbErr> for Error {
    fn from(cause: DbErr) -> Self {
        let busy = || Self::unavailable("The database is busy. Try again in a moment.");
        let failure = storage_error(&cause);
        if let Some(failure) = failure {
            storage::failed(failure);
        }
        let error = match (&cause, driver_error(&cause)) {
            _ if is_disconnect(&cause) => {
                Self::unavailable("The database cannot be reached. Try again in a moment.")
            }
            (_, Some(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed))
            | (DbErr::ConnectionAcquire(_) | DbErr::Conn(_), None) => busy(),
            (_, Some(sqlx::Error::Database(error))) => match (failure, error.code().as_deref()) {
                (Some(StorageError::Busy), _) => busy(),
                (Some(StorageError::DiskFull), _) => Self::unavailable(
                    "The database disk is full. The change was not applied. Try again later.",
                ),
                (Some(StorageError::Io), _) => {
                    Self::unavailable("The database storage is unavailable. Try again later.")
                }
                (Some(StorageError::ReadOnly), _) => {
                    Self::unavailable("The database is read-only. Try again later.")
                }
                (None, Some("57014")) => Self::timeout(),
                // PostgreSQL: serialization failure, deadlock. Both databases: a concurrent transaction broke a foreign
                // key, because the code checks references before it writes.
                (None, Some("40001" | "40P01" | "23503" | "23001" | "787" | "1811")) => {
                    Self::conflict()
                }
                _ => Self::internal(),
            },
            _ => Self::internal(),
        };
        if error.code == Code::Internal {
            tracing::error!(%cause, "statement failed");
        } else {
            tracing::warn!(%cause, code = error.code.as_str(), "statement failed");
        }
        error
    }
}
