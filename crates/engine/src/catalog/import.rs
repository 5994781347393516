//! Takes prices over from a list, such as the price list of a provider. A list can be imported again: only what has changed
//! creates prices.

use super::new_price::{Checked, SOURCE_BYTES_MAX, check_high_rates, instant};
use super::prices::{NewPrice, check_overlap};
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, Utc};
use meterd_domain::catalog::Catalog;
use meterd_domain::price::{Price, Rates};
use meterd_store::catalog::{self as store, StoredPrice, pricing};
use meterd_store::locks;
use sqlx::PgConnection;
use std::collections::{BTreeSet, HashMap};

/// Maximum number of prices of a list.
pub const LIST_PRICES_MAX: usize = 1_000;
/// Number of prices of one transaction. It blocks all batches, so it must be short.
const CHUNK_PRICES: usize = 100;

/// A list of prices, unchecked. Its prices have no times and no source of their own.
#[derive(Debug, Default)]
pub struct PriceList {
    pub prices: Vec<NewPrice>,
    /// When rates that have changed come into force. `None`: now.
    pub effective_time: Option<UnixTime>,
    /// Where the list comes from.
    pub source: String,
    /// Whether nothing is created.
    pub validate_only: bool,
    /// Whether rates per token above [`EngineConfig::high_token_rate`] are meant.
    ///
    /// [`EngineConfig::high_token_rate`]: crate::engine::EngineConfig::high_token_rate
    pub high_rates_confirmed: bool,
    /// Whether prices of another source are replaced, such as those of an operator.
    pub replace_others: bool,
}

/// What became of a price of the list. Ids are `None` if nothing is created.
#[derive(Debug)]
pub enum Imported {
    /// Nothing had a price before.
    Created {
        price_id: Option<i64>,
    },
    /// The rates have changed.
    Changed {
        price_id: Option<i64>,
        replaced: i64,
    },
    /// The price has these rates already.
    Unchanged {
        price_id: i64,
    },
    /// The present price is of another source.
    Kept {
        price_id: i64,
    },
    Rejected(Refusal),
}

/// Imports a list, and prices recorded events that its prices apply to. Returns a result for each price, in order.
///
/// After an error, the first prices may have been created. The import can be repeated.
pub async fn import(engine: &Engine, list: PriceList) -> Result<Vec<Imported>, Refusal> {
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    fields.required("source", &list.source, SOURCE_BYTES_MAX);
    let effective_time = list.effective_time.and_then(|time| fields.time("effective_time", time));
    if !(1..=LIST_PRICES_MAX).contains(&list.prices.len()) {
        fields.wrong("prices", format!("must be 1 to {LIST_PRICES_MAX} prices, has {}", list.prices.len()));
    }
    fields.finish()?;
    let effective_time = effective_time.unwrap_or_else(|| engine.clock.now());
    let checked = check_all(engine, &catalog, &list);
    let mut results = vec![];
    for (prices, checked) in list.prices.chunks(CHUNK_PRICES).zip(checked.chunks(CHUNK_PRICES)) {
        let mut tx = engine.pool.begin().await?;
        if !list.validate_only {
            locks::change_versions(&mut tx).await?;
        }
        let chunk = Chunk { list: &list, effective_time, prices, checked };
        let (of_chunk, services) = import_chunk(&mut tx, &chunk).await?;
        results.extend(of_chunk);
        if services.is_empty() {
            continue;
        }
        store::bump_version(&mut tx).await?;
        for service in services {
            pricing::insert_task(&mut tx, service).await?;
        }
        tx.commit().await?;
        engine.pricing_wanted.notify_one();
    }
    Ok(results)
}

/// Checks each price. A scope that the list has twice is an error of the second price.
fn check_all(engine: &Engine, catalog: &Catalog, list: &PriceList) -> Vec<Result<Rates, Refusal>> {
    let mut numbers = HashMap::new();
    let checked = list.prices.iter().enumerate().map(|(number, price)| {
        let path = format!("prices[{number}]");
        let mut fields = Fields::default();
        let Checked { rates, .. } = price.check(&mut fields, catalog, &path);
        let set = [
            ("effective_time", price.effective_time.is_some()),
            ("end_time", price.end_time.is_some()),
            ("source", !price.source.is_empty()),
        ];
        for (field, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
            let description = "must be absent: the request has effective_time and source for all prices";
            fields.wrong(format!("{path}.{field}"), description);
        }
        if let Some(first) = numbers.insert(price.scope(), number) {
            fields.wrong(&path, format!("must not be for the same as prices[{first}]"));
        }
        if !list.high_rates_confirmed {
            check_high_rates(&mut fields, &path, &rates, engine.config.high_token_rate);
        }
        fields.finish().map(|()| rates)
    });
    checked.collect()
}

/// Prices of a list that are imported in one transaction.
struct Chunk<'a> {
    list: &'a PriceList,
    effective_time: DateTime<Utc>,
    prices: &'a [NewPrice],
    checked: &'a [Result<Rates, Refusal>],
}

/// Imports prices. Also returns the services of the prices that were created.
async fn import_chunk<'a>(
    conn: &mut PgConnection,
    chunk: &Chunk<'a>,
) -> Result<(Vec<Imported>, BTreeSet<&'a str>), Refusal> {
    let valid = chunk.prices.iter().zip(chunk.checked).filter(|(_, checked)| checked.is_ok());
    let scopes: Vec<_> = valid.map(|(price, _)| price.scope()).collect();
    let present = store::prices_of_scopes(conn, &scopes).await?;
    let (mut results, mut services) = (vec![], BTreeSet::new());
    for (price, checked) in chunk.prices.iter().zip(chunk.checked) {
        let present: Vec<&StoredPrice> = present.iter().filter(|present| present.scope() == price.scope()).collect();
        let mut result = match checked {
            Ok(rates) => decide(chunk, rates, &present),
            Err(error) => Imported::Rejected(error.clone()),
        };
        let (effective_time, created) = match &mut result {
            Imported::Created { price_id } => (None, price_id),
            Imported::Changed { price_id, .. } => (Some(chunk.effective_time), price_id),
            _ => {
                results.push(result);
                continue;
            }
        };
        if let (false, Ok(rates)) = (chunk.list.validate_only, checked) {
            let new = store::NewPrice {
                scope: price.scope(),
                effective_time,
                end_time: None,
                rates,
                built_in: false,
                source: &chunk.list.source,
                note: &price.note,
            };
            *created = store::insert_price(conn, &new).await?.map(|price| price.price_id);
            services.insert(price.service.as_str());
        }
        results.push(result);
    }
    Ok((results, services))
}

/// Decides what becomes of a price. `present` has the prices of its scope that are not withdrawn, ordered by effective time.
fn decide(chunk: &Chunk<'_>, rates: &Rates, present: &[&StoredPrice]) -> Imported {
    let Some(last) = present.last() else { return Imported::Created { price_id: None } };
    let replaced = last.price_id;
    if last.rates == *rates && last.end_time.is_none() {
        return Imported::Unchanged { price_id: replaced };
    }
    if last.source != chunk.list.source && !last.built_in && !chunk.list.replace_others {
        return Imported::Kept { price_id: replaced };
    }
    let effective_time = Some(chunk.effective_time);
    if let Some(from) = last.effective_time.filter(|_| last.effective_time >= effective_time) {
        let message = format!(
            "price {replaced} is in force from {}, which is not before {}: choose a later effective_time",
            instant(from),
            instant(chunk.effective_time)
        );
        return Imported::Rejected(Refusal::new(Reason::PriceExists, message));
    }
    let others: Vec<StoredPrice> = present.iter().map(|price| (*price).clone()).collect();
    let new = Price { price_id: 0, effective_time, end_time: None, rates: rates.clone() };
    match check_overlap(&new, &others) {
        Ok(()) => Imported::Changed { price_id: None, replaced },
        Err(error) => Imported::Rejected(error),
    }
}
