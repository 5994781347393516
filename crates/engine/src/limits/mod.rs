//! Limits of clients: creating and changing them, counting usage, and asking how much is left.

mod check;
pub mod counters;
mod settings;

pub use check::{BatchCheckInput, CheckInput, ClientStatus, LimitStatus, check, check_batch};
pub use meterd_domain::limit::{Dimensions, Limit, LimitFilter, LimitMeasure, LimitPeriod, LimitState};
pub use settings::{LIMITS_MAX, LimitInput, ListInput, create, delete, get, list, update};
