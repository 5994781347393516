//! Commands that talk to a running server, one a file. Each is a set of arguments and a `run`.

pub mod alerts;
pub mod audit;
pub mod bench;
pub mod export;
pub mod import;
pub mod jobs;
pub mod keys;
pub mod migrate;
pub mod notifications;
pub mod rebuild;
pub mod serve;
pub mod track;
pub mod usage;
pub mod verify;

pub mod chart;
pub mod connect;
pub mod decimal;
pub mod json;
pub mod retry;
pub mod time;
