//! Notifications of alerts: the kinds of channels, and the states of a notification.

use crate::numbered::numbered;

/// How a notification is sent. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum ChannelKind {
    Email = 1,
    Sms = 2,
    Webhook = 3,
}

/// The state of a notification. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum NotificationState {
    Pending = 1,
    Sent = 2,
    Failed = 3,
    Digested = 4,
}

impl ChannelKind {
    /// Returns its name in metrics and tables.
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
