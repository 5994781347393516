//! Finds the source of each setting (flag, variable, file) and checks combinations of settings.

use super::file::{SettingsFile, check_value};
use super::specs::{SettingSpec, SettingSpecs};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// Settings of the embedded PostgreSQL. They have no effect together with a database URL.
const EMBEDDED_SETTINGS: [&str; 4] = ["data_dir", "postgres_bin_dir", "postgres_download", "postgres_download_url"];

/// Errors of environment variables with invalid values, by the key of the setting.
pub struct InvalidVariables(BTreeMap<String, String>);

impl InvalidVariables {
    /// Checks the variables of all settings.
    pub fn find(command: &Command, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let specs = SettingSpecs::of(command);
        let by_name: BTreeMap<&str, &SettingSpec> =
            specs.iter().map(|setting| (setting.variable.as_str(), setting)).collect();
        let invalid = variables.filter_map(|(name, value)| {
            let setting = by_name.get(name.to_str()?)?;
            let fault = check_value(setting, value.to_str()?).err()?;
            let is_named = fault.starts_with(&setting.variable);
            let fault = if is_named { fault } else { format!("{}: {fault}", setting.variable) };
            Some((setting.id.clone(), fault))
        });
        Self(invalid.collect())
    }

    /// Removes these variables from the command, so that the parser can report other errors first.
    pub fn remove_from(&self, command: Command) -> Command {
        let without = |arg: Arg| match self.0.contains_key(arg.get_id().as_str()) {
            true => arg.env(None::<&str>),
            false => arg,
        };
        command.mut_args(without).mut_subcommands(|sub| self.remove_from(sub))
    }

    /// An error if the command would use one of these variables. A flag takes precedence over its variable.
    pub fn check(&self, matches: &ArgMatches) -> anyhow::Result<()> {
        let matches = innermost(matches);
        let used =
            self.0.iter().filter(|(id, _)| accepts(matches, id) && source(matches, id) != ValueSource::CommandLine);
        let lines: Vec<&str> = used.map(|(_, fault)| fault.as_str()).collect();
        match &lines[..] {
            [] => Ok(()),
            [fault] => anyhow::bail!("{fault}"),
            lines => anyhow::bail!("{} environment variables are wrong:\n{}", lines.len(), lines.join("\n")),
        }
    }
}

/// The matches of the command that runs.
pub fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| innermost(matches))
}

/// Whether a setting was set by its flag.
pub fn is_set_by_flag(matches: &ArgMatches, id: &str) -> bool {
    let matches = innermost(matches);
    accepts(matches, id) && source(matches, id) == ValueSource::CommandLine
}

fn accepts(matches: &ArgMatches, id: &str) -> bool {
    matches.try_contains_id(id).is_ok()
}

fn source(matches: &ArgMatches, id: &str) -> ValueSource {
    matches.value_source(id).unwrap_or(ValueSource::DefaultValue)
}

/// The source of a setting, such as `--listen`, and its kind. `None` if the setting has its default or the command does not
/// accept it.
fn explicit_source(
    matches: &ArgMatches,
    specs: &SettingSpecs,
    file: Option<&SettingsFile>,
    id: &str,
) -> Option<(ValueSource, String)> {
    let setting = specs.find(id).filter(|_| accepts(matches, id))?;
    let source = source(matches, id);
    let name = match source {
        ValueSource::CommandLine => format!("--{}", setting.flag),
        ValueSource::EnvVariable => setting.variable.clone(),
        _ => {
            let file = file?;
            format!("{id} ({}, line {})", file.path().display(), file.line_of(id)?)
        }
    };
    Some((source, name))
}

/// The flags of all settings that come from a variable or the file, each with the name of its source.
pub fn setting_sources(matches: &ArgMatches, command: &Command, file: Option<&SettingsFile>) -> Vec<(String, String)> {
    let (matches, specs) = (innermost(matches), SettingSpecs::of(command));
    let flag_and_source = |setting: &SettingSpec| {
        let (source, name) = explicit_source(matches, &specs, file, &setting.id)?;
        (source != ValueSource::CommandLine).then(|| (format!("--{}", setting.flag), name))
    };
    specs.iter().filter_map(flag_and_source).collect()
}

/// Whether the settings choose a database: by its URL, or by the data directory of the embedded PostgreSQL.
pub fn chooses_database(matches: &ArgMatches, command: &Command, file: Option<&SettingsFile>) -> bool {
    let (matches, specs) = (innermost(matches), SettingSpecs::of(command));
    ["database_url", "data_dir"].iter().any(|id| explicit_source(matches, &specs, file, id).is_some())
}

/// Checks settings of the embedded PostgreSQL that have no effect because of a database URL. A flag is an error; a variable
/// or a key of the file is a note. Returns the notes.
pub fn check_database(
    matches: &ArgMatches,
    command: &Command,
    file: Option<&SettingsFile>,
) -> anyhow::Result<Vec<String>> {
    let (matches, specs) = (innermost(matches), SettingSpecs::of(command));
    let find = |id| explicit_source(matches, &specs, file, id);
    let Some((_, url)) = find("database_url") else { return Ok(vec![]) };
    let unused: Vec<_> = EMBEDDED_SETTINGS.iter().filter_map(|id| find(id)).collect();
    let (flags, others): (Vec<_>, Vec<_>) =
        unused.into_iter().partition(|(source, _)| *source == ValueSource::CommandLine);
    let names = |sources: &[(ValueSource, String)]| {
        sources.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    anyhow::ensure!(
        flags.is_empty(),
        "{}: applies only to the embedded PostgreSQL, but {url} selects another database: remove one of the two",
        names(&flags)
    );
    let note = format!("{}: has no effect because {url} selects the database", names(&others));
    Ok(if others.is_empty() { vec![] } else { vec![note] })
}
