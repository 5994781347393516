//! Replicas of the previous release, which may run for an hour after an upgrade.

use crate::refusal::{Reason, Refusal};
use chrono::SecondsFormat;
use meterd_store::database::deployment;
use sqlx::PgConnection;

/// Refuses something while replicas of the previous release may run. `ignores` says what they would ignore.
pub async fn check_gone(conn: &mut PgConnection, ignores: &str) -> Result<(), Refusal> {
    let Some(until) = deployment::previous_release_until(conn).await? else { return Ok(()) };
    let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
    let message = format!(
        "replicas of the previous release, which ignore {ignores}, may run until {until}; send again then, or stop these replicas and \
         run `meterd migrate --previous-release-stopped`"
    );
    Err(Refusal::new(Reason::PreviousReleaseMayRun, message).with("until", until))
}
