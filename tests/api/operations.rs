//! Features for operators and tools: health, reflection, gRPC-Web, metrics, request ids, and public addresses.

use crate::harness::*;
use crate::http;
use meterd::app;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use prost::Message;
use std::time::Duration;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const SERVICES: [&str; 3] = ["metering.v1.CatalogService", "metering.v1.ClientService", "metering.v1.UsageService"];

#[tokio::test]
async fn each_service_reports_its_health() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel());
    for service in [""].into_iter().chain(SERVICES) {
        let check = async || {
            let request = HealthCheckRequest { service: service.into() };
            Ok::<_, Status>(health.clone().check(request).await?.into_inner().status())
        };
        let serving = async {
            while check().await.ok() != Some(ServingStatus::Serving) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3), serving)
            .await
            .unwrap_or_else(|_| panic!("{service} does not become SERVING"));
    }
    let stranger = HealthCheckRequest { service: "metering.v1.NoService".into() };
    assert_eq!(health.check(stranger).await.unwrap_err().code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn both_reflections_list_the_services_and_describe_them() {
    let server = TestServer::start().await;
    macro_rules! reflect {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version::{ServerReflectionRequest, ServerReflectionResponse};
            let ask = async |message_request| -> ServerReflectionResponse {
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
                let mut client = ServerReflectionClient::new(server.channel());
                let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
                answers.into_inner().message().await.unwrap().unwrap()
            };
            let answer = ask(MessageRequest::ListServices(String::new())).await;
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("expected a list, got {answer:?}")
            };
            let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
            for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
                assert!(names.contains(&service), "no {service} in {names:?}");
            }
            let answer = ask(MessageRequest::FileContainingSymbol("metering.v1.UsageEvent".into())).await;
            let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
                panic!("expected a file, got {answer:?}")
            };
            assert!(!files.file_descriptor_proto.is_empty());
        }};
    }
    reflect!(v1);
    reflect!(v1alpha);
    server.stop().await;
}

#[tokio::test]
async fn a_browser_calls_with_grpc_web_over_http_1() {
    let server = TestServer::start().await;
    server.create_client_in_zone("acme", "UTC").await;
    let request = ListClientsRequest::default();
    let path = "/metering.v1.ClientService/ListClients";
    let answer = http::grpc_web(&server.address, path, &request, "X-Request-Id: from-a-page\r\n").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/grpc-web+proto"));
    assert_eq!(answer.header("x-request-id"), "from-a-page");
    let (messages, trailers) = answer.frames();
    assert_eq!((messages.len(), trailers["grpc-status"].as_str()), (1, "0"));
    let clients = ListClientsResponse::decode(&*messages[0]).unwrap().clients;
    assert_eq!(clients[0].client_id, "acme");
    let wrong = ListClientsRequest { page_size: -1, ..request };
    let answer = http::grpc_web(&server.address, path, &wrong, "").await;
    let status = Status::from_header_map(&answer.headers).expect("the headers contain a status");
    assert_invalid::<()>(Err(status), "INVALID_FIELD", &["page_size"]);
    server.stop().await;
}

#[tokio::test]
async fn a_request_id_is_returned_and_is_part_of_errors() {
    let server = TestServer::start().await;
    let call = async |id: &str, page_size| {
        let mut request = Request::new(ListClientsRequest { page_size, ..Default::default() });
        if !id.is_empty() {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        let metadata = match server.clients().list_clients(request).await {
            Ok(response) => (response.metadata().clone(), None),
            Err(status) => {
                let in_error = status.get_error_details().error_info().unwrap().metadata["request_id"].clone();
                (status.metadata().clone(), Some(in_error))
            }
        };
        (metadata.0.get("x-request-id").unwrap().to_str().unwrap().to_string(), metadata.1)
    };
    assert_eq!(call("my-id", 0).await, ("my-id".into(), None));
    assert_eq!(call("my-id", -1).await, ("my-id".into(), Some("my-id".into())));
    let (created, in_error) = call("", -1).await;
    assert_eq!((created.len(), in_error), (32, Some(created.clone())));
    assert_ne!(call("", 0).await.0, created);
    assert_eq!(call(&"x".repeat(129), 0).await.0.len(), 32);
    server.stop().await;
}

#[tokio::test]
async fn the_second_port_answers_probes() {
    let server = TestServer::start().await;
    assert_eq!(http::get(&server.http_address, "/healthz").await.status, 200);
    let ready = async { while http::get(&server.http_address, "/readyz").await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(3), ready).await.expect("the server is ready while the database answers");
    assert_eq!(http::get(&server.http_address, "/nothing").await.status, 404);
    server.stop().await;
}

#[tokio::test]
async fn metrics_show_events_batches_commits_calls_queue_and_pool() {
    let server = TestServer::start().await;
    let scrape = async || {
        let answer = http::get(&server.http_address, "/metrics").await;
        assert!(answer.header("content-type").starts_with("text/plain"));
        answer.text().to_string()
    };
    let value = |page: &str, series: &str| -> Option<u64> {
        let line = page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    let call = |code: &str| {
        format!("meterd_rpc_seconds_count{{method=\"/metering.v1.UsageService/TrackUsage\",code=\"{code}\"}}")
    };
    let counters = [
        ("meterd_events_total{outcome=\"accepted\"}".to_string(), 1),
        ("meterd_events_total{outcome=\"duplicate\"}".to_string(), 1),
        ("meterd_events_total{outcome=\"conflict\"}".to_string(), 1),
        ("meterd_events_total{outcome=\"rejected\"}".to_string(), 1),
        ("meterd_batch_events_count".to_string(), 3),
        ("meterd_commit_seconds_count".to_string(), 3),
        (call("Ok"), 2),
        (call("AlreadyExists"), 1),
        (call("InvalidArgument"), 1),
    ];
    let before = scrape().await;
    let event_with_key = UsageEvent { idempotency_key: "k".into(), ..event("acme", "sms", "1") };
    server.track(event_with_key.clone()).await.unwrap();
    server.track(event_with_key.clone()).await.unwrap();
    server.track(UsageEvent { units: "2".into(), ..event_with_key.clone() }).await.unwrap_err();
    server.track(UsageEvent { units: "NaN".into(), ..event_with_key }).await.unwrap_err();
    let after = scrape().await;
    for (series, more) in counters {
        let grown = value(&after, &series).unwrap_or_default() - value(&before, &series).unwrap_or_default();
        assert!(grown >= more, "{series} grew by {grown}");
    }
    for series in [
        "meterd_queue_events",
        "meterd_pool_connections{state=\"idle\"}",
        "meterd_pool_connections{state=\"used\"}",
        "meterd_commit_seconds_bucket{le=\"+Inf\"}",
        "meterd_batch_events_bucket{le=\"1000\"}",
    ] {
        assert!(value(&after, series).is_some(), "no {series} in\n{after}");
    }
    assert!(after.contains("# HELP meterd_events_total"));
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_keys_rejects_public_addresses() {
    let database_url = fresh_database().await;
    let options = connect::options(&database_url).unwrap();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let mut settings = settings_of(&[]);
        settings.listen = address.parse().unwrap();
        let deployment = app::prepare(&options, &settings).await.unwrap();
        let rejected = app::build(settings, &options, deployment, Clock::system()).await.err().unwrap();
        assert!(rejected.to_string().contains("--insecure-listen"), "{rejected}");
        let mut settings = settings_of(&[]);
        settings.http_listen = address.parse().unwrap();
        assert!(settings.check_exposure().is_err());
        let mut settings = settings_of(&["--insecure-listen"]);
        settings.listen = address.parse().unwrap();
        settings.check_exposure().unwrap();
    }
    for address in ["127.0.0.1:0", "[::1]:0", "127.8.8.8:0"] {
        let mut settings = settings_of(&[]);
        settings.listen = address.parse().unwrap();
        settings.check_exposure().unwrap();
    }
}

#[tokio::test]
async fn a_web_page_may_call_only_if_its_origin_is_allowed() {
    let server = TestServer::start_with(&["--web-origin=https://app.example.com"], Clock::system()).await;
    let request = TrackUsageRequest { event: Some(event("acme", "sms", "1")) };
    let path = "/metering.v1.UsageService/TrackUsage";
    let call = async |headers: &str| http::grpc_web(&server.address, path, &request, headers).await;
    // A DNS name that points to this server makes a page same-origin, so the browser sends no preflight request.
    for strange in ["http://evil.example:50051", "null", "https://app.example.com.evil.example"] {
        let answer = call(&format!("Origin: {strange}\r\n")).await;
        let status = Status::from_header_map(&answer.headers).expect("the headers contain a status");
        assert_error::<()>(Err(status), Code::PermissionDenied, "ORIGIN_NOT_ALLOWED");
    }
    let answer = call("Origin: https://app.example.com\r\n").await;
    assert!(Status::from_header_map(&answer.headers).is_none(), "the status must be in the trailers");
    server.assert_exact(1).await;
    server.stop().await;
}
