//! Computing a client's month again from its events, and moving events into another day.

use crate::verify::{RollupRow, differences};
use crate::{clients, connect, deployment, locks, partitions, record, rollups};
use chrono::NaiveDate;
use chrono_tz::Tz;
use meterd_domain::event::EventId;
use meterd_domain::period::{Month, day_of};
use meterd_domain::rollup::{Deltas, Sums};
use sqlx::PgConnection;
use std::sync::Arc;

/// What a rebuild did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    pub corrected_row_count: i64,
    pub rezoned_event_count: i64,
    /// Months that were corrected.
    pub corrected_months: Vec<Month>,
}

/// Makes the rows of a client's month equal its events. With `rezone`, also puts the events of the month into the days
/// that they have in the client's present zone, and the neighbouring months right. Events of closed months stay in them, and
/// none moves into one. Nothing, where the month itself is closed. In a transaction that has locked nothing yet.
pub async fn month(
    tx: &mut PgConnection,
    client_id: &str,
    month: Month,
    rezone: bool,
) -> crate::Result<Option<Rebuilt>> {
    let client: Arc<str> = client_id.into();
    let mut months = if rezone { vec![month.previous(), month, month.next()] } else { vec![month] };
    connect::allow_long_statements(tx).await?;
    let zone = if rezone {
        // Read under the versions lock, so that no event is dated by another one until the commit. Only here: nobody could
        // change a price while a long rebuild held it.
        locks::share_versions(tx).await?;
        clients::time_zone(tx, client_id).await?
    } else {
        None
    };
    // Asked when no partition can go any more: else the events of an open month could.
    partitions::keep(tx).await?;
    let closed = deployment::closed_through(tx).await?;
    months.retain(|month| closed.is_none_or(|closed| *month > closed));
    if !months.contains(&month) {
        return Ok(None);
    }
    // Adding nothing creates and locks the month rows: from here on nobody changes these months.
    let nothing = months.iter().map(|month| ((client.clone(), *month), Sums::default())).collect();
    record::add(tx, &Deltas { months: nothing, ..Deltas::default() }).await?;
    let rezoned_event_count = match zone {
        Some(zone) => rezone_events(tx, client_id, month, zone, closed).await?,
        None => 0,
    };
    let mut corrections = Deltas::default();
    let mut corrected_row_count = 0;
    let rebuilt = months.clone();
    for month in months {
        for difference in differences(tx, client_id, month).await? {
            corrected_row_count += 1;
            let correction = difference.expected - difference.actual;
            match difference.row {
                RollupRow::Month => {
                    corrections.months.insert((client.clone(), month), correction);
                }
                RollupRow::MonthService { service } => {
                    corrections.month_services.insert((client.clone(), month, service.into()), correction);
                }
                RollupRow::Day { day, service, operation, model } => {
                    let key = (client.clone(), day, service.into(), operation.into(), model.into());
                    corrections.days.insert(key, correction);
                }
            }
        }
    }
    let corrected_months = corrections.months.keys().map(|(_, month)| *month).collect();
    record::add(tx, &corrections).await?;
    for month in rebuilt {
        rollups::delete_zeros(tx, client_id, month).await?;
    }
    Ok(Some(Rebuilt { corrected_row_count, rezoned_event_count, corrected_months }))
}

/// Gives events that are in `month`, before or after, the day that they have in `zone`. Months up to `closed` keep theirs.
async fn rezone_events(
    conn: &mut PgConnection,
    client_id: &str,
    month: Month,
    zone: Tz,
    closed: Option<Month>,
) -> crate::Result<i64> {
    let (from, to) = month.widest_range();
    let rows = sqlx::query!(
        "SELECT event_time, event_seq, day FROM usage_events
         WHERE client_id = $1 AND event_time >= $2 AND event_time < $3",
        client_id,
        from,
        to
    )
    .fetch_all(&mut *conn)
    .await?;
    let moved: Vec<(EventId, NaiveDate)> = rows
        .into_iter()
        .filter_map(|row| {
            let day = day_of(row.event_time, zone);
            let (old, new) = (Month::of(row.day), Month::of(day));
            let open = closed.is_none_or(|closed| old.min(new) > closed);
            (day != row.day && open && (old == month || new == month))
                .then_some((EventId { time: row.event_time, seq: row.event_seq }, day))
        })
        .collect();
    let times: Vec<_> = moved.iter().map(|(id, _)| id.time).collect();
    let seqs: Vec<_> = moved.iter().map(|(id, _)| id.seq).collect();
    let days: Vec<_> = moved.iter().map(|(_, day)| *day).collect();
    sqlx::query!(
        "UPDATE usage_events t SET day = new.day
         FROM unnest($2::timestamptz[], $3::bigint[], $4::date[]) AS new (event_time, event_seq, day)
         WHERE t.client_id = $1 AND t.event_time = new.event_time AND t.event_seq = new.event_seq",
        client_id,
        &times,
        &seqs,
        &days
    )
    .execute(conn)
    .await?;
    Ok(moved.len() as i64)
}
