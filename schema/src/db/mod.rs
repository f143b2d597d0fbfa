//! Database access: the loader with its batches, the writer's transactions, retries.

mod batch;
mod batch_sizes;
mod callers;
mod json;
mod loader;
mod pending;
mod pool;
mod prepared;
mod reader;
mod scope;
mod search;
mod turns;
mod writer;
mod writes;

pub(crate) use batch::{
    ColumnOf, Count, PageQuery, RowsByKey, Rule, Totals, count_where, distinct, is_among, is_one_of,
};
pub use batch_sizes::BatchSizes;
pub(crate) use callers::{Caller, Callers};
pub(crate) use json::{Stored, json_rows, list_from};
pub(crate) use loader::{BATCH_KEYS, Batch, Loader};
pub(crate) use pending::{DispatchWhenIdle, PendingBatches, Usage};
pub use pool::{Pool, PoolMonitor};
pub(crate) use prepared::{Keyed, Prepared, PreparedRows, RawRows, ViewerIds};
pub(crate) use reader::Reader;
pub(crate) use scope::{PageOf, Paths, Scope};
pub(crate) use search::{contains, filter};
pub(crate) use turns::{Turn, Turns};
pub(crate) use writer::{Writer, WriterGuard, is_taken, retry_on_conflict};
pub(crate) use writes::{InsertSelected, Writes, revision, touch};
