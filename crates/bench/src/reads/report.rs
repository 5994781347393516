//! The report of `meterd-bench reads`: each figure and its goal.

use super::bulk::Verification;
use super::calls::{Clients, Read, Via};
use super::cases::Database::{Large, Small};
use super::cases::{Case, Database, Figures, Latency};
use super::{Measured, Outcome, ReadsArgs};
use crate::goals::{Bound, Goal, lines};
use crate::meterd_binary::MeterdBinary;
use crate::product::{grouped, table};
use crate::spread::Spread;
use meterd_store::bench::floor::Facts;
use serde_json::{Value, json};

/// Goal of a read, as a multiple of (r).
const OF_SQL_MAX: f64 = 1.5;
/// Goal of a ratio that should be 1: rounds of the same read differ as much.
const SAME_MAX: f64 = 1.1;
const SUMMARIES_MS_MAX: f64 = 50.0;
const OF_COPY_MIN: f64 = 0.5;
const OF_BATCHES_MIN: f64 = 0.9;
const UNDER_LOAD_MAX: f64 = 3.0;
/// Independent of the size of the database: the program itself, and a page of what it compares.
const VERIFY_MIB_MAX: f64 = 256.0;

/// Everything that was measured.
pub struct Report {
    measured: Measured,
    verification: Option<Verification>,
    /// Events that the database must have, if that is known.
    expected: Option<u64>,
    facts: Facts,
}

const fn case(database: Database, read: Read, via: Via, clients: Clients) -> Case {
    Case { database, read, via, clients }
}

/// Reads of months, in the large database.
const MONTHS: [(Read, &str); 2] =
    [(Read::CurrentMonth, "GetCurrentMonthUsage"), (Read::SummaryOfMonth, "GetUsageSummary of a month")];
const EMPTY: Case = case(Large, Read::EmptyCall, Via::Grpc, Clients::WithYear);

/// All measured cases. Those that are compared follow each other.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![EMPTY];
    for (read, _) in MONTHS {
        cases.push(case(Large, read, Via::Sql, Clients::Any));
        cases.push(case(Large, read, Via::Grpc, Clients::Any));
        cases.push(case(Large, read, Via::Grpc, Clients::WithYear));
        cases.push(case(Small, read, Via::Grpc, Clients::WithYear));
    }
    for read in [Read::DaysOfYear, Read::Summaries] {
        cases.push(case(Large, read, Via::Sql, Clients::WithYear));
        cases.push(case(Large, read, Via::Grpc, Clients::WithYear));
    }
    cases
}

fn us(figure: f64) -> String {
    format!("{figure:.0} µs")
}

fn call_goals(reads: &Figures) -> Vec<Goal> {
    let mut goals = vec![];
    let mut add = |what: String, figures, measured: Option<Spread>, unit, bound| {
        goals.extend(measured.map(|measured| Goal { what, figures, measured, unit, bound }));
    };
    let p50 = |case| reads.spread([case], |[of]| of.p50_us).map_or(0.0, |spread| spread.median);
    for (read, name) in MONTHS {
        let (sql, grpc) = (case(Large, read, Via::Sql, Clients::Any), case(Large, read, Via::Grpc, Clients::Any));
        let beyond = |[grpc, empty, sql]: [Latency; 3]| (grpc.p50_us - empty.p50_us) / sql.p50_us;
        let figures = format!("p50 {}, (g) {}, (r) {}", us(p50(grpc)), us(p50(EMPTY)), us(p50(sql)));
        let measured = reads.spread([grpc, EMPTY, sql], beyond);
        add(name.into(), figures, measured, "× (r) more than (g)", Bound::AtMost(OF_SQL_MAX));
        let (large, small) =
            (case(Large, read, Via::Grpc, Clients::WithYear), case(Small, read, Via::Grpc, Clients::WithYear));
        let figures = format!("p50 {}, in the small one {}", us(p50(large)), us(p50(small)));
        let measured = reads.spread([large, small], |[large, small]| large.p50_us / small.p50_us);
        add(format!("{name}, large and small database"), figures, measured, "×", Bound::AtMost(SAME_MAX));
    }
    let days = |via| case(Large, Read::DaysOfYear, via, Clients::WithYear);
    let figures = format!("p50 {}, (r) {}", us(p50(days(Via::Grpc))), us(p50(days(Via::Sql))));
    let measured = reads.spread([days(Via::Grpc), days(Via::Sql)], |[grpc, sql]| grpc.p50_us / sql.p50_us);
    add("QueryUsage by day over a year".into(), figures, measured, "× (r)", Bound::AtMost(OF_SQL_MAX));
    let page = |via| case(Large, Read::Summaries, via, Clients::WithYear);
    let figures = format!("(r) of the rows alone {}", us(p50(page(Via::Sql))));
    let measured = reads.spread([page(Via::Grpc)], |[grpc]| grpc.p50_us / 1e3);
    add("ListMonthlySummaries, first page".into(), figures, measured, "ms", Bound::AtMost(SUMMARIES_MS_MAX));
    goals
}

impl Report {
    pub fn new(measured: Measured, verification: Option<Verification>, expected: Option<u64>, facts: Facts) -> Self {
        Self { measured, verification, expected, facts }
    }

    /// Whether the database has exactly what it must have, if it was verified.
    pub fn is_exact(&self) -> bool {
        self.verification
            .as_ref()
            .is_none_or(|found| found.differences == 0 && self.expected.is_none_or(|expected| expected == found.events))
    }

    /// Each goal with the measured figure.
    pub fn outcome(&self) -> Outcome {
        let Measured { reads, exports, imports, under_load } = &self.measured;
        let mut goals = reads.as_ref().map(call_goals).unwrap_or_default();
        let mut add = |what: String, figures, measured: Option<Spread>, unit, bound| {
            goals.extend(measured.map(|measured| Goal { what, figures, measured, unit, bound }));
        };
        let median = |values: &mut dyn Iterator<Item = f64>| Spread::of(values).map_or(0.0, |spread| spread.median);
        let per_second = |rate: f64| format!("{}/s", grouped(rate.round()));

        let grpc = median(&mut exports.iter().map(|of| of.events as f64 / of.grpc_seconds));
        let copy = median(&mut exports.iter().map(|of| of.events as f64 / of.copy_seconds));
        let figures = format!("{}, COPY {}", per_second(grpc), per_second(copy));
        let measured = Spread::of(exports.iter().map(|of| of.copy_seconds / of.grpc_seconds));
        add("ExportUsage".into(), figures, measured, "× COPY out", Bound::AtLeast(OF_COPY_MIN));

        let batches = median(&mut imports.iter().map(|of| of.0));
        let import = median(&mut imports.iter().map(|of| of.1));
        let figures = format!("{}, BatchTrackUsage {}", per_second(import), per_second(batches));
        let measured = Spread::of(imports.iter().map(|(batches, import)| import / batches));
        add("meterd import".into(), figures, measured, "× BatchTrackUsage", Bound::AtLeast(OF_BATCHES_MIN));

        for (at, read) in super::under_load::READS.into_iter().enumerate() {
            let p99 = |of: fn(&(Read, Latency, Latency)) -> f64| {
                us(median(&mut under_load.iter().map(|round| of(&round.reads[at]))))
            };
            let rate = median(&mut under_load.iter().map(|round| round.per_second));
            let figures =
                format!("p99 {}, alone {}; {} written", p99(|of| of.2.p99_us), p99(|of| of.1.p99_us), per_second(rate));
            let measured =
                Spread::of(under_load.iter().map(|round| round.reads[at].2.p99_us / round.reads[at].1.p99_us));
            let what = format!("{read:?} while writing at half the top rate");
            add(what, figures, measured, "× alone (p99)", Bound::AtMost(UNDER_LOAD_MAX));
        }

        if let Some(Verification { events, seconds, peak_bytes: Some(peak), .. }) = self.verification {
            let figures = format!("{} events at {}", grouped(events), per_second(events as f64 / seconds));
            let mib = Spread::of([peak as f64 / f64::from(1 << 20)]);
            add("meterd verify, peak memory".into(), figures, mib, "MiB", Bound::AtMost(VERIFY_MIB_MAX));
        }
        Outcome { goals, notes: vec![], is_exact: self.is_exact() }
    }

    /// As text.
    pub fn text(&self, args: &ReadsArgs, meterd: &MeterdBinary) -> String {
        let mut text = lines(&self.outcome().goals);
        if let Some(reads) = &self.measured.reads {
            text.push(String::new());
            text.extend(read_lines(reads));
        }
        text.push(String::new());
        text.extend(self.notes(args, meterd));
        text.join("\n")
    }

    fn notes(&self, args: &ReadsArgs, meterd: &MeterdBinary) -> Vec<String> {
        let mut notes = vec![
            format!(
                "{} events preloaded, {} clients, {} days; the small database has {}",
                grouped(args.preload),
                grouped(args.clients),
                args.days,
                grouped(super::SMALL_EVENTS)
            ),
            format!(
                "(g) an empty gRPC call; (r) the same read in SQL, on one connection; one caller; {} rounds of {} s, in turns",
                args.rounds, args.seconds
            ),
            format!(
                "PostgreSQL {}, fsync = {}, synchronous_commit = {}{}",
                self.facts.version,
                self.facts.fsync,
                self.facts.synchronous_commit,
                meterd.text()
            ),
        ];
        if let Some(found) = &self.verification {
            let wrong = if self.is_exact() { "" } else { ": WRONG, so the figures above mean nothing" };
            let (events, differences) = (grouped(found.events), found.differences);
            notes.push(format!("verified: {events} events in the database, {differences} differences{wrong}"));
        }
        notes
    }

    /// As JSON.
    pub fn json(&self, args: &ReadsArgs, meterd: &MeterdBinary) -> Value {
        let outcome = self.outcome();
        let reads = self.measured.reads.iter().flat_map(Figures::iter).map(
            |(case, latency)| json!({ "turn": case_text(case), "p50_us": latency.p50_us, "p99_us": latency.p99_us }),
        );
        json!({
            "goals": outcome.goals.iter().map(Goal::json).collect::<Vec<_>>(),
            "reads": reads.collect::<Vec<_>>(),
            "settings": {
                "preload": args.preload,
                "clients": args.clients,
                "days": args.days,
                "bulk": args.bulk,
                "rounds": args.rounds,
                "seconds": args.seconds,
                "server_flags": meterd.flags,
                "optimized": meterd.is_optimized(),
            },
            "verification": self.verification.as_ref().map(|found| json!({
                "events": found.events,
                "differences": found.differences,
                "seconds": found.seconds,
                "peak_bytes": found.peak_bytes,
            })),
            "exact": outcome.is_exact,
        })
    }
}

fn case_text(case: Case) -> String {
    let Case { database, read, via, clients } = case;
    let database = if database == Small { "small" } else { "large" };
    let clients = if clients == Clients::Any { "any client" } else { "clients with a year" };
    format!("{read:?}, {via:?}, {clients}, {database}")
}

fn read_lines(reads: &Figures) -> Vec<String> {
    let heads = ["read", "p50 µs", "p99 µs"].map(str::to_owned).to_vec();
    let rows = reads.iter().map(|(case, latency)| {
        vec![case_text(case), format!("{:.0}", latency.p50_us), format!("{:.0}", latency.p99_us)]
    });
    table(&std::iter::once(heads).chain(rows).collect::<Vec<_>>(), &[false, true, true])
}
