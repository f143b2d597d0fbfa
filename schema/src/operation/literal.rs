//! Literals of a document as input values of the executor.

use apollo_compiler::{
    Schema,
    ast::{Type, Value},
};
use async_graphql::Name;
use async_graphql_value::Value as Input;

/// A literal in the form that the executor accepts. A custom scalar gets a number with a fraction as text, because
/// a float does not hold all digits.
pub(crate) fn literal(schema: &Schema, value: &Value, ty: &Type) -> Input {
    let named = ty.inner_named_type();
    match value {
        Value::Null => Input::Null,
        Value::Variable(name) => Input::Variable(Name::new(name)),
        Value::Enum(name) => Input::Enum(Name::new(name)),
        Value::String(text) => Input::String(text.clone()),
        Value::Boolean(value) => Input::Boolean(*value),
        Value::Int(value) => number(schema, value.as_str(), named),
        Value::Float(value) => number(schema, value.as_str(), named),
        Value::List(items) => {
            let of = if ty.is_list() { ty.item_type() } else { ty };
            Input::List(items.iter().map(|item| literal(schema, item, of)).collect())
        }
        Value::Object(fields) => {
            let definition = schema.get_input_object(named);
            let fields = fields.iter().map(|(name, value)| {
                let field = definition.and_then(|definition| definition.fields.get(name));
                let ty = field.map_or(ty, |field| &field.ty);
                (Name::new(name), literal(schema, value, ty))
            });
            Input::Object(fields.collect())
        }
    }
}

pub(super) fn is_custom(schema: &Schema, named: &str) -> bool {
    let scalar = schema.get_scalar(named);
    scalar.is_some_and(|scalar| !scalar.is_built_in())
}

fn number(schema: &Schema, text: &str, named: &str) -> Input {
    // An id keeps its digits, and no integer is a negative zero.
    match (named, text) {
        ("ID", _) => return Input::String(text.to_owned()),
        ("Int", "-0") => return Input::Number(0.into()),
        _ => {}
    }
    let is_custom = is_custom(schema, named) && named != "JSON";
    let is_whole = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'-');
    match text.parse::<serde_json::Number>() {
        Ok(number) if !is_custom || is_whole && !number.is_f64() => Input::Number(number),
        _ => Input::String(text.to_owned()),
    }
}
