//! Recording usage and reading it.
//!
//! Inputs are as a caller gives them: texts, and empty or zero for defaults. The use case checks them and reports all wrong
//! fields together. Lists take an input that was checked before, because their page token is read in between.

mod preview;
mod record;
mod stream;

pub use preview::{BatchPreview, PreviewedEvent, preview_batch};
pub use record::{BATCH_EVENTS_MAX, DIFFERING_FIELDS, check_batch_size, conflict, record, record_batch};
pub use stream::{EventStream, InOrder};
