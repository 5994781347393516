//! Raises and resolves alerts about clients that no longer send events, when a check runs.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use meterd_domain::alert::{Alert, Details, Finding, SilenceFacts};
use meterd_domain::period::Month;
use meterd_domain::policy::Policy;
use meterd_store::alerts::policies;
use meterd_store::alerts::silence::{self as store, InactiveClient};
use sqlx::{PgConnection, PgPool};

/// What becomes of the alert of a client.
#[derive(Debug, Default)]
pub struct Evaluated {
    pub finding: Option<(Finding, Details)>,
    /// The ids of the alerts to resolve.
    pub resolved: Vec<String>,
}

/// Evaluates the rule for a client. Reads nothing if the rule is off and no alert is open.
pub async fn evaluate(
    conn: &mut PgConnection,
    policy: &Policy,
    client_id: &str,
    zone: Tz,
    now: DateTime<Utc>,
    open: &[&Alert],
) -> meterd_store::Result<Evaluated> {
    if !policy.silence_enabled && open.is_empty() {
        return Ok(Evaluated::default());
    }
    let facts = store::facts(conn, client_id, zone, now).await?;
    let is_over = |alert: &&&Alert| facts.is_none_or(|facts| facts.ends(policy, &alert.finding));
    let resolved: Vec<String> = open.iter().filter(is_over).map(|alert| alert.alert_id.clone()).collect();
    let facts = facts.filter(|_| resolved.len() == open.len());
    let finding = facts.and_then(|facts| Some((facts.silence(policy)?, Details::Silence(facts))));
    Ok(Evaluated { finding, resolved })
}

/// Examines up to `limit` clients after `after`. Returns those without usage in `month` or later whose silence may begin or end, and
/// the last client that was examined. `None`: there are no more clients, or no policy has the rule on and no alert is open.
pub async fn due(
    pool: &PgPool,
    now: DateTime<Utc>,
    month: Month,
    after: &str,
    limit: i64,
) -> meterd_store::Result<(Vec<String>, Option<String>)> {
    if !store::is_used(pool).await? {
        return Ok((vec![], None));
    }
    let (inactive, last) = store::inactive_since(pool, month, after, limit).await?;
    let ids: Vec<String> = inactive.iter().map(|client| client.client_id.clone()).collect();
    let policies = policies::load(&mut *pool.acquire().await?, &ids).await?;
    let is_due = |client: &InactiveClient| {
        let InactiveClient { client_id, zone, last_day, open } = client;
        // Without usage, an open alert is over.
        let Some(recorded_day) = *last_day else { return open.is_some() };
        let facts = SilenceFacts { recorded_day, last_event_time: None, now, zone: *zone };
        facts.may_change(policies.of(client_id), *open)
    };
    let due = inactive.iter().filter(|client| is_due(client)).map(|client| client.client_id.clone()).collect();
    Ok((due, last))
}
