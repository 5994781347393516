//! Usage grouped by any dimensions.

use crate::engine::Engine;
use crate::fields::Fields;
use crate::paging::{Page, PageRequest};
use crate::refusal::Refusal;
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::{LABELS_MAX, Labels};
use meterd_domain::period::Month;
use meterd_domain::rollup::Sums;
use meterd_store::usage::AsOf;
use meterd_store::usage::query::{self as store, GroupBy, QueryKey, QueryRow, UsageQuery};
use std::collections::BTreeMap;

/// Maximum number of days of a query: a year.
const QUERY_DAYS_MAX: i64 = 366;
/// Maximum number of days of a query that groups by hour.
const HOUR_DAYS_MAX: i64 = 35;
const PAGE_SIZE_DEFAULT: i64 = 1_000;
const PAGE_SIZE_MAX: i64 = 10_000;

/// A dimension that usage can be grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    Day,
    Month,
    /// Hours of UTC.
    Hour,
    Client,
    Service,
    Operation,
    Model,
    Subject,
}

/// Which usage to return. Empty filters select everything.
#[derive(Debug, Default)]
pub struct QueryInput {
    pub client_ids: Vec<String>,
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub models: Vec<String>,
    pub subjects: Vec<String>,
    /// Only events that have all of these labels.
    pub labels: Labels,
    /// The clients' own days, both included.
    pub start_date: String,
    pub end_date: String,
    /// The dimensions of the rows. `Err` has the text of a value that is not a dimension.
    pub group_by: Vec<Result<Dimension, String>>,
    /// The names of labels that are also dimensions.
    pub group_by_labels: Vec<String>,
    pub count_subjects: bool,
    /// Whether only events without a charge are added up.
    pub unpriced_only: bool,
    /// Whether the rows have the sums of measures.
    pub include_measures: bool,
}

/// Usage of one combination of the dimensions. Dimensions that are not grouped by are `None`.
#[derive(Debug)]
pub struct UsageRow {
    pub day: Option<NaiveDate>,
    pub month: Option<Month>,
    /// Start of the hour.
    pub hour: Option<DateTime<Utc>>,
    pub client_id: Option<String>,
    pub service: Option<String>,
    pub operation: Option<String>,
    pub model: Option<String>,
    pub subject: Option<String>,
    /// The values of the labels that the query groups by, except empty ones.
    pub labels: Labels,
    pub sums: Sums,
    /// Number of distinct subjects, if the query counts them.
    pub subject_count: Option<i64>,
    /// Sums of measures that are not in `sums`, if the query wants them.
    pub measures: BTreeMap<String, Total>,
}

/// Returns a page of rows. A query without dimensions returns one row.
pub async fn query(
    engine: &Engine,
    input: QueryInput,
    page: PageRequest<QueryKey>,
) -> Result<AsOf<Page<UsageRow, QueryKey>>, Refusal> {
    let mut fields = Fields::default();
    let query = check(&mut fields, input);
    let size = fields.page_size(page.size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    let after = page.after?;
    let (of_query, first) = (&query, after.as_ref());
    let read = engine.reads.read(|mut conn| async move {
        let read = store::query(&mut conn, of_query, first, size + 1).await;
        (conn, read)
    });
    let mut read = read.await?;
    if query.wants_total() && after.is_none() && read.rows.is_empty() {
        read.rows.push(QueryRow::default());
    }
    let Page { rows, next } = Page::of(read.rows, size, |last| last.key.clone());
    let rows = rows.into_iter().map(|found| row(&query, found)).collect();
    Ok(AsOf { complete_as_of: read.complete_as_of, rows: Page { rows, next } })
}

fn check(fields: &mut Fields, input: QueryInput) -> UsageQuery {
    fields.filter("client_ids", &input.client_ids);
    fields.filter("services", &input.services);
    fields.filter("operations", &input.operations);
    fields.filter("models", &input.models);
    fields.filter("subjects", &input.subjects);
    fields.labels("labels", &input.labels);
    let group_by = group_by(fields, &input.group_by);
    check_label_names(fields, &input.group_by_labels);
    let days_max = if group_by.hour { HOUR_DAYS_MAX } else { QUERY_DAYS_MAX };
    let (start, end) = fields.days(&input.start_date, &input.end_date, days_max);
    UsageQuery {
        client_ids: input.client_ids,
        services: input.services,
        operations: input.operations,
        models: input.models,
        subjects: input.subjects,
        labels: input.labels,
        start,
        end,
        group_by,
        group_by_labels: input.group_by_labels,
        count_subjects: input.count_subjects,
        unpriced_only: input.unpriced_only,
        include_measures: input.include_measures,
    }
}

fn check_label_names(fields: &mut Fields, names: &[String]) {
    fields.at_most("group_by_labels", names.len(), LABELS_MAX);
    for (index, name) in names.iter().enumerate() {
        let field = format!("group_by_labels[{index}]");
        match names[..index].contains(name) {
            true => fields.wrong(field, "is there already: each label at most once"),
            false => fields.label_name(&field, name),
        }
    }
}

fn group_by(fields: &mut Fields, dimensions: &[Result<Dimension, String>]) -> GroupBy {
    let mut by = GroupBy::default();
    for (index, dimension) in dimensions.iter().enumerate() {
        let flag = match dimension {
            Ok(Dimension::Day) => &mut by.day,
            Ok(Dimension::Month) => &mut by.month,
            Ok(Dimension::Hour) => &mut by.hour,
            Ok(Dimension::Client) => &mut by.client,
            Ok(Dimension::Service) => &mut by.service,
            Ok(Dimension::Operation) => &mut by.operation,
            Ok(Dimension::Model) => &mut by.model,
            Ok(Dimension::Subject) => &mut by.subject,
            Err(value) => {
                fields.wrong(format!("group_by[{index}]"), format!("{value} is no dimension"));
                continue;
            }
        };
        if std::mem::replace(flag, true) {
            fields.wrong(format!("group_by[{index}]"), "is there already: each dimension at most once");
        }
    }
    by
}

fn row(query: &UsageQuery, row: QueryRow) -> UsageRow {
    let QueryKey { day, month, hour, client_id, service, operation, model, subject, labels } = row.key;
    let labels = query.group_by_labels.iter().cloned().zip(labels);
    let by = query.group_by;
    UsageRow {
        day: by.day.then_some(day),
        month: by.month.then(|| Month::of(month)),
        hour: by.hour.then_some(hour),
        client_id: by.client.then_some(client_id),
        service: by.service.then_some(service),
        operation: by.operation.then_some(operation),
        model: by.model.then_some(model),
        subject: by.subject.then_some(subject),
        labels: labels.filter(|(_, value)| !value.is_empty()).collect(),
        sums: row.sums,
        subject_count: query.count_subjects.then_some(row.subject_count),
        measures: row.measures,
    }
}
