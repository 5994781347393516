//! One read of each kind, over gRPC and as plain SQL.

use crate::connection::Connection;
use crate::preload::{YEAR_CLIENT_COUNT, YEAR_CLIENTS, YEAR_DAYS};
use crate::product::proto::usage_service_client::UsageServiceClient;
use crate::product::proto::{
    GetCurrentMonthUsageRequest, GetUsageSummaryRequest, ListMonthlySummariesRequest, QueryUsageRequest,
    UsageDimension, UsageTotals,
};
use crate::product::status_error;
use anyhow::Context;
use chrono::{Days, NaiveDate};
use meterd_domain::forecast::FORECAST_DAYS;
use meterd_domain::period::Month;
use meterd_store::bench::floor_reads::{self, FloorRow};
use sqlx::PgConnection;
use std::time::{Duration, Instant};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Clients of a page of summaries.
const PAGE_CLIENTS: i32 = 100;

/// A kind of read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Read {
    /// An empty call: the floor (g).
    EmptyCall,
    CurrentMonth,
    SummaryOfMonth,
    DaysOfYear,
    Summaries,
}

/// The path of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    Grpc,
    /// The floor (r).
    Sql,
}

/// The clients whose usage is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clients {
    /// Clients with a year of usage, the same in every database.
    WithYear,
    /// Any of the other clients.
    Any,
}

/// A caller with a connection to the server and one to the database.
pub struct Reader {
    usage: UsageServiceClient<Connection>,
    health: HealthClient<Connection>,
    conn: PgConnection,
    /// Prefix of the ids of the other clients, and their number.
    prefix: &'static str,
    client_count: u32,
    today: NaiveDate,
}

impl Reader {
    /// A reader of events that were preloaded until `today`.
    pub fn new(
        channel: &Connection,
        conn: PgConnection,
        prefix: &'static str,
        client_count: u32,
        today: NaiveDate,
    ) -> Self {
        let (usage, health) = (channel.usage(), channel.health());
        Self { usage, health, conn, prefix, client_count, today }
    }

    fn client_id(&self, clients: Clients) -> String {
        match clients {
            Clients::WithYear => format!("{YEAR_CLIENTS}-{:06}", rand::random_range(0..YEAR_CLIENT_COUNT)),
            Clients::Any => format!("{}-{:06}", self.prefix, rand::random_range(0..self.client_count)),
        }
    }

    /// Reads once and returns the time that it took.
    pub async fn time(&mut self, read: Read, via: Via, clients: Clients) -> anyhow::Result<Duration> {
        let client_id = self.client_id(clients);
        let begin = Instant::now();
        let requests = self.read(read, via, client_id).await?;
        let took = begin.elapsed();
        anyhow::ensure!(requests > 0 || read == Read::EmptyCall, "{read:?} has found nothing");
        Ok(took)
    }

    /// Checks that gRPC and SQL return the same number of requests.
    pub async fn check(&mut self, read: Read, clients: Clients) -> anyhow::Result<()> {
        let client_id = self.client_id(clients);
        let grpc = self.read(read, Via::Grpc, client_id.clone()).await?;
        let sql = self.read(read, Via::Sql, client_id.clone()).await?;
        anyhow::ensure!(
            grpc == sql,
            "{read:?} of {client_id} has {grpc} requests over gRPC, and {sql} in the database"
        );
        Ok(())
    }

    /// Reads once and returns the sum of the requests in all rows.
    async fn read(&mut self, read: Read, via: Via, client_id: String) -> anyhow::Result<i64> {
        let month = Month::of(self.today);
        let year = (self.today - Days::new(YEAR_DAYS - 1), self.today);
        if via == Via::Sql {
            let conn = &mut self.conn;
            let rows = match read {
                Read::EmptyCall => vec![],
                Read::CurrentMonth => {
                    let start = self.today - Days::new(FORECAST_DAYS.into());
                    floor_reads::month(conn, &client_id, month, start, self.today).await?
                }
                Read::SummaryOfMonth => {
                    floor_reads::summary(conn, &client_id, month.first_day(), month.last_day()).await?
                }
                Read::DaysOfYear => floor_reads::by_day(conn, &client_id, year.0, year.1).await?,
                Read::Summaries => floor_reads::summaries(conn, month, PAGE_CLIENTS.into()).await?,
            };
            return Ok(rows.iter().map(|row: &FloorRow| row.request_count).sum());
        }
        let fail = |status: tonic::Status| status_error(&status);
        let requests = |totals: &Option<UsageTotals>| totals.as_ref().map_or(0, |totals| totals.request_count);
        Ok(match read {
            Read::EmptyCall => {
                let request = HealthCheckRequest { service: String::new() };
                self.health.check(request).await.map_err(fail)?;
                0
            }
            Read::CurrentMonth => {
                let request = GetCurrentMonthUsageRequest { client_id, ..Default::default() };
                let answer = self.usage.get_current_month_usage(request).await.map_err(fail)?.into_inner();
                requests(&answer.totals)
            }
            Read::SummaryOfMonth => {
                let request = GetUsageSummaryRequest {
                    client_id,
                    start_date: month.first_day().to_string(),
                    end_date: month.last_day().to_string(),
                    ..Default::default()
                };
                let answer = self.usage.get_usage_summary(request).await.map_err(fail)?.into_inner();
                let services = answer.services.iter().map(|row| requests(&row.totals)).sum::<i64>();
                let days = answer.days.iter().map(|row| requests(&row.totals)).sum::<i64>();
                let operations = answer.top_operations.iter().map(|row| requests(&row.totals)).sum::<i64>();
                requests(&answer.totals) + services + days + operations
            }
            Read::DaysOfYear => {
                let request = QueryUsageRequest {
                    client_ids: vec![client_id],
                    start_date: year.0.to_string(),
                    end_date: year.1.to_string(),
                    group_by: vec![UsageDimension::Day.into()],
                    ..Default::default()
                };
                let answer = self.usage.query_usage(request).await.map_err(fail)?.into_inner();
                answer.rows.iter().map(|row| requests(&row.totals)).sum()
            }
            Read::Summaries => {
                let request = ListMonthlySummariesRequest {
                    month: month.to_string(),
                    page_size: PAGE_CLIENTS,
                    ..Default::default()
                };
                let answer = self.usage.list_monthly_summaries(request).await.map_err(fail)?.into_inner();
                answer.totals.context("a page has its totals")?;
                answer.summaries.iter().map(|row| requests(&row.totals)).sum()
            }
        })
    }
}
