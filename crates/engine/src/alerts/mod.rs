//! Alerts: raised with the usage that crosses a line, checked by the hour, followed live, and told to people.

pub mod check;
pub mod feed;
pub mod notify;
pub mod raise;
