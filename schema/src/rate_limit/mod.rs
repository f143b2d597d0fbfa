//! Rate limits of root fields.
//!
//! A tier is declared once, on the field, and shows in the schema as `@rateLimit`; a root field without a declaration
//! has the tier of its root. The decision about an operation is taken once, before anything runs, and in one step for
//! all of its buckets; it is then applied to the root fields. The complexity of the operation is charged in the same
//! step, to one bucket of the client.

mod bucket;
mod classes;
mod memory;
mod rates;
mod redis;
mod report;
#[cfg(test)]
mod schedule;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use async_graphql::{Enum, Name, Pos, TypeDirective};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    cache::CacheStats,
    clock::{Clock, MonotonicClock},
    root_field::properties,
    text,
};
use bucket::{Acquire, Granted};
pub use classes::Classes;
use memory::Memory;
use rates::{Limits, Quota};
pub use rates::{Mode, Rates, Scope};
use redis::Shared;
pub use redis::{RedisState, redis_state};
pub(crate) use report::{WINDOW_SECONDS, refused, report};

/// The rate tier of a root field, which determines its rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enum)]
pub enum Tier {
    /// Registration and sign-in: 5 a minute by default, per address.
    Auth,
    /// Mutations: 30 a minute by default.
    Write,
    /// Queries, introspection and the start of a subscription: 120 a minute by default.
    Read,
    /// Health, and the total number of requests: 300 a minute by default.
    Health,
    /// The complexity points of all operations: 1,200,000 a minute by default. No root field has this tier.
    Cost,
}

impl Tier {
    /// All tiers.
    pub const ALL: [Self; 5] = [
        Self::Auth,
        Self::Write,
        Self::Read,
        Self::Health,
        Self::Cost,
    ];

    /// The name in headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Write => "write",
            Self::Read => "read",
            Self::Health => "health",
            Self::Cost => "cost",
        }
    }

    /// The name in GraphQL.
    pub fn label(self) -> &'static str {
        match self {
            Self::Auth => "AUTH",
            Self::Write => "WRITE",
            Self::Read => "READ",
            Self::Health => "HEALTH",
            Self::Cost => "COST",
        }
    }

    /// The tier in a directive.
    pub(crate) fn declared(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| name == tier.label())
    }

    fn place(self) -> usize {
        match self {
            Self::Auth => 0,
            Self::Write => 1,
            Self::Read => 2,
            Self::Health => 3,
            Self::Cost => 4,
        }
    }
}

/// The rate limit of a root field. Each occurrence costs one, including aliases and fragments.
#[TypeDirective(name = "rateLimit", location = "FieldDefinition")]
pub(crate) fn rate_limit(#[graphql(desc = "The rate tier of the field.")] tier: Tier) {}

/// An occurrence of a root field in an operation.
#[derive(Clone, Debug)]
pub(crate) struct RootField {
    /// The response key.
    pub(crate) key: Name,
    pub(crate) name: Name,
    pub(crate) place: Pos,
    /// Its complexity.
    pub(crate) cost: u64,
}

/// The owner of buckets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RateKey {
    User(Uuid),
    /// An API key with a quota class of its own.
    Key(Uuid),
    Network(Option<IpAddr>),
}

/// The client to charge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payer<'a> {
    /// The owner of the buckets, except of those of [`Tier::Auth`].
    pub(crate) rate_key: RateKey,
    pub(crate) address: Option<IpAddr>,
    /// The quota class, which need not be configured.
    pub(crate) class: Option<&'a str>,
}

/// The quota status of a client for one root field, or for the complexity of its operations.
#[derive(Clone, Debug)]
pub struct QuotaStatus {
    /// The root field, or the route. `None` for [`Tier::Cost`], and in a report for a tier without a used field.
    pub field: Option<String>,
    /// Its tier.
    pub tier: Tier,
    /// The quota class that determines the limit.
    pub class: Option<Arc<str>>,
    /// The capacity of its bucket, and the amount that it regains in a minute.
    pub limit: u32,
    /// The requested amount.
    pub cost: u32,
    /// The part of the cost that was used, if it was measured.
    pub actual: Option<u32>,
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
    /// The amount that the bucket has not regained.
    pub fn used(&self) -> u32 {
        self.limit.saturating_sub(self.remaining)
    }

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
    /// The refund of the complexity.
    cost_refund: Option<Acquire>,
    /// Whether Redis has decided.
    is_shared: bool,
}

impl Decision {
    /// The response keys of the refused root fields.
    pub(crate) fn refused_keys(&self) -> Vec<Name> {
        let refused = self.refused.iter();
        refused.map(|(field, _)| field.key.clone()).collect()
    }

    /// Whether any part of the operation was refused.
    pub(crate) fn has_refusals(&self) -> bool {
        !self.refused.is_empty()
    }
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
    limits: RwLock<Arc<Limits>>,
    /// The tiers by root field.
    tiers: HashMap<String, Tier>,
    memory: Memory,
    shared: Option<Arc<Shared>>,
    counters: [Counter; Tier::ALL.len()],
    /// Decisions taken with the buckets in memory although Redis is configured.
    local: AtomicU64,
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
            limits: RwLock::new(Arc::new(Limits::new(rates))),
            tiers,
            shared: shared.map(Arc::new),
            counters: Default::default(),
            local: AtomicU64::new(0),
            clock,
            monotonic,
        })
    }

    fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the rates. The buckets keep the amounts used.
    pub(crate) fn set_rates(&self, rates: Rates) {
        let limits = Arc::new(Limits::new(rates));
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Whether a quota class is configured.
    pub(crate) fn has_class(&self, name: &str) -> bool {
        self.limits().rates.classes.has(name)
    }

    /// Whether Redis does not respond; `None` if it is not configured.
    pub(crate) fn is_alone(&self) -> Option<bool> {
        self.shared.as_ref().map(|shared| shared.is_unreachable())
    }

    /// The number of decisions that Redis did not take although it is configured.
    pub(crate) fn local_decisions(&self) -> u64 {
        self.local.load(Ordering::Relaxed)
    }

    /// The monotonic time, in microseconds.
    pub(crate) fn monotonic(&self) -> i64 {
        (self.monotonic)()
    }

    /// The statistics of the buckets in memory.
    pub(crate) fn buckets(&self) -> CacheStats {
        self.memory.stats()
    }

    /// Allowed and refused requests, by tier.
    pub(crate) fn counts(&self) -> [TierCount; Tier::ALL.len()] {
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

    /// Charges a client for all root fields of an operation and for their complexity. With `whole`, either all of them
    /// run or none.
    pub(crate) async fn charge(
        &self,
        payer: Payer<'_>,
        fields: &[RootField],
        whole: bool,
    ) -> Decision {
        let limits = self.limits();
        if limits.rates.mode == Mode::Off {
            return Decision::default();
        }
        let enforces = limits.rates.mode == Mode::Enforce;
        let quota = limits.quota(payer.class);
        let client = payer.rate_key.bucket();
        let mut charges = Charges {
            scope: limits.rates.scope,
            whole: whole && enforces,
            enforces,
            acquires: Vec::with_capacity(fields.len() + 1),
            fields: Vec::with_capacity(fields.len()),
            cost: None,
        };
        let mut is_some_free = false;
        let mut points = 0_u64;
        for field in fields {
            let name = field.name.as_str();
            if properties(name).is_free {
                is_some_free = true;
                continue;
            }
            points = points.saturating_add(field.cost);
            let tier = self.tier(name);
            if tier == Tier::Auth {
                // A caller who signs in has no user yet.
                let network = RateKey::Network(payer.address).bucket();
                charges.add(limits.standard(), &network, field, tier);
            } else {
                charges.add(&quota, &client, field, tier);
            }
        }
        if charges.acquires.is_empty() {
            return Decision::default();
        }
        charges.add_cost(&quota, &client, points);
        let mut decision = self.decide(&quota, charges).await;
        // In a query, free fields run even if all others are refused.
        decision.is_refused &= whole || !is_some_free;
        if decision.is_refused {
            self.settle(&mut decision, 0);
        }
        decision
    }

    async fn decide(&self, quota: &Quota, charges: Charges<'_>) -> Decision {
        let Charges {
            whole,
            enforces,
            acquires,
            fields,
            cost,
            ..
        } = charges;
        let (grants, is_shared) = self.take(&acquires).await;
        let wait = |place: usize| {
            let (acquire, grant) = (&acquires[place], &grants[place]);
            // Until the whole cost fits, because the client will send the same operation again.
            (grant.granted < acquire.cost).then(|| acquire.wait(grant.debt, acquire.cost))
        };
        let longest = (0..acquires.len()).filter_map(wait).max();
        // Nothing may have been taken because of another bucket.
        let is_too_costly = cost.is_some_and(|place| {
            let is_above = acquires[place].cost > i64::from(acquires[place].limit);
            wait(place).is_some_and(|wait| is_above || wait > 0)
        });
        let lacks_points = enforces && is_too_costly;
        let is_refused = whole && longest.is_some();
        let mut left: Vec<_> = grants.iter().map(|grant| grant.granted).collect();
        let now = (self.clock)();
        let status = |place: usize, tier: Tier| {
            let (acquire, debt) = (&acquires[place], grants[place].debt);
            let class = quota.class.as_ref().filter(|_| tier != Tier::Auth);
            QuotaStatus::new(acquire, debt, tier, class.cloned(), now)
        };
        let mut quotas: Vec<QuotaStatus> = Vec::with_capacity(fields.len() + 1);
        let mut refused = Vec::new();
        for (field, tier, place) in &fields {
            let (tier, place) = (*tier, *place);
            let index = quotas
                .iter()
                .position(|existing| existing.field.as_deref() == Some(field.name.as_str()));
            let index = index.unwrap_or_else(|| {
                quotas.push(QuotaStatus {
                    field: Some(field.name.to_string()),
                    ..status(place, tier)
                });
                quotas.len() - 1
            });
            let quota = &mut quotas[index];
            quota.cost += 1;
            if lacks_points {
                continue;
            }
            let is_short = left[place] < 1;
            let counter = &self.counters[tier.place()];
            if !is_short && !is_refused {
                counter.allowed.fetch_add(1, Ordering::Relaxed);
                left[place] -= 1;
                continue;
            }
            counter.refused.fetch_add(1, Ordering::Relaxed);
            if enforces {
                quota.retry_in = if is_refused { longest } else { wait(place) };
                refused.push(((*field).clone(), index));
            }
        }
        if let Some(place) = cost {
            let counter = &self.counters[Tier::Cost.place()];
            let outcome = if is_too_costly {
                &counter.refused
            } else {
                &counter.allowed
            };
            outcome.fetch_add(1, Ordering::Relaxed);
            if lacks_points {
                let index = quotas.len();
                refused.extend(fields.iter().map(|(field, ..)| ((*field).clone(), index)));
            }
            quotas.push(QuotaStatus {
                cost: u32::try_from(acquires[place].cost).unwrap_or(u32::MAX),
                retry_in: longest.filter(|_| lacks_points),
                ..status(place, Tier::Cost)
            });
        }
        let is_refused = is_refused || refused.len() == fields.len();
        let mut refunds = acquires;
        for (acquire, grant) in refunds.iter_mut().zip(&grants) {
            acquire.cost = -grant.granted;
            acquire.is_required = false;
        }
        let cost_refund = cost.map(|place| refunds.remove(place));
        Decision {
            quotas,
            refused,
            is_refused,
            refunds,
            cost_refund,
            is_shared,
        }
    }

    /// Takes from all buckets, and tells whether they are those in Redis.
    async fn take(&self, acquires: &[Acquire]) -> (Vec<Granted>, bool) {
        let monotonic = self.monotonic();
        if let Some(shared) = &self.shared {
            if let Some(grants) = shared.take(acquires, monotonic).await {
                return (grants, true);
            }
            self.local.fetch_add(1, Ordering::Relaxed);
        }
        (self.memory.take(acquires, monotonic), false)
    }

    /// Refunds the cost of an operation that did not run.
    pub(crate) async fn refund(&self, decision: &mut Decision) {
        let mut acquires = std::mem::take(&mut decision.refunds);
        acquires.extend(decision.cost_refund.take());
        acquires.retain(|acquire| acquire.cost < 0);
        if acquires.is_empty() {
            return;
        }
        match &self.shared {
            Some(shared) if decision.is_shared => {
                shared.take(&acquires, self.monotonic()).await;
            }
            _ => drop(self.memory.take(&acquires, self.monotonic())),
        }
    }

    /// Returns the complexity that was charged but is not in the response, given the complexity of the response. Redis
    /// is not waited for.
    pub(crate) fn settle(&self, decision: &mut Decision, fields: u64) {
        let taken = decision.cost_refund.take();
        let Some(mut refund) = taken.filter(|refund| refund.cost < 0) else {
            return;
        };
        let Some(quota) = decision.quotas.last_mut() else {
            return;
        };
        let actual = u32::try_from(fields).unwrap_or(u32::MAX).min(quota.cost);
        quota.actual = Some(actual);
        refund.cost = (refund.cost + i64::from(actual)).min(0);
        if refund.cost == 0 {
            return;
        }
        let returned = -refund.cost * refund.interval();
        quota.reset_in = (quota.reset_in - returned).max(0);
        quota.reset_at = (self.clock)() + TimeDelta::microseconds(quota.reset_in);
        quota.remaining = refund.remaining(quota.reset_in);
        match &self.shared {
            Some(shared) if decision.is_shared => shared.return_later(refund),
            _ => drop(self.memory.take(&[refund], self.monotonic())),
        }
    }

    /// The quota status of a client for each recently used root field, for each tier of which no field was used, and for
    /// complexity. Costs nothing.
    pub(crate) async fn status(&self, payer: Payer<'_>) -> Vec<QuotaStatus> {
        let limits = self.limits();
        if limits.rates.mode == Mode::Off {
            return Vec::new();
        }
        let (quota, standard) = (limits.quota(payer.class), limits.standard());
        let scope = limits.rates.scope;
        let client = payer.rate_key.bucket();
        let network = RateKey::Network(payer.address).bucket();
        let mut fields: Vec<_> = self
            .tiers
            .iter()
            .map(|(field, tier)| (&**field, *tier))
            .collect();
        fields.sort_unstable_by_key(|(field, _)| *field);
        let mut acquires: Vec<Acquire> = Vec::new();
        let mut place_of = |acquire: Acquire| {
            let same = |existing: &Acquire| existing.key == acquire.key;
            acquires.iter().position(same).unwrap_or_else(|| {
                acquires.push(acquire);
                acquires.len() - 1
            })
        };
        let places: Vec<_> = (fields.iter())
            .map(|(field, tier)| match tier {
                Tier::Auth => place_of(acquire(scope, standard, &network, field, *tier)),
                _ => place_of(acquire(scope, &quota, &client, field, *tier)),
            })
            .collect();
        let has_cost = quota.per_minute(Tier::Cost) > 0;
        let cost = has_cost.then(|| place_of(cost_acquire(&quota, &client)));
        let (grants, _) = self.take(&acquires).await;
        let now = (self.clock)();
        let status = |place: usize, tier: Tier| {
            let class = quota.class.as_ref().filter(|_| tier != Tier::Auth);
            let (acquire, debt) = (&acquires[place], grants[place].debt);
            QuotaStatus::new(acquire, debt, tier, class.cloned(), now)
        };
        let mut quotas = Vec::new();
        for tier in Tier::ALL {
            if tier == Tier::Cost {
                quotas.extend(cost.map(|place| status(place, tier)));
                continue;
            }
            let of_tier = fields.iter().zip(&places);
            let mut of_tier = of_tier.filter(|((_, of), _)| *of == tier).peekable();
            let first = of_tier.peek().map(|(_, place)| status(**place, tier));
            let used = quotas.len();
            quotas.extend(of_tier.filter(|(_, place)| grants[**place].debt > 0).map(
                |((field, _), place)| QuotaStatus {
                    field: Some((*field).to_owned()),
                    ..status(*place, tier)
                },
            ));
            if quotas.len() == used {
                quotas.extend(first);
            }
        }
        quotas
    }
}

impl QuotaStatus {
    /// The status of a bucket with this debt, without a cost.
    fn new(
        acquire: &Acquire,
        debt: i64,
        tier: Tier,
        class: Option<Arc<str>>,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            field: None,
            tier,
            class,
            limit: acquire.limit,
            cost: 0,
            actual: None,
            remaining: acquire.remaining(debt),
            reset_at: now + TimeDelta::microseconds(debt),
            reset_in: debt,
            retry_in: None,
        }
    }
}

/// The amounts that an operation takes from its buckets, and the bucket of each occurrence of a root field.
struct Charges<'a> {
    scope: Scope,
    whole: bool,
    enforces: bool,
    acquires: Vec<Acquire>,
    fields: Vec<(&'a RootField, Tier, usize)>,
    /// The bucket of the complexity.
    cost: Option<usize>,
}

impl<'a> Charges<'a> {
    fn add(&mut self, quota: &Quota, owner: &str, field: &'a RootField, tier: Tier) {
        let acquire = acquire(self.scope, quota, owner, &field.name, tier);
        let same = |existing: &Acquire| existing.key == acquire.key;
        let place = self.acquires.iter().position(same);
        let place = place.unwrap_or_else(|| {
            self.acquires.push(acquire);
            self.acquires.len() - 1
        });
        self.acquires[place].cost += 1;
        self.acquires[place].is_required = self.whole;
        self.fields.push((field, tier, place));
    }

    fn add_cost(&mut self, quota: &Quota, owner: &str, points: u64) {
        if quota.per_minute(Tier::Cost) == 0 || points == 0 {
            return;
        }
        self.cost = Some(self.acquires.len());
        self.acquires.push(Acquire {
            cost: i64::try_from(points).unwrap_or(i64::MAX),
            is_required: self.enforces,
            ..cost_acquire(quota, owner)
        });
    }
}

/// The bucket of an owner for a root field or for its tier, with a cost of zero.
fn acquire(scope: Scope, quota: &Quota, owner: &str, field: &str, tier: Tier) -> Acquire {
    let bucket = match scope {
        Scope::Field => field,
        Scope::Tier => tier.name(),
    };
    Acquire {
        key: format!("{owner}/{bucket}"),
        limit: quota.per_minute(tier).max(1),
        cost: 0,
        is_required: false,
    }
}

/// The bucket of an owner for complexity, with a cost of zero.
fn cost_acquire(quota: &Quota, owner: &str) -> Acquire {
    Acquire {
        key: format!("{owner}/cost"),
        limit: quota.per_minute(Tier::Cost),
        cost: 0,
        is_required: false,
    }
}

impl RateKey {
    fn bucket(self) -> String {
        match self {
            Self::User(id) => format!("user:{}", id.simple()),
            Self::Key(id) => format!("key:{}", id.simple()),
            Self::Network(None) => "network:".to_owned(),
            Self::Network(Some(address)) => format!("network:{}", text::network(address)),
        }
    }
}
