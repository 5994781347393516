//! Where each field of an event comes from in a file at hand: a fixed value, a column, or nothing.

use std::borrow::Cow;

use super::fields::{Field, MEASURES, MappingArgs};
use super::names::{EXPORT_ONLY, is_same, meant_by};
use super::objects::meant_within;
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
    /// Columns of a CSV file that nothing comes from.
    pub unused: Vec<String>,
    /// Names that nothing has to come from.
    ignored: Vec<String>,
}

impl Mapping {
    /// For a CSV file with this header. Every column that a flag names has to be there.
    pub fn for_csv(args: &MappingArgs, header: &[String]) -> Result<Mapping, String> {
        let mut wrong = Vec::new();
        let named = |flag: &str, name: &String| {
            let found = column(name, header)?;
            found.ok_or_else(|| format!("--{flag} {name:?}: no such column{}", nearest(name, header)))
        };
        let mut places = Vec::new();
        for field in Field::ALL {
            let place = match args.flags(field) {
                (Some(fixed), _) => Ok(Place::Fixed(fixed.clone())),
                (_, Some(name)) => named(&format!("{}-column", field.flag()), name),
                _ => column(field.name(), header).and_then(|place| match place {
                    None if field.is_required() => Err(missing(field, header)),
                    place => Ok(place.unwrap_or(Place::Nothing)),
                }),
            };
            places.push(place.unwrap_or_else(|message| {
                wrong.push(message);
                Place::Nothing
            }));
        }
        let mut metadata = Vec::new();
        for name in &args.metadata_column {
            match named("metadata-column", name) {
                Ok(place) => metadata.push((place, name.clone())),
                Err(message) => wrong.push(message),
            }
        }
        if !wrong.is_empty() {
            return Err(format!("{} (columns: {}){}", wrong.join("; "), header.join(", "), header_hint(header)));
        }
        let is_export = ["event_id", "client_id", "idempotency_key", "record_time"]
            .iter()
            .all(|name| header.iter().any(|column| column == name));
        let ignored = args.ignore_column.clone();
        let mut mapping = Mapping { places, metadata, is_export, unused: Vec::new(), ignored };
        mapping.unused = mapping.unused_columns(header);
        Ok(mapping)
    }

    fn unused_columns(&self, header: &[String]) -> Vec<String> {
        let places = self.places.iter().chain(self.metadata.iter().map(|(place, _)| place));
        let used: Vec<usize> =
            places.filter_map(|place| if let Place::Cell(index, _) = place { Some(*index) } else { None }).collect();
        let is_unused = |(index, name): &(usize, &String)| {
            !(used.contains(index) || self.is_ignored(name) || self.is_export && EXPORT_ONLY.contains(&name.as_str()))
        };
        let columns = header.iter().enumerate().filter(is_unused);
        columns
            .map(|(index, name)| match name.is_empty() {
                true => format!("{} (it has no name)", index + 1),
                false => name.clone(),
            })
            .collect()
    }

    fn is_ignored(&self, name: &str) -> bool {
        self.ignored.iter().any(|ignored| ignored == name)
    }

    /// Keys of a JSON object that nothing comes from.
    pub fn unused_keys(&self, object: &RawObject) -> Vec<String> {
        let is_export = value_of(object, "event_id").is_some();
        let mut unused = Vec::new();
        for (key, value) in object {
            if (is_export && EXPORT_ONLY.iter().any(|name| is_same(name, key)))
                || self.is_ignored(key)
                || self.uses(key, object)
            {
                continue;
            }
            // A recorded event in its envelope.
            match serde_json::from_str::<RawObject>(value.get()) {
                Ok(event) if key == "event" => {
                    let own = event.keys().filter(|key| !Field::ALL.iter().any(|field| is_same(field.name(), key)));
                    unused.extend(own.map(|key| format!("event.{key}")).filter(|key| !self.is_ignored(key)));
                }
                _ => {
                    let within = meant_within(key, value, &self.free_fields());
                    unused.extend(if within.is_empty() { vec![key.clone()] } else { within });
                }
            }
        }
        unused
    }

    /// Two keys of an object that differ from the name of a field in case and punctuation only.
    pub fn twins<'a>(&self, field: Field, object: &'a RawObject) -> Option<[&'a str; 2]> {
        let has_own_path = matches!(self.place(field), Place::Path(paths) if paths.len() > 1);
        if !has_own_path || object.contains_key(field.name()) {
            return None;
        }
        let mut similar = object.keys().filter(|key| is_same(key, field.name()));
        Some([similar.next()?, similar.next()?])
    }

    /// Whether something comes from a key of an object, or from what is in it.
    fn uses(&self, key: &str, object: &RawObject) -> bool {
        let reaches = |path: &String| {
            let head = path.split_once('.').map_or(path.as_str(), |(head, _)| head);
            let is_similar = || !path.contains('.') && is_same(key, path) && !object.contains_key(path);
            key == path || (key == head && key != "event") || is_similar()
        };
        let places = self.places.iter().chain(self.metadata.iter().map(|(place, _)| place));
        places.into_iter().any(|place| matches!(place, Place::Path(paths) if paths.iter().any(reaches)))
    }

    /// What to say of a column or key that nothing comes from.
    pub fn unused_text(&self, name: &str) -> String {
        format!("{name}{}", self.unused_hint(name))
    }

    /// Fields that nothing was given for.
    fn free_fields(&self) -> Vec<Field> {
        let is_free = |field: &Field| match self.place(*field) {
            Place::Nothing => true,
            Place::Path(paths) => paths.len() > 1,
            _ => false,
        };
        Field::ALL.into_iter().filter(is_free).collect()
    }

    /// What a column or key that nothing comes from may be meant for.
    pub fn unused_hint(&self, name: &str) -> String {
        match meant_by(name.rsplit('.').next().unwrap_or(name), &self.free_fields()) {
            Some(Field::Metadata) => "; did you mean metadata?".to_owned(),
            Some(field) => {
                format!("; did you mean {}? --{}-column {name:?} takes it from there", field.name(), field.flag())
            }
            None => String::new(),
        }
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
            unused: Vec::new(),
            ignored: args.ignore_column.clone(),
        }
    }

    /// Where a field comes from.
    pub fn place(&self, field: Field) -> &Place {
        &self.places[field as usize]
    }

    /// Whether a line of text would not pass for a row: a cell of it has to be a number or a time.
    pub fn tells_rows_from_text(&self) -> bool {
        let strict = MEASURES.into_iter().chain([Field::Time]);
        strict.into_iter().any(|field| matches!(self.place(field), Place::Cell(..)))
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

/// The column of a name: exactly that, or one that differs in case and punctuation only.
fn column(name: &str, header: &[String]) -> Result<Option<Place>, String> {
    let places = |matches: &dyn Fn(&str) -> bool| -> Vec<usize> {
        header.iter().enumerate().filter(|(_, column)| matches(column)).map(|(index, _)| index).collect()
    };
    let exact = places(&|column| column == name);
    let found = if exact.is_empty() { places(&|column| is_same(column, name)) } else { exact };
    match found[..] {
        [] => Ok(None),
        [index] => Ok(Some(Place::Cell(index, header[index].clone()))),
        [first, second, ..] => Err(format!(
            "columns {} and {} are both called {:?}: give one of them another name in the header line",
            first + 1,
            second + 1,
            header[first]
        )),
    }
}

/// Says that a required field has no column.
fn missing(field: Field, header: &[String]) -> String {
    let flag = field.flag();
    let now = if field == Field::Time { " or --time now" } else { "" };
    let meant = header.iter().find(|column| meant_by(column, &[field]).is_some());
    let meant = meant.map_or(String::new(), |column| format!(" (did you mean {column:?}?)"));
    let name = field.name();
    format!("no column is called {name:?}{meant}: give --{flag}-column COLUMN or --{flag} VALUE{now}")
}

/// What may be wrong with a line that is no header.
fn header_hint(header: &[String]) -> &'static str {
    let is_quoted_whole = header.len() == 1 && header[0].contains([',', ';', '\t']);
    let is_header = Field::ALL.iter().any(|field| header.iter().any(|name| meant_by(name, &[*field]).is_some()));
    match (is_quoted_whole, is_header) {
        (true, _) => "; each line is in quotes as a whole: take these off",
        (_, false) => "; if this is not the header line, give --skip-lines",
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

/// A key of that very name wins over one that differs in case and punctuation, and that over a path through nested objects.
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
    let similar = || object.iter().find(|(key, _)| !name.contains('.') && is_same(key, name)).map(|(_, raw)| raw);
    object.get(name).or_else(similar).map(|raw| raw.get())
}

/// Whether a row has a place at all, be it empty: the column, or the key.
pub fn is_there(place: &Place, cells: &Cells) -> bool {
    match (place, cells) {
        (Place::Cell(..), Cells::Csv(_)) => true,
        (Place::Path(paths), Cells::Json(object)) => paths.iter().any(|path| {
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
