//! A real meterd process behind a proxy.

use crate::place::Place;
use crate::proxy::{Proxy, Target};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a start may take, with the recovery of a database.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long an orderly stop may take: the server's own bound for its work, and PostgreSQL's last checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A replica. It starts again as often as it is told to.
pub struct Replica {
    name: String,
    arguments: Vec<String>,
    database_url: Option<String>,
    /// What it says to people and to the log.
    out: PathBuf,
    log: PathBuf,
    running: Mutex<Option<Running>>,
    /// Between it and its callers.
    pub proxy: Proxy,
    /// Between it and its database, where there is one.
    pub database_proxy: Option<Proxy>,
}

struct Running {
    child: Child,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Replica {
    /// Starts one that keeps its database in this directory.
    pub async fn with_data_dir(place: &Place, data_dir: &std::path::Path, flags: &[&str]) -> Self {
        Self::start(place, 0, vec![format!("--data-dir={}", data_dir.display())], None, flags).await
    }

    /// Starts one on the database behind a socket.
    pub async fn on_socket(place: &Place, number: usize, socket: PathBuf, flags: &[&str]) -> Self {
        let proxy = Proxy::start(Target::Unix(socket)).await;
        Self::start(place, number, vec![], Some(proxy), flags).await
    }

    async fn start(
        place: &Place,
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
            out: place.path(&format!("{name}.out")),
            log: place.path(&format!("{name}.log")),
            name,
            arguments,
            database_url: database_proxy.as_ref().map(url),
            running: Mutex::default(),
            proxy: Proxy::start(Target::Nowhere).await,
            database_proxy,
        };
        replica.launch(place).await;
        replica
    }

    /// Where callers call.
    pub fn address(&self) -> String {
        format!("http://{}", self.proxy.address)
    }

    pub fn pid(&self) -> u32 {
        self.running.lock().unwrap().as_ref().expect("it runs").child.id()
    }

    /// Starts the process, and again when it ends by itself, until it serves.
    pub async fn launch(&self, place: &Place) {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut child = self.spawn(place);
        let (grpc, http) = loop {
            if let Some(addresses) = self.greeting() {
                break addresses;
            }
            assert!(Instant::now() < deadline, "{} did not start", self.name);
            if child.try_wait().unwrap().is_some() {
                child = self.spawn(place);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        *self.running.lock().unwrap() = Some(Running { child, grpc, http });
        self.proxy.lead_to(Target::Tcp(grpc));
    }

    fn spawn(&self, place: &Place) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
        command.arg("serve").args(&self.arguments).env_remove("DATABASE_URL");
        // Of the tests: to a server they would be misspelt settings.
        for name in ["METERD_FAULTS_SEED", "METERD_FAULTS_COUNT", "METERD_SOAK_SECONDS"] {
            command.env_remove(name);
        }
        if let Some(url) = &self.database_url {
            command.env("DATABASE_URL", url);
        }
        let out = File::create(&self.out).unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(log).spawn().unwrap();
        place.note_process(&self.name, child.id());
        child
    }

    /// The addresses that a server tells once it is ready.
    fn greeting(&self) -> Option<(SocketAddr, SocketAddr)> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        let after = |label: &str| text.split_once(label)?.1.split_whitespace().next().map(String::from);
        let http = after("metrics http://")?.trim_end_matches("/metrics").parse().ok()?;
        Some((after("gRPC")?.parse().ok()?, http))
    }

    /// kill -9.
    pub fn kill(&self) {
        let mut running = self.running.lock().unwrap().take().expect("it runs");
        running.child.kill().unwrap();
        running.child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub async fn stop(&self, place: &Place) -> Option<i32> {
        let mut running = self.running.lock().unwrap().take().expect("it runs");
        assert!(Command::new("kill").args(["-TERM", &running.child.id().to_string()]).status().unwrap().success());
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(status) = running.child.try_wait().unwrap() {
                place.forget_process(&self.name);
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How many lines of its log say this.
    pub fn said(&self, text: &str) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches(text).count()
    }

    /// Its port of calls.
    pub fn grpc_port(&self) -> u16 {
        self.running.lock().unwrap().as_ref().expect("it runs").grpc.port()
    }

    /// The sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let address = self.running.lock().unwrap().as_ref().expect("it runs").http;
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
