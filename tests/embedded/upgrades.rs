//! Minor upgrades of the installed PostgreSQL while its server runs, on a copy of the installation.

use super::{TestDir, connect, count, write};
use meterd::proto::alert_service_client::AlertServiceClient;
use meterd::proto::client_service_client::ClientServiceClient;
use meterd::proto::job_service_client::JobServiceClient;
use meterd::proto::usage_service_client::UsageServiceClient;
use meterd::proto::{
    AlertPolicy, Client, RunJobRequest, TrackUsageRequest, UpdateAlertPolicyRequest, UpdateClientRequest, UsageEvent,
};
use meterd_embedded_postgres::{Embedded, EmbeddedSettings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// A copy of the installed PostgreSQL that a test may upgrade or break.
struct Installation {
    bin: PathBuf,
    lib: PathBuf,
}

impl Installation {
    /// Copies the programs and libraries to the same directories below `root`. PostgreSQL finds them relative to each
    /// other.
    fn copy(root: &Path) -> Self {
        let [bin, lib, share] = ["--bindir", "--pkglibdir", "--sharedir"].map(|what| {
            let output = Command::new("pg_config").arg(what).output().expect("pg_config is installed");
            let from = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
            let to = root.join(from.strip_prefix("/").unwrap());
            fs::create_dir_all(&to).unwrap();
            // The code for the just-in-time compiler is large and not needed.
            let script = r#"cd "$1" && tar -c --exclude=./bitcode --exclude='./llvmjit*' . | tar -x -C "$2""#;
            let copied = Command::new("sh").args(["-c", script, "sh"]).args([&from, &to]).status().unwrap();
            assert!(copied.success(), "cannot copy {}", from.display());
            to
        });
        assert!(share.join("postgres.bki").exists() && bin.join("initdb").exists());
        Self { bin, lib }
    }

    /// Replaces a file as a package manager does: processes that have the old file open keep it.
    fn replace(path: &Path, contents: &[u8], mode: u32) {
        let new = path.with_extension("new");
        fs::write(&new, contents).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Replaces the library by one that no server can load.
    fn replace_library(&self) {
        Self::replace(&self.lib.join("plpgsql.so"), b"from another version", 0o644);
    }

    /// Replaces `postgres` by one that reports version `version` and otherwise runs the installed one.
    fn upgrade_to(&self, version: &str) {
        let output = Command::new("pg_config").arg("--bindir").output().unwrap();
        let real = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'postgres (PostgreSQL) {version}'; exit; fi\nexec '{real}/postgres' \"$@\"\n"
        );
        Self::replace(&self.bin.join("postgres"), script.as_bytes(), 0o755);
    }

    fn settings(&self, dir: &TestDir) -> EmbeddedSettings {
        EmbeddedSettings { bin_dir: Some(self.bin.clone()), ..dir.settings() }
    }
}

/// Runs a trigger in PL/pgSQL on a new connection.
async fn run_trigger(url: &str) -> sqlx::Result<()> {
    let mut connection = connect(url).await;
    sqlx::raw_sql(
        "create table if not exists watched (n int);
         create or replace function watch() returns trigger language plpgsql as 'begin return new; end';
         create or replace trigger watch before insert on watched for each row execute function watch();
         insert into watched values (1)",
    )
    .execute(&mut connection)
    .await
    .map(drop)
}

#[tokio::test]
async fn a_running_server_does_not_load_a_replaced_library() {
    let dir = TestDir::new();
    let installation = Installation::copy(dir.root.path());
    let embedded = Embedded::start(&installation.settings(&dir)).await.unwrap();
    run_trigger(embedded.url()).await.unwrap();
    installation.replace_library();
    run_trigger(embedded.url()).await.unwrap();
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn libraries_preloaded_by_the_configuration_are_kept() {
    let dir = TestDir::new();
    dir.start().await.stop().await.unwrap();
    let conf = dir.data_dir.join("postgres/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}\nshared_preload_libraries = 'auto_explain'\n")).unwrap();
    let embedded = dir.start().await;
    assert_eq!(super::setting(embedded.url(), "shared_preload_libraries").await, "auto_explain,plpgsql");
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_restarts_a_server_whose_programs_were_upgraded() {
    let dir = TestDir::new();
    let installation = Installation::copy(dir.root.path());
    let killed = Embedded::start(&installation.settings(&dir)).await.unwrap();
    write(killed.url()).await;
    let before = dir.postmaster();
    drop(killed); // as kill -9 does: the lock is free and the server still runs

    let again = Embedded::start(&installation.settings(&dir)).await.unwrap();
    assert!(again.reattached(), "the programs have not changed");
    assert_eq!(dir.postmaster(), before);
    drop(again);

    let major = fs::read_to_string(dir.data_dir.join("postgres/PG_VERSION")).unwrap();
    installation.upgrade_to(&format!("{}.99", major.trim()));
    let embedded = Embedded::start(&installation.settings(&dir)).await.unwrap();
    assert!(!embedded.reattached());
    assert_ne!(dir.postmaster(), before);
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_started_by_an_older_meterd_without_the_library_is_restarted() {
    let dir = TestDir::new();
    let killed = dir.start().await;
    write(killed.url()).await;
    let before = dir.postmaster().unwrap();
    let line = fs::read(format!("/proc/{before}/cmdline"));
    drop(killed);
    let Ok(line) = line else { return }; // not Linux
    dir.kill_postmaster();
    let mut args: Vec<String> = line
        .split(|byte| *byte == 0)
        .filter(|arg| !arg.is_empty())
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect();
    for arg in &mut args {
        if arg.starts_with("shared_preload_libraries=") {
            *arg = "shared_preload_libraries=".into();
        }
    }
    let program = args.remove(0);
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir.data_dir.join("postgres")).unwrap());
    let log = fs::File::create(dir.root.path().join("old.log")).unwrap();
    let mut old = Command::new(program);
    old.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut old, owner);
    }
    let mut old = old.spawn().unwrap();
    let begin = Instant::now();
    while dir.postmaster() != i32::try_from(old.id()).ok() && begin.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let starting = dir.start();
    let waiting = tokio::task::spawn_blocking(move || old.wait().unwrap());
    let embedded = starting.await;
    assert!(!embedded.reattached());
    assert_eq!(super::setting(embedded.url(), "shared_preload_libraries").await, "plpgsql");
    assert_eq!(count(embedded.url()).await, 1);
    waiting.await.unwrap();
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_whose_files_were_removed_by_an_upgrade_is_restarted_with_the_new_ones() {
    let dir = TestDir::new();
    let installation = Installation::copy(dir.root.path());
    let embedded = Embedded::start(&installation.settings(&dir)).await.unwrap();
    run_trigger(embedded.url()).await.unwrap();
    // Homebrew installs a new version next to the old one, and then removes the old one with all its libraries.
    fs::remove_file(installation.lib.join("plpgsql.so")).unwrap();
    run_trigger(embedded.url()).await.unwrap_err();
    let major = fs::read_to_string(dir.data_dir.join("postgres/PG_VERSION")).unwrap();
    installation.upgrade_to(&format!("{}.99", major.trim()));
    let begin = Instant::now();
    while !embedded.ensure_running().await.unwrap() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the server was not restarted in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    run_trigger(embedded.url()).await.unwrap();
    embedded.stop().await.unwrap();
}

/// A `meterd serve` with its own PostgreSQL, stopped with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

async fn serve(dir: &TestDir, bin: &Path) -> (Server, Channel) {
    let ports = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let process = Command::new(env!("CARGO_BIN_EXE_meterd"))
        .arg("serve")
        .arg(format!("--listen=127.0.0.1:{}", ports[0]))
        .arg(format!("--http-listen=127.0.0.1:{}", ports[1]))
        .arg("--data-dir")
        .arg(&dir.data_dir)
        .arg("--postgres-bin-dir")
        .arg(bin)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.root.path().join("meterd.log")).unwrap())
        .spawn()
        .unwrap();
    let server = Server(process);
    let channel = Channel::from_shared(format!("http://127.0.0.1:{}", ports[0])).unwrap().connect_lazy();
    let begin = Instant::now();
    while JobServiceClient::new(channel.clone()).list_jobs(meterd::proto::ListJobsRequest {}).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the server did not start in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (server, channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_succeed_after_an_upgrade_of_the_running_server() {
    let dir = TestDir::new();
    let installation = Installation::copy(dir.root.path());
    let (server, channel) = serve(&dir, &installation.bin).await;
    installation.replace_library();
    let event = UsageEvent { client_id: "acme".into(), service: "sms".into(), ..Default::default() };
    let request = TrackUsageRequest { event: Some(event) };
    UsageServiceClient::new(channel.clone()).track_usage(request).await.unwrap();
    for zone in ["Europe/Berlin", "Asia/Tokyo", "UTC"] {
        let client = Client { client_id: "acme".into(), time_zone: zone.into(), ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["time_zone".into()] });
        let request = UpdateClientRequest { client: Some(client), update_mask };
        ClientServiceClient::new(channel.clone()).update_client(request).await.unwrap();
    }
    let policy = AlertPolicy { client_id: "acme".into(), ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["monthly_warning".into()] });
    let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask };
    AlertServiceClient::new(channel.clone()).update_alert_policy(request).await.unwrap();
    let request = RunJobRequest { job: "monthly_summaries".into() };
    let job = JobServiceClient::new(channel).run_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.last_error, "");
    drop(server);
}
