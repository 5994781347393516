//! Charges recorded events by the present prices. The state of a run is a row, which advances in the transaction that changes
//! events. So any replica can continue a run that was killed.

use super::apply::{Changed, apply};
use super::call::REASON_BYTES_MAX;
use crate::alerts::raise::{self, AlertSettings};
use crate::auth::Caller;
use crate::catalog::CatalogCache;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::ledger::{Begun, Tiers, months_of};
use crate::paging::{Page, PageRequest};
use crate::plans;
use crate::refusal::{Reason, Refusal, shown};
use chrono::{Datelike, NaiveDate};
use meterd_domain::adjustment::AdjustmentKind;
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::Total;
use meterd_domain::event::{Charge, EventId};
use meterd_domain::period::Month;
use meterd_domain::plan::ClientPlans;
use meterd_domain::pricing::Pricing;
use meterd_store::database::{connect, deployment};
use meterd_store::usage::adjustments::Origin;
use meterd_store::usage::events::RecordedEvent;
use meterd_store::usage::holders;
use meterd_store::usage::reprice::{self as store, NewRun, Position};
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeMap;

pub use meterd_store::usage::reprice::{CostChange, DifferenceKey, Run};

/// Maximum number of events of one transaction. It locks their months, and ingest of the same clients waits for it. So it is short.
const CHUNK_EVENTS: i64 = 2_000;
/// Maximum number of clients that one transaction reads.
const STEP_CLIENTS: usize = 500;
/// Maximum number of months of a run.
const MONTHS_MAX: i32 = 120;

/// Which events to charge again, unchecked. Empty filters select everything.
#[derive(Debug, Default)]
pub struct RepriceInput {
    /// The first and the last month, such as "2026-11".
    pub start_month: String,
    pub end_month: String,
    pub client_ids: Vec<String>,
    pub services: Vec<String>,
    pub models: Vec<String>,
    /// Whether only the differences are computed.
    pub validate_only: bool,
    pub reason: String,
}

/// Begins a run, and returns it.
pub async fn begin(
    engine: &Engine,
    caller: &Caller,
    input: RepriceInput,
    idempotency: Idempotency<Run>,
) -> Result<Created<Run>, Refusal> {
    let mut fields = Fields::default();
    let start = fields.month("start_month", &input.start_month);
    let end = fields.month("end_month", &input.end_month);
    if let (Some(start), Some(end)) = (start, end) {
        let number = |month: Month| month.first_day().year() * 12 + month.first_day().month0() as i32;
        if !(0..MONTHS_MAX).contains(&(number(end) - number(start))) {
            fields.wrong("end_month", format!("must be from start_month to {} months later", MONTHS_MAX - 1));
        }
    }
    fields.filter("client_ids", &input.client_ids);
    fields.filter("services", &input.services);
    fields.filter("models", &input.models);
    if input.validate_only {
        fields.text("reason", &input.reason, REASON_BYTES_MAX);
    } else {
        fields.required("reason", &input.reason, REASON_BYTES_MAX);
    }
    idempotency.check(&mut fields);
    fields.finish()?;
    let (start_month, end_month) = start.zip(end).expect("the months are checked");
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    let closed = deployment::closed_through(creation.conn()).await?;
    if let Some(closed) = closed.filter(|closed| start_month <= *closed) {
        return Err(Refusal::month_closed(closed));
    }
    let run = NewRun {
        start_month,
        end_month,
        client_ids: input.client_ids,
        services: input.services,
        models: input.models,
        is_dry: input.validate_only,
        reason: input.reason,
        actor: caller.principal(),
    };
    let run_id = store::create(creation.conn(), &run).await?;
    let created = store::find(creation.conn(), run_id).await?.ok_or_else(|| not_found(&run_id.to_string()))?;
    creation.commit(&created).await?;
    engine.pricing_wanted.notify_one();
    Ok(Created::New(created))
}

fn not_found(run_id: &str) -> Refusal {
    Refusal::new(Reason::RepriceRunNotFound, format!("there is no run {}", shown(run_id)))
}

async fn existing(engine: &Engine, run_id: &str) -> Result<Run, Refusal> {
    let mut fields = Fields::default();
    fields.required("run_id", run_id, meterd_domain::event::ID_BYTES_MAX);
    fields.finish()?;
    let run = match run_id.parse() {
        Ok(id) => store::find(&mut *engine.pool.acquire().await?, id).await?,
        Err(_) => None,
    };
    run.ok_or_else(|| not_found(run_id))
}

/// A run with its differences so far.
pub struct RunReport {
    pub run: Run,
    /// The sums of all differences.
    pub total: CostChange,
    /// By client, service and model.
    pub differences: Page<(DifferenceKey, CostChange), DifferenceKey>,
}

/// Returns a run, and a page of its differences.
pub async fn get(engine: &Engine, run_id: &str, page: PageRequest<DifferenceKey>) -> Result<RunReport, Refusal> {
    let mut fields = Fields::default();
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?.unwrap_or_default();
    let run = existing(engine, run_id).await?;
    let rows = store::differences(&engine.pool, run.run_id, &after, size + 1).await?;
    let total = store::total(&engine.pool, run.run_id).await?;
    Ok(RunReport { run, total, differences: Page::of(rows, size, |(key, _)| key.clone()) })
}

/// Ends a run. What it has changed stays. Returns the run; a run that has ended stays as it is.
pub async fn cancel(engine: &Engine, run_id: &str) -> Result<Run, Refusal> {
    let run = existing(engine, run_id).await?;
    store::cancel(&mut *engine.pool.acquire().await?, run.run_id).await?;
    engine.pricing_wanted.notify_one();
    existing(engine, run_id).await
}

/// Works on the oldest run that is not finished, for one transaction. Returns `false` if there is none.
pub async fn run_once(
    pool: &PgPool,
    cache: &CatalogCache,
    alert_settings: &AlertSettings,
) -> meterd_store::Result<bool> {
    let mut transaction = pool.begin().await?;
    let mut tx = Begun::new(&mut transaction).share_versions().await?;
    let Some(run) = store::take(tx.conn()).await? else { return Ok(false) };
    if run.cancel_time.is_some() {
        store::finish(tx.conn(), run.run_id).await?;
        transaction.commit().await?;
        return Ok(true);
    }
    let catalog = tx.catalog(cache).await?;
    // Months that were closed since the run began stay as they are.
    let closed = tx.versions.closed_through.map(|closed| closed.next().first_day());
    let days = (run.start_month.max(closed.unwrap_or(run.start_month)), Month::of(run.end_month).last_day());
    let Step { position, examined, differing, is_last, plans } = next_step(tx.conn(), &run, &catalog, days).await?;
    let pricing = Pricing { catalog: &catalog, plans: &plans };
    let changed;
    let mut raised = vec![];
    if run.is_dry || differing.is_empty() {
        let months = months_of(differing.iter());
        let mut tiers = Tiers::read_of_dry_run(tx.conn(), pricing, run.run_id, &months).await?;
        let changes = changes(&mut tiers, differing.iter());
        changed = changes.len() as i64;
        tiers.write(tx.conn()).await?;
        store::add_differences(tx.conn(), run.run_id, &differences(&changes)).await?;
        store::advance(tx.conn(), run.run_id, &position, examined, changed).await?;
    } else {
        let client_id = position.client_id.as_str();
        let ids: Vec<(&str, EventId)> = differing.iter().map(|event| (client_id, event.id)).collect();
        let months = months_of(differing.iter());
        let mut tx = tx.lock_months(&months).await?;
        // Read again, because the events can only now not change any more.
        let recorded: Vec<RecordedEvent> = holders::events(tx.conn(), &ids).await?.into_iter().flatten().collect();
        if !months_of(recorded.iter()).is_subset(&months) {
            // An event was moved into a month that is not locked. The next step begins again.
            return Ok(true);
        }
        let mut tiers = Tiers::read(tx.conn(), pricing, &months).await?;
        let differing = recorded.iter().filter(|event| differs(&run, pricing, event));
        let changes = changes(&mut tiers, differing);
        tiers.write(tx.conn()).await?;
        changed = changes.len() as i64;
        store::add_differences(tx.conn(), run.run_id, &differences(&changes)).await?;
        store::advance(tx.conn(), run.run_id, &position, examined, changed).await?;
        let origin =
            Origin { kind: AdjustmentKind::Reprice, reason: &run.reason, actor: &run.actor, run_id: Some(run.run_id) };
        raised = apply(tx, alert_settings, &origin, client_id, &changes).await?;
    }
    if is_last {
        store::finish(&mut transaction, run.run_id).await?;
    }
    transaction.commit().await?;
    raise::count(&raised);
    if !run.is_dry && changed > 0 {
        metrics::counter!("meterd_events_corrected_total", "kind" => "reprice").increment(changed as u64);
        tracing::info!(run_id = run.run_id, events = changed, "events charged by the present prices");
    }
    Ok(true)
}

/// What one transaction of a run works on.
struct Step {
    /// The last event that is examined.
    position: Position,
    examined: i64,
    /// The examined events whose charge is another one by the present prices. All are of the client of `position`, unless the run is
    /// dry.
    differing: Vec<RecordedEvent>,
    /// Whether there are no more events.
    is_last: bool,
    /// The plans of the clients of the examined events.
    plans: ClientPlans,
}

/// Reads the next events of a run, client by client. Stops at a client with events to change: each transaction changes events of one
/// client, because the alerts of a client come after the months of all clients in the lock order.
async fn next_step(
    conn: &mut PgConnection,
    run: &Run,
    catalog: &Catalog,
    days: (NaiveDate, NaiveDate),
) -> meterd_store::Result<Step> {
    // Only the partitions of the months are read.
    connect::plan_for_values(conn).await?;
    let mut step = Step {
        position: run.position(),
        examined: 0,
        differing: vec![],
        is_last: false,
        plans: ClientPlans::default(),
    };
    for _ in 0..STEP_CLIENTS {
        let limit = CHUNK_EVENTS - step.examined;
        let mut events = store::next_events(conn, &step.position, days, limit).await?;
        let read = events.len() as i64;
        step.examined += read;
        if let Some(last) = events.last() {
            (step.position.event_time, step.position.event_seq) = (Some(last.id.time), last.id.seq);
        }
        if !events.is_empty() {
            step.plans.join(plans::of_clients(conn, catalog, [step.position.client_id.as_str()]).await?);
        }
        events.retain(|event| differs(run, Pricing { catalog, plans: &step.plans }, event));
        let is_changed = !run.is_dry && !events.is_empty();
        step.differing.append(&mut events);
        if read == limit || is_changed {
            return Ok(step);
        }
        let Some(client_id) = store::next_client(conn, run, &step.position.client_id).await? else {
            step.is_last = true;
            return Ok(step);
        };
        step.position = Position { client_id, event_time: None, event_seq: 0 };
    }
    Ok(step)
}

/// Returns whether an event counts, is selected, and has another charge by the present prices.
fn differs(run: &Run, pricing: Pricing<'_>, recorded: &RecordedEvent) -> bool {
    let event = &recorded.event;
    let has = |names: &[String], name: &str| names.is_empty() || names.iter().any(|of| of == name);
    let is_selected =
        recorded.void_time.is_none() && has(&run.services, &event.service) && has(&run.models, &event.model);
    is_selected && !is_charged_so(recorded, pricing)
}

/// Charges events by the present prices, one after another. Leaves out events whose charge stays the same: that by tiers is only known
/// now.
fn changes<'e>(tiers: &mut Tiers<'_>, events: impl Iterator<Item = &'e RecordedEvent>) -> Vec<Changed<'e>> {
    let stays = |change: &Changed<'_>| {
        let has_tiers = change.tiers.is_some() || change.recorded.tiers.current.is_some();
        !has_tiers && change.charge.is_some_and(|charge| is_same_charge(change.recorded.charge, charge))
    };
    events.map(|event| Changed::charge(tiers, event, None)).filter(|change| !stays(change)).collect()
}

/// Returns whether an event has the charge that it would have by the present prices. By a price with tiers, the charge depends on the
/// events before it, so what counts is the price.
fn is_charged_so(recorded: &RecordedEvent, pricing: Pricing<'_>) -> bool {
    let now = pricing.charge(&recorded.event);
    match (recorded.charge, now, pricing.tiered_price(&recorded.event)) {
        (Charge::Priced { price_id, .. }, Charge::Priced { .. }, Some(tiered)) => price_id == tiered,
        (old, now, _) => recorded.tiers.current.is_none() && is_same_charge(old, now),
    }
}

/// Returns whether two charges are equal. The price does not matter.
fn is_same_charge(old: Charge, new: Charge) -> bool {
    match (old, new) {
        (Charge::Priced { charge: old, .. }, Charge::Priced { charge: new, .. }) => old == new,
        (Charge::Unpriced(old), Charge::Unpriced(new)) => old == new,
        _ => false,
    }
}

fn differences(changes: &[Changed<'_>]) -> BTreeMap<DifferenceKey, CostChange> {
    let cost = |charge: Charge| match charge {
        Charge::Priced { charge, .. } => charge.into(),
        Charge::Unpriced(_) => Total::ZERO,
    };
    let mut differences = BTreeMap::<DifferenceKey, CostChange>::new();
    for Changed { recorded, charge, residue, .. } in changes {
        let event = &recorded.event;
        let key = (event.client_id.to_string(), event.service.to_string(), event.model.to_string());
        let of_key = differences.entry(key).or_default();
        of_key.event_count += 1;
        of_key.old_cost += cost(recorded.charge);
        of_key.new_cost += charge.map_or(Total::ZERO, cost);
        of_key.new_cost += *residue;
    }
    differences
}
