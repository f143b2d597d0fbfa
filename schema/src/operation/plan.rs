//! An executable operation: its selections merged by
//! [CollectFields](https://spec.graphql.org/September2025/#CollectFields()), each field with its definition.
//!
//! The plan is built once per document, operation and conditions of `@skip` and `@include`. The cost of the operation,
//! the executor's document and the order of the response are derived from it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use apollo_compiler::{
    ExecutableDocument, Name as ApolloName, Node,
    ast::{Directive, OperationType as ApolloOperation, Type, Value},
    executable::{Field, Operation, Selection as ApolloSelection, SelectionSet},
};
use async_graphql::{Name, Pos, indexmap::IndexMap, parser::types::OperationType};
use async_graphql_value::Value as Input;

use crate::{
    error::Error,
    operation::{
        list_size::ListSize,
        literal::literal,
        source::too_complex,
        validator::{Document, Validator},
    },
};

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Fields in the order of the response.
pub(crate) type Fields = Vec<Arc<FieldPlan>>;

/// An executable operation.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Identifies the plan in this process.
    pub(crate) id: u64,
    /// The number of selections after fragment expansion.
    pub(crate) size: u64,
    pub(crate) kind: OperationType,
    /// The name of the operation.
    pub(crate) name: Option<Name>,
    pub(crate) root: Selection,
}

/// A field of a selection, with all its occurrences merged.
#[derive(Debug)]
pub(crate) struct FieldPlan {
    /// The response key.
    pub(crate) key: Name,
    pub(crate) name: Name,
    pub(crate) place: Pos,
    /// Literals and variables. Arguments of the field may be missing.
    pub(crate) arguments: Vec<(Name, Input)>,
    pub(crate) ty: Type,
    pub(crate) selection: Selection,
    /// The size of its list.
    pub(crate) size: ListSize,
}

/// The selection on a field's value.
#[derive(Debug)]
pub(crate) enum Selection {
    /// A scalar or an enum value.
    Leaf,
    /// An object of one type.
    Object(Fields),
    /// An object of one of several types.
    Abstract(Box<Abstract>),
}

/// The selection on a value whose type is known only at execution.
#[derive(Debug)]
pub(crate) struct Abstract {
    /// Each field once, with the types that have it; `None` for all types.
    pub(crate) parts: Vec<(Option<Vec<Name>>, Arc<FieldPlan>)>,
    /// By the name of the object type.
    pub(crate) by_type: HashMap<Name, Arc<Fields>>,
}

impl FieldPlan {
    /// An argument as written.
    pub(crate) fn argument(&self, name: &str) -> Option<&Input> {
        let mut arguments = self.arguments.iter();
        arguments.find_map(|(known, value)| (known.as_str() == name).then_some(value))
    }
}

impl Plan {
    /// Plans an operation. `includes` contains the values of the variables in `@skip` and `@include`.
    ///
    /// # Errors
    /// `QUERY_TOO_COMPLEX` for more than `limit` selections, fragments expanded; `BAD_USER_INPUT` for a condition that
    /// is null.
    pub(crate) fn new(
        validator: &Validator,
        document: &Document,
        operation: &Operation,
        includes: &HashMap<&str, bool>,
        limit: u64,
    ) -> Result<Self, Error> {
        let mut planner = Planner {
            validator,
            document: &document.executable,
            includes,
            limit,
            size: 0,
        };
        let root = &operation.selection_set;
        let root = planner.selection(&root.ty, &[root])?;
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            size: planner.size,
            kind: match operation.operation_type {
                ApolloOperation::Query => OperationType::Query,
                ApolloOperation::Mutation => OperationType::Mutation,
                ApolloOperation::Subscription => OperationType::Subscription,
            },
            name: operation.name.as_ref().map(Name::new),
            root,
        })
    }

    /// The root fields.
    pub(crate) fn roots(&self) -> &[Arc<FieldPlan>] {
        match &self.root {
            Selection::Object(fields) => fields,
            Selection::Leaf | Selection::Abstract(_) => &[],
        }
    }
}

struct Planner<'a> {
    validator: &'a Validator,
    document: &'a ExecutableDocument,
    includes: &'a HashMap<&'a str, bool>,
    limit: u64,
    /// Selections seen.
    size: u64,
}

/// An occurrence of a field, the parent types to which it applies, and its index.
struct Occurrence<'a> {
    field: &'a Node<Field>,
    types: Vec<usize>,
    place: usize,
}

/// The fields found, by response key.
#[derive(Default)]
struct Collected<'a> {
    fields: IndexMap<&'a ApolloName, Vec<Occurrence<'a>>>,
    visited: HashSet<(&'a ApolloName, Vec<usize>)>,
    count: usize,
}

impl<'a> Planner<'a> {
    fn selection(&mut self, ty: &str, sets: &[&'a SelectionSet]) -> Result<Selection, Error> {
        let validator = self.validator;
        let possible = validator.possible(ty);
        if possible.is_empty() {
            return Ok(Selection::Leaf);
        }
        let all: Vec<usize> = (0..possible.len()).collect();
        let mut collected = Collected::default();
        for set in sets {
            self.collect(set, &all, possible, &mut collected)?;
        }
        // Fields with the same occurrences are equal, regardless of the type of the parent.
        let mut parts: Vec<(Vec<usize>, usize, Arc<FieldPlan>)> = Vec::new();
        for occurrences in collected.fields.values() {
            let mut groups: IndexMap<Vec<usize>, Vec<usize>> = IndexMap::new();
            for ty in &all {
                let found = occurrences.iter().enumerate();
                let found = found.filter(|(_, occurrence)| occurrence.types.contains(ty));
                let found: Vec<usize> = found.map(|(index, _)| index).collect();
                if !found.is_empty() {
                    groups.entry(found).or_default().push(*ty);
                }
            }
            for (found, types) in groups {
                let found: Vec<_> = found.iter().map(|index| &occurrences[*index]).collect();
                let place = found[0].place;
                let field = self.field(&found)?;
                parts.push((types, place, Arc::new(field)));
            }
        }
        if all.len() == 1 {
            return Ok(Selection::Object(
                parts.into_iter().map(|(_, _, field)| field).collect(),
            ));
        }
        parts.sort_by_key(|(_, place, _)| *place);
        let mut lists: HashMap<Vec<usize>, Arc<Fields>> = HashMap::new();
        let mut by_type = HashMap::with_capacity(all.len());
        for ty in &all {
            let own = parts.iter().enumerate();
            let own = own.filter(|(_, (types, ..))| types.contains(ty));
            let own: Vec<usize> = own.map(|(index, _)| index).collect();
            let fields = lists.entry(own).or_insert_with_key(|own| {
                let fields = own.iter().map(|index| Arc::clone(&parts[*index].2));
                Arc::new(fields.collect())
            });
            by_type.insert(Name::new(&possible[*ty]), Arc::clone(fields));
        }
        let parts = parts.into_iter().map(|(types, _, field)| {
            let names = types.iter().map(|ty| Name::new(&possible[*ty]));
            let names = (types.len() < all.len()).then(|| names.collect());
            (names, field)
        });
        Ok(Selection::Abstract(Box::new(Abstract {
            parts: parts.collect(),
            by_type,
        })))
    }

    fn collect(
        &mut self,
        set: &'a SelectionSet,
        types: &[usize],
        possible: &[ApolloName],
        collected: &mut Collected<'a>,
    ) -> Result<(), Error> {
        for selection in &set.selections {
            self.size += 1;
            if self.size > self.limit {
                return Err(too_complex(
                    "selections after fragment expansion",
                    self.limit,
                    self.size,
                    "Use fewer fragments.",
                ));
            }
            if self.leaves_out(selection.directives())? {
                continue;
            }
            match selection {
                ApolloSelection::Field(field) => {
                    let found = collected.fields.entry(field.response_key()).or_default();
                    found.push(Occurrence {
                        field,
                        types: types.to_vec(),
                        place: collected.count,
                    });
                    collected.count += 1;
                }
                ApolloSelection::InlineFragment(inline) => {
                    let narrow = match &inline.type_condition {
                        Some(condition) => self.narrow(types, condition, possible),
                        None => types.to_vec(),
                    };
                    if !narrow.is_empty() {
                        self.collect(&inline.selection_set, &narrow, possible, collected)?;
                    }
                }
                ApolloSelection::FragmentSpread(spread) => {
                    let Some(fragment) = self.document.fragments.get(&spread.fragment_name) else {
                        continue;
                    };
                    let narrow = self.narrow(types, fragment.type_condition(), possible);
                    let visit = (&spread.fragment_name, narrow.clone());
                    if !narrow.is_empty() && collected.visited.insert(visit) {
                        self.collect(&fragment.selection_set, &narrow, possible, collected)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn narrow(&self, types: &[usize], condition: &str, possible: &[ApolloName]) -> Vec<usize> {
        let matching = self.validator.possible(condition);
        let kept = types.iter().copied();
        kept.filter(|ty| matching.contains(&possible[*ty]))
            .collect()
    }

    /// # Errors
    /// `BAD_USER_INPUT` for a condition that is null.
    fn leaves_out(&self, directives: &[Node<Directive>]) -> Result<bool, Error> {
        for directive in directives {
            let skips = directive.name == "skip";
            if !skips && directive.name != "include" {
                continue;
            }
            let condition = directive.specified_argument_by_name("if");
            let condition = match condition.map(|condition| &**condition) {
                Some(Value::Boolean(condition)) => *condition,
                Some(Value::Variable(name)) => {
                    *self.includes.get(name.as_str()).ok_or_else(|| {
                        let message = format!(
                            "Variable `${name}` is used in a condition and must not be null."
                        );
                        Error::bad_input(message).field(name)
                    })?
                }
                _ => !skips,
            };
            if condition == skips {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn field(&mut self, occurrences: &[&Occurrence<'a>]) -> Result<FieldPlan, Error> {
        let first = occurrences[0].field;
        let definition = &first.definition;
        let sets: Vec<_> = occurrences
            .iter()
            .map(|occurrence| &occurrence.field.selection_set)
            .collect();
        let arguments = first.arguments.iter().map(|argument| {
            let declared = definition.argument_by_name(&argument.name);
            let ty = declared.map_or(&definition.ty, |declared| &declared.ty);
            let value = literal(self.validator.schema(), &argument.value, ty);
            (Name::new(&argument.name), value)
        });
        let at = first.location();
        let at = at.and_then(|at| at.line_column(&self.document.sources));
        Ok(FieldPlan {
            key: Name::new(first.response_key()),
            name: Name::new(&first.name),
            place: at.map_or(Pos::default(), |at| Pos {
                line: at.line,
                column: at.column,
            }),
            arguments: arguments.collect(),
            ty: definition.ty.clone(),
            selection: self.selection(definition.ty.inner_named_type(), &sets)?,
            size: ListSize::declared(definition),
        })
    }
}
