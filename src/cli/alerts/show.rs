//! Formats alerts as table rows and as JSON.

use crate::cli::time::{time_of, time_text};
use crate::proto::{Alert, AlertLimit};
use chrono::SecondsFormat;
use prost_types::Timestamp;
use serde_json::{Value, json};

/// The name of the type in lower case, without the prefix of the enum.
pub fn type_name(alert: &Alert) -> String {
    alert.r#type().as_str_name().trim_start_matches("ALERT_TYPE_").to_lowercase()
}

/// The name of the severity, without the prefix of the enum.
pub fn severity_name(alert: &Alert) -> &'static str {
    alert.severity().as_str_name().trim_start_matches("ALERT_SEVERITY_")
}

/// The state: open, acknowledged or resolved.
pub fn state(alert: &Alert) -> String {
    match (&alert.resolve_time, &alert.acknowledge_time) {
        (Some(time), _) => format!("resolved {}", time_text(Some(time))),
        (None, Some(time)) => format!("acknowledged by {} {}", alert.acknowledged_by, time_text(Some(time))),
        (None, None) => "open".into(),
    }
}

/// The column headers of [`row`].
pub fn header() -> Vec<String> {
    ["raised", "severity", "type", "client", "period", "state", "alert id", "message"].map(str::to_owned).to_vec()
}

/// Converts an alert to a row of the table.
pub fn row(alert: &Alert) -> Vec<String> {
    vec![
        time_text(alert.raise_time.as_ref()),
        severity_name(alert).into(),
        type_name(alert),
        alert.client_id.clone(),
        alert.period.clone(),
        state(alert),
        alert.alert_id.clone(),
        alert.message.clone(),
    ]
}

fn limit(limit: &AlertLimit) -> Value {
    json!({
        "limit_id": limit.limit_id,
        "display_name": limit.display_name,
        "measure": limit.measure().as_str_name().trim_start_matches("LIMIT_MEASURE_").to_lowercase(),
        "period": limit.period().as_str_name().trim_start_matches("LIMIT_PERIOD_").to_lowercase(),
        "amount": limit.amount,
        "percent": limit.percent,
        "hard": limit.hard,
    })
}

/// Converts an alert to JSON with all fields. Amounts are exact.
pub fn json(alert: &Alert) -> Value {
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let time = |time: &Option<Timestamp>| time_of(time.as_ref(), SecondsFormat::AutoSi);
    json!({
        "alert_id": alert.alert_id,
        "client_id": alert.client_id,
        "type": type_name(alert),
        "severity": severity_name(alert).to_lowercase(),
        "period": alert.period,
        "service": text(&alert.service),
        "message": alert.message,
        "current": alert.current,
        "previous": text(&alert.previous),
        "threshold": alert.threshold,
        "percent": text(&alert.percent),
        "projected": text(&alert.projected),
        "currency": text(&alert.currency),
        "raise_time": time(&alert.raise_time),
        "raise_count": alert.raise_count,
        "acknowledge_time": time(&alert.acknowledge_time),
        "acknowledged_by": text(&alert.acknowledged_by),
        "resolve_time": time(&alert.resolve_time),
        "limit": alert.limit.as_ref().map(limit),
    })
}
