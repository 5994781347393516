//! The quantities of months that are charged by tiers.

use crate::StoreError;
use crate::numeric;
use crate::usage::verify::Scope;
use bigdecimal::BigDecimal;
use chrono::NaiveDate;
use meterd_domain::decimal::Decimal;
use meterd_domain::period::Month;
use meterd_domain::tiers::{MonthUse, TierUse};
use sqlx::PgConnection;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The quantities of client-months.
pub type Quantities = BTreeMap<(String, Month), MonthUse>;

struct QuantityRow {
    client_id: String,
    month: NaiveDate,
    price_id: i64,
    component: String,
    quantity: BigDecimal,
}

fn quantities(rows: Vec<QuantityRow>) -> crate::Result<Quantities> {
    let mut found = Quantities::new();
    for QuantityRow { client_id, month, price_id, component, quantity } in rows {
        let of_month = found.entry((client_id, Month::of(month))).or_default();
        of_month.0.insert((price_id, component.into()), numeric::decimal(&quantity)?);
    }
    Ok(found)
}

/// Reads what an event has used, as [`meterd_domain::tiers::uses_json`] writes it.
pub(super) fn uses(json: &str) -> crate::Result<Vec<TierUse>> {
    let uses: BTreeMap<Arc<str>, [String; 2]> = serde_json::from_str(json).map_err(StoreError::inconsistent)?;
    let of = |(component, [before, quantity]): (Arc<str>, [String; 2])| {
        let (before, quantity) = (Decimal::parse(&before)?, Decimal::parse(&quantity)?);
        Ok(TierUse { component, before, quantity })
    };
    uses.into_iter()
        .map(of)
        .collect::<Result<_, meterd_domain::decimal::DecimalError>>()
        .map_err(StoreError::inconsistent)
}

fn columns<'a>(months: impl Iterator<Item = &'a (String, Month)>) -> (Vec<String>, Vec<NaiveDate>) {
    months.map(|(client_id, month)| (client_id.clone(), month.first_day())).unzip()
}

/// Returns the quantities of months. If they are read to be changed, the transaction holds the locks of the months.
pub async fn read<'a>(
    conn: &mut PgConnection,
    months: impl Iterator<Item = &'a (String, Month)>,
) -> crate::Result<Quantities> {
    let (clients, firsts) = columns(months);
    let rows = sqlx::query_as!(
        QuantityRow,
        "SELECT client_id, month, price_id, component, quantity FROM usage_tiers
         JOIN unnest($1::text[], $2::date[]) AS wanted (client_id, month) USING (client_id, month)",
        &clients,
        &firsts
    )
    .fetch_all(conn)
    .await?;
    quantities(rows)
}

/// Returns the quantities of months that a dry run has changed.
pub async fn read_of_run<'a>(
    conn: &mut PgConnection,
    run_id: i64,
    months: impl Iterator<Item = &'a (String, Month)>,
) -> crate::Result<Quantities> {
    let (clients, firsts) = columns(months);
    let rows = sqlx::query_as!(
        QuantityRow,
        "SELECT client_id, month, price_id, component, quantity FROM reprice_tiers
         JOIN unnest($2::text[], $3::date[]) AS wanted (client_id, month) USING (client_id, month) WHERE run_id = $1",
        run_id,
        &clients,
        &firsts
    )
    .fetch_all(conn)
    .await?;
    quantities(rows)
}

struct Columns {
    clients: Vec<String>,
    months: Vec<NaiveDate>,
    prices: Vec<i64>,
    components: Vec<String>,
    quantities: Vec<BigDecimal>,
}

impl Columns {
    fn of(all: &Quantities) -> Self {
        let mut columns =
            Self { clients: vec![], months: vec![], prices: vec![], components: vec![], quantities: vec![] };
        for ((client_id, month), used) in all {
            for ((price_id, component), quantity) in &used.0 {
                columns.clients.push(client_id.clone());
                columns.months.push(month.first_day());
                columns.prices.push(*price_id);
                columns.components.push(component.to_string());
                columns.quantities.push(numeric::of(*quantity));
            }
        }
        columns
    }
}

/// Stores the quantities of months, whose locks the transaction holds.
pub async fn write(conn: &mut PgConnection, all: &Quantities) -> crate::Result<()> {
    let Columns { clients, months, prices, components, quantities } = Columns::of(all);
    sqlx::query!(
        "INSERT INTO usage_tiers (client_id, month, price_id, component, quantity)
         SELECT * FROM unnest($1::text[], $2::date[], $3::bigint[], $4::text[], $5::numeric[])
         ON CONFLICT (client_id, month, price_id, component) DO UPDATE SET quantity = excluded.quantity",
        &clients,
        &months,
        &prices,
        &components,
        &quantities
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Stores the quantities of months as a dry run has changed them.
pub async fn write_of_run(conn: &mut PgConnection, run_id: i64, all: &Quantities) -> crate::Result<()> {
    let Columns { clients, months, prices, components, quantities } = Columns::of(all);
    sqlx::query!(
        "INSERT INTO reprice_tiers (run_id, client_id, month, price_id, component, quantity)
         SELECT $1, * FROM unnest($2::text[], $3::date[], $4::bigint[], $5::text[], $6::numeric[])
         ON CONFLICT (run_id, client_id, month, price_id, component) DO UPDATE SET quantity = excluded.quantity",
        run_id,
        &clients,
        &months,
        &prices,
        &components,
        &quantities
    )
    .execute(conn)
    .await
    .map(drop)
    .map_err(Into::into)
}

/// Deletes what a dry run has changed.
pub async fn delete_of_run(conn: &mut PgConnection, run_id: i64) -> crate::Result<()> {
    let deleted = sqlx::query!("DELETE FROM reprice_tiers WHERE run_id = $1", run_id);
    deleted.execute(conn).await.map(drop).map_err(Into::into)
}

/// The tiers of a client-month, as its events and as its quantities have them.
pub struct TierMonth {
    pub client_id: String,
    pub month: Month,
    /// The sum of what the events of the month use.
    pub used: MonthUse,
    /// The stored quantities.
    pub stored: MonthUse,
    /// The cost by tiers: the charges of the events, and what remains of others.
    pub cost: Decimal,
}

/// Returns the client-months of a scope that have tiers, for a comparison: the cost must be that of the quantities, and the stored
/// quantities must equal the sums of the events.
pub async fn months(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Vec<TierMonth>> {
    let (first, end) = (scope.first.map(Month::first_day), scope.last.map(|last| last.next().first_day()));
    let stored = sqlx::query_as!(
        QuantityRow,
        "SELECT client_id, month, price_id, component, quantity FROM usage_tiers
         WHERE ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
           AND ($5::text IS NULL OR client_id = $5) AND month >= COALESCE($3, '-infinity'::date)
           AND month < COALESCE($4, 'infinity'::date)",
        scope.after,
        scope.upto,
        first,
        end,
        scope.client_id
    )
    .fetch_all(&mut *conn)
    .await?;
    let used = sqlx::query_as!(
        QuantityRow,
        r#"SELECT client_id, tier_month AS "month!", price_id AS "price_id!", component AS "component!",
                  sum((use ->> 1)::numeric) AS "quantity!"
           FROM usage_events CROSS JOIN LATERAL jsonb_each(tier_uses) AS each (component, use)
           WHERE tier_uses IS NOT NULL AND price_id IS NOT NULL
             AND ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
             AND ($5::text IS NULL OR client_id = $5) AND tier_month >= COALESCE($3, '-infinity'::date)
             AND tier_month < COALESCE($4, 'infinity'::date)
           GROUP BY 1, 2, 3, 4"#,
        scope.after,
        scope.upto,
        first,
        end,
        scope.client_id
    )
    .fetch_all(&mut *conn)
    .await?;
    let costs = sqlx::query!(
        r#"SELECT client_id, tier_month AS "month!",
                  COALESCE(sum(tier_charge), 0) + COALESCE(sum(tier_residue), 0) AS "cost!"
           FROM usage_events
           WHERE tier_month IS NOT NULL
             AND ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
             AND ($5::text IS NULL OR client_id = $5) AND tier_month >= COALESCE($3, '-infinity'::date)
             AND tier_month < COALESCE($4, 'infinity'::date)
           GROUP BY 1, 2"#,
        scope.after,
        scope.upto,
        first,
        end,
        scope.client_id
    )
    .fetch_all(conn)
    .await?;
    let mut months = BTreeMap::<(String, Month), TierMonth>::new();
    let empty = |client_id: &str, month: Month| TierMonth {
        client_id: client_id.to_owned(),
        month,
        used: MonthUse::default(),
        stored: MonthUse::default(),
        cost: Decimal::ZERO,
    };
    for row in costs {
        let (client_id, month) = (row.client_id, Month::of(row.month));
        let of_month = TierMonth { cost: numeric::decimal(&row.cost)?, ..empty(&client_id, month) };
        months.insert((client_id, month), of_month);
    }
    for ((client_id, month), used) in quantities(used)? {
        months.entry((client_id.clone(), month)).or_insert_with(|| empty(&client_id, month)).used = used;
    }
    for ((client_id, month), mut stored) in quantities(stored)? {
        stored.0.retain(|_, quantity| *quantity != Decimal::ZERO);
        months.entry((client_id.clone(), month)).or_insert_with(|| empty(&client_id, month)).stored = stored;
    }
    Ok(months.into_values().collect())
}
