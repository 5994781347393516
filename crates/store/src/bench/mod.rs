//! Statements that only the benchmarks use: their baselines, and rows to fill a database.

pub mod floor;
pub mod floor_reads;
pub mod preload;
