//! Callers with keys that nobody gave out: looked for together, and not in the way of those whose key is new.

use crate::guarded::*;
use crate::harness::*;
use crate::raw;
use bytes::Bytes;
use meterd_domain::access::Scope;
use meterd_engine::auth::token;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;

const LIST_ALERTS: &str = "/metering.v1.AlertService/ListAlerts";
const STRANGERS: usize = 12;
const CALLS_AT_ONCE: usize = 400;
/// What may wait on one connection.
const WAITING_OF_CONNECTION_MAX: usize = 100;

/// Calls with keys that are none, over and over on one connection, so many at once.
async fn present_unknown_keys(address: String, done: Arc<AtomicBool>, looked: Arc<AtomicUsize>) -> usize {
    let mut sender = raw::connect(&address).await;
    let mut refused = 0;
    while !done.load(Ordering::Relaxed) {
        let mut calls = vec![];
        for _ in 0..CALLS_AT_ONCE {
            let authorization = format!("Bearer {}", token::new().token);
            let mut call = raw::begin(&mut sender, LIST_ALERTS, &[("authorization", &authorization)]);
            call.body.send_data(Bytes::new(), true).unwrap();
            calls.push(call.status());
        }
        let statuses = futures_util::future::join_all(calls).await;
        let of = |code| statuses.iter().filter(|status| status.code() == code).count();
        let (unknown, busy) = (of(Code::Unauthenticated), of(Code::ResourceExhausted));
        assert_eq!(unknown + busy, CALLS_AT_ONCE, "{statuses:?}");
        let shed = statuses.iter().find(|status| status.code() == Code::ResourceExhausted);
        assert!(shed.is_none_or(|status| refusal(status).1 == "SERVER_BUSY"), "{shed:?}");
        looked.fetch_add(unknown, Ordering::Relaxed);
        refused += busy;
    }
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_good_at_once_while_others_present_keys_that_are_none() {
    let guarded = Guarded::start().await;
    let (done, looked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let strangers: Vec<_> = (0..STRANGERS)
        .map(|_| tokio::spawn(present_unknown_keys(guarded.server.address.clone(), done.clone(), looked.clone())))
        .collect();
    eventually(async || looked.load(Ordering::Relaxed) > 0).await;
    for _ in 0..5 {
        let token = guarded.key(Scope::Read, &[]).await;
        let begun = Instant::now();
        let mut alerts = alerts_as(&guarded.server, &token);
        alerts.list_alerts(meterd::proto::ListAlertsRequest::default()).await.unwrap();
        println!("a new key was good after {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    done.store(true, Ordering::Relaxed);
    let mut refused = 0;
    for stranger in strangers {
        refused += stranger.await.unwrap();
    }
    println!("{} unknown keys were looked for, {refused} calls were refused", looked.load(Ordering::Relaxed));
    assert!(refused > 0);
    guarded.server.stop().await;
}

#[tokio::test]
async fn so_many_calls_of_a_connection_wait_for_a_look_for_their_keys() {
    let guarded = Guarded::start().await;
    let (done, looked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let stranger = tokio::spawn(present_unknown_keys(guarded.server.address.clone(), done.clone(), looked.clone()));
    eventually(async || looked.load(Ordering::Relaxed) > 0).await;
    done.store(true, Ordering::Relaxed);
    let refused = stranger.await.unwrap();
    let looked = looked.load(Ordering::Relaxed);
    println!("{looked} unknown keys were looked for, {refused} calls were refused");
    assert!(looked >= WAITING_OF_CONNECTION_MAX && refused > 0, "{looked} looked for, {refused} refused");
    guarded.server.stop().await;
}
