//! `meterd limits set`.

use super::super::connect::ConnectArgs;
use super::super::hints;
use super::super::track::parse_label;
use super::{CALL_SECONDS, find, service, show};
use crate::proto::{CreateLimitRequest, Limit, LimitFilter, LimitMeasure, LimitPeriod, UpdateLimitRequest};
use anyhow::ensure;
use clap::{Args, ValueEnum};
use prost_types::FieldMask;

/// Arguments of `limits set`.
#[derive(Args, Clone, Debug)]
pub struct SetArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Id of the limit, chosen by you
    #[arg(value_name = "LIMIT")]
    pub limit: String,
    /// What is counted
    #[arg(long, value_name = "MEASURE")]
    pub measure: Option<MeasureArg>,
    /// The period after which the limit begins again
    #[arg(long, value_name = "PERIOD")]
    pub per: Option<PeriodArg>,
    /// Amount of the limit, such as 100 or 49.50
    #[arg(long, value_name = "AMOUNT")]
    pub amount: Option<String>,
    /// A reached limit makes checks answer that usage is not allowed; usage is recorded nevertheless
    #[arg(long, conflicts_with = "soft")]
    pub hard: bool,
    /// The limit only shows its state and raises alerts (the default of a new limit)
    #[arg(long)]
    pub soft: bool,
    /// Only events of this service; repeat for several
    #[arg(long = "service", value_name = "NAME")]
    pub services: Vec<String>,
    /// Only events with this operation; repeat for several
    #[arg(long = "operation", value_name = "NAME")]
    pub operations: Vec<String>,
    /// Only events with this model; repeat for several
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// Only events with this subject; repeat for several
    #[arg(long = "subject", value_name = "ID")]
    pub subjects: Vec<String>,
    /// Only events with this label, such as project=apollo; an event must have all labels
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Count all events of the client, when a limit with a filter is changed
    #[arg(long, conflicts_with_all = ["services", "operations", "models", "subjects", "labels"])]
    pub all_events: bool,
    /// Percents that raise alerts, separated by commas [default of a new limit: 80,90,100]
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',')]
    pub alert_percents: Vec<i32>,
    /// Name shown to people
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Accept an amount below what is already used in the current period
    #[arg(long)]
    pub allow_below_used: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MeasureArg {
    Units,
    /// Input and output tokens
    Tokens,
    /// Events
    Requests,
    Cost,
}

/// A period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeriodArg {
    Day,
    Month,
}

impl From<MeasureArg> for LimitMeasure {
    fn from(measure: MeasureArg) -> Self {
        match measure {
            MeasureArg::Units => Self::Units,
            MeasureArg::Tokens => Self::Tokens,
            MeasureArg::Requests => Self::Requests,
            MeasureArg::Cost => Self::Cost,
        }
    }
}

impl From<PeriodArg> for LimitPeriod {
    fn from(period: PeriodArg) -> Self {
        match period {
            PeriodArg::Day => Self::Day,
            PeriodArg::Month => Self::Month,
        }
    }
}

impl SetArgs {
    fn has_filter(&self) -> bool {
        let lists = [&self.services, &self.operations, &self.models, &self.subjects];
        self.all_events || !self.labels.is_empty() || lists.iter().any(|list| !list.is_empty())
    }

    /// Returns the names of the fields that are given and can be changed.
    fn changes(&self) -> Vec<&'static str> {
        let given = [
            ("display_name", self.name.is_some()),
            ("filter", self.has_filter()),
            ("amount", self.amount.is_some()),
            ("hard", self.hard || self.soft),
            ("alert_percents", !self.alert_percents.is_empty()),
        ];
        given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
    }

    fn limit(&self) -> Limit {
        Limit {
            client_id: self.client.clone(),
            limit_id: self.limit.clone(),
            display_name: self.name.clone().unwrap_or_default(),
            filter: Some(LimitFilter {
                services: self.services.clone(),
                operations: self.operations.clone(),
                models: self.models.clone(),
                subjects: self.subjects.clone(),
                labels: self.labels.iter().cloned().collect(),
            }),
            measure: self.measure.map_or(LimitMeasure::Unspecified, LimitMeasure::from).into(),
            period: self.per.map_or(LimitPeriod::Unspecified, LimitPeriod::from).into(),
            amount: self.amount.clone().unwrap_or_default(),
            hard: self.hard,
            alert_percents: self.alert_percents.clone(),
            ..Default::default()
        }
    }
}

/// Creates or changes a limit, and prints it.
pub async fn run(args: SetArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let (limit, allow_below_used) = (args.limit(), args.allow_below_used);
    let result = match find(&args.connect, &channel, &args.client, &args.limit).await? {
        None => {
            let missing = [
                ("--measure", args.measure.is_none()),
                ("--per", args.per.is_none()),
                ("--amount", args.amount.is_none()),
            ];
            let missing: Vec<&str> = missing.into_iter().filter_map(|(flag, is)| is.then_some(flag)).collect();
            ensure!(
                missing.is_empty(),
                "{} has no limit {}; to create it, add {}",
                args.client,
                args.limit,
                missing.join(" and ")
            );
            let request = CreateLimitRequest { limit: Some(limit), allow_below_used, request_id: String::new() };
            let created = service(&channel).create_limit(args.connect.request(request, CALL_SECONDS)).await;
            created.map(|answer| answer.into_inner().limit)
        }
        Some(present) => {
            let is_other = args.measure.is_some() && limit.measure != present.measure
                || args.per.is_some() && limit.period != present.period;
            ensure!(
                !is_other,
                "the measure and the period of a limit cannot be changed: create a limit with another id, and delete {}",
                args.limit
            );
            let paths: Vec<String> = args.changes().into_iter().map(String::from).collect();
            ensure!(!paths.is_empty(), "the limit exists, and nothing is to be changed: add the flags to change");
            let update_mask = Some(FieldMask { paths });
            let request = UpdateLimitRequest { limit: Some(limit), update_mask, allow_below_used };
            let changed = service(&channel).update_limit(args.connect.request(request, CALL_SECONDS)).await;
            changed.map(|answer| answer.into_inner().limit)
        }
    };
    let limit = match result {
        Ok(limit) => limit.unwrap_or_default(),
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
    };
    match args.json {
        true => println!("{}", show::limit_json(&limit)),
        false => show::limit_table(&[limit]).iter().for_each(|line| println!("{line}")),
    }
    Ok(())
}
