//! The findings about limits.

use super::{AlertType, Finding, Severity};
use crate::decimal::Total;
use crate::limit::{Limit, LimitFinding, REACHED_PERCENT};
use chrono::NaiveDate;

impl Limit {
    /// Returns the finding of a percent of the limit that `used` has reached in a period.
    pub fn finding(&self, percent: u16, period_start: NaiveDate, used: Total) -> Finding {
        Finding {
            kind: AlertType::Limit,
            severity: if percent < REACHED_PERCENT { Severity::Warning } else { Severity::Critical },
            service: String::new(),
            period: period_start,
            current: used,
            previous: None,
            threshold: Total::from(self.amount).scale_by(percent.into(), 100),
            percent: None,
            projected: None,
            limit: Some(Box::new(LimitFinding {
                limit_id: self.limit_id.clone(),
                display_name: self.display_name.clone(),
                measure: self.measure,
                period: self.period,
                is_hard: self.is_hard,
                amount: self.amount.into(),
                percent,
            })),
        }
    }
}
