//! Changes of recorded events: voids, corrections, and other prices. Each change of an event is stored as an adjustment, in the
//! transaction that changes its sums and its alerts.

mod apply;
mod call;
pub mod explain;
pub mod list;
pub mod reprice;

pub use apply::Changed;
pub use call::{Adjusted, AdjustmentResult, EVENTS_MAX, EventReference, Target, correct, void};
