//! The mapping of a file: the source of each field of an event, such as a column or a fixed value.

use std::borrow::Cow;

use super::fields::{Field, MEASURES, MappingArgs};
use super::names::{EXPORT_ONLY, is_same_name, similar_field};
use super::objects::similar_paths;
use super::rows::Cells;
use crate::cli::json::RawObject;

/// The source of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldSource {
    /// The field has no source.
    Unmapped,
    /// A fixed value for all rows.
    Fixed(String),
    /// A cell of a CSV row: the index and the name of its column.
    Cell(usize, String),
    /// The first of these paths that an NDJSON object has.
    Path(Vec<String>),
}

impl FieldSource {
    /// The name of the column or key, for messages.
    pub fn column(&self, field: Field) -> String {
        match self {
            FieldSource::Cell(_, name) => name.clone(),
            FieldSource::Path(paths) if !paths.is_empty() => paths[0].clone(),
            _ => field.name().to_owned(),
        }
    }
}

/// The mapping of a file.
#[derive(Clone, Debug)]
pub struct Mapping {
    sources: Vec<FieldSource>,
    /// Columns that are added to the metadata, with their names.
    pub metadata: Vec<(FieldSource, String)>,
    /// Columns of other measures, with the names of the measures.
    pub measures: Vec<(FieldSource, String)>,
    /// Columns of labels, with the names of the labels.
    pub labels: Vec<(FieldSource, String)>,
    /// Whether the file is an export of meterd. Its cells have a leading `'` if a spreadsheet would evaluate them as a formula.
    pub is_export: bool,
    /// Unused columns of a CSV file.
    pub unused: Vec<String>,
    /// Columns and keys that are unused on purpose.
    ignored: Vec<String>,
}

impl Mapping {
    /// Creates the mapping of a CSV file with this header. Every column that a flag names must exist.
    pub fn for_csv(args: &MappingArgs, header: &[String]) -> Result<Mapping, String> {
        let mut wrong = Vec::new();
        let named = |flag: &str, name: &String| {
            let found = column(name, header)?;
            found.ok_or_else(|| format!("--{flag} {name:?}: the file has no such column{}", nearest(name, header)))
        };
        let mut sources = Vec::new();
        for field in Field::ALL {
            let source = match args.flags(field) {
                (Some(fixed), _) => Ok(FieldSource::Fixed(fixed.clone())),
                (_, Some(name)) => named(&format!("{}-column", field.flag()), name),
                _ => column(field.name(), header).and_then(|source| match source {
                    None if field.is_required() => Err(missing(field, header)),
                    source => Ok(source.unwrap_or(FieldSource::Unmapped)),
                }),
            };
            sources.push(source.unwrap_or_else(|message| {
                wrong.push(message);
                FieldSource::Unmapped
            }));
        }
        let mut metadata = Vec::new();
        for name in &args.metadata_column {
            match named("metadata-column", name) {
                Ok(source) => metadata.push((source, name.clone())),
                Err(message) => wrong.push(message),
            }
        }
        let mut of_flag = |flag: &str, columns: &[(String, String)]| {
            let mut sources = Vec::new();
            for (name, column) in columns {
                match named(flag, column) {
                    Ok(source) => sources.push((source, name.clone())),
                    Err(message) => wrong.push(message),
                }
            }
            sources
        };
        let measures = of_flag("measure-column", &args.measure_column);
        let labels = of_flag("label-column", &args.label_column);
        if !wrong.is_empty() {
            return Err(format!("{} (columns: {}){}", wrong.join("; "), header.join(", "), header_hint(header)));
        }
        let is_export = ["event_id", "client_id", "idempotency_key", "record_time"]
            .iter()
            .all(|name| header.iter().any(|column| column == name));
        let ignored = args.ignore_column.clone();
        let mut mapping = Mapping { sources, metadata, measures, labels, is_export, unused: Vec::new(), ignored };
        mapping.unused = mapping.unused_columns(header);
        Ok(mapping)
    }

    fn unused_columns(&self, header: &[String]) -> Vec<String> {
        let used: Vec<usize> = self
            .all_sources()
            .filter_map(|source| if let FieldSource::Cell(index, _) = source { Some(*index) } else { None })
            .collect();
        let is_unused = |(index, name): &(usize, &String)| {
            !(used.contains(index) || self.is_ignored(name) || self.is_export && EXPORT_ONLY.contains(&name.as_str()))
        };
        let columns = header.iter().enumerate().filter(is_unused);
        columns
            .map(|(index, name)| match name.is_empty() {
                true => format!("{} (without a name)", index + 1),
                false => name.clone(),
            })
            .collect()
    }

    fn all_sources(&self) -> impl Iterator<Item = &FieldSource> {
        let named = self.metadata.iter().chain(&self.measures).chain(&self.labels);
        self.sources.iter().chain(named.map(|(source, _)| source))
    }

    fn is_ignored(&self, name: &str) -> bool {
        self.ignored.iter().any(|ignored| ignored == name)
    }

    /// Returns the unused keys of a JSON object.
    pub fn unused_keys(&self, object: &RawObject) -> Vec<String> {
        let is_export = value_of(object, "event_id").is_some();
        let mut unused = Vec::new();
        for (key, value) in object {
            if (is_export && EXPORT_ONLY.iter().any(|name| is_same_name(name, key)))
                || self.is_ignored(key)
                || self.uses(key, object)
            {
                continue;
            }
            // An object `event` that contains the fields.
            match serde_json::from_str::<RawObject>(value.get()) {
                Ok(event) if key == "event" => {
                    let own =
                        event.keys().filter(|key| !Field::ALL.iter().any(|field| is_same_name(field.name(), key)));
                    unused.extend(own.map(|key| format!("event.{key}")).filter(|key| !self.is_ignored(key)));
                }
                _ => {
                    let within = similar_paths(key, value, &self.free_fields());
                    unused.extend(if within.is_empty() { vec![key.clone()] } else { within });
                }
            }
        }
        unused
    }

    /// Returns two keys of an object that both match the name of a field, except for case and punctuation.
    pub fn ambiguous_keys<'a>(&self, field: Field, object: &'a RawObject) -> Option<[&'a str; 2]> {
        let has_own_path = matches!(self.source(field), FieldSource::Path(paths) if paths.len() > 1);
        if !has_own_path || object.contains_key(field.name()) {
            return None;
        }
        let mut similar = object.keys().filter(|key| is_same_name(key, field.name()));
        Some([similar.next()?, similar.next()?])
    }

    /// Whether a field or the metadata uses a key of an object, or a key inside its value.
    fn uses(&self, key: &str, object: &RawObject) -> bool {
        let reaches = |path: &String| {
            let head = path.split_once('.').map_or(path.as_str(), |(head, _)| head);
            let is_similar = || !path.contains('.') && is_same_name(key, path) && !object.contains_key(path);
            key == path || (key == head && key != "event") || is_similar()
        };
        self.all_sources().any(|source| matches!(source, FieldSource::Path(paths) if paths.iter().any(reaches)))
    }

    /// Describes an unused column or key, with a suggestion.
    pub fn unused_text(&self, name: &str) -> String {
        format!("{name}{}", self.unused_hint(name))
    }

    /// Fields without a flag and without a column.
    fn free_fields(&self) -> Vec<Field> {
        let is_free = |field: &Field| match self.source(*field) {
            FieldSource::Unmapped => true,
            FieldSource::Path(paths) => paths.len() > 1,
            _ => false,
        };
        Field::ALL.into_iter().filter(is_free).collect()
    }

    /// Suggests a field for an unused column or key.
    pub fn unused_hint(&self, name: &str) -> String {
        match similar_field(name.rsplit('.').next().unwrap_or(name), &self.free_fields()) {
            Some(Field::Metadata) => "; did you mean metadata?".to_owned(),
            Some(field) => {
                format!("; did you mean {}? Then use --{}-column {name:?}", field.name(), field.flag())
            }
            None => String::new(),
        }
    }

    /// Creates the mapping of a JSON file. Each row has its own keys; fields can also be in an object `event`.
    pub fn for_json(args: &MappingArgs) -> Mapping {
        let source = |field: Field| match args.flags(field) {
            (Some(fixed), _) => FieldSource::Fixed(fixed.clone()),
            (_, Some(column)) => FieldSource::Path(vec![column.clone()]),
            _ => FieldSource::Path(vec![field.name().to_owned(), format!("event.{}", field.name())]),
        };
        let of_flag = |columns: &[(String, String)]| {
            let paths = columns.iter().map(|(name, column)| (FieldSource::Path(vec![column.clone()]), name.clone()));
            paths.collect()
        };
        Mapping {
            sources: Field::ALL.map(source).to_vec(),
            metadata: args
                .metadata_column
                .iter()
                .map(|name| (FieldSource::Path(vec![name.clone()]), name.clone()))
                .collect(),
            measures: of_flag(&args.measure_column),
            labels: of_flag(&args.label_column),
            is_export: false,
            unused: Vec::new(),
            ignored: args.ignore_column.clone(),
        }
    }

    /// The source of a field.
    pub fn source(&self, field: Field) -> &FieldSource {
        &self.sources[field as usize]
    }

    /// Whether a column must contain numbers or times, so that a line of text is not mistaken for a row.
    pub fn has_typed_column(&self) -> bool {
        let strict = MEASURES.into_iter().chain([Field::Time]);
        strict.into_iter().any(|field| matches!(self.source(field), FieldSource::Cell(..)))
    }

    /// The column of a field in an error of the server, such as `events[3].units`.
    pub fn column_of(&self, path: &str) -> String {
        let name = path.rsplit('.').next().unwrap_or(path);
        match Field::ALL.into_iter().find(|field| field.name() == name) {
            Some(field) => self.source(field).column(field),
            None => name.to_owned(),
        }
    }

    /// Describes the source of each field in one line.
    pub fn describe(&self) -> String {
        let described = Field::ALL.iter().filter_map(|field| match self.source(*field) {
            FieldSource::Unmapped => None,
            FieldSource::Fixed(value) => Some(format!("{} = {value:?}", field.name())),
            FieldSource::Cell(_, name) => Some(format!("{} from {name}", field.name())),
            FieldSource::Path(paths) if paths.len() > 1 => None,
            FieldSource::Path(paths) => Some(format!("{} from {}", field.name(), paths[0])),
        });
        let metadata = self.metadata.iter().map(|(_, name)| format!("metadata.{name} from {name}"));
        let of_flag = |field: Field, columns: &[(FieldSource, String)]| {
            let texts =
                columns.iter().map(|(source, name)| format!("{}.{name} from {}", field.name(), source.column(field)));
            texts.collect::<Vec<_>>()
        };
        let (measures, labels) = (of_flag(Field::Measures, &self.measures), of_flag(Field::Labels, &self.labels));
        let parts: Vec<String> = described.chain(measures).chain(labels).chain(metadata).collect();
        match parts.is_empty() {
            true => "all fields from the keys of the same name".to_owned(),
            false => parts.join(", "),
        }
    }
}

/// Finds a column by its exact name, or by a name that only differs in case and punctuation.
fn column(name: &str, header: &[String]) -> Result<Option<FieldSource>, String> {
    let sources = |matches: &dyn Fn(&str) -> bool| -> Vec<usize> {
        header.iter().enumerate().filter(|(_, column)| matches(column)).map(|(index, _)| index).collect()
    };
    let exact = sources(&|column| column == name);
    let found = if exact.is_empty() { sources(&|column| is_same_name(column, name)) } else { exact };
    match found[..] {
        [] => Ok(None),
        [index] => Ok(Some(FieldSource::Cell(index, header[index].clone()))),
        [first, second, ..] => Err(format!(
            "columns {} and {} both have the name {:?}: rename one of them in the header line",
            first + 1,
            second + 1,
            header[first]
        )),
    }
}

/// The error for a required field without a column.
fn missing(field: Field, header: &[String]) -> String {
    let flag = field.flag();
    let now = if field == Field::Time { " or --time now" } else { "" };
    let hint = header.iter().find(|column| similar_field(column, &[field]).is_some());
    let hint = hint.map_or(String::new(), |column| format!(" (did you mean {column:?}?)"));
    let name = field.name();
    format!("no column has the name {name:?}{hint}: add --{flag}-column COLUMN or --{flag} VALUE{now}")
}

/// A hint for a line that does not look like a header.
fn header_hint(header: &[String]) -> &'static str {
    let is_quoted_whole = header.len() == 1 && header[0].contains([',', ';', '\t']);
    let is_header = Field::ALL.iter().any(|field| header.iter().any(|name| similar_field(name, &[*field]).is_some()));
    match (is_quoted_whole, is_header) {
        (true, _) => "; each line is in quotes as a whole: remove these quotes",
        (_, false) => "; if this is not the header line, add --skip-lines",
        _ => "",
    }
}

fn nearest(name: &str, header: &[String]) -> String {
    let near = header
        .iter()
        .min_by_key(|column| strsim::levenshtein(&name.to_lowercase(), &column.to_lowercase()))
        .filter(|column| strsim::levenshtein(&name.to_lowercase(), &column.to_lowercase()) <= name.len() / 2);
    near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
}

/// A value of a row.
#[derive(Debug)]
pub enum Found<'a> {
    /// Text, never empty.
    Text(&'a str),
    /// A JSON value, never `null`.
    Json(Cow<'a, str>),
}

/// Returns the value of a source in a row. `None` if it does not exist or is empty.
pub fn find<'a>(source: &'a FieldSource, cells: &'a Cells) -> Option<Found<'a>> {
    match (source, cells) {
        (FieldSource::Fixed(value), _) => Some(Found::Text(value)),
        (FieldSource::Cell(index, _), Cells::Csv(cells)) => {
            cells.get(*index).filter(|cell| !cell.is_empty()).map(|cell| Found::Text(cell))
        }
        (FieldSource::Path(paths), Cells::Json(object)) => {
            paths.iter().find_map(|path| find_path(object, path)).map(Found::Json)
        }
        _ => None,
    }
}

/// Finds a value by its key or path. An exact key has precedence over a key that differs in case and punctuation, and that over
/// a path through nested objects.
fn find_path<'a>(object: &'a RawObject, path: &str) -> Option<Cow<'a, str>> {
    match value_of(object, path) {
        Some(raw) => Some(Cow::Borrowed(raw)).filter(|json| json != "null"),
        None => {
            let (head, rest) = path.split_once('.')?;
            let nested: RawObject = serde_json::from_str(value_of(object, head)?).ok()?;
            find_path(&nested, rest).map(|json| Cow::Owned(json.into_owned()))
        }
    }
}

fn value_of<'a>(object: &'a RawObject, name: &str) -> Option<&'a str> {
    let similar = || object.iter().find(|(key, _)| !name.contains('.') && is_same_name(key, name)).map(|(_, raw)| raw);
    object.get(name).or_else(similar).map(|raw| raw.get())
}

/// Whether the column or key of a source exists in a row, even if it is empty.
pub fn exists(source: &FieldSource, cells: &Cells) -> bool {
    match (source, cells) {
        (FieldSource::Cell(..), Cells::Csv(_)) => true,
        (FieldSource::Path(paths), Cells::Json(object)) => paths.iter().any(|path| {
            value_of(object, path).is_some()
                || path.split_once('.').is_some_and(|(head, rest)| {
                    let nested = value_of(object, head).and_then(|raw| serde_json::from_str::<RawObject>(raw).ok());
                    nested.is_some_and(|nested| value_of(&nested, rest).is_some())
                })
        }),
        _ => false,
    }
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
