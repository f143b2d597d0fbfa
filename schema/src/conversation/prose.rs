//! Removes code and web addresses from a text: participant names in them are not mentions.
//!
//! Code is recognised as in Markdown: fenced blocks, and spans between backtick runs of equal length. One pass, no
//! nesting.

use std::ops::Range;

/// Replaces a removed part: neither a letter, nor white space, nor punctuation.
pub(crate) const PLACEHOLDER: char = '\u{fffc}';

/// The text with each piece of code and each web address replaced by one character.
pub(crate) fn strip_code_and_urls(text: &str) -> String {
    let mut stripped = String::with_capacity(text.len());
    let mut end = 0;
    for Range { start, end: after } in code_ranges(text) {
        push_without_urls(&text[end..start], &mut stripped);
        stripped.push(PLACEHOLDER);
        end = after;
    }
    push_without_urls(&text[end..], &mut stripped);
    stripped
}

/// Appends a text with each web address, from its scheme to the next white space, replaced by one character.
fn push_without_urls(text: &str, stripped: &mut String) {
    for word in text.split_inclusive(char::is_whitespace) {
        let Some(at) = word.find("://") else {
            stripped.push_str(word);
            continue;
        };
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let before = word[..at].trim_end_matches(is_scheme);
        let space = word.trim_end_matches(char::is_whitespace).len();
        stripped.push_str(before);
        stripped.push(PLACEHOLDER);
        stripped.push_str(&word[space..]);
    }
}

/// The ranges of fenced blocks and code spans, in order.
fn code_ranges(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut paragraph = 0..0;
    let mut fence: Option<(usize, &str)> = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = start + line.len();
        let content = content(line);
        match fence {
            Some((opened, opening)) => {
                let closing = fence_run(content);
                if closing.starts_with(opening) && content[closing.len()..].trim().is_empty() {
                    ranges.push(opened..start + line.trim_end_matches('\n').len());
                    fence = None;
                }
                paragraph = end..end;
            }
            None if content.trim().is_empty() => {
                push_code_spans(text, &paragraph, &mut ranges);
                paragraph = end..end;
            }
            None => match opening_fence(content) {
                Some(opening) => {
                    push_code_spans(text, &paragraph, &mut ranges);
                    fence = Some((start, opening));
                }
                None => paragraph.end = end,
            },
        }
        start = end;
    }
    match fence {
        Some((opened, _)) => ranges.push(opened..text.len()),
        None => push_code_spans(text, &paragraph, &mut ranges),
    }
    ranges
}

/// The line without its indentation and without quotation and list markers.
fn content(line: &str) -> &str {
    let mut rest = line.trim_start();
    loop {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let inner = match rest.len() - number.len() {
            0 => rest.strip_prefix('>').or_else(|| {
                rest.strip_prefix("- ")
                    .or_else(|| rest.strip_prefix("* "))
                    .or_else(|| rest.strip_prefix("+ "))
            }),
            _ => number
                .strip_prefix(". ")
                .or_else(|| number.strip_prefix(") ")),
        };
        match inner {
            Some(inner) => rest = inner.trim_start(),
            None => return rest,
        }
    }
}

/// The run of fence characters at the start of a line.
fn fence_run(line: &str) -> &str {
    let fence = line.chars().next().filter(|c| matches!(c, '`' | '~'));
    let rest = fence.map_or(line, |fence| line.trim_start_matches(fence));
    &line[..line.len() - rest.len()]
}

/// The opening fence of the line, if it has one.
fn opening_fence(line: &str) -> Option<&str> {
    let fence = fence_run(line);
    let is_span = fence.starts_with('`') && line[fence.len()..].contains('`');
    (fence.len() >= 3 && !is_span).then_some(fence)
}

/// Adds the code spans of a paragraph.
fn push_code_spans(text: &str, paragraph: &Range<usize>, ranges: &mut Vec<Range<usize>>) {
    let words = &text[paragraph.clone()];
    // Backtick runs: the offset, the length, and whether the run may open a span.
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    let mut is_escaped = false;
    for (at, letter) in words.char_indices() {
        match runs.last_mut() {
            Some((start, length, _)) if letter == '`' && *start + *length == at => *length += 1,
            _ if letter == '`' => runs.push((at, 1, !is_escaped)),
            _ => {}
        }
        is_escaped = letter == '\\' && !is_escaped;
    }
    let mut next = 0;
    while let Some(&(start, length, opens)) = runs.get(next) {
        // The first backtick of an escaped run is literal; the others may open a span.
        let (start, length) = if opens {
            (start, length)
        } else {
            (start + 1, length - 1)
        };
        let closing = runs[next + 1..]
            .iter()
            .position(|(_, other, _)| *other == length);
        next += 1;
        if let Some(closing) = closing.filter(|_| length > 0) {
            let (end, length, _) = runs[next + closing];
            ranges.push(paragraph.start + start..paragraph.start + end + length);
            next += closing + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_urls_are_replaced_by_a_placeholder() {
        for (text, expected) in [
            ("", ""),
            ("plain ` text", "plain ` text"),
            ("a `b` c", "a _ c"),
            ("a `` b ` c `` d", "a _ d"),
            ("`a ``b`` c", "`a _ c"),
            (r"\`a\`", r"\`a\`"),
            (r"a `b\` c", r"a _ c"),
            (r"\``a` b", r"\`_ b"),
            ("`a\nb` c", "_ c"),
            ("`a\n\nb` c", "`a\n\nb` c"),
            ("a\n```\nb\n```\nc", "a\n_\nc"),
            ("```rust\nb\n\nc\n````\nd", "_\nd"),
            ("~~~\nb\n```\nc\n~~~\nd", "_\nd"),
            ("  ```\nb\n  ```", "_"),
            ("> ```\n> b\n> ```\nc", "_\nc"),
            ("- ```\n  b\n  ```\nc", "_\nc"),
            ("1. ~~~\n   b\n   ~~~\nc", "_\nc"),
            ("```\nb\n\nc", "_"),
            ("```a``` b", "_ b"),
            ("~~a~~ b", "~~a~~ b"),
            ("see https://host/x?y, z", "see _ z"),
            ("(git+ssh://a@host/b) c\td", "(_ c\td"),
            ("[a](https://host/b)\nc", "[a](_\nc"),
            ("a://b://c d", "_ d"),
        ] {
            assert_eq!(
                strip_code_and_urls(text),
                expected.replace('_', "\u{fffc}"),
                "{text}"
            );
        }
    }
}
