//! How both ports take connections: bounds, TLS, age, and an orderly end.

mod connection;
mod files;
mod http;
mod io;
mod listen;
mod names;
mod reload;
mod settings;
mod tls;
mod turns;

pub use files::allow_open_files;
pub use listen::{Port, serve};
pub use names::TlsNames;
pub use settings::NetSettings;
pub use tls::Tls;

use std::net::SocketAddr;
use tokio::sync::watch;

/// Who is at the other end of a request's connection. It is in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Whether the connection is about to be closed, and calls that go on have to end.
    pub ending: watch::Receiver<Ending>,
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
