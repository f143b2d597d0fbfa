//! Buckets that all instances share, in Redis.
//!
//! One script takes from all buckets of an operation in one round trip, by the clock of Redis. The keys have one hash
//! tag, so that a cluster stores them in one place and the script may access them together. If Redis does not respond
//! in time, the instance continues with its own buckets in memory, and one request a second checks whether Redis is
//! back.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::Duration,
};

use redis::{
    Client, RedisError, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::time::timeout;

use crate::rate_limit::bucket::{Acquire, Granted};

/// Maximum wait for Redis.
const TIMEOUT: Duration = Duration::from_millis(50);

/// The pause after Redis did not respond, in microseconds.
const RETRY_INTERVAL: i64 = 1_000_000;

const PREFIX: &str = "{gathering-limits}:";

const TAKE: &str = r"
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local debts, intervals, costs, granted, fits = {}, {}, {}, {}, true
for i = 1, #KEYS do
  local limit, interval, cost = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local most = limit * interval
  local debt = tonumber(redis.call('GET', KEYS[i]) or now) - now
  debt = math.max(0, math.min(debt, most))
  debts[i], intervals[i], costs[i] = debt, interval, cost
  granted[i] = math.min(cost, math.floor((most - debt) / interval))
  fits = fits and granted[i] >= cost
end
local answer = {}
for i = 1, #KEYS do
  local taken = granted[i]
  if ARGV[1] == 'whole' and not fits then
    taken = 0
  end
  local debt = math.max(0, debts[i] + taken * intervals[i])
  if taken ~= 0 then
    if debt > 0 then
      redis.call('SET', KEYS[i], string.format('%.0f', now + debt), 'PX', math.ceil(debt / 1000))
    else
      redis.call('DEL', KEYS[i])
    end
  end
  answer[2 * i - 1], answer[2 * i] = taken, debt
end
return answer
";

pub(super) struct Shared {
    connection: ConnectionManager,
    script: Script,
    /// When Redis may be tried again, by the monotonic clock.
    next_attempt: AtomicI64,
    is_unreachable: AtomicBool,
}

impl Shared {
    /// Uses the Redis at this URL, which need not be reachable yet.
    pub(super) fn new(url: &str) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(1)))
            .set_number_of_retries(1);
        let client = Client::open(url)?;
        Ok(Self {
            connection: ConnectionManager::new_lazy_with_config(client, config)?,
            script: Script::new(TAKE),
            next_attempt: AtomicI64::new(i64::MIN),
            is_unreachable: AtomicBool::new(false),
        })
    }

    /// Whether Redis did not respond the last time.
    pub(super) fn is_unreachable(&self) -> bool {
        self.is_unreachable.load(Ordering::Relaxed)
    }

    /// Takes from all buckets atomically; with `whole`, everything or nothing. `None` if Redis cannot be reached.
    pub(super) async fn take(
        &self,
        acquires: &[Acquire],
        whole: bool,
        monotonic: i64,
    ) -> Option<Vec<Granted>> {
        if self.is_unreachable() {
            let until = self.next_attempt.load(Ordering::Relaxed);
            let next = monotonic + RETRY_INTERVAL;
            let order = Ordering::Relaxed;
            let may_try = monotonic >= until
                && self
                    .next_attempt
                    .compare_exchange(until, next, order, order)
                    .is_ok();
            if !may_try {
                return None;
            }
        }
        let answer = timeout(TIMEOUT, self.invoke(acquires, whole, None)).await;
        let why = match answer {
            Ok(Ok(grants)) => {
                if self.is_unreachable.swap(false, Ordering::Relaxed) {
                    tracing::info!("Redis is back: rate limits are shared again");
                }
                return Some(grants);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no response in time".to_owned(),
        };
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

    /// `now` defaults to the clock of Redis.
    async fn invoke(
        &self,
        acquires: &[Acquire],
        whole: bool,
        now: Option<i64>,
    ) -> Result<Vec<Granted>, RedisError> {
        let mut call = self.script.prepare_invoke();
        call.arg(if whole { "whole" } else { "part" });
        call.arg(now.map(|now| now.to_string()).unwrap_or_default());
        for acquire in acquires {
            call.key(format!("{PREFIX}{}", acquire.key));
            call.arg(acquire.limit)
                .arg(acquire.interval())
                .arg(acquire.cost);
        }
        let mut connection = self.connection.clone();
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
                Acquire {
                    key: format!("{run}/{bucket}"),
                    limit: [1, 5, 7, 30, 120, 300][usize::try_from(bucket).expect("small")],
                    cost: schedule.below(12) - 3,
                }
            });
            let acquires: Vec<_> = acquires.collect();
            let whole = schedule.below(2) == 0;
            let ours = memory.take(&acquires, whole, now);
            let theirs = redis
                .invoke(&acquires, whole, Some(now))
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
