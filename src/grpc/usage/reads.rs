//! GetCurrentMonthUsage, GetForecast, GetUsageSummary, GetPlatformUsage, GetUsageEvent and ListUsageEvents.

use crate::grpc::Context;
use crate::grpc::wire::convert::{texts, timestamp, unix_time};
use crate::proto::{
    self, CostForecast, DayUsage, ForecastDay, GetCurrentMonthUsageRequest, GetCurrentMonthUsageResponse,
    GetForecastRequest, GetForecastResponse, GetPlatformUsageRequest, GetPlatformUsageResponse, GetUsageEventRequest,
    GetUsageEventResponse, GetUsageSummaryRequest, GetUsageSummaryResponse, ListUsageEventsRequest,
    ListUsageEventsResponse, OperationUsage, ServiceUsage,
};
use chrono::{DateTime, NaiveDate, Utc};
use meterd_domain::decimal::Total;
use meterd_domain::event::EventId;
use meterd_domain::forecast::{RANGE_PERCENT, Range};
use meterd_engine::paging::{Page, PageRequest};
use meterd_engine::refusal::Refusal;
use meterd_engine::usage::{
    self, AsOf, DaySums, EventListInput, ForecastLine, MonthForecast, OperationSums, SummaryInput,
};
use std::sync::Arc;

/// Returns a client's current month.
pub async fn current_month(
    context: Arc<Context>,
    request: GetCurrentMonthUsageRequest,
) -> Result<GetCurrentMonthUsageResponse, Refusal> {
    let month = usage::current_month(&context.engine, &request.client_id, !request.omit_forecast).await?;
    let services = month.services.into_iter().map(|(service, projected_cost)| ServiceUsage {
        projected_cost: Some(context.money(projected_cost)),
        ..context.service(service)
    });
    Ok(GetCurrentMonthUsageResponse {
        client_id: request.client_id,
        month: month.month.to_string(),
        time_zone: month.time_zone,
        totals: Some(context.totals(&month.sums)),
        projected_cost: Some(context.money(month.projected_cost)),
        days_elapsed: month.days_elapsed as i32,
        days_remaining: month.days_remaining as i32,
        services: services.collect(),
        complete_as_of_time: Some(timestamp(month.complete_as_of)),
        measures: texts(month.measures),
        forecast: month.forecast.map(|forecast| context.forecast(forecast)),
    })
}

/// Returns the forecast of a client's current month.
pub async fn forecast(context: Arc<Context>, request: GetForecastRequest) -> Result<GetForecastResponse, Refusal> {
    let month = usage::current_month(&context.engine, &request.client_id, true).await?;
    let days = month.forecast.iter().flat_map(|of| &of.forecast.days);
    let day = |(day, cost): &(NaiveDate, Total)| ForecastDay {
        day: day.to_string(),
        expected_cost: Some(context.money(*cost)),
    };
    Ok(GetForecastResponse {
        client_id: request.client_id,
        month: month.month.to_string(),
        time_zone: month.time_zone,
        cost: Some(context.money(month.sums.cost)),
        days: days.map(day).collect(),
        forecast: month.forecast.map(|forecast| context.forecast(forecast)),
        projected_cost: Some(context.money(month.projected_cost)),
        complete_as_of_time: Some(timestamp(month.complete_as_of)),
    })
}

/// Returns a client's usage in a range of days.
pub async fn summary(
    context: Arc<Context>,
    request: GetUsageSummaryRequest,
) -> Result<GetUsageSummaryResponse, Refusal> {
    let input = SummaryInput {
        client_id: &request.client_id,
        start_date: &request.start_date,
        end_date: &request.end_date,
        top_operation_count: request.top_operation_count,
    };
    let summary = usage::summary(&context.engine, input).await?;
    Ok(GetUsageSummaryResponse {
        client_id: request.client_id,
        start_date: request.start_date,
        end_date: request.end_date,
        time_zone: summary.time_zone,
        totals: Some(context.totals(&summary.sums)),
        services: context.services(summary.services),
        days: summary.days.into_iter().map(|day| context.day(day)).collect(),
        top_operations: summary.operations.into_iter().map(|operation| context.operation(operation)).collect(),
        complete_as_of_time: Some(timestamp(summary.complete_as_of)),
        measures: texts(summary.measures),
    })
}

/// Returns the usage of all clients in a month.
pub async fn platform(
    context: Arc<Context>,
    request: GetPlatformUsageRequest,
) -> Result<GetPlatformUsageResponse, Refusal> {
    let platform = usage::platform(&context.engine, &request.month).await?;
    Ok(GetPlatformUsageResponse {
        month: platform.month.to_string(),
        client_count: platform.client_count,
        active_client_count: platform.active_client_count,
        totals: Some(context.totals(&platform.sums)),
        services: context.services(platform.services),
        complete_as_of_time: Some(timestamp(platform.complete_as_of)),
    })
}

/// Returns an event.
pub async fn get_event(context: Arc<Context>, request: GetUsageEventRequest) -> Result<GetUsageEventResponse, Refusal> {
    let event = usage::get_event(&context.engine, &request.client_id, &request.event_id).await?;
    Ok(GetUsageEventResponse { event: Some(context.event(event)) })
}

/// Lists a client's events.
pub async fn list_events(
    context: Arc<Context>,
    mut request: ListUsageEventsRequest,
) -> Result<ListUsageEventsResponse, Refusal> {
    let (page, next_token) = context.page::<(DateTime<Utc>, i64)>(&mut request);
    let input = EventListInput {
        client_id: request.client_id,
        start_time: request.start_time.as_ref().map(unix_time),
        end_time: request.end_time.as_ref().map(unix_time),
        services: request.services,
        labels: request.labels,
        price_id: request.price_id,
        operations: request.operations,
        models: request.models,
        subjects: request.subjects,
        unpriced_only: request.unpriced_only,
        ascending: request.ascending,
    };
    let after = page.after.map(|after| after.map(|(time, seq)| EventId { time, seq }));
    let page = PageRequest { size: page.size, after };
    let AsOf { complete_as_of, rows: Page { rows, next } } = usage::list_events(&context.engine, input, page).await?;
    Ok(ListUsageEventsResponse {
        events: rows.into_iter().map(|event| context.event(event)).collect(),
        next_page_token: next_token.of(next.map(|id| (id.time, id.seq))),
        complete_as_of_time: Some(timestamp(complete_as_of)),
    })
}

impl Context {
    fn forecast(&self, MonthForecast { forecast, lines }: MonthForecast) -> CostForecast {
        let money = |of: fn(Range) -> Total| forecast.range.map(|range| self.money(of(range)));
        CostForecast {
            expected_cost: Some(self.money(forecast.expected)),
            low_cost: money(|range| range.low),
            high_cost: money(|range| range.high),
            range_percent: forecast.range.map_or(0, |_| RANGE_PERCENT as i32),
            days_used: forecast.days_used as i32,
            lines: lines.into_iter().map(|line| self.forecast_line(line)).collect(),
        }
    }

    fn forecast_line(&self, line: ForecastLine) -> proto::ForecastLine {
        proto::ForecastLine {
            kind: line.kind as i32,
            name: line.name.to_owned(),
            amount: Some(self.money(line.amount)),
            reach_date: line.reached.map(|reached| reached.day.to_string()).unwrap_or_default(),
            reached: line.reached.is_some_and(|reached| reached.already),
        }
    }

    fn day(&self, day: DaySums) -> DayUsage {
        DayUsage { day: day.day.to_string(), totals: Some(self.totals(&day.sums)) }
    }

    fn operation(&self, operation: OperationSums) -> OperationUsage {
        let OperationSums { service, operation, sums } = operation;
        OperationUsage { service, operation, totals: Some(self.totals(&sums)) }
    }
}
