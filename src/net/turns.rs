//! Whose turn it is in each call of a connection: the server's, which works, or the peer's, which has to send or to read.
//!
//! A server that stops waits for its own work, and not for peers that have stopped reading: such a call's handler is never
//! asked for more, so nothing in it could end it.

use super::Peer;
use hyper::Response;
use hyper::body::{Body, Frame, SizeHint};
use hyper::service::Service;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::time::Instant;
use tonic::codegen::http::Request;
use tower::ServiceExt;

/// The calls of one connection.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Calls that have begun.
    pub begun: AtomicU64,
    /// Calls in which it is the server's turn.
    pub ours: AtomicUsize,
    open: Mutex<Open>,
}

/// Calls that go on, and since when there are none.
#[derive(Debug, Default)]
struct Open {
    calls: usize,
    idle_since: Option<Instant>,
}

impl Turns {
    /// Begins a call.
    pub fn begin(self: &Arc<Self>) -> Arc<Turn> {
        Turn::begin(self)
    }

    /// Since when no call goes on.
    pub fn idle_since(&self) -> Option<Instant> {
        self.open.lock().expect("not poisoned").idle_since
    }
}

/// One call.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    ours: AtomicBool,
    answered: AtomicBool,
}

impl Turn {
    fn begin(turns: &Arc<Turns>) -> Arc<Self> {
        turns.begun.fetch_add(1, Ordering::Relaxed);
        turns.ours.fetch_add(1, Ordering::Relaxed);
        let mut open = turns.open.lock().expect("not poisoned");
        open.calls += 1;
        open.idle_since = None;
        drop(open);
        Arc::new(Self { turns: turns.clone(), ours: AtomicBool::new(true), answered: AtomicBool::new(false) })
    }

    fn ours(&self, ours: bool) {
        if self.ours.swap(ours, Ordering::Relaxed) != ours {
            match ours {
                true => self.turns.ours.fetch_add(1, Ordering::Relaxed),
                false => self.turns.ours.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.ours(false);
        let mut open = self.turns.open.lock().expect("not poisoned");
        open.calls -= 1;
        open.idle_since = (open.calls == 0).then(Instant::now);
    }
}

/// A request or an answer on its way.
struct Watched<B> {
    inner: B,
    turn: Arc<Turn>,
    is_answer: bool,
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        if this.is_answer {
            // Nothing to send yet: the handler is at work. Else the peer has to take what there is.
            this.turn.ours(frame.is_pending());
        } else if !this.turn.answered.load(Ordering::Relaxed) {
            this.turn.ours(frame.is_ready());
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

/// The service of one connection: tells each request whose it is, and keeps count of turns.
pub(super) struct Watching<S> {
    pub inner: S,
    pub peer: Peer,
    pub turns: Arc<Turns>,
}

impl<S, B, I> Service<Request<I>> for Watching<S>
where
    I: Body<Data = bytes::Bytes> + Unpin + Send + 'static,
    I::Error: Into<tonic::codegen::StdError>,
    S: tower::Service<Request<tonic::body::Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Response = Response<tonic::body::Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn call(&self, request: Request<I>) -> Self::Future {
        let turn = self.turns.begin();
        let mut request =
            request.map(|inner| tonic::body::Body::new(Watched { inner, turn: turn.clone(), is_answer: false }));
        request.extensions_mut().insert(self.peer.clone());
        let answer = self.inner.clone().oneshot(request);
        Box::pin(async move {
            let answer = answer.await?;
            turn.answered.store(true, Ordering::Relaxed);
            turn.ours(false);
            Ok(answer.map(|inner| {
                let inner = tonic::body::Body::new(inner);
                tonic::body::Body::new(Watched { inner, turn, is_answer: true })
            }))
        })
    }
}
