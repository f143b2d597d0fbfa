//! The loader between resolvers and the database.
//!
//! Resolvers load one key at a time; a dispatched batch is one statement for all waiting keys. Keys of *all* requests
//! wait together: while [`IN_FLIGHT`] statements of a kind are running, new keys are collected for the next one (group
//! commit). No timer is involved: the keys of a request are dispatched when its execution is idle ([`DispatchWhenIdle`]
//! detects this exactly), so that a single request takes one statement per edge, regardless of the number of parents.
//!
//! Values are not kept after they are returned, so nothing can be stale. Keys are ids and nothing else: a rule about
//! the read rule is part of the batch, and batches with different rules never share a statement. Reads inside a
//! transaction do not use the loader.

use std::{
    any::{Any, TypeId},
    collections::{HashMap, HashSet},
    hash::Hash,
    mem,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_util::FutureExt;

use crate::{
    db::{
        Callers, Pool, Reader,
        batch_sizes::{BatchSizes, SizeCounter},
        pending::{Departure, DispatchWhenIdle, PendingBatches, Running, lock},
    },
    error::Error,
    trace::{self, within},
};

/// Maximum number of concurrent statements of one kind.
const IN_FLIGHT: usize = 2;

/// Maximum number of keys in one statement; a full batch is dispatched without waiting for its requests.
pub(crate) const BATCH_KEYS: usize = 1_000;

/// Maximum number of waiting batches of one kind; further ones are refused with `UNAVAILABLE`.
const WAITING_BATCHES: usize = 256;

/// Loads many keys with one statement. Equal batches are merged.
pub(crate) trait Batch: Clone + PartialEq + Send + Sync + 'static {
    /// The key of a value.
    type Key: Copy + Eq + Hash + Send + Sync + Unpin + 'static;
    /// The loaded value; the default for a key without one.
    type Value: Clone + Default + Send + Sync + 'static;

    /// The name in reports, such as `circles by id`.
    fn name(&self) -> String;

    /// Loads the values of the keys, which are distinct and at most [`BATCH_KEYS`].
    fn run(
        &self,
        db: &Reader,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<HashMap<Self::Key, Self::Value>, Error>> + Send;
}

/// The loader: one for the process, shared by all requests.
pub(crate) struct Loader {
    db: Pool,
    queues: RwLock<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    sizes: Arc<SizeCounter>,
    callers: Callers,
}

impl Loader {
    pub(crate) fn new(db: Pool) -> Self {
        Self {
            db,
            queues: RwLock::default(),
            sizes: Arc::default(),
            callers: Callers::default(),
        }
    }

    /// The sizes of the batches sent so far, by name.
    pub(crate) fn batch_sizes(&self) -> Vec<BatchSizes> {
        self.sizes.read()
    }

    /// Number of statements that have a connection or wait for one.
    pub(crate) fn callers(&self) -> usize {
        self.callers.count()
    }

    /// Loads the value of a key for a request whose execution runs inside [`DispatchWhenIdle`].
    pub(crate) async fn load<B: Batch>(
        &self,
        request: &Arc<PendingBatches>,
        batch: B,
        key: B::Key,
    ) -> Result<B::Value, Error> {
        let parts = BatchQueue::join(&self.queue::<B>(), request, batch, &[key])?;
        let mut value = B::Value::default();
        for (pending, _) in parts {
            value = Wait::new(&pending, request).await?.of(key);
        }
        Ok(value)
    }

    /// As [`Loader::load`], for many keys: their values in the same order.
    pub(crate) async fn load_all<B: Batch>(
        &self,
        request: &Arc<PendingBatches>,
        batch: B,
        keys: &[B::Key],
    ) -> Result<Vec<B::Value>, Error> {
        let parts = BatchQueue::join(&self.queue::<B>(), request, batch, keys)?;
        let mut values = Vec::with_capacity(keys.len());
        let mut rest = keys;
        for (pending, count) in parts {
            let (keys, after) = rest.split_at(count);
            rest = after;
            let outcome = Wait::new(&pending, request).await?;
            values.extend(keys.iter().map(|key| outcome.of(*key)));
        }
        Ok(values)
    }

    /// Loads the value of a key outside of any operation; for `runs_inside` see [`PendingBatches::new`].
    pub(crate) async fn load_alone<B: Batch>(
        &self,
        batch: B,
        key: B::Key,
        runs_inside: bool,
    ) -> Result<B::Value, Error> {
        let pending = PendingBatches::new(false, runs_inside);
        DispatchWhenIdle::new(&pending, self.load(&pending, batch, key)).await
    }

    fn queue<B: Batch>(&self) -> Arc<BatchQueue<B>> {
        let id = TypeId::of::<B>();
        let known = self
            .queues
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned();
        let queue = known.unwrap_or_else(|| {
            let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
            let queue = queues.entry(id).or_insert_with(|| {
                Arc::new(BatchQueue::<B> {
                    db: self.db.clone(),
                    sizes: Arc::clone(&self.sizes),
                    callers: self.callers.clone(),
                    groups: Mutex::default(),
                })
            });
            Arc::clone(queue)
        });
        queue
            .downcast()
            .unwrap_or_else(|_| unreachable!("a queue is stored under its own type"))
    }
}

/// All waiting and running batches of one type.
struct BatchQueue<B: Batch> {
    db: Pool,
    sizes: Arc<SizeCounter>,
    callers: Callers,
    groups: Mutex<Vec<Group<B>>>,
}

/// The waiting and running batches that are equal.
struct Group<B: Batch> {
    batch: B,
    /// Waiting batches, oldest first; new keys join the last one.
    waiting: Vec<Arc<Pending<B>>>,
    in_flight: usize,
}

/// A batch, and the number of keys that it takes.
type Part<B> = (Arc<Pending<B>>, usize);

type Outcome<B> = Result<HashMap<<B as Batch>::Key, <B as Batch>::Value>, Error>;

/// A batch that collects keys, is running, or is complete.
struct Pending<B: Batch> {
    keys: Mutex<HashSet<B::Key>>,
    /// The request that has started it, and whether others have joined.
    first: Arc<PendingBatches>,
    is_shared: AtomicBool,
    /// Those of its requests that are traced.
    operations: trace::Operations,
    /// Whether a request that waits for one of the keys is idle.
    ready: AtomicBool,
    outcome: OnceLock<Outcome<B>>,
    waiters: Mutex<Vec<(Arc<PendingBatches>, Waker)>>,
}

impl<B: Batch> Group<B> {
    /// The waiting batch that takes more keys, for a request.
    fn open(&mut self, request: &Arc<PendingBatches>) -> Result<Arc<Pending<B>>, Error> {
        let pending = self.last(request)?;
        if let Some(span) = &request.span {
            pending.operations.add(span);
        }
        Ok(pending)
    }

    fn last(&mut self, request: &Arc<PendingBatches>) -> Result<Arc<Pending<B>>, Error> {
        let last = self.waiting.last();
        if let Some(open) = last.filter(|pending| lock(&pending.keys).len() < BATCH_KEYS) {
            if !Arc::ptr_eq(&open.first, request) {
                open.is_shared.store(true, Ordering::Relaxed);
            }
            return Ok(Arc::clone(open));
        }
        if self.waiting.len() >= WAITING_BATCHES {
            return Err(Error::unavailable(
                "The server is busy. Try again in a moment.",
            ));
        }
        let pending = Arc::new(Pending {
            keys: Mutex::default(),
            first: Arc::clone(request),
            is_shared: AtomicBool::new(false),
            operations: trace::Operations::default(),
            ready: AtomicBool::new(false),
            outcome: OnceLock::new(),
            waiters: Mutex::default(),
        });
        self.waiting.push(Arc::clone(&pending));
        Ok(pending)
    }
}

impl<B: Batch> BatchQueue<B> {
    /// Adds keys to the waiting batches; returns each batch with the number of keys that it takes, in order.
    fn join(
        queue: &Arc<Self>,
        request: &Arc<PendingBatches>,
        batch: B,
        keys: &[B::Key],
    ) -> Result<Vec<Part<B>>, Error> {
        let mut joined: Vec<Part<B>> = Vec::with_capacity(1);
        if keys.is_empty() {
            return Ok(joined);
        }
        let mut groups = lock(&queue.groups);
        let at = groups
            .iter()
            .position(|group| group.batch == batch)
            .unwrap_or_else(|| {
                groups.push(Group {
                    batch,
                    waiting: Vec::new(),
                    in_flight: 0,
                });
                groups.len() - 1
            });
        let group = &mut groups[at];
        let mut rest = keys;
        while !rest.is_empty() {
            let pending = group.open(request)?;
            let count = {
                let mut keys = lock(&pending.keys);
                let mut count = 0;
                while let Some(key) = rest.get(count)
                    && keys.len() < BATCH_KEYS
                {
                    keys.insert(*key);
                    count += 1;
                }
                count
            };
            rest = &rest[count..];
            joined.push((pending, count));
        }
        for (pending, _) in &joined {
            if lock(&pending.keys).len() >= BATCH_KEYS {
                pending.ready.store(true, Ordering::Relaxed);
            } else {
                let address = Arc::as_ptr(pending).cast();
                request.touch(address, || {
                    Arc::new(Joined {
                        queue: Arc::clone(queue),
                        pending: Arc::clone(pending),
                    })
                });
            }
        }
        Self::dispatch(queue, group, None);
        Ok(joined)
    }

    /// Dispatches ready batches, up to the limit of concurrent statements of the group. Returns the batch `inside`,
    /// unless several requests wait for it, and spawns the others.
    fn dispatch(
        queue: &Arc<Self>,
        group: &mut Group<B>,
        inside: Option<&Arc<Pending<B>>>,
    ) -> Option<Running> {
        let mut returned = None;
        while group.in_flight < IN_FLIGHT
            && group
                .waiting
                .first()
                .is_some_and(|next| next.ready.load(Ordering::Relaxed))
        {
            let pending = group.waiting.remove(0);
            group.in_flight += 1;
            let is_inside = inside.is_some_and(|inside| Arc::ptr_eq(inside, &pending))
                && !pending.is_shared.load(Ordering::Relaxed);
            let run = BatchRun {
                queue: Arc::clone(queue),
                batch: group.batch.clone(),
                pending,
                reader: Reader::new(queue.db.clone(), queue.callers.clone()),
            };
            // A panic fails the keys of the batch, and not the task that runs it.
            let run = Box::pin(AssertUnwindSafe(run.run()).catch_unwind().map(drop));
            if is_inside {
                returned = Some(run as Running);
                continue;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a batch is shared by several requests; at most IN_FLIGHT run"
            )]
            tokio::spawn(run);
        }
        returned
    }
}

/// A running batch. However it ends, even by a panic, its waiting resolvers get a result.
struct BatchRun<B: Batch> {
    queue: Arc<BatchQueue<B>>,
    batch: B,
    pending: Arc<Pending<B>>,
    reader: Reader,
}

impl<B: Batch> BatchRun<B> {
    async fn run(self) {
        let keys: Vec<_> = lock(&self.pending.keys).iter().copied().collect();
        let name = self.batch.name();
        self.queue.sizes.record(&name, keys.len());
        let span = self.pending.operations.start_batch(&name, keys.len());
        let outcome = within(span.clone(), self.batch.run(&self.reader, &keys)).await;
        if let Some(span) = span {
            trace::end_batch(&span, self.reader.rows_read(), &outcome);
        }
        let _ = self.pending.outcome.set(outcome);
    }
}

impl<B: Batch> Drop for BatchRun<B> {
    fn drop(&mut self) {
        if self.pending.outcome.get().is_none() {
            tracing::error!(batch = self.batch.name(), "a batch ended without a result");
            let _ = self.pending.outcome.set(Err(Error::internal()));
        }
        {
            let mut groups = lock(&self.queue.groups);
            if let Some(at) = groups.iter().position(|group| group.batch == self.batch) {
                let group = &mut groups[at];
                group.in_flight -= 1;
                BatchQueue::dispatch(&self.queue, group, None);
                if group.in_flight == 0 && group.waiting.is_empty() {
                    groups.swap_remove(at);
                }
            }
        }
        let mut requests: Vec<(Arc<PendingBatches>, Vec<Waker>)> = Vec::new();
        for (request, waker) in mem::take(&mut *lock(&self.pending.waiters)) {
            match requests
                .iter_mut()
                .find(|(known, _)| Arc::ptr_eq(known, &request))
            {
                Some((_, wakers)) => wakers.push(waker),
                None => requests.push((request, vec![waker])),
            }
        }
        let statements = self.reader.statements();
        for (request, wakers) in requests {
            request.answered(wakers, statements, || {
                (
                    self.batch.name(),
                    lock(&self.pending.keys).len(),
                    self.reader.rows_read(),
                )
            });
        }
    }
}

/// Waits for the end of a batch.
struct Wait<'a, B: Batch> {
    pending: &'a Arc<Pending<B>>,
    request: &'a Arc<PendingBatches>,
    slot: Option<usize>,
}

impl<'a, B: Batch> Wait<'a, B> {
    fn new(pending: &'a Arc<Pending<B>>, request: &'a Arc<PendingBatches>) -> Self {
        Self {
            pending,
            request,
            slot: None,
        }
    }
}

impl<'a, B: Batch> Future for Wait<'a, B> {
    type Output = Result<Values<'a, B>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let pending = self.pending;
        let mut waiters = lock(&pending.waiters);
        if let Some(outcome) = pending.outcome.get() {
            return Poll::Ready(match outcome {
                Ok(values) => Ok(Values(values)),
                Err(error) => Err(error.clone()),
            });
        }
        let waker = context.waker();
        if let Some((_, known)) = self.slot.and_then(|slot| waiters.get_mut(slot)) {
            known.clone_from(waker);
        } else {
            self.slot = Some(waiters.len());
            waiters.push((Arc::clone(self.request), waker.clone()));
        }
        Poll::Pending
    }
}

/// The values of a batch.
struct Values<'a, B: Batch>(&'a HashMap<B::Key, B::Value>);

impl<B: Batch> Values<'_, B> {
    fn of(&self, key: B::Key) -> B::Value {
        self.0.get(&key).cloned().unwrap_or_default()
    }
}

struct Joined<B: Batch> {
    queue: Arc<BatchQueue<B>>,
    pending: Arc<Pending<B>>,
}

impl<B: Batch> Departure for Joined<B> {
    fn is(&self, pending: *const ()) -> bool {
        Arc::as_ptr(&self.pending).cast() == pending
    }

    fn dispatch(&self, runs_inside: bool) -> Option<Running> {
        let mut groups = lock(&self.queue.groups);
        self.pending.ready.store(true, Ordering::Relaxed);
        let group = groups.iter_mut().find(|group| {
            group
                .waiting
                .iter()
                .any(|pending| Arc::ptr_eq(pending, &self.pending))
        });
        let inside = runs_inside.then_some(&self.pending);
        BatchQueue::dispatch(&self.queue, group?, inside)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use sea_orm::{DatabaseConnection, metric::Info};

    use super::*;
    use crate::{db::PoolMonitor, error::Code};

    struct Unobserved;

    impl PoolMonitor for Unobserved {
        fn ended(&self, _: &Info<'_>) {}

        fn is_usable(&self, _: Duration) -> bool {
            true
        }
    }

    /// A loader without a database.
    fn loader() -> Loader {
        Loader::new(Pool::new(
            DatabaseConnection::default(),
            Arc::new(Unobserved),
        ))
    }

    /// Returns the double of a number, and the number of keys in the batch.
    #[derive(Clone, PartialEq)]
    struct Doubles {
        fails: bool,
    }

    impl Batch for Doubles {
        type Key = u64;
        type Value = (u64, usize);

        fn name(&self) -> String {
            "doubles".to_owned()
        }

        async fn run(&self, _: &Reader, keys: &[u64]) -> Result<HashMap<u64, Self::Value>, Error> {
            tokio::task::yield_now().await;
            assert!(!self.fails, "this batch panics");
            Ok(keys
                .iter()
                .map(|key| (*key, (2 * key, keys.len())))
                .collect())
        }
    }

    const DOUBLES: Doubles = Doubles { fails: false };

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn siblings_share_one_batch_per_level_and_each_key_is_loaded_once() {
        for _ in 0..500 {
            let loader = loader();
            let pending = PendingBatches::new(true, false);
            let child = async |number: u64| {
                let (double, together) = loader.load(&pending, DOUBLES, number % 50).await?;
                let (_, below) = loader.load(&pending, DOUBLES, 1_000 + double).await?;
                Ok::<_, Error>((together, below))
            };
            // More than thirty joined futures wake themselves, and so do those within them.
            let children =
                join_all((0..10).map(|part| join_all((0..40).map(move |n| child(40 * part + n)))));
            let answers = DispatchWhenIdle::new(&pending, children).await;
            for answer in answers.into_iter().flatten() {
                assert_eq!(answer.map_err(|error| error.code), Ok((50, 50)));
            }
            let batches = pending.usage().map(|usage| usage.batches.len());
            assert_eq!(batches, Some(2));
        }
    }

    #[tokio::test]
    async fn a_panicking_batch_fails_only_its_own_keys() {
        let loader = loader();
        for runs_inside in [false, true, false, true] {
            let pending = PendingBatches::new(false, runs_inside);
            let both =
                join_all([true, false].map(|fails| loader.load(&pending, Doubles { fails }, 7)));
            let answers = DispatchWhenIdle::new(&pending, both).await;
            let codes = answers
                .into_iter()
                .map(|answer| answer.map_err(|error| error.code));
            assert_eq!(
                codes.collect::<Vec<_>>(),
                [Err(Code::Internal), Ok((14, 1))]
            );
        }
    }

    #[tokio::test]
    async fn the_size_of_a_batch_is_limited() {
        let loader = loader();
        let pending = PendingBatches::new(false, false);
        let keys = 2 * BATCH_KEYS as u64 + 5;
        let all = join_all((0..keys).map(|key| loader.load(&pending, DOUBLES, key)));
        let answers = DispatchWhenIdle::new(&pending, all).await;
        for (key, answer) in (0..).zip(answers) {
            let (double, together) = answer.unwrap_or_default();
            assert_eq!(double, 2 * key);
            assert!(together <= BATCH_KEYS);
        }
    }

    #[tokio::test]
    async fn a_batch_of_one_request_runs_inside_its_task() {
        let loader = loader();
        let load = async |pending: &Arc<PendingBatches>, key| {
            let load = loader.load(pending, DOUBLES, key);
            let answer = DispatchWhenIdle::new(pending, load).await;
            let tasks = tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks();
            (answer.map_err(|error| error.code), tasks)
        };
        let alone = PendingBatches::new(false, true);
        assert_eq!(load(&alone, 1).await, (Ok((2, 1)), 0));
        // A batch of two requests must not depend on one of them.
        let both = [1, 2].map(|_| PendingBatches::new(false, true));
        let [one, other] = &both;
        let mut first = Box::pin(load(one, 1));
        let mut started = DispatchWhenIdle::new(other, loader.load(other, DOUBLES, 2));
        futures_util::future::poll_fn(|context| {
            lock(&loader.queue::<Doubles>().groups).push(Group {
                batch: DOUBLES,
                waiting: Vec::new(),
                in_flight: IN_FLIGHT,
            });
            assert!(first.as_mut().poll(context).is_pending());
            assert!(Pin::new(&mut started).poll(context).is_pending());
            let queue = loader.queue::<Doubles>();
            let mut groups = lock(&queue.groups);
            groups[0].in_flight = 0;
            let inside = Some(Arc::clone(&groups[0].waiting[0]));
            let returned = BatchQueue::dispatch(&queue, &mut groups[0], inside.as_ref());
            assert!(returned.is_none());
            Poll::Ready(())
        })
        .await;
        assert_eq!(started.await.map_err(|error| error.code), Ok((4, 2)));
        assert_eq!(first.await.0, Ok((2, 2)));
    }

    #[tokio::test]
    async fn a_cancelled_request_leaves_no_batch_pending() {
        for runs_inside in [false, true] {
            let loader = loader();
            let pending = PendingBatches::new(false, runs_inside);
            let mut execution = DispatchWhenIdle::new(&pending, async {
                let forgotten = loader.load(&pending, DOUBLES, 1);
                futures_util::future::select(std::pin::pin!(forgotten), std::future::ready(()))
                    .await;
            });
            futures_util::future::poll_fn(|context| Pin::new(&mut execution).poll(context)).await;
            drop(execution);
            let mut running = DispatchWhenIdle::new(&pending, loader.load(&pending, DOUBLES, 3));
            let started = futures_util::future::poll_fn(|context| {
                Poll::Ready(Pin::new(&mut running).poll(context).is_pending())
            });
            assert!(started.await);
            drop(running);
            let other = PendingBatches::new(false, runs_inside);
            let answer = DispatchWhenIdle::new(&other, loader.load(&other, DOUBLES, 2)).await;
            assert_eq!(answer.map_err(|error| error.code), Ok((4, 1)));
            while !lock(&loader.queue::<Doubles>().groups).is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }
}
