//! Error codes.

/// The stable `extensions.code` of a GraphQL error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
