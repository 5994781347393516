//! `meterd prices create`: creates a price.

use super::show;
use super::{CALL_SECONDS, State};
use crate::cli::connect::{self, ConnectArgs};
use crate::cli::period::parse_instant;
use crate::proto::{CreatePriceRequest, Price, Rates};
use clap::Args;
use meterd_engine::clock::Clock;
use prost_types::Timestamp;

/// Create a price
///
/// The price applies to all events of its service, operation and model from a given time. Priced events keep their charge;
/// unpriced events are priced immediately. A price never changes: a new price replaces the old one.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Name of the service
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Only for this operation
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub operation: String,
    /// Only for this model
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub model: String,
    /// The price applies from this time, such as 2027-01-01T00:00:00Z [default: to events of any time]
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    pub from: Option<Timestamp>,
    /// Rate for one million input tokens, such as 2.50
    #[arg(long, value_name = "RATE", value_parser = parse_per_million, conflicts_with = "input_token")]
    pub input_per_million: Option<String>,
    /// Rate for one million output tokens
    #[arg(long, value_name = "RATE", value_parser = parse_per_million, conflicts_with = "output_token")]
    pub output_per_million: Option<String>,
    /// Rate for one million cached input tokens [default: the rate for input tokens]
    #[arg(long, value_name = "RATE", value_parser = parse_per_million, conflicts_with = "cached_input_token")]
    pub cached_input_per_million: Option<String>,
    /// Rate for one input token
    #[arg(long, value_name = "RATE")]
    pub input_token: Option<String>,
    /// Rate for one output token
    #[arg(long, value_name = "RATE")]
    pub output_token: Option<String>,
    /// Rate for one cached input token
    #[arg(long, value_name = "RATE")]
    pub cached_input_token: Option<String>,
    /// Rate for one unit
    #[arg(long, value_name = "RATE")]
    pub unit: Option<String>,
    /// Percentage of the amount of an event: 2.9 means 2.9 %
    #[arg(long, value_name = "RATE")]
    pub percent: Option<String>,
    /// Rate for one unit in addition to a percentage
    #[arg(long, value_name = "RATE")]
    pub fixed: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

fn parse_per_million(text: &str) -> Result<String, String> {
    show::per_one(text.trim()).map_err(|_| "must be a decimal number such as 2.50".to_owned())
}

fn price(args: &CreateArgs) -> anyhow::Result<Price> {
    let or = |one: &Option<String>, million: &Option<String>| one.clone().or_else(|| million.clone());
    let rates = Rates {
        unit: args.unit.clone(),
        input_token: or(&args.input_token, &args.input_per_million),
        output_token: or(&args.output_token, &args.output_per_million),
        cached_input_token: or(&args.cached_input_token, &args.cached_input_per_million),
        percent_of_amount: args.percent.clone(),
        fixed: args.fixed.clone(),
    };
    anyhow::ensure!(
        rates != Rates::default(),
        "no rate is set: add --unit, or --input-per-million and --output-per-million, or --percent and --fixed"
    );
    Ok(Price {
        service: args.service.clone(),
        operation: args.operation.clone(),
        model: args.model.clone(),
        effective_time: args.from,
        rates: Some(rates),
        ..Default::default()
    })
}

/// Creates a price and prints it.
pub async fn run(args: CreateArgs) -> anyhow::Result<()> {
    let request = CreatePriceRequest { price: Some(price(&args)?), request_id: String::new() };
    let mut catalog = connect::catalog_client(args.connect.channel().await?);
    let answer = catalog.create_price(args.connect.request(request, CALL_SECONDS)).await;
    let price = answer.map_err(|status| connect::status_error(&status))?.into_inner().price.unwrap_or_default();
    let now = Clock::system().now().timestamp();
    let state = match price.effective_time.as_ref().is_some_and(|time| time.seconds > now) {
        true => State::Future,
        false => State::InForce,
    };
    show::print(&[(price, state)], false, args.json, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn rates(arguments: &[&str]) -> anyhow::Result<Rates> {
        let command = Command::try_parse_from([&["create", "openai"], arguments].concat())?;
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
    fn a_price_without_a_rate_or_with_two_rates_of_a_kind_is_an_error() {
        assert!(rates(&[]).unwrap_err().to_string().contains("no rate is set"));
        assert!(rates(&["--input-per-million", "1", "--input-token", "1"]).is_err());
        assert!(rates(&["--input-per-million", "cheap"]).unwrap_err().to_string().contains("decimal number"));
    }
}
