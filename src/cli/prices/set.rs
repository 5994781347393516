//! `meterd prices set`: creates a price, which replaces the price before it.

use super::show;
use super::{CALL_SECONDS, State, prices, scope, with_states};
use crate::cli::connect::{self, ConnectArgs};
use crate::cli::decimal;
use crate::cli::period::parse_instant;
use crate::proto::{CreatePriceRequest, Price, Rates, Tier, TierMode, TieredRate};
use clap::Args;
use meterd_domain::measures::check_name;
use meterd_engine::clock::Clock;
use prost_types::Timestamp;
use tonic_types::StatusExt;

/// Arguments of `prices set`.
#[derive(Args, Clone, Debug)]
pub struct SetArgs {
    /// Name of the service
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Client to which the price applies; it comes before all prices for any client [default: all clients]
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub client: String,
    /// Plan to which the price applies; it comes before all prices for any client [default: all plans]
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true, conflicts_with = "client")]
    pub plan: String,
    /// Operation to which the price applies [default: all operations]
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub operation: String,
    /// Model to which the price applies [default: all models]
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub model: String,
    /// Service tier of the events, such as batch [default: all service tiers]
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub service_tier: String,
    /// Only for events with more input tokens than this [default: with any number]
    #[arg(long, value_name = "COUNT", value_parser = decimal::tokens)]
    pub above_input_tokens: Option<i64>,
    /// Time from which the price applies, such as 2027-01-01T00:00:00Z [default: it applies to events of any time]
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    pub from: Option<Timestamp>,
    /// Time from which the price no longer applies [default: it applies until a later price replaces it]
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    pub until: Option<Timestamp>,
    /// Rate for one million input tokens, such as 2.50
    #[arg(long, value_name = "RATE", value_parser = parse_per_million, conflicts_with = "input_token")]
    pub input_per_million: Option<String>,
    /// Rate for one million output tokens
    #[arg(long, value_name = "RATE", value_parser = parse_per_million, conflicts_with = "output_token")]
    pub output_per_million: Option<String>,
    /// Rate for one million cached input tokens [default: the rate for input tokens]
    #[arg(long, value_name = "RATE", value_parser = parse_per_million, conflicts_with = "cached_input_token")]
    pub cached_input_per_million: Option<String>,
    /// Rate for one input token, such as 0.0000025, or 2.50/1M for one million tokens
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub input_token: Option<String>,
    /// Rate for one output token
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub output_token: Option<String>,
    /// Rate for one cached input token
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub cached_input_token: Option<String>,
    /// Rate for one unit, such as 0.0079, or 7.90/1K for one thousand units
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub unit: Option<String>,
    /// Percentage of the amount of an event: 2.9 means 2.9 %
    #[arg(long, value_name = "RATE")]
    pub percent: Option<String>,
    /// Rate for one unit in addition to a percentage
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub fixed: Option<String>,
    /// Factor of the cost that the provider reports: 1 charges this cost, 1.2 adds 20 %
    #[arg(long, value_name = "FACTOR")]
    pub reported_cost: Option<String>,
    /// Rate for another measure, such as pages=0.01 or audio_input_tokens=40/1M; repeat the flag for more
    #[arg(long, value_name = "NAME=RATE", value_parser = parse_measure_rate)]
    pub rate: Vec<(String, String)>,
    /// Rate by parts of the month's quantity, such as unit=0:0.01,1000:0.008: 0.01 for each unit up to 1,000, and 0.008 for each one
    /// above. A tier is ABOVE:RATE or ABOVE:RATE+FEE. Repeat the flag for other measures
    #[arg(long, value_name = "NAME=TIERS", value_parser = parse_graduated)]
    pub graduated: Vec<TieredRate>,
    /// Rate by the month's quantity, for the whole quantity, such as unit=0:0.01,1000:0.008
    #[arg(long, value_name = "NAME=TIERS", value_parser = parse_volume)]
    pub volume: Vec<TieredRate>,
    /// Rate for packages of the month's quantity, such as unit=1000:5.00: 5.00 for each 1,000 units that are begun
    #[arg(long, value_name = "NAME=SIZE:RATE", value_parser = parse_package)]
    pub package: Vec<TieredRate>,
    /// Create the price even if a rate for one token is higher than the server's high_token_rate
    #[arg(long)]
    pub confirm_high_rates: bool,
    /// Where the rates come from, such as the address of a price list
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    pub source: String,
    /// A remark for people
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    pub note: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

fn parse_per_million(text: &str) -> Result<String, String> {
    show::per_one(text.trim(), show::MILLION_DIGITS).map_err(|_| "must be a decimal number such as 2.50".to_owned())
}

/// Parses a rate for one, such as "0.0025", or for more, such as "2.50/1K" or "2.50/1M".
fn parse_rate(text: &str) -> Result<String, String> {
    let (rate, count) = text.split_once('/').unwrap_or((text, "1"));
    let digits = match count.trim().to_ascii_uppercase().as_str() {
        "1" => 0,
        "1K" | "1000" => show::THOUSAND_DIGITS,
        "1M" | "1000000" => show::MILLION_DIGITS,
        _ => return Err("must be a rate for 1, 1K or 1M, such as 0.0025, 2.50/1K or 2.50/1M".to_owned()),
    };
    show::per_one(rate.trim(), digits).map_err(|_| "must be a decimal number such as 0.0025, or 2.50/1M".to_owned())
}

/// Parses the name and the rate of a measure.
fn parse_measure_rate(text: &str) -> Result<(String, String), String> {
    let (name, rate) = text.split_once('=').ok_or("must be NAME=RATE, such as pages=0.01")?;
    check_name(name).map_err(|predicate| format!("{name:?} {predicate}"))?;
    Ok((name.to_owned(), parse_rate(rate)?))
}

fn parse_graduated(text: &str) -> Result<TieredRate, String> {
    parse_tiers(text, TierMode::Graduated)
}

fn parse_volume(text: &str) -> Result<TieredRate, String> {
    parse_tiers(text, TierMode::Volume)
}

/// Parses tiers, such as `unit=0:0.01,1000:0.008+5`.
fn parse_tiers(text: &str, mode: TierMode) -> Result<TieredRate, String> {
    let form = "must be NAME=ABOVE:RATE,ABOVE:RATE, such as unit=0:0.01,1000:0.008";
    let (component, tiers) = text.split_once('=').ok_or(form)?;
    let tier = |tier: &str| {
        let (above, rate) = tier.split_once(':').ok_or_else(|| form.to_owned())?;
        let (rate, flat_fee) = rate.split_once('+').unwrap_or((rate, ""));
        Ok(Tier { above: above.trim().to_owned(), rate: parse_rate(rate)?, flat_fee: flat_fee.trim().to_owned() })
    };
    let tiers = tiers.split(',').map(tier).collect::<Result<_, String>>()?;
    Ok(TieredRate { component: component.trim().to_owned(), mode: mode.into(), tiers, ..Default::default() })
}

/// Parses the size and the rate of a package, such as `unit=1000:5.00`.
fn parse_package(text: &str) -> Result<TieredRate, String> {
    let form = "must be NAME=SIZE:RATE, such as unit=1000:5.00";
    let (component, package) = text.split_once('=').ok_or(form)?;
    let (size, rate) = package.split_once(':').ok_or(form)?;
    Ok(TieredRate {
        component: component.trim().to_owned(),
        mode: TierMode::Package.into(),
        tiers: vec![Tier { rate: parse_rate(rate)?, ..Default::default() }],
        package_size: size.trim().to_owned(),
    })
}

fn price(args: &SetArgs) -> anyhow::Result<Price> {
    let or = |one: &Option<String>, million: &Option<String>| one.clone().or_else(|| million.clone());
    let rates = Rates {
        unit: args.unit.clone(),
        input_token: or(&args.input_token, &args.input_per_million),
        output_token: or(&args.output_token, &args.output_per_million),
        cached_input_token: or(&args.cached_input_token, &args.cached_input_per_million),
        percent_of_amount: args.percent.clone(),
        fixed: args.fixed.clone(),
        reported_cost: args.reported_cost.clone(),
        measures: args.rate.iter().cloned().collect(),
        tiers: args.graduated.iter().chain(&args.volume).chain(&args.package).cloned().collect(),
    };
    anyhow::ensure!(
        rates != Rates::default(),
        "no rate is set: add --unit, or --input-per-million and --output-per-million, or --percent and --fixed, or --rate, --graduated, --volume, --package or --reported-cost"
    );
    Ok(Price {
        client_id: args.client.clone(),
        plan_id: args.plan.clone(),
        service: args.service.clone(),
        operation: args.operation.clone(),
        model: args.model.clone(),
        service_tier: args.service_tier.clone(),
        above_input_tokens: args.above_input_tokens,
        effective_time: args.from,
        end_time: args.until,
        rates: Some(rates),
        source: args.source.clone(),
        note: args.note.clone(),
        ..Default::default()
    })
}

/// Creates a price and prints it.
pub async fn run(args: SetArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let new = price(&args)?;
    // If there are none, or the service does not exist, the server says so.
    let before = prices(&args.connect, &channel, Some(&args.service)).await.unwrap_or_default();
    let request =
        CreatePriceRequest { price: Some(new), request_id: String::new(), confirm_high_rates: args.confirm_high_rates };
    let answer = connect::catalog_client(channel).create_price(args.connect.request(request, CALL_SECONDS)).await;
    let price = answer.map_err(|status| refused(&status))?.into_inner().price.unwrap_or_default();
    let before: Vec<Price> = before.into_iter().map(|(price, _)| price).collect();
    for note in [replacement(before.clone(), &price), more_specific(before, &price)].into_iter().flatten() {
        eprintln!("note: {note}");
    }
    let priced = with_states(vec![price], Clock::system().now().timestamp());
    show::print(&priced, priced[0].1 != State::InForce, args.json, false)
}

/// Returns the error of a refused price, with the flags that help.
fn refused(status: &tonic::Status) -> anyhow::Error {
    let error = connect::status_error(status);
    let details = status.get_error_details();
    if details.error_info().is_none_or(|info| info.reason != "RATE_NOT_CONFIRMED") {
        return error;
    }
    anyhow::anyhow!("{error}\n  give a rate per million as 2.50/1M; --confirm-high-rates sets the rates as they are")
}

/// Returns what a new price replaces, and which rates are gone. `prices` are those of its service, ordered by time.
fn replacement(prices: Vec<Price>, new: &Price) -> Option<String> {
    let from = new.effective_time.as_ref().map_or(i64::MIN, |time| time.seconds);
    let is_scope = |price: &Price| scope(price) == scope(new);
    let (old, _) = with_states(prices, from)
        .into_iter()
        .find(|(price, state)| is_scope(price) && *state == State::InForce && price.price_id != new.price_id)?;
    let (old_rates, new_rates) = (old.rates.unwrap_or_default(), new.rates.clone().unwrap_or_default());
    let gone = named(&old_rates)
        .into_iter()
        .zip(named(&new_rates))
        .filter(|((_, old), (_, new))| old.is_some() && new.is_none())
        .map(|((name, rate), _)| format!("{name} {}", rate.as_deref().unwrap_or_default()));
    let is_gone = |(name, _): &(&String, &String)| !new_rates.measures.contains_key(*name);
    let gone_measures = old_rates.measures.iter().filter(is_gone).map(|(name, rate)| format!("{name} {rate}"));
    let gone: Vec<String> = gone.chain(gone_measures).collect();
    let replaced = format!("replaces price {}", old.price_id);
    Some(match gone.as_slice() {
        [] => replaced,
        gone => format!("{replaced}, and has no rate for {}, which that price has", gone.join(", ")),
    })
}

/// Returns which prices for a service tier or for many input tokens stay, although the new one is for any.
fn more_specific(prices: Vec<Price>, new: &Price) -> Option<String> {
    let from = new.effective_time.as_ref().map_or(i64::MIN, |time| time.seconds);
    let of_model = |price: &Price| {
        let Price { client_id, plan_id, service, operation, model, .. } = price;
        [client_id, plan_id, service, operation, model].map(String::clone)
    };
    let is_more_specific = |price: &Price| {
        of_model(price) == of_model(new)
            && scope(price) != scope(new)
            && (new.service_tier.is_empty() || new.service_tier == price.service_tier)
            && (new.above_input_tokens.is_none() || new.above_input_tokens == price.above_input_tokens)
    };
    let staying = with_states(prices, from).into_iter().filter(|(_, state)| *state == State::InForce);
    let names: Vec<String> = staying
        .filter(|(price, _)| is_more_specific(price))
        .map(|(price, _)| match (price.service_tier.as_str(), price.above_input_tokens) {
            (tier, None) => tier.to_owned(),
            ("", Some(bound)) => format!("above {bound} input tokens"),
            (tier, Some(bound)) => format!("{tier} above {bound} input tokens"),
        })
        .collect();
    let list = names.join(", ");
    (!names.is_empty())
        .then(|| format!("more specific prices stay in force: {list}; set or retire them too if they must change"))
}

fn named(rates: &Rates) -> [(&'static str, &Option<String>); 7] {
    [
        ("unit", &rates.unit),
        ("input_token", &rates.input_token),
        ("output_token", &rates.output_token),
        ("cached_input_token", &rates.cached_input_token),
        ("percent_of_amount", &rates.percent_of_amount),
        ("fixed", &rates.fixed),
        ("reported_cost", &rates.reported_cost),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        args: SetArgs,
    }

    fn rates(arguments: &[&str]) -> anyhow::Result<Rates> {
        let command = Command::try_parse_from([&["set", "openai"], arguments].concat())?;
        Ok(price(&command.args)?.rates.unwrap_or_default())
    }

    #[test]
    fn rates_per_million_become_rates_per_token() {
        let rates_per_token = rates(&["--input-per-million", "2.50", "--output-per-million=10"]).unwrap();
        assert_eq!(
            (rates_per_token.input_token.as_deref(), rates_per_token.output_token.as_deref()),
            (Some("0.0000025"), Some("0.00001"))
        );
        assert_eq!(rates(&["--unit", "0.01"]).unwrap().unit.as_deref(), Some("0.01"));
    }

    #[test]
    fn a_rate_may_be_for_one_a_thousand_or_a_million() {
        for (text, rate) in [("2.5", "2.5"), ("2.50/1K", "0.0025"), ("2.50 / 1m", "0.0000025"), ("7.9/1000", "0.0079")]
        {
            assert_eq!(rates(&["--unit", text]).unwrap().unit.as_deref(), Some(rate), "{text}");
        }
        for text in ["2.5/2", "2.5/", "a/1K", "1/1K/1K"] {
            assert!(rates(&["--unit", text]).is_err(), "{text}");
        }
    }

    #[test]
    fn a_new_price_names_the_price_that_it_replaces_and_the_rates_that_are_gone() {
        let price = |price_id: &str, from: i64, rates: Rates| Price {
            price_id: price_id.into(),
            effective_time: Some(Timestamp { seconds: from, nanos: 0 }),
            rates: Some(rates),
            ..Default::default()
        };
        let full = Rates { unit: Some("1".into()), fixed: Some("0.3".into()), ..Default::default() };
        let unit = Rates { unit: Some("2".into()), ..Default::default() };
        let before = vec![price("1", 10, unit.clone()), price("2", 20, full.clone()), price("3", 90, unit.clone())];
        let note = replacement(before.clone(), &price("4", 30, unit.clone()));
        assert_eq!(note.as_deref(), Some("replaces price 2, and has no rate for fixed 0.3, which that price has"));
        assert_eq!(replacement(before.clone(), &price("4", 15, full)).as_deref(), Some("replaces price 1"));
        assert_eq!(replacement(before, &price("4", 5, unit)), None);
    }

    #[test]
    fn tiers_are_read_from_their_short_form() {
        let tiers = rates(&["--graduated", "unit=0:0.01, 1000:8/1K+5", "--package", "pages=100:2.5"]).unwrap().tiers;
        let tier = |above: &str, rate: &str, flat_fee: &str| Tier {
            above: above.into(),
            rate: rate.into(),
            flat_fee: flat_fee.into(),
        };
        assert_eq!(tiers[0].tiers, [tier("0", "0.01", ""), tier("1000", "0.008", "5")]);
        assert_eq!((tiers[0].mode(), &*tiers[0].component), (TierMode::Graduated, "unit"));
        assert_eq!(
            (tiers[1].mode(), &*tiers[1].package_size, &*tiers[1].tiers[0].rate),
            (TierMode::Package, "100", "2.5")
        );
        for wrong in ["unit", "unit=5", "unit=0:x"] {
            assert!(rates(&["--volume", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_new_price_names_the_prices_for_tiers_and_bounds_that_stay() {
        let price = |service_tier: &str, above_input_tokens: Option<i64>| Price {
            model: "pro".into(),
            service_tier: service_tier.into(),
            above_input_tokens,
            ..Default::default()
        };
        let other = Price { model: "other".into(), ..price("flex", None) };
        let before =
            vec![price("", None), price("", Some(200_000)), price("batch", None), price("batch", Some(200_000)), other];
        let note = more_specific(before.clone(), &price("", None)).unwrap();
        let listed = "in force: above 200000 input tokens, batch, batch above 200000 input tokens; set";
        assert!(note.contains(listed), "{note}");
        let note = more_specific(before.clone(), &price("batch", None)).unwrap();
        assert!(note.contains("in force: batch above 200000 input tokens; set"), "{note}");
        assert_eq!(more_specific(before, &price("batch", Some(200_000))), None);
    }

    #[test]
    fn a_price_without_a_rate_or_with_two_rates_of_a_kind_is_an_error() {
        assert!(rates(&[]).unwrap_err().to_string().contains("no rate is set"));
        assert!(rates(&["--input-per-million", "1", "--input-token", "1"]).is_err());
        assert!(rates(&["--input-per-million", "cheap"]).unwrap_err().to_string().contains("decimal number"));
    }
}
