//! The flags of `meterd keys`.

use crate::cli::connect::ConnectArgs;
use crate::cli::time::parse_flag_time;
use crate::config::DatabaseSettings;
use chrono::{DateTime, Utc};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use std::time::Duration;

/// Arguments of `keys`.
#[derive(Args, Clone, Debug)]
pub struct KeysArgs {
    #[command(subcommand)]
    pub command: KeysCommand,
}

/// Subcommands of `keys`.
#[derive(Subcommand, Clone, Debug)]
pub enum KeysCommand {
    /// Create a key; its token is shown only once
    Create(Box<CreateArgs>),
    /// List keys, the oldest first
    List(ListArgs),
    /// Replace a key by a new one; the old key stays valid for 24 hours, or for --overlap
    Rotate(RotateArgs),
    /// Revoke a key permanently
    Revoke(RevokeArgs),
}

/// Arguments of `keys create`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("covered_clients").required(true).args(["clients", "all_clients"]))]
pub struct CreateArgs {
    /// Display name, such as "billing backend"
    pub name: String,
    /// Scope of the key; repeat the flag for more
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', required = true)]
    pub scopes: Vec<ScopeArg>,
    /// Client that the key covers; repeat the flag for more
    #[arg(long = "client", value_name = "CLIENT")]
    pub clients: Vec<String>,
    /// The key covers all clients
    #[arg(long)]
    pub all_clients: bool,
    /// Expiry of the key: a time such as 2027-01-01, or a duration such as 90d or 12h [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_expiry)]
    pub expires: Option<Expiry>,
    /// Maximum number of calls per second; 0 means the setting --key-requests-per-second of the server
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=1_000_000))]
    pub requests_per_second: i32,
    /// Create the key directly in the database, without a server, for example the first key
    #[arg(long)]
    pub direct: bool,
    /// With --direct, create the data directory and its database if they do not exist. The default data directory and an empty
    /// directory do not need this flag
    #[arg(long, requires = "direct")]
    pub new_database: bool,
    #[command(flatten)]
    pub database: DatabaseSettings,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `keys list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only keys that are neither revoked nor expired
    #[arg(long)]
    pub live: bool,
    /// Print JSON, one key per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `keys rotate`.
#[derive(Args, Clone, Debug)]
pub struct RotateArgs {
    /// Id of the old key
    #[arg(value_name = "KEY_ID")]
    pub key_id: String,
    /// How long the old key stays valid, such as 24h or 7d
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub overlap: Duration,
    /// Expiry of the new key [default: the same lifetime as the old key, or never]
    #[arg(long, value_name = "TIME", value_parser = parse_expiry)]
    pub expires: Option<Expiry>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `keys revoke`.
#[derive(Args, Clone, Debug)]
pub struct RevokeArgs {
    /// Id of the key
    #[arg(value_name = "KEY_ID")]
    pub key_id: String,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// How to print a new key.
#[derive(Args, Clone, Debug)]
pub struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print only the token, for METERD_API_KEY=$(…)
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
}

/// Scope of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    /// Record usage
    Ingest,
    /// Read clients, usage and alerts
    Read,
    /// Everything
    Admin,
}

/// A time, or a duration from now.
#[derive(Clone, Debug)]
pub enum Expiry {
    At(Timestamp),
    After(Duration),
}

impl Expiry {
    /// Returns the time.
    pub fn time(&self, now: DateTime<Utc>) -> Timestamp {
        match self {
            Self::At(time) => *time,
            Self::After(duration) => Timestamp {
                seconds: now.timestamp().saturating_add_unsigned(duration.as_secs()),
                nanos: now.timestamp_subsec_nanos() as i32,
            },
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a number and a unit, such as 30m, 24h or 90d".to_owned();
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let count: u32 = digits.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    Ok(Duration::from_secs(u64::from(count) * seconds))
}

fn parse_expiry(text: &str) -> Result<Expiry, String> {
    parse_duration(text).map(Expiry::After).or_else(|_| {
        let time =
            parse_flag_time(text).map_err(|error| format!("{error}; or a duration from now, such as 90d or 12h"))?;
        Ok(Expiry::At(time))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_time_or_a_duration_from_now() {
        let now = DateTime::from_timestamp(1_795_220_400, 0).unwrap();
        let seconds = |text: &str| parse_expiry(text).unwrap().time(now).seconds - now.timestamp();
        assert_eq!((seconds("90d"), seconds("12h"), seconds("30m")), (90 * 86_400, 12 * 3_600, 1_800));
        assert_eq!(parse_expiry("2027-01-01").unwrap().time(now).seconds, 1_798_761_600);
        for wrong in ["", "d", "x", "-1d", "1w"] {
            assert!(parse_expiry(wrong).is_err(), "{wrong}");
        }
    }
}
