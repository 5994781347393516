//! Projects the cost of a month to its end.

use crate::decimal::{DECIMALS, Total, divide_half_even};
use ethnum::I256;

/// Returns the projected cost at the end of a month of `days` days, after `elapsed` days. Today counts as a whole day.
/// Recurring cost is not scaled. Rounds half to even to 12 decimals.
pub fn month_end(cost: Total, recurring_cost: Total, elapsed: u32, days: u32) -> Total {
    (cost - recurring_cost).scale_by(days, elapsed.max(1)) + recurring_cost
}

/// Returns the change from `before` to `now` in percent, rounded half to even to two decimals. Returns `None` if
/// `before` is zero.
pub fn change_percent(now: Total, before: Total) -> Option<Total> {
    if before == Total::ZERO {
        return None;
    }
    let hundredths = divide_half_even((now - before).scaled() * I256::from(10_000), before.scaled());
    Some(Total::from_scaled(hundredths * I256::from(10i128.pow(DECIMALS - 2))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decimal::Decimal;

    fn total(text: &str) -> Total {
        Decimal::parse(text).unwrap().into()
    }

    #[test]
    fn a_projection_scales_cost_by_days_but_not_recurring_cost() {
        assert_eq!(month_end(total("10"), Total::ZERO, 10, 30), total("30"));
        assert_eq!(month_end(total("11.15"), total("1.15"), 10, 30), total("31.15"));
        assert_eq!(month_end(total("1"), Total::ZERO, 3, 31).to_string(), "10.333333333333");
        assert_eq!(month_end(total("31"), Total::ZERO, 31, 31), total("31"));
    }

    #[test]
    fn change_is_absent_after_an_empty_month() {
        let change = |now, before| change_percent(total(now), total(before)).map(|change| change.to_string());
        assert_eq!(change("1", "0"), None);
        assert_eq!(change("150", "100").as_deref(), Some("50"));
        assert_eq!(change("87.5", "100").as_deref(), Some("-12.5"));
        assert_eq!(change("1", "3").as_deref(), Some("-66.67"));
        assert_eq!(change("0", "3").as_deref(), Some("-100"));
    }
}
