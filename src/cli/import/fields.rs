//! The fields of an event, and the flags that set their sources.

use clap::Args;
use meterd_domain::event::LABEL_NAME_BYTES_MAX;
use meterd_domain::measures::check_name;

/// A field of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Field {
    Client,
    Service,
    Operation,
    Model,
    Units,
    InputTokens,
    OutputTokens,
    CachedInputTokens,
    Amount,
    Time,
    Key,
    Subject,
    ExternalId,
    Metadata,
    ServiceTier,
    Measures,
    ReportedCost,
    Labels,
    /// Set in the rows of voided events of an export.
    VoidTime,
}

/// Fields that contain quantities.
pub const MEASURES: [Field; 6] = [
    Field::Units,
    Field::InputTokens,
    Field::OutputTokens,
    Field::CachedInputTokens,
    Field::Amount,
    Field::ReportedCost,
];

impl Field {
    /// All fields, in the order of their numbers.
    pub const ALL: [Field; 19] = [
        Field::Client,
        Field::Service,
        Field::Operation,
        Field::Model,
        Field::Units,
        Field::InputTokens,
        Field::OutputTokens,
        Field::CachedInputTokens,
        Field::Amount,
        Field::Time,
        Field::Key,
        Field::Subject,
        Field::ExternalId,
        Field::Metadata,
        Field::ServiceTier,
        Field::Measures,
        Field::ReportedCost,
        Field::Labels,
        Field::VoidTime,
    ];

    /// The name in UsageEvent and of the default column.
    pub fn name(self) -> &'static str {
        [
            "client_id",
            "service",
            "operation",
            "model",
            "units",
            "input_tokens",
            "output_tokens",
            "cached_input_tokens",
            "amount",
            "event_time",
            "idempotency_key",
            "subject",
            "external_id",
            "metadata",
            "service_tier",
            "measures",
            "reported_cost",
            "labels",
            "void_time",
        ][self as usize]
    }

    /// Whether every row must have the field.
    pub fn is_required(self) -> bool {
        matches!(self, Field::Client | Field::Service | Field::Time)
    }

    /// The name of its flag, without dashes.
    pub fn flag(self) -> &'static str {
        [
            "client",
            "service",
            "operation",
            "model",
            "units",
            "input-tokens",
            "output-tokens",
            "cached-input-tokens",
            "amount",
            "time",
            "key",
            "subject",
            "external-id",
            "metadata",
            "service-tier",
            "measures",
            "reported-cost",
            "labels",
            "void-time",
        ][self as usize]
    }
}

/// Flags that map columns to fields. A field without a flag comes from the column of the same name, if it exists.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Mapping: a fixed value or a column for each field (JSON: key or dotted.path)")]
pub struct MappingArgs {
    /// Client of all rows
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Column of the client
    #[arg(long, value_name = "COLUMN", conflicts_with = "client")]
    client_column: Option<String>,
    /// Service of all rows
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Column of the service
    #[arg(long, value_name = "COLUMN", conflicts_with = "service")]
    service_column: Option<String>,
    /// Operation of all rows
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// Column of the operation
    #[arg(long, value_name = "COLUMN", conflicts_with = "operation")]
    operation_column: Option<String>,
    /// Model of all rows
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Column of the model
    #[arg(long, value_name = "COLUMN", conflicts_with = "model")]
    model_column: Option<String>,
    /// Number of units of each row
    #[arg(long, value_name = "DECIMAL")]
    units: Option<String>,
    /// Column of the number of units
    #[arg(long, value_name = "COLUMN", conflicts_with = "units")]
    units_column: Option<String>,
    /// Number of input tokens of each row
    #[arg(long, value_name = "COUNT")]
    input_tokens: Option<String>,
    /// Column of the input tokens
    #[arg(long, value_name = "COLUMN", conflicts_with = "input_tokens")]
    input_tokens_column: Option<String>,
    /// Number of output tokens of each row
    #[arg(long, value_name = "COUNT")]
    output_tokens: Option<String>,
    /// Column of the output tokens
    #[arg(long, value_name = "COLUMN", conflicts_with = "output_tokens")]
    output_tokens_column: Option<String>,
    /// Number of cached input tokens of each row
    #[arg(long, value_name = "COUNT")]
    cached_input_tokens: Option<String>,
    /// Column of the cached input tokens
    #[arg(long, value_name = "COLUMN", conflicts_with = "cached_input_tokens")]
    cached_input_tokens_column: Option<String>,
    /// Amount of each row, in the currency of the deployment
    #[arg(long, value_name = "DECIMAL")]
    amount: Option<String>,
    /// Column of the amount
    #[arg(long, value_name = "COLUMN", conflicts_with = "amount")]
    amount_column: Option<String>,
    /// Time of all rows, or "now" for the time of the import
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// Column of the time
    #[arg(long, value_name = "COLUMN", conflicts_with = "time")]
    time_column: Option<String>,
    /// Column of the idempotency key; a row without a key gets one from its contents
    #[arg(long, value_name = "COLUMN")]
    key_column: Option<String>,
    /// Subject of all rows
    #[arg(long, value_name = "ID")]
    subject: Option<String>,
    /// Column of the subject
    #[arg(long, value_name = "COLUMN", conflicts_with = "subject")]
    subject_column: Option<String>,
    /// External id of all rows
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Column of the external id
    #[arg(long, value_name = "COLUMN", conflicts_with = "external_id")]
    external_id_column: Option<String>,
    /// Service tier of all rows, such as batch
    #[arg(long, value_name = "NAME")]
    service_tier: Option<String>,
    /// Column of the service tier
    #[arg(long, value_name = "COLUMN", conflicts_with = "service_tier")]
    service_tier_column: Option<String>,
    /// Reported cost of each row, in the currency of the deployment
    #[arg(long, value_name = "DECIMAL")]
    reported_cost: Option<String>,
    /// Column of the cost that the provider reports
    #[arg(long, value_name = "COLUMN", conflicts_with = "reported_cost")]
    reported_cost_column: Option<String>,
    /// Column of a label, with the name of the column, or NAME=COLUMN for another name; repeat the flag for more
    #[arg(long, value_name = "[NAME=]COLUMN", value_parser = parse_label_column)]
    pub label_column: Vec<(String, String)>,
    /// Column of another measure, with the name of the column, or NAME=COLUMN for another name; repeat the flag for more
    #[arg(long, value_name = "[NAME=]COLUMN", value_parser = parse_measure_column)]
    pub measure_column: Vec<(String, String)>,
    /// Add this column to the metadata, with the same name; repeat the flag for more
    #[arg(long, value_name = "COLUMN")]
    pub metadata_column: Vec<String>,
    /// Do not report this column or key as unused; repeat the flag for more
    #[arg(long, value_name = "COLUMN")]
    pub ignore_column: Vec<String>,
}

/// Parses the name of a measure and its column.
fn parse_measure_column(text: &str) -> Result<(String, String), String> {
    let (name, column) = text.split_once('=').unwrap_or((text, text));
    check_name(name).map_err(|predicate| format!("{name:?} {predicate}; NAME=COLUMN gives a column another name"))?;
    Ok((name.to_owned(), column.to_owned()))
}

/// Parses the name of a label and its column.
fn parse_label_column(text: &str) -> Result<(String, String), String> {
    let (name, column) = text.split_once('=').unwrap_or((text, text));
    match name.len() {
        1..=LABEL_NAME_BYTES_MAX => Ok((name.to_owned(), column.to_owned())),
        length => Err(format!(
            "{name:?} must be a name of 1 to {LABEL_NAME_BYTES_MAX} bytes, has {length}; NAME=COLUMN gives a column another name"
        )),
    }
}

impl MappingArgs {
    /// Expected names of columns: the names of the fields and the values of the flags.
    pub fn column_names(&self) -> Vec<&str> {
        let from_flags = Field::ALL.into_iter().filter_map(|field| self.flags(field).1);
        let of_measures = self.measure_column.iter().chain(&self.label_column).map(|(_, column)| column);
        let mut names: Vec<&str> =
            from_flags.chain(&self.metadata_column).chain(of_measures).map(String::as_str).collect();
        names.extend(Field::ALL.map(Field::name));
        names
    }

    /// The fixed value and the column of a field according to the flags.
    pub fn flags(&self, field: Field) -> (Option<&String>, Option<&String>) {
        let (fixed, column) = match field {
            Field::Client => (&self.client, &self.client_column),
            Field::Service => (&self.service, &self.service_column),
            Field::Operation => (&self.operation, &self.operation_column),
            Field::Model => (&self.model, &self.model_column),
            Field::Units => (&self.units, &self.units_column),
            Field::InputTokens => (&self.input_tokens, &self.input_tokens_column),
            Field::OutputTokens => (&self.output_tokens, &self.output_tokens_column),
            Field::CachedInputTokens => (&self.cached_input_tokens, &self.cached_input_tokens_column),
            Field::Amount => (&self.amount, &self.amount_column),
            Field::Time => (&self.time, &self.time_column),
            Field::Key => (&None, &self.key_column),
            Field::Subject => (&self.subject, &self.subject_column),
            Field::ExternalId => (&self.external_id, &self.external_id_column),
            Field::ReportedCost => (&self.reported_cost, &self.reported_cost_column),
            Field::Metadata | Field::Measures | Field::Labels | Field::VoidTime => (&None, &None),
            Field::ServiceTier => (&self.service_tier, &self.service_tier_column),
        };
        (fixed.as_ref(), column.as_ref())
    }
}
