//! How both ports take connections: bounds, TLS, age, and an orderly end.

mod answer;
mod connection;
mod files;
mod http;
mod http2;
mod io;
mod listen;
mod lives;
mod names;
mod reload;
mod request_body;
mod sampled;
mod settings;
mod tls;
mod turns;
mod windows;

pub use answer::Unread;
pub use files::allow_open_files;
pub use listen::{Port, serve};
pub use names::TlsNames;
pub use settings::NetSettings;
pub use tls::Tls;

use meterd_engine::counts::Counts;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Who is at the other end of a request's connection. It is in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Whether the connection is about to be closed, and calls that go on have to end.
    pub ending: watch::Receiver<Ending>,
    /// What its calls have in hand together.
    pub counts: Arc<Counts>,
    vouched: Arc<AtomicBool>,
}

impl Peer {
    fn new(address: SocketAddr, ending: watch::Receiver<Ending>, vouched: Arc<AtomicBool>) -> Self {
        Self { address, ending, counts: Arc::default(), vouched }
    }

    /// Notes that a call on the connection came from somebody who may call: such a connection is the last to be closed for others.
    pub fn vouch(&self) {
        self.vouched.store(true, Ordering::Relaxed);
    }
}

/// Why calls that go on have to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// They do not.
    No,
    /// The connection has had its time.
    Aged,
    /// The server stops.
    Stopping,
}
