//! Turn-taking in conversations: mentions, the next speaker, and the end of a conversation. Uses neither the database
//! nor a clock, so every instance computes the same result.

use gathering_entity::conversation::{self, TurnStrategy};
use icu_properties::{CodePointMapData, CodePointMapDataBorrowed, props::Script};
use sea_orm::FromQueryResult;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{conversation::prose, text};

/// Markers with which an agent ends its conversation, folded.
const END_MARKERS: [&str; 4] = ["[done]", "[complete]", "[fin]", "[terminé]"];

/// The data of a participating agent that turn-taking needs.
#[derive(Clone, Debug, Deserialize, FromQueryResult)]
pub(crate) struct Participant {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    /// The model that the agent uses.
    pub(crate) model_id: Option<Uuid>,
}

/// The data of a conversation that turn-taking needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnState<'a> {
    pub(crate) conversation: Uuid,
    pub(crate) strategy: TurnStrategy,
    pub(crate) facilitator: Option<Uuid>,
    /// Sorted by position.
    pub(crate) participants: &'a [Participant],
    /// The number of turns taken.
    pub(crate) turns_taken: i32,
    /// The current position in the round; each turn advances it by one.
    pub(crate) next_index: i32,
}

/// The last message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastMessage<'a> {
    /// The agent who wrote it; `None` for a user.
    pub(crate) author: Option<Uuid>,
    /// The agent who took the last turn.
    pub(crate) last_turn: Option<Uuid>,
    /// The text, folded.
    pub(crate) text: &'a str,
    /// The mentioned participants, in order of appearance.
    pub(crate) mentions: &'a [Uuid],
}

/// An occurrence of a participant's name in a text.
struct NameMatch<'t> {
    participant: Uuid,
    before: &'t str,
    after: &'t str,
}

/// The participants that a folded text mentions with `@` and their name, without duplicates, in order of appearance.
/// Code, web addresses and e-mail addresses contain no mentions.
pub(crate) fn mentions(words: &str, participants: &[Participant]) -> Vec<Uuid> {
    let words = prose::strip_code_and_urls(words);
    let mut mentioned = Vec::new();
    for found in name_matches(&words, participants) {
        if found.is_mention() && !mentioned.contains(&found.participant) {
            mentioned.push(found.participant);
        }
    }
    mentioned
}

/// The first speaker, under every strategy: the facilitator, or else the first participant; `None` without
/// participants.
pub(crate) fn first_speaker(
    facilitator: Option<Uuid>,
    participants: &mut dyn Iterator<Item = Uuid>,
) -> Option<Uuid> {
    facilitator.or_else(|| participants.next())
}

/// Whether this folded text ends the conversation.
pub(crate) fn ends_conversation(words: &str) -> bool {
    END_MARKERS.iter().any(|marker| words.contains(marker))
}

impl<'a> TurnState<'a> {
    /// The turn state of a conversation row.
    pub(crate) fn of(row: &conversation::Model, participants: &'a [Participant]) -> Self {
        Self {
            conversation: row.id,
            strategy: row.turn_strategy,
            facilitator: row.facilitator_id,
            participants,
            turns_taken: row.turns_taken,
            next_index: row.next_index,
        }
    }

    /// The next speaker after the last message; `None` without participants.
    pub(crate) fn next_speaker(&self, message: &LastMessage<'_>) -> Option<Uuid> {
        let mut others = message
            .mentions
            .iter()
            .filter(|id| Some(**id) != message.author);
        match self.strategy {
            TurnStrategy::RoundRobin => self.next_in_round(message.last_turn),
            TurnStrategy::MentionBased => match others.next() {
                Some(id) => Some(*id),
                None => self.next_in_round(message.last_turn),
            },
            TurnStrategy::FreeForm => match others.next() {
                Some(id) => Some(*id),
                None => self.pseudo_random_participant(message.last_turn),
            },
            TurnStrategy::FacilitatorLed => {
                let takes_part = |id: &Uuid| self.participants.iter().any(|one| one.id == *id);
                match self.facilitator.filter(takes_part) {
                    Some(facilitator) if message.author == Some(facilitator) => Some(
                        self.called_by_facilitator(message.text, facilitator)
                            .unwrap_or(facilitator),
                    ),
                    Some(facilitator) => Some(facilitator),
                    None => self.next_in_round(message.last_turn),
                }
            }
        }
    }

    /// The next speaker in the round, other than the agent who took the last turn unless it is alone.
    fn next_in_round(&self, last: Option<Uuid>) -> Option<Uuid> {
        let all = self.participants;
        let next_index = usize::try_from(self.next_index).unwrap_or_default();
        let mut round = all.iter().cycle().skip(next_index % all.len().max(1));
        let first = round.next()?;
        if Some(first.id) == last {
            round.next().map(|next| next.id)
        } else {
            Some(first.id)
        }
    }

    /// A pseudo-random participant, other than the agent who took the last turn unless it is alone. The same turn
    /// always gives the same result.
    fn pseudo_random_participant(&self, last: Option<Uuid>) -> Option<Uuid> {
        if self.turns_taken == 0 {
            return self.participants.first().map(|first| first.id);
        }
        let all = || self.participants.iter().map(|one| one.id);
        let mut others: Vec<_> = all().filter(|id| Some(*id) != last).collect();
        if others.is_empty() {
            others.extend(all());
        }
        let hash = Sha256::new()
            .chain_update(self.conversation.as_bytes())
            .chain_update(self.turns_taken.to_be_bytes())
            .finalize();
        let hash = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let number = usize::try_from(hash).unwrap_or_default();
        others.get(number % others.len().max(1)).copied()
    }

    /// The participant that the facilitator calls upon.
    fn called_by_facilitator(&self, words: &str, facilitator: Uuid) -> Option<Uuid> {
        let words = prose::strip_code_and_urls(words);
        let mut matches = name_matches(&words, self.participants);
        let called = matches.find(|found| found.participant != facilitator && found.is_call())?;
        Some(called.participant)
    }
}

impl NameMatch<'_> {
    /// Whether the name follows an `@` that is not part of an address: at the start of the text, or after white space
    /// or an opening or separating mark, with optional quotation or emphasis marks in between.
    fn is_mention(&self) -> bool {
        let Some(before) = self.before.strip_suffix('@') else {
            return false;
        };
        // `@ada@example.social` is an address as a whole.
        let is_address = |mark: char| {
            let host = self.after.strip_prefix(mark);
            host.is_some_and(|host| host.starts_with(char::is_alphanumeric))
        };
        let before = before.trim_end_matches(['\'', '"', '*', '_', '~', '`']);
        let is_open = match before.chars().next_back() {
            None => true,
            Some(prose::PLACEHOLDER) => false,
            Some(letter) if letter.is_ascii() => {
                letter.is_ascii_whitespace() || "([{<>}])|,;:".contains(letter)
            }
            Some(letter) if is_unspaced(letter) => !is_address('.'),
            Some(letter) => !letter.is_alphanumeric(),
        };
        is_open && !is_address('@')
    }

    /// Whether it is a mention, or one of "ask N", "hear from N", "N should", "N can", "N,", "N?".
    fn is_call(&self) -> bool {
        if self.before.ends_with('@') {
            return self.is_mention();
        }
        if self.after.starts_with([',', '?']) {
            return true;
        }
        let mut next = self.after.split_whitespace();
        let follows = self.after.starts_with(char::is_whitespace)
            && next.next().is_some_and(|word| {
                matches!(
                    word.trim_end_matches(|letter: char| !letter.is_alphanumeric()),
                    "should" | "can"
                )
            });
        if follows {
            return true;
        }
        if !self.before.ends_with(char::is_whitespace) {
            return false;
        }
        let mut words = self.before.split_whitespace().rev();
        let mut before = || {
            let word = words.next()?;
            Some(word.trim_start_matches(|letter: char| !letter.is_alphanumeric()))
        };
        match before() {
            Some("ask") => true,
            Some("from") => before() == Some("hear"),
            _ => false,
        }
    }
}

/// Whether the letter is of a script without spaces between words, so that a mention may follow it directly.
fn is_unspaced(letter: char) -> bool {
    const SCRIPT: CodePointMapDataBorrowed<Script> = CodePointMapData::new();
    matches!(
        SCRIPT.get(letter),
        Script::Han
            | Script::Hiragana
            | Script::Katakana
            | Script::Khmer
            | Script::Lao
            | Script::Myanmar
            | Script::Thai
    )
}

/// The occurrences of participant names in a folded text, in order. The longest matching name wins; a name starts and
/// ends at word boundaries.
fn name_matches<'t>(
    words: &'t str,
    participants: &[Participant],
) -> impl Iterator<Item = NameMatch<'t>> + use<'t> {
    let mut names: Vec<_> = participants
        .iter()
        .map(|participant| (text::fold(&participant.name), participant.id))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    // Of participants with the same name the first one wins: the sort is stable.
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let mut is_within = false;
    // The end of the last name found.
    let mut taken = 0;
    words.char_indices().filter_map(move |(at, letter)| {
        let begins = !is_within && at >= taken;
        is_within = letter.is_alphanumeric();
        if !begins {
            return None;
        }
        let (before, rest) = words.split_at(at);
        let (participant, after) = names.iter().find_map(|(name, participant)| {
            let after = rest.strip_prefix(name.as_str())?;
            (!after.starts_with(char::is_alphanumeric)).then_some((*participant, after))
        })?;
        taken = words.len() - after.len();
        Some(NameMatch {
            participant,
            before,
            after,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::fold;

    const NAMES: [&str; 4] = ["Ada", "Ada Lovelace", "Élan", "Bob"];
    const ADA: Uuid = id(0);
    const LOVELACE: Uuid = id(1);
    const ELAN: Uuid = id(2);
    const BOB: Uuid = id(3);

    const fn id(n: u128) -> Uuid {
        Uuid::from_u128(n + 1)
    }

    fn participants(names: &[&str]) -> Vec<Participant> {
        let person = |(n, name): (u128, &&str)| Participant {
            id: id(n),
            name: (*name).to_owned(),
            model_id: None,
        };
        (0..).zip(names).map(person).collect()
    }

    fn mentioned(text: &str) -> Vec<Uuid> {
        mentions(&fold(text), &participants(&NAMES))
    }

    /// A conversation between all of them, with Ada as the facilitator.
    struct Fixture {
        participants: Vec<Participant>,
        strategy: TurnStrategy,
        turns_taken: i32,
        next_index: i32,
        last: Option<Uuid>,
    }

    impl Fixture {
        fn new(strategy: TurnStrategy) -> Self {
            Self {
                participants: participants(&NAMES),
                strategy,
                turns_taken: 0,
                next_index: 0,
                last: None,
            }
        }

        /// Adds a message, and returns the next speaker.
        fn post(&mut self, author: Option<Uuid>, text: &str) -> Uuid {
            let text = fold(text);
            if author.is_some() {
                self.turns_taken += 1;
                self.next_index =
                    (self.next_index + 1) % i32::try_from(self.participants.len()).expect("few");
                self.last = author;
            }
            let state = TurnState {
                conversation: Uuid::from_u128(7),
                strategy: self.strategy,
                facilitator: Some(ADA),
                participants: &self.participants,
                turns_taken: self.turns_taken,
                next_index: self.next_index,
            };
            let message = LastMessage {
                author,
                last_turn: self.last,
                text: &text,
                mentions: &mentions(&text, &self.participants),
            };
            state.next_speaker(&message).expect("a next speaker")
        }
    }

    #[test]
    fn mention_is_at_sign_with_longest_matching_name() {
        assert_eq!(mentioned("@Ada and @bob"), [ADA, BOB]);
        assert_eq!(mentioned("@Bob, then @Ada, then @Bob"), [BOB, ADA]);
        assert_eq!(mentioned("@ada lovelace!"), [LOVELACE]);
        assert_eq!(mentioned("@Ada Loveland"), [ADA]);
        assert_eq!(mentioned("@ADA\nlovelace"), [ADA]);
        assert_eq!(mentioned("(@Ada)@Bob"), [ADA, BOB]);
        assert!(mentioned("Ada, Bob: @ Ada").is_empty());
        assert!(mentioned("").is_empty());
    }

    #[test]
    fn addresses_contain_no_mentions() {
        for text in [
            "mail ada@example.com",
            "mail x@ada.example, please",
            "mail bob@ada",
            "bob.@ada bob+@ada bob-@ada bob_@ada bob%@ada",
            "mailto:x@ada",
            "\"x y\"@ada",
            "ДА@ada",
            "@ada@example.social",
            "用户@ada.example",
            "https://host/@ada",
            "see <https://host/x,@ada> and (https://host/(@ada))",
            "https://@ada/x https://x:@ada/y ssh://git@ada/z",
            "www.example.com/@ada?x=@bob&y=@bob#@bob",
        ] {
            assert!(mentioned(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn code_contains_no_mentions() {
        for text in [
            "`@ada`",
            "a `x @ada` b ``@bob ` @ada``",
            "```\n@ada\n```",
            "~~~ text\n@ada\n\n@bob",
            "> ```\n> @ada\n> ```",
        ] {
            assert!(mentioned(text).is_empty(), "{text}");
        }
        assert_eq!(mentioned("`x` @ada\n```\n@élan\n```\n@bob"), [ADA, BOB]);
        assert_eq!(mentioned("` @ada"), [ADA]);
    }

    #[test]
    fn mention_may_follow_white_space_and_punctuation() {
        for text in [
            "@ada",
            "hey\n@ada",
            "hey\u{a0}@ada",
            "(@ada) [x",
            "[@ada](https://host/@bob)",
            "{@ada}",
            "<@ada>",
            "\"@ada\" '@ada'",
            "“@ada”",
            "«@ada»",
            "¿@ada?",
            "**@ada** _@ada_",
            "hey,@ada",
            "cc:@ada",
            "问：@ada",
            "你好@ada",
            "👋@ada",
            "—@ada",
            "|@ada|",
            "https://host/x @ada",
        ] {
            assert_eq!(mentioned(text), [ADA], "{text}");
        }
    }

    #[test]
    fn name_ends_at_word_boundary() {
        assert!(mentioned("@Adam @Bob2 @Bobé").is_empty());
        assert_eq!(mentioned("@Ada_x @Bob's @Ada's"), [ADA, BOB]);
    }

    #[test]
    fn names_are_compared_case_folded() {
        assert_eq!(mentioned("@e\u{301}lan"), [ELAN]);
        assert_eq!(mentioned("＠ＢＯＢ"), [BOB]);
        assert!(mentioned("@elan").is_empty());
    }

    #[test]
    fn mention_of_duplicate_name_means_first_participant() {
        assert_eq!(
            mentions("@ada", &participants(&["Bob", "Ada", "ADA"])),
            [id(1)]
        );
    }

    #[test]
    fn end_marker_matches_anywhere_in_any_case() {
        for text in [
            "[DONE]",
            "All is said.[done] Really.",
            "[Complete]",
            "[fin]",
            "[TERMINÉ]",
            "[termine\u{301}]",
        ] {
            assert!(ends_conversation(&fold(text)), "{text}");
        }
        for text in ["DONE", "[ done ]", "[finished]", "[TERMINE]", ""] {
            assert!(!ends_conversation(&fold(text)), "{text}");
        }
    }

    #[test]
    fn round_robin_follows_positions() {
        let mut fixture = Fixture::new(TurnStrategy::RoundRobin);
        let mut speaker = ADA;
        for expected in [LOVELACE, ELAN, BOB, ADA, LOVELACE] {
            speaker = fixture.post(Some(speaker), "@Bob, what do you say?");
            assert_eq!(speaker, expected);
            assert_eq!(fixture.post(None, "@Bob, and you?"), expected);
        }
    }

    #[test]
    fn last_speaker_is_skipped_unless_alone() {
        let mut fixture = Fixture::new(TurnStrategy::MentionBased);
        assert_eq!(fixture.post(Some(ADA), "Well, @Élan?"), ELAN);
        assert_eq!(fixture.post(Some(ELAN), "Yes."), BOB);
        fixture.next_index = 1;
        assert_eq!(fixture.post(Some(ELAN), "And again."), BOB);
        assert_eq!(fixture.post(None, "I see."), BOB);

        let mut alone = Fixture::new(TurnStrategy::RoundRobin);
        alone.participants.truncate(1);
        assert_eq!(alone.post(Some(ADA), "Only me."), ADA);
        alone.strategy = TurnStrategy::FreeForm;
        assert_eq!(alone.post(Some(ADA), "Only me."), ADA);
    }

    #[test]
    fn mentioned_participant_speaks_next_except_the_author() {
        for strategy in [TurnStrategy::MentionBased, TurnStrategy::FreeForm] {
            let mut fixture = Fixture::new(strategy);
            assert_eq!(fixture.post(None, "@Bob or @Ada?"), BOB);
            assert_eq!(
                fixture.post(Some(BOB), "I, @Bob, ask @Élan and @Ada."),
                ELAN
            );
        }
        let mut fixture = Fixture::new(TurnStrategy::MentionBased);
        assert_eq!(fixture.post(Some(ADA), "I am @Ada."), LOVELACE);
    }

    #[test]
    fn free_form_choice_is_deterministic_and_skips_last_speaker() {
        let mut one = Fixture::new(TurnStrategy::FreeForm);
        let mut other = Fixture::new(TurnStrategy::FreeForm);
        assert_eq!(one.post(None, "Who begins?"), ADA);
        let mut speaker = ADA;
        let mut speakers = Vec::new();
        for _ in 0..40 {
            let next = one.post(Some(speaker), "Hm.");
            assert_eq!(other.post(Some(speaker), "Hm."), next);
            assert_eq!(one.post(None, "Hm?"), next);
            assert_ne!(next, speaker);
            speakers.push(next);
            speaker = next;
        }
        for id in [ADA, LOVELACE, ELAN, BOB] {
            assert!(speakers.contains(&id));
        }
        // All versions of the server must choose the same.
        assert_eq!(speakers[..4], [ELAN, LOVELACE, ELAN, ADA]);
    }

    #[test]
    fn facilitator_selects_each_speaker_and_speaks_after_each() {
        let mut fixture = Fixture::new(TurnStrategy::FacilitatorLed);
        for (text, next) in [
            ("What does @Bob say?", BOB),
            ("Let me ask Bob about it.", BOB),
            ("Now, ask\nÉlan.", ELAN),
            ("I want to hear from Ada Lovelace first.", LOVELACE),
            ("Bob should begin.", BOB),
            ("Élan can, if Bob should not.", ELAN),
            ("Bob, please.", BOB),
            ("Bob?", BOB),
            ("Bob was right, Élan?", ELAN),
            ("Mail x@ada lovelace, or `ask bob`: Élan?", ELAN),
            ("As I, Ada, said: Bob, go on.", BOB),
            ("The task Bob has is from Bob. Bob shoulders it.", ADA),
            ("Ask yourselves. Bob did.", ADA),
            ("Where is it from Bob", ADA),
            ("Rob, Bobby? Go.", ADA),
            ("Nobody, then.", ADA),
        ] {
            assert_eq!(fixture.post(Some(ADA), text), next, "{text}");
            assert_eq!(fixture.post(Some(BOB), "@Élan, what do you think?"), ADA);
            assert_eq!(fixture.post(None, "@Élan?"), ADA);
        }
    }

    #[test]
    fn facilitator_led_without_facilitator_is_round_robin() {
        let mut fixture = Fixture::new(TurnStrategy::FacilitatorLed);
        fixture.participants.remove(0);
        assert_eq!(fixture.post(Some(LOVELACE), "@Bob?"), ELAN);
    }

    #[test]
    fn facilitator_speaks_first_or_else_first_participant() {
        let speaker = |facilitator| first_speaker(facilitator, &mut [ADA, BOB].into_iter());
        assert_eq!(speaker(Some(BOB)), Some(BOB));
        assert_eq!(speaker(None), Some(ADA));
    }
}
