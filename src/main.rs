//! The command line of meterd: parses the arguments, starts the log, runs the command.

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use meterd::cli::{self, Command};
use meterd::config::{self, InvalidVariables, SettingsFile};
use meterd::log::{self, LogFormat, LogGuard};
use meterd::print;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// An event needs many small allocations on several threads. With the system's allocator they take a fifth of its CPU time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Usage metering over gRPC: exact prices, exact months, one binary, one PostgreSQL.
#[derive(Parser)]
#[command(name = "meterd", version, about)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Settings file in TOML format; its keys are the names of the flags
    #[arg(long, global = true, env = "METERD_CONFIG")]
    config: Option<PathBuf>,
    /// Levels of the log, such as "info" or "warn,meterd=debug"
    #[arg(long, global = true, env = "METERD_LOG", value_parser = log::parse_filter)]
    log: Option<String>,
    /// Format of the log [default: text on a terminal, else JSON]
    #[arg(long, global = true, env = "METERD_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

/// Inserts `serve` if the arguments contain no command but only flags, or nothing.
fn with_default_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let command = Cli::command();
    let is_command_name = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text == "help" || command.get_subcommands().any(|sub| sub.get_name() == text)
    };
    let is_help_or_version =
        |argument: &OsString| matches!(argument.to_str(), Some("-h" | "--help" | "-V" | "--version"));
    let first = arguments.get(1);
    if first.is_none()
        || (!arguments.iter().skip(1).any(is_command_name) && first.is_some_and(|first| !is_help_or_version(first)))
    {
        let flags_only = first.is_none_or(|first| first.to_string_lossy().starts_with('-'));
        if flags_only {
            arguments.insert(1, "serve".into());
        }
    }
    arguments
}

/// Result of parsing the command line.
enum Invocation {
    Run {
        cli: Box<Cli>,
        /// Notes about settings that have no effect.
        notes: Vec<String>,
    },
    /// The output is already printed; the process exits with this code.
    Exit(ExitCode),
}

/// Parses the arguments and the environment, with the values of the settings file as defaults.
fn parse() -> anyhow::Result<Invocation> {
    let arguments = with_default_command(std::env::args_os().collect());
    let bare = cli::help::arranged(Cli::command());
    let separate = arguments.iter().position(|argument| argument == "--config").and_then(|at| arguments.get(at + 1));
    let inline = arguments.iter().find_map(|argument| argument.to_str()?.strip_prefix("--config=").map(OsString::from));
    let path = separate.cloned().or(inline).or_else(|| std::env::var_os("METERD_CONFIG"));
    let file = path.map(|path| SettingsFile::read(&PathBuf::from(path), &bare)).transpose()?;
    let command = file.iter().fold(bare.clone(), |command, file| file.apply(command));
    let invalid_variables = InvalidVariables::find(&bare, std::env::vars_os());
    let command = invalid_variables.remove_from(command);
    let matches = match command.try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return Ok(Invocation::Exit(print_parse_error(&error, &arguments))),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return Ok(Invocation::Exit(print_parse_error(&error, &arguments))),
    };
    let (name, of_command) = matches.subcommand().context("a command is required")?;
    check_variables(&bare, name, &matches, file.as_ref())?;
    invalid_variables.check(&matches)?;
    if let Some(file) = &file {
        file.check_keys_of(name, &bare)?;
        config::hints::set_config_file(file.path());
    }
    anyhow::ensure!(
        cli.common.config.as_deref() == file.as_ref().map(SettingsFile::path),
        "--config: can be given only once, as --config FILE"
    );
    if let Command::Serve(args) = &cli.command
        && args.print_config
    {
        print::line(format_args!("{}", config::effective(&bare, of_command, file.as_ref())));
        if !args.check {
            return Ok(Invocation::Exit(ExitCode::SUCCESS));
        }
    }
    config::hints::set_sources(config::setting_sources(&matches, &bare, file.as_ref()));
    if config::is_set_by_flag(&matches, "database_url") {
        config::hints::set_url_flag();
    }
    if let Some(file) = &file {
        file.check_masks(config::innermost(&matches), &bare)?;
    }
    let notes = match config::opens_database(&bare, name) {
        true => config::check_database(&matches, &bare, file.as_ref())?,
        false => vec![],
    };
    Ok(Invocation::Run { cli: Box::new(cli), notes })
}

/// Prints the error of the parser, or the help. Returns the exit code; `serve --check` only uses 0 and 1.
fn print_parse_error(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    drop(error.print());
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if arguments.iter().any(|argument| argument == "--check") => ExitCode::FAILURE,
        code => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    }
}

/// Checks the environment for variables with misspelt names. They are an error for a command that opens a database, and a
/// warning for other commands.
fn check_variables(
    command: &clap::Command,
    name: &str,
    matches: &clap::ArgMatches,
    file: Option<&SettingsFile>,
) -> anyhow::Result<()> {
    let mut unknown = config::unknown_variables(command, std::env::vars_os());
    let opens_database = config::opens_database(command, name);
    if opens_database && !config::chooses_database(matches, command, file) {
        unknown.extend(config::misspelt_database_urls(std::env::vars_os()));
    }
    anyhow::ensure!(unknown.is_empty() || !opens_database, "{}", unknown.join("\n"));
    unknown.iter().for_each(|message| print::note(format_args!("warning: {message}")));
    Ok(())
}

fn start_log(common: &Common, is_server: bool) -> LogGuard {
    let default = if is_server {
        "info,sqlx::postgres::notice=warn,sqlx_postgres::options::pgpass=error"
    } else {
        // A command reports database errors itself.
        "warn,sqlx=error"
    };
    // Container tools pass an unset variable as an empty one.
    let filter = common.log.as_deref().filter(|filter| !filter.is_empty()).unwrap_or(default);
    if is_server {
        log::log_panics();
    }
    log::start(filter, common.log_format)
}

#[tokio::main]
async fn main() -> ExitCode {
    let (cli, notes) = match parse() {
        Ok(Invocation::Run { cli, notes }) => (cli, notes),
        Ok(Invocation::Exit(code)) => return print::finish(code),
        Err(error) => return fail(&error, None),
    };
    let is_server = matches!(&cli.command, Command::Serve(args) if !args.check);
    let log = start_log(&cli.common, is_server);
    for note in notes {
        match is_server {
            true => tracing::warn!("{note}"),
            false => print::note(format_args!("note: {note}")),
        }
    }
    match cli::run(cli.command).await {
        // A server does not fail because its standard output is closed.
        Ok(code) if is_server => code,
        Ok(code) => print::finish(code),
        Err(error) => fail(&error, Some(&log).filter(|_| is_server)),
    }
}

/// Prints the error of a command. A server prints it through the log, so that an unread standard error cannot block it.
fn fail(error: &anyhow::Error, log: Option<&LogGuard>) -> ExitCode {
    let text = meterd_store::cause::text(error);
    match log {
        Some(log) => log.write_unformatted(&format!("error: {text}")),
        None => print::note(format_args!("error: {text}")),
    }
    ExitCode::FAILURE
}
