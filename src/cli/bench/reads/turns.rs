//! Reads in turns: each kind for a while, round after round, one caller, so that every figure has its floor beside it.

use super::calls::{Read, Reader, Way, Whose};
use crate::cli::bench::report::Spread;
use crate::cli::bench::window::percentile;
use anyhow::Context;
use std::time::{Duration, Instant};

/// Calls before those that count: connections, prepared statements and caches are warm then.
const WARM_UP_CALLS: usize = 20;
/// Clients whose sums are compared before anything is measured.
const CHECKED_CLIENTS: usize = 20;

/// What is measured: a read, in which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    pub place: usize,
    pub read: Read,
    pub way: Way,
    pub whose: Whose,
}

/// Latencies of one turn.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// All turns, a figure a round.
pub struct Turns(Vec<(Turn, Vec<Latency>)>);

/// Reads for a while.
pub async fn latency(
    reader: &mut Reader,
    read: Read,
    way: Way,
    whose: Whose,
    length: Duration,
) -> anyhow::Result<Latency> {
    for _ in 0..WARM_UP_CALLS {
        reader.time(read, way, whose).await?;
    }
    let (begin, mut samples) = (Instant::now(), vec![]);
    while begin.elapsed() < length || samples.is_empty() {
        let took = reader.time(read, way, whose).await?;
        samples.push(u32::try_from(took.as_nanos() / 100).unwrap_or(u32::MAX));
    }
    samples.sort_unstable();
    let us = |percent| f64::from(percentile(&samples, percent)) / 10.0;
    Ok(Latency { p50_us: us(50), p99_us: us(99) })
}

impl Turns {
    /// Takes these turns, and checks before that both ways of a read find the same.
    pub async fn take(
        readers: &mut [Reader],
        mut turns: Vec<Turn>,
        rounds: u32,
        length: Duration,
        told: impl Fn(&Turn),
    ) -> anyhow::Result<Self> {
        for turn in turns.iter().filter(|turn| turn.way == Way::Sql) {
            for _ in 0..CHECKED_CLIENTS {
                readers[turn.place].check(turn.read, turn.whose).await?;
            }
        }
        let mut all: Vec<(Turn, Vec<Latency>)> = turns.iter().map(|turn| (*turn, vec![])).collect();
        for _ in 0..rounds {
            for turn in &turns {
                told(turn);
                let Turn { place, read, way, whose } = *turn;
                let measured = latency(&mut readers[place], read, way, whose, length).await;
                let measured = measured.with_context(|| format!("{turn:?}"))?;
                let of = all.iter_mut().find(|(of, _)| of == turn).expect("every turn has its row");
                of.1.push(measured);
            }
            // There and back, so that what changes with time favours nobody.
            turns.reverse();
        }
        Ok(Self(all))
    }

    /// The rounds of a turn.
    pub fn rounds(&self, turn: Turn) -> &[Latency] {
        self.0.iter().find(|(of, _)| *of == turn).map_or(&[], |(_, rounds)| rounds)
    }

    /// A figure of the rounds of several turns.
    pub fn spread<const N: usize>(&self, turns: [Turn; N], figure: impl Fn([Latency; N]) -> f64) -> Option<Spread> {
        let count = turns.iter().map(|turn| self.rounds(*turn).len()).min()?;
        Spread::of((0..count).map(|round| figure(turns.map(|turn| self.rounds(turn)[round]))))
    }

    /// Every turn with its median latency, for people.
    pub fn iter(&self) -> impl Iterator<Item = (Turn, Latency)> + '_ {
        self.0.iter().filter_map(|(turn, rounds)| {
            let median = |figure: fn(&Latency) -> f64| Some(Spread::of(rounds.iter().map(figure))?.median);
            Some((*turn, Latency { p50_us: median(|of| of.p50_us)?, p99_us: median(|of| of.p99_us)? }))
        })
    }
}
