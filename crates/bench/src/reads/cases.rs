//! Measures reads, one caller at a time. Each round has all of them, so that every figure has its floor in the same round.

use super::calls::{Clients, Read, Reader, Via};
use crate::spread::Spread;
use crate::window::percentile;
use anyhow::Context;
use std::time::{Duration, Instant};

/// Calls before the measured ones, to warm up connections, prepared statements and caches.
const WARM_UP_CALLS: usize = 20;
/// Clients whose sums are compared before the first measurement.
const CHECKED_CLIENTS: usize = 20;

/// One of the two databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Database {
    Small,
    Large,
}

/// A read to measure, and the database that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub database: Database,
    pub read: Read,
    pub via: Via,
    pub clients: Clients,
}

/// The readers of the databases.
pub struct Readers {
    /// `None` if the run has no small database.
    pub small: Option<Reader>,
    pub large: Reader,
}

impl Readers {
    fn get(&mut self, database: Database) -> anyhow::Result<&mut Reader> {
        match database {
            Database::Small => self.small.as_mut().context("this run has no small database"),
            Database::Large => Ok(&mut self.large),
        }
    }
}

/// Latencies of one read.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// All cases, with the latency of each round.
pub struct Figures(Vec<(Case, Vec<Latency>)>);

/// Repeats a read for this long.
pub async fn latency(
    reader: &mut Reader,
    read: Read,
    via: Via,
    clients: Clients,
    length: Duration,
) -> anyhow::Result<Latency> {
    for _ in 0..WARM_UP_CALLS {
        reader.time(read, via, clients).await?;
    }
    let (begin, mut samples) = (Instant::now(), vec![]);
    while begin.elapsed() < length || samples.is_empty() {
        let took = reader.time(read, via, clients).await?;
        samples.push(u32::try_from(took.as_nanos() / 100).unwrap_or(u32::MAX));
    }
    samples.sort_unstable();
    let us = |percent| f64::from(percentile(&samples, percent)) / 10.0;
    Ok(Latency { p50_us: us(50), p99_us: us(99) })
}

impl Figures {
    /// Measures these cases in each round. Checks first that gRPC and SQL return the same.
    pub async fn measure(
        readers: &mut Readers,
        mut cases: Vec<Case>,
        rounds: u32,
        length: Duration,
        show: impl Fn(&Case),
    ) -> anyhow::Result<Self> {
        for case in cases.iter().filter(|case| case.via == Via::Sql) {
            for _ in 0..CHECKED_CLIENTS {
                readers.get(case.database)?.check(case.read, case.clients).await?;
            }
        }
        let mut all: Vec<(Case, Vec<Latency>)> = cases.iter().map(|case| (*case, vec![])).collect();
        for _ in 0..rounds {
            for case in &cases {
                show(case);
                let Case { database, read, via, clients } = *case;
                let measured = latency(readers.get(database)?, read, via, clients, length).await;
                let measured = measured.with_context(|| format!("{case:?}"))?;
                let row = all.iter_mut().find(|(of, _)| of == case).expect("every case has its row");
                row.1.push(measured);
            }
            // Every other round runs backwards, so that a drift over time favours no read.
            cases.reverse();
        }
        Ok(Self(all))
    }

    /// The latencies of a case, one per round.
    pub fn rounds(&self, case: Case) -> &[Latency] {
        self.0.iter().find(|(of, _)| *of == case).map_or(&[], |(_, rounds)| rounds)
    }

    /// The spread of a figure that is computed from the latencies of several cases in the same round.
    pub fn spread<const N: usize>(&self, cases: [Case; N], figure: impl Fn([Latency; N]) -> f64) -> Option<Spread> {
        let count = cases.iter().map(|case| self.rounds(*case).len()).min()?;
        Spread::of((0..count).map(|round| figure(cases.map(|case| self.rounds(case)[round]))))
    }

    /// Every case with the medians of its latencies.
    pub fn iter(&self) -> impl Iterator<Item = (Case, Latency)> + '_ {
        self.0.iter().filter_map(|(case, rounds)| {
            let median = |figure: fn(&Latency) -> f64| Some(Spread::of(rounds.iter().map(figure))?.median);
            Some((*case, Latency { p50_us: median(|of| of.p50_us)?, p99_us: median(|of| of.p99_us)? }))
        })
    }
}
