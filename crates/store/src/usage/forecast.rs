//! Reads what the forecast of a client's month needs.

use super::{AsOf, HistoryDays, OfClient};
use crate::alerts::policies::Policies;
use crate::numeric::Numeric;
use futures_util::TryStreamExt;
use meterd_domain::decimal::Total;
use meterd_domain::forecast::{DayCost, History};
use meterd_domain::policy::Policy;
use sqlx::PgConnection;

/// The days of a client and the alert policy that applies to it.
pub struct ForecastFacts {
    pub history: History,
    pub policy: Policy,
}

/// Returns the days of a client and its policy, from one snapshot. `None` if the client does not exist.
pub async fn read(
    conn: &mut PgConnection,
    client_id: &str,
    days: HistoryDays<'_>,
) -> crate::Result<Option<AsOf<OfClient<ForecastFacts>>>> {
    let HistoryDays { first, last, recurring_services } = days;
    let mut rows = sqlx::query_file!("sql/usage/forecast.sql", client_id, first, last, recurring_services).fetch(conn);
    let (mut client, mut policies, mut history) = (None, vec![], History::default());
    while let Some(row) = rows.try_next().await? {
        match (row.day, row.policy_of, row.policy) {
            (Some(day), ..) => {
                let (varying, recurring) = (Total::from(row.varying), Total::from(row.recurring));
                history.days.insert(day, DayCost { varying, recurring, has_usage: row.has_usage });
            }
            (None, Some(policy_of), Some(policy)) => policies.push((policy_of, policy)),
            _ => {
                client = row.now.zip(row.time_zone);
                history.used_before = row.has_usage;
            }
        }
    }
    let Some((complete_as_of, time_zone)) = client else { return Ok(None) };
    let policy = Policies::of_rows(policies)?.of(client_id).clone();
    Ok(Some(AsOf { complete_as_of, rows: OfClient { time_zone, usage: ForecastFacts { history, policy } } }))
}
