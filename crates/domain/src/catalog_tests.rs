use super::*;
use crate::price::Rates;

fn price(price_id: i64, from: Option<&str>) -> Price {
    let effective_time = from.map(|text| text.parse().unwrap());
    Price { price_id, effective_time, end_time: None, rates: Rates::default() }
}

fn add(catalog: &mut Catalog, operation: &str, model: &str, price: Price) {
    catalog.add_price(&PriceScope { service: "s", operation, model, ..PriceScope::default() }, price);
}

fn wanted<'a>(operation: &'a str, model: &'a str, time: &str) -> Wanted<'a> {
    Wanted {
        client_id: "c",
        plan_id: "",
        service: "s",
        operation,
        model,
        service_tier: "",
        input_tokens: 0,
        time: time.parse().unwrap(),
    }
}

fn id(catalog: &Catalog, operation: &str, model: &str, time: &str) -> Option<i64> {
    catalog.select(&wanted(operation, model, time)).map(|found| found.price.price_id)
}

fn name_rules() -> NameRules {
    use crate::model_names::{NamePart, NameRule};
    let rule = |part, pattern: &str| NameRule { part, pattern: pattern.into(), models: String::new() };
    NameRules::new([rule(NamePart::Provider, "openai/"), rule(NamePart::Date, "-20##-##-##")])
}

const NOW: &str = "2026-11-21T00:00:00Z";

#[test]
fn the_most_specific_price_wins() {
    let mut catalog = Catalog::new(1, NameRules::default());
    let scopes = [("", "", 1), ("op", "", 2), ("", "m", 3), ("op", "m", 4)];
    for (operation, model, price_id) in scopes {
        add(&mut catalog, operation, model, price(price_id, None));
    }
    assert_eq!(id(&catalog, "op", "m", NOW), Some(4));
    assert_eq!(id(&catalog, "other", "m", NOW), Some(3));
    assert_eq!(id(&catalog, "op", "other", NOW), Some(2));
    assert_eq!(id(&catalog, "op", "", NOW), Some(2));
    assert_eq!(id(&catalog, "other", "", NOW), Some(1));
    assert!(catalog.select(&Wanted { service: "unknown", ..wanted("", "", NOW) }).is_none());
}

#[test]
fn a_price_is_valid_from_its_time_until_the_next() {
    let mut catalog = Catalog::new(1, NameRules::default());
    add(&mut catalog, "", "m", price(2, Some("2026-06-01T00:00:00Z")));
    add(&mut catalog, "", "m", price(3, Some("2026-12-01T00:00:00Z")));
    add(&mut catalog, "", "m", price(1, Some("2026-01-01T00:00:00Z")));
    assert_eq!(id(&catalog, "", "m", "2025-12-31T23:59:59Z"), None);
    assert_eq!(id(&catalog, "", "m", "2026-01-01T00:00:00Z"), Some(1));
    assert_eq!(id(&catalog, "", "m", "2026-05-31T23:59:59.999999Z"), Some(1));
    assert_eq!(id(&catalog, "", "m", "2026-06-01T00:00:00Z"), Some(2));
    assert_eq!(id(&catalog, "", "m", "2099-01-01T00:00:00Z"), Some(3));
}

#[test]
fn the_general_price_applies_after_the_end_of_the_specific_price() {
    let mut catalog = Catalog::new(1, NameRules::default());
    add(&mut catalog, "", "", price(1, None));
    let end_time = Some("2026-06-01T00:00:00Z".parse().unwrap());
    add(&mut catalog, "", "m", Price { end_time, ..price(2, None) });
    add(&mut catalog, "", "m", price(3, Some("2026-12-01T00:00:00Z")));
    assert_eq!(id(&catalog, "", "m", "2026-05-31T23:59:59.999999Z"), Some(2));
    assert_eq!(id(&catalog, "", "m", "2026-06-01T00:00:00Z"), Some(1));
    assert_eq!(id(&catalog, "", "m", "2026-12-01T00:00:00Z"), Some(3));
}

#[test]
fn the_general_price_applies_until_the_specific_price_is_valid() {
    let mut catalog = Catalog::new(1, NameRules::default());
    add(&mut catalog, "", "", price(1, None));
    add(&mut catalog, "", "m", price(2, Some("2026-12-01T00:00:00Z")));
    assert_eq!(id(&catalog, "", "m", NOW), Some(1));
}

#[test]
fn on_each_level_the_name_is_tried_before_its_alias() {
    let mut catalog = Catalog::new(1, NameRules::default());
    add(&mut catalog, "", "m", price(1, None));
    add(&mut catalog, "", "", price(9, None));
    catalog.add_alias("s", "m-2024", "m");
    assert_eq!(id(&catalog, "", "m-2024", NOW), Some(1));
    add(&mut catalog, "", "m-2024", price(2, None));
    assert_eq!(id(&catalog, "", "m-2024", NOW), Some(2));
    add(&mut catalog, "op", "m", price(3, None));
    assert_eq!(id(&catalog, "op", "m-2024", NOW), Some(3));
}

#[test]
fn a_name_finds_a_price_only_if_no_exact_name_and_no_alias_does() {
    let mut catalog = Catalog::new(1, name_rules());
    add(&mut catalog, "", "", price(9, None));
    add(&mut catalog, "", "m", price(1, None));
    add(&mut catalog, "op", "m", price(2, None));
    let select = |catalog: &Catalog, operation: &str, model: &str| {
        let found = catalog.select(&wanted(operation, model, NOW)).unwrap();
        (found.price.price_id, found.price_match)
    };
    assert_eq!(select(&catalog, "", "openai/M-2026-01-01"), (1, PriceMatch::Name));
    assert_eq!(select(&catalog, "op", "openai/M-2026-01-01"), (2, PriceMatch::Name));
    assert_eq!(select(&catalog, "", "m"), (1, PriceMatch::Model));
    assert_eq!(select(&catalog, "", "m-mini"), (9, PriceMatch::General));
    add(&mut catalog, "", "n", price(3, None));
    catalog.add_alias("s", "openai/M-2026-01-01", "n");
    assert_eq!(select(&catalog, "", "openai/M-2026-01-01"), (3, PriceMatch::Alias));
    let mut exact = Catalog::new(1, NameRules::default());
    add(&mut exact, "", "m", price(1, None));
    assert!(exact.select(&wanted("", "M", NOW)).is_none(), "without rules, only exact names match");
}

#[test]
fn a_name_that_may_mean_models_of_different_rates_has_no_price() {
    use crate::decimal::Rate;
    let mut catalog = Catalog::new(1, name_rules());
    let rates = |rate: &str| Rates { unit: Some(Rate::parse(rate).unwrap()), ..Rates::default() };
    add(&mut catalog, "", "m-2026-01-01", Price { rates: rates("1"), ..price(1, None) });
    add(&mut catalog, "", "m-2026-02-01", Price { rates: rates("1"), ..price(2, None) });
    assert_eq!(id(&catalog, "", "M", NOW), Some(1), "both cost the same");
    assert_eq!(id(&catalog, "", "m-2026-03-01", NOW), None, "each has another date");
    add(&mut catalog, "", "m-2026-02-01", Price { rates: rates("2"), ..price(3, Some("2026-06-01T00:00:00Z")) });
    assert_eq!(id(&catalog, "", "M", NOW), None);
    assert_eq!(id(&catalog, "", "M", "2026-05-31T00:00:00Z"), Some(1), "they cost the same until June");
    assert_eq!(id(&catalog, "", "openai/m-2026-02-01", NOW), Some(3));
    add(&mut catalog, "", "m", Price { rates: rates("4"), ..price(4, None) });
    assert_eq!(id(&catalog, "", "openai/M", NOW), Some(4), "the model without a date comes first");
    assert_eq!(id(&catalog, "", "M-2026-03-01", NOW), Some(4));
}

#[test]
fn a_price_for_the_service_tier_and_the_number_of_input_tokens_comes_before_the_general_one() {
    let mut catalog = Catalog::new(1, NameRules::default());
    let variants = [
        ("", None, 1),
        ("batch", None, 2),
        ("", Some(200_000), 3),
        ("batch", Some(200_000), 4),
        ("", Some(1_000_000), 5),
    ];
    for (service_tier, above_input_tokens, price_id) in variants {
        let scope = PriceScope { service: "s", model: "m", service_tier, above_input_tokens, ..PriceScope::default() };
        catalog.add_price(&scope, price(price_id, None));
    }
    let id = |catalog: &Catalog, service_tier: &str, input_tokens: i64| {
        let found = catalog.select(&Wanted { service_tier, input_tokens, ..wanted("", "m", NOW) });
        found.map(|found| found.price.price_id)
    };
    let cases = [
        ("", 0, 1),
        ("default", 200_000, 1),
        ("batch", 200_000, 2),
        ("", 200_001, 3),
        ("batch", 200_001, 4),
        ("batch", 2_000_000, 4),
        ("", 1_000_001, 5),
        ("Batch", 1, 1),
    ];
    for (service_tier, input_tokens, price_id) in cases {
        assert_eq!(id(&catalog, service_tier, input_tokens), Some(price_id), "{service_tier} {input_tokens}");
    }
    // A price for another tier, or for more tokens, does not hide a less specific one.
    let mut catalog = Catalog::new(1, NameRules::default());
    add(&mut catalog, "", "", price(1, None));
    let scope = PriceScope { service: "s", model: "m", service_tier: "batch", ..PriceScope::default() };
    catalog.add_price(&scope, price(2, None));
    assert_eq!([id(&catalog, "", 0), id(&catalog, "batch", 0)], [Some(1), Some(2)]);
}
