//! Finds where each setting was given (flag, variable, file) and checks combinations.

use super::declared::{Catalogue, Declared};
use super::file::{SettingsFile, check_value};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// Settings of meterd's own PostgreSQL, which do nothing beside somebody's.
const OF_THE_EMBEDDED: [&str; 4] = ["data_dir", "postgres_bin_dir", "postgres_download", "postgres_download_url"];

/// Variables with values that their settings do not take, by the keys of these.
pub struct WrongVariables(BTreeMap<String, String>);

impl WrongVariables {
    /// Checks the variables of all settings.
    pub fn find(command: &Command, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let catalogue = Catalogue::of(command);
        let by_name: BTreeMap<&str, &Declared> =
            catalogue.iter().map(|setting| (setting.variable.as_str(), setting)).collect();
        let wrong = variables.filter_map(|(name, value)| {
            let setting = by_name.get(name.to_str()?)?;
            let fault = check_value(setting, value.to_str()?).err()?;
            let is_named = fault.starts_with(&setting.variable);
            let fault = if is_named { fault } else { format!("{}: {fault}", setting.variable) };
            Some((setting.id.clone(), fault))
        });
        Self(wrong.collect())
    }

    /// The command without them, so that what else there is to say can be said.
    pub fn left_out(&self, command: Command) -> Command {
        let without = |arg: Arg| match self.0.contains_key(arg.get_id().as_str()) {
            true => arg.env(None::<&str>),
            false => arg,
        };
        command.mut_args(without).mut_subcommands(|sub| self.left_out(sub))
    }

    /// Refuses those that the command would have used: a flag wins over its variable.
    pub fn refuse(&self, matches: &ArgMatches) -> anyhow::Result<()> {
        let matches = innermost(matches);
        let used =
            self.0.iter().filter(|(id, _)| is_of(matches, id) && source(matches, id) != ValueSource::CommandLine);
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

/// Whether a setting was given by its flag.
pub fn is_by_flag(matches: &ArgMatches, id: &str) -> bool {
    let matches = innermost(matches);
    is_of(matches, id) && source(matches, id) == ValueSource::CommandLine
}

fn is_of(matches: &ArgMatches, id: &str) -> bool {
    matches.try_contains_id(id).is_ok()
}

fn source(matches: &ArgMatches, id: &str) -> ValueSource {
    matches.value_source(id).unwrap_or(ValueSource::DefaultValue)
}

/// Where the command that runs has a setting from, in words. None: it has the default, or does not take it.
fn given(
    matches: &ArgMatches,
    catalogue: &Catalogue,
    file: Option<&SettingsFile>,
    id: &str,
) -> Option<(ValueSource, String)> {
    let setting = catalogue.find(id).filter(|_| is_of(matches, id))?;
    let source = source(matches, id);
    let place = match source {
        ValueSource::CommandLine => format!("--{}", setting.flag),
        ValueSource::EnvVariable => setting.variable.clone(),
        _ => {
            let file = file?;
            format!("{id} ({}, line {})", file.path().display(), file.line_of(id)?)
        }
    };
    Some((source, place))
}

/// The flags of settings that were given in another way, and where.
pub fn places(matches: &ArgMatches, command: &Command, file: Option<&SettingsFile>) -> Vec<(String, String)> {
    let (matches, catalogue) = (innermost(matches), Catalogue::of(command));
    let place = |setting: &Declared| {
        let (source, place) = given(matches, &catalogue, file, &setting.id)?;
        (source != ValueSource::CommandLine).then(|| (format!("--{}", setting.flag), place))
    };
    catalogue.iter().filter_map(place).collect()
}

/// Whether the database was chosen: somebody's by its URL, or a place for meterd's own.
pub fn chooses_a_database(matches: &ArgMatches, command: &Command, file: Option<&SettingsFile>) -> bool {
    let (matches, catalogue) = (innermost(matches), Catalogue::of(command));
    ["database_url", "data_dir"].iter().any(|id| given(matches, &catalogue, file, id).is_some())
}

/// What was given for meterd's own PostgreSQL and does nothing, since a URL names another database. It is an error on the
/// command line: the flag says which database is meant.
pub fn check_database(
    matches: &ArgMatches,
    command: &Command,
    file: Option<&SettingsFile>,
) -> anyhow::Result<Vec<String>> {
    let (matches, catalogue) = (innermost(matches), Catalogue::of(command));
    let given = |id| given(matches, &catalogue, file, id);
    let Some((_, url)) = given("database_url") else { return Ok(vec![]) };
    let unused: Vec<_> = OF_THE_EMBEDDED.iter().filter_map(|id| given(id)).collect();
    let (flags, others): (Vec<_>, Vec<_>) =
        unused.into_iter().partition(|(source, _)| *source == ValueSource::CommandLine);
    let names = |places: &[(ValueSource, String)]| {
        places.iter().map(|(_, place)| place.as_str()).collect::<Vec<_>>().join(", ")
    };
    anyhow::ensure!(
        flags.is_empty(),
        "{}: is for meterd's own PostgreSQL, and {url} names another database: leave out one of the two",
        names(&flags)
    );
    let note = format!("{}: has no effect, because {url} names the database", names(&others));
    Ok(if others.is_empty() { vec![] } else { vec![note] })
}
