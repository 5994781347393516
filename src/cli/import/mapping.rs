//! Where each field of an event comes from in a file at hand: a fixed value, a column, or nothing.

use std::borrow::Cow;

use super::fields::{Field, MappingArgs};
use super::rows::Cells;
use crate::cli::json::RawObject;

/// Where a field comes from, for a file at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not given.
    Nothing,
    /// The same for all rows.
    Fixed(String),
    /// A cell of a CSV row.
    Cell(usize, String),
    /// The first of these paths that an NDJSON object has.
    Path(Vec<String>),
}

impl Place {
    /// For people: which column it is.
    pub fn column(&self, field: Field) -> String {
        match self {
            Place::Cell(_, name) => name.clone(),
            Place::Path(paths) if !paths.is_empty() => paths[0].clone(),
            _ => field.name().to_owned(),
        }
    }
}

/// A mapping for a file at hand.
#[derive(Clone, Debug)]
pub struct Mapping {
    places: Vec<Place>,
    /// Columns that go into the metadata, with their names there.
    pub metadata: Vec<(Place, String)>,
    /// The file is an export, whose cells have a ' before what a spreadsheet would take for a formula.
    pub is_export: bool,
}

impl Mapping {
    /// For a CSV file with this header. Every column that a flag names has to be there.
    pub fn for_csv(args: &MappingArgs, header: &[String]) -> Result<Mapping, String> {
        let find = |name: &str| header.iter().position(|column| column == name);
        let named = |flag: String, name: &String| {
            find(name)
                .map(|index| Place::Cell(index, name.clone()))
                .ok_or_else(|| format!("--{flag} {name:?}: no such column{}", nearest(name, header)))
        };
        let mut places = Vec::new();
        for field in Field::ALL {
            let own = || find(field.name()).map(|index| Place::Cell(index, field.name().to_owned()));
            let place = match args.flags(field) {
                (Some(fixed), _) => Place::Fixed(fixed.clone()),
                (_, Some(column)) => named(format!("{}-column", field.flag()), column)?,
                _ => own().unwrap_or(Place::Nothing),
            };
            if place == Place::Nothing && field.is_required() {
                return Err(missing(field, header));
            }
            places.push(place);
        }
        let metadata = args
            .metadata_column
            .iter()
            .map(|name| Ok((named("metadata-column".to_owned(), name)?, name.clone())))
            .collect::<Result<_, String>>()?;
        let is_export =
            ["event_id", "client_id", "idempotency_key", "record_time"].iter().all(|name| find(name).is_some());
        Ok(Mapping { places, metadata, is_export })
    }

    /// For NDJSON, whose rows each have their own keys. Fields may also lie in an object `event`.
    pub fn for_json(args: &MappingArgs) -> Mapping {
        let place = |field: Field| match args.flags(field) {
            (Some(fixed), _) => Place::Fixed(fixed.clone()),
            (_, Some(column)) => Place::Path(vec![column.clone()]),
            _ => Place::Path(vec![field.name().to_owned(), format!("event.{}", field.name())]),
        };
        Mapping {
            places: Field::ALL.map(place).to_vec(),
            metadata: args.metadata_column.iter().map(|name| (Place::Path(vec![name.clone()]), name.clone())).collect(),
            is_export: false,
        }
    }

    /// Where a field comes from.
    pub fn place(&self, field: Field) -> &Place {
        &self.places[field as usize]
    }

    /// The column that a field of an error comes from; the error names it like `events[3].units`.
    pub fn column_of(&self, path: &str) -> String {
        let name = path.rsplit('.').next().unwrap_or(path);
        match Field::ALL.into_iter().find(|field| field.name() == name) {
            Some(field) => self.place(field).column(field),
            None => name.to_owned(),
        }
    }

    /// A line that says where each field comes from.
    pub fn describe(&self) -> String {
        let described = Field::ALL.iter().filter_map(|field| match self.place(*field) {
            Place::Nothing => None,
            Place::Fixed(value) => Some(format!("{} = {value:?}", field.name())),
            Place::Cell(_, name) => Some(format!("{} from {name}", field.name())),
            Place::Path(paths) if paths.len() > 1 => None,
            Place::Path(paths) => Some(format!("{} from {}", field.name(), paths[0])),
        });
        let metadata = self.metadata.iter().map(|(_, name)| format!("metadata.{name} from {name}"));
        let parts: Vec<String> = described.chain(metadata).collect();
        match parts.is_empty() {
            true => "fields by their own names".to_owned(),
            false => parts.join(", "),
        }
    }
}

fn missing(field: Field, header: &[String]) -> String {
    let flag = field.flag();
    let now = if field == Field::Time { " or --time now" } else { "" };
    format!(
        "no column is called {:?}: give --{flag}-column COLUMN or --{flag} VALUE{now} (columns: {})",
        field.name(),
        header.join(", ")
    )
}

fn nearest(name: &str, header: &[String]) -> String {
    let near = header
        .iter()
        .min_by_key(|column| strsim::levenshtein(&name.to_lowercase(), &column.to_lowercase()))
        .filter(|column| strsim::levenshtein(&name.to_lowercase(), &column.to_lowercase()) <= name.len() / 2);
    let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    format!("{hint} (columns: {})", header.join(", "))
}

/// What stands at a place of a row.
#[derive(Debug)]
pub enum Found<'a> {
    /// Text, never empty.
    Text(&'a str),
    /// A JSON value, never `null`.
    Json(Cow<'a, str>),
}

/// Looks up a place in a row. None: nothing there, or an empty cell.
pub fn find<'a>(place: &'a Place, cells: &'a Cells) -> Option<Found<'a>> {
    match (place, cells) {
        (Place::Fixed(value), _) => Some(Found::Text(value)),
        (Place::Cell(index, _), Cells::Csv(cells)) => {
            cells.get(*index).filter(|cell| !cell.is_empty()).map(|cell| Found::Text(cell))
        }
        (Place::Path(paths), Cells::Json(object)) => {
            paths.iter().find_map(|path| find_path(object, path)).map(Found::Json)
        }
        _ => None,
    }
}

/// A key of that very name wins over a path through nested objects.
fn find_path<'a>(object: &'a RawObject, path: &str) -> Option<Cow<'a, str>> {
    if let Some(raw) = object.get(path) {
        return Some(Cow::Borrowed(raw.get())).filter(|json| json != "null");
    }
    let (head, rest) = path.split_once('.')?;
    let nested: RawObject = serde_json::from_str(object.get(head)?.get()).ok()?;
    find_path(&nested, rest).map(|json| Cow::Owned(json.into_owned()))
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
