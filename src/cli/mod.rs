//! Commands that talk to a running server, one a file. Each is a set of arguments and a `run`.

pub mod connect;
pub mod decimal;
pub mod import;
pub mod json;
pub mod retry;
