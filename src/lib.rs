//! meterd: usage metering over gRPC, on one PostgreSQL.

pub mod alerts;
pub mod app;
pub mod auth;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod database;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod ingest;
pub mod jobs;
pub mod net;
pub mod postgres;
mod redacted;
pub mod store;
pub mod web;

/// Messages, clients and servers of `proto/metering/v1`.
pub mod proto {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("metering.v1");
    /// All descriptors with their comments, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/metering.v1.bin"));
}
