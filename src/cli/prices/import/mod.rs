//! `meterd prices import`: takes prices over from a file, or from the built-in list of the server.

#[cfg(test)]
mod built_in_list;
mod model_file;
mod report;

use super::{CALL_SECONDS, prices};
use crate::cli::connect::{self, ConnectArgs, Connection};
use crate::cli::hints;
use crate::cli::period::parse_instant;
use crate::proto::{
    CreateServiceRequest, ImportPricesRequest, ImportPricesResponse, Price, Rates, Service, ServiceCategory,
};
use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use model_file::{LeftOut, ModelPrices};
use prost_types::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use tonic::Code;

/// Number of prices of one call.
const CALL_PRICES: usize = 500;
/// Category of the services that are created.
const CATEGORY: ServiceCategory = ServiceCategory::Ai;

/// Arguments of `prices import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// File of model prices: model_prices_and_context_window.json of the LiteLLM project, in dollars
    #[arg(value_name = "FILE", required_unless_present = "built_in")]
    pub file: Option<PathBuf>,
    /// The built-in list of the server instead of a file. It brings a database that began with an older list up to date
    #[arg(long, conflicts_with_all = ["file", "provider", "all_providers", "model", "create_services", "per_million", "source"])]
    pub built_in: bool,
    /// Only models of this provider, as in the file, and the service of their prices, if it has another name; repeat the flag for
    /// more [default: all providers that are services]
    #[arg(long, value_name = "PROVIDER[=SERVICE]", value_parser = parse_provider)]
    pub provider: Vec<(String, String)>,
    /// Models of all providers; the service has the name of the provider
    #[arg(long, conflicts_with = "provider")]
    pub all_providers: bool,
    /// Only models whose name contains this text
    #[arg(long, value_name = "TEXT")]
    pub model: Option<String>,
    /// Create the services of these providers that do not exist
    #[arg(long)]
    pub create_services: bool,
    /// Time from which changed prices apply, such as 2027-01-01T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    pub from: Option<Timestamp>,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The rates for tokens in the file are for one million tokens
    #[arg(long)]
    pub per_million: bool,
    /// Also replace prices that were not imported from this source
    #[arg(long)]
    pub replace_others: bool,
    /// Import prices even if a rate for one token is higher than the server's high_token_rate
    #[arg(long)]
    pub confirm_high_rates: bool,
    /// Where the prices come from. A newer list with the same source replaces prices of the older one
    #[arg(long, value_name = "TEXT", default_value = "LiteLLM model prices")]
    pub source: String,
    /// Print JSON, one price per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

fn parse_provider(text: &str) -> Result<(String, String), String> {
    let (provider, service) = text.split_once('=').unwrap_or((text, text));
    match provider.is_empty() || service.is_empty() {
        true => Err("must be a provider, or PROVIDER=SERVICE".to_owned()),
        false => Ok((provider.to_owned(), service.to_owned())),
    }
}

/// Imports the list and prints a summary.
pub async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let read = args.file.as_deref().map(read_file).transpose()?;
    let channel = args.connect.channel().await?;
    let (selection, imported) = match read {
        Some((models, left_out)) => {
            let services = services(&args, &channel, &models).await?;
            let selection = Selection::new(&args, &services, models, left_out)?;
            let imported = import(&args, &channel, &selection.prices).await?;
            (selection, imported)
        }
        None => import_built_in(&args, &channel).await?,
    };
    // A dry run has changed nothing.
    let before = if args.dry_run { present(&args, &channel, &selection).await? } else { HashMap::new() };
    match args.json {
        true => report::print_json(&selection, &imported),
        false => report::print_summary(&args, &selection, &imported, &before)?,
    }
    Ok(())
}

fn read_file(file: &Path) -> anyhow::Result<(Vec<ModelPrices>, Vec<LeftOut>)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    model_file::read(&text).with_context(|| format!("{} is no file of model prices", file.display()))
}

/// Lets the server import its own list.
async fn import_built_in(args: &ImportArgs, channel: &Connection) -> anyhow::Result<(Selection, ImportPricesResponse)> {
    let request = ImportPricesRequest { built_in: true, source: String::new(), ..request_of(args, vec![]) };
    let mut catalog = connect::catalog_client(channel.clone());
    let answer = catalog.import_prices(args.connect.request(request, CALL_SECONDS)).await;
    let imported = answer.map_err(|status| connect::status_error(&status))?.into_inner();
    let prices: Vec<Price> = imported.results.iter().filter_map(|result| result.price.clone()).collect();
    let name = |price: &Price| if price.model.is_empty() { price.service.clone() } else { price.model.clone() };
    let selection = Selection {
        title: format!("{} built-in prices of {}", prices.len(), imported.built_in_list_date),
        names: prices.iter().map(name).collect(),
        prices,
        left_out: BTreeMap::new(),
        unused: BTreeMap::new(),
    };
    Ok((selection, imported))
}

fn request_of(args: &ImportArgs, prices: Vec<Price>) -> ImportPricesRequest {
    ImportPricesRequest {
        prices,
        effective_time: args.from,
        source: args.source.clone(),
        validate_only: args.dry_run,
        confirm_high_rates: args.confirm_high_rates,
        replace_others: args.replace_others,
        built_in: false,
    }
}

/// Returns the names of all services. Creates those of the wanted providers first, if wanted.
async fn services(args: &ImportArgs, channel: &Connection, models: &[ModelPrices]) -> anyhow::Result<BTreeSet<String>> {
    let known = hints::services(&args.connect, channel).await.map_err(|status| connect::status_error(&status))?;
    let mut known: BTreeSet<String> = known.into_iter().collect();
    let of_all = models.iter().map(|model| service_of(&model.provider)).filter(|_| args.all_providers);
    let wanted: BTreeSet<&str> = args.provider.iter().map(|(_, service)| service.as_str()).chain(of_all).collect();
    for service in wanted {
        if known.contains(service) {
            continue;
        }
        if !args.create_services {
            let hint = hints::did_you_mean(service, known.iter().map(String::as_str));
            let hint = hint.map_or(String::new(), |hint| format!(" {hint}"));
            anyhow::bail!("service {service:?} does not exist: add --create-services to create it.{hint}");
        }
        if !args.dry_run {
            let new = Service { service: service.to_owned(), category: CATEGORY.into(), ..Default::default() };
            let request = CreateServiceRequest { service: Some(new), request_id: String::new() };
            let mut catalog = connect::catalog_client(channel.clone());
            match catalog.create_service(args.connect.request(request, CALL_SECONDS)).await {
                Err(status) if status.code() != Code::AlreadyExists => return Err(connect::status_error(&status)),
                _ => {}
            }
        }
        known.insert(service.to_owned());
    }
    Ok(known)
}

/// Returns the service of a provider. The file divides the models of one provider into several.
fn service_of(provider: &str) -> &str {
    match provider {
        "bedrock_converse" => "bedrock",
        "cohere_chat" => "cohere",
        "text-completion-openai" => "openai",
        _ if provider.starts_with("vertex_ai-") => "vertex_ai",
        _ => provider,
    }
}

/// The prices to import, and what is left out.
struct Selection {
    prices: Vec<Price>,
    /// The name in the file of the model of each price.
    names: Vec<String>,
    /// Numbers of models by reason.
    left_out: BTreeMap<String, usize>,
    /// Numbers of models by member without a rate.
    unused: BTreeMap<String, usize>,
    /// How many prices there are, and of what.
    title: String,
}

impl Selection {
    fn new(
        args: &ImportArgs,
        services: &BTreeSet<String>,
        models: Vec<ModelPrices>,
        left_out: Vec<LeftOut>,
    ) -> anyhow::Result<Self> {
        let (mut prices, mut names, mut model_count) = (vec![], vec![], 0);
        let mut reasons = BTreeMap::<String, usize>::new();
        let mut unused = BTreeMap::<String, usize>::new();
        let mut count = |reason: String| *reasons.entry(reason).or_default() += 1;
        left_out.into_iter().for_each(|model| count(model.reason.to_owned()));
        let wanted: HashMap<&str, &str> =
            args.provider.iter().map(|(provider, service)| (provider.as_str(), service.as_str())).collect();
        for (provider, _) in &args.provider {
            let providers = models.iter().map(|model| model.provider.as_str());
            let hint = hints::did_you_mean(provider, providers.collect::<BTreeSet<_>>().into_iter());
            let is_known = models.iter().any(|model| model.provider == *provider);
            anyhow::ensure!(is_known, "the file has no provider {provider:?}; {}", hint.unwrap_or_default());
        }
        // A name without a prefix comes before the same name with one.
        let mut models = models;
        models.sort_by_key(|model| model.name != model.model);
        let mut seen: HashMap<(String, String), Vec<Price>> = HashMap::new();
        for model in models {
            let service = match wanted.get(model.provider.as_str()) {
                Some(service) => *service,
                None if args.provider.is_empty() => service_of(&model.provider),
                None => continue,
            };
            if args.model.as_ref().is_some_and(|text| !model.name.contains(text)) {
                continue;
            }
            if !services.contains(service) {
                count("its provider is no service (add --provider PROVIDER=SERVICE, or --all-providers)".to_owned());
                continue;
            }
            let mut of_model = model.prices;
            for price in &mut of_model {
                service.clone_into(&mut price.service);
                if args.per_million {
                    convert(price.rates.as_mut().expect("prices of a file have rates"))?;
                }
            }
            match seen.entry((service.to_owned(), model.model.clone())) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    let same = *first.get() == of_model;
                    count(format!(
                        "another model has the same name and {} rates",
                        if same { "the same" } else { "other" }
                    ));
                    continue;
                }
                std::collections::hash_map::Entry::Vacant(first) => drop(first.insert(of_model.clone())),
            }
            model.unused.into_iter().for_each(|member| *unused.entry(member).or_default() += 1);
            model_count += 1;
            names.extend(of_model.iter().map(|_| model.name.clone()));
            prices.extend(of_model);
        }
        if prices.is_empty() {
            let reasons: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{count} models: {reason}")).collect();
            anyhow::bail!("no model is selected; left out: {}", reasons.join("; "));
        }
        let title = format!("{} prices of {model_count} models", prices.len());
        Ok(Self { prices, names, left_out: reasons, unused, title })
    }
}

/// Converts rates for a million tokens to rates for one.
fn convert(rates: &mut Rates) -> anyhow::Result<()> {
    let fields = [&mut rates.input_token, &mut rates.output_token, &mut rates.cached_input_token];
    let parts = rates.measures.iter_mut().filter(|(name, _)| meterd_domain::measures::whole_of(name).is_some());
    for rate in fields.into_iter().flatten().chain(parts.map(|(_, rate)| rate)) {
        *rate = super::show::per_one(rate, super::show::MILLION_DIGITS)?;
    }
    Ok(())
}

/// Returns the present prices by id, to show what would change.
async fn present(
    args: &ImportArgs,
    channel: &Connection,
    selection: &Selection,
) -> anyhow::Result<HashMap<String, Price>> {
    let services: BTreeSet<&str> = selection.prices.iter().map(|price| price.service.as_str()).collect();
    let mut present = HashMap::new();
    for service in services {
        // A new service has none.
        let of_service = prices(&args.connect, channel, Some(service)).await.unwrap_or_default();
        present.extend(of_service.into_iter().map(|(price, _)| (price.price_id.clone(), price)));
    }
    Ok(present)
}

async fn import(args: &ImportArgs, channel: &Connection, prices: &[Price]) -> anyhow::Result<ImportPricesResponse> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} prices {eta}")?;
    // Shown only on a terminal.
    let progress = ProgressBar::new(prices.len() as u64).with_style(style);
    let mut imported = ImportPricesResponse::default();
    for part in calls(prices) {
        let request = request_of(args, part.to_vec());
        let mut catalog = connect::catalog_client(channel.clone());
        let answer = catalog.import_prices(args.connect.request(request, CALL_SECONDS)).await;
        let answer = answer.map_err(|status| {
            let error = connect::status_error(&status);
            anyhow::anyhow!("{error:#}\n  {} prices are done; repeat the command to continue", imported.results.len())
        })?;
        let answer = answer.into_inner();
        imported.results.extend(answer.results);
        imported.missing_price_ids.extend(answer.missing_price_ids);
        progress.inc(part.len() as u64);
    }
    progress.finish_and_clear();
    Ok(imported)
}

/// Divides prices into those of each call. All prices of a model are in one call, so that they begin at the same time.
fn calls(prices: &[Price]) -> Vec<&[Price]> {
    let is_same_model = |a: &Price, b: &Price| (&a.service, &a.model) == (&b.service, &b.model);
    let (mut calls, mut start, mut end) = (vec![], 0, 0);
    for of_model in prices.chunk_by(is_same_model) {
        if end > start && end - start + of_model.len() > CALL_PRICES {
            calls.push(&prices[start..end]);
            start = end;
        }
        end += of_model.len();
    }
    calls.push(&prices[start..end]);
    calls
}
