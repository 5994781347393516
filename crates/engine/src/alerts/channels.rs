//! The notification channels of a policy.

use super::notify::{self, NotifyConfig};
use crate::fields::Fields;
use meterd_domain::alert::Severity;
use meterd_domain::notification::ChannelKind;
use meterd_store::alerts::channels::Channel;
use std::collections::HashSet;

const CHANNELS_MAX: usize = 20;
const TARGET_BYTES_MAX: usize = 1_024;
/// Maximum number of keys of a webhook. A rotation of keys needs two.
const SECRETS_MAX: usize = 3;

/// A channel, unchecked.
#[derive(Clone)]
pub struct ChannelInput {
    /// A number of [`ChannelKind`].
    pub kind: i32,
    pub target: String,
    /// A number of [`Severity`], or 0 for the default.
    pub min_severity: i32,
    /// Keys of a webhook. If there are none, it keeps its keys or gets a new one.
    pub secrets: Vec<String>,
}

/// A channel as callers see it.
#[derive(Clone)]
pub struct ChannelView {
    /// A number of [`ChannelKind`].
    pub kind: i16,
    pub target: String,
    pub min_severity: Severity,
    pub secret_count: usize,
    /// Keys that the present call has created. Other calls do not return them.
    pub new_secrets: Vec<String>,
}

impl From<Channel> for ChannelView {
    fn from(channel: Channel) -> Self {
        let Channel { kind, target, min_severity, secrets } = channel;
        Self { kind, target, min_severity, secret_count: secrets.len(), new_secrets: vec![] }
    }
}

/// A key that was created for the webhook with this target.
pub(super) struct NewSecret {
    pub target: String,
    pub secret: String,
}

/// Checks the channels of a policy. The default severity of the channels of the default policy is critical, otherwise warning.
pub(super) fn check(
    config: &NotifyConfig,
    fields: &mut Fields,
    channels: &[ChannelInput],
    is_default_policy: bool,
) -> Vec<Channel> {
    if channels.len() > CHANNELS_MAX {
        fields.wrong("channels", format!("must be at most {CHANNELS_MAX} channels, has {}", channels.len()));
    }
    let default = if is_default_policy { Severity::Critical } else { Severity::Warning };
    let mut seen = HashSet::new();
    let mut checked = vec![];
    for (index, channel) in channels.iter().enumerate().take(CHANNELS_MAX) {
        let path = |field: &str| format!("channels[{index}].{field}");
        fields.required(&path("target"), &channel.target, TARGET_BYTES_MAX);
        let severity = fields.min_severity(&path("min_severity"), channel.min_severity);
        let Some(kind) = i16::try_from(channel.kind).ok().and_then(|kind| ChannelKind::try_from(kind).ok()) else {
            fields.wrong(path("kind"), "must be EMAIL, SMS or WEBHOOK");
            continue;
        };
        if !channel.target.is_empty()
            && let Err(description) = notify::check_target(kind, &channel.target, config)
        {
            fields.wrong(path("target"), description);
        }
        if !seen.insert((channel.kind, channel.target.as_str())) {
            fields.wrong(path("target"), "is named twice");
        }
        check_secrets(fields, path, kind, &channel.secrets);
        checked.push(Channel {
            kind: kind as i16,
            target: channel.target.clone(),
            min_severity: Severity::try_from(severity).unwrap_or(default),
            secrets: channel.secrets.clone(),
        });
    }
    checked
}

fn check_secrets(fields: &mut Fields, path: impl Fn(&str) -> String, kind: ChannelKind, secrets: &[String]) {
    if !secrets.is_empty() && kind != ChannelKind::Webhook {
        fields.wrong(path("secrets"), "are for webhooks only");
    }
    if secrets.len() > SECRETS_MAX {
        fields.wrong(path("secrets"), format!("must be at most {SECRETS_MAX}, has {}", secrets.len()));
    }
    for (number, secret) in secrets.iter().enumerate().take(SECRETS_MAX) {
        if let Err(description) = notify::check_secret(secret) {
            fields.wrong(path(&format!("secrets[{number}]")), description);
        }
    }
}

/// Sets the keys of webhooks that have none: to the keys of the same webhook before the change, or to a new key. Returns the new keys.
pub(super) fn add_secrets(channels: &mut [Channel], before: &[Channel]) -> Vec<NewSecret> {
    let mut created = vec![];
    for channel in channels {
        if channel.kind != ChannelKind::Webhook as i16 || !channel.secrets.is_empty() {
            continue;
        }
        let same = before.iter().find(|old| (old.kind, &old.target) == (channel.kind, &channel.target));
        channel.secrets = same.map_or_else(Vec::new, |old| old.secrets.clone());
        if channel.secrets.is_empty() {
            let secret = notify::new_secret();
            created.push(NewSecret { target: channel.target.clone(), secret: secret.clone() });
            channel.secrets.push(secret);
        }
    }
    created
}
