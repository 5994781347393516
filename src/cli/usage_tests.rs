use super::*;
use crate::proto::{CostForecast, Money};

fn money(amount: &str) -> Option<Money> {
    Some(Money { currency: "USD".into(), amount: amount.into() })
}

fn totals(cost: &str) -> Option<UsageTotals> {
    Some(UsageTotals { request_count: 1234, units: "5".into(), cost: money(cost), ..Default::default() })
}

fn service(name: &str, cost: &str) -> ServiceUsage {
    ServiceUsage { service: name.into(), totals: totals(cost), ..Default::default() }
}

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

#[test]
fn the_current_month_is_a_table_with_bars() {
    let month = GetCurrentMonthUsageResponse {
        client_id: "acme".into(),
        month: "2026-11".into(),
        time_zone: "UTC".into(),
        totals: totals("30"),
        projected_cost: money("42.857142857143"),
        days_elapsed: 21,
        days_remaining: 9,
        services: vec![service("openai", "20"), service("sms", "10")],
        forecast: Some(CostForecast { expected_cost: money("41"), days_used: 2, ..Default::default() }),
        ..Default::default()
    };
    let text = month_text(&month, &BTreeMap::new()).unwrap();
    let full = "█".repeat(30);
    let half = "█".repeat(15);
    let expected = format!(
        "acme  2026-11 (UTC)\nday 21 of 30: 30.00 USD so far, 42.86 USD projected\n\
         forecast: 41.00 USD at the end of the month (from 2 days; a range needs 7)\n\
         1,234 requests, 0 input tokens (0 cached), 0 output tokens\n\n\
         service  requests  units   cost\nopenai      1,234      5  20.00  {full}\nsms         1,234      5  10.00  {half}"
    );
    assert_eq!(text, expected);
    assert_eq!(month_json(&month)["projected_cost"]["amount"], "42.857142857143");
    assert_eq!(month_json(&month)["forecast"]["expected_cost"]["amount"], "41");
    // An older server sends no forecast.
    let older = GetCurrentMonthUsageResponse { forecast: None, ..month };
    assert!(!month_text(&older, &BTreeMap::new()).unwrap().contains("forecast"));
    assert!(month_json(&older)["forecast"].is_null());
}

#[test]
fn each_day_of_a_range_has_a_line_and_days_with_usage_have_a_bar() {
    let days = [DayUsage { day: "2026-11-02".into(), totals: totals("4") }];
    let lines = day_lines(&days, day("2026-11-01"), day("2026-11-03")).unwrap();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0], "2026-11-01  0.00");
    assert_eq!(lines[1], format!("2026-11-02  4.00  {}", "█".repeat(30)));
}

#[test]
fn long_ranges_have_one_bar_for_each_month() {
    let days = ["2026-01-05", "2026-01-31", "2026-12-31"].map(|day| DayUsage { day: day.into(), totals: totals("2") });
    let lines = day_lines(&days, day("2026-01-01"), day("2026-12-31")).unwrap();
    assert_eq!(lines.len(), 12);
    assert!(lines[0].starts_with("2026-01  4.00"), "{lines:?}");
}

#[test]
fn a_client_without_usage_has_the_line_no_usage() {
    let text = month_text(&GetCurrentMonthUsageResponse::default(), &BTreeMap::new()).unwrap();
    assert!(text.ends_with("no usage"), "{text}");
}

#[test]
fn models_without_a_price_are_listed() {
    let scope = unpriced::Scope { service: "openai".into(), operation: "chat".into(), model: "gpt-9".into() };
    let unpriced = BTreeMap::from([(UnpricedKey { client: "acme".into(), scope }, 1_003)]);
    let totals = UsageTotals { unpriced_event_count: 1_003, ..Default::default() };
    let lines = totals_lines(&totals, &BTreeMap::from([("pages".into(), "3".into())]), &unpriced);
    assert_eq!(lines[1], "pages 3");
    assert!(lines[2].starts_with("1,003 events have no price yet"), "{lines:?}");
    assert_eq!(lines[3], "  openai gpt-9 (chat): 1,003 events");
}
