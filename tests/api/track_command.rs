//! `meterd track`: how long it retries, and what it prints.

use crate::commands::{meterd, succeed};
use crate::harness::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_server_is_retried_for_the_requested_time() {
    let server = TestServer::start().await;
    let stalled = server.stall_writers().await;
    for seconds in [1, 3] {
        let started = Instant::now();
        let retry = format!("--retry-seconds={seconds}");
        let output = meterd(&server, &["track", "acme", "sms", "1", "--key=k", &retry]).await;
        let (duration, printed) = (started.elapsed(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(1), "{printed}");
        // A single call may take ten seconds.
        assert!(duration < Duration::from_secs(seconds + 3), "{duration:?}: {printed}");
        assert!(printed.contains("repeat the command with --key k"), "{printed}");
    }
    drop(stalled);
    let settled = succeed(&server, &["track", "acme", "sms", "1", "--key=k"]).await;
    assert!(settled.contains("ACCEPTED") || settled.contains("DUPLICATE"), "{settled}");
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_track_prints_its_generated_key() {
    let server = TestServer::start().await;
    let stalled = server.stall_writers().await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.args(["track", "acme", "sms", "1"]).env("METERD_SERVER", &server.address);
    let process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_for_stalled_writer().await;
    kill(Pid::from_raw(process.id().unwrap() as i32), Signal::SIGINT).unwrap();
    let output = process.wait_with_output().await.unwrap();
    drop(stalled);
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{printed}");
    let key = printed.split("--key ").nth(1).unwrap_or_else(|| panic!("{printed}")).trim().to_owned();
    let settled = succeed(&server, &["track", "acme", "sms", "1", "--key", &key]).await;
    assert!(settled.contains("ACCEPTED") || settled.contains("DUPLICATE"), "{settled}");
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suggestions_of_a_command_use_only_its_own_flags() {
    let server = TestServer::start().await;
    for (arguments, code) in [
        (&["track", "acme", "sms", "1", "--time=12.11.2026"][..], 2),
        (&["track", "acme", "sms", "1", "--time=11/12/2026"], 2),
        (&["track", "acme", "sms", "1", "--time=yesterday"], 2),
        (&["keys", "create", "x", "--scope=read", "--all-clients", "--expires=12.11.2026"], 2),
    ] {
        let output = meterd(&server, arguments).await;
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{printed}");
        assert!(printed.contains("must be a time such as") && !printed.contains("--time-format"), "{printed}");
    }
    let output = meterd(&server, &["track", "acme", "sms", "1", "--time=2020-01-01"]).await;
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains("days back") && printed.contains("`meterd import FILE --backfill`"), "{printed}");
    server.stop().await;
}
