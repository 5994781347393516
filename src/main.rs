//! The commands.

use anyhow::Context;
use clap::{CommandFactory, Parser};
use meterd::cli::entry::{self, Common, Given, fail};
use meterd::cli::{self, Command};
use meterd::print;
use std::ffi::OsString;
use std::process::ExitCode;

/// Many small allocations from several threads: with the system's allocator they are a fifth of what an event costs.
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
    let command = cli::help::arranged(Cli::command());
    let given = Given::read(with_default_command(std::env::args_os().collect()), command.clone())?;
    let (cli, matches) = match given.parse::<Cli>(command) {
        Ok(parsed) => parsed,
        Err(code) => return Ok(Asked::Answered(code)),
    };
    let (name, of_command) = matches.subcommand().context("a command is required")?;
    given.check(name, &matches, &cli.common)?;
    if let Command::Serve(args) = &cli.command
        && args.print_config
    {
        print::line(format_args!("{}", given.effective(of_command)));
        if !args.check {
            return Ok(Asked::Answered(ExitCode::SUCCESS));
        }
    }
    let notes = given.notes(name, &matches)?;
    Ok(Asked::Run { cli: Box::new(cli), notes })
}

#[tokio::main]
async fn main() -> ExitCode {
    let (cli, notes) = match parse() {
        Ok(Asked::Run { cli, notes }) => (cli, notes),
        Ok(Asked::Answered(code)) => return print::end(code),
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
        // Nobody has to read what a server prints.
        Ok(code) if is_server => code,
        Ok(code) => print::end(code),
        Err(error) => fail(&error, Some(&log).filter(|_| is_server)),
    }
}
