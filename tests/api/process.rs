//! The server and the commands as processes: signals, output that nobody reads, inherited environments, and suggested
//! commands.

use crate::harness::*;
use meterd_engine::clock::Clock;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far less than the 20 s that a stop may take, and more than it takes on a busy machine.
const PROMPT: Duration = Duration::from_secs(10);
/// The exit code that a shell reports for a program ended by SIGPIPE.
const READER_GONE: Option<i32> = Some(141);

/// Creates a directory that the user of PostgreSQL can enter if this process runs as root.
fn open_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("meterd-process-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

fn meterd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("METERD_")) {
        command.env_remove(name);
    }
    command.args(arguments).env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A server process.
struct Server {
    child: Child,
    /// The file with its standard output.
    out: TempDir,
    /// The pid file of its PostgreSQL, if it runs its own.
    pid_file: Option<PathBuf>,
}

impl Server {
    /// Starts a server on a database of the tests.
    async fn start(flags: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = meterd(&["serve", "--allow-non-durable-database"]);
        command.env("DATABASE_URL", fresh_database().await).args(flags);
        Self::spawn(command, None, prepare)
    }

    /// Starts a server with its own PostgreSQL.
    fn start_own(data_dir: &Path, flags: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = meterd(&["serve"]);
        command.arg("--data-dir").arg(data_dir).args(flags);
        Self::spawn(command, Some(data_dir.join("postgres/postmaster.pid")), prepare)
    }

    fn spawn(mut command: Command, pid_file: Option<PathBuf>, prepare: impl FnOnce(&mut Command)) -> Self {
        let out = tempfile::tempdir().unwrap();
        command.args(["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]);
        command.stdout(File::create(out.path().join("out")).unwrap()).stderr(Stdio::null());
        prepare(&mut command);
        Self { child: command.spawn().unwrap(), out, pid_file }
    }

    /// Waits for its first output and returns it.
    fn greeting(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = fs::read_to_string(self.out.path().join("out")).unwrap();
            if text.ends_with("\n\n") {
                return text;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "the server printed nothing: {ended:?} {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn address(&mut self) -> String {
        let greeting = self.greeting();
        greeting.split_once("gRPC").unwrap().1.split_whitespace().next().unwrap().to_owned()
    }

    fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Returns the postmaster's process id, if one runs.
    fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.pid_file.as_ref()?).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Waits until it ends. Returns the status and the time.
    fn ended(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < Duration::from_secs(60), "the server did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(pid) = self.postmaster() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// Starts a server, stops it when it is ready, and returns its log.
fn log_of_start(database_url: &str) -> String {
    let mut command = meterd(&["serve", "--allow-non-durable-database"]);
    command.env("DATABASE_URL", database_url);
    let mut server = Server::spawn(command, None, |command| {
        command.stderr(Stdio::piped());
    });
    server.greeting();
    server.signal(Signal::SIGTERM);
    let mut log = String::new();
    server.stderr().read_to_string(&mut log).unwrap();
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_warns_once_of_built_in_prices_that_are_old() {
    let server = TestServer::start().await;
    let today = Clock::system().now().date_naive();
    for (date, expected) in [
        (format!("'{}'", today - chrono::Days::new(181)), Some(("WARN", "\"age_days\":181"))),
        (format!("'{}'", today - chrono::Days::new(180)), None),
        ("NULL".to_owned(), Some(("INFO", "of an earlier release"))),
    ] {
        server.sql(&format!("UPDATE deployment SET built_in_list_date = {date}")).await;
        let log = log_of_start(&server.database_url);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("built-in prices")).collect();
        assert_eq!(lines.len(), usize::from(expected.is_some()), "{date}: {log}");
        for (line, (level, text)) in lines.iter().zip(expected) {
            assert!(line.contains(level) && line.contains(text) && line.contains("--built-in"), "{line}");
        }
    }
    server.stop().await;
}

fn track(address: &str) -> Output {
    meterd(&["track", "acme", "sms", "1", "--server", address]).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_continues_when_the_reader_of_its_log_exits() {
    let mut server = Server::start(&["--log=debug"], |command| {
        command.stderr(Stdio::piped());
    })
    .await;
    let mut log = BufReader::new(server.stderr());
    log.read_line(&mut String::new()).unwrap();
    drop(log);
    let address = server.address();
    for _ in 0..3 {
        let tracked = track(&address);
        assert!(tracked.status.success(), "{}", output_text(&tracked));
    }
    server.signal(Signal::SIGTERM);
    let (status, duration) = server.ended();
    assert!(status.success() && duration < PROMPT, "{status:?} after {duration:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stalls_neither_calls_nor_the_stop() {
    let mut server = Server::start(&["--log=trace"], |command| {
        command.stderr(Stdio::piped());
    })
    .await;
    let _log = server.stderr();
    let address = server.address();
    // Fills what the lines of the start have left of the pipe.
    let path = format!("/proc/{}/fd/2", server.child.id());
    let mut pipe = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).unwrap();
    let full = std::iter::repeat_with(|| pipe.write(b"\n")).find_map(Result::err);
    assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
    for _ in 0..3 {
        let started = Instant::now();
        let tracked = track(&address);
        assert!(tracked.status.success() && started.elapsed() < PROMPT, "{}", output_text(&tracked));
    }
    server.signal(Signal::SIGTERM);
    let (status, duration) = server.ended();
    assert!(status.success() && duration < PROMPT, "{status:?} after {duration:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_works_although_nobody_reads_its_output() {
    let mut server = Server::start(&[], |command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    })
    .await;
    drop(server.child.stdout.take());
    let mut log = BufReader::new(server.stderr()).lines();
    let is_up = |line: &str| line.contains("notifications:");
    assert!(log.any(|line| is_up(&line.unwrap())), "the server did not start");
    std::thread::sleep(Duration::from_millis(500));
    server.signal(Signal::SIGTERM);
    assert!(server.ended().0.success());
}

#[test]
fn a_closed_terminal_stops_the_server_and_its_postgresql_normally() {
    let dir = open_dir();
    let mut server = Server::start_own(&dir.path().join("data"), &[], |_| ());
    let address = server.address();
    assert!(track(&address).status.success());
    let postmaster = server.postmaster().unwrap();
    server.signal(Signal::SIGHUP);
    let (status, duration) = server.ended();
    assert!(status.success() && duration < PROMPT, "{status:?} after {duration:?}");
    assert!(!Path::new(&format!("/proc/{postmaster}")).exists(), "PostgreSQL must be stopped, too");
    assert_eq!(server.postmaster(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_under_nohup_outlives_its_terminal() {
    let program = env!("CARGO_BIN_EXE_meterd");
    let mut command = Command::new("sh");
    // As nohup does.
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", program, "serve", "--allow-non-durable-database"]);
    command.env("DATABASE_URL", fresh_database().await).stdin(Stdio::null());
    let mut server = Server::spawn(command, None, |_| ());
    let address = server.address();
    server.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(track(&address).status.success());
    server.signal(Signal::SIGTERM);
    assert!(server.ended().0.success());
}

#[test]
fn postgresql_inherits_no_secret_of_the_environment() {
    let dir = open_dir();
    let secrets = [
        ("METERD_API_KEY", "mtr_hunter2"),
        ("METERD_SMTP_URL", "smtp://u:hunter2@localhost"),
        ("METERD_SMTP_FROM", "a@b.example"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("PGPASSWORD", "hunter2"),
        ("PGAPPNAME", "hunter2"),
    ];
    let mut server = Server::start_own(&dir.path().join("data"), &[], |command| {
        command.envs(secrets);
    });
    assert!(track(&server.address()).status.success());
    let postmaster = server.postmaster().unwrap();
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let processes = children.split_whitespace().map(String::from).chain([postmaster.to_string()]);
    let mut seen = 0;
    for process in processes {
        let Ok(environment) = fs::read(format!("/proc/{process}/environ")) else { continue };
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let names: Vec<_> =
            environment.split('\0').filter_map(|entry| entry.split_once('=')).map(|(name, _)| name).collect();
        assert!(!environment.contains("hunter2"), "{names:?}");
        let strange = names.iter().find(|name| name.starts_with("METERD_") || name.starts_with("AWS_"));
        assert_eq!(strange, None, "{names:?}");
        assert!(!names.contains(&"PGPASSWORD") && !names.contains(&"PGAPPNAME"), "{names:?}");
        assert!(!environment.starts_with("PATH=") || names.contains(&"LC_ALL"), "{names:?}");
        seen += 1;
    }
    assert!(seen > 1);
    server.signal(Signal::SIGTERM);
    assert!(server.ended().0.success());
}

/// Runs a command whose reader exits before the command prints anything.
fn unread(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_ends_silently_when_its_reader_exits() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (rows, now) = (folder.path().join("rows.csv"), server.clock.now().to_rfc3339());
    fs::write(&rows, format!("client_id,service,units,event_time\nacme,sms,1,{now}\n")).unwrap();
    let rows = rows.to_str().unwrap();
    let month = server.clock.now().format("%Y-%m").to_string();
    let commands: [&[&str]; 16] = [
        &["track", "acme", "sms", "1"],
        &["usage", "acme"],
        &["usage", "acme", "--json"],
        &["import", rows, "--quiet"],
        &["import", rows, "--quiet", "--json"],
        &["export", "--quiet"],
        &["export", "--quiet", "--format=ndjson"],
        &["verify"],
        &["rebuild", "--month", &month],
        &["alerts", "list"],
        &["alerts", "check"],
        &["jobs"],
        &["keys", "list"],
        &["audit"],
        &["notifications", "list"],
        &["serve", "--print-config"],
    ];
    for arguments in commands {
        let mut command = meterd(arguments);
        command.env("METERD_SERVER", &server.address).env("DATABASE_URL", &server.database_url);
        let output = unread(command);
        assert_eq!((output.status.code(), output_text(&output).as_str()), (READER_GONE, ""), "{arguments:?}");
    }
    // A key that could not be printed is reported.
    let mut command = meterd(&["keys", "create", "ops", "--scope=read", "--all-clients"]);
    command.env("METERD_SERVER", &server.address);
    let output = unread(command);
    assert_eq!(output.status.code(), READER_GONE);
    assert!(output_text(&output).contains("keys revoke"), "{}", output_text(&output));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_an_error_of_commands_that_print() {
    let server = TestServer::start().await;
    server.track(event("acme", "sms", "1")).await.unwrap();
    for arguments in [&["usage", "acme"][..], &["export", "--quiet"]] {
        let mut command = meterd(arguments);
        command.env("METERD_SERVER", &server.address).stdout(File::create("/dev/full").unwrap());
        let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            output_text(&output).contains("cannot write to standard output: No space left"),
            "{}",
            output_text(&output)
        );
    }
    server.stop().await;
}

#[test]
fn a_data_directory_without_access_is_reported_with_the_fix() {
    let dir = open_dir();
    let nobody = 65_534;
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let run = |data_dir: &Path, flags: &[&str]| {
        let mut command = meterd(&["serve", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]);
        command.args(flags).arg("--data-dir").arg(data_dir).current_dir("/");
        // Root has access to everything.
        if geteuid().is_root() {
            command.uid(nobody).gid(nobody);
        }
        let output = command.output().unwrap();
        assert!(!output.status.success());
        output_text(&output)
    };
    if geteuid().is_root() {
        std::os::unix::fs::chown(&closed, Some(nobody), Some(nobody)).unwrap();
    }
    for mode in [0o500, 0o300, 0o600, 0o000] {
        fs::set_permissions(&closed, Permissions::from_mode(mode)).unwrap();
        for flags in [&[][..], &["--check"]] {
            let rejected = run(&closed, flags);
            let fix = format!("chmod u+rwX {}", closed.display());
            assert!(rejected.contains(&format!("the mode is {mode:04o}")) && rejected.contains(&fix), "{rejected}");
        }
    }
    fs::set_permissions(&closed, Permissions::from_mode(0o500)).unwrap();
    for flags in [&[][..], &["--check"]] {
        let rejected = run(&closed.join("data"), flags);
        assert!(rejected.contains("may not create it in") && rejected.contains("install -d"), "{rejected}");
    }
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
}

/// Writes the files of a server whose certificate is only for `localhost`, and of the authority that signed it.
fn write_certificate(dir: &Path) -> [PathBuf; 2] {
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let cert = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    let files = ["my cert.pem", "my key.pem"].map(|name| dir.join(name));
    fs::write(&files[0], cert + &authority_pem).unwrap();
    fs::write(&files[1], key.serialize_pem()).unwrap();
    files
}

/// Runs the lines in a shell.
fn paste(lines: &str) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", lines]).stdin(Stdio::null()).current_dir("/");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("METERD_")) {
        shell.env_remove(name);
    }
    let output = shell.env_remove("DATABASE_URL").output().unwrap();
    assert!(output.status.success(), "{lines}: {}", output_text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn suggested_commands_work_with_keys_and_tls() {
    let dir = open_dir();
    let data_dir = dir.path().join("my data");
    let [cert, key] = write_certificate(dir.path());
    let (cert, key) = (format!("--tls-cert={}", cert.display()), format!("--tls-key={}", key.display()));
    let flags = ["--auth=keys", &cert, &key];

    // Without a key, the server does not start and prints a command that creates one.
    let mut first = meterd(&["serve", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]);
    let rejected = output_text(&first.arg("--data-dir").arg(&data_dir).args(flags).output().unwrap());
    let command = rejected.split('`').find(|part| part.contains("keys create")).unwrap_or_else(|| panic!("{rejected}"));
    let created = paste(command);
    assert!(created.contains("mtr_") && created.contains("serve --auth keys --data-dir"), "{created}");

    let mut server = Server::start_own(&data_dir, &flags, |_| ());
    let greeting = server.greeting();
    let commands = greeting.lines().skip(4).filter(|line| line.starts_with("  "));
    let (grpcurl, meterd): (Vec<&str>, Vec<&str>) =
        commands.partition(|line| line.contains("grpcurl") || line.contains("TrackUsage"));
    let printed = paste(&meterd.join("\n"));
    assert!(printed.contains("ACCEPTED") && printed.contains("acme  "), "{greeting}: {printed}");
    let grpcurl = grpcurl.join("\n");
    for part in ["-cacert", "authorization: Bearer $METERD_API_KEY", "localhost:"] {
        assert!(grpcurl.contains(part), "no {part} in {grpcurl}");
    }
    assert!(greeting.contains("https://localhost:"), "{greeting}");
    server.signal(Signal::SIGTERM);
    assert!(server.ended().0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_requires_certificates_does_not_say_that_anybody_may_call() {
    let dir = open_dir();
    let [cert, key] = write_certificate(dir.path());
    let authority = format!("--tls-client-ca={}", cert.display());
    let (cert, key) = (format!("--tls-cert={}", cert.display()), format!("--tls-key={}", key.display()));
    let mut server = Server::start(&[&cert, &key, &authority], |_| ()).await;
    let greeting = server.greeting();
    assert!(greeting.contains("(everyone with a certificate signed by --tls-client-ca can call)"), "{greeting}");
    assert!(!greeting.contains("on this machine") && !greeting.contains("who can reach"), "{greeting}");
    server.signal(Signal::SIGTERM);
    assert!(server.ended().0.success());
}

#[test]
fn creating_the_first_key_creates_a_database_only_on_request_or_in_an_existing_directory() {
    let dir = open_dir();
    let create = |data_dir: &Path, more: &[&str]| {
        let mut command = meterd(&["keys", "create", "ops", "--scope=admin", "--all-clients", "--direct", "--quiet"]);
        command.args(more).arg("--data-dir").arg(data_dir).output().unwrap()
    };
    let (requested, empty) = (dir.path().join("asked"), dir.path().join("empty"));
    let rejected = create(&requested, &[]);
    assert!(!rejected.status.success() && !requested.exists(), "{}", output_text(&rejected));
    fs::create_dir(&empty).unwrap();
    for (data_dir, more) in [(&requested, &["--new-database"][..]), (&empty, &[])] {
        let created = create(data_dir, more);
        let note = format!("note: creating a new database in {}\n", data_dir.display());
        let (token, logged) = (String::from_utf8_lossy(&created.stdout), String::from_utf8_lossy(&created.stderr));
        assert!(created.status.success() && token.starts_with("mtr_") && *logged == note, "{token}{logged}");
    }
    let second = create(&requested, &[]);
    assert_eq!((second.status.success(), second.stderr.len()), (true, 0), "{}", output_text(&second));
}
