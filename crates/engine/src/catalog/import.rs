//! Takes prices over from a list, such as the price list of a provider. A list can be imported again: only what has changed
//! creates prices.

use super::built_in::{self, BuiltInPrice};
use super::new_price::{Checked, SOURCE_BYTES_MAX, check_high_rates, instant};
use super::prices::{IGNORED_BY_PREVIOUS_RELEASE, NewPrice, check_overlap, needs_this_release};
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::previous_release;
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, Utc};
use meterd_domain::catalog::{Catalog, PriceScope};
use meterd_domain::price::{Price, Rates};
use meterd_store::catalog::{self as store, StoredPrice, pricing};
use meterd_store::database::deployment;
use meterd_store::locks;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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
    /// Whether the built-in list is imported. `prices` and `source` are then empty.
    pub built_in: bool,
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
    /// Nothing had a price for the same before.
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
    /// A price of the model is of another source.
    Kept {
        price_id: i64,
    },
    Rejected(Refusal),
}

/// The results of an import.
#[derive(Debug)]
pub struct ImportReport {
    /// One for each price of the list, in order.
    pub results: Vec<Imported>,
    /// Ids of the prices of the source, and of built-in prices, that are in force for models of the list, and for a service tier or
    /// bound that the list does not have.
    pub missing: Vec<i64>,
}

/// Imports a list, and prices recorded events that its prices apply to.
///
/// After an error, some of the prices may have been created. The import can be repeated.
pub async fn import(engine: &Engine, mut list: PriceList) -> Result<ImportReport, Refusal> {
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    let effective_time = list.effective_time.and_then(|time| fields.time("effective_time", time));
    if list.built_in {
        check_built_in(engine, &mut fields, &list).await?;
    } else {
        fields.required("source", &list.source, SOURCE_BYTES_MAX);
        if !(1..=LIST_PRICES_MAX).contains(&list.prices.len()) {
            fields.wrong("prices", format!("must be 1 to {LIST_PRICES_MAX} prices, has {}", list.prices.len()));
        }
    }
    fields.finish()?;
    let effective_time = effective_time.unwrap_or_else(|| engine.clock.now());
    let checked = match list.built_in {
        true => {
            list.prices = built_in::list().prices.iter().map(scope_of).collect();
            if !list.validate_only {
                create_built_in_services(engine).await?;
            }
            built_in_rates(engine, &list)
        }
        false => check_all(engine, &catalog, &list),
    };
    let checked = refuse_until_upgraded(engine, &list, checked).await?;
    let mut results: Vec<Option<Imported>> = list.prices.iter().map(|_| None).collect();
    let mut missing = vec![];
    for numbers in chunks(&list.prices) {
        let mut tx = engine.pool.begin().await?;
        if !list.validate_only {
            locks::change_versions(&mut tx).await?;
        }
        let chunk = Chunk { list: &list, effective_time, numbers, checked: &checked };
        let (of_chunk, services) = import_chunk(&mut tx, &chunk, &mut missing).await?;
        chunk.numbers.iter().zip(of_chunk).for_each(|(number, result)| results[*number] = Some(result));
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
    if list.built_in && !list.validate_only {
        deployment::set_built_in_list_date(&mut *engine.pool.acquire().await?, built_in::list().date).await?;
    }
    let results = results.into_iter().map(|result| result.expect("each price is in a chunk")).collect();
    Ok(ImportReport { results, missing })
}

/// Checks a request for the built-in list.
async fn check_built_in(engine: &Engine, fields: &mut Fields, list: &PriceList) -> Result<(), Refusal> {
    let currency = &engine.currency;
    let date = built_in::list().date;
    let present = deployment::built_in_list_date(&mut *engine.pool.acquire().await?).await?;
    if !list.prices.is_empty() || !list.source.is_empty() {
        fields.wrong("built_in", "must not be together with prices or source: the prices are those of this server");
    } else if *currency != built_in::CURRENCY {
        let description = format!(
            "must be false: the built-in prices are in {}, and this deployment is in {currency}; import a list of prices in {currency}",
            built_in::CURRENCY
        );
        fields.wrong("built_in", description);
    } else if let Some(present) = present.filter(|present| *present > date) {
        let description = format!(
            "must be false: the database has the built-in prices of {present}, and this server has those of {date}; update \
             meterd first"
        );
        fields.wrong("built_in", description);
    }
    Ok(())
}

/// Creates the services of the built-in list that do not exist.
async fn create_built_in_services(engine: &Engine) -> Result<(), Refusal> {
    let mut tx = engine.pool.begin().await?;
    locks::change_versions(&mut tx).await?;
    let mut is_changed = false;
    for service in &built_in::list().services {
        is_changed |= store::insert_service(&mut tx, service).await?;
    }
    if is_changed {
        store::bump_version(&mut tx).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Returns a price of the list without its rates, which need no check.
fn scope_of(price: &BuiltInPrice) -> NewPrice {
    let BuiltInPrice { service, operation, model, service_tier, above_input_tokens, .. } = price.clone();
    NewPrice { service, operation, model, service_tier, above_input_tokens, ..NewPrice::default() }
}

/// Returns the rates of the built-in prices, or an error for each that must be confirmed.
fn built_in_rates(engine: &Engine, list: &PriceList) -> Vec<Result<Rates, Refusal>> {
    let checked = built_in::list().prices.iter().enumerate().map(|(number, BuiltInPrice { rates, .. })| {
        let mut fields = Fields::default();
        if !list.high_rates_confirmed {
            check_high_rates(&mut fields, &format!("prices[{number}]"), rates, engine.config.high_token_rate);
        }
        fields.finish().map(|()| rates.clone())
    });
    checked.collect()
}

/// Refuses prices that replicas of the previous release would ignore, while they may run.
async fn refuse_until_upgraded(
    engine: &Engine,
    list: &PriceList,
    checked: Vec<Result<Rates, Refusal>>,
) -> Result<Vec<Result<Rates, Refusal>>, Refusal> {
    let mut conn = engine.pool.acquire().await?;
    let Some(refusal) = previous_release::refusal(&mut conn, IGNORED_BY_PREVIOUS_RELEASE).await? else {
        return Ok(checked);
    };
    let of_price = |(price, rates): (&NewPrice, Result<Rates, Refusal>)| match rates {
        Ok(rates) if needs_this_release(price, &rates) => Err(refusal.clone()),
        other => other,
    };
    Ok(list.prices.iter().zip(checked).map(of_price).collect())
}

/// Service, operation and model.
type ModelKey<'a> = (&'a str, &'a str, &'a str);

fn model_key(price: &NewPrice) -> ModelKey<'_> {
    (&price.service, &price.operation, &price.model)
}

/// Returns the positions in the list of the prices of each transaction. All prices of a model are in one transaction, so that they
/// begin at the same time.
fn chunks(prices: &[NewPrice]) -> Vec<Vec<usize>> {
    let mut by_model = BTreeMap::<ModelKey<'_>, Vec<usize>>::new();
    for (number, price) in prices.iter().enumerate() {
        by_model.entry(model_key(price)).or_default().push(number);
    }
    let mut chunks: Vec<Vec<usize>> = vec![];
    for numbers in by_model.into_values() {
        match chunks.last_mut() {
            Some(last) if last.len() + numbers.len() <= CHUNK_PRICES => last.extend(numbers),
            _ => chunks.push(numbers),
        }
    }
    chunks
}

/// Checks each price. A scope that the list has twice is an error of the second price.
fn check_all(engine: &Engine, catalog: &Catalog, list: &PriceList) -> Vec<Result<Rates, Refusal>> {
    let mut numbers = HashMap::new();
    let checked = list.prices.iter().enumerate().map(|(number, price)| {
        let path = format!("prices[{number}]");
        let mut fields = Fields::default();
        let Checked { rates, .. } = price.check(&mut fields, catalog, &path);
        let set = [
            ("client_id", !price.client_id.is_empty()),
            ("plan_id", !price.plan_id.is_empty()),
            ("effective_time", price.effective_time.is_some()),
            ("end_time", price.end_time.is_some()),
            ("source", !price.source.is_empty()),
        ];
        for (field, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
            let description = match field {
                "client_id" | "plan_id" => "must be absent: an imported list is for all clients",
                _ => "must be absent: the request has effective_time and source for all prices",
            };
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
    /// The positions of the prices in the list.
    numbers: Vec<usize>,
    /// The results of [`check_all`].
    checked: &'a [Result<Rates, Refusal>],
}

/// Imports prices. Also returns the services of the prices that were created. Adds to `missing`, see [`ImportReport`].
async fn import_chunk<'a>(
    conn: &mut PgConnection,
    chunk: &Chunk<'a>,
    missing: &mut Vec<i64>,
) -> Result<(Vec<Imported>, BTreeSet<&'a str>), Refusal> {
    let valid = chunk.numbers.iter().filter(|number| chunk.checked[**number].is_ok());
    let models: BTreeSet<ModelKey<'_>> = valid.map(|number| model_key(&chunk.list.prices[*number])).collect();
    let mut present = store::prices_of_models(conn, &models).await?;
    present.retain(|price| price.client_id.is_empty() && price.plan_id.is_empty());
    missing.extend(missing_prices(chunk, &present));
    let (mut results, mut services) = (vec![], BTreeSet::new());
    for number in &chunk.numbers {
        let (price, checked) = (&chunk.list.prices[*number], &chunk.checked[*number]);
        let of_model: Vec<&StoredPrice> = present
            .iter()
            .filter(|present| (&*present.service, &*present.operation, &*present.model) == model_key(price))
            .collect();
        let mut result = match checked {
            Ok(rates) => decide(chunk, price, rates, &of_model),
            Err(error) => Imported::Rejected(error.clone()),
        };
        let (effective_time, created) = match &mut result {
            // The first prices of a model also price the usage that was recorded before.
            Imported::Created { price_id } if of_model.is_empty() => (None, price_id),
            Imported::Created { price_id } | Imported::Changed { price_id, .. } => {
                (Some(chunk.effective_time), price_id)
            }
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
                built_in: chunk.list.built_in,
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

/// Returns the ids of prices that [`ImportReport::missing`] has.
fn missing_prices(chunk: &Chunk<'_>, present: &[StoredPrice]) -> Vec<i64> {
    let scopes: HashSet<PriceScope<'_>> =
        chunk.numbers.iter().map(|number| chunk.list.prices[*number].scope()).collect();
    let present: Vec<&StoredPrice> = present.iter().collect();
    let is_missing = |price: &&&StoredPrice| {
        is_replaceable(chunk.list, price)
            && !scopes.contains(&price.scope())
            && is_in_force(price, &present, chunk.effective_time)
    };
    present.iter().filter(is_missing).map(|price| price.price_id).collect()
}

/// Returns whether a list replaces a price: a built-in one, or one of its own source. The built-in list, which has no source, does not
/// replace prices that an operator created without a source.
fn is_replaceable(list: &PriceList, price: &StoredPrice) -> bool {
    price.built_in || (!list.built_in && price.source == list.source)
}

/// Returns whether a price of a model is in force at a time or later: it has not ended, and no price of the same scope has replaced
/// it.
fn is_in_force(price: &StoredPrice, of_model: &[&StoredPrice], time: DateTime<Utc>) -> bool {
    let has_ended = price.end_time.is_some_and(|end| end <= time);
    let replaces = |other: &&&StoredPrice| {
        other.scope() == price.scope()
            && other.effective_time > price.effective_time
            && other.effective_time <= Some(time)
    };
    !has_ended && !of_model.iter().any(|other| replaces(&other))
}

/// Decides what becomes of a price. `of_model` has the prices of its model that are not withdrawn, ordered by effective time within
/// each scope.
fn decide(chunk: &Chunk<'_>, price: &NewPrice, rates: &Rates, of_model: &[&StoredPrice]) -> Imported {
    let present: Vec<&StoredPrice> =
        of_model.iter().copied().filter(|present| present.scope() == price.scope()).collect();
    let last = present.last();
    if let Some(last) = last.filter(|last| last.rates == *rates && last.end_time.is_none()) {
        return Imported::Unchanged { price_id: last.price_id };
    }
    // A price of another source is meant for all usage of its model, also for that of a scope that only the list has.
    let is_other = |present: &&StoredPrice| {
        !is_replaceable(chunk.list, present) && is_in_force(present, of_model, chunk.effective_time)
    };
    let other = last.copied().filter(is_other).or_else(|| of_model.iter().copied().find(is_other));
    if let Some(other) = other.filter(|_| !chunk.list.replace_others) {
        return Imported::Kept { price_id: other.price_id };
    }
    let Some(last) = last else { return Imported::Created { price_id: None } };
    let replaced = last.price_id;
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
