//! The goals of the write side.

use super::{Bound, Goal, GoalsArgs, Outcome};
use crate::LOAD_CLIENTS;
use crate::args::LoadArgs;
use crate::meterd_binary::MeterdBinary;
use crate::plan::{Call, Mix, Workload};
use crate::postgres::Postgres;
use crate::preload::Preload;
use crate::product::grouped;
use crate::rows::{Row, Rows};
use crate::spread::Spread;
use crate::writes::{Bench, Ended, measure_rounds};
use anyhow::Context;

/// Batch sizes, and the goals of each as multiples of the throughput of (d) and of (e).
const BATCHES: [(u32, f64, f64); 2] = [(1_000, 1.5, 0.5), (5_000, 2.0, 0.55)];
/// Goals of the CPU time of the server per event, in microseconds.
const LONE_CPU_US_MAX: f64 = 28.0;
const BATCH_CPU_US_MAX: f64 = 3.0;
/// Goal of the p99 of 32 callers: at most this much above the p99 of a lone commit.
const P99_ABOVE_COMMIT_US: f64 = 1_500.0;
/// Events per batch in a preloaded database, and its clients: nearly every event of a batch belongs to another one.
const RANDOM_BATCH: u32 = 1_000;
const RANDOM_CLIENTS: u32 = 100_000;
/// Goals in a preloaded database with random clients, as shares of the throughput of the clients of the load in an empty one, and of
/// (e) in the same database.
const RANDOM_BATCH_MIN: f64 = 0.6;
const RANDOM_LONE_MIN: f64 = 0.8;
const RANDOM_COPY_MIN: f64 = 0.45;
const RANDOM_WAL_BYTES_MAX: f64 = 1_500.0;

/// Compares TrackUsage with (b) and (g).
pub async fn track(args: &GoalsArgs, meterd: &MeterdBinary, postgres: &Postgres) -> anyhow::Result<Outcome> {
    let lone = |call, mix, at_once| Workload::lone(call, mix, at_once);
    let (many, hot) = (Mix::Many, Mix::Hot);
    let mut workloads = vec![];
    for at_once in [1, 8, 32, 64, 256] {
        if matches!(at_once, 1 | 256) {
            workloads.push(lone(Call::HealthCheck, Mix::None, at_once));
        }
        if at_once != 32 {
            workloads.push(lone(Call::Transaction, many, at_once));
        }
        workloads.push(lone(Call::TrackUsage, many, at_once));
        if at_once == 64 {
            workloads.push(lone(Call::Transaction, hot, at_once));
            workloads.push(lone(Call::TrackUsage, hot, at_once));
        }
    }
    let load = args.load(&[]);
    let (rows, ended) = measure(args, &load, meterd, postgres, workloads).await?;
    let of = |call, mix, at_once| rows.find(lone(call, mix, at_once)).context("it was measured");
    let clients = format!("{} clients", grouped(args.clients));
    let mut goals = vec![];

    let beside_transactions = [
        (1, "one caller", many, clients.as_str(), 1.2),
        (8, "8 callers", many, clients.as_str(), 1.2),
        (64, "64 callers", many, clients.as_str(), 4.0),
        (64, "64 callers", hot, "one hot client", 10.0),
    ];
    for (at_once, callers, mix, whose, times) in beside_transactions {
        let (row, floor) = (of(Call::TrackUsage, mix, at_once)?, of(Call::Transaction, mix, at_once)?);
        goals.push(Goal {
            what: format!("TrackUsage, {callers}, {whose}"),
            figures: format!("{}, (b) {}", rate(row), rate(floor)),
            measured: rows.ratio(row, Call::Transaction).context("(b) was measured")?,
            unit: "× (b)",
            bound: Bound::AtLeast(times),
        });
    }

    let top = of(Call::TrackUsage, many, 256)?;
    goals.push(Goal {
        what: "TrackUsage, 256 callers".into(),
        figures: rate(top),
        measured: rows.ratio_to_best_transaction(top, many).context("(b) was measured")?,
        unit: "× best (b)",
        bound: Bound::AtLeast(5.0),
    });
    goals.push(Goal {
        what: "TrackUsage, 256 callers".into(),
        figures: format!("{}, (g) {}", rate(top), rate(of(Call::HealthCheck, Mix::None, 256)?)),
        measured: rows.ratio(top, Call::HealthCheck).context("(g) was measured")?,
        unit: "× (g)",
        bound: Bound::AtLeast(0.5),
    });

    let (crowd, lone_call) = (of(Call::TrackUsage, many, 32)?, of(Call::TrackUsage, many, 1)?);
    let (commit, empty) = (of(Call::Transaction, many, 1)?, of(Call::HealthCheck, Mix::None, 1)?);
    let p99 = |row: &Row| row.rounds.iter().map(|round| f64::from(round.measured.p99_us)).collect::<Vec<_>>();
    let p50 = |row: &Row| row.rounds.iter().map(|round| f64::from(round.measured.p50_us)).collect::<Vec<_>>();
    let allowed: Vec<f64> = p99(commit).iter().map(|us| us + P99_ABOVE_COMMIT_US).collect();
    goals.push(within("TrackUsage, 32 callers, p99", &p99(crowd), &allowed, "p99 of a lone commit + 1.5 ms")?);
    let allowed: Vec<f64> = p50(commit).iter().zip(p50(empty)).map(|(commit, empty)| (commit + empty) * 0.72).collect();
    goals.push(within("a lone TrackUsage caller, p50", &p50(lone_call), &allowed, "(commit + empty call) × 0.72")?);

    goals.extend(server_cpu("TrackUsage, 64 callers", of(Call::TrackUsage, many, 64)?, LONE_CPU_US_MAX));
    goals.extend(server_cpu("TrackUsage, 256 callers", top, LONE_CPU_US_MAX));
    Ok(outcome(goals, &ended))
}

/// Compares BatchTrackUsage and StreamUsage with (d) and (e).
pub async fn batch(args: &GoalsArgs, meterd: &MeterdBinary, postgres: &Postgres) -> anyhow::Result<Outcome> {
    let load = args.load(&BATCHES.map(|(batch, ..)| batch));
    let of_batch = |call, batch| Workload::of_batch(call, batch, Mix::Many, &load);
    let calls = [Call::Statements, Call::BatchTrackUsage, Call::Copy, Call::StreamUsage];
    let workloads = BATCHES.iter().flat_map(|&(batch, ..)| calls.map(|call| of_batch(call, batch))).collect();
    let (rows, ended) = measure(args, &load, meterd, postgres, workloads).await?;
    let mut goals = vec![];
    for call in [Call::BatchTrackUsage, Call::StreamUsage] {
        for (batch, of_statements, of_copy) in BATCHES {
            let of = |call| rows.find(of_batch(call, batch)).context("it was measured");
            let row = of(call)?;
            let what = format!("{call:?}, {} per batch", grouped(batch));
            for (floor, unit, name, times) in
                [(Call::Statements, "× (d)", "(d)", of_statements), (Call::Copy, "× (e)", "(e)", of_copy)]
            {
                goals.push(Goal {
                    what: what.clone(),
                    figures: format!("{}, {name} {}", rate(row), rate(of(floor)?)),
                    measured: rows.ratio(row, floor).with_context(|| format!("{name} was measured"))?,
                    unit,
                    bound: Bound::AtLeast(times),
                });
            }
            goals.extend(server_cpu(&what, row, BATCH_CPU_US_MAX));
        }
    }
    Ok(outcome(goals, &ended))
}

/// Compares calls with random clients in a preloaded database with (e) there, and with the clients of the load in an empty one.
pub async fn preloaded(args: &GoalsArgs, meterd: &MeterdBinary, postgres: &Postgres) -> anyhow::Result<Outcome> {
    let few = args.load(&[RANDOM_BATCH]);
    let random = LoadArgs { clients: RANDOM_CLIENTS, ..few.clone() };
    let (full, was_there) = postgres.find_or_create_database().await?;
    if !was_there {
        let preload = Preload { events: args.preload, prefix: LOAD_CLIENTS, clients: RANDOM_CLIENTS, days: args.days };
        preload.fill_new(&full, meterd).await?;
    }
    let empty = postgres.create_second_database().await?;
    let mut full = Bench::start(&random, meterd, postgres, &full).await?;
    let mut empty = Bench::start(&few, meterd, postgres, &empty).await?;
    let batch = |call| Workload::of_batch(call, RANDOM_BATCH, Mix::Many, &few);
    let lone = Workload::lone(Call::TrackUsage, Mix::Many, 64);
    let of_batches = [Call::BatchTrackUsage, Call::StreamUsage];
    let workloads = vec![batch(Call::BatchTrackUsage), batch(Call::Copy), batch(Call::StreamUsage), lone];
    let rows = measure_rounds(&mut [&mut full, &mut empty], workloads, args.rounds).await?;
    let [full_rows, empty_rows] = [&rows[0], &rows[1]];
    let before = format!("{} random clients, {} events before", grouped(RANDOM_CLIENTS), grouped(args.preload));
    let mut goals = vec![];
    let of_calls = of_batches.map(|call| (batch(call), RANDOM_BATCH_MIN)).into_iter().chain([(lone, RANDOM_LONE_MIN)]);
    for (workload, at_least) in of_calls {
        let row = full_rows.find(workload).context("it was measured")?;
        let of_empty = empty_rows.find(workload).context("it was measured")?;
        let each = row.rounds.iter().zip(&of_empty.rounds);
        let ratios = each.map(|(full, empty)| full.measured.per_second / empty.measured.per_second);
        let at_once =
            if workload == lone { "64 callers".into() } else { format!("{} per batch", grouped(RANDOM_BATCH)) };
        let what = format!("{:?}, {at_once}, {before}", workload.call);
        goals.push(Goal {
            what: what.clone(),
            figures: format!("{}; {} clients, empty: {}", rate(row), grouped(args.clients), rate(of_empty)),
            measured: Spread::of(ratios).context("there is at least one round")?,
            unit: "× empty",
            bound: Bound::AtLeast(at_least),
        });
        if workload != lone {
            let copy = full_rows.find(batch(Call::Copy)).context("(e) was measured")?;
            goals.push(Goal {
                what: what.clone(),
                figures: format!("{}, (e) {}", rate(row), rate(copy)),
                measured: full_rows.ratio(row, Call::Copy).context("(e) was measured")?,
                unit: "× (e)",
                bound: Bound::AtLeast(RANDOM_COPY_MIN),
            });
        }
        goals.push(Goal {
            what: format!("{what}, WAL"),
            figures: String::new(),
            measured: row.spread_of(|round| round.wal_bytes).context("the WAL was measured")?,
            unit: "bytes an event",
            bound: Bound::AtMost(RANDOM_WAL_BYTES_MAX),
        });
    }
    let (full, empty) = (full.end().await?, empty.end().await?);
    Ok(Outcome { is_exact: full.is_exact() && empty.is_exact(), ..outcome(goals, &full) })
}

async fn measure(
    args: &GoalsArgs,
    load: &LoadArgs,
    meterd: &MeterdBinary,
    postgres: &Postgres,
    workloads: Vec<Workload>,
) -> anyhow::Result<(Rows, Ended)> {
    let url = postgres.create_database().await?;
    let mut bench = Bench::start(load, meterd, postgres, &url).await?;
    let mut rows = measure_rounds(&mut [&mut bench], workloads, args.rounds).await?;
    Ok((rows.pop().context("a server has its rows")?, bench.end().await?))
}

fn outcome(goals: Vec<Goal>, ended: &Ended) -> Outcome {
    Outcome { goals, notes: ended.machine.lines().into(), is_exact: ended.is_exact() }
}

/// Events a second.
fn rate(row: &Row) -> String {
    format!("{}/s", grouped(row.spread(|round| round.per_second).median.round()))
}

/// Compares a latency with its bound, round by round.
fn within(what: &str, measured_us: &[f64], allowed_us: &[f64], bound: &str) -> anyhow::Result<Goal> {
    let ms = |values: &[f64]| Spread::of(values.iter().map(|us| us / 1e3)).context("there is at least one round");
    let ratios = measured_us.iter().zip(allowed_us).map(|(measured, allowed)| measured / allowed);
    Ok(Goal {
        what: what.into(),
        figures: format!("{:.2} ms, {bound} {:.2} ms", ms(measured_us)?.median, ms(allowed_us)?.median),
        measured: Spread::of(ratios).context("there is at least one round")?,
        unit: "× that",
        bound: Bound::AtMost(1.0),
    })
}

/// `None` if the CPU time cannot be read.
fn server_cpu(what: &str, row: &Row, at_most_us: f64) -> Option<Goal> {
    let [server, database, load] = row.cpu_us();
    let shown = |spread: Option<Spread>| spread.map_or_else(|| "unknown".into(), |us| format!("{:.1}", us.median));
    Some(Goal {
        what: format!("{what}, CPU of the server"),
        figures: format!("database {}, load generator {} µs", shown(database), shown(load)),
        measured: server?,
        unit: "µs an event",
        bound: Bound::AtMost(at_most_us),
    })
}
