//! What a document asks for, measured before anything of it runs.
//!
//! The parser and the validator walk fragments without remembering them, so a short document can cost them seconds.
//! Tokens and nesting are therefore bounded before parsing, and what fragments expand to before validation, each
//! fragment being measured once.

use std::{collections::HashMap, sync::Arc};

use async_graphql::{
    Name, Positioned,
    parser::{
        parse_schema,
        types::{
            Directive, DocumentOperations, ExecutableDocument, Field, FragmentDefinition,
            OperationDefinition, OperationType, Selection, SelectionSet, Type, TypeKind,
            TypeSystemDefinition,
        },
    },
};
use async_graphql_value::Value as DocumentValue;
use serde_json::{Map, Value as Json};

use crate::{
    error::{Code, Error},
    execute::Limits,
    limit::{RootField, Tier},
    page::{DEFAULT_PAGE, MAX_PAGE},
    text,
};

/// Deepest nesting of brackets, in selections and values together. The parser recurses that deep.
const MAX_NESTING: usize = 100;

/// Refuses a document that would cost too much to parse.
pub(crate) fn check_text(text: &str, limits: &Limits) -> Result<(), Error> {
    let bytes = text.len() as u64;
    if bytes > limits.document_bytes {
        return Err(too_complex(
            "bytes",
            limits.document_bytes,
            bytes,
            "Send a shorter document.",
        ));
    }
    let (tokens, nesting) = count_tokens(text);
    if tokens > limits.tokens {
        return Err(too_complex(
            "tokens",
            limits.tokens,
            tokens,
            "Send a shorter document.",
        ));
    }
    if nesting > MAX_NESTING {
        return Err(too_complex(
            "nested brackets",
            MAX_NESTING as u64,
            nesting as u64,
            "Nest less deeply.",
        ));
    }
    Ok(())
}

fn too_complex(what: &str, limit: u64, actual: u64, advice: &str) -> Error {
    Error::new(
        Code::QueryTooComplex,
        format!("The document has {actual} {what}, and {limit} are allowed. {advice}"),
    )
    .with("limit", limit)
    .with("actual", actual)
}

/// Lexical tokens of the GraphQL specification, and the deepest nesting of brackets. Text that is not GraphQL is counted
/// one way or another and then refused by the parser.
fn count_tokens(text: &str) -> (u64, usize) {
    let bytes = text.as_bytes();
    let (mut at, mut tokens, mut nesting, mut deepest) = (0, 0_u64, 0_usize, 0_usize);
    let skip = |from: usize, is: fn(&u8) -> bool| {
        from + bytes[from..].iter().take_while(|byte| is(byte)).count()
    };
    while let Some(byte) = bytes.get(at) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b',' | 0xEF | 0xBB | 0xBF => {
                at += 1;
                continue;
            }
            b'#' => {
                at = skip(at, |byte| !matches!(byte, b'\n' | b'\r'));
                continue;
            }
            b'"' if bytes[at..].starts_with(b"\"\"\"") => {
                at += 3;
                while at < bytes.len() && !bytes[at..].starts_with(b"\"\"\"") {
                    at += if bytes[at..].starts_with(b"\\\"\"\"") {
                        4
                    } else {
                        1
                    };
                }
                at += 3;
            }
            b'"' => {
                at += 1;
                while at < bytes.len() && !matches!(bytes[at], b'"' | b'\n' | b'\r') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'.' => at = skip(at, |byte| *byte == b'.'),
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') => {
                at = skip(at, |byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+' | b'.')
                });
            }
            b'{' | b'[' | b'(' => {
                nesting += 1;
                deepest = deepest.max(nesting);
                at += 1;
            }
            b'}' | b']' | b')' => {
                nesting = nesting.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
        tokens += 1;
    }
    (tokens, deepest)
}

/// The fields of the schema that a document's cost depends on.
pub(crate) struct Costs {
    fields: HashMap<String, HashMap<String, Cost>>,
    /// By root field.
    tiers: HashMap<String, Tier>,
}

struct Cost {
    ty: Type,
    /// The name of the type, without its lists.
    named: String,
    times: Times,
}

/// How often a field's selection counts.
#[derive(Clone, Copy)]
enum Times {
    Once,
    Page,
    Fixed(u64),
}

impl Costs {
    /// Reads the costs from the schema's definition.
    pub(crate) fn new(sdl: &str) -> Self {
        let mut fields: HashMap<String, HashMap<String, Cost>> = HashMap::new();
        let mut tiers = HashMap::new();
        let definitions = parse_schema(sdl)
            .map(|document| document.definitions)
            .unwrap_or_default();
        for definition in definitions {
            let TypeSystemDefinition::Type(definition) = definition else {
                continue;
            };
            let list = match definition.node.kind {
                TypeKind::Object(object) => object.fields,
                TypeKind::Interface(interface) => interface.fields,
                _ => continue,
            };
            let costs = fields
                .entry(definition.node.name.node.to_string())
                .or_default();
            for field in list {
                let name = field.node.name.node.to_string();
                let declared = field.node.directives.iter().find_map(|directive| {
                    Tier::declared(&directive.node.get_argument("tier")?.node)
                });
                tiers.extend(declared.map(|tier| (name.clone(), tier)));
                let ty = field.node.ty.node;
                let named = ty.to_string().replace(['[', ']', '!'], "");
                let times = match name.as_str() {
                    _ if named.ends_with("Connection") => Times::Page,
                    "recentTasks" => Times::Fixed(10),
                    "recentConversations" => Times::Fixed(5),
                    _ => Times::Once,
                };
                costs.insert(name, Cost { ty, named, times });
            }
        }
        Self { fields, tiers }
    }

    /// The tiers of the root fields.
    pub(crate) fn tiers(&self) -> &HashMap<String, Tier> {
        &self.tiers
    }

    /// The name of the type in which operations begin.
    pub(crate) fn root(operation: OperationType) -> &'static str {
        match operation {
            OperationType::Query => "Query",
            OperationType::Mutation => "Mutation",
            OperationType::Subscription => "Subscription",
        }
    }

    /// The type of a field.
    pub(crate) fn ty(&self, parent: &str, field: &str) -> Option<&Type> {
        Some(&self.fields.get(parent)?.get(field)?.ty)
    }
}

/// What a selection asks for, fragments expanded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Each field and its selection, connections multiplied.
    pub(crate) complexity: u64,
    /// Deepest nesting of fields.
    pub(crate) depth: u64,
    /// Fields of the selection itself.
    pub(crate) roots: u64,
    /// Fields under another name than their own.
    pub(crate) aliases: u64,
    /// Fields, spreads and inline fragments at every level.
    size: u64,
}

impl Measure {
    fn and(self, other: Self) -> Self {
        Self {
            complexity: self.complexity.saturating_add(other.complexity),
            depth: self.depth.max(other.depth),
            roots: self.roots.saturating_add(other.roots),
            aliases: self.aliases.saturating_add(other.aliases),
            size: self.size.saturating_add(other.size),
        }
    }
}

/// The root fields of an operation that has been measured, as often as they occur; those that `@skip` and `@include`
/// leave out do not. The variables have their defaults.
pub(crate) fn root_fields(
    document: &ExecutableDocument,
    operation: &OperationDefinition,
    variables: &Map<String, Json>,
    costs: &Costs,
) -> Vec<RootField> {
    let mut roots = Roots {
        document,
        variables,
        costs,
        fields: Vec::new(),
    };
    roots.selection(&operation.selection_set.node);
    roots.fields
}

/// A subscription with its one root field at the top, where alone the executor looks for it: fragments of the root are
/// opened, and equal fields are one.
///
/// # Errors
/// `GRAPHQL_VALIDATION_FAILED` for what the
/// [specification](https://spec.graphql.org/September2025/#sec-Single-Root-Field) does not allow.
pub(crate) fn single_root(
    document: &Arc<ExecutableDocument>,
    operation: &OperationDefinition,
    name: Option<&str>,
) -> Result<Arc<ExecutableDocument>, Error> {
    let invalid = |message: &'static str| Error::new(Code::ValidationFailed, message);
    if let [item] = &operation.selection_set.node.items[..]
        && let Selection::Field(field) = &item.node
        && field.node.directives.is_empty()
    {
        return Ok(Arc::clone(document));
    }
    let mut fields = Vec::new();
    let is_plain = open(document, &operation.selection_set.node, &mut fields);
    if !is_plain {
        return Err(invalid(
            "The root field of a subscription stands by itself or in fragments on Subscription, without directives.",
        ));
    }
    let Some((first, others)) = fields.split_first() else {
        return Err(invalid("A subscription has one root field."));
    };
    let mut root = Positioned::clone(first);
    for other in others {
        let (one, other) = (&first.node, &other.node);
        let same_arguments = one.arguments.len() == other.arguments.len()
            && one.arguments.iter().all(|(name, value)| {
                let found = other.get_argument(&name.node);
                found.is_some_and(|other| other.node == value.node)
            });
        if one.response_key().node != other.response_key().node
            || one.name.node != other.name.node
            || !same_arguments
        {
            return Err(invalid("A subscription has one root field."));
        }
        let items = other.selection_set.node.items.iter().cloned();
        root.node.selection_set.node.items.extend(items);
    }
    let mut used = HashMap::new();
    keep_fragments(document, &root.node.selection_set.node, &mut used);
    let mut flat = operation.clone();
    let place = root.pos;
    flat.selection_set.node.items = vec![Positioned::new(Selection::Field(root), place)];
    let flat = Positioned::new(flat, place);
    let operations = match &document.operations {
        DocumentOperations::Single(_) => DocumentOperations::Single(flat),
        DocumentOperations::Multiple(all) => {
            let mut keys = all.keys();
            let key = keys.find(|key| name.is_none_or(|name| key.as_str() == name));
            DocumentOperations::Multiple(key.map(|key| (key.clone(), flat)).into_iter().collect())
        }
    };
    Ok(Arc::new(ExecutableDocument {
        operations,
        fragments: used,
    }))
}

const SUBSCRIPTION: &str = "Subscription";

/// The fields of a selection of the root. Whether all of them are there whatever the variables say.
fn open<'a>(
    document: &'a ExecutableDocument,
    selection: &'a SelectionSet,
    fields: &mut Vec<&'a Positioned<Field>>,
) -> bool {
    selection.items.iter().all(|item| match &item.node {
        Selection::Field(field) => {
            fields.push(field);
            field.node.directives.is_empty()
        }
        Selection::FragmentSpread(spread) => {
            let name = &spread.node.fragment_name.node;
            let fragment = document.fragments.get(name);
            spread.node.directives.is_empty()
                && fragment.is_some_and(|fragment| {
                    fragment.node.type_condition.node.on.node == SUBSCRIPTION
                        && open(document, &fragment.node.selection_set.node, fields)
                })
        }
        Selection::InlineFragment(inline) => {
            let condition = inline.node.type_condition.as_ref();
            inline.node.directives.is_empty()
                && condition.is_none_or(|condition| condition.node.on.node == SUBSCRIPTION)
                && open(document, &inline.node.selection_set.node, fields)
        }
    })
}

/// Collects the fragments that a selection uses.
fn keep_fragments(
    document: &ExecutableDocument,
    selection: &SelectionSet,
    used: &mut HashMap<Name, Positioned<FragmentDefinition>>,
) {
    for item in &selection.items {
        match &item.node {
            Selection::Field(field) => {
                keep_fragments(document, &field.node.selection_set.node, used);
            }
            Selection::FragmentSpread(spread) => {
                let name = &spread.node.fragment_name.node;
                if let Some(fragment) = document.fragments.get(name)
                    && used.insert(name.clone(), fragment.clone()).is_none()
                {
                    keep_fragments(document, &fragment.node.selection_set.node, used);
                }
            }
            Selection::InlineFragment(inline) => {
                keep_fragments(document, &inline.node.selection_set.node, used);
            }
        }
    }
}

struct Roots<'a> {
    document: &'a ExecutableDocument,
    variables: &'a Map<String, Json>,
    costs: &'a Costs,
    fields: Vec<RootField>,
}

impl Roots<'_> {
    fn selection(&mut self, selection: &SelectionSet) {
        for item in &selection.items {
            let directives = match &item.node {
                Selection::Field(field) => &field.node.directives,
                Selection::FragmentSpread(spread) => &spread.node.directives,
                Selection::InlineFragment(inline) => &inline.node.directives,
            };
            if directives
                .iter()
                .any(|directive| self.leaves_out(&directive.node))
            {
                continue;
            }
            match &item.node {
                Selection::Field(field) => {
                    let field = &field.node;
                    self.fields.push(RootField {
                        key: field.response_key().node.clone(),
                        name: field.name.node.clone(),
                        place: item.pos,
                        account: self.account(field),
                    });
                }
                Selection::FragmentSpread(spread) => {
                    let name = &spread.node.fragment_name.node;
                    if let Some(fragment) = self.document.fragments.get(name) {
                        self.selection(&fragment.node.selection_set.node);
                    }
                }
                Selection::InlineFragment(inline) => {
                    self.selection(&inline.node.selection_set.node);
                }
            }
        }
    }

    fn leaves_out(&self, directive: &Directive) -> bool {
        let skips = directive.name.node == "skip";
        if !skips && directive.name.node != "include" {
            return false;
        }
        let condition = match directive.get_argument("if").map(|value| &value.node) {
            Some(DocumentValue::Boolean(condition)) => Some(*condition),
            Some(DocumentValue::Variable(name)) => {
                self.variables.get(name.as_str()).and_then(Json::as_bool)
            }
            _ => None,
        };
        condition == Some(skips)
    }

    /// The account that a field signs in to, by its e-mail address.
    fn account(&self, field: &Field) -> Option<String> {
        if self.costs.tiers().get(field.name.node.as_str()) != Some(&Tier::Auth) {
            return None;
        }
        let variable = |name: &Name| self.variables.get(name.as_str());
        let email = match &field.get_argument("input")?.node {
            DocumentValue::Variable(name) => variable(name)?.get("email")?.as_str(),
            DocumentValue::Object(input) => match input.get("email")? {
                DocumentValue::String(email) => Some(email.as_str()),
                DocumentValue::Variable(name) => variable(name)?.as_str(),
                _ => None,
            },
            _ => None,
        };
        text::email_key(email?)
    }
}

/// Measures one operation of a document and refuses what is over a limit.
pub(crate) fn measure(
    document: &ExecutableDocument,
    operation: &OperationDefinition,
    variables: &Map<String, Json>,
    costs: &Costs,
    limits: &Limits,
) -> Result<Measure, Error> {
    let mut walk = Walk {
        document,
        variables,
        costs,
        fragments: HashMap::new(),
    };
    // The validator walks every operation and fragment, whichever one is asked for.
    let mut size = 0_u64;
    for name in document.fragments.keys() {
        size = size.max(walk.fragment(name)?.size);
    }
    for (_, other) in document.operations.iter() {
        size = size.saturating_add(walk.operation(&other.node)?.size);
    }
    if size > limits.tokens {
        return Err(too_complex(
            "selections with its fragments expanded",
            limits.tokens,
            size,
            "Use fewer fragments.",
        ));
    }
    let measure = walk.operation(operation)?;
    for (what, limit, actual, advice) in [
        (
            "root fields",
            limits.root_fields,
            measure.roots,
            "Ask for less at once.",
        ),
        ("levels", limits.depth, measure.depth, "Nest less deeply."),
        (
            "aliases",
            limits.aliases,
            measure.aliases,
            "Ask for a list, or send several operations.",
        ),
        (
            "as its complexity",
            limits.complexity,
            measure.complexity,
            "Ask for smaller pages: the selection of a connection counts as often as its page has entries.",
        ),
    ] {
        if actual > limit {
            return Err(too_complex(what, limit, actual, advice));
        }
    }
    Ok(measure)
}

struct Walk<'a> {
    document: &'a ExecutableDocument,
    variables: &'a Map<String, Json>,
    costs: &'a Costs,
    /// `None` while a fragment is being measured.
    fragments: HashMap<&'a Name, Option<Measure>>,
}

impl<'a> Walk<'a> {
    fn operation(&mut self, operation: &'a OperationDefinition) -> Result<Measure, Error> {
        self.selection(&operation.selection_set.node, Costs::root(operation.ty))
    }

    fn fragment(&mut self, name: &Name) -> Result<Measure, Error> {
        // A name without a fragment is the validator's to report.
        let Some((name, fragment)) = self.document.fragments.get_key_value(name) else {
            return Ok(Measure::default());
        };
        match self.fragments.get(name) {
            Some(Some(measure)) => return Ok(*measure),
            Some(None) => {
                return Err(Error::new(
                    Code::ValidationFailed,
                    format!("The fragment \"{name}\" spreads itself."),
                ));
            }
            None => {}
        }
        self.fragments.insert(name, None);
        let FragmentDefinition {
            type_condition,
            selection_set,
            ..
        } = &fragment.node;
        let measure = self.selection(&selection_set.node, &type_condition.node.on.node)?;
        self.fragments.insert(name, Some(measure));
        Ok(measure)
    }

    fn selection(&mut self, selection: &'a SelectionSet, ty: &str) -> Result<Measure, Error> {
        let mut sum = Measure::default();
        for item in &selection.items {
            let part = match &item.node {
                Selection::Field(field) => self.field(&field.node, ty)?,
                Selection::FragmentSpread(spread) => {
                    self.fragment(&spread.node.fragment_name.node)?
                }
                Selection::InlineFragment(inline) => {
                    let condition = inline.node.type_condition.as_ref();
                    let ty = condition.map_or(ty, |condition| condition.node.on.node.as_str());
                    self.selection(&inline.node.selection_set.node, ty)?
                }
            };
            let size = part.size.saturating_add(1);
            sum = sum.and(Measure { size, ..part });
        }
        Ok(sum)
    }

    fn field(&mut self, field: &'a Field, parent: &str) -> Result<Measure, Error> {
        let costs = self.costs;
        let cost = costs
            .fields
            .get(parent)
            .and_then(|fields| fields.get(field.name.node.as_str()));
        let below = self.selection(
            &field.selection_set.node,
            cost.map_or("", |cost| &cost.named),
        )?;
        let times = match cost.map_or(Times::Once, |cost| cost.times) {
            Times::Once => 1,
            Times::Page => self.page_size(field),
            Times::Fixed(times) => times,
        };
        Ok(Measure {
            complexity: below.complexity.saturating_mul(times).saturating_add(1),
            depth: below.depth + 1,
            roots: 1,
            aliases: below.aliases + u64::from(field.alias.is_some()),
            size: below.size,
        })
    }

    /// The size of the page a connection field asks for; a size that is out of bounds is refused by the field itself.
    fn page_size(&self, field: &Field) -> u64 {
        let asked = ["first", "last"].into_iter().find_map(|name| {
            let value = field
                .arguments
                .iter()
                .find(|(argument, _)| argument.node == name)?;
            match &value.1.node {
                DocumentValue::Number(number) => number.as_u64(),
                DocumentValue::Variable(name) => {
                    self.variables.get(name.as_str()).and_then(Json::as_u64)
                }
                _ => None,
            }
        });
        asked.unwrap_or(DEFAULT_PAGE).min(MAX_PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_as_the_specification_has_them() {
        for (text, tokens, nesting) in [
            ("", 0, 0),
            ("{ a }", 3, 1),
            (
                "query Q($id: ID!) { a(id: $id, n: -1.5e3) { ...F @skip(if: true) } }",
                32,
                3,
            ),
            ("# { { {\n{a}", 3, 1),
            ("{ a(t: \"} } \\\" }\") }", 8, 2),
            ("{ a(t: \"\"\"{ \\\"\"\" { \" {\"\"\") }", 8, 2),
            ("{a,,,,,b}", 4, 1),
            ("[[[[", 4, 4),
        ] {
            let (counted, deepest) = count_tokens(text);
            assert_eq!(deepest, nesting, "{text}");
            assert_eq!(counted, tokens, "{text}");
        }
    }
}
