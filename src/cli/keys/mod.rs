//! `meterd keys`: creates, lists, rotates and revokes API keys.

mod args;
mod direct;
mod hints;
mod show;

use super::connect::{self, ConnectArgs, Connection};
use super::time::time_text;
use crate::proto::key_service_client::KeyServiceClient;
use crate::proto::{ApiKey, CreateApiKeyRequest, Grant, RevokeApiKeyRequest, RotateApiKeyRequest, Scope};
pub use args::KeysArgs;
use args::{CreateArgs, KeysCommand, ListArgs, RevokeArgs, RotateArgs, ScopeArg};
use chrono::{DateTime, Utc};
use meterd_engine::auth::token;
use meterd_engine::clock::Clock;
use show::{print_new, to_json, to_table};
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;

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
        true => direct::create(&args, &request).await?,
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
