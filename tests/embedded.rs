//! Tests of the embedded server with a real PostgreSQL. They pass as root and as an ordinary user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meterd_embedded_postgres::{Embedded, EmbeddedError, EmbeddedSettings, attach};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, geteuid};
use sqlx::{Connection, PgConnection};

#[path = "embedded/first_start.rs"]
mod first_start;
#[path = "embedded/own_server.rs"]
mod own_server;
#[path = "embedded/tuning.rs"]
mod tuning;
#[path = "embedded/upgrades.rs"]
mod upgrades;

/// A data directory of one test. When dropped, it ends a server that still runs on it.
struct TestDir {
    root: tempfile::TempDir,
    data_dir: PathBuf,
}

impl TestDir {
    fn new() -> Self {
        Self::with_data_dir("data")
    }

    fn with_data_dir(name: impl AsRef<Path>) -> Self {
        let root = tempfile::Builder::new().prefix("meterd-test-").tempdir_in("/tmp").unwrap();
        // Under root, the user that PostgreSQL runs as cannot enter a temporary directory.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data_dir = root.path().join(name);
        Self { root, data_dir }
    }

    fn settings(&self) -> EmbeddedSettings {
        EmbeddedSettings {
            data_dir: self.data_dir.clone(),
            bin_dir: None,
            download_url: None,
            download: false,
            durable: false,
        }
    }

    async fn start(&self) -> Embedded {
        Embedded::start(&self.settings()).await.unwrap()
    }

    fn pid_file(&self) -> PathBuf {
        self.data_dir.join("postgres/postmaster.pid")
    }

    /// Returns the postmaster's process id from its pid file.
    fn postmaster(&self) -> Option<i32> {
        fs::read_to_string(self.pid_file()).ok()?.lines().next()?.trim().parse().ok()
    }

    fn kill_postmaster(&self) -> i32 {
        let pid = self.postmaster().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        pid
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let cluster = self.data_dir.join("postgres");
        let Some(pid) = self.postmaster().filter(|pid| is_server_of(*pid, &cluster)) else {
            return;
        };
        let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        let begin = Instant::now();
        while is_server_of(pid, &cluster) && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn is_server_of(pid: i32, cluster: &Path) -> bool {
    let output = Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(cluster.to_str().unwrap()))
}

/// A process that has nothing to do with PostgreSQL. It ends with the test.
struct UnrelatedProcess(Child);

impl UnrelatedProcess {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for UnrelatedProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn write(url: &str) {
    let mut connection = connect(url).await;
    sqlx::raw_sql("create table if not exists kept (n int); insert into kept values (1)")
        .execute(&mut connection)
        .await
        .unwrap();
}

async fn count(url: &str) -> i64 {
    sqlx::query_scalar("select count(*) from kept").fetch_one(&mut connect(url).await).await.unwrap()
}

async fn setting(url: &str, name: &str) -> String {
    sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(&mut connect(url).await).await.unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn start_error(settings: &EmbeddedSettings) -> EmbeddedError {
    let error = Embedded::start(settings).await.expect_err("it should be refused");
    println!("{error}");
    error
}

#[tokio::test]
async fn data_survives_a_stop_and_a_start() {
    let dir = TestDir::new();
    let embedded = dir.start().await;
    assert!(!embedded.reattached());
    assert!(embedded.version().split('.').next().unwrap().parse::<u32>().unwrap() >= 15);
    write(embedded.url()).await;
    embedded.stop().await.unwrap();
    assert!(!dir.pid_file().exists(), "the server has stopped");

    let again = dir.start().await;
    assert!(!again.reattached());
    assert_eq!(count(again.url()).await, 1);
    again.stop().await.unwrap();
}

#[tokio::test]
async fn the_server_is_durable_private_and_in_utc() {
    let dir = TestDir::new();
    let durable = EmbeddedSettings { durable: true, ..dir.settings() };
    let embedded = Embedded::start(&durable).await.unwrap();
    for (name, value) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("server_encoding", "UTF8"),
        ("lc_messages", "C"),
        ("timezone", "UTC"),
        ("max_connections", "200"),
    ] {
        assert_eq!(setting(embedded.url(), name).await, value, "{name}");
    }
    assert_eq!(mode(dir.data_dir.join("run")), 0o700);
    assert_eq!(mode(dir.data_dir.join("postgres")), 0o700);
    assert_eq!(mode(dir.data_dir.join("postgres.log")), 0o600);
    assert_eq!(mode(&dir.data_dir) & 0o007, 0);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_outlived_meterd_is_taken_over() {
    let dir = TestDir::new();
    let killed = dir.start().await;
    write(killed.url()).await;
    let pid = dir.postmaster();
    let url = killed.url().to_owned();
    drop(killed); // as kill -9 does: the lock is free and the server still runs

    let embedded = dir.start().await;
    assert!(embedded.reattached());
    assert_eq!(dir.postmaster(), pid);
    assert_eq!(embedded.url(), url);
    assert_eq!(count(embedded.url()).await, 1);

    // It is not a child of this value any more, but it is supervised and stopped all the same.
    assert!(!embedded.ensure_running().await.unwrap());
    dir.kill_postmaster();
    assert!(ensure_restarted(&embedded).await);
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
    assert!(!dir.pid_file().exists());
}

#[tokio::test]
async fn a_server_without_fsync_is_not_taken_over_by_a_durable_meterd() {
    let dir = TestDir::new();
    let killed = dir.start().await;
    write(killed.url()).await;
    drop(killed);
    let durable = EmbeddedSettings { durable: true, ..dir.settings() };
    let embedded = Embedded::start(&durable).await.unwrap();
    assert!(!embedded.reattached());
    assert_eq!(setting(embedded.url(), "fsync").await, "on");
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

/// Calls `ensure_running` until it detects the death of the server, because a signal takes a moment.
async fn ensure_restarted(embedded: &Embedded) -> bool {
    for _ in 0..200 {
        if embedded.ensure_running().await.unwrap() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn a_killed_server_is_restarted_with_the_committed_data() {
    let dir = TestDir::new();
    let embedded = dir.start().await;
    write(embedded.url()).await;
    // A backend with an open transaction blocks the new postmaster until it notices the death of the old one.
    let mut idle = connect(embedded.url()).await;
    sqlx::raw_sql("begin; insert into kept values (2)").execute(&mut idle).await.unwrap();
    assert!(!embedded.ensure_running().await.unwrap());
    let before = dir.kill_postmaster();
    assert!(ensure_restarted(&embedded).await);
    assert_ne!(dir.postmaster(), Some(before));
    assert_eq!(count(embedded.url()).await, 1);
    assert!(!embedded.ensure_running().await.unwrap());
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_waits_for_backends_that_outlived_their_postmaster() {
    let dir = TestDir::new();
    let embedded = dir.start().await;
    write(embedded.url()).await;
    let mut busy = connect(embedded.url()).await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut busy).await.unwrap();
    // A stopped backend cannot notice the postmaster's death, like one in a long computation.
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    dir.kill_postmaster();
    let wake = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    };
    let begin = Instant::now();
    let (ensure_restarted, ()) = tokio::join!(ensure_restarted(&embedded), wake);
    assert!(ensure_restarted);
    assert!(begin.elapsed() > Duration::from_secs(2), "the start must wait for the old backend");
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn meterd_and_its_server_recover_after_both_are_killed() {
    let dir = TestDir::new();
    let killed = dir.start().await;
    write(killed.url()).await;
    dir.kill_postmaster();
    drop(killed);
    let embedded = dir.start().await;
    assert!(!embedded.reattached());
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn the_server_starts_despite_a_stale_pid_file_of_an_unrelated_process() {
    let dir = TestDir::new();
    let killed = dir.start().await;
    write(killed.url()).await;
    dir.kill_postmaster();
    drop(killed);
    let bystander = UnrelatedProcess::start();
    let stale = fs::read_to_string(dir.pid_file()).unwrap();
    let (_, rest) = stale.split_once('\n').unwrap();
    fs::write(dir.pid_file(), format!("{}\n{rest}", bystander.0.id())).unwrap();

    assert_eq!(attach(&dir.data_dir).await.unwrap(), None);
    let embedded = dir.start().await;
    assert!(!embedded.reattached());
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
    drop(bystander);
}

#[tokio::test]
async fn a_second_meterd_cannot_use_the_same_data() {
    let dir = TestDir::new();
    let embedded = dir.start().await;
    let error = start_error(&dir.settings()).await;
    assert!(matches!(error, EmbeddedError::Locked { holder: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains("--data-dir"));
    embedded.stop().await.unwrap();
    dir.start().await.stop().await.unwrap();
}

#[tokio::test]
async fn commands_attach_to_a_running_server() {
    let dir = TestDir::new();
    assert_eq!(attach(&dir.data_dir).await.unwrap(), None);
    let embedded = dir.start().await;
    let url = attach(&dir.data_dir).await.unwrap().expect("a server runs");
    assert_eq!(url, embedded.url());
    write(&url).await;
    embedded.stop().await.unwrap();
    assert_eq!(attach(&dir.data_dir).await.unwrap(), None);
}

#[tokio::test]
async fn long_paths_and_paths_with_special_characters_work() {
    let long = TestDir::with_data_dir("a-rather-long-name/".repeat(8));
    let odd = TestDir::with_data_dir("it's 100%, \"so\" to say");
    for dir in [&long, &odd] {
        let embedded = dir.start().await;
        write(embedded.url()).await;
        let socket_dir = PathBuf::from(setting(embedded.url(), "unix_socket_directories").await.replace('"', ""));
        assert!(socket_dir.starts_with("/tmp"), "{}", socket_dir.display());
        assert!(socket_dir.as_os_str().len() < 40);
        assert_eq!(mode(&socket_dir), 0o700);
        assert_eq!(attach(&dir.data_dir).await.unwrap().as_deref(), Some(embedded.url()));
        embedded.stop().await.unwrap();
        fs::remove_dir(&socket_dir).unwrap();
    }
    let spaced = TestDir::with_data_dir("my data é");
    let embedded = spaced.start().await;
    write(embedded.url()).await;
    assert!(spaced.data_dir.join("run/.s.PGSQL.5432").exists());
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_wrong_bin_dir_is_named_in_the_error() {
    let dir = TestDir::new();
    let wrong = EmbeddedSettings { bin_dir: Some("/nowhere/bin".into()), ..dir.settings() };
    let error = start_error(&wrong).await;
    assert!(matches!(error, EmbeddedError::BadBinDir { .. }));
    let text = error.to_string();
    assert!(text.contains("--postgres-bin-dir /nowhere/bin") && text.contains("pg_config --bindir"));
}

/// Creates a fake PostgreSQL that only prints its version.
fn fake_programs(dir: &TestDir, version: &str) -> PathBuf {
    let dir = dir.root.path().join(format!("fake-{version}"));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["initdb", "postgres"] {
        let program = dir.join(name);
        fs::write(&program, format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

#[tokio::test]
async fn a_too_old_version_is_rejected() {
    let dir = TestDir::new();
    let old = EmbeddedSettings { bin_dir: Some(fake_programs(&dir, "14.2")), ..dir.settings() };
    let text = start_error(&old).await.to_string();
    assert!(text.contains("14.2") && text.contains("15 or newer"), "{text}");
}

#[tokio::test]
async fn data_of_another_major_version_is_rejected_and_both_are_named() {
    let dir = TestDir::new();
    let embedded = dir.start().await;
    let version = embedded.version().to_owned();
    embedded.stop().await.unwrap();
    let tag = dir.data_dir.join("postgres/PG_VERSION");
    let real = fs::read_to_string(&tag).unwrap();

    fs::write(&tag, "99\n").unwrap();
    let text = start_error(&dir.settings()).await.to_string();
    assert!(text.contains("PostgreSQL 99") && text.contains(&version), "{text}");

    fs::write(&tag, "13\n").unwrap();
    let error = start_error(&dir.settings()).await;
    assert!(matches!(error, EmbeddedError::DataTooOld { made_by: 13, .. }));
    let text = error.to_string();
    assert!(text.contains("PostgreSQL 13") && text.contains("15 or newer"), "{text}");

    fs::write(&tag, &real).unwrap();
    let newer = EmbeddedSettings { bin_dir: Some(fake_programs(&dir, "98.1")), ..dir.settings() };
    let text = start_error(&newer).await.to_string();
    assert!(text.contains("98.1") && text.contains(&format!("PostgreSQL {}", real.trim())), "{text}");
}

#[tokio::test]
async fn a_directory_with_other_contents_is_not_changed() {
    let dir = TestDir::new();
    let cluster = dir.data_dir.join("postgres");
    fs::create_dir_all(&cluster).unwrap();
    fs::set_permissions(&dir.data_dir, fs::Permissions::from_mode(0o755)).unwrap();
    if geteuid().is_root() {
        // PostgreSQL can never use a directory that root owns, so this error comes first.
        assert!(matches!(start_error(&dir.settings()).await, EmbeddedError::ForeignOwner { .. }));
        std::os::unix::fs::chown(&cluster, Some(65534), Some(65534)).unwrap();
    }
    fs::write(cluster.join("letter.txt"), "dear").unwrap();
    assert!(matches!(start_error(&dir.settings()).await, EmbeddedError::NotACluster { .. }));
    assert_eq!(fs::read_to_string(cluster.join("letter.txt")).unwrap(), "dear");
}

#[tokio::test]
async fn an_interrupted_initdb_is_repeated() {
    let dir = TestDir::new();
    fs::create_dir_all(dir.data_dir.join("postgres.init/base")).unwrap();
    fs::set_permissions(&dir.data_dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.data_dir.join("postgres.init/PG_VERSION"), "15\n").unwrap();
    let embedded = dir.start().await;
    assert!(!dir.data_dir.join("postgres.init").exists());
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_failed_start_shows_the_end_of_the_servers_log() {
    let dir = TestDir::new();
    dir.start().await.stop().await.unwrap();
    let conf = dir.data_dir.join("postgres/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}\nno_such_setting = 1\n")).unwrap();
    let error = start_error(&dir.settings()).await;
    assert!(matches!(error, EmbeddedError::StartFailed { .. }));
    assert!(error.to_string().contains("no_such_setting"));
    fs::write(&conf, text).unwrap();
    dir.start().await.stop().await.unwrap();
}

#[tokio::test]
async fn a_directory_that_postgresql_cannot_reach_is_named() {
    if !geteuid().is_root() {
        return; // the server of an ordinary user runs as that user
    }
    let dir = TestDir::with_data_dir("closed/data");
    let closed = dir.root.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let error = start_error(&dir.settings()).await;
    assert!(
        matches!(&error, EmbeddedError::Unreachable { blocker: Some(dir), .. } if *dir == closed.canonicalize().unwrap())
    );
    assert!(error.to_string().contains("/var/lib/meterd"));
}

#[tokio::test]
async fn a_long_log_is_rotated_at_a_start() {
    let dir = TestDir::new();
    dir.start().await.stop().await.unwrap();
    let log = dir.data_dir.join("postgres.log");
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(11 << 20).unwrap();
    dir.start().await.stop().await.unwrap();
    assert_eq!(fs::metadata(dir.data_dir.join("postgres.log.1")).unwrap().len(), 11 << 20);
    assert!(fs::metadata(&log).unwrap().len() < 100_000);
}

/// Not a test of its own: the meterd that the next test kills.
#[tokio::test]
#[ignore = "run by another test, as a process of its own"]
async fn meterd_to_be_killed() {
    let Some(data_dir) = std::env::var_os("METERD_TEST_DATA_DIR") else {
        return;
    };
    let settings = EmbeddedSettings {
        data_dir: data_dir.into(),
        bin_dir: None,
        download_url: None,
        download: false,
        durable: true,
    };
    // Ctrl-C is handled here, because a shell that runs the tests in the background makes them ignore it.
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    let embedded = Embedded::start(&settings).await.unwrap();
    write(embedded.url()).await;
    fs::write(embedded.data_dir().join("written"), "").unwrap();
    interrupt.recv().await;
    std::process::exit(130);
}

#[tokio::test]
async fn ctrl_c_and_kill_9_of_meterd_do_not_stop_the_server() {
    let dir = TestDir::new();
    let mut pids = Vec::new();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let written = dir.data_dir.join("written");
        let _ = fs::remove_file(&written);
        let mut meterd = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "meterd_to_be_killed"])
            .env("METERD_TEST_DATA_DIR", &dir.data_dir)
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while !written.exists() && begin.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Sent to the whole process group, as a terminal does.
        killpg(Pid::from_raw(meterd.id().try_into().unwrap()), signal).unwrap();
        assert!(!meterd.wait().unwrap().success());
        assert!(written.exists(), "meterd ended too early");
        pids.push(dir.postmaster());
    }
    let embedded = dir.start().await; // a start that does not need durability takes over a durable server
    assert!(embedded.reattached());
    assert_eq!(pids, [dir.postmaster(), dir.postmaster()]);
    assert_eq!(count(embedded.url()).await, 2);
    embedded.stop().await.unwrap();
}
