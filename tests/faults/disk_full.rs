//! A disk that becomes full and later has space again: once the disk with the data, once the disk with the write-ahead
//! log.

use crate::calls::client;
use crate::database;
use crate::deployment::Deployment;
use crate::run::{Length, Run, grouped};
use crate::scenario;
use crate::scenario_dir::{ScenarioDir, run};
use meterd::proto::GetCurrentMonthUsageRequest;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Enough for a small database and some minutes of load.
const DATA_MIB: usize = 160;
const WAL_MIB: usize = 200;
/// Number of rejected calls to wait for while the disk is full.
const REJECTED_CALLS: usize = 20;
/// Maximum time until the first calls are rejected. An event is retried for a while, and a full log stops PostgreSQL.
const RETRY: &str = "--retry-seconds=2";
const REJECTED_WITHIN: Duration = Duration::from_secs(60);
/// Maximum time until events are recorded again once there is space.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
const EVENTS_BEFORE_FULL: u64 = 300;

scenario! {
    a_full_data_disk_rejects_events_until_there_is_space => |run| full(run, Disk::Data);
    a_full_log_disk_rejects_events_until_there_is_space => |run| full(run, Disk::Wal);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    Data,
    Wal,
}

async fn full(run: Run, disk: Disk) {
    let times = run.count(1, 5);
    let scenario_dir = ScenarioDir::new();
    let Some(small) = scenario_dir.mount("small", if disk == Disk::Data { DATA_MIB } else { WAL_MIB }) else {
        assert!(run.length == Length::Short, "mounting a file system needs root");
        println!("skipped: mounting a file system needs root");
        return;
    };
    let data_dir = if disk == Disk::Data { small.join("data") } else { scenario_dir.path("data") };
    let wal_dir = if disk == Disk::Data { scenario_dir.path("wal") } else { small.join("wal") };
    move_wal(&data_dir, &wal_dir).await;
    let deployment = Deployment::start_in(run, scenario_dir, data_dir, &[RETRY]).await;
    let (load, subscribers) = (deployment.load(), deployment.subscribers());
    let mut recovery_time_max = Duration::ZERO;
    let baseline = deployment.resources().await;
    for _ in 0..times {
        load.wait_for_progress(EVENTS_BEFORE_FULL, RECOVERED_WITHIN).await;
        let rejected = load.rejected();
        fill(&small.join("ballast"));
        let begin = Instant::now();
        while load.rejected() < rejected + REJECTED_CALLS {
            assert!(begin.elapsed() < REJECTED_WITHIN, "no call was rejected");
            tokio::time::sleep(Duration::from_millis(10)).await;
            // Fill the space that the database has freed meanwhile.
            fill(&small.join("ballast"));
        }
        if disk == Disk::Data {
            read(&deployment).await;
        }
        fs::remove_file(small.join("ballast")).unwrap();
        recovery_time_max = recovery_time_max.max(load.wait_for_progress(EVENTS_BEFORE_FULL, RECOVERED_WITHIN).await);
    }
    let found = deployment.finish(load, subscribers, baseline).await;
    let refusals: Vec<String> =
        found.tally.refusals.iter().map(|(refusal, count)| format!("{refusal} × {}", grouped(*count))).collect();
    // PostgreSQL restarts by itself unless there is no space for its recovery. Then meterd restarts it.
    let panics = deployment.database.count_in_log("PANIC:");
    let restarts = deployment.replicas[0].count_in_log("had stopped and is running again");
    deployment.run.report(
        format!("disk of the {disk:?} full × {times}"),
        format!(
            "{found}; while full: {}; PANIC × {panics}, PostgreSQL started again by meterd × {restarts}; with room again {EVENTS_BEFORE_FULL} \
             events were settled after {:.1} s at most",
            refusals.join(", "),
            recovery_time_max.as_secs_f64()
        ),
    );
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    // Callers must get an error instead of waiting.
    let is_other_reason = |refusal: &&String| !refusal.contains("DATABASE_UNAVAILABLE");
    assert_eq!(
        found.tally.refusals.keys().find(is_other_reason),
        None,
        "a call failed with another reason while the disk was full"
    );
    // The log of PostgreSQL may be on the full disk.
    let full = "No space left on device";
    let count_in_log = deployment.database.count_in_log(full)
        + deployment.replicas.iter().map(|replica| replica.count_in_log(full)).sum::<usize>();
    assert!(count_in_log > 0, "the disk was never full");
    deployment.stop().await;
}

/// Checks that reads work while the data has no space.
async fn read(deployment: &Deployment) {
    let request = GetCurrentMonthUsageRequest { client_id: "hot-0".into(), ..Default::default() };
    let month = client(&deployment.addresses()[1]).get_current_month_usage(request).await.unwrap().into_inner();
    assert!(month.totals.unwrap().request_count > 0);
}

/// Creates the database and moves its write-ahead log.
async fn move_wal(data_dir: &Path, wal_dir: &Path) {
    database::start(data_dir.to_path_buf()).await.stop().await.unwrap();
    let wal = data_dir.join("postgres/pg_wal");
    run("mv", &[&wal, wal_dir]);
    std::os::unix::fs::symlink(wal_dir, wal).unwrap();
}

/// Uses all free space.
fn fill(ballast: &Path) {
    let mut file = File::options().create(true).append(true).open(ballast).unwrap();
    let zeros = vec![0; 1 << 16];
    let mut size = zeros.len();
    // Fill up to the last byte.
    while size > 0 {
        if file.write_all(&zeros[..size]).is_err() {
            size /= 16;
        }
    }
}
