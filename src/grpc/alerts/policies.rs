//! Alert policies of AlertService.

use crate::grpc::Context;
use crate::grpc::clients;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::{FILTER_VALUES_MAX, Fields, Path, shown};
use crate::proto::{
    AlertPolicy, GetAlertPolicyRequest, GetAlertPolicyResponse, NotificationChannel, UpdateAlertPolicyRequest,
    UpdateAlertPolicyResponse,
};
use meterd_domain::alert::Severity;
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::notification::ChannelKind;
use meterd_domain::policy::{Overrides, Policy};
use meterd_engine::alerts::{check, notify};
use meterd_engine::jobs::ALERT_CHECKS;
use meterd_engine::refusal::Refusal;
use meterd_store::channels::{self, Channel};
use meterd_store::{jobs, locks, policies};
use prost_types::FieldMask;
use sqlx::PgConnection;
use std::collections::HashSet;
use std::sync::Arc;

/// Most channels of a policy.
const CHANNELS_MAX: usize = 20;
const TARGET_BYTES_MAX: usize = 1_024;
/// Most keys of a webhook: more are no rotation.
const SECRETS_MAX: usize = 3;

/// Reads a policy.
pub async fn get(context: Arc<Context>, request: GetAlertPolicyRequest) -> Result<GetAlertPolicyResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    fields.finish()?;
    if !request.client_id.is_empty() {
        clients::existing(&context, &request.client_id).await?;
    }
    let mut tx = context.engine.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let policy = read(&mut tx, &request.client_id).await?;
    tx.commit().await?;
    Ok(GetAlertPolicyResponse { policy: Some(policy) })
}

/// The policy as it holds.
async fn read(conn: &mut PgConnection, client_id: &str) -> meterd_store::Result<AlertPolicy> {
    let policy = policies::load(conn, &[client_id.to_string()]).await?.of(client_id).clone();
    let found = policies::find(conn, client_id).await?;
    let channels = channels::list(conn, client_id).await?;
    let (overrides, update_time) = found.unzip();
    let mut paths = overrides.unwrap_or_default().names();
    if !channels.is_empty() {
        paths.push("channels".into());
    }
    Ok(AlertPolicy {
        client_id: client_id.into(),
        threshold_enabled: Some(policy.threshold_enabled),
        monthly_warning: Some(policy.monthly_warning.to_string()),
        monthly_critical: Some(policy.monthly_critical.to_string()),
        spike_enabled: Some(policy.spike_enabled),
        spike_warning_percent: Some(policy.spike_warning_percent.to_string()),
        spike_critical_percent: Some(policy.spike_critical_percent.to_string()),
        spike_baseline_min: Some(policy.spike_baseline_min.to_string()),
        projection_enabled: Some(policy.projection_enabled),
        projection_factor: Some(policy.projection_factor.to_string()),
        projection_first_day: Some(policy.projection_first_day as i32),
        anomaly_enabled: Some(policy.anomaly_enabled),
        anomaly_factor: Some(policy.anomaly_factor.to_string()),
        anomaly_cost_min: Some(policy.anomaly_cost_min.to_string()),
        anomaly_units_min: Some(policy.anomaly_units_min.to_string()),
        channels: channels.into_iter().map(channel_message).collect(),
        overridden_fields: Some(FieldMask { paths }),
        update_time: update_time.map(timestamp),
    })
}

fn channel_message(channel: Channel) -> NotificationChannel {
    NotificationChannel {
        kind: channel.kind.into(),
        target: channel.target,
        min_severity: channel.min_severity as i32,
        secrets: vec![],
        secret_count: channel.secrets.len() as i32,
    }
}

/// Changes a policy, and evaluates a client's at once.
pub async fn update(
    context: Arc<Context>,
    request: UpdateAlertPolicyRequest,
) -> Result<UpdateAlertPolicyResponse, Refusal> {
    let without_policy = request.policy.is_none();
    let given = request.policy.unwrap_or_default();
    let paths = request.update_mask.unwrap_or_default().paths;
    let client_id = given.client_id.as_str();
    let mut fields = Fields::of(Path::Named("policy"));
    if without_policy {
        // Taken for the default policy, it would take back what everybody goes by.
        fields.wrong_outside("policy", "is required; with an empty client_id it is the default policy");
    }
    fields.text("client_id", client_id, ID_BYTES_MAX);
    // Checked before anything is read, so that everything that is wrong is told at once.
    let mut wanted = Overrides::default();
    set_fields(&mut fields, &mut wanted, &given, &paths);
    let names_channels = paths.iter().any(|path| path == "channels");
    let new_channels = if names_channels { check_channels(&context, &mut fields, &given) } else { vec![] };
    fields.finish()?;
    if !client_id.is_empty() {
        clients::existing(&context, client_id).await?;
    }

    let mut tx = context.engine.pool.begin().await?;
    if names_channels {
        channels::lock(&mut tx, client_id).await?;
    }
    // Every commit after this one goes by the new policy, on every replica.
    locks::change_versions(&mut tx).await?;
    let (mut overrides, _) = policies::find(&mut tx, client_id).await?.unzip();
    let overrides = overrides.get_or_insert_default();
    let mut fields = Fields::of(Path::Named("policy"));
    set_fields(&mut fields, overrides, &given, &paths);
    let below = match client_id {
        policies::DEFAULT => Policy::default(),
        _ => policies::load(&mut tx, &[]).await?.of(policies::DEFAULT).clone(),
    };
    let policy = below.with(overrides);
    for (lower, upper) in policy.contradictions() {
        // Told of the field that was sent. One that a changed default has brought about is not this caller's.
        let sent = |field: &str| paths.iter().any(|path| path == field);
        let (field, must, other) = match (sent(lower), sent(upper)) {
            (true, _) => (lower, "most", upper),
            (false, true) => (upper, "least", lower),
            (false, false) => continue,
        };
        fields.wrong(field, format!("must be at {must} {other}, which is {}", value_of(&policy, other)));
    }
    fields.finish()?;
    policies::put(&mut tx, client_id, overrides).await?;
    let mut made_secrets = vec![];
    if names_channels {
        let before = channels::list(&mut tx, client_id).await?;
        let (channels, made) = with_secrets(new_channels, &before);
        channels::replace(&mut tx, client_id, &channels).await?;
        made_secrets = made;
    }
    let mut policy = read(&mut tx, client_id).await?;
    tx.commit().await?;
    if names_channels && let Err(error) = notify::give_up_without_channel(&context.engine.pool).await {
        tracing::warn!(%error, "what waits for removed channels is given up later");
    }
    // After the commit: the check may have to wait for the client's month, and with the versions lock everybody would wait with
    // it. The policy holds, whatever becomes of the check: where it fails, the job for all clients does it, soon if it can be
    // asked to.
    if !client_id.is_empty()
        && let Err(error) = check::one(&context.engine.pool, &context.engine.alert_settings, client_id).await
    {
        tracing::warn!(%error, client_id, "a changed alert policy could not be evaluated at once");
        drop(jobs::want(&context.engine.pool, ALERT_CHECKS).await);
    }
    for channel in &mut policy.channels {
        let made = made_secrets.iter().find(|(target, _)| *target == channel.target);
        channel.secrets = made.into_iter().map(|(_, secret)| secret.clone()).collect();
    }
    Ok(UpdateAlertPolicyResponse { policy: Some(policy) })
}

fn value_of(policy: &Policy, field: &str) -> Total {
    match field {
        "monthly_warning" => policy.monthly_warning,
        "monthly_critical" => policy.monthly_critical,
        "spike_warning_percent" => policy.spike_warning_percent,
        _ => policy.spike_critical_percent,
    }
}

/// Sets the fields that the mask names; one that is not set is overridden no longer.
fn set_fields(fields: &mut Fields, over: &mut Overrides, given: &AlertPolicy, paths: &[String]) {
    fn amount(fields: &mut Fields, field: &str, value: &Option<String>) -> Option<Total> {
        value.as_ref().map(|value| Total::from(fields.decimal(field, value)))
    }
    fn above_zero(fields: &mut Fields, field: &str, value: &Option<String>) -> Option<Total> {
        if value.as_deref().map(Decimal::parse) == Some(Ok(Decimal::ZERO)) {
            fields.wrong(field, "must be above 0");
        }
        amount(fields, field, value)
    }
    if paths.len() > FILTER_VALUES_MAX {
        fields
            .wrong_outside("update_mask", format!("must have at most {FILTER_VALUES_MAX} paths, has {}", paths.len()));
    }
    if paths.is_empty() {
        fields.wrong_outside("update_mask", "is required: name the fields to change, such as \"monthly_warning\"");
    }
    for path in paths.iter().take(FILTER_VALUES_MAX) {
        let path = path.as_str();
        match path {
            "threshold_enabled" => over.threshold_enabled = given.threshold_enabled,
            "monthly_warning" => over.monthly_warning = amount(fields, path, &given.monthly_warning),
            "monthly_critical" => over.monthly_critical = amount(fields, path, &given.monthly_critical),
            "spike_enabled" => over.spike_enabled = given.spike_enabled,
            "spike_warning_percent" => over.spike_warning_percent = amount(fields, path, &given.spike_warning_percent),
            "spike_critical_percent" => {
                over.spike_critical_percent = amount(fields, path, &given.spike_critical_percent);
            }
            "spike_baseline_min" => over.spike_baseline_min = amount(fields, path, &given.spike_baseline_min),
            "projection_enabled" => over.projection_enabled = given.projection_enabled,
            "projection_factor" => over.projection_factor = above_zero(fields, path, &given.projection_factor),
            "projection_first_day" => {
                if given.projection_first_day.is_some_and(|day| !(1..=31).contains(&day)) {
                    fields.wrong(path, "must be a day of the month from 1 to 31");
                }
                over.projection_first_day = given.projection_first_day.map(|day| day as u32);
            }
            "anomaly_enabled" => over.anomaly_enabled = given.anomaly_enabled,
            "anomaly_factor" => over.anomaly_factor = above_zero(fields, path, &given.anomaly_factor),
            "anomaly_cost_min" => over.anomaly_cost_min = amount(fields, path, &given.anomaly_cost_min),
            "anomaly_units_min" => over.anomaly_units_min = amount(fields, path, &given.anomaly_units_min),
            "channels" => {}
            other => {
                let known = Overrides::NAMES.join(", ");
                fields
                    .wrong_outside("update_mask", format!("cannot change {}, only {known} and channels", shown(other)));
            }
        }
    }
}

/// Checks the channels that are sent.
fn check_channels(context: &Context, fields: &mut Fields, given: &AlertPolicy) -> Vec<Channel> {
    let channels = &given.channels;
    if channels.len() > CHANNELS_MAX {
        fields.wrong("channels", format!("must be at most {CHANNELS_MAX} channels, has {}", channels.len()));
    }
    let default = if given.client_id.is_empty() { Severity::Critical } else { Severity::Warning };
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
            && let Err(description) = notify::check_target(kind, &channel.target, &context.engine.config.notify)
        {
            fields.wrong(path("target"), description);
        }
        if !seen.insert((channel.kind, channel.target.as_str())) {
            fields.wrong(path("target"), "is named twice");
        }
        if !channel.secrets.is_empty() && kind != ChannelKind::Webhook {
            fields.wrong(path("secrets"), "are for webhooks only");
        }
        if channel.secrets.len() > SECRETS_MAX {
            let description = format!("must be at most {SECRETS_MAX}, has {}", channel.secrets.len());
            fields.wrong(path("secrets"), description);
        }
        for (number, secret) in channel.secrets.iter().enumerate().take(SECRETS_MAX) {
            if let Err(description) = notify::check_secret(secret) {
                fields.wrong(path(&format!("secrets[{number}]")), description);
            }
        }
        checked.push(Channel {
            kind: kind as i16,
            target: channel.target.clone(),
            min_severity: Severity::try_from(severity).unwrap_or(default),
            secrets: channel.secrets.clone(),
        });
    }
    checked
}

/// Gives webhooks that were sent without keys those that they had, or a new one; says which were made.
fn with_secrets(channels: Vec<Channel>, before: &[Channel]) -> (Vec<Channel>, Vec<(String, String)>) {
    let mut made = vec![];
    let channels = channels
        .into_iter()
        .map(|mut channel| {
            if channel.kind == ChannelKind::Webhook as i16 && channel.secrets.is_empty() {
                let same = before.iter().find(|old| (old.kind, &old.target) == (channel.kind, &channel.target));
                channel.secrets = same.map_or_else(Vec::new, |old| old.secrets.clone());
                if channel.secrets.is_empty() {
                    let secret = notify::new_secret();
                    made.push((channel.target.clone(), secret.clone()));
                    channel.secrets.push(secret);
                }
            }
            channel
        })
        .collect();
    (channels, made)
}
