//! The command line of meterd: parses the arguments, starts the log, runs the command.

use anyhow::Context;
use clap::{CommandFactory, Parser};
use meterd::cli::entry::{self, CommandLine, Common, fail};
use meterd::cli::{self, Command};
use meterd::print;
use std::ffi::OsString;
use std::process::ExitCode;

/// An event needs many small allocations on several threads. With the system's allocator they take a fifth of its CPU time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Usage metering over gRPC: exact prices, exact months, one binary, one PostgreSQL.
#[derive(Parser)]
#[command(name = "meterd", version, long_version = entry::LONG_VERSION, about)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
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
    let command = cli::help::arranged(Cli::command());
    let line = CommandLine::read(with_default_command(std::env::args_os().collect()), command.clone())?;
    let (cli, matches) = match line.parse::<Cli>(command) {
        Ok(parsed) => parsed,
        Err(code) => return Ok(Invocation::Exit(code)),
    };
    let (name, of_command) = matches.subcommand().context("a command is required")?;
    line.check(name, &matches, &cli.common)?;
    if let Command::Serve(args) = &cli.command
        && args.print_config
    {
        print::line(format_args!("{}", line.effective(of_command)));
        if !args.check {
            return Ok(Invocation::Exit(ExitCode::SUCCESS));
        }
    }
    let notes = line.notes(name, &matches)?;
    Ok(Invocation::Run { cli: Box::new(cli), notes })
}

#[tokio::main]
async fn main() -> ExitCode {
    let (cli, notes) = match parse() {
        Ok(Invocation::Run { cli, notes }) => (cli, notes),
        Ok(Invocation::Exit(code)) => return print::finish(code),
        Err(error) => return fail(&error, None),
    };
    let is_server = matches!(&cli.command, Command::Serve(args) if !args.check);
    let log = cli.common.start_log(is_server);
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
