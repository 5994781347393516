//! A meterd process behind a proxy.

use crate::database::Database;
use crate::proxy::{Proxy, Target};
use crate::scenario_dir::ScenarioDir;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Maximum time of a start, including the recovery of a database.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum time of a normal stop: the server's own limit, and the last checkpoint of PostgreSQL.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const CHECK_EVERY: Duration = Duration::from_millis(10);

/// A replica, which can be restarted.
pub struct Replica {
    name: String,
    arguments: Vec<String>,
    database_url: Option<String>,
    /// Its standard output and its log.
    out: PathBuf,
    log: PathBuf,
    running: Mutex<Option<Running>>,
    /// The proxy between callers and the replica.
    pub proxy: Proxy,
    /// The proxy between the replica and its database, if there is one.
    pub database_proxy: Option<Proxy>,
}

struct Running {
    child: Child,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Replica {
    /// Starts a replica that runs its own database in this directory.
    pub async fn with_data_dir(scenario_dir: &ScenarioDir, data_dir: &std::path::Path, flags: &[&str]) -> Self {
        Self::start(scenario_dir, 0, vec![format!("--data-dir={}", data_dir.display())], None, flags).await
    }

    /// Starts a replica that reaches a database through a proxy.
    pub async fn on_database(scenario_dir: &ScenarioDir, number: usize, database: &Database, flags: &[&str]) -> Self {
        let proxy = Proxy::start(database.target()).await;
        Self::start(scenario_dir, number, vec![], Some(proxy), flags).await
    }

    async fn start(
        scenario_dir: &ScenarioDir,
        number: usize,
        mut arguments: Vec<String>,
        database_proxy: Option<Proxy>,
        flags: &[&str],
    ) -> Self {
        let name = format!("replica-{number}");
        arguments.extend(["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"].map(String::from));
        arguments.extend(flags.iter().map(|flag| flag.to_string()));
        let url = |proxy: &Proxy| format!("postgres://meterd@{}/meterd?sslmode=disable", proxy.address);
        let replica = Self {
            out: scenario_dir.path(&format!("{name}.out")),
            log: scenario_dir.path(&format!("{name}.log")),
            name,
            arguments,
            database_url: database_proxy.as_ref().map(url),
            running: Mutex::default(),
            proxy: Proxy::start(Target::Nowhere).await,
            database_proxy,
        };
        replica.launch(scenario_dir).await;
        replica
    }

    /// Returns the address for callers.
    pub fn address(&self) -> String {
        format!("http://{}", self.proxy.address)
    }

    pub fn pid(&self) -> u32 {
        self.running.lock().unwrap().as_ref().expect("the replica is running").child.id()
    }

    /// Starts the process and waits until it serves. Starts it again if it ends by itself.
    pub async fn launch(&self, scenario_dir: &ScenarioDir) {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut child = self.spawn(scenario_dir);
        let (grpc, http) = loop {
            if let Some(addresses) = self.printed_addresses() {
                break addresses;
            }
            assert!(Instant::now() < deadline, "{} did not start", self.name);
            if child.try_wait().unwrap().is_some() {
                child = self.spawn(scenario_dir);
            }
            tokio::time::sleep(CHECK_EVERY).await;
        };
        *self.running.lock().unwrap() = Some(Running { child, grpc, http });
        self.proxy.set_target(Target::Tcp(grpc));
    }

    fn spawn(&self, scenario_dir: &ScenarioDir) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
        command.arg("serve").args(&self.arguments).env_remove("DATABASE_URL");
        // These variables are for the tests. The server would reject them as misspelled settings.
        for name in ["METERD_FAULTS_SEED", "METERD_FAULTS_COUNT", "METERD_SOAK_SECONDS"] {
            command.env_remove(name);
        }
        if let Some(url) = &self.database_url {
            command.env("DATABASE_URL", url);
        }
        let out = File::create(&self.out).unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(log).spawn().unwrap();
        scenario_dir.add_process(&self.name, child.id());
        child
    }

    /// Returns the addresses that the server prints when it is ready.
    fn printed_addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        let after = |label: &str| text.split_once(label)?.1.split_whitespace().next().map(String::from);
        let http = after("metrics http://")?.trim_end_matches("/metrics").parse().ok()?;
        Some((after("gRPC")?.parse().ok()?, http))
    }

    /// Returns the largest memory that the process has used, in MiB.
    pub fn memory_peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let peak = status.split_once("VmHWM:").unwrap().1.split_whitespace().next().unwrap();
        peak.parse::<u64>().unwrap() / 1024
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&self) {
        let mut running = self.running.lock().unwrap().take().expect("the replica is running");
        running.child.kill().unwrap();
        running.child.wait().unwrap();
    }

    /// Stops the process with SIGTERM and returns the exit code.
    pub async fn stop(&self, scenario_dir: &ScenarioDir) -> Option<i32> {
        let mut running = self.running.lock().unwrap().take().expect("the replica is running");
        assert!(Command::new("kill").args(["-TERM", &running.child.id().to_string()]).status().unwrap().success());
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(status) = running.child.try_wait().unwrap() {
                scenario_dir.remove_process(&self.name);
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// Counts the occurrences of a text in the log.
    pub fn count_in_log(&self, text: &str) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches(text).count()
    }

    /// Returns its gRPC port.
    pub fn grpc_port(&self) -> u16 {
        self.running.lock().unwrap().as_ref().expect("the replica is running").grpc.port()
    }

    /// Returns the sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let address = self.running.lock().unwrap().as_ref().expect("the replica is running").http;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: meterd\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        let value = |line: &str| {
            let (metric, value) = line.rsplit_once(' ')?;
            (metric.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
        };
        page.lines().filter_map(value).sum()
    }
}
