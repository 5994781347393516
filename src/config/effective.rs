//! Prints the settings in effect as a settings file, with the origin of each setting.

use super::file::SettingsFile;
use super::specs::{Kind, SettingSpec, SettingSpecs};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use toml::Value;
use toml::de::DeValue;

/// Replaces the value of a secret. A settings file with this value is rejected.
pub(super) const MASK: &str = "(not shown)";

/// Whether a value of a settings file is the mask, or a list that contains it.
pub(super) fn is_mask(value: &DeValue<'_>) -> bool {
    let items = value.as_array().map(|array| array.iter().any(|item| item.get_ref().as_str() == Some(MASK)));
    value.as_str() == Some(MASK) || items == Some(true)
}

/// Returns the settings of `serve` in effect, as TOML. The values of secrets are replaced by [`MASK`].
///
/// `command` is the tree of all commands; `matches` are the matches of `serve`.
pub fn effective(command: &Command, matches: &ArgMatches, file: Option<&SettingsFile>) -> String {
    let specs = SettingSpecs::of(command);
    let mut lines = vec![format!("# Settings of meterd {} in effect", env!("CARGO_PKG_VERSION"))];
    let mut masked = vec![];
    for setting in specs.iter().filter(|setting| setting.applies_to("serve")) {
        let values: Vec<String> = matches
            .get_raw(&setting.id)
            .map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let source = matches.value_source(&setting.id);
        if setting.is_hidden && source == Some(ValueSource::DefaultValue) {
            continue;
        }
        let is_explicit = matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        let was_masked = !is_explicit && file.is_some_and(|file| file.is_masked(&setting.id));
        let is_masked = was_masked || is_masked(setting, &values);
        masked.extend(is_masked.then_some(setting.id.as_str()));
        let values = if is_masked { vec![MASK.to_owned()] } else { values };
        lines.push(line(setting, &values, &origin(setting, source, file)));
    }
    if !masked.is_empty() {
        let note = format!(
            "# Secrets are not shown. To use this as a settings file, write the values of {}, or remove these lines and set \
             the environment variables",
            masked.join(", ")
        );
        lines.insert(1, note);
    }
    lines.join("\n")
}

fn origin(setting: &SettingSpec, source: Option<ValueSource>, file: Option<&SettingsFile>) -> String {
    match source {
        Some(ValueSource::CommandLine) => format!("flag --{}", setting.flag),
        Some(ValueSource::EnvVariable) => format!("environment {}", setting.variable),
        _ => match file.and_then(|file| Some((file.path(), file.line_of(&setting.id)?))) {
            Some((path, line)) => format!("file {}, line {line}", path.display()),
            None => "default".into(),
        },
    }
}

fn is_masked(setting: &SettingSpec, values: &[String]) -> bool {
    let is_set = values.iter().any(|value| !value.is_empty());
    is_set && (setting.is_secret || values.iter().any(|value| has_password(value)))
}

fn line(setting: &SettingSpec, values: &[String], origin: &str) -> String {
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

/// Whether a URL contains a user, and so possibly a password.
pub(super) fn has_password(value: &str) -> bool {
    let authority = value.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    authority.is_some_and(|authority| authority.contains('@'))
}
