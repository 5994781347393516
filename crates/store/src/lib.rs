//! All SQL of meterd. Each module covers one table or one read model. Its functions take a connection; the caller
//! begins and commits the transaction. Statements of about 12 lines and more are files in `sql/`.

pub mod alert_feed;
pub mod alerts;
pub mod api_keys;
pub mod audit;
pub mod catalog;
pub mod cause;
pub mod channels;
pub mod clients;
pub mod connect;
pub mod deployment;
mod error;
pub mod event_days;
pub mod events;
pub mod export;
pub mod fitness;
pub mod floor;
pub mod floor_reads;
pub mod holders;
pub mod jobs;
pub mod keys;
pub mod locks;
pub mod notifications;
pub mod numeric;
pub mod outbox;
pub mod partitions;
pub mod policies;
pub mod preload;
pub mod pricing;
pub mod query;
pub mod record;
pub mod requests;
pub mod rollups;
mod rows;
pub mod summaries;
pub mod summary_totals;
pub mod sums;
pub mod url;
pub mod usage;
pub mod verify;
pub mod verify_keys;

pub use error::{Result, StoreError};
