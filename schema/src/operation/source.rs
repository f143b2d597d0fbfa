//! The text of a document before it is parsed: bounds, and what the parser does not know yet.

use std::borrow::Cow;

use crate::{
    error::{Code, Error},
    execute::Limits,
};

/// Deepest nesting of brackets, in selections and values together. The parser recurses that deep.
pub(crate) const MAX_NESTING: usize = 100;

/// A lexical token, and where its text begins and ends.
struct Token {
    first: u8,
    start: usize,
    end: usize,
}

/// The lexical tokens of the GraphQL specification. Text that is not GraphQL is divided one way or another and then
/// refused by the parser.
struct Tokens<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Tokens<'_> {
    fn run(&self, from: usize, is: fn(&u8) -> bool) -> usize {
        from + self.bytes[from..]
            .iter()
            .take_while(|byte| is(byte))
            .count()
    }

    fn string(&self) -> usize {
        let (bytes, mut at) = (self.bytes, self.at);
        if bytes[at..].starts_with(b"\"\"\"") {
            at += 3;
            while at < bytes.len() && !bytes[at..].starts_with(b"\"\"\"") {
                at += if bytes[at..].starts_with(b"\\\"\"\"") {
                    4
                } else {
                    1
                };
            }
            at + 3
        } else {
            at += 1;
            while at < bytes.len() && !matches!(bytes[at], b'"' | b'\n' | b'\r') {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at + 1
        }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let (start, bytes) = (self.at, self.bytes);
            let first = *bytes.get(start)?;
            let end = match first {
                b' ' | b'\t' | b'\n' | b'\r' | b',' | 0xEF | 0xBB | 0xBF => {
                    self.at += 1;
                    continue;
                }
                b'#' => {
                    self.at = self.run(start, |byte| !matches!(byte, b'\n' | b'\r'));
                    continue;
                }
                b'"' => self.string(),
                b'.' => self.run(start, |byte| *byte == b'.'),
                byte if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') => {
                    self.run(start, |byte| {
                        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+' | b'.')
                    })
                }
                _ => start + 1,
            };
            self.at = end;
            let end = end.min(bytes.len());
            return Some(Token { first, start, end });
        }
    }
}

fn tokens(text: &str) -> Tokens<'_> {
    Tokens {
        bytes: text.as_bytes(),
        at: 0,
    }
}

/// Refuses a document that would cost too much to parse.
///
/// # Errors
/// `QUERY_TOO_COMPLEX`.
pub(crate) fn check(text: &str, limits: &Limits) -> Result<(), Error> {
    let bytes = text.len() as u64;
    let shorter = "Send a shorter document.";
    if bytes > limits.document_bytes {
        return Err(too_complex("bytes", limits.document_bytes, bytes, shorter));
    }
    let (tokens, nesting) = count(text);
    if tokens > limits.tokens {
        return Err(too_complex("tokens", limits.tokens, tokens, shorter));
    }
    if nesting > MAX_NESTING {
        let (limit, actual) = (MAX_NESTING as u64, nesting as u64);
        return Err(too_complex(
            "nested brackets",
            limit,
            actual,
            "Nest less deeply.",
        ));
    }
    Ok(())
}

/// `QUERY_TOO_COMPLEX`, with the limit and what the document has.
pub(crate) fn too_complex(what: &str, limit: u64, actual: u64, advice: &str) -> Error {
    Error::new(
        Code::QueryTooComplex,
        format!("The document has {actual} {what}, and {limit} are allowed. {advice}"),
    )
    .with("limit", limit)
    .with("actual", actual)
}

/// The number of tokens, and the deepest nesting of brackets.
fn count(text: &str) -> (u64, usize) {
    let (mut counted, mut nesting, mut deepest) = (0, 0_usize, 0_usize);
    for token in tokens(text) {
        counted += 1;
        match token.first {
            b'{' | b'[' | b'(' => {
                nesting += 1;
                deepest = deepest.max(nesting);
            }
            b'}' | b']' | b')' => nesting = nesting.saturating_sub(1),
            _ => {}
        }
    }
    (counted, deepest)
}

/// The text with spaces instead of the [descriptions](https://spec.graphql.org/September2025/#sec-Descriptions) of
/// operations, fragments and variables, which the parser does not accept.
pub(crate) fn without_descriptions(text: &str) -> Cow<'_, str> {
    let mut nesting = 0_usize;
    let (mut before, mut description) = (0, None::<Token>);
    let mut found = Vec::new();
    for token in tokens(text) {
        if let Some(description) = description.take() {
            let described: &[&str] = if nesting == 0 {
                &["query", "mutation", "subscription", "fragment"]
            } else {
                &["$"]
            };
            let next = text.get(token.start..token.end);
            if next.is_some_and(|next| described.contains(&next)) {
                found.push(description.start..description.end);
            }
        }
        match token.first {
            b'{' | b'[' | b'(' => nesting += 1,
            b'}' | b']' | b')' => nesting = nesting.saturating_sub(1),
            _ => {}
        }
        let first = token.first;
        // After `=` and `:` a string is a value.
        if first == b'"' && nesting <= 1 && !matches!(before, b'=' | b':') {
            description = Some(token);
        }
        before = first;
    }
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    for description in found {
        kept.push_str(&text[at..description.start]);
        let blank = |letter| if letter == '\n' { '\n' } else { ' ' };
        kept.extend(text[description.clone()].chars().map(blank));
        at = description.end;
    }
    kept.push_str(&text[at..]);
    Cow::Owned(kept)
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
            ("\"\\", 1, 0),
        ] {
            assert_eq!(count(text), (tokens, nesting), "{text}");
        }
    }

    #[test]
    fn descriptions_are_left_out_and_values_are_kept() {
        for (text, kept) in [
            ("\"d\" query { a }", "    query { a }"),
            (
                "\"\"\"d\nd\"\"\" fragment F on A { a }",
                "    \n     fragment F on A { a }",
            ),
            ("query (\"d\" $a: A) { a }", "query (    $a: A) { a }"),
            (
                "query ($a: A = 1 \"é\" $b: B) { a }",
                "query ($a: A = 1     $b: B) { a }",
            ),
            (
                "query ($a: A = \"v\" $b: B) { a }",
                "query ($a: A = \"v\" $b: B) { a }",
            ),
            ("{ a(b: \"query\") }", "{ a(b: \"query\") }"),
            ("\"d\" { a }", "\"d\" { a }"),
        ] {
            assert_eq!(without_descriptions(text), kept, "{text}");
        }
    }
}
