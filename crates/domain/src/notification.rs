//! Channels and states of notifications about alerts.

use super::alert::numbered;

/// How a notification is delivered. The numbers are those of the proto enum and are stored in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum ChannelKind {
    Email = 1,
    Sms = 2,
    Webhook = 3,
}

/// The state of a notification. The numbers are those of the proto enum and are stored in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum NotificationState {
    Pending = 1,
    Sent = 2,
    Failed = 3,
    Digested = 4,
}

impl ChannelKind {
    /// Returns the name used in labels of metrics and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Sms => "sms",
            Self::Webhook => "webhook",
        }
    }
}

numbered!(ChannelKind, "kind of channel", [Email, Sms, Webhook]);
numbered!(NotificationState, "state of a notification", [Pending, Sent, Failed, Digested]);
