//! `meterd bench goals`: how fast it is meant to be, and how fast it is.
//!
//! `goal` is a row of the table.

mod goal;

pub use goal::{Bound, Goal, Outcome, lines};
