//! Says how much of the limits of clients is left.

use super::{Dimensions, Limit, LimitState};
use crate::engine::Engine;
use crate::fields::Fields;
use crate::paging::{Page, PageRequest};
use crate::refusal::Refusal;
use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use chrono_tz::Tz;
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::{day_of, start_of_day};
use meterd_store::clients;
use meterd_store::limits as store;
use meterd_store::limits::counters::{self, Counter, Wanted};
use std::collections::HashMap;

/// Maximum number of clients of a page. Each has up to [`super::LIMITS_MAX`] limits.
const CLIENTS_MAX: i64 = 100;

/// What a caller asks about a client, unchecked.
#[derive(Debug, Default)]
pub struct CheckInput {
    pub client_id: String,
    /// Only limits that may count an event with these dimensions.
    pub of: Dimensions,
}

/// Which clients a caller asks about.
#[derive(Debug)]
pub struct BatchCheckInput {
    /// Empty: all clients that have limits.
    pub client_ids: Vec<String>,
    /// The cursor is the id of the last client.
    pub page: PageRequest<String>,
}

/// A limit in its current period.
#[derive(Clone, Debug)]
pub struct LimitStatus {
    pub limit: Limit,
    pub state: LimitState,
    pub used: Total,
    pub reserved: Total,
    /// Never below zero.
    pub remaining: Total,
    pub period_start: NaiveDate,
    /// When the next period begins.
    pub reset_time: DateTime<Utc>,
}

/// The limits of a client in their current periods.
#[derive(Clone, Debug)]
pub struct ClientStatus {
    pub client_id: String,
    /// The worst state of its limits.
    pub state: LimitState,
    /// Whether no hard limit is reached.
    pub is_allowed: bool,
    /// The id of the limit of which the smallest share remains. Empty if the client has no limits.
    pub binding_limit_id: String,
    /// Ordered by id.
    pub limits: Vec<LimitStatus>,
}

impl LimitStatus {
    fn of(limit: Limit, counter: &Counter, zone: Tz) -> Self {
        let (used, reserved) = (counter.used(), counter.reserved);
        let taken = used + reserved;
        Self {
            state: limit.state(taken),
            used,
            reserved,
            remaining: limit.remaining(taken),
            period_start: counter.period_start,
            reset_time: first_instant(limit.period.end(counter.period_start), zone),
            limit,
        }
    }

    fn taken(&self) -> Total {
        self.used + self.reserved
    }
}

/// Returns the first instant of a day. If the zone has skipped the day, returns that of the next day.
fn first_instant(day: NaiveDate, zone: Tz) -> DateTime<Utc> {
    let instant = start_of_day(day, zone).or_else(|| start_of_day(day + Days::new(1), zone));
    instant.unwrap_or_else(|| day.and_time(NaiveTime::MIN).and_utc())
}

impl ClientStatus {
    fn of(client_id: String, limits: Vec<LimitStatus>) -> Self {
        let binding = limits.iter().min_by(|left, right| {
            Limit::compare_remaining_shares((&left.limit, left.taken()), (&right.limit, right.taken()))
                // Of two, the one that refuses usage.
                .then(right.limit.is_hard.cmp(&left.limit.is_hard))
        });
        Self {
            client_id,
            state: limits.iter().map(|status| status.state).max().unwrap_or(LimitState::Green),
            is_allowed: !limits.iter().any(|status| status.limit.is_hard && status.state == LimitState::Red),
            binding_limit_id: binding.map(|status| status.limit.limit_id.clone()).unwrap_or_default(),
            limits,
        }
    }
}

/// Returns the limits of a client that may count an event.
pub async fn check(engine: &Engine, input: CheckInput) -> Result<ClientStatus, Refusal> {
    let CheckInput { client_id, of } = input;
    let mut fields = Fields::default();
    fields.required("client_id", &client_id, ID_BYTES_MAX);
    for (name, value) in
        [("service", &of.service), ("operation", &of.operation), ("model", &of.model), ("subject", &of.subject)]
    {
        fields.text(name, value, ID_BYTES_MAX);
    }
    fields.labels("labels", &of.labels);
    fields.finish()?;
    let mut found = read(engine, vec![client_id.clone()]).await?;
    let limits = found.remove(&client_id).ok_or_else(|| Refusal::client_not_found(&client_id))?;
    let limits = limits.into_iter().filter(|status| status.limit.filter.may_match(&of)).collect();
    Ok(ClientStatus::of(client_id, limits))
}

/// Returns a page of the clients that have limits, with their limits.
pub async fn check_batch(engine: &Engine, input: BatchCheckInput) -> Result<Page<ClientStatus, String>, Refusal> {
    let BatchCheckInput { client_ids, page } = input;
    let mut fields = Fields::default();
    fields.filter("client_ids", &client_ids);
    let size = fields.page_size(page.size, CLIENTS_MAX, CLIENTS_MAX);
    fields.finish()?;
    let after = page.after?.unwrap_or_default();
    let clients = store::clients(&mut *engine.pool.acquire().await?, &client_ids, &after, size + 1).await?;
    let Page { rows: clients, next } = Page::of(clients, size, String::clone);
    let mut found = read(engine, clients.clone()).await?;
    // A client whose last limit was deleted in the meantime has none.
    let status = |client_id: String| {
        let limits = found.remove(&client_id)?;
        Some(ClientStatus::of(client_id, limits))
    };
    Ok(Page { rows: clients.into_iter().filter_map(status).collect(), next })
}

/// Returns the limits of clients in the periods that contain the present. A client that does not exist is left out.
async fn read(engine: &Engine, client_ids: Vec<String>) -> Result<HashMap<String, Vec<LimitStatus>>, Refusal> {
    if client_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let (now, client_ids) = (engine.clock.now(), &client_ids);
    let (zones, found) = engine
        .reads
        .read(|mut conn| async move {
            let read = async {
                let zones = clients::time_zones(&mut conn, client_ids).await?;
                let mut wanted = Wanted::default();
                zones.iter().for_each(|(client_id, zone)| wanted.push(client_id, "", day_of(now, *zone)));
                let found = counters::read(&mut conn, &wanted, false).await?;
                Ok((zones, found))
            };
            let read = read.await;
            (conn, read)
        })
        .await?;
    let mut statuses: HashMap<String, Vec<LimitStatus>> = zones.keys().map(|of| (of.clone(), vec![])).collect();
    for (limit, counter) in found {
        let (Some(zone), Some(of_client)) = (zones.get(&limit.client_id), statuses.get_mut(&limit.client_id)) else {
            continue;
        };
        of_client.push(LimitStatus::of(limit, &counter, *zone));
    }
    Ok(statuses)
}
