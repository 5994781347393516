//! Writes events: their idempotency keys, the event rows, and their sums in months and days.

use crate::alerts::unpriced;
use crate::locks::Versions;
use crate::numeric::Numeric;
use crate::rows::{Composite, CopyIn, Fields, Row};
use crate::usage::changes::{Changes, MonthChange, NewUsage};
use crate::usage::rollups::{MonthRow, StoredMonth};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::{PayloadHash, PricedEvent, labels_json};
use meterd_domain::measures;
use meterd_domain::rollup::{DayKey, DayMeasureKey, MonthServiceKey, Sums};
use meterd_domain::tiers::uses_json;
use sqlx::PgConnection;
use std::collections::HashSet;

/// A priced event to write, with the data of its idempotency key.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    pub priced: PricedEvent<'a>,
    pub payload_hash: &'a PayloadHash,
    pub backfill: bool,
}

/// The result of [`try_record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The batch is recorded and committed.
    Recorded,
    /// Nothing was written: a version is not the current one, or is being changed.
    Stale,
    /// Nothing was written: a key is taken.
    KeyTaken,
    /// Nothing was written: the alert rules of a month must be evaluated, or the bound of the month after it reset, or an alert about
    /// unpriced events must be raised.
    BoundReached,
}

/// Records new events in one call, which commits by itself, if `versions` are current, all keys are free and no month
/// reaches its alert bound. Otherwise it writes nothing, and the caller uses a transaction of several statements, which
/// takes the same locks.
///
/// `events` must be sorted by client and key, and their keys must not be in a closed generation. `usage` must be the sums of
/// `events`. If an alert about one of the `unpriced` services must be raised, nothing is written either. There must be no open
/// transaction.
pub async fn try_record(
    conn: &mut PgConnection,
    versions: &Versions,
    events: &[NewEvent<'_>],
    usage: &NewUsage,
    unpriced: &Unpriced,
) -> crate::Result<Tried> {
    let recorded = match unpriced.keys.is_empty() {
        true => record_events(conn, versions, events, usage).await,
        false => record_unpriced_events(conn, versions, events, usage, unpriced).await,
    };
    match recorded {
        Ok(true) => Ok(Tried::Recorded),
        Ok(false) => Ok(Tried::Stale),
        Err(error) if error.as_database_error().and_then(|error| error.code()).as_deref() == Some("MT002") => {
            Ok(Tried::BoundReached)
        }
        Err(error) => match crate::StoreError::from(error) {
            error if error.is_unique_violation() => Ok(Tried::KeyTaken),
            error => Err(error),
        },
    }
}

/// Services of months to which unpriced events are added, and whose alerts are watched.
#[derive(Clone, Debug, Default)]
pub struct Unpriced {
    pub keys: unpriced::Keys,
    /// For each key, the number of unpriced events at which an alert is raised.
    pub minimums: Vec<i64>,
}

async fn record_events(
    conn: &mut PgConnection,
    versions: &Versions,
    events: &[NewEvent<'_>],
    usage: &NewUsage,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT record_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::recorded_event[]) AS "is_recorded!""#,
        versions.catalog,
        versions.client_settings,
        versions.closed_through.map(|month| month.first_day()) as Option<NaiveDate>,
        versions.keys_pruned_through as Option<DateTime<Utc>>,
        versions.key_generation,
        composites(events.iter().map(Key)) as Vec<Composite<Key<'_>>>,
        composites(&usage.months) as Vec<Composite<&MonthChange>>,
        composites(&usage.days) as Vec<Composite<&(DayKey, Sums)>>,
        composites(&usage.day_measures) as Vec<Composite<&(DayMeasureKey, Total)>>,
        composites(events.iter().map(|new| EventRow(&new.priced))) as Vec<Composite<EventRow<'_>>>
    )
    .fetch_one(conn)
    .await
}

/// Calls `record_events`, and then looks whether the alerts of the unpriced services are open, while the months are locked.
async fn record_unpriced_events(
    conn: &mut PgConnection,
    versions: &Versions,
    events: &[NewEvent<'_>],
    usage: &NewUsage,
    unpriced: &Unpriced,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT CASE WHEN record_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::recorded_event[])
                       THEN check_unpriced_alerts($11, $12, $13, $14) ELSE false END AS "is_recorded!""#,
        versions.catalog,
        versions.client_settings,
        versions.closed_through.map(|month| month.first_day()) as Option<NaiveDate>,
        versions.keys_pruned_through as Option<DateTime<Utc>>,
        versions.key_generation,
        composites(events.iter().map(Key)) as Vec<Composite<Key<'_>>>,
        composites(&usage.months) as Vec<Composite<&MonthChange>>,
        composites(&usage.days) as Vec<Composite<&(DayKey, Sums)>>,
        composites(&usage.day_measures) as Vec<Composite<&(DayMeasureKey, Total)>>,
        composites(events.iter().map(|new| EventRow(&new.priced))) as Vec<Composite<EventRow<'_>>>,
        &unpriced.keys.clients,
        &unpriced.keys.months,
        &unpriced.keys.services,
        &unpriced.minimums
    )
    .fetch_one(conn)
    .await
}

/// Claims the keys of new events in a generation, which must be the current one of [`crate::locks::Versions`]. Returns the sequence
/// numbers of the events whose keys were free. `events` must be sorted by client and key. Waits for other transactions that are
/// claiming the same keys.
pub async fn claim(conn: &mut PgConnection, generation: i32, events: &[NewEvent<'_>]) -> crate::Result<HashSet<i64>> {
    let claimed = sqlx::query_scalar!(
        r#"SELECT event_seq AS "event_seq!" FROM claim_keys($1, $2)"#,
        generation,
        composites(events.iter().map(Key)) as Vec<Composite<Key<'_>>>
    );
    Ok(claimed.fetch_all(conn).await?.into_iter().collect())
}

/// Adds new events, whose keys this transaction has claimed, to the sums, and inserts `events`. After [`copy`], the events are
/// already there and `events` is empty. Returns the changed months, in no particular order. This transaction holds the locks of their rows.
///
/// Locks the months in the order of `usage`. The sums of days stay pending: see [`crate::usage::pending`].
pub async fn add(conn: &mut PgConnection, events: &[NewEvent<'_>], usage: &NewUsage) -> crate::Result<Vec<MonthRow>> {
    let rows = sqlx::query_as!(
        StoredMonth,
        r#"SELECT client_id AS "client_id!", month AS "month!", cost AS "cost!: Numeric", raised_alerts AS "raised_alerts!",
                  open_alerts AS "open_alerts!", alert_bound AS "alert_bound: Numeric"
           FROM add_new_usage($1, $2, $3, $4::recorded_event[])"#,
        composites(&usage.months) as Vec<Composite<&MonthChange>>,
        composites(&usage.days) as Vec<Composite<&(DayKey, Sums)>>,
        composites(&usage.day_measures) as Vec<Composite<&(DayMeasureKey, Total)>>,
        composites(events.iter().map(|new| EventRow(&new.priced))) as Vec<Composite<EventRow<'_>>>
    )
    .fetch_all(conn)
    .await?;
    changed_months(rows, usage.months.len())
}

/// Changes sums other than by new events. Returns the changed months, as [`add`] does. The pending usage of the clients
/// must be applied before: a row cannot lose usage that it does not have yet.
///
/// Locks the months first, then the month services, the days and their measures, each in the order of `changes`: this is the
/// lock order of [`crate::locks`].
pub async fn correct(conn: &mut PgConnection, changes: &Changes) -> crate::Result<Vec<MonthRow>> {
    let rows = sqlx::query_as!(
        StoredMonth,
        r#"SELECT client_id AS "client_id!", month AS "month!", cost AS "cost!: Numeric", raised_alerts AS "raised_alerts!",
                  open_alerts AS "open_alerts!", alert_bound AS "alert_bound: Numeric"
           FROM correct_usage($1, $2, $3, $4)"#,
        composites(&changes.months) as Vec<Composite<&MonthChange>>,
        composites(&changes.month_services) as Vec<Composite<&(MonthServiceKey, Sums)>>,
        composites(&changes.days) as Vec<Composite<&(DayKey, Sums)>>,
        composites(&changes.day_measures) as Vec<Composite<&(DayMeasureKey, Total)>>
    )
    .fetch_all(conn)
    .await?;
    changed_months(rows, changes.months.len())
}

fn changed_months(rows: Vec<StoredMonth>, expected: usize) -> crate::Result<Vec<MonthRow>> {
    if rows.len() != expected {
        return Err(crate::StoreError::inconsistent("a row of usage_months was neither inserted nor updated"));
    }
    Ok(rows.into_iter().map(MonthRow::from).collect())
}

/// Claims the keys of new events and inserts the events, faster than [`claim`] and [`add`] for many events. A key that is already
/// taken is a unique violation, which aborts the transaction.
pub async fn copy(conn: &mut PgConnection, generation: i32, events: &[NewEvent<'_>]) -> crate::Result<()> {
    let keys = "COPY idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill,
        generation) FROM STDIN (FORMAT binary)";
    let mut copy = CopyIn::begin(conn, keys).await?;
    for event in events {
        copy.add(&KeyOf { generation, event }).await?;
    }
    copy.finish().await?;

    let rows =
        "COPY usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
        output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
        idempotency_key, metadata, service_tier, measures, reported_cost, labels, tier_month, tier_charge, tier_uses)
        FROM STDIN (FORMAT binary)";
    let mut copy = CopyIn::begin(conn, rows).await?;
    for event in events {
        copy.add(&EventRow(&event.priced)).await?;
    }
    copy.finish().await
}

struct Key<'a>(&'a NewEvent<'a>);

impl Fields for Key<'_> {
    const TYPE: &'static str = "new_key";
    const COUNT: u16 = 6;

    fn put(&self, row: &mut Row<'_>) {
        let NewEvent { priced: PricedEvent { event, id, .. }, payload_hash, backfill } = self.0;
        row.text(&event.client_id);
        row.text(&event.idempotency_key);
        row.bytes(&payload_hash[..]);
        row.time(id.time);
        row.int8(id.seq);
        row.bool(*backfill);
    }
}

/// A key with its generation, for COPY.
struct KeyOf<'a> {
    generation: i32,
    event: &'a NewEvent<'a>,
}

impl Fields for KeyOf<'_> {
    const TYPE: &'static str = Key::TYPE;
    const COUNT: u16 = Key::COUNT + 1;

    fn put(&self, row: &mut Row<'_>) {
        Key(self.event).put(row);
        row.int4(self.generation);
    }
}

/// A row of `usage_events`.
pub(super) struct EventRow<'a>(pub &'a PricedEvent<'a>);

impl Fields for EventRow<'_> {
    const TYPE: &'static str = "recorded_event";
    const COUNT: u16 = 26;

    fn put(&self, row: &mut Row<'_>) {
        let PricedEvent { event, id, day, charge, tiers } = self.0;
        row.text(&event.client_id);
        row.time(id.time);
        row.int8(id.seq);
        row.date(*day);
        row.text(&event.service);
        row.text(&event.operation);
        row.text(&event.model);
        row.decimal(event.measures.units);
        row.int8(event.measures.input_tokens);
        row.int8(event.measures.output_tokens);
        row.int8(event.measures.cached_input_tokens);
        row.decimal(event.measures.amount);
        let (charge, price_id, reason) = charge.columns();
        row.decimal(charge);
        row.int8(price_id);
        row.int2(reason);
        row.text(&event.subject);
        row.text(&event.external_id);
        row.text(&event.idempotency_key);
        row.jsonb(event.metadata.as_deref());
        row.optional_text(Some(event.service_tier.as_str()).filter(|tier| !tier.is_empty()));
        row.jsonb(measures::to_json(&event.measures.others).as_deref());
        row.decimal(event.measures.reported_cost);
        row.jsonb(labels_json(&event.labels).as_deref());
        let tiers = tiers.as_ref();
        row.date(tiers.map(|(month, _)| month.first_day()));
        row.decimal(tiers.map(|(_, tiers)| tiers.charge));
        row.jsonb(tiers.map(|(_, tiers)| uses_json(&tiers.uses)).as_deref());
    }
}

pub(super) fn composites<F>(rows: impl IntoIterator<Item = F>) -> Vec<Composite<F>> {
    rows.into_iter().map(Composite).collect()
}
