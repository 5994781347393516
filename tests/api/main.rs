//! Every promise over a real gRPC connection against a real PostgreSQL.

mod bad_input;
mod bad_queries;
mod cancelled;
mod concurrency;
mod harness;
mod querying;
mod reading;
mod recording;
mod replicas;
mod startup;
