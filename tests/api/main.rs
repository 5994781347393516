//! Every promise over a real gRPC connection against a real PostgreSQL.

mod cancelled;
mod concurrency;
mod harness;
mod recording;
mod replicas;
mod startup;
