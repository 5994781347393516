//! The measured server: a child process of this binary, so that its CPU time and memory are its own.

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// How long it may take until it serves: the schema is made meanwhile.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to end: its own bound is 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// What its greeting says before the address of the gRPC port, and before the page of its metrics.
const ADDRESS_LABEL: &str = "gRPC";
const METRICS_LABEL: &str = "metrics";

/// A server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
    /// Host and port of the page of its metrics.
    pub http_address: String,
    /// Kept open, so that nothing the server prints fails.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts one over a database, on free loopback ports, and waits until it serves. No setting comes from the
    /// environment: what is measured is what the flags say.
    pub async fn start(database_url: &str, flags: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("this program cannot be found")?);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("METERD_")) {
            command.env_remove(name);
        }
        command
            .args(["serve", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--log=warn"])
            .args(flags)
            // Not on the command line, where everybody could read its password.
            .env("DATABASE_URL", database_url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C is for the benchmark, which then ends its server itself.
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
            tokio::time::timeout(READY_TIMEOUT, greeting).await.context("the server does not get ready")??;
        let (address, http_address) = addresses.context("the server ended before it was ready; its reason is above")?;
        Ok(Self { child, address, http_address, _stdout: stdout })
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it in order.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        }
        let status =
            tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.context("the server does not end")??;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}
