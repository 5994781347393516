//! The measurements of each workload, and the ratios to the floors.

use super::commits::Commits;
use super::plan::{Call, Mix, Workload};
use super::spread::Spread;
use super::window::Measurement;

/// A workload and its measurement in each round.
#[derive(Clone, Debug)]
pub struct Row {
    pub workload: Workload,
    pub rounds: Vec<Round>,
}

/// One measurement, with figures of the server and the database.
#[derive(Clone, Debug)]
pub struct Round {
    pub measured: Measurement,
    /// Bytes of the write-ahead log per event. `None` if no event was recorded.
    pub wal_bytes: Option<f64>,
    /// Transactions of the server. `None` if it recorded nothing.
    pub commits: Option<Commits>,
}

impl Row {
    /// The spread of a figure over the rounds.
    pub fn spread(&self, figure: impl Fn(&Measurement) -> f64) -> Spread {
        let figures = self.rounds.iter().map(|round| figure(&round.measured));
        Spread::of(figures).expect("there is at least one round")
    }

    /// The spread of a figure that some workloads do not have.
    pub fn spread_of(&self, figure: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(figure).collect::<Option<Vec<f64>>>()?)
    }

    /// CPU time per event of server, database and load generator.
    pub fn cpu_us(&self) -> [Option<Spread>; 3] {
        [0, 1, 2].map(|party| self.spread_of(|round| round.measured.cpu_us.and_then(|cpu| cpu[party])))
    }
}

/// All rows.
#[derive(Clone, Debug)]
pub struct Rows(pub Vec<Row>);

impl Rows {
    /// Rows without measurements, in the order of the report.
    pub fn new(workloads: &[Workload]) -> Self {
        let mut rows: Vec<Row> = workloads.iter().map(|&workload| Row { workload, rounds: vec![] }).collect();
        rows.sort_by_key(|row| row.workload);
        rows.dedup_by_key(|row| row.workload);
        Self(rows)
    }

    /// Adds a measurement.
    pub fn add(&mut self, workload: Workload, round: Round) {
        let row = self.0.iter_mut().find(|row| row.workload == workload).expect("every workload has its row");
        row.rounds.push(round);
    }

    /// The row of a workload.
    pub fn find(&self, workload: Workload) -> Option<&Row> {
        self.0.iter().find(|row| row.workload == workload)
    }

    /// Throughput divided by that of a floor in the same round. Single calls are compared at the same concurrency, batches and
    /// streams with the floor of the same batch size, or with the best of (b).
    pub fn ratio(&self, row: &Row, floor: Call) -> Option<Spread> {
        let Workload { call, batch, mix, at_once } = row.workload;
        let is_comparable = |of: &Workload| match (call, floor) {
            (Call::TrackUsage, Call::HealthCheck) => of.at_once == at_once,
            (Call::TrackUsage, Call::Transaction) => of.mix == mix && of.at_once == at_once,
            (Call::BatchTrackUsage | Call::StreamUsage, Call::Transaction) => of.mix == mix,
            (Call::BatchTrackUsage | Call::StreamUsage, Call::Statements | Call::Copy) => {
                of.mix == mix && of.batch == batch
            }
            _ => false,
        };
        self.ratio_to_best(row, |of| of.call == floor && is_comparable(of))
    }

    /// Throughput divided by that of (b), at the best concurrency of (b) in the round.
    pub fn ratio_to_best_transaction(&self, row: &Row, mix: Mix) -> Option<Spread> {
        self.ratio_to_best(row, |of| of.call == Call::Transaction && of.mix == mix)
    }

    fn ratio_to_best(&self, row: &Row, is_floor: impl Fn(&Workload) -> bool) -> Option<Spread> {
        let floors: Vec<&Row> = self.0.iter().filter(|row| is_floor(&row.workload)).collect();
        let best = |round: usize| floors.iter().map(|floor| floor.rounds[round].measured.per_second).reduce(f64::max);
        let ratio = |(round, of): (usize, &Round)| Some(of.measured.per_second / best(round)?);
        Spread::of(row.rounds.iter().enumerate().map(ratio).collect::<Option<Vec<f64>>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(per_second: f64) -> Round {
        let measured = Measurement { acknowledged: 1, duplicates: 0, per_second, p50_us: 1, p99_us: 1, cpu_us: None };
        Round { measured, wal_bytes: None, commits: None }
    }

    #[test]
    fn a_ratio_is_that_of_figures_of_the_same_round() {
        let call = Workload::lone(Call::TrackUsage, Mix::Many, 8);
        let floor = Workload::lone(Call::Transaction, Mix::Many, 8);
        let other = Workload::lone(Call::Transaction, Mix::Many, 64);
        let mut rows = Rows::new(&[call, floor, other]);
        // The machine is half as fast in the second round.
        for speed in [1.0, 0.5] {
            rows.add(call, round(400.0 * speed));
            rows.add(floor, round(100.0 * speed));
            rows.add(other, round(200.0 * speed));
        }
        let row = rows.find(call).unwrap();
        let always = |value| Some(Spread { median: value, min: value, max: value });
        assert_eq!(rows.ratio(row, Call::Transaction), always(4.0));
        assert_eq!(rows.ratio_to_best_transaction(row, Mix::Many), always(2.0));
        assert_eq!(rows.ratio(row, Call::Copy), None);
        assert_eq!(rows.ratio_to_best_transaction(row, Mix::Hot), None);
    }

    #[test]
    fn batches_stand_beside_floors_of_their_size() {
        let of = |call, batch| Workload { call, batch, mix: Mix::Many, at_once: 2 };
        let (small, large) = (of(Call::BatchTrackUsage, 1_000), of(Call::BatchTrackUsage, 5_000));
        let mut rows = Rows::new(&[small, large, of(Call::Statements, 1_000), of(Call::Statements, 5_000)]);
        for (workload, per_second) in [(small, 10.0), (large, 30.0)] {
            rows.add(workload, round(per_second));
            rows.add(of(Call::Statements, workload.batch), round(workload.batch.into()));
        }
        let median = |workload| rows.ratio(rows.find(workload).unwrap(), Call::Statements).unwrap().median;
        assert_eq!((median(small), median(large)), (0.01, 0.006));
    }
}
