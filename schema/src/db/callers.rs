//! The callers of the pool. The driver counts its connections, and not the callers that wait for one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts the callers that have a connection or wait for one.
#[derive(Clone, Default)]
pub(crate) struct Callers(Arc<AtomicUsize>);

/// A caller, counted until it is dropped.
pub(crate) struct Caller(Callers);

impl Callers {
    pub(crate) fn enter(&self) -> Caller {
        self.0.fetch_add(1, Ordering::Relaxed);
        Caller(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
