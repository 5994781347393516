//! Writes the prices of AI models that meterd ships, from the public file of model prices. `.ci/model_prices` runs it.
//!
//! It is a test, so that it uses the rules of `meterd prices import` and is not part of the program: an import of the same file
//! leaves all prices of a new database unchanged.

use super::{ImportArgs, Selection, model_file, report::rates_of};
use clap::Parser;
use meterd_domain::period::parse_day;
use meterd_engine::catalog::built_in;
use std::collections::BTreeSet;
use std::path::Path;

/// Where the prices come from.
const SOURCE: &str = "model_prices_and_context_window.json of the LiteLLM project (MIT licence)";

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    import: ImportArgs,
}

/// Returns the file as CSV, with a line for each price, sorted by service and model.
fn models_csv(text: &str) -> anyhow::Result<String> {
    let (models, left_out) = model_file::read(text)?;
    let services: BTreeSet<String> =
        built_in::list().services.iter().map(|service| service.service.to_string()).collect();
    let args = Flags::parse_from(["import", "file"]).import;
    let mut prices = Selection::new(&args, &services, models, left_out)?.prices;
    // Names such as "1024-x-1024/gpt-image-1" and "us-east-1/1-month-commitment/..." are sizes, regions and terms of a model.
    prices.retain(|price| !price.model.contains('/'));
    // The order of the prices of one model stays.
    prices.sort_by(|one, other| (&one.service, &one.model).cmp(&(&other.service, &other.model)));
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record(["service", "operation", "model", "service_tier", "above_input_tokens", "rates"])?;
    for price in &prices {
        let bound = price.above_input_tokens.map_or_else(String::new, |bound| bound.to_string());
        let rates: Vec<String> = rates_of(price).into_iter().map(|(name, rate)| format!("{name}={rate}")).collect();
        writer.write_record([&price.service, "", &price.model, &price.service_tier, &bound, &rates.join(" ")])?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

#[test]
#[ignore = "writes files: run .ci/model_prices"]
fn write_the_built_in_list() {
    let variable =
        |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run .ci/model_prices"));
    let text = std::fs::read_to_string(variable("METERD_MODEL_PRICES")).unwrap();
    let date = parse_day(&variable("METERD_LIST_DATE")).expect("the date must be like 2026-11-12");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/engine/catalog");
    std::fs::write(folder.join("models.csv"), models_csv(&text).unwrap()).unwrap();
    std::fs::write(folder.join("list.csv"), format!("date,source\n{date},{SOURCE}\n")).unwrap();
}

#[test]
fn the_list_has_the_prices_of_the_built_in_services_by_the_names_of_an_import() {
    let text = r#"{
        "gpt-9": {"litellm_provider": "openai", "input_cost_per_token": 2.5e-06, "input_cost_per_token_batches": 1.25e-06,
            "output_cost_per_token": 1e-05},
        "low/1024-x-1024/gpt-image-9": {"litellm_provider": "openai", "output_cost_per_image": 0.011},
        "gemini/pro": {"litellm_provider": "gemini", "input_cost_per_token": 1.25e-06,
            "input_cost_per_token_above_200k_tokens": 2.5e-06},
        "anthropic.claude-9-v1:0": {"litellm_provider": "bedrock_converse", "cache_creation_input_token_cost": 3.311e-06},
        "command-z": {"litellm_provider": "cohere_chat", "input_cost_per_token": 1e-7},
        "groq/x": {"litellm_provider": "groq", "input_cost_per_token": 1e-7}
    }"#;
    let expected = "service,operation,model,service_tier,above_input_tokens,rates\n\
        bedrock,,anthropic.claude-9-v1:0,,,cache_write_5m_input_tokens=0.000003311\n\
        cohere,,command-z,,,input_token=0.0000001\n\
        gemini,,pro,,,input_token=0.00000125\n\
        gemini,,pro,,200000,input_token=0.0000025\n\
        openai,,gpt-9,,,input_token=0.0000025 output_token=0.00001\n\
        openai,,gpt-9,batch,,input_token=0.00000125 output_token=0.00001\n";
    assert_eq!(models_csv(text).unwrap(), expected);
}
