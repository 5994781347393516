//! QueryUsage.

use crate::grpc::Context;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::Fields;
use crate::proto::{QueryUsageRequest, QueryUsageResponse, UsageDimension, UsageRow};
use meterd_domain::period::Month;
use meterd_engine::refusal::Refusal;
use meterd_store::connect;
use meterd_store::query::{self, GroupBy, QueryKey, QueryRow, UsageQuery};
use std::sync::Arc;

/// Longest range, in days: a year.
const QUERY_DAYS_MAX: i64 = 366;
const QUERY_PAGE_SIZE_DEFAULT: i64 = 1_000;
const QUERY_PAGE_SIZE_MAX: i64 = 10_000;

fn group_by(fields: &mut Fields, dimensions: &[i32]) -> GroupBy {
    let mut by = GroupBy::default();
    for (index, dimension) in dimensions.iter().enumerate() {
        let flag = match UsageDimension::try_from(*dimension) {
            Ok(UsageDimension::Day) => &mut by.day,
            Ok(UsageDimension::Month) => &mut by.month,
            Ok(UsageDimension::Client) => &mut by.client,
            Ok(UsageDimension::Service) => &mut by.service,
            Ok(UsageDimension::Operation) => &mut by.operation,
            Ok(UsageDimension::Model) => &mut by.model,
            Ok(UsageDimension::Subject) => &mut by.subject,
            Ok(UsageDimension::Unspecified) | Err(_) => {
                fields.wrong(format!("group_by[{index}]"), format!("{dimension} is no dimension"));
                continue;
            }
        };
        if std::mem::replace(flag, true) {
            fields.wrong(format!("group_by[{index}]"), "is there already: each dimension at most once");
        }
    }
    by
}

fn query_row(context: &Context, query: &UsageQuery, row: QueryRow) -> UsageRow {
    let QueryKey { day, month, client_id, service, operation, model, subject } = row.key;
    let by = query.group_by;
    UsageRow {
        day: by.day.then(|| day.to_string()),
        month: by.month.then(|| Month::of(month).to_string()),
        client_id: by.client.then_some(client_id),
        service: by.service.then_some(service),
        operation: by.operation.then_some(operation),
        model: by.model.then_some(model),
        subject: by.subject.then_some(subject),
        totals: Some(context.totals(&row.sums)),
        subject_count: query.count_subjects.then_some(row.subject_count),
    }
}

/// Answers a query.
pub async fn run(context: Arc<Context>, request: QueryUsageRequest) -> Result<QueryUsageResponse, Refusal> {
    let mut fields = Fields::default();
    fields.filter("client_ids", &request.client_ids);
    fields.filter("services", &request.services);
    fields.filter("operations", &request.operations);
    fields.filter("models", &request.models);
    fields.filter("subjects", &request.subjects);
    let (start, end) = fields.days(&request.start_date, &request.end_date, QUERY_DAYS_MAX);
    let group_by = group_by(&mut fields, &request.group_by);
    let limit = fields.page_size(request.page_size, QUERY_PAGE_SIZE_DEFAULT, QUERY_PAGE_SIZE_MAX);
    fields.finish()?;
    let bound = QueryUsageRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let after: Option<QueryKey> = context.page_tokens.read("QueryUsage", &bound, &request.page_token)?;
    let wanted = UsageQuery {
        client_ids: request.client_ids,
        services: request.services,
        operations: request.operations,
        models: request.models,
        subjects: request.subjects,
        start,
        end,
        group_by,
        count_subjects: request.count_subjects,
        unpriced_only: request.unpriced_only,
    };
    let reads = &context.engine.reads;
    let mut read = connect::read(reads, || query::query(reads, &wanted, after.as_ref(), limit + 1)).await?;
    if wanted.wants_total() && after.is_none() && read.rows.is_empty() {
        read.rows.push(QueryRow::default());
    }
    let more = !read.rows.split_off(read.rows.len().min(limit as usize)).is_empty();
    let next_page_token = match read.rows.last().filter(|_| more) {
        None => String::new(),
        Some(last) => context.page_tokens.make("QueryUsage", &bound, &last.key),
    };
    Ok(QueryUsageResponse {
        rows: read.rows.into_iter().map(|row| query_row(&context, &wanted, row)).collect(),
        next_page_token,
        complete_as_of_time: Some(timestamp(read.complete_as_of)),
    })
}
