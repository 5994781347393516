//! The settings as they are in effect, with where each comes from, as a settings file again.

use super::declared::{Catalogue, Declared, Kind};
use super::file::SettingsFile;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use toml::Value;
use toml::de::DeValue;

/// Stands for a value that is not shown; refused where it is read again.
pub(super) const MASK: &str = "(not shown)";

/// Whether a value of a file is the mask, or a list of it.
pub(super) fn is_mask(value: &DeValue<'_>) -> bool {
    let items = value.as_array().map(|array| array.iter().any(|item| item.get_ref().as_str() == Some(MASK)));
    value.as_str() == Some(MASK) || items == Some(true)
}

/// The settings of `serve` that are in effect, as TOML. Secrets are named and not shown.
///
/// `command` is the tree of all commands, `matches` what was parsed for `serve`.
pub fn effective(command: &Command, matches: &ArgMatches, file: Option<&SettingsFile>) -> String {
    let catalogue = Catalogue::of(command);
    let mut lines = vec![format!("# Settings of meterd {} in effect", env!("CARGO_PKG_VERSION"))];
    let mut masked = vec![];
    for setting in catalogue.iter().filter(|setting| setting.is_of("serve")) {
        let values: Vec<String> = matches
            .get_raw(&setting.id)
            .map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let source = matches.value_source(&setting.id);
        if setting.is_hidden && source == Some(ValueSource::DefaultValue) {
            continue;
        }
        let is_given = matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        let was_masked = !is_given && file.is_some_and(|file| file.is_masked(&setting.id));
        let is_masked = was_masked || is_masked(setting, &values);
        masked.extend(is_masked.then_some(setting.id.as_str()));
        let values = if is_masked { vec![MASK.to_owned()] } else { values };
        lines.push(line(setting, &values, &origin(setting, source, file)));
    }
    if !masked.is_empty() {
        let note = format!(
            "# Secrets are not shown. Before this is used as a settings file, write {} out, or remove the lines and set the \
             variables",
            masked.join(", ")
        );
        lines.insert(1, note);
    }
    lines.join("\n")
}

fn origin(setting: &Declared, source: Option<ValueSource>, file: Option<&SettingsFile>) -> String {
    match source {
        Some(ValueSource::CommandLine) => format!("flag --{}", setting.flag),
        Some(ValueSource::EnvVariable) => format!("environment {}", setting.variable),
        _ => match file.and_then(|file| Some((file.path(), file.line_of(&setting.id)?))) {
            Some((path, line)) => format!("file {}, line {line}", path.display()),
            None => "default".into(),
        },
    }
}

fn is_masked(setting: &Declared, values: &[String]) -> bool {
    let is_set = values.iter().any(|value| !value.is_empty());
    is_set && (setting.is_secret || values.iter().any(|value| has_password(value)))
}

fn line(setting: &Declared, values: &[String], origin: &str) -> String {
    let id = &setting.id;
    let text = |value: &String| Value::String(value.clone()).to_string();
    let value = match setting.kind {
        _ if values.iter().all(String::is_empty) => return format!("# {id} is not set"),
        Kind::List => format!("[{}]", values.iter().map(text).collect::<Vec<_>>().join(", ")),
        Kind::Text => text(&values[0]),
        Kind::Flag | Kind::Number => values[0].clone(),
    };
    format!("{id} = {value}  # {origin}")
}

/// Whether a URL has a user, and so maybe a password, in it.
pub(super) fn has_password(value: &str) -> bool {
    let authority = value.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    authority.is_some_and(|authority| authority.contains('@'))
}
