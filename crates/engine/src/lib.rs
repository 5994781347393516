//! The use cases of meterd: recording and reading usage, alerts, jobs and credentials. Protocols, commands and settings are above it.

pub mod alerts;
pub mod audit;
pub mod auth;
pub mod catalog;
pub mod clients;
pub mod clock;
pub mod corrections;
pub mod counters;
pub mod credits;
pub mod current_period;
mod engine;
pub mod fields;
pub mod idempotency;
pub mod ingest;
pub mod jobs;
pub mod ledger;
pub mod limits;
pub mod paging;
pub mod plans;
mod previous_release;
pub mod rebuild;
pub mod refusal;
pub mod usage;

pub use engine::{Engine, EngineConfig};
pub use refusal::{Reason, Refusal};
