//! Settings of jobs: when they run, and how long data is kept.

use clap::{Args, ValueEnum};
use meterd_engine::jobs::{JobConfig, Schedule, Schedules};
use std::time::Duration;

/// Minimum time that a key is kept after its event is too old to be accepted: clocks differ, and batches are retried.
const KEY_MARGIN_SECONDS: u64 = SECONDS_OF_DAY;
/// The day of an event in the client's time zone and its day in UTC differ by at most this.
const ZONE_DAYS: u32 = 1;
const SECONDS_OF_DAY: u64 = 86_400;
/// With fewer months, a month could be closed that is not yet over in some time zone.
const RETENTION_MONTHS_MIN: u32 = 2;
const RETENTION_MONTHS_MAX: u32 = 1_200;
/// Days of the months of a year that is not a leap year.
const MONTH_DAYS: [u32; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// When jobs run, and how long data is kept.
#[derive(Args, Clone, Debug)]
pub struct JobSettings {
    /// When to check for alerts that no single event raises, such as anomalies and silent clients: a cron expression in UTC, seconds first, or
    /// "off"
    #[arg(long, env = "METERD_SCHEDULE_ALERT_CHECKS", default_value = "0 0 * * * *", value_name = "CRON")]
    pub schedule_alert_checks: Schedule,
    /// When to refresh the monthly summaries of changed clients: a cron expression in UTC, seconds first, or "off"
    #[arg(long, env = "METERD_SCHEDULE_MONTHLY_SUMMARIES", default_value = "*/20 * * * * *", value_name = "CRON")]
    pub schedule_monthly_summaries: Schedule,
    /// When to create the partitions of the next months: a cron expression in UTC, seconds first, or "off"
    #[arg(long, env = "METERD_SCHEDULE_PARTITIONS", default_value = "0 10 0 * * *", value_name = "CRON")]
    pub schedule_partitions: Schedule,
    /// When to close months older than --retention-months: a cron expression in UTC, seconds first, or "off"
    #[arg(long, env = "METERD_SCHEDULE_RETENTION", default_value = "0 20 0 * * *", value_name = "CRON")]
    pub schedule_retention: Schedule,
    /// When to delete idempotency keys older than --key-retention-days: a cron expression in UTC, seconds first, or "off"
    #[arg(long, env = "METERD_SCHEDULE_KEY_PRUNING", default_value = "0 30 0 * * *", value_name = "CRON")]
    pub schedule_key_pruning: Schedule,

    /// When to check whether the current generation of idempotency keys is large or old enough to be closed: a cron expression in UTC,
    /// seconds first, or "off"
    #[arg(long, env = "METERD_SCHEDULE_KEY_GENERATIONS", default_value = "*/10 * * * * *", value_name = "CRON")]
    pub schedule_key_generations: Schedule,
    /// When to apply pending usage to the sums of days and services: a cron expression in UTC, seconds first, or "off"
    #[arg(long, env = "METERD_SCHEDULE_PENDING_USAGE", default_value = "30 * * * * *", value_name = "CRON")]
    pub schedule_pending_usage: Schedule,

    /// Maximum duration of a run, in seconds; a longer run is cancelled, and the next one continues its work
    #[arg(long, env = "METERD_JOB_RUN_SECONDS", hide = true, default_value_t = 1_800, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub job_run_seconds: u32,

    /// Number of whole months before the current month that stay open, 2 to 1,200; older months are closed permanently. 0: no
    /// month is closed
    #[arg(long, env = "METERD_RETENTION_MONTHS", default_value_t = 0, value_parser = parse_retention_months)]
    pub retention_months: u32,
    /// What happens to the events of closed months
    #[arg(long, env = "METERD_RETENTION_ACTION", default_value = "detach")]
    pub retention_action: RetentionAction,
    /// Days that an idempotency key is kept after its event was received, at least; it may be kept for an eighth longer, and keys
    /// of backfills until their month is closed
    #[arg(long, env = "METERD_KEY_RETENTION_DAYS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(2..=36_500))]
    pub key_retention_days: u32,
    /// Size on the disk at which a generation of idempotency keys is closed and the next one begins, in bytes. 0: an eighth of
    /// PostgreSQL's shared_buffers, at least 256 MiB and at most 1 GiB
    #[arg(long, env = "METERD_KEY_GENERATION_BYTES", default_value_t = 0)]
    pub key_generation_bytes: u64,
}

/// What happens to the events of closed months.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RetentionAction {
    /// Detach their tables and keep them, so that you can archive them
    Detach,
    /// Delete their tables
    Drop,
}

fn parse_retention_months(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(months @ (0 | RETENTION_MONTHS_MIN..=RETENTION_MONTHS_MAX)) => Ok(months),
        _ => Err(format!("must be {RETENTION_MONTHS_MIN} to {RETENTION_MONTHS_MAX} months, or 0 to close no month")),
    }
}

/// Returns the smallest number of days that this many consecutive months can have.
fn fewest_days(months: u32) -> u32 {
    let from = |first: usize| MONTH_DAYS.iter().cycle().skip(first).take(months as usize).sum();
    (0..MONTH_DAYS.len()).map(from).min().unwrap_or_default()
}

impl JobSettings {
    /// Returns the configuration of the jobs. Changes of alerts are kept for `alert_feed_days`.
    pub fn config(&self, alert_feed_days: u32) -> JobConfig {
        JobConfig {
            schedules: Schedules {
                alert_checks: self.schedule_alert_checks.clone(),
                key_generations: self.schedule_key_generations.clone(),
                key_pruning: self.schedule_key_pruning.clone(),
                monthly_summaries: self.schedule_monthly_summaries.clone(),
                partitions: self.schedule_partitions.clone(),
                pending_usage: self.schedule_pending_usage.clone(),
                retention: self.schedule_retention.clone(),
            },
            run_timeout: Duration::from_secs(self.job_run_seconds.into()),
            retention_months: self.retention_months,
            drop_closed_months: self.retention_action == RetentionAction::Drop,
            key_retention_days: self.key_retention_days,
            key_generation_bytes: self.key_generation_bytes,
            alert_feed_days,
        }
    }

    /// Checks that no event can be recorded twice, and that no event of a closed month can be accepted.
    pub fn check(&self, accept_past_days: u32, accept_future_seconds: u32) -> anyhow::Result<()> {
        let (months, open_days) = (self.retention_months, fewest_days(self.retention_months));
        anyhow::ensure!(
            months == 0 || accept_past_days + ZONE_DAYS <= open_days,
            "--retention-months {months} can leave only {open_days} days open, but --accept-past-days {accept_past_days} \
             accepts events of closed months: raise --retention-months, or lower --accept-past-days to {} days or less",
            open_days.saturating_sub(ZONE_DAYS)
        );
        let kept = u64::from(self.key_retention_days) * SECONDS_OF_DAY;
        let accepted = u64::from(accept_past_days) * SECONDS_OF_DAY + u64::from(accept_future_seconds);
        let needed = (accepted + KEY_MARGIN_SECONDS).div_ceil(SECONDS_OF_DAY);
        anyhow::ensure!(
            kept >= accepted + KEY_MARGIN_SECONDS,
            "--key-retention-days {} deletes keys while --accept-past-days {accept_past_days} and --accept-future-seconds \
             {accept_future_seconds} still accept their events, which could then be counted twice: raise \
             --key-retention-days to {needed} days or more, or lower the other two",
            self.key_retention_days
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use proptest::prelude::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        jobs: JobSettings,
    }

    fn check(flags: &str, accept_past_days: u32) -> Result<(), String> {
        let flags = std::iter::once("test").chain(flags.split_whitespace());
        let flags = Flags::try_parse_from(flags).map_err(|error| error.to_string())?;
        flags.jobs.check(accept_past_days, 300).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_agree() {
        assert_eq!(check("", 35), Ok(()));
    }

    #[test]
    fn retention_covers_the_days_that_are_accepted() {
        assert_eq!(check("--retention-months 2", 58), Ok(()));
        let refused = check("--retention-months 2", 59).unwrap_err();
        assert!(refused.contains("--retention-months 2") && refused.contains("--accept-past-days 59"), "{refused}");
        assert!(refused.contains("to 58 days"), "{refused}");
        assert_eq!(check("--retention-months 12", 364), Ok(()));
        assert!(check("--retention-months 12", 365).is_err());
    }

    #[test]
    fn neither_the_current_nor_the_previous_month_is_ever_closed() {
        let refused = check("--retention-months 1", 5).unwrap_err();
        assert!(
            refused.contains("--retention-months") && refused.contains("must be 2 to 1200 months, or 0"),
            "{refused}"
        );
    }

    #[test]
    fn keys_outlive_the_days_that_are_accepted() {
        assert_eq!(check("--key-retention-days 38", 36), Ok(()));
        let refused = check("--key-retention-days 37", 36).unwrap_err();
        assert!(refused.contains("--key-retention-days 37") && refused.contains("--accept-past-days 36"), "{refused}");
        assert!(refused.contains("to 38 days"), "{refused}");
    }

    #[test]
    fn a_wrong_schedule_is_refused_with_its_flag() {
        let refused = check("--schedule-retention never", 35).unwrap_err();
        assert!(refused.contains("--schedule-retention") && refused.contains("cron expression"), "{refused}");
    }

    proptest! {
        /// Compared with the calendar: no sequence of months has fewer days.
        #[test]
        fn consecutive_months_have_at_least_the_fewest_days(year in 1970i32..2400, month in 1u32..=12, months in 1u32..60) {
            let first = chrono::NaiveDate::from_ymd_opt(year, month, 1).unwrap();
            let days = (first + chrono::Months::new(months) - first).num_days();
            prop_assert!(days >= i64::from(fewest_days(months)));
        }
    }
}
