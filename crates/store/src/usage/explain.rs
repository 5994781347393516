//! The usage of a client's days by price.

use crate::database::connect;
use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::measures::Measures;
use meterd_domain::period::Month;
use sqlx::PgPool;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which usage to explain. An empty filter matches everything.
#[derive(Clone, Debug, Default)]
pub struct ExplainFilter {
    pub client_id: String,
    pub start: NaiveDate,
    pub end: NaiveDate,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
}

/// Service, operation, model and price of events. `None`: they have no charge.
pub type PriceKey = (String, String, String, Option<i64>);

/// The sums of events with the same price.
#[derive(Clone, Debug, Default)]
pub struct PriceUsage {
    /// Events that count.
    pub event_count: i64,
    /// The sums of their quantities.
    pub measures: Measures,
    /// The sum of their charges, and what remains of events that were removed from tiers.
    pub cost: Total,
    /// The part of the charges that is computed by tiers.
    pub tier_charge: Total,
    pub tier_residue: Total,
}

/// Returns the sums of up to `limit` prices, those with the highest cost first, and the time up to which they are complete. Reads all
/// events of the days.
pub async fn usage_by_price(
    pool: &PgPool,
    filter: &ExplainFilter,
    limit: i64,
) -> crate::Result<(DateTime<Utc>, Vec<(PriceKey, PriceUsage)>)> {
    let ExplainFilter { client_id, start, end, services, operations, models } = filter;
    let (from, to) = (Month::of(*start).widest_range().0, Month::of(*end).widest_range().1);
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    connect::plan_for_values(&mut tx).await?;
    let complete_as_of = connect::now(&mut *tx).await?;
    let rows = sqlx::query!(
        r#"SELECT service, operation, model, price_id, count(*) FILTER (WHERE void_time IS NULL) AS "event_count!",
               COALESCE(sum(units) FILTER (WHERE void_time IS NULL), 0) AS "units!",
               COALESCE(sum(input_tokens) FILTER (WHERE void_time IS NULL), 0)::bigint AS "input_tokens!",
               COALESCE(sum(output_tokens) FILTER (WHERE void_time IS NULL), 0)::bigint AS "output_tokens!",
               COALESCE(sum(cached_input_tokens) FILTER (WHERE void_time IS NULL), 0)::bigint AS "cached_input_tokens!",
               sum(amount) FILTER (WHERE void_time IS NULL) AS amount,
               sum(reported_cost) FILTER (WHERE void_time IS NULL) AS reported_cost,
               COALESCE(sum(charge) FILTER (WHERE void_time IS NULL), 0) + COALESCE(sum(tier_residue), 0)
                   AS "cost!: numeric::Numeric",
               COALESCE(sum(tier_charge), 0) AS "tier_charge!: numeric::Numeric",
               COALESCE(sum(tier_residue), 0) AS "tier_residue!: numeric::Numeric"
           FROM usage_events
           WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND event_time >= $4 AND event_time < $5
             AND (cardinality($6::text[]) = 0 OR service = ANY($6))
             AND (cardinality($7::text[]) = 0 OR operation = ANY($7))
             AND (cardinality($8::text[]) = 0 OR model = ANY($8))
             AND (void_time IS NULL OR tier_residue IS NOT NULL)
           GROUP BY 1, 2, 3, 4 ORDER BY 12 DESC, 1, 2, 3, 4 LIMIT $9"#,
        client_id,
        start,
        end,
        from,
        to,
        services,
        operations,
        models,
        limit
    )
    .fetch_all(&mut *tx)
    .await?;
    let others = sqlx::query!(
        r#"SELECT service, operation, model, price_id, measure AS "measure!", sum(quantity::numeric) AS "quantity!"
           FROM usage_events CROSS JOIN LATERAL jsonb_each_text(measures) AS each (measure, quantity)
           WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND event_time >= $4 AND event_time < $5
             AND (cardinality($6::text[]) = 0 OR service = ANY($6))
             AND (cardinality($7::text[]) = 0 OR operation = ANY($7))
             AND (cardinality($8::text[]) = 0 OR model = ANY($8))
             AND measures IS NOT NULL AND void_time IS NULL
           GROUP BY 1, 2, 3, 4, 5"#,
        client_id,
        start,
        end,
        from,
        to,
        services,
        operations,
        models
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    let mut of_prices = BTreeMap::<PriceKey, Vec<(Arc<str>, Decimal)>>::new();
    for row in others {
        let of_price = of_prices.entry((row.service, row.operation, row.model, row.price_id)).or_default();
        of_price.push((row.measure.into(), numeric::decimal(&row.quantity)?));
    }
    let mut found = vec![];
    for row in rows {
        let optional = |sum: Option<BigDecimal>| sum.as_ref().map(numeric::decimal).transpose();
        let key = (row.service, row.operation, row.model, row.price_id);
        let mut others = of_prices.remove(&key).unwrap_or_default();
        others.sort();
        let measures = Measures {
            units: numeric::decimal(&row.units)?,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            cached_input_tokens: row.cached_input_tokens,
            amount: optional(row.amount)?,
            reported_cost: optional(row.reported_cost)?,
            others,
        };
        let usage = PriceUsage {
            event_count: row.event_count,
            measures,
            cost: row.cost.into(),
            tier_charge: row.tier_charge.into(),
            tier_residue: row.tier_residue.into(),
        };
        found.push((key, usage));
    }
    Ok((complete_as_of, found))
}
