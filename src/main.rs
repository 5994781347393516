//! The commands.

use clap::{Args, CommandFactory, FromArgMatches, Parser};
use meterd::cli::{self, Command};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

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
    #[arg(long, global = true, env = "METERD_LOG")]
    log: Option<String>,
    /// How to log. Default: text on a terminal, JSON elsewhere
    #[arg(long, global = true, env = "METERD_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
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

/// Parses the arguments over the settings file that they or the environment name.
fn parse() -> anyhow::Result<Cli> {
    let arguments = with_default_command(std::env::args_os().collect());
    let mut command = Cli::command();
    let named = arguments.iter().position(|argument| argument == "--config").and_then(|at| arguments.get(at + 1));
    let inline = arguments.iter().find_map(|argument| argument.to_str()?.strip_prefix("--config=").map(OsString::from));
    if let Some(file) = named.cloned().or(inline).or_else(|| std::env::var_os("METERD_CONFIG")) {
        command = meterd::config::with_file(command, &PathBuf::from(file))?;
    }
    let matches = command.get_matches_from(arguments);
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

fn log(common: &Common, server: bool) {
    let default = if server { "info,sqlx::postgres::notice=warn" } else { "warn" };
    let filter = EnvFilter::new(common.log.as_deref().unwrap_or(default));
    let format = match common.log_format {
        Some(format) => format,
        None if std::io::stderr().is_terminal() => LogFormat::Text,
        None => LogFormat::Json,
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let run = async {
        let cli = parse()?;
        log(&cli.common, matches!(cli.command, Command::Serve(_)));
        cli::run(cli.command).await
    };
    run.await.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("error: {}", meterd::store::cause::text(&error));
        ExitCode::FAILURE
    })
}
