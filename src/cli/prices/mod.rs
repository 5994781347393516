//! `meterd prices`: lists prices, shows the history of a price, sets and retires prices.

mod import;
mod list_age;
mod reprice;
mod retire;
mod set;
mod show;

use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use crate::proto::{ListPricesRequest, Price};
use clap::{Args, Subcommand};
use list_age::BuiltInList;
use meterd_engine::clock::Clock;
use std::collections::HashMap;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: i32 = 1_000;

/// List prices, show the history of a price, set, import or retire prices, charge usage again
#[derive(Args, Clone, Debug)]
pub struct PricesArgs {
    #[command(subcommand)]
    pub command: PricesCommand,
}

/// Subcommands of `prices`.
#[derive(Subcommand, Clone, Debug)]
pub enum PricesCommand {
    /// List prices that are in force
    List(ListArgs),
    /// Show the history of a price: past, current and future prices
    History(HistoryArgs),
    /// Set a price
    ///
    /// The price applies to all events of its service, operation and model from a given time. Priced events keep their charge;
    /// unpriced events are priced immediately. The rates of a price never change: a new price replaces the old one. Rates are in
    /// the currency of the deployment.
    #[command(alias = "create")]
    Set(Box<set::SetArgs>),
    /// Import prices from a file of model prices
    ///
    /// A price that does not exist is created, and applies to events of any time. A price with other rates is replaced from a given
    /// time. The command can be repeated with the same file, and with a newer one. Models whose rates are all zero are left out.
    /// With --built-in, the prices are those that the server ships.
    Import(Box<import::ImportArgs>),
    /// Charge recorded events by the prices that are in force now
    ///
    /// Shows what would change, by client, service and model. With --apply, it changes the charges, sums and alerts, and each changed
    /// charge keeps its old value as an adjustment. The server works in small steps, next to live usage. If this command is
    /// interrupted, it cancels the run.
    Reprice(Box<reprice::RepriceArgs>),
    /// End a price at a time, or withdraw it
    ///
    /// Events that have a charge keep it. Later events get the next price that covers them, or none.
    Retire(retire::RetireArgs),
}

/// Arguments of `prices list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only prices of this service
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only prices for this client
    #[arg(long, value_name = "ID")]
    pub client: Option<String>,
    /// Only prices for this plan
    #[arg(long, value_name = "ID")]
    pub plan: Option<String>,
    /// Only prices for this operation
    #[arg(long, value_name = "NAME")]
    pub operation: Option<String>,
    /// Only prices for models whose name contains this text
    #[arg(long, value_name = "TEXT")]
    pub model: Option<String>,
    /// Also list past and future prices
    #[arg(long)]
    pub all: bool,
    /// Print JSON, one price per line
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
    /// Name of the service
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Client of the price [default: none, the price for any client]
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub client: String,
    /// Plan of the price [default: none, the price for any plan]
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true, conflicts_with = "client")]
    pub plan: String,
    /// Operation of the price [default: none, the price for any operation]
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub operation: String,
    /// Model of the price [default: none, the price for any model]
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub model: String,
    /// Print JSON, one price per line
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Runs the subcommand.
pub async fn run(args: PricesArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        PricesCommand::List(args) => list(args).await?,
        PricesCommand::History(args) => history(args).await?,
        PricesCommand::Set(args) => set::run(*args).await?,
        PricesCommand::Import(args) => import::run(*args).await?,
        PricesCommand::Reprice(args) => reprice::run(*args).await?,
        PricesCommand::Retire(args) => retire::run(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a price is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Past,
    Ended,
    Withdrawn,
    InForce,
    Future,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::Past => "replaced",
            Self::Ended => "ended",
            Self::Withdrawn => "withdrawn",
            Self::InForce => "in force",
            Self::Future => "future",
        }
    }
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let Listed { prices, built_in_list } = listed(&args.connect, &channel, args.service.as_deref()).await?;
    let matches = |(price, _): &(Price, State)| {
        let model = args.model.as_ref().map(|model| model.to_lowercase());
        args.client.as_ref().is_none_or(|client| price.client_id == *client)
            && args.plan.as_ref().is_none_or(|plan| price.plan_id == *plan)
            && args.operation.as_ref().is_none_or(|operation| price.operation == *operation)
            && model.is_none_or(|model| price.model.to_lowercase().contains(&model))
    };
    let matching: Vec<_> = prices.iter().filter(|price| matches(price)).cloned().collect();
    if matching.is_empty() {
        let names = prices.iter().map(|(price, _)| price.model.as_str());
        let hint = args.model.as_deref().and_then(|model| hints::did_you_mean(model, distinct(names).into_iter()));
        anyhow::bail!("no price matches; {}", hint.as_deref().unwrap_or("remove a filter to see more prices"));
    }
    let shown: Vec<_> = matching.iter().filter(|(_, state)| args.all || *state == State::InForce).cloned().collect();
    if args.json {
        for (price, state) in &shown {
            println!("{}", list_age::with_list(show::to_json(price, *state), built_in_list.as_ref()));
        }
    } else {
        show::print(&shown, args.all, false, args.csv)?;
    }
    if shown.iter().any(|(price, _)| price.built_in) {
        eprintln!("{}", list_age::note(built_in_list.as_ref()));
    }
    let future = matching.iter().filter(|(_, state)| *state == State::Future).count();
    if future > 0 && !args.all {
        eprintln!("note: {future} prices that apply later are not shown; add --all to show them");
    }
    Ok(())
}

async fn history(args: HistoryArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let prices = prices(&args.connect, &channel, Some(&args.service)).await?;
    let matches = |price: &Price| {
        (&price.client_id, &price.plan_id) == (&args.client, &args.plan)
            && price.operation == args.operation
            && price.model == args.model
    };
    let history: Vec<_> = prices.iter().filter(|(price, _)| matches(price)).cloned().collect();
    if history.is_empty() {
        let scopes = distinct(prices.iter().map(|(price, _)| match price.model.as_str() {
            "" => price.operation.as_str(),
            model => model,
        }));
        let wanted = if args.model.is_empty() { &args.operation } else { &args.model };
        let hint = hints::did_you_mean(wanted, scopes.into_iter()).filter(|_| !wanted.is_empty());
        let hint =
            hint.unwrap_or_else(|| format!("`meterd prices list {}` shows all prices of the service", args.service));
        let HistoryArgs { service, operation, model, .. } = &args;
        anyhow::bail!(
            "no price has exactly the service {service:?}, the operation {operation:?} and the model {model:?}; {hint}"
        );
    }
    show::print(&history, true, args.json, args.csv)
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let names: std::collections::BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
    names.into_iter().collect()
}

/// Prices with their states, and the built-in list that the database has, if its date is known.
struct Listed {
    prices: Vec<(Price, State)>,
    built_in_list: Option<BuiltInList>,
}

/// Returns all prices, or all prices of a service, with their states. An unknown service is an error.
async fn prices(
    connect: &ConnectArgs,
    channel: &Connection,
    service: Option<&str>,
) -> anyhow::Result<Vec<(Price, State)>> {
    Ok(listed(connect, channel, service).await?.prices)
}

async fn listed(connect: &ConnectArgs, channel: &Connection, service: Option<&str>) -> anyhow::Result<Listed> {
    let mut catalog = connect::catalog_client(channel.clone());
    let mut request = ListPricesRequest {
        service: service.unwrap_or_default().to_owned(),
        page_size: PAGE_SIZE,
        ..Default::default()
    };
    let mut prices = vec![];
    let list_date = loop {
        let answer = catalog.list_prices(connect.request(request.clone(), CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        prices.extend(page.prices);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break page.built_in_list_date;
        }
    };
    if let Some(service) = service.filter(|_| prices.is_empty()) {
        let known = hints::services(connect, channel).await.map_err(|status| connect::status_error(&status))?;
        anyhow::ensure!(
            known.iter().any(|name| name == service),
            "service {service:?} does not exist; {}",
            hints::did_you_mean(service, known.iter().map(String::as_str)).unwrap_or_else(|| known.join(", "))
        );
        anyhow::bail!("service {service} has no prices; set one with `meterd prices set {service}`");
    }
    let now = Clock::system().now().timestamp();
    Ok(Listed { prices: with_states(prices, now), built_in_list: BuiltInList::new(&list_date, now) })
}

/// What a price is for.
type Scope<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str, Option<i64>);

fn scope(price: &Price) -> Scope<'_> {
    let Price { client_id, plan_id, service, operation, model, service_tier, above_input_tokens, .. } = price;
    (client_id, plan_id, service, operation, model, service_tier, *above_input_tokens)
}

/// Adds the state of each price. Of the prices of one scope that are not withdrawn, the latest that has begun is in force until its
/// end. `prices` must be ordered by time.
fn with_states(prices: Vec<Price>, now: i64) -> Vec<(Price, State)> {
    let begun = |price: &Price| price.effective_time.as_ref().is_none_or(|time| time.seconds <= now);
    let ended = |price: &Price| price.end_time.as_ref().is_some_and(|time| time.seconds <= now);
    let mut latest: HashMap<Scope<'_>, usize> = HashMap::new();
    for (at, price) in prices.iter().enumerate().filter(|(_, price)| price.withdraw_time.is_none() && begun(price)) {
        latest.insert(scope(price), at);
    }
    let latest: std::collections::HashSet<usize> = latest.into_values().collect();
    let state = |at: usize, price: &Price| match latest.contains(&at) {
        _ if price.withdraw_time.is_some() => State::Withdrawn,
        _ if !begun(price) => State::Future,
        _ if ended(price) => State::Ended,
        true => State::InForce,
        false => State::Past,
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
        let time = |seconds: i64| Some(Timestamp { seconds, nanos: 0 });
        let prices = vec![
            price("a", Some(1)),
            Price { end_time: time(15), ..price("a", Some(10)) },
            Price { withdraw_time: time(1), ..price("a", Some(12)) },
            Price { end_time: time(21), ..price("b", None) },
        ];
        let states: Vec<State> = with_states(prices, 20).into_iter().map(|(_, state)| state).collect();
        assert_eq!(states, [State::Past, State::Ended, State::Withdrawn, State::InForce]);
    }
}
