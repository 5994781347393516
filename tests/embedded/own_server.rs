//! Errors of an operator's own PostgreSQL that meterd cannot use: each is reported once and says how to fix it.

use super::{TestDir, connect};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A PostgreSQL on a TCP port with passwords. Its superuser connects over the socket.
struct OwnServer {
    process: Child,
    port: u16,
    /// Password of the superuser.
    url: String,
    dir: TestDir,
}

/// A setting of the server, in addition to its port.
type Setting<'a> = (&'a str, &'a str);

impl OwnServer {
    async fn start(settings: &[Setting<'_>], prepare: impl FnOnce(&Path)) -> Self {
        let dir = TestDir::new();
        dir.start().await.stop().await.unwrap();
        let cluster = dir.data_dir.join("postgres");
        let hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(cluster.join("pg_hba.conf"), hba).unwrap();
        prepare(&cluster);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("postgres");
        command
            .arg("-D")
            .arg(&cluster)
            .arg("-c")
            .arg(format!("port={port}"))
            .args(["-c", "listen_addresses=127.0.0.1"]);
        command.arg("-c").arg(format!("unix_socket_directories={}", dir.data_dir.join("run").display()));
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        if geteuid().is_root() {
            let owner = fs::metadata(&cluster).unwrap();
            command.uid(owner.uid()).gid(owner.gid());
        }
        let log = fs::File::create(dir.root.path().join("own.log")).unwrap();
        let process = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let host = dir.data_dir.join("run");
        let url = format!("postgres://meterd@localhost:{port}/postgres?host={}&sslmode=disable", host.display());
        let own = Self { process, port, url, dir };
        let begin = Instant::now();
        while let Err(error) = PgConnection::connect(&own.url).await {
            assert!(begin.elapsed() < Duration::from_secs(30), "{error}: {}", own.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        own
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.root.path().join("own.log")).unwrap()
    }

    async fn sql(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connect(&self.url).await).await.unwrap();
    }

    /// Returns the TCP URL of a user whose password is its name.
    fn url_of(&self, user: &str, rest: &str) -> String {
        format!("postgres://{user}:{user}@127.0.0.1:{}/{rest}", self.port)
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGQUIT);
        let _ = self.process.wait();
    }
}

/// Returns the error that a command prints.
fn error_of(command: &str, url: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args([command, "--allow-non-durable-database"].iter().take(if command == "verify" { 1 } else { 2 }))
        .env("DATABASE_URL", url)
        // The default ports can be in use by a connection of another test.
        .env("METERD_LISTEN", "127.0.0.1:0")
        .env("METERD_HTTP_LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    assert!(!output.status.success(), "{command} on {url} did not fail");
    let text = String::from_utf8(output.stderr).unwrap();
    println!("{command}: {text}");
    let error = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error in {text}"));
    assert!(!error.contains("at line"), "a line of PostgreSQL's source: {error}");
    assert!(!error.contains("error returned from database"), "{error}");
    error.to_owned()
}

/// Checks that the error contains `cause` once, and `fix`.
fn assert_says(error: &str, cause: &str, fix: &str) {
    assert_eq!(error.matches(cause).count(), 1, "{cause} in {error}");
    assert!(error.contains(fix), "{fix} in {error}");
}

#[tokio::test]
async fn each_database_error_is_reported_once_with_its_fix() {
    let own = OwnServer::start(&[], |_| {}).await;
    own.sql("CREATE ROLE alice LOGIN PASSWORD 'alice'; CREATE ROLE bob LOGIN PASSWORD 'bob'").await;
    own.sql("CREATE DATABASE usage OWNER alice").await;
    own.sql("CREATE ROLE once LOGIN PASSWORD 'once' CONNECTION LIMIT 0").await;
    own.sql("CREATE ROLE reader LOGIN PASSWORD 'reader'; ALTER ROLE reader SET default_transaction_read_only = on")
        .await;
    let location = format!("database usage on 127.0.0.1:{}", own.port);
    for command in ["migrate", "serve", "verify"] {
        let wrong = format!("postgres://alice:hunter2@127.0.0.1:{}/usage", own.port);
        let error = error_of(command, &wrong);
        assert_says(&error, "password authentication failed for user \"alice\"", "correct the user and the password");
        assert_says(&error, &location, "DATABASE_URL");
        assert!(!error.contains("hunter2"));
        let error = error_of(command, &own.url_of("alice", "nowhere"));
        assert_says(&error, "database \"nowhere\" does not exist", "CREATE DATABASE \"nowhere\"");
        let error = error_of(command, &own.url_of("once", "usage"));
        assert_says(&error, "too many connections for role \"once\"", "CONNECTION LIMIT");
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = error_of(command, &format!("postgres://alice:alice@127.0.0.1:{closed}/usage"));
        assert_says(&error, "Connection refused", &format!("nothing listens on 127.0.0.1:{closed}"));
        let error = error_of(command, "postgres://alice:alice@no-such-host.invalid/usage");
        assert_says(&error, "failed to lookup address information", "correct the host in DATABASE_URL");
        let error = error_of(command, "usage");
        assert_says(&error, "error: DATABASE_URL", "postgres://user:password@host");
    }
    for command in ["migrate", "serve"] {
        let error = error_of(command, &own.url_of("bob", "usage"));
        assert_says(
            &error,
            "user bob may not create tables in schema public",
            "GRANT CREATE, USAGE ON SCHEMA public TO bob",
        );
        let error = error_of(command, &own.url_of("reader", "usage"));
        assert_says(&error, "it takes no writes", "default_transaction_read_only");
    }

    // The tables belong to another user, so meterd could not create partitions later.
    let status = Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args(["migrate", "--allow-non-durable-database"])
        .env("DATABASE_URL", own.url_of("alice", "usage"))
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    let of_usage = own.url.replace("/postgres?", "/usage?");
    let grant = "GRANT CREATE, USAGE ON SCHEMA public TO bob; GRANT ALL ON ALL TABLES IN SCHEMA public TO bob";
    sqlx::raw_sql(grant).execute(&mut connect(&of_usage).await).await.unwrap();
    let error = error_of("serve", &own.url_of("bob", "usage"));
    assert_says(&error, "usage_events belongs to alice", "GRANT alice TO bob");
    own.sql("GRANT alice TO bob").await;
    let migrated = Command::new(env!("CARGO_BIN_EXE_meterd"))
        .args(["migrate", "--allow-non-durable-database"])
        .env("DATABASE_URL", own.url_of("bob", "usage"))
        .output()
        .unwrap();
    assert!(migrated.status.success(), "{migrated:?}");
}

#[tokio::test]
async fn a_standby_is_reported() {
    let signal = |cluster: &Path| {
        let path = cluster.join("standby.signal");
        fs::write(&path, "").unwrap();
        let owner = fs::metadata(cluster).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    };
    let own = OwnServer::start(&[], signal).await;
    for command in ["migrate", "serve"] {
        let error = error_of(command, &own.url);
        assert_says(&error, "it is a standby", "name the primary server in DATABASE_URL");
    }
}

/// Creates a self-signed server certificate of version 1, as Citus does on its first start. Returns certificate and
/// key.
fn version_1_certificate(cluster: &Path) -> [PathBuf; 2] {
    let [certificate, key, request] = ["server.crt", "server.key", "server.csr"].map(|name| cluster.join(name));
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(cluster).output().expect("openssl is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let new = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "server.key"];
    let direct = [&["req", "-x509", "-x509v1", "-out", "server.crt"][..], &new].concat();
    if !openssl(&direct).0 {
        // Older versions of openssl create version 1 by default.
        assert!(openssl(&[&["req", "-new", "-out", "server.csr"][..], &new].concat()).0);
        let sign = ["x509", "-req", "-in", "server.csr", "-signkey", "server.key", "-out", "server.crt", "-days", "30"];
        assert!(openssl(&sign).0);
        fs::remove_file(request).unwrap();
    }
    let (_, text) = openssl(&["x509", "-in", "server.crt", "-noout", "-text"]);
    assert!(text.contains("Version: 1"), "{text}");
    let owner = fs::metadata(cluster).unwrap();
    for file in [&certificate, &key] {
        chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    [certificate, key]
}

/// Creates a self-signed certificate of version 3, as `openssl req -x509` does.
fn version_3_certificate(cluster: &Path) {
    let created = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let owner = fs::metadata(cluster).unwrap();
    for (name, text) in [("server.crt", created.cert.pem()), ("server.key", created.signing_key.serialize_pem())] {
        let path = cluster.join(name);
        fs::write(&path, text).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[tokio::test]
async fn an_unreadable_certificate_is_reported_with_sslmode_and_the_fix() {
    let own = OwnServer::start(&[("ssl", "on")], |cluster| drop(version_1_certificate(cluster))).await;
    own.sql("CREATE ROLE alice LOGIN PASSWORD 'alice'").await;
    own.sql("CREATE DATABASE usage OWNER alice").await;
    for (mode, named) in [("", "sslmode=prefer"), ("?sslmode=require", "sslmode=require")] {
        let error = error_of("migrate", &own.url_of("alice", &format!("usage{mode}")));
        assert_says(&error, named, "sslmode=disable");
        assert_says(&error, "version 1", "version 3");
    }
    // The fix in the message works.
    let disabled = own.url_of("alice", "usage?sslmode=disable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    let migrated = command.args(["migrate", "--allow-non-durable-database"]).env("DATABASE_URL", disabled).output();
    assert!(migrated.as_ref().unwrap().status.success(), "{migrated:?}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_verified_only_if_sslmode_requires_it() {
    let own = OwnServer::start(&[("ssl", "on")], version_3_certificate).await;
    own.sql("CREATE ROLE alice LOGIN PASSWORD 'alice'").await;
    own.sql("CREATE DATABASE usage OWNER alice").await;
    for mode in ["usage", "usage?sslmode=prefer", "usage?sslmode=require"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
        let migrate = command.args(["migrate", "--allow-non-durable-database"]);
        let migrated = migrate.env("DATABASE_URL", own.url_of("alice", mode)).output().unwrap();
        assert!(migrated.status.success(), "{mode}: {migrated:?}");
    }
    let error = error_of("migrate", &own.url_of("alice", "usage?sslmode=verify-full"));
    assert_says(&error, "sslmode=verify-full", "sslrootcert");
}
