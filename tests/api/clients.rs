//! Clients: creating, reading, changing and listing them, and events of unknown clients.

use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use prost_types::FieldMask;
use tonic::{Code, Status};

fn client(client_id: &str, display_name: &str, time_zone: &str) -> Client {
    let (client_id, display_name, time_zone) = (client_id.into(), display_name.into(), time_zone.into());
    Client { client_id, display_name, time_zone, ..Default::default() }
}

async fn create(server: &TestServer, client: Client) -> Result<Client, Status> {
    let request = CreateClientRequest { client: Some(client), request_id: String::new() };
    Ok(server.clients().create_client(request).await?.into_inner().client.unwrap())
}

async fn get(server: &TestServer, client_id: &str) -> Result<Client, Status> {
    let request = GetClientRequest { client_id: client_id.into() };
    Ok(server.clients().get_client(request).await?.into_inner().client.unwrap())
}

async fn update(server: &TestServer, client: Client, paths: &[&str]) -> Result<Client, Status> {
    let update_mask = Some(FieldMask { paths: paths.iter().map(|path| path.to_string()).collect() });
    let request = UpdateClientRequest { client: Some(client), update_mask };
    Ok(server.clients().update_client(request).await?.into_inner().client.unwrap())
}

#[tokio::test]
async fn a_client_is_read_as_it_was_created() {
    let server = TestServer::start_with(&["--default-time-zone=Europe/Berlin"], Clock::system()).await;
    let created = create(&server, client("acme", "Acme GmbH", "America/New_York")).await.unwrap();
    assert_eq!((&*created.display_name, &*created.time_zone), ("Acme GmbH", "America/New_York"));
    assert!(created.create_time.is_some() && created.create_time == created.update_time);
    assert_eq!(get(&server, "acme").await.unwrap(), created);
    assert_error(create(&server, client("acme", "", "")).await, Code::AlreadyExists, "CLIENT_EXISTS");
    assert_eq!(create(&server, client("plain", "", "")).await.unwrap().time_zone, "Europe/Berlin");
    assert_error(get(&server, "nobody").await, Code::NotFound, "CLIENT_NOT_FOUND");
    server.stop().await;
}

#[tokio::test]
async fn a_repeated_create_gets_the_first_answer_even_after_a_change() {
    let server = TestServer::start().await;
    let request = CreateClientRequest { client: Some(client("acme", "one", "")), request_id: "r1".into() };
    let first = server.clients().create_client(request.clone()).await.unwrap().into_inner();
    update(&server, client("acme", "two", ""), &["display_name"]).await.unwrap();
    assert_eq!(server.clients().create_client(request.clone()).await.unwrap().into_inner(), first);
    let other = CreateClientRequest { client: Some(client("acme", "three", "")), ..request };
    assert_error(server.clients().create_client(other).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
    server.stop().await;
}

#[tokio::test]
async fn an_update_changes_only_the_fields_of_its_mask() {
    let server = TestServer::start().await;
    let created = create(&server, client("acme", "Acme", "Europe/Berlin")).await.unwrap();
    let named = update(&server, client("acme", "New", "Asia/Tokyo"), &["display_name"]).await.unwrap();
    assert_eq!((&*named.display_name, &*named.time_zone), ("New", "Europe/Berlin"));
    assert_eq!(named.create_time, created.create_time);
    assert!(named.update_time.unwrap().seconds >= created.update_time.unwrap().seconds);
    assert_ne!(named.update_time, created.update_time);
    let moved = update(&server, client("acme", "ignored", "Asia/Tokyo"), &["time_zone"]).await.unwrap();
    assert_eq!((&*moved.display_name, &*moved.time_zone), ("New", "Asia/Tokyo"));
    let both = update(&server, client("acme", "", "UTC"), &["display_name", "time_zone"]).await.unwrap();
    assert_eq!((&*both.display_name, &*both.time_zone), ("", "UTC"));
    assert_eq!(get(&server, "acme").await.unwrap(), both);
    for paths in [&[][..], &["client_id"], &["display_name", "*"]] {
        assert_invalid(update(&server, client("acme", "x", "UTC"), paths).await, "INVALID_FIELD", &["update_mask"]);
    }
    let missing = update(&server, client("nobody", "x", "UTC"), &["display_name", "time_zone"]).await;
    assert_error(missing, Code::NotFound, "CLIENT_NOT_FOUND");
    assert_eq!(get(&server, "acme").await.unwrap(), both);
    server.stop().await;
}

#[tokio::test]
async fn a_changed_time_zone_applies_to_later_events_on_every_replica() {
    let clock = Clock::fixed(time("2026-11-30T20:00:00Z"));
    let server = TestServer::start_with(&[], clock.clone()).await;
    let replica = TestServer::replica(&server.database_url, &[], clock).await;
    for server in [&server, &replica] {
        server.track(event("acme", "sms", "1")).await.unwrap();
    }
    update(&server, client("acme", "", "Asia/Tokyo"), &["time_zone"]).await.unwrap();
    for server in [&server, &replica] {
        server.track(event("acme", "sms", "10")).await.unwrap();
    }
    let query = QueryUsageRequest {
        start_date: "2026-11-01".into(),
        end_date: "2026-12-31".into(),
        group_by: vec![UsageDimension::Day.into()],
        ..Default::default()
    };
    let days: Vec<_> =
        server.query(query).await.into_iter().map(|row| (row.day.unwrap(), row.totals.unwrap().units)).collect();
    assert_eq!(days, [("2026-11-30".into(), "2".into()), ("2026-12-01".into(), "20".to_string())]);
    let month = replica.month("acme").await;
    assert_eq!((&*month.month, &*month.totals.unwrap().units), ("2026-12", "20"));
    server.assert_exact(4).await;
    replica.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn clients_are_listed_by_id_in_pages() {
    let server = TestServer::start().await;
    // Sorted by bytes: capital letters, then small letters, then others.
    let ids = ["B", "a", "a-1", "a1", "b", "é", "日本"];
    for id in ids.iter().rev() {
        create(&server, client(id, "", "")).await.unwrap();
    }
    let list = async |page_size| {
        let (mut listed, mut page_token) = (vec![], String::new());
        loop {
            let request = ListClientsRequest { page_size, page_token };
            let page = server.clients().list_clients(request).await.unwrap().into_inner();
            listed.extend(page.clients.into_iter().map(|client| client.client_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return listed;
            }
        }
    };
    assert_eq!(list(0).await, ids);
    assert_eq!(list(1).await, ids);
    assert_eq!(list(7).await, ids);
    server.stop().await;
}

#[tokio::test]
async fn the_first_event_creates_its_client_with_the_default_time_zone() {
    let flags = ["--default-time-zone=Pacific/Kiritimati"];
    let server = TestServer::start_with(&flags, Clock::fixed(time("2026-11-30T12:00:00Z"))).await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!(get(&server, "acme").await.unwrap().time_zone, "Pacific/Kiritimati");
    assert_eq!(server.month("acme").await.month, "2026-12");
    server.track(event("bad", "sms", "NaN")).await.unwrap_err();
    assert_error(get(&server, "bad").await, Code::NotFound, "CLIENT_NOT_FOUND");
    server.stop().await;
}

#[tokio::test]
async fn unknown_clients_can_be_rejected_without_rejecting_the_whole_batch() {
    let server = TestServer::start_with(&["--unknown-client=reject"], Clock::system()).await;
    create(&server, client("acme", "", "")).await.unwrap();
    assert_error(server.track(event("nobody", "sms", "1")).await, Code::NotFound, "CLIENT_NOT_FOUND");
    let results = server
        .batch(vec![event("acme", "sms", "1"), event("nobody", "sms", "1"), event("acme", "sms", "1")], false)
        .await;
    use EventOutcome::{Accepted, Rejected};
    assert_eq!(results.iter().map(|result| result.outcome()).collect::<Vec<_>>(), [Accepted, Rejected, Accepted]);
    let error = results[1].error.as_ref().unwrap();
    assert_eq!((error.code, &*error.reason), (Code::NotFound as i32, "CLIENT_NOT_FOUND"));
    assert_error(get(&server, "nobody").await, Code::NotFound, "CLIENT_NOT_FOUND");
    server.assert_exact(2).await;
    // The client is looked up again for each event.
    create(&server, client("nobody", "", "")).await.unwrap();
    server.track(event("nobody", "sms", "1")).await.unwrap();
    server.assert_exact(3).await;
    server.stop().await;
}
