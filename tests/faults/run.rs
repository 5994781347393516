//! A run of a scenario: its length and its random choices.

use rand::SeedableRng;
use rand::rngs::StdRng;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Repeats the random choices of a run.
const SEED: &str = "METERD_FAULTS_SEED";
/// Replaces the number of faults of a scenario.
const COUNT: &str = "METERD_FAULTS_COUNT";

/// Length of a scenario.
#[derive(Clone, Copy, PartialEq)]
pub enum Length {
    /// Run with all tests.
    Short,
    /// Run manually.
    Long,
}

/// A run of a scenario.
#[derive(Clone)]
pub struct Run {
    name: &'static str,
    pub length: Length,
    pub seed: u64,
}

/// Reads a number from the environment.
pub fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, got {text:?}")))
}

impl Run {
    /// Starts a run and prints how to repeat it.
    pub fn begin(name: &'static str, length: Length) -> Self {
        let seed = variable(SEED).unwrap_or_else(|| rand::random::<u32>().into());
        println!("{name}: {SEED}={seed}");
        Self { name, length, seed }
    }

    /// Returns the number of faults for this length, unless the environment sets it.
    pub fn count(&self, short: usize, long: usize) -> usize {
        variable(COUNT).map_or(if self.length == Length::Short { short } else { long }, |count| count as usize)
    }

    /// Returns the random generator of one part of the scenario. It depends only on the seed, not on the other parts.
    pub fn rng(&self, part: &str, number: usize) -> StdRng {
        // This hasher is not randomized, so it returns the same value in every process.
        let mut hasher = DefaultHasher::new();
        (self.name, part, number, self.seed).hash(&mut hasher);
        StdRng::seed_from_u64(hasher.finish())
    }

    /// Prints the results of the run.
    pub fn report(&self, what: impl Display, figures: impl Display) {
        println!("{what}: seed {}, {figures}", self.seed);
    }
}

/// Formats a number with commas.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

/// Defines the two tests of a scenario: a short one, and a long one that is ignored by default.
#[macro_export]
macro_rules! scenario {
    ($($name:ident => $run:expr;)+) => {
        mod short {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                ($run)($crate::run::Run::begin(stringify!($name), $crate::run::Length::Short)).await;
            })+
        }
        mod long {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "long"]
            async fn $name() {
                ($run)($crate::run::Run::begin(stringify!($name), $crate::run::Length::Long)).await;
            })+
        }
    };
}
