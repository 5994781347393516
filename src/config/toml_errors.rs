//! Syntax errors of a settings file. Each names the line, the key and the fix, but not the value of a possible secret.

use super::effective::has_password;
use super::specs::SettingSpecs;
use std::ops::Range;

/// Maximum number of reported errors.
const FAULTS_MAX: usize = 20;

/// Returns the first error of each line with a syntax error.
pub(super) fn faults(specs: &SettingSpecs, text: &str, errors: &[toml::de::Error]) -> Vec<(usize, String)> {
    let mut faults: Vec<(usize, String)> = vec![];
    for error in errors {
        let at = error.span().unwrap_or(Range { start: text.len(), end: text.len() }).start;
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        if faults.len() < FAULTS_MAX && !faults.iter().any(|(seen, _)| *seen == line) {
            let fault = fault(specs, text, line, error.message());
            faults.push((line, format!("column {column}: {fault}")));
        }
    }
    faults
}

fn fault(specs: &SettingSpecs, text: &str, line: usize, message: &str) -> String {
    let Some((key, value)) = text.lines().nth(line - 1).and_then(key_and_value) else { return message.to_owned() };
    if message.starts_with("duplicate key") {
        let is_before = |(_, text): &(usize, &str)| key_and_value(text).is_some_and(|(before, _)| before == key);
        let before = text.lines().enumerate().take(line - 1).find(is_before);
        let before = before.map(|(index, _)| format!("is already set on line {}", index + 1));
        return format!("{key}: {}; remove one of the two", before.unwrap_or("is set twice".to_owned()));
    }
    match fix(specs, key, value) {
        Some(fix) => format!("{key}: {fix}"),
        None => format!("{key}: {message}"),
    }
}

/// Splits a line into its key and its value, without the comment.
fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim().trim_matches(['"', '\'']);
    let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let value = value.split(" #").next().unwrap_or_default().trim();
    is_key.then_some((key, value))
}

/// Returns how to fix the line.
fn fix(specs: &SettingSpecs, key: &str, value: &str) -> Option<String> {
    match value.chars().next() {
        None => Some("has no value; remove the line to leave it unset".into()),
        Some(quote @ ('"' | '\'')) => {
            let is_closed = value.len() > 1 && value.ends_with(quote);
            (!is_closed).then(|| format!("the string is not closed; add {quote} at its end"))
        }
        Some('[' | '{') => None,
        Some(_) => {
            let is_shown = specs.find(key).is_some_and(|setting| !setting.is_secret) && !has_password(value);
            let shown = if is_shown && !value.contains(['"', '\\']) { value } else { "…" };
            Some(format!("a string must be in quotes: write {key} = \"{shown}\""))
        }
    }
}
