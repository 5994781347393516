//! Lists, retries and tests notifications.

use crate::auth::Caller;
use crate::clients;
use crate::engine::Engine;
use crate::fields::{FILTER_VALUES_MAX, Fields};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal};
use chrono::{DateTime, Utc};
use meterd_domain::access::Scope;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::notification::NotificationState;
use meterd_store::alerts::notifications::{self as store, Notification};
use std::time::Duration;
use tokio::time::Instant;

/// How long a test waits for the outcomes, in addition to the timeout of an attempt.
const TEST_MARGIN: Duration = Duration::from_secs(3);
/// How often a test checks for its outcome.
const TEST_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Which notifications to list.
#[derive(Debug)]
pub struct NotificationQuery {
    /// Empty: all clients.
    pub client_id: String,
    /// Only notifications of the channels of the default policy.
    pub operator_only: bool,
    /// Numbers of [`NotificationState`]. Empty: all states.
    pub states: Vec<i32>,
    pub page: PageRequest<NotificationCursor>,
}

/// Create time and id of the last notification of a page.
pub type NotificationCursor = (DateTime<Utc>, String);

/// Lists notifications, the newest first.
pub async fn list(
    engine: &Engine,
    query: NotificationQuery,
) -> Result<Page<Notification, NotificationCursor>, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &query.client_id, ID_BYTES_MAX);
    if query.operator_only && !query.client_id.is_empty() {
        fields.wrong(
            "operator_only",
            "must not be set together with client_id: the operator's channels are nobody else's",
        );
    }
    let states = check_states(&mut fields, &query.states);
    let size = query.page.check_size(&mut fields);
    fields.finish()?;
    let after = query.page.after?;
    let after = after.as_ref().map(|(time, notification_id)| (*time, notification_id.as_str()));
    let client_id = (query.operator_only || !query.client_id.is_empty()).then_some(query.client_id.as_str());
    let rows = store::list(&engine.pool, client_id, &states, after, size + 1).await?;
    Ok(Page::of(rows, size, |last| (last.create_time, last.notification_id.clone())))
}

fn check_states(fields: &mut Fields, states: &[i32]) -> Vec<i16> {
    fields.at_most("states", states.len(), FILTER_VALUES_MAX);
    let mut numbers = vec![];
    for (index, state) in states.iter().take(FILTER_VALUES_MAX).enumerate() {
        match i16::try_from(*state).ok().filter(|state| NotificationState::try_from(*state).is_ok()) {
            Some(state) => numbers.push(state),
            None => fields.wrong(format!("states[{index}]"), format!("{state} is no state of a notification")),
        }
    }
    numbers
}

/// Makes a failed notification due again.
pub async fn retry(engine: &Engine, caller: &Caller, id: &str) -> Result<Notification, Refusal> {
    let mut fields = Fields::default();
    fields.required("notification_id", id, ID_BYTES_MAX);
    fields.finish()?;
    // Notifications of the operator's channels need the scope for all clients. The answer does not show whether a notification
    // that the caller may not retry exists.
    let is_covered = |client_id: &str| match client_id {
        "" => caller.grants.covers_all(Scope::Admin),
        client_id => caller.grants.covers(Scope::Admin, client_id),
    };
    let not_found = || Refusal::new(Reason::NotificationNotFound, format!("no notification {id:?}"));
    let found = store::find(&engine.pool, id).await?;
    found.filter(|found| is_covered(&found.client_id)).ok_or_else(not_found)?;
    let Some(due) = store::retry(&engine.pool, id).await? else {
        let message = format!("notification {id:?} was not given up: there is nothing to try again");
        return Err(Refusal::new(Reason::NotificationNotFailed, message));
    };
    engine.notifications_wanted.notify_one();
    Ok(due)
}

/// Sends a test to every channel of a policy and waits for the outcomes. An empty client id selects the default policy.
pub async fn send_test(engine: &Engine, client_id: &str) -> Result<Vec<Notification>, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", client_id, ID_BYTES_MAX);
    fields.finish()?;
    if !client_id.is_empty() {
        clients::existing(engine, client_id).await?;
    }
    let id = format!("{:032x}-test", rand::random::<u128>());
    let mut ids = store::insert_tests(&engine.pool, client_id, &id).await?;
    ids.sort();
    engine.notifications_wanted.notify_one();
    let deadline = Instant::now() + engine.config.notify.timeout + TEST_MARGIN;
    loop {
        let mut found = vec![];
        for id in &ids {
            found.extend(store::find(&engine.pool, id).await?);
        }
        let is_pending = found.iter().any(|test| test.state == NotificationState::Pending as i16);
        if !is_pending || Instant::now() > deadline || engine.is_stopping() {
            return Ok(found);
        }
        tokio::time::sleep(TEST_POLL_INTERVAL).await;
    }
}
