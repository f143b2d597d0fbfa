//! The tokens of a document, and the limits on them.

use async_graphql::Pos;

use crate::{
    error::{Code, Error},
    limits::Limits,
};

/// Maximum nesting of brackets, in selections and values together; bounds the recursion of the parser.
pub(crate) const MAX_NESTING: usize = 100;

/// A lexical token, as offsets in the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A syntax error.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) message: String,
    /// The offset of the first invalid character.
    pub(crate) at: usize,
}

impl SyntaxError {
    pub(crate) fn new(at: usize, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { message, at }
    }

    /// The line and the column in the text.
    pub(crate) fn place(&self, text: &str) -> Pos {
        let before = &text[..self.at.min(text.len())];
        let ends = before.replace("\r\n", "\n").replace('\r', "\n");
        let line = ends.rsplit('\n').next().unwrap_or_default();
        Pos {
            line: ends.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }
}

/// Splits a text into the [tokens](https://spec.graphql.org/September2025/#sec-Language.Source-Text.Lexical-Tokens) of
/// the specification.
struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, is: fn(char) -> bool) -> usize {
        let rest = self.rest();
        let skipped = rest.find(|letter| !is(letter)).unwrap_or(rest.len());
        self.at += skipped;
        skipped
    }

    fn error(&self, message: &str) -> SyntaxError {
        SyntaxError::new(self.at, message)
    }

    fn token(&mut self) -> Result<Option<Token>, SyntaxError> {
        loop {
            self.skip(|letter| matches!(letter, ' ' | '\t' | '\n' | '\r' | ',' | '\u{FEFF}'));
            if self.peek(0) != Some(b'#') {
                break;
            }
            self.skip(|letter| !matches!(letter, '\n' | '\r'));
        }
        let start = self.at;
        let Some(first) = self.peek(0) else {
            return Ok(None);
        };
        match first {
            b'!' | b'$' | b'&' | b'(' | b')' | b':' | b'=' | b'@' | b'[' | b']' | b'{' | b'|'
            | b'}' => self.at += 1,
            b'.' if self.rest().starts_with("...") => self.at += 3,
            b'"' if self.rest().starts_with("\"\"\"") => self.block()?,
            b'"' => self.string()?,
            b'-' | b'0'..=b'9' => self.number()?,
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                self.skip(|letter| letter == '_' || letter.is_ascii_alphanumeric());
            }
            _ => {
                let letter = self.rest().chars().next().unwrap_or_default();
                let message = match letter {
                    ' '..='~' => format!("unexpected character `{letter}`"),
                    _ => format!("unexpected character U+{:04X}", u32::from(letter)),
                };
                return Err(self.error(&message));
            }
        }
        let end = self.at;
        Ok(Some(Token { start, end }))
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let is_digit = |letter: char| letter.is_ascii_digit();
        self.skip(|letter| letter == '-');
        let has_zero = self.peek(0) == Some(b'0');
        let digits = self.skip(is_digit);
        let sign = self.text.as_bytes()[..self.at - digits].ends_with(b"--");
        if digits == 0 || sign || has_zero && digits > 1 {
            return Err(self.error("invalid number"));
        }
        if self.peek(0) == Some(b'.') {
            self.at += 1;
            if self.skip(is_digit) == 0 {
                return Err(self.error("invalid number"));
            }
        }
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(0), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.skip(is_digit) == 0 {
                return Err(self.error("invalid number"));
            }
        }
        match self.peek(0) {
            Some(b'.' | b'_' | b'a'..=b'z' | b'A'..=b'Z') => Err(self.error("invalid number")),
            _ => Ok(()),
        }
    }

    fn block(&mut self) -> Result<(), SyntaxError> {
        self.at += 3;
        loop {
            self.skip(|letter| !matches!(letter, '"' | '\\'));
            if self.rest().starts_with("\\\"\"\"") {
                self.at += 4;
            } else if self.rest().starts_with("\"\"\"") {
                self.at += 3;
                return Ok(());
            } else if self.rest().is_empty() {
                return Err(self.error("unterminated string"));
            } else {
                self.at += 1;
            }
        }
    }

    fn string(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        loop {
            self.skip(|letter| !matches!(letter, '"' | '\\' | '\n' | '\r'));
            match self.peek(0) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                _ => return Err(self.error("unterminated string")),
            }
        }
    }

    /// An escape sequence, or two of them for a surrogate pair.
    fn escape(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        let invalid = || SyntaxError::new(start, "invalid escape sequence");
        let letter = self.peek(1).ok_or_else(invalid)?;
        if letter != b'u' {
            self.at += 2;
            let is_known = matches!(
                letter,
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't'
            );
            return is_known.then_some(()).ok_or_else(invalid);
        }
        if self.peek(2) == Some(b'{') {
            self.at += 3;
            let digits = self.at..self.at + self.skip(|letter| letter.is_ascii_hexdigit());
            let ends = self.peek(0) == Some(b'}');
            self.at += 1;
            let value = u32::from_str_radix(&self.text[digits], 16).map_err(|_| invalid())?;
            return (ends && char::from_u32(value).is_some())
                .then_some(())
                .ok_or_else(invalid);
        }
        let mut units = vec![self.unit().ok_or_else(invalid)?];
        if matches!(units[0], 0xD800..=0xDBFF) {
            units.push(self.unit().ok_or_else(invalid)?);
        }
        let mut decoded = char::decode_utf16(units);
        decoded
            .all(|letter| letter.is_ok())
            .then_some(())
            .ok_or_else(invalid)
    }

    /// The code unit of `\uXXXX`.
    fn unit(&mut self) -> Option<u16> {
        let digits = self.rest().strip_prefix("\\u")?.get(..4)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let unit = u16::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
        self.at += 6;
        Some(unit)
    }
}

/// Tokenizes a text up to the first invalid token.
pub(crate) fn divide(text: &str) -> (Vec<Token>, Result<(), SyntaxError>) {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        match lexer.token() {
            Ok(Some(token)) => tokens.push(token),
            Ok(None) => return (tokens, Ok(())),
            Err(error) => return (tokens, Err(error)),
        }
    }
}

/// Refuses a document that would be too expensive to parse.
///
/// # Errors
/// `QUERY_TOO_COMPLEX`.
pub(crate) fn check(text: &str, tokens: &[Token], limits: &Limits) -> Result<(), Error> {
    let shorter = "Send a shorter document.";
    let counted = tokens.len() as u64;
    if counted > limits.tokens {
        return Err(too_complex("tokens", limits.tokens, counted, shorter));
    }
    let nesting = nesting(text, tokens);
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

/// The deepest nesting of brackets.
fn nesting(text: &str, tokens: &[Token]) -> usize {
    let (mut nesting, mut deepest) = (0_usize, 0);
    for token in tokens {
        match text.as_bytes()[token.start] {
            b'{' | b'[' | b'(' => {
                nesting += 1;
                deepest = deepest.max(nesting);
            }
            b'}' | b']' | b')' => nesting = nesting.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// `QUERY_TOO_COMPLEX`, with the limit and the actual number.
pub(crate) fn too_complex(what: &str, limit: u64, actual: u64, advice: &str) -> Error {
    Error::new(
        Code::QueryTooComplex,
        format!("The document has {actual} {what}; the limit is {limit}. {advice}"),
    )
    .with("limit", limit)
    .with("actual", actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_follow_the_specification() {
        for (text, count, deepest) in [
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
            ("......", 2, 0),
            ("\u{FEFF}a\u{FEFF}b", 2, 0),
            ("0 -0 1.0 0e1 -12E+3", 5, 0),
            (
                r#""\u00e9 \u{1F600} \u{000000041} \uD83D\uDE00 \" \\ \/ \b\f\n\r\t" "" """ " \ """"#,
                3,
                0,
            ),
        ] {
            let (tokens, end) = divide(text);
            end.expect("tokens");
            assert_eq!(
                (tokens.len(), nesting(text, &tokens)),
                (count, deepest),
                "{text}"
            );
        }
    }

    #[test]
    fn text_that_is_not_a_token_is_rejected() {
        for (text, message, at) in [
            ("a.b", "unexpected character `.`", 1),
            ("..", "unexpected character `.`", 0),
            ("é", "unexpected character U+00E9", 0),
            ("a %", "unexpected character `%`", 2),
            ("\0", "unexpected character U+0000", 0),
            ("\"a", "unterminated string", 2),
            ("\"a\nb\"", "unterminated string", 2),
            ("\"\"\"a\"\"", "unterminated string", 6),
            ("\"\\", "invalid escape sequence", 1),
            (r#""\x""#, "invalid escape sequence", 1),
            (r#""\u{}""#, "invalid escape sequence", 1),
            (r#""\u{110000}""#, "invalid escape sequence", 1),
            (r#""\u{D800}""#, "invalid escape sequence", 1),
            (r#""\u{41""#, "invalid escape sequence", 1),
            (r#""\u+041""#, "invalid escape sequence", 1),
            (r#""\uD83D""#, "invalid escape sequence", 1),
            (r#""\uD83D\u0041""#, "invalid escape sequence", 1),
            (r#""\uDE00""#, "invalid escape sequence", 1),
            ("01", "invalid number", 2),
            ("-", "invalid number", 1),
            ("--1", "invalid number", 3),
            ("1.", "invalid number", 2),
            ("1.5.6", "invalid number", 3),
            ("1e", "invalid number", 2),
            ("1a", "invalid number", 1),
        ] {
            let error = divide(text).1.expect_err("is refused");
            assert_eq!((error.message.as_str(), error.at), (message, at), "{text}");
        }
    }

    #[test]
    fn error_locations_count_every_line_terminator_once() {
        let error = SyntaxError::new("a\r\nb\rc\né".len(), "");
        let place = error.place("a\r\nb\rc\né %");
        assert_eq!((place.line, place.column), (4, 2));
    }
}
