use super::*;
use crate::proto::{Money, ServiceUsage, UsageTotals};

fn money(amount: &str) -> Option<Money> {
    Some(Money { currency: "USD".into(), amount: amount.into() })
}

fn totals(cost: &str, unpriced_event_count: i64) -> Option<UsageTotals> {
    Some(UsageTotals { request_count: 2, cost: money(cost), unpriced_event_count, ..Default::default() })
}

fn summary(client: &str, cost: &str, before: &str, change: Option<&str>, services: &[(&str, &str)]) -> MonthlySummary {
    let service = |(name, cost): &(&str, &str)| ServiceUsage {
        service: (*name).into(),
        totals: totals(cost, 0),
        ..Default::default()
    };
    MonthlySummary {
        client_id: client.into(),
        month: "2026-11".into(),
        totals: totals(cost, 0),
        last_month_cost: money(before),
        change_percent: change.map(str::to_owned),
        projected_cost: money(cost),
        services: services.iter().map(service).collect(),
        messages: "0".into(),
        voice_minutes: "0".into(),
        ..Default::default()
    }
}

fn overview(summaries: Vec<MonthlySummary>) -> Overview {
    let mut overview = Overview::default();
    summaries.into_iter().for_each(|summary| overview.add(summary).unwrap());
    overview
}

#[test]
fn each_client_is_a_line_with_its_cost_by_service_and_the_last_line_is_the_total() {
    let clients = vec![
        summary("globex", "116.3", "100", Some("16.3"), &[("stripe", "116.3")]),
        summary("acme", "3.5", "0", None, &[("openai", "3"), ("sms", "0.5")]),
    ];
    let lines = overview(clients).to_text().unwrap();
    assert_eq!(lines[0], "2026-11  2 clients: 119.80 USD so far, 119.80 USD projected");
    assert_eq!(lines[1], "last month 100.00 USD, +19.8 %");
    let expected = [
        "client    cost   change  projected  stripe  openai     sms",
        "globex  116.30  +16.3 %     116.30  116.30       -       -",
        "acme      3.50      new       3.50       -    3.00  0.5000",
        "total   119.80  +19.8 %     119.80  116.30    3.00  0.5000",
    ];
    assert_eq!(lines[4..], expected);
}

#[test]
fn further_services_are_summed_in_the_last_column_and_unpriced_usage_is_shown() {
    let services = [("a", "7"), ("b", "6"), ("c", "5"), ("d", "4"), ("e", "3"), ("f", "2"), ("g", "1")];
    let mut client = summary("acme", "28", "28", Some("0"), &services);
    client.totals = totals("28", 3);
    client.projected_cost = None;
    let lines = overview(vec![client]).to_text().unwrap();
    assert_eq!(lines[0], "2026-11  1 client: 28.00 USD");
    assert_eq!(lines[4], "client   cost  change     a     b     c     d     e  others  unpriced");
    assert_eq!(lines[5], "acme    28.00     0 %  7.00  6.00  5.00  4.00  3.00    3.00         3");
    assert!(lines[7].contains("meterd unpriced --month 2026-11"), "{lines:?}");
}

#[test]
fn the_csv_file_has_exact_amounts_and_a_column_for_each_service() {
    let clients = vec![
        summary("=acme", "3.000000000001", "4", Some("-25"), &[("openai", "3.000000000001")]),
        summary("beta", "0", "0", None, &[("sms", "0")]),
    ];
    let file = overview(clients).to_csv().unwrap();
    let lines: Vec<_> = file.split("\r\n").collect();
    assert_eq!(
        lines[0],
        "client_id,display_name,month,currency,cost,last_month_cost,change_percent,projected_cost,request_count,\
         unpriced_event_count,messages,ai_calls,voice_minutes,cost_openai,cost_sms"
    );
    assert_eq!(lines[1], "'=acme,,2026-11,USD,3.000000000001,4,-25,3.000000000001,2,0,0,0,0,3.000000000001,0");
    assert_eq!(lines[2], "beta,,2026-11,USD,0,0,,0,2,0,0,0,0,0,0");
}
