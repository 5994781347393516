//! Monthly summaries, and rebuilding what they stand on.

use crate::grpc::Context;
use crate::grpc::clients;
use crate::grpc::usage::SUMMARY_DAYS_MAX;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::Fields;
use crate::proto::{
    ListMonthlySummariesRequest, ListMonthlySummariesResponse, MonthlySummary, MonthlySummaryTotals,
    RebuildRollupsRequest, RebuildRollupsResponse, UpdateMonthlySummariesRequest, UpdateMonthlySummariesResponse,
};
use meterd_domain::decimal::Total;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::period::{Month, day_of, elapsed_and_remaining};
use meterd_domain::projection::{change_percent, month_end};
use meterd_engine::refusal::Refusal;
use meterd_engine::{jobs, rebuild};
use meterd_store::clients::zone;
use meterd_store::summaries::{self, Summary};
use meterd_store::summary_totals::SummaryTotals;
use std::sync::Arc;

const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;

fn summary(context: &Context, month: Month, summary: Summary) -> Result<MonthlySummary, Refusal> {
    let today = day_of(context.engine.clock.now(), zone(&summary.time_zone)?);
    let (days_elapsed, _) = elapsed_and_remaining(today);
    let projected =
        || month_end(summary.sums.cost, context.recurring_cost(&summary.services), days_elapsed, month.days());
    Ok(MonthlySummary {
        projected_cost: (Month::of(today) == month).then(|| context.money(projected())),
        month: month.to_string(),
        totals: Some(context.totals(&summary.sums)),
        services: context.services(&summary.services),
        messages: summary.counts.messages.to_string(),
        ai_calls: summary.counts.ai_calls,
        voice_minutes: summary.counts.voice_minutes.to_string(),
        last_month_cost: Some(context.money(summary.last_month_cost)),
        change_percent: change_percent(summary.sums.cost, summary.last_month_cost).map(|change| change.to_string()),
        client_id: summary.client_id,
        display_name: summary.display_name,
    })
}

fn totals(context: &Context, totals: SummaryTotals) -> MonthlySummaryTotals {
    MonthlySummaryTotals {
        client_count: totals.client_count,
        totals: Some(context.totals(&totals.sums)),
        messages: totals.counts.messages.to_string(),
        ai_calls: totals.counts.ai_calls,
        voice_minutes: totals.counts.voice_minutes.to_string(),
        last_month_cost: Some(context.money(totals.last_month_cost)),
        change_percent: change_percent(totals.sums.cost, totals.last_month_cost).map(|change| change.to_string()),
    }
}

/// Lists a month's clients.
pub async fn list(
    context: Arc<Context>,
    request: ListMonthlySummariesRequest,
) -> Result<ListMonthlySummariesResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    let month = context.month_or_current(&mut fields, &request.month);
    let limit = fields.page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX);
    fields.finish()?;
    // The month is part of what a token is bound to, also where it was left out.
    let bound = ListMonthlySummariesRequest {
        month: month.to_string(),
        page_size: 0,
        page_token: String::new(),
        ..request.clone()
    };
    let after: Option<(String, String)> =
        context.page_tokens.read("ListMonthlySummaries", &bound, &request.page_token)?;
    let after: Option<(Total, String)> = after.and_then(|(cost, client_id)| Some((cost.parse().ok()?, client_id)));
    let mut read = if request.client_id.is_empty() {
        let after = after.as_ref().map(|(cost, client_id)| (*cost, client_id.as_str()));
        summaries::page(&context.engine.pool, month, after, limit + 1).await?
    } else {
        summaries::live(&context.engine.pool, &request.client_id, month).await?
    };
    let rows = &mut read.rows.summaries;
    let more = !rows.split_off(rows.len().min(limit as usize)).is_empty();
    let next_page_token = match rows.last().filter(|_| more) {
        None => String::new(),
        Some(last) => {
            let cursor = (last.sums.cost.to_string(), &last.client_id);
            context.page_tokens.make("ListMonthlySummaries", &bound, &cursor)
        }
    };
    Ok(ListMonthlySummariesResponse {
        summaries: read
            .rows
            .summaries
            .into_iter()
            .map(|row| summary(&context, month, row))
            .collect::<Result<_, _>>()?,
        next_page_token,
        totals: Some(totals(&context, read.rows.totals)),
        complete_as_of_time: Some(timestamp(read.complete_as_of)),
    })
}

/// Refreshes summaries.
pub async fn update(
    context: Arc<Context>,
    request: UpdateMonthlySummariesRequest,
) -> Result<UpdateMonthlySummariesResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    let month = (!request.month.is_empty()).then(|| fields.month("month", &request.month)).flatten();
    fields.finish()?;
    let client_id = (!request.client_id.is_empty()).then_some(request.client_id.as_str());
    if let Some(client_id) = client_id {
        clients::existing(&context, client_id).await?;
    }
    let updated_count = jobs::summaries::refresh(&context.engine.pool, client_id, month).await? as i64;
    Ok(UpdateMonthlySummariesResponse { updated_count })
}

/// Computes months again from their events.
pub async fn rebuild_rollups(
    context: Arc<Context>,
    request: RebuildRollupsRequest,
) -> Result<RebuildRollupsResponse, Refusal> {
    let mut fields = Fields::default();
    fields.text("client_id", &request.client_id, ID_BYTES_MAX);
    let (start, end) = fields.days(&request.start_date, &request.end_date, SUMMARY_DAYS_MAX);
    fields.finish()?;
    let client_id = (!request.client_id.is_empty()).then_some(request.client_id.as_str());
    if let Some(client_id) = client_id {
        clients::existing(&context, client_id).await?;
    }
    let months = Month::of(start)..=Month::of(end);
    let asked = rebuild::Request { client_id: client_id.map(String::from), months, rezone: request.rezone };
    let rebuilt = rebuild::run(&context.engine, &asked).await?;
    Ok(RebuildRollupsResponse {
        month_count: rebuilt.month_count,
        corrected_row_count: rebuilt.corrected_row_count,
        rezoned_event_count: rebuilt.rezoned_event_count,
    })
}
