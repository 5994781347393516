//! Every promise over a real gRPC connection against a real PostgreSQL.

mod alert_commands;
mod alerting;
mod answers;
mod bad_input;
mod bad_queries;
mod cancelled;
mod catalog;
mod clients;
mod commands;
mod concurrency;
mod export;
mod following;
mod harness;
mod http;
mod operation;
mod pressure;
mod querying;
mod reading;
mod rebuilding;
mod recording;
mod replicas;
mod startup;
mod subscribing;
mod summaries;
mod unpriced;
