//! A short run of `meterd-bench reads`: verification accepts what is preloaded, every goal has its figure, and nothing is left.

mod harness;

#[test]
fn what_is_preloaded_is_as_live_events_would_have_made_it_and_every_read_of_it_is_measured() {
    let flags = ["--preload=20000", "--clients=50", "--days=3", "--bulk=2000", "--rounds=1", "--seconds=1"];
    let report = harness::report(&[&["reads"], &flags[..]].concat());
    assert_eq!(report["exact"], true);
    assert_eq!(report["verification"]["differences"], 0);
    assert!(report["verification"]["events"].as_u64().unwrap() > 22_000, "{}", report["verification"]);
    let goals = report["goals"].as_array().unwrap();
    let names: Vec<_> = goals.iter().map(|goal| goal["what"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "GetCurrentMonthUsage",
            "GetCurrentMonthUsage, large and small database",
            "GetUsageSummary of a month",
            "GetUsageSummary of a month, large and small database",
            "QueryUsage by day over a year",
            "ListMonthlySummaries, first page",
            "ExportUsage",
            "meterd import",
            "CurrentMonth while writing at half the top rate",
            "SummaryOfMonth while writing at half the top rate",
            "DaysOfYear while writing at half the top rate",
            "meterd verify, peak memory",
        ]
    );
    for goal in goals {
        assert!(goal["measured"]["median"].as_f64().is_some_and(|figure| figure > 0.0), "{goal}");
    }
    let reads = report["reads"].as_array().unwrap();
    assert!(reads.iter().all(|read| read["p50_us"].as_f64().is_some_and(|figure| figure > 0.0)), "{reads:?}");
}
