//! What the reads come to: each beside its goal.

use super::bulk::Verification;
use super::calls::{Read, Way, Whose};
use super::turns::{Latency, Turn, Turns};
use super::{LARGE, Measured, Outcome, ReadsArgs, SMALL};
use crate::cli::bench::goals::{Bound, Goal, lines};
use crate::cli::bench::report::{Spread, build_text, flags_text};
use crate::cli::chart::{grouped, table};
use meterd_store::floor::Facts;
use serde_json::{Value, json};

/// Most of (r) that a read may take.
const OF_SQL_MAX: f64 = 1.5;
/// What counts as the same: rounds differ by as much among themselves.
const SAME_MAX: f64 = 1.1;
const SUMMARIES_MS_MAX: f64 = 50.0;
const OF_COPY_MIN: f64 = 0.5;
const OF_BATCHES_MIN: f64 = 0.9;
const BESIDE_MAX: f64 = 3.0;
/// Bounded, whatever there is: what the program itself takes, and a page of what it compares.
const VERIFY_MIB_MAX: f64 = 256.0;

/// Everything that was measured.
pub struct Report {
    measured: Measured,
    verification: Option<Verification>,
    /// Events that there have to be, where that is known.
    expected: Option<u64>,
    facts: Facts,
}

const fn turn(place: usize, read: Read, way: Way, whose: Whose) -> Turn {
    Turn { place, read, way, whose }
}

/// Reads of months, in the large database.
const MONTHS: [(Read, &str); 2] =
    [(Read::CurrentMonth, "GetCurrentMonthUsage"), (Read::SummaryOfMonth, "GetUsageSummary of a month")];
const EMPTY: Turn = turn(LARGE, Read::EmptyCall, Way::Grpc, Whose::OfYear);

/// All that is taken, what is compared side by side.
pub fn turns() -> Vec<Turn> {
    let mut turns = vec![EMPTY];
    for (read, _) in MONTHS {
        turns.push(turn(LARGE, read, Way::Sql, Whose::Any));
        turns.push(turn(LARGE, read, Way::Grpc, Whose::Any));
        turns.push(turn(LARGE, read, Way::Grpc, Whose::OfYear));
        turns.push(turn(SMALL, read, Way::Grpc, Whose::OfYear));
    }
    for read in [Read::DaysOfYear, Read::Summaries] {
        turns.push(turn(LARGE, read, Way::Sql, Whose::OfYear));
        turns.push(turn(LARGE, read, Way::Grpc, Whose::OfYear));
    }
    turns
}

fn us(figure: f64) -> String {
    format!("{figure:.0} µs")
}

fn call_goals(turns: &Turns) -> Vec<Goal> {
    let mut goals = vec![];
    let mut add = |what: String, figures, measured: Option<Spread>, unit, bound| {
        goals.extend(measured.map(|measured| Goal { what, figures, measured, unit, bound }));
    };
    let p50 = |turn| turns.spread([turn], |[of]| of.p50_us).map_or(0.0, |spread| spread.median);
    for (read, name) in MONTHS {
        let (sql, grpc) = (turn(LARGE, read, Way::Sql, Whose::Any), turn(LARGE, read, Way::Grpc, Whose::Any));
        let beyond = |[grpc, empty, sql]: [Latency; 3]| (grpc.p50_us - empty.p50_us) / sql.p50_us;
        let figures = format!("p50 {}, (g) {}, (r) {}", us(p50(grpc)), us(p50(EMPTY)), us(p50(sql)));
        let measured = turns.spread([grpc, EMPTY, sql], beyond);
        add(name.into(), figures, measured, "× (r) more than (g)", Bound::AtMost(OF_SQL_MAX));
        let (large, small) = (turn(LARGE, read, Way::Grpc, Whose::OfYear), turn(SMALL, read, Way::Grpc, Whose::OfYear));
        let figures = format!("p50 {}, in the small one {}", us(p50(large)), us(p50(small)));
        let measured = turns.spread([large, small], |[large, small]| large.p50_us / small.p50_us);
        add(format!("{name}, large and small database"), figures, measured, "×", Bound::AtMost(SAME_MAX));
    }
    let days = |way| turn(LARGE, Read::DaysOfYear, way, Whose::OfYear);
    let figures = format!("p50 {}, (r) {}", us(p50(days(Way::Grpc))), us(p50(days(Way::Sql))));
    let measured = turns.spread([days(Way::Grpc), days(Way::Sql)], |[grpc, sql]| grpc.p50_us / sql.p50_us);
    add("QueryUsage by day over a year".into(), figures, measured, "× (r)", Bound::AtMost(OF_SQL_MAX));
    let page = |way| turn(LARGE, Read::Summaries, way, Whose::OfYear);
    let figures = format!("(r) of the rows alone {}", us(p50(page(Way::Sql))));
    let measured = turns.spread([page(Way::Grpc)], |[grpc]| grpc.p50_us / 1e3);
    add("ListMonthlySummaries, first page".into(), figures, measured, "ms", Bound::AtMost(SUMMARIES_MS_MAX));
    goals
}

impl Report {
    /// Of what was measured.
    pub fn new(measured: Measured, verification: Option<Verification>, expected: Option<u64>, facts: Facts) -> Self {
        Self { measured, verification, expected, facts }
    }

    /// Whether all that is in the database is what has to be there, as far as it was looked at.
    pub fn is_exact(&self) -> bool {
        self.verification
            .as_ref()
            .is_none_or(|found| found.differences == 0 && self.expected.is_none_or(|expected| expected == found.events))
    }

    /// Each goal with what was measured.
    pub fn outcome(&self) -> Outcome {
        let Measured { turns, exports, imports, besides } = &self.measured;
        let mut goals = turns.as_ref().map(call_goals).unwrap_or_default();
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

        for (at, read) in super::beside::READS.into_iter().enumerate() {
            let p99 = |of: fn(&(Read, Latency, Latency)) -> f64| {
                us(median(&mut besides.iter().map(|beside| of(&beside.reads[at]))))
            };
            let rate = median(&mut besides.iter().map(|beside| beside.per_second));
            let figures =
                format!("p99 {}, alone {}; {} written", p99(|of| of.2.p99_us), p99(|of| of.1.p99_us), per_second(rate));
            let measured =
                Spread::of(besides.iter().map(|beside| beside.reads[at].2.p99_us / beside.reads[at].1.p99_us));
            let what = format!("{read:?} while writing at half the top rate");
            add(what, figures, measured, "× alone (p99)", Bound::AtMost(BESIDE_MAX));
        }

        if let Some(Verification { events, seconds, peak_bytes: Some(peak), .. }) = self.verification {
            let figures = format!("{} events at {}", grouped(events), per_second(events as f64 / seconds));
            let mib = Spread::of([peak as f64 / f64::from(1 << 20)]);
            add("meterd verify, peak memory".into(), figures, mib, "MiB", Bound::AtMost(VERIFY_MIB_MAX));
        }
        Outcome { goals, notes: vec![], is_exact: self.is_exact() }
    }

    /// For people.
    pub fn text(&self, args: &ReadsArgs) -> String {
        let mut text = lines(&self.outcome().goals);
        if let Some(turns) = &self.measured.turns {
            text.push(String::new());
            text.extend(turn_lines(turns));
        }
        text.push(String::new());
        text.extend(self.notes(args));
        text.join("\n")
    }

    fn notes(&self, args: &ReadsArgs) -> Vec<String> {
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
                "PostgreSQL {}, fsync = {}, synchronous_commit = {}{}{}",
                self.facts.version,
                self.facts.fsync,
                self.facts.synchronous_commit,
                flags_text(&args.place.server),
                build_text()
            ),
        ];
        if let Some(found) = &self.verification {
            let wrong = if self.is_exact() { "" } else { ": WRONG, so the figures above mean nothing" };
            let (events, differences) = (grouped(found.events), found.differences);
            notes.push(format!("verified: {events} events in the database, {differences} differences{wrong}"));
        }
        notes
    }

    /// For machines.
    pub fn json(&self, args: &ReadsArgs) -> Value {
        let outcome = self.outcome();
        let turns = self.measured.turns.iter().flat_map(Turns::iter).map(
            |(turn, latency)| json!({ "turn": turn_text(turn), "p50_us": latency.p50_us, "p99_us": latency.p99_us }),
        );
        json!({
            "goals": outcome.goals.iter().map(Goal::json).collect::<Vec<_>>(),
            "reads": turns.collect::<Vec<_>>(),
            "settings": {
                "preload": args.preload,
                "clients": args.clients,
                "days": args.days,
                "bulk": args.bulk,
                "rounds": args.rounds,
                "seconds": args.seconds,
                "server_flags": args.place.server,
                "optimized": !cfg!(debug_assertions),
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

fn turn_text(turn: Turn) -> String {
    let Turn { place, read, way, whose } = turn;
    let place = if place == SMALL { "small" } else { "large" };
    let whose = if whose == Whose::Any { "any client" } else { "clients with a year" };
    format!("{read:?}, {way:?}, {whose}, {place}")
}

fn turn_lines(turns: &Turns) -> Vec<String> {
    let heads = ["read", "p50 µs", "p99 µs"].map(str::to_owned).to_vec();
    let rows = turns.iter().map(|(turn, latency)| {
        vec![turn_text(turn), format!("{:.0}", latency.p50_us), format!("{:.0}", latency.p99_us)]
    });
    table(&std::iter::once(heads).chain(rows).collect::<Vec<_>>(), &[false, true, true])
}
