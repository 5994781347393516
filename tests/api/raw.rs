//! gRPC calls over plain HTTP/2, for calls that no normal client makes.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::codegen::http::Request;

/// Opens an HTTP/2 connection, driven by its own task.
pub async fn connect(address: &str) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// Opens a connection with a window of zero, so that the server can send no byte of a response.
pub async fn connect_unread(address: &str) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
    let handshake = h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// A call whose request body is open.
pub struct OpenCall {
    pub body: SendStream<Bytes>,
    pub answer: ResponseFuture,
}

/// Starts a call.
pub fn begin(sender: &mut SendRequest<Bytes>, path: &str, headers: &[(&str, &str)]) -> OpenCall {
    let mut request = Request::post(format!("http://test{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (answer, body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    OpenCall { body, answer }
}

impl OpenCall {
    /// Sends as far as flow control allows. Returns false if the server accepts no more.
    pub async fn send(&mut self, bytes: Bytes) -> bool {
        send(&mut self.body, bytes).await
    }

    /// Sends a message and ends the request.
    pub async fn send_all(&mut self, message: &impl prost::Message) {
        let message = message.encode_to_vec();
        assert!(self.send([&prefix(message.len() as u32)[..], &message].concat().into()).await);
        self.body.send_data(Bytes::new(), true).unwrap();
    }

    /// Returns the status with which the call ends, in headers or trailers.
    pub async fn status(self) -> Status {
        status(self.answer).await
    }
}

/// Sends as far as flow control allows. Returns false if the server accepts no more.
pub async fn send(body: &mut SendStream<Bytes>, mut bytes: Bytes) -> bool {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else { return false };
        if body.send_data(bytes.split_to(room.min(bytes.len())), false).is_err() {
            return false;
        }
    }
    true
}

/// Returns the status with which a response ends, in headers or trailers.
pub async fn status(answer: ResponseFuture) -> Status {
    let answer = answer.await.unwrap();
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return status;
    }
    let mut body: RecvStream = answer.into_body();
    while let Some(data) = body.data().await {
        let size = data.unwrap().len();
        body.flow_control().release_capacity(size).unwrap();
    }
    Status::from_header_map(&body.trailers().await.unwrap().unwrap()).unwrap()
}

/// Returns the prefix of a message of this length.
pub fn prefix(bytes: u32) -> Bytes {
    [&[0][..], &bytes.to_be_bytes()].concat().into()
}
