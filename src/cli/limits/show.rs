//! Tables and JSON of limits.

use super::super::chart::table;
use super::super::time::time_text;
use crate::proto::{ClientLimits, Limit, LimitFilter, LimitStatus};
use serde_json::{Value, json};

/// Returns the short name of an enum value, in lower case.
fn short(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

fn measure(limit: &Limit) -> String {
    short(limit.measure().as_str_name(), "LIMIT_MEASURE_")
}

fn period(limit: &Limit) -> String {
    short(limit.period().as_str_name(), "LIMIT_PERIOD_")
}

fn state(state: crate::proto::LimitState) -> String {
    short(state.as_str_name(), "LIMIT_STATE_")
}

fn kind(limit: &Limit) -> &'static str {
    if limit.hard { "hard" } else { "soft" }
}

/// Returns what a limit counts, such as "service sms, openai; label project=apollo".
fn filter_text(filter: &LimitFilter) -> String {
    let LimitFilter { services, operations, models, subjects, labels } = filter;
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let parts = [
        ("service", services),
        ("operation", operations),
        ("model", models),
        ("subject", subjects),
        ("label", &labels),
    ];
    let parts = parts.into_iter().filter(|(_, values)| !values.is_empty());
    let parts: Vec<String> = parts.map(|(name, values)| format!("{name} {}", values.join(", "))).collect();
    if parts.is_empty() { "all".to_owned() } else { parts.join("; ") }
}

/// Returns a table of limits.
pub fn limit_table(limits: &[Limit]) -> Vec<String> {
    let header = ["client", "limit", "name", "amount", "measure", "per", "kind", "alerts at", "counts"];
    let header = header.map(str::to_owned).to_vec();
    let row = |limit: &Limit| {
        let percents: Vec<String> = limit.alert_percents.iter().map(|percent| format!("{percent} %")).collect();
        vec![
            limit.client_id.clone(),
            limit.limit_id.clone(),
            limit.display_name.clone(),
            limit.amount.clone(),
            measure(limit),
            period(limit),
            kind(limit).to_owned(),
            percents.join(", "),
            filter_text(&limit.filter.clone().unwrap_or_default()),
        ]
    };
    let rows: Vec<_> = std::iter::once(header).chain(limits.iter().map(row)).collect();
    table(&rows, &[false, false, false, true, false, false, false, false, false])
}

/// Returns a limit as JSON.
pub fn limit_json(limit: &Limit) -> Value {
    let LimitFilter { services, operations, models, subjects, labels } = limit.filter.clone().unwrap_or_default();
    json!({
        "client_id": limit.client_id,
        "limit_id": limit.limit_id,
        "display_name": limit.display_name,
        "filter": {
            "services": services,
            "operations": operations,
            "models": models,
            "subjects": subjects,
            "labels": labels,
        },
        "measure": measure(limit),
        "period": period(limit),
        "amount": limit.amount,
        "hard": limit.hard,
        "alert_percents": limit.alert_percents,
        "create_time": time_text(limit.create_time.as_ref()),
        "update_time": time_text(limit.update_time.as_ref()),
    })
}

/// Returns a table of the limits of clients in their current periods.
pub fn status_table(statuses: &[ClientLimits]) -> Vec<String> {
    let header =
        ["client", "limit", "state", "used", "reserved", "amount", "left", "measure", "kind", "period", "resets"];
    let header = header.map(str::to_owned).to_vec();
    let row = |client: &ClientLimits, status: &LimitStatus| {
        let limit = status.limit.clone().unwrap_or_default();
        vec![
            client.client_id.clone(),
            limit.limit_id.clone(),
            state(status.state()),
            status.used.clone(),
            status.reserved.clone(),
            limit.amount.clone(),
            status.remaining.clone(),
            measure(&limit),
            kind(&limit).to_owned(),
            status.period.clone(),
            time_text(status.reset_time.as_ref()),
        ]
    };
    let rows = statuses.iter().flat_map(|client| client.limits.iter().map(move |status| row(client, status)));
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    table(&rows, &[false, false, false, true, true, true, true, false, false, false, false])
}

/// Returns the limits of a client in their current periods as JSON.
pub fn status_json(client: &ClientLimits) -> Value {
    let of_limit = |status: &LimitStatus| {
        json!({
            "limit": limit_json(&status.limit.clone().unwrap_or_default()),
            "state": state(status.state()),
            "used": status.used,
            "reserved": status.reserved,
            "remaining": status.remaining,
            "period": status.period,
            "reset_time": time_text(status.reset_time.as_ref()),
        })
    };
    json!({
        "client_id": client.client_id,
        "state": state(client.state()),
        "allowed": client.allowed,
        "binding_limit_id": client.binding_limit_id,
        "limits": client.limits.iter().map(of_limit).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{LimitMeasure, LimitPeriod, LimitState};

    #[test]
    fn tables_show_what_a_limit_counts_and_how_much_is_left() {
        let filter = LimitFilter {
            services: vec!["sms".into(), "voice".into()],
            labels: [("project".to_owned(), "apollo".to_owned())].into(),
            ..Default::default()
        };
        let limit = Limit {
            client_id: "acme".into(),
            limit_id: "messages".into(),
            filter: Some(filter),
            measure: LimitMeasure::Units.into(),
            period: LimitPeriod::Day.into(),
            amount: "100".into(),
            hard: true,
            alert_percents: vec![80, 100],
            ..Default::default()
        };
        let lines = limit_table(std::slice::from_ref(&limit));
        assert_eq!(
            lines[1].split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect::<Vec<_>>(),
            [
                "acme",
                "messages",
                "100",
                "units",
                "day",
                "hard",
                "80 %, 100 %",
                "service sms, voice; label project=apollo"
            ]
        );
        let status = LimitStatus {
            limit: Some(limit),
            state: LimitState::Yellow.into(),
            used: "85.5".into(),
            reserved: "0".into(),
            remaining: "14.5".into(),
            period: "2026-11-21".into(),
            reset_time: None,
        };
        let client = ClientLimits { client_id: "acme".into(), limits: vec![status], ..Default::default() };
        let lines = status_table(&[client]);
        assert!(lines[1].contains("yellow") && lines[1].contains("14.5"), "{lines:?}");
    }
}
