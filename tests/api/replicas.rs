//! Two replicas: the charge and the day of every event follow from the prices and time zones at its commit.

use crate::harness::*;
use meterd::proto::{Client, GetUsageEventRequest, Service};
use meterd::proto::{CreateClientRequest, CreatePriceRequest, CreateServiceRequest, UpdateClientRequest};
use meterd_engine::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use tokio::task::JoinSet;

/// The state of a change when an event was sent and when it was acknowledged: 0 before the change was requested, 1
/// while it was running, 2 after it returned.
#[derive(Clone, Copy, Debug)]
struct Seen {
    sent: u8,
    acknowledged: u8,
}

impl Seen {
    /// Returns whether the change must apply to the event. `None` if it may or may not.
    fn must_apply(self) -> Option<bool> {
        match self {
            Self { sent: 2, .. } => Some(true),
            Self { acknowledged: 0, .. } => Some(false),
            _ => None,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_prices_and_time_zones_apply_exactly_from_their_commit_on_both_replicas() {
    // Noon in UTC is on the next day in Kiribati.
    let clock = Clock::fixed(time("2026-11-21T12:00:00Z"));
    let first = TestServer::start_with(&[], clock.clone()).await;
    let second = TestServer::replica(&first.database_url, &[], clock.clone()).await;
    for service in ["alpha", "beta"] {
        let service = Service { service: service.into(), ..Default::default() };
        let request = CreateServiceRequest { service: Some(service), request_id: String::new() };
        first.catalog().create_service(request).await.unwrap();
    }
    for service in ["alpha", "beta"] {
        let request = CreatePriceRequest { price: Some(unit_price(service, "", "1")), ..Default::default() };
        second.catalog().create_price(request).await.unwrap();
    }
    let client = Client { client_id: "acme".into(), time_zone: "UTC".into(), ..Default::default() };
    let request = CreateClientRequest { client: Some(client.clone()), request_id: String::new() };
    first.clients().create_client(request).await.unwrap();

    let (price, zone) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU8::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let server = if writer % 2 == 0 { &first } else { &second };
        let service = if writer % 2 == 0 { "alpha" } else { "beta" };
        let mut usage = server.usage();
        let (price, zone, done) = (price.clone(), zone.clone(), done.clone());
        writers.spawn(async move {
            let mut recorded = Vec::new();
            while !done.load(Ordering::SeqCst) {
                let sent = (price.load(Ordering::SeqCst), zone.load(Ordering::SeqCst));
                let request = meterd::proto::TrackUsageRequest { event: Some(event("acme", service, "1")) };
                let result = usage.track_usage(request).await.unwrap().into_inner().result.unwrap();
                let acknowledged = (price.load(Ordering::SeqCst), zone.load(Ordering::SeqCst));
                let of_price = Seen { sent: sent.0, acknowledged: acknowledged.0 };
                let of_zone = Seen { sent: sent.1, acknowledged: acknowledged.1 };
                recorded.push((result.event_id, result.charge.unwrap().amount, of_price, of_zone));
            }
            recorded
        });
    }
    let pause = || tokio::time::sleep(std::time::Duration::from_millis(400));
    pause().await;
    price.store(1, Ordering::SeqCst);
    for service in ["alpha", "beta"] {
        let mut dearer = unit_price(service, "", "2");
        dearer.effective_time = Some(timestamp("2026-01-01T00:00:00Z"));
        let request = CreatePriceRequest { price: Some(dearer), ..Default::default() };
        first.catalog().create_price(request).await.unwrap();
    }
    price.store(2, Ordering::SeqCst);
    pause().await;
    zone.store(1, Ordering::SeqCst);
    let request = UpdateClientRequest {
        client: Some(Client { time_zone: "Pacific/Kiritimati".into(), ..client }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["time_zone".into()] }),
    };
    second.clients().update_client(request).await.unwrap();
    zone.store(2, Ordering::SeqCst);
    pause().await;
    done.store(true, Ordering::SeqCst);

    let (mut events, mut decided, mut cost) = (0, 0, 0);
    let mut usage = first.usage();
    while let Some(recorded) = writers.join_next().await {
        for (event_id, charge, of_price, of_zone) in recorded.unwrap() {
            events += 1;
            cost += charge.parse::<i64>().unwrap();
            if let Some(must_apply) = of_price.must_apply() {
                assert_eq!(charge == "2", must_apply, "{event_id} {of_price:?}");
                decided += 1;
            }
            let request = GetUsageEventRequest { client_id: "acme".into(), event_id: event_id.clone() };
            let day = usage.get_usage_event(request).await.unwrap().into_inner().event.unwrap().day;
            if let Some(must_apply) = of_zone.must_apply() {
                assert_eq!(day == "2026-11-22", must_apply, "{event_id} {of_zone:?} {day}");
            }
        }
    }
    println!("{events} events on two replicas, {decided} of them surely before or after the price");
    // How many events are clearly before or after the change depends on how long it takes on a busy machine.
    assert!(decided > 20 && events > 50);
    let total: String = sqlx::query_scalar("SELECT trim_scale(sum(cost))::text FROM usage_months")
        .fetch_one(&first.pool)
        .await
        .unwrap();
    assert_eq!(total, cost.to_string());
    first.assert_exact(events).await;
    first.stop().await;
    second.stop().await;
}

/// Stalls a batch on each replica between pricing and commit, and requests a change meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_batches_that_were_priced_or_dated_before_it() {
    let first = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let second = TestServer::replica(&first.database_url, &[], first.clock.clone()).await;
    let service = Service { service: "alpha".into(), ..Default::default() };
    let request = CreateServiceRequest { service: Some(service), request_id: String::new() };
    first.catalog().create_service(request).await.unwrap();
    let request = CreatePriceRequest { price: Some(unit_price("alpha", "", "1")), ..Default::default() };
    first.catalog().create_price(request).await.unwrap();
    first.track(event("acme", "alpha", "1")).await.unwrap();
    second.track(event("acme", "alpha", "1")).await.unwrap();

    for change in ["price", "zone"] {
        let mut holder = first.pool.begin().await.unwrap();
        sqlx::query("SELECT 1 FROM usage_months WHERE client_id = 'acme' FOR UPDATE")
            .execute(&mut *holder)
            .await
            .unwrap();
        let mut stalled = JoinSet::new();
        for server in [&first, &second] {
            let mut usage = server.usage();
            stalled.spawn(async move {
                let request = meterd::proto::TrackUsageRequest { event: Some(event("acme", "alpha", "1")) };
                usage.track_usage(request).await.unwrap().into_inner().result.unwrap()
            });
        }
        while waiting_for_locks(&first).await < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let (mut catalog, mut clients) = (first.catalog(), second.clients());
        let changing = tokio::spawn(async move {
            if change == "price" {
                let mut dearer = unit_price("alpha", "", "2");
                dearer.effective_time = Some(timestamp("2026-01-01T00:00:00Z"));
                let request = CreatePriceRequest { price: Some(dearer), ..Default::default() };
                catalog.create_price(request).await.map(drop)
            } else {
                let request = UpdateClientRequest {
                    client: Some(Client {
                        client_id: "acme".into(),
                        time_zone: "Pacific/Kiritimati".into(),
                        ..Default::default()
                    }),
                    update_mask: Some(prost_types::FieldMask { paths: vec!["time_zone".into()] }),
                };
                clients.update_client(request).await.map(drop)
            }
        });
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert!(!changing.is_finished(), "the {change} changed before the batches with the old one committed");
        assert!(stalled.try_join_next().is_none());
        holder.rollback().await.unwrap();
        changing.await.unwrap().unwrap();
        while let Some(result) = stalled.join_next().await {
            assert_eq!(result.unwrap().charge.unwrap().amount, if change == "price" { "1" } else { "2" });
        }
        let after = second.track(event("acme", "alpha", "1")).await.unwrap();
        assert_eq!(after.charge.unwrap().amount, "2");
    }
    first.assert_exact(8).await;
    first.stop().await;
    second.stop().await;
}

/// Returns the number of backends of this database that wait for a lock.
async fn waiting_for_locks(server: &TestServer) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .fetch_one(&server.pool)
    .await
    .unwrap()
}
