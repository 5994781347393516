//! `meterd limits check`.

use super::super::connect::ConnectArgs;
use super::super::hints;
use super::super::track::parse_label;
use super::{CALL_SECONDS, service, show};
use crate::proto::{BatchCheckLimitsRequest, CheckLimitRequest, ClientLimits};
use clap::Args;
use std::process::ExitCode;

/// Arguments of `limits check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Id of the client [default: all clients that have limits]
    #[arg(value_name = "CLIENT")]
    pub client: Option<String>,
    /// Only limits that may count an event of this service
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true, requires = "client")]
    pub service: String,
    /// Only limits that may count an event with this operation
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true, requires = "client")]
    pub operation: String,
    /// Only limits that may count an event with this model
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true, requires = "client")]
    pub model: String,
    /// Only limits that may count an event with this subject
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true, requires = "client")]
    pub subject: String,
    /// Only limits that may count an event with this label, such as project=apollo
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label, requires = "client")]
    pub labels: Vec<(String, String)>,
    /// Print JSON, one client per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the limits of one client, or of all clients.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let channel = args.connect.channel().await?;
    let print = |status: &ClientLimits| println!("{}", show::status_json(status));
    let Some(client) = &args.client else {
        let (mut statuses, mut page_token) = (vec![], String::new());
        loop {
            let request = BatchCheckLimitsRequest { page_token, ..Default::default() };
            let page = service(&channel).batch_check_limits(args.connect.request(request, CALL_SECONDS)).await;
            let page = page.map_err(|status| super::connect::status_error(&status))?.into_inner();
            statuses.extend(page.statuses);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        match args.json {
            true => statuses.iter().for_each(print),
            false if statuses.is_empty() => println!("no limits; `meterd limits set CLIENT LIMIT` creates one"),
            false => show::status_table(&statuses).iter().for_each(|line| println!("{line}")),
        }
        return Ok(ExitCode::SUCCESS);
    };
    let request = CheckLimitRequest {
        client_id: client.clone(),
        service: args.service.clone(),
        operation: args.operation.clone(),
        model: args.model.clone(),
        subject: args.subject.clone(),
        labels: args.labels.iter().cloned().collect(),
    };
    let status = match service(&channel).check_limit(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner().status.unwrap_or_default(),
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, client).await),
    };
    match args.json {
        true => print(&status),
        false if status.limits.is_empty() => println!("{client}: no limits; usage is allowed"),
        false => {
            show::status_table(std::slice::from_ref(&status)).iter().for_each(|line| println!("{line}"));
            let allowed = if status.allowed { "usage is allowed" } else { "a hard limit is reached" };
            println!("{allowed}; limit {} binds", status.binding_limit_id);
        }
    }
    Ok(if status.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
