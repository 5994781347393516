//! What the calls of operators need: API keys, the audit log, scheduled jobs and stored answers of create calls.

pub mod api_keys;
pub mod audit;
pub mod jobs;
pub mod requests;
