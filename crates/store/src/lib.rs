//! All SQL of meterd, by topic. Each module covers one table or one read model. Its functions take a connection; the
//! caller begins and commits the transaction. Statements of about 12 lines and more are files in `sql/`.

pub mod admin;
pub mod alerts;
pub mod bench;
pub mod catalog;
pub mod clients;
pub mod credits;
pub mod database;
mod error;
pub mod limits;
pub mod locks;
pub mod numeric;
pub mod plans;
mod rows;
pub mod sums;
pub mod usage;

pub use error::{Result, StoreError};
