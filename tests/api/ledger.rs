//! The ledger, used as a new kind of price would use it: charges that depend on what the month already has.

use crate::harness::TestServer;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, EventId, PricedEvent, UnpricedReason, UsageEvent};
use meterd_domain::measures::Measures;
use meterd_domain::period::Month;
use meterd_engine::ledger::{AlertBounds, AlertEffect, ClientSettings, PendingUsage, Versioned};
use meterd_store::usage::record::NewEvent;
use sqlx::{ConnectOptions, PgConnection};
use std::collections::BTreeSet;
use std::sync::Arc;

const DAY: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 10).unwrap();

/// The cost of so many units of a month: 2 for each of the first hundred, 1 for each further one.
fn cost_of(units: i64) -> i64 {
    2 * units.min(100) + (units - 100).max(0)
}

fn event(key: String, units: i64) -> UsageEvent {
    UsageEvent {
        client_id: "acme".into(),
        service: "sms".into(),
        operation: "".into(),
        model: "".into(),
        service_tier: String::new(),
        measures: Measures { units: Decimal::from_scaled(i128::from(units) * SCALE), ..Measures::default() },
        event_time: "2026-11-10T12:00:00Z".parse::<DateTime<Utc>>().unwrap(),
        idempotency_key: key.into(),
        subject: String::new(),
        external_id: String::new(),
        metadata: None,
        labels: Default::default(),
    }
}

/// Units of the last decimal place in one.
const SCALE: i128 = 10i128.pow(12);

/// The units of the client's month.
async fn units(conn: &mut PgConnection) -> i64 {
    let units = "SELECT COALESCE(sum(units), 0)::bigint FROM usage_months WHERE client_id = 'acme'";
    sqlx::query_scalar(units).fetch_one(conn).await.unwrap()
}

/// Records an event whose charge is the step of [`cost_of`] from the units before it to those after it. Returns whether its key
/// was free.
async fn record(server: &TestServer, event: &UsageEvent, units_of_event: i64, price_id: i64) -> bool {
    let mut conn = server.pool.connect_options().connect().await.unwrap();
    let mut tx = Versioned::begin(&mut conn).await.unwrap();
    let mut settings = ClientSettings::default();
    let version = tx.versions.client_settings;
    settings.know(tx.conn(), version, &[&event.client_id]).await.unwrap();
    let new = |charge| NewEvent {
        priced: PricedEvent { event, id: EventId::new(event.event_time), day: DAY, charge, tiers: None },
        payload_hash: &[1; 17],
        backfill: false,
    };
    let mut claimed_event = new(Charge::Unpriced(UnpricedReason::NoPrice));
    let mut tx = tx.claim_keys(std::slice::from_ref(&claimed_event)).await.unwrap();
    if !tx.is_claimed(&claimed_event) {
        return false;
    }
    tx.lock_months(&BTreeSet::from([(event.client_id.to_string(), Month::of(DAY))])).await.unwrap();
    let before = units(tx.conn()).await;
    // So that others would read the same units, if they could.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let charge = i128::from(cost_of(before + units_of_event) - cost_of(before)) * SCALE;
    claimed_event.priced.charge = Charge::Priced { charge: Decimal::from_scaled(charge), price_id };
    let bounds = AlertBounds::new(&server.context.engine.alert_settings, &settings);
    let posted = tx.post(std::slice::from_ref(&claimed_event), &bounds).await.unwrap();
    let alerts = AlertEffect::Raise { clients: &settings, is_backfill: &|_| false };
    let done = posted.run_effects(&server.context.engine.alert_settings, alerts).await.unwrap();
    done.commit(&PendingUsage::default()).await.unwrap();
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn charges_that_depend_on_the_month_add_up_for_any_order_of_arrival() {
    let server = Arc::new(TestServer::start().await);
    server.create_client_in_zone("acme", "UTC").await;
    let price_id: i64 = sqlx::query_scalar("SELECT min(price_id) FROM prices").fetch_one(&server.pool).await.unwrap();
    let month = Month::of(DAY);
    meterd_store::usage::partitions::ensure(&mut server.pool.acquire().await.unwrap(), month).await.unwrap();
    let callers = (0..8).map(|caller| {
        let server = server.clone();
        tokio::spawn(async move {
            let mut recorded = 0;
            for number in 0..6 {
                // Every key is used by two callers.
                let (units, key) = (number + 3, format!("{}-{number}", caller / 2));
                recorded += i64::from(record(&server, &event(key, units), units, price_id).await) * units;
            }
            recorded
        })
    });
    let mut recorded = 0;
    for caller in callers.collect::<Vec<_>>() {
        recorded += caller.await.unwrap();
    }
    let cost: i64 = sqlx::query_scalar("SELECT cost::bigint FROM usage_months WHERE client_id = 'acme'")
        .fetch_one(&server.pool)
        .await
        .unwrap();
    assert_eq!(recorded, 4 * (3 + 4 + 5 + 6 + 7 + 8), "each key counts once");
    assert_eq!(cost, cost_of(recorded));
    Arc::into_inner(server).unwrap().stop().await;
}
