//! Rate limits of root fields.
//!
//! A tier is declared once, on the field, and shows in the schema as `@rateLimit`; a root field without a declaration
//! has the tier of its root. The decision about an operation is taken once, before anything runs, and in one step for
//! all of its buckets; it is then applied to the root fields.

mod bucket;
mod memory;
mod redis;
mod report;
#[cfg(test)]
mod schedule;

use std::{
    collections::HashMap,
    net::IpAddr,
    slice::from_ref,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use async_graphql::{Enum, Name, Pos, TypeDirective};
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    cache::CacheStats,
    clock::{Clock, MonotonicClock},
    root_field::properties,
    text,
};
use bucket::{Acquire, Granted};
use memory::Memory;
use redis::Shared;
pub(crate) use report::refused;

/// The rate tier of a root field, which determines its rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enum)]
pub enum Tier {
    /// Registration and sign-in: 5 a minute by default, per address and per account.
    Auth,
    /// Mutations: 30 a minute by default.
    Write,
    /// Queries, introspection and the start of a subscription: 120 a minute by default.
    Read,
    /// Health, and the total number of requests: 300 a minute by default.
    Health,
}

impl Tier {
    /// All tiers.
    pub const ALL: [Self; 4] = [Self::Auth, Self::Write, Self::Read, Self::Health];

    /// The name in headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Write => "write",
            Self::Read => "read",
            Self::Health => "health",
        }
    }

    /// The tier in a directive.
    pub(crate) fn declared(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|tier| name.eq_ignore_ascii_case(tier.name()))
    }

    fn place(self) -> usize {
        match self {
            Self::Auth => 0,
            Self::Write => 1,
            Self::Read => 2,
            Self::Health => 3,
        }
    }
}

/// The rate limit of a root field. Each occurrence costs one, including aliases and fragments.
#[TypeDirective(name = "rateLimit", location = "FieldDefinition")]
pub(crate) fn rate_limit(#[graphql(desc = "The rate tier of the field.")] tier: Tier) {}

gathering_settings::choice! {
    /// The scope of a rate limit bucket.
    pub enum Scope {
        /// One bucket per root field.
        Field = "field",
        /// One bucket per tier.
        Tier = "tier",
    }

    /// The treatment of requests above a rate limit.
    pub enum Mode {
        /// They are refused.
        Enforce = "enforce",
        /// They are counted and reported, but allowed.
        Observe = "observe",
        /// Rate limits are off: nothing is counted.
        Off = "off",
    }
}

gathering_settings::settings! {
    /// The rate limits. Can be replaced while the server runs.
    pub struct Rates {
        /// Sign-ins and registrations per minute, per address and per account.
        auth: u32 = 5, from 1, to 1_000_000;
        /// Mutations per minute, per field.
        write: u32 = 30, from 1, to 1_000_000;
        /// Queries per minute, per field.
        read: u32 = 120, from 1, to 1_000_000;
        /// Health queries per minute, per field.
        health: u32 = 300, from 1, to 1_000_000;
        /// Requests and WebSocket messages per minute from one address (IPv6: one /64), on each instance.
        address: u32 = 300, from 1, to 1_000_000;
        /// Whether the limits apply per root field (`field`) or to all fields of a tier together (`tier`).
        scope: Scope = Scope::Field;
        /// Whether requests above a limit are refused (`enforce`) or only counted (`observe`); `off` counts nothing.
        mode: Mode = Mode::Enforce;
        /// Maximum number of buckets kept in memory; read at start only.
        buckets: usize = 100_000, from 1_000, to 100_000_000;
    }
}

impl Rates {
    /// The limit per minute, which is also the burst size.
    fn per_minute(&self, tier: Tier) -> u32 {
        match tier {
            Tier::Auth => self.auth,
            Tier::Write => self.write,
            Tier::Read => self.read,
            Tier::Health => self.health,
        }
    }
}

/// An occurrence of a root field in an operation.
#[derive(Clone, Debug)]
pub(crate) struct RootField {
    /// The response key.
    pub(crate) key: Name,
    pub(crate) name: Name,
    pub(crate) place: Pos,
    /// The folded e-mail address of the account that it signs in to.
    pub(crate) account: Option<String>,
}

/// The owner of buckets.
#[derive(Clone, Debug)]
pub(crate) enum RateKey {
    User(Uuid),
    Network(Option<IpAddr>),
}

/// The quota status of a client for one root field.
#[derive(Clone, Debug)]
pub struct QuotaStatus {
    /// The root field, or the route.
    pub field: String,
    /// Its tier.
    pub tier: Tier,
    /// The capacity of its bucket, and the amount that it regains in a minute.
    pub limit: u32,
    /// The requested amount.
    pub cost: u32,
    /// The amount left.
    pub remaining: u32,
    /// When the bucket is full again.
    pub reset_at: DateTime<Utc>,
    /// The same, in microseconds from now.
    pub reset_in: i64,
    /// The time until a retry may succeed, in microseconds, if something was refused.
    pub retry_in: Option<i64>,
}

impl QuotaStatus {
    /// Whole seconds until `reset_at`, or until a retry may succeed if something was refused.
    pub fn seconds(&self) -> u64 {
        let micros = self.retry_in.unwrap_or(self.reset_in);
        u64::try_from(micros.max(0))
            .unwrap_or_default()
            .div_ceil(1_000_000)
    }
}

/// The decision about an operation.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// The quota status of each root field.
    pub(crate) quotas: Vec<QuotaStatus>,
    /// The refused occurrences of root fields, each with the index of its quota status.
    pub(crate) refused: Vec<(RootField, usize)>,
    /// Whether nothing may run.
    pub(crate) is_refused: bool,
    /// The amounts taken, as refunds.
    refunds: Vec<Acquire>,
}

/// Allowed and refused requests of a tier.
#[derive(Clone, Copy, Debug)]
pub struct TierCount {
    /// The tier.
    pub tier: Tier,
    /// The number of allowed requests.
    pub allowed: u64,
    /// The number of refused requests; in the mode [`Mode::Observe`], of those that would have been refused.
    pub refused: u64,
}

#[derive(Default)]
struct Counter {
    allowed: AtomicU64,
    refused: AtomicU64,
}

/// The rate limiter.
pub(crate) struct Limiter {
    rates: RwLock<Arc<Rates>>,
    /// The tiers by root field.
    tiers: HashMap<String, Tier>,
    memory: Memory,
    shared: Option<Shared>,
    counters: [Counter; 4],
    clock: Clock,
    monotonic: MonotonicClock,
}

impl Limiter {
    /// # Errors
    /// The URL of Redis is invalid.
    pub(crate) fn new(
        rates: Rates,
        redis: Option<String>,
        tiers: HashMap<String, Tier>,
        clock: Clock,
        monotonic: MonotonicClock,
    ) -> Result<Self, String> {
        let shared = redis.map(|url| Shared::new(&url)).transpose();
        let shared = shared.map_err(|error| format!("REDIS_URL cannot be used: {error}"))?;
        Ok(Self {
            memory: Memory::new(rates.buckets),
            rates: RwLock::new(Arc::new(rates)),
            tiers,
            shared,
            counters: Default::default(),
            clock,
            monotonic,
        })
    }

    fn rates(&self) -> Arc<Rates> {
        Arc::clone(&self.rates.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the rates.
    pub(crate) fn set_rates(&self, rates: Rates) {
        *self.rates.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rates);
    }

    /// Whether Redis does not respond; `None` if it is not configured.
    pub(crate) fn is_alone(&self) -> Option<bool> {
        self.shared.as_ref().map(Shared::is_unreachable)
    }

    /// The statistics of the buckets in memory.
    pub(crate) fn buckets(&self) -> CacheStats {
        self.memory.stats()
    }

    /// Allowed and refused requests, by tier.
    pub(crate) fn counts(&self) -> [TierCount; 4] {
        Tier::ALL.map(|tier| {
            let counter = &self.counters[tier.place()];
            TierCount {
                tier,
                allowed: counter.allowed.load(Ordering::Relaxed),
                refused: counter.refused.load(Ordering::Relaxed),
            }
        })
    }

    /// The tier of a root field. Introspection fields count as queries.
    fn tier(&self, field: &str) -> Tier {
        self.tiers.get(field).copied().unwrap_or(Tier::Read)
    }

    /// Charges a client for all root fields of an operation. With `whole`, either all of them run or none.
    pub(crate) async fn charge(
        &self,
        rate_key: &RateKey,
        address: Option<IpAddr>,
        fields: &[RootField],
        whole: bool,
    ) -> Decision {
        let rates = self.rates();
        if rates.mode == Mode::Off {
            return Decision::default();
        }
        let network = RateKey::Network(address).bucket();
        let client = rate_key.bucket();
        let mut charges = Charges::default();
        let mut is_some_free = false;
        for field in fields {
            let name = field.name.as_str();
            if properties(name).is_free {
                is_some_free = true;
                continue;
            }
            let tier = self.tier(name);
            // A caller who signs in has no user yet: charge the address, and the account.
            let account = field.account.as_ref().map(|account| {
                let hash = Sha256::digest(account);
                format!("account:{}", text::hex(&hash[..16]))
            });
            match (tier, account) {
                (Tier::Auth, Some(account)) => {
                    charges.add(&rates, field, tier, &[network.clone(), account]);
                }
                (Tier::Auth, None) => charges.add(&rates, field, tier, from_ref(&network)),
                _ => charges.add(&rates, field, tier, from_ref(&client)),
            }
        }
        if charges.acquires.is_empty() {
            return Decision::default();
        }
        let mut decision = self.decide(&rates, charges, whole).await;
        // In a query, free fields run even if all others are refused.
        decision.is_refused &= whole || !is_some_free;
        decision
    }

    async fn decide(&self, rates: &Rates, charges: Charges, whole: bool) -> Decision {
        let Charges { acquires, fields } = charges;
        let enforces = rates.mode == Mode::Enforce;
        let grants = self.take(&acquires, whole && enforces).await;
        let wait = |place: usize| {
            let (acquire, grant) = (&acquires[place], &grants[place]);
            // Until the whole cost fits, because the client will send the same operation again.
            (grant.granted < acquire.cost).then(|| acquire.wait(grant.debt, acquire.cost))
        };
        let longest = (0..acquires.len()).filter_map(wait).max();
        let is_refused = whole && enforces && longest.is_some();
        let mut left: Vec<_> = grants.iter().map(|grant| grant.granted).collect();
        let now = (self.clock)();
        let mut quotas: Vec<QuotaStatus> = Vec::new();
        let mut refused = Vec::new();
        for (field, tier, places) in fields {
            let remaining = |place: &usize| acquires[*place].remaining(grants[*place].debt);
            let Some(place) = places.iter().copied().min_by_key(remaining) else {
                continue;
            };
            let (remaining, debt) = (remaining(&place), grants[place].debt);
            let index = quotas
                .iter()
                .position(|existing| existing.field == field.name.as_str());
            let index = index.unwrap_or_else(|| {
                quotas.push(QuotaStatus {
                    field: field.name.to_string(),
                    tier,
                    limit: acquires[place].limit,
                    cost: 0,
                    remaining,
                    reset_at: now + TimeDelta::microseconds(debt),
                    reset_in: debt,
                    retry_in: None,
                });
                quotas.len() - 1
            });
            let quota = &mut quotas[index];
            quota.cost += 1;
            if remaining < quota.remaining {
                // The same field may also sign in to another account.
                quota.remaining = remaining;
                quota.reset_at = now + TimeDelta::microseconds(debt);
                quota.reset_in = debt;
            }
            let short = places.iter().find(|place| left[**place] < 1);
            let counter = &self.counters[tier.place()];
            if short.is_none() && !is_refused {
                counter.allowed.fetch_add(1, Ordering::Relaxed);
                for place in places {
                    left[place] -= 1;
                }
                continue;
            }
            counter.refused.fetch_add(1, Ordering::Relaxed);
            if enforces {
                quota.retry_in = if is_refused {
                    longest
                } else {
                    short.and_then(|place| wait(*place))
                };
                refused.push((field, index));
            }
        }
        let refunds = acquires
            .into_iter()
            .zip(&grants)
            .map(|(acquire, grant)| Acquire {
                cost: -grant.granted,
                ..acquire
            });
        let ran = quotas
            .iter()
            .map(|quota| quota.cost as usize)
            .sum::<usize>();
        Decision {
            is_refused: is_refused || (ran > 0 && refused.len() == ran),
            quotas,
            refused,
            refunds: refunds.filter(|acquire| acquire.cost < 0).collect(),
        }
    }

    async fn take(&self, acquires: &[Acquire], whole: bool) -> Vec<Granted> {
        let monotonic = (self.monotonic)();
        if let Some(shared) = &self.shared
            && let Some(grants) = shared.take(acquires, whole, monotonic).await
        {
            return grants;
        }
        self.memory.take(acquires, whole, monotonic)
    }

    /// Refunds the cost of an operation that did not run.
    pub(crate) async fn refund(&self, decision: &mut Decision) {
        let acquires = std::mem::take(&mut decision.refunds);
        if !acquires.is_empty() {
            self.take(&acquires, false).await;
        }
    }

    /// The quota status of a client for each recently used root field. Costs nothing.
    pub(crate) async fn status(
        &self,
        rate_key: &RateKey,
        address: Option<IpAddr>,
    ) -> Vec<QuotaStatus> {
        let rates = self.rates();
        if rates.mode == Mode::Off {
            return Vec::new();
        }
        let [client, network] = [rate_key.bucket(), RateKey::Network(address).bucket()];
        let mut fields: Vec<_> = self.tiers.iter().collect();
        fields.sort_unstable_by_key(|(field, _)| *field);
        let mut acquires: Vec<Acquire> = Vec::new();
        let mut places = Vec::with_capacity(fields.len());
        for (field, tier) in &fields {
            let owner = if **tier == Tier::Auth {
                &network
            } else {
                &client
            };
            let acquire = acquire(&rates, owner, field, **tier);
            let index = acquires
                .iter()
                .position(|existing| existing.key == acquire.key);
            places.push(index.unwrap_or(acquires.len()));
            if index.is_none() {
                acquires.push(acquire);
            }
        }
        let grants = self.take(&acquires, false).await;
        let now = (self.clock)();
        let quotas = fields
            .into_iter()
            .zip(places)
            .map(|((field, tier), place)| {
                let (acquire, debt) = (&acquires[place], grants[place].debt);
                QuotaStatus {
                    field: field.clone(),
                    tier: *tier,
                    limit: acquire.limit,
                    cost: 0,
                    remaining: acquire.remaining(debt),
                    reset_at: now + TimeDelta::microseconds(debt),
                    reset_in: debt,
                    retry_in: None,
                }
            });
        quotas.filter(|quota| quota.reset_in > 0).collect()
    }
}

/// The amounts that an operation takes from its buckets, and the buckets of each occurrence of a root field.
#[derive(Default)]
struct Charges {
    acquires: Vec<Acquire>,
    fields: Vec<(RootField, Tier, Vec<usize>)>,
}

impl Charges {
    fn add(&mut self, rates: &Rates, field: &RootField, tier: Tier, owners: &[String]) {
        let places = owners.iter().map(|owner| {
            let acquire = acquire(rates, owner, &field.name, tier);
            let index = self
                .acquires
                .iter()
                .position(|existing| existing.key == acquire.key);
            let place = index.unwrap_or_else(|| {
                self.acquires.push(acquire);
                self.acquires.len() - 1
            });
            self.acquires[place].cost += 1;
            place
        });
        let places = places.collect();
        self.fields.push((field.clone(), tier, places));
    }
}

/// The bucket of an owner for a root field or for its tier, with a cost of zero.
fn acquire(rates: &Rates, owner: &str, field: &str, tier: Tier) -> Acquire {
    let bucket = match rates.scope {
        Scope::Field => field,
        Scope::Tier => tier.name(),
    };
    Acquire {
        key: format!("{owner}/{bucket}"),
        limit: rates.per_minute(tier).max(1),
        cost: 0,
    }
}

impl RateKey {
    fn bucket(&self) -> String {
        match self {
            Self::User(id) => format!("user:{}", id.simple()),
            Self::Network(None) => "network:".to_owned(),
            Self::Network(Some(address)) => format!("network:{}", text::network(*address)),
        }
    }
}
