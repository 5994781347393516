//! The measured server: a child process, so that its CPU time and memory can be read.

use super::meterd_binary::MeterdBinary;
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

/// Longest time until the server is ready, with the creation of the schema.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time until the server has stopped: its own bound is 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Words before the address of the gRPC port and before the URL of the metrics in what the server prints.
const ADDRESS_LABEL: &str = "gRPC";
const METRICS_LABEL: &str = "metrics";

/// A running server. Dropping it kills the process.
pub struct Server {
    child: Child,
    pub address: String,
    /// Host and port of `/metrics`.
    pub http_address: String,
    /// Kept open, so that the server can still print.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts a server over a database, on free loopback ports, and waits until it is ready.
    pub async fn start(meterd: &MeterdBinary, database_url: &str) -> anyhow::Result<Self> {
        let mut command = meterd.command();
        command
            .args(["serve", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--log=warn"])
            .args(&meterd.flags)
            // Not as a flag: the command line is visible to all users, and the URL may hold a password.
            .env("DATABASE_URL", database_url)
            // The connections of the bench do not reconnect. A flag overrides the variable.
            .env("METERD_CONNECTION_AGE_SECONDS", "864000")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C reaches only the bench, which then stops the server.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().context("the server cannot be started")?;
        let mut stdout = BufReader::new(child.stdout.take().context("the server has no output")?).lines();
        let greeting = async {
            let mut address = None;
            while let Some(line) = stdout.next_line().await? {
                let words: Vec<&str> = line.split_whitespace().collect();
                let after =
                    |label| Some(words[words.iter().position(|word| *word == label)? + 1..].first()?.to_string());
                if let Some(grpc) = after(ADDRESS_LABEL) {
                    address = Some(format!("http://{grpc}"));
                } else if let (Some(grpc), Some(page)) = (&address, after(METRICS_LABEL)) {
                    let http = page.trim_start_matches("http://").trim_end_matches("/metrics");
                    return Ok(Some((grpc.clone(), http.to_owned())));
                }
            }
            Ok::<_, std::io::Error>(None)
        };
        let addresses =
            tokio::time::timeout(READY_TIMEOUT, greeting).await.context("the server was not ready in time")??;
        let (address, http_address) = addresses.context("the server ended before it was ready; its reason is above")?;
        Ok(Self { child, address, http_address, _stdout: stdout })
    }

    /// The process id, unless the server has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Stops the server and waits until it has stopped.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        }
        let status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .context("the server did not stop in time")??;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}
