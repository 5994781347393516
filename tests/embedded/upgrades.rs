//! Minor upgrades of the installed PostgreSQL under its running server, on a copy of the installation.

use super::{Place, connect, count, write};
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

/// A copy of the installed PostgreSQL: it may be upgraded, and broken.
struct Installation {
    bin: PathBuf,
    lib: PathBuf,
}

impl Installation {
    /// Copies the programs and libraries to the same places below `root`: PostgreSQL finds them relative to each other.
    fn copy(root: &Path) -> Self {
        let [bin, lib, share] = ["--bindir", "--pkglibdir", "--sharedir"].map(|what| {
            let output = Command::new("pg_config").arg(what).output().expect("pg_config is installed");
            let from = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
            let to = root.join(from.strip_prefix("/").unwrap());
            fs::create_dir_all(&to).unwrap();
            // Precompiled code for the just-in-time compiler is large, and nobody needs it.
            let script = r#"cd "$1" && tar -c --exclude=./bitcode --exclude='./llvmjit*' . | tar -x -C "$2""#;
            let copied = Command::new("sh").args(["-c", script, "sh"]).args([&from, &to]).status().unwrap();
            assert!(copied.success(), "{} is copied", from.display());
            to
        });
        assert!(share.join("postgres.bki").exists() && bin.join("initdb").exists());
        Self { bin, lib }
    }

    /// Replaces a file as a package manager does: the old one stays for whoever has it open.
    fn replace(path: &Path, contents: &[u8], mode: u32) {
        let new = path.with_extension("new");
        fs::write(&new, contents).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Puts a library in place that no server can load.
    fn replace_library(&self) {
        Self::replace(&self.lib.join("plpgsql.so"), b"from another version", 0o644);
    }

    /// Makes `postgres` one that calls itself version `version` and is the installed one otherwise.
    fn upgrade_to(&self, version: &str) {
        let output = Command::new("pg_config").arg("--bindir").output().unwrap();
        let real = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'postgres (PostgreSQL) {version}'; exit; fi\nexec '{real}/postgres' \"$@\"\n"
        );
        Self::replace(&self.bin.join("postgres"), script.as_bytes(), 0o755);
    }

    fn settings(&self, place: &Place) -> EmbeddedSettings {
        EmbeddedSettings { bin_dir: Some(self.bin.clone()), ..place.settings() }
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
async fn a_library_that_is_replaced_under_the_running_server_does_not_reach_it() {
    let place = Place::new();
    let installation = Installation::copy(place.root.path());
    let embedded = Embedded::start(&installation.settings(&place)).await.unwrap();
    run_trigger(embedded.url()).await.unwrap();
    installation.replace_library();
    run_trigger(embedded.url()).await.unwrap();
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn libraries_that_the_configuration_preloads_stay() {
    let place = Place::new();
    place.start().await.stop().await.unwrap();
    let conf = place.data_dir.join("postgres/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}\nshared_preload_libraries = 'auto_explain'\n")).unwrap();
    let embedded = place.start().await;
    assert_eq!(super::setting(embedded.url(), "shared_preload_libraries").await, "auto_explain,plpgsql");
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_restarts_a_server_whose_programs_were_upgraded() {
    let place = Place::new();
    let installation = Installation::copy(place.root.path());
    let killed = Embedded::start(&installation.settings(&place)).await.unwrap();
    write(killed.url()).await;
    let before = place.postmaster();
    drop(killed); // what kill -9 does: the lock is free, the server runs on

    let again = Embedded::start(&installation.settings(&place)).await.unwrap();
    assert!(again.reattached(), "the same programs");
    assert_eq!(place.postmaster(), before);
    drop(again);

    let major = fs::read_to_string(place.data_dir.join("postgres/PG_VERSION")).unwrap();
    installation.upgrade_to(&format!("{}.99", major.trim()));
    let embedded = Embedded::start(&installation.settings(&place)).await.unwrap();
    assert!(!embedded.reattached());
    assert_ne!(place.postmaster(), before);
    assert_eq!(count(embedded.url()).await, 1);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_an_older_meterd_started_without_the_library_is_restarted() {
    let place = Place::new();
    let killed = place.start().await;
    write(killed.url()).await;
    let before = place.postmaster().unwrap();
    let line = fs::read(format!("/proc/{before}/cmdline"));
    drop(killed);
    let Ok(line) = line else { return }; // not Linux
    place.kill_postmaster();
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
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(place.data_dir.join("postgres")).unwrap());
    let log = fs::File::create(place.root.path().join("old.log")).unwrap();
    let mut old = Command::new(program);
    old.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut old, owner);
    }
    let mut old = old.spawn().unwrap();
    let begin = Instant::now();
    while place.postmaster() != i32::try_from(old.id()).ok() && begin.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let starting = place.start();
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
    let place = Place::new();
    let installation = Installation::copy(place.root.path());
    let embedded = Embedded::start(&installation.settings(&place)).await.unwrap();
    run_trigger(embedded.url()).await.unwrap();
    // Homebrew puts a new version beside the old one, and then removes the old one with all its libraries.
    fs::remove_file(installation.lib.join("plpgsql.so")).unwrap();
    run_trigger(embedded.url()).await.unwrap_err();
    let major = fs::read_to_string(place.data_dir.join("postgres/PG_VERSION")).unwrap();
    installation.upgrade_to(&format!("{}.99", major.trim()));
    let begin = Instant::now();
    while !embedded.ensure_running().await.unwrap() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it is restarted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    run_trigger(embedded.url()).await.unwrap();
    embedded.stop().await.unwrap();
}

/// A `meterd serve` with a PostgreSQL of its own, stopped with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

async fn serve(place: &Place, bin: &Path) -> (Server, Channel) {
    let ports = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let process = Command::new(env!("CARGO_BIN_EXE_meterd"))
        .arg("serve")
        .arg(format!("--listen=127.0.0.1:{}", ports[0]))
        .arg(format!("--http-listen=127.0.0.1:{}", ports[1]))
        .arg("--data-dir")
        .arg(&place.data_dir)
        .arg("--postgres-bin-dir")
        .arg(bin)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(place.root.path().join("meterd.log")).unwrap())
        .spawn()
        .unwrap();
    let server = Server(process);
    let channel = Channel::from_shared(format!("http://127.0.0.1:{}", ports[0])).unwrap().connect_lazy();
    let begin = Instant::now();
    while JobServiceClient::new(channel.clone()).list_jobs(meterd::proto::ListJobsRequest {}).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the server starts");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (server, channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_goes_on_after_an_upgrade_under_the_running_server() {
    let place = Place::new();
    let installation = Installation::copy(place.root.path());
    let (server, channel) = serve(&place, &installation.bin).await;
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
