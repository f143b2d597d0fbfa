//! Quota classes: limits for clients that need more or fewer requests than people, such as the runtime of agents.

use std::collections::BTreeMap;

use gathering_settings::{Setting, Value, parse};

use crate::rate_limit::Tier;

/// Maximum number of classes.
const MOST: usize = 32;

/// Maximum length of the name of a class.
const LONGEST_NAME: usize = 32;

/// The largest limit of a tier of root fields.
pub(super) const LARGEST: u32 = 1_000_000;

/// The largest limit of [`Tier::Cost`]. One point is then ten microseconds of the window.
pub(super) const LARGEST_COST: u32 = 6_000_000;

/// The largest factor.
const LARGEST_FACTOR: u32 = 1_000;

/// The tiers that a class changes. [`Tier::Auth`] is charged to networks, which have no class.
const TIERS: [Tier; 4] = [Tier::Write, Tier::Read, Tier::Health, Tier::Cost];

/// The limits of each tier, by [`Tier::place`].
pub(super) type Numbers = [u32; Tier::ALL.len()];

/// How a class changes the limit of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Replace(u32),
    Multiply(u32),
}

/// The quota classes by name, each with the limits that it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes(BTreeMap<String, Vec<(Tier, Change)>>);

impl Classes {
    fn of(text: &str) -> Result<Self, String> {
        let Some(Value::Table(table)) = parse(text) else {
            return Err(format!("must be {EXPECTED}"));
        };
        if table.len() > MOST {
            return Err(format!("must have at most {MOST} classes"));
        }
        let classes = table.iter().map(|(name, value)| {
            let class = changes(name, value);
            let class = class.map_err(|why| format!("has an invalid class `{name}`: {why}"))?;
            Ok((name.clone(), class))
        });
        Ok(Self(classes.collect::<Result<_, String>>()?))
    }

    /// Whether there is a class with this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The name of a class whose budget of complexity is below this number of points.
    pub fn with_cost_below(&self, points: u64) -> Option<&str> {
        let is_below = |(tier, change): &(Tier, Change)| {
            *tier == Tier::Cost
                && matches!(change, Change::Replace(number) if *number > 0 && u64::from(*number) < points)
        };
        let found = self
            .0
            .iter()
            .find(|(_, changes)| changes.iter().any(is_below));
        found.map(|(name, _)| name.as_str())
    }

    /// The limits of each class.
    pub(super) fn numbers(&self, standard: Numbers) -> impl Iterator<Item = (&str, Numbers)> {
        self.0.iter().map(move |(name, changes)| {
            let mut numbers = standard;
            for (tier, change) in changes {
                let number = &mut numbers[tier.place()];
                *number = match change {
                    Change::Replace(number) => *number,
                    Change::Multiply(factor) => number.saturating_mul(*factor).min(largest(*tier)),
                };
            }
            (name.as_str(), numbers)
        })
    }
}

const EXPECTED: &str = r#"a table of classes such as { runtime = { read = 1200, write = "x10" } }"#;

impl Setting for Classes {
    fn expected(&self) -> String {
        EXPECTED.to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        Self::of(text).map(|classes| *self = classes).is_ok()
    }
    fn problem(&self, text: &str) -> Option<String> {
        Self::of(text).err()
    }
    fn show(&self) -> Value {
        let classes = self.0.iter().map(|(name, changes)| {
            let limits = changes.iter().map(|(tier, change)| {
                let value = match change {
                    Change::Replace(number) => Value::Integer(i64::from(*number)),
                    Change::Multiply(factor) => Value::String(format!("x{factor}")),
                };
                (tier.name().to_owned(), value)
            });
            (name.clone(), Value::Table(limits.collect()))
        });
        Value::Table(classes.collect())
    }
}

fn largest(tier: Tier) -> u32 {
    if tier == Tier::Cost {
        LARGEST_COST
    } else {
        LARGEST
    }
}

/// The limits that a class changes.
fn changes(name: &str, value: &Value) -> Result<Vec<(Tier, Change)>, String> {
    let is_valid = |letter: char| matches!(letter, 'a'..='z' | '0'..='9' | '_');
    let is_identifier = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(is_valid)
        && name.len() <= LONGEST_NAME;
    if !is_identifier {
        return Err(format!(
            "a name starts with a letter and has at most {LONGEST_NAME} lower-case letters, digits and underscores"
        ));
    }
    let Value::Table(limits) = value else {
        return Err(r#"must be a table such as { read = 1200, write = "x10" }"#.to_owned());
    };
    let changes = limits.iter().map(|(key, value)| {
        let tier = TIERS.into_iter().find(|tier| tier.name() == key);
        let tier = tier.ok_or_else(|| {
            let names = TIERS.map(Tier::name).join(", ");
            format!("`{key}` is not one of {names}")
        })?;
        let change = change(tier, value).ok_or_else(|| {
            let (low, high) = (u32::from(tier != Tier::Cost), largest(tier));
            format!(
                "`{key}` must be a number from {low} to {high}, or a factor from \"x1\" to \"x{LARGEST_FACTOR}\", not {value}"
            )
        })?;
        Ok((tier, change))
    });
    changes.collect()
}

fn change(tier: Tier, value: &Value) -> Option<Change> {
    match value {
        Value::Integer(number) => {
            let number = u32::try_from(*number).ok()?;
            let is_valid = number <= largest(tier) && (number > 0 || tier == Tier::Cost);
            is_valid.then_some(Change::Replace(number))
        }
        Value::String(text) => {
            let factor = text.strip_prefix('x')?.parse().ok()?;
            (1..=LARGEST_FACTOR)
                .contains(&factor)
                .then_some(Change::Multiply(factor))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_replaces_or_multiplies_limits() {
        let mut classes = Classes::default();
        let text = r#"{ runtime = { read = 1200, write = "x10", cost = "x1000" }, trial = { cost = 0 }, same = {} }"#;
        assert!(classes.set(text), "{:?}", classes.problem(text));
        let shown = classes.show().to_string();
        let numbers: Vec<_> = classes.numbers([5, 30, 120, 300, 1_200_000]).collect();
        assert_eq!(
            numbers,
            [
                ("runtime", [5, 300, 1_200, 300, LARGEST_COST]),
                ("same", [5, 30, 120, 300, 1_200_000]),
                ("trial", [5, 30, 120, 300, 0]),
            ]
        );
        let mut again = Classes::default();
        assert!(again.set(&shown), "{shown}");
        assert_eq!(again, classes);
    }

    #[test]
    fn an_invalid_class_is_explained() {
        let many: Vec<_> = (0..=MOST).map(|n| format!("c{n} = {{}}")).collect();
        let many = many.join(", ");
        for (text, why) in [
            ("5", "must be a table of classes"),
            ("{ runtime = 5 }", "`runtime`: must be a table"),
            ("{ Runtime = {} }", "`Runtime`: a name starts with a letter"),
            ("{ \"a-b\" = {} }", "`a-b`: a name"),
            ("{ a12345678901234567890123456789012 = {} }", "at most 32"),
            (
                "{ a = { reed = 5 } }",
                "`reed` is not one of write, read, health, cost",
            ),
            ("{ a = { auth = 5 } }", "`auth` is not one of"),
            (
                "{ a = { read = 0 } }",
                "`read` must be a number from 1 to 1000000",
            ),
            ("{ a = { read = 1000001 } }", "not 1000001"),
            ("{ a = { read = -1 } }", "not -1"),
            ("{ a = { cost = 6000001 } }", "from 0 to 6000000"),
            ("{ a = { read = \"x0\" } }", "\"x1\" to \"x1000\""),
            ("{ a = { read = \"x1001\" } }", "not \"x1001\""),
            ("{ a = { read = \"10\" } }", "not \"10\""),
            ("{ a = { read = 1.5 } }", "not 1.5"),
            (&format!("{{ {many} }}"), "at most 32 classes"),
        ] {
            let mut classes = Classes::default();
            assert!(!classes.set(text), "{text}");
            let problem = classes.problem(text).unwrap_or_default();
            assert!(problem.contains(why), "{text}: {problem}");
        }
    }
}
