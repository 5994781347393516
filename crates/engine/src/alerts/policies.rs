//! Reads and changes alert policies.

use super::channels::{self, ChannelInput, ChannelView, NewSecret};
use super::{check, notify};
use crate::clients;
use crate::engine::Engine;
use crate::fields::{FILTER_VALUES_MAX, Fields, Path};
use crate::jobs::ALERT_CHECKS;
use crate::refusal::{Refusal, shown};
use chrono::{DateTime, Utc};
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::policy::{Contradiction, Overrides, Policy};
use meterd_domain::policy_fields;
use meterd_store::admin::jobs;
use meterd_store::alerts::channels::{self as channel_store, Channel};
use meterd_store::alerts::policies as store;
use meterd_store::locks;
use sqlx::PgConnection;

/// The field of the channels. It is not one of the values that are overridden.
const CHANNELS: &str = "channels";
/// Maximum of a number of events in a policy.
const COUNT_MAX: i32 = 1_000_000_000;
/// Maximum of a number of hours in a policy: a year.
const HOURS_MAX: i32 = 8_760;

/// The policy that applies to a client, or the default policy.
pub struct PolicyView {
    /// Empty: the default policy.
    pub client_id: String,
    pub policy: Policy,
    pub channels: Vec<ChannelView>,
    /// Names of the fields that this policy sets itself.
    pub overridden_fields: Vec<String>,
    /// `None` if the policy was never changed.
    pub update_time: Option<DateTime<Utc>>,
}

/// The type of an unchecked value.
macro_rules! input {
    (switch) => {
        bool
    };
    (day) => {
        i32
    };
    (count) => {
        i32
    };
    (hours) => {
        i32
    };
    ($kind:ident) => {
        String
    };
}

macro_rules! define {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $built_in:expr;)*) => {
        /// The fields of a policy, unchecked.
        #[derive(Clone, Default)]
        pub struct PolicyInput {
            /// Empty: the default policy.
            pub client_id: String,
            $(pub $name: Option<input!($kind)>,)*
            pub channels: Vec<ChannelInput>,
        }

        impl PolicyInput {
            /// Checks the value of one field and sets it in `over`. Returns false if no field has this name.
            fn take(&self, fields: &mut Fields, name: &str, over: &mut Overrides) -> bool {
                match name {
                    $(stringify!($name) => over.$name = self.$name.as_ref().and_then(|value| $kind(fields, name, value)),)*
                    _ => return false,
                }
                true
            }
        }
    };
}
policy_fields!(define);

fn switch(_: &mut Fields, _: &str, value: &bool) -> Option<bool> {
    Some(*value)
}

fn amount(fields: &mut Fields, name: &str, value: &str) -> Option<Total> {
    Some(fields.decimal(name, value).into())
}

fn factor(fields: &mut Fields, name: &str, value: &str) -> Option<Total> {
    if Decimal::parse(value) == Ok(Decimal::ZERO) {
        fields.wrong(name, "must be above 0");
    }
    amount(fields, name, value)
}

fn day(fields: &mut Fields, name: &str, value: &i32) -> Option<u32> {
    if !(1..=31).contains(value) {
        fields.wrong(name, "must be a day of the month from 1 to 31");
    }
    u32::try_from(*value).ok()
}

fn count(fields: &mut Fields, name: &str, value: &i32) -> Option<u32> {
    if !(1..=COUNT_MAX).contains(value) {
        fields.wrong(name, format!("must be from 1 to {COUNT_MAX}"));
    }
    u32::try_from(*value).ok()
}

fn hours(fields: &mut Fields, name: &str, value: &i32) -> Option<u32> {
    if !(1..=HOURS_MAX).contains(value) {
        fields.wrong(name, format!("must be a number of hours from 1 to {HOURS_MAX}"));
    }
    u32::try_from(*value).ok()
}

/// Returns the policy that applies to a client, or the default policy if the client id is empty.
pub async fn get(engine: &Engine, client_id: &str) -> Result<PolicyView, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", client_id, ID_BYTES_MAX);
    fields.finish()?;
    if !client_id.is_empty() {
        clients::existing(engine, client_id).await?;
    }
    let mut tx = engine.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let policy = read(&mut tx, client_id).await?;
    tx.commit().await?;
    Ok(policy)
}

async fn read(conn: &mut PgConnection, client_id: &str) -> meterd_store::Result<PolicyView> {
    let policy = store::load(conn, &[client_id.to_string()]).await?.of(client_id).clone();
    let found = store::find(conn, client_id).await?;
    let channels = channel_store::list(conn, client_id).await?;
    let (overrides, update_time) = found.unzip();
    let mut overridden_fields = overrides.unwrap_or_default().names();
    if !channels.is_empty() {
        overridden_fields.push(CHANNELS.into());
    }
    let channels = channels.into_iter().map(ChannelView::from).collect();
    Ok(PolicyView { client_id: client_id.into(), policy, channels, overridden_fields, update_time })
}

/// Changes the fields of a policy that `names` lists. A value that is not set is no longer overridden. Evaluates the rules of the
/// client at once.
pub async fn update(engine: &Engine, policy: Option<PolicyInput>, names: &[String]) -> Result<PolicyView, Refusal> {
    let change = Change::check(engine, policy, names)?;
    let client_id = change.client_id.clone();
    if !client_id.is_empty() {
        clients::existing(engine, &client_id).await?;
    }
    let changes_channels = change.channels.is_some();
    let (mut policy, new_secrets) = write(engine, change).await?;
    if changes_channels && let Err(error) = notify::give_up_without_channel(&engine.pool).await {
        tracing::warn!(%error, "notifications of removed channels could not be given up at once; this is done later");
    }
    // After the commit, because the check may wait for the lock of the client's month, and meanwhile the versions lock would block
    // all writers. The policy applies even if the check fails. Then the job that checks all clients repeats the check.
    if !client_id.is_empty()
        && let Err(error) = check::one(&engine.pool, &engine.alert_settings, &client_id).await
    {
        tracing::warn!(%error, client_id, "a changed alert policy could not be evaluated at once");
        drop(jobs::want(&engine.pool, ALERT_CHECKS).await);
    }
    for channel in &mut policy.channels {
        let new = new_secrets.iter().find(|new| new.target == channel.target);
        channel.new_secrets = new.map(|new| new.secret.clone()).into_iter().collect();
    }
    Ok(policy)
}

/// A checked change of a policy.
struct Change<'a> {
    client_id: String,
    /// The fields to change.
    names: &'a [String],
    values: Overrides,
    /// `None` if the channels stay.
    channels: Option<Vec<Channel>>,
}

impl<'a> Change<'a> {
    /// Checks everything before anything is read, so that all wrong fields are reported together.
    fn check(engine: &Engine, policy: Option<PolicyInput>, names: &'a [String]) -> Result<Self, Refusal> {
        let mut fields = Fields::of(Path::Named("policy"));
        if policy.is_none() {
            // Without this error the default policy would be changed, which applies to everybody.
            fields.wrong_outside("policy", "is required; with an empty client_id it is the default policy");
        }
        let policy = policy.unwrap_or_default();
        fields.text("client_id", &policy.client_id, ID_BYTES_MAX);
        let values = check_values(&mut fields, &policy, names);
        let channels = names.iter().any(|name| name == CHANNELS).then(|| {
            let is_default_policy = policy.client_id == store::DEFAULT;
            channels::check(&engine.config.notify, &mut fields, &policy.channels, is_default_policy)
        });
        fields.finish()?;
        Ok(Self { client_id: policy.client_id, names, values, channels })
    }
}

/// Checks the values of the named fields.
fn check_values(fields: &mut Fields, policy: &PolicyInput, names: &[String]) -> Overrides {
    const MASK: &str = "update_mask";
    if names.len() > FILTER_VALUES_MAX {
        fields.wrong_outside(MASK, format!("must have at most {FILTER_VALUES_MAX} paths, has {}", names.len()));
    }
    if names.is_empty() {
        fields.wrong_outside(MASK, "is required: name the fields to change, such as \"monthly_warning\"");
    }
    let mut values = Overrides::default();
    for name in names.iter().take(FILTER_VALUES_MAX) {
        if name != CHANNELS && !policy.take(fields, name, &mut values) {
            let known = Overrides::NAMES.join(", ");
            fields.wrong_outside(MASK, format!("cannot change {}, only {known} and {CHANNELS}", shown(name)));
        }
    }
    values
}

/// Writes a change in one transaction. Every later commit on every replica uses the new policy.
async fn write(engine: &Engine, change: Change<'_>) -> Result<(PolicyView, Vec<NewSecret>), Refusal> {
    let client_id = change.client_id.as_str();
    let mut tx = engine.pool.begin().await?;
    if change.channels.is_some() {
        channel_store::lock(&mut tx, client_id).await?;
    }
    locks::change_versions(&mut tx).await?;
    let (mut overrides, _) = store::find(&mut tx, client_id).await?.unzip();
    let overrides = overrides.get_or_insert_default();
    for name in change.names {
        overrides.take(name, &change.values);
    }
    let below = match client_id {
        store::DEFAULT => Policy::default(),
        _ => store::load(&mut tx, &[]).await?.of(store::DEFAULT).clone(),
    };
    check_contradictions(&below.with_overrides(overrides), change.names)?;
    store::put(&mut tx, client_id, overrides).await?;
    let mut new_secrets = vec![];
    if let Some(mut channels) = change.channels {
        let before = channel_store::list(&mut tx, client_id).await?;
        new_secrets = channels::add_secrets(&mut channels, &before);
        channel_store::replace(&mut tx, client_id, &channels).await?;
    }
    let policy = read(&mut tx, client_id).await?;
    tx.commit().await?;
    Ok((policy, new_secrets))
}

/// Rejects a lower threshold above its upper threshold. The violation names a field that was sent. A contradiction between fields
/// that were not sent is accepted: a changed default policy has caused it.
fn check_contradictions(policy: &Policy, names: &[String]) -> Result<(), Refusal> {
    let mut fields = Fields::of(Path::Named("policy"));
    for Contradiction { lower, upper } in policy.contradictions() {
        let is_sent = |name: &str| names.iter().any(|sent| sent == name);
        let (field, must, (other, value)) = match (is_sent(lower.0), is_sent(upper.0)) {
            (true, _) => (lower.0, "most", upper),
            (false, true) => (upper.0, "least", lower),
            (false, false) => continue,
        };
        fields.wrong(field, format!("must be at {must} {other}, which is {value}"));
    }
    fields.finish()
}
