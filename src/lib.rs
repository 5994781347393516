//! meterd: usage metering over gRPC, on one PostgreSQL.

// First, because the other modules use its macros.
#[macro_use]
pub mod print;

pub mod app;
pub mod cli;
pub mod config;
pub mod database;
pub mod grpc;
pub mod log;
pub mod net;
pub mod preflight;
mod redacted;
pub mod web;

/// Messages, clients and servers of `proto/metering/v1`.
pub mod proto {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("metering.v1");
    /// All descriptors with their comments, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/metering.v1.bin"));
}
