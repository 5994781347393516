//! The settings file: TOML with the keys of settings, and nothing else in it.

use super::declared::{Catalogue, Declared, Kind, did_you_mean};
use super::effective::{MASK, is_mask};
use super::toml_fault;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The command whose settings every file may have: other commands use the file of their server.
const SERVE: &str = "serve";

const EMPTY: &str = "must not be empty; remove it to leave it unset";

/// A file that was read, with nothing wrong in it by itself.
pub struct SettingsFile {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Keys whose values `--print-config` did not show, and their lines.
    masked: BTreeMap<String, usize>,
}

struct Entry {
    line: usize,
    values: Vec<String>,
}

impl SettingsFile {
    /// Reads a file and checks each key and value against the settings of all commands. An error names all faults.
    pub fn read(path: &Path, command: &Command) -> anyhow::Result<Self> {
        let shown = path.display();
        anyhow::ensure!(
            !path.as_os_str().is_empty(),
            "--config (METERD_CONFIG) is empty: unset it, or name a settings file"
        );
        let text = std::fs::read_to_string(path)
            .map_err(|error| anyhow::anyhow!("--config: the settings file {shown} cannot be read: {error}"))?;
        let (table, errors) = DeTable::parse_recoverable(&text);
        let catalogue = Catalogue::of(command);
        let mut file = Self { path: path.to_owned(), entries: BTreeMap::new(), masked: BTreeMap::new() };
        file.refuse_at(toml_fault::faults(&catalogue, &text, &errors), ", ")?;
        let mut faults = vec![];
        let mut keys: Vec<_> = table.get_ref().iter().collect();
        keys.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in keys {
            let line = line_of(&text, key.span().start);
            let (key, value) = (key.get_ref().as_ref(), value.get_ref());
            if let Some(setting) = catalogue.find(key).filter(|_| is_mask(value)) {
                file.masked.insert(setting.id.clone(), line);
                continue;
            }
            let taken = entry(&catalogue, key, value).and_then(|(id, values)| match file.entries.get(&id) {
                Some(before) => Err(format!("{key}: is set on line {} already; remove one of the two", before.line)),
                None => Ok((id, values)),
            });
            match taken {
                Ok((id, values)) => drop(file.entries.insert(id, Entry { line, values })),
                Err(fault) => faults.push((line, fault)),
            }
        }
        file.refuse(faults)?;
        Ok(file)
    }

    /// Makes the values the defaults of the flags of all commands that take them.
    pub fn apply(&self, command: Command) -> Command {
        let default = |arg: Arg| match self.entries.get(arg.get_id().as_str()).filter(|_| arg.get_env().is_some()) {
            Some(entry) => arg.default_values(entry.values.clone()),
            None => arg,
        };
        command.mut_args(default).mut_subcommands(|sub| self.apply(sub))
    }

    /// Refuses keys that neither the server nor the command that runs takes: they would do nothing.
    pub fn check_keys_of(&self, name: &str, command: &Command) -> anyhow::Result<()> {
        let catalogue = Catalogue::of(command);
        let foreign = self.entries.iter().filter_map(|(id, entry)| {
            let setting = catalogue.find(id).filter(|setting| !setting.is_of(SERVE) && !setting.is_of(name))?;
            let commands = setting.commands.join(", ");
            let fault = format!("{id}: is a setting of other commands ({commands}), and `{name}` does not take it");
            Some((entry.line, format!("{fault}; remove it, or use another file for them")))
        });
        self.refuse(foreign.collect())
    }

    /// Refuses a file that `--print-config` wrote without a secret which the command needs, and is not given elsewhere.
    pub fn check_masks(&self, matches: &ArgMatches, command: &Command) -> anyhow::Result<()> {
        let catalogue = Catalogue::of(command);
        let is_missing = |id: &str| {
            let given = [Some(ValueSource::CommandLine), Some(ValueSource::EnvVariable)];
            matches.try_contains_id(id).is_ok() && !given.contains(&matches.value_source(id))
        };
        let missing = self.masked.iter().filter(|(id, _)| is_missing(id)).filter_map(|(id, line)| {
            let variable = &catalogue.find(id)?.variable;
            let fault = format!("{id}: {MASK:?} stands for a value that --print-config does not show");
            Some((*line, format!("{fault}; write the value here, or remove the line and set {variable}")))
        });
        self.refuse(missing.collect())
    }

    /// Where a setting is in the file.
    pub fn line_of(&self, id: &str) -> Option<usize> {
        self.entries.get(id).map(|entry| entry.line).or_else(|| self.masked.get(id).copied())
    }

    /// Whether a setting is in the file without its value.
    pub fn is_masked(&self, id: &str) -> bool {
        self.masked.contains_key(id)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn refuse(&self, faults: Vec<(usize, String)>) -> anyhow::Result<()> {
        self.refuse_at(faults, ": ")
    }

    fn refuse_at(&self, mut faults: Vec<(usize, String)>, separator: &str) -> anyhow::Result<()> {
        faults.sort();
        let line = |(line, fault): &(usize, String)| format!("{}, line {line}{separator}{fault}", self.path.display());
        let lines = faults.iter().map(line);
        let lines: Vec<_> = lines.collect();
        anyhow::ensure!(lines.is_empty(), "{}", lines.join("\n"));
        Ok(())
    }
}

/// The setting that a key names, and its values as a command line would have them; or what is wrong.
fn entry(catalogue: &Catalogue, key: &str, value: &DeValue<'_>) -> Result<(String, Vec<String>), String> {
    if is_table(value) {
        return Err(table_fault(catalogue, key, value));
    }
    let Some(setting) = catalogue.find(key) else {
        let meant = did_you_mean(catalogue.meant(key).map(|setting| setting.id.as_str()));
        return Err(match catalogue.command_of_argument(key) {
            _ if key.replace('-', "_") == "config" => {
                format!("{key}: a settings file cannot name another one; remove it")
            }
            Some(command) => format!("{key}: is an argument of `meterd {command}`, not a setting{meant}"),
            None => format!("{key}: there is no such setting{meant}"),
        });
    };
    let values = values(setting, value).map_err(|fault| format!("{key}: {fault}"))?;
    for value in &values {
        check_value(setting, value).map_err(|fault| format!("{key}: {fault}"))?;
    }
    Ok((setting.id.clone(), values))
}

/// Tables, and arrays of them: `[[server]]`.
fn is_table(value: &DeValue<'_>) -> bool {
    value.is_table() || value.as_array().is_some_and(|array| array.iter().any(|item| item.get_ref().is_table()))
}

/// A table groups nothing here: its keys would be taken for another's, or for nobody's.
fn table_fault(catalogue: &Catalogue, key: &str, value: &DeValue<'_>) -> String {
    let inside = value.as_table().into_iter().flat_map(|table| table.keys());
    let known = inside.filter_map(|key| catalogue.meant(key.get_ref())).next().or_else(|| catalogue.find(key));
    let way_out = match known {
        Some(setting) => format!("write its settings without a table, such as `{} = …`", setting.id),
        None => "write settings as `key = value`, without a table".to_owned(),
    };
    format!("{key}: is a table, and a settings file has none; {way_out}")
}

fn values(setting: &Declared, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let text = |value: &DeValue<'_>| value.as_str().map(String::from);
    let (taken, rule) = match setting.kind {
        Kind::Flag => (value.as_bool().map(|value| vec![value.to_string()]), "must be true or false, without quotes"),
        Kind::Number => {
            let number = value.as_integer().map(|value| i64::from_str_radix(value.as_str(), value.radix()));
            let number = number.transpose().map_err(|_| "must be a whole number below 2^63".to_owned())?;
            (number.map(|value| vec![value.to_string()]), "must be a whole number, without quotes")
        }
        Kind::Text => (text(value).map(|text| vec![text]), "must be a text in quotes"),
        Kind::List => {
            let texts = value.as_array().map(|array| array.iter().map(|item| text(item.get_ref())).collect());
            (texts.flatten(), "must be a list of texts, such as [\"…\", \"…\"]")
        }
    };
    taken.ok_or_else(|| format!("{rule}; this is {}", type_name(value)))
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Has the flag's own rules say what is wrong with a value.
pub(super) fn check_value(setting: &Declared, value: &str) -> Result<(), String> {
    let arg = setting.arg.clone().env(None).global(false);
    let flag = format!("--{}={value}", setting.flag);
    let parsed = Command::new("meterd").disable_help_flag(true).arg(arg).try_get_matches_from(["meterd", &flag]);
    let Err(error) = parsed else { return Ok(()) };
    if let Some(cause) = error.source() {
        let is_no_number = setting.kind == Kind::Number && value.parse::<i64>().is_err();
        return Err(match is_no_number {
            true if value.is_empty() => EMPTY.to_owned(),
            true => format!("must be a whole number, got {value:?}"),
            false => cause.to_string(),
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
    let meant = did_you_mean(names(ContextKind::SuggestedValue).first().map(String::as_str));
    Err(if value.is_empty() { EMPTY.to_owned() } else { format!("{rule}{got}{meant}") })
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
}
