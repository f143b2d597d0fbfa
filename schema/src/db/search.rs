//! Text that a client searches for, as a condition.

use sea_orm::sea_query::{Expr, ExprTrait, LikeExpr};

use crate::{error::Error, text::fold};

/// Maximum length of a filter text, in characters.
const MAX_FILTER: usize = 100;

/// Checks a filter text.
pub(crate) fn filter(text: &str, field: &str) -> Result<String, Error> {
    if text.chars().count() > MAX_FILTER {
        return Err(Error::bad_input(format!(
            "`{field}` must have at most {MAX_FILTER} characters."
        ))
        .field(field));
    }
    if text.contains('\0') {
        return Err(
            Error::bad_input(format!("`{field}` must not contain the character U+0000."))
                .field(field),
        );
    }
    Ok(text.to_owned())
}

/// Condition: the folded `column` contains `search`.
pub(crate) fn contains(column: Expr, search: &str) -> Result<Expr, Error> {
    let mut pattern = String::from("%");
    for letter in fold(&filter(search, "search")?).chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    Ok(column.like(LikeExpr::new(pattern).escape('\\')))
}
