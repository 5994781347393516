//! Resume tokens of SubscribeAlerts: where a stream continues, and which tokens are rejected.

use crate::harness::*;
use crate::subscriptions::*;
use chrono::{DateTime, Utc};
use meterd::proto::*;
use meterd_engine::clock::Clock;
use meterd_store::alerts::feed as alert_feed;
use std::time::Duration;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

#[tokio::test]
async fn a_stream_can_continue_after_every_change_on_another_replica() {
    let first = TestServer::start().await;
    let second = TestServer::replica(&first.database_url, &[], Clock::system()).await;
    let mut follower = Follower::begin(&first, all()).await.unwrap();
    let mut places = vec![follower.token.clone()];
    for _ in 0..5 {
        raise(&first.pool, "acme").await;
        follower.change().await.unwrap();
        places.push(follower.token.clone());
    }
    for (place, token) in places.iter().enumerate() {
        // The reader of the second replica may not have the newest changes yet.
        let mut other = Follower::begin(&second, resume(token)).await.unwrap();
        for sequence in place + 1..=5 {
            assert_eq!(other.change().await.unwrap().sequence, sequence as i64);
        }
        drop(other);
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_token_ahead_of_the_replicas_reader_is_valid() {
    let server = TestServer::start().await;
    let token = server.context.page_tokens.make("SubscribeAlerts", &all(), &1);
    // Without a notification, its reader learns of the change up to a second later. Until then, the stream waits.
    server.sql("UPDATE alert_feed_counter SET sequence = 1").await;
    let mut follower = Follower::begin(&server, resume(&token)).await.unwrap();
    assert_eq!(follower.token, token);
    let alert_id = raise(&server.pool, "acme").await;
    assert_eq!(follower.alert_id().await, alert_id);
    server.stop().await;
}

#[tokio::test]
async fn a_forged_token_or_one_of_other_filters_is_rejected() {
    let server = TestServer::start().await;
    let of_acme = SubscribeAlertsRequest { client_ids: vec!["acme".into(), "b".into()], ..all() };
    let token = Follower::begin(&server, of_acme.clone()).await.unwrap().token;
    let with = |token: &str, request: &SubscribeAlertsRequest| SubscribeAlertsRequest {
        resume_token: token.into(),
        ..request.clone()
    };
    let mut bad = vec![with(&token, &all()), with("x", &of_acme)];
    for request in [
        SubscribeAlertsRequest { client_ids: vec!["acme".into()], ..all() },
        SubscribeAlertsRequest { types: vec![1], ..of_acme.clone() },
        SubscribeAlertsRequest { min_severity: 1, ..of_acme.clone() },
    ] {
        bad.push(with(&token, &request));
    }
    let list_token = server.context.page_tokens.make("ListAlerts", &of_acme, &0);
    bad.push(with(&list_token, &of_acme));
    // Changes one bit of each character.
    for at in 0..token.len() {
        let mut forged = token.clone().into_bytes();
        forged[at] ^= 1;
        bad.push(with(&String::from_utf8(forged).unwrap(), &of_acme));
    }
    for request in bad {
        assert_invalid(server.alerts().subscribe_alerts(request).await, "RESUME_TOKEN_INVALID", &["resume_token"]);
    }
    // The same filters in another order are equal.
    let turned = SubscribeAlertsRequest { client_ids: vec!["b".into(), "acme".into(), "b".into()], ..all() };
    Follower::begin(&server, with(&token, &turned)).await.unwrap();
    server.stop().await;
}

/// Returns the token in an error.
fn oldest_token(status: &Status) -> String {
    status.get_details_error_info().unwrap().metadata["oldest_resume_token"].clone()
}

#[tokio::test]
async fn an_error_of_a_too_old_token_contains_the_oldest_token() {
    let server = TestServer::start().await;
    let token = Follower::begin(&server, all()).await.unwrap().token;
    for _ in 0..3 {
        raise(&server.pool, "acme").await;
    }
    // Two old changes, and an old last one. The last one stays, because only the beginning of the feed is deleted.
    server.sql("UPDATE alert_feed SET change_time = '2020-01-01' WHERE sequence <> 3").await;
    raise(&server.pool, "acme").await;
    server.sql("UPDATE alert_feed SET change_time = '2020-01-01' WHERE sequence = 4").await;
    assert_eq!(alert_feed::prune(&server.pool, time("2021-01-01T00:00:00Z"), 1).await.unwrap(), 1);
    assert_eq!(alert_feed::prune(&server.pool, time("2021-01-01T00:00:00Z"), 10).await.unwrap(), 1);
    assert_eq!(alert_feed::prune(&server.pool, time("2021-01-01T00:00:00Z"), 10).await.unwrap(), 0);
    let rejected = async {
        // Its reader learns of the deletion up to a second later, and has the changes in memory until then.
        loop {
            match Follower::begin(&server, resume(&token)).await {
                Err(status) => return status,
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let status = tokio::time::timeout(SOON, rejected).await.unwrap();
    let status = assert_error(Err::<(), _>(status), Code::OutOfRange, "RESUME_TOKEN_EXPIRED");
    for request in [resume(&oldest_token(&status)), from_start()] {
        let mut follower = Follower::begin(&server, request).await.unwrap();
        assert_eq!(follower.change().await.unwrap().sequence, 3);
        assert_eq!(follower.change().await.unwrap().sequence, 4);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stream_stalled_past_the_retention_ends_with_the_error_of_a_too_old_token() {
    let server = TestServer::start().await;
    let mut alerts = client_with_small_window(&server);
    let follower = Follower::begin_at(&mut alerts, Request::new(all())).await.unwrap();
    // More changes than fit into the server's memory and the buffers between the two.
    for _ in 0..7 {
        raise_many(&server.pool, "acme", 1_000).await;
    }
    let pruned = alert_feed::prune(&server.pool, DateTime::<Utc>::MAX_UTC, 2_000).await.unwrap();
    assert_eq!(pruned, 2_000);
    let status = assert_error(Err::<(), _>(follower.end().await), Code::OutOfRange, "RESUME_TOKEN_EXPIRED");
    let mut follower = Follower::begin(&server, resume(&oldest_token(&status))).await.unwrap();
    assert_eq!(follower.change().await.unwrap().sequence, 2_001);
    server.stop().await;
}

#[tokio::test]
async fn an_error_of_a_token_ahead_of_the_feed_contains_the_oldest_token() {
    let server = TestServer::start().await;
    raise(&server.pool, "acme").await;
    let token = server.context.page_tokens.make("SubscribeAlerts", &all(), &2);
    let rejected = Follower::begin(&server, resume(&token)).await.map(|_| ());
    let status = assert_error(rejected, Code::OutOfRange, "RESUME_TOKEN_AHEAD");
    let mut follower = Follower::begin(&server, resume(&oldest_token(&status))).await.unwrap();
    assert_eq!(follower.change().await.unwrap().sequence, 1);
    server.stop().await;
}

#[tokio::test]
async fn streams_end_when_an_older_database_is_restored_and_new_ones_follow_it() {
    let server = TestServer::start().await;
    let mut follower = Follower::begin(&server, all()).await.unwrap();
    for _ in 0..3 {
        raise(&server.pool, "acme").await;
        follower.change().await.unwrap();
    }
    let mut tx = server.pool.begin().await.unwrap();
    sqlx::query("DELETE FROM alert_feed WHERE sequence > 1").execute(&mut *tx).await.unwrap();
    sqlx::query("UPDATE alert_feed_counter SET sequence = 1").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let status = assert_error(Err::<(), _>(follower.end().await), Code::OutOfRange, "RESUME_TOKEN_AHEAD");
    let mut follower = Follower::begin(&server, resume(&oldest_token(&status))).await.unwrap();
    assert_eq!(follower.change().await.unwrap().sequence, 1);
    follower.assert_caught_up(&server, "acme").await;
    server.stop().await;
}
