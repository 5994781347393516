//! Whole imports against a server that only knows BatchTrackUsage, and fails when it is told to.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};

use clap::Parser;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::cli::import;
use crate::proto::{
    BatchTrackUsageRequest, BatchTrackUsageResponse, EventError, EventOutcome, Money, UsageEvent,
};

/// What a call does besides recording.
#[derive(Clone, Copy)]
enum Fault {
    /// Nothing is recorded; the caller may try again.
    Full,
    /// All is recorded, but the answer is lost.
    LostAnswer,
    /// Every other event is not settled.
    HalfUnavailable,
    /// The caller must not try again.
    Refused,
}

#[derive(Clone, Default)]
struct Fake {
    recorded: Arc<Mutex<HashMap<String, UsageEvent>>>,
    faults: Arc<Mutex<VecDeque<Option<Fault>>>>,
    received: Arc<Mutex<usize>>,
}

impl Fake {
    async fn start(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(self);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("http://{address}")
    }

    fn fail(&self, faults: &[Option<Fault>]) {
        self.faults.lock().unwrap().extend(faults);
    }

    fn count(&self) -> usize {
        self.recorded.lock().unwrap().len()
    }

    fn record(&self, event: UsageEvent) -> UsageResult {
        let mut recorded = self.recorded.lock().unwrap();
        let outcome = match recorded.get(&event.idempotency_key) {
            _ if event.service == "nothing" => EventOutcome::Rejected,
            None => EventOutcome::Accepted,
            Some(known) if *known == event => EventOutcome::Duplicate,
            Some(_) => EventOutcome::Conflict,
        };
        let error = (outcome == EventOutcome::Rejected).then(|| EventError {
            reason: "UNKNOWN_SERVICE".into(),
            message: "no such service".into(),
            ..Default::default()
        });
        if outcome == EventOutcome::Accepted {
            recorded.insert(event.idempotency_key.clone(), event);
        }
        let charge = Some(Money {
            currency: "USD".into(),
            amount: "0.1".into(),
        });
        UsageResult {
            outcome: outcome.into(),
            charge,
            error,
            ..Default::default()
        }
    }
}

impl tonic::server::NamedService for Fake {
    const NAME: &'static str = "metering.v1.UsageService";
}

impl tower::Service<http::Request<Body>> for Fake {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
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
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<BatchTrackUsageResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<BatchTrackUsageRequest>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            let fault = fake.faults.lock().unwrap().pop_front().flatten();
            match fault {
                Some(Fault::Full) => return Err(Status::resource_exhausted("full")),
                Some(Fault::Refused) => return Err(Status::permission_denied("no")),
                _ => {}
            }
            let events = request.into_inner().events;
            *fake.received.lock().unwrap() += events.len();
            let results = events.into_iter().enumerate().map(|(index, event)| {
                let result = fake.record(event);
                match fault {
                    Some(Fault::HalfUnavailable) if index % 2 == 0 => UsageResult {
                        outcome: EventOutcome::Unavailable.into(),
                        ..Default::default()
                    },
                    _ => result,
                }
            });
            let results = results.collect();
            match fault {
                Some(Fault::LostAnswer) => Err(Status::unavailable("lost")),
                _ => Ok(Response::new(BatchTrackUsageResponse {
                    results,
                    ..Default::default()
                })),
            }
        })
    }
}

#[derive(Parser)]
#[command(args_override_self = true)]
struct Command {
    #[command(flatten)]
    args: ImportArgs,
}

struct Outcome {
    tally: Tally,
    ended: anyhow::Result<Ended>,
}

/// Runs an import of one file, two rows a call, one call at a time.
async fn import_file(server: &str, file: &Path, flags: &[&str]) -> Outcome {
    let file_name = file.to_str().unwrap();
    let base = [
        "import",
        file_name,
        "--server",
        server,
        "--quiet",
        "--batch",
        "2",
        "--concurrency",
        "1",
    ];
    let args = Command::try_parse_from([&base[..], flags].concat())
        .unwrap()
        .args;
    let sender = (!args.dry_run).then(|| async {
        let client = crate::cli::connect::usage_client(args.connect.channel().await.unwrap());
        let retry_budget = std::time::Duration::from_secs(args.retry_seconds);
        Sender {
            client,
            connect: args.connect.clone(),
            backfill: args.backfill,
            retry_budget,
        }
    });
    let sender = match sender {
        Some(sender) => Some(sender.await),
        None => None,
    };
    let mut run = Run::new(&args, sender).unwrap();
    let ended = run.import_file(file).await;
    Outcome {
        tally: run.tally.clone(),
        ended,
    }
}

/// Seven events, of which two are equal.
const FILE: &str = "client_id,service,event_time,units\r\n\
    a,s,2026-11-01,1\r\na,s,2026-11-01,1\r\na,s,2026-11-01,2\r\na,s,2026-11-02,1\r\n\
    a,s,2026-11-03,1\r\na,s,2026-11-04,1\r\na,s,2026-11-05,1\r\n";

struct Setup {
    dir: tempfile::TempDir,
    file: PathBuf,
    fake: Fake,
    server: String,
}

async fn setup(text: &str) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("usage.csv");
    std::fs::write(&file, text).unwrap();
    let fake = Fake::default();
    let server = fake.clone().start().await;
    Setup {
        dir,
        file,
        fake,
        server,
    }
}

#[tokio::test]
async fn a_second_run_counts_nothing_twice() {
    let Setup {
        dir,
        file,
        fake,
        server,
    } = setup(FILE).await;
    let first = import_file(&server, &file, &[]).await;
    assert_eq!(
        (first.tally.accepted, first.tally.duplicates, fake.count()),
        (7, 0, 7)
    );
    let second = import_file(&server, &file, &["--batch", "5", "--concurrency", "3"]).await;
    assert_eq!(
        (second.tally.accepted, second.tally.duplicates, fake.count()),
        (0, 7, 7)
    );
    let other = import_file(&server, &file, &["--key-prefix", "other"]).await;
    assert_eq!((other.tally.accepted, fake.count()), (7, 14));
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "the checkpoint is gone"
    );
}

#[tokio::test]
async fn a_server_that_fails_for_a_while_loses_and_doubles_nothing() {
    let Setup {
        dir: _dir,
        file,
        fake,
        server,
    } = setup(FILE).await;
    fake.fail(&[
        Some(Fault::Full),
        Some(Fault::LostAnswer),
        None,
        Some(Fault::HalfUnavailable),
        None,
        Some(Fault::Full),
    ]);
    let run = import_file(&server, &file, &[]).await;
    assert_eq!(run.ended.unwrap(), Ended::Whole);
    assert_eq!(
        (
            run.tally.accepted + run.tally.duplicates,
            run.tally.bad(),
            fake.count()
        ),
        (7, 0, 7)
    );
}

#[tokio::test]
async fn a_cut_run_goes_on_where_it_stood() {
    let Setup {
        dir,
        file,
        fake,
        server,
    } = setup(FILE).await;
    fake.fail(&[None, None, Some(Fault::Refused)]);
    let cut = import_file(&server, &file, &[]).await;
    assert!(format!("{:#}", cut.ended.unwrap_err()).contains("PermissionDenied"));
    assert_eq!(fake.count(), 4);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let other = import_file(&server, &file, &["--resume", "--client", "b"]).await;
    assert!(
        other
            .ended
            .unwrap_err()
            .to_string()
            .contains("other mapping flags")
    );
    let rest = import_file(&server, &file, &["--resume"]).await;
    assert_eq!(
        (
            rest.tally.resumed_rows,
            rest.tally.accepted,
            rest.tally.duplicates
        ),
        (4, 3, 0)
    );
    assert_eq!((fake.count(), *fake.received.lock().unwrap()), (7, 7));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn trying_again_has_an_end() {
    let Setup {
        dir: _dir,
        file,
        fake,
        server,
    } = setup(FILE).await;
    fake.fail(&[Some(Fault::Full); 100]);
    let run = import_file(&server, &file, &["--retry-seconds", "1"]).await;
    let error = format!("{:#}", run.ended.unwrap_err());
    assert!(
        error.contains("gave up after 1 s") && error.contains("full"),
        "{error}"
    );
}

#[tokio::test]
async fn bad_rows_are_reported_and_the_others_recorded() {
    let text = FILE
        .replace("2026-11-02,1", "2026-11-02,x")
        .replace("a,s,2026-11-03", "a,nothing,2026-11-03");
    let Setup {
        dir,
        file,
        fake,
        server,
    } = setup(&text).await;
    let rejects = dir.path().join("rejects.csv");
    let run = import_file(&server, &file, &["--rejects", rejects.to_str().unwrap()]).await;
    assert_eq!(run.ended.unwrap(), Ended::Whole);
    assert_eq!(
        (
            run.tally.accepted,
            run.tally.unreadable,
            run.tally.rejected,
            fake.count()
        ),
        (5, 1, 1, 5)
    );
    let written = std::fs::read_to_string(rejects).unwrap();
    let lines: Vec<_> = written
        .lines()
        .skip(1)
        .map(|line| line.split(',').skip(1).take(3).collect::<Vec<_>>())
        .collect();
    assert_eq!(
        lines,
        [["5", "units", "UNREADABLE"], ["6", "", "UNKNOWN_SERVICE"]]
    );
}

#[tokio::test]
async fn strict_stops_at_the_first_bad_row() {
    let Setup {
        dir: _dir,
        file,
        fake,
        server,
    } = setup(&FILE.replace("2026-11-01,2", "2026-11-01,x")).await;
    let run = import_file(&server, &file, &["--strict"]).await;
    assert_eq!(run.ended.unwrap(), Ended::Strict);
    assert_eq!(fake.count(), 2);
}

#[tokio::test]
async fn a_dry_run_sends_nothing() {
    let Setup {
        dir,
        file,
        fake,
        server,
    } = setup(FILE).await;
    let run = import_file(&server, &file, &["--dry-run"]).await;
    assert_eq!(
        (
            run.tally.rows,
            run.tally.accepted,
            *fake.received.lock().unwrap()
        ),
        (7, 0, 0)
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_command_fails_when_a_row_is_not_recorded() {
    let Setup {
        dir: _dir,
        file,
        fake: _,
        server,
    } = setup(&FILE.replace("2026-11-01,2", "2026-11-01,x")).await;
    let arguments = [
        "import",
        file.to_str().unwrap(),
        "--server",
        &server,
        "--quiet",
    ];
    let args = Command::try_parse_from(arguments).unwrap().args;
    let code = import::run(args).await.unwrap();
    assert_eq!(
        format!("{code:?}"),
        format!("{:?}", std::process::ExitCode::FAILURE)
    );
}

#[tokio::test]
async fn export_columns_come_back_in_either_form() {
    let text = "{\"client_id\":\"a\",\"service\":\"s\",\"event_time\":\"2026-11-01T00:00:00Z\",\"idempotency_key\":\"k1\",\"event_id\":\"e\"}\n";
    let Setup {
        dir,
        file: _,
        fake,
        server,
    } = setup(FILE).await;
    let file = dir.path().join("usage.ndjson");
    std::fs::write(&file, text).unwrap();
    let run = import_file(&server, &file, &[]).await;
    assert_eq!(
        (
            run.tally.accepted,
            fake.recorded.lock().unwrap().contains_key("k1")
        ),
        (1, true)
    );
}
