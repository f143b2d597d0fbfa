//! Bounds on one operation.

use std::time::Duration;

/// Bounds on what one operation may ask for, and on what is kept of documents.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest document, in bytes.
    pub document_bytes: u64,
    /// Most tokens of a document, and most selections once its fragments are expanded.
    pub tokens: u64,
    /// Most root fields of an operation.
    pub root_fields: u64,
    /// Most fields under another name than their own.
    pub aliases: u64,
    /// Deepest nesting of fields.
    pub depth: u64,
    /// Highest complexity.
    pub complexity: u64,
    /// Maximum text in a response, in bytes.
    pub text_bytes: u64,
    /// Longest execution of a query or mutation.
    pub timeout: Duration,
    /// Most parsed documents kept.
    pub parsed_documents: u64,
    /// Most automatic persisted queries kept; none turns them off.
    pub persisted_queries: u64,
    /// Whether clients may read the schema.
    pub introspection: bool,
}
