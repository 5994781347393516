//! The real binary under callers that abuse the protocol: its memory stays within its bound, others are served as before,
//! and nothing of it is left. And stops beside peers that do not help.

mod beside;
mod cut;
mod frames;
mod others;
mod process;
mod scenarios;
mod stops;

/// One test at a time: each measures what others have to wait for.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
