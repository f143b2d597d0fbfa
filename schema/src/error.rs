//! What a client is told when something goes wrong, and where internal causes end.
//!
//! [`Error`] does not implement `Display`: the blanket conversion into `async_graphql::Error` cannot pick it up, so `?`
//! never turns an internal cause into client text. A cause is logged once, here, when it becomes an [`Error`].

use std::borrow::Cow;

use async_graphql::{ErrorExtensionValues, ScalarType, Value};
use sea_orm::{DbErr, RuntimeErr, sqlx};

use crate::{limit::Standing, scalar::DateTime};

/// The stable `extensions.code` of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// No, bad, expired or revoked token.
    Unauthenticated,
    /// Signed in, may read, may not do this.
    Forbidden,
    /// An id that names nothing the caller can read.
    NotFound,
    /// A malformed argument.
    BadUserInput,
    /// A write that lost against concurrent writes.
    Conflict,
    /// An empty bucket.
    RateLimited,
    /// A document over one of the operation limits.
    QueryTooComplex,
    /// The request ran out of time.
    Timeout,
    /// A part the request needs cannot be reached now.
    Unavailable,
    /// Anything else; the cause is logged and never sent.
    Internal,
    /// The document is not GraphQL.
    ParseFailed,
    /// The document does not fit the schema.
    ValidationFailed,
    /// The hash names no document this server keeps.
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

    /// The code as it is sent.
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

/// An error as a client may see it.
#[derive(Clone, Debug)]
pub struct Error {
    pub(crate) code: Code,
    pub(crate) message: Cow<'static, str>,
    pub(crate) extensions: Vec<(&'static str, Value)>,
}

impl Error {
    /// An error with a message written for people.
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
            format!("`{field}` names nothing that you can read."),
        )
        .field(field)
    }

    /// `UNAUTHENTICATED`.
    pub(crate) fn unauthenticated() -> Self {
        Self::new(Code::Unauthenticated, "Sign in to see this.")
    }

    /// `UNAUTHENTICATED` for a token that nobody here gave out like that.
    pub(crate) fn token_invalid() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The access token is not valid. Sign in to get one.",
        )
    }

    /// `UNAUTHENTICATED` for a token whose time is over.
    pub(crate) fn token_expired() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The access token has expired. Get another one with `refreshSession`.",
        )
    }

    /// `UNAUTHENTICATED` for a token whose session was ended.
    pub(crate) fn token_revoked() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The access token has been revoked. Sign in again.",
        )
    }

    /// `UNAUTHENTICATED` for whoever does not get in, whatever the reason.
    pub(crate) fn bad_credentials() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The e-mail address or the password is wrong, or there were too many attempts. After several failures, \
             wait some minutes.",
        )
    }

    /// `UNAUTHENTICATED` for a refresh token that cannot be used.
    pub(crate) fn bad_refresh_token() -> Self {
        Self::new(
            Code::Unauthenticated,
            "The refresh token cannot be used. Sign in again.",
        )
    }

    /// `FORBIDDEN` for a deactivated account.
    pub(crate) fn deactivated() -> Self {
        Self::new(
            Code::Forbidden,
            "This account is deactivated. Ask an administrator.",
        )
    }

    /// `FORBIDDEN` for everyone who is no administrator.
    pub(crate) fn admins_only() -> Self {
        Self::new(Code::Forbidden, "Only administrators may see this.")
    }

    /// `INTERNAL`, its cause having been logged.
    pub(crate) fn internal() -> Self {
        Self::new(
            Code::Internal,
            "Something went wrong on our side. Tell us the request id.",
        )
    }

    /// `CONFLICT`.
    pub(crate) fn conflict() -> Self {
        Self::new(
            Code::Conflict,
            "Others changed the same at the same time. Try again.",
        )
    }

    /// `RATE_LIMITED`, with when to come back.
    pub(crate) fn rate_limited(standing: &Standing) -> Self {
        let (field, seconds) = (&standing.field, standing.seconds().max(1));
        let most = standing.limit;
        let message = if standing.cost > most {
            format!(
                "`{field}` may be asked for {most} times a minute, and not {} times at once.",
                standing.cost
            )
        } else {
            format!("`{field}` may be asked for {most} times a minute. Come back in {seconds} s.")
        };
        let milliseconds = (standing.retry_in.unwrap_or_default().max(0) + 999) / 1_000;
        Self::new(Code::RateLimited, message)
            .with("tier", standing.tier.name().to_uppercase())
            .with("limit", most)
            .with("windowSeconds", 60)
            .with("remaining", 0)
            .with("retryAfter", seconds)
            .with("retryAfterMs", milliseconds)
            .with("resetAt", DateTime(standing.reset_at).to_value())
    }

    /// `UNAVAILABLE`, worth trying again after a second.
    pub(crate) fn unavailable(message: &'static str) -> Self {
        Self::new(Code::Unavailable, message).with("retryAfter", 1)
    }

    /// `TIMEOUT`.
    pub(crate) fn timeout() -> Self {
        Self::new(
            Code::Timeout,
            "The request took too long. Ask for less at once.",
        )
        .with("retryAfter", 1)
    }

    /// Whether the same may succeed a little later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.code, Code::Timeout | Code::Unavailable)
    }

    /// Names the argument that is wrong.
    #[must_use]
    pub(crate) fn field(self, field: &str) -> Self {
        self.with("field", field)
    }

    /// Names the prefix an id should have had.
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

impl From<Error> for async_graphql::Error {
    fn from(error: Error) -> Self {
        Self {
            extensions: Some(error.extension_values()),
            message: error.message.into_owned(),
            source: None,
        }
    }
}

/// Whether a statement failed because its connection was gone, so that another connection may do better.
pub(crate) fn is_disconnect(error: &DbErr) -> bool {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => match &**error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                // Connection exceptions, and PostgreSQL's shutting down, crashed and starting up.
                code.starts_with("08") || matches!(&*code, "57P01" | "57P02" | "57P03")
            }),
            _ => false,
        },
        _ => false,
    }
}

impl From<DbErr> for Error {
    fn from(cause: DbErr) -> Self {
        let busy = || Self::unavailable("The database is busy. Try again in a moment.");
        let error = match &cause {
            DbErr::ConnectionAcquire(_) => busy(),
            _ if is_disconnect(&cause) => {
                Self::unavailable("The database cannot be reached. Try again in a moment.")
            }
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => match &**error {
                sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => busy(),
                sqlx::Error::Database(error) => match error.code().as_deref() {
                    Some("57014") => Self::timeout(),
                    // PostgreSQL: a serialization failure, a deadlock. Both: what a row refers to has gone in this moment,
                    // or is in use since this moment; what could be known before was looked at before.
                    Some("40001" | "40P01" | "23503" | "23001" | "787" | "1811") => {
                        Self::conflict()
                    }
                    // SQLite: the database is read-only.
                    Some("8" | "1032" | "520") => {
                        Self::unavailable("The database can only be read at the moment.")
                    }
                    // PostgreSQL is out of connections, memory or disk; SQLite (in its extended result codes) is
                    // busy, locked, cannot read its file, has no room, or cannot open it.
                    Some(code) if code.starts_with("53") => busy(),
                    Some(code)
                        if code.len() < 5
                            && code.parse().is_ok_and(|code: u32| {
                                matches!(code & 0xff, 5 | 6 | 10 | 13 | 14)
                            }) =>
                    {
                        busy()
                    }
                    _ => Self::internal(),
                },
                _ => Self::internal(),
            },
            DbErr::Conn(_) => busy(),
            _ => Self::internal(),
        };
        if error.code == Code::Internal {
            tracing::error!(%cause, "a statement failed");
        } else {
            tracing::warn!(%cause, code = error.code.as_str(), "a statement failed");
        }
        error
    }
}
