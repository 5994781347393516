//! An HTTP/2 connection to the server, for the generated clients.
//!
//! tonic's own channel passes each call through a queue to another task, and back. A call of this connection needs less CPU time, which the
//! server needs on a machine that runs both.

use crate::product::MESSAGE_BYTES_MAX;
use crate::product::proto::alert_service_client::AlertServiceClient;
use crate::product::proto::usage_service_client::UsageServiceClient;
use anyhow::Context as _;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic_health::pb::health_client::HealthClient;

/// Bytes that the server may send before it waits, per call and per connection, as for tonic's channel.
const WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 5 << 20;

/// A connection without TLS and without an API key. It does not reconnect. Its clones use the same connection.
#[derive(Clone, Debug)]
pub struct Connection {
    send: SendRequest<Bytes>,
    origin: Uri,
}

impl Connection {
    /// Connects to a server such as `http://127.0.0.1:50051`.
    pub async fn open(server: &str) -> anyhow::Result<Self> {
        let origin: Uri = server.parse().with_context(|| format!("{server:?} is not a URL"))?;
        let address = origin.authority().with_context(|| format!("{server:?} has no host"))?.as_str();
        let tcp = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        tcp.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (send, connection) = builder.handshake(tcp).await?;
        // If the connection fails, its calls return the error.
        tokio::spawn(connection);
        Ok(Self { send, origin })
    }

    /// Returns the usage client.
    pub fn usage(&self) -> UsageServiceClient<Self> {
        UsageServiceClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Returns the alert client.
    pub fn alerts(&self) -> AlertServiceClient<Self> {
        AlertServiceClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Returns a client for any method.
    pub fn grpc(&self) -> Grpc<Self> {
        Grpc::with_origin(self.clone(), self.origin.clone())
    }

    /// Returns the health client.
    pub fn health(&self) -> HealthClient<Self> {
        HealthClient::with_origin(self.clone(), self.origin.clone())
    }
}

impl tower::Service<Request<tonic::body::Body>> for Connection {
    type Response = Response<Answer>;
    type Error = h2::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, h2::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let (head, body) = request.into_parts();
        let sent = self.send.send_request(Request::from_parts(head, ()), false);
        Box::pin(async move {
            let (mut response, stream) = sent?;
            let mut sending = Box::pin(send_body(body, stream));
            let response = tokio::select! {
                biased;
                // If the server has ended the call early, its response has the reason.
                sent = &mut sending => match (response.await, sent) {
                    (Err(_), Err(error)) => return Err(error),
                    (response, _) => response?,
                },
                // The call sends more while it receives.
                response = &mut response => {
                    tokio::spawn(sending);
                    response?
                }
            };
            Ok(response.map(|stream| Answer { stream, has_ended: false }))
        })
    }
}

/// Sends the messages of a call, and its end.
async fn send_body(mut body: tonic::body::Body, mut stream: SendStream<Bytes>) -> Result<(), h2::Error> {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            stream.send_reset(h2::Reason::CANCEL);
            return Ok(());
        };
        let Ok(data) = frame.into_data() else { continue };
        // The connection keeps what does not fit into the window of the server.
        stream.reserve_capacity(1);
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(capacity) => drop(capacity?),
                // The server has ended the call.
                None => return Ok(()),
            }
        }
        stream.send_data(data, false)?;
    }
    stream.send_data(Bytes::new(), true)
}

/// The body of a response.
#[derive(Debug)]
pub struct Answer {
    stream: RecvStream,
    has_ended: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if let Some(data) = ready!(self.stream.poll_data(cx)) {
            let data = data.and_then(|data| self.stream.flow_control().release_capacity(data.len()).map(|()| data));
            return Poll::Ready(Some(data.map(Frame::data)));
        }
        self.has_ended = true;
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }
}
