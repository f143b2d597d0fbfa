//! The settings of rate limits, and the limits of each quota class.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use crate::rate_limit::{
    Tier,
    classes::{Classes, LARGEST, LARGEST_COST, Numbers},
};

/// Maximum number of unknown classes that are logged after the limits have been set.
const LOGGED: usize = 100;

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
        /// Sign-ins and registrations per minute, per address.
        auth: u32 = 5, from 1, to LARGEST;
        /// Mutations per minute, per field.
        write: u32 = 30, from 1, to LARGEST;
        /// Queries per minute, per field.
        read: u32 = 120, from 1, to LARGEST;
        /// Health queries per minute, per field.
        health: u32 = 300, from 1, to LARGEST;
        /// Complexity points per minute, for all operations of a client together; at least `graphql.complexity`, or 0 for
        /// no limit. What a response does not use is returned.
        cost: u32 = 1_200_000, from 0, to LARGEST_COST;
        /// Quota classes, which administrators assign to users: each replaces or multiplies limits, such as
        /// `{ runtime = { read = 1200, write = "x10" } }`. The limit per address comes first and has no classes.
        classes: Classes = Classes::default();
        /// Requests and WebSocket messages per minute from one address (IPv6: one /64), on each instance.
        address: u32 = 300, from 1, to LARGEST;
        /// Whether the limits apply per root field (`field`) or to all fields of a tier together (`tier`).
        scope: Scope = Scope::Field;
        /// Whether requests above a limit are refused (`enforce`) or only counted (`observe`); `off` counts nothing.
        mode: Mode = Mode::Enforce;
        /// Maximum number of buckets kept in memory; read at start only.
        buckets: usize = 100_000, from 1_000, to 100_000_000;
    }
}

impl Rates {
    /// The limits of clients without a class.
    fn numbers(&self) -> Numbers {
        Tier::ALL.map(|tier| match tier {
            Tier::Auth => self.auth,
            Tier::Write => self.write,
            Tier::Read => self.read,
            Tier::Health => self.health,
            Tier::Cost => self.cost,
        })
    }
}

/// The limits in force.
pub(super) struct Limits {
    pub(super) rates: Rates,
    standard: Quota,
    by_class: HashMap<Arc<str>, Numbers>,
    /// The unknown classes that were logged.
    logged: Mutex<HashSet<String>>,
}

/// The limits of a client.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    /// The class that determines them.
    pub(super) class: Option<Arc<str>>,
    numbers: Numbers,
}

impl Quota {
    /// The limit per minute, which is also the burst size.
    pub(super) fn per_minute(&self, tier: Tier) -> u32 {
        self.numbers[tier.place()]
    }
}

impl Limits {
    pub(super) fn new(rates: Rates) -> Self {
        let numbers = rates.numbers();
        let by_class = rates.classes.numbers(numbers);
        Self {
            standard: Quota {
                class: None,
                numbers,
            },
            by_class: by_class
                .map(|(name, numbers)| (Arc::from(name), numbers))
                .collect(),
            rates,
            logged: Mutex::default(),
        }
    }

    /// The limits of a client without a class.
    pub(super) fn standard(&self) -> &Quota {
        &self.standard
    }

    /// The limits of a client with this class. Those of an unknown class, which was removed from the configuration, are
    /// the standard ones.
    pub(super) fn quota(&self, class: Option<&str>) -> Quota {
        let Some(name) = class else {
            return self.standard.clone();
        };
        if let Some((class, numbers)) = self.by_class.get_key_value(name) {
            return Quota {
                class: Some(Arc::clone(class)),
                numbers: *numbers,
            };
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < LOGGED && logged.insert(name.to_owned()) {
            tracing::warn!(
                class = name,
                "the quota class of a client is not in `limits.classes`: the standard limits apply"
            );
        }
        self.standard.clone()
    }
}

#[cfg(test)]
mod tests {
    use gathering_settings::Setting;

    use super::*;

    #[test]
    fn people_have_the_standard_limits_and_so_has_an_unknown_class() {
        let mut rates = Rates::default();
        assert!(rates.classes.set("{ runtime = { read = 1200 } }"));
        let limits = Limits::new(rates);
        let of = |class| Tier::ALL.map(|tier| limits.quota(class).per_minute(tier));
        assert_eq!(of(None), [5, 30, 120, 300, 1_200_000]);
        assert_eq!(of(Some("gone")), [5, 30, 120, 300, 1_200_000]);
        assert_eq!(of(Some("runtime")), [5, 30, 1_200, 300, 1_200_000]);
        assert_eq!(limits.quota(Some("gone")).class, None);
        assert_eq!(
            limits.quota(Some("runtime")).class.as_deref(),
            Some("runtime")
        );
    }
}
