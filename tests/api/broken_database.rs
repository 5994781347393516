//! A database that answers but cannot work. Its error must not be that of an unavailable database.

use crate::harness::*;
use meterd::proto::{Client, EventOutcome, UpdateClientRequest, UsageEvent};
use meterd_engine::clock::Clock;
use std::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn assert_broken(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "DATABASE_BROKEN", "{status:?}");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert!(status.message().contains("restart"), "{}", status.message());
    assert!(!status.message().contains("plpgsql.so"), "a detail for the log: {}", status.message());
}

#[tokio::test]
async fn a_database_that_cannot_load_a_library_is_not_reported_as_unavailable() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    // The errors of PostgreSQL after its files were replaced by those of another minor version, with each possible
    // code.
    for code in ["58P01", "XX000", "42501"] {
        let fail = format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 RAISE 'could not load library \"/lib/plpgsql.so\": undefined symbol: x' USING ERRCODE = '{code}'; END $$;
             CREATE OR REPLACE TRIGGER fail AFTER INSERT OR UPDATE ON clients FOR EACH ROW EXECUTE FUNCTION fail()"
        );
        server.sql(&fail).await;
        let client = Client { client_id: "acme".into(), time_zone: "Asia/Tokyo".into(), ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["time_zone".into()] });
        let request = UpdateClientRequest { client: Some(client), update_mask };
        assert_broken(&server.clients().update_client(request).await.unwrap_err());

        let begin = Instant::now();
        let batch = server.batch(vec![event("acme", "sms", "1"), event("new", "sms", "1")], false).await;
        assert_eq!(batch[0].outcome(), EventOutcome::Accepted, "an event that needs no library was not recorded");
        assert_eq!(batch[1].error.as_ref().unwrap().reason, "DATABASE_BROKEN");
        assert_broken(&server.track(event("new", "sms", "1")).await.unwrap_err());
        assert!(begin.elapsed().as_secs() < 5, "the call was retried");
    }
    server.sql("DROP TRIGGER fail ON clients").await;
    server.track(event("new", "sms", "1")).await.unwrap();
    server.assert_exact(5).await;
    server.stop().await;
}

/// Makes every insert into the partition of this month fail, and counts the failed transactions.
async fn damage_partition(server: &TestServer, month: &str) {
    let damage = format!(
        "CREATE SEQUENCE failed_tries;
         CREATE FUNCTION damaged() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM nextval('failed_tries');
             RAISE 'invalid page in block 7 of relation base/5/16501' USING ERRCODE = 'XX001'; END $$;
         CREATE TRIGGER damaged BEFORE INSERT ON usage_events_{month} FOR EACH ROW EXECUTE FUNCTION damaged()"
    );
    server.sql(&damage).await;
}

#[tokio::test]
async fn a_damaged_partition_fails_few_transactions_and_does_not_affect_other_months() {
    let server = TestServer::start_with(&["--writers=1"], Clock::fixed(time("2026-03-20T12:00:00Z"))).await;
    let at = |number: usize| {
        let (month, day) = if number.is_multiple_of(2) { ("02", 20) } else { ("03", 10) };
        let event = event_at(&format!("c{}", number % 40), "sms", "1", &format!("2026-{month}-{day}T12:00:00Z"));
        UsageEvent { idempotency_key: format!("k{number}"), ..event }
    };
    server.batch(vec![at(0), at(1)], false).await;
    damage_partition(&server, "2026_02").await;
    let begin = Instant::now();
    let batch = server.batch((2..1_002).map(at).collect(), false).await;
    let duration = begin.elapsed();
    for (number, result) in (2..1_002).zip(&batch) {
        match number % 2 {
            0 => assert_eq!(result.error.as_ref().unwrap().reason, "DATABASE_BROKEN"),
            _ => assert_eq!(result.outcome(), EventOutcome::Accepted),
        }
    }
    let tries: i64 = sqlx::query_scalar("SELECT last_value FROM failed_tries").fetch_one(&server.pool).await.unwrap();
    println!("1,000 events, half of them of a damaged partition: {tries} tries failed, {duration:?}");
    // The events reach the writer in a few batches.
    assert!(tries <= 3 * 65, "{tries} transactions failed");
    server.sql("DROP TRIGGER damaged ON usage_events_2026_02").await;
    server.batch((2..1_002).map(at).collect(), false).await;
    server.assert_exact(1_002).await;
    server.stop().await;
}

/// Sets the time zone of the client without the server.
async fn set_time_zone(server: &TestServer, zone: &str) {
    server.sql(&format!("UPDATE clients SET time_zone = '{zone}' WHERE client_id = 'acme'")).await;
    server.sql("UPDATE deployment SET client_settings_version = client_settings_version + 1").await;
}

#[tokio::test]
async fn data_that_meterd_cannot_have_written_is_an_internal_error_without_a_retry() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    // An invalid time zone that was not written by the server.
    set_time_zone(&server, "Nowhere").await;
    let begin = Instant::now();
    let status = server.track(event("acme", "sms", "1")).await.unwrap_err();
    assert_error::<()>(Err(status), Code::Internal, "INTERNAL");
    assert!(begin.elapsed().as_secs() < 5, "the call was retried");
    set_time_zone(&server, "UTC").await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    server.assert_exact(2).await;
    server.stop().await;
}

#[tokio::test]
async fn sums_that_cannot_be_written_are_an_internal_error_without_a_retry() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    // A trigger of somebody else that drops the rows of months.
    let swallow = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER swallow BEFORE INSERT OR UPDATE ON usage_months FOR EACH ROW EXECUTE FUNCTION swallow()";
    server.sql(swallow).await;
    let begin = Instant::now();
    let status = server.track(event("acme", "sms", "1")).await.unwrap_err();
    assert_error::<()>(Err(status), Code::Internal, "INTERNAL");
    assert!(begin.elapsed().as_secs() < 5, "the call was retried");
    server.sql("DROP TRIGGER swallow ON usage_months").await;
    server.assert_exact(1).await;
    server.stop().await;
}
