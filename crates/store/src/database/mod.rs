//! The database itself: URL, connections (`connect`, and `reads` for short reads), fitness, causes of errors, distribution,
//! and the data of the deployment.

pub mod cause;
pub mod connect;
pub mod deployment;
pub mod distribution;
pub mod fitness;
pub mod reads;
pub mod url;
