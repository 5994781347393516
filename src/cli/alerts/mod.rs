//! `meterd alerts`: follows alerts live, lists and acknowledges them, and checks the alert rules now.

mod show;
mod tail;

use super::chart::table;
use super::connect::{ConnectArgs, alerts_client, status_error};
use super::hints;
use crate::proto::{
    AcknowledgeAlertRequest, AlertSeverity, AlertType, CheckAlertsRequest, CheckAlertsResponse, ListAlertsRequest,
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;
/// A check of all clients can take long.
const CHECK_SECONDS: u64 = 600;
/// Maximum number of alerts in one call.
const PAGE_ALERTS: u32 = 1_000;

/// Arguments of `alerts`.
#[derive(Args, Clone, Debug)]
pub struct AlertsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Follow changes of alerts live; reconnects automatically
    Tail(tail::TailArgs),
    /// List alerts, the newest first
    List(ListArgs),
    /// Acknowledge an alert
    Ack(AckArgs),
    /// Check the alert rules now
    Check(CheckArgs),
}

/// Filters of alerts.
#[derive(Args, Clone, Debug)]
struct FilterArgs {
    /// Only alerts of this client; repeat the flag for more
    #[arg(long = "client", value_name = "ID")]
    clients: Vec<String>,
    /// Only alerts of this type; repeat the flag for more
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<TypeArg>,
    /// Only alerts with at least this severity
    #[arg(long, value_name = "SEVERITY")]
    min_severity: Option<SeverityArg>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TypeArg {
    Threshold,
    Spike,
    Projection,
    Anomaly,
    Unpriced,
    Silence,
    Limit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SeverityArg {
    Warning,
    Critical,
}

impl FilterArgs {
    fn types(&self) -> Vec<i32> {
        let number = |kind: &TypeArg| match kind {
            TypeArg::Threshold => AlertType::Threshold,
            TypeArg::Spike => AlertType::Spike,
            TypeArg::Projection => AlertType::Projection,
            TypeArg::Anomaly => AlertType::Anomaly,
            TypeArg::Unpriced => AlertType::Unpriced,
            TypeArg::Silence => AlertType::Silence,
            TypeArg::Limit => AlertType::Limit,
        };
        self.types.iter().map(|kind| number(kind).into()).collect()
    }

    fn min_severity(&self) -> i32 {
        match self.min_severity {
            None => AlertSeverity::Unspecified.into(),
            Some(SeverityArg::Warning) => AlertSeverity::Warning.into(),
            Some(SeverityArg::Critical) => AlertSeverity::Critical.into(),
        }
    }
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only alerts that are not acknowledged
    #[arg(long)]
    unacknowledged: bool,
    /// Only alerts that are not resolved
    #[arg(long)]
    open: bool,
    /// Maximum number of alerts
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Print JSON, one alert per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Args, Clone, Debug)]
struct AckArgs {
    /// Id of the alert
    #[arg(value_name = "ALERT ID")]
    alert_id: String,
    /// Name of the person who acknowledges the alert
    #[arg(long, value_name = "NAME")]
    by: String,
    /// Print the alert as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Args, Clone, Debug)]
struct CheckArgs {
    /// Only this client [default: all clients with usage in this month or the month before, and silent clients]
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    client: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the subcommand.
pub async fn run(args: AlertsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Tail(args) => tail::run(args).await,
        Command::List(args) => list(args).await,
        Command::Ack(args) => ack(args).await,
        Command::Check(args) => check(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut client = alerts_client(args.connect.channel().await?);
    let mut request = ListAlertsRequest {
        client_ids: args.filter.clients.clone(),
        types: args.filter.types(),
        min_severity: args.filter.min_severity(),
        unacknowledged_only: args.unacknowledged,
        open_only: args.open,
        // The same on all pages, because a page token is only valid with the same request.
        page_size: args.limit.min(PAGE_ALERTS) as i32,
        ..Default::default()
    };
    let mut alerts = vec![];
    loop {
        let answer = client.list_alerts(args.connect.request(request.clone(), CALL_SECONDS)).await;
        let page = answer.map_err(|status| status_error(&status))?.into_inner();
        alerts.extend(page.alerts);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() || alerts.len() >= args.limit as usize {
            break;
        }
    }
    let more = alerts.len() > args.limit as usize || !request.page_token.is_empty();
    alerts.truncate(args.limit as usize);
    if args.json {
        alerts.iter().for_each(|alert| println!("{}", show::json(alert)));
    } else if alerts.is_empty() {
        println!("no alerts");
    } else {
        let rows: Vec<_> = std::iter::once(show::header()).chain(alerts.iter().map(show::row)).collect();
        println!("{}", table(&rows, &[]).join("\n"));
    }
    if more {
        eprintln!("only the first {} alerts are shown: increase --limit", args.limit);
    }
    Ok(ExitCode::SUCCESS)
}

async fn ack(args: AckArgs) -> anyhow::Result<ExitCode> {
    let mut client = alerts_client(args.connect.channel().await?);
    let request = AcknowledgeAlertRequest { alert_id: args.alert_id.clone(), acknowledged_by: args.by.clone() };
    let answer = client.acknowledge_alert(args.connect.request(request, CALL_SECONDS)).await;
    let alert = answer.map_err(|status| status_error(&status))?.into_inner().alert.unwrap_or_default();
    match args.json {
        true => println!("{}", show::json(&alert)),
        false => println!("{}: {}", show::state(&alert), alert.message),
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks the alert rules. The exit code is 1 if a client could not be checked.
async fn check(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let channel = args.connect.channel().await?;
    let request = CheckAlertsRequest { client_id: args.client.clone() };
    let checked = match alerts_client(channel.clone()).check_alerts(args.connect.request(request, CHECK_SECONDS)).await
    {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
    };
    let CheckAlertsResponse { checked_count, raised_count, resolved_count, raised, failed_count, failed } = &checked;
    if args.json {
        let failures: Vec<_> =
            failed.iter().map(|failed| json!({ "client_id": failed.client_id, "message": failed.message })).collect();
        let report = json!({
            "checked_count": checked_count,
            "raised_count": raised_count,
            "resolved_count": resolved_count,
            "raised": raised.iter().map(show::json).collect::<Vec<_>>(),
            "failed_count": failed_count,
            "failed": failures,
        });
        println!("{report}");
    } else {
        raised.iter().for_each(|alert| println!("{}", show::row(alert).join("  ")));
        println!(
            "{checked_count} clients checked: {raised_count} alerts raised, {resolved_count} resolved, {failed_count} \
             clients failed"
        );
    }
    for failed in failed {
        eprintln!("{}: {}", failed.client_id, failed.message);
    }
    Ok(if *failed_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
