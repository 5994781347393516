//! `meterd prices`: lists what is charged, shows how a price changed, and creates new ones.

mod create;
mod show;

use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use crate::proto::{ListPricesRequest, Price};
use clap::{Args, Subcommand};
use meterd_engine::clock::Clock;
use std::collections::HashMap;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: i32 = 1_000;

/// List prices and create new ones
#[derive(Args, Clone, Debug)]
pub struct PricesArgs {
    #[command(subcommand)]
    pub command: PricesCommand,
}

/// What to do with prices.
#[derive(Subcommand, Clone, Debug)]
pub enum PricesCommand {
    /// List prices, those that are in force
    List(ListArgs),
    /// Show how one price changed: all that were, are and will be in force
    History(HistoryArgs),
    /// Create a price
    Create(Box<create::CreateArgs>),
}

/// Arguments of `prices list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only of this service
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only for this operation
    #[arg(long, value_name = "NAME")]
    pub operation: Option<String>,
    /// Only for models whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub model: Option<String>,
    /// Those that are not in force any more, or not yet, too
    #[arg(long)]
    pub all: bool,
    /// Print JSON, one price a line
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `prices history`.
#[derive(Args, Clone, Debug)]
pub struct HistoryArgs {
    /// The service
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// The operation that the price is for [default: none, the price for any operation]
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub operation: String,
    /// The model that the price is for [default: none, the price for any model]
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub model: String,
    /// Print JSON, one price a line
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Does what was asked.
pub async fn run(args: PricesArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        PricesCommand::List(args) => list(args).await?,
        PricesCommand::History(args) => history(args).await?,
        PricesCommand::Create(args) => create::run(*args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a price is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Past,
    InForce,
    Future,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::Past => "replaced",
            Self::InForce => "in force",
            Self::Future => "future",
        }
    }
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let prices = prices(&args.connect, &channel, args.service.as_deref()).await?;
    let fits = |(price, _): &(Price, State)| {
        let model = args.model.as_ref().map(|model| model.to_lowercase());
        args.operation.as_ref().is_none_or(|operation| price.operation == *operation)
            && model.is_none_or(|model| price.model.to_lowercase().contains(&model))
    };
    let fitting: Vec<_> = prices.iter().filter(|price| fits(price)).cloned().collect();
    if fitting.is_empty() {
        let names = prices.iter().map(|(price, _)| price.model.as_str());
        let hint = args.model.as_deref().and_then(|model| hints::did_you_mean(model, distinct(names).into_iter()));
        anyhow::bail!("no price fits; {}", hint.as_deref().unwrap_or("leave out a filter to see more"));
    }
    let shown: Vec<_> = fitting.iter().filter(|(_, state)| args.all || *state == State::InForce).cloned().collect();
    show::print(&shown, args.all, args.json, args.csv)?;
    let left_out = fitting.iter().filter(|(_, state)| *state == State::Future).count();
    if left_out > 0 && !args.all {
        eprintln!("{left_out} more will be in force later: see --all");
    }
    Ok(())
}

async fn history(args: HistoryArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let prices = prices(&args.connect, &channel, Some(&args.service)).await?;
    let is_it = |price: &Price| price.operation == args.operation && price.model == args.model;
    let of_it: Vec<_> = prices.iter().filter(|(price, _)| is_it(price)).cloned().collect();
    if of_it.is_empty() {
        let scopes = distinct(prices.iter().map(|(price, _)| match price.model.as_str() {
            "" => price.operation.as_str(),
            model => model,
        }));
        let wanted = if args.model.is_empty() { &args.operation } else { &args.model };
        let hint = hints::did_you_mean(wanted, scopes.into_iter()).filter(|_| !wanted.is_empty());
        let hint = hint.unwrap_or_else(|| format!("`meterd prices list {}` shows those that there are", args.service));
        anyhow::bail!("no price is for exactly this service, operation and model; {hint}");
    }
    show::print(&of_it, true, args.json, args.csv)
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let names: std::collections::BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
    names.into_iter().collect()
}

/// All prices of a service, or all that there are, with their state. A service that is not there is an error.
async fn prices(
    connect: &ConnectArgs,
    channel: &Connection,
    service: Option<&str>,
) -> anyhow::Result<Vec<(Price, State)>> {
    let mut catalog = connect::catalog_client(channel.clone());
    let mut request = ListPricesRequest {
        service: service.unwrap_or_default().to_owned(),
        page_size: PAGE_SIZE,
        page_token: String::new(),
    };
    let mut prices = vec![];
    loop {
        let answer = catalog.list_prices(connect.request(request.clone(), CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        prices.extend(page.prices);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if let Some(service) = service.filter(|_| prices.is_empty()) {
        let known = hints::services(connect, channel).await.map_err(|status| connect::status_error(&status))?;
        anyhow::ensure!(
            known.iter().any(|name| name == service),
            "there is no service {service:?}; {}",
            hints::did_you_mean(service, known.iter().map(String::as_str)).unwrap_or_else(|| known.join(", "))
        );
        anyhow::bail!("service {service} has no prices; set one with `meterd prices create {service}`");
    }
    Ok(with_states(prices, Clock::system().now().timestamp()))
}

/// Of the prices of one scope, the latest that has begun is in force. They come in the order of their times.
fn with_states(prices: Vec<Price>, now: i64) -> Vec<(Price, State)> {
    let begun = |price: &Price| price.effective_time.as_ref().is_none_or(|time| time.seconds <= now);
    let mut in_force: HashMap<(&str, &str, &str), usize> = HashMap::new();
    for (at, price) in prices.iter().enumerate().filter(|(_, price)| begun(price)) {
        in_force.insert((&price.service, &price.operation, &price.model), at);
    }
    let in_force: std::collections::HashSet<usize> = in_force.into_values().collect();
    let state = |at: usize, price: &Price| match (in_force.contains(&at), begun(price)) {
        (true, _) => State::InForce,
        (false, true) => State::Past,
        (false, false) => State::Future,
    };
    let states: Vec<State> = prices.iter().enumerate().map(|(at, price)| state(at, price)).collect();
    prices.into_iter().zip(states).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;

    #[test]
    fn the_latest_price_that_has_begun_is_in_force() {
        let price = |model: &str, seconds: Option<i64>| Price {
            service: "openai".into(),
            model: model.into(),
            effective_time: seconds.map(|seconds| Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        };
        let prices = vec![price("a", None), price("a", Some(10)), price("a", Some(30)), price("b", Some(30))];
        let states: Vec<State> = with_states(prices, 20).into_iter().map(|(_, state)| state).collect();
        assert_eq!(states, [State::Past, State::InForce, State::Future, State::Future]);
    }
}
