//! Two real servers on one database. The server that runs a job is killed or stopped, and the other one takes over in
//! time. They never run the job at the same time, also when the stopped server continues.

use meterd::cli::verify::verify_all;
use meterd::proto::job_service_client::JobServiceClient;
use meterd::proto::{Job, ListJobsRequest, RunJobRequest};
use meterd_embedded_postgres::{Embedded, EmbeddedSettings};
use meterd_store::database::connect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::Channel;

/// The limit in the API documentation.
const TAKE_OVER_MAX: Duration = Duration::from_secs(25);
/// Transactions of the job, with 10,000 request ids each, and how long the trigger delays each.
const CHUNKS: i64 = 24;
const CHUNK_SECONDS: f64 = 0.5;

/// A server process. Its database role distinguishes its statements from those of the other.
struct Server {
    role: &'static str,
    process: Child,
    address: String,
    log: PathBuf,
}

impl Server {
    fn start(role: &'static str, url: &str, folder: &Path) -> Self {
        let ports = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let log = folder.join(format!("{role}.log"));
        let process = Command::new(env!("CARGO_BIN_EXE_meterd"))
            .arg("serve")
            .arg(format!("--database-url={}", url.replace("postgres://meterd@", &format!("postgres://{role}@"))))
            .arg(format!("--listen=127.0.0.1:{}", ports[0]))
            .arg(format!("--http-listen=127.0.0.1:{}", ports[1]))
            .args(["--allow-non-durable-database", "--schedule-key-pruning=off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { role, process, address: format!("http://127.0.0.1:{}", ports[0]), log }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(Channel::from_shared(self.address.clone()).unwrap().connect_lazy())
    }

    async fn key_pruning(&self) -> Option<Job> {
        let jobs = self.jobs().list_jobs(ListJobsRequest {}).await.ok()?.into_inner().jobs;
        jobs.into_iter().find(|job| job.job == "key_pruning")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Two servers and a job that takes long.
struct Pair {
    folder: TempDir,
    postgres: Embedded,
    pool: PgPool,
    servers: Vec<Server>,
}

async fn until<T>(what: &str, at_most: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + at_most;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "timeout after {at_most:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Pair {
    async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("meterd-jobs-").tempdir().unwrap();
        let settings = EmbeddedSettings {
            data_dir: folder.path().join("data"),
            bin_dir: None,
            download_url: None,
            download: true,
            durable: false,
        };
        let postgres = Embedded::start(&settings).await.unwrap();
        let pool = connect::pool(connect::options(postgres.url()).unwrap(), 4);
        pool.execute("CREATE ROLE first SUPERUSER LOGIN; CREATE ROLE second SUPERUSER LOGIN").await.unwrap();
        let servers: Vec<Server> =
            ["first", "second"].map(|role| Server::start(role, postgres.url(), folder.path())).into();
        for server in &servers {
            until("the servers come up", Duration::from_secs(60), async || server.key_pruning().await).await;
        }
        let ids = CHUNKS * 10_000 - 1;
        // Each transaction of the job waits, records its role and time, and records whether another one ran at the same
        // time. A sequence counts the latter, because a rollback does not reset a sequence.
        let slow = format!(
            "CREATE TABLE chunks (role text, began timestamptz, ended timestamptz);
             CREATE SEQUENCE overlapping_runs MINVALUE 0 START 0;
             SELECT nextval('overlapping_runs');
             INSERT INTO create_requests (principal, request_id, request_hash, response, create_time)
             SELECT '', n::text, '', '', now() - interval '500 days' FROM generate_series(1, {ids}) AS n;
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
             DECLARE began timestamptz := clock_timestamp();
             BEGIN
                 IF NOT pg_try_advisory_xact_lock(4711) THEN PERFORM nextval('overlapping_runs'); END IF;
                 PERFORM pg_sleep({CHUNK_SECONDS});
                 INSERT INTO chunks VALUES (session_user, began, clock_timestamp());
                 RETURN NULL;
             END $$;
             CREATE TRIGGER slow BEFORE DELETE ON create_requests FOR EACH STATEMENT EXECUTE FUNCTION slow()"
        );
        pool.execute(AssertSqlSafe(slow)).await.unwrap();
        Self { folder, postgres, pool, servers }
    }

    /// Starts the job and waits until it is running. Returns the server that runs it and the other one.
    async fn begin(&mut self) -> (Server, Server) {
        let mut client = self.servers[0].jobs();
        tokio::spawn(async move { client.run_job(RunJobRequest { job: "key_pruning".into() }).await });
        let role = until("the job is in the middle", Duration::from_secs(20), async || {
            let middle: Option<String> = sqlx::query_scalar("SELECT max(role) FROM chunks HAVING count(*) >= 3")
                .fetch_optional(&self.pool)
                .await
                .unwrap();
            middle
        })
        .await;
        let second = self.servers.pop().unwrap();
        let first = self.servers.pop().unwrap();
        if first.role == role { (first, second) } else { (second, first) }
    }

    /// Waits until the other server has completed a transaction. Returns how long this took, and how long after `since`
    /// it began.
    async fn take_over(&self, other: &Server, since: Instant) -> (Duration, f64) {
        until("the other one takes over", TAKE_OVER_MAX, async || {
            let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM chunks WHERE role = $1)")
                .bind(other.role)
                .fetch_one(&self.pool)
                .await
                .unwrap();
            there.then_some(())
        })
        .await;
        let duration = since.elapsed();
        let gap: f64 = sqlx::query_scalar(
            "SELECT extract(epoch FROM min(began) FILTER (WHERE role = $1) - max(ended) FILTER (WHERE role <> $1))::float8
             FROM chunks",
        )
        .bind(other.role)
        .fetch_one(&self.pool)
        .await
        .unwrap();
        (duration, gap)
    }

    /// Checks that the job ended once with all work done, and that the two servers never ran it at the same time.
    async fn assert_apart(&self, holder: &str, other: &Server) {
        let done = until("the job ends", Duration::from_secs(60), async || {
            other.key_pruning().await.filter(|job| !job.running && job.run_count > 0)
        })
        .await;
        assert_eq!((done.run_count, done.failure_count), (1, 0), "{done:?}");
        let (mine, theirs, late): (i64, i64, i64) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE role = $1), count(*) FILTER (WHERE role = $2),
                 count(*) FILTER (WHERE role = $1 AND ended > (SELECT min(began) FROM chunks WHERE role = $2))
             FROM chunks",
        )
        .bind(holder)
        .bind(other.role)
        .fetch_one(&self.pool)
        .await
        .unwrap();
        let overlapping: i64 =
            sqlx::query_scalar("SELECT last_value FROM overlapping_runs").fetch_one(&self.pool).await.unwrap();
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM create_requests").fetch_one(&self.pool).await.unwrap();
        println!(
            "{mine} transactions of the first holder, {theirs} of the next; {overlapping} at the same time, {late} late, {left} request ids left"
        );
        assert_eq!((overlapping, late, left), (0, 0, 0));
        assert_eq!(verify_all(&self.pool, None, None).await.unwrap().differences, 0);
    }

    async fn stop(self) {
        drop(self.servers);
        self.pool.close().await;
        self.postgres.stop().await.unwrap();
        drop(self.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_takes_over_the_job_of_a_killed_one() {
    let mut pair = Pair::start().await;
    let (holder, other) = pair.begin().await;
    let killed_at = Instant::now();
    holder.signal(Signal::SIGKILL);
    let (duration, gap) = pair.take_over(&other, killed_at).await;
    println!("kill -9: the next transaction completed {:.1} s later, {gap:.1} s without a job", duration.as_secs_f64());
    pair.assert_apart(holder.role, &other).await;
    drop(other);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_continues_after_a_stop_leaves_its_job_to_the_other() {
    let mut pair = Pair::start().await;
    let (holder, other) = pair.begin().await;
    let stopped_at = Instant::now();
    holder.signal(Signal::SIGSTOP);
    let (duration, gap) = pair.take_over(&other, stopped_at).await;
    // Its next renewal hangs, so it does not learn that it has lost the job. It must not work at the same time as the
    // other.
    let mut stall = pair.pool.begin().await.unwrap();
    stall.execute("LOCK TABLE jobs").await.unwrap();
    holder.signal(Signal::SIGCONT);
    println!("SIGSTOP: the next transaction completed {:.1} s later, {gap:.1} s without a job", duration.as_secs_f64());
    until("it notices by itself", Duration::from_secs(3), async || {
        std::fs::read_to_string(&holder.log).unwrap().contains("lost its lease").then_some(())
    })
    .await;
    stall.rollback().await.unwrap();
    pair.assert_apart(holder.role, &other).await;
    let again = holder.jobs().run_job(RunJobRequest { job: "partitions".into() }).await;
    assert_eq!(again.unwrap().into_inner().job.unwrap().last_error, "", "the server can run other jobs");
    drop((holder, other));
    pair.stop().await;
}
