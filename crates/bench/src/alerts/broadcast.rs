//! The floor of the fan-out: a plain tonic server, in its own process, that sends messages of a broadcast channel.

use crate::product::print;
use crate::product::proto::{SubscribeAlertsRequest, SubscribeAlertsResponse};
use futures_util::stream::{Stream, StreamExt, unfold};
use prost::Message;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// The path of its method.
pub const PATH: &str = "/meterd.bench.Broadcast/Subscribe";
/// Most messages that wait for the slowest stream: all of a round, so that none is lost.
pub const MESSAGES_MAX: usize = 65_536;

type Messages = Pin<Box<dyn Stream<Item = Result<SubscribeAlertsResponse, Status>> + Send>>;

#[derive(Clone)]
struct Broadcast(broadcast::Sender<SubscribeAlertsResponse>);

impl NamedService for Broadcast {
    const NAME: &'static str = "meterd.bench.Broadcast";
}

impl ServerStreamingService<SubscribeAlertsRequest> for Broadcast {
    type Response = SubscribeAlertsResponse;
    type ResponseStream = Messages;
    type Future = Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, _: Request<SubscribeAlertsRequest>) -> Self::Future {
        let messages = unfold(self.0.subscribe(), async |mut receiver| {
            let message = receiver.recv().await.ok()?;
            Some((Ok(message), receiver))
        });
        // The first message shows that the stream has started.
        let begun = futures_util::stream::iter([Ok(SubscribeAlertsResponse::default())]);
        ready(Ok(Response::new(Box::pin(begun.chain(messages)))))
    }
}

impl Service<http::Request<Body>> for Broadcast {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).server_streaming(service, request).await) })
    }
}

/// Serves until its standard input ends. Each line has a message in hexadecimal and how often to send it.
pub async fn run() -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    print::line(format_args!("gRPC {}", listener.local_addr()?));
    let (sender, _) = broadcast::channel(MESSAGES_MAX);
    let service = Broadcast(sender.clone());
    let serving = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    let sending = tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines() {
            let line = line?;
            let (message, count) = line.split_once(' ').ok_or_else(|| anyhow::anyhow!("a message and a count"))?;
            let message = SubscribeAlertsResponse::decode(&*bytes_of(message)?)?;
            for _ in 0..count.parse::<usize>()? {
                sender.send(message.clone()).ok();
            }
        }
        anyhow::Ok(())
    });
    sending.await??;
    serving.abort();
    Ok(ExitCode::SUCCESS)
}

/// Encodes a message for the standard input.
pub fn hex_of(message: &SubscribeAlertsResponse) -> String {
    message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(text: &str) -> anyhow::Result<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| Ok(u8::from_str_radix(text.get(at..at + 2).unwrap_or("?"), 16)?)).collect()
}
