//! `meterd rebuild`: recomputes rollups and totals of whole months from the events.

use std::process::ExitCode;

use anyhow::bail;
use chrono::NaiveDate;
use clap::Args;

use super::chart::grouped;
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::period::PeriodArgs;
use crate::proto::{ListClientsRequest, RebuildRollupsRequest, RebuildRollupsResponse};

/// A rebuild reads every event of its months.
const CALL_SECONDS: u64 = 3_600;
const LIST_SECONDS: u64 = 30;
const CLIENTS_PAGE: i32 = 1_000;

/// Recompute rollups and totals from the events
///
/// Recomputes all months that contain a day of the range. Changes only rows that differ from the events.
#[derive(Args, Clone, Debug)]
pub struct RebuildArgs {
    /// Only this client [default: all clients, one after the other]
    #[arg(long, value_name = "ID")]
    pub client: Option<String>,
    #[command(flatten)]
    pub period: PeriodArgs,
    /// Also move each event to the day and month in the client's current time zone
    #[arg(long)]
    pub rezone: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Rebuilds the months of each client. Continues with the other clients after a failure.
pub async fn run(args: RebuildArgs) -> anyhow::Result<ExitCode> {
    let (start, end) = range(&args)?;
    let channel = args.connect.channel().await?;
    let clients = match &args.client {
        Some(client) => vec![client.clone()],
        None => all_clients(&args.connect, channel.clone()).await?,
    };
    let mut usage = connect::usage_client(channel.clone());
    let mut sums = RebuildRollupsResponse::default();
    let mut failed = 0;
    for (index, client) in clients.iter().enumerate() {
        let request = RebuildRollupsRequest {
            client_id: client.clone(),
            start_date: start.to_string(),
            end_date: end.to_string(),
            rezone: args.rezone,
        };
        let prefix = format!("[{}/{}] {client}", index + 1, clients.len());
        match usage.rebuild_rollups(args.connect.request(request, CALL_SECONDS)).await {
            Ok(response) => {
                let done = response.into_inner();
                println!("{prefix}: {}", done_text(&done, args.rezone));
                sums.month_count += done.month_count;
                sums.corrected_row_count += done.corrected_row_count;
                sums.rezoned_event_count += done.rezoned_event_count;
            }
            Err(status) if args.client.is_some() => {
                return Err(hints::client_error(&args.connect, &channel, &status, client).await);
            }
            Err(status) => {
                failed += 1;
                eprintln!("{prefix}: {}", connect::status_text(&status));
            }
        }
    }
    println!("{start} to {end}, {} clients: {}", clients.len(), done_text(&sums, args.rezone));
    if sums.month_count == 0 && failed == 0 {
        eprintln!("no usage from {start} to {end}: nothing was recomputed");
    }
    if failed > 0 {
        eprintln!("{failed} clients failed: run the command again for these clients");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

async fn all_clients(connect: &ConnectArgs, channel: Connection) -> anyhow::Result<Vec<String>> {
    let mut service = connect::clients_client(channel);
    let mut clients = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListClientsRequest { page_size: CLIENTS_PAGE, page_token };
        let page = service.list_clients(connect.request(request, LIST_SECONDS)).await;
        let page = page.map_err(|status| connect::status_error(&status))?.into_inner();
        clients.extend(page.clients.into_iter().map(|client| client.client_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(clients);
        }
    }
}

fn range(args: &RebuildArgs) -> anyhow::Result<(NaiveDate, NaiveDate)> {
    match args.period.days()? {
        (Some(start), Some(end)) => Ok((start, end)),
        _ => bail!("no months selected: add --month, or --start and --end"),
    }
}

fn done_text(done: &RebuildRollupsResponse, rezone: bool) -> String {
    let months = if done.month_count == 1 { "month" } else { "months" };
    let mut text = format!("{} {months}, ", grouped(done.month_count));
    text.push_str(&match done.corrected_row_count {
        0 => "all rows were correct".to_owned(),
        count => format!("{} rows corrected", grouped(count)),
    });
    if rezone {
        text.push_str(&format!(", {} events moved to another day", grouped(done.rezoned_event_count)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        args: RebuildArgs,
    }

    fn days(arguments: &[&str]) -> anyhow::Result<String> {
        let (start, end) = range(&Command::try_parse_from([&["rebuild"], arguments].concat())?.args)?;
        Ok(format!("{start} {end}"))
    }

    #[test]
    fn a_month_covers_all_its_days() {
        assert_eq!(days(&["--month", "2026-02"]).unwrap(), "2026-02-01 2026-02-28");
        assert_eq!(days(&["--month", "2023-12"]).unwrap(), "2023-12-01 2023-12-31");
        assert!(days(&["--month", "2026-13"]).is_err());
    }

    #[test]
    fn a_range_needs_a_start_and_a_later_end() {
        assert_eq!(days(&["--start", "2026-01-05", "--end", "2026-02-01"]).unwrap(), "2026-01-05 2026-02-01");
        assert!(days(&["--start", "2026-01-05"]).is_err());
        assert!(days(&["--start", "2026-01-05", "--end", "2026-01-04"]).is_err());
        assert!(days(&[]).is_err());
        assert!(days(&["--month", "2026-01", "--start", "2026-01-05", "--end", "2026-01-06"]).is_err());
    }

    #[test]
    fn the_result_counts_months_rows_and_events() {
        let done = RebuildRollupsResponse { month_count: 2, corrected_row_count: 1500, rezoned_event_count: 3 };
        assert_eq!(done_text(&done, false), "2 months, 1,500 rows corrected");
        assert!(done_text(&done, true).ends_with("3 events moved to another day"));
        let done = RebuildRollupsResponse { month_count: 1, ..Default::default() };
        assert_eq!(done_text(&done, false), "1 month, all rows were correct");
    }
}
