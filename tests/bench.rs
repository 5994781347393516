//! `meterd bench`, briefly: it measures everything, proves what it recorded, and leaves nothing behind.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A place for the database that the user who runs PostgreSQL can reach, also where we are root.
fn place() -> TempDir {
    let place = tempfile::Builder::new().prefix("meterd-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    place
}

fn bench(place: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.arg("bench").args(flags).arg("--data-dir").arg(place).stdin(Stdio::null());
    command
}

fn entries(place: &Path) -> Vec<String> {
    fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Waits for a process, but not forever.
fn wait(child: &mut Child, at_most: Duration) -> std::process::ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > at_most {
            child.kill().unwrap();
            panic!("still running after {at_most:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_row_is_measured_and_what_was_acknowledged_is_in_the_database() {
    let place = place();
    let flags = ["--seconds=1", "--rounds=1", "--concurrency=8", "--clients=10", "--json"];
    let output = bench(place.path(), &flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_string();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {} {}", text(row, "workload"), text(row, "clients"), row["at_once"]))
        .collect();
    assert_eq!(
        names,
        [
            "HealthCheck none 8",
            "Transaction many 8",
            "Transaction hot 8",
            "TrackUsage many 8",
            "TrackUsage hot 8",
            "BatchTrackUsage many 4",
            "BatchTrackUsage hot 4",
            "StreamUsage many 4",
            "StreamUsage hot 4",
        ]
    );
    for (row, name) in rows.iter().zip(&names) {
        let positive = |value: &Value| assert!(value.as_f64().is_some_and(|value| value > 0.0), "{name}: {row}");
        for figure in ["events_per_second", "p50_us", "p99_us"] {
            ["median", "min", "max"].iter().for_each(|of| positive(&row[figure][of]));
        }
        let is_floor = name.starts_with("HealthCheck") || name.starts_with("Transaction");
        assert_eq!(row["ratio_to_transaction"].is_null(), is_floor, "{name}: {row}");
        assert_eq!(row["ratio_to_health_check"].is_null(), !name.starts_with("TrackUsage"), "{name}: {row}");
        for ratio in ["ratio_to_transaction", "ratio_to_health_check"] {
            if let Some(ratio) = row[ratio].as_object() {
                positive(&ratio["median"]);
            }
        }
        if cfg!(target_os = "linux") {
            positive(&row["cpu_us_per_event"]["load"]);
            if !is_floor {
                positive(&row["cpu_us_per_event"]["server"]);
                positive(&row["cpu_us_per_event"]["database"]);
            }
        }
    }

    let verification = &report["verification"];
    assert_eq!(verification["differences"], 0);
    assert_eq!(verification["events"], verification["acknowledged"]);
    // Ten clients and a hot one of the floor, as many of the load; a night at the end of a month makes more.
    assert!(verification["client_months"].as_u64().unwrap() >= 22, "{verification}");
    assert_eq!(report["machine"]["fsync"], "on");
    assert!(report["machine"]["commit_us"]["p50"].as_u64().unwrap() > 0);
    assert_eq!(entries(place.path()), [""; 0], "nothing is left");
}

#[test]
fn alerts_are_timed_and_idle_subscribers_weighed_and_none_is_lost() {
    let place = place();
    let flags = [
        "alerts",
        "--crossings=40",
        "--crossings-per-second=40",
        "--load=100",
        "--clients=10",
        "--subscribers=230",
        "--fan-out=20",
        "--fan-out-alerts=10",
        "--rounds=2",
        "--seconds=1",
        "--concurrency=8",
        "--json",
    ];
    let output = bench(place.path(), &flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("a figure in {report}"));

    for row in ["plain_answer", "crossing_answer", "alert"] {
        let row = &report["latency"][row];
        let figures = ["p50_us", "p90_us", "p99_us", "max_us"].map(|figure| number(&row[figure]));
        assert!(figures[0] > 0.0 && figures.is_sorted(), "{row}");
        assert!(number(&row["samples"]) >= 40.0, "{row}");
    }
    assert!(number(&report["latency"]["p99_ratio"]) > 0.0);
    let idle = &report["idle"];
    assert_eq!(number(&idle["received"]), 2.0 * 230.0, "everybody has the alert of each round");
    for figure in ["events_per_second_without", "events_per_second_with", "ratio", "last_alert_ms"] {
        assert!(number(&idle[figure]["median"]) > 0.0, "{figure}: {idle}");
    }
    let verification = &report["verification"];
    assert_eq!(verification["exact"], true);
    assert_eq!(verification["events"], verification["acknowledged"]);
    assert_eq!([&verification["crossed"], &verification["in_feed"]], [&Value::from(62), &Value::from(62)]);
    assert_eq!(verification["received"], 40);
    assert_eq!(entries(place.path()), [""; 0], "nothing is left");
}

#[test]
fn an_interrupt_ends_all_it_started_and_leaves_nothing() {
    let place = place();
    let mut child = bench(place.path(), &["--clients=10"]).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let postmaster = loop {
        assert!(begin.elapsed() < Duration::from_secs(60), "PostgreSQL does not start");
        std::thread::sleep(Duration::from_millis(20));
        let pid_file = entries(place.path()).pop().map(|name| place.path().join(name).join("postgres/postmaster.pid"));
        let text = pid_file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        if let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) {
            break pid;
        }
    };
    // Whatever it is doing by now: the start, the preparation or the first measurement.
    std::thread::sleep(Duration::from_secs(3));
    let server = children_of(child.id());
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert!(!wait(&mut child, Duration::from_secs(60)).success());
    assert_eq!(entries(place.path()), [""; 0], "nothing is left");
    for pid in server.into_iter().chain([postmaster]) {
        assert!(kill(Pid::from_raw(pid), None).is_err(), "process {pid} is left");
    }
}

/// Processes that this one started, where they can be listed.
fn children_of(parent: u32) -> Vec<i32> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    pairs.filter(|(_, of)| of.trim() == parent.to_string()).filter_map(|(pid, _)| pid.parse().ok()).collect()
}
