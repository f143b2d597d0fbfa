//! The limits of an operation.

use std::time::Duration;

gathering_settings::settings! {
    /// The limits of an operation, and of the document caches.
    pub struct Limits {
        /// Maximum size of a document, in bytes.
        document_bytes: u64 = 32 << 10, from 1 << 10, to 1 << 20;
        /// Maximum number of tokens in a document.
        tokens: u64 = 4_000, from 100, to 100_000;
        /// Maximum number of root fields in an operation, with fragments expanded.
        root_fields: u64 = 20, from 1, to 1_000;
        /// Maximum number of aliased fields in an operation, with fragments expanded.
        aliases: u64 = 100, from 1, to 10_000;
        /// Maximum nesting depth of fields; the standard introspection query needs 15.
        depth: u64 = 16, from 1, to 100;
        /// Maximum complexity: a field costs 1 plus its selection; a list multiplies its selection by its size.
        complexity: u64 = 20_000, from 100, to 10_000_000;
        /// Maximum text in a response, in bytes. Text fields beyond the limit fail.
        text_bytes: u64 = 16 << 20, from 64 << 10, to 1 << 30;
        /// Maximum execution time of a query or mutation.
        timeout: Duration = Duration::from_secs(15), from Duration::from_millis(10), to Duration::from_mins(10);
        /// Capacity of the document cache and of the plan cache. A document takes one slot, plus one for each KiB of its text.
        parsed_documents: u64 = 1_000, from 1, to 100_000;
        /// Capacity of the cache of compiled queries; 0 resolves every field by the executor. A query takes one slot for each of its statements.
        compiled_queries: u64 = 1_000, from 0, to 100_000;
        /// Maximum number of automatic persisted queries kept in memory; 0 disables them.
        persisted_queries: u64 = 1_000, from 0, to 100_000;
        /// Whether introspection is allowed.
        introspection: bool = true;
    }
}
