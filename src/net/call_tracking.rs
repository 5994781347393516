//! Tracks the calls of a connection, and for each call whether it waits for the server, which works, or for the peer, which has
//! to send or to read.
//!
//! A stopping server waits for its own work but not for peers that stopped reading. Nothing else could end such a call: its
//! response body is not polled while the peer does not read.

use super::Peer;
use super::listen::Handler;
use hyper::body::{Body, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::time::Instant;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};

/// Tracks the calls of one connection.
#[derive(Debug, Default)]
pub(super) struct CallTracker {
    /// Calls since the connection was opened.
    pub started: AtomicU64,
    /// Running calls that wait for the server.
    pub waiting_for_server: AtomicUsize,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    calls: usize,
    /// When the last call ended. `None` while a call runs, and before the first call.
    idle_since: Option<Instant>,
}

impl CallTracker {
    /// Counts a call as running until the result is dropped. At first, the call waits for the server.
    pub fn start(self: &Arc<Self>) -> Arc<TrackedCall> {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.waiting_for_server.fetch_add(1, Ordering::Relaxed);
        let mut running = self.running.lock().expect("not poisoned");
        running.calls += 1;
        running.idle_since = None;
        drop(running);
        let (waits_for_server, has_response) = (AtomicBool::new(true), AtomicBool::new(false));
        Arc::new(TrackedCall { tracker: self.clone(), waits_for_server, has_response })
    }

    /// Returns when the last call ended, or `None` while a call runs and before the first call.
    pub fn idle_since(&self) -> Option<Instant> {
        self.running.lock().expect("not poisoned").idle_since
    }
}

/// A running call.
#[derive(Debug)]
pub(super) struct TrackedCall {
    tracker: Arc<CallTracker>,
    waits_for_server: AtomicBool,
    has_response: AtomicBool,
}

impl TrackedCall {
    fn set_waits_for_server(&self, waits: bool) {
        if self.waits_for_server.swap(waits, Ordering::Relaxed) != waits {
            match waits {
                true => self.tracker.waiting_for_server.fetch_add(1, Ordering::Relaxed),
                false => self.tracker.waiting_for_server.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }
}

impl Drop for TrackedCall {
    fn drop(&mut self) {
        self.set_waits_for_server(false);
        let mut running = self.tracker.running.lock().expect("not poisoned");
        running.calls -= 1;
        running.idle_since = (running.calls == 0).then(Instant::now);
    }
}

/// The body of a request or of a response, which updates the state of its call.
struct TrackedBody<B> {
    inner: B,
    call: Arc<TrackedCall>,
    is_response: bool,
}

impl<B: Body + Unpin> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        if this.is_response {
            // If nothing can be sent yet, the handler works. Otherwise, the peer has to read.
            this.call.set_waits_for_server(frame.is_pending());
        } else if !this.call.has_response.load(Ordering::Relaxed) {
            this.call.set_waits_for_server(frame.is_ready());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Passes the requests of one connection to the handler of the port, and tracks its calls.
pub(super) struct ConnectionService {
    pub handler: Handler,
    /// Added to the extensions of each request.
    pub peer: Peer,
    pub calls: Arc<CallTracker>,
}

impl ConnectionService {
    /// Starts a call. The future returns its response.
    pub fn call<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<tonic::body::Body>, StdError>> + Send + use<B>
    where
        B: Body<Data = bytes::Bytes> + Send + Unpin + 'static,
        B::Error: Into<StdError>,
    {
        let call = self.calls.start();
        let track = |inner| tonic::body::Body::new(TrackedBody { inner, call: call.clone(), is_response: false });
        let mut request = request.map(track);
        request.extensions_mut().insert(self.peer.clone());
        let response = (self.handler)(request);
        async move {
            let response = response.await?;
            call.has_response.store(true, Ordering::Relaxed);
            call.set_waits_for_server(false);
            Ok(response.map(|inner| tonic::body::Body::new(TrackedBody { inner, call, is_response: true })))
        }
    }
}
