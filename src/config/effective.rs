//! The settings as they are in effect, with where each comes from, as a settings file again.

use super::declared::{Catalogue, Declared, Kind};
use super::file::SettingsFile;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use toml::Value;

/// The settings of `serve` that are in effect, as TOML. Secrets are named and not shown.
///
/// `command` is the tree of all commands, `matches` what was parsed for `serve`.
pub fn effective(command: &Command, matches: &ArgMatches, file: Option<&SettingsFile>) -> String {
    let catalogue = Catalogue::of(command);
    let mut lines = vec![format!(
        "# Settings of meterd {} in effect. Secrets are not shown: set them by their variables.",
        env!("CARGO_PKG_VERSION")
    )];
    for setting in catalogue.iter().filter(|setting| setting.is_of("serve")) {
        let values: Vec<String> = matches
            .get_raw(&setting.id)
            .map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let source = matches.value_source(&setting.id);
        if setting.is_hidden && source == Some(ValueSource::DefaultValue) {
            continue;
        }
        lines.push(line(setting, &values, &origin(setting, source, file)));
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

fn line(setting: &Declared, values: &[String], origin: &str) -> String {
    let id = &setting.id;
    let text = |value: &String| Value::String(value.clone()).to_string();
    let value = match setting.kind {
        _ if values.iter().all(String::is_empty) => return format!("# {id} is not set"),
        _ if setting.is_secret || values.iter().any(|value| has_password(value)) => {
            return format!("# {id} is set and not shown  # {origin}");
        }
        Kind::List => format!("[{}]", values.iter().map(text).collect::<Vec<_>>().join(", ")),
        Kind::Text => text(&values[0]),
        Kind::Flag | Kind::Number => values[0].clone(),
    };
    format!("{id} = {value}  # {origin}")
}

/// Whether a URL has a user, and so maybe a password, in it.
fn has_password(value: &str) -> bool {
    let authority = value.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    authority.is_some_and(|authority| authority.contains('@'))
}
