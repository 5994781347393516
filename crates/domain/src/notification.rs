//! Notifications: how somebody is told of alerts, and where that stands.

use super::alert::numbered;

/// How somebody is told. The numbers are those of the proto enum, and stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum ChannelKind {
    Email = 1,
    Sms = 2,
    Webhook = 3,
}

/// Where a notification stands. The numbers are those of the proto enum, and stand in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum NotificationState {
    Pending = 1,
    Sent = 2,
    Failed = 3,
    Digested = 4,
}

impl ChannelKind {
    /// As labels of metrics and tables have it.
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
