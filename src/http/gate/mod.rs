//! The gate in front of everything: how many requests and WebSocket messages a minute each address may send.
//!
//! The gate decides in this process, before the request is parsed, and needs neither the database nor Redis. The limits of
//! the tiers apply after it.

mod store;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::Request;
use chrono::TimeDelta;
use gathering_schema::rate_limit::{Mode, QuotaStatus, Rates, Tier};
use gathering_schema::{Client, Clock, MonotonicClock};
use governor::clock::Clock as _;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;

use self::store::{States, StatesSince};
use super::client_address::{Peer, client};
use crate::connections::network;
use crate::telemetry::RequestId;

/// A rate limited route. Each route has its own bucket, so a flood of queries does not make health probes fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Route {
    Graphql,
    Health,
    Metrics,
}

impl Route {
    pub(super) fn of(path: &str) -> Self {
        match path {
            path if path.starts_with("/health") => Self::Health,
            "/metrics" => Self::Metrics,
            _ => Self::Graphql,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Graphql => "/graphql",
            Self::Health => "/health",
            Self::Metrics => "/metrics",
        }
    }
}

/// The owner of a bucket: an IPv4 address or an IPv6 network, for one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    network: Option<IpAddr>,
    route: Route,
}

/// The monotonic clock of the server, as the limiter reads it.
#[derive(Clone)]
struct GovernorClock(MonotonicClock);

impl governor::clock::Clock for GovernorClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        let micros = u64::try_from((self.0)()).unwrap_or_default();
        Nanos::new(micros.saturating_mul(1_000))
    }
}

/// The limit in force, which a reload of the configuration replaces.
struct Rule {
    mode: Mode,
    limiter: RateLimiter<Key, StatesSince<Key>, GovernorClock, StateInformationMiddleware>,
}

/// The gate of a server. Clones share it.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    rule: RwLock<Arc<Rule>>,
    states: Arc<States<Key>>,
    clock: Clock,
    monotonic: GovernorClock,
    /// Trusted proxies, whose forwarding headers are used.
    trusted: Vec<IpNet>,
    allowed: AtomicU64,
    refused: AtomicU64,
}

/// The decisions of the gate, and its size.
#[derive(Clone, Copy, Debug)]
pub struct GateCounts {
    /// Requests and messages that passed.
    pub allowed: u64,
    /// Requests and messages that were refused; in the mode `observe`, those that would have been.
    pub refused: u64,
    /// Buckets held in memory.
    pub buckets: usize,
}

impl Gate {
    /// Creates a gate with these limits and these trusted proxies.
    pub fn new(
        settings: &Rates,
        trusted: Vec<IpNet>,
        clock: Clock,
        monotonic: MonotonicClock,
    ) -> Self {
        let monotonic = GovernorClock(monotonic);
        let states = Arc::new(States::new(settings.buckets));
        let rule = Rule::new(settings, &states, &monotonic);
        Self(Arc::new(Inner {
            rule: RwLock::new(Arc::new(rule)),
            states,
            clock,
            monotonic,
            trusted,
            allowed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Replaces the limit. The buckets keep their state.
    pub fn set_rates(&self, settings: &Rates) {
        let Inner {
            states,
            monotonic,
            rule,
            ..
        } = &*self.0;
        let new = Arc::new(Rule::new(settings, states, monotonic));
        *rule.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// The decisions so far.
    pub fn counts(&self) -> GateCounts {
        GateCounts {
            allowed: self.0.allowed.load(Ordering::Relaxed),
            refused: self.0.refused.load(Ordering::Relaxed),
            buckets: self.0.states.len(),
        }
    }

    /// The client that sent a request.
    pub(super) fn client(&self, request: &Request, id: &RequestId, peer: &Peer) -> Client {
        client(request.headers(), id, peer, &self.0.trusted)
    }

    /// Takes one from the bucket of an address and returns its state; `None` if the mode is `off`.
    ///
    /// # Errors
    /// The bucket is empty; `retry_in` is the wait.
    pub(super) fn check(
        &self,
        address: Option<IpAddr>,
        route: Route,
    ) -> Result<Option<QuotaStatus>, QuotaStatus> {
        let inner = &*self.0;
        let rule = Arc::clone(&inner.rule.read().unwrap_or_else(PoisonError::into_inner));
        if rule.mode == Mode::Off {
            return Ok(None);
        }
        let key = Key {
            network: address.map(network),
            route,
        };
        let status = |quota: Quota, remaining: u32, reset_in: Duration| {
            let reset_in = micros(reset_in);
            QuotaStatus {
                field: Some(route.path().to_owned()),
                tier: Tier::Health,
                class: None,
                limit: quota.burst_size().get(),
                cost: 1,
                actual: None,
                remaining,
                reset_at: (inner.clock)() + TimeDelta::microseconds(reset_in),
                reset_in,
                retry_in: None,
            }
        };
        match rule.limiter.check_key(&key) {
            Ok(state) => {
                inner.allowed.fetch_add(1, Ordering::Relaxed);
                let (quota, left) = (state.quota(), state.remaining_burst_capacity());
                // `governor` reports whole requests only, so this is rounded up to the next one.
                let owed = quota.burst_size().get() - left;
                let reset_in = quota.replenish_interval() * owed;
                Ok(Some(status(quota, left, reset_in)))
            }
            Err(not_until) => {
                inner.refused.fetch_add(1, Ordering::Relaxed);
                let quota = not_until.quota();
                let wait = not_until.wait_time_from(inner.monotonic.now());
                // The bucket holds one request after the wait, and is full after the others.
                let others = quota.burst_size().get() - 1;
                let reset_in = wait + quota.replenish_interval() * others;
                let status = status(quota, 0, reset_in);
                match rule.mode {
                    Mode::Enforce => Err(QuotaStatus {
                        retry_in: Some(micros(wait)),
                        ..status
                    }),
                    Mode::Observe | Mode::Off => Ok(Some(status)),
                }
            }
        }
    }
}

impl Rule {
    fn new(settings: &Rates, states: &Arc<States<Key>>, monotonic: &GovernorClock) -> Self {
        let limit = NonZeroU32::new(settings.address).unwrap_or(NonZeroU32::MIN);
        let states = StatesSince::new(Arc::clone(states), monotonic.now());
        Self {
            mode: settings.mode,
            limiter: RateLimiter::new(Quota::per_minute(limit), states, monotonic.clone()),
        }
    }
}

/// Whole microseconds, rounded up.
fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use super::*;

    /// A gate at a limit, and its monotonic clock in microseconds.
    fn gate(change: impl FnOnce(&mut Rates)) -> (Gate, Arc<AtomicI64>) {
        let mut settings = Rates::default();
        change(&mut settings);
        let passed = Arc::new(AtomicI64::new(0));
        let monotonic = Arc::clone(&passed);
        let gate = Gate::new(
            &settings,
            Vec::new(),
            Arc::new(|| chrono::DateTime::UNIX_EPOCH),
            Arc::new(move || monotonic.load(Ordering::Relaxed)),
        );
        (gate, passed)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// How many requests of an address pass.
    fn passed(gate: &Gate, from: &str, times: usize) -> usize {
        let checks = (0..times).map(|_| gate.check(Some(address(from)), Route::Graphql));
        checks.flatten().count()
    }

    #[test]
    fn a_refused_address_passes_exactly_after_the_wait() {
        let (gate, clock) = gate(|limits| limits.address = 7);
        assert_eq!(passed(&gate, "192.0.2.1", 8), 7);
        let refused = gate.check(Some(address("192.0.2.1")), Route::Graphql);
        let refused = refused.expect_err("is refused");
        assert_eq!((refused.limit, refused.remaining), (7, 0));
        let wait = refused.retry_in.expect("a wait");
        assert_eq!(wait, 8_571_429);
        assert!((59_999_990..=60_000_000).contains(&refused.reset_in));
        clock.store(wait - 1, Ordering::Relaxed);
        assert_eq!(passed(&gate, "192.0.2.1", 1), 0);
        clock.store(wait, Ordering::Relaxed);
        assert_eq!(passed(&gate, "192.0.2.1", 2), 1);
    }

    #[test]
    fn buckets_are_separate_per_address_and_route_and_shared_per_ipv6_network() {
        let (gate, _) = gate(|limits| limits.address = 2);
        assert_eq!(passed(&gate, "192.0.2.1", 3), 2);
        assert_eq!(passed(&gate, "192.0.2.2", 3), 2);
        assert_eq!(passed(&gate, "::ffff:192.0.2.2", 1), 0);
        assert_eq!(passed(&gate, "2001:db8:1:2::1", 1), 1);
        assert_eq!(passed(&gate, "2001:db8:1:2:ffff::9", 2), 1);
        assert_eq!(passed(&gate, "2001:db8:1:3::1", 2), 2);
        assert!(
            gate.check(Some(address("192.0.2.1")), Route::Health)
                .is_ok()
        );
    }

    #[test]
    fn a_new_limit_applies_to_the_state_of_a_bucket() {
        let (gate, clock) = gate(|limits| limits.address = 60);
        clock.store(5_000_000, Ordering::Relaxed);
        assert_eq!(passed(&gate, "192.0.2.1", 30), 30);
        gate.set_rates(&Rates {
            address: 120,
            ..Rates::default()
        });
        assert_eq!(passed(&gate, "192.0.2.1", 100), 60);
        clock.store(65_000_000, Ordering::Relaxed);
        gate.set_rates(&Rates {
            address: 2,
            ..Rates::default()
        });
        assert_eq!(passed(&gate, "192.0.2.1", 5), 2);
    }
}
