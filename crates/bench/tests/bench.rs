//! Short runs of `meterd-bench`: it measures everything, verifies what it recorded, and leaves nothing behind.

mod harness;

use harness::{bench, data_dir, entries, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

/// A row's workload, clients, batch size and calls at once.
fn name(row: &Value) -> String {
    let text = |key: &str| row[key].as_str().unwrap();
    format!("{} {} {} {}", text("workload"), text("clients"), row["batch_events"], row["at_once"])
}

fn is_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

#[test]
fn every_row_is_measured_beside_its_floors_and_what_was_acknowledged_is_in_the_database() {
    let flags = ["--seconds=1", "--rounds=1", "--concurrency=8", "--batch=500", "--batch-calls=3", "--clients=10"];
    let report = report(&flags);
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(name).collect();
    assert_eq!(
        names,
        [
            "HealthCheck none 1 8",
            "Transaction many 1 8",
            "Transaction hot 1 8",
            "Statements many 500 2",
            "Statements hot 500 2",
            "Copy many 500 2",
            "Copy hot 500 2",
            "TrackUsage many 1 8",
            "TrackUsage hot 1 8",
            "BatchTrackUsage many 500 3",
            "BatchTrackUsage hot 500 3",
            "StreamUsage many 500 3",
            "StreamUsage hot 500 3",
        ]
    );
    for (row, name) in rows.iter().zip(&names) {
        for figure in ["events_per_second", "p50_us", "p99_us"] {
            let figures = ["min", "median", "max"].map(|of| row[figure][of].as_f64().unwrap());
            assert!(figures[0] > 0.0 && figures.is_sorted(), "{name}: {row}");
        }
        let is_of = |calls: &[&str]| calls.iter().any(|call| name.starts_with(call));
        let (is_lone, is_batch) = (is_of(&["TrackUsage"]), is_of(&["BatchTrackUsage", "StreamUsage"]));
        for (ratio, is_there) in [
            ("ratio_to_transaction", is_lone || is_batch),
            ("ratio_to_health_check", is_lone),
            ("ratio_to_statements", is_batch),
            ("ratio_to_copy", is_batch),
        ] {
            assert_eq!(is_positive(&row[ratio]["median"]), is_there, "{name} {ratio}: {row}");
        }
        for figure in ["commit_ms", "events_per_commit"] {
            assert_eq!(is_positive(&row[figure]["median"]), is_lone || is_batch, "{name} {figure}: {row}");
        }
        // A row of any kind is longer than that, and shorter than that.
        let wal = row["wal_bytes_per_event"]["median"].as_f64();
        assert_eq!(
            wal.is_some_and(|bytes| (100.0..10_000.0).contains(&bytes)),
            !is_of(&["HealthCheck"]),
            "{name}: {row}"
        );
        if cfg!(target_os = "linux") {
            assert!(is_positive(&row["cpu_us_per_event"]["load"]["median"]), "{name}: {row}");
            for party in ["server", "database"] {
                let is_there = is_positive(&row["cpu_us_per_event"][party]["median"]);
                assert!(is_there || !(is_lone || is_batch), "{name} {party}: {row}");
            }
        }
    }

    let verification = &report["verification"];
    assert_eq!(verification["differences"], 0);
    assert_eq!(verification["events"], verification["acknowledged"]);
    assert_eq!(verification["duplicates"], 0);
    // Ten clients and a hot one of the floor, as many of the load; a night at the end of a month makes more.
    assert!(verification["client_months"].as_u64().unwrap() >= 22, "{verification}");
    assert_eq!(report["machine"]["fsync"], "on");
    assert!(is_positive(&report["machine"]["commit_us"]["p50"]));
    if cfg!(target_os = "linux") {
        let memory = ["server_idle_memory_bytes", "server_peak_memory_bytes"].map(|key| report[key].as_u64().unwrap());
        assert!(memory[0] > 0 && memory.is_sorted(), "{memory:?}");
    }
}

#[test]
fn what_is_sent_again_is_counted_once_whatever_it_looks_like() {
    let flags = ["--seconds=1", "--rounds=1", "--concurrency=4", "--batch=100", "--batch-calls=2", "--clients=20"];
    let contents = ["--duplicates=30", "--services=16", "--payload-bytes=300", "--hot=0"];
    let report = report(&[&flags[..], &contents[..]].concat());
    let verification = &report["verification"];
    assert_eq!(verification["exact"], true, "{verification}");
    assert_eq!(verification["events"], verification["acknowledged"]);
    let [new, again] = ["acknowledged", "duplicates"].map(|key| verification[key].as_f64().unwrap());
    // What the clients and their rows were made with is new.
    let made = 2.0 * 16.0 * 21.0;
    // COPY takes no duplicates, and is not among the acknowledged.
    assert!((0.25..0.35).contains(&(again / (new - made + again))), "{verification}");
}

#[test]
fn events_that_were_there_before_are_counted_with_the_others() {
    let flags = ["--seconds=1", "--rounds=1", "--calls=batch", "--batch=200", "--batch-calls=2", "--clients=20"];
    let report = report(&[&flags[..], &["--hot=0", "--preload=20000", "--days=5"]].concat());
    let names: Vec<_> = report["rows"].as_array().unwrap().iter().map(name).collect();
    assert_eq!(names, ["Statements many 200 2", "Copy many 200 2", "BatchTrackUsage many 200 2"]);
    let verification = &report["verification"];
    assert_eq!(verification["exact"], true, "{verification}");
    let [before, new, events] = ["before", "acknowledged", "events"].map(|key| verification[key].as_u64().unwrap());
    assert_eq!((before, before + new), (20_000, events));
}

#[test]
fn in_open_loop_events_come_at_the_rate_that_was_asked_for() {
    let flags =
        ["--seconds=1", "--rounds=1", "--concurrency=64", "--batch=50", "--clients=10", "--hot=0", "--rate=400"];
    let report = report(&flags);
    for row in report["rows"].as_array().unwrap() {
        let rate = row["events_per_second"]["median"].as_f64().unwrap();
        assert!((300.0..500.0).contains(&rate), "{row}");
        assert!(row["ratio_to_transaction"].is_null(), "a ratio of what was asked for: {row}");
    }
    assert_eq!(report["verification"]["exact"], true);
}

#[test]
fn each_wrong_flag_is_named_before_anything_is_started() {
    for (flags, named) in [
        (&["--batch=5000", "--payload-bytes=8000", "--rate=100"][..], &["--payload-bytes 8000", "--rate 100"][..]),
        (&["--payload-bytes=5"], &["--payload-bytes", "must be 0, or"]),
        (&["--services=17"], &["--services"]),
        (&["--duplicates=91"], &["--duplicates"]),
        (&["--calls=health"], &["--calls"]),
        (&["--preload=5"], &["--preload", "must be 0, or"]),
        (&["--days=5"], &["--preload"]),
        (&["goals", "--only=everything"], &["--only"]),
    ] {
        let directory = data_dir();
        let output = bench(directory.path(), flags).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{flags:?}");
        assert!(named.iter().all(|name| text.contains(name)), "{flags:?}: {text}");
    }
}

#[test]
fn a_missing_or_foreign_meterd_is_named_with_the_fix_before_anything_is_started() {
    for (path, named) in [
        ("/nowhere/meterd", &["--meterd", "METERD_BIN", "/nowhere/meterd", "cargo build"][..]),
        ("/bin/true", &["/bin/true is not meterd", "--meterd"]),
    ] {
        let directory = data_dir();
        let output = bench(directory.path(), &["--meterd", path]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{path}");
        assert!(named.iter().all(|name| text.contains(name)), "{path}: {text}");
        assert_eq!(entries(directory.path()), [""; 0], "nothing was started");
    }
}

#[test]
fn a_meterd_of_another_version_is_measured_and_both_versions_are_named() {
    let directory = data_dir();
    let script = directory.path().join("meterd");
    let real = std::path::Path::new(env!("CARGO_BIN_EXE_meterd-bench")).with_file_name("meterd");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo meterd 0.0.1; else exec {} \"$@\"; fi\n",
        real.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let flags = ["--seconds=1", "--rounds=1", "--calls=batch", "--batch=200", "--batch-calls=2", "--clients=20"];
    let output = bench(directory.path(), &flags).env("METERD_BIN", &script).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{stderr}");
    let versions = format!("is version 0.0.1, and meterd-bench is {}", env!("CARGO_PKG_VERSION"));
    assert!(stdout.contains(&versions) && stderr.contains(&versions), "{stdout}\n{stderr}");
}

#[test]
fn each_goal_stands_beside_what_was_measured() {
    let report = report(&["goals", "--only=batch", "--seconds=1", "--rounds=1", "--clients=10", "--batch-calls=2"]);
    assert_eq!(report["exact"], true);
    let sections = report["sections"].as_array().unwrap();
    assert_eq!(sections.iter().map(|section| &section["section"]).collect::<Vec<_>>(), ["batch"]);
    let goals = sections[0]["goals"].as_array().unwrap();
    for call in ["BatchTrackUsage", "StreamUsage"] {
        for (batch, of_statements, of_copy) in [("1,000", 1.5, 0.5), ("5,000", 2.0, 0.55)] {
            let of = |unit: &str| {
                let what = format!("{call}, {batch} per batch");
                let mut of = goals.iter().filter(|goal| goal["what"] == *what && goal["unit"] == unit);
                of.next().unwrap_or_else(|| panic!("{what} {unit}"))
            };
            for (goal, bound) in [(of("× (d)"), of_statements), (of("× (e)"), of_copy)] {
                let measured = goal["measured"]["median"].as_f64().unwrap();
                assert_eq!(goal["at_least"], bound, "{goal}");
                assert_eq!(goal["reached"], measured >= bound, "{goal}");
                assert!((goal["share"].as_f64().unwrap() - measured / bound).abs() < 1e-9, "{goal}");
            }
        }
    }
    let cpu = goals.iter().filter(|goal| goal["at_most"] == 3.0).count();
    assert_eq!(cpu, if cfg!(target_os = "linux") { 4 } else { 0 });
}

#[test]
fn alerts_are_timed_and_idle_subscribers_weighed_and_none_is_lost() {
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
    ];
    let report = report(&flags);
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
}

#[test]
fn an_interrupt_ends_all_it_started_and_leaves_nothing() {
    let directory = data_dir();
    let mut child = bench(directory.path(), &["--clients=10"]).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let postmaster = loop {
        assert!(begin.elapsed() < Duration::from_secs(60), "PostgreSQL does not start");
        std::thread::sleep(Duration::from_millis(20));
        let pid_file =
            entries(directory.path()).pop().map(|name| directory.path().join(name).join("postgres/postmaster.pid"));
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
    assert_eq!(entries(directory.path()), [""; 0], "nothing is left");
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
