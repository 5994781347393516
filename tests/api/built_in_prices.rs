//! The built-in price list: what it charges, its date, and how a database gets a newer one.

use crate::commands::{meterd, succeed};
use crate::harness::*;
use crate::price_import::{charge_of, count, import_file, model_file, wrong_spellings};
use bigdecimal::BigDecimal;
use meterd::proto::*;
use meterd_engine::catalog::built_in;
use meterd_engine::clock::Clock;
use serde_json::Value;
use std::str::FromStr;

/// Service, model, service tier; input, output and cached input tokens; other measures; dollars.
type Case = (&'static str, &'static str, &'static str, [i64; 3], &'static [(&'static str, &'static str)], &'static str);

/// The charges are computed from the price lists of the providers, in dollars per million tokens as in the comments.
const CASES: [Case; 35] = [
    // 2.50, cached 1.25, out 10; batch 1.25, out 5; priority 4.25, cached 2.125, out 17
    ("openai", "gpt-4o", "", [1_000, 200, 0], &[], "0.0045"),
    ("openai", "gpt-4o", "", [2_006, 300, 1_920], &[], "0.005615"),
    ("openai", "gpt-4o", "default", [1_000, 200, 0], &[], "0.0045"),
    ("openai", "gpt-4o", "batch", [1_000, 200, 0], &[], "0.00225"),
    ("openai", "gpt-4o", "priority", [1_000, 200, 400], &[], "0.0068"),
    // 0.15, out 0.60
    ("openai", "gpt-4o-mini", "", [374, 44, 0], &[], "0.0000825"),
    // flex 0.625, out 5
    ("openai", "gpt-5", "flex", [1_000, 100, 0], &[], "0.001125"),
    // 2.50, out 15; above 272,000: 5, out 22.50
    ("openai", "gpt-5.4", "", [272_000, 1_000, 0], &[], "0.695"),
    ("openai", "gpt-5.4", "", [272_001, 1_000, 0], &[], "1.382505"),
    // text 2.50, out 10; audio 32, out 64
    (
        "openai",
        "gpt-audio",
        "",
        [1_000, 100, 0],
        &[("audio_input_tokens", "900"), ("audio_output_tokens", "90")],
        "0.03491",
    ),
    // text 5, images 10, out 40
    (
        "openai",
        "gpt-image-1",
        "",
        [1_000, 1_290, 0],
        &[("image_input_tokens", "800"), ("image_output_tokens", "1290")],
        "0.0606",
    ),
    // 0.006 a minute; 15 per million characters
    ("openai", "whisper-1", "", [0, 0, 0], &[("input_seconds", "61")], "0.0061"),
    ("openai", "tts-1", "", [0, 0, 0], &[("input_characters", "4000")], "0.06"),
    // 1, cached 0.10, cache write 1.25 for 5 minutes and 2 for an hour, out 5
    (
        "anthropic",
        "claude-haiku-4-5",
        "",
        [12_857, 500, 550],
        &[("cache_write_5m_input_tokens", "8000"), ("cache_write_1h_input_tokens", "4304")],
        "0.021166",
    ),
    // batch 2.50, out 12.50
    ("anthropic", "claude-opus-4-8", "batch", [1_000, 100, 0], &[], "0.00375"),
    // 3, out 15; 10 per thousand searches
    ("anthropic", "claude-sonnet-4-6", "", [10, 10, 0], &[("web_searches_medium", "2")], "0.02018"),
    // 1.25, out 10; above 200,000: 2.50, cached 0.25, out 15; batch above 200,000: 1.25
    ("gemini", "gemini-2.5-pro", "", [200_000, 1_000, 0], &[], "0.26"),
    ("gemini", "gemini-2.5-pro", "", [200_001, 1_000, 1], &[], "0.51500025"),
    ("gemini", "gemini-2.5-pro", "batch", [200_001, 0, 0], &[], "0.25000125"),
    // text 0.30, audio 1, out 2.50; batch 0.15, out 1.25, also reasoning
    ("gemini", "gemini-2.5-flash", "batch", [1_000, 100, 0], &[("reasoning_output_tokens", "80")], "0.000275"),
    ("gemini", "gemini-2.5-flash", "", [1_000, 100, 0], &[("audio_input_tokens", "600")], "0.00097"),
    // 0.50, out 1.50; 4 per thousand pages
    ("mistral", "mistral-large-3", "", [1_000, 100, 0], &[], "0.00065"),
    ("mistral", "mistral-ocr-latest", "", [0, 0, 0], &[("ocr_pages", "12")], "0.048"),
    // 0.28, cached 0.028, out 0.40
    ("deepseek", "deepseek-v3.2", "", [1_000, 100, 600], &[], "0.0001688"),
    // 2.50, out 10; 2 per thousand searches
    ("cohere", "command-r-plus-08-2024", "", [1_000, 100, 0], &[], "0.0035"),
    ("cohere", "rerank-v3.5", "", [0, 0, 0], &[("queries", "5")], "0.01"),
    // 0.80, cached 0.20, out 3.20; priority 1.40, out 5.60
    ("bedrock", "amazon.nova-pro-v1:0", "", [1_000, 100, 500], &[], "0.00082"),
    ("bedrock", "amazon.nova-pro-v1:0", "priority", [1_000, 100, 0], &[], "0.00196"),
    ("bedrock", "amazon.titan-embed-text-v2:0", "", [1_000, 0, 0], &[], "0.00002"),
    // 3, out 15, in a region 10 % more; above 200,000: 6
    ("bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", "", [1_000, 100, 0], &[], "0.0045"),
    ("bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "", [1_000, 100, 0], &[], "0.00495"),
    ("bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", "", [200_001, 0, 0], &[], "1.200006"),
    ("bedrock", "meta.llama3-3-70b-instruct-v1:0", "batch", [1_000, 100, 0], &[], "0.000396"),
    ("bedrock", "mistral.mistral-large-3-675b-instruct", "", [1_000, 100, 0], &[], "0.00065"),
    ("openai", "text-embedding-3-small", "", [512, 0, 0], &[], "0.00001024"),
];

#[tokio::test]
async fn models_of_seven_providers_are_charged_by_the_price_lists_of_the_providers() {
    let server = TestServer::start().await;
    for (service, model, service_tier, [input_tokens, output_tokens, cached_input_tokens], measures, dollars) in CASES {
        let event = UsageEvent {
            client_id: "acme".into(),
            service: service.into(),
            model: model.into(),
            service_tier: service_tier.into(),
            input_tokens,
            output_tokens,
            cached_input_tokens,
            measures: measures.iter().map(|(name, count)| ((*name).into(), (*count).into())).collect(),
            ..Default::default()
        };
        let result = server.track(event).await.unwrap();
        let charge = result.charge.unwrap_or_else(|| panic!("{model}: {:?}", result.unpriced_reason));
        assert_eq!(charge.amount, dollars, "{model} {service_tier}");
        assert_eq!(result.matched_model, "", "{model} must have a price of its own");
    }
    server.assert_exact(CASES.len() as i64).await;
    server.stop().await;
}

#[tokio::test]
async fn the_public_file_leaves_the_built_in_models_unchanged() {
    let server = TestServer::start().await;
    let imported = import_file(&server, &model_file(), &["--dry-run"]).await;
    let (mut models, mut others) = (vec![], vec![]);
    for price in &imported {
        let model = price["model"].as_str().unwrap();
        // Sizes, regions and terms of models are not in the list.
        if model.contains('/') { others.push(price) } else { models.push(price.clone()) }
    }
    let unchanged = count(&models, "unchanged");
    println!("{} prices of the file: {unchanged} unchanged, {} not in the list", imported.len(), others.len());
    assert!(unchanged > 300, "{unchanged}");
    let changed: Vec<&Value> = models.iter().filter(|price| price["outcome"] != "unchanged").collect();
    assert!(changed.is_empty(), "{changed:?}");
    // A model that is not in the list has no price, or its own by another name.
    for price in others {
        let of = |name: &str| price[name].as_str().unwrap_or_default();
        let rate = |name: &str| BigDecimal::from_str(price["rates"][name].as_str().unwrap_or("0")).unwrap();
        let charge = charge_of(&server, of("service"), of("model")).await;
        let own = rate("input_token") * 1_000_003 + rate("output_token") * 70_001;
        assert!(charge.is_none_or(|charge| BigDecimal::from_str(&charge).unwrap() == own), "{price}");
    }
    server.stop().await;
}

#[tokio::test]
async fn other_spellings_of_built_in_models_have_their_price_or_none() {
    let server = TestServer::start().await;
    let names: Vec<(String, String)> = built_in::list()
        .prices
        .iter()
        .filter(|price| !price.model.is_empty() && price.service_tier.is_empty() && price.above_input_tokens.is_none())
        .map(|price| (price.service.clone(), price.model.clone()))
        .collect();
    let with_tokens: Vec<(String, String)> = built_in::list()
        .prices
        .iter()
        .filter(|price| price.service_tier.is_empty() && price.above_input_tokens.is_none())
        .filter(|price| price.rates.input_token.is_some() && price.rates.output_token.is_some())
        .map(|price| (price.service.clone(), price.model.clone()))
        .collect();
    let all = names.iter().map(|(service, model)| (service.as_str(), model.as_str())).collect();
    let (right, wrong) = wrong_spellings(&server, &with_tokens, &all).await;
    assert!(right > 2 * with_tokens.len() && with_tokens.len() > 300, "only {right} right of {}", with_tokens.len());
    assert_eq!(wrong, Vec::<String>::new());
    server.stop().await;
}

/// Makes the catalogue one that a release with a shorter list, without a date, left.
async fn make_older(server: &TestServer) {
    let sql = "DELETE FROM prices WHERE model <> '' AND (model NOT IN ('gpt-4o', 'gpt-4o-mini', 'gpt-4-turbo')
            OR service_tier <> '' OR above_input_tokens >= 0);
        UPDATE prices SET measure_rates = '{}' WHERE model = 'gpt-4o-mini';
        DELETE FROM services WHERE service IN ('anthropic', 'gemini', 'mistral', 'deepseek', 'cohere', 'bedrock');
        UPDATE deployment SET built_in_list_date = NULL;
        UPDATE catalog_version SET version = version + 1";
    server.sql(sql).await;
}

async fn import_built_in(server: &TestServer, more: &[&str]) -> Vec<Value> {
    let printed = succeed(server, &[&["prices", "import", "--built-in", "--json"], more].concat()).await;
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn stored_prices(server: &TestServer) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM prices").fetch_one(&server.pool).await.unwrap()
}

async fn list_date(server: &TestServer) -> String {
    let request = ListPricesRequest { page_size: 1, ..Default::default() };
    server.catalog().list_prices(request).await.unwrap().into_inner().built_in_list_date
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_database_gets_the_list_of_the_server_once_and_keeps_the_operators_prices() {
    let server = TestServer::start().await;
    make_older(&server).await;
    let own = CreatePriceRequest { price: Some(unit_price("openai", "gpt-5", "7")), ..Default::default() };
    let own = server.catalog().create_price(own).await.unwrap().into_inner().price.unwrap().price_id;
    let call = |model: &str| UsageEvent { model: model.into(), ..model_call("acme", 1_000, 100) };
    let waiting = server.track(call("gpt-5-mini")).await.unwrap();
    assert_eq!(waiting.unpriced_reason(), UnpricedReason::NoPrice);
    let older = meterd(&server, &["prices", "list", "openai"]).await;
    assert!(String::from_utf8_lossy(&older.stderr).contains("of an earlier release"), "{older:?}");
    let before = stored_prices(&server).await;

    let list = &built_in::list().prices;
    let dry = import_built_in(&server, &["--dry-run"]).await;
    assert_eq!((stored_prices(&server).await, &*list_date(&server).await), (before, ""), "a dry run changes nothing");
    let changes = succeed(&server, &["prices", "import", "--built-in", "--dry-run"]).await;
    assert!(changes.starts_with(&format!("{} built-in prices of 2026-11-12 (dry run", list.len())), "{changes}");
    assert!(changes.contains("openai gpt-4o-mini: web_searches_high none to 0.025"), "{changes}");

    let first = import_built_in(&server, &[]).await;
    let outcomes = |results: &[Value]| results.iter().map(|result| result["outcome"].clone()).collect::<Vec<_>>();
    assert_eq!(outcomes(&dry), outcomes(&first));
    assert_eq!((first.len(), count(&first, "rejected"), count(&first, "changed")), (list.len(), 0, 1), "{first:?}");
    let kept: Vec<&Value> = first.iter().filter(|result| result["outcome"] == "kept").collect();
    let of_own = list.iter().filter(|price| price.model == "gpt-5").count();
    assert!(kept.len() == of_own && of_own > 1, "{kept:?}");
    assert!(kept.iter().all(|result| result["model"] == "gpt-5" && result["price_id"] == own), "{kept:?}");
    assert_eq!(stored_prices(&server).await as usize, before as usize + count(&first, "created") + 1);
    assert_eq!(list_date(&server).await, "2026-11-12");
    let stored = "SELECT count(*) FROM prices WHERE built_in AND source = ''";
    let built_in: i64 = sqlx::query_scalar(stored).fetch_one(&server.pool).await.unwrap();
    assert_eq!(built_in, stored_prices(&server).await - 1);
    // 1,000 × 0.25 + 100 × 2 millionths
    wait_until(async || server.month("acme").await.totals.unwrap().unpriced_event_count == 0).await;
    assert_eq!(amount(&server.month("acme").await.totals.unwrap().cost), "0.00045");
    let of_own_price = EstimateCostRequest { service: "openai".into(), model: "gpt-5".into(), ..Default::default() };
    let estimate = server.catalog().estimate_cost(of_own_price.clone()).await.unwrap().into_inner();
    assert_eq!((amount(&estimate.charge), &estimate.price_id), ("7", &own));

    let second = import_built_in(&server, &[]).await;
    assert_eq!((count(&second, "unchanged"), count(&second, "kept")), (list.len() - of_own, of_own));
    assert_eq!(stored_prices(&server).await as usize, before as usize + count(&first, "created") + 1);

    let replaced = import_built_in(&server, &["--replace-others"]).await;
    assert_eq!((count(&replaced, "changed"), count(&replaced, "created")), (1, of_own - 1));
    let with_tokens = EstimateCostRequest { input_tokens: 1_000, ..of_own_price };
    let estimate = server.catalog().estimate_cost(with_tokens).await.unwrap().into_inner();
    assert_eq!(amount(&estimate.charge), "0.00125");
    server.stop().await;
}

#[tokio::test]
async fn the_built_in_list_is_only_for_dollars_without_other_prices_and_never_older_than_the_present_one() {
    let euros = TestServer::replica(&empty_database().await, &["--currency=EUR"], Clock::system()).await;
    assert_eq!(list_date(&euros).await, "");
    let built_in = ImportPricesRequest { built_in: true, ..Default::default() };
    assert_invalid(euros.catalog().import_prices(built_in.clone()).await, "INVALID_FIELD", &["built_in"]);
    euros.stop().await;

    let server = TestServer::start().await;
    let with_source = ImportPricesRequest { source: "list".into(), ..built_in.clone() };
    let with_prices = ImportPricesRequest { prices: vec![unit_price("sms", "", "1")], ..built_in.clone() };
    for wrong in [with_source, with_prices] {
        assert_invalid(server.catalog().import_prices(wrong).await, "INVALID_FIELD", &["built_in"]);
    }
    server.sql("UPDATE deployment SET built_in_list_date = '2099-01-01'").await;
    assert_invalid(server.catalog().import_prices(built_in).await, "INVALID_FIELD", &["built_in"]);
    let both = meterd(&server, &["prices", "import", "file.json", "--built-in"]).await;
    assert!(String::from_utf8_lossy(&both.stderr).contains("cannot be used with"), "{both:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_prices_shows_the_date_and_the_age_of_the_built_in_prices() {
    let server = TestServer::start().await;
    let date = Clock::system().now().date_naive() - chrono::Days::new(181);
    server.sql(&format!("UPDATE deployment SET built_in_list_date = '{date}'")).await;
    let shown = meterd(&server, &["prices", "list", "sms"]).await;
    let note = String::from_utf8(shown.stderr).unwrap();
    assert!(note.contains(&format!("note: built-in prices of {date}, 181 days old; `meterd prices import")), "{note}");
    let own = CreatePriceRequest { price: Some(unit_price("social", "", "1")), ..Default::default() };
    server.catalog().create_price(own).await.unwrap();
    let of = async |service: &str| -> (Value, String) {
        let shown = meterd(&server, &["prices", "list", service, "--json"]).await;
        let first = String::from_utf8(shown.stdout).unwrap().lines().next().unwrap().to_owned();
        (serde_json::from_str(&first).unwrap(), String::from_utf8(shown.stderr).unwrap())
    };
    let (of_sms, _) = of("sms").await;
    assert_eq!(
        (&of_sms["built_in_list_date"], &of_sms["built_in_list_age_days"]),
        (&date.to_string().into(), &181.into())
    );
    let (of_social, note) = of("social").await;
    assert!(of_social["built_in_list_date"].is_null() && !note.contains("built-in"), "{of_social} {note}");
    server.stop().await;
}
