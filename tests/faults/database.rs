//! The durable PostgreSQL of a scenario. It is run by the test or by the first replica.

use crate::proxy::Target;
use crate::scenario_dir::ScenarioDir;
use meterd_embedded_postgres::{Embedded, EmbeddedSettings, attach};
use meterd_store::database::connect;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often the test checks its own database.
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// Maximum time of a recovery.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// The database of a scenario.
pub struct Database {
    pub data_dir: PathBuf,
    /// Task that restarts the test's own database when it dies, as meterd does.
    supervisor: Option<JoinHandle<()>>,
    /// The address of a database that is given.
    given: Option<String>,
}

/// Environment variable with the address (host and port) of a database that the scenarios use instead of their own: for
/// example the coordinator of a Citus cluster, with the role and the database meterd, prepared by
/// `meterd migrate --distribute`. Each scenario needs an empty database. Scenarios that stop the database or fill its
/// disk cannot use it.
const GIVEN: &str = "FAULTS_DATABASE";

impl Database {
    /// Starts a database that the test runs.
    pub async fn start(scenario_dir: &ScenarioDir) -> Self {
        let data_dir = scenario_dir.path("data");
        let embedded = Arc::new(start(data_dir.clone()).await);
        let supervisor = tokio::spawn(async move {
            loop {
                tokio::time::sleep(CHECK_EVERY).await;
                drop(embedded.ensure_running().await);
            }
        });
        let database = Self { data_dir, supervisor: Some(supervisor), given: None };
        database.show_faults().await;
        database
    }

    /// Describes the database that a replica runs in this directory.
    pub fn of_replica(data_dir: PathBuf) -> Self {
        Self { data_dir, supervisor: None, given: None }
    }

    /// Returns the database that is given, if there is one.
    pub fn given(scenario_dir: &ScenarioDir) -> Option<Self> {
        let address = std::env::var(GIVEN).ok()?;
        Some(Self { data_dir: scenario_dir.path("data"), supervisor: None, given: Some(address) })
    }

    /// Returns where a proxy reaches the database.
    pub fn target(&self) -> Target {
        match &self.given {
            Some(address) => Target::Tcp(address.parse().expect("host and port")),
            None => Target::Unix(self.socket()),
        }
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.data_dir.join("run/.s.PGSQL.5432")
    }

    /// Returns a pool that does not use a proxy.
    pub async fn pool(&self) -> PgPool {
        connect::pool(connect::options(&self.url().await).unwrap(), 4)
    }

    /// Waits until the database answers, and returns its URL.
    pub async fn url(&self) -> String {
        if let Some(address) = &self.given {
            return format!("postgres://meterd@{address}/meterd?sslmode=disable");
        }
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Ok(Some(url)) = attach(&self.data_dir).await {
                return url;
            }
            assert!(Instant::now() < deadline, "PostgreSQL does not answer");
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// Makes faults visible. PostgreSQL logs deadlocks: by default it checks for them after a second, when a writer has already
    /// stopped waiting. And a commit that has not waited for the disk is lost in a kill: by default it would be written 0.2 s later.
    pub async fn show_faults(&self) {
        let pool = self.pool().await;
        let settings = ["SET deadlock_timeout = '100ms'", "SET wal_writer_delay = '10s'"];
        for statement in settings.map(|setting| format!("ALTER SYSTEM {setting}")) {
            pool.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        pool.execute("SELECT pg_reload_conf()").await.unwrap();
        pool.close().await;
    }

    /// Returns the process id of the postmaster.
    pub fn postmaster(&self) -> Option<String> {
        let file = std::fs::read_to_string(self.data_dir.join("postgres/postmaster.pid")).ok()?;
        file.lines().next().map(String::from)
    }

    /// Kills the postmaster with SIGKILL. The supervisor or the replica restarts it.
    pub fn kill(&self) {
        let pid = self.postmaster().expect("the database is running");
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }

    /// Counts the occurrences of a text in the log.
    pub fn count_in_log(&self, text: &str) -> usize {
        let logs = ["postgres.log", "postgres.log.1"].map(|name| std::fs::read(self.data_dir.join(name)));
        logs.into_iter().flatten().map(|log| String::from_utf8_lossy(&log).matches(text).count()).sum()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.abort();
        }
    }
}

/// Starts a durable database.
pub async fn start(data_dir: PathBuf) -> Embedded {
    let settings = EmbeddedSettings { data_dir, bin_dir: None, download_url: None, download: true, durable: true };
    Embedded::start(&settings).await.unwrap()
}
