//! Creates, changes and deletes limits. A change applies to every later commit on every replica.

use super::{Limit, LimitFilter, LimitMeasure, LimitPeriod};
use crate::alerts::raise;
use crate::catalog::check_service;
use crate::clients::{self, DISPLAY_NAME_BYTES_MAX};
use crate::engine::Engine;
use crate::fields::{FILTER_VALUES_MAX, Fields, Path};
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::ledger::{AlertEffect, Begun};
use crate::paging::{Page, PageRequest};
use crate::refusal::{Reason, Refusal, shown};
use chrono::{DateTime, NaiveDate};
use meterd_domain::alert::Change;
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::event::{ID_BYTES_MAX, Labels};
use meterd_domain::limit::{ALERT_PERCENT_MAX, DEFAULT_ALERT_PERCENTS};
use meterd_domain::period::Month;
use meterd_domain::rollup::Deltas;
use meterd_store::alerts;
use meterd_store::alerts::feed as alert_feed;
use meterd_store::database::deployment;
use meterd_store::limits as store;
use meterd_store::limits::counters::{self, Wanted};
use meterd_store::locks;
use sqlx::{Connection, PgConnection};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Maximum number of limits of a client.
pub const LIMITS_MAX: i64 = 100;
/// Maximum number of values in a list of a filter.
const VALUES_MAX: usize = FILTER_VALUES_MAX;
/// Maximum number of percents that raise alerts.
const PERCENTS_MAX: usize = 20;
/// The fields that can be changed.
const CHANGEABLE: &str = "display_name, filter, amount, hard and alert_percents";

/// A limit, unchecked.
#[derive(Clone, Debug, Default)]
pub struct LimitInput {
    pub client_id: String,
    /// Empty: the server makes one.
    pub limit_id: String,
    pub display_name: String,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub subjects: Vec<String>,
    pub labels: Labels,
    pub measure: i32,
    pub period: i32,
    pub amount: String,
    pub is_hard: bool,
    /// Empty: the default.
    pub alert_percents: Vec<i32>,
}

/// Which limits to list.
#[derive(Debug)]
pub struct ListInput {
    /// Empty: all clients.
    pub client_id: String,
    /// The cursor has the client and the id of the last limit.
    pub page: PageRequest<(String, String)>,
}

/// The checked values of a limit.
struct Checked {
    filter: LimitFilter,
    amount: Decimal,
    alert_percents: Vec<u16>,
}

impl LimitInput {
    /// Checks the fields that can be changed and that `is_sent` selects.
    fn check(&self, fields: &mut Fields, catalog: Option<&Catalog>, is_sent: impl Fn(&str) -> bool) -> Checked {
        if is_sent("display_name") {
            fields.text("display_name", &self.display_name, DISPLAY_NAME_BYTES_MAX);
        }
        if is_sent("filter") {
            for (name, values) in [
                ("services", &self.services),
                ("operations", &self.operations),
                ("models", &self.models),
                ("subjects", &self.subjects),
            ] {
                let field = format!("filter.{name}");
                fields.at_most(&field, values.len(), VALUES_MAX);
                for (number, value) in values.iter().take(VALUES_MAX).enumerate() {
                    let field = format!("{field}[{number}]");
                    fields.required_identifier(&field, value, ID_BYTES_MAX);
                    if let Some(catalog) = catalog.filter(|_| name == "services") {
                        check_service(fields, catalog, &field, value);
                    }
                }
            }
            fields.labels("filter.labels", &self.labels);
        }
        let amount = if is_sent("amount") { fields.decimal("amount", &self.amount) } else { Decimal::ZERO };
        let mut alert_percents = DEFAULT_ALERT_PERCENTS.to_vec();
        if is_sent("alert_percents") && !self.alert_percents.is_empty() {
            fields.at_most("alert_percents", self.alert_percents.len(), PERCENTS_MAX);
            let of = |percent: &i32| u16::try_from(*percent).ok().filter(|of| (1..=ALERT_PERCENT_MAX).contains(of));
            for (number, percent) in self.alert_percents.iter().take(PERCENTS_MAX).enumerate() {
                if of(percent).is_none() {
                    let description = format!("must be from 1 to {ALERT_PERCENT_MAX}, got {percent}");
                    fields.wrong(format!("alert_percents[{number}]"), description);
                }
            }
            let sorted: BTreeSet<u16> = self.alert_percents.iter().filter_map(of).collect();
            alert_percents = sorted.into_iter().collect();
        }
        let list = |values: &[String]| values.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let filter = LimitFilter {
            services: list(&self.services),
            operations: list(&self.operations),
            models: list(&self.models),
            subjects: list(&self.subjects),
            labels: self.labels.clone(),
        };
        Checked { filter, amount, alert_percents }
    }
}

/// Checks an enum value.
fn number<T: TryFrom<i16>>(fields: &mut Fields, field: &str, value: i32, known: &str) -> Option<T> {
    let parsed = i16::try_from(value).ok().and_then(|value| T::try_from(value).ok());
    if parsed.is_none() {
        fields
            .wrong(field, if value == 0 { "is required".to_owned() } else { format!("must be {known}, got {value}") });
    }
    parsed
}

/// Returns the catalogue if the services of a filter must be in it.
async fn catalog(engine: &Engine) -> Result<Option<Arc<Catalog>>, Refusal> {
    match engine.config.keep_unknown_services {
        true => Ok(None),
        false => Ok(Some(engine.catalog.refresh(&engine.pool).await?)),
    }
}

/// Creates a limit. Counts the usage that its current period already has, and raises its alerts.
///
/// `allows_below_used` says whether the amount may be below what is used.
pub async fn create(
    engine: &Engine,
    input: LimitInput,
    allows_below_used: bool,
    idempotency: Idempotency<Limit>,
) -> Result<Created<Limit>, Refusal> {
    let catalog = catalog(engine).await?;
    let mut fields = Fields::of(Path::Named("limit"));
    fields.required("client_id", &input.client_id, ID_BYTES_MAX);
    fields.identifier("limit_id", &input.limit_id, ID_BYTES_MAX);
    let checked = input.check(&mut fields, catalog.as_deref(), |_| true);
    let measure = number(&mut fields, "measure", input.measure, "UNITS, TOKENS, REQUESTS or COST");
    let period = number(&mut fields, "period", input.period, "DAY or MONTH");
    let mut request = Fields::default();
    idempotency.check(&mut request);
    fields.and(request);
    fields.finish()?;
    let (measure, period): (LimitMeasure, LimitPeriod) = measure.zip(period).expect("both are checked");
    let client = clients::existing(engine, &input.client_id).await?;
    let limit_id = match input.limit_id.as_str() {
        "" => format!("{:032x}", rand::random::<u128>()),
        chosen => chosen.to_owned(),
    };
    let Checked { filter, amount, alert_percents } = checked;
    let limit = Limit {
        client_id: client.client_id.clone(),
        limit_id,
        display_name: input.display_name,
        filter,
        measure,
        period,
        amount,
        is_hard: input.is_hard,
        alert_percents,
        revision: 1,
        create_time: DateTime::UNIX_EPOCH,
        update_time: DateTime::UNIX_EPOCH,
    };
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    if !allows_below_used {
        let mut trial = creation.conn().begin().await.map_err(meterd_store::StoreError::from)?;
        store::insert(&mut trial, &limit).await?.ok_or_else(|| exists(&limit.limit_id))?;
        let today = client.day_of(engine.clock.now())?;
        check_used(&mut trial, &limit, today).await?;
        // Back to the savepoint.
        trial.rollback().await?;
    }
    locks::change_versions(creation.conn()).await?;
    deployment::count_client_settings_change(creation.conn()).await?;
    if store::count(creation.conn(), &limit.client_id).await? >= LIMITS_MAX {
        let message = format!("the client has {LIMITS_MAX} limits, the maximum; delete one with DeleteLimit");
        return Err(Refusal::new(Reason::TooManyLimits, message));
    }
    let created = store::insert(creation.conn(), &limit).await?.ok_or_else(|| exists(&limit.limit_id))?;
    creation.commit(&created).await?;
    settle_or_warn(engine, &created.client_id, &created.limit_id).await;
    Ok(Created::New(created))
}

fn exists(limit_id: &str) -> Refusal {
    let message = format!(
        "the client has or had a limit {}; change it with UpdateLimit, or choose another limit_id",
        shown(limit_id)
    );
    Refusal::new(Reason::LimitExists, message)
}

fn not_found(client_id: &str, limit_id: &str) -> Refusal {
    Refusal::new(Reason::LimitNotFound, format!("client {} has no limit {}", shown(client_id), shown(limit_id)))
}

/// Refuses an amount below what is used. The transaction has written the limit, and is rolled back.
async fn check_used(conn: &mut PgConnection, limit: &Limit, today: NaiveDate) -> Result<(), Refusal> {
    let mut wanted = Wanted::default();
    wanted.push(&limit.client_id, &limit.limit_id, today);
    let found = counters::read(conn, &wanted, false).await?;
    let used = found.first().map(|(_, counter)| counter.used()).unwrap_or_default();
    if used <= Total::from(limit.amount) {
        return Ok(());
    }
    let message = format!(
        "limit.amount: {} is below the {used} that are already used in this period; set allow_below_used if you mean this",
        limit.amount
    );
    Err(Refusal::new(Reason::LimitBelowUsed, message).with("used", used.to_string()))
}

/// Changes those fields of a limit that `names` lists.
pub async fn update(
    engine: &Engine,
    input: Option<LimitInput>,
    names: &[String],
    allows_below_used: bool,
) -> Result<Limit, Refusal> {
    const MASK: &str = "update_mask";
    let catalog = catalog(engine).await?;
    let mut fields = Fields::of(Path::Named("limit"));
    let input = input.unwrap_or_default();
    fields.required("client_id", &input.client_id, ID_BYTES_MAX);
    fields.required("limit_id", &input.limit_id, ID_BYTES_MAX);
    if names.is_empty() {
        fields.wrong_outside(MASK, "is required: name the fields to change, such as \"amount\"");
    }
    if names.len() > FILTER_VALUES_MAX {
        fields.wrong_outside(MASK, format!("must have at most {FILTER_VALUES_MAX} paths, has {}", names.len()));
    }
    for name in names.iter().take(FILTER_VALUES_MAX) {
        if !matches!(name.as_str(), "display_name" | "filter" | "amount" | "hard" | "alert_percents") {
            let hint = match name.as_str() {
                "measure" | "period" => "; create another limit instead",
                _ => "",
            };
            fields.wrong_outside(MASK, format!("cannot change {}, only {CHANGEABLE}{hint}", shown(name)));
        }
    }
    let is_sent = |field: &str| names.iter().any(|name| name == field);
    let checked = input.check(&mut fields, catalog.as_deref(), is_sent);
    fields.finish()?;
    let client = clients::existing(engine, &input.client_id).await?;
    let change = |limit: &mut Limit| {
        if is_sent("display_name") {
            limit.display_name.clone_from(&input.display_name);
        }
        if is_sent("filter") {
            limit.filter = checked.filter.clone();
        }
        if is_sent("amount") {
            limit.amount = checked.amount;
        }
        if is_sent("hard") {
            limit.is_hard = input.is_hard;
        }
        if is_sent("alert_percents") {
            limit.alert_percents.clone_from(&checked.alert_percents);
        }
    };
    let not_found = || not_found(&input.client_id, &input.limit_id);
    if !allows_below_used && (is_sent("amount") || is_sent("filter")) {
        let mut trial = engine.pool.begin().await?;
        let found = store::find(&mut trial, &input.client_id, &input.limit_id).await?;
        let mut limit = found.ok_or_else(not_found)?;
        change(&mut limit);
        store::update(&mut trial, &limit).await?.ok_or_else(not_found)?;
        check_used(&mut trial, &limit, client.day_of(engine.clock.now())?).await?;
        trial.rollback().await?;
    }
    let mut tx = engine.pool.begin().await?;
    locks::change_versions(&mut tx).await?;
    deployment::count_client_settings_change(&mut tx).await?;
    let mut limit = store::find(&mut tx, &input.client_id, &input.limit_id).await?.ok_or_else(not_found)?;
    change(&mut limit);
    let updated = store::update(&mut tx, &limit).await?.ok_or_else(not_found)?;
    tx.commit().await?;
    settle_or_warn(engine, &updated.client_id, &updated.limit_id).await;
    Ok(updated)
}

/// Counts the usage of a new or changed limit, and evaluates its alerts. This is done after the commit of the change, because it may
/// wait for the lock of a month, and meanwhile the versions lock would block all writers.
async fn settle_or_warn(engine: &Engine, client_id: &str, limit_id: &str) {
    if let Err(error) = settle(engine, client_id, limit_id).await {
        // The next event, or the next check of alerts, counts it.
        tracing::warn!(%error, client_id, limit_id, "a changed limit could not be evaluated at once");
    }
}

async fn settle(engine: &Engine, client_id: &str, limit_id: &str) -> meterd_store::Result<()> {
    let mut transaction = engine.pool.begin().await?;
    let mut tx = Begun::new(&mut transaction).share_versions().await?;
    let closed = tx.versions.closed_through;
    let Some(zone) = meterd_store::clients::time_zone(tx.conn(), client_id).await? else { return Ok(()) };
    let mut days = counters::periods_with_alerts(tx.conn(), client_id, limit_id).await?;
    days.retain(|day| closed.is_none_or(|closed| Month::of(*day) > closed));
    days.push(engine.alert_settings.today(zone));
    let months: BTreeSet<Month> = days.iter().map(|day| Month::of(*day)).collect();
    let months: Vec<Month> = months.into_iter().collect();
    let tx = tx.create_months(&Arc::from(client_id), &months).await?;
    let mut posted = tx.post(Deltas::default()).await?;
    posted.recount_limit(client_id, limit_id, days);
    posted.delete_zeros(client_id, &months).await?;
    let effect = AlertEffect::Check { client_id, months: &[] };
    let raised = posted.run_effects(&engine.alert_settings, effect).await?.into_raised();
    transaction.commit().await?;
    raise::count(&raised);
    Ok(())
}

/// Deletes a limit, and resolves its alerts.
pub async fn delete(engine: &Engine, client_id: &str, limit_id: &str) -> Result<(), Refusal> {
    check_ids(client_id, limit_id)?;
    clients::existing(engine, client_id).await?;
    let mut tx = engine.pool.begin().await?;
    locks::change_versions(&mut tx).await?;
    deployment::count_client_settings_change(&mut tx).await?;
    if !store::delete(&mut tx, client_id, limit_id).await? {
        return Err(not_found(client_id, limit_id));
    }
    counters::delete(&mut tx, client_id, limit_id).await?;
    // No transaction that knows the limit runs any more, so no other one changes its alerts.
    let open = counters::all_open_alerts(&mut tx, client_id, limit_id).await?;
    let resolved = if open.is_empty() { vec![] } else { alerts::resolve(&mut tx, client_id, &open).await? };
    let changes: Vec<_> = resolved.into_iter().map(|alert| (Change::Resolved, alert)).collect();
    alert_feed::append(&mut tx, &changes).await?;
    tx.commit().await?;
    Ok(())
}

fn check_ids(client_id: &str, limit_id: &str) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.required("limit_id", limit_id, ID_BYTES_MAX);
    fields.finish()
}

/// Returns a limit.
pub async fn get(engine: &Engine, client_id: &str, limit_id: &str) -> Result<Limit, Refusal> {
    check_ids(client_id, limit_id)?;
    clients::existing(engine, client_id).await?;
    let found = store::find(&mut *engine.pool.acquire().await?, client_id, limit_id).await?;
    found.ok_or_else(|| not_found(client_id, limit_id))
}

/// Lists limits, ordered by client and id.
pub async fn list(engine: &Engine, input: ListInput) -> Result<Page<Limit, (String, String)>, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &input.client_id, ID_BYTES_MAX);
    let size = input.page.check_size(&mut fields);
    fields.finish()?;
    let (after_client, after_limit) = input.page.after?.unwrap_or_default();
    if !input.client_id.is_empty() {
        clients::existing(engine, &input.client_id).await?;
    }
    let mut conn = engine.pool.acquire().await?;
    let limits = store::list(&mut conn, &input.client_id, (&after_client, &after_limit), size + 1).await?;
    Ok(Page::of(limits, size, |last| (last.client_id.clone(), last.limit_id.clone())))
}
