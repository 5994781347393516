//! The commands.

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use meterd::cli::{self, Command};
use meterd::config::{self, SettingsFile, WrongVariables};
use meterd::log::{self, LogFormat, LogGuard};
use meterd::print;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Many small allocations from several threads: with the system's allocator they are a fifth of what an event costs.
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
    /// Settings file: TOML, with the names of the flags as keys
    #[arg(long, global = true, env = "METERD_CONFIG")]
    config: Option<PathBuf>,
    /// What to log, such as "info" or "warn,meterd=debug"
    #[arg(long, global = true, env = "METERD_LOG", value_parser = log::parse_filter)]
    log: Option<String>,
    /// How to log. Default: text on a terminal, JSON elsewhere
    #[arg(long, global = true, env = "METERD_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

/// Without a command, `serve` is meant: also where only its flags are given.
fn with_default_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let command = Cli::command();
    let named = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text == "help" || command.get_subcommands().any(|sub| sub.get_name() == text)
    };
    let asks = |argument: &OsString| matches!(argument.to_str(), Some("-h" | "--help" | "-V" | "--version"));
    let first = arguments.get(1);
    if first.is_none() || (!arguments.iter().skip(1).any(named) && first.is_some_and(|first| !asks(first))) {
        let flags_only = first.is_none_or(|first| first.to_string_lossy().starts_with('-'));
        if flags_only {
            arguments.insert(1, "serve".into());
        }
    }
    arguments
}

/// What was asked for.
enum Asked {
    Run {
        cli: Box<Cli>,
        /// What is worth a note about the settings.
        notes: Vec<String>,
    },
    /// Nothing is left to do but to end.
    Answered(ExitCode),
}

/// Parses the arguments over the settings file that they or the environment name.
fn parse() -> anyhow::Result<Asked> {
    let arguments = with_default_command(std::env::args_os().collect());
    let bare = cli::help::arranged(Cli::command());
    let named = arguments.iter().position(|argument| argument == "--config").and_then(|at| arguments.get(at + 1));
    let inline = arguments.iter().find_map(|argument| argument.to_str()?.strip_prefix("--config=").map(OsString::from));
    let path = named.cloned().or(inline).or_else(|| std::env::var_os("METERD_CONFIG"));
    let file = path.map(|path| SettingsFile::read(&PathBuf::from(path), &bare)).transpose()?;
    let command = file.iter().fold(bare.clone(), |command, file| file.apply(command));
    let wrong_variables = WrongVariables::find(&bare, std::env::vars_os());
    let command = wrong_variables.left_out(command);
    let matches = match command.try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return Ok(Asked::Answered(refuse(&error, &arguments))),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return Ok(Asked::Answered(refuse(&error, &arguments))),
    };
    let (name, of_command) = matches.subcommand().context("a command is required")?;
    check_variables(&bare, name, &matches, file.as_ref())?;
    wrong_variables.refuse(&matches)?;
    if let Some(file) = &file {
        file.check_keys_of(name, &bare)?;
        config::hints::with_config(file.path());
    }
    anyhow::ensure!(
        cli.common.config.as_deref() == file.as_ref().map(SettingsFile::path),
        "--config: give it once, as --config FILE"
    );
    if let Command::Serve(args) = &cli.command
        && args.print_config
    {
        print::line(format_args!("{}", config::effective(&bare, of_command, file.as_ref())));
        if !args.check {
            return Ok(Asked::Answered(ExitCode::SUCCESS));
        }
    }
    config::hints::with_places(config::places(&matches, &bare, file.as_ref()));
    if config::is_by_flag(&matches, "database_url") {
        config::hints::with_url_flag();
    }
    if let Some(file) = &file {
        file.check_masks(config::innermost(&matches), &bare)?;
    }
    let notes = match config::opens_a_database(&bare, name) {
        true => config::check_database(&matches, &bare, file.as_ref())?,
        false => vec![],
    };
    Ok(Asked::Run { cli: Box::new(cli), notes })
}

/// Prints what is wrong with the arguments, or the help. `serve --check` knows two exit codes only.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    drop(error.print());
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if arguments.iter().any(|argument| argument == "--check") => ExitCode::FAILURE,
        code => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    }
}

/// Refuses misspelt variables where they would change what is served or which database is opened, and names them elsewhere.
fn check_variables(
    command: &clap::Command,
    name: &str,
    matches: &clap::ArgMatches,
    file: Option<&SettingsFile>,
) -> anyhow::Result<()> {
    let mut wrong = config::wrong_variables(command, std::env::vars_os());
    let opens_a_database = config::opens_a_database(command, name);
    if opens_a_database && !config::chooses_a_database(matches, command, file) {
        wrong.extend(config::meant_urls(std::env::vars_os()));
    }
    anyhow::ensure!(wrong.is_empty() || !opens_a_database, "{}", wrong.join("\n"));
    wrong.iter().for_each(|wrong| print::note(format_args!("warning: {wrong}")));
    Ok(())
}

fn start_log(common: &Common, is_server: bool) -> LogGuard {
    let default = if is_server {
        "info,sqlx::postgres::notice=warn,sqlx_postgres::options::pgpass=error"
    } else {
        // What a command has to say of its database it says itself.
        "warn,sqlx=error"
    };
    // Empty, as container tools pass what is not set, is not set.
    let filter = common.log.as_deref().filter(|filter| !filter.is_empty()).unwrap_or(default);
    if is_server {
        log::log_panics();
    }
    log::start(filter, common.log_format)
}

#[tokio::main]
async fn main() -> ExitCode {
    let (cli, notes) = match parse() {
        Ok(Asked::Run { cli, notes }) => (cli, notes),
        Ok(Asked::Answered(code)) => return print::end(code),
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
        // Nobody has to read what a server prints.
        Ok(code) if is_server => code,
        Ok(code) => print::end(code),
        Err(error) => fail(&error, Some(&log).filter(|_| is_server)),
    }
}

/// Says why a command has failed; by way of the log where that may be read by nobody.
fn fail(error: &anyhow::Error, log: Option<&LogGuard>) -> ExitCode {
    let text = meterd_store::cause::text(error);
    match log {
        Some(log) => log.say(&format!("error: {text}")),
        None => print::note(format_args!("error: {text}")),
    }
    ExitCode::FAILURE
}
