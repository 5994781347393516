//! Revoked and expired API keys are rejected, and their streams end.

use crate::harness::*;
use crate::key_server::*;
use crate::keys::{create, new_key, proto_time, read, revoke};
use chrono::TimeDelta;
use meterd::proto::{Scope as Scope_, *};
use meterd_domain::access::Scope;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Maximum time until another replica learns of a revoked key.
const REVOKED_WITHIN: Duration = Duration::from_secs(2);

/// One stream of each of the three kinds.
struct Streams {
    alerts: Streaming<SubscribeAlertsResponse>,
    acks: Streaming<StreamUsageResponse>,
    export: Streaming<ExportUsageResponse>,
    /// Keeps the sending side open.
    _events: tokio::sync::mpsc::Sender<StreamUsageRequest>,
}

impl Streams {
    async fn open(server: &TestServer, token: &Token) -> Self {
        let mut usage = usage_as(server, token);
        let request = SubscribeAlertsRequest { client_ids: vec!["acme".into()], ..Default::default() };
        let mut alerts = alerts_as(server, token).subscribe_alerts(request).await.unwrap().into_inner();
        alerts.message().await.unwrap().unwrap();
        let (events, receiver) = tokio::sync::mpsc::channel(1);
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut acks = usage.stream_usage(receiver).await.unwrap().into_inner();
        events.send(StreamUsageRequest { event: Some(event("acme", "sms", "1")) }).await.unwrap();
        acks.message().await.unwrap().unwrap();
        let request = ExportUsageRequest { client_id: "acme".into(), ..Default::default() };
        let mut export = usage.export_usage(request).await.unwrap().into_inner();
        export.message().await.unwrap().unwrap();
        Self { alerts, acks, export, _events: events }
    }

    /// Returns the statuses with which they end.
    async fn ends(self) -> [Status; 3] {
        async fn end<M>(mut stream: Streaming<M>) -> Status {
            let to_end = async {
                loop {
                    match stream.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("a stream ended without an error"),
                        Err(status) => return status,
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(20), to_end).await.expect("the streams end in time")
        }
        tokio::join!(end(self.alerts), end(self.acks), end(self.export)).into()
    }
}

/// Records so many events that their export does not fit into the buffers between server and reader.
async fn record_many_events(key_server: &KeyServer) {
    let open = key_server.open().await;
    let external_id = "x".repeat(256);
    for _ in 0..3 {
        let event = UsageEvent { external_id: external_id.clone(), ..event("acme", "sms", "1") };
        open.batch(vec![event; 10_000], false).await;
    }
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_rejected_on_every_replica_and_its_streams_end() {
    let key_server = KeyServer::start().await;
    let second = key_server.replica().await;
    record_many_events(&key_server).await;
    let token = key_server.key(Scope::Admin, &["acme"]).await;
    let (here, there) = (Streams::open(&key_server.server, &token).await, Streams::open(&second, &token).await);
    let revoked = revoke(&key_server, &token.key_id).await;
    let reported = Instant::now();
    assert_error(read(&key_server.server, &token).await, Code::Unauthenticated, "API_KEY_REVOKED");
    while read(&second, &token).await.is_ok() {}
    let after = reported.elapsed();
    assert!(after < REVOKED_WITHIN, "{after:?}");
    for status in here.ends().await.into_iter().chain(there.ends().await) {
        assert_error::<()>(Err(status), Code::Unauthenticated, "API_KEY_REVOKED");
    }
    println!(
        "rejected on the other replica after {} ms, all streams ended after {} ms",
        after.as_millis(),
        reported.elapsed().as_millis()
    );
    assert_eq!(
        revoke(&key_server, &token.key_id).await.revoke_time,
        revoked.revoke_time,
        "revoking again must not change the time"
    );
    key_server.server.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_restored_database_are_known_although_their_versions_were_seen_before() {
    let key_server = KeyServer::start().await;
    let (revoked, missing) =
        (key_server.key(Scope::Read, &["acme"]).await, key_server.key(Scope::Read, &["acme"]).await);
    for token in [&revoked, &missing] {
        read(&key_server.server, token).await.unwrap();
    }
    let key_id = &revoked.key_id;
    key_server.server.sql(&format!("UPDATE api_keys SET revoke_time = now() WHERE key_id = '{key_id}'")).await;
    key_server.server.sql(&format!("DELETE FROM api_keys WHERE key_id = '{}'", missing.key_id)).await;
    for (token, reason) in [(&revoked, "API_KEY_REVOKED"), (&missing, "CREDENTIALS_INVALID")] {
        wait_until(async || read(&key_server.server, token).await.is_err()).await;
        assert_error(read(&key_server.server, token).await, Code::Unauthenticated, reason);
    }
    read(&key_server.server, &key_server.admin).await.unwrap();
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_key_is_rejected_and_its_streams_end() {
    let key_server = KeyServer::start().await;
    record_many_events(&key_server).await;
    let mut brief = new_key(Scope_::Admin, &["acme"]);
    brief.expire_time = proto_time(key_server.server.clock.now() + TimeDelta::seconds(5));
    let token = create(&key_server, brief).await;
    let streams = Streams::open(&key_server.server, &token).await;
    // Continue reading only now, because an export that is read could end before.
    wait_until(async || read(&key_server.server, &token).await.is_err()).await;
    for status in streams.ends().await {
        assert_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_EXPIRED");
    }
    assert_error(read(&key_server.server, &token).await, Code::Unauthenticated, "CREDENTIALS_EXPIRED");
    key_server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_sender_records_nothing_after_its_key_is_revoked() {
    let key_server = KeyServer::start().await;
    let token = key_server.key(Scope::Ingest, &["acme"]).await;
    // The window is zero, so the response is stalled.
    let endpoint = Channel::from_shared(key_server.server.address.clone()).unwrap().initial_stream_window_size(Some(0));
    let channel = endpoint.connect().await.unwrap();
    let mut usage = meterd::proto::usage_service_client::UsageServiceClient::with_interceptor(channel, token.clone());
    let (events, receiver) = tokio::sync::mpsc::channel(1);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let acks = usage.stream_usage(receiver).await.unwrap().into_inner();
    let sending = tokio::spawn(async move {
        while events.send(StreamUsageRequest { event: Some(event("acme", "sms", "1")) }).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let recorded = async || {
        let count = sqlx::query_scalar("SELECT count(*) FROM usage_events");
        let count: i64 = count.fetch_one(&key_server.server.pool).await.unwrap();
        count
    };
    wait_until(async || recorded().await > 10).await;
    revoke(&key_server, &token.key_id).await;
    wait_until(async || {
        let before = recorded().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        recorded().await == before
    })
    .await;
    assert!(recorded().await < 9_000, "the stream was not stalled by its acknowledgements");
    sending.abort();
    drop((acks, usage));
    key_server.server.stop().await;
}
