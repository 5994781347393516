//! The accept loop of both ports.

use super::connection;
use super::lives::Lives;
use super::sampled::Sampled;
use super::windows::Windows;
use crate::config::Settings;
use futures_util::FutureExt;
use hyper::body::Body;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::rustls::ServerConfig;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};

/// After an error that is not one connection's, such as no file descriptor to be had, the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are closed for new ones take a moment: at most this share of the port's (one part in so many), and a few.
const LEAVING_SHARE: usize = 8;
const LEAVING_MIN: usize = 8;

/// How one port is served.
pub struct Port {
    /// Of metrics: "grpc" or "http".
    pub name: &'static str,
    /// Of new connections; none speaks in the clear.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// True once the server is to stop.
    pub stopping: watch::Receiver<bool>,
    pub connections_max: usize,
    /// After so long a connection takes no more calls, and after so much more those that still go on end.
    pub age: Duration,
    pub age_grace: Duration,
    /// The whole time for an orderly stop.
    pub stop_timeout: Duration,
    /// A caller that takes nothing of its answer for so long has it ended.
    pub unread_timeout: Duration,
}

impl Port {
    /// As the settings say.
    pub fn new(
        name: &'static str,
        tls: Option<watch::Receiver<Arc<ServerConfig>>>,
        stopping: &watch::Receiver<bool>,
        settings: &Settings,
    ) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Self {
            name,
            tls,
            stopping: stopping.clone(),
            connections_max: settings.net.inbound_connections_max as usize,
            age: seconds(settings.net.connection_age_seconds),
            age_grace: seconds(settings.net.connection_age_grace_seconds),
            stop_timeout: seconds(settings.stop_timeout_seconds),
            unread_timeout: seconds(settings.net.unread_timeout_seconds),
        }
    }
}

/// What the connections of a port share.
pub(super) struct Shared<S> {
    pub service: S,
    pub port: Port,
    /// Connections that were cut for what their peers did.
    cut: Sampled,
    /// New connections for which there was no room.
    full: Sampled,
    pub windows: Arc<Windows>,
}

impl<S> Shared<S> {
    /// Waits until the server is to stop.
    pub async fn stopped(&self) {
        drop(self.port.stopping.clone().wait_for(|stopping| *stopping).await);
    }

    /// Counts a connection that was closed before its first call.
    pub fn refused(&self, reason: &'static str) {
        metrics::counter!("meterd_connections_refused_total", "port" => self.port.name, "reason" => reason)
            .increment(1);
    }

    /// Counts a connection that was cut for what its peer did.
    pub fn cut(&self, address: SocketAddr, reason: h2::Reason) {
        metrics::counter!("meterd_connections_cut_total", "port" => self.port.name).increment(1);
        if let Some(connections) = self.cut.count() {
            let port = self.port.name;
            tracing::warn!(port, connections, last = %address, %reason, "connections were cut: their peers abused the protocol");
        }
    }

    /// Whether another connection may be taken, if need be in place of one that is worth less.
    fn has_room(&self, lives: &mut Lives) -> bool {
        let max = self.port.connections_max;
        if lives.len() < max || lives.staying() < max {
            return true;
        }
        let leaving_max = max / LEAVING_SHARE + LEAVING_MIN;
        let made = lives.leaving() < leaving_max && lives.make_room();
        if !made {
            self.refused("full");
        } else {
            metrics::counter!("meterd_connections_displaced_total", "port" => self.port.name).increment(1);
        }
        if let Some(times) = self.full.count() {
            tracing::warn!(
                port = self.port.name,
                connections_max = max,
                times,
                "all connections are taken: {}. Raise inbound_connections_max, or look who opens them",
                if made { "an idle one was closed for a new one" } else { "a new one was closed" }
            );
        }
        made
    }
}

/// Serves a port until the server is to stop and the last connection has ended. Dropped, it cuts all that are left.
pub async fn serve<S, B>(listener: TcpListener, port: Port, service: S)
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<StdError>,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let open = metrics::gauge!("meterd_connections", "port" => port.name);
    let shared =
        Arc::new(Shared { service, port, windows: Arc::default(), cut: Sampled::default(), full: Sampled::default() });
    let mut connections = JoinSet::new();
    let mut lives = Lives::default();
    loop {
        open.set(connections.len() as f64);
        tokio::select! {
            // Before the next is taken, so that one that has ended leaves room.
            biased;
            () = shared.stopped() => break,
            Some(ended) = connections.join_next() => {
                if let Ok(number) = ended {
                    lives.end(number);
                }
            }
            accepted = listener.accept() => match accepted {
                // Closed at once: a caller that is told goes elsewhere, one that waits does not.
                Ok(_) if !shared.has_room(&mut lives) => {}
                Ok((stream, address)) => {
                    let (number, life) = lives.begin();
                    let shared = shared.clone();
                    connections.spawn(async move {
                        // A panic in a connection must not keep its number.
                        let served = AssertUnwindSafe(connection::serve(stream, address, life, shared)).catch_unwind().await;
                        if served.is_err() {
                            tracing::error!(%address, "a connection panicked");
                        }
                        number
                    });
                }
                Err(error) if of_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, port = shared.port.name, "connections cannot be taken; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {
        open.set(connections.len() as f64);
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
