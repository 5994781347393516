//! Prices.

pub use super::new_price::{NewPrice, NewTier, NewTieredRate};

use super::new_price::{Checked, check_end, check_high_rates, instant};
use crate::auth::Caller;
use crate::clients;
use crate::engine::Engine;
use crate::fields::{Fields, UnixTime};
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::paging::{Page, PageRequest};
use crate::plans;
use crate::previous_release;
use crate::refusal::{Reason, Refusal, shown};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::catalog::PriceScope;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::price::{Price, Rates};
use meterd_store::catalog::pricing;
use meterd_store::catalog::{self as store, PriceFilter, StoredPrice};
use meterd_store::database::deployment;
use meterd_store::{locks, plans as client_plans};

/// Which prices to list.
#[derive(Debug)]
pub struct PriceQuery {
    /// Empty: prices for any client, and for each of them.
    pub client_id: String,
    /// Empty: prices for any plan, and for each of them.
    pub plan_id: String,
    /// Empty: all services.
    pub service: String,
    pub page: PageRequest<PriceCursor>,
}

/// Client, plan, service, operation, model, service tier, bound of input tokens, effective time and id of the last price of a page.
pub type PriceCursor = (String, String, String, String, String, String, Option<i64>, Option<DateTime<Utc>>, i64);

/// Lists prices, ordered by client, plan, service, operation, model, service tier, bound of input tokens and effective time. Also
/// returns the date of the built-in list that the database has, if it is known. A caller whose key is for some clients only does not see
/// the prices for others, and for plans that none of its clients has, had, or will have.
pub async fn list(
    engine: &Engine,
    caller: &Caller,
    query: PriceQuery,
) -> Result<(Page<StoredPrice, PriceCursor>, Option<NaiveDate>), Refusal> {
    if !query.client_id.is_empty() {
        caller.check_prices(&query.client_id)?;
    }
    let mut fields = Fields::default();
    fields.text("client_id", &query.client_id, ID_BYTES_MAX);
    fields.text("plan_id", &query.plan_id, ID_BYTES_MAX);
    fields.text("service", &query.service, ID_BYTES_MAX);
    let size = query.page.check_size(&mut fields);
    fields.finish()?;
    let (client_id, plan_id, service, operation, model, service_tier, above_input_tokens, effective_time, price_id) =
        query.page.after?.unwrap_or_default();
    let after = PriceScope {
        client_id: &client_id,
        plan_id: &plan_id,
        service: &service,
        operation: &operation,
        model: &model,
        service_tier: &service_tier,
        above_input_tokens,
    };
    let mut conn = engine.pool.acquire().await?;
    let clients = caller.grants.clients_of_prices();
    let plans = match &clients {
        Some(clients) => Some(client_plans::ids_of_clients(&mut conn, clients).await?),
        None => None,
    };
    let filter = PriceFilter {
        clients: clients.as_deref(),
        plans: plans.as_deref(),
        plan_id: (!query.plan_id.is_empty()).then_some(query.plan_id.as_str()),
        client_id: (!query.client_id.is_empty()).then_some(query.client_id.as_str()),
        service: (!query.service.is_empty()).then_some(query.service.as_str()),
        price_ids: None,
        after: (after, effective_time, price_id),
    };
    let rows = store::prices(&mut conn, &filter, size + 1).await?;
    let page = Page::of(rows, size, |last| {
        let StoredPrice { client_id, plan_id, service, operation, model, service_tier, above_input_tokens, .. } =
            last.clone();
        (
            client_id,
            plan_id,
            service,
            operation,
            model,
            service_tier,
            above_input_tokens,
            last.effective_time,
            last.price_id,
        )
    });
    Ok((page, deployment::built_in_list_date(&mut conn).await?))
}

/// Creates a price, and prices recorded events that it applies to. `high_rates_confirmed` says whether rates per token above
/// [`EngineConfig::high_token_rate`] are meant.
///
/// [`EngineConfig::high_token_rate`]: crate::engine::EngineConfig::high_token_rate
pub async fn create(
    engine: &Engine,
    price: NewPrice,
    high_rates_confirmed: bool,
    idempotency: Idempotency<StoredPrice>,
) -> Result<Created<StoredPrice>, Refusal> {
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    let mut fields = Fields::default();
    let Checked { effective_time, end_time, rates } = price.check(&mut fields, &catalog, "price");
    idempotency.check(&mut fields);
    fields.finish()?;
    if !price.client_id.is_empty() {
        clients::existing(engine, &price.client_id).await?;
    }
    if !price.plan_id.is_empty() {
        plans::existing(&mut *engine.pool.acquire().await?, &price.plan_id).await?;
    }
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    // After the search for a repeat: the bound may be lower than at the first call.
    if !high_rates_confirmed {
        let mut fields = Fields::default();
        check_high_rates(&mut fields, "price", &rates, engine.config.high_token_rate);
        fields.finish()?;
    }
    locks::change_versions(creation.conn()).await?;
    if needs_this_release(&price, &rates) {
        previous_release::check_gone(creation.conn(), IGNORED_BY_PREVIOUS_RELEASE).await?;
    }
    let scope = price.scope();
    let others = store::prices_of_scope(creation.conn(), scope).await?;
    check_overlap(&Price { price_id: 0, effective_time, end_time, rates: rates.clone() }, &others)?;
    let NewPrice { service, source, note, .. } = &price;
    let new = store::NewPrice { scope, effective_time, end_time, rates: &rates, built_in: false, source, note };
    let created = store::insert_price(creation.conn(), &new).await?.ok_or_else(|| {
        Refusal::new(
            Reason::PriceExists,
            "a price of this scope and effective time exists; its rates do not change: create one with a \
             later effective time, or withdraw this one with RetirePrice",
        )
    })?;
    store::bump_version(creation.conn()).await?;
    pricing::insert_task(creation.conn(), service).await?;
    creation.commit(&created).await?;
    engine.pricing_wanted.notify_one();
    Ok(Created::New(created))
}

/// What replicas of the previous release ignore, and so charge wrongly.
pub(super) const IGNORED_BY_PREVIOUS_RELEASE: &str = "client_id, plan_id, reported_cost and tiers of prices";

/// Returns whether a price has something that replicas of the previous release ignore.
pub(super) fn needs_this_release(price: &NewPrice, rates: &Rates) -> bool {
    let is_for_all = price.client_id.is_empty() && price.plan_id.is_empty();
    !is_for_all || rates.reported_cost.is_some() || !rates.tiers.is_empty()
}

/// Ends a price at a time, or withdraws it.
pub async fn retire(engine: &Engine, price_id: &str, end_time: Option<UnixTime>) -> Result<StoredPrice, Refusal> {
    let mut fields = Fields::default();
    fields.required("price_id", price_id, ID_BYTES_MAX);
    let end_time = end_time.and_then(|time| fields.time("end_time", time));
    fields.finish()?;
    let mut tx = engine.pool.begin().await?;
    locks::change_versions(&mut tx).await?;
    let found = match price_id.parse() {
        Ok(price_id) => store::price(&mut tx, price_id).await?,
        Err(_) => None,
    };
    let not_found = || Refusal::new(Reason::PriceNotFound, format!("there is no price {}", shown(price_id)));
    let price = found.ok_or_else(not_found)?;
    match end_time {
        None if price.withdraw_time.is_some() => return Ok(price),
        None => store::withdraw_price(&mut tx, price.price_id).await?,
        Some(end_time) if price.end_time == Some(end_time) && price.withdraw_time.is_none() => return Ok(price),
        Some(end_time) => {
            let others = store::prices_of_scope(&mut tx, price.scope()).await?;
            check_new_end(&price, end_time, &others)?;
            store::end_price(&mut tx, price.price_id, end_time).await?;
        }
    }
    store::bump_version(&mut tx).await?;
    // Another price may cover events that this one left unpriced.
    pricing::insert_task(&mut tx, &price.service).await?;
    let retired = store::price(&mut tx, price.price_id).await?.ok_or_else(not_found)?;
    tx.commit().await?;
    engine.pricing_wanted.notify_one();
    Ok(retired)
}

/// Checks the new end of a price.
fn check_new_end(price: &StoredPrice, end_time: DateTime<Utc>, others: &[StoredPrice]) -> Result<(), Refusal> {
    if price.withdraw_time.is_some() {
        let message = "the price was withdrawn and applies to no event; create another one instead";
        return Err(Refusal::new(Reason::PriceWithdrawn, message));
    }
    let mut fields = Fields::default();
    check_end(&mut fields, "end_time", price.effective_time, Some(end_time));
    if let Some(end) = price.end_time.filter(|end| *end < end_time) {
        fields.wrong("end_time", format!("must not be later than the present end, {}", instant(end)));
    }
    fields.finish()?;
    check_overlap(&Price { end_time: Some(end_time), ..price.price() }, others)
}

/// Refuses a price that overlaps another one of its scope. Another one with the same effective time is not its concern.
pub(super) fn check_overlap(price: &Price, others: &[StoredPrice]) -> Result<(), Refusal> {
    let overlaps =
        |other: &&StoredPrice| other.effective_time != price.effective_time && price.overlaps(&other.price());
    let Some(other) = others.iter().find(overlaps) else { return Ok(()) };
    let from = other.effective_time.map_or_else(|| "the beginning of time".to_owned(), instant);
    let until = other.end_time.map_or_else(String::new, |end| format!(" until {}", instant(end)));
    let message = format!(
        "price {} of this scope is in force from {from}{until}, which overlaps; end or withdraw it \
         with RetirePrice, or choose other times",
        other.price_id
    );
    Err(Refusal::new(Reason::PricesOverlap, message).with("price_id", other.price_id.to_string()))
}
