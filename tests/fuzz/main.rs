//! Sends random requests to every RPC of a real server over one connection: random bytes, messages with plausible or
//! extreme values, and such messages with modified bytes. Nothing may panic, every error must be documented, the
//! connection must stay open, and at the end every accepted event must exist and every sum must be exact.
//!
//! To run more: `METERD_FUZZ_RUNS=1000000 METERD_FUZZ_SEED=7 cargo test --release --test fuzz -- --nocapture`. A run
//! depends only on the seed and its number, except for ids that the server generated.

#[path = "../api/assertions.rs"]
#[expect(dead_code, reason = "used by other tests")]
mod assertions;
#[path = "../api/bad_composites.rs"]
mod bad_composites;
#[path = "../api/bad_requests.rs"]
#[expect(dead_code, reason = "responses to single requests are not checked here")]
mod bad_requests;
#[path = "../api/bad_test_data.rs"]
#[expect(dead_code, reason = "used by other tests")]
mod bad_test_data;
#[path = "../api/bad_values.rs"]
#[expect(dead_code, reason = "responses to single values are not checked here")]
mod bad_values;
#[path = "../api/contract.rs"]
#[expect(dead_code, reason = "used by other tests")]
mod contract;
#[path = "../api/harness.rs"]
#[expect(dead_code, unused_imports, reason = "used by other tests")]
mod harness;
#[path = "../api/raw_codec.rs"]
mod raw_codec;
mod requests;

use bad_test_data::TestData;
use contract::*;
use meterd::proto::{EventOutcome, StreamUsageResponse, UsageResult};
use prost_reflect::MethodDescriptor;
use rand::SeedableRng;
use rand::rngs::StdRng;
use requests::{Known, Requests};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;
use tonic::Code;
use tracing_subscriber::layer::SubscriberExt;

const RUNS: u64 = 20_000;
const CALLERS: usize = 16;
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

/// The results of all calls.
#[derive(Default)]
struct Seen {
    /// Number of calls by status, or by status of the gRPC library.
    calls: Mutex<BTreeMap<String, u64>>,
    failures: Mutex<Vec<String>>,
    /// RPCs that returned OK at least once. A fuzzer whose requests are all rejected proves nothing.
    answered: Mutex<BTreeSet<String>>,
    accepted: AtomicU64,
    /// Events for which the caller does not know whether they were recorded.
    unknown: AtomicU64,
}

impl Seen {
    fn add_failure(&self, text: String) {
        self.failures.lock().unwrap().push(text);
    }

    /// Checks a response. `is_message` is true if the request was a valid message of the method.
    fn check_answer(&self, rpc: &MethodDescriptor, is_message: bool, answer: &Answer) {
        let (rules, name) = (error_rules(), rpc.name());
        let status = match answer.end.as_ref().err().map(ApiError::of) {
            None => {
                self.answered.lock().unwrap().insert(name.into());
                "OK".to_string()
            }
            Some(error) if error.is_of_grpc() => {
                if is_message {
                    self.add_failure(format!("{name}: gRPC refused a message: {error:?}"));
                }
                format!("{:?} of gRPC", error.code)
            }
            Some(error) => {
                if let Err(wrong) = rules.check(name, error.code, &error.reason) {
                    self.add_failure(format!("{wrong}: {error:?}"));
                }
                error.reason
            }
        };
        for error in answer.results().into_iter().filter_map(|result| result.error).map(ApiError::of_event) {
            if let Err(wrong) = rules.check("TrackUsage", error.code, &error.reason) {
                self.add_failure(format!("an event of {name}: {wrong}: {error:?}"));
            }
        }
        *self.calls.lock().unwrap().entry(status).or_default() += 1;
        self.count_events(name, answer);
    }

    fn count_events(&self, rpc: &str, answer: &Answer) {
        let results = answer.results();
        let of = |outcome| results.iter().filter(|result| result.outcome() == outcome).count() as u64;
        // With `validate_only` the outcome can be ACCEPTED without an id.
        let is_recorded =
            |result: &&UsageResult| result.outcome() == EventOutcome::Accepted && !result.event_id.is_empty();
        let recorded = results.iter().filter(is_recorded).count() as u64;
        let accepted = match rpc {
            "TrackUsage" | "BatchTrackUsage" => recorded,
            "StreamUsage" => {
                // A settled event that is not listed was accepted. A listed event can be accepted, too, if it was
                // rounded.
                let last = answer.messages.last().map(|ack| ack.transcode_to::<StreamUsageResponse>().unwrap());
                last.map_or(0, |ack| ack.settled_count as u64) - results.len() as u64 + recorded
            }
            _ => return,
        };
        let outcome_unknown = matches!(&answer.end, Err(status) if matches!(
            status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
        ));
        self.accepted.fetch_add(accepted, Ordering::Relaxed);
        self.unknown.fetch_add(of(EventOutcome::Unavailable) + u64::from(outcome_unknown), Ordering::Relaxed);
    }
}

/// Returns the number of recorded events, with those that are voided.
async fn event_count(data: &TestData) -> u64 {
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM usage_events");
    count.fetch_one(&data.server.pool).await.unwrap() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_break_neither_the_server_nor_a_sum() {
    let runs = number("METERD_FUZZ_RUNS").unwrap_or(RUNS);
    let seed = number("METERD_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("fuzz: METERD_FUZZ_SEED={seed} METERD_FUZZ_RUNS={runs}");
    let watch = FailureWatch::start();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(watch.clone())).unwrap();
    let mut data = TestData::start().await;
    let requests = Arc::new(Requests::new(&mut data).await);
    let events_before = event_count(&data).await;
    let (seen, known, next) = (Arc::new(Seen::default()), Arc::new(Known::new(&data)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (requests, seen, known, next) = (requests.clone(), seen.clone(), known.clone(), next.clone());
        let connection = data.connection.clone();
        callers.spawn(async move {
            loop {
                let run = next.fetch_add(1, Ordering::Relaxed);
                if run >= runs {
                    return;
                }
                // Each run has its own generator, so that it does not depend on the other runs.
                let mut random = StdRng::seed_from_u64(seed ^ run.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let request = requests.make(&mut random, &known);
                let answer = connection.call(&request.rpc, request.messages, read_max(request.rpc.name())).await;
                seen.check_answer(&request.rpc, request.is_message, &answer);
                known.learn(&answer);
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    let verified = data.server.verify().await;
    let (accepted, unknown) = (seen.accepted.load(Ordering::Relaxed), seen.unknown.load(Ordering::Relaxed));
    let events = event_count(&data).await - events_before;
    let failures = seen.failures.lock().unwrap().clone();
    let calls = seen.calls.lock().unwrap().clone();
    let by_status: Vec<String> = calls.iter().map(|(status, count)| format!("{count} {status}")).collect();
    println!(
        "fuzz: seed {seed}, {runs} runs, {accepted} events accepted, {events} there, {} sums wrong, calls: {}; panics {}, wrong \
         status {}, errors logged {}, connections lost {}",
        verified.differences,
        by_status.join(", "),
        watch.panics(false).len(),
        failures.len(),
        watch.errors().len(),
        data.connection.lost()
    );
    assert!(failures.is_empty(), "{}", failures.iter().take(50).cloned().collect::<Vec<_>>().join("\n"));
    assert_eq!((watch.panics(false), watch.errors(), data.connection.lost()), (vec![], vec![], 0));
    assert_eq!(verified.differences, 0);
    assert!(
        (accepted..=accepted + unknown).contains(&events),
        "{accepted} accepted, {unknown} unknown, {events} recorded"
    );
    data.server.stop().await;
}

/// Maximum number of messages of a response to read. A subscription does not end, and a whole export is too long.
fn read_max(rpc: &str) -> usize {
    match rpc {
        "SubscribeAlerts" => 1,
        "ExportUsage" => 3,
        _ => usize::MAX,
    }
}
