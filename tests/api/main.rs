//! Every promise over a real gRPC connection against a real PostgreSQL.

mod harness;
mod recording;
