//! The rules of meterd as pure functions over plain types: no I/O, no clock, no database.

pub mod access;
pub mod adjustment;
pub mod alert;
pub mod catalog;
pub mod credits;
pub mod decimal;
pub mod event;
pub mod forecast;
pub mod identifier;
pub mod limit;
pub mod measures;
pub mod metadata;
pub mod model_names;
pub mod names;
pub mod notification;
pub mod numbered;
pub mod period;
pub mod plan;
pub mod policy;
pub mod price;
pub mod pricing;
pub mod projection;
pub mod rollup;
pub mod tiers;
