//! QueryUsage.

use crate::grpc::Context;
use crate::grpc::wire::convert::{texts, timestamp};
use crate::proto::{self, QueryUsageRequest, QueryUsageResponse, UsageDimension};
use meterd_engine::paging::Page;
use meterd_engine::refusal::Refusal;
use meterd_engine::usage::{self, AsOf, Dimension, QueryInput, UsageRow};
use std::sync::Arc;

/// Runs a query.
pub async fn run(context: Arc<Context>, mut request: QueryUsageRequest) -> Result<QueryUsageResponse, Refusal> {
    let (page, next_token) = context.page(&mut request);
    let input = QueryInput {
        client_ids: request.client_ids,
        services: request.services,
        operations: request.operations,
        models: request.models,
        subjects: request.subjects,
        labels: request.labels,
        start_date: request.start_date,
        end_date: request.end_date,
        group_by: request.group_by.into_iter().map(dimension).collect(),
        group_by_labels: request.group_by_labels,
        count_subjects: request.count_subjects,
        unpriced_only: request.unpriced_only,
        include_measures: request.include_measures,
    };
    let AsOf { complete_as_of, rows: Page { rows, next } } = usage::query(&context.engine, input, page).await?;
    Ok(QueryUsageResponse {
        rows: rows.into_iter().map(|row| context.row(row)).collect(),
        next_page_token: next_token.of(next),
        complete_as_of_time: Some(timestamp(complete_as_of)),
    })
}

fn dimension(number: i32) -> Result<Dimension, String> {
    Ok(match UsageDimension::try_from(number) {
        Ok(UsageDimension::Day) => Dimension::Day,
        Ok(UsageDimension::Month) => Dimension::Month,
        Ok(UsageDimension::Hour) => Dimension::Hour,
        Ok(UsageDimension::Client) => Dimension::Client,
        Ok(UsageDimension::Service) => Dimension::Service,
        Ok(UsageDimension::Operation) => Dimension::Operation,
        Ok(UsageDimension::Model) => Dimension::Model,
        Ok(UsageDimension::Subject) => Dimension::Subject,
        Ok(UsageDimension::Unspecified) | Err(_) => return Err(number.to_string()),
    })
}

impl Context {
    fn row(&self, row: UsageRow) -> proto::UsageRow {
        proto::UsageRow {
            day: row.day.map(|day| day.to_string()),
            month: row.month.map(|month| month.to_string()),
            hour: row.hour.map(timestamp),
            client_id: row.client_id,
            service: row.service,
            operation: row.operation,
            model: row.model,
            subject: row.subject,
            totals: Some(self.totals(&row.sums)),
            subject_count: row.subject_count,
            measures: texts(row.measures),
            labels: row.labels,
        }
    }
}
