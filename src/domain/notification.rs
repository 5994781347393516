//! Notifications: how somebody is told of alerts, and where that stands.

use crate::domain::alert::UnknownNumber;

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

impl TryFrom<i16> for ChannelKind {
    type Error = UnknownNumber;

    fn try_from(number: i16) -> Result<Self, UnknownNumber> {
        let kinds = [Self::Email, Self::Sms, Self::Webhook];
        kinds.into_iter().find(|kind| *kind as i16 == number).ok_or(UnknownNumber(number, "kind of channel"))
    }
}

impl TryFrom<i16> for NotificationState {
    type Error = UnknownNumber;

    fn try_from(number: i16) -> Result<Self, UnknownNumber> {
        let states = [Self::Pending, Self::Sent, Self::Failed, Self::Digested];
        states.into_iter().find(|state| *state as i16 == number).ok_or(UnknownNumber(number, "state of a notification"))
    }
}
