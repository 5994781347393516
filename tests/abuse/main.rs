//! Runs the real binary with callers that abuse the protocol. Its memory must stay within its limit, other callers must
//! be served, and no connection may be left. Also stops the server while peers keep connections open.

mod bystander;
mod calls;
mod closed_connections;
mod fairness;
mod frames;
mod process;
mod scenarios;
mod shutdown;
mod slow;

/// Only one test runs at a time, because each measures latencies.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
