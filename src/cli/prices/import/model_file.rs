//! Reads the public file of model prices, `model_prices_and_context_window.json` of the LiteLLM project: an object with one
//! object for each model, whose members are numbers in dollars.
//!
//! A member such as `input_cost_per_token_above_200k_tokens_batches` has a rate, a bound of input tokens and a service tier. So
//! one model can have several prices. A price for a tier or a bound has all rates of the price without it, except those that the
//! file gives another value for. A part of the tokens that costs as much as its whole has no rate of its own, so that it also follows
//! the rate of its whole for a tier or a bound.

use crate::cli::json::RawObject;
use crate::proto::{Price, Rates};
use bigdecimal::BigDecimal;
use meterd_domain::measures::{Whole, whole_of};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// A rate of a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    Unit,
    InputToken,
    OutputToken,
    CachedInputToken,
    Measure(&'static str),
}

use Rate::{CachedInputToken, InputToken, Measure, OutputToken, Unit};

/// The rates that members of a model are for, without bound and tier.
const MEMBERS: [(&str, Rate); 40] = [
    ("annotation_cost_per_page", Measure("annotation_pages")),
    ("cache_creation_input_audio_token_cost", Measure("cache_write_audio_input_tokens")),
    ("cache_creation_input_token_cost", Measure("cache_write_5m_input_tokens")),
    ("cache_creation_input_token_cost_above_1hr", Measure("cache_write_1h_input_tokens")),
    ("cache_read_input_audio_token_cost", Measure("cached_audio_input_tokens")),
    ("cache_read_input_image_token_cost", Measure("cached_image_input_tokens")),
    ("cache_read_input_token_cost", CachedInputToken),
    ("code_interpreter_cost_per_session", Measure("code_interpreter_sessions")),
    ("google_maps_grounding_cost_per_query", Measure("maps_queries")),
    ("input_cost_per_audio_per_second", Measure("input_audio_seconds")),
    ("input_cost_per_audio_token", Measure("audio_input_tokens")),
    ("input_cost_per_character", Measure("input_characters")),
    ("input_cost_per_image", Measure("input_images")),
    ("input_cost_per_image_token", Measure("image_input_tokens")),
    ("input_cost_per_pixel", Measure("input_pixels")),
    ("input_cost_per_query", Measure("queries")),
    ("input_cost_per_request", Unit),
    ("input_cost_per_second", Measure("input_seconds")),
    ("input_cost_per_token", InputToken),
    ("input_cost_per_video_per_second", Measure("input_video_seconds")),
    ("input_cost_per_video_token", Measure("video_input_tokens")),
    ("ocr_cost_per_page", Measure("ocr_pages")),
    ("output_cost_per_audio_token", Measure("audio_output_tokens")),
    ("output_cost_per_character", Measure("output_characters")),
    ("output_cost_per_image", Measure("output_images")),
    ("output_cost_per_image_token", Measure("image_output_tokens")),
    ("output_cost_per_pixel", Measure("output_pixels")),
    ("output_cost_per_reasoning_token", Measure("reasoning_output_tokens")),
    ("output_cost_per_second", Measure("output_seconds")),
    ("output_cost_per_second_1080p", Measure("output_seconds_1080p")),
    ("output_cost_per_second_480p", Measure("output_seconds_480p")),
    ("output_cost_per_second_4k", Measure("output_seconds_4k")),
    ("output_cost_per_second_720p", Measure("output_seconds_720p")),
    ("output_cost_per_token", OutputToken),
    ("output_cost_per_video_per_second", Measure("output_video_seconds")),
    ("output_cost_per_video_token", Measure("video_output_tokens")),
    ("search_context_size_high", Measure("web_searches_high")),
    ("search_context_size_low", Measure("web_searches_low")),
    ("search_context_size_medium", Measure("web_searches_medium")),
    ("vector_store_cost_per_gb_per_day", Measure("vector_store_gb_days")),
];

/// The member of an object with rates of web searches.
const WEB_SEARCHES: &str = "search_context_cost_per_query";
/// The member of a list of rates by input tokens.
const RANGES: &str = "tiered_pricing";

/// Ends of members, and the service tiers that they are for.
const SERVICE_TIERS: [(&str, &str); 4] =
    [("_batches", "batch"), ("_flex", "flex"), ("_priority", "priority"), ("_ultrafast", "ultrafast")];

/// The provider whose bounds of input tokens are included in the range above them, in the code of the project.
const INCLUSIVE_PROVIDER: &str = "xai";

/// The prices of one model of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelPrices {
    /// The name in the file.
    pub name: String,
    pub provider: String,
    /// The name without the prefix of its provider.
    pub model: String,
    /// Without a service. The price for any tier and number of tokens comes first.
    pub prices: Vec<Price>,
    /// Members with a cost that no rate is for.
    pub unused: Vec<String>,
}

/// A model without prices, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub name: String,
    pub reason: &'static str,
}

/// Service tier and bound of input tokens.
type Variant = (&'static str, Option<i64>);

/// Reads all models.
pub fn read(text: &str) -> anyhow::Result<(Vec<ModelPrices>, Vec<LeftOut>)> {
    let models: RawObject = serde_json::from_str(text)?;
    let (mut read, mut left_out) = (vec![], vec![]);
    for (name, model) in models.iter().filter(|(name, _)| *name != "sample_spec") {
        let members: Result<RawObject, _> = serde_json::from_str(model.get());
        let members = members.map_err(|error| anyhow::anyhow!("model {name:?} is no object: {error}"))?;
        match model_prices(name, &members) {
            Ok(model) => read.push(model),
            Err(reason) => left_out.push(LeftOut { name: name.clone(), reason }),
        }
    }
    Ok((read, left_out))
}

fn model_prices(name: &str, members: &RawObject) -> Result<ModelPrices, &'static str> {
    let provider = members.get("litellm_provider").and_then(|text| serde_json::from_str::<String>(text.get()).ok());
    let provider = provider.ok_or("it has no provider")?;
    let mut unused = vec![];
    let mut variants: BTreeMap<Variant, Vec<(Rate, String)>> = BTreeMap::new();
    let mut add = |((tier, bound), rate): (Variant, Rate), json: &str| -> Result<(), &'static str> {
        if json != "null" {
            // For this provider, the rates above a bound begin at the bound.
            let bound = bound.map(|bound| if provider == INCLUSIVE_PROVIDER { bound - 1 } else { bound });
            variants.entry((tier, bound)).or_default().push((rate, exact(json)?));
        }
        Ok(())
    };
    for (member, json) in members {
        let json = json.get();
        if member == WEB_SEARCHES {
            let sizes: RawObject = serde_json::from_str(json).map_err(|_| "its rates of web searches are no object")?;
            for (size, json) in &sizes {
                let rate = parse_member(size).ok_or("it has an unknown rate of web searches")?;
                add(rate, json.get())?;
            }
        } else if member == RANGES {
            let ranges: Vec<RawObject> = serde_json::from_str(json).map_err(|_| "its rates by range are no list")?;
            for range in &ranges {
                let bound = first_of_range(range).ok_or("a range has no bounds")?;
                for (member, json) in range.iter().filter(|(member, _)| *member != "range") {
                    match parse_member(member) {
                        Some(((tier, _), rate)) => add(((tier, bound), rate), json.get())?,
                        None => unused.push(member.clone()),
                    }
                }
            }
        } else if let Some(parsed) = parse_member(member) {
            add(parsed, json)?;
        } else if member.contains("_cost") && !member.contains("_dbu_") {
            unused.push(member.clone());
        }
    }
    if !variants.values().flatten().any(|(_, rate)| rate != "0") {
        return Err(if variants.is_empty() { "it has no rates" } else { "all of its rates are zero" });
    }
    if let Some(rates) = variants.get_mut(&("", None)) {
        remove_equal_parts(rates);
    }
    let prefixes = [provider.as_str(), provider.split('-').next().unwrap_or_default()];
    let strip = |prefix: &&str| name.strip_prefix(prefix)?.strip_prefix('/');
    let model = prefixes.iter().find_map(strip).unwrap_or(name).to_owned();
    let prices = prices(&model, &variants);
    unused.sort_unstable();
    unused.dedup();
    Ok(ModelPrices { name: name.to_owned(), provider, model, prices, unused })
}

/// Removes the rates of parts of the tokens that are equal to the rate of their whole.
fn remove_equal_parts(rates: &mut Vec<(Rate, String)>) {
    let of = |wanted: Rate| rates.iter().find(|(rate, _)| *rate == wanted).map(|(_, value)| value.clone());
    let (input, output) = (of(InputToken), of(OutputToken));
    rates.retain(|(rate, value)| {
        let Measure(name) = rate else { return true };
        let of_whole = match whole_of(name) {
            Some(Whole::InputTokens) => &input,
            Some(Whole::OutputTokens) => &output,
            None => &None,
        };
        of_whole.as_ref() != Some(value)
    });
}

/// Returns the first number of input tokens of a range that is not in it, or none for the first range.
fn first_of_range(range: &RawObject) -> Option<Option<i64>> {
    let bounds: Vec<f64> = serde_json::from_str(range.get("range")?.get()).ok()?;
    let first = *bounds.first()?;
    Some((first > 0.0).then_some(first as i64))
}

/// Returns what the rate of a member is for.
fn parse_member(member: &str) -> Option<(Variant, Rate)> {
    let tier = SERVICE_TIERS.iter().find_map(|(end, tier)| Some((member.strip_suffix(end)?, *tier)));
    let (member, tier) = tier.unwrap_or((member, ""));
    let (member, bound) = match member.strip_suffix("k_tokens").and_then(|rest| rest.rsplit_once("_above_")) {
        Some((member, thousands)) => (member, Some(thousands.parse::<i64>().ok()? * 1_000)),
        None => (member, None),
    };
    let at = MEMBERS.binary_search_by(|(name, _)| name.cmp(&member)).ok()?;
    Some(((tier, bound), MEMBERS[at].1))
}

/// Returns a JSON number in plain digits.
fn exact(json: &str) -> Result<String, &'static str> {
    let number = BigDecimal::from_str(json.trim_matches('"')).map_err(|_| "a rate is no number")?;
    if number < BigDecimal::default() {
        return Err("a rate is negative");
    }
    Ok(number.normalized().to_plain_string())
}

/// Returns the prices of all tiers and bounds. Each has the rates of the variants that are less specific, in this order: any, tier,
/// bound, both. So a rate above a bound also holds for a tier for which the file has no rate above this bound, as the project's own
/// code computes it.
fn prices(model: &str, variants: &BTreeMap<Variant, Vec<(Rate, String)>>) -> Vec<Price> {
    let of = |(tier, bound): Variant| {
        let mut rates = Rates::default();
        let mut less_specific = vec![("", None), (tier, None), ("", bound), (tier, bound)];
        less_specific.dedup();
        for (rate, value) in less_specific.iter().filter_map(|variant| variants.get(variant)).flatten() {
            let value = value.clone();
            match rate {
                Unit => rates.unit = Some(value),
                InputToken => rates.input_token = Some(value),
                OutputToken => rates.output_token = Some(value),
                CachedInputToken => rates.cached_input_token = Some(value),
                Measure(name) => drop(rates.measures.insert((*name).to_owned(), value)),
            }
        }
        Price {
            model: model.to_owned(),
            service_tier: tier.to_owned(),
            above_input_tokens: bound,
            rates: Some(rates),
            ..Default::default()
        }
    };
    let tiers: BTreeSet<&str> = variants.keys().map(|(tier, _)| *tier).collect();
    let bounds: BTreeSet<Option<i64>> = variants.keys().map(|(_, bound)| *bound).collect();
    let pairs = tiers.iter().flat_map(|tier| bounds.iter().map(|bound| (*tier, *bound)));
    let has = |variant: Variant| variants.contains_key(&variant);
    let is_needed = |(tier, bound): &Variant| has((*tier, *bound)) || has((*tier, None)) && has(("", *bound));
    pairs.filter(is_needed).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(service_tier: &str, above_input_tokens: Option<i64>, rates: Rates) -> Price {
        let model = "pro".into();
        Price { model, service_tier: service_tier.into(), above_input_tokens, rates: Some(rates), ..Default::default() }
    }

    fn rates(input: &str, output: &str, cached: &str) -> Rates {
        Rates {
            input_token: Some(input.into()),
            output_token: Some(output.into()),
            cached_input_token: Some(cached.into()),
            ..Default::default()
        }
    }

    #[test]
    fn members_are_sorted() {
        assert!(MEMBERS.is_sorted_by_key(|(member, _)| member));
    }

    #[test]
    fn a_model_has_a_price_for_each_tier_and_bound_with_the_rates_of_the_less_specific_ones() {
        let text = r#"{
            "sample_spec": {"input_cost_per_token": 0.0},
            "vertex_ai/pro": {"litellm_provider": "vertex_ai-language-models", "input_cost_per_token": 1.25e-06,
                "output_cost_per_token": 1e-05, "cache_read_input_token_cost": 1.25E-7,
                "input_cost_per_token_above_200k_tokens": 2.5e-06, "input_cost_per_token_batches": 6.25e-07,
                "output_cost_per_token_above_200k_tokens_batches": 7.5e-06, "output_cost_per_token_priority": null,
                "output_cost_per_token_flex": 5e-06,
                "search_context_cost_per_query": {"search_context_size_low": 0.035}, "citation_cost_per_token": 1e-6,
                "max_tokens": 65535, "mode": "chat"}
        }"#;
        let (models, left_out) = read(text).unwrap();
        assert_eq!((models.len(), left_out.len()), (1, 0));
        let model = &models[0];
        assert_eq!((&*model.name, &*model.model), ("vertex_ai/pro", "pro"));
        assert_eq!(model.unused, ["citation_cost_per_token"]);
        let searches = |rates: Rates| Rates { measures: [("web_searches_low".into(), "0.035".into())].into(), ..rates };
        let expected = [
            price("", None, searches(rates("0.00000125", "0.00001", "0.000000125"))),
            price("", Some(200_000), searches(rates("0.0000025", "0.00001", "0.000000125"))),
            price("batch", None, searches(rates("0.000000625", "0.00001", "0.000000125"))),
            price("batch", Some(200_000), searches(rates("0.0000025", "0.0000075", "0.000000125"))),
            price("flex", None, searches(rates("0.00000125", "0.000005", "0.000000125"))),
            price("flex", Some(200_000), searches(rates("0.0000025", "0.000005", "0.000000125"))),
        ];
        assert_eq!(model.prices, expected);
    }

    #[test]
    fn a_part_that_costs_as_much_as_its_whole_follows_it() {
        let text = r#"{"gemini/pro": {"litellm_provider": "gemini", "input_cost_per_token": 3e-07, "output_cost_per_token": 2.5e-06,
            "input_cost_per_audio_token": 1e-06, "output_cost_per_reasoning_token": 2.50e-06,
            "output_cost_per_token_batches": 1.25e-06}}"#;
        let (models, _) = read(text).unwrap();
        let with_audio = |output: &str| Rates {
            measures: [("audio_input_tokens".into(), "0.000001".into())].into(),
            cached_input_token: None,
            ..rates("0.0000003", output, "")
        };
        let expected = [price("", None, with_audio("0.0000025")), price("batch", None, with_audio("0.00000125"))];
        assert_eq!(models[0].prices, expected);
    }

    #[test]
    fn the_rates_of_xai_begin_at_the_bound() {
        let text = r#"{"xai/grok": {"litellm_provider": "xai", "input_cost_per_token": 2e-06,
            "input_cost_per_token_above_128k_tokens": 4e-06}}"#;
        let (models, _) = read(text).unwrap();
        assert_eq!(models[0].prices[1].above_input_tokens, Some(127_999));
    }

    #[test]
    fn ranges_of_input_tokens_are_bounds() {
        let text = r#"{"dashscope/pro": {"litellm_provider": "dashscope", "tiered_pricing": [
            {"input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [0, 256000.0]},
            {"input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06, "range": [256000.0, 1000000.0]}]}}"#;
        let (models, _) = read(text).unwrap();
        let without_cached = |input: &str, output: &str| Rates { cached_input_token: None, ..rates(input, output, "") };
        let expected = [
            price("", None, without_cached("0.00000005", "0.0000004")),
            price("", Some(256_000), without_cached("0.00000025", "0.000002")),
        ];
        assert_eq!(models[0].prices, expected);
    }

    #[test]
    fn models_without_usable_rates_are_left_out_with_the_reason() {
        for (model, reason) in [
            (r#"{"input_cost_per_token": 1}"#, "it has no provider"),
            (r#"{"litellm_provider": "x", "max_tokens": 1}"#, "it has no rates"),
            (r#"{"litellm_provider": "x", "input_cost_per_token": 0.0}"#, "all of its rates are zero"),
            (r#"{"litellm_provider": "x", "input_cost_per_token": -1e-6}"#, "a rate is negative"),
            (r#"{"litellm_provider": "x", "input_cost_per_token": "cheap"}"#, "a rate is no number"),
        ] {
            let (models, left_out) = read(&format!(r#"{{"m": {model}}}"#)).unwrap();
            assert_eq!((models, left_out), (vec![], vec![LeftOut { name: "m".into(), reason }]), "{model}");
        }
        assert!(read("[]").is_err());
        assert!(read(r#"{"m": 1}"#).unwrap_err().to_string().contains("\"m\""));
    }
}
