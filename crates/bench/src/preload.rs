//! Fills a database before a measurement, as live events would: over clients and days, with keys, rollups and totals.

use super::meterd_binary::MeterdBinary;
use super::server::Server;
use crate::product::Clock;
use anyhow::Context;
use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use chrono_tz::Tz;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use meterd_domain::catalog::Catalog;
use meterd_domain::decimal::Decimal;
use meterd_domain::event::{Charge, UsageEvent, payload_hash};
use meterd_domain::measures::Measures;
use meterd_domain::period::{Month, day_of};
use meterd_domain::plan::ClientPlans;
use meterd_domain::pricing::Pricing;
use meterd_engine::ingest::build_filter;
use meterd_store::bench::preload::{self, EventRange, Kinds};
use meterd_store::database::connect;
use meterd_store::numeric;
use meterd_store::usage::{generations, partitions, summary_totals};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};

/// Clients with a year of usage. Their reads are the same in a small database and in a large one.
pub const YEAR_CLIENTS: &str = "year";
/// Number of these clients.
pub const YEAR_CLIENT_COUNT: i64 = 2;
/// Days of that year, including today.
pub const YEAR_DAYS: u64 = 365;
/// Kinds of events that each of the other clients has.
const KINDS_EACH: i64 = 2;
/// Service, operation, model, input and output tokens. The prices are so low that no client reaches an alert.
const KINDS: [(&str, &str, &str, i64, i64); 5] = [
    ("openai", "chat_completion", "gpt-4o-mini", 374, 44),
    ("openai", "embedding", "text-embedding-3-small", 512, 0),
    ("cloudflare_r2", "class_a_ops", "", 0, 0),
    ("cloudflare_r2", "class_b_ops", "", 0, 0),
    ("openai", "chat_completion", "gpt-4o", 40, 10),
];
/// Fewest events: those of the clients with a year, and as many of the other clients.
pub const EVENTS_MIN: u64 = 2 * YEAR_EVENTS;
const YEAR_EVENTS: u64 = YEAR_CLIENT_COUNT as u64 * YEAR_DAYS * KINDS.len() as u64;
/// Fewest days: today alone may have only just begun.
pub const DAYS_MIN: u32 = 2;
/// Number of keys in a preloaded generation: about that of a live one with the default settings and a few GB of
/// `shared_buffers`.
const KEYS_PER_GENERATION: u64 = 3_000_000;
/// Days that are written at the same time.
const AT_ONCE: usize = 2;

/// The events to write.
#[derive(Clone, Debug)]
pub struct Preload {
    /// All events; at least [`EVENTS_MIN`].
    pub events: u64,
    /// Prefix of the client ids.
    pub prefix: &'static str,
    pub clients: u32,
    /// Days that the events are spread over, up to now: at least [`DAYS_MIN`].
    pub days: u32,
}

impl Preload {
    /// Starts a server over a new database, to create the schema, stops it, and fills the database.
    pub async fn fill_new(&self, url: &str, meterd: &MeterdBinary) -> anyhow::Result<()> {
        Server::start(meterd, url).await?.stop().await?;
        let options = connect::options(url)?.disable_statement_logging();
        let mut conn = options.connect().await?;
        let catalog = meterd_store::catalog::load(&mut conn, false).await?;
        conn.close().await?;
        self.fill(&options, &catalog, Clock::system().now()).await
    }

    /// Fills an empty database with the schema of meterd that no server uses. Afterwards `meterd verify` finds no difference.
    pub async fn fill(&self, options: &PgConnectOptions, catalog: &Catalog, now: DateTime<Utc>) -> anyhow::Result<()> {
        let options = options.clone().options([
            ("statement_timeout", "0"),
            ("work_mem", "256MB"),
            ("maintenance_work_mem", "1GB"),
            // A crash loses only a database that is not ready yet.
            ("synchronous_commit", "off"),
        ]);
        let pool = PgPoolOptions::new().max_connections(AT_ONCE as u32).connect_with(options).await?;
        let filled = self.fill_in(&pool, catalog, now).await.context("cannot fill the database");
        pool.close().await;
        filled
    }

    async fn fill_in(&self, pool: &PgPool, catalog: &Catalog, now: DateTime<Utc>) -> anyhow::Result<()> {
        let mut conn = pool.acquire().await?;
        anyhow::ensure!(preload::is_empty(&mut conn).await?, "the database already has events: use an empty one");
        let kinds = kinds(catalog, now)?;
        let (recent, year) = (self.ranges(now), year_ranges(now));
        let current = recent.last().map_or(0, |range| range.key_generation);
        for generation in 0..current {
            generations::prepare(pool, generation + 1).await?;
        }
        // Drawn only on a terminal.
        let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {msg} {eta}")?;
        let progress = ProgressBar::new(self.events).with_style(style).with_message("events");

        let indexes = preload::drop_indexes(&mut conn).await?;
        let mut month = Month::of(day_of(now, Tz::UTC) - Days::new(YEAR_DAYS.max(self.days.into())));
        while month <= Month::of(day_of(now, Tz::UTC)).next() {
            partitions::ensure(&mut conn, month).await?;
            month = month.next();
        }
        preload::insert_clients(&mut conn, self.prefix, self.clients.into()).await?;
        preload::insert_clients(&mut conn, YEAR_CLIENTS, YEAR_CLIENT_COUNT).await?;
        drop(conn);
        let insertions = stream::iter(year.iter().chain(&recent)).map(async |range| {
            preload::insert_range(&mut *pool.acquire().await?, &kinds, range).await?;
            progress.inc((range.end - range.first) as u64);
            anyhow::Ok(())
        });
        insertions.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;

        progress.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
        let mut conn = pool.acquire().await?;
        for index in &indexes {
            progress.set_message(index.clone());
            preload::make_index(&mut conn, index).await?;
        }
        for generation in 0..current {
            progress.set_message(format!("filter of generation {generation}"));
            generations::close(pool, generation).await?;
            build_filter(pool, generation).await?;
        }
        preload::let_floors_write_keys(&mut conn).await?;
        progress.set_message("months");
        preload::insert_months(&mut conn).await?;
        preload::tidy(&mut conn).await?;
        progress.set_message("summaries");
        preload::insert_summaries(&mut conn).await?;
        for month in summary_totals::months_to_total(pool).await? {
            summary_totals::write_totals(&mut conn, month).await?;
        }
        preload::tidy(&mut conn).await?;
        progress.finish_and_clear();
        Ok(())
    }

    /// The events of the other clients at equal intervals, one range per day.
    fn ranges(&self, now: DateTime<Utc>) -> Vec<EventRange> {
        let today = day_of(now, Tz::UTC);
        let events = self.events.saturating_sub(YEAR_EVENTS) as i64;
        let start_time = midnight(today - Days::new(u64::from(self.days.max(DAYS_MIN)) - 1));
        let step_us = (micros(now - start_time) / events.max(1)).max(1);
        // The first event at or after a time.
        let at = |time: DateTime<Utc>| ((micros(time - start_time) + step_us - 1) / step_us).min(events);
        let days = start_time.date_naive().iter_days().take_while(|day| *day <= today);
        days.map(|day| EventRange {
            prefix: self.prefix.into(),
            clients: self.clients.into(),
            start_time,
            step_us,
            first: at(midnight(day)),
            end: at(midnight(day + Days::new(1))),
            kinds_each: KINDS_EACH,
            key_generation: (at(midnight(day)) as u64 / KEYS_PER_GENERATION) as i32,
        })
        .filter(|range| range.first < range.end)
        .collect()
    }
}

/// One range per day, with one event of each kind for each client with a year.
fn year_ranges(now: DateTime<Utc>) -> Vec<EventRange> {
    let today = day_of(now, Tz::UTC);
    let each_day = YEAR_CLIENT_COUNT * KINDS.len() as i64;
    let days = (0..YEAR_DAYS).rev().map(|ago| today - Days::new(ago));
    days.map(|day| EventRange {
        prefix: YEAR_CLIENTS.into(),
        clients: YEAR_CLIENT_COUNT,
        start_time: midnight(day),
        step_us: micros(now.min(midnight(day + Days::new(1))) - midnight(day)) / each_day,
        first: 0,
        end: each_day,
        kinds_each: KINDS.len() as i64,
        key_generation: 0,
    })
    .collect()
}

/// The kinds with their charges, priced as the server prices them.
fn kinds(catalog: &Catalog, now: DateTime<Utc>) -> anyhow::Result<Kinds> {
    let mut kinds = Kinds::default();
    for (service, operation, model, input_tokens, output_tokens) in KINDS {
        let measures = Measures { units: Decimal::ONE, input_tokens, output_tokens, ..Measures::default() };
        let event = UsageEvent {
            client_id: YEAR_CLIENTS.into(),
            service: service.into(),
            operation: operation.into(),
            model: model.into(),
            service_tier: String::new(),
            measures: measures.clone(),
            event_time: now,
            idempotency_key: "".into(),
            subject: String::new(),
            external_id: String::new(),
            metadata: None,
            labels: Default::default(),
        };
        let pricing = Pricing { catalog, plans: &ClientPlans::default() };
        let Charge::Priced { charge, price_id } = pricing.charge(&event) else {
            anyhow::bail!("the catalogue has no price for {service} {operation} {model}");
        };
        kinds.services.push(service.into());
        kinds.operations.push(operation.into());
        kinds.models.push(model.into());
        kinds.units.push(numeric::of(measures.units));
        kinds.input_tokens.push(input_tokens);
        kinds.output_tokens.push(output_tokens);
        kinds.charges.push(numeric::of(charge));
        kinds.price_ids.push(price_id);
        kinds.payload_hashes.push(payload_hash(&event, false).to_vec());
    }
    Ok(kinds)
}

fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

fn micros(time: TimeDelta) -> i64 {
    time.num_microseconds().expect("years are within range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_days_have_all_events_once_each_on_its_day_and_none_ahead_of_now() {
        for now in ["2026-11-22T00:00:00.000007Z", "2026-03-01T12:34:56.789012Z", "2024-02-29T23:59:59.999999Z"] {
            let now: DateTime<Utc> = now.parse().unwrap();
            for (events, days) in [(EVENTS_MIN, DAYS_MIN), (EVENTS_MIN, 35), (1_000_003, 35), (20_000_000, DAYS_MIN)] {
                let preload = Preload { events, prefix: "load", clients: 1_000, days };
                let mut next = 0;
                for range in preload.ranges(now) {
                    assert_eq!(range.first, next);
                    next = range.end;
                    let time = |n| range.start_time + TimeDelta::microseconds(range.step_us * n);
                    assert_eq!(time(range.first).date_naive(), time(range.end - 1).date_naive());
                    assert!(time(range.end - 1) <= now, "{range:?}");
                }
                assert_eq!(next as u64, events - YEAR_EVENTS);
            }
            for range in year_ranges(now) {
                let last = range.start_time + TimeDelta::microseconds(range.step_us * (range.end - 1));
                assert_eq!(last.date_naive(), range.start_time.date_naive());
                assert!(last <= now);
            }
            assert_eq!(year_ranges(now).len() as u64 * 10, YEAR_EVENTS);
        }
    }
}
