//! The cost of an operation, computed before execution.

use std::{collections::HashMap, sync::Arc};

use async_graphql::Name;
use async_graphql_value::{ConstValue, Value as Input};

use crate::{
    data::MAX_PAGE,
    error::Error,
    limits::Limits,
    operation::{
        plan::{FieldPlan, Plan, Selection},
        source::too_complex,
        validator::Variables,
    },
    rate_limit::RootField,
};

/// The cost of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    /// The complexity: each field and its selection, lists multiplied by their sizes.
    pub(crate) complexity: u64,
    /// The nesting depth of fields.
    pub(crate) depth: u64,
    /// The number of fields with an alias that differs from their name.
    aliases: u64,
}

impl Measure {
    fn and(self, other: Self) -> Self {
        Self {
            complexity: self.complexity.saturating_add(other.complexity),
            depth: self.depth.max(other.depth),
            aliases: self.aliases.saturating_add(other.aliases),
        }
    }

    /// The cost of a selection. An abstract type counts as its most expensive object type.
    fn selection(
        selection: &Selection,
        variables: &Variables,
        sized: Option<(&[Name], u64)>,
    ) -> Self {
        match selection {
            Selection::Leaf => Self::default(),
            Selection::Object(fields) => {
                let costs = fields
                    .iter()
                    .map(|field| Self::field(field, variables, sized));
                costs.fold(Self::default(), Self::and)
            }
            Selection::Abstract(selection) => {
                // Types share fields: each is measured once.
                let parts = selection.parts.iter();
                let costs: HashMap<_, _> = parts
                    .map(|(_, field)| (Arc::as_ptr(field), Self::field(field, variables, sized)))
                    .collect();
                let of = |fields: &[Arc<FieldPlan>]| {
                    let costs = fields
                        .iter()
                        .filter_map(|field| costs.get(&Arc::as_ptr(field)));
                    costs.copied().fold(Self::default(), Self::and)
                };
                let types = selection.by_type.values().map(|fields| of(fields));
                types.fold(Self::default(), |most, cost| Self {
                    complexity: most.complexity.max(cost.complexity),
                    depth: most.depth.max(cost.depth),
                    aliases: most.aliases.max(cost.aliases),
                })
            }
        }
    }

    fn field(field: &FieldPlan, variables: &Variables, sized: Option<(&[Name], u64)>) -> Self {
        let size = size_of(field, variables);
        let inner = Some((&field.size.sized[..], size));
        let below = Self::selection(&field.selection, variables, inner);
        let own = if field.size.sized.is_empty() { size } else { 1 };
        let times = match sized {
            Some((names, size)) if names.contains(&field.name) => size,
            _ => 1,
        };
        let complexity = below.complexity.saturating_mul(own).saturating_mul(times);
        Self {
            complexity: complexity.saturating_add(1),
            depth: below.depth + 1,
            aliases: below.aliases + u64::from(field.key != field.name),
        }
    }
}

/// Measures an operation. The root fields have their complexity, for the rate limiter.
///
/// # Errors
/// `QUERY_TOO_COMPLEX` if a limit is exceeded.
pub(crate) fn measure(
    plan: &Plan,
    variables: &Variables,
    limits: &Limits,
) -> Result<(Measure, Vec<RootField>), Error> {
    let mut measure = Measure::default();
    let fields: Vec<_> = (plan.roots().iter())
        .map(|field| {
            let cost = Measure::field(field, variables, None);
            measure = measure.and(cost);
            RootField {
                key: field.key.clone(),
                name: field.name.clone(),
                place: field.place,
                cost: cost.complexity,
            }
        })
        .collect();
    let roots = fields.len() as u64;
    for (what, limit, actual, advice) in [
        (
            "root fields",
            limits.root_fields,
            roots,
            "Request fewer fields.",
        ),
        ("levels", limits.depth, measure.depth, "Nest less deeply."),
        (
            "aliases",
            limits.aliases,
            measure.aliases,
            "Request a list, or send several operations.",
        ),
        (
            "complexity points",
            limits.complexity,
            measure.complexity,
            "Request smaller pages: the cost of a connection is multiplied by its page size.",
        ),
    ] {
        if actual > limit {
            return Err(too_complex(what, limit, actual, advice));
        }
    }
    Ok((measure, fields))
}

/// The number of values of a field's list. The field itself refuses a size that is out of bounds.
fn size_of(field: &FieldPlan, variables: &Variables) -> u64 {
    let requested = field.size.slicing.iter().find_map(|name| {
        let length = |length: usize| u64::try_from(length).ok();
        match field.argument(name)? {
            Input::Number(number) => number.as_u64(),
            Input::List(items) => length(items.len()),
            Input::Variable(name) => match variables.get(name)? {
                ConstValue::Number(number) => number.as_u64(),
                ConstValue::List(items) => length(items.len()),
                ConstValue::Null => None,
                _ => Some(1),
            },
            Input::Null => None,
            _ => Some(1),
        }
    });
    requested.or(field.size.assumed).unwrap_or(1).min(MAX_PAGE)
}
