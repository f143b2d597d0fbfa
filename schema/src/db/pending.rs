//! The batches of one request: which it has joined, and when they are dispatched.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Maximum number of consecutive polls of an execution that wakes itself. A future that does so forever must not occupy
/// a worker thread.
const SPINS: usize = 1_000;

/// The cost of one operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Statements that the operation waited for, including those shared with other operations.
    pub(crate) statements: u64,
    /// Rows that those statements returned.
    pub(crate) rows: u64,
    /// The name of each batch, and the number of its keys.
    pub(crate) batches: Vec<(String, usize)>,
}

/// The batches that a running operation waits for.
#[derive(Default)]
pub(crate) struct PendingBatches {
    /// Wakes the task in which the request runs.
    task: AtomicWaker,
    /// Whether the execution is being polled, and whether it was woken since the poll began.
    polling: AtomicBool,
    woken: AtomicBool,
    /// Batches that were joined since the request was last idle.
    joined: Mutex<Vec<Arc<dyn Departure>>>,
    /// Resolvers whose batch is complete. They are woken together, inside the request's own task: a request that saw
    /// half of a batch would send the next edge in two statements.
    answered: Mutex<Vec<Waker>>,
    usage: Option<Mutex<Usage>>,
}

/// A batch that one of its requests can dispatch.
pub(super) trait Departure: Send + Sync {
    fn is(&self, pending: *const ()) -> bool;
    fn dispatch(&self);
}

impl PendingBatches {
    /// `usage` enables the report of the request's cost.
    pub(crate) fn new(usage: bool) -> Arc<Self> {
        Arc::new(Self {
            usage: usage.then(Mutex::default),
            ..Self::default()
        })
    }

    /// The cost of the request so far, if it is reported.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.usage.as_ref().map(|usage| lock(usage).clone())
    }

    /// Notes that the request has joined a batch, unless it has done so before.
    pub(super) fn touch(&self, address: *const (), joined: impl FnOnce() -> Arc<dyn Departure>) {
        let mut known = lock(&self.joined);
        if !known.iter().any(|batch| batch.is(address)) {
            known.push(joined());
        }
    }

    fn dispatch(&self) {
        let joined = mem::take(&mut *lock(&self.joined));
        for batch in joined {
            batch.dispatch();
        }
    }

    /// Wakes the resolvers of a complete batch, inside the request's own task.
    pub(super) fn answered(
        &self,
        wakers: Vec<Waker>,
        account: impl FnOnce() -> (String, usize, u64, u64),
    ) {
        if let Some(usage) = &self.usage {
            let (name, keys, statements, rows) = account();
            let mut usage = lock(usage);
            usage.statements += statements;
            usage.rows += rows;
            usage.batches.push((name, keys));
        }
        lock(&self.answered).extend(wakers);
        self.task.wake();
    }
}

impl Wake for PendingBatches {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        // The poller reads `woken` after it has cleared `polling`, so one of the two always sees the other.
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

/// Runs a request's execution and dispatches its keys whenever it is idle.
///
/// Batches that it has joined are dispatched at the latest when it is dropped: a batch that is never dispatched would
/// wait forever.
pub(crate) struct DispatchWhenIdle<'a, T> {
    execution: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    pending: &'a Arc<PendingBatches>,
    waker: Waker,
}

impl<'a, T> DispatchWhenIdle<'a, T> {
    pub(crate) fn new(
        pending: &'a Arc<PendingBatches>,
        execution: impl Future<Output = T> + Send + 'a,
    ) -> Self {
        Self {
            execution: Box::pin(execution),
            pending,
            waker: Waker::from(Arc::clone(pending)),
        }
    }
}

impl<T> Future for DispatchWhenIdle<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let pending = this.pending;
        pending.task.register(context.waker());
        let mut inner = Context::from_waker(&this.waker);
        for _ in 0..SPINS {
            pending.polling.store(true, Ordering::SeqCst);
            pending.woken.store(false, Ordering::SeqCst);
            for waker in mem::take(&mut *lock(&pending.answered)) {
                waker.wake();
            }
            let state = this.execution.as_mut().poll(&mut inner);
            pending.polling.store(false, Ordering::SeqCst);
            if state.is_ready() {
                return state;
            }
            // Joined futures wake themselves after they have polled their share; the execution is idle only if it was
            // not woken.
            if !pending.woken.swap(false, Ordering::SeqCst) && lock(&pending.answered).is_empty() {
                pending.dispatch();
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T> Drop for DispatchWhenIdle<'_, T> {
    fn drop(&mut self) {
        self.pending.dispatch();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No value is ever half-changed here, so a panic of another thread during the lock does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
