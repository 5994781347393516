//! Grants of credits, and their balance.

use crate::clients;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::ledger::DEFAULT_PRIORITY;
use crate::paging::{Page, PageRequest};
use crate::previous_release;
use crate::refusal::{Reason, Refusal, shown};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::credits::GrantSource;
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::Month;
use meterd_store::credits::{self as store, CreditGrant};
use meterd_store::database::deployment;
use meterd_store::locks;
use sqlx::PgConnection;

/// Maximum length of the note of a grant, in bytes.
const NOTE_BYTES_MAX: usize = 1_024;
/// Highest number of a priority.
pub const PRIORITY_MAX: i32 = 1_000;

/// A grant to create, unchecked.
#[derive(Debug)]
pub struct NewGrant {
    pub client_id: String,
    /// A decimal.
    pub amount: String,
    /// `Err` has the text of a value that is not a source.
    pub source: Result<GrantSource, String>,
    /// `None`: [`DEFAULT_PRIORITY`].
    pub priority: Option<i32>,
    /// Such as "2026-11-21". Empty: today.
    pub first_date: String,
    /// Empty: the grant does not expire.
    pub last_date: String,
    pub note: String,
}

/// What is left of the grants of a client on a day.
#[derive(Debug)]
pub struct Balance {
    pub day: NaiveDate,
    pub available: Total,
    /// The grants that are valid on the day and not used up, each with its remaining amount, in the order in which they pay.
    pub grants: Vec<(CreditGrant, Total)>,
}

/// Creates a grant.
pub async fn create(
    engine: &Engine,
    grant: NewGrant,
    idempotency: Idempotency<CreditGrant>,
) -> Result<Created<CreditGrant>, Refusal> {
    let mut fields = Fields::default();
    fields.required("grant.client_id", &grant.client_id, ID_BYTES_MAX);
    let amount = fields.positive("grant.amount", &grant.amount);
    let source = match &grant.source {
        Ok(GrantSource::Plan) => {
            fields.wrong("grant.source", "must be a promotion or a purchase: meterd grants the credits of plans");
            GrantSource::Plan
        }
        Ok(source) => *source,
        Err(value) => {
            fields.wrong("grant.source", format!("{value} is no source: a promotion or a purchase"));
            GrantSource::Plan
        }
    };
    let priority = grant.priority.unwrap_or(DEFAULT_PRIORITY);
    fields.count("grant.priority", priority.into(), PRIORITY_MAX.into());
    let (first, last) = days(&mut fields, &grant);
    fields.text("grant.note", &grant.note, NOTE_BYTES_MAX);
    idempotency.check(&mut fields);
    fields.finish()?;
    let client = clients::existing(engine, &grant.client_id).await?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    // After the search for a repeat, because today may be another day than at the first call.
    let first_day = match first {
        Some(first) => first,
        None => client.day_of(engine.clock.now())?,
    };
    if last.is_some_and(|last| last < first_day) {
        return Err(Refusal::field("grant.last_date", format!("must not be before the first day, {first_day}")));
    }
    previous_release::check_gone(creation.conn(), "credits").await?;
    // Later grants need no new settings: a transaction of a client with grants reads all of them.
    if !store::has_grants(creation.conn(), &grant.client_id).await? {
        locks::change_versions(creation.conn()).await?;
        deployment::count_client_settings_change(creation.conn()).await?;
    }
    let new = store::NewGrant {
        client_id: &grant.client_id,
        grant_id: &format!("{:032x}", rand::random::<u128>()),
        source: source.into(),
        plan_id: "",
        amount,
        priority,
        first_day,
        last_day: last,
        note: &grant.note,
    };
    let created = store::insert(creation.conn(), &new).await?;
    creation.commit(&created).await?;
    Ok(Created::New(created))
}

fn days(fields: &mut Fields, grant: &NewGrant) -> (Option<NaiveDate>, Option<NaiveDate>) {
    let mut day = |field: &str, text: &str| match text {
        "" => None,
        text => Some(fields.day(field, text)),
    };
    (day("grant.first_date", &grant.first_date), day("grant.last_date", &grant.last_date))
}

/// Returns a grant, and what it has paid of each month.
pub async fn get(
    engine: &Engine,
    client_id: &str,
    grant_id: &str,
) -> Result<(CreditGrant, Vec<(Month, Total)>), Refusal> {
    check_ids(client_id, grant_id)?;
    let mut tx = engine.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let grant = existing(&mut tx, client_id, grant_id).await?;
    let uses = store::uses_of(&mut tx, client_id, grant_id).await?;
    tx.commit().await?;
    Ok((grant, uses))
}

/// Lists the grants of a client, the oldest first. The cursor is the creation time and id of the last grant.
pub async fn list(
    engine: &Engine,
    client_id: &str,
    page: PageRequest<(DateTime<Utc>, String)>,
) -> Result<Page<CreditGrant, (DateTime<Utc>, String)>, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    let size = page.check_size(&mut fields);
    fields.finish()?;
    let after = page.after?;
    clients::existing(engine, client_id).await?;
    let after = after.as_ref().map(|(time, grant_id)| (*time, grant_id.as_str()));
    let grants = store::list(&mut *engine.pool.acquire().await?, client_id, after, size + 1).await?;
    Ok(Page::of(grants, size, |last| (last.create_time, last.grant_id.clone())))
}

/// Voids a grant: it pays for nothing more. What it has paid stays paid. A voided grant stays as it is.
pub async fn void(engine: &Engine, client_id: &str, grant_id: &str) -> Result<CreditGrant, Refusal> {
    check_ids(client_id, grant_id)?;
    let mut tx = engine.pool.begin().await?;
    store::void(&mut tx, client_id, grant_id).await?;
    let voided = existing(&mut tx, client_id, grant_id).await?;
    tx.commit().await?;
    Ok(voided)
}

/// Returns the balance of a client on a day, such as "2026-11-21": the sum of what remains now of the grants that are valid on that day. An
/// empty day is today.
pub async fn balance(engine: &Engine, client_id: &str, day: &str) -> Result<Balance, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    let wanted = if day.is_empty() { None } else { Some(fields.day("date", day)) };
    fields.finish()?;
    let client = clients::existing(engine, client_id).await?;
    let day = match wanted {
        Some(day) => day,
        None => client.day_of(engine.clock.now())?,
    };
    let grants = store::valid_on(&mut *engine.pool.acquire().await?, client_id, day).await?;
    let mut valid: Vec<_> = grants.into_iter().map(|grant| (grant.grant(), grant)).collect();
    valid.sort_by(|(left, _), (right, _)| left.compare(right));
    let grants: Vec<(CreditGrant, Total)> = valid.into_iter().map(|(of, grant)| (grant, of.remaining)).collect();
    Ok(Balance { day, available: grants.iter().map(|(_, left)| *left).sum(), grants })
}

fn check_ids(client_id: &str, grant_id: &str) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", client_id, ID_BYTES_MAX);
    fields.required("grant_id", grant_id, ID_BYTES_MAX);
    fields.finish()
}

async fn existing(conn: &mut PgConnection, client_id: &str, grant_id: &str) -> Result<CreditGrant, Refusal> {
    let not_found = || {
        Refusal::new(
            Reason::CreditGrantNotFound,
            format!("client {} has no grant {}", shown(client_id), shown(grant_id)),
        )
    };
    store::find(conn, client_id, grant_id).await?.ok_or_else(not_found)
}
