//! Folded text, and the limits of filter texts.

use std::net::IpAddr;

use icu_casemap::{CaseMapper, CaseMapperBorrowed};
use icu_properties::{
    CodePointMapData, CodePointMapDataBorrowed, CodePointSetData, CodePointSetDataBorrowed,
    props::{DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup},
};
use unicode_normalization::UnicodeNormalization;

/// The form in which names and e-mail addresses are compared and searched: Unicode's compatibility caseless form (NFKC,
/// full case folding), without invisible characters, trimmed. Folding is idempotent.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.trim().to_ascii_lowercase();
    }
    // Normalizing can create letters to fold, and folding can create sequences to normalize. Two rounds are sufficient
    // (Unicode, D146).
    let once = case_fold(text.nfd());
    let twice = case_fold(once.nfkc());
    let folded: String = twice.nfkc().collect();
    folded.trim().to_owned()
}

fn case_fold(letters: impl Iterator<Item = char>) -> String {
    const MAPPER: CaseMapperBorrowed = CaseMapper::new();
    let visible: String = letters.filter(|letter| !is_invisible(*letter)).collect();
    MAPPER.fold_string(&visible).into_owned()
}

const CATEGORY: CodePointMapDataBorrowed<GeneralCategory> = CodePointMapData::new();

/// Whether a character other than white space is invisible: joiners, variation selectors, fillers, directional marks,
/// tags, and other format characters.
pub(crate) fn is_invisible(letter: char) -> bool {
    const IGNORABLE: CodePointSetDataBorrowed =
        CodePointSetData::new::<DefaultIgnorableCodePoint>();
    // Letters and symbols by category that have no glyph: the empty Braille cell, the null notehead, two Egyptian
    // blanks, and the object replacement character.
    const EMPTY: [char; 5] = [
        '\u{2800}',
        '\u{1d159}',
        '\u{13441}',
        '\u{13442}',
        '\u{fffc}',
    ];
    IGNORABLE.contains(letter)
        || CATEGORY.get(letter) == GeneralCategory::Format
        || EMPTY.contains(&letter)
}

/// Whether a text has no visible characters: no letter, digit, punctuation mark or symbol.
pub(crate) fn is_blank(text: &str) -> bool {
    const BASES: GeneralCategoryGroup = GeneralCategoryGroup::Letter
        .union(GeneralCategoryGroup::Number)
        .union(GeneralCategoryGroup::Punctuation)
        .union(GeneralCategoryGroup::Symbol);
    !text
        .chars()
        .any(|letter| BASES.contains(CATEGORY.get(letter)) && !is_invisible(letter))
}

/// Whether a text is one line in which no character affects others: no control characters but tabs, no line breaks, no
/// characters that set the writing direction of the following text, no hidden tags, no noncharacters.
pub(crate) fn is_line(text: &str) -> bool {
    let mut before = None;
    text.chars().all(|letter| {
        let before = before.replace(letter);
        match letter {
            '\t' => true,
            // Line and paragraph separators.
            '\u{2028}' | '\u{2029}'
            // Embeddings, overrides and isolates. Directional marks set no scope and are part of names.
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Deprecated format characters, annotations, the language tag.
            | '\u{206a}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' | '\u{e0001}'
            // Noncharacters.
            | '\u{fdd0}'..='\u{fdef}' => false,
            // Tags encode the region of a flag, and are hidden text anywhere else.
            '\u{e0020}'..='\u{e007f}' => matches!(before, Some('\u{1f3f4}' | '\u{e0020}'..='\u{e007f}')),
            _ => !letter.is_control() && u32::from(letter) & 0xfffe != 0xfffe,
        }
    })
}

/// Maximum length of an e-mail address, in characters.
pub(crate) const MAX_EMAIL: usize = 254;

/// The form in which an e-mail address identifies its account; `None` for an invalid address. A much longer text is not
/// folded.
pub(crate) fn email_key(email: &str) -> Option<String> {
    let email = email.trim();
    if email.chars().nth(4 * MAX_EMAIL).is_some() {
        return None;
    }
    Some(fold(email)).filter(|key| key.chars().nth(MAX_EMAIL).is_none() && !key.contains('\0'))
}

/// The keys under which the account of an e-mail address may be stored, the preferred one last. If the addresses of two
/// accounts became equal when case folding became complete, one of them still has the key of the former folding.
pub fn account_keys(email: &str) -> [String; 2] {
    let former: String = email
        .nfkc()
        .flat_map(char::to_lowercase)
        .map(|letter| if letter == 'ς' { 'σ' } else { letter })
        .nfkc()
        .collect();
    [fold(email), former.trim().to_owned()]
}

/// The network of an address, which usually belongs to one party: an IPv4 address, or the first 64 bits of an IPv6
/// address.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visually_equal_names_fold_to_the_same_key() {
        assert_eq!(fold("  Ada Lovelace\t"), "ada lovelace");
        assert_eq!(fold("ﬁne"), "fine");
        assert_eq!(fold("E\u{301}LAN"), fold("élan"));
        assert_eq!(fold("ＡＤＡ"), "ada");
        assert_eq!(fold("J\u{30c}"), fold("\u{1f0}"));
        assert_eq!(fold("ΝΊΚΟΣ"), fold("νίκος"));
        for same in [
            &["STRASSE", "Straße", "STRAẞE", "strasse", "ſtraſſe"][..],
            &["ﬃn", "FFIN", "ffin"],
            &["\u{149}", "\u{2bc}N"],
            &["ᾳ", "ΑΙ", "αι"],
            &["եւ", "և", "ԵՒ"],
            &["Ꭰ", "ꭰ"],
            &["İ", "i\u{307}"],
            &[
                "Ada",
                "A\u{200b}d\u{2060}a\u{ad}",
                "\u{202e}Ada\u{feff}",
                "Ada\u{fe0f}",
                "Ada\u{2800}",
                "Ada\u{fffc}",
                "Ada\u{13430}",
            ],
            &["e\u{34f}\u{301}", "É"],
            &["❤", "❤\u{fe0f}"],
        ] {
            for other in same {
                assert_eq!(fold(other), fold(same[0]), "{other}");
            }
        }
        assert_ne!(fold("I"), fold("ı"));
        assert_ne!(fold("Ada"), fold("Adá"));
    }

    #[test]
    fn folding_is_idempotent() {
        let holds = |text: &str| {
            let folded = fold(text);
            assert_eq!(fold(&folded), folded, "{}", text.escape_unicode());
        };
        // The planes without assigned letters together, the others letter by letter.
        let (few, many): (Vec<char>, Vec<char>) = ('\0'..=char::MAX)
            .partition(|letter| matches!(u32::from(*letter), 0..0x4_0000 | 0xe_0000..0xe_1000));
        for letters in many.chunks(4096) {
            holds(&letters.iter().collect::<String>());
        }
        for letter in few {
            let text = String::from(letter);
            holds(&text);
            // A letter that folding changes is also tested in combination with others.
            if fold(&text) != text {
                for (before, after) in [
                    ("", "\u{301}"),
                    ("", "\u{345}"),
                    ("\u{1f80}", ""),
                    ("x", " "),
                ] {
                    holds(&format!("{before}{text}{after}"));
                }
            }
        }
    }

    #[test]
    fn folding_ignores_case() {
        // The capital of the dotless letter equals that of the dotted one.
        for letter in ('\0'..='\u{1ffff}').filter(|letter| *letter != 'ı') {
            let small: String = letter.to_lowercase().collect();
            let capital: String = letter.to_uppercase().collect();
            let text = String::from(letter);
            for other in [small, capital].iter().filter(|other| **other != text) {
                assert_eq!(fold(other), fold(&text), "{}", letter.escape_unicode());
            }
        }
    }

    #[test]
    fn text_without_visible_characters_is_blank() {
        for text in [
            "",
            " ",
            "\u{200b}",
            "\u{2060}",
            "\u{ad}",
            "\u{3164}",
            "\u{2800}",
            "\u{202e}",
            "\u{115f}\u{1160}",
            "\u{ffa0}",
            "\u{fe0f}",
            "\u{200d}\u{200c}",
            "\u{301}",
            "\u{180e}",
            "\u{e0041}",
            "\u{feff}",
            "\u{34f}",
            "\u{fffc}",
            "\u{1d159}",
            "\u{e000}",
            "\u{ffff}",
            "\u{2028}",
            "\u{a0}\u{3000}",
            "\u{17b4}",
            "\u{13441}",
            "\u{fff9}",
        ] {
            assert!(is_blank(text), "{}", text.escape_unicode());
        }
        for text in [
            "a",
            "1",
            "-",
            "€",
            "👩\u{200d}💻",
            "می\u{200c}خواهم",
            "क्\u{200d}ष",
            "字",
            "⠁",
            "🏴\u{e0067}\u{e007f}",
        ] {
            assert!(!is_blank(text), "{text}");
            assert!(is_line(text), "{text}");
        }
    }

    #[test]
    fn control_and_bidi_characters_are_not_allowed_in_lines() {
        for text in [
            "a\nb",
            "a\0b",
            "a\u{7f}",
            "a\u{85}b",
            "a\u{2028}b",
            "a\u{2029}b",
            "a\u{202e}b",
            "a\u{202a}b\u{202c}",
            "a\u{2066}b\u{2069}",
            "a\u{206a}b",
            "a\u{fff9}b\u{fffb}",
            "a\u{e0001}",
            "a\u{e0068}\u{e0069}",
            "\u{e0067}",
            "a\u{ffff}",
            "a\u{1fffe}",
            "a\u{fdd0}",
        ] {
            assert!(!is_line(text), "{}", text.escape_unicode());
        }
        for text in [
            "a\tb",
            "אב\u{200f}!",
            "a\u{200b}b",
            "ไทย\u{200b}ไทย",
            "🏴\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}",
        ] {
            assert!(is_line(text), "{}", text.escape_unicode());
        }
    }

    #[test]
    fn accounts_are_found_by_their_former_key() {
        assert_eq!(account_keys("Ada@Example.com"), ["ada@example.com"; 2]);
        let [key, former] = account_keys("Stra\u{df}e@example.com");
        assert_eq!(
            (&*key, &*former),
            ("strasse@example.com", "straße@example.com")
        );
    }

    #[test]
    fn an_ipv4_network_is_an_address_and_an_ipv6_network_a_64_prefix() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
