//! `meterd limits`: lists, sets and deletes limits of clients, and shows how much of them is left.

mod check;
mod set;
mod show;

use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use crate::proto::billing_service_client::BillingServiceClient;
use crate::proto::{DeleteLimitRequest, GetLimitRequest, Limit, ListLimitsRequest};
use clap::{Args, Subcommand};
use std::process::ExitCode;
use tonic::Status;
use tonic_types::StatusExt;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: i32 = 1_000;

/// List, set and delete limits of clients, and show how much of them is left
#[derive(Args, Clone, Debug)]
pub struct LimitsArgs {
    #[command(subcommand)]
    pub command: LimitsCommand,
}

/// Subcommands of `limits`.
#[derive(Subcommand, Clone, Debug)]
pub enum LimitsCommand {
    /// List limits, ordered by client and id
    List(ListArgs),
    /// Create a limit, or change one
    ///
    /// If the client has no limit with this id, --measure, --per and --amount are required. Otherwise only the given fields are
    /// changed. The measure and the period of a limit cannot be changed.
    Set(Box<set::SetArgs>),
    /// Delete a limit, and resolve its alerts
    Delete(DeleteArgs),
    /// Show how much of the limits is used and left in the current day and month
    ///
    /// With a client, the exit code is 1 if a hard limit is reached. Without a client, the command shows all clients that have limits.
    Check(check::CheckArgs),
}

/// Arguments of `limits list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only limits of this client
    #[arg(value_name = "CLIENT")]
    pub client: Option<String>,
    /// Print JSON, one limit per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `limits delete`.
#[derive(Args, Clone, Debug)]
pub struct DeleteArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Id of the limit
    #[arg(value_name = "LIMIT")]
    pub limit: String,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Runs the subcommand.
pub async fn run(args: LimitsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        LimitsCommand::List(args) => list(args).await?,
        LimitsCommand::Set(args) => set::run(*args).await?,
        LimitsCommand::Delete(args) => delete(args).await?,
        LimitsCommand::Check(args) => return check::run(args).await,
    }
    Ok(ExitCode::SUCCESS)
}

fn service(channel: &Connection) -> BillingServiceClient<Connection> {
    connect::billing_client(channel.clone())
}

/// Returns the limits of a client. Empty: of all clients.
async fn limits(connect: &ConnectArgs, channel: &Connection, client: &str) -> Result<Vec<Limit>, Status> {
    let (mut limits, mut page_token) = (vec![], String::new());
    loop {
        let request = ListLimitsRequest { client_id: client.to_owned(), page_size: PAGE_SIZE, page_token };
        let page = service(channel).list_limits(connect.request(request, CALL_SECONDS)).await?.into_inner();
        limits.extend(page.limits);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(limits);
        }
    }
}

/// Returns a limit. `None` if the client has none with this id.
async fn find(connect: &ConnectArgs, channel: &Connection, client: &str, limit: &str) -> anyhow::Result<Option<Limit>> {
    let request = GetLimitRequest { client_id: client.to_owned(), limit_id: limit.to_owned() };
    match service(channel).get_limit(connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => Ok(answer.into_inner().limit),
        Err(status) if is_unknown(&status) => Ok(None),
        Err(status) => Err(hints::client_error(connect, channel, &status, client).await),
    }
}

fn is_unknown(status: &Status) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.reason == "LIMIT_NOT_FOUND")
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let client = args.client.unwrap_or_default();
    let limits = match limits(&args.connect, &channel, &client).await {
        Ok(limits) => limits,
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &client).await),
    };
    match args.json {
        true => limits.iter().for_each(|limit| println!("{}", show::limit_json(limit))),
        false if limits.is_empty() => println!("no limits; `meterd limits set CLIENT LIMIT` creates one"),
        false => show::limit_table(&limits).iter().for_each(|line| println!("{line}")),
    }
    Ok(())
}

async fn delete(args: DeleteArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let DeleteArgs { client, limit, connect } = args;
    let request = DeleteLimitRequest { client_id: client.clone(), limit_id: limit.clone() };
    match service(&channel).delete_limit(connect.request(request, CALL_SECONDS)).await {
        Ok(_) => println!("deleted limit {limit} of {client}"),
        Err(status) if is_unknown(&status) => {
            let known = limits(&connect, &channel, &client).await.unwrap_or_default();
            let known: Vec<&str> = known.iter().map(|limit| limit.limit_id.as_str()).collect();
            let hint = hints::did_you_mean(&limit, known.iter().copied());
            let hint = hint.unwrap_or_else(|| match known.is_empty() {
                true => "the client has no limits".to_owned(),
                false => format!("limits are {}", known.join(", ")),
            });
            anyhow::bail!("{}\n  {hint}", connect::status_error(&status));
        }
        Err(status) => return Err(hints::client_error(&connect, &channel, &status, &client).await),
    }
    Ok(())
}
