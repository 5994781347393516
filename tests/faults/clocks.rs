//! Clocks that jump differently on each replica. Every event must be in the right day and month.

use crate::calls::{Client, DEADLINE, client, reason, track};
use crate::check::check;
use crate::database::Database;
use crate::deployment::lower_thresholds;
use crate::events::KEY_PREFIX;
use crate::in_process::InProcess;
use crate::journal::{Acknowledged, Journal};
use crate::jumping_clock::{JumpingClock, ZONES};
use crate::run::{Run, grouped};
use crate::scenario;
use crate::scenario_dir::ScenarioDir;
use chrono::{DateTime, NaiveDate, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use meterd::proto::client_service_client::ClientServiceClient;
use meterd::proto::{Client as ProtoClient, CreateClientRequest, EventOutcome, UsageEvent};
use prost_types::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;
use sqlx::{PgPool, Row};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const CALLERS: usize = 12;
/// Time between two jumps.
const PAUSE_MS: std::ops::Range<u64> = 10..80;
/// The defaults of `accept_past_days` and `accept_future_seconds`.
const PAST: TimeDelta = TimeDelta::days(35);
const FUTURE: TimeDelta = TimeDelta::seconds(300);

scenario! {
    every_event_is_in_the_right_day_and_month_if_clocks_jump => jumps;
}

/// An event that a caller sent, and the times that the clock of its replica showed meanwhile.
#[derive(Clone)]
struct Sent {
    number: u64,
    event: UsageEvent,
    event_time_sent: Option<DateTime<Utc>>,
    /// The allowed values of its recorded time.
    times: Vec<DateTime<Utc>>,
    event_id: String,
}

#[derive(Default)]
struct Seen {
    accepted: Vec<Sent>,
    rejection: HashMap<String, usize>,
    repeats: usize,
}

async fn jumps(run: Run) {
    let jumps = run.count(60, 1_000);
    let scenario_dir = ScenarioDir::new();
    let database = Database::start(&scenario_dir).await;
    let start = Utc.with_ymd_and_hms(2027, 3, 13, 12, 0, 0).unwrap();
    let clocks = [start, start + TimeDelta::minutes(7)].map(JumpingClock::at);
    let replicas =
        InProcess::start(&database.url().await, &clocks.each_ref().map(|jumping_clock| jumping_clock.clock.clone()))
            .await;
    lower_thresholds(&replicas.addresses()[0]).await;
    let channel = Channel::from_shared(replicas.addresses()[0].clone()).unwrap().connect_lazy();
    for zone in ZONES {
        let client = ProtoClient { client_id: zone.into(), time_zone: zone.into(), ..Default::default() };
        let request = CreateClientRequest { client: Some(client), request_id: String::new() };
        ClientServiceClient::new(channel.clone()).create_client(request).await.unwrap();
    }
    drop(channel);
    let journal = Arc::new(Journal::create(&scenario_dir.path("journal")));
    let (next, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let caller = Caller {
            clients: replicas.addresses().iter().map(|address| client(address)).collect(),
            clocks: clocks.clone(),
            journal: journal.clone(),
            rng: run.rng("caller", number),
            seen: Seen::default(),
        };
        callers.spawn(caller.work(next.clone(), done.clone()));
    }
    let mut rng = run.rng("jumps", 0);
    for _ in 0..jumps {
        tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        clocks[rng.random_range(0..2)].jump(&mut rng);
    }
    done.store(true, Ordering::Relaxed);
    let (mut sent, mut rejection, mut repeats) = (HashMap::new(), HashMap::<String, usize>::new(), 0);
    for seen in callers.join_all().await {
        sent.extend(seen.accepted.into_iter().map(|sent| (sent.number, sent)));
        seen.rejection.into_iter().for_each(|(reason, count)| *rejection.entry(reason).or_default() += count);
        repeats += seen.repeats;
    }
    let pool = database.pool().await;
    let checked = check(&pool, &journal).await;
    let (days, months) = assert_every_event_is_in_its_day_and_month(&pool, &sent).await;
    pool.close().await;
    assert_eq!(checked.recorded, sent.len());
    assert_eq!(database.count_in_log("deadlock detected"), 0);
    replicas.stop().await;
    let refusals: Vec<String> =
        rejection.iter().map(|(reason, count)| format!("{reason} × {}", grouped(*count))).collect();
    run.report(
        format!("clocks jumped × {}", grouped(jumps)),
        format!(
            "{checked}, 0 in a wrong day or month of {days} client-days and {months} client-months, {} repeats answered with \
             the first result, rejected only: {}",
            grouped(repeats),
            refusals.join(", ")
        ),
    );
}

struct Caller {
    clients: Vec<Client>,
    clocks: [JumpingClock; 2],
    journal: Arc<Journal>,
    rng: StdRng,
    seen: Seen,
}

impl Caller {
    async fn work(mut self, next: Arc<AtomicU64>, done: Arc<AtomicBool>) -> Seen {
        while !done.load(Ordering::Relaxed) {
            let at = self.rng.random_range(0..2);
            if self.rng.random_ratio(1, 4) && !self.seen.accepted.is_empty() {
                self.repeat(at).await;
                continue;
            }
            let number = next.fetch_add(1, Ordering::Relaxed);
            let event_time_sent = self.choose_event_time(at);
            let event = UsageEvent {
                client_id: ZONES[self.rng.random_range(0..ZONES.len())].into(),
                service: "sms".into(),
                idempotency_key: format!("{KEY_PREFIX}{number}"),
                event_time: event_time_sent
                    .map(|time| Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }),
                ..Default::default()
            };
            let before = self.clocks[at].count();
            let answer = tokio::time::timeout(DEADLINE, track(&mut self.clients[at], event.clone())).await;
            let times_shown = self.clocks[at].since(before);
            let accepts =
                |now: &DateTime<Utc>| event_time_sent.is_none_or(|time| time >= *now - PAST && time <= *now + FUTURE);
            match answer.expect("no call hangs") {
                Ok(result) => {
                    assert_eq!(result.outcome(), EventOutcome::Accepted);
                    assert!(times_shown.iter().any(accepts), "{event_time_sent:?} was accepted at {times_shown:?}");
                    let acknowledged = Acknowledged::new(number, &result);
                    self.journal.write(&[acknowledged]);
                    let times = event_time_sent.map_or(times_shown, |time| vec![time]);
                    self.seen.accepted.push(Sent { number, event, event_time_sent, times, event_id: result.event_id });
                }
                Err(status) => {
                    let time = event_time_sent.expect("an event without a time is not rejected");
                    let reason = reason(&status).unwrap_or_default();
                    let right = match &*reason {
                        "EVENT_TOO_OLD" => times_shown.iter().any(|now| time < *now - PAST),
                        "EVENT_IN_FUTURE" => times_shown.iter().any(|now| time > *now + FUTURE),
                        _ => false,
                    };
                    assert!(right, "{time} was rejected at {times_shown:?}: {status}");
                    *self.seen.rejection.entry(reason).or_default() += 1;
                }
            }
        }
        self.seen
    }

    /// Returns no time, or a time around now. Most times are near the limits of the accepted range.
    fn choose_event_time(&mut self, at: usize) -> Option<DateTime<Utc>> {
        let now = self.clocks[at].now();
        let micros = TimeDelta::microseconds(self.rng.random_range(-2..=2));
        match self.rng.random_range(0..8) {
            0..=2 => None,
            3 => Some(now - PAST + micros),
            4 => Some(now + FUTURE + micros),
            5 => Some(now - TimeDelta::seconds(self.rng.random_range(0..36 * 86_400))),
            6 => Some(now + TimeDelta::seconds(self.rng.random_range(-1_000..1_000))),
            _ => {
                let zone: Tz = ZONES[self.rng.random_range(0..ZONES.len())].parse().unwrap();
                let midnight = now.with_timezone(&zone).date_naive().and_hms_opt(0, 0, 0).unwrap();
                zone.from_local_datetime(&midnight).earliest().map(|midnight| midnight.to_utc() + micros)
            }
        }
    }

    /// Sends an event again. The result must be the first one, whatever time the clock shows.
    async fn repeat(&mut self, at: usize) {
        let sent = &self.seen.accepted[self.rng.random_range(0..self.seen.accepted.len())];
        let result = track(&mut self.clients[at], sent.event.clone()).await;
        let result =
            result.unwrap_or_else(|status| panic!("a repeat of {:?} was rejected: {status}", sent.event_time_sent));
        assert_eq!((result.outcome(), &result.event_id), (EventOutcome::Duplicate, &sent.event_id));
        self.seen.repeats += 1;
    }
}

/// Compares each event with the sent one, and each day and month with the number of its events.
async fn assert_every_event_is_in_its_day_and_month(pool: &PgPool, sent: &HashMap<u64, Sent>) -> (usize, usize) {
    let (mut days, mut months) = (HashMap::<_, i64>::new(), HashMap::<_, i64>::new());
    let rows =
        sqlx::query("SELECT client_id, idempotency_key, event_time, day FROM usage_events").fetch_all(pool).await;
    for row in rows.unwrap() {
        let zone: &str = row.get("client_id");
        let time: DateTime<Utc> = row.get("event_time");
        let day = time.with_timezone(&zone.parse::<Tz>().unwrap()).date_naive();
        let number = crate::journal::number_of(row.get("idempotency_key"));
        let Sent { event, times, .. } = &sent[&number];
        assert_eq!(event.client_id, zone);
        assert!(times.contains(&time), "{number} is recorded at {time} instead of one of {times:?}");
        assert_eq!(row.get::<NaiveDate, _>("day"), day, "{time} in {zone}");
        *days.entry((zone.to_string(), day)).or_default() += 1;
        *months.entry((zone.to_string(), day.format("%Y-%m-01").to_string())).or_default() += 1;
    }
    let rows =
        sqlx::query("SELECT client_id, day, sum(request_count)::bigint AS count FROM all_usage_days GROUP BY 1, 2");
    let rows = rows.fetch_all(pool).await.unwrap();
    let recorded = rows.iter().map(|row| ((row.get("client_id"), row.get("day")), row.get("count"))).collect();
    assert_eq!(days, recorded, "days");
    let rows = sqlx::query("SELECT client_id, month::text AS month, request_count AS count FROM usage_months");
    let rows = rows.fetch_all(pool).await.unwrap();
    let recorded = rows.iter().map(|row| ((row.get("client_id"), row.get("month")), row.get("count"))).collect();
    assert_eq!(months, recorded, "months");
    (days.len(), months.len())
}
