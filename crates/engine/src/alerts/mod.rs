//! Alerts. An alert is raised in the transaction whose usage reaches a threshold, or has no charge. A job checks all clients. Alerts are listed,
//! streamed, and delivered as notifications.

mod channels;
pub mod check;
pub mod feed;
pub mod notifications;
pub mod notify;
pub mod policies;
pub mod raise;
mod silence;
pub mod unpriced;

pub use channels::{ChannelInput, ChannelView};

use crate::auth::Caller;
use crate::engine::Engine;
use crate::fields::{FILTER_VALUES_MAX, Fields, UnixTime};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal};
use check::Report;
use chrono::{DateTime, Utc};
use meterd_domain::access::Scope;
use meterd_domain::alert::{Alert, AlertType, Change, Severity};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::alerts::feed::{self as alert_feed, FeedFilter};
use meterd_store::alerts::{self as store, AlertFilter};

impl Fields {
    /// Checks the alert types of a filter. Returns their numbers, without duplicates.
    pub fn alert_types(&mut self, types: &[i32]) -> Vec<i16> {
        self.at_most("types", types.len(), FILTER_VALUES_MAX);
        let mut numbers = vec![];
        for (index, kind) in types.iter().take(FILTER_VALUES_MAX).enumerate() {
            match i16::try_from(*kind).ok().filter(|kind| AlertType::try_from(*kind).is_ok()) {
                Some(kind) => numbers.push(kind),
                None => self.wrong(format!("types[{index}]"), format!("{kind} is no alert type")),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Checks a minimum severity. Returns its number, or 0 for any severity.
    pub fn min_severity(&mut self, field: &str, severity: i32) -> i16 {
        let number = i16::try_from(severity).ok();
        let number = number.filter(|number| *number == 0 || Severity::try_from(*number).is_ok());
        if number.is_none() {
            self.wrong(field, format!("{severity} is no severity"));
        }
        number.unwrap_or_default()
    }
}

/// Which alerts to list. Empty filters select all.
#[derive(Debug)]
pub struct AlertQuery {
    pub client_ids: Vec<String>,
    /// Numbers of [`AlertType`].
    pub types: Vec<i32>,
    /// A number of [`Severity`], or 0.
    pub min_severity: i32,
    pub unacknowledged_only: bool,
    pub open_only: bool,
    pub start_time: Option<UnixTime>,
    pub end_time: Option<UnixTime>,
    pub page: PageRequest<AlertCursor>,
}

/// Which changes of alerts to follow, and where to begin. Empty filters select all.
#[derive(Debug)]
pub struct SubscriptionInput<'a> {
    pub client_ids: &'a [String],
    /// Numbers of [`AlertType`].
    pub types: &'a [i32],
    /// A number of [`Severity`], or 0.
    pub min_severity: i32,
    pub from_start: bool,
    /// Empty: begins without a token.
    pub resume_token: &'a str,
}

/// Checks a subscription and returns its filter.
pub fn check_subscription(input: &SubscriptionInput<'_>) -> Result<FeedFilter, Refusal> {
    let mut fields = Fields::default();
    fields.filter("client_ids", input.client_ids);
    let kinds = fields.alert_types(input.types);
    let min_severity = fields.min_severity("min_severity", input.min_severity);
    if input.from_start && !input.resume_token.is_empty() {
        fields.wrong("from_start", "must not be together with resume_token: it says where to begin");
    }
    fields.finish()?;
    let mut client_ids = input.client_ids.to_vec();
    client_ids.sort_unstable();
    client_ids.dedup();
    Ok(FeedFilter { client_ids, kinds, min_severity })
}

/// Raise time and id of the last alert of a page.
pub type AlertCursor = (DateTime<Utc>, String);

/// Lists alerts, the newest first.
pub async fn list(engine: &Engine, query: AlertQuery) -> Result<Page<Alert, AlertCursor>, Refusal> {
    let mut fields = Fields::default();
    fields.filter("client_ids", &query.client_ids);
    let kinds = fields.alert_types(&query.types);
    let min_severity = fields.min_severity("min_severity", query.min_severity);
    let (start_time, end_time) = fields.times(query.start_time, query.end_time);
    let size = query.page.check_size(&mut fields);
    fields.finish()?;
    let after = query.page.after?;
    let filter = AlertFilter {
        client_ids: query.client_ids,
        kinds,
        min_severity,
        unacknowledged_only: query.unacknowledged_only,
        open_only: query.open_only,
        start_time,
        end_time,
    };
    let after = after.as_ref().map(|(time, alert_id)| (*time, alert_id.as_str()));
    let alerts = store::list(&engine.pool, &filter, after, size + 1).await?;
    Ok(Page::of(alerts, size, |last| (last.raise_time, last.alert_id.clone())))
}

fn not_found(alert_id: &str) -> Refusal {
    Refusal::new(Reason::AlertNotFound, format!("no alert {alert_id:?}"))
}

/// Returns an alert, if the caller may read it.
pub async fn get(engine: &Engine, caller: &Caller, alert_id: &str) -> Result<Alert, Refusal> {
    let mut fields = Fields::default();
    fields.required("alert_id", alert_id, ID_BYTES_MAX);
    fields.finish()?;
    let found = store::find(&mut *engine.pool.acquire().await?, alert_id).await?;
    // The answer does not show whether the alert of another client exists.
    let found = found.filter(|alert| caller.grants.covers(Scope::Read, &alert.client_id));
    found.ok_or_else(|| not_found(alert_id))
}

/// Acknowledges an alert, if nobody has acknowledged it before. Returns the alert in its new state.
pub async fn acknowledge(
    engine: &Engine,
    caller: &Caller,
    alert_id: &str,
    acknowledged_by: &str,
) -> Result<Alert, Refusal> {
    let mut fields = Fields::default();
    fields.required("alert_id", alert_id, ID_BYTES_MAX);
    fields.required("acknowledged_by", acknowledged_by, ID_BYTES_MAX);
    fields.finish()?;
    let mut tx = engine.pool.begin().await?;
    // The answer does not show whether the alert of another client exists.
    let found = store::find(&mut tx, alert_id).await?;
    let found = found.filter(|alert| caller.grants.covers(Scope::Admin, &alert.client_id));
    found.ok_or_else(|| not_found(alert_id))?;
    let alert = match store::acknowledge(&mut tx, alert_id, acknowledged_by).await? {
        Some(alert) => {
            alert_feed::append(&mut tx, &[(Change::Acknowledged, alert.clone())]).await?;
            alert
        }
        None => store::find(&mut tx, alert_id).await?.ok_or_else(|| not_found(alert_id))?,
    };
    tx.commit().await?;
    Ok(alert)
}

/// Evaluates the rules of one client, or of all active clients while `continues` returns true.
///
/// An empty client id selects all clients.
pub async fn check_now(engine: &Engine, client_id: &str, continues: impl Fn() -> bool) -> Result<Report, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", client_id, ID_BYTES_MAX);
    fields.finish()?;
    if client_id.is_empty() {
        return Ok(check::all(&engine.pool, &engine.alert_settings, continues).await?);
    }
    let checked = check::one(&engine.pool, &engine.alert_settings, client_id).await?;
    let checked = checked.ok_or_else(|| Refusal::client_not_found(client_id))?;
    Ok(Report {
        checked_count: 1,
        raised_count: checked.raised.len() as u64,
        resolved_count: checked.resolved_count as u64,
        raised: checked.raised,
        ..Report::default()
    })
}
