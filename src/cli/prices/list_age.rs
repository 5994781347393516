//! The date and the age of the built-in prices of a database.

use chrono::{DateTime, NaiveDate};
use meterd_domain::period::parse_day;
use serde_json::{Value, json};

/// The built-in list that a database has.
pub struct BuiltInList {
    date: NaiveDate,
    age_days: i64,
}

impl BuiltInList {
    /// Returns the list of this date. `None` if the server does not know the date.
    pub fn new(date: &str, now: i64) -> Option<Self> {
        let date = parse_day(date)?;
        let today = DateTime::from_timestamp(now, 0)?.date_naive();
        Some(Self { date, age_days: (today - date).num_days() })
    }
}

/// Describes the list, and how to update it.
pub fn note(list: Option<&BuiltInList>) -> String {
    match list {
        Some(BuiltInList { date, age_days }) => format!(
            "note: built-in prices of {date}, {age_days} days old; `meterd prices import` updates them, with --built-in or a \
             newer file"
        ),
        None => {
            "note: built-in prices of an earlier release; `meterd prices import --built-in` updates them".to_owned()
        }
    }
}

/// Adds the list to a price, if the price is built in.
pub fn with_list(mut price: Value, list: Option<&BuiltInList>) -> Value {
    let list = list.filter(|_| price["built_in"] == true);
    price["built_in_list_date"] = json!(list.map(|list| list.date.to_string()));
    price["built_in_list_age_days"] = json!(list.map(|list| list.age_days));
    price
}
