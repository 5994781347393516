//! The fields of an event, and the flags that say where each one comes from.

use clap::Args;

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
}

/// Fields that say how much was used.
pub const MEASURES: [Field; 5] =
    [Field::Units, Field::InputTokens, Field::OutputTokens, Field::CachedInputTokens, Field::Amount];

impl Field {
    /// All of them, in the order of their numbers.
    pub const ALL: [Field; 14] = [
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
    ];

    /// Its name in UsageEvent, and of the column that it comes from by itself.
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
        ][self as usize]
    }

    /// Every row has to have it.
    pub fn is_required(self) -> bool {
        matches!(self, Field::Client | Field::Service | Field::Time)
    }

    /// The flags that give it, without dashes.
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
        ][self as usize]
    }
}

/// Flags that map columns to fields. A field without a flag comes from the column of its own name, if there is one.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Mapping: a fixed value or a column for each field (NDJSON: key or dotted.path)")]
pub struct MappingArgs {
    /// The same client for all rows
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Column of the client
    #[arg(long, value_name = "COLUMN", conflicts_with = "client")]
    client_column: Option<String>,
    /// The same service for all rows
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Column of the service
    #[arg(long, value_name = "COLUMN", conflicts_with = "service")]
    service_column: Option<String>,
    /// The same operation for all rows
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// Column of the operation
    #[arg(long, value_name = "COLUMN", conflicts_with = "operation")]
    operation_column: Option<String>,
    /// The same model for all rows
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Column of the model
    #[arg(long, value_name = "COLUMN", conflicts_with = "model")]
    model_column: Option<String>,
    /// The same number of units for all rows
    #[arg(long, value_name = "DECIMAL")]
    units: Option<String>,
    /// Column of the number of units
    #[arg(long, value_name = "COLUMN", conflicts_with = "units")]
    units_column: Option<String>,
    /// The same input tokens for all rows
    #[arg(long, value_name = "COUNT")]
    input_tokens: Option<String>,
    /// Column of the input tokens
    #[arg(long, value_name = "COLUMN", conflicts_with = "input_tokens")]
    input_tokens_column: Option<String>,
    /// The same output tokens for all rows
    #[arg(long, value_name = "COUNT")]
    output_tokens: Option<String>,
    /// Column of the output tokens
    #[arg(long, value_name = "COLUMN", conflicts_with = "output_tokens")]
    output_tokens_column: Option<String>,
    /// The same cached input tokens for all rows
    #[arg(long, value_name = "COUNT")]
    cached_input_tokens: Option<String>,
    /// Column of the cached input tokens
    #[arg(long, value_name = "COLUMN", conflicts_with = "cached_input_tokens")]
    cached_input_tokens_column: Option<String>,
    /// The same amount for all rows
    #[arg(long, value_name = "DECIMAL")]
    amount: Option<String>,
    /// Column of the amount
    #[arg(long, value_name = "COLUMN", conflicts_with = "amount")]
    amount_column: Option<String>,
    /// A time for all rows, or "now": when they arrive
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// Column of the time
    #[arg(long, value_name = "COLUMN", conflicts_with = "time")]
    time_column: Option<String>,
    /// Column of the idempotency key; a row without one gets a key made from its content
    #[arg(long, value_name = "COLUMN")]
    key_column: Option<String>,
    /// The same subject for all rows
    #[arg(long, value_name = "ID")]
    subject: Option<String>,
    /// Column of the subject
    #[arg(long, value_name = "COLUMN", conflicts_with = "subject")]
    subject_column: Option<String>,
    /// The same external id for all rows
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Column of the external id
    #[arg(long, value_name = "COLUMN", conflicts_with = "external_id")]
    external_id_column: Option<String>,
    /// Put this column into the metadata, under its name (repeatable)
    #[arg(long, value_name = "COLUMN")]
    pub metadata_column: Vec<String>,
    /// Nothing comes from this column or key, and that is meant (repeatable)
    #[arg(long, value_name = "COLUMN")]
    pub ignore_column: Vec<String>,
}

impl MappingArgs {
    /// Names that a header may have: those of the fields and of the flags.
    pub fn column_names(&self) -> Vec<&str> {
        let given = Field::ALL.into_iter().filter_map(|field| self.flags(field).1);
        let mut names: Vec<&str> = given.chain(&self.metadata_column).map(String::as_str).collect();
        names.extend(Field::ALL.map(Field::name));
        names
    }

    /// The fixed value and the column that were given for a field.
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
            Field::Metadata => (&None, &None),
        };
        (fixed.as_ref(), column.as_ref())
    }
}
