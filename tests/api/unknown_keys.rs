//! Callers with unknown keys. The server looks up their keys together, and they do not delay callers with new keys.

use crate::harness::*;
use crate::key_server::*;
use crate::raw;
use bytes::Bytes;
use meterd_domain::access::Scope;
use meterd_engine::auth::token;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;

const LIST_ALERTS: &str = "/metering.v1.AlertService/ListAlerts";
const CONNECTIONS: usize = 12;
const CALLS_AT_ONCE: usize = 400;
/// Maximum number of waiting calls per connection.
const WAITING_OF_CONNECTION_MAX: usize = 100;

/// Makes calls with unknown keys repeatedly on one connection, `CALLS_AT_ONCE` at a time.
async fn send_unknown_keys(address: String, done: Arc<AtomicBool>, looked_up: Arc<AtomicUsize>) -> usize {
    let mut sender = raw::connect(&address).await;
    let mut rejected = 0;
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
        assert!(shed.is_none_or(|status| error_parts(status).1 == "SERVER_BUSY"), "{shed:?}");
        looked_up.fetch_add(unknown, Ordering::Relaxed);
        rejected += busy;
    }
    rejected
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_valid_at_once_while_others_send_unknown_keys() {
    let key_server = KeyServer::start().await;
    let (done, looked_up) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let strangers: Vec<_> = (0..CONNECTIONS)
        .map(|_| tokio::spawn(send_unknown_keys(key_server.server.address.clone(), done.clone(), looked_up.clone())))
        .collect();
    wait_until(async || looked_up.load(Ordering::Relaxed) > 0).await;
    for _ in 0..5 {
        let token = key_server.key(Scope::Read, &[]).await;
        let started = Instant::now();
        let mut alerts = alerts_as(&key_server.server, &token);
        alerts.list_alerts(meterd::proto::ListAlertsRequest::default()).await.unwrap();
        println!("a new key was good after {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    done.store(true, Ordering::Relaxed);
    let mut rejected = 0;
    for stranger in strangers {
        rejected += stranger.await.unwrap();
    }
    println!("{} unknown keys were looked up, {rejected} calls were rejected", looked_up.load(Ordering::Relaxed));
    assert!(rejected > 0);
    key_server.server.stop().await;
}

#[tokio::test]
async fn a_limited_number_of_calls_per_connection_waits_for_key_lookups() {
    let key_server = KeyServer::start().await;
    let (done, looked_up) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let stranger = tokio::spawn(send_unknown_keys(key_server.server.address.clone(), done.clone(), looked_up.clone()));
    wait_until(async || looked_up.load(Ordering::Relaxed) > 0).await;
    done.store(true, Ordering::Relaxed);
    let rejected = stranger.await.unwrap();
    let looked_up = looked_up.load(Ordering::Relaxed);
    println!("{looked_up} unknown keys were looked up, {rejected} calls were rejected");
    assert!(looked_up >= WAITING_OF_CONNECTION_MAX && rejected > 0, "{looked_up} looked up, {rejected} rejected");
    key_server.server.stop().await;
}
