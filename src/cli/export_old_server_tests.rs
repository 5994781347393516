//! Exports a range of days from an older server that only supports exact times.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use clap::Parser;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::tokio_stream::{self, wrappers::TcpListenerStream};
use tonic::{Request, Response};

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: ExportArgs,
}

/// A server that returns one event for every request.
#[derive(Clone)]
struct OldServer;

impl tonic::server::NamedService for OldServer {
    const NAME: &'static str = "metering.v1.UsageService";
}

impl tower::Service<http::Request<Body>> for OldServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.server_streaming(OldServer, request).await)
        })
    }
}

impl tonic::server::ServerStreamingService<ExportUsageRequest> for OldServer {
    type Response = ExportUsageResponse;
    type ResponseStream = tokio_stream::Iter<std::vec::IntoIter<Result<ExportUsageResponse, Status>>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, _: Request<ExportUsageRequest>) -> Self::Future {
        let piece = ExportUsageResponse { data: "event_id\n1\n".into(), event_count: 1, ..Default::default() };
        Box::pin(async { Ok(Response::new(tokio_stream::iter(vec![Ok(piece)]))) })
    }
}

#[tokio::test]
async fn an_export_of_days_fails_with_a_server_that_would_export_all_days() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let serving = tonic::transport::Server::builder().add_service(OldServer);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.csv");
    let export = |flags: &[&str]| {
        let base = ["export", "--server", &server, "--quiet", "--output", file.to_str().unwrap()];
        run(Command::try_parse_from([&base[..], flags].concat()).unwrap().args)
    };
    for flags in [&["--month", "2026-11"][..], &["--start", "2026-11-01"], &["--end", "2026-11-01"]] {
        let error = export(flags).await.unwrap_err().to_string();
        assert!(error.contains("older than this meterd") && !file.exists(), "{error}");
    }
    export(&["--start", "2026-11-01T00:00:00Z"]).await.unwrap();
    assert!(file.exists());
}
