//! The batches of one request: which it has joined, and when they are dispatched.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use tokio::runtime::Handle;

use crate::trace::Span;

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
    /// Whether batches that no other request waits for run inside the request's own task.
    runs_inside: bool,
    /// Statements that the request waited for.
    statements: AtomicU64,
    usage: Option<Mutex<Usage>>,
    /// The span of the operation, if it is traced.
    pub(super) span: Option<Span>,
}

/// A running batch.
pub(super) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A batch that one of its requests can dispatch.
pub(super) trait Departure: Send + Sync {
    fn is(&self, pending: *const ()) -> bool;

    /// Dispatches the batch. Returns it if it can run inside the task of its only request.
    fn dispatch(&self, runs_inside: bool) -> Option<Running>;
}

impl PendingBatches {
    /// `usage` enables the report of the request's cost. `runs_inside` lets batches run inside the request's own task,
    /// which saves hand-overs between threads. The task must then be polled whenever it is woken: a batch that is not
    /// polled holds a connection to the database.
    pub(crate) fn new(usage: bool, runs_inside: bool) -> Arc<Self> {
        Arc::new(Self {
            usage: usage.then(Mutex::default),
            runs_inside,
            span: Span::current(),
            ..Self::default()
        })
    }

    /// The cost of the request so far, if it is reported.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.usage.as_ref().map(|usage| lock(usage).clone())
    }

    /// The number of statements that the request waited for so far.
    pub(crate) fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// Notes that the request has joined a batch, unless it has done so before.
    pub(super) fn touch(&self, address: *const (), joined: impl FnOnce() -> Arc<dyn Departure>) {
        let mut known = lock(&self.joined);
        if !known.iter().any(|batch| batch.is(address)) {
            known.push(joined());
        }
    }

    /// Dispatches the joined batches; returns those that run inside the request's own task.
    fn dispatch(&self) -> impl Iterator<Item = Running> {
        let joined = mem::take(&mut *lock(&self.joined));
        let runs_inside = self.runs_inside;
        joined
            .into_iter()
            .filter_map(move |batch| batch.dispatch(runs_inside))
    }

    /// Whether the execution must be polled.
    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst) || !lock(&self.answered).is_empty()
    }

    /// Wakes the resolvers of a complete batch, inside the request's own task.
    pub(super) fn answered(
        &self,
        wakers: Vec<Waker>,
        statements: u64,
        account: impl FnOnce() -> (String, usize, u64),
    ) {
        self.statements.fetch_add(statements, Ordering::Relaxed);
        if let Some(usage) = &self.usage {
            let (name, keys, rows) = account();
            let mut usage = lock(usage);
            usage.statements += statements;
            usage.rows += rows;
            usage.batches.push((name, keys));
        }
        lock(&self.answered).extend(wakers);
        // As for `woken`, the poller looks after it has cleared `polling`.
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
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
/// wait forever. Batches that run inside it then continue in tasks of their own.
pub(crate) struct DispatchWhenIdle<'a, T> {
    execution: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    pending: &'a Arc<PendingBatches>,
    /// Batches that run inside this future.
    running: Vec<Running>,
    waker: Waker,
}

impl<'a, T> DispatchWhenIdle<'a, T> {
    pub(crate) fn new(
        pending: &'a Arc<PendingBatches>,
        execution: impl Future<Output = T> + Send + 'a,
    ) -> Self {
        // The first poll starts the execution.
        pending.woken.store(true, Ordering::SeqCst);
        Self {
            execution: Box::pin(execution),
            pending,
            running: Vec::new(),
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
            let is_running = |batch: &mut Running| batch.as_mut().poll(context).is_pending();
            this.running.retain_mut(is_running);
            if !pending.is_woken() {
                pending.polling.store(false, Ordering::SeqCst);
                if pending.is_woken() {
                    continue;
                }
                return Poll::Pending;
            }
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
            if !pending.is_woken() {
                let count = this.running.len();
                this.running.extend(pending.dispatch());
                if this.running.len() == count {
                    return Poll::Pending;
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T> Drop for DispatchWhenIdle<'_, T> {
    fn drop(&mut self) {
        let running = mem::take(&mut self.running);
        for batch in running.into_iter().chain(self.pending.dispatch()) {
            // Without a runtime, the batch ends, and its requests too.
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(batch);
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No value is ever half-changed here, so a panic of another thread during the lock does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
