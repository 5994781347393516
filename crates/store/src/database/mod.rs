//! The database itself: connections, its fitness, the causes of its errors, and the data of the deployment.

pub mod cause;
pub mod connect;
pub mod deployment;
pub mod distribution;
pub mod fitness;
pub mod url;
