//! Credit grants, and what they have paid.

use crate::numeric::{self, Numeric};
use crate::usage::verify::Scope;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::credits::{Draws, Grant};
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::period::Month;
use sqlx::PgConnection;
use std::collections::BTreeMap;

/// A grant of credits to a client.
#[derive(Clone, Debug)]
pub struct CreditGrant {
    pub client_id: String,
    pub grant_id: String,
    /// A number of [`GrantSource`](meterd_domain::credits::GrantSource).
    pub source: i16,
    /// The plan that includes the credits. Empty: none.
    pub plan_id: String,
    pub amount: Decimal,
    pub used: Decimal,
    pub priority: i32,
    pub first_day: NaiveDate,
    /// `None`: the grant does not expire.
    pub last_day: Option<NaiveDate>,
    pub note: String,
    pub create_time: DateTime<Utc>,
    pub void_time: Option<DateTime<Utc>>,
}

/// A grant to create.
#[derive(Clone, Copy, Debug)]
pub struct NewGrant<'a> {
    pub client_id: &'a str,
    pub grant_id: &'a str,
    pub source: i16,
    /// Empty: none.
    pub plan_id: &'a str,
    pub amount: Decimal,
    pub priority: i32,
    pub first_day: NaiveDate,
    pub last_day: Option<NaiveDate>,
    pub note: &'a str,
}

struct GrantRow {
    client_id: String,
    grant_id: String,
    source: i16,
    plan_id: String,
    amount: BigDecimal,
    used: BigDecimal,
    priority: i32,
    first_day: NaiveDate,
    last_day: Option<NaiveDate>,
    note: String,
    create_time: DateTime<Utc>,
    void_time: Option<DateTime<Utc>>,
}

impl TryFrom<GrantRow> for CreditGrant {
    type Error = crate::StoreError;

    fn try_from(row: GrantRow) -> crate::Result<Self> {
        Ok(Self {
            client_id: row.client_id,
            grant_id: row.grant_id,
            source: row.source,
            plan_id: row.plan_id,
            amount: numeric::decimal(&row.amount)?,
            used: numeric::decimal(&row.used)?,
            priority: row.priority,
            first_day: row.first_day,
            last_day: row.last_day,
            note: row.note,
            create_time: row.create_time,
            void_time: row.void_time,
        })
    }
}

impl CreditGrant {
    /// Returns what a transaction needs to know of it.
    pub fn grant(&self) -> Grant {
        Grant {
            grant_id: self.grant_id.clone(),
            priority: self.priority,
            first_day: self.first_day,
            last_day: self.last_day,
            create_time: self.create_time,
            remaining: Total::from(self.amount) - Total::from(self.used),
            is_void: self.void_time.is_some(),
        }
    }
}

/// Creates a grant, and returns it.
pub async fn insert(conn: &mut PgConnection, new: &NewGrant<'_>) -> crate::Result<CreditGrant> {
    let row = sqlx::query_as!(
        GrantRow,
        "INSERT INTO credit_grants (client_id, grant_id, source, plan_id, amount, priority, first_day, last_day, note)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         RETURNING client_id, grant_id, source, plan_id, amount, used, priority, first_day, last_day, note, create_time,
             void_time",
        new.client_id,
        new.grant_id,
        new.source,
        new.plan_id,
        numeric::of(new.amount),
        new.priority,
        new.first_day,
        new.last_day,
        new.note
    );
    row.fetch_one(conn).await?.try_into()
}

/// Changes the grant of a month's included credits, because the client has another plan. The caller has locked the grant.
pub async fn change(conn: &mut PgConnection, new: &NewGrant<'_>) -> crate::Result<()> {
    let changed = sqlx::query!(
        "UPDATE credit_grants SET amount = $3, plan_id = $4, first_day = $5, last_day = $6
         WHERE client_id = $1 AND grant_id = $2",
        new.client_id,
        new.grant_id,
        numeric::of(new.amount),
        new.plan_id,
        new.first_day,
        new.last_day
    );
    changed.execute(conn).await.map(drop).map_err(Into::into)
}

/// Returns a grant. `None` if it does not exist.
pub async fn find(conn: &mut PgConnection, client_id: &str, grant_id: &str) -> crate::Result<Option<CreditGrant>> {
    let row = sqlx::query_as!(
        GrantRow,
        "SELECT client_id, grant_id, source, plan_id, amount, used, priority, first_day, last_day, note, create_time, void_time
         FROM credit_grants WHERE client_id = $1 AND grant_id = $2",
        client_id,
        grant_id
    );
    row.fetch_optional(conn).await?.map(CreditGrant::try_from).transpose()
}

/// Returns whether a client has or had a grant of another source than a plan.
pub async fn has_grants(conn: &mut PgConnection, client_id: &str) -> crate::Result<bool> {
    let has = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM credit_grants WHERE client_id = $1 AND source <> 1) AS "has!""#,
        client_id
    );
    has.fetch_one(conn).await.map_err(Into::into)
}

/// Returns up to `limit` grants of a client after a cursor (create time and id), ordered by create time.
pub async fn list(
    conn: &mut PgConnection,
    client_id: &str,
    after: Option<(DateTime<Utc>, &str)>,
    limit: i64,
) -> crate::Result<Vec<CreditGrant>> {
    let rows = sqlx::query_as!(
        GrantRow,
        "SELECT client_id, grant_id, source, plan_id, amount, used, priority, first_day, last_day, note, create_time, void_time
         FROM credit_grants
         WHERE client_id = $1 AND ($2::timestamptz IS NULL OR (create_time, grant_id) > ($2, $3))
         ORDER BY create_time, grant_id LIMIT $4",
        client_id,
        after.map(|(time, _)| time),
        after.map_or("", |(_, grant_id)| grant_id),
        limit
    );
    rows.fetch_all(conn).await?.into_iter().map(CreditGrant::try_from).collect()
}

/// Returns the grants of a client that can pay for usage of a day, in no particular order.
pub async fn valid_on(conn: &mut PgConnection, client_id: &str, day: NaiveDate) -> crate::Result<Vec<CreditGrant>> {
    let rows = sqlx::query_as!(
        GrantRow,
        "SELECT client_id, grant_id, source, plan_id, amount, used, priority, first_day, last_day, note, create_time, void_time
         FROM credit_grants
         WHERE client_id = $1 AND first_day <= $2 AND (last_day IS NULL OR last_day >= $2) AND void_time IS NULL
           AND used < amount",
        client_id,
        day
    );
    rows.fetch_all(conn).await?.into_iter().map(CreditGrant::try_from).collect()
}

/// Voids a grant, unless it is voided. It pays for nothing more; what it has paid stays paid.
pub async fn void(conn: &mut PgConnection, client_id: &str, grant_id: &str) -> crate::Result<()> {
    let voided = sqlx::query!(
        "UPDATE credit_grants SET void_time = now() WHERE client_id = $1 AND grant_id = $2 AND void_time IS NULL",
        client_id,
        grant_id
    );
    voided.execute(conn).await.map(drop).map_err(Into::into)
}

/// Locks the grants that a change of usage from a day on can need, and returns them. These are the grants that have not expired before the
/// day and are not used up or voided, and all grants of plans. If `may_return`, also used-up and voided ones that have paid for the month
/// of the day or a later month. `clients` is sorted. The caller has locked the rows of the clients' months.
pub async fn lock(
    conn: &mut PgConnection,
    clients: &[String],
    days: &[NaiveDate],
    may_return: bool,
) -> crate::Result<Vec<CreditGrant>> {
    let rows = sqlx::query_as!(
        GrantRow,
        r#"SELECT client_id AS "client_id!", grant_id AS "grant_id!", source AS "source!", plan_id AS "plan_id!",
               amount AS "amount!", used AS "used!", priority AS "priority!", first_day AS "first_day!", last_day,
               note AS "note!", create_time AS "create_time!", void_time
           FROM lock_credit_grants($1, $2, $3)"#,
        clients,
        days,
        may_return
    );
    rows.fetch_all(conn).await?.into_iter().map(CreditGrant::try_from).collect()
}

/// Client, month, and what each grant has paid of the month's cost.
pub type Uses = BTreeMap<(String, Month), BTreeMap<String, Total>>;

/// Returns what grants have paid of months.
pub async fn uses(conn: &mut PgConnection, clients: &[String], months: &[NaiveDate]) -> crate::Result<Uses> {
    let rows = sqlx::query!(
        r#"SELECT client_id, month, grant_id, amount AS "amount: Numeric" FROM credit_uses
           JOIN unnest($1::text[], $2::date[]) AS wanted (client_id, month) USING (client_id, month)"#,
        clients,
        months
    );
    let mut uses = Uses::new();
    for row in rows.fetch_all(conn).await? {
        uses.entry((row.client_id, Month::of(row.month))).or_default().insert(row.grant_id, row.amount.into());
    }
    Ok(uses)
}

/// Returns what a grant has paid, by month.
pub async fn uses_of(conn: &mut PgConnection, client_id: &str, grant_id: &str) -> crate::Result<Vec<(Month, Total)>> {
    let rows = sqlx::query!(
        r#"SELECT month, amount AS "amount: Numeric" FROM credit_uses WHERE client_id = $1 AND grant_id = $2 AND amount <> 0
           ORDER BY month"#,
        client_id,
        grant_id
    );
    Ok(rows.fetch_all(conn).await?.into_iter().map(|row| (Month::of(row.month), row.amount.into())).collect())
}

/// Returns what all grants have paid of a month.
pub async fn paid(conn: &mut PgConnection, client_id: &str, month: Month) -> crate::Result<Total> {
    let sum = sqlx::query_scalar!(
        r#"SELECT COALESCE(sum(amount), 0) AS "sum!: Numeric" FROM credit_uses WHERE client_id = $1 AND month = $2"#,
        client_id,
        month.first_day()
    );
    sum.fetch_one(conn).await.map(Total::from).map_err(Into::into)
}

/// Changes what grants have paid. The caller has locked the grants and the months.
pub async fn draw(conn: &mut PgConnection, draws: &BTreeMap<String, Draws>) -> crate::Result<()> {
    let (mut clients, mut grants, mut months, mut amounts) = (vec![], vec![], vec![], vec![]);
    for (client_id, draws) in draws {
        for ((grant_id, month), amount) in draws {
            clients.push(client_id.clone());
            grants.push(grant_id.clone());
            months.push(month.first_day());
            amounts.push(numeric::of(*amount));
        }
    }
    sqlx::query!("SELECT draw_credits($1, $2, $3, $4)", &clients, &grants, &months, &amounts)
        .execute(conn)
        .await
        .map(drop)
        .map_err(Into::into)
}

/// Returns the faults of the credits of a scope's clients, as lines, whatever its months are.
pub async fn differences(conn: &mut PgConnection, scope: &Scope) -> crate::Result<Vec<String>> {
    let Scope { client_id, after, upto, .. } = scope;
    sqlx::query_file_scalar!("sql/credits/differences.sql", client_id.as_deref(), after.as_deref(), upto.as_deref())
        .fetch_all(conn)
        .await
        .map_err(Into::into)
}
