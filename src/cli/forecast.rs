//! Shows the forecast of a month, for `meterd usage`.

use super::chart::shown_amount;
use super::money::{amount_of, money_json, money_text};
use crate::proto::{CostForecast, ForecastLine};
use meterd_domain::forecast::RANGE_DAYS_MIN;
use serde_json::json;

/// Returns a line with the forecast, and one for each amount that the month reaches. Before the first complete day, the forecast is as
/// rough as the linear projection, and is left out.
pub fn forecast_lines(forecast: &CostForecast) -> anyhow::Result<Vec<String>> {
    let mut lines = vec![];
    if forecast.days_used > 0 {
        let expected = money_text(forecast.expected_cost.as_ref())?;
        let days = match forecast.days_used {
            1 => "1 day".to_owned(),
            days => format!("{days} days"),
        };
        let range = match (&forecast.low_cost, &forecast.high_cost) {
            (Some(low), Some(high)) => {
                let (low, high) = (shown_amount(&amount_of(Some(low))?), money_text(Some(high))?);
                format!("{} % range {low} to {high}; from {days}", forecast.range_percent)
            }
            _ => format!("from {days}; a range needs {RANGE_DAYS_MIN}"),
        };
        lines.push(format!("forecast: {expected} at the end of the month ({range})"));
    }
    let reached = forecast.lines.iter().filter(|line| !line.reach_date.is_empty());
    for line in reached {
        let amount = money_text(line.amount.as_ref())?;
        let reached = if line.reached { "reached on" } else { "expected on" };
        lines.push(format!("{} {amount}: {reached} {}", line.name, line.reach_date));
    }
    Ok(lines)
}

/// Converts a forecast to JSON.
pub fn forecast_json(forecast: &CostForecast) -> serde_json::Value {
    json!({
        "expected_cost": forecast.expected_cost.as_ref().map(money_json),
        "low_cost": forecast.low_cost.as_ref().map(money_json),
        "high_cost": forecast.high_cost.as_ref().map(money_json),
        "range_percent": forecast.range_percent,
        "days_used": forecast.days_used,
        "lines": forecast.lines.iter().map(line_json).collect::<Vec<_>>(),
    })
}

fn line_json(line: &ForecastLine) -> serde_json::Value {
    json!({
        "kind": line.kind().as_str_name().trim_start_matches("FORECAST_LINE_KIND_"),
        "name": line.name,
        "amount": line.amount.as_ref().map(money_json),
        "reach_date": (!line.reach_date.is_empty()).then_some(&line.reach_date),
        "reached": line.reached,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ForecastLineKind, Money};

    fn money(amount: &str) -> Option<Money> {
        Some(Money { currency: "USD".into(), amount: amount.into() })
    }

    fn line(name: &str, amount: &str, reach_date: &str, reached: bool) -> ForecastLine {
        let kind = ForecastLineKind::AlertThreshold.into();
        ForecastLine { kind, name: name.into(), amount: money(amount), reach_date: reach_date.into(), reached }
    }

    #[test]
    fn a_forecast_has_its_range_and_the_days_on_which_amounts_are_reached() {
        let forecast = CostForecast {
            expected_cost: money("98.1234"),
            low_cost: money("90"),
            high_cost: money("106.5"),
            range_percent: 80,
            days_used: 30,
            lines: vec![
                line("monthly_warning", "50", "2026-11-12", true),
                line("monthly_critical", "95", "2026-11-29", false),
                line("limit", "1000", "", false),
            ],
        };
        let expected = [
            "forecast: 98.12 USD at the end of the month (80 % range 90.00 to 106.50 USD; from 30 days)",
            "monthly_warning 50.00 USD: reached on 2026-11-12",
            "monthly_critical 95.00 USD: expected on 2026-11-29",
        ];
        assert_eq!(forecast_lines(&forecast).unwrap(), expected);
        let json = forecast_json(&forecast);
        assert_eq!(json["low_cost"], json!({ "currency": "USD", "amount": "90" }));
        let lines = json["lines"].as_array().unwrap();
        assert_eq!((&lines[1]["kind"], &lines[1]["reach_date"]), (&json!("ALERT_THRESHOLD"), &json!("2026-11-29")));
        assert_eq!((&lines[2]["reach_date"], &lines[0]["reached"]), (&json!(null), &json!(true)));
    }

    #[test]
    fn few_days_have_no_range_and_no_day_has_no_forecast() {
        let forecast = CostForecast { expected_cost: money("9"), days_used: 1, ..Default::default() };
        let expected = ["forecast: 9.00 USD at the end of the month (from 1 day; a range needs 7)"];
        assert_eq!(forecast_lines(&forecast).unwrap(), expected);
        assert_eq!(forecast_json(&forecast)["high_cost"], json!(null));
        let first_day = CostForecast { days_used: 0, ..forecast };
        assert!(forecast_lines(&first_day).unwrap().is_empty());
    }
}
