//! The accept loop of both ports.

use super::config::NetConfig;
use super::connection;
use super::large_windows::LargeWindows;
use super::log_limiter::LogLimiter;
use super::registry::Registry;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::body::Body;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::rustls::ServerConfig;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};
use tower::ServiceExt;

/// Delay after an error that concerns all connections, such as a lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// A connection that was evicted takes a moment to close. At most `connections_max / CLOSING_DIVISOR + CLOSING_MIN` connections
/// may be closing at the same time.
const CLOSING_DIVISOR: usize = 8;
const CLOSING_MIN: usize = 8;

/// Number of connections that the kernel completes and keeps before the server accepts them. The kernel lowers it to its own limit
/// (`net.core.somaxconn`, 4,096 by default). With the usual 128, a burst of new connections, such as all callers of a server that
/// was restarted, waits a second or more to be sent again, and the kernel may reset connections that callers see as open.
const BACKLOG: u32 = 4_096;

/// How a port is served.
pub struct Port {
    /// Label of metrics: "grpc" or "http".
    pub name: &'static str,
    /// TLS configuration of new connections. `None` serves without TLS.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// True once the server has to stop.
    pub stopping: watch::Receiver<bool>,
    pub config: NetConfig,
}

/// The service of a port without its type, so that both ports share the compiled code of connections.
pub(super) type Handler = Arc<
    dyn Fn(Request<tonic::body::Body>) -> BoxFuture<'static, Result<Response<tonic::body::Body>, StdError>>
        + Send
        + Sync,
>;

/// State that the connections of a port share.
pub(super) struct PortState {
    pub handler: Handler,
    pub port: Port,
    pub large_windows: Arc<LargeWindows>,
    /// Connections that were cut because their peers abused the protocol.
    abuse_log: LogLimiter,
    /// New connections while the port was full.
    full_log: LogLimiter,
}

impl PortState {
    fn new(handler: Handler, port: Port) -> Self {
        let (large_windows, abuse_log, full_log) = Default::default();
        Self { handler, port, large_windows, abuse_log, full_log }
    }

    /// Waits until the server has to stop.
    pub async fn stopped(&self) {
        drop(self.port.stopping.clone().wait_for(|stopping| *stopping).await);
    }

    /// Counts a connection that was closed before its first call.
    pub fn count_refused(&self, reason: &'static str) {
        metrics::counter!("meterd_connections_refused_total", "port" => self.port.name, "reason" => reason)
            .increment(1);
    }

    /// Counts a connection that was cut because its peer abused the protocol.
    pub fn count_abuse(&self, address: SocketAddr, reason: h2::Reason) {
        metrics::counter!("meterd_connections_cut_total", "port" => self.port.name).increment(1);
        if let Some(connections) = self.abuse_log.count() {
            let port = self.port.name;
            tracing::warn!(port, connections, last = %address, %reason, "connections were cut because their peers abused HTTP/2");
        }
    }

    /// Makes room for a new connection. If the port is full, evicts another connection. Returns false if that is not possible.
    fn make_room(&self, registry: &mut Registry) -> bool {
        let max = self.port.config.connections_max;
        if registry.len() < max || registry.staying() < max {
            return true;
        }
        let closing_max = max / CLOSING_DIVISOR + CLOSING_MIN;
        let has_evicted = registry.closing() < closing_max && registry.evict_one();
        if has_evicted {
            metrics::counter!("meterd_connections_displaced_total", "port" => self.port.name).increment(1);
        } else {
            self.count_refused("full");
        }
        if let Some(times) = self.full_log.count() {
            tracing::warn!(
                port = self.port.name,
                connections_max = max,
                times,
                "all connections are taken; {}; raise inbound_connections_max, or find out which callers open too many",
                if has_evicted { "an idle connection was closed for a new one" } else { "a new connection was closed" }
            );
        }
        has_evicted
    }
}

/// Listens on an address.
///
/// # Errors
/// Returns an error if the address is in use or cannot be used.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that restarts must not wait for closed connections of the previous one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves a port until the server has to stop and the last connection has ended. If the future is dropped, all connections are
/// cut.
pub async fn serve<S, B>(listener: TcpListener, port: Port, service: S)
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<StdError>,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let handler = Arc::new(move |request| {
        let response = service.clone().oneshot(request);
        async move { Ok(response.await.map_err(Into::into)?.map(tonic::body::Body::new)) }.boxed()
    });
    accept(listener, PortState::new(handler, port)).await;
}

async fn accept(listener: TcpListener, port: PortState) {
    let port = Arc::new(port);
    let open = metrics::gauge!("meterd_connections", "port" => port.port.name);
    let mut connections = JoinSet::new();
    let mut registry = Registry::default();
    loop {
        open.set(connections.len() as f64);
        tokio::select! {
            // An ended connection is removed before the next one is accepted, so that it leaves room.
            biased;
            () = port.stopped() => break,
            Some(ended) = connections.join_next() => {
                if let Ok(number) = ended {
                    registry.remove(number);
                }
            }
            accepted = listener.accept() => match accepted {
                // Dropping the stream closes it at once, so that the caller can try another server.
                Ok(_) if !port.make_room(&mut registry) => {}
                Ok((stream, address)) => {
                    let (number, state) = registry.add();
                    let port = port.clone();
                    connections.spawn(async move {
                        // The task returns the number even after a panic, so that the registry can remove it.
                        let served = AssertUnwindSafe(connection::serve(stream, address, state, port)).catch_unwind().await;
                        if served.is_err() {
                            tracing::error!(%address, "the task of a connection panicked");
                        }
                        number
                    });
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, port = port.port.name, "cannot accept connections; retrying");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {
        open.set(connections.len() as f64);
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
