//! A fake server for tests. It only implements BatchTrackUsage and fails on request.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::proto::{
    BatchTrackUsageRequest, BatchTrackUsageResponse, CheckedClient, EventError, EventOutcome, Money, UsageEvent,
    UsageResult,
};

/// A failure of one call.
#[derive(Clone, Copy)]
pub enum Fault {
    /// Nothing is recorded; a retry is possible.
    Full,
    /// All events are recorded, but the response is lost.
    LostResponse,
    /// Every other event is unavailable.
    HalfUnavailable,
    /// A retry is useless.
    Denied,
}

#[derive(Clone, Default)]
pub struct Fake {
    /// Recorded events by key.
    pub recorded: Arc<Mutex<HashMap<String, UsageEvent>>>,
    /// Time zones of clients that are not in UTC. All clients exist.
    pub zones: Arc<Mutex<HashMap<String, String>>>,
    /// Whether the server ignores `validate_only` and records the events, like an older server.
    pub is_old: Arc<Mutex<bool>>,
    faults: Arc<Mutex<VecDeque<Option<Fault>>>>,
    /// Number of events of all calls.
    pub received: Arc<Mutex<usize>>,
}

impl Fake {
    /// Starts the server on a free port.
    pub async fn start(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.serve(listener)
    }

    /// Closes the first connection in the middle of a call, then starts the server.
    pub async fn start_after_lost_connection(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut broken, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 512];
            while tokio::io::AsyncReadExt::read(&mut broken, &mut bytes).await.unwrap() == bytes.len() {}
            drop(broken);
            self.serve(listener)
        });
        format!("http://{address}")
    }

    fn serve(self, listener: tokio::net::TcpListener) -> String {
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(self);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("http://{address}")
    }

    pub fn fail(&self, faults: &[Option<Fault>]) {
        self.faults.lock().unwrap().extend(faults);
    }

    pub fn count(&self) -> usize {
        self.recorded.lock().unwrap().len()
    }

    /// Returns the results that the events would have, and their clients.
    fn check(&self, events: Vec<UsageEvent>) -> BatchTrackUsageResponse {
        let zones = self.zones.lock().unwrap();
        let ids: std::collections::BTreeSet<String> = events.iter().map(|event| event.client_id.clone()).collect();
        let client = |client_id: String| {
            let time_zone = zones.get(&client_id).cloned().unwrap_or("UTC".into());
            CheckedClient { client_id, time_zone, exists: true }
        };
        let scratch = Fake { recorded: Arc::new(Mutex::new(self.recorded.lock().unwrap().clone())), ..Fake::default() };
        BatchTrackUsageResponse {
            results: events.into_iter().map(|event| scratch.record(event)).collect(),
            clients: ids.into_iter().map(client).collect(),
            ..Default::default()
        }
    }

    fn record(&self, event: UsageEvent) -> UsageResult {
        let mut recorded = self.recorded.lock().unwrap();
        let outcome = match recorded.get(&event.idempotency_key) {
            _ if ["", "nothing"].contains(&&*event.service) => EventOutcome::Rejected,
            None => EventOutcome::Accepted,
            Some(known) if *known == event => EventOutcome::Duplicate,
            Some(_) => EventOutcome::Conflict,
        };
        let error = (outcome == EventOutcome::Rejected).then(|| EventError {
            reason: if event.service.is_empty() { "INVALID_FIELD" } else { "UNKNOWN_SERVICE" }.into(),
            message: "no such service".into(),
            ..Default::default()
        });
        if outcome == EventOutcome::Accepted {
            recorded.insert(event.idempotency_key.clone(), event);
        }
        let charge = Some(Money { currency: "USD".into(), amount: "0.1".into() });
        UsageResult { outcome: outcome.into(), charge, error, ..Default::default() }
    }
}

impl tonic::server::NamedService for Fake {
    const NAME: &'static str = "metering.v1.UsageService";
}

impl tower::Service<http::Request<Body>> for Fake {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.unary(fake, request).await)
        })
    }
}

impl tonic::server::UnaryService<BatchTrackUsageRequest> for Fake {
    type Response = BatchTrackUsageResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<BatchTrackUsageResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<BatchTrackUsageRequest>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            if request.get_ref().validate_only && !*fake.is_old.lock().unwrap() {
                return Ok(Response::new(fake.check(request.into_inner().events)));
            }
            let fault = fake.faults.lock().unwrap().pop_front().flatten();
            match fault {
                Some(Fault::Full) => return Err(Status::resource_exhausted("full")),
                Some(Fault::Denied) => return Err(Status::permission_denied("no")),
                _ => {}
            }
            let events = request.into_inner().events;
            *fake.received.lock().unwrap() += events.len();
            let results = events.into_iter().enumerate().map(|(index, event)| {
                let result = fake.record(event);
                match fault {
                    Some(Fault::HalfUnavailable) if index % 2 == 0 => {
                        UsageResult { outcome: EventOutcome::Unavailable.into(), ..Default::default() }
                    }
                    _ => result,
                }
            });
            let results = results.collect();
            match fault {
                Some(Fault::LostResponse) => Err(Status::unavailable("lost")),
                _ => Ok(Response::new(BatchTrackUsageResponse { results, ..Default::default() })),
            }
        })
    }
}
