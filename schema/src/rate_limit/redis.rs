//! Buckets that all instances share, in Redis.
//!
//! One script takes from all buckets of an operation in one round trip, by the clock of Redis. The keys have one hash
//! tag, so that a cluster stores them on one node and the script may access them together. The configured node of a
//! cluster names that node, and the server follows.
//!
//! A request that Redis does not answer in time is decided with the instance's own buckets in memory. After several such
//! requests in a row, or one error, all requests are, and one request a second checks whether Redis is back.
//!
//! What an operation has not used is returned without a round trip: as a credit, with the next request to the same bucket,
//! or with all other credits once a second.

use std::{
    borrow::Cow,
    collections::HashMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, ConnectionAddr, ErrorKind, RedisError, Script, ServerErrorKind,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::time::{sleep, timeout};

use crate::rate_limit::bucket::{Acquire, Granted};

/// Maximum wait for Redis.
const TIMEOUT: Duration = Duration::from_millis(50);

/// The pause after Redis did not respond, in microseconds.
const RETRY_INTERVAL: i64 = 1_000_000;

/// The number of requests in a row without an answer in time after which Redis counts as unreachable. Concurrent
/// requests count as one.
const SLOW_ANSWERS: u32 = 3;

/// The interval at which credits are sent.
const CREDIT_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of credits; further ones are lost.
const CREDITS: usize = 10_000;

/// Maximum number of credits in one call of the script.
const CREDITS_SENT: usize = 1_000;

const PREFIX: &str = "{gathering-limits}:";

const TAKE: &str = r"
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local buckets, fits = {}, true
for i = 1, #KEYS do
  local limit, interval, cost = tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
  local b = { most = limit * interval, interval = interval, stored = 0, stored_interval = interval }
  local stored = redis.call('GET', KEYS[i])
  if stored then
    local full_at, unit = string.match(stored, '^(%d+) ?(%d*)$')
    b.stored = math.max(0, math.min((tonumber(full_at) or now) - now, 60000000))
    b.stored_interval = math.max(1, tonumber(unit) or interval)
  end
  b.debt = math.min(b.most, math.floor(b.stored * interval / b.stored_interval))
  b.granted = math.min(cost, math.floor((b.most - b.debt) / interval))
  fits = fits and (ARGV[4 * i + 1] == '0' or b.granted >= cost)
  buckets[i] = b
end
local answer = {}
for i, b in ipairs(buckets) do
  local taken, debt = fits and b.granted or 0, b.debt
  if taken ~= 0 then
    local owed, of = debt, b.interval
    if taken < 0 then
      owed, of = b.stored, b.stored_interval
    end
    owed = math.max(0, owed + taken * of)
    if owed > 0 then
      redis.call('SET', KEYS[i], string.format('%.0f %.0f', now + owed, of), 'PX', math.ceil(owed / 1000))
    else
      redis.call('DEL', KEYS[i])
    end
    debt = math.min(b.most, math.floor(owed * b.interval / of))
  end
  answer[2 * i - 1], answer[2 * i] = taken, debt
end
return answer
";

/// What a Redis server reports about itself.
#[derive(Clone, Debug)]
pub struct RedisState {
    /// The version.
    pub version: String,
    /// What it does when its memory is full, such as `noeviction` or `allkeys-lru`.
    pub eviction: String,
    /// The time of its clock, in microseconds since 1970.
    pub now: i64,
}

/// Returns the state of the Redis server at this URL.
///
/// # Errors
/// The URL is invalid, or Redis does not answer; the text contains the reason, but not the URL.
pub async fn redis_state(url: &str) -> Result<RedisState, String> {
    let text = |error: RedisError| error.to_string();
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(3)))
        .set_response_timeout(Some(Duration::from_secs(3)))
        .set_number_of_retries(0);
    let client = Client::open(url).map_err(text)?;
    let connecting = ConnectionManager::new_with_config(client, config);
    let mut connection = connecting.await.map_err(text)?;
    let mut state = redis::pipe();
    state.cmd("INFO").cmd("TIME");
    let (info, (seconds, micros)): (String, (i64, i64)) =
        state.query_async(&mut connection).await.map_err(text)?;
    let line = |name: &str| {
        let found = info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap_or_default().trim().to_owned()
    };
    Ok(RedisState {
        version: line("redis_version"),
        eviction: line("maxmemory_policy"),
        now: seconds * 1_000_000 + micros,
    })
}

pub(super) struct Shared {
    configured: Client,
    node: Mutex<Node>,
    script: Script,
    /// When Redis may be tried again, by the monotonic clock.
    next_attempt: AtomicI64,
    is_unreachable: AtomicBool,
    /// The number of requests in a row without an answer in time.
    slow_answers: AtomicU32,
    /// Amounts to return, with a cost below zero, by bucket.
    credits: Mutex<HashMap<String, Acquire>>,
    /// Whether a task will send the credits.
    is_sending: AtomicBool,
}

/// The node of Redis that has the buckets.
struct Node {
    connection: ConnectionManager,
    /// Whether it is the configured one.
    is_configured: bool,
}

impl Node {
    fn new(client: Client, is_configured: bool) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(1)))
            .set_number_of_retries(1);
        Ok(Self {
            connection: ConnectionManager::new_lazy_with_config(client, config)?,
            is_configured,
        })
    }
}

impl Shared {
    /// Uses the Redis at this URL, which need not be reachable yet.
    pub(super) fn new(url: &str) -> Result<Self, RedisError> {
        let configured = Client::open(url)?;
        Ok(Self {
            node: Mutex::new(Node::new(configured.clone(), true)?),
            configured,
            script: Script::new(TAKE),
            next_attempt: AtomicI64::new(i64::MIN),
            is_unreachable: AtomicBool::new(false),
            slow_answers: AtomicU32::new(0),
            credits: Mutex::default(),
            is_sending: AtomicBool::new(false),
        })
    }

    /// Whether Redis did not respond the last time.
    pub(super) fn is_unreachable(&self) -> bool {
        self.is_unreachable.load(Ordering::Relaxed)
    }

    /// Takes from all buckets atomically: nothing if a required cost does not fit. `None` if Redis does not answer in
    /// time.
    pub(super) async fn take(&self, acquires: &[Acquire], monotonic: i64) -> Option<Vec<Granted>> {
        if self.is_unreachable() && !self.may_try(monotonic) {
            return None;
        }
        let slow_answers = self.slow_answers.load(Ordering::Relaxed);
        let credits = self.credits_of(acquires);
        let mut reduced = Cow::Borrowed(acquires);
        for (place, credit) in &credits {
            reduced.to_mut()[*place].cost += credit.cost;
        }
        let why = match timeout(TIMEOUT, self.invoke(&reduced, None)).await {
            Ok(Ok(mut grants)) => {
                if slow_answers > 0 {
                    self.slow_answers.store(0, Ordering::Relaxed);
                }
                if self.is_unreachable.swap(false, Ordering::Relaxed) {
                    tracing::info!("Redis is back: rate limits are shared again");
                }
                let fits = |(acquire, grant): (&Acquire, &Granted)| {
                    !acquire.is_required || grant.granted >= acquire.cost
                };
                let fits = reduced.iter().zip(&grants).all(fits);
                for (place, credit) in credits {
                    if fits {
                        grants[place].granted -= credit.cost;
                    } else {
                        self.add_credit(credit);
                    }
                }
                return Some(grants);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                let order = Ordering::Relaxed;
                let slower = slow_answers.saturating_add(1);
                // Of concurrent requests, only the first one counts.
                let is_counted = self
                    .slow_answers
                    .compare_exchange(slow_answers, slower, order, order)
                    .is_ok();
                if !is_counted || slower < SLOW_ANSWERS {
                    return None;
                }
                "no response in time".to_owned()
            }
        };
        // In a cluster, another node may have taken over.
        self.use_configured();
        self.next_attempt
            .store(monotonic + RETRY_INTERVAL, Ordering::Relaxed);
        if !self.is_unreachable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                why,
                "Redis does not respond: this instance applies the limits separately"
            );
        }
        None
    }

    /// Whether this request checks whether Redis is back.
    fn may_try(&self, monotonic: i64) -> bool {
        let until = self.next_attempt.load(Ordering::Relaxed);
        let (next, order) = (monotonic + RETRY_INTERVAL, Ordering::Relaxed);
        monotonic >= until
            && self
                .next_attempt
                .compare_exchange(until, next, order, order)
                .is_ok()
    }

    fn credits(&self) -> MutexGuard<'_, HashMap<String, Acquire>> {
        self.credits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the credits of these buckets out, each with the index of its bucket.
    fn credits_of(&self, acquires: &[Acquire]) -> Vec<(usize, Acquire)> {
        let mut credits = self.credits();
        if credits.is_empty() {
            return Vec::new();
        }
        let places = acquires.iter().enumerate();
        places
            .filter_map(|(place, acquire)| Some((place, credits.remove(&acquire.key)?)))
            .collect()
    }

    fn add_credit(&self, credit: Acquire) {
        let mut credits = self.credits();
        if let Some(known) = credits.get_mut(&credit.key) {
            known.cost += credit.cost;
        } else if credits.len() < CREDITS {
            credits.insert(credit.key.clone(), credit);
        }
    }

    /// Returns an amount, given as a cost below zero, with the next request to its bucket, or within a second.
    pub(super) fn return_later(self: &Arc<Self>, credit: Acquire) {
        self.add_credit(credit);
        if self.is_sending.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "there is one task at a time, which ends after one interval"
        )]
        tokio::spawn(async move {
            sleep(CREDIT_INTERVAL).await;
            shared.is_sending.store(false, Ordering::Relaxed);
            shared.send_credits().await;
        });
    }

    /// Sends all credits. Those that Redis does not accept are lost.
    async fn send_credits(&self) {
        let credits: Vec<_> = mem::take(&mut *self.credits()).into_values().collect();
        for credits in credits.chunks(CREDITS_SENT) {
            if self.is_unreachable() || timeout(TIMEOUT, self.invoke(credits, None)).await.is_err()
            {
                return;
            }
        }
    }

    fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the configured node again.
    fn use_configured(&self) {
        let mut node = self.node();
        if !node.is_configured
            && let Ok(configured) = Node::new(self.configured.clone(), true)
        {
            *node = configured;
        }
    }

    /// Uses the node that the answer of a cluster names. Returns whether there is one.
    fn follow(&self, error: &RedisError) -> bool {
        if error.kind() != ErrorKind::Server(ServerErrorKind::Moved) {
            return false;
        }
        let named = error
            .redirect_node()
            .and_then(|(node, _)| node.rsplit_once(':'));
        let Some((host, Ok(port))) = named.map(|(host, port)| (host, port.parse())) else {
            return false;
        };
        let info = self.configured.get_connection_info().clone();
        let mut address = info.addr().clone();
        match &mut address {
            ConnectionAddr::Tcp(known, number)
            | ConnectionAddr::TcpTls {
                host: known,
                port: number,
                ..
            } => {
                // A node without a known address has that of the one that names it.
                if !host.is_empty() {
                    host.clone_into(known);
                }
                *number = port;
            }
            _ => return false,
        }
        let node = Client::open(info.set_addr(address)).and_then(|client| Node::new(client, false));
        let is_found = node.is_ok();
        if let Ok(node) = node {
            *self.node() = node;
        }
        is_found
    }

    /// `now` defaults to the clock of Redis.
    async fn invoke(
        &self,
        acquires: &[Acquire],
        now: Option<i64>,
    ) -> Result<Vec<Granted>, RedisError> {
        match self.invoke_on_node(acquires, now).await {
            Err(error) if self.follow(&error) => self.invoke_on_node(acquires, now).await,
            answer => answer,
        }
    }

    async fn invoke_on_node(
        &self,
        acquires: &[Acquire],
        now: Option<i64>,
    ) -> Result<Vec<Granted>, RedisError> {
        let mut call = self.script.prepare_invoke();
        call.arg(now.map(|now| now.to_string()).unwrap_or_default());
        for acquire in acquires {
            call.key(format!("{PREFIX}{}", acquire.key));
            call.arg(acquire.limit)
                .arg(acquire.interval())
                .arg(acquire.cost)
                .arg(i32::from(acquire.is_required));
        }
        let mut connection = self.node().connection.clone();
        let answer: Vec<i64> = call.invoke_async(&mut connection).await?;
        Ok(answer
            .chunks_exact(2)
            .map(|pair| Granted {
                granted: pair[0],
                debt: pair[1],
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::rate_limit::{memory::Memory, schedule::Schedule};

    /// The Redis for tests; without one the test is skipped.
    fn redis() -> Option<Shared> {
        #[expect(clippy::disallowed_methods, reason = "tests read the URL of Redis")]
        let url = std::env::var("GATHERING_TEST_REDIS_URL").ok()?;
        Some(Shared::new(&url).expect("a URL"))
    }

    #[tokio::test]
    async fn redis_and_memory_grant_the_same() {
        let Some(redis) = redis() else {
            return;
        };
        let memory = Memory::new(1_000);
        let run = Uuid::now_v7();
        let mut schedule = Schedule::new(42);
        // Keys expire by the clock of Redis; this clock runs ahead of it.
        let mut now = 1_800_000_000_000_000_i64;
        let (mut granted, mut refused) = (0, 0);
        for step in 0..4_000 {
            now += schedule.below(400_000);
            let first = schedule.below(6);
            let acquires = (0..=schedule.below(3)).map(|more| {
                let bucket = (first + more) % 6;
                let limit = [1, 5, 7, 30, 120, 300][usize::try_from(bucket).expect("small")];
                // The classes of a client change.
                let factor = [1, 1, 1, 10][usize::try_from(schedule.below(4)).expect("small")];
                Acquire {
                    key: format!("{run}/{bucket}"),
                    limit: limit * factor,
                    cost: schedule.below(12) - 3,
                    is_required: schedule.below(2) == 0,
                }
            });
            let acquires: Vec<_> = acquires.collect();
            let ours = memory.take(&acquires, now);
            let theirs = redis
                .invoke(&acquires, Some(now))
                .await
                .expect("Redis answers");
            assert_eq!(ours, theirs, "step {step}: {acquires:?}");
            granted += ours.iter().filter(|grant| grant.granted > 0).count();
            refused += ours
                .iter()
                .zip(&acquires)
                .filter(|(grant, acquire)| grant.granted < acquire.cost)
                .count();
        }
        assert!(
            granted > 500 && refused > 500,
            "{granted} granted, {refused} refused"
        );
    }
}
