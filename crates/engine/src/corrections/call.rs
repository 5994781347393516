//! Voids and corrects events of one client that a caller names.

use super::apply::{Changed, apply};
use crate::alerts::raise;
use crate::auth::Caller;
use crate::engine::Engine;
use crate::fields::{Fields, Path, UnixTime};
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::ingest::{EventChecks, RawEvent, SharedTexts};
use crate::ledger::{Begun, Tiers, months_of};
use crate::plans;
use crate::refusal::{Reason, Refusal, shown};
use chrono::{DateTime, TimeDelta, Utc};
use meterd_domain::access::Scope;
use meterd_domain::adjustment::{AdjustmentKind, field_changes};
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, EXTERNAL_ID_BYTES_MAX, EventId, ID_BYTES_MAX, UsageEvent};
use meterd_domain::period::Month;
use meterd_domain::pricing::Pricing;
use meterd_store::StoreError;
use meterd_store::usage::adjustments::Origin;
use meterd_store::usage::events::RecordedEvent;
use meterd_store::usage::holders;
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};

/// Maximum number of events of a call.
pub const EVENTS_MAX: usize = 1_000;
/// Maximum number of events that the external ids of a call may have.
const EXTERNAL_ID_EVENTS_MAX: i64 = 10_000;
/// Maximum length of a reason, in bytes.
pub(super) const REASON_BYTES_MAX: usize = 1_024;

/// How a caller names an event: by its id, its key, or its external id. The others are empty.
#[derive(Clone, Debug, Default)]
pub struct EventReference {
    pub event_id: String,
    pub idempotency_key: String,
    pub external_id: String,
}

/// The client whose events are changed, and why.
#[derive(Clone, Debug)]
pub struct Target {
    pub client_id: String,
    pub reason: String,
}

/// What became of an event of a call.
#[derive(Clone, Debug)]
pub struct AdjustmentResult {
    /// `None` if the event was not found.
    pub event_id: Option<EventId>,
    /// The charge before the call. `None` after an error.
    pub old: Option<Charge>,
    /// The charge now. `None` if the event is voided, or after an error.
    pub new: Option<Charge>,
    /// What remains in the cost of the tiers that the event does not count in any more.
    pub tier_residue: Decimal,
    pub error: Option<Refusal>,
}

impl AdjustmentResult {
    fn unchanged(event_id: Option<EventId>, charge: Option<Charge>, error: Option<Refusal>) -> Self {
        Self { event_id, old: charge, new: charge, tier_residue: Decimal::ZERO, error }
    }
}

/// The results of a call.
#[derive(Clone, Debug)]
pub struct Adjusted {
    /// In the order of the request.
    pub results: Vec<AdjustmentResult>,
    /// The currency of the charges.
    pub currency: String,
}

/// Voids events: they no longer count.
pub async fn void(
    engine: &Engine,
    caller: &Caller,
    target: Target,
    events: Vec<EventReference>,
    idempotency: Idempotency<Adjusted>,
) -> Result<Created<Adjusted>, Refusal> {
    let events = events.into_iter().map(|reference| (reference, None)).collect();
    run(engine, caller, target, AdjustmentKind::Void, events, idempotency).await
}

/// Replaces the contents of events, and charges them by the prices that are in force at their times.
pub async fn correct(
    engine: &Engine,
    caller: &Caller,
    target: Target,
    corrections: Vec<(EventReference, RawEvent)>,
    idempotency: Idempotency<Adjusted>,
) -> Result<Created<Adjusted>, Refusal> {
    let corrections = corrections.into_iter().map(|(reference, event)| (reference, Some(event))).collect();
    run(engine, caller, target, AdjustmentKind::Correction, corrections, idempotency).await
}

/// An event of a call, with its new contents if it is corrected.
type Wanted = (EventReference, Option<RawEvent>);

async fn run(
    engine: &Engine,
    caller: &Caller,
    target: Target,
    kind: AdjustmentKind,
    mut wanted: Vec<Wanted>,
    idempotency: Idempotency<Adjusted>,
) -> Result<Created<Adjusted>, Refusal> {
    let Target { client_id, reason } = &target;
    let list = if kind == AdjustmentKind::Void { "events" } else { "corrections" };
    let is_admin = caller.check_client(Scope::Admin, client_id).is_ok();
    if !is_admin && !client_id.is_empty() {
        caller.check_client(Scope::Ingest, client_id)?;
    }
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.required("reason", reason, REASON_BYTES_MAX);
    if !(1..=EVENTS_MAX).contains(&wanted.len()) {
        fields.wrong(list, format!("must be 1 to {EVENTS_MAX} events, has {}", wanted.len()));
    }
    idempotency.check(&mut fields);
    fields.finish()?;
    let anybody = Caller::anybody();
    let services = wanted.iter().filter_map(|(_, event)| Some(event.as_ref()?.service.as_str()));
    let checks = EventChecks::new(engine, &anybody, services, true).await?.uncounted();
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    let oldest = engine.clock.now() - TimeDelta::days(engine.config.correction_days.into());
    // Before the versions lock, because a search for external ids may take seconds. The events are read again under the lock.
    let references: Vec<Result<EventId, Refusal>> = resolve(creation.conn(), client_id, oldest, list, &wanted).await?;
    let mut tx = Begun::new(creation.conn()).share_versions().await?;
    let catalog = tx.catalog(&engine.catalog).await?;
    let closed = tx.versions.closed_through;
    let ids: Vec<(&str, EventId)> =
        references.iter().filter_map(|id| Some((client_id.as_str(), *id.as_ref().ok()?))).collect();
    let before = holders::events(tx.conn(), &ids).await?;
    let months = months_of(before.iter().flatten());
    let mut tx = tx.lock_months(&months).await?;
    // Read again, because the events can only now not change any more.
    let recorded = holders::events(tx.conn(), &ids).await?;
    if !months_of(recorded.iter().flatten()).is_subset(&months) {
        return Err(StoreError::Stale("an event was moved to another month while it was corrected").into());
    }
    let mut recorded = recorded.into_iter();
    let mut found = vec![];
    let mut seen = HashSet::new();
    for id in references {
        let event = match id {
            Ok(_) => recorded.next().expect("a result for each id").ok_or_else(|| not_found(client_id)),
            Err(error) => Err(error),
        };
        found.push(event.and_then(|event| {
            if !seen.insert(event.id) {
                return Err(Refusal::field(list, format!("must have each event once, has event {} again", event.id)));
            }
            if let Some(closed) = closed.filter(|closed| Month::of(event.day) <= *closed) {
                return Err(Refusal::month_closed(closed));
            }
            if event.void_time.is_some() {
                let message =
                    format!("event {} was voided and no longer counts; record the usage as a new event", event.id);
                return Err(Refusal::new(Reason::EventVoided, message));
            }
            if !is_admin && event.id.time < oldest {
                let days = engine.config.correction_days;
                let message = format!(
                    "event {} is more than {days} days old (setting correction_days): this needs the scope admin",
                    event.id
                );
                return Err(Refusal::new(Reason::ScopeMissing, message).with("scope", Scope::Admin.name()));
            }
            Ok(event)
        }));
    }
    let mut new = vec![];
    for (number, (recorded, (_, event))) in found.iter().zip(&mut wanted).enumerate() {
        new.push(match (recorded, event.take()) {
            (Err(error), _) => Err(error.clone()),
            (Ok(_), None) => Ok(None),
            (Ok(recorded), Some(event)) => corrected(&checks, number, recorded, event).map(Some),
        });
    }
    let plans = plans::of_clients(tx.conn(), &catalog, [client_id.as_str()]).await?;
    let mut tiers = Tiers::read(tx.conn(), Pricing { catalog: &catalog, plans: &plans }, &months).await?;
    let (mut changes, mut results) = (vec![], vec![]);
    for (recorded, new) in found.iter().zip(new) {
        let (recorded, event) = match (recorded, new) {
            (Ok(recorded), Ok(event)) => (recorded, event),
            (recorded, Err(error)) => {
                let event_id = recorded.as_ref().ok().map(|recorded| recorded.id);
                results.push(AdjustmentResult::unchanged(event_id, None, Some(error)));
                continue;
            }
            (Err(_), Ok(_)) => unreachable!("an event that is not found is not corrected"),
        };
        let (event_id, old) = (Some(recorded.id), Some(recorded.charge));
        // A correction that changes nothing leaves no adjustment.
        let is_same = event.as_ref().is_some_and(|event| field_changes(&recorded.event, event).is_empty());
        if is_same {
            results.push(AdjustmentResult::unchanged(event_id, old, None));
            continue;
        }
        let change = match event {
            Some(event) => Changed::charge(&mut tiers, recorded, Some(event)),
            None => Changed::void(&mut tiers, recorded),
        };
        let (new, tier_residue) = (change.charge, change.residue);
        results.push(AdjustmentResult { event_id, old, new, tier_residue, error: None });
        changes.push(change);
    }
    tiers.write(tx.conn()).await?;
    let actor = caller.principal();
    let origin = Origin { kind, reason, actor: &actor, run_id: None };
    let raised = match changes.is_empty() {
        true => vec![],
        false => apply(tx, &engine.alert_settings, &origin, client_id, &changes).await?,
    };
    let adjusted = Adjusted { results, currency: engine.currency.clone() };
    creation.commit(&adjusted).await?;
    raise::count(&raised);
    metrics::counter!("meterd_events_corrected_total", "kind" => kind_name(kind)).increment(changes.len() as u64);
    Ok(Created::New(adjusted))
}

fn kind_name(kind: AdjustmentKind) -> &'static str {
    match kind {
        AdjustmentKind::Void => "void",
        AdjustmentKind::Correction => "correction",
        AdjustmentKind::Reprice => "reprice",
        AdjustmentKind::LatePrice => "late_price",
    }
}

fn not_found(client_id: &str) -> Refusal {
    Refusal::new(Reason::EventNotFound, format!("client {} has no such event", shown(client_id)))
}

/// For each external id, its event, or the error if several events have it.
type OfExternalIds = HashMap<String, Result<EventId, Refusal>>;

/// Searches the events of a client since a time for external ids. Of events that count and voided ones with the same external id, it
/// takes those that count.
async fn of_external_ids(
    conn: &mut PgConnection,
    client_id: &str,
    external_ids: &[String],
    since: DateTime<Utc>,
) -> Result<OfExternalIds, Refusal> {
    let limit = EXTERNAL_ID_EVENTS_MAX + 1;
    let found = holders::of_external_ids(conn, client_id, external_ids, since, limit).await?;
    if found.len() as i64 == limit {
        let message =
            format!("more than {EXTERNAL_ID_EVENTS_MAX} events have these external ids: name them by event_id");
        return Err(Refusal::new(Reason::InvalidField, message));
    }
    let mut events = HashMap::<String, Vec<(EventId, bool)>>::new();
    for (external_id, id, is_void) in found {
        events.entry(external_id).or_default().push((id, is_void));
    }
    let one = |(external_id, of): (String, Vec<(EventId, bool)>)| {
        let counting: Vec<EventId> = of.iter().filter(|(_, is_void)| !is_void).map(|(id, _)| *id).collect();
        let result = match counting[..] {
            [] => Ok(of[0].0),
            [id] => Ok(id),
            [first, second, ..] => Err(Refusal::new(
                Reason::InvalidField,
                format!(
                    "{} events have the external_id {}, such as {first} and {second}: name one by event_id",
                    counting.len(),
                    shown(&external_id)
                ),
            )),
        };
        (external_id, result)
    };
    Ok(events.into_iter().map(one).collect())
}

/// Returns the id of each event.
async fn resolve(
    conn: &mut PgConnection,
    client_id: &str,
    oldest: DateTime<Utc>,
    list: &'static str,
    wanted: &[Wanted],
) -> Result<Vec<Result<EventId, Refusal>>, Refusal> {
    let possible = |key: &str| (1..=ID_BYTES_MAX).contains(&key.len()) && !key.chars().any(char::is_control);
    let keys = wanted.iter().map(|(reference, _)| reference.idempotency_key.clone());
    let keys: Vec<String> = keys.filter(|key| possible(key)).collect();
    let of_keys = match keys.is_empty() {
        true => HashMap::new(),
        false => holders::of_keys(conn, client_id, &keys).await?,
    };
    let external = wanted.iter().map(|(reference, _)| reference.external_id.clone());
    let external: Vec<String> = external
        .filter(|id| (1..=EXTERNAL_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control))
        .collect();
    let of_external = match external.is_empty() {
        true => HashMap::new(),
        false => of_external_ids(conn, client_id, &external, oldest).await?,
    };
    let field = |number: usize| match list {
        "events" => format!("events[{number}]"),
        _ => format!("{list}[{number}].event"),
    };
    let ids = wanted.iter().enumerate().map(|(number, (reference, _))| {
        let EventReference { event_id, idempotency_key, external_id } = reference;
        let mut fields = Fields::default();
        fields.text(&format!("{}.event_id", field(number)), event_id, ID_BYTES_MAX);
        fields.text(&format!("{}.idempotency_key", field(number)), idempotency_key, ID_BYTES_MAX);
        fields.text(&format!("{}.external_id", field(number)), external_id, EXTERNAL_ID_BYTES_MAX);
        fields.finish()?;
        match (event_id.as_str(), idempotency_key.as_str(), external_id.as_str()) {
            (id, "", "") if !id.is_empty() => EventId::parse(id).ok_or_else(|| not_found(client_id)),
            ("", key, "") if !key.is_empty() => of_keys.get(key).copied().ok_or_else(|| not_found(client_id)),
            ("", "", id) if !id.is_empty() => of_external.get(id).cloned().unwrap_or_else(|| Err(not_found(client_id))),
            _ => Err(Refusal::field(field(number), "must have one of event_id, idempotency_key and external_id")),
        }
    });
    Ok(ids.collect())
}

/// Checks the new contents of an event. Its client, time and key stay.
fn corrected(
    checks: &EventChecks<'_>,
    number: usize,
    recorded: &RecordedEvent,
    mut event: RawEvent,
) -> Result<UsageEvent, Refusal> {
    let RecordedEvent { event: old, .. } = recorded;
    let path = Path::ElementField("corrections", number, "corrected");
    let mut fields = Fields::of(path);
    let keeps = |sent: &str, kept: &str| sent.is_empty() || sent == kept;
    if !keeps(&event.client_id, &old.client_id) {
        fields.wrong("client_id", "must be absent or the client of the event: void the event and record another one");
    }
    if !keeps(&event.idempotency_key, &old.idempotency_key) {
        fields.wrong("idempotency_key", "must be absent or the key of the event");
    }
    let time = UnixTime::from(old.event_time);
    // Times are recorded in microseconds.
    let is_same = |sent: UnixTime| (sent.seconds, sent.nanos / 1_000) == (time.seconds, time.nanos / 1_000);
    if event.event_time.is_some_and(|sent| !is_same(sent)) {
        fields.wrong("event_time", "must be absent or the time of the event: void the event and record another one");
    }
    fields.finish()?;
    event.client_id = old.client_id.to_string();
    event.idempotency_key = old.idempotency_key.to_string();
    event.event_time = Some(time);
    let checked = checks.check(&mut SharedTexts::default(), path, event).map_err(|refused| refused.error)?;
    Ok(checked.submission.event)
}
