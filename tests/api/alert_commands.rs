//! `meterd alerts` with a running server.

use crate::harness::*;
use crate::subscriptions::raise;
use meterd_engine::clock::Clock;
use meterd_store::database::connect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Maximum time to wait for anything.
const SOON: Duration = Duration::from_secs(20);

fn command(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.arg("alerts").args(arguments).env("METERD_SERVER", address).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn meterd(server: &TestServer, arguments: &[&str]) -> Output {
    command(&server.address, arguments).output().await.unwrap()
}

/// Runs a command that must succeed, and returns its output.
async fn succeed(server: &TestServer, arguments: &[&str]) -> String {
    let output = meterd(server, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A running `alerts tail` and its lines.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(server: &TestServer, arguments: &[&str]) -> Self {
        let mut command = command(&server.address, &["tail", "--json"]);
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(SOON, self.lines.next_line()).await.expect("a line is printed in time");
        serde_json::from_str(&line.unwrap().expect("the tail is running")).unwrap()
    }

    /// Interrupts it, and returns its last messages.
    async fn interrupt(self) -> String {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        let output = tokio::time::timeout(SOON, self.child.wait_with_output()).await.expect("it ends in time").unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_continues_after_a_restart_and_with_its_token_after_an_interrupt() {
    let server = TestServer::start().await;
    let options = connect::options(&server.database_url).unwrap();
    let pool = connect::pool(options, 2);
    let first = raise(&pool, "acme").await;
    let mut tail = Tail::start(&server, &["--client=acme", "--from-start"]);
    let line = tail.next().await;
    assert_eq!(
        (&line["alert"]["alert_id"], &line["change"], &line["sequence"]),
        (&first.into(), &"raised".into(), &1.into())
    );
    let (url, listen) = (server.database_url.clone(), server.address.replace("http://", "--listen="));
    server.stop().await;
    raise(&pool, "other").await;
    let missed = raise(&pool, "acme").await;
    let server = TestServer::replica(&url, &[&listen], Clock::system()).await;
    let line = tail.next().await;
    assert_eq!((&line["alert"]["alert_id"], &line["sequence"]), (&missed.into(), &3.into()));
    let printed = tail.interrupt().await;
    let token = printed.lines().last().unwrap().strip_prefix("to continue here: --resume ").expect(&printed);
    assert_eq!(line["resume_token"], token);

    let next = raise(&pool, "acme").await;
    let mut tail = Tail::start(&server, &["--client=acme", "--resume", token]);
    assert_eq!(tail.next().await["alert"]["alert_id"], next);
    tail.interrupt().await;
    // Of other filters, and one that begins with a hyphen, as a token can.
    for wrong in [token, "-token"] {
        let rejected = meterd(&server, &["tail", "--resume", wrong]).await;
        assert!(!rejected.status.success());
        assert!(String::from_utf8_lossy(&rejected.stderr).contains("RESUME_TOKEN_INVALID"), "{rejected:?}");
    }
    pool.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_are_listed_acknowledged_and_checked() {
    let server = TestServer::start().await;
    assert_eq!(succeed(&server, &["list"]).await, "no alerts\n");
    let (acme, other) = (raise(&server.pool, "acme").await, raise(&server.pool, "other").await);
    let ids = |text: String| -> Vec<String> {
        lines(&text).iter().map(|alert| alert["alert_id"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(ids(succeed(&server, &["list", "--json"]).await), [&*other, &acme]);
    assert_eq!(ids(succeed(&server, &["list", "--json", "--limit=1"]).await), [&*other]);
    assert_eq!(ids(succeed(&server, &["list", "--json", "--client=acme"]).await), [&*acme]);
    for none in ["--type=spike", "--client=nobody"] {
        assert_eq!(ids(succeed(&server, &["list", "--json", none]).await), [""; 0]);
    }
    let printed = succeed(&server, &["ack", &acme, "--by=ana"]).await;
    assert!(printed.starts_with("acknowledged by ana ") && printed.ends_with("acme has reached 100\n"), "{printed}");
    assert_eq!(ids(succeed(&server, &["list", "--json", "--unacknowledged"]).await), [&*other]);
    let table = succeed(&server, &["list", "--open", "--min-severity=critical"]).await;
    assert!(table.contains("CRITICAL") && table.contains("acknowledged by ana") && table.contains(&other), "{table}");
    let unknown = meterd(&server, &["ack", "nothing", "--by=ana"]).await;
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("ALERT_NOT_FOUND"));

    server.track(event("acme", "social", "1")).await.unwrap();
    let listed = lines(&succeed(&server, &["list", "--json", "--type=unpriced", "--type=silence"]).await);
    assert_eq!((listed.len(), &listed[0]["type"], &listed[0]["service"]), (1, &"unpriced".into(), &"social".into()));
    assert_eq!((&listed[0]["current"], &listed[0]["currency"]), (&"1".into(), &Value::Null));
    let checked = succeed(&server, &["check", "--client=acme", "--json"]).await;
    assert_eq!(lines(&checked)[0]["checked_count"], 1);
    assert!(succeed(&server, &["check"]).await.starts_with("1 clients checked: "));
    server.stop().await;
}
