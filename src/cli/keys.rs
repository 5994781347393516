//! `meterd keys`: creates, lists, rotates and revokes API keys.

mod hints;

use super::chart::table;
use super::connect::{self, ConnectArgs, Connection};
use super::signals;
use super::time::{parse_flag_time, time_text};
use crate::config::{self, DatabaseSettings};
use crate::database::{Database, command_pool};
use crate::grpc::audit;
use crate::print;
use crate::proto::key_service_client::KeyServiceClient;
use crate::proto::{ApiKey, CreateApiKeyRequest, Grant, RevokeApiKeyRequest, RotateApiKeyRequest, Scope};
use chrono::{DateTime, Utc};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use meterd_domain::access::ActorKind;
use meterd_domain::access::Grants;
use meterd_engine::auth::keys::{self, NewKey};
use meterd_engine::auth::{Caller, token};
use meterd_engine::clock::Clock;
use meterd_store::{connect as store, deployment};
use prost_types::Timestamp;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

const CALL_SECONDS: u64 = 30;

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
    fn time(&self, now: DateTime<Utc>) -> Timestamp {
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

/// Runs the subcommand.
pub async fn run(args: KeysArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        KeysCommand::Create(args) => create(*args).await,
        KeysCommand::List(args) => list(args).await,
        KeysCommand::Rotate(args) => rotate(args).await,
        KeysCommand::Revoke(args) => revoke(args).await,
    }
}

async fn client(connect: &ConnectArgs) -> anyhow::Result<KeyServiceClient<Connection>> {
    Ok(connect::keys_client(connect.channel().await?))
}

/// Returns the request to create the key.
fn create_request(args: &CreateArgs, now: DateTime<Utc>) -> CreateApiKeyRequest {
    let grant = |scope: &ScopeArg| Grant {
        scope: match scope {
            ScopeArg::Ingest => Scope::Ingest,
            ScopeArg::Read => Scope::Read,
            ScopeArg::Admin => Scope::Admin,
        } as i32,
        client_ids: args.clients.clone(),
        all_clients: args.all_clients,
    };
    let api_key = ApiKey {
        name: args.name.clone(),
        grants: args.scopes.iter().map(grant).collect(),
        requests_per_second: args.requests_per_second,
        expire_time: args.expires.as_ref().map(|expires| expires.time(now)),
        ..Default::default()
    };
    CreateApiKeyRequest { api_key: Some(api_key), request_id: String::new() }
}

async fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let request = create_request(&args, Clock::system().now());
    let (key, token) = match args.direct {
        true => create_directly(&args, &request).await?,
        false => {
            let mut client = client(&args.connect).await?;
            let answer = client.create_api_key(args.connect.request(request, CALL_SECONDS)).await;
            let answer = answer.map_err(|status| connect::status_error(&status))?.into_inner();
            (answer.api_key.unwrap_or_default(), answer.token)
        }
    };
    print_new(&args.output, &key, &token, args.direct.then_some(&args.database));
    Ok(ExitCode::SUCCESS)
}

/// Creates a key directly in the database, with or without a running server.
async fn create_directly(args: &CreateArgs, request: &CreateApiKeyRequest) -> anyhow::Result<(ApiKey, String)> {
    // Ignore signals, so that the key is printed and the embedded PostgreSQL is stopped.
    let _stop = signals::stop_signal()?;
    let database = Database::open_or_create(&args.database, args.new_database).await?;
    let created = async {
        let pool = command_pool(&database.options);
        if args.database.database_url.is_some() && !deployment::has_schema(&pool).await? {
            eprintln!("note: {} has no tables of meterd yet: creating them", database.describe());
        }
        store::migrate(&database.options).await?;
        let caller = Caller {
            kind: ActorKind::Database,
            id: String::new(),
            name: user_name(),
            grants: Grants::everything(),
            valid_until: None,
        };
        let entry = audit::begin(&pool, &caller, "", request).await?;
        let created = async {
            let now = store::now(&pool).await?;
            let spec = NewKey::from(request.api_key.clone().unwrap_or_default()).check(now)?;
            let mut tx = pool.begin().await?;
            let created = keys::create_in(&mut tx, &spec, now).await?;
            tx.commit().await?;
            Ok(created)
        };
        let created = created.await;
        audit::finish(entry, &pool, created.as_ref().err()).await;
        pool.close().await;
        let created = created?;
        Ok((created.key.into(), created.token))
    };
    let created = database.explain(created.await);
    // An error here must not hide the token of the new key.
    if let Err(error) = database.close().await {
        eprintln!("warning: the database did not close cleanly: {error:#}");
    }
    created
}

/// The name of the user according to the operating system, not to the environment.
fn user_name() -> String {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Returns the id of a key. `text` is the id or the token.
fn key_id(text: &str) -> String {
    token::parse(text).map_or(text, |(key_id, _)| key_id).to_owned()
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut client = client(&args.connect).await?;
    let keys = hints::all(&mut client, &args.connect, args.live).await;
    let keys = keys.map_err(|status| connect::status_error(&status))?;
    match args.json {
        true => keys.iter().for_each(|key| println!("{}", to_json(key))),
        false => to_table(&keys, Clock::system().now()).iter().for_each(|line| println!("{line}")),
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate(args: RotateArgs) -> anyhow::Result<ExitCode> {
    let overlap = prost_types::Duration { seconds: args.overlap.as_secs().try_into()?, nanos: 0 };
    let request = RotateApiKeyRequest {
        key_id: key_id(&args.key_id),
        overlap: Some(overlap),
        expire_time: args.expires.map(|expires| expires.time(Clock::system().now())),
        request_id: String::new(),
    };
    let mut client = client(&args.connect).await?;
    let keeps_lifetime = request.expire_time.is_none();
    let answer = match client.rotate_api_key(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(hints::error(&mut client, &args.connect, &status, &args.key_id).await),
    };
    let (new, old) = (answer.api_key.unwrap_or_default(), answer.old_api_key.unwrap_or_default());
    print_new(&args.output, &new, &answer.token, None);
    if !args.output.json && !args.output.quiet {
        println!("old key  {} is valid until {}", old.key_id, time_text(old.expire_time.as_ref()));
    }
    if keeps_lifetime && let Some(note) = hints::early_expiry_note(&mut client, &args.connect, &new, &old).await {
        eprintln!("note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn revoke(args: RevokeArgs) -> anyhow::Result<ExitCode> {
    let mut client = client(&args.connect).await?;
    let request = args.connect.request(RevokeApiKeyRequest { key_id: key_id(&args.key_id) }, CALL_SECONDS);
    let key = match client.revoke_api_key(request).await {
        Ok(answer) => answer.into_inner().api_key.unwrap_or_default(),
        Err(status) => return Err(hints::error(&mut client, &args.connect, &status, &args.key_id).await),
    };
    println!("{} ({}) was revoked at {}", key.key_id, key.name, time_text(key.revoke_time.as_ref()));
    Ok(ExitCode::SUCCESS)
}

/// Prints a new key with its token. For a key that was created directly in a database, also prints how to start the server.
fn print_new(output: &OutputArgs, key: &ApiKey, token: &str, direct: Option<&DatabaseSettings>) {
    if output.quiet {
        println!("{token}");
    } else if output.json {
        let mut json = to_json(key);
        json["token"] = token.into();
        println!("{json}");
    } else {
        println!("key      {} {:?}", key.key_id, key.name);
        println!("grants   {}", grants_text(key));
        println!("expires  {}", expiry_text(key));
        println!("token    {token}");
        println!("The token is shown only once. Callers send it as `authorization: Bearer {token}`.");
        println!("Commands of meterd read it from METERD_API_KEY:");
        println!("  export METERD_API_KEY={token}");
        if let Some(database) = direct {
            println!("Start the server with --auth keys, so that it checks API keys:");
            println!("  {} serve --auth keys{}", config::hints::program(), config::hints::database_flags(database));
        }
    }
    if print::has_failed() {
        let (program, key_id) = (config::hints::program(), &key.key_id);
        eprintln!(
            "warning: the key {key_id} was created, but its token could not be printed: revoke it with \
             `{program} keys revoke {key_id}`"
        );
    }
}

fn scope_name(scope: i32) -> String {
    Scope::try_from(scope).map_or("?", |scope| scope.as_str_name()).trim_start_matches("SCOPE_").to_lowercase()
}

fn grants_text(key: &ApiKey) -> String {
    let grant = |grant: &Grant| {
        let clients = if grant.all_clients { "all clients".into() } else { grant.client_ids.join(", ") };
        format!("{} for {clients}", scope_name(grant.scope))
    };
    key.grants.iter().map(grant).collect::<Vec<_>>().join("; ")
}

fn expiry_text(key: &ApiKey) -> String {
    if key.expire_time.is_none() { "never".into() } else { time_text(key.expire_time.as_ref()) }
}

fn state(key: &ApiKey, now: DateTime<Utc>) -> &'static str {
    let expired = key.expire_time.as_ref().is_some_and(|time| time.seconds <= now.timestamp());
    match (key.revoke_time.is_some(), expired) {
        (true, _) => "revoked",
        (false, true) => "expired",
        (false, false) => "live",
    }
}

fn to_table(keys: &[ApiKey], now: DateTime<Utc>) -> Vec<String> {
    let mut rows = vec![["KEY", "NAME", "GRANTS", "STATE", "EXPIRES", "LAST USED"].map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        vec![
            key.key_id.clone(),
            key.name.clone(),
            grants_text(key),
            state(key, now).to_owned(),
            expiry_text(key),
            time_text(key.last_used_time.as_ref()),
        ]
    }));
    table(&rows, &[false; 6])
}

fn to_json(key: &ApiKey) -> serde_json::Value {
    let grant = |grant: &Grant| json!({"scope": scope_name(grant.scope), "clientIds": grant.client_ids, "allClients": grant.all_clients});
    json!({
        "keyId": key.key_id,
        "name": key.name,
        "grants": key.grants.iter().map(grant).collect::<Vec<_>>(),
        "requestsPerSecond": key.requests_per_second,
        "createTime": time_text(key.create_time.as_ref()),
        "expireTime": time_text(key.expire_time.as_ref()),
        "revokeTime": time_text(key.revoke_time.as_ref()),
        "lastUsedTime": time_text(key.last_used_time.as_ref()),
        "rotatedFrom": key.rotated_from,
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

    #[test]
    fn a_key_is_shown_as_a_line_with_its_state() {
        let now = DateTime::from_timestamp(1_795_220_400, 0).unwrap();
        let key = ApiKey {
            key_id: "0123456789abcdef".into(),
            name: "billing".into(),
            grants: vec![
                Grant { scope: Scope::Ingest.into(), client_ids: vec![], all_clients: true },
                Grant { scope: Scope::Read.into(), client_ids: vec!["acme".into(), "beta".into()], all_clients: false },
            ],
            ..Default::default()
        };
        let expected = "0123456789abcdef  billing  ingest for all clients; read for acme, beta  live   never";
        assert_eq!(to_table(std::slice::from_ref(&key), now)[1].trim_end(), expected);
        let revoked = ApiKey { revoke_time: Some(Timestamp::default()), ..key };
        assert_eq!(state(&revoked, now), "revoked");
    }
}
