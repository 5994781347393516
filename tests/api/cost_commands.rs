//! Commands that show costs: summary, unpriced, prices and clients.

use crate::command_selections::fail;
use crate::commands::{meterd, succeed};
use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use serde_json::Value;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn rows(file: &str) -> Vec<std::collections::HashMap<String, String>> {
    csv::Reader::from_reader(file.as_bytes()).deserialize().collect::<Result<_, _>>().unwrap()
}

/// Starts a server with two clients that have usage in two months. The current day is November 21.
async fn server() -> TestServer {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
    let october = "2026-10-25T00:00:00Z";
    let events = vec![
        UsageEvent { amount: "4000".into(), ..event("globex", "stripe", "") },
        UsageEvent { amount: "2000".into(), ..event_at("globex", "stripe", "", october) },
        model_call("acme", 1_000_000, 1_000_000),
        event("acme", "twilio_sms", "10"),
        UsageEvent { model: "gpt-9".into(), ..model_call("acme", 900_000_000_000, 5) },
    ];
    server.batch(events, false).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_summary_of_a_month_shows_cost_by_service_change_and_projection_of_every_client() {
    let server = server().await;
    let table = succeed(&server, &["summary", "--month=2026-11", "--refresh"]).await;
    let expected = [
        "2026-11  2 clients: 117.13 USD so far, 167.33 USD projected",
        "last month 58.30 USD, +100.91 %",
        "client    cost     change  projected  stripe  openai  twilio_sms  unpriced",
        "globex  116.30   +99.49 %     166.14  116.30       -           -         0",
        "acme    0.8290        new       1.18       -  0.7500      0.0790         1",
        "total   117.13  +100.91 %     167.33  116.30  0.7500      0.0790         1",
        "1 events have no price and are not included in any cost: `meterd unpriced --month 2026-11` lists them",
    ];
    for line in expected {
        assert!(table.lines().any(|shown| shown == line), "no {line:?} in\n{table}");
    }
    let file = succeed(&server, &["summary", "--month=2026-11", "--csv"]).await;
    let file = rows(&file);
    assert_eq!((&*file[0]["client_id"], &*file[0]["cost"], &*file[0]["last_month_cost"]), ("globex", "116.3", "58.3"));
    assert_eq!((&*file[1]["cost"], &*file[1]["cost_openai"], &*file[1]["cost_twilio_sms"]), ("0.829", "0.75", "0.079"));
    assert_eq!((&*file[1]["unpriced_event_count"], &*file[1]["change_percent"]), ("1", ""));
    assert_eq!(&*file[1]["projected_cost"], "1.184285714286");
    let json = lines(&succeed(&server, &["summary", "--month=2026-11", "--json"]).await);
    assert_eq!(json[0]["projected_cost"]["amount"], "166.142857142857");
    // A month that is over has no projection.
    let early = fail(&server, &["summary", "--month=2026-10"]).await;
    assert!(early.contains("the summaries of 2026-10 do not exist yet"), "{early}");
    let october = succeed(&server, &["summary", "--month=2026-10", "--refresh"]).await;
    assert!(october.starts_with("2026-10  1 client: 58.30 USD\n") && !october.contains("projected"), "{october}");
    let one = succeed(&server, &["summary", "--month=2026-11", "--client=acme", "--json"]).await;
    assert_eq!(lines(&one)[0]["client_id"], "acme");
    let none = fail(&server, &["summary", "--month=2026-09"]).await;
    assert!(none.contains("no usage in 2026-09; there is usage in 2026-11, 2026-10"), "{none}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_summary_includes_the_clients_of_all_pages() {
    let server = TestServer::start().await;
    let events: Vec<_> = (0..1_203).map(|number| event(&format!("client-{number:04}"), "sms", "1")).collect();
    server.batch(events, false).await;
    let file = rows(&succeed(&server, &["summary", "--refresh", "--csv"]).await);
    let clients: std::collections::BTreeSet<_> = file.iter().map(|row| &row["client_id"]).collect();
    assert_eq!((file.len(), clients.len()), (1_203, 1_203));
    server.stop().await;
}

#[tokio::test]
async fn a_listed_projection_is_for_the_clients_current_month() {
    let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-30T12:00:00Z"))).await;
    server.create_client_in_zone("east", "Pacific/Kiritimati").await;
    server.create_client_in_zone("west", "Pacific/Pago_Pago").await;
    let november = "2026-11-02T00:00:00Z";
    let fee = event_at("west", "twilio_phone_number", "1", november);
    server
        .batch(vec![event_at("east", "sms", "1", november), event_at("west", "sms", "1", november), fee], false)
        .await;
    server.usage().update_monthly_summaries(UpdateMonthlySummariesRequest::default()).await.unwrap();
    let request = ListMonthlySummariesRequest { month: "2026-11".into(), ..Default::default() };
    let summaries = server.usage().list_monthly_summaries(request).await.unwrap().into_inner().summaries;
    let of = |client: &str| summaries.iter().find(|summary| summary.client_id == client).unwrap();
    // In this time zone it is already December.
    assert_eq!(of("east").projected_cost, None);
    assert_eq!(of("west").projected_cost, server.month("west").await.projected_cost);
    assert!(of("west").projected_cost.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_names_models_without_a_price_and_unpriced_says_how_to_set_one() {
    let server = TestServer::start().await;
    let unknown = UsageEvent { model: "gpt-9".into(), ..model_call("acme", 900_000_000_000, 5) };
    for _ in 0..3 {
        server.track(unknown.clone()).await.unwrap();
    }
    server.track(event("beta", "social", "2")).await.unwrap();
    server.track(event("beta", "stripe", "1")).await.unwrap();
    let shown = succeed(&server, &["usage", "acme"]).await;
    assert!(shown.contains("3 events have no price yet"), "{shown}");
    assert!(shown.contains("openai gpt-9 (chat_completion): 3 events"), "{shown}");
    let json: Value = serde_json::from_str(&succeed(&server, &["usage", "acme", "--json"]).await).unwrap();
    assert_eq!(
        (&json["unpriced"][0]["model"], &json["unpriced"][0]["unpriced_event_count"]),
        (&"gpt-9".into(), &3.into())
    );

    let listed = succeed(&server, &["unpriced"]).await;
    let line =
        |of: &str| listed.lines().find(|line| line.contains(of)).unwrap_or_else(|| panic!("no {of} in {listed}"));
    assert!(line("acme").ends_with("NO_PRICE") && line("acme").contains("gpt-9"), "{listed}");
    assert!(line("beta    stripe").ends_with("AMOUNT_MISSING"), "{listed}");
    let remedy = "meterd prices set openai --model gpt-9 --input-per-million RATE --output-per-million RATE";
    assert!(listed.contains(remedy) && listed.contains("meterd prices set social --unit RATE"), "{listed}");
    let file = rows(&succeed(&server, &["unpriced", "--client=acme", "--csv"]).await);
    assert_eq!((file.len(), &*file[0]["model"], &*file[0]["unpriced_event_count"]), (1, "gpt-9", "3"));

    // Run the suggested command.
    let create = remedy.trim_start_matches("meterd ").replace("RATE", "2.50");
    succeed(&server, &create.split(' ').collect::<Vec<_>>()).await;
    wait_until(async || !succeed(&server, &["usage", "acme"]).await.contains("no price")).await;
    assert_eq!(server.month("acme").await.totals.unwrap().cost.unwrap().amount, "6750000.0000375");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prices_are_listed_with_their_history_set_and_retired() {
    let server = TestServer::start().await;
    let listed = succeed(&server, &["prices", "list", "openai", "--model=GPT-4o-mini"]).await;
    assert!(listed.contains("gpt-4o-mini") && listed.contains("0.15") && !listed.contains("gpt-3.5"), "{listed}");
    let create =
        ["prices", "set", "openai", "--model=gpt-4o-mini", "--input-per-million=0.20", "--output-token=0.8/1M"];
    let created = succeed(&server, &[&create[..], &["--from=2026-01-01T00:00:00Z", "--json"]].concat()).await;
    assert_eq!(lines(&created)[0]["rates"]["input_token"], "0.0000002");
    let later = succeed(&server, &[&create[..], &["--from=2999-01-01T00:00:00Z", "--json"]].concat()).await;
    assert_eq!(lines(&later)[0]["state"], "future");
    let again = fail(&server, &[&create[..], &["--from=2026-01-01T00:00:00Z"]].concat()).await;
    assert!(again.contains("PRICE_EXISTS") && again.matches("exists").count() == 1, "{again}");

    let history = lines(&succeed(&server, &["prices", "history", "openai", "--model=gpt-4o-mini", "--json"]).await);
    let states: Vec<_> = history.iter().map(|price| price["state"].as_str().unwrap()).collect();
    // The last two are for the service tiers batch and priority.
    assert_eq!(states, ["replaced", "in force", "future", "in force", "in force"]);
    let file = rows(&succeed(&server, &["prices", "list", "openai", "--model=gpt-4o-mini", "--csv"]).await);
    let of_any_tier = |row: &&std::collections::HashMap<String, String>| {
        row["model"] == "gpt-4o-mini" && row["service_tier"].is_empty()
    };
    let in_force: Vec<_> = file.iter().filter(of_any_tier).collect();
    assert_eq!((in_force.len(), &*in_force[0]["input_token"]), (1, "0.0000002"));
    let all = rows(&succeed(&server, &["prices", "list", "openai", "--model=gpt-4o-mini", "--all", "--csv"]).await);
    assert_eq!(all.iter().filter(of_any_tier).count(), 3);
    let price_id = lines(&later)[0]["price_id"].as_str().unwrap().to_owned();
    let retired = lines(&succeed(&server, &["prices", "retire", &price_id, "--json"]).await);
    assert_eq!(retired[0]["state"], "withdrawn");
    let price_id = lines(&created)[0]["price_id"].as_str().unwrap().to_owned();
    let ended = succeed(&server, &["prices", "retire", &price_id, "--at=2026-02-01T00:00:00Z"]).await;
    assert!(ended.contains("until") && ended.contains("2026-02-01T00:00:00Z") && ended.contains("ended"), "{ended}");

    for (words, expected_text) in [
        (&["list", "opnai"][..], "service \"opnai\" does not exist; did you mean openai?"),
        (&["list", "openai", "--model=gtp-4o"], "no price matches; did you mean gpt-4o"),
        (&["history", "openai", "--model=gtp-4o-mini"], "did you mean gpt-4o-mini"),
        (&["set", "openai", "--model=x"], "no rate is set"),
        (&["create", "opnai", "--unit=1"], "did you mean openai"),
        (&["set", "openai", "--model=x", "--input-token=2.5"], "--confirm-high-rates"),
        (&["retire", "999999"], "no price \"999999\""),
    ] {
        let printed = fail(&server, &[&["prices"], words].concat()).await;
        assert!(printed.contains(expected_text), "{words:?}: {printed}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_listed_shown_created_and_changed() {
    let server = TestServer::start().await;
    assert!(succeed(&server, &["clients", "list"]).await.starts_with("no clients yet"));
    succeed(&server, &["clients", "create", "acme", "--name=Acme, Inc.", "--time-zone=Europe/Berlin"]).await;
    succeed(&server, &["clients", "create", "=beta"]).await;
    let shown = succeed(&server, &["clients", "show", "acme", "--json"]).await;
    assert_eq!(lines(&shown)[0]["time_zone"], "Europe/Berlin");
    let changed = succeed(&server, &["clients", "update", "acme", "--time-zone=Asia/Tokyo"]).await;
    assert!(
        changed.contains("Asia/Tokyo") && changed.contains("Acme, Inc.") && changed.contains("--rezone"),
        "{changed}"
    );
    let table = succeed(&server, &["clients"]).await;
    assert!(table.lines().any(|line| line.starts_with("acme    Acme, Inc.  Asia/Tokyo")), "{table}");
    let file = rows(&succeed(&server, &["clients", "list", "--csv"]).await);
    assert_eq!((&*file[0]["client_id"], &*file[1]["display_name"]), ("'=beta", "Acme, Inc."));
    let more = meterd(&server, &["clients", "list", "--limit=1"]).await;
    assert!(String::from_utf8_lossy(&more.stderr).contains("only the first 1 clients are shown: increase --limit"));
    for (words, expected_text) in [
        (&["create", "acme"][..], "CLIENT_EXISTS: client \"acme\" exists"),
        (&["update", "acme"], "nothing to change: add --name, --time-zone or both"),
    ] {
        let printed = fail(&server, &[&["clients"], words].concat()).await;
        assert!(printed.contains(expected_text), "{words:?}: {printed}");
    }
    server.stop().await;
}
