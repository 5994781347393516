//! The durable PostgreSQL of a scenario: one that this test keeps, or one that the first replica does.

use crate::place::Place;
use meterd_embedded_postgres::{Embedded, EmbeddedSettings, attach};
use meterd_store::connect;
use sqlx::PgPool;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often a database of this test is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a recovery may take.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// The database of a scenario.
pub struct Database {
    pub data_dir: PathBuf,
    /// Ours: started again when it dies, as meterd does.
    supervisor: Option<JoinHandle<()>>,
}

impl Database {
    /// One that this test keeps.
    pub async fn ours(place: &Place) -> Self {
        let data_dir = place.path("data");
        let embedded = Arc::new(start(data_dir.clone()).await);
        let supervisor = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                drop(embedded.ensure_running().await);
            }
        });
        let database = Self { data_dir, supervisor: Some(supervisor) };
        database.tell_deadlocks().await;
        database
    }

    /// One that a replica keeps in this directory.
    pub fn of_replica(data_dir: PathBuf) -> Self {
        Self { data_dir, supervisor: None }
    }

    /// Where its socket is.
    pub fn socket(&self) -> PathBuf {
        self.data_dir.join("run/.s.PGSQL.5432")
    }

    /// A way in that leads past all proxies.
    pub async fn pool(&self) -> PgPool {
        connect::pool(connect::options(&self.url().await).unwrap(), 4)
    }

    /// Its URL, as soon as it answers.
    pub async fn url(&self) -> String {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Ok(Some(url)) = attach(&self.data_dir).await {
                return url;
            }
            assert!(Instant::now() < deadline, "PostgreSQL does not answer");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Has deadlocks told in the log. By default they are looked for after a second, which is when a writer stops waiting.
    pub async fn tell_deadlocks(&self) {
        let pool = self.pool().await;
        for statement in ["ALTER SYSTEM SET deadlock_timeout = '100ms'", "SELECT pg_reload_conf()"] {
            sqlx::query(statement).execute(&pool).await.unwrap();
        }
        pool.close().await;
    }

    /// Its first process.
    pub fn postmaster(&self) -> Option<String> {
        let file = std::fs::read_to_string(self.data_dir.join("postgres/postmaster.pid")).ok()?;
        file.lines().next().map(String::from)
    }

    /// kill -9. Somebody brings it back.
    pub fn kill(&self) {
        let pid = self.postmaster().expect("it runs");
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }

    /// How many lines of its log say this.
    pub fn said(&self, text: &str) -> usize {
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
