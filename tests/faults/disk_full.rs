//! A disk that runs full, once the one with the data and once the one with the write-ahead log, and has room again.

use crate::calls::client;
use crate::database;
use crate::place::{Place, run};
use crate::run::{Length, Run, grouped};
use crate::scenario;
use crate::world::World;
use meterd::proto::GetCurrentMonthUsageRequest;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a small database and some minutes of load fit into.
const DATA_MIB: usize = 160;
const WAL_MIB: usize = 200;
/// Refusals of calls that are waited for, with the disk full.
const REFUSALS: usize = 20;
/// How soon the first calls must be refused: an event is tried for so long, and a log that is full ends PostgreSQL.
const RETRY: &str = "--retry-seconds=2";
const REFUSED_WITHIN: Duration = Duration::from_secs(60);
/// How soon it must go on once there is room.
const GOES_ON_WITHIN: Duration = Duration::from_secs(60);
const EVENTS_BETWEEN: u64 = 300;

scenario! {
    a_full_disk_of_the_data_refuses_and_then_goes_on => |run| full(run, Disk::Data);
    a_full_disk_of_the_log_refuses_and_then_goes_on => |run| full(run, Disk::Wal);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    Data,
    Wal,
}

async fn full(run: Run, disk: Disk) {
    let times = run.count(1, 5);
    let place = Place::new();
    let Some(small) = place.mount("small", if disk == Disk::Data { DATA_MIB } else { WAL_MIB }) else {
        assert!(run.length == Length::Short, "nothing can be mounted here, which takes root");
        println!("skipped: nothing can be mounted here, which takes root");
        return;
    };
    let data_dir = if disk == Disk::Data { small.join("data") } else { place.path("data") };
    let wal_dir = if disk == Disk::Data { place.path("wal") } else { small.join("wal") };
    move_wal(&data_dir, &wal_dir).await;
    let world = World::start_in(run, place, data_dir, &[RETRY]).await;
    let (load, subscribers) = (world.load(), world.subscribers());
    let mut went_on = Duration::ZERO;
    let held = world.held().await;
    for _ in 0..times {
        load.goes_on(EVENTS_BETWEEN, GOES_ON_WITHIN).await;
        let refused = load.refused();
        fill(&small.join("ballast"));
        let begin = Instant::now();
        while load.refused() < refused + REFUSALS {
            assert!(begin.elapsed() < REFUSED_WITHIN, "nobody is refused");
            tokio::time::sleep(Duration::from_millis(10)).await;
            // What the database itself has given up meanwhile.
            fill(&small.join("ballast"));
        }
        if disk == Disk::Data {
            read(&world).await;
        }
        fs::remove_file(small.join("ballast")).unwrap();
        went_on = went_on.max(load.goes_on(EVENTS_BETWEEN, GOES_ON_WITHIN).await);
    }
    let found = world.finish(load, subscribers, held).await;
    let refusals: Vec<String> =
        found.tally.refusals.iter().map(|(refusal, count)| format!("{refusal} × {}", grouped(*count))).collect();
    // It begins again by itself, unless there is no room for its recovery either: then meterd starts it.
    let panics = world.database.said("PANIC:");
    let restarts = world.replicas[0].said("had ended and is running again");
    world.run.report(
        format!("disk of the {disk:?} full × {times}"),
        format!(
            "{found}; while full: {}; PANIC × {panics}, PostgreSQL started again by meterd × {restarts}; with room again {EVENTS_BETWEEN} \
             events were settled after {:.1} s at most",
            refusals.join(", "),
            went_on.as_secs_f64()
        ),
    );
    assert_eq!(found.checked.recorded, found.checked.acknowledged);
    // Told, and not just left to wait.
    let told = |refusal: &&String| !refusal.contains("DATABASE_UNAVAILABLE");
    assert_eq!(found.tally.refusals.keys().find(told), None, "while full, callers are told so and nothing else");
    // The database's own log may be on that disk.
    let full = "No space left on device";
    let said = world.database.said(full) + world.replicas.iter().map(|replica| replica.said(full)).sum::<usize>();
    assert!(said > 0, "the disk must have been full");
    world.stop().await;
}

/// Reads go on where only the data has no room.
async fn read(world: &World) {
    let request = GetCurrentMonthUsageRequest { client_id: "hot-0".into() };
    let month = client(&world.addresses()[1]).get_current_month_usage(request).await.unwrap().into_inner();
    assert!(month.totals.unwrap().request_count > 0);
}

/// Makes the database, and puts its write-ahead log elsewhere.
async fn move_wal(data_dir: &Path, wal_dir: &Path) {
    database::start(data_dir.to_path_buf()).await.stop().await.unwrap();
    let wal = data_dir.join("postgres/pg_wal");
    run("mv", &[&wal, wal_dir]);
    std::os::unix::fs::symlink(wal_dir, wal).unwrap();
}

/// Takes all the room that there is.
fn fill(ballast: &Path) {
    let mut file = File::options().create(true).append(true).open(ballast).unwrap();
    let zeros = vec![0; 1 << 16];
    let mut size = zeros.len();
    // Down to the last byte.
    while size > 0 {
        if file.write_all(&zeros[..size]).is_err() {
            size /= 16;
        }
    }
}
