//! Folded text, and the bounds of texts that filters take.

use std::net::IpAddr;

use sea_orm::sea_query::{Expr, ExprTrait, LikeExpr};
use unicode_normalization::UnicodeNormalization;

use crate::error::Error;

/// Most characters of a filter's text.
const MAX_FILTER: usize = 100;

/// The form in which names and e-mail addresses are compared and searched: trimmed, NFKC, lower case. Some capitals are
/// letters and accents that are one letter when small, and one letter has another small form at the end of a word.
pub fn fold(text: &str) -> String {
    let folded: String = text
        .nfkc()
        .flat_map(char::to_lowercase)
        .map(|letter| if letter == 'ς' { 'σ' } else { letter })
        .nfkc()
        .collect();
    folded.trim().to_owned()
}

/// Most characters of an e-mail address.
pub(crate) const MAX_EMAIL: usize = 254;

/// The form in which an e-mail address names its account; `None` for what cannot be one. What is much longer is not even
/// folded.
pub(crate) fn email_key(email: &str) -> Option<String> {
    let email = email.trim();
    if email.chars().nth(4 * MAX_EMAIL).is_some() {
        return None;
    }
    Some(fold(email)).filter(|key| key.chars().nth(MAX_EMAIL).is_none() && !key.contains('\0'))
}

/// Addresses that one party usually has at its disposal: an IPv4 address, or the first 64 bits of an IPv6 address.
pub(crate) fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{:016x}", address.to_bits() >> 64),
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or_default();
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// A filter's text, checked.
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

/// `column`, a folded one, contains what `search` looks for.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_take_for_the_same_fold_alike() {
        assert_eq!(fold("  Ada Lovelace\t"), "ada lovelace");
        assert_eq!(fold("ﬁne"), "fine");
        assert_eq!(fold("E\u{301}LAN"), fold("élan"));
        assert_eq!(fold("ＡＤＡ"), "ada");
        assert_eq!(fold("J\u{30c}"), fold("\u{1f0}"));
        assert_eq!(fold("ΝΊΚΟΣ"), fold("νίκος"));
    }

    #[test]
    fn a_network_is_an_address_or_a_prefix_of_64_bits() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
