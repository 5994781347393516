//! Columns of events and keys that several statements read.

use crate::numeric;
use bigdecimal::BigDecimal;
use chrono::{DateTime, NaiveTime, Utc};
use meterd_domain::event::{Charge, UnpricedReason};
use meterd_domain::period::Month;

/// Returns a time before which all events belong to a closed month in every time zone. An event before the last closed month in
/// UTC belongs to that month at the latest.
pub(super) fn closed_events_before(closed_through: Month) -> DateTime<Utc> {
    closed_through.first_day().and_time(NaiveTime::MIN).and_utc()
}

/// Converts the three charge columns of an event. `None` if all are NULL.
pub fn charge(
    charge: Option<&BigDecimal>,
    price_id: Option<i64>,
    unpriced_reason: Option<i16>,
) -> crate::Result<Option<Charge>> {
    Ok(match (charge, unpriced_reason) {
        (Some(charge), _) => {
            Some(Charge::Priced { charge: numeric::decimal(charge)?, price_id: price_id.unwrap_or_default() })
        }
        (None, Some(reason)) => Some(Charge::Unpriced(UnpricedReason::from_number(reason))),
        (None, None) => None,
    })
}
