//! UsageService: reads, and the table of its RPCs.

pub mod events;
pub mod export;
pub mod export_file;
pub mod query;
pub mod record;
pub mod stream;
pub mod summaries;

use crate::grpc::clients;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::fields::Fields;
use crate::grpc::wire::status::status;
use crate::grpc::{Context, Handlers, admit, caller};
use crate::proto::usage_service_server::UsageService;
use crate::proto::*;
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use meterd_domain::event::{EventId, ID_BYTES_MAX};
use meterd_domain::period::{self, Month, day_of};
use meterd_domain::projection;
use meterd_domain::rollup::Sums;
use meterd_engine::refusal::{Reason, Refusal};
use meterd_store::clients::zone;
use meterd_store::connect;
use meterd_store::events::{self as recorded_events, EventFilter};
use meterd_store::usage::{self, AsOf, OfClient, ServiceSums};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Longest range of a summary, in days: ten years.
pub const SUMMARY_DAYS_MAX: i64 = 3_660;
const TOP_OPERATIONS_DEFAULT: i64 = 10;
const TOP_OPERATIONS_MAX: i32 = 1_000;
const EVENTS_PAGE_SIZE_DEFAULT: i64 = 100;
const EVENTS_PAGE_SIZE_MAX: i64 = 1_000;

async fn current_month(
    context: Arc<Context>,
    request: GetCurrentMonthUsageRequest,
) -> Result<GetCurrentMonthUsageResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &request.client_id, ID_BYTES_MAX);
    fields.finish()?;
    let now = context.engine.clock.now();
    // Whatever its zone is, the client is in one of these: so the zone and the month are read at once.
    let day_around = |days| day_of(now + TimeDelta::days(days), Tz::UTC);
    let (first, last) = (Month::of(day_around(-1)), Month::of(day_around(1)));
    let reads = &context.engine.reads;
    let read = connect::read(reads, || usage::months(reads, &request.client_id, first, last)).await?;
    let AsOf { complete_as_of, rows: OfClient { time_zone, rows } } =
        read.ok_or_else(|| Refusal::client_not_found(&request.client_id))?;
    let today = day_of(now, zone(&time_zone)?);
    let month = Month::of(today);
    let (days_elapsed, days_remaining) = period::elapsed_and_remaining(today);
    let rows: Vec<ServiceSums> = rows.into_iter().filter_map(|(of, row)| (of == month).then_some(row)).collect();
    let total: Sums = rows.iter().map(|row| row.sums).sum();
    let projected =
        |cost, recurring| Some(context.money(projection::month_end(cost, recurring, days_elapsed, month.days())));
    let mut services = context.services(&rows);
    for (service, row) in services.iter_mut().zip(&rows) {
        service.projected_cost = projected(row.sums.cost, context.recurring_cost(std::slice::from_ref(row)));
    }
    Ok(GetCurrentMonthUsageResponse {
        client_id: request.client_id,
        month: month.to_string(),
        time_zone,
        totals: Some(context.totals(&total)),
        projected_cost: projected(total.cost, context.recurring_cost(&rows)),
        days_elapsed: days_elapsed as i32,
        days_remaining: days_remaining as i32,
        services,
        complete_as_of_time: Some(timestamp(complete_as_of)),
    })
}

async fn summary(context: Arc<Context>, request: GetUsageSummaryRequest) -> Result<GetUsageSummaryResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &request.client_id, ID_BYTES_MAX);
    let (start, end) = fields.days(&request.start_date, &request.end_date, SUMMARY_DAYS_MAX);
    if !(0..=TOP_OPERATIONS_MAX).contains(&request.top_operation_count) {
        fields.wrong("top_operation_count", format!("must be from 1 to {TOP_OPERATIONS_MAX}, or 0 for 10"));
    }
    fields.finish()?;
    let top = match request.top_operation_count {
        0 => TOP_OPERATIONS_DEFAULT,
        count => i64::from(count),
    };
    let reads = &context.engine.reads;
    let read = connect::read(reads, || usage::range(reads, &request.client_id, start, end, top)).await?;
    let AsOf { complete_as_of, rows: OfClient { time_zone, rows } } =
        read.ok_or_else(|| Refusal::client_not_found(&request.client_id))?;
    let (mut totals, mut services, mut days, mut operations) = (Sums::default(), vec![], vec![], vec![]);
    for row in rows {
        match (row.day, row.service, row.operation) {
            (Some(day), ..) => {
                days.push(DayUsage { day: day.to_string(), totals: Some(context.totals(&row.sums)) });
            }
            (None, Some(service), Some(operation)) => {
                operations.push(OperationUsage { service, operation, totals: Some(context.totals(&row.sums)) });
            }
            (None, Some(service), None) => services.push(ServiceSums { service, sums: row.sums }),
            (None, None, _) => totals = row.sums,
        }
    }
    Ok(GetUsageSummaryResponse {
        client_id: request.client_id,
        start_date: request.start_date,
        end_date: request.end_date,
        time_zone,
        totals: Some(context.totals(&totals)),
        services: context.services(&services),
        days,
        top_operations: operations,
        complete_as_of_time: Some(timestamp(complete_as_of)),
    })
}

async fn get_event(context: Arc<Context>, request: GetUsageEventRequest) -> Result<GetUsageEventResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &request.client_id, ID_BYTES_MAX);
    fields.required("event_id", &request.event_id, ID_BYTES_MAX);
    fields.finish()?;
    let found = match EventId::parse(&request.event_id) {
        Some(id) => recorded_events::find(&context.engine.pool, &request.client_id, id).await?,
        None => None,
    };
    let event = found.ok_or_else(|| {
        let message = format!("client {:?} has no event {:?}", request.client_id, request.event_id);
        Refusal::new(Reason::EventNotFound, message)
    })?;
    Ok(GetUsageEventResponse { event: Some(context.event(event)) })
}

async fn list_events(
    context: Arc<Context>,
    request: ListUsageEventsRequest,
) -> Result<ListUsageEventsResponse, Refusal> {
    let mut fields = Fields::default();
    fields.required("client_id", &request.client_id, ID_BYTES_MAX);
    let (start_time, end_time) = fields.times(request.start_time.as_ref(), request.end_time.as_ref());
    fields.filter("services", &request.services);
    fields.filter("operations", &request.operations);
    fields.filter("models", &request.models);
    fields.filter("subjects", &request.subjects);
    let limit = fields.page_size(request.page_size, EVENTS_PAGE_SIZE_DEFAULT, EVENTS_PAGE_SIZE_MAX);
    fields.finish()?;
    let bound = ListUsageEventsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let after: Option<(DateTime<Utc>, i64)> =
        context.page_tokens.read("ListUsageEvents", &bound, &request.page_token)?;
    clients::existing(&context, &request.client_id).await?;
    let filter = EventFilter {
        client_id: &request.client_id,
        start_time,
        end_time,
        services: &request.services,
        operations: &request.operations,
        models: &request.models,
        subjects: &request.subjects,
        unpriced_only: request.unpriced_only,
    };
    let after = after.map(|(time, seq)| EventId { time, seq });
    let mut read = recorded_events::list(&context.engine.pool, &filter, request.ascending, after, limit + 1).await?;
    let more = !read.rows.split_off(read.rows.len().min(limit as usize)).is_empty();
    let next_page_token = match read.rows.last().filter(|_| more) {
        None => String::new(),
        Some(last) => context.page_tokens.make("ListUsageEvents", &bound, &(last.id.time, last.id.seq)),
    };
    Ok(ListUsageEventsResponse {
        events: read.rows.into_iter().map(|event| context.event(event)).collect(),
        next_page_token,
        complete_as_of_time: Some(timestamp(read.complete_as_of)),
    })
}

async fn platform(
    context: Arc<Context>,
    request: GetPlatformUsageRequest,
) -> Result<GetPlatformUsageResponse, Refusal> {
    let mut fields = Fields::default();
    let month = context.month_or_current(&mut fields, &request.month);
    fields.finish()?;
    let read = usage::platform(&context.engine.pool, month).await?;
    let total: Sums = read.rows.services.iter().map(|row| row.sums).sum();
    Ok(GetPlatformUsageResponse {
        month: month.to_string(),
        client_count: read.rows.client_count,
        active_client_count: read.rows.active_client_count,
        totals: Some(context.totals(&total)),
        services: context.services(&read.rows.services),
        complete_as_of_time: Some(timestamp(read.complete_as_of)),
    })
}

impl Context {
    /// The month that a request names, or the current one in the default time zone.
    pub fn month_or_current(&self, fields: &mut Fields, text: &str) -> Month {
        let current = Month::of(period::day_of(self.engine.clock.now(), self.engine.config.ingest.default_zone));
        if text.is_empty() { current } else { fields.month("month", text).unwrap_or(current) }
    }
}

#[tonic::async_trait]
impl UsageService for Handlers {
    async fn track_usage(&self, request: Request<TrackUsageRequest>) -> Result<Response<TrackUsageResponse>, Status> {
        let (caller, request) = admit(request).map_err(status)?;
        Ok(Response::new(record::track(&self.0, &caller, request).await.map_err(status)?))
    }

    async fn batch_track_usage(
        &self,
        request: Request<BatchTrackUsageRequest>,
    ) -> Result<Response<BatchTrackUsageResponse>, Status> {
        let (caller, request) = admit(request).map_err(status)?;
        Ok(Response::new(record::batch(&self.0, &caller, request).await.map_err(status)?))
    }

    type StreamUsageStream = ReceiverStream<Result<StreamUsageResponse, Status>>;

    async fn stream_usage(
        &self,
        request: Request<Streaming<StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        let caller = caller(&request).map_err(status)?;
        Ok(Response::new(stream::run(self.0.clone(), caller, request.into_inner())))
    }

    async fn get_current_month_usage(
        &self,
        request: Request<GetCurrentMonthUsageRequest>,
    ) -> Result<Response<GetCurrentMonthUsageResponse>, Status> {
        self.run(request, current_month).await
    }

    async fn get_usage_summary(
        &self,
        request: Request<GetUsageSummaryRequest>,
    ) -> Result<Response<GetUsageSummaryResponse>, Status> {
        self.run(request, summary).await
    }

    async fn query_usage(&self, request: Request<QueryUsageRequest>) -> Result<Response<QueryUsageResponse>, Status> {
        self.run(request, query::run).await
    }

    async fn get_usage_event(
        &self,
        request: Request<GetUsageEventRequest>,
    ) -> Result<Response<GetUsageEventResponse>, Status> {
        self.run(request, get_event).await
    }

    async fn list_usage_events(
        &self,
        request: Request<ListUsageEventsRequest>,
    ) -> Result<Response<ListUsageEventsResponse>, Status> {
        self.run(request, list_events).await
    }

    type ExportUsageStream = ReceiverStream<Result<ExportUsageResponse, Status>>;

    async fn export_usage(
        &self,
        request: Request<ExportUsageRequest>,
    ) -> Result<Response<Self::ExportUsageStream>, Status> {
        let place = export::place_of_caller(&self.0, &request).map_err(status)?;
        self.run(request, |context, request| export::start(context, request, place)).await
    }

    async fn get_platform_usage(
        &self,
        request: Request<GetPlatformUsageRequest>,
    ) -> Result<Response<GetPlatformUsageResponse>, Status> {
        self.run(request, platform).await
    }

    async fn update_monthly_summaries(
        &self,
        request: Request<UpdateMonthlySummariesRequest>,
    ) -> Result<Response<UpdateMonthlySummariesResponse>, Status> {
        self.run(request, summaries::update).await
    }

    async fn list_monthly_summaries(
        &self,
        request: Request<ListMonthlySummariesRequest>,
    ) -> Result<Response<ListMonthlySummariesResponse>, Status> {
        self.run(request, summaries::list).await
    }

    async fn rebuild_rollups(
        &self,
        request: Request<RebuildRollupsRequest>,
    ) -> Result<Response<RebuildRollupsResponse>, Status> {
        self.run(request, summaries::rebuild).await
    }
}
