//! Finds the model that prices name for a name that a provider or a proxy uses, such as `gpt-4o` for `openai/GPT-4o-2024-11-20`.
//!
//! Rules recognize parts of a name: the provider, the region, the version, the date, and "latest". Two names mean the same model
//! if the rest is equal, and no part has different values in them. A part that only one of them has does not matter, except that a
//! name without a version means version 1. Upper and lower case are equal.

use crate::numbered::numbered;
use std::array;

/// The version of a name without a version, or with `:0` only.
const FIRST_VERSION: &str = "1";

/// A part of a name that a rule recognizes. The database stores the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i16)]
pub enum NamePart {
    /// A prefix such as `openai/`.
    Provider = 1,
    /// A prefix such as `us.`.
    Region = 2,
    /// A suffix such as `-latest`. It has no value.
    Latest = 3,
    /// A suffix such as `-v1:0`.
    Version = 4,
    /// A suffix such as `-2024-11-20`.
    Date = 5,
}

// In the order in which they are removed, from the outside of a name to the inside.
numbered!(NamePart, "part of a name", [Provider, Region, Latest, Version, Date]);

/// Number of parts.
const PARTS: usize = NamePart::ALL.len();

impl NamePart {
    fn is_prefix(self) -> bool {
        matches!(self, Self::Provider | Self::Region)
    }
}

/// A text that is a part of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRule {
    pub part: NamePart,
    /// The text, in lower case. `#` is any digit.
    pub pattern: String,
    /// The rule is only for names that begin like this after the prefix. Empty: for all names.
    pub models: String,
}

/// The rules of a catalogue.
#[derive(Clone, Debug, Default)]
pub struct NameRules([Vec<NameRule>; PARTS]);

/// A name without the parts that rules recognize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// The rest of the name in lower case.
    pub base: String,
    /// The value of each part that the name has.
    parts: [Option<String>; PARTS],
}

impl NameRules {
    /// Creates the rules. Of the rules for a part, the longest that fits applies.
    pub fn new(rules: impl IntoIterator<Item = NameRule>) -> Self {
        let mut of_parts: [Vec<NameRule>; PARTS] = array::from_fn(|_| vec![]);
        for rule in rules {
            of_parts[rule.part as usize - 1].push(rule);
        }
        of_parts.iter_mut().for_each(|rules| rules.sort_by_key(|rule| std::cmp::Reverse(rule.pattern.len())));
        Self(of_parts)
    }

    /// Returns whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Takes a name apart.
    pub fn parse(&self, name: &str) -> ModelName {
        let lower = name.to_lowercase();
        let mut rest = lower.as_str();
        let parts = array::from_fn(|at| {
            let part = NamePart::ALL[at];
            let rules = &self.0[at];
            let (value, left) = rules.iter().find_map(|rule| rule.split(rest))?;
            rest = left;
            Some(value_of(part, value))
        });
        ModelName { base: rest.to_owned(), parts }
    }
}

impl NameRule {
    /// Splits a name into the text of this rule and the rest, which is not empty.
    fn split<'a>(&self, name: &'a str) -> Option<(&'a str, &'a str)> {
        let length = self.pattern.len();
        let (text, rest) = match self.part.is_prefix() {
            true => name.split_at_checked(length)?,
            false => {
                let (rest, text) = name.split_at_checked(name.len().checked_sub(length)?)?;
                (text, rest)
            }
        };
        let fits = text.bytes().zip(self.pattern.bytes()).all(|(byte, pattern)| match pattern {
            b'#' => byte.is_ascii_digit(),
            _ => byte == pattern,
        });
        (fits && !rest.is_empty() && rest.starts_with(&self.models)).then_some((text, rest))
    }
}

/// Returns the value of a part, which is compared: `-v1:0` and `-v1` are the same version, `-2024-11-20` and `@20241120` the same
/// date.
fn value_of(part: NamePart, text: &str) -> String {
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect();
    match part {
        NamePart::Provider | NamePart::Region => text.to_owned(),
        NamePart::Latest => String::new(),
        NamePart::Version => digits(text.split(':').next().unwrap_or_default()),
        NamePart::Date => digits(text),
    }
}

impl ModelName {
    /// Returns whether no part has different values in both names. Their bases are not compared.
    pub fn agrees(&self, other: &Self) -> bool {
        NamePart::ALL.iter().all(|part| match (self.part(*part), other.part(*part)) {
            (Some(one), Some(another)) => one == another,
            _ => true,
        })
    }

    /// Returns whether the region, the version and the date are equal in both names, or missing in both.
    pub fn is_same_release(&self, other: &Self) -> bool {
        let parts = [NamePart::Region, NamePart::Version, NamePart::Date];
        parts.into_iter().all(|part| self.part(part) == other.part(part))
    }

    fn part(&self, part: NamePart) -> Option<&str> {
        let value = self.parts[part as usize - 1].as_deref();
        match (part, value) {
            (NamePart::Version, None | Some("")) => Some(FIRST_VERSION),
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> NameRules {
        let rule =
            |part, pattern: &str, models: &str| NameRule { part, pattern: pattern.into(), models: models.into() };
        NameRules::new([
            rule(NamePart::Provider, "openai/", ""),
            rule(NamePart::Provider, "anthropic/", ""),
            rule(NamePart::Region, "us.", "anthropic.claude-3"),
            rule(NamePart::Region, "eu.", "anthropic.claude-3"),
            rule(NamePart::Latest, "-latest", ""),
            rule(NamePart::Version, "-v#:#", ""),
            rule(NamePart::Version, "-v#", ""),
            rule(NamePart::Version, ":#", ""),
            rule(NamePart::Date, "-20##-##-##", ""),
            rule(NamePart::Date, "-20######", ""),
            rule(NamePart::Date, "@20######", ""),
        ])
    }

    fn same(one: &str, another: &str) -> bool {
        let (one, another) = (rules().parse(one), rules().parse(another));
        one.base == another.base && one.agrees(&another)
    }

    #[test]
    fn names_with_other_spellings_mean_the_same_model() {
        for (one, another) in [
            ("openai/gpt-4o", "gpt-4o"),
            ("GPT-4o", "gpt-4o"),
            ("gpt-4o-2024-11-20", "gpt-4o"),
            ("openai/GPT-4o-2024-11-20", "gpt-4o-20241120"),
            ("claude-3-haiku@20240307", "claude-3-haiku-20240307"),
            ("claude-3-haiku-latest", "claude-3-haiku-20240307"),
            ("us.anthropic.claude-3-haiku-20240307-v1:0", "anthropic.claude-3-haiku-20240307"),
            ("anthropic.claude-3-haiku-20240307-v1", "anthropic.claude-3-haiku-20240307-v1:0"),
            ("embed-v4:0", "embed-v4"),
            ("text:0", "text"),
        ] {
            assert!(same(one, another) && same(another, one), "{one} {another}");
        }
    }

    #[test]
    fn different_providers_regions_versions_dates_and_models_do_not_agree() {
        for (one, another) in [
            ("openai/mini", "anthropic/mini"),
            ("us.anthropic.claude-3-haiku", "eu.anthropic.claude-3-haiku"),
            ("titan-embed-v1", "titan-embed-v2:0"),
            ("whisper-v3", "whisper"),
            ("gpt-4o-2024-05-13", "gpt-4o-2024-11-20"),
            ("gpt-4o", "gpt-4o-mini"),
            ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
            ("ft:gpt-4o", "gpt-4o"),
            ("azure/gpt-4o", "gpt-4o"),
            // Some models cost more in a region.
            ("us.anthropic.claude-sonnet-4-5", "anthropic.claude-sonnet-4-5"),
        ] {
            assert!(!same(one, another) && !same(another, one), "{one} {another}");
        }
    }

    #[test]
    fn nothing_of_a_name_is_left_out_if_only_parts_would_remain() {
        for name in ["openai/", "-latest", "-v1", "us.", "2024-11-20"] {
            assert_eq!(rules().parse(name).base, name);
        }
        assert_eq!(NameRules::default().parse("OpenAI/GPT-4o").base, "openai/gpt-4o");
    }

    proptest! {
        #[test]
        fn agreement_is_symmetric_and_a_name_agrees_with_itself(one in "(openai/)?[a-z]{1,3}(-v[12])?(-2024-0[1-3]-01)?", another in "\\PC{0,12}") {
            let (one, another) = (rules().parse(&one), rules().parse(&another));
            prop_assert!(one.agrees(&one) && another.agrees(&another));
            prop_assert_eq!(one.agrees(&another), another.agrees(&one));
        }
    }
}
