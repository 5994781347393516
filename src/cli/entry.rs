//! The part that all programs of meterd share: it combines arguments, environment and settings file, starts the log, prints errors
//! and chooses the exit code.

use crate::config::{self, InvalidVariables, SettingsFile};
use crate::log::{self, LogFormat, LogGuard};
use crate::print;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The text of `--version`. It marks a debug build, because `meterd-bench` reports which build it measures.
pub const LONG_VERSION: &str = if cfg!(debug_assertions) {
    concat!(env!("CARGO_PKG_VERSION"), " (debug build)")
} else {
    env!("CARGO_PKG_VERSION")
};

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Settings file in TOML format; its keys are the names of the flags
    #[arg(long, global = true, env = "METERD_CONFIG")]
    config: Option<PathBuf>,
    /// Levels of the log, such as "info" or "warn,meterd=debug" [default: info for serve, else warn]
    #[arg(long, global = true, env = "METERD_LOG", value_parser = log::parse_filter)]
    log: Option<String>,
    /// Format of the log [default: text on a terminal, else JSON]
    #[arg(long, global = true, env = "METERD_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

impl Common {
    /// Starts the log, until the guard is dropped. A server logs more than other commands, and also its panics.
    pub fn start_log(&self, is_server: bool) -> LogGuard {
        let default = if is_server {
            "info,sqlx::postgres::notice=warn,sqlx_postgres::options::pgpass=error"
        } else {
            // Commands print database errors themselves.
            "warn,sqlx=error"
        };
        // Container tools pass unset variables as empty ones.
        let filter = self.log.as_deref().filter(|filter| !filter.is_empty()).unwrap_or(default);
        if is_server {
            log::log_panics();
        }
        log::start(filter, self.log_format)
    }
}

/// The arguments of a program, and the settings file that they or the environment name.
pub struct CommandLine {
    arguments: Vec<OsString>,
    settings: Command,
    file: Option<SettingsFile>,
    invalid_variables: InvalidVariables,
}

impl CommandLine {
    /// Reads the settings file. `settings` has all commands whose settings may be in the file and the environment.
    pub fn read(arguments: Vec<OsString>, settings: Command) -> anyhow::Result<Self> {
        // Arguments after `--` are for another program.
        let own = arguments.split(|argument| argument == "--").next().unwrap_or_default();
        let named = own.iter().position(|argument| argument == "--config").and_then(|at| own.get(at + 1));
        let inline = own.iter().find_map(|argument| argument.to_str()?.strip_prefix("--config=").map(OsString::from));
        let path = named.cloned().or(inline).or_else(|| std::env::var_os("METERD_CONFIG"));
        let file = path.map(|path| SettingsFile::read(&PathBuf::from(path), &settings)).transpose()?;
        let invalid_variables = InvalidVariables::find(&settings, std::env::vars_os());
        Ok(Self { arguments, settings, file, invalid_variables })
    }

    /// Parses the arguments. Returns an exit code if it has printed the help or an error.
    pub fn parse<P: FromArgMatches>(&self, command: Command) -> Result<(P, ArgMatches), ExitCode> {
        let command = self.file.iter().fold(command, |command, file| file.apply(command));
        let command = self.invalid_variables.remove_from(command);
        let parsed = command
            .try_get_matches_from(&self.arguments)
            .and_then(|matches| Ok((P::from_arg_matches(&matches)?, matches)));
        parsed.map_err(|error| print_parse_error(&error, &self.arguments))
    }

    /// Checks the environment and the settings file for the command of this name in `settings`.
    pub fn check(&self, name: &str, matches: &ArgMatches, common: &Common) -> anyhow::Result<()> {
        self.check_variables(name, matches)?;
        self.invalid_variables.check(matches)?;
        if let Some(file) = &self.file {
            file.check_keys_of(name, &self.settings)?;
            config::hints::set_config_file(file.path());
        }
        anyhow::ensure!(
            common.config.as_deref() == self.file.as_ref().map(SettingsFile::path),
            "--config: can be given only once, as --config FILE"
        );
        Ok(())
    }

    /// Checks the environment for variables with misspelt names. They are an error for a command that opens a database, and a
    /// warning for other commands.
    fn check_variables(&self, name: &str, matches: &ArgMatches) -> anyhow::Result<()> {
        let mut unknown = config::unknown_variables(&self.settings, std::env::vars_os());
        let opens_database = config::opens_database(&self.settings, name);
        if opens_database && !config::chooses_database(matches, &self.settings, self.file.as_ref()) {
            unknown.extend(config::misspelt_database_urls(std::env::vars_os()));
        }
        anyhow::ensure!(unknown.is_empty() || !opens_database, "{}", unknown.join("\n"));
        unknown.iter().for_each(|message| print::note(format_args!("warning: {message}")));
        Ok(())
    }

    /// Prepares the hints of later errors and checks the combination of database settings. Returns notes to print.
    pub fn notes(&self, name: &str, matches: &ArgMatches) -> anyhow::Result<Vec<String>> {
        let file = self.file.as_ref();
        config::hints::set_sources(config::setting_sources(matches, &self.settings, file));
        if config::is_set_by_flag(matches, "database_url") {
            config::hints::set_url_flag();
        }
        if let Some(file) = file {
            file.check_masks(config::innermost(matches), &self.settings)?;
        }
        match config::opens_database(&self.settings, name) {
            true => config::check_database(matches, &self.settings, file),
            false => Ok(vec![]),
        }
    }

    /// The settings in effect, as a settings file.
    pub fn effective(&self, matches: &ArgMatches) -> String {
        config::effective(&self.settings, matches, self.file.as_ref())
    }
}

/// Prints the error of the parser, or the help. Returns the exit code; `serve --check` only uses 0 and 1.
fn print_parse_error(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    match config::plain_parse_error(error) {
        Some(text) => print::note(format_args!("{}", text.trim_end())),
        None => drop(error.print()),
    }
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if arguments.iter().any(|argument| argument == "--check") => ExitCode::FAILURE,
        code => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    }
}

/// Prints the error of a failed command, through the log if there is one.
pub fn fail(error: &anyhow::Error, log: Option<&LogGuard>) -> ExitCode {
    let text = meterd_store::database::cause::text(error);
    match log {
        Some(log) => log.write_unformatted(&format!("error: {text}")),
        None => print::note(format_args!("error: {text}")),
    }
    ExitCode::FAILURE
}
