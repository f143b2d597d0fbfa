//! [Field selection merging](https://spec.graphql.org/September2025/#sec-Field-Selection-Merging), checked before the
//! compiler validates it: the compiler's work can be exponential in the size of a document, and it treats lists of
//! different lengths as equal.

use std::{collections::HashSet, ptr};

use apollo_compiler::{
    ExecutableDocument, Name, Node, Schema,
    ast::{Argument, Value},
    collections::IndexMap,
    executable::{Field, Selection, SelectionSet},
    parser::SourceSpan,
};

/// Fields with one response name and different arguments.
pub(crate) struct Conflict<'a> {
    pub(crate) name: &'a Name,
    pub(crate) at: Option<SourceSpan>,
}

/// A field and the type that it is selected on.
#[derive(Clone, Copy)]
struct Occurrence<'a> {
    field: &'a Node<Field>,
    parent: &'a Name,
}

struct Merger<'a> {
    schema: &'a Schema,
    document: &'a ExecutableDocument,
    conflicts: Vec<Conflict<'a>>,
    /// Selections and values seen; those of a fragment count in each set that spreads it.
    size: u64,
    limit: u64,
}

/// The conflicts in a document.
///
/// # Errors
/// The size of the merged selections, when it exceeds the limit.
pub(crate) fn conflicts<'a>(
    schema: &'a Schema,
    document: &'a ExecutableDocument,
    limit: u64,
) -> Result<Vec<Conflict<'a>>, u64> {
    let mut merger = Merger {
        schema,
        document,
        conflicts: Vec::new(),
        size: 0,
        limit,
    };
    for operation in document.operations.iter() {
        merger.merge(&operation.selection_set)?;
    }
    Ok(merger.conflicts)
}

impl<'a> Merger<'a> {
    /// Visits each set of merged selections once. Fields of different object types are merged only for the shape of the
    /// response.
    fn merge(&mut self, root: &'a SelectionSet) -> Result<(), u64> {
        let mut seen = HashSet::new();
        let mut pending = vec![(vec![root], false)];
        while let Some((sets, is_shape)) = pending.pop() {
            let mut key: Vec<_> = sets.iter().map(|set| ptr::from_ref(*set)).collect();
            key.sort_unstable();
            if !seen.insert((key, is_shape)) {
                continue;
            }
            let mut fields = IndexMap::default();
            let mut spread = HashSet::new();
            for set in sets {
                self.collect(set, &mut fields, &mut spread)?;
            }
            for occurrences in fields.into_values() {
                pending.push((below(&occurrences), true));
                if is_shape {
                    continue;
                }
                for group in self.with_common_parents(&occurrences) {
                    self.compare(&group);
                    pending.push((below(&group), false));
                }
            }
            pending.retain(|(sets, _)| !sets.is_empty());
        }
        Ok(())
    }

    fn collect(
        &mut self,
        set: &'a SelectionSet,
        fields: &mut IndexMap<&'a Name, Vec<Occurrence<'a>>>,
        spread: &mut HashSet<&'a Name>,
    ) -> Result<(), u64> {
        for selection in &set.selections {
            self.size += 1;
            match selection {
                Selection::Field(field) => {
                    let values = field.arguments.iter().map(|argument| size(&argument.value));
                    self.size += values.sum::<u64>();
                    let parent = &set.ty;
                    let found = fields.entry(field.response_key()).or_default();
                    found.push(Occurrence { field, parent });
                }
                Selection::InlineFragment(inline) => {
                    self.collect(&inline.selection_set, fields, spread)?;
                }
                Selection::FragmentSpread(used) => {
                    let fragment = self.document.fragments.get(&used.fragment_name);
                    if let Some(fragment) = fragment.filter(|_| spread.insert(&used.fragment_name))
                    {
                        self.collect(&fragment.selection_set, fields, spread)?;
                    }
                }
            }
            if self.size > self.limit {
                return Err(self.size);
            }
        }
        Ok(())
    }

    /// The occurrences that can apply to an object of one type, for each object type.
    fn with_common_parents(&self, occurrences: &[Occurrence<'a>]) -> Vec<Vec<Occurrence<'a>>> {
        let mut anywhere = Vec::new();
        let mut by_type: IndexMap<&Name, Vec<Occurrence<'a>>> = IndexMap::default();
        for occurrence in occurrences {
            if self.schema.get_object(occurrence.parent).is_some() {
                let found = by_type.entry(occurrence.parent).or_default();
                found.push(*occurrence);
            } else {
                anywhere.push(*occurrence);
            }
        }
        if by_type.is_empty() {
            return vec![anywhere];
        }
        let groups = by_type.into_values().map(|mut group| {
            group.extend(&anywhere);
            group
        });
        groups.collect()
    }

    fn compare(&mut self, group: &[Occurrence<'a>]) {
        let Some((first, others)) = group.split_first() else {
            return;
        };
        for other in others {
            if !are_equal(&first.field.arguments, &other.field.arguments) {
                self.conflicts.push(Conflict {
                    name: other.field.response_key(),
                    at: other.field.location(),
                });
            }
        }
    }
}

/// The selection sets of the fields, each once.
fn below<'a>(occurrences: &[Occurrence<'a>]) -> Vec<&'a SelectionSet> {
    let mut sets: Vec<&SelectionSet> = Vec::new();
    let mut known = HashSet::new();
    for occurrence in occurrences {
        let set = &occurrence.field.selection_set;
        if !set.selections.is_empty() && known.insert(ptr::from_ref(set)) {
            sets.push(set);
        }
    }
    sets
}

/// The number of values in a value.
fn size(value: &Value) -> u64 {
    match value {
        Value::List(items) => 1 + items.iter().map(|item| size(item)).sum::<u64>(),
        Value::Object(fields) => 1 + fields.iter().map(|(_, value)| size(value)).sum::<u64>(),
        _ => 1,
    }
}

fn are_equal(arguments: &[Node<Argument>], others: &[Node<Argument>]) -> bool {
    arguments.len() == others.len()
        && arguments.iter().all(|argument| {
            let other = others.iter().find(|other| other.name == argument.name);
            other.is_some_and(|other| is_equal(&argument.value, &other.value))
        })
}

fn is_equal(value: &Value, other: &Value) -> bool {
    match (value, other) {
        (Value::List(items), Value::List(others)) => {
            let mut pairs = items.iter().zip(others);
            items.len() == others.len() && pairs.all(|(item, other)| is_equal(item, other))
        }
        (Value::Object(fields), Value::Object(others)) => {
            fields.len() == others.len()
                && fields.iter().all(|(name, value)| {
                    let other = others.iter().find(|(other, _)| other == name);
                    other.is_some_and(|(_, other)| is_equal(value, other))
                })
        }
        (value, other) => value == other,
    }
}
