//! `meterd query`: shows usage grouped by any dimensions.

use super::chart::{grouped, shown_amount, table};
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::period::PeriodArgs;
use super::sheet::{self, Cell};
use super::time::time_text;
use super::track::parse_label;
use crate::proto::{QueryUsageRequest, UsageDimension, UsageRow};
use bigdecimal::BigDecimal;
use chrono::NaiveDate;
use clap::Args;
use meterd_domain::period::{Month, day_of};
use meterd_engine::clock::Clock;
use serde_json::json;
use std::process::ExitCode;
use std::str::FromStr;

const CALL_SECONDS: u64 = 120;
const PAGE_SIZE: i32 = 10_000;

/// Arguments of `query`.
#[derive(Args, Clone, Debug)]
pub struct QueryArgs {
    /// What to group by, separated by commas: day, month, hour, client, service, operation, model, subject, or label:NAME
    #[arg(long, value_name = "DIMENSIONS", value_delimiter = ',', value_parser = parse_dimension)]
    pub by: Vec<Dimension>,
    #[command(flatten)]
    pub period: PeriodArgs,
    /// Only this client; repeat the flag for more, as for the other filters
    #[arg(long = "client", value_name = "ID")]
    pub clients: Vec<String>,
    /// Only this service
    #[arg(long = "service", value_name = "NAME")]
    pub services: Vec<String>,
    /// Only this operation
    #[arg(long = "operation", value_name = "NAME")]
    pub operations: Vec<String>,
    /// Only this model
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// Only this subject
    #[arg(long = "subject", value_name = "ID")]
    pub subjects: Vec<String>,
    /// Only events with this label, such as project=apollo; an event must have all labels
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Print JSON, one row per line, with exact amounts and all measures
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV, with exact amounts
    #[arg(long)]
    pub csv: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// A dimension to group by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    Field(UsageDimension),
    Label(String),
}

const FIELDS: [(&str, UsageDimension); 8] = [
    ("day", UsageDimension::Day),
    ("month", UsageDimension::Month),
    ("hour", UsageDimension::Hour),
    ("client", UsageDimension::Client),
    ("service", UsageDimension::Service),
    ("operation", UsageDimension::Operation),
    ("model", UsageDimension::Model),
    ("subject", UsageDimension::Subject),
];

fn parse_dimension(text: &str) -> Result<Dimension, String> {
    if let Some(name) = text.strip_prefix("label:").filter(|name| !name.is_empty()) {
        return Ok(Dimension::Label(name.to_owned()));
    }
    let field = FIELDS.iter().find(|(name, _)| *name == text);
    field.map(|(_, dimension)| Dimension::Field(*dimension)).ok_or_else(|| {
        let names: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
        format!("must be {} or label:NAME, such as label:project", names.join(", "))
    })
}

impl Dimension {
    fn name(&self) -> String {
        match self {
            Self::Field(dimension) => {
                FIELDS.iter().find(|(_, of)| of == dimension).map_or("", |(name, _)| name).to_owned()
            }
            Self::Label(name) => format!("label:{name}"),
        }
    }

    /// Returns the value of a row.
    fn of(&self, row: &UsageRow) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        match self {
            Self::Label(name) => row.labels.get(name).cloned().unwrap_or_default(),
            Self::Field(UsageDimension::Day) => text(&row.day),
            Self::Field(UsageDimension::Month) => text(&row.month),
            Self::Field(UsageDimension::Hour) => time_text(row.hour.as_ref()),
            Self::Field(UsageDimension::Client) => text(&row.client_id),
            Self::Field(UsageDimension::Service) => text(&row.service),
            Self::Field(UsageDimension::Operation) => text(&row.operation),
            Self::Field(UsageDimension::Model) => text(&row.model),
            Self::Field(UsageDimension::Subject) => text(&row.subject),
            Self::Field(UsageDimension::Unspecified) => String::new(),
        }
    }
}

/// Prints the usage.
pub async fn run(args: QueryArgs) -> anyhow::Result<ExitCode> {
    let channel = args.connect.channel().await?;
    hints::check_clients(&args.connect, &channel, &args.clients).await?;
    let (start, end) = days(&args.period, day_of(Clock::system().now(), chrono_tz::UTC))?;
    let rows = rows(&args, &channel, start, end).await?;
    if args.json {
        rows.iter().for_each(|row| println!("{}", to_json(&args.by, row)));
    } else if args.csv {
        println!("{}", sheet::lines(&to_csv(&args.by, &rows)?));
    } else {
        to_table(&args.by, &rows)?.iter().for_each(|line| println!("{line}"));
    }
    if rows.is_empty() && !args.json && !args.csv {
        println!("no usage from {start} to {end}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the first and the last day. The default is the month of `today`.
fn days(period: &PeriodArgs, today: NaiveDate) -> anyhow::Result<(NaiveDate, NaiveDate)> {
    Ok(match period.days()? {
        (None, None) => (Month::of(today).first_day(), Month::of(today).last_day()),
        (Some(start), Some(end)) => (start, end),
        (Some(start), None) => (start, today.max(start)),
        (None, Some(end)) => anyhow::bail!("--end {end} needs --start: add the first day of the range"),
    })
}

async fn rows(
    args: &QueryArgs,
    channel: &Connection,
    start: NaiveDate,
    end: NaiveDate,
) -> anyhow::Result<Vec<UsageRow>> {
    let mut usage = connect::usage_client(channel.clone());
    let fields = args.by.iter().filter_map(|by| if let Dimension::Field(field) = by { Some(*field) } else { None });
    let labels =
        args.by.iter().filter_map(|by| if let Dimension::Label(name) = by { Some(name.clone()) } else { None });
    let mut request = QueryUsageRequest {
        client_ids: args.clients.clone(),
        services: args.services.clone(),
        operations: args.operations.clone(),
        models: args.models.clone(),
        subjects: args.subjects.clone(),
        labels: args.labels.iter().cloned().collect(),
        start_date: start.to_string(),
        end_date: end.to_string(),
        group_by: fields.map(i32::from).collect(),
        group_by_labels: labels.collect(),
        include_measures: true,
        page_size: PAGE_SIZE,
        ..Default::default()
    };
    let mut rows = vec![];
    loop {
        let answer = usage.query_usage(args.connect.request(request.clone(), CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        rows.extend(page.rows);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(rows);
        }
    }
}

/// The sums of a row, with decimals in plain digits.
struct Sums {
    requests: i64,
    units: String,
    input_tokens: i64,
    output_tokens: i64,
    cost: String,
    unpriced: i64,
    /// The reported cost, and the number of events that have one.
    reported: Option<(String, String)>,
}

impl Sums {
    fn of(row: &UsageRow) -> Self {
        let totals = row.totals.clone().unwrap_or_default();
        let zero = || "0".to_owned();
        let reported = row.measures.get("reported_event_count");
        Self {
            requests: totals.request_count,
            units: totals.units,
            input_tokens: totals.input_tokens,
            output_tokens: totals.output_tokens,
            cost: totals.cost.map_or_else(zero, |cost| cost.amount),
            unpriced: totals.unpriced_event_count,
            reported: reported
                .map(|count| (row.measures.get("reported_cost").cloned().unwrap_or_else(zero), count.clone())),
        }
    }

    /// Returns the reported cost minus the cost, if all events have a reported cost.
    fn difference(&self) -> anyhow::Result<Option<BigDecimal>> {
        let Some((reported, count)) = &self.reported else { return Ok(None) };
        if *count != self.requests.to_string() {
            return Ok(None);
        }
        Ok(Some(BigDecimal::from_str(reported)? - BigDecimal::from_str(&self.cost)?))
    }
}

fn to_table(by: &[Dimension], rows: &[UsageRow]) -> anyhow::Result<Vec<String>> {
    let sums: Vec<Sums> = rows.iter().map(Sums::of).collect();
    let with_tokens = sums.iter().any(|sums| sums.input_tokens + sums.output_tokens > 0);
    let with_unpriced = sums.iter().any(|sums| sums.unpriced > 0);
    let with_reported = sums.iter().any(|sums| sums.reported.is_some());
    let mut header: Vec<String> = by.iter().map(Dimension::name).collect();
    header.extend(["requests", "units"].map(String::from));
    header.extend(["input tokens", "output tokens"].map(String::from).into_iter().filter(|_| with_tokens));
    header.push("cost".to_owned());
    header.extend(with_unpriced.then(|| "unpriced".to_owned()));
    header
        .extend(["reported cost", "difference", "reported by"].map(String::from).into_iter().filter(|_| with_reported));
    let right: Vec<bool> = (0..header.len()).map(|column| column >= by.len()).collect();
    let mut lines = vec![header];
    for (row, sums) in rows.iter().zip(&sums) {
        let amount = |amount: &str| BigDecimal::from_str(amount).map(|amount| shown_amount(&amount));
        let mut line: Vec<String> = by.iter().map(|dimension| dimension.of(row)).collect();
        line.extend([grouped(sums.requests), grouped(&sums.units)]);
        line.extend([sums.input_tokens, sums.output_tokens].into_iter().filter(|_| with_tokens).map(grouped));
        line.push(amount(&sums.cost)?);
        line.extend(with_unpriced.then(|| grouped(sums.unpriced)));
        match &sums.reported {
            Some((reported, count)) => {
                let difference = sums.difference()?.map_or_else(String::new, |difference| shown_amount(&difference));
                line.extend([amount(reported)?, difference, grouped(count)]);
            }
            None if with_reported => line.extend([const { String::new() }; 3]),
            None => {}
        }
        lines.push(line);
    }
    Ok(table(&lines, &right))
}

fn to_csv(by: &[Dimension], rows: &[UsageRow]) -> anyhow::Result<String> {
    let mut header: Vec<Cell> = by.iter().map(|dimension| Cell::text(dimension.name())).collect();
    header.extend(sheet::header(&[
        "request_count",
        "units",
        "input_tokens",
        "output_tokens",
        "cost",
        "unpriced_event_count",
        "reported_cost",
        "difference",
        "reported_event_count",
    ]));
    let mut lines = vec![];
    for row in rows {
        let sums = Sums::of(row);
        let difference =
            sums.difference()?.map_or_else(String::new, |difference| difference.normalized().to_plain_string());
        let (reported, count) = sums.reported.unwrap_or_default();
        let mut line: Vec<Cell> = by.iter().map(|dimension| Cell::text(dimension.of(row))).collect();
        line.extend([sums.requests.to_string(), sums.units].map(Cell::Plain));
        line.extend([sums.input_tokens, sums.output_tokens].map(Cell::plain));
        line.extend([sums.cost, sums.unpriced.to_string(), reported, difference, count].map(Cell::Plain));
        lines.push(line);
    }
    sheet::csv(&header, &lines)
}

fn to_json(by: &[Dimension], row: &UsageRow) -> serde_json::Value {
    let sums = Sums::of(row);
    let dimensions = by.iter().map(|dimension| (dimension.name(), json!(dimension.of(row))));
    let difference = sums.difference().ok().flatten().map(|difference| difference.normalized().to_plain_string());
    let values = json!({
        "request_count": sums.requests,
        "units": sums.units,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "cost": sums.cost,
        "unpriced_event_count": sums.unpriced,
        "difference": difference,
        "measures": row.measures,
    });
    let mut object: serde_json::Map<String, serde_json::Value> = dimensions.collect();
    object.extend(values.as_object().cloned().unwrap_or_default());
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Money, UsageTotals};

    fn row(project: &str, cost: &str, measures: &[(&str, &str)]) -> UsageRow {
        let money = Money { currency: "USD".into(), amount: cost.into() };
        UsageRow {
            day: Some("2026-11-21".into()),
            labels: [("project".into(), project.into())].into(),
            totals: Some(UsageTotals { request_count: 2, units: "2".into(), cost: Some(money), ..Default::default() }),
            measures: measures.iter().map(|(name, sum)| ((*name).into(), (*sum).into())).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_reported_cost_is_compared_with_the_cost() {
        let by = [parse_dimension("day").unwrap(), parse_dimension("label:project").unwrap()];
        let rows = [
            row("apollo", "1.5", &[("reported_cost", "1.75"), ("reported_event_count", "2")]),
            row("gemini", "0.25", &[]),
            row("mercury", "3", &[("reported_cost", "1"), ("reported_event_count", "1")]),
        ];
        assert_eq!(
            to_table(&by, &rows).unwrap(),
            [
                "day         label:project  requests  units    cost  reported cost  difference  reported by",
                "2026-11-21  apollo                2      2    1.50           1.75      0.2500            2",
                "2026-11-21  gemini                2      2  0.2500",
                "2026-11-21  mercury               2      2    3.00           1.00                        1",
            ]
        );
        let csv = to_csv(&by, &rows).unwrap();
        assert!(csv.contains("2026-11-21,apollo,2,2,0,0,1.5,0,1.75,0.25,2\r\n"), "{csv}");
        assert_eq!(to_json(&by, &rows[0])["difference"], "0.25");
        assert_eq!(to_json(&by, &rows[1])["label:project"], "gemini");
    }

    #[test]
    fn a_dimension_is_a_field_or_a_label() {
        assert_eq!(parse_dimension("hour"), Ok(Dimension::Field(UsageDimension::Hour)));
        assert_eq!(parse_dimension("label:team"), Ok(Dimension::Label("team".into())));
        for wrong in ["", "days", "label:", "project"] {
            assert!(parse_dimension(wrong).unwrap_err().contains("label:NAME"), "{wrong}");
        }
    }
}
