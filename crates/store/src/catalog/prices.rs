//! Prices.

use super::tiers;
use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use meterd_domain::catalog::PriceScope;
use meterd_domain::decimal::Rate;
use meterd_domain::price::{Price, Rates};
use sqlx::PgConnection;
use sqlx::types::Json;
use std::collections::{BTreeMap, BTreeSet};

/// A stored price.
#[derive(Clone, Debug)]
pub struct StoredPrice {
    pub price_id: i64,
    /// Empty if the price applies to every client.
    pub client_id: String,
    /// Empty if the price applies to every plan.
    pub plan_id: String,
    pub service: String,
    /// Empty if the price applies to every operation.
    pub operation: String,
    /// Empty if the price applies to every model.
    pub model: String,
    /// Empty if the price applies to every service tier.
    pub service_tier: String,
    /// The price applies only to events with more input tokens. `None` if it applies to any number.
    pub above_input_tokens: Option<i64>,
    /// `None` if the price applies from the beginning of time.
    pub effective_time: Option<DateTime<Utc>>,
    /// The price does not apply from this time on.
    pub end_time: Option<DateTime<Utc>>,
    /// When the price was withdrawn.
    pub withdraw_time: Option<DateTime<Utc>>,
    pub rates: Rates,
    pub built_in: bool,
    pub source: String,
    pub note: String,
    pub create_time: DateTime<Utc>,
}

struct PriceRow {
    price_id: i64,
    client_id: String,
    plan_id: String,
    service: String,
    operation: String,
    model: String,
    service_tier: String,
    above_input_tokens: Option<i64>,
    effective_time: Option<DateTime<Utc>>,
    end_time: Option<DateTime<Utc>>,
    withdraw_time: Option<DateTime<Utc>>,
    unit: Option<BigDecimal>,
    input_token: Option<BigDecimal>,
    output_token: Option<BigDecimal>,
    cached_input_token: Option<BigDecimal>,
    percent_of_amount: Option<BigDecimal>,
    fixed: Option<BigDecimal>,
    reported_cost: Option<BigDecimal>,
    measure_rates: String,
    tiers: String,
    built_in: bool,
    source: String,
    note: String,
    create_time: DateTime<Utc>,
}

/// A price to create.
pub struct NewPrice<'a> {
    pub scope: PriceScope<'a>,
    pub effective_time: Option<DateTime<Utc>>,
    pub end_time: Option<DateTime<Utc>>,
    pub rates: &'a Rates,
    pub built_in: bool,
    pub source: &'a str,
    pub note: &'a str,
}

impl StoredPrice {
    /// Returns what the price is for.
    pub fn scope(&self) -> PriceScope<'_> {
        PriceScope {
            client_id: &self.client_id,
            plan_id: &self.plan_id,
            service: &self.service,
            operation: &self.operation,
            model: &self.model,
            service_tier: &self.service_tier,
            above_input_tokens: self.above_input_tokens,
        }
    }

    /// Returns the rates and their times.
    pub fn price(&self) -> Price {
        let Self { price_id, effective_time, end_time, rates, .. } = self;
        Price { price_id: *price_id, effective_time: *effective_time, end_time: *end_time, rates: rates.clone() }
    }
}

impl TryFrom<PriceRow> for StoredPrice {
    type Error = crate::StoreError;

    fn try_from(row: PriceRow) -> crate::Result<Self> {
        let rate = |value: Option<BigDecimal>| value.as_ref().map(numeric::rate).transpose();
        Ok(Self {
            price_id: row.price_id,
            client_id: row.client_id,
            plan_id: row.plan_id,
            service: row.service,
            operation: row.operation,
            model: row.model,
            service_tier: row.service_tier,
            above_input_tokens: row.above_input_tokens,
            effective_time: row.effective_time,
            end_time: row.end_time,
            withdraw_time: row.withdraw_time,
            rates: Rates {
                unit: rate(row.unit)?,
                input_token: rate(row.input_token)?,
                output_token: rate(row.output_token)?,
                cached_input_token: rate(row.cached_input_token)?,
                percent_of_amount: rate(row.percent_of_amount)?,
                fixed: rate(row.fixed)?,
                reported_cost: rate(row.reported_cost)?,
                measures: numeric::by_name(&row.measure_rates, Rate::parse)?,
                tiers: tiers::from_json(&row.tiers)?,
            },
            built_in: row.built_in,
            source: row.source,
            note: row.note,
            create_time: row.create_time,
        })
    }
}

/// Scope, effective time and id of a price: its position in the list of prices.
pub type PriceCursor<'a> = (PriceScope<'a>, Option<DateTime<Utc>>, i64);

/// Which prices to return.
#[derive(Debug, Default)]
pub struct PriceFilter<'a> {
    /// Only prices for these clients, and for any client. `None`: all prices.
    pub clients: Option<&'a [String]>,
    /// Only prices for this client. `Some("")`: only those for any client. `None`: all prices.
    pub client_id: Option<&'a str>,
    /// Only prices for these plans, and for any plan. `None`: all prices.
    pub plans: Option<&'a [String]>,
    /// Only prices for this plan. `None`: all prices.
    pub plan_id: Option<&'a str>,
    /// `None`: all services.
    pub service: Option<&'a str>,
    /// Only these prices. `None`: all prices.
    pub price_ids: Option<&'a [i64]>,
    /// Only prices after this one.
    pub after: PriceCursor<'a>,
}

/// Returns up to `limit` prices, those for any client first, ordered by scope, effective time and id. Includes withdrawn prices.
pub async fn prices(conn: &mut PgConnection, filter: &PriceFilter<'_>, limit: i64) -> crate::Result<Vec<StoredPrice>> {
    let (scope, effective_time, price_id) = filter.after;
    let rows = sqlx::query_as!(
        PriceRow,
        r#"SELECT price_id, client_id, plan_id, service, operation, model, service_tier,
                  NULLIF(above_input_tokens, -1) AS above_input_tokens,
                  NULLIF(effective_time, '-infinity') AS effective_time, end_time, withdraw_time, unit, input_token,
                  output_token, cached_input_token, percent_of_amount, fixed, reported_cost, measure_rates::text AS "measure_rates!", tiers::text AS "tiers!",
                  built_in, source, note, create_time
           FROM prices
           WHERE ($1::text IS NULL OR service = $1) AND ($2::bigint[] IS NULL OR price_id = ANY($2))
             AND (client_id, plan_id, service, operation, model, service_tier, prices.above_input_tokens, prices.effective_time,
                  price_id)
                 > ($3, $14, $4, $5, $6, $7, COALESCE($8::bigint, -1), COALESCE($9, '-infinity'::timestamptz), $10)
             AND ($12::text IS NULL OR client_id = $12) AND ($13::text[] IS NULL OR client_id = '' OR client_id = ANY($13))
             AND ($15::text IS NULL OR plan_id = $15) AND ($16::text[] IS NULL OR plan_id = '' OR plan_id = ANY($16))
           ORDER BY client_id, plan_id, service, operation, model, service_tier, prices.above_input_tokens,
                    prices.effective_time, price_id
           LIMIT $11"#,
        filter.service,
        filter.price_ids,
        scope.client_id,
        scope.service,
        scope.operation,
        scope.model,
        scope.service_tier,
        scope.above_input_tokens,
        effective_time,
        price_id,
        limit,
        filter.client_id,
        filter.clients,
        scope.plan_id,
        filter.plan_id,
        filter.plans
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(StoredPrice::try_from).collect()
}

/// Returns the prices of these services, operations and models that are not withdrawn, ordered by scope and effective time.
pub async fn prices_of_models(
    conn: &mut PgConnection,
    models: &BTreeSet<(&str, &str, &str)>,
) -> crate::Result<Vec<StoredPrice>> {
    let (mut services, mut operations, mut names) = (vec![], vec![], vec![]);
    for (service, operation, model) in models {
        services.push((*service).to_owned());
        operations.push((*operation).to_owned());
        names.push((*model).to_owned());
    }
    let rows = sqlx::query_as!(
        PriceRow,
        r#"SELECT price_id, client_id, plan_id, service, operation, model, service_tier,
                  NULLIF(above_input_tokens, -1) AS above_input_tokens,
                  NULLIF(effective_time, '-infinity') AS effective_time, end_time, withdraw_time, unit, input_token,
                  output_token, cached_input_token, percent_of_amount, fixed, reported_cost, measure_rates::text AS "measure_rates!", tiers::text AS "tiers!",
                  built_in, source, note, create_time
           FROM prices
           JOIN unnest($1::text[], $2::text[], $3::text[]) AS wanted (service, operation, model)
               USING (service, operation, model)
           WHERE withdraw_time IS NULL
           ORDER BY client_id, plan_id, service, operation, model, service_tier, prices.above_input_tokens,
                    prices.effective_time, price_id"#,
        &services,
        &operations,
        &names
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(StoredPrice::try_from).collect()
}

/// Returns the prices of a scope that are not withdrawn, ordered by effective time.
pub async fn prices_of_scope(conn: &mut PgConnection, scope: PriceScope<'_>) -> crate::Result<Vec<StoredPrice>> {
    let mut prices = prices_of_models(conn, &[(scope.service, scope.operation, scope.model)].into()).await?;
    prices.retain(|price| price.scope() == scope);
    Ok(prices)
}

/// Returns a price, or `None` if it does not exist.
pub async fn price(conn: &mut PgConnection, price_id: i64) -> crate::Result<Option<StoredPrice>> {
    let filter = PriceFilter { price_ids: Some(&[price_id]), ..Default::default() };
    Ok(prices(conn, &filter, 1).await?.pop())
}

/// Creates a price and returns it. `None` if a price with the same scope and effective time exists.
pub async fn insert_price(conn: &mut PgConnection, new: &NewPrice<'_>) -> crate::Result<Option<StoredPrice>> {
    let PriceScope { client_id, plan_id, service, operation, model, service_tier, above_input_tokens } = new.scope;
    let Rates {
        unit,
        input_token,
        output_token,
        cached_input_token,
        percent_of_amount,
        fixed,
        reported_cost,
        tiers,
        ..
    } = new.rates;
    let price_id = sqlx::query_scalar!(
        "INSERT INTO prices (service, operation, model, service_tier, above_input_tokens, effective_time, end_time, unit,
             input_token, output_token, cached_input_token, percent_of_amount, fixed, measure_rates, built_in, source, note,
             client_id, reported_cost, tiers, plan_id)
         VALUES ($1, $2, $3, $4, COALESCE($5::bigint, -1), COALESCE($6, '-infinity'::timestamptz), $7, $8, $9, $10, $11, $12, $13,
             $14, $15, $16, $17, $18, $19, $20, $21)
         ON CONFLICT DO NOTHING
         RETURNING price_id",
        service,
        operation,
        model,
        service_tier,
        above_input_tokens,
        new.effective_time,
        new.end_time,
        unit.map(numeric::of_rate),
        input_token.map(numeric::of_rate),
        output_token.map(numeric::of_rate),
        cached_input_token.map(numeric::of_rate),
        percent_of_amount.map(numeric::of_rate),
        fixed.map(numeric::of_rate),
        Json(measure_rates(new.rates)) as Json<BTreeMap<&str, String>>,
        new.built_in,
        new.source,
        new.note,
        client_id,
        reported_cost.map(numeric::of_rate),
        tiers::to_json(tiers),
        plan_id
    )
    .fetch_optional(&mut *conn)
    .await?;
    match price_id {
        Some(price_id) => price(conn, price_id).await,
        None => Ok(None),
    }
}

/// Creates the built-in prices of an empty catalogue, with one statement. They are for events of any time.
pub async fn insert_built_in_prices(conn: &mut PgConnection, prices: &[(PriceScope<'_>, &Rates)]) -> crate::Result<()> {
    fn column<'a, T>(
        prices: &'a [(PriceScope<'a>, &Rates)],
        of: impl Fn(&'a PriceScope<'a>, &'a Rates) -> T,
    ) -> Vec<T> {
        prices.iter().map(|(scope, rates)| of(scope, rates)).collect()
    }
    let texts = |of: fn(&PriceScope<'_>) -> String| column(prices, |scope, _| of(scope));
    let rates = |of: fn(&Rates) -> Option<Rate>| column(prices, |_, rates| of(rates).map(numeric::of_rate));
    sqlx::query!(
        "INSERT INTO prices (service, operation, model, service_tier, above_input_tokens, effective_time, unit, input_token,
             output_token, cached_input_token, percent_of_amount, fixed, measure_rates, built_in)
         SELECT service, operation, model, service_tier, COALESCE(above_input_tokens, -1), '-infinity', unit, input_token,
             output_token, cached_input_token, percent_of_amount, fixed, measure_rates, true
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::numeric[], $7::numeric[],
             $8::numeric[], $9::numeric[], $10::numeric[], $11::numeric[], $12::jsonb[])
             WITH ORDINALITY AS new (service, operation, model, service_tier, above_input_tokens, unit, input_token,
                 output_token, cached_input_token, percent_of_amount, fixed, measure_rates, number)
         ORDER BY number",
        &texts(|scope| scope.service.to_owned()),
        &texts(|scope| scope.operation.to_owned()),
        &texts(|scope| scope.model.to_owned()),
        &texts(|scope| scope.service_tier.to_owned()),
        &column(prices, |scope, _| scope.above_input_tokens) as &[Option<i64>],
        &rates(|rates| rates.unit) as &[Option<BigDecimal>],
        &rates(|rates| rates.input_token) as &[Option<BigDecimal>],
        &rates(|rates| rates.output_token) as &[Option<BigDecimal>],
        &rates(|rates| rates.cached_input_token) as &[Option<BigDecimal>],
        &rates(|rates| rates.percent_of_amount) as &[Option<BigDecimal>],
        &rates(|rates| rates.fixed) as &[Option<BigDecimal>],
        &column(prices, |_, rates| Json(measure_rates(rates))) as &[Json<BTreeMap<&str, String>>]
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Returns the rates of other measures as they are stored.
fn measure_rates(rates: &Rates) -> BTreeMap<&str, String> {
    rates.measures.iter().map(|(name, rate)| (&**name, rate.to_string())).collect()
}

/// Sets the end of a price.
pub async fn end_price(conn: &mut PgConnection, price_id: i64, end_time: DateTime<Utc>) -> crate::Result<()> {
    let ended = sqlx::query!("UPDATE prices SET end_time = $2 WHERE price_id = $1", price_id, end_time);
    ended.execute(conn).await.map(drop).map_err(Into::into)
}

/// Withdraws a price.
pub async fn withdraw_price(conn: &mut PgConnection, price_id: i64) -> crate::Result<()> {
    let withdrawn = sqlx::query!("UPDATE prices SET withdraw_time = now() WHERE price_id = $1", price_id);
    withdrawn.execute(conn).await.map(drop).map_err(Into::into)
}
