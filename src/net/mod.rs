//! Connections of both ports: limits, TLS, maximum age, and graceful shutdown.

mod call_tracking;
mod config;
mod connection;
mod http;
mod http2;
mod io;
mod large_windows;
mod listen;
mod log_limiter;
mod open_files;
mod registry;
mod request_body;
mod response;
mod tls;
mod tls_names;
mod tls_reload;

pub use config::{NetConfig, TlsFiles};
pub use listen::{Port, bind, serve};
pub use open_files::{open_files_needed, raise_open_files_limit};
pub use response::UnreadTrailers;
pub use tls::Tls;
pub use tls_names::TlsNames;

use meterd_engine::counters::Counters;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// The peer of a connection. The extensions of every request contain it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address that the peer calls from.
    pub address: SocketAddr,
    /// Why the running calls of the connection must end. `None` while they may continue.
    pub drain: watch::Receiver<Option<DrainReason>>,
    /// Resources that the calls of the connection use together.
    pub counts: Arc<Counters>,
    is_authenticated: Arc<AtomicBool>,
}

impl Peer {
    fn new(
        address: SocketAddr,
        drain: watch::Receiver<Option<DrainReason>>,
        is_authenticated: Arc<AtomicBool>,
    ) -> Self {
        Self { address, drain, counts: Arc::default(), is_authenticated }
    }

    /// Records that the connection made an authenticated call. Such a connection is the last to be closed for a new one.
    pub fn mark_authenticated(&self) {
        self.is_authenticated.store(true, Ordering::Relaxed);
    }
}

/// Why a connection takes no more calls and its running calls have to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainReason {
    /// The connection reached its maximum age.
    Aged,
    /// The server is stopping.
    Stopping,
}
