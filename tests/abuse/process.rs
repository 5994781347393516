//! The real binary with its own PostgreSQL, and its use of the machine.

use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{TrackUsageRequest, UsageEvent};
use nix::sys::resource::{Resource, getrlimit};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Request;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

/// A server that has not stopped within this time hangs.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// A server process with its own data directory. Both end with the test.
pub struct Process {
    data_dir: PathBuf,
    ports: [u16; 2],
    server: Mutex<Child>,
    /// Token of the well-behaved caller, or empty if the server does not require keys.
    token: String,
}

impl Process {
    /// Starts a server and waits until it serves.
    pub async fn start(flags: &[&str]) -> Self {
        let data_dir = tempfile::Builder::new().prefix("meterd-abuse-").tempdir().unwrap().keep();
        Self::start_over(data_dir, flags, String::new()).await
    }

    /// Starts a server that requires keys. Also returns a second key, which is not the well-behaved caller's.
    pub async fn start_with_keys(flags: &[&str]) -> (Self, String) {
        let data_dir = tempfile::Builder::new().prefix("meterd-abuse-").tempdir().unwrap().keep();
        let [token, other] = ["well-behaved", "other"].map(|name| make_key(&data_dir, name));
        let flags: Vec<&str> = ["--auth=keys"].into_iter().chain(flags.iter().copied()).collect();
        (Self::start_over(data_dir, &flags, token).await, other)
    }

    async fn start_over(data_dir: PathBuf, flags: &[&str], token: String) -> Self {
        let ports = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let log = std::fs::File::options().create(true).append(true).open(data_dir.with_extension("log")).unwrap();
        let server = Command::new(env!("CARGO_BIN_EXE_meterd"))
            .arg("serve")
            .arg(format!("--data-dir={}", data_dir.display()))
            .arg(format!("--listen=127.0.0.1:{}", ports[0]))
            .arg(format!("--http-listen=127.0.0.1:{}", ports[1]))
            .args(flags)
            .env_remove("DATABASE_URL")
            // This variable is for the tests. The server would reject it as a misspelled setting.
            .env_remove("METERD_TEST_STOPS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let process = Self { data_dir, ports, server: Mutex::new(server), token };
        let deadline = Instant::now() + Duration::from_secs(60);
        while process.track("first").await.is_err() {
            assert!(Instant::now() < deadline, "the server did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        process
    }

    /// Starts the server again with the same data after a stop.
    pub async fn start_again(&mut self, flags: &[&str]) {
        let again = Self::start_over(self.data_dir.clone(), flags, self.token.clone()).await;
        // The stopped process must not remove its data directory, which now belongs to the new one.
        let mut stopped = std::mem::replace(self, again);
        stopped.data_dir = PathBuf::new();
    }

    /// Returns the gRPC address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// Returns a channel with its own connection.
    pub fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address())).unwrap();
        endpoint.connect_timeout(Duration::from_secs(5)).timeout(Duration::from_secs(10)).connect_lazy()
    }

    /// Records one event over a new connection.
    pub async fn track(&self, key: &str) -> Result<(), tonic::Status> {
        track(&mut self.usage(), key).await
    }

    /// Returns the usage client of the well-behaved caller.
    pub fn usage(&self) -> UsageServiceClient<Authorized> {
        UsageServiceClient::with_interceptor(self.channel(), BearerToken(self.token.clone()))
    }

    /// Checks the health over a new connection.
    pub async fn check_health(&self) -> Result<(), tonic::Status> {
        HealthClient::new(self.channel()).check(HealthCheckRequest::default()).await.map(drop)
    }

    /// Lists the services by reflection as the well-behaved caller.
    pub async fn list_services(&self) -> Result<(), tonic::Status> {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let mut client = ServerReflectionClient::with_interceptor(self.channel(), BearerToken(self.token.clone()));
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
        answers.message().await?.map(drop).ok_or_else(|| tonic::Status::unknown("no answer"))
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data_dir.with_extension("log")).unwrap()
    }

    fn pid(&self) -> u32 {
        self.server.lock().unwrap().id()
    }

    /// Returns the resident memory in MiB.
    pub fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    /// Returns the number of open file descriptors.
    pub fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Returns the number of open connections on the gRPC port.
    pub async fn connections(&self) -> usize {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[1])).await.unwrap();
        let authorization =
            if self.token.is_empty() { String::new() } else { format!("Authorization: Bearer {}\r\n", self.token) };
        let request = format!("GET /metrics HTTP/1.1\r\nHost: test\r\n{authorization}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix("meterd_connections{port=\"grpc\"} "));
        line.expect("the gauge exists").parse().unwrap()
    }

    /// Limits the number of open files. `None` removes the limit.
    pub fn limit_files(&self, files: Option<usize>) {
        let soft = files.map_or_else(|| getrlimit(Resource::RLIMIT_NOFILE).unwrap().1, |files| files as u64);
        let (pid, limit) = (self.pid().to_string(), format!("--nofile={soft}:"));
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    }

    /// Returns the processor time that it has used.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        // User and system time in hundredths of a second.
        Duration::from_millis(fields[11..=12].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
    }

    /// Sends a signal to the server.
    pub fn signal(&self, name: &str) {
        let args = [format!("-{name}"), self.pid().to_string()];
        assert!(Command::new("kill").args(args).status().unwrap().success());
    }

    /// Stops it with SIGTERM. Returns the exit code and the time that it took.
    pub async fn stop(&self) -> (Option<i32>, Duration) {
        let started = Instant::now();
        self.signal("TERM");
        loop {
            if let Some(status) = self.server.lock().unwrap().try_wait().unwrap() {
                return (status.code(), started.elapsed());
            }
            assert!(started.elapsed() < STOPPED_WITHIN, "the server did not stop");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let server = self.server.get_mut().unwrap();
        drop(server.kill());
        drop(server.wait());
        if self.data_dir.as_os_str().is_empty() {
            return;
        }
        if std::thread::panicking() {
            println!("log of the server:\n{}", self.log());
        }
        if let Ok(file) = std::fs::read_to_string(self.data_dir.join("postgres/postmaster.pid")) {
            let pid = file.lines().next().unwrap_or_default();
            drop(Command::new("kill").args(["-QUIT", pid]).stderr(Stdio::null()).status());
            std::thread::sleep(Duration::from_millis(500));
        }
        drop(std::fs::remove_dir_all(&self.data_dir));
        drop(std::fs::remove_file(self.data_dir.with_extension("log")));
    }
}

/// Interceptor that sends an API key, if there is one.
#[derive(Clone)]
pub struct BearerToken(pub String);

/// A channel that sends an API key.
pub type Authorized = InterceptedService<Channel, BearerToken>;

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        if !self.0.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {}", self.0).parse().unwrap());
        }
        Ok(request)
    }
}

fn make_key(data_dir: &Path, name: &str) -> String {
    let created = Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args(["keys", "create", name, "--scope=admin", "--all-clients", "--direct", "--quiet"])
        .args(["--requests-per-second=1000000", &format!("--data-dir={}", data_dir.display())])
        .env_remove("DATABASE_URL")
        .output()
        .unwrap();
    assert!(created.status.success(), "{created:?}");
    String::from_utf8(created.stdout).unwrap().trim().into()
}

/// Records one event.
pub async fn track(usage: &mut UsageServiceClient<Authorized>, key: &str) -> Result<(), tonic::Status> {
    let event = UsageEvent {
        client_id: "well-behaved".into(),
        service: "sms".into(),
        units: "1".into(),
        idempotency_key: key.into(),
        ..Default::default()
    };
    usage.track_usage(TrackUsageRequest { event: Some(event) }).await.map(drop)
}
