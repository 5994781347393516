//! Answers without what differs from run to run.
//!
//! - An id, key id, token, page token, resume token or secret that the server has made becomes `<id 1>`, `<key 1>`, `<token 1>`,
//!   `<page 1>`, `<resume 1>`, `<secret 1>`: the number is that of its first appearance in the topic, and wherever it appears
//!   again it is written the same, also inside of texts. A later request can name it.
//! - A time within 200 days of now becomes `<now>`, or `<now +24h>` by its distance in hours; a day `<day>`, a month `<month>`.
//!   Recorded events are of 2024, so that every time of theirs stays. What comes after "such as" is an example, and stays.
//! - The date of the built-in price list becomes `<day>`.
//! - The request id of a call becomes `<request>` in its own answer, and `<request 7>` in that of others.
//! - The members that an exchange masks are left out.

use crate::json::sorted;
use crate::recording;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use meterd_engine::clock::Clock;
use serde_json::{Map, Value};

/// Times closer to now than this are counted from now.
const NEAR: TimeDelta = TimeDelta::days(200);
/// Members with values that are made by the server, and how they are named.
const MADE: [(&str, &str); 11] = [
    ("alertId", "id"),
    ("notificationId", "id"),
    ("digestId", "id"),
    ("keyId", "key"),
    ("rotatedFrom", "key"),
    ("token", "token"),
    ("secrets", "secret"),
    ("nextPageToken", "page"),
    ("resumeToken", "resume"),
    ("oldest_resume_token", "resume"),
    ("address", "address"),
];
/// What is shorter was written by SQL of the test.
const MADE_BYTES_MIN: usize = 12;
/// Digits of an id.
const ID_DIGITS: usize = 32;

/// What the server has made so far.
#[derive(Default)]
pub struct Known {
    /// Each value with its name, the longest first: a token has its key's id in it.
    names: Vec<(String, String)>,
    /// Of the exchange that is under way.
    request_id: String,
    mask: Vec<String>,
}

impl Known {
    /// Begins an exchange.
    pub fn begin(&mut self, mask: &[String]) {
        (self.mask, self.request_id) = (mask.to_vec(), String::new());
    }

    /// The request id of this exchange, which has this number.
    pub fn request_id(&mut self, id: &str, number: usize) {
        self.request_id = id.into();
        self.add(id, &format!("<request {number}>"));
    }

    /// Names a value, unless it has a name.
    pub fn name(&mut self, kind: &str, value: &str) -> String {
        if let Some((_, name)) = self.names.iter().find(|(known, _)| known == value) {
            return name.clone();
        }
        let start = format!("<{kind} ");
        let name = format!("{start}{}>", self.names.iter().filter(|(_, name)| name.starts_with(&start)).count() + 1);
        self.add(value, &name);
        name
    }

    fn add(&mut self, value: &str, name: &str) {
        self.names.push((value.into(), name.into()));
        self.names.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
    }

    /// A request with the values in place of their names, and `<now>` or `<now +24h>` as times.
    pub fn fill(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.filled(text).into(),
            Value::Array(list) => list.iter().map(|value| self.fill(value)).collect(),
            Value::Object(object) => {
                Value::Object(object.iter().map(|(name, value)| (name.clone(), self.fill(value))).collect())
            }
            other => other.clone(),
        }
    }

    /// A text with the values in place of their names.
    pub fn filled(&self, text: &str) -> String {
        let mut text = text.to_string();
        for (value, name) in self.names.iter().filter(|(_, name)| !name.starts_with("<request")) {
            text = text.replace(name, value);
        }
        let unknown = |(_, kind): &(&str, &str)| text.contains(&format!("<{kind} "));
        assert!(!recording() || !MADE.iter().any(unknown), "no answer before has a value that is named in {text}");
        let hours = text.strip_prefix("<now").and_then(|rest| rest.strip_suffix('>')).map(|rest| rest.trim());
        if let Some(hours) = hours {
            let hours = hours.strip_suffix('h').map_or(0, |hours| hours.parse().expect("hours, such as <now +24h>"));
            return (Clock::system().now() + TimeDelta::hours(hours)).to_rfc3339();
        }
        text
    }

    /// An answer as it is recorded.
    pub fn normal(&mut self, member: &str, value: &Value) -> Value {
        match value {
            Value::Object(object) => {
                let mut normal = Map::new();
                for (name, value) in sorted(object) {
                    if !self.mask.contains(name) {
                        normal.insert(name.clone(), self.normal(name, value));
                    }
                }
                Value::Object(normal)
            }
            Value::Array(list) => list.iter().map(|value| self.normal(member, value)).collect(),
            Value::String(text) if !text.is_empty() => self.normal_text(member, text).into(),
            other => other.clone(),
        }
    }

    fn normal_text(&mut self, member: &str, text: &str) -> String {
        let made = MADE.iter().find(|(name, _)| *name == member && text.len() >= MADE_BYTES_MIN);
        if let Some((_, kind)) = made {
            return self.name(kind, text);
        }
        if member == "builtInListDate" {
            return "<day>".into();
        }
        let mut text = text.to_string();
        if !self.request_id.is_empty() {
            text = text.replace(&self.request_id, "<request>");
        }
        for (value, name) in &self.names {
            text = text.replace(value, name);
        }
        for months in -6..=6 {
            // As people write it: "November 2026".
            let month = (Clock::system().now() + TimeDelta::days(30 * months)).format("%B %Y").to_string();
            text = text.replace(&month, "<month>");
        }
        for day in (1..=31).rev().filter(|_| text.contains("<month>")).collect::<Vec<_>>() {
            text = text.replace(&format!(" {day} <month>"), " <day>");
        }
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || "-+:.".contains(letter);
        let mut normal = String::new();
        let mut rest = text.as_str();
        while let Some(begin) = rest.find(is_part) {
            let end = rest[begin..].find(|letter| !is_part(letter)).map_or(rest.len(), |length| begin + length);
            normal += &rest[..begin];
            let word = &rest[begin..end];
            let named = if normal.ends_with("such as ") { word.into() } else { self.normal_word(word) };
            normal += &named;
            rest = &rest[end..];
        }
        normal + rest
    }

    fn normal_word(&mut self, word: &str) -> String {
        let plain = word.trim_end_matches(['.', ':', '-']);
        let end = &word[plain.len()..];
        if let Some(named) = from_now(plain) {
            return named + end;
        }
        // Also with something before it, as keys of the server have.
        let parts = word.split_inclusive(['.', ':', '-']).map(|part| {
            let id = part.trim_end_matches(['.', ':', '-']);
            let is_id = id.len() == ID_DIGITS && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if is_id { self.name("id", id) + &part[id.len()..] } else { part.into() }
        });
        parts.collect()
    }
}

/// The name of a time, day or month that is near now.
fn from_now(word: &str) -> Option<String> {
    let now = Clock::system().now();
    let is_near = |time: DateTime<Utc>| (time - now).abs() < NEAR;
    if let Ok(time) = DateTime::parse_from_rfc3339(word) {
        let time = time.to_utc();
        let hours = (time - now + TimeDelta::minutes(30)).num_seconds().div_euclid(3600);
        let named = if hours == 0 { "<now>".into() } else { format!("<now {hours:+}h>") };
        return is_near(time).then_some(named);
    }
    let day = |text: &str| Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(12, 0, 0)?.and_utc());
    match word.len() {
        10 => day(word).filter(|day| is_near(*day)).map(|_| "<day>".into()),
        7 => day(&format!("{word}-15")).filter(|month| is_near(*month)).map(|_| "<month>".into()),
        _ => None,
    }
}
