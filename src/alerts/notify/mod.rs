//! Notifications: people are told of alerts by e-mail, SMS and webhook.

mod address;
mod target;

pub use target::{check_secret, check_target, new_secret};
