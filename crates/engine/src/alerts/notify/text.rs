//! The contents of notifications: the texts of e-mails and SMS, and the body of webhooks.

use chrono::{DateTime, SecondsFormat, Utc};
use meterd_domain::alert::{Alert, AlertType, Severity};
use meterd_domain::limit::{LimitFinding, LimitMeasure, LimitPeriod};
use meterd_domain::period::Month;
use serde::Serialize;

/// Maximum number of characters of an SMS: about ten segments of ASCII, and below Twilio's limit of 1,600.
const SMS_CHARS_MAX: usize = 640;
/// Maximum number of characters of a subject.
const SUBJECT_CHARS_MAX: usize = 200;
/// Maximum number of alerts in the SMS of a digest.
const SMS_ALERTS_MAX: usize = 3;

/// The content of a notification.
pub struct Content<'a> {
    pub alerts: &'a [Alert],
    /// Number of alerts of a digest, which may be more than `alerts` has. 0: a test.
    pub alert_count: i32,
    pub create_time: DateTime<Utc>,
    /// The currency of the deployment.
    pub currency: &'a str,
}

/// An alert in the JSON mapping of the contract's `Alert`, without empty fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AlertBody<'a> {
    alert_id: &'a str,
    client_id: &'a str,
    r#type: &'static str,
    severity: &'static str,
    period: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    message: &'a str,
    current: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    threshold: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    projected: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    currency: &'a str,
    raise_time: String,
    raise_count: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<LimitBody<'a>>,
}

/// A limit in the JSON mapping of the contract's `AlertLimit`, without empty fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LimitBody<'a> {
    limit_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    display_name: &'a str,
    measure: &'static str,
    period: &'static str,
    amount: String,
    percent: u16,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    hard: bool,
}

impl<'a> LimitBody<'a> {
    fn of(limit: &'a LimitFinding) -> Self {
        Self {
            limit_id: &limit.limit_id,
            display_name: &limit.display_name,
            measure: match limit.measure {
                LimitMeasure::Units => "LIMIT_MEASURE_UNITS",
                LimitMeasure::Tokens => "LIMIT_MEASURE_TOKENS",
                LimitMeasure::Requests => "LIMIT_MEASURE_REQUESTS",
                LimitMeasure::Cost => "LIMIT_MEASURE_COST",
            },
            period: match limit.period {
                LimitPeriod::Day => "LIMIT_PERIOD_DAY",
                LimitPeriod::Month => "LIMIT_PERIOD_MONTH",
            },
            amount: limit.amount.to_string(),
            percent: limit.percent,
            hard: limit.is_hard,
        }
    }
}

/// The alerts of a digest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DigestBody<'a> {
    alert_count: i32,
    alerts: Vec<AlertBody<'a>>,
}

/// The envelope that the Standard Webhooks specification recommends.
#[derive(Serialize)]
struct Body<T> {
    r#type: &'static str,
    timestamp: String,
    data: T,
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn severity(alert: &Alert) -> &'static str {
    match alert.finding.severity {
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

fn period(alert: &Alert) -> String {
    match alert.finding.is_of_day() {
        true => alert.finding.period.to_string(),
        false => Month::of(alert.finding.period).to_string(),
    }
}

/// Returns at most `chars_max` characters, without control characters.
fn line(text: &str, chars_max: usize) -> String {
    let clean = |character: char| if character.is_control() { ' ' } else { character };
    if text.chars().count() <= chars_max {
        return text.chars().map(clean).collect();
    }
    text.chars().take(chars_max - 1).map(clean).chain(['…']).collect()
}

/// The text of a test notification.
const TEST_TEXT: &str = "This is a test of meterd. No alert was raised.";

/// The data of a test.
#[derive(Serialize)]
struct TestBody {
    message: &'static str,
}

impl<'a> Content<'a> {
    /// Returns whether this is a test of a channel.
    fn is_test(&self) -> bool {
        self.alert_count == 0
    }

    fn is_digest(&self) -> bool {
        self.alert_count > 1
    }

    fn body(&self, alert: &'a Alert) -> AlertBody<'a> {
        let finding = &alert.finding;
        let text = |value: Option<meterd_domain::decimal::Total>| value.map(|value| value.to_string());
        AlertBody {
            alert_id: &alert.alert_id,
            client_id: &alert.client_id,
            r#type: match finding.kind {
                AlertType::Threshold => "ALERT_TYPE_THRESHOLD",
                AlertType::Spike => "ALERT_TYPE_SPIKE",
                AlertType::Projection => "ALERT_TYPE_PROJECTION",
                AlertType::Anomaly => "ALERT_TYPE_ANOMALY",
                AlertType::Unpriced => "ALERT_TYPE_UNPRICED",
                AlertType::Silence => "ALERT_TYPE_SILENCE",
                AlertType::Limit => "ALERT_TYPE_LIMIT",
            },
            severity: match finding.severity {
                Severity::Warning => "ALERT_SEVERITY_WARNING",
                Severity::Critical => "ALERT_SEVERITY_CRITICAL",
            },
            period: period(alert),
            service: &finding.service,
            message: &alert.message,
            current: finding.current.to_string(),
            previous: text(finding.previous),
            threshold: finding.threshold.to_string(),
            percent: text(finding.percent),
            projected: text(finding.projected),
            currency: finding.unit().currency(self.currency),
            raise_time: rfc3339(alert.raise_time),
            raise_count: alert.raise_count,
            limit: finding.limit.as_deref().map(LimitBody::of),
        }
    }

    /// Returns the body of a webhook. It is the same for every attempt.
    pub fn json(&self) -> String {
        let json = match self.alerts {
            [] if self.is_test() => serde_json::to_string(&Body {
                r#type: "notification.test",
                timestamp: rfc3339(self.create_time),
                data: TestBody { message: TEST_TEXT },
            }),
            [alert] if !self.is_digest() => serde_json::to_string(&Body {
                r#type: "alert.raised",
                timestamp: rfc3339(alert.raise_time),
                data: self.body(alert),
            }),
            alerts => serde_json::to_string(&Body {
                r#type: "alert.digest",
                timestamp: rfc3339(self.create_time),
                data: DigestBody {
                    alert_count: self.alert_count,
                    alerts: alerts.iter().map(|alert| self.body(alert)).collect(),
                },
            }),
        };
        json.expect("texts and numbers are JSON")
    }

    /// Returns the subject of an e-mail.
    pub fn subject(&self) -> String {
        let subject = match self.alerts {
            [] if self.is_test() => "[test] meterd notification".to_owned(),
            [alert] if !self.is_digest() => format!("[{}] {}", severity(alert), alert.message),
            alerts => {
                let critical = alerts.iter().any(|alert| alert.finding.severity == Severity::Critical);
                format!("[{}] {} alerts", if critical { "critical" } else { "warning" }, self.alert_count)
            }
        };
        line(&subject, SUBJECT_CHARS_MAX)
    }

    /// Returns the text of an e-mail.
    pub fn mail(&self) -> String {
        if self.is_test() {
            return format!("{TEST_TEXT}\n");
        }
        if let [alert] = self.alerts
            && !self.is_digest()
        {
            return self.mail_of_one(alert);
        }
        let mut text = format!("{} alerts were raised:\n\n", self.alert_count);
        for alert in self.alerts {
            text += &format!("- [{}] {} ({})\n", severity(alert), alert.message, rfc3339(alert.raise_time));
        }
        if self.more() > 0 {
            text += &format!("- and {} more\n", self.more());
        }
        text
    }

    fn mail_of_one(&self, alert: &Alert) -> String {
        let AlertBody { current, previous, threshold, percent, projected, .. } = self.body(alert);
        let finding = &alert.finding;
        let unit = finding.unit().word(self.currency);
        let mut text = format!("{}\n\n", alert.message);
        let rows = [
            ("client", Some(alert.client_id.clone())),
            ("severity", Some(severity(alert).into())),
            ("period", Some(period(alert))),
            ("service", Some(finding.service.clone()).filter(|service| !service.is_empty())),
            ("current", Some(format!("{current} {unit}"))),
            ("previous", previous.map(|previous| format!("{previous} {unit}"))),
            ("threshold", Some(format!("{threshold} {unit}"))),
            ("above previous", percent.map(|percent| format!("{percent} %"))),
            ("projected", projected.map(|projected| format!("{projected} {unit}"))),
            ("raised", Some(rfc3339(alert.raise_time))),
            ("alert id", Some(alert.alert_id.clone())),
        ];
        for (name, value) in rows {
            if let Some(value) = value {
                text += &format!("{name:<15} {value}\n");
            }
        }
        text
    }

    /// Returns the text of an SMS.
    pub fn sms(&self) -> String {
        if self.is_test() {
            return TEST_TEXT.to_owned();
        }
        if let [alert] = self.alerts
            && !self.is_digest()
        {
            return line(&format!("[{}] {}", severity(alert), alert.message), SMS_CHARS_MAX);
        }
        let shown: Vec<&str> = self.alerts.iter().take(SMS_ALERTS_MAX).map(|alert| alert.message.as_str()).collect();
        let more = i64::from(self.alert_count) - shown.len() as i64;
        let more = if more > 0 { format!(" And {more} more.") } else { String::new() };
        line(&format!("{} alerts: {}{more}", self.alert_count, shown.join(" ")), SMS_CHARS_MAX)
    }

    /// Returns the number of alerts that a digest only counts.
    fn more(&self) -> i64 {
        i64::from(self.alert_count) - self.alerts.len() as i64
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
