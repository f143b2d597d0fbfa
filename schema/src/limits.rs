//! The limits of an operation.

use std::time::Duration;

/// The limits of an operation, and of the document caches.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum size of a document, in bytes.
    pub document_bytes: u64,
    /// Maximum number of tokens in a document, and of selections after fragment expansion.
    pub tokens: u64,
    /// Maximum number of root fields in an operation.
    pub root_fields: u64,
    /// Maximum number of fields with an alias that differs from their name.
    pub aliases: u64,
    /// The nesting depth of fields.
    pub depth: u64,
    /// Maximum complexity.
    pub complexity: u64,
    /// Maximum text in a response, in bytes.
    pub text_bytes: u64,
    /// Maximum execution time of a query or mutation.
    pub timeout: Duration,
    /// Maximum number of parsed documents in the cache.
    pub parsed_documents: u64,
    /// Maximum number of automatic persisted queries in the cache; 0 disables them.
    pub persisted_queries: u64,
    /// Whether introspection is allowed.
    pub introspection: bool,
}
