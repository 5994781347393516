//! A panic in a handler ends its call with INTERNAL, and the connection stays open.

use crate::harness::*;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use meterd::grpc::layers::call::CallLayer;
use meterd::grpc::layers::panics;
use meterd::net::{self, Port};
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::service_fn;

/// A handler that panics for some paths.
async fn panicking(request: Request<Body>) -> Response<Body> {
    let message = Bytes::from_static(&[0, 0, 0, 0, 0]);
    let answer = |body| Response::builder().header("content-type", "application/grpc").body(body).unwrap();
    match request.uri().path() {
        "/metering.v1.UsageService/TrackUsage" => panic!("in a handler"),
        "/metering.v1.AlertService/SubscribeAlerts" => {
            let frames = futures_util::stream::unfold(0, move |count| {
                let message = message.clone();
                async move {
                    assert_ne!(count, 1, "while a stream is polled");
                    Some((Ok::<_, Status>(hyper::body::Frame::data(message)), count + 1))
                }
            });
            answer(Body::new(http_body_util::StreamBody::new(Box::pin(frames))))
        }
        _ => Status::not_found("no panic").into_http(),
    }
}

fn assert_internal(status: &Status) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no details in {status:?}"));
    assert_eq!((status.code(), &*info.reason), (Code::Internal, "INTERNAL"));
    assert_eq!(info.metadata["request_id"].len(), 32);
    assert!(!status.message().contains("handler"), "the cause must be only in the log: {status:?}");
}

#[tokio::test]
async fn a_panic_ends_only_its_call_and_the_error_has_a_request_id() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopping) = watch::channel(false);
    let call = CallLayer { request_timeout: Duration::from_secs(10) };
    let service = service_fn(move |request| {
        let call = call.clone();
        async move {
            let catch = async |request| panics::catch(request, panicking).await;
            Ok::<_, Infallible>(call.handle(request, catch).await)
        }
    });
    let port = Port { name: "test", tls: None, stopping, config: settings_of(&[]).net().unwrap() };
    let server = tokio::spawn(net::serve(listener, port, service));
    // All calls use one connection.
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut messages = AlertServiceClient::new(channel.clone())
        .subscribe_alerts(SubscribeAlertsRequest::default())
        .await
        .unwrap()
        .into_inner();
    messages.message().await.unwrap().unwrap();
    let mut usage = UsageServiceClient::new(channel);
    assert_internal(&usage.track_usage(TrackUsageRequest::default()).await.unwrap_err());
    assert_internal(&messages.message().await.unwrap_err());
    let other = usage.get_current_month_usage(GetCurrentMonthUsageRequest::default()).await.unwrap_err();
    assert_eq!(other.code(), Code::NotFound);
    stop.send_replace(true);
    drop(usage);
    server.await.unwrap();
}

#[tokio::test]
async fn an_export_whose_task_panics_ends_with_an_error() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    // chrono cannot represent this time, so the database driver panics.
    assert_eq!(server.sql("UPDATE usage_events SET record_time = 'infinity'").await, 1);
    let mut pieces = server.usage().export_usage(ExportUsageRequest::default()).await.unwrap().into_inner();
    assert_internal(&pieces.message().await.unwrap_err());
    assert_eq!(server.sql("UPDATE usage_events SET record_time = now()").await, 1);
    // The slot and the connection are free again.
    let mut pieces = server.usage().export_usage(ExportUsageRequest::default()).await.unwrap().into_inner();
    assert_eq!(pieces.message().await.unwrap().unwrap().event_count, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_usage_stream_whose_task_panics_ends_with_an_error() {
    let now = time("2026-05-05T12:00:00Z");
    let server = TestServer::start_with(&[], Clock::fixed(now)).await;
    let (sender, messages) = tokio::sync::mpsc::channel(1);
    let message = || StreamUsageRequest { event: Some(event("acme", "sms", "1")) };
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut acks = server.usage().stream_usage(messages).await.unwrap().into_inner();
    sender.send(message()).await.unwrap();
    assert_eq!(acks.message().await.unwrap().unwrap().settled_count, 1);
    // The clock shows the maximum time, so adding the allowed lead overflows and the check panics.
    server.clock.set(DateTime::<Utc>::MAX_UTC);
    sender.send(message()).await.unwrap();
    assert_internal(&acks.message().await.unwrap_err());
    server.clock.set(now);
    server.assert_exact(1).await;
    server.stop().await;
}
