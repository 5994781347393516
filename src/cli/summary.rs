//! `meterd summary`: shows the costs of all clients in a month, by service, with the change and the projection.

use super::chart::{grouped, shown_amount, table};
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::period::parse_month;
use super::sheet::{self, Cell};
use super::time::time_text;
use super::usage::{amount_of, cost_of, money_json, totals_json};
use crate::proto::usage_service_client::UsageServiceClient;
use crate::proto::{ListMonthlySummariesRequest, MonthlySummary, UpdateMonthlySummariesRequest};
use bigdecimal::{BigDecimal, Zero};
use clap::Args;
use meterd_domain::decimal::Total;
use meterd_domain::period::{Month, day_of};
use meterd_domain::projection::change_percent;
use meterd_engine::clock::Clock;
use prost_types::Timestamp;
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

const CALL_SECONDS: u64 = 60;
const REFRESH_SECONDS: u64 = 600;
const PAGE_SIZE: i32 = 1_000;
/// Maximum number of attempts to read all pages without a missing client.
const READS_MAX: usize = 5;
/// Maximum number of services with their own column in the table. CSV and JSON have all services.
const SERVICE_COLUMNS_MAX: usize = 5;

/// Show the costs of all clients in a month, the highest first
///
/// Shows the cost by service, the change from the month before, and the projected cost of the current month. Usage of the
/// last seconds may be missing; the line `complete as of` has the time. A month without usage is an error, unless
/// --allow-empty is set.
#[derive(Args, Clone, Debug)]
pub struct SummaryArgs {
    /// The month in each client's time zone, such as 2026-11 [default: the current month]
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month)]
    pub month: Option<Month>,
    /// Only this client
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub client: String,
    /// Update the summaries first; needs an admin key
    #[arg(long)]
    pub refresh: bool,
    /// Exit with 0 if the month has no usage; CSV is then only a header, JSON is empty
    #[arg(long)]
    pub allow_empty: bool,
    /// Print CSV, with exact amounts and a column for each service
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Print JSON, one client per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// The summaries of all clients in a month.
#[derive(Debug, Default)]
struct Overview {
    clients: Vec<Row>,
    currency: String,
    complete_as_of: Option<Timestamp>,
}

/// The summary of a client, with parsed amounts.
#[derive(Debug, Default)]
struct Row {
    message: MonthlySummary,
    cost: BigDecimal,
    last_month: BigDecimal,
    /// The projected cost. The cost if the month is over.
    projected: BigDecimal,
    services: BTreeMap<String, BigDecimal>,
    unpriced: i64,
}

/// Prints the month.
pub async fn run(args: SummaryArgs) -> anyhow::Result<ExitCode> {
    let channel = args.connect.channel().await?;
    let mut usage = connect::usage_client(channel.clone());
    let month = args.month.map(|month| month.to_string()).unwrap_or_default();
    if !args.client.is_empty() {
        hints::check_clients(&args.connect, &channel, std::slice::from_ref(&args.client)).await?;
    }
    if args.refresh {
        let request = UpdateMonthlySummariesRequest { client_id: args.client.clone(), month: month.clone() };
        let done = usage.update_monthly_summaries(args.connect.request(request, REFRESH_SECONDS)).await;
        done.map_err(|status| connect::status_error(&status))?;
    }
    let overview = read_whole(&args, &mut usage, &month).await?;
    let is_empty = overview.clients.is_empty();
    if is_empty && !args.allow_empty {
        return Err(nothing_to_show(&args, &channel).await);
    }
    if args.json {
        overview.clients.iter().for_each(|row| println!("{}", to_json(&row.message)));
    } else if args.csv {
        println!("{}", sheet::lines(&overview.to_csv()?));
    } else if is_empty {
        println!("{}", why_empty(&args, &channel).await);
    } else {
        overview.to_text()?.iter().for_each(|line| println!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The error for a month without summaries. An empty report could be mistaken for a report without costs.
async fn nothing_to_show(args: &SummaryArgs, channel: &Connection) -> anyhow::Error {
    anyhow::anyhow!(
        "nothing to show: {}. Add --allow-empty to exit with 0 in this case",
        why_empty(args, channel).await
    )
}

/// Explains why there are no summaries, with a hint.
async fn why_empty(args: &SummaryArgs, channel: &Connection) -> String {
    let client = (!args.client.is_empty()).then_some(args.client.as_str());
    let months = hints::months_with_usage(&args.connect, channel, client, None).await;
    let month = args.month.unwrap_or_else(|| Month::of(day_of(Clock::system().now(), chrono_tz::UTC)));
    if months.contains(&month.to_string()) {
        return format!("the summaries of {month} do not exist yet: retry in a minute, or add --refresh");
    }
    let whose = client.map(|client| format!(" of client {client:?}")).unwrap_or_default();
    format!("no usage{whose} in {month}; {}", hints::elsewhere(&months))
}

/// Reads all pages, and reads them again if a client is missing. A client whose cost changes can move from a later page to an
/// earlier one.
async fn read_whole(
    args: &SummaryArgs,
    usage: &mut UsageServiceClient<Connection>,
    month: &str,
) -> anyhow::Result<Overview> {
    for _ in 0..READS_MAX {
        let (overview, clients) = read(args, usage, month).await?;
        if overview.clients.len() as i64 == clients {
            return Ok(overview);
        }
    }
    anyhow::bail!("costs changed during each of {READS_MAX} attempts to read them: retry when less usage is recorded")
}

/// Reads all pages once. Returns the summaries and the number of clients according to the last page.
async fn read(
    args: &SummaryArgs,
    usage: &mut UsageServiceClient<Connection>,
    month: &str,
) -> anyhow::Result<(Overview, i64)> {
    let mut request = ListMonthlySummariesRequest {
        month: month.to_owned(),
        client_id: args.client.clone(),
        page_size: PAGE_SIZE,
        page_token: String::new(),
    };
    let mut overview = Overview::default();
    // A client whose cost changes between two calls can be on two pages.
    let mut seen = HashSet::new();
    loop {
        let answer = usage.list_monthly_summaries(args.connect.request(request.clone(), CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        overview.complete_as_of = overview.complete_as_of.or(page.complete_as_of_time);
        for summary in page.summaries {
            if seen.insert(summary.client_id.clone()) {
                overview.add(summary)?;
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok((overview, page.totals.map_or(0, |totals| totals.client_count)));
        }
        // Keep the month of the first page, because the next month can begin between two calls.
        if let Some(first) = overview.clients.first() {
            request.month.clone_from(&first.message.month);
        }
    }
}

impl Overview {
    fn add(&mut self, message: MonthlySummary) -> anyhow::Result<()> {
        let totals = message.totals.clone().unwrap_or_default();
        if let Some(cost) = &totals.cost {
            self.currency.clone_from(&cost.currency);
        }
        let cost = cost_of(&totals)?;
        let services = message
            .services
            .iter()
            .map(|service| Ok((service.service.clone(), cost_of(&service.totals.clone().unwrap_or_default())?)));
        self.clients.push(Row {
            projected: match &message.projected_cost {
                Some(projected) => amount_of(Some(projected))?,
                None => cost.clone(),
            },
            last_month: amount_of(message.last_month_cost.as_ref())?,
            services: services.collect::<anyhow::Result<_>>()?,
            unpriced: totals.unpriced_event_count,
            cost,
            message,
        });
        Ok(())
    }

    /// Whether the month is not over for at least one client.
    fn is_current(&self) -> bool {
        self.clients.iter().any(|row| row.message.projected_cost.is_some())
    }

    fn sum(&self, of: impl Fn(&Row) -> &BigDecimal) -> BigDecimal {
        self.clients.iter().map(of).sum()
    }

    /// All services, the one with the highest cost first.
    fn services(&self) -> Vec<(String, BigDecimal)> {
        let mut sums: BTreeMap<&String, BigDecimal> = BTreeMap::new();
        for (service, cost) in self.clients.iter().flat_map(|row| &row.services) {
            *sums.entry(service).or_default() += cost;
        }
        let mut sums: Vec<_> = sums.into_iter().map(|(service, cost)| (service.clone(), cost)).collect();
        sums.sort_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(&right.0)));
        sums
    }

    fn to_text(&self) -> anyhow::Result<Vec<String>> {
        let month = self.clients.first().map_or("", |row| row.message.month.as_str());
        let (cost, last_month) = (self.sum(|row| &row.cost), self.sum(|row| &row.last_month));
        let unpriced: i64 = self.clients.iter().map(|row| row.unpriced).sum();
        let count = self.clients.len();
        let clients = if count == 1 { "1 client".to_owned() } else { format!("{} clients", grouped(count)) };
        let mut head = format!("{month}  {clients}: {} {}", shown_amount(&cost), self.currency);
        if self.is_current() {
            let projected = shown_amount(&self.sum(|row| &row.projected));
            head += &format!(" so far, {projected} {} projected", self.currency);
        }
        let change = change_of(&cost, &last_month)?;
        let mut lines = vec![head, format!("last month {} {}", shown_amount(&last_month), self.currency)];
        if let Some(change) = change {
            lines[1] += &format!(", {}", change_text(Some(&change), true));
        }
        lines.push(format!("complete as of {}", time_text(self.complete_as_of.as_ref())));
        lines.push(String::new());
        lines.extend(self.table(unpriced > 0)?);
        if unpriced > 0 {
            lines.push(String::new());
            lines.push(format!(
                "{} events have no price and are not included in any cost: `meterd unpriced --month {month}` lists them",
                grouped(unpriced)
            ));
        }
        Ok(lines)
    }

    fn table(&self, with_unpriced: bool) -> anyhow::Result<Vec<String>> {
        let services = self.services();
        // A column "others" for a single service would be useless.
        let own = if services.len() <= SERVICE_COLUMNS_MAX + 1 { services.len() } else { SERVICE_COLUMNS_MAX };
        let named: Vec<&str> = services.iter().take(own).map(|(service, _)| service.as_str()).collect();
        let with_names = self.clients.iter().any(|row| !row.message.display_name.is_empty());
        let columns =
            Columns { named, has_rest: services.len() > own, with_names, with_unpriced, current: self.is_current() };
        let mut rows = vec![columns.header()];
        for row in &self.clients {
            let change = row.message.change_percent.as_deref();
            rows.push(columns.row(&row.message.client_id, row, &change_text(change, !row.cost.is_zero())));
        }
        if self.clients.len() > 1 {
            let total = self.total();
            let change = change_of(&total.cost, &total.last_month)?;
            rows.push(columns.row("total", &total, &change_text(change.as_deref(), !total.cost.is_zero())));
        }
        Ok(table(&rows, &columns.right()))
    }

    /// The sum of all clients.
    fn total(&self) -> Row {
        Row {
            cost: self.sum(|row| &row.cost),
            last_month: self.sum(|row| &row.last_month),
            projected: self.sum(|row| &row.projected),
            services: self.services().into_iter().collect(),
            unpriced: self.clients.iter().map(|row| row.unpriced).sum(),
            message: MonthlySummary::default(),
        }
    }

    fn to_csv(&self) -> anyhow::Result<String> {
        let services = self.services();
        let mut header = sheet::header(&[
            "client_id",
            "display_name",
            "month",
            "currency",
            "cost",
            "last_month_cost",
            "change_percent",
            "projected_cost",
            "request_count",
            "unpriced_event_count",
            "messages",
            "ai_calls",
            "voice_minutes",
        ]);
        header.extend(services.iter().map(|(service, _)| Cell::text(format!("cost_{service}"))));
        let rows = self.clients.iter().map(|row| {
            let MonthlySummary { client_id, display_name, month, change_percent, messages, voice_minutes, .. } =
                &row.message;
            let totals = row.message.totals.clone().unwrap_or_default();
            let exact = |money: &Option<crate::proto::Money>| {
                Cell::plain(money.as_ref().map_or("", |money| money.amount.as_str()))
            };
            let mut cells = vec![
                Cell::text(client_id),
                Cell::text(display_name),
                Cell::plain(month),
                Cell::plain(&self.currency),
                exact(&totals.cost),
                exact(&row.message.last_month_cost),
                Cell::plain(change_percent.as_deref().unwrap_or_default()),
                exact(&row.message.projected_cost),
                Cell::plain(totals.request_count),
                Cell::plain(row.unpriced),
                Cell::plain(messages),
                Cell::plain(row.message.ai_calls),
                Cell::plain(voice_minutes),
            ];
            let cost = |service: &str| {
                let found = row.message.services.iter().find(|of| of.service == service);
                found.and_then(|of| of.totals.as_ref()?.cost.as_ref()).map_or("0", |cost| cost.amount.as_str())
            };
            cells.extend(services.iter().map(|(service, _)| Cell::plain(cost(service))));
            cells
        });
        sheet::csv(&header, &rows.collect::<Vec<_>>())
    }
}

/// Columns of the table.
struct Columns<'a> {
    named: Vec<&'a str>,
    has_rest: bool,
    with_names: bool,
    with_unpriced: bool,
    current: bool,
}

impl Columns<'_> {
    fn header(&self) -> Vec<String> {
        let mut cells = vec!["client"];
        cells.extend(self.with_names.then_some("name"));
        cells.extend(["cost", "change"]);
        cells.extend(self.current.then_some("projected"));
        cells.extend(&self.named);
        cells.extend(self.has_rest.then_some("others"));
        cells.extend(self.with_unpriced.then_some("unpriced"));
        cells.into_iter().map(str::to_owned).collect()
    }

    fn right(&self) -> Vec<bool> {
        let texts = if self.with_names { 2 } else { 1 };
        (0..self.header().len()).map(|column| column >= texts).collect()
    }

    fn row(&self, name: &str, row: &Row, change: &str) -> Vec<String> {
        let mut cells = vec![name.to_owned()];
        cells.extend(self.with_names.then(|| row.message.display_name.clone()));
        cells.extend([shown_amount(&row.cost), change.to_owned()]);
        cells.extend(self.current.then(|| shown_amount(&row.projected)));
        let shown = |cost: Option<&BigDecimal>| cost.map_or("-".to_owned(), shown_amount);
        cells.extend(self.named.iter().map(|service| shown(row.services.get(*service))));
        if self.has_rest {
            let mut rest =
                row.services.iter().filter(|(service, _)| !self.named.contains(&service.as_str())).peekable();
            let any = rest.peek().is_some();
            let sum: BigDecimal = rest.map(|(_, cost)| cost).sum();
            cells.push(shown(any.then_some(&sum)));
        }
        cells.extend(self.with_unpriced.then(|| grouped(row.unpriced)));
        cells
    }
}

/// The change in percent, computed like on the server.
fn change_of(now: &BigDecimal, before: &BigDecimal) -> anyhow::Result<Option<String>> {
    let total = |amount: &BigDecimal| {
        let text = amount.to_plain_string();
        text.parse::<Total>().map_err(|error| anyhow::anyhow!("cannot parse the amount {text}: {error}"))
    };
    Ok(change_percent(total(now)?, total(before)?).map(|change| change.to_string()))
}

fn change_text(change: Option<&str>, has_cost: bool) -> String {
    match change {
        Some(change) if change.starts_with('-') || change == "0" => format!("{change} %"),
        Some(change) => format!("+{change} %"),
        None if has_cost => "new".to_owned(),
        None => String::new(),
    }
}

fn to_json(summary: &MonthlySummary) -> serde_json::Value {
    let services = summary
        .services
        .iter()
        .map(|service| json!({ "service": service.service, "totals": service.totals.as_ref().map(totals_json) }));
    json!({
        "client_id": summary.client_id,
        "display_name": summary.display_name,
        "month": summary.month,
        "totals": summary.totals.as_ref().map(totals_json),
        "last_month_cost": summary.last_month_cost.as_ref().map(money_json),
        "change_percent": summary.change_percent,
        "projected_cost": summary.projected_cost.as_ref().map(money_json),
        "messages": summary.messages,
        "ai_calls": summary.ai_calls,
        "voice_minutes": summary.voice_minutes,
        "services": services.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
