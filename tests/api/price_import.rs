//! Importing lists of prices, and the public file of model prices. `tests/data/model_prices.json` has 255 of its models, with
//! their costs as in the file of November 2026. With the environment variable METERD_MODEL_PRICES, the tests use another file.

use crate::commands::{meterd, succeed};
use crate::harness::*;
use bigdecimal::BigDecimal;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

const NOW: &str = "2026-11-21T12:00:00Z";

pub fn model_file() -> String {
    let path = std::env::var("METERD_MODEL_PRICES").map(PathBuf::from);
    let path = path.unwrap_or_else(|_| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/model_prices.json"));
    path.to_str().unwrap().to_owned()
}

/// Imports all providers of the file and returns the result of each price.
async fn import_all(server: &TestServer, more: &[&str]) -> Vec<Value> {
    import_file(server, &model_file(), &[&["--all-providers", "--create-services"], more].concat()).await
}

/// Imports a file and returns the result of each price.
pub async fn import_file(server: &TestServer, file: &str, more: &[&str]) -> Vec<Value> {
    let printed = succeed(server, &[&["prices", "import", file, "--json"], more].concat()).await;
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn count(results: &[Value], outcome: &str) -> usize {
    results.iter().filter(|result| result["outcome"] == outcome).count()
}

async fn november() -> TestServer {
    TestServer::start_with(&[], Clock::fixed(time(NOW))).await
}

fn unit_prices(rates: &[(&str, &str)]) -> Vec<Price> {
    rates.iter().map(|(model, rate)| unit_price("sms", model, rate)).collect()
}

async fn import(server: &TestServer, request: ImportPricesRequest) -> Vec<(ImportOutcome, String, String)> {
    let results = server.catalog().import_prices(request).await.unwrap().into_inner().results;
    let result = |result: ImportedPrice| {
        let reason = result.error.clone().map_or(result.replaced_price_id.clone(), |error| error.reason);
        (result.outcome(), result.price_id, reason)
    };
    results.into_iter().map(result).collect()
}

#[tokio::test]
async fn only_what_has_changed_creates_prices_and_the_operators_prices_stay() {
    use ImportOutcome::{Changed, Created, Kept, Rejected, Unchanged};
    let server = november().await;
    let list = |rates: &[(&str, &str)], source: &str| ImportPricesRequest {
        prices: unit_prices(rates),
        source: source.into(),
        ..Default::default()
    };
    let own = CreatePriceRequest { price: Some(unit_price("sms", "own", "7")), ..Default::default() };
    let own = server.catalog().create_price(own).await.unwrap().into_inner().price.unwrap().price_id;
    let waiting = UsageEvent { model: "a".into(), service: "social".into(), ..event("acme", "social", "2") };
    server.track(waiting).await.unwrap();
    let mut first = list(&[("own", "8"), ("a", "1"), ("b", "2")], "list");
    first.prices[1].service = "social".into();
    let checked = import(&server, ImportPricesRequest { validate_only: true, ..first.clone() }).await;
    assert_eq!(
        checked,
        [(Kept, own.clone(), "".into()), (Created, "".into(), "".into()), (Created, "".into(), "".into())]
    );
    let created = import(&server, first.clone()).await;
    let outcomes: Vec<_> = created.iter().map(|(outcome, ..)| *outcome).collect();
    assert_eq!(outcomes, [Kept, Created, Created]);
    // A new price is for events of any time, so it also prices the event that waited.
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 0).await;
    assert_eq!(amount(&server.month("acme").await.totals.unwrap().cost), "2");
    let (of_a, of_b) = (&created[1].1, &created[2].1);

    let again = import(&server, first).await;
    assert_eq!(again[1..], [(Unchanged, of_a.clone(), "".into()), (Unchanged, of_b.clone(), "".into())]);
    let from = |day: &str| Some(timestamp(&format!("2026-{day}T00:00:00Z")));
    let newer = ImportPricesRequest { effective_time: from("12-01"), ..list(&[("b", "3"), ("c", "4")], "list") };
    let changed = import(&server, newer.clone()).await;
    assert_eq!((changed[0].0, &changed[0].2, changed[1].0), (Changed, of_b, Created));
    assert_eq!(import(&server, newer).await[0], (Unchanged, changed[0].1.clone(), "".into()));
    let of_day = async |day: &str| {
        let request = EstimateCostRequest {
            service: "sms".into(),
            model: "b".into(),
            event_time: from(day),
            ..Default::default()
        };
        amount(&server.catalog().estimate_cost(request).await.unwrap().into_inner().charge).to_owned()
    };
    assert_eq!([of_day("11-30").await, of_day("12-01").await], ["2", "3"]);

    // The last price of b begins later.
    let late = import(&server, list(&[("b", "5"), ("b", "6")], "list")).await;
    assert_eq!(late[0], (Rejected, "".into(), "PRICE_EXISTS".into()));
    assert_eq!(late[1].2, "INVALID_FIELD", "the list has the same price twice");
    let replaced = ImportPricesRequest { replace_others: true, ..list(&[("own", "8")], "list") };
    assert_eq!(import(&server, replaced).await[0].2, own);
    // The operator's price is no longer in force.
    let newer = ImportPricesRequest { effective_time: from("12-02"), ..list(&[("own", "9")], "list") };
    assert_eq!(import(&server, newer).await[0].0, Changed);
    let high = Rates { input_token: Some("2.5".into()), ..Default::default() };
    let mut high = ImportPricesRequest {
        prices: vec![Price { rates: Some(high), ..unit_price("sms", "d", "1") }],
        source: "list".into(),
        ..Default::default()
    };
    assert_eq!(import(&server, high.clone()).await[0].2, "RATE_NOT_CONFIRMED");
    high.confirm_high_rates = true;
    assert_eq!(import(&server, high).await[0].0, Created);
    server.assert_exact(1).await;
    server.stop().await;
}

/// A tier or a bound that a list adds to a model with prices: usage that was recorded before keeps its price.
#[tokio::test]
async fn a_price_for_a_new_tier_of_a_model_begins_at_the_effective_time_unless_the_model_is_new() {
    use ImportOutcome::{Created, Kept, Unchanged};
    let server = november().await;
    let own = CreatePriceRequest { price: Some(unit_price("sms", "own", "7")), ..Default::default() };
    let own = server.catalog().create_price(own).await.unwrap().into_inner().price.unwrap().price_id;
    let of_tier = |model: &str, rate: &str| Price { service_tier: "batch".into(), ..unit_price("sms", model, rate) };
    let request = |prices: Vec<Price>| ImportPricesRequest { prices, source: "list".into(), ..Default::default() };
    // The prices of 60 models, each with a tier: all of a model are in one transaction, although the list has them apart.
    let names: Vec<String> = (0..60).map(|number| format!("m{number}")).collect();
    let mut prices: Vec<Price> = names.iter().map(|name| unit_price("sms", name, "2")).collect();
    prices.push(unit_price("sms", "plain", "2"));
    prices.extend(names.iter().map(|name| of_tier(name, "1")));
    let created = import(&server, request(prices)).await;
    assert!(created.len() == 121 && created.iter().all(|(outcome, ..)| *outcome == Created), "{created:?}");
    let charge = async |model: &str, day: &str| {
        let request = EstimateCostRequest {
            service: "sms".into(),
            model: model.into(),
            service_tier: "batch".into(),
            event_time: Some(timestamp(&format!("2026-11-{day}T00:00:00Z"))),
            ..Default::default()
        };
        amount(&server.catalog().estimate_cost(request).await.unwrap().into_inner().charge).to_owned()
    };
    for name in &names {
        assert_eq!(charge(name, "01").await, "1", "{name} has all prices from the beginning of time");
    }
    let later =
        import(&server, request(vec![unit_price("sms", "plain", "2"), of_tier("plain", "1"), of_tier("own", "1")]));
    let later = later.await;
    assert_eq!([later[0].0, later[1].0], [Unchanged, Created]);
    assert_eq!([charge("plain", "21").await, charge("plain", "22").await], ["2", "1"]);
    assert_eq!(later[2], (Kept, own, String::new()), "the operator's price is for all tiers");
    assert_eq!(charge("own", "22").await, "7");
    let replaced = ImportPricesRequest { replace_others: true, ..request(vec![of_tier("own", "1")]) };
    assert_eq!(import(&server, replaced).await[0].0, Created);
    assert_eq!([charge("own", "21").await, charge("own", "22").await], ["7", "1"]);
    // The next list has no price for the tier, which stays.
    let without = request(vec![unit_price("sms", "plain", "2"), unit_price("sms", "m7", "2")]);
    let answer = server.catalog().import_prices(without).await.unwrap().into_inner();
    let of_tier: Vec<&str> = [&later[1].1, &created[68].1].into_iter().map(String::as_str).collect();
    let mut missing: Vec<&str> = answer.missing_price_ids.iter().map(String::as_str).collect();
    missing.sort_by_key(|id| *id != of_tier[0]);
    assert_eq!(missing, of_tier);
    server.stop().await;
}

#[tokio::test]
async fn the_file_of_model_prices_is_imported_once_and_a_newer_one_changes_only_what_differs() {
    let server = november().await;
    let dry = import_all(&server, &["--dry-run"]).await;
    let prices = "SELECT count(*) FROM prices WHERE source <> ''";
    let stored = async || sqlx::query_scalar::<_, i64>(prices).fetch_one(&server.pool).await.unwrap();
    assert_eq!(stored().await, 0, "a dry run must create nothing");
    let first = import_all(&server, &[]).await;
    println!(
        "{} prices of the file: {} created, {} changed, {} unchanged, {} rejected",
        first.len(),
        count(&first, "created"),
        count(&first, "changed"),
        count(&first, "unchanged"),
        count(&first, "rejected")
    );
    let outcomes = |results: &[Value]| results.iter().map(|result| result["outcome"].clone()).collect::<Vec<_>>();
    // A service that does not exist cannot be checked in a dry run.
    let unknown = |result: &Value| result["error"]["reason"] == "UNKNOWN_SERVICE";
    let comparable = dry.iter().zip(&first).filter(|(dry, _)| !unknown(dry));
    assert!(comparable.clone().count() > 50);
    comparable.for_each(|(dry, first)| assert_eq!(dry["outcome"], first["outcome"], "{dry}"));
    assert_eq!(count(&first, "rejected") + count(&first, "kept"), 0, "{first:?}");
    assert_eq!(stored().await as usize, count(&first, "created") + count(&first, "changed"));
    let second = import_all(&server, &[]).await;
    assert_eq!(count(&second, "unchanged"), first.len(), "{:?}", outcomes(&second));

    let text = std::fs::read_to_string(model_file()).unwrap();
    let mut models: Value = serde_json::from_str(&text).unwrap();
    models["gpt-4o"]["input_cost_per_token"] = json!(3e-6);
    models["gpt-4o"].as_object_mut().unwrap().retain(|member, _| !member.ends_with("_flex"));
    models["o3"].as_object_mut().unwrap().retain(|member, _| !member.ends_with("_flex"));
    models["gpt-new"] = json!({"litellm_provider": "openai", "input_cost_per_token": 1e-6});
    let dir = tempfile::tempdir().unwrap();
    let newer = dir.path().join("model_prices.json");
    std::fs::write(&newer, models.to_string()).unwrap();
    let newer = newer.to_str().unwrap();
    let arguments = ["prices", "import", newer, "--provider", "openai", "--from", "2026-12-01T00:00:00Z"];
    let printed = succeed(&server, &[&arguments[..], &["--dry-run"]].concat()).await;
    assert!(printed.contains("dry run: nothing is changed"), "{printed}");
    assert!(printed.contains("openai gpt-4o: input_token 2.5/1M to 3/1M"), "{printed}");
    let printed = succeed(&server, &arguments).await;
    assert!(printed.contains("created      1") && printed.contains("gpt-4o: price "), "{printed}");
    assert!(
        printed.contains("no longer in the list, and stay in force") && printed.contains("prices retire"),
        "{printed}"
    );
    let history = succeed(&server, &["prices", "history", "openai", "--model", "gpt-4o"]).await;
    assert!(history.contains("2026-12-01") && history.contains("batch"), "{history}");
    server.stop().await;
}

/// A usage, and the costs of the file that it is charged, with their factors.
type Usage = (&'static str, UsageEvent, &'static [(&'static str, i64)]);

fn usage(tokens: [i64; 3], measures: &[(&str, i64)]) -> UsageEvent {
    let [input_tokens, output_tokens, cached_input_tokens] = tokens;
    let measures = measures.iter().map(|(name, count)| ((*name).to_owned(), count.to_string())).collect();
    UsageEvent { input_tokens, output_tokens, cached_input_tokens, measures, ..Default::default() }
}

fn tier(service_tier: &str, event: UsageEvent) -> UsageEvent {
    UsageEvent { service_tier: service_tier.into(), ..event }
}

/// Text, cached tokens, cache writes, audio, images, many input tokens, service tiers, pages, queries, seconds, characters. The
/// expected charge is the sum of the file's own numbers times the counts, computed with another type of number.
#[tokio::test]
async fn usage_of_many_kinds_is_charged_by_the_numbers_of_the_file() {
    const IN: &str = "input_cost_per_token";
    const OUT: &str = "output_cost_per_token";
    const CACHED: &str = "cache_read_input_token_cost";
    let cases: Vec<Usage> = vec![
        ("gpt-4o", usage([1_000, 200, 0], &[]), &[(IN, 1_000), (OUT, 200)]),
        ("gpt-4o", usage([2_006, 300, 1_920], &[]), &[(IN, 86), (CACHED, 1_920), (OUT, 300)]),
        (
            "gpt-4o",
            tier("batch", usage([1_000, 200, 0], &[])),
            &[("input_cost_per_token_batches", 1_000), ("output_cost_per_token_batches", 200)],
        ),
        (
            "gpt-4o",
            tier("priority", usage([1_000, 200, 400], &[])),
            &[
                ("input_cost_per_token_priority", 600),
                ("cache_read_input_token_cost_priority", 400),
                ("output_cost_per_token_priority", 200),
            ],
        ),
        ("gpt-4o", tier("default", usage([7, 3, 0], &[])), &[(IN, 7), (OUT, 3)]),
        ("gpt-4o-mini", usage([374, 44, 0], &[]), &[(IN, 374), (OUT, 44)]),
        ("gpt-5", usage([999, 1_001, 0], &[("reasoning_output_tokens", 640)]), &[(IN, 999), (OUT, 1_001)]),
        ("o3", usage([1, 1, 1], &[]), &[(CACHED, 1), (OUT, 1)]),
        (
            "claude-sonnet-4-5",
            usage([12_857, 500, 550], &[("cache_write_5m_input_tokens", 12_304)]),
            &[(IN, 3), (CACHED, 550), ("cache_creation_input_token_cost", 12_304), (OUT, 500)],
        ),
        (
            "claude-haiku-4-5",
            usage([12_857, 500, 550], &[("cache_write_1h_input_tokens", 12_304)]),
            &[(IN, 3), (CACHED, 550), ("cache_creation_input_token_cost_above_1hr", 12_304), (OUT, 500)],
        ),
        ("gemini/gemini-2.5-pro", usage([200_000, 1_000, 0], &[]), &[(IN, 200_000), (OUT, 1_000)]),
        (
            "gemini/gemini-2.5-pro",
            usage([200_001, 1_000, 1], &[]),
            &[
                ("input_cost_per_token_above_200k_tokens", 200_000),
                ("cache_read_input_token_cost_above_200k_tokens", 1),
                ("output_cost_per_token_above_200k_tokens", 1_000),
            ],
        ),
        (
            "gemini/gemini-2.5-pro",
            tier("batch", usage([1_000, 10, 0], &[])),
            &[("input_cost_per_token_batches", 1_000), ("output_cost_per_token_batches", 10)],
        ),
        (
            "gemini/gemini-live-2.5-flash-preview-native-audio-09-2025",
            usage([1_000, 100, 0], &[("audio_input_tokens", 900), ("audio_output_tokens", 90)]),
            &[(IN, 100), ("input_cost_per_audio_token", 900), (OUT, 10), ("output_cost_per_audio_token", 90)],
        ),
        (
            "gemini/gemini-3-pro-image-preview",
            usage([100, 1_300, 0], &[("image_output_tokens", 1_290)]),
            &[(IN, 100), (OUT, 10), ("output_cost_per_image_token", 1_290)],
        ),
        ("azure_ai/mistral-document-ai-2512", usage([0, 0, 0], &[("ocr_pages", 12)]), &[("ocr_cost_per_page", 12)]),
        ("rerank-english-v3.0", usage([0, 0, 0], &[("queries", 5)]), &[("input_cost_per_query", 5)]),
        ("assemblyai/best", usage([0, 0, 0], &[("input_seconds", 61)]), &[("input_cost_per_second", 61)]),
        ("tts-1", usage([0, 0, 0], &[("input_characters", 4_000)]), &[("input_cost_per_character", 4_000)]),
        ("deepgram/aura", usage([0, 0, 0], &[("input_characters", 17)]), &[("input_cost_per_character", 17)]),
        (
            "dashscope/qwen-flash",
            usage([256_000, 5, 0], &[]),
            &[("0 input_cost_per_token", 256_000), ("0 output_cost_per_token", 5)],
        ),
        (
            "dashscope/qwen-flash",
            usage([256_001, 5, 0], &[]),
            &[("1 input_cost_per_token", 256_001), ("1 output_cost_per_token", 5)],
        ),
    ];
    let server = november().await;
    let imported = import_all(&server, &[]).await;
    let names: BTreeMap<&str, (&str, &str)> = imported
        .iter()
        .map(|price| {
            (price["name"].as_str().unwrap(), (price["service"].as_str().unwrap(), price["model"].as_str().unwrap()))
        })
        .collect();
    let text = std::fs::read_to_string(model_file()).unwrap();
    let models: Value = serde_json::from_str(&text).unwrap();
    for (name, event, costs) in &cases {
        let (service, model) = names.get(name).unwrap_or_else(|| panic!("{name} is not in the file"));
        let model_of_file = &models[*name];
        let cost_of = |member: &str| -> BigDecimal {
            // The number of a range, or none.
            let json = match member.split_once(' ') {
                Some((range, member)) => &model_of_file["tiered_pricing"][range.parse::<usize>().unwrap()][member],
                None => &model_of_file[member],
            };
            BigDecimal::from_str(&json.to_string()).unwrap_or_else(|_| panic!("{name} has no {member}"))
        };
        let expected: BigDecimal = costs.iter().map(|(member, count)| cost_of(member) * BigDecimal::from(*count)).sum();
        let event = UsageEvent {
            client_id: "acme".into(),
            service: (*service).into(),
            model: (*model).into(),
            ..event.clone()
        };
        let result = server.track(event).await.unwrap();
        let charge = result.charge.unwrap_or_else(|| panic!("{name}: {:?}", result.unpriced_reason));
        let expected = expected.with_scale_round(12, bigdecimal::RoundingMode::HalfEven).normalized();
        assert_eq!(BigDecimal::from_str(&charge.amount).unwrap(), expected, "{name} {costs:?}");
        assert!(expected > 0, "{name}");
    }
    println!("{} usages are charged by the numbers of the file", cases.len());
    server.assert_exact(cases.len() as i64).await;
    server.stop().await;
}

/// Each model with rates per token under its own name and four other spellings. Its own price is right, no price is allowed, and
/// any other price is wrong.
#[tokio::test]
async fn other_spellings_of_models_of_the_file_have_their_price_or_none() {
    let server = november().await;
    let imported = import_all(&server, &[]).await;
    let has_token_rates = |price: &&Value| {
        let rates = &price["rates"];
        price["service_tier"] == ""
            && price["above_input_tokens"].is_null()
            && rates["input_token"].is_string()
            && rates["output_token"].is_string()
    };
    let models: Vec<(String, String)> = imported
        .iter()
        .filter(has_token_rates)
        .map(|price| (price["service"].as_str().unwrap().to_owned(), price["model"].as_str().unwrap().to_owned()))
        .collect();
    let all: BTreeSet<(&str, &str)> =
        imported.iter().map(|price| (price["service"].as_str().unwrap(), price["model"].as_str().unwrap())).collect();
    let (right, wrong) = wrong_spellings(&server, &models, &all).await;
    assert!(models.len() >= 200, "only {} models", models.len());
    assert!(right > 2 * models.len(), "only {right} right");
    assert_eq!(wrong, Vec::<String>::new());
    server.stop().await;
}

/// Returns the charge of a million input tokens and 70,000 output tokens, more or less.
pub async fn charge_of(server: &TestServer, service: &str, model: &str) -> Option<String> {
    let request = EstimateCostRequest {
        service: service.into(),
        model: model.into(),
        input_tokens: 1_000_003,
        output_tokens: 70_001,
        ..Default::default()
    };
    let estimate = server.catalog().estimate_cost(request).await.unwrap().into_inner();
    estimate.charge.map(|charge| charge.amount)
}

/// Estimates the charge of each model under its own name and four other spellings, except those that are models of `all`. Returns
/// the number of charges that are those of the model, and all others.
pub async fn wrong_spellings(
    server: &TestServer,
    models: &[(String, String)],
    all: &BTreeSet<(&str, &str)>,
) -> (usize, Vec<String>) {
    let spellings: [fn(&str, &str) -> String; 4] = [
        |_, model| model.to_uppercase(),
        |service, model| format!("{service}/{model}"),
        |_, model| format!("{model}-2099-01-01"),
        |_, model| format!("{model}-latest"),
    ];
    let (mut right, mut unpriced, mut wrong) = (0, 0, vec![]);
    for (service, model) in models {
        let own = charge_of(server, service, model).await;
        assert!(own.is_some(), "{service} {model} has no price under its own name");
        right += 1;
        for spelling in spellings {
            let name = spelling(service, model);
            // The spelling is a model of its own.
            if all.contains(&(service.as_str(), name.as_str())) {
                continue;
            }
            match charge_of(server, service, &name).await {
                None => unpriced += 1,
                charge if charge == own => right += 1,
                charge => wrong.push(format!("{service} {name}: {charge:?} instead of {own:?}")),
            }
        }
    }
    println!("{} models under five names: {right} right, {unpriced} unpriced, {} wrong", models.len(), wrong.len());
    (right, wrong)
}

#[tokio::test]
async fn wrong_files_and_flags_are_explained() {
    let server = november().await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let list = write("list.json", "[1]");
    let zeros = write("zeros.json", r#"{"m": {"litellm_provider": "openai", "input_cost_per_token": 0.0}}"#);
    let file = model_file();
    for (arguments, text) in [
        (vec!["prices", "import", "nowhere.json"], "cannot read nowhere.json"),
        (vec!["prices", "import", &list], "is no file of model prices"),
        (vec!["prices", "import", &zeros], "all of its rates are zero"),
        (vec!["prices", "import", &file, "--provider", "opnai"], "service \"opnai\" does not exist"),
        (
            vec!["prices", "import", &file, "--provider", "opnai=openai"],
            "the file has no provider \"opnai\"; did you mean",
        ),
        (vec!["prices", "import", &file, "--provider", "=x"], "PROVIDER=SERVICE"),
    ] {
        let output = meterd(&server, &arguments).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(text), "{arguments:?}: {error}");
    }
    server.stop().await;
}
