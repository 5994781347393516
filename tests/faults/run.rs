//! One run of a scenario: how much of it, and by which dice.

use rand::SeedableRng;
use rand::rngs::StdRng;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Repeats the choices of a run.
const SEED: &str = "METERD_FAULTS_SEED";
/// How often, in place of the scenario's own counts.
const COUNT: &str = "METERD_FAULTS_COUNT";

/// How much of a scenario is done.
#[derive(Clone, Copy, PartialEq)]
pub enum Length {
    /// With all tests.
    Short,
    /// By hand.
    Long,
}

/// A run of a scenario.
#[derive(Clone)]
pub struct Run {
    name: &'static str,
    pub length: Length,
    pub seed: u64,
}

/// A number from the environment.
pub fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, is {text:?}")))
}

impl Run {
    /// Begins one, and says how to repeat it.
    pub fn begin(name: &'static str, length: Length) -> Self {
        let seed = variable(SEED).unwrap_or_else(|| rand::random::<u32>().into());
        println!("{name}: {SEED}={seed}");
        Self { name, length, seed }
    }

    /// The count for this length, unless the environment says otherwise.
    pub fn count(&self, short: usize, long: usize) -> usize {
        variable(COUNT).map_or(if self.length == Length::Short { short } else { long }, |count| count as usize)
    }

    /// Dice of one part of the scenario: the same for the same seed, whatever the other parts do.
    pub fn dice(&self, part: &str, number: usize) -> StdRng {
        // Without keys: the same in every process.
        let mut hasher = DefaultHasher::new();
        (self.name, part, number, self.seed).hash(&mut hasher);
        StdRng::seed_from_u64(hasher.finish())
    }

    /// The line of figures.
    pub fn report(&self, what: impl Display, figures: impl Display) {
        println!("{what}: seed {}, {figures}", self.seed);
    }
}

/// A number with commas, as people read it.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

/// The two tests of a scenario: the short one, and the long one that is ignored unless it is asked for.
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
