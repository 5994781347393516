//! The forecast of a client's current month, from its last 30 days in its own time zone.

use crate::alerts::{metered, server_at};
use crate::commands::succeed;
use crate::harness::*;
use meterd::proto::*;
use serde_json::Value;

async fn forecast(server: &TestServer, client_id: &str) -> GetForecastResponse {
    let request = GetForecastRequest { client_id: client_id.into() };
    server.usage().get_forecast(request).await.unwrap().into_inner()
}

/// Expected cost, low end, high end and number of days. Without a range, its ends are empty.
fn figures(forecast: &Option<CostForecast>) -> (&str, &str, &str, i32) {
    let forecast = forecast.as_ref().unwrap();
    let end = |money| Option::as_ref(money).map_or("", |money: &Money| money.amount.as_str());
    (amount(&forecast.expected_cost), end(&forecast.low_cost), end(&forecast.high_cost), forecast.days_used)
}

/// Name, day and whether it is reached already, of each amount that is reached in the month.
fn reached(forecast: &Option<CostForecast>) -> Vec<(&str, &str, bool)> {
    let lines = forecast.as_ref().unwrap().lines.iter();
    lines.filter(|line| !line.reach_date.is_empty()).map(|of| (&*of.name, &*of.reach_date, of.reached)).collect()
}

/// Records usage of "metered", which costs as much as its units, at noon of UTC on each of these days of a month.
async fn daily(server: &TestServer, client_id: &str, month: &str, days: std::ops::RangeInclusive<u32>, units: &str) {
    let events = days.map(|day| event_at(client_id, "metered", units, &format!("{month}-{day:02}T12:00:00Z")));
    server.batch(events.collect(), true).await;
}

fn number(text: &str) -> f64 {
    text.parse().unwrap()
}

#[tokio::test]
async fn constant_days_are_continued_and_the_days_on_which_thresholds_are_reached_are_known() {
    let server = server_at("2026-11-11T00:00:00Z").await;
    daily(&server, "acme", "2026-10", 1..=31, "4").await;
    daily(&server, "acme", "2026-11", 1..=10, "4").await;
    let of = forecast(&server, "acme").await;
    assert_eq!((&*of.client_id, &*of.month, &*of.time_zone), ("acme", "2026-11", "UTC"));
    assert_eq!((amount(&of.cost), amount(&of.projected_cost)), ("40", "109.090909090909"));
    assert_eq!(figures(&of.forecast), ("120", "120", "120", 30));
    assert_eq!(of.forecast.as_ref().unwrap().range_percent, 80);
    // 13 × 4 is the first cost above 50, and 25 × 4 is 100.
    let expected = [("monthly_warning", "2026-11-13", false), ("monthly_critical", "2026-11-25", false)];
    assert_eq!(reached(&of.forecast), expected);
    let lines = &of.forecast.as_ref().unwrap().lines;
    assert!(lines.iter().all(|line| line.kind() == ForecastLineKind::AlertThreshold));
    assert_eq!((amount(&lines[0].amount), amount(&lines[1].amount)), ("50", "100"));
    let days: Vec<_> = of.days.iter().map(|day| (&*day.day, amount(&day.expected_cost))).collect();
    assert_eq!((days.len(), days[0], days[1]), (20, ("2026-11-11", "44"), ("2026-11-12", "48")));
    assert_eq!(days[19], ("2026-11-30", "120"));
    assert!(of.complete_as_of_time.unwrap().seconds > 0);
    let month = server.month("acme").await;
    assert_eq!((&month.forecast, &month.projected_cost), (&of.forecast, &of.projected_cost));
    let request = GetCurrentMonthUsageRequest { client_id: "acme".into(), omit_forecast: true };
    let without = server.usage().get_current_month_usage(request).await.unwrap().into_inner();
    assert_eq!((without.forecast, without.totals), (None, month.totals));
    server.stop().await;
}

#[tokio::test]
async fn events_that_were_just_recorded_count_also_while_they_are_pending() {
    let server = server_at("2026-11-11T12:00:00Z").await;
    daily(&server, "acme", "2026-11", 1..=10, "4").await;
    server.track(event("acme", "metered", "2")).await.unwrap();
    let pending = "SELECT FROM pending_usage_days WHERE client_id = 'acme'";
    assert!(server.sql(pending).await > 0);
    let before = forecast(&server, "acme").await;
    assert_eq!((amount(&before.cost), figures(&before.forecast)), ("42", ("120", "120", "120", 10)));
    server.run_job("pending_usage").await;
    assert_eq!(server.sql(pending).await, 0);
    let after = forecast(&server, "acme").await;
    assert_eq!((after.cost, after.forecast, after.days), (before.cost, before.forecast, before.days));
    server.stop().await;
}

#[tokio::test]
async fn weekends_without_usage_are_expected_again() {
    // A Saturday at the start of the day. The last 30 days had usage on working days only.
    let server = server_at("2026-11-14T00:00:00Z").await;
    let mut events = vec![];
    let is_weekend = |month: u32, day: u32| {
        let weekday = chrono::Datelike::weekday(&chrono::NaiveDate::from_ymd_opt(2026, month, day).unwrap());
        matches!(weekday, chrono::Weekday::Sat | chrono::Weekday::Sun)
    };
    for (month, day) in (1..=31).map(|day| (10, day)).chain((1..=13).map(|day| (11, day))) {
        if !is_weekend(month, day) {
            events.push(event_at("acme", "metered", "10", &format!("2026-{month:02}-{day:02}T12:00:00Z")));
        }
    }
    server.batch(events, true).await;
    let of = forecast(&server, "acme").await;
    assert_eq!(amount(&of.cost), "100");
    // The month has 11 more working days.
    let (expected, low, high, days) = figures(&of.forecast);
    let (truth, error) = (210.0, |of: &str| (number(of) - 210.0).abs());
    assert_eq!(days, 30);
    assert!(error(expected) < 2.0 && error(amount(&of.projected_cost)) > 4.0, "{expected}");
    assert!(number(low) < truth && truth < number(high) && number(high) - number(low) < 30.0, "{low} {high}");
    let cost = |at: usize| number(amount(&of.days[at].expected_cost));
    let (saturday, monday) = (cost(0) - 100.0, cost(2) - cost(1));
    assert!(saturday < 1.0 && (9.5..10.5).contains(&monday), "{saturday} {monday}");
    assert_eq!(reached(&of.forecast)[0], ("monthly_warning", "2026-11-06", true));
    server.stop().await;
}

#[tokio::test]
async fn the_days_and_the_rest_of_today_are_those_of_the_clients_time_zone() {
    // In Kiritimati it is 2027-01-01 00:30, in Pago Pago 2026-12-30 23:30, in UTC 2026-12-31 10:30.
    let server = server_at("2026-12-31T10:30:00Z").await;
    for (client, zone) in [("east", "Pacific/Kiritimati"), ("west", "Pacific/Pago_Pago"), ("utc", "UTC")] {
        server.create_client_in_zone(client, zone).await;
        let hours = (1..=24 * 31).map(|ago| {
            let time = server.clock.now() - chrono::TimeDelta::hours(ago);
            event_at(client, "metered", "1", &time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
        });
        server.batch(hours.collect(), true).await;
    }
    let east = forecast(&server, "east").await;
    // Half an hour of today is over, and no event is in it. 23.5 hours remain.
    assert_eq!((&*east.month, amount(&east.cost), east.days.len()), ("2027-01", "0", 31));
    assert_eq!((&*east.days[0].day, amount(&east.days[0].expected_cost)), ("2027-01-01", "23.5"));
    assert_eq!(figures(&east.forecast), ("743.5", "743.5", "743.5", 30));
    assert_eq!(reached(&east.forecast)[0], ("monthly_warning", "2027-01-03", false));
    let west = forecast(&server, "west").await;
    assert_eq!((&*west.month, amount(&west.cost), west.days.len()), ("2026-12", "719", 2));
    assert_eq!((&*west.days[0].day, amount(&west.days[0].expected_cost)), ("2026-12-30", "719.5"));
    assert_eq!(figures(&west.forecast).0, "743.5");
    assert_eq!(reached(&west.forecast)[0], ("monthly_warning", "2026-12-03", true));
    let utc = forecast(&server, "utc").await;
    assert_eq!((&*utc.month, amount(&utc.cost), utc.days.len()), ("2026-12", "730", 1));
    assert_eq!(figures(&utc.forecast).0, "743.5");
    server.stop().await;
}

#[tokio::test]
async fn the_rest_of_a_day_of_25_hours_is_longer() {
    // At 12:00 UTC it is 13:00 in Berlin, and 14 of 25 hours are over. On the day before, 14 of 24 hours were over at that time of day.
    let server = server_at("2026-10-25T12:00:00Z").await;
    server.create_client_in_zone("acme", "Europe/Berlin").await;
    daily(&server, "acme", "2026-10", 1..=24, "50").await;
    let long = forecast(&server, "acme").await;
    assert_eq!((amount(&long.cost), amount(&long.days[0].expected_cost)), ("1200", "1222"));
    // 11:00 UTC is 12:00 in Berlin.
    server.clock.set(time("2026-10-26T11:00:00Z"));
    daily(&server, "acme", "2026-10", 25..=25, "50").await;
    let usual = forecast(&server, "acme").await;
    assert_eq!((amount(&usual.cost), amount(&usual.days[0].expected_cost)), ("1250", "1275"));
    server.stop().await;
}

#[tokio::test]
async fn a_month_that_is_over_costs_what_it_has_cost() {
    let server = server_at("2026-11-30T23:59:59.999999Z").await;
    daily(&server, "acme", "2026-11", 1..=30, "4").await;
    daily(&server, "acme", "2026-11", 7..=9, "30").await;
    let of = forecast(&server, "acme").await;
    assert_eq!((amount(&of.cost), figures(&of.forecast)), ("210", ("210", "210", "210", 29)));
    assert_eq!(
        reached(&of.forecast),
        [("monthly_warning", "2026-11-07", true), ("monthly_critical", "2026-11-09", true)]
    );
    assert_eq!(of.days.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_late_correction_changes_the_forecast() {
    let server = server_at("2026-11-21T00:00:00Z").await;
    daily(&server, "acme", "2026-11", 1..=20, "1").await;
    let late =
        UsageEvent { idempotency_key: "late".into(), ..event_at("acme", "metered", "60", "2026-11-20T13:00:00Z") };
    server.track(late).await.unwrap();
    let before = forecast(&server, "acme").await;
    assert_eq!(reached(&before.forecast)[0], ("monthly_warning", "2026-11-20", true));
    assert!(number(figures(&before.forecast).0) > 90.0, "{before:?}");
    let late = EventReference { idempotency_key: "late".into(), ..Default::default() };
    let request =
        VoidUsageRequest { client_id: "acme".into(), events: vec![late], reason: "wrong".into(), ..Default::default() };
    server.usage().void_usage(request).await.unwrap();
    let after = forecast(&server, "acme").await;
    assert_eq!((figures(&after.forecast), reached(&after.forecast)), (("30", "30", "30", 20), vec![]));
    // Late usage of a day before the month changes it, too.
    server.track(event_at("acme", "metered", "0.5", "2026-10-31T12:00:00Z")).await.unwrap();
    let later = forecast(&server, "acme").await;
    assert_eq!(figures(&later.forecast).3, 21);
    assert_ne!(figures(&later.forecast), figures(&after.forecast));
    server.stop().await;
}

#[tokio::test]
async fn clients_without_a_complete_day_have_no_range() {
    let server = server_at("2026-11-21T12:00:00Z").await;
    for client in ["empty", "recurring", "new"] {
        server.create_client_in_zone(client, "UTC").await;
    }
    let empty = forecast(&server, "empty").await;
    assert_eq!((amount(&empty.cost), figures(&empty.forecast)), ("0", ("0", "", "", 0)));
    assert_eq!((reached(&empty.forecast), empty.forecast.as_ref().unwrap().range_percent), (vec![], 0));
    // A fee is not expected again. Its service has no varying cost.
    let fee =
        UsageEvent { operation: "local".into(), ..event_at("recurring", "twilio_phone", "50", "2026-11-02T12:00:00Z") };
    server.track(fee).await.unwrap();
    let recurring = forecast(&server, "recurring").await;
    assert_eq!((amount(&recurring.cost), figures(&recurring.forecast)), ("57.5", ("57.5", "", "", 0)));
    assert_eq!(reached(&recurring.forecast), [("monthly_warning", "2026-11-02", true)]);
    // Today counts as a whole day, as in the linear projection.
    server.track(event("new", "metered", "3")).await.unwrap();
    let new = forecast(&server, "new").await;
    assert_eq!((figures(&new.forecast), &*new.days[0].day), (("30", "", "", 0), "2026-11-21"));
    server.clock.set(time("2026-11-22T00:00:00Z"));
    assert_eq!(figures(&forecast(&server, "new").await.forecast), ("30", "", "", 1));
    server.clock.set(time("2026-11-28T00:00:00Z"));
    let with_range = forecast(&server, "new").await;
    assert_eq!(figures(&with_range.forecast).3, 7);
    assert!(!figures(&with_range.forecast).1.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn days_without_usage_count_if_the_client_had_usage_before() {
    let server = server_at("2026-11-21T00:00:00Z").await;
    for client in ["old", "phone", "back"] {
        daily(&server, client, "2026-11", 18..=20, "1").await;
    }
    // Two months earlier. The phone number is no usage that varies.
    daily(&server, "old", "2026-09", 10..=10, "1").await;
    let fee = event_at("phone", "twilio_phone", "1", "2026-09-10T12:00:00Z");
    server.batch(vec![UsageEvent { operation: "local".into(), ..fee }], true).await;
    let (old, phone) = (forecast(&server, "old").await.forecast, forecast(&server, "phone").await.forecast);
    assert_eq!((figures(&old).3, figures(&phone)), (30, ("13", "", "", 3)));
    assert!(number(figures(&old).0) < 10.0, "{old:?}");
    // After 30 days without usage, the client starts anew.
    server.clock.set(time("2026-12-21T12:00:00Z"));
    server.track(event("back", "metered", "2")).await.unwrap();
    let back = forecast(&server, "back").await;
    assert_eq!((amount(&back.cost), figures(&back.forecast)), ("2", ("22", "", "", 0)));
    server.stop().await;
}

#[tokio::test]
async fn recurring_cost_is_part_of_the_month_but_not_of_the_days_to_come() {
    let server = server_at("2026-11-11T00:00:00Z").await;
    daily(&server, "acme", "2026-11", 1..=10, "1").await;
    let fee =
        UsageEvent { operation: "local".into(), ..event_at("acme", "twilio_phone", "20", "2026-11-05T12:00:00Z") };
    server.track(fee).await.unwrap();
    let of = forecast(&server, "acme").await;
    assert_eq!((amount(&of.cost), figures(&of.forecast)), ("33", ("53", "53", "53", 10)));
    assert_eq!(reached(&of.forecast), [("monthly_warning", "2026-11-27", false)]);
    server.stop().await;
}

#[tokio::test]
async fn the_thresholds_are_those_of_the_clients_policy() {
    let server = server_at("2026-11-11T00:00:00Z").await;
    daily(&server, "acme", "2026-11", 1..=10, "1").await;
    daily(&server, "globex", "2026-11", 1..=10, "1").await;
    let own = AlertPolicy { client_id: "acme".into(), monthly_warning: Some("5".into()), ..Default::default() };
    crate::policies::try_update(&server, own, &["monthly_warning"]).await.unwrap();
    let default = AlertPolicy { monthly_critical: Some("20.5".into()), ..Default::default() };
    let default = AlertPolicy { monthly_warning: Some("20".into()), ..default };
    crate::policies::try_update(&server, default, &["monthly_warning", "monthly_critical"]).await.unwrap();
    let acme = forecast(&server, "acme").await.forecast;
    assert_eq!(reached(&acme), [("monthly_warning", "2026-11-05", true), ("monthly_critical", "2026-11-21", false)]);
    let globex = forecast(&server, "globex").await.forecast;
    assert_eq!(reached(&globex), [("monthly_warning", "2026-11-20", false), ("monthly_critical", "2026-11-21", false)]);
    let off = AlertPolicy { client_id: "acme".into(), threshold_enabled: Some(false), ..Default::default() };
    crate::policies::try_update(&server, off, &["threshold_enabled"]).await.unwrap();
    assert!(forecast(&server, "acme").await.forecast.unwrap().lines.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_usage_shows_the_forecast() {
    let server = server_at("2026-11-11T00:00:00Z").await;
    metered(&server, "other").await;
    daily(&server, "acme", "2026-11", 1..=10, "4").await;
    server.track(event_at("acme", "other", "9", "2026-11-10T12:00:00Z")).await.unwrap();
    let of = forecast(&server, "acme").await;
    let text = succeed(&server, &["usage", "acme"]).await;
    let expected = [
        "acme  2026-11 (UTC)",
        "day 11 of 30: 49.00 USD so far, 133.64 USD projected",
        "forecast: 140.56 USD at the end of the month (80 % range 77.41 to 203.71 USD; from 10 days)",
        "monthly_warning 50.00 USD: expected on 2026-11-11",
        "monthly_critical 100.00 USD: expected on 2026-11-22",
    ];
    assert_eq!(text.lines().take(5).collect::<Vec<_>>(), expected);
    let json: Value = serde_json::from_str(&succeed(&server, &["usage", "acme", "--json"]).await).unwrap();
    let shown = &json["forecast"];
    let (expected, low, high, days) = figures(&of.forecast);
    assert_eq!((&shown["expected_cost"]["amount"], &shown["days_used"]), (&expected.into(), &days.into()));
    assert_eq!((&shown["low_cost"]["amount"], &shown["high_cost"]["amount"]), (&low.into(), &high.into()));
    assert_eq!(shown["lines"][0]["reach_date"], reached(&of.forecast)[0].1);
    server.stop().await;
}
