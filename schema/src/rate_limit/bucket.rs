//! The rate limit algorithm: GCRA, the generic cell rate algorithm, as in the `governor` crate.
//!
//! A bucket is one number, its debt: the time until the bucket is full again. Each cost adds its interval to the debt,
//! and time reduces it; a cost that would raise the debt above the window does not fit. The memory store and the Redis
//! script compute the same step, in whole microseconds.

/// The time in which an empty bucket becomes full again, in microseconds.
pub(super) const WINDOW: i64 = 60_000_000;

/// A request to take from one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acquire {
    /// The key of the bucket.
    pub(super) key: String,
    /// The capacity of the bucket.
    pub(super) limit: u32,
    /// The amount to take; negative to refund, zero to read only.
    pub(super) cost: i64,
}

/// The result of a request to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    /// The amount taken.
    pub(super) granted: i64,
    /// The debt afterwards, in microseconds.
    pub(super) debt: i64,
}

impl Acquire {
    /// The time in which the bucket regains one.
    pub(super) fn interval(&self) -> i64 {
        WINDOW / i64::from(self.limit)
    }

    /// The debt of an empty bucket.
    pub(super) fn most(&self) -> i64 {
        self.interval() * i64::from(self.limit)
    }

    /// The amount granted by a bucket with this debt.
    pub(super) fn of(&self, debt: i64) -> Granted {
        // If the clock was set back, the debt is at most one full window.
        let debt = debt.clamp(0, self.most());
        let granted = self.cost.min((self.most() - debt) / self.interval());
        Granted {
            granted,
            debt: (debt + granted * self.interval()).max(0),
        }
    }

    /// The amounts granted by buckets with these debts; with `whole`, everything or nothing.
    pub(super) fn of_all(acquires: &[Self], debts: &[i64], whole: bool) -> Vec<Granted> {
        let grants = |acquires: &[Self]| -> Vec<_> {
            let both = acquires.iter().zip(debts);
            both.map(|(acquire, debt)| acquire.of(*debt)).collect()
        };
        let all = grants(acquires);
        let fits = acquires
            .iter()
            .zip(&all)
            .all(|(acquire, grant)| grant.granted >= acquire.cost);
        if fits || !whole {
            return all;
        }
        let nothing = acquires.iter().map(|acquire| Self {
            cost: 0,
            ..acquire.clone()
        });
        grants(&nothing.collect::<Vec<_>>())
    }

    /// The amount left in a bucket with this debt.
    pub(super) fn remaining(&self, debt: i64) -> u32 {
        let left = (self.most() - debt.max(0)).max(0) / self.interval();
        u32::try_from(left).unwrap_or(self.limit)
    }

    /// The time until this cost fits into a bucket with this debt; for a cost above the capacity, until the bucket is
    /// full.
    pub(super) fn wait(&self, debt: i64, cost: i64) -> i64 {
        let cost = cost.min(i64::from(self.limit));
        (debt + cost * self.interval() - self.most()).max(0)
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use governor::{Quota, RateLimiter, clock::FakeRelativeClock};

    use super::*;
    use crate::rate_limit::schedule::Schedule;

    #[test]
    fn decisions_equal_those_of_governor() {
        for limit in [1, 5, 6, 30, 120, 300] {
            let clock = FakeRelativeClock::default();
            let quota = Quota::per_minute(NonZeroU32::new(limit).expect("not zero"));
            let oracle = RateLimiter::direct_with_clock(quota, clock.clone());
            let acquire = Acquire {
                key: String::new(),
                limit,
                cost: 1,
            };
            let (mut now, mut full_at) = (0, 0);
            let mut schedule = Schedule::new(u64::from(limit));
            let mut refused = 0;
            for step in 0..5_000 {
                let pause = schedule.below(3 * acquire.interval() / 2);
                now += pause;
                clock.advance(Duration::from_micros(pause.unsigned_abs()));
                let grant = acquire.of(full_at - now);
                full_at = now + grant.debt;
                let expected = oracle.check().is_ok();
                assert_eq!(grant.granted == 1, expected, "limit {limit}, step {step}");
                refused += u32::from(!expected);
            }
            assert!(refused > 100, "{refused}");
        }
    }

    #[test]
    fn a_bucket_reports_the_remaining_amount_and_the_wait() {
        let acquire = |cost| Acquire {
            key: String::new(),
            limit: 5,
            cost,
        };
        let second = 1_000_000;
        let three = acquire(3).of(0);
        assert_eq!(
            three,
            Granted {
                granted: 3,
                debt: 36 * second
            }
        );
        assert_eq!(acquire(0).remaining(three.debt), 2);
        assert_eq!(
            acquire(3).of(three.debt),
            Granted {
                granted: 2,
                debt: 60 * second
            }
        );
        assert_eq!(acquire(0).wait(60 * second, 1), 12 * second);
        assert_eq!(acquire(0).wait(60 * second - 1, 1), 12 * second - 1);
        assert_eq!(acquire(0).wait(60 * second, 6), 60 * second);
        assert_eq!(acquire(-2).of(three.debt).debt, 12 * second);
        assert_eq!(acquire(-9).of(three.debt).debt, 0);
        // The clock was set back by an hour.
        assert_eq!(
            acquire(1).of(3_600 * second),
            Granted {
                granted: 0,
                debt: 60 * second
            }
        );
    }
}
