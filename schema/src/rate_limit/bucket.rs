//! The rate limit algorithm: GCRA, the generic cell rate algorithm, as in the `governor` crate.
//!
//! A bucket is one number, its debt: the time until the bucket is full again. Each cost adds its interval to the debt,
//! and time reduces it; a cost that would raise the debt above the window does not fit. The memory store and the Redis
//! script compute the same step, in whole microseconds.
//!
//! A stored debt has the interval with which it was computed. When the limit changes, the debt is converted, so that the
//! bucket keeps the amount used.

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
    /// Whether nothing is taken from any bucket of the operation unless the whole cost fits into this one.
    pub(super) is_required: bool,
}

/// The debt of a bucket, in microseconds, and the interval with which it was computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Debt {
    pub(super) micros: i64,
    pub(super) interval: i64,
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

    /// A stored debt at this limit, at most that of an empty bucket. It may be larger if the clock was set back.
    pub(super) fn convert(&self, debt: Debt) -> i64 {
        let micros = debt.micros.clamp(0, WINDOW);
        let converted = if debt.interval > 0 && debt.interval != self.interval() {
            micros * self.interval() / debt.interval
        } else {
            micros
        };
        converted.min(self.most())
    }

    /// The debt after taking this amount. A refund keeps the interval of the stored debt: an instance or a request that
    /// still has a smaller limit would otherwise cut off what others have used under a larger one.
    pub(super) fn apply(&self, stored: Debt, granted: i64) -> Debt {
        let (micros, interval) = if granted < 0 && stored.interval > 0 {
            (stored.micros.clamp(0, WINDOW), stored.interval)
        } else {
            (self.convert(stored), self.interval())
        };
        Debt {
            micros: (micros + granted * interval).max(0),
            interval,
        }
    }

    /// The result of taking this amount from a bucket with this debt.
    fn after(&self, stored: Debt, granted: i64) -> Granted {
        let debt = self.convert(self.apply(stored, granted));
        Granted { granted, debt }
    }

    /// The amounts granted by buckets with these debts: nothing if a required cost does not fit.
    pub(super) fn of_all(acquires: &[Self], debts: &[Debt]) -> Vec<Granted> {
        let mut fits = true;
        let mut all: Vec<_> = (acquires.iter().zip(debts))
            .map(|(acquire, stored)| {
                let room = acquire.most() - acquire.convert(*stored);
                let granted = acquire.cost.min(room / acquire.interval());
                fits &= !acquire.is_required || granted >= acquire.cost;
                acquire.after(*stored, granted)
            })
            .collect();
        if !fits {
            for ((acquire, stored), grant) in acquires.iter().zip(debts).zip(&mut all) {
                *grant = acquire.after(*stored, 0);
            }
        }
        all
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
    use std::{num::NonZeroU32, slice::from_ref, time::Duration};

    use governor::{Quota, RateLimiter, clock::FakeRelativeClock};

    use super::*;
    use crate::rate_limit::schedule::Schedule;

    /// The amount granted by one bucket with this debt.
    fn of(acquire: &Acquire, micros: i64) -> Granted {
        let interval = acquire.interval();
        Acquire::of_all(from_ref(acquire), &[Debt { micros, interval }])[0]
    }

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
                is_required: false,
            };
            let (mut now, mut full_at) = (0, 0);
            let mut schedule = Schedule::new(u64::from(limit));
            let mut refused = 0;
            for step in 0..5_000 {
                let pause = schedule.below(3 * acquire.interval() / 2);
                now += pause;
                clock.advance(Duration::from_micros(pause.unsigned_abs()));
                let grant = of(&acquire, full_at - now);
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
            is_required: false,
        };
        let second = 1_000_000;
        let three = of(&acquire(3), 0);
        assert_eq!(
            three,
            Granted {
                granted: 3,
                debt: 36 * second
            }
        );
        assert_eq!(acquire(0).remaining(three.debt), 2);
        assert_eq!(
            of(&acquire(3), three.debt),
            Granted {
                granted: 2,
                debt: 60 * second
            }
        );
        assert_eq!(acquire(0).wait(60 * second, 1), 12 * second);
        assert_eq!(acquire(0).wait(60 * second - 1, 1), 12 * second - 1);
        assert_eq!(acquire(0).wait(60 * second, 6), 60 * second);
        assert_eq!(of(&acquire(-2), three.debt).debt, 12 * second);
        assert_eq!(of(&acquire(-9), three.debt).debt, 0);
        // The clock was set back by an hour.
        assert_eq!(
            of(&acquire(1), 3_600 * second),
            Granted {
                granted: 0,
                debt: 60 * second
            }
        );
    }

    #[test]
    fn a_bucket_keeps_the_amount_used_when_its_limit_changes() {
        let acquire = |limit, cost| Acquire {
            key: String::new(),
            limit,
            cost,
            is_required: true,
        };
        let small = acquire(120, 100);
        let interval = small.interval();
        let micros = of(&small, 0).debt;
        let kept = Debt { micros, interval };
        for (limit, left) in [
            (120, 20),
            (1_200, 1_100),
            (7, 0),
            (100, 0),
            (1_000_000, 999_900),
        ] {
            let large = acquire(limit, 0);
            assert_eq!(large.remaining(large.convert(kept)), left, "{limit}");
        }
        let granted = |cost| Acquire::of_all(&[acquire(1_200, cost)], &[kept])[0].granted;
        assert_eq!((granted(1_100), granted(1_101)), (1_100, 0));
    }

    #[test]
    fn a_refund_with_a_smaller_limit_returns_only_its_own_amount() {
        let acquire = |limit, cost| Acquire {
            key: String::new(),
            limit,
            cost,
            is_required: true,
        };
        let large = acquire(1_000, 395);
        let stored = large.apply(Debt::default(), 395);
        let small = acquire(30, -5);
        let refund = Acquire::of_all(from_ref(&small), &[stored])[0];
        assert_eq!(
            refund,
            Granted {
                granted: -5,
                debt: small.most()
            }
        );
        let left = small.apply(stored, refund.granted);
        assert_eq!(large.remaining(large.convert(left)), 1_000 - 390);
        let all = small.apply(stored, -1_000);
        assert_eq!(all.micros, 0);
    }
}
