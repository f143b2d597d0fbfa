//! The [grammar](https://spec.graphql.org/September2025/#sec-Appendix-Grammar-Summary) of executable documents. The
//! compiler's own parser accepts some texts that are not GraphQL, and refuses some that are.

use crate::operation::source::{SyntaxError, Token};

/// The first words of schema definitions. The compiler reports that an operation cannot contain them.
const SCHEMA_DEFINITIONS: [&str; 9] = [
    "schema",
    "scalar",
    "type",
    "interface",
    "union",
    "enum",
    "input",
    "directive",
    "extend",
];

type Parsed = Result<(), SyntaxError>;

struct Grammar<'a> {
    text: &'a str,
    tokens: &'a [Token],
    at: usize,
    /// The tokens that are descriptions.
    descriptions: Vec<usize>,
}

/// Checks that the tokens are an executable document. Returns its text in the form that the compiler's parser accepts:
/// with spaces instead of commas, comments, byte order marks and
/// [descriptions](https://spec.graphql.org/September2025/#sec-Descriptions).
///
/// # Errors
/// The document is not well formed.
pub(crate) fn check(text: &str, tokens: &[Token]) -> Result<String, SyntaxError> {
    let mut grammar = Grammar {
        text,
        tokens,
        at: 0,
        descriptions: Vec::new(),
    };
    grammar.document()?;
    let bytes = text.as_bytes();
    let blank = |(at, byte): (usize, &u8)| match byte {
        b'\n' => b'\n',
        b'\r' if bytes.get(at + 1) != Some(&b'\n') => b'\n',
        _ => b' ',
    };
    let mut plain: Vec<u8> = bytes.iter().enumerate().map(blank).collect();
    for (place, token) in tokens.iter().enumerate() {
        if grammar.descriptions.binary_search(&place).is_err() {
            plain[token.start..token.end].copy_from_slice(&bytes[token.start..token.end]);
        }
    }
    String::from_utf8(plain).map_err(|_| SyntaxError::new(0, "invalid text"))
}

impl Grammar<'_> {
    /// The text of the token; empty at the end of the document.
    fn peek(&self) -> &str {
        let token = self.tokens.get(self.at);
        token.map_or("", |token| &self.text[token.start..token.end])
    }

    fn expected(&self, what: &str) -> SyntaxError {
        let at = self.tokens.get(self.at);
        let at = at.map_or(self.text.len(), |token| token.start);
        let found = match self.peek() {
            "" => "the end of the document".to_owned(),
            string if string.starts_with('"') => "a string".to_owned(),
            token => format!("`{token}`"),
        };
        SyntaxError::new(at, format!("expected {what}, found {found}"))
    }

    fn take(&mut self, token: &str) -> bool {
        let is_next = self.peek() == token;
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, token: &str) -> Parsed {
        if self.take(token) {
            return Ok(());
        }
        Err(self.expected(&format!("`{token}`")))
    }

    fn is_name(&self) -> bool {
        self.peek()
            .starts_with(|letter: char| letter == '_' || letter.is_ascii_alphabetic())
    }

    fn name(&mut self) -> Parsed {
        if !self.is_name() {
            return Err(self.expected("a name"));
        }
        self.at += 1;
        Ok(())
    }

    fn description(&mut self) -> bool {
        let is_next = self.peek().starts_with('"');
        if is_next {
            self.descriptions.push(self.at);
            self.at += 1;
        }
        is_next
    }

    /// One or more items between two brackets.
    fn many(
        &mut self,
        open: &str,
        mut one: impl FnMut(&mut Self) -> Parsed,
        close: &str,
    ) -> Parsed {
        self.expect(open)?;
        one(self)?;
        while !self.take(close) {
            one(self)?;
        }
        Ok(())
    }

    fn document(&mut self) -> Parsed {
        loop {
            let is_described = self.description();
            match self.peek() {
                "query" | "mutation" | "subscription" => self.operation()?,
                "fragment" => self.fragment()?,
                "{" if !is_described => self.selections()?,
                keyword if SCHEMA_DEFINITIONS.contains(&keyword) => {
                    self.descriptions.clear();
                    return Ok(());
                }
                _ => return Err(self.expected("an operation or a fragment")),
            }
            if self.at == self.tokens.len() {
                return Ok(());
            }
        }
    }

    fn operation(&mut self) -> Parsed {
        self.at += 1;
        if self.is_name() {
            self.at += 1;
        }
        if self.peek() == "(" {
            self.many("(", Self::variable_definition, ")")?;
        }
        self.directives(false)?;
        self.selections()
    }

    fn variable_definition(&mut self) -> Parsed {
        self.description();
        self.expect("$")?;
        self.name()?;
        self.expect(":")?;
        self.ty()?;
        if self.take("=") {
            self.value(true)?;
        }
        self.directives(true)
    }

    fn ty(&mut self) -> Parsed {
        if self.take("[") {
            self.ty()?;
            self.expect("]")?;
        } else if self.is_name() {
            self.at += 1;
        } else {
            return Err(self.expected("a type"));
        }
        self.take("!");
        Ok(())
    }

    fn fragment(&mut self) -> Parsed {
        self.at += 1;
        if self.peek() == "on" {
            return Err(self.expected("the name of a fragment"));
        }
        self.name()?;
        self.expect("on")?;
        self.name()?;
        self.directives(false)?;
        self.selections()
    }

    fn selections(&mut self) -> Parsed {
        self.many("{", Self::selection, "}")
    }

    fn selection(&mut self) -> Parsed {
        if self.take("...") {
            if self.is_name() && self.peek() != "on" {
                self.at += 1;
                return self.directives(false);
            }
            if self.take("on") {
                self.name()?;
            }
            self.directives(false)?;
            return self.selections();
        }
        if !self.is_name() {
            return Err(self.expected("a field or a fragment"));
        }
        self.at += 1;
        if self.take(":") {
            self.name()?;
        }
        self.arguments(false)?;
        self.directives(false)?;
        if self.peek() == "{" {
            self.selections()?;
        }
        Ok(())
    }

    fn arguments(&mut self, is_constant: bool) -> Parsed {
        if self.peek() != "(" {
            return Ok(());
        }
        self.many("(", |grammar| grammar.member(is_constant), ")")
    }

    /// A name and a value.
    fn member(&mut self, is_constant: bool) -> Parsed {
        self.name()?;
        self.expect(":")?;
        self.value(is_constant)
    }

    fn directives(&mut self, is_constant: bool) -> Parsed {
        while self.take("@") {
            self.name()?;
            self.arguments(is_constant)?;
        }
        Ok(())
    }

    fn value(&mut self, is_constant: bool) -> Parsed {
        match self.peek().as_bytes().first() {
            Some(b'$') if is_constant => Err(self.expected("a value without variables")),
            Some(b'$') => {
                self.at += 1;
                self.name()
            }
            Some(b'[') => {
                self.at += 1;
                while !self.take("]") {
                    self.value(is_constant)?;
                }
                Ok(())
            }
            Some(b'{') => {
                self.at += 1;
                while !self.take("}") {
                    self.member(is_constant)?;
                }
                Ok(())
            }
            Some(b'"' | b'-' | b'0'..=b'9' | b'_' | b'a'..=b'z' | b'A'..=b'Z') => {
                self.at += 1;
                Ok(())
            }
            _ => Err(self.expected("a value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::source::divide;

    fn check(text: &str) -> Result<String, SyntaxError> {
        let (tokens, end) = divide(text);
        end.expect("tokens");
        super::check(text, &tokens)
    }

    #[test]
    fn syntax_unknown_to_the_compiler_becomes_spaces() {
        for (text, plain) in [
            ("\"d\" query { a }", "    query { a }"),
            (
                "\"\"\"d\nd\"\"\" fragment F on A { a }",
                "    \n     fragment F on A { a }",
            ),
            ("query (\"d\" $a: A) { a }", "query (    $a: A) { a }"),
            (
                "query ($a: A = 1 \"é\" $b: B) { a }",
                "query ($a: A = 1      $b: B) { a }",
            ),
            (
                "query ($a: A = \"v\" $b: B) { a }",
                "query ($a: A = \"v\" $b: B) { a }",
            ),
            ("{ a(b: \"query\") }", "{ a(b: \"query\") }"),
            ("{k,:a...,on,A{b}}", "{k :a... on A{b}}"),
            ("{a#é\r#\n\r\nb}", "{a   \n \n \nb}"),
            (
                "\u{FEFF}{a(b: \",#\u{FEFF}\")}",
                "   {a(b: \",#\u{FEFF}\")}",
            ),
        ] {
            assert_eq!(check(text).expect("is well formed"), plain, "{text}");
        }
    }

    #[test]
    fn a_malformed_document_is_rejected() {
        for (text, message) in [
            (
                "",
                "expected an operation or a fragment, found the end of the document",
            ),
            (
                "\"d\" { a }",
                "expected an operation or a fragment, found `{`",
            ),
            (
                "quer { a }",
                "expected an operation or a fragment, found `quer`",
            ),
            ("{ a } }", "expected an operation or a fragment, found `}`"),
            (
                "{",
                "expected a field or a fragment, found the end of the document",
            ),
            ("{}", "expected a field or a fragment, found `}`"),
            ("{ a: }", "expected a name, found `}`"),
            ("{ a() }", "expected a name, found `)`"),
            ("{ a(b: false false) }", "expected `:`, found `)`"),
            ("{ a(b c: 1) }", "expected `:`, found `c`"),
            ("{ a(b:) }", "expected a value, found `)`"),
            ("{ a(b: $) }", "expected a name, found `)`"),
            ("{ a(b: [1) }", "expected a value, found `)`"),
            ("{ a(b: {c}) }", "expected `:`, found `}`"),
            ("{ a @ }", "expected a name, found `}`"),
            ("{ ... }", "expected `{`, found `}`"),
            ("{ ... on }", "expected a name, found `}`"),
            (
                "{ \"a\" }",
                "expected a field or a fragment, found a string",
            ),
            ("query () { a }", "expected `$`, found `)`"),
            ("query ($a) { a }", "expected `:`, found `)`"),
            ("query ($a:) { a }", "expected a type, found `)`"),
            ("query ($a: A!!) { a }", "expected `$`, found `!`"),
            ("query ($a: [A) { a }", "expected `]`, found `)`"),
            (
                "query ($a: A = $b) { a }",
                "expected a value without variables, found `$`",
            ),
            (
                "query ($a: A @b(c: [$d])) { a }",
                "expected a value without variables, found `$`",
            ),
            (
                "fragment on on A { a }",
                "expected the name of a fragment, found `on`",
            ),
            ("fragment F { a }", "expected `on`, found `{`"),
            ("fragment F($a: A) on A { a }", "expected `on`, found `(`"),
            (
                "subscription",
                "expected `{`, found the end of the document",
            ),
        ] {
            assert_eq!(
                check(text).expect_err("is refused").message,
                message,
                "{text}"
            );
        }
    }
}
