//! The embedded server's life, against a real PostgreSQL. Passes as root and as an ordinary user.

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
#[path = "embedded/upgrades.rs"]
mod upgrades;

/// A data directory of one test. Whatever the test left running on it is ended with it.
struct Place {
    root: tempfile::TempDir,
    data_dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        Self::below("data")
    }

    fn below(name: impl AsRef<Path>) -> Self {
        let root = tempfile::Builder::new().prefix("meterd-test-").tempdir_in("/tmp").unwrap();
        // A temporary directory is closed to the user that PostgreSQL runs as under root.
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

    /// The postmaster's process id, as its pid file tells it.
    fn postmaster(&self) -> Option<i32> {
        fs::read_to_string(self.pid_file()).ok()?.lines().next()?.trim().parse().ok()
    }

    fn kill_postmaster(&self) -> i32 {
        let pid = self.postmaster().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        pid
    }
}

impl Drop for Place {
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

/// A process that has nothing to do with PostgreSQL, ended with the test.
struct Bystander(Child);

impl Bystander {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Bystander {
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

async fn refusal(settings: &EmbeddedSettings) -> EmbeddedError {
    let error = Embedded::start(settings).await.expect_err("it should be refused");
    println!("{error}");
    error
}

#[tokio::test]
async fn data_survives_a_stop_and_a_start() {
    let place = Place::new();
    let embedded = place.start().await;
    assert!(!embedded.reattached());
    assert!(embedded.version().split('.').next().unwrap().parse::<u32>().unwrap() >= 15);
    write(embedded.url()).await;
    embedded.stop().await.unwrap();
    assert!(!place.pid_file().exists(), "stopped means stopped");

    let again = place.start().await;
    assert!(!again.reattached());
    assert_eq!(count(again.url()).await, 1);
    again.stop().await.unwrap();
}

#[tokio::test]
async fn the_server_is_durable_private_and_in_utc() {
    let place = Place::new();
    let durable = EmbeddedSettings { durable: true, ..place.settings() };
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
    assert_eq!(mode(place.data_dir.join("run")), 0o700);
    assert_eq!(mode(place.data_dir.join("postgres")), 0o700);
    assert_eq!(mode(place.data_dir.join("postgres.log")), 0o600);
    assert_eq!(mode(&place.data_dir) & 0o007, 0);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_outlived_meterd_is_taken_over() {
    let place = Place::new();
    let killed = place.start().await;
    write(killed.url()).await;
    let pid = place.postmaster();
    let url = killed.url().to_owned();
    drop(killed); // what kill -9 does: the lock is free, the server runs on

    let embedded = place.start().await;
    assert!(embedded.reattached());
    assert_eq!(place.postmaster(), pid);
    assert_eq!(embedded.url(), url);
    assert_eq!(count(embedded.url()).await, 1);

    // It is no child of this value any more, and is supervised and stopped all the same.
    assert!(!embedded.ensure_running().await.unwrap());
    place.kill_postmaster();
    assert!(restored(&embedded).await);
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
    assert!(!place.pid_file().exists());
}

#[tokio::test]
async fn a_server_without_fsync_is_not_taken_over_by_a_durable_meterd() {
    let place = Place::new();
    let killed = place.start().await;
    write(killed.url()).await;
    drop(killed);
    let durable = EmbeddedSettings { durable: true, ..place.settings() };
    let embedded = Embedded::start(&durable).await.unwrap();
    assert!(!embedded.reattached());
    assert_eq!(setting(embedded.url(), "fsync").await, "on");
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

/// Calls `ensure_running` until it notices the death: a signal takes a moment.
async fn restored(embedded: &Embedded) -> bool {
    for _ in 0..200 {
        if embedded.ensure_running().await.unwrap() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn a_killed_server_is_brought_up_with_what_was_committed() {
    let place = Place::new();
    let embedded = place.start().await;
    write(embedded.url()).await;
    // A backend with an open transaction is in the way of the new postmaster until it notices.
    let mut idle = connect(embedded.url()).await;
    sqlx::raw_sql("begin; insert into kept values (2)").execute(&mut idle).await.unwrap();
    assert!(!embedded.ensure_running().await.unwrap());
    let before = place.kill_postmaster();
    assert!(restored(&embedded).await);
    assert_ne!(place.postmaster(), Some(before));
    assert_eq!(count(embedded.url()).await, 1);
    assert!(!embedded.ensure_running().await.unwrap());
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_waits_for_backends_that_outlived_their_postmaster() {
    let place = Place::new();
    let embedded = place.start().await;
    write(embedded.url()).await;
    let mut busy = connect(embedded.url()).await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut busy).await.unwrap();
    // Stopped, it cannot notice the postmaster's death, as one deep in a computation does not.
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    place.kill_postmaster();
    let wake = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    };
    let begin = Instant::now();
    let (restored, ()) = tokio::join!(restored(&embedded), wake);
    assert!(restored);
    assert!(begin.elapsed() > Duration::from_secs(2), "two servers on one cluster");
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn meterd_and_server_killed_together_recover() {
    let place = Place::new();
    let killed = place.start().await;
    write(killed.url()).await;
    place.kill_postmaster();
    drop(killed);
    let embedded = place.start().await;
    assert!(!embedded.reattached());
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_stale_pid_file_with_an_unrelated_process_is_no_obstacle() {
    let place = Place::new();
    let killed = place.start().await;
    write(killed.url()).await;
    place.kill_postmaster();
    drop(killed);
    let bystander = Bystander::start();
    let stale = fs::read_to_string(place.pid_file()).unwrap();
    let (_, rest) = stale.split_once('\n').unwrap();
    fs::write(place.pid_file(), format!("{}\n{rest}", bystander.0.id())).unwrap();

    assert_eq!(attach(&place.data_dir).await.unwrap(), None);
    let embedded = place.start().await;
    assert!(!embedded.reattached());
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
    drop(bystander);
}

#[tokio::test]
async fn a_second_meterd_on_the_same_data_is_refused() {
    let place = Place::new();
    let embedded = place.start().await;
    let error = refusal(&place.settings()).await;
    assert!(matches!(error, EmbeddedError::Locked { holder: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains("--data-dir"));
    embedded.stop().await.unwrap();
    place.start().await.stop().await.unwrap();
}

#[tokio::test]
async fn commands_beside_a_server_attach_to_it() {
    let place = Place::new();
    assert_eq!(attach(&place.data_dir).await.unwrap(), None);
    let embedded = place.start().await;
    let url = attach(&place.data_dir).await.unwrap().expect("a server runs");
    assert_eq!(url, embedded.url());
    write(&url).await;
    embedded.stop().await.unwrap();
    assert_eq!(attach(&place.data_dir).await.unwrap(), None);
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_or_full_of_odd_signs_works() {
    let long = Place::below("a-rather-long-name/".repeat(8));
    let odd = Place::below("it's 100%, \"so\" to say");
    for place in [&long, &odd] {
        let embedded = place.start().await;
        write(embedded.url()).await;
        let socket_dir = PathBuf::from(setting(embedded.url(), "unix_socket_directories").await.replace('"', ""));
        assert!(socket_dir.starts_with("/tmp"), "{}", socket_dir.display());
        assert!(socket_dir.as_os_str().len() < 40);
        assert_eq!(mode(&socket_dir), 0o700);
        assert_eq!(attach(&place.data_dir).await.unwrap().as_deref(), Some(embedded.url()));
        embedded.stop().await.unwrap();
        fs::remove_dir(&socket_dir).unwrap();
    }
    let spaced = Place::below("my data é");
    let embedded = spaced.start().await;
    write(embedded.url()).await;
    assert!(spaced.data_dir.join("run/.s.PGSQL.5432").exists());
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_wrong_bin_dir_is_named() {
    let place = Place::new();
    let wrong = EmbeddedSettings { bin_dir: Some("/nowhere/bin".into()), ..place.settings() };
    let error = refusal(&wrong).await;
    assert!(matches!(error, EmbeddedError::BadBinDir { .. }));
    let text = error.to_string();
    assert!(text.contains("--postgres-bin-dir /nowhere/bin") && text.contains("pg_config --bindir"));
}

/// A PostgreSQL that only tells its version.
fn fake_programs(place: &Place, version: &str) -> PathBuf {
    let dir = place.root.path().join(format!("fake-{version}"));
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
async fn a_version_that_is_too_old_is_refused() {
    let place = Place::new();
    let old = EmbeddedSettings { bin_dir: Some(fake_programs(&place, "14.2")), ..place.settings() };
    let text = refusal(&old).await.to_string();
    assert!(text.contains("14.2") && text.contains("15 or newer"), "{text}");
}

#[tokio::test]
async fn data_of_another_major_version_is_refused_naming_both() {
    let place = Place::new();
    let embedded = place.start().await;
    let version = embedded.version().to_owned();
    embedded.stop().await.unwrap();
    let tag = place.data_dir.join("postgres/PG_VERSION");
    let real = fs::read_to_string(&tag).unwrap();

    fs::write(&tag, "99\n").unwrap();
    let text = refusal(&place.settings()).await.to_string();
    assert!(text.contains("PostgreSQL 99") && text.contains(&version), "{text}");

    fs::write(&tag, "13\n").unwrap();
    let error = refusal(&place.settings()).await;
    assert!(matches!(error, EmbeddedError::DataTooOld { made_by: 13, .. }));
    let text = error.to_string();
    assert!(text.contains("PostgreSQL 13") && text.contains("15 or newer"), "{text}");

    fs::write(&tag, &real).unwrap();
    let newer = EmbeddedSettings { bin_dir: Some(fake_programs(&place, "98.1")), ..place.settings() };
    let text = refusal(&newer).await.to_string();
    assert!(text.contains("98.1") && text.contains(&format!("PostgreSQL {}", real.trim())), "{text}");
}

#[tokio::test]
async fn a_directory_with_something_else_in_it_is_left_alone() {
    let place = Place::new();
    let cluster = place.data_dir.join("postgres");
    fs::create_dir_all(&cluster).unwrap();
    fs::set_permissions(&place.data_dir, fs::Permissions::from_mode(0o755)).unwrap();
    if geteuid().is_root() {
        // Root's own directory could never be PostgreSQL's: that is said first.
        assert!(matches!(refusal(&place.settings()).await, EmbeddedError::ForeignOwner { .. }));
        std::os::unix::fs::chown(&cluster, Some(65534), Some(65534)).unwrap();
    }
    fs::write(cluster.join("letter.txt"), "dear").unwrap();
    assert!(matches!(refusal(&place.settings()).await, EmbeddedError::NotACluster { .. }));
    assert_eq!(fs::read_to_string(cluster.join("letter.txt")).unwrap(), "dear");
}

#[tokio::test]
async fn an_initdb_that_was_cut_short_is_done_again() {
    let place = Place::new();
    fs::create_dir_all(place.data_dir.join("postgres.init/base")).unwrap();
    fs::set_permissions(&place.data_dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place.data_dir.join("postgres.init/PG_VERSION"), "15\n").unwrap();
    let embedded = place.start().await;
    assert!(!place.data_dir.join("postgres.init").exists());
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_failed_start_shows_the_servers_last_words() {
    let place = Place::new();
    place.start().await.stop().await.unwrap();
    let conf = place.data_dir.join("postgres/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}\nno_such_setting = 1\n")).unwrap();
    let error = refusal(&place.settings()).await;
    assert!(matches!(error, EmbeddedError::StartFailed { .. }));
    assert!(error.to_string().contains("no_such_setting"));
    fs::write(&conf, text).unwrap();
    place.start().await.stop().await.unwrap();
}

#[tokio::test]
async fn a_place_that_postgresql_cannot_reach_is_named() {
    if !geteuid().is_root() {
        return; // an ordinary user's server is that user
    }
    let place = Place::below("closed/data");
    let closed = place.root.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let error = refusal(&place.settings()).await;
    assert!(
        matches!(&error, EmbeddedError::Unreachable { blocker: Some(dir), .. } if *dir == closed.canonicalize().unwrap())
    );
    assert!(error.to_string().contains("/var/lib/meterd"));
}

#[tokio::test]
async fn a_long_log_is_rotated_at_a_start() {
    let place = Place::new();
    place.start().await.stop().await.unwrap();
    let log = place.data_dir.join("postgres.log");
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(11 << 20).unwrap();
    place.start().await.stop().await.unwrap();
    assert_eq!(fs::metadata(place.data_dir.join("postgres.log.1")).unwrap().len(), 11 << 20);
    assert!(fs::metadata(&log).unwrap().len() < 100_000);
}

/// No test of its own: the meterd that the next test kills.
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
    // Taken by itself: a shell that runs the tests in the background has them ignore it.
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    let embedded = Embedded::start(&settings).await.unwrap();
    write(embedded.url()).await;
    fs::write(embedded.data_dir().join("written"), "").unwrap();
    interrupt.recv().await;
    std::process::exit(130);
}

#[tokio::test]
async fn neither_ctrl_c_nor_kill_9_on_meterd_touches_the_server() {
    let place = Place::new();
    let mut pids = Vec::new();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let written = place.data_dir.join("written");
        let _ = fs::remove_file(&written);
        let mut meterd = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "meterd_to_be_killed"])
            .env("METERD_TEST_DATA_DIR", &place.data_dir)
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while !written.exists() && begin.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // To the whole process group, as a terminal does.
        killpg(Pid::from_raw(meterd.id().try_into().unwrap()), signal).unwrap();
        assert!(!meterd.wait().unwrap().success());
        assert!(written.exists(), "it ended too early");
        pids.push(place.postmaster());
    }
    let embedded = place.start().await; // not asked to be durable, it takes a durable one over
    assert!(embedded.reattached());
    assert_eq!(pids, [place.postmaster(), place.postmaster()]);
    assert_eq!(count(embedded.url()).await, 2);
    embedded.stop().await.unwrap();
}
