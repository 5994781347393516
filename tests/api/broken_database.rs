//! A database that answers and cannot do its work: named as such, and not as one that is away.

use crate::harness::*;
use meterd::proto::{Client, EventOutcome, UpdateClientRequest};
use std::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn assert_broken(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "DATABASE_BROKEN", "{status:?}");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert!(status.message().contains("restart"), "{}", status.message());
    assert!(!status.message().contains("plpgsql.so"), "for the log: {}", status.message());
}

#[tokio::test]
async fn a_library_that_the_database_cannot_load_is_not_called_a_database_that_is_away() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    // What PostgreSQL says when its files were replaced by those of another minor version, with each code that it may have.
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
        assert_eq!(batch[0].outcome(), EventOutcome::Accepted, "what can be recorded is");
        assert_eq!(batch[1].error.as_ref().unwrap().reason, "DATABASE_BROKEN");
        assert_broken(&server.track(event("new", "sms", "1")).await.unwrap_err());
        assert!(begin.elapsed().as_secs() < 5, "trying again would not help");
    }
    server.sql("DROP TRIGGER fail ON clients").await;
    server.track(event("new", "sms", "1")).await.unwrap();
    server.assert_exact(5).await;
    server.stop().await;
}
