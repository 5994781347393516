//! What an import of prices prints.

use super::super::show::per_million;
use super::{ImportArgs, Selection};
use crate::cli::chart::table;
use crate::cli::connect;
use crate::proto::{ImportOutcome, ImportPricesResponse, ImportedPrice, Price};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Maximum number of prices that are listed for each outcome.
const SHOWN_MAX: usize = 20;

fn outcome_name(result: &ImportedPrice) -> String {
    result.outcome().as_str_name().trim_start_matches("IMPORT_OUTCOME_").to_lowercase()
}

/// Describes what a price is for, such as "openai gpt-4o (batch, above 200000 input tokens)".
fn scope_text(price: &Price) -> String {
    let bound = price.above_input_tokens.map(|bound| format!("above {bound} input tokens"));
    let details: Vec<String> =
        Some(price.service_tier.clone()).filter(|tier| !tier.is_empty()).into_iter().chain(bound).collect();
    let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
    let names = [&*price.service, &price.operation, &price.model];
    let names: Vec<&str> = names.into_iter().filter(|name| !name.is_empty()).collect();
    format!("{}{details}", names.join(" "))
}

/// Returns all rates by name.
pub fn rates_of(price: &Price) -> BTreeMap<String, String> {
    let rates = price.rates.clone().unwrap_or_default();
    let fields = [
        ("unit", rates.unit),
        ("fixed", rates.fixed),
        ("percent_of_amount", rates.percent_of_amount),
        ("input_token", rates.input_token),
        ("output_token", rates.output_token),
        ("cached_input_token", rates.cached_input_token),
    ];
    let fields = fields.into_iter().filter_map(|(name, rate)| Some((name.to_owned(), rate?)));
    fields.chain(rates.measures).collect()
}

/// Describes the rates that differ, those of tokens per million.
fn difference(old: &Price, new: &Price) -> anyhow::Result<String> {
    let shown = |name: &str, rate: Option<&String>| match rate {
        None => Ok("none".to_owned()),
        Some(rate) if name.contains("_token") => Ok(format!("{}/1M", per_million(rate)?)),
        Some(rate) => Ok::<_, anyhow::Error>(rate.clone()),
    };
    let (old, new) = (rates_of(old), rates_of(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    let changed =
        changed.map(|name| Ok(format!("{name} {} to {}", shown(name, old.get(name))?, shown(name, new.get(name))?)));
    Ok(changed.collect::<anyhow::Result<Vec<_>>>()?.join(", "))
}

/// Prints how many prices have each outcome, those that need a look, and what was left out. `before` has the present prices by id, to
/// show what a dry run would change.
pub fn print_summary(
    args: &ImportArgs,
    selection: &Selection,
    imported: &ImportPricesResponse,
    before: &HashMap<String, Price>,
) -> anyhow::Result<()> {
    let results = &imported.results;
    let mut counts = BTreeMap::<i32, (String, usize)>::new();
    for result in results {
        counts.entry(result.outcome).or_insert_with(|| (outcome_name(result), 0)).1 += 1;
    }
    let would = if args.dry_run { " (dry run: nothing is changed)" } else { "" };
    println!("{}{would}", selection.title);
    let rows = counts.into_values().map(|(name, count)| vec![name, count.to_string()]).collect::<Vec<_>>();
    table(&rows, &[false, true]).iter().for_each(|line| println!("  {line}"));
    for (outcome, heading) in
        [(ImportOutcome::Changed, "changed"), (ImportOutcome::Kept, "kept"), (ImportOutcome::Rejected, "rejected")]
    {
        let of_outcome: Vec<_> =
            selection.prices.iter().zip(results).filter(|(_, result)| result.outcome() == outcome).collect();
        if of_outcome.is_empty() {
            continue;
        }
        println!("{heading}:");
        for (price, result) in of_outcome.iter().take(SHOWN_MAX) {
            let detail = match outcome {
                ImportOutcome::Changed => match before.get(&result.replaced_price_id) {
                    Some(old) => difference(old, price)?,
                    None => format!("price {} replaces {}", result.price_id, result.replaced_price_id),
                },
                ImportOutcome::Kept => {
                    format!("price {} of another source stays; --replace-others imports this one", result.price_id)
                }
                _ => {
                    result.error.as_ref().map_or(String::new(), |error| format!("{}: {}", error.reason, error.message))
                }
            };
            println!("  {}: {detail}", scope_text(price));
        }
        if of_outcome.len() > SHOWN_MAX {
            println!("  and {} more; --json shows all", of_outcome.len() - SHOWN_MAX);
        }
    }
    missing_lines(imported).iter().for_each(|line| println!("{line}"));
    if !selection.left_out.is_empty() {
        println!("left out:");
        selection.left_out.iter().for_each(|(reason, count)| println!("  {count} models: {reason}"));
    }
    if !selection.unused.is_empty() {
        println!("rates of these members are not used:");
        selection.unused.iter().for_each(|(member, count)| println!("  {member}: {count} models"));
    }
    Ok(())
}

/// Describes the prices of earlier lists that are still in force.
fn missing_lines(imported: &ImportPricesResponse) -> Vec<String> {
    let ids = &imported.missing_price_ids;
    let Some(first) = ids.first() else { return vec![] };
    let shown = ids.iter().take(SHOWN_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if ids.len() > SHOWN_MAX { ", ..." } else { "" };
    vec![
        format!("{} prices are no longer in the list, and stay in force: {shown}{more}", ids.len()),
        format!("  to end one: meterd prices retire {first}"),
    ]
}

/// Prints one object for each price. What belongs to no price goes to standard error.
pub fn print_json(selection: &Selection, imported: &ImportPricesResponse) {
    for ((price, name), result) in selection.prices.iter().zip(&selection.names).zip(&imported.results) {
        let object = json!({
            "name": name,
            "service": price.service,
            "operation": price.operation,
            "model": price.model,
            "service_tier": price.service_tier,
            "above_input_tokens": price.above_input_tokens,
            "rates": rates_of(price),
            "outcome": outcome_name(result),
            "price_id": result.price_id,
            "replaced_price_id": result.replaced_price_id,
            "error": result.error.as_ref().map(connect::event_error_json),
        });
        println!("{object}");
    }
    missing_lines(imported).iter().for_each(|line| eprintln!("{line}"));
}
