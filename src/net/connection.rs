//! The lifecycle of a connection: handshake, calls, drain, close.

use super::call_tracking::{CallTracker, ConnectionService};
use super::http;
use super::io::{Io, Traffic};
use super::listen::PortState;
use super::registry::ConnectionState;
use super::{DrainReason, Peer};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::StdError;

/// Time for the TLS handshake together with the HTTP/2 preface or the header of the first HTTP/1 request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The length of the HTTP/2 preface. Once the server has read as much, the handshake timeout no longer applies, but the keepalive
/// of HTTP/2 or the header timeout of HTTP/1.
const PREFACE_BYTES: u64 = 24;
/// The maximum age of each connection differs by up to this share at random, so that connections that were opened together do not
/// all reconnect together.
const AGE_JITTER: f64 = 0.1;
/// Share of the stop timeout after which the server ends running calls with a status. The rest is time to send the status.
const STOP_SHARE_FOR_CALLS: f64 = 0.9;
/// Time to send the status of calls that have to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The same if the connection is closed for another one.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);
/// A draining connection is cut if all of its calls wait for the peer and the peer has read nothing for this time.
const STALLED_AFTER: Duration = Duration::from_secs(2);
const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// What ends a phase of a connection.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    /// The peer did not finish the handshake in time.
    HandshakeTimedOut,
    /// The connection must take no more calls.
    Drain(DrainReason),
    /// The connection is closed for another one.
    Evicted,
    /// The peer does not read.
    Stalled,
    TimedOut,
}

/// Serves one connection until it ends.
pub(super) async fn serve(stream: TcpStream, address: SocketAddr, state: Arc<ConnectionState>, port: Arc<PortState>) {
    let handshake_deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let io = tokio::select! {
        io = handshake(stream, address, handshake_deadline, &port) => io,
        () = state.evicted.notified() => return,
    };
    let Some(mut io) = io else { return };
    io.calls = state.calls.clone();
    let traffic = io.traffic.clone();
    let (end_calls, drain) = watch::channel(None);
    let (refuse_calls, refusing_calls) = watch::channel(false);
    let peer = Peer::new(address, drain, state.is_authenticated.clone());
    let service = ConnectionService { handler: port.handler.clone(), peer, calls: state.calls.clone() };
    let http = pin!(http::serve(io, service, &port, refusing_calls));
    let lifecycle = Lifecycle { address, port: &port, state: &state, traffic: &traffic, refuse_calls, end_calls };
    lifecycle.run(http, handshake_deadline).await;
}

/// Runs the handshake of TLS if the port uses it. Returns `None` if the handshake failed.
async fn handshake(stream: TcpStream, address: SocketAddr, deadline: Instant, port: &PortState) -> Option<Io> {
    // Without this, a small response waits until the peer has acknowledged the previous one.
    stream.set_nodelay(true).ok()?;
    let Some(tls) = &port.port.tls else { return Some(Io::plain(stream)) };
    let acceptor = TlsAcceptor::from(tls.borrow().clone());
    tokio::select! {
        result = timeout_at(deadline, acceptor.accept(stream)) => match result {
            Ok(Ok(stream)) => Some(Io::tls(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "TLS handshake failed");
                port.count_refused("tls");
                None
            }
            Err(_) => {
                port.count_refused("handshake_timeout");
                None
            }
        },
        () = port.stopped() => None,
    }
}

/// Drives a connection through its phases.
struct Lifecycle<'a> {
    address: SocketAddr,
    port: &'a PortState,
    state: &'a ConnectionState,
    traffic: &'a Traffic,
    /// Once true, the peer is asked to make no more calls: GOAWAY in HTTP/2, "connection: close" in HTTP/1.
    refuse_calls: watch::Sender<bool>,
    /// Once set, running calls end with a status.
    end_calls: watch::Sender<Option<DrainReason>>,
}

impl Lifecycle<'_> {
    async fn run<C>(&self, mut http: Pin<&mut C>, handshake_deadline: Instant)
    where
        C: Future<Output = Result<(), StdError>>,
    {
        match self.serve_until(http.as_mut(), self.end_of_service(handshake_deadline)).await {
            Some(Event::Drain(reason)) => self.drain(http, reason).await,
            Some(Event::Evicted) if self.has_calls() => self.evict(http).await,
            Some(Event::HandshakeTimedOut) => self.port.count_refused("handshake_timeout"),
            _ => {}
        }
    }

    /// Serves calls until an event happens. Returns `None` if the connection ended before.
    async fn serve_until<C>(&self, http: Pin<&mut C>, event: impl Future<Output = Event>) -> Option<Event>
    where
        C: Future<Output = Result<(), StdError>>,
    {
        let address = self.address;
        tokio::select! {
            result = http => {
                if let Err(error) = result {
                    tracing::debug!(%address, %error, "connection failed");
                    if let Some(reason) = abuse(&error) {
                        self.port.count_abuse(address, reason);
                    }
                }
                None
            }
            event = event => Some(event),
        }
    }

    /// Waits until the connection must take no more calls.
    async fn end_of_service(&self, handshake_deadline: Instant) -> Event {
        let handshake_timeout = async {
            sleep_until(handshake_deadline).await;
            if self.traffic.read.load(Ordering::Relaxed) >= PREFACE_BYTES || self.has_calls() {
                std::future::pending().await
            }
        };
        let config = &self.port.port.config;
        let age = config.connection_age.mul_f64(1.0 + AGE_JITTER * (2.0 * rand::random::<f64>() - 1.0));
        tokio::select! {
            () = handshake_timeout => Event::HandshakeTimedOut,
            () = sleep(age) => Event::Drain(DrainReason::Aged),
            () = self.port.stopped() => Event::Drain(DrainReason::Stopping),
            () = self.state.evicted.notified() => Event::Evicted,
            // A peer that reads nothing would not receive a GOAWAY either.
            () = self.traffic.write_blocked_for(config.unread_timeout) => Event::Stalled,
        }
    }

    /// Takes no more calls, lets running calls finish, and then ends those that are left with a status.
    async fn drain<C>(&self, mut http: Pin<&mut C>, mut reason: DrainReason)
    where
        C: Future<Output = Result<(), StdError>>,
    {
        self.refuse_calls.send_replace(true);
        let config = &self.port.port.config;
        if reason == DrainReason::Aged {
            let end_of_grace = async {
                tokio::select! {
                    () = sleep(config.connection_age_grace) => Event::Drain(DrainReason::Aged),
                    () = self.port.stopped() => Event::Drain(DrainReason::Stopping),
                    () = self.state.evicted.notified() => Event::Evicted,
                }
            };
            match self.serve_until(http.as_mut(), end_of_grace).await {
                Some(Event::Drain(next)) => reason = next,
                Some(_) => return self.evict(http).await,
                None => return,
            }
        }
        if reason == DrainReason::Stopping {
            // Handlers notice the stop and finish their work by themselves.
            let timeout = config.stop_timeout.mul_f64(STOP_SHARE_FOR_CALLS);
            if self.serve_until(http.as_mut(), self.stalled_or_timeout(timeout)).await != Some(Event::TimedOut) {
                return;
            }
        }
        self.end_calls.send_replace(Some(reason));
        self.serve_until(http, self.stalled_or_timeout(CLOSE_TIMEOUT)).await;
    }

    /// Ends all calls with a status and closes the connection.
    async fn evict<C>(&self, http: Pin<&mut C>)
    where
        C: Future<Output = Result<(), StdError>>,
    {
        self.refuse_calls.send_replace(true);
        self.end_calls.send_replace(Some(DrainReason::Aged));
        let timeout = async {
            sleep(EVICTION_TIMEOUT).await;
            Event::TimedOut
        };
        self.serve_until(http, timeout).await;
    }

    /// Waits until the peer stalls, but at most for `timeout`.
    async fn stalled_or_timeout(&self, timeout: Duration) -> Event {
        tokio::select! {
            () = stalled(&self.state.calls, self.traffic) => Event::Stalled,
            () = sleep(timeout) => Event::TimedOut,
        }
    }

    fn has_calls(&self) -> bool {
        self.state.calls.started.load(Ordering::Relaxed) > 0
    }
}

/// Returns the reason if the error means that h2 closed the connection because its peer abused the protocol.
fn abuse(error: &StdError) -> Option<h2::Reason> {
    let error = error.downcast_ref::<h2::Error>()?;
    if error.is_go_away() && error.is_library() { error.reason() } else { None }
}

/// Waits until all calls have waited for the peer, and the peer has read nothing, for `STALLED_AFTER`.
async fn stalled(calls: &CallTracker, traffic: &Traffic) {
    let (mut written, mut since) = (traffic.written.load(Ordering::Relaxed), Instant::now());
    while since.elapsed() < STALLED_AFTER {
        sleep(STALL_CHECK_INTERVAL).await;
        let now = traffic.written.load(Ordering::Relaxed);
        if now != written || calls.waiting_for_server.load(Ordering::Relaxed) > 0 {
            (written, since) = (now, Instant::now());
        }
    }
}
