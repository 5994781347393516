//! Replicas of the previous release, which may run for an hour after an upgrade.

use crate::refusal::{Reason, Refusal};
use chrono::SecondsFormat;
use meterd_store::database::deployment;
use sqlx::PgConnection;

/// Returns the refusal of something that replicas of the previous release would get wrong, if they may run. `ignored` is what they ignore.
pub async fn refusal(conn: &mut PgConnection, ignored: &str) -> meterd_store::Result<Option<Refusal>> {
    let Some(until) = deployment::previous_release_until(conn).await? else { return Ok(None) };
    let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
    let message = format!(
        "replicas of the previous release, which ignore {ignored}, may run until {until}; wait until then, or stop these replicas and run \
         `meterd migrate --previous-release-stopped`"
    );
    Ok(Some(Refusal::new(Reason::PreviousReleaseMayRun, message).with("until", until)))
}

/// Returns this refusal as an error.
pub async fn check_gone(conn: &mut PgConnection, ignored: &str) -> Result<(), Refusal> {
    refusal(conn, ignored).await?.map_or(Ok(()), Err)
}
