//! The settings file: TOML whose keys are settings.

use super::effective::{MASK, is_mask};
use super::number_errors::plain_number_rule;
use super::specs::{Kind, SettingSpec, SettingSpecs, did_you_mean};
use super::toml_errors;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Every file can contain the settings of this command, because other commands can use the file of their server.
const SERVE: &str = "serve";

const EMPTY: &str = "must not be empty; remove it to leave it unset";

/// A settings file whose keys and values are valid.
pub struct SettingsFile {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Keys with [`MASK`] as their value, and their lines.
    masked: BTreeMap<String, usize>,
}

struct Entry {
    line: usize,
    values: Vec<String>,
}

impl SettingsFile {
    /// Reads a file and checks each key and value against the settings of all commands. The error lists all faults.
    pub fn read(path: &Path, command: &Command) -> anyhow::Result<Self> {
        let shown = path.display();
        anyhow::ensure!(
            !path.as_os_str().is_empty(),
            "--config (METERD_CONFIG) is empty: set it to the path of a settings file, or unset it"
        );
        let text = std::fs::read_to_string(path)
            .map_err(|error| anyhow::anyhow!("--config: cannot read the settings file {shown}: {error}"))?;
        let (table, errors) = DeTable::parse_recoverable(&text);
        let specs = SettingSpecs::of(command);
        let mut file = Self { path: path.to_owned(), entries: BTreeMap::new(), masked: BTreeMap::new() };
        file.fail_if_any_at(toml_errors::faults(&specs, &text, &errors), ", ")?;
        let mut faults = vec![];
        let mut keys: Vec<_> = table.get_ref().iter().collect();
        keys.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in keys {
            let line = line_of(&text, key.span().start);
            let (key, value) = (key.get_ref().as_ref(), value.get_ref());
            if let Some(setting) = specs.find(key).filter(|_| is_mask(value)) {
                file.masked.insert(setting.id.clone(), line);
                continue;
            }
            let taken = entry(&specs, key, value).and_then(|(id, values)| match file.entries.get(&id) {
                Some(before) => Err(format!("{key}: is already set on line {}; remove one of the two", before.line)),
                None => Ok((id, values)),
            });
            match taken {
                Ok((id, values)) => drop(file.entries.insert(id, Entry { line, values })),
                Err(fault) => faults.push((line, fault)),
            }
        }
        file.fail_if_any(faults)?;
        Ok(file)
    }

    /// Makes the values of the file the defaults of the flags.
    pub fn apply(&self, command: Command) -> Command {
        let default = |arg: Arg| match self.entries.get(arg.get_id().as_str()).filter(|_| arg.get_env().is_some()) {
            Some(entry) => arg.default_values(entry.values.clone()),
            None => arg,
        };
        command.mut_args(default).mut_subcommands(|sub| self.apply(sub))
    }

    /// Checks that the server or this command uses each key. Other keys would have no effect.
    pub fn check_keys_of(&self, name: &str, command: &Command) -> anyhow::Result<()> {
        let specs = SettingSpecs::of(command);
        let foreign = self.entries.iter().filter_map(|(id, entry)| {
            let setting = specs.find(id).filter(|setting| !setting.applies_to(SERVE) && !setting.applies_to(name))?;
            let commands = setting.commands.join(", ");
            let fault = format!("{id}: is a setting of other commands ({commands}); `{name}` does not use it");
            Some((entry.line, format!("{fault}; remove it, or use another file for these commands")))
        });
        self.fail_if_any(foreign.collect())
    }

    /// Checks that each setting with [`MASK`] as its value in the file has a value from its flag or variable.
    pub fn check_masks(&self, matches: &ArgMatches, command: &Command) -> anyhow::Result<()> {
        let specs = SettingSpecs::of(command);
        let is_missing = |id: &str| {
            let explicit = [Some(ValueSource::CommandLine), Some(ValueSource::EnvVariable)];
            matches.try_contains_id(id).is_ok() && !explicit.contains(&matches.value_source(id))
        };
        let missing = self.masked.iter().filter(|(id, _)| is_missing(id)).filter_map(|(id, line)| {
            let variable = &specs.find(id)?.variable;
            let fault = format!("{id}: {MASK:?} is not a value; --print-config writes it in place of a secret");
            Some((*line, format!("{fault}; write the secret here, or remove the line and set {variable}")))
        });
        self.fail_if_any(missing.collect())
    }

    /// The line of a setting in the file.
    pub fn line_of(&self, id: &str) -> Option<usize> {
        self.entries.get(id).map(|entry| entry.line).or_else(|| self.masked.get(id).copied())
    }

    /// Whether the value of a setting in the file is [`MASK`].
    pub fn is_masked(&self, id: &str) -> bool {
        self.masked.contains_key(id)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn fail_if_any(&self, faults: Vec<(usize, String)>) -> anyhow::Result<()> {
        self.fail_if_any_at(faults, ": ")
    }

    fn fail_if_any_at(&self, mut faults: Vec<(usize, String)>, separator: &str) -> anyhow::Result<()> {
        faults.sort();
        let line = |(line, fault): &(usize, String)| format!("{}, line {line}{separator}{fault}", self.path.display());
        let lines = faults.iter().map(line);
        let lines: Vec<_> = lines.collect();
        anyhow::ensure!(lines.is_empty(), "{}", lines.join("\n"));
        Ok(())
    }
}

/// Returns the id of the setting and its values in the form of a command line.
fn entry(specs: &SettingSpecs, key: &str, value: &DeValue<'_>) -> Result<(String, Vec<String>), String> {
    if is_table(value) {
        return Err(table_fault(specs, key, value));
    }
    let Some(setting) = specs.find(key) else {
        let hint = did_you_mean(specs.nearest(key).map(|setting| setting.id.as_str()));
        return Err(match specs.command_of_argument(key) {
            _ if key.replace('-', "_") == "config" => {
                format!("{key}: a settings file cannot include another settings file; remove this line")
            }
            Some(command) => format!("{key}: is an argument of `meterd {command}`, not a setting{hint}"),
            None => format!("{key}: is not a setting of meterd{hint}"),
        });
    };
    let values = values(setting, value).map_err(|fault| format!("{key}: {fault}"))?;
    for value in &values {
        check_value(setting, value).map_err(|fault| format!("{key}: {fault}"))?;
    }
    Ok((setting.id.clone(), values))
}

/// Whether a value is a table or an array of tables (`[[server]]`).
fn is_table(value: &DeValue<'_>) -> bool {
    value.is_table() || value.as_array().is_some_and(|array| array.iter().any(|item| item.get_ref().is_table()))
}

/// The error for a table. Settings files have no tables.
fn table_fault(specs: &SettingSpecs, key: &str, value: &DeValue<'_>) -> String {
    let inside = value.as_table().into_iter().flat_map(|table| table.keys());
    let known = inside.filter_map(|key| specs.nearest(key.get_ref())).next().or_else(|| specs.find(key));
    let fix = match known {
        Some(setting) => format!("write its settings without a table, such as `{} = …`", setting.id),
        None => "write settings as `key = value`, without a table".to_owned(),
    };
    format!("{key}: is a table, but a settings file must not contain tables; {fix}")
}

fn values(setting: &SettingSpec, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let text = |value: &DeValue<'_>| value.as_str().map(String::from);
    let (values, rule) = match setting.kind {
        Kind::Flag => (value.as_bool().map(|value| vec![value.to_string()]), "must be true or false, without quotes"),
        Kind::Number => {
            let number = value.as_integer().map(|value| i64::from_str_radix(value.as_str(), value.radix()));
            let number = number.transpose().map_err(|_| "must be a whole number below 2^63".to_owned())?;
            (number.map(|value| vec![value.to_string()]), "must be a whole number, without quotes")
        }
        Kind::Text => (text(value).map(|text| vec![text]), "must be a string in quotes"),
        Kind::List => {
            let texts = value.as_array().map(|array| array.iter().map(|item| text(item.get_ref())).collect());
            (texts.flatten(), "must be a list of strings, such as [\"…\", \"…\"]")
        }
    };
    values.ok_or_else(|| format!("{rule}, got {}", type_name(value)))
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a decimal point",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Checks a value with the parser of the flag.
pub(super) fn check_value(setting: &SettingSpec, value: &str) -> Result<(), String> {
    let arg = setting.arg.clone().env(None).global(false);
    let flag = format!("--{}={value}", setting.flag);
    let parsed = Command::new("meterd").disable_help_flag(true).arg(arg).try_get_matches_from(["meterd", &flag]);
    let Err(error) = parsed else { return Ok(()) };
    if let Some(cause) = error.source() {
        return Err(match plain_number_rule(cause) {
            _ if value.is_empty() && setting.kind == Kind::Number => EMPTY.to_owned(),
            Some(rule) => format!("{rule}, got {value:?}"),
            None => cause.to_string(),
        });
    }
    let names = |kind| match error.get(kind) {
        Some(ContextValue::Strings(names)) => names.clone(),
        Some(ContextValue::String(name)) => vec![name.clone()],
        _ => vec![],
    };
    let valid = names(ContextKind::ValidValue);
    let rule = if valid.is_empty() { "is not valid".into() } else { format!("must be one of {}", valid.join(", ")) };
    let got = if setting.is_secret { String::new() } else { format!(", got {value:?}") };
    let hint = did_you_mean(names(ContextKind::SuggestedValue).first().map(String::as_str));
    Err(if value.is_empty() { EMPTY.to_owned() } else { format!("{rule}{got}{hint}") })
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
}
