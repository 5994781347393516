//! `meterd prices retire`: ends or withdraws a price.

use super::show;
use super::{CALL_SECONDS, with_states};
use crate::cli::connect::{self, ConnectArgs};
use crate::cli::period::parse_instant;
use crate::proto::RetirePriceRequest;
use clap::Args;
use meterd_engine::clock::Clock;
use prost_types::Timestamp;

/// Arguments of `prices retire`.
#[derive(Args, Clone, Debug)]
pub struct RetireArgs {
    /// The price, as shown by `meterd prices list`
    #[arg(value_name = "PRICE_ID")]
    pub price_id: String,
    /// Time from which the price no longer applies [default: it applies to no event of any time]
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    pub at: Option<Timestamp>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Ends or withdraws a price and prints it.
pub async fn run(args: RetireArgs) -> anyhow::Result<()> {
    let request = RetirePriceRequest { price_id: args.price_id.clone(), end_time: args.at };
    let mut catalog = connect::catalog_client(args.connect.channel().await?);
    let answer = catalog.retire_price(args.connect.request(request, CALL_SECONDS)).await;
    let price = answer.map_err(|status| connect::status_error(&status))?.into_inner().price.unwrap_or_default();
    eprintln!("note: charges that were computed with this price stay as they are");
    show::print(&with_states(vec![price], Clock::system().now().timestamp()), true, args.json, false)
}
