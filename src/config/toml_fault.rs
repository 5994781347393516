//! What is wrong with a settings file that is no TOML: by line, with the key and the fix, and without the value, which may be a
//! password.

use super::declared::Catalogue;
use super::effective::has_password;
use std::ops::Range;

/// Faults of one file that are named.
const FAULTS_MAX: usize = 20;

/// Each line that is no TOML, once, with what is wrong in it.
pub(super) fn faults(catalogue: &Catalogue, text: &str, errors: &[toml::de::Error]) -> Vec<(usize, String)> {
    let mut faults: Vec<(usize, String)> = vec![];
    for error in errors {
        let at = error.span().unwrap_or(Range { start: text.len(), end: text.len() }).start;
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        if faults.len() < FAULTS_MAX && !faults.iter().any(|(seen, _)| *seen == line) {
            let fault = fault(catalogue, text, line, error.message());
            faults.push((line, format!("column {column}: {fault}")));
        }
    }
    faults
}

fn fault(catalogue: &Catalogue, text: &str, line: usize, message: &str) -> String {
    let Some((key, value)) = text.lines().nth(line - 1).and_then(parts) else { return message.to_owned() };
    if message.starts_with("duplicate key") {
        let is_before = |(_, text): &(usize, &str)| parts(text).is_some_and(|(before, _)| before == key);
        let before = text.lines().enumerate().take(line - 1).find(is_before);
        let before = before.map(|(index, _)| format!(" on line {} already", index + 1)).unwrap_or(" twice".to_owned());
        return format!("{key}: is set{before}; remove one of the two");
    }
    match fix(catalogue, key, value) {
        Some(fix) => format!("{key}: {fix}"),
        None => format!("{key}: {message}"),
    }
}

/// Key and value of a line, without its comment.
fn parts(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim().trim_matches(['"', '\'']);
    let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let value = value.split(" #").next().unwrap_or_default().trim();
    is_key.then_some((key, value))
}

/// What to write instead.
fn fix(catalogue: &Catalogue, key: &str, value: &str) -> Option<String> {
    match value.chars().next() {
        None => Some("has no value; remove the line to leave it unset".into()),
        Some(quote @ ('"' | '\'')) => {
            let is_closed = value.len() > 1 && value.ends_with(quote);
            (!is_closed).then(|| format!("the text has no end; close it with {quote}"))
        }
        Some('[' | '{') => None,
        Some(_) => {
            let is_shown = catalogue.find(key).is_some_and(|setting| !setting.is_secret) && !has_password(value);
            let shown = if is_shown && !value.contains(['"', '\\']) { value } else { "…" };
            Some(format!("a text must be in quotes: write {key} = \"{shown}\""))
        }
    }
}
