//! Limits: creating and changing them, and asking how much is left.

use crate::harness::*;
use meterd::proto::billing_service_client::BillingServiceClient;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use prost_types::FieldMask;
use std::collections::BTreeMap;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub const NOW: &str = "2026-11-21T12:00:00Z";

pub async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

pub fn billing(server: &TestServer) -> BillingServiceClient<Channel> {
    BillingServiceClient::new(server.channel())
}

/// A monthly soft limit of units of all usage of the client "acme".
pub fn limit(limit_id: &str, amount: &str) -> Limit {
    Limit {
        client_id: "acme".into(),
        limit_id: limit_id.into(),
        measure: LimitMeasure::Units.into(),
        period: LimitPeriod::Month.into(),
        amount: amount.into(),
        ..Default::default()
    }
}

pub fn daily(limit: Limit) -> Limit {
    Limit { period: LimitPeriod::Day.into(), ..limit }
}

pub fn measuring(measure: LimitMeasure, limit: Limit) -> Limit {
    Limit { measure: measure.into(), ..limit }
}

pub fn of_services(services: &[&str], limit: Limit) -> Limit {
    let services = services.iter().map(|service| (*service).into()).collect();
    Limit { filter: Some(LimitFilter { services, ..Default::default() }), ..limit }
}

pub fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

pub async fn try_create(server: &TestServer, limit: Limit, allow_below_used: bool) -> Result<Limit, Status> {
    let request = CreateLimitRequest { limit: Some(limit), allow_below_used, ..Default::default() };
    Ok(billing(server).create_limit(request).await?.into_inner().limit.unwrap())
}

pub async fn create(server: &TestServer, limit: Limit) -> Limit {
    try_create(server, limit, true).await.unwrap()
}

pub async fn try_change(
    server: &TestServer,
    limit: Limit,
    paths: &[&str],
    allow_below_used: bool,
) -> Result<Limit, Status> {
    let update_mask = Some(FieldMask { paths: paths.iter().map(|path| (*path).into()).collect() });
    let request = UpdateLimitRequest { limit: Some(limit), update_mask, allow_below_used };
    Ok(billing(server).update_limit(request).await?.into_inner().limit.unwrap())
}

pub async fn change(server: &TestServer, limit: Limit, paths: &[&str]) -> Limit {
    try_change(server, limit, paths, true).await.unwrap()
}

pub async fn check(server: &TestServer, client_id: &str) -> ClientLimits {
    let request = CheckLimitRequest { client_id: client_id.into(), ..Default::default() };
    billing(server).check_limit(request).await.unwrap().into_inner().status.unwrap()
}

/// Returns the status of one limit of "acme".
pub async fn status(server: &TestServer, limit_id: &str) -> LimitStatus {
    let limits = check(server, "acme").await.limits;
    limits.into_iter().find(|status| status.limit.as_ref().unwrap().limit_id == limit_id).unwrap()
}

pub async fn used(server: &TestServer, limit_id: &str) -> String {
    status(server, limit_id).await.used
}

/// Returns the stored counters of a limit of "acme": the first day of the period, and what is used.
pub async fn stored(server: &TestServer, limit_id: &str) -> Vec<(String, String)> {
    sqlx::query_as(
        "SELECT period_start::text, trim_scale(used)::text FROM limit_counters
         JOIN usage_limits USING (client_id, limit_id, revision) WHERE client_id = 'acme' AND limit_id = $1 ORDER BY 1",
    )
    .bind(limit_id)
    .fetch_all(&server.pool)
    .await
    .unwrap()
}

fn ids(status: &ClientLimits) -> Vec<&str> {
    status.limits.iter().map(|status| status.limit.as_ref().unwrap().limit_id.as_str()).collect()
}

#[tokio::test]
async fn a_limit_has_its_defaults_and_can_be_read_listed_and_deleted() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    server.create_client_in_zone("beta", "UTC").await;
    let created = create(&server, limit("", "10")).await;
    assert_eq!(created.limit_id.len(), 32);
    assert_eq!(created.alert_percents, [80, 90, 100]);
    assert!(!created.hard && created.create_time.is_some());
    create(&server, Limit { client_id: "beta".into(), ..limit("b", "1") }).await;
    create(&server, limit("a", "1.50")).await;
    let get = async |client_id: &str, limit_id: &str| {
        let request = GetLimitRequest { client_id: client_id.into(), limit_id: limit_id.into() };
        billing(&server).get_limit(request).await.map(|answer| answer.into_inner().limit.unwrap())
    };
    assert_eq!(get("acme", "a").await.unwrap().amount, "1.5");
    assert_error(get("beta", "a").await, Code::NotFound, "LIMIT_NOT_FOUND");
    assert_error(get("nobody", "a").await, Code::NotFound, "CLIENT_NOT_FOUND");
    let list = async |client_id: &str| {
        let (mut found, mut page_token) = (vec![], String::new());
        loop {
            let request = ListLimitsRequest { client_id: client_id.into(), page_size: 1, page_token };
            let page = billing(&server).list_limits(request).await.unwrap().into_inner();
            found.extend(page.limits.into_iter().map(|limit| limit.limit_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    let mut of_acme = vec![created.limit_id.clone(), "a".into()];
    of_acme.sort();
    assert_eq!(list("acme").await, of_acme);
    assert_eq!(list("").await, [of_acme, vec!["b".into()]].concat());
    let delete = async |limit_id: &str| {
        let request = DeleteLimitRequest { client_id: "acme".into(), limit_id: limit_id.into() };
        billing(&server).delete_limit(request).await
    };
    delete("a").await.unwrap();
    assert_eq!(list("acme").await, [created.limit_id]);
    assert_error(delete("a").await, Code::NotFound, "LIMIT_NOT_FOUND");
    assert_error(try_create(&server, limit("a", "1"), false).await, Code::AlreadyExists, "LIMIT_EXISTS");
    server.stop().await;
}

#[tokio::test]
async fn a_repeated_create_returns_the_first_limit_even_if_more_is_used_since() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let request = CreateLimitRequest { limit: Some(limit("", "10")), request_id: "r1".into(), ..Default::default() };
    let first = billing(&server).create_limit(request.clone()).await.unwrap().into_inner();
    server.track(event("acme", "sms", "11")).await.unwrap();
    assert_eq!(billing(&server).create_limit(request).await.unwrap().into_inner(), first);
    server.stop().await;
}

#[tokio::test]
async fn an_amount_below_what_is_used_is_refused_unless_it_is_allowed() {
    let server = november().await;
    server.track(event("acme", "sms", "5.25")).await.unwrap();
    let refused = assert_error(
        try_create(&server, limit("a", "5.2499"), false).await,
        Code::FailedPrecondition,
        "LIMIT_BELOW_USED",
    );
    assert!(refused.message().contains("5.25"), "{refused}");
    assert_eq!(stored(&server, "a").await, []);
    try_create(&server, limit("a", "5.25"), false).await.unwrap();
    let lower = try_change(&server, limit("a", "5"), &["amount"], false).await;
    assert_error(lower, Code::FailedPrecondition, "LIMIT_BELOW_USED");
    assert_eq!(status(&server, "a").await.remaining, "0");
    try_change(&server, limit("a", "5"), &["amount"], true).await.unwrap();
    let status = status(&server, "a").await;
    assert_eq!((&*status.used, &*status.remaining, status.state()), ("5.25", "0", LimitState::Red));
    // A filter that matches more is refused for the same reason.
    create(&server, of_services(&["voice"], limit("b", "1"))).await;
    let wider = try_change(&server, limit("b", "1"), &["filter"], false).await;
    assert_error(wider, Code::FailedPrecondition, "LIMIT_BELOW_USED");
    assert_eq!(used(&server, "b").await, "0");
    server.assert_exact(1).await;
    server.stop().await;
}

#[tokio::test]
async fn wrong_limits_are_refused_with_every_wrong_field() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    assert_invalid(
        try_create(&server, Limit::default(), false).await,
        "INVALID_FIELD",
        &["limit.client_id", "limit.amount", "limit.measure", "limit.period"],
    );
    assert_invalid(try_create(&server, limit("a", "-1"), false).await, "INVALID_FIELD", &["limit.amount"]);
    let wrong = Limit { measure: 5, period: 3, alert_percents: vec![80, 0, 1_001], ..limit("a", "1") };
    assert_invalid(
        try_create(&server, wrong, false).await,
        "INVALID_FIELD",
        &["limit.alert_percents[1]", "limit.alert_percents[2]", "limit.measure", "limit.period"],
    );
    let unknown = of_services(&["sms", "smss"], limit("a", "1"));
    assert_invalid(try_create(&server, unknown, false).await, "UNKNOWN_SERVICE", &["limit.filter.services[1]"]);
    let nobody = Limit { client_id: "nobody".into(), ..limit("a", "1") };
    assert_error(try_create(&server, nobody, false).await, Code::NotFound, "CLIENT_NOT_FOUND");
    create(&server, limit("a", "1")).await;
    for path in ["measure", "period", "limit_id", "filter.services"] {
        let refused = assert_invalid(
            try_change(&server, limit("a", "1"), &[path], false).await,
            "INVALID_FIELD",
            &["update_mask"],
        );
        assert!(refused.message().contains("display_name, filter, amount, hard and alert_percents"), "{refused}");
    }
    assert_invalid(try_change(&server, limit("a", "1"), &[], false).await, "INVALID_FIELD", &["update_mask"]);
    server.stop().await;
}

#[tokio::test]
async fn a_client_has_at_most_a_hundred_limits() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    for number in 0..100 {
        create(&server, limit(&format!("l{number}"), "1")).await;
    }
    let more = try_create(&server, limit("more", "1"), false).await;
    assert_error(more, Code::ResourceExhausted, "TOO_MANY_LIMITS");
    let request = DeleteLimitRequest { client_id: "acme".into(), limit_id: "l7".into() };
    billing(&server).delete_limit(request).await.unwrap();
    create(&server, limit("more", "1")).await;
    server.stop().await;
}

#[tokio::test]
async fn a_check_is_green_below_80_percent_yellow_from_there_and_red_at_the_amount() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, limit("soft", "10")).await;
    create(&server, Limit { hard: true, ..limit("hard", "20") }).await;
    let mut seen = vec![];
    for units in ["7.999999999999", "0.000000000001", "1.999999999999", "0.000000000001", "9", "1"] {
        server.track(event("acme", "sms", units)).await.unwrap();
        let status = check(&server, "acme").await;
        let of = |id: &str| status.limits.iter().find(|of| of.limit.as_ref().unwrap().limit_id == id).unwrap();
        seen.push((
            of("soft").state().as_str_name().replace("LIMIT_STATE_", ""),
            of("hard").state().as_str_name().replace("LIMIT_STATE_", ""),
            status.allowed,
            status.binding_limit_id.clone(),
            of("soft").remaining.clone(),
            of("hard").remaining.clone(),
        ));
        let worst = status.limits.iter().map(|status| status.state).max().unwrap();
        assert_eq!(status.state, worst);
    }
    let expected = [
        ("GREEN", "GREEN", true, "soft", "2.000000000001", "12.000000000001"),
        ("YELLOW", "GREEN", true, "soft", "2", "12"),
        ("YELLOW", "GREEN", true, "soft", "0.000000000001", "10.000000000001"),
        ("RED", "GREEN", true, "soft", "0", "10"),
        ("RED", "YELLOW", true, "soft", "0", "1"),
        ("RED", "RED", false, "soft", "0", "0"),
    ];
    let expected = expected.map(|(soft, hard, allowed, binds, soft_left, hard_left)| {
        (soft.to_owned(), hard.to_owned(), allowed, binds.to_owned(), soft_left.to_owned(), hard_left.to_owned())
    });
    assert_eq!(seen, expected);
    // Usage is recorded whatever the limits are.
    server.track(event("acme", "sms", "1")).await.unwrap();
    assert_eq!(used(&server, "hard").await, "21");
    server.stop().await;
}

#[tokio::test]
async fn reserved_amounts_count_for_the_state_and_the_rest() {
    let server = november().await;
    server.track(event("acme", "sms", "5")).await.unwrap();
    create(&server, Limit { hard: true, ..limit("a", "10") }).await;
    server.sql("UPDATE limit_counters SET reserved = 3").await;
    let of_a = status(&server, "a").await;
    assert_eq!((&*of_a.used, &*of_a.reserved, &*of_a.remaining), ("5", "3", "2"));
    assert_eq!(of_a.state(), LimitState::Yellow);
    server.sql("UPDATE limit_counters SET reserved = 5").await;
    assert!(!check(&server, "acme").await.allowed);
    // A change of the filter counts the usage again, and keeps what is reserved.
    change(&server, of_services(&["voice"], limit("a", "10")), &["filter"]).await;
    let of_a = status(&server, "a").await;
    assert_eq!((&*of_a.used, &*of_a.reserved), ("0", "5"));
    server.stop().await;
}

#[tokio::test]
async fn a_client_without_limits_is_green_and_allowed() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let status = check(&server, "acme").await;
    assert_eq!((status.state(), status.allowed, &*status.binding_limit_id), (LimitState::Green, true, ""));
    assert!(status.limits.is_empty());
    let request = CheckLimitRequest { client_id: "nobody".into(), ..Default::default() };
    assert_error(billing(&server).check_limit(request).await, Code::NotFound, "CLIENT_NOT_FOUND");
    server.stop().await;
}

#[tokio::test]
async fn a_check_of_an_event_shows_only_the_limits_that_may_count_it() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, limit("all", "10")).await;
    create(&server, of_services(&["sms", "voice"], limit("messages", "10"))).await;
    let of_user = LimitFilter { subjects: vec!["u1".into()], ..Default::default() };
    create(&server, Limit { filter: Some(of_user), ..limit("user", "10") }).await;
    let of_project = LimitFilter { labels: labels(&[("project", "apollo")]), ..Default::default() };
    create(&server, Limit { filter: Some(of_project), hard: true, ..limit("project", "0") }).await;
    let of_model =
        LimitFilter { operations: vec!["chat_completion".into()], models: vec!["gpt-4o".into()], ..Default::default() };
    create(&server, Limit { filter: Some(of_model), ..limit("model", "10") }).await;
    let ask = async |request: CheckLimitRequest| {
        let request = CheckLimitRequest { client_id: "acme".into(), ..request };
        billing(&server).check_limit(request).await.unwrap().into_inner().status.unwrap()
    };
    let any = CheckLimitRequest::default;
    let all = ask(any()).await;
    assert_eq!(ids(&all), ["all", "messages", "model", "project", "user"]);
    assert!(!all.allowed);
    let of = ask(CheckLimitRequest { service: "openai".into(), subject: "u2".into(), ..any() }).await;
    assert_eq!(ids(&of), ["all", "model", "project"]);
    let of = ask(CheckLimitRequest { service: "sms".into(), subject: "u1".into(), model: "x".into(), ..any() }).await;
    assert_eq!(ids(&of), ["all", "messages", "project", "user"]);
    let of = ask(CheckLimitRequest { labels: labels(&[("project", "gemini")]), ..any() }).await;
    assert_eq!(ids(&of), ["all", "messages", "model", "user"]);
    assert!(of.allowed, "the only hard limit does not count the event");
    server.stop().await;
}

#[tokio::test]
async fn a_batch_check_shows_every_client_with_limits_page_by_page() {
    let server = november().await;
    for number in 0..5 {
        let client_id = format!("c{number}");
        server.track(event(&client_id, "sms", &number.to_string())).await.unwrap();
        if number != 3 {
            create(&server, Limit { client_id, hard: true, ..limit("a", "4") }).await;
        }
    }
    let ask = async |client_ids: &[&str], page_size: i32| {
        let client_ids: Vec<String> = client_ids.iter().map(|id| (*id).into()).collect();
        let (mut found, mut page_token) = (vec![], String::new());
        loop {
            let request = BatchCheckLimitsRequest { client_ids: client_ids.clone(), page_size, page_token };
            let page = billing(&server).batch_check_limits(request).await.unwrap().into_inner();
            assert!(page_size == 0 || page.statuses.len() <= page_size as usize);
            found.extend(page.statuses);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    for page_size in [0, 1, 2, 100] {
        let found = ask(&[], page_size).await;
        let shown: Vec<_> = found.iter().map(|of| (&*of.client_id, &*of.limits[0].used, of.allowed)).collect();
        assert_eq!(shown, [("c0", "0", true), ("c1", "1", true), ("c2", "2", true), ("c4", "4", false)]);
        assert_eq!(found[2], check(&server, "c2").await);
    }
    let found = ask(&["c4", "c3", "c1", "nobody"], 0).await;
    assert_eq!(found.iter().map(|of| &*of.client_id).collect::<Vec<_>>(), ["c1", "c4"]);
    server.stop().await;
}

#[tokio::test]
async fn periods_are_those_of_the_clients_time_zone_also_when_clocks_change() {
    // On this Sunday, Berlin sets its clocks back at three o'clock.
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-10-24T22:30:00Z"))).await;
    for (client_id, zone) in
        [("ki", "Pacific/Kiritimati"), ("pp", "Pacific/Pago_Pago"), ("be", "Europe/Berlin"), ("utc", "UTC")]
    {
        server.create_client_in_zone(client_id, zone).await;
        create(&server, daily(Limit { client_id: client_id.into(), ..limit("day", "10") })).await;
        create(&server, Limit { client_id: client_id.into(), ..limit("month", "10") }).await;
        server.track(event(client_id, "sms", "1")).await.unwrap();
        // 23 hours earlier.
        server.track(event_at(client_id, "sms", "2", "2026-10-23T23:30:00Z")).await.unwrap();
    }
    let of = async |client_id: &str| {
        let limits = check(&server, client_id).await.limits;
        limits
            .into_iter()
            .map(|status| {
                let reset = status.reset_time.unwrap();
                let reset = chrono::DateTime::from_timestamp(reset.seconds, 0).unwrap();
                (status.period, status.used, reset.format("%F %H:%M").to_string())
            })
            .collect::<Vec<_>>()
    };
    let row = |period: &str, used: &str, reset: &str| (period.to_owned(), used.to_owned(), reset.to_owned());
    assert_eq!(of("ki").await, [row("2026-10-25", "1", "2026-10-25 10:00"), row("2026-10", "3", "2026-10-31 10:00")]);
    assert_eq!(of("pp").await, [row("2026-10-24", "1", "2026-10-25 11:00"), row("2026-10", "3", "2026-11-01 11:00")]);
    // The day has 25 hours.
    assert_eq!(of("be").await, [row("2026-10-25", "1", "2026-10-25 23:00"), row("2026-10", "3", "2026-10-31 23:00")]);
    assert_eq!(of("utc").await, [row("2026-10-24", "1", "2026-10-25 00:00"), row("2026-10", "3", "2026-11-01 00:00")]);
    assert_eq!(server.verify().await.differences, 0);
    server.stop().await;
}

#[tokio::test]
async fn the_next_period_begins_with_nothing_used() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    create(&server, daily(limit("day", "10"))).await;
    create(&server, limit("month", "10")).await;
    server.track(event("acme", "sms", "4")).await.unwrap();
    let later = TestServer::replica(&server.database_url, &[], Clock::fixed(time("2026-11-22T00:00:00Z"))).await;
    let periods = async |server: &TestServer| {
        let limits = check(server, "acme").await.limits;
        limits.into_iter().map(|status| (status.period, status.used)).collect::<Vec<_>>()
    };
    assert_eq!(periods(&server).await, [("2026-11-21".into(), "4".into()), ("2026-11".into(), "4".into())]);
    assert_eq!(periods(&later).await, [("2026-11-22".into(), "0".into()), ("2026-11".into(), "4".into())]);
    later.stop().await;
    server.stop().await;
}
