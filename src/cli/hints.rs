//! Hints for errors: similar names for an unknown name, and months with usage.

use super::connect::{self, ConnectArgs, Connection};
use crate::proto::{GetClientRequest, ListClientsRequest, ListServicesRequest, QueryUsageRequest, UsageDimension};
use chrono::{Days, NaiveDate};
use meterd_domain::names::nearest;
use meterd_domain::period::{Month, day_of};
use meterd_engine::clock::Clock;
use tonic::Status;
use tonic_types::StatusExt;

const CALL_SECONDS: u64 = 10;
const CLIENTS_PAGE: i32 = 1_000;
/// Maximum number of pages of clients that are searched for similar ids.
const CLIENT_PAGES_MAX: usize = 10;
/// Days of one query: a year.
const WINDOW_DAYS: u64 = 365;
/// Maximum number of years that are searched for months with usage.
const WINDOWS_MAX: usize = 10;
/// Maximum number of months in a hint.
const MONTHS_SHOWN_MAX: usize = 6;

/// Converts a status to the error of a command. If the client does not exist, the error suggests similar ids.
pub async fn client_error(connect: &ConnectArgs, channel: &Connection, status: &Status, client: &str) -> anyhow::Error {
    if status.get_details_error_info().is_none_or(|info| info.reason != "CLIENT_NOT_FOUND") {
        return connect::status_error(status);
    }
    // A key for only some clients cannot list clients. The error then has no suggestion.
    match client_ids(connect, channel).await {
        Err(_) => connect::status_error(status),
        Ok(ids) => anyhow::anyhow!("CLIENT_NOT_FOUND: {}; {}", status.message(), suggestion(client, &ids)),
    }
}

async fn client_ids(connect: &ConnectArgs, channel: &Connection) -> Result<Vec<String>, Status> {
    let mut service = connect::clients_client(channel.clone());
    let (mut ids, mut page_token) = (vec![], String::new());
    for _ in 0..CLIENT_PAGES_MAX {
        let request = ListClientsRequest { page_size: CLIENTS_PAGE, page_token };
        let page = service.list_clients(connect.request(request, CALL_SECONDS)).await?.into_inner();
        ids.extend(page.clients.into_iter().map(|client| client.client_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(ids)
}

/// Checks that the clients of a filter exist. With an unknown client, the filter would silently match nothing.
pub async fn check_clients(connect: &ConnectArgs, channel: &Connection, clients: &[String]) -> anyhow::Result<()> {
    let mut service = connect::clients_client(channel.clone());
    for client in clients {
        let request = connect.request(GetClientRequest { client_id: client.clone() }, CALL_SECONDS);
        if let Err(status) = service.get_client(request).await {
            return Err(client_error(connect, channel, &status, client).await);
        }
    }
    Ok(())
}

/// Returns a suggestion for an unknown client.
pub fn suggestion(client: &str, ids: &[String]) -> String {
    if ids.is_empty() {
        return "there are no clients yet".to_owned();
    }
    did_you_mean(client, ids.iter().map(String::as_str))
        .unwrap_or_else(|| "`meterd clients list` shows all clients".to_owned())
}

/// Returns the names similar to `wanted` as a question. `None` if no name is similar.
pub fn did_you_mean<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let near = nearest(wanted.trim(), names);
    (!near.is_empty()).then(|| format!("did you mean {}?", near.join(" or ")))
}

/// Returns the names of all services in the catalogue.
pub async fn services(connect: &ConnectArgs, channel: &Connection) -> Result<Vec<String>, Status> {
    let mut catalog = connect::catalog_client(channel.clone());
    let answer = catalog.list_services(connect.request(ListServicesRequest {}, CALL_SECONDS)).await?;
    Ok(answer.into_inner().services.into_iter().map(|service| service.service).collect())
}

/// Returns the latest months with usage of a client, or of any client that the key covers, the latest first. The search starts
/// at the later of `before` and tomorrow. Empty if there is no usage or the calls fail.
pub async fn months_with_usage(
    connect: &ConnectArgs,
    channel: &Connection,
    client: Option<&str>,
    before: Option<NaiveDate>,
) -> Vec<String> {
    let mut usage = connect::usage_client(channel.clone());
    // In some time zones the next day has begun.
    let tomorrow = day_of(Clock::system().now(), chrono_tz::UTC) + Days::new(1);
    let mut end = before.map_or(tomorrow, |before| before.max(tomorrow));
    for _ in 0..WINDOWS_MAX {
        let start = end - Days::new(WINDOW_DAYS);
        let request = QueryUsageRequest {
            client_ids: client.map(str::to_owned).into_iter().collect(),
            start_date: start.to_string(),
            end_date: end.to_string(),
            group_by: vec![UsageDimension::Month.into()],
            ..Default::default()
        };
        let Ok(answer) = usage.query_usage(connect.request(request, CALL_SECONDS)).await else { break };
        let mut months: Vec<_> = answer.into_inner().rows.into_iter().filter_map(|row| row.month).collect();
        if !months.is_empty() {
            months.reverse();
            months.truncate(MONTHS_SHOWN_MAX);
            return months;
        }
        end = start - Days::new(1);
    }
    vec![]
}

/// Describes the months with usage. The text is the end of a sentence.
pub fn elsewhere(months: &[String]) -> String {
    match months {
        [] => "no usage is recorded yet".to_owned(),
        [month] => format!("there is usage in {month}: use --month {month}"),
        [latest, ..] => format!("there is usage in {}: use --month {latest}", months.join(", ")),
    }
}

/// Formats months.
pub fn month_texts(months: &[Month]) -> Vec<String> {
    months.iter().map(Month::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_misspelt_client_suggests_similar_ids() {
        let ids = ["acme".to_owned(), "globex".to_owned()];
        assert_eq!(suggestion("acem", &ids), "did you mean acme?");
        assert_eq!(suggestion(" acme ", &ids), "did you mean acme?");
        assert_eq!(suggestion("zzz", &ids), "`meterd clients list` shows all clients");
        assert_eq!(suggestion("acme", &[]), "there are no clients yet");
    }

    #[test]
    fn the_hint_lists_months_with_usage_and_the_flag_for_the_latest() {
        let months = ["2026-11".to_owned(), "2026-09".to_owned()];
        assert_eq!(elsewhere(&months), "there is usage in 2026-11, 2026-09: use --month 2026-11");
        assert_eq!(elsewhere(&[]), "no usage is recorded yet");
    }
}
