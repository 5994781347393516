//! The life of one connection: handshake, calls, notice, end.

use super::http;
use super::io::{Io, Moved};
use super::listen::Shared;
use super::lives::Life;
use super::turns::{Turns, Watching};
use super::{Ending, Peer};
use hyper::body::Body;
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
use tonic::codegen::http::{Request, Response};

/// Time for the TLS handshake together with the HTTP/2 preface or the header of the first HTTP/1 request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Who has sent so much speaks HTTP/2, and its keepalive goes on from there; or HTTP/1, whose header has its own time.
const PREFACE_BYTES: u64 = 24;
/// Connections that were made together do not all come back together: their age differs by up to so much of itself.
const AGE_JITTER: f64 = 0.1;
/// Share of the time for an orderly stop after which calls that still go on end with a status: the rest is for its way.
const STOP_SHARE_TO_SETTLE: f64 = 0.9;
/// Time for calls to end after they were told to.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a connection to say goodbye when another one needs its place.
const DISPLACED_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that takes nothing for so long, while only it can go on, is cut when the connection has to end.
const STALLED_AFTER: Duration = Duration::from_secs(2);
const STALLED_CHECK_EVERY: Duration = Duration::from_millis(250);

/// What a connection comes to.
#[derive(Clone, Copy, PartialEq)]
enum Turnout {
    Silent,
    Ending(Ending),
    /// Another connection needs its place.
    Displaced,
    Stalled,
    TimeIsUp,
}

/// Serves one connection to its end.
pub(super) async fn serve<S, B>(stream: TcpStream, address: SocketAddr, life: Arc<Life>, shared: Arc<Shared<S>>)
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<StdError>,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let handshake_ends = Instant::now() + HANDSHAKE_TIMEOUT;
    let io = tokio::select! {
        io = handshake(stream, address, handshake_ends, &shared) => io,
        () = life.leave.notified() => return,
    };
    let Some(mut io) = io else { return };
    let (moved, turns) = (io.moved.clone(), life.turns.clone());
    io.turns = turns.clone();
    let (end, ending) = watch::channel(Ending::No);
    let peer = Peer::new(address, ending, life.vouched.clone());
    let service = Watching { inner: shared.service.clone(), peer, turns: turns.clone() };
    let (close, closing) = watch::channel(false);
    let mut connection = pin!(http::serve(io, service, &shared, closing));

    let silent = async {
        sleep_until(handshake_ends).await;
        if moved.read.load(Ordering::Relaxed) >= PREFACE_BYTES || turns.begun.load(Ordering::Relaxed) > 0 {
            std::future::pending().await
        }
    };
    let age = shared.port.age.mul_f64(1.0 + AGE_JITTER * (2.0 * rand::random::<f64>() - 1.0));
    let open = async {
        tokio::select! {
            () = silent => Turnout::Silent,
            () = sleep(age) => Turnout::Ending(Ending::Aged),
            () = shared.stopped() => Turnout::Ending(Ending::Stopping),
            () = life.leave.notified() => Turnout::Displaced,
            // Nothing can be told to a peer that reads nothing at all.
            () = moved.unread_for(shared.port.unread_timeout) => Turnout::Stalled,
        }
    };
    let mut why = match until(connection.as_mut(), (address, &shared), open).await {
        Some(Turnout::Ending(why)) => why,
        // There is no call to be careful with.
        Some(Turnout::Displaced) if turns.begun.load(Ordering::Relaxed) == 0 => return,
        Some(Turnout::Displaced) => {
            close.send_replace(true);
            end.send_replace(Ending::Aged);
            until(connection, (address, &shared), sleep(DISPLACED_TIMEOUT)).await;
            return;
        }
        Some(Turnout::Stalled) => return,
        Some(_) => return shared.refused("handshake_timeout"),
        None => return,
    };
    // No new calls: GOAWAY, or "connection: close". Those that are there go on.
    close.send_replace(true);
    if why == Ending::Aged {
        let grace = async {
            tokio::select! {
                () = sleep(shared.port.age_grace) => Turnout::Ending(Ending::Aged),
                () = shared.stopped() => Turnout::Ending(Ending::Stopping),
                () = life.leave.notified() => Turnout::Displaced,
            }
        };
        match until(connection.as_mut(), (address, &shared), grace).await {
            Some(Turnout::Ending(next)) => why = next,
            Some(_) => {
                end.send_replace(Ending::Aged);
                until(connection, (address, &shared), sleep(DISPLACED_TIMEOUT)).await;
                return;
            }
            None => return,
        }
    }
    if why == Ending::Stopping {
        // Handlers end by themselves as they see fit; whoever has not after most of the time is told to.
        let settling = stalled_or(&turns, &moved, shared.port.stop_timeout.mul_f64(STOP_SHARE_TO_SETTLE));
        if until(connection.as_mut(), (address, &shared), settling).await != Some(Turnout::TimeIsUp) {
            return;
        }
    }
    end.send_replace(why);
    until(connection, (address, &shared), stalled_or(&turns, &moved, ENDING_TIMEOUT)).await;
}

/// The bytes of a connection, once TLS is agreed on if there is any.
async fn handshake<S>(stream: TcpStream, address: SocketAddr, ends: Instant, shared: &Shared<S>) -> Option<Io> {
    // Small answers are not to wait for the peer's acknowledgement of the last one.
    stream.set_nodelay(true).ok()?;
    let Some(tls) = &shared.port.tls else { return Some(Io::plain(stream)) };
    let acceptor = TlsAcceptor::from(tls.borrow().clone());
    tokio::select! {
        done = timeout_at(ends, acceptor.accept(stream)) => match done {
            Ok(Ok(stream)) => Some(Io::tls(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "TLS handshake");
                shared.refused("tls");
                None
            }
            Err(_) => {
                shared.refused("handshake_timeout");
                None
            }
        },
        () = shared.stopped() => None,
    }
}

/// Serves until something happens; None, if the connection ended before.
async fn until<S, C, T>(
    connection: Pin<&mut C>,
    (address, shared): (SocketAddr, &Shared<S>),
    happens: impl Future<Output = T>,
) -> Option<T>
where
    C: Future<Output = Result<(), StdError>>,
{
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "connection");
                if let Some(reason) = cut_for(&error) {
                    shared.cut(address, reason);
                }
            }
            None
        }
        turnout = happens => Some(turnout),
    }
}

/// Why a connection was cut, if it was for what its peer did.
fn cut_for(error: &StdError) -> Option<h2::Reason> {
    let error = error.downcast_ref::<h2::Error>()?;
    if error.is_go_away() && error.is_library() { error.reason() } else { None }
}

/// Waits until only the peer could go on and has taken nothing for a while, at most so long.
async fn stalled_or(turns: &Turns, moved: &Moved, at_most: Duration) -> Turnout {
    let stalled = async {
        let (mut written, mut since) = (moved.written.load(Ordering::Relaxed), Instant::now());
        while since.elapsed() < STALLED_AFTER {
            sleep(STALLED_CHECK_EVERY).await;
            let now = moved.written.load(Ordering::Relaxed);
            if now != written || turns.ours.load(Ordering::Relaxed) > 0 {
                (written, since) = (now, Instant::now());
            }
        }
    };
    tokio::select! {
        () = stalled => Turnout::Stalled,
        () = sleep(at_most) => Turnout::TimeIsUp,
    }
}
