//! Clocks that jump, differently on each replica: no event lands in a wrong day or month.

use crate::calls::{Client, DEADLINE, client, reason, track};
use crate::check::check;
use crate::database::Database;
use crate::events::KEY_PREFIX;
use crate::inside::Inside;
use crate::journal::{Acknowledged, Journal};
use crate::place::Place;
use crate::run::{Run, grouped};
use crate::scenario;
use crate::world::lower_the_lines;
use chrono::{DateTime, NaiveDate, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use meterd::proto::client_service_client::ClientServiceClient;
use meterd::proto::{Client as ProtoClient, CreateClientRequest, EventOutcome, UsageEvent};
use meterd_engine::clock::Clock;
use prost_types::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;
use sqlx::{PgPool, Row};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// From the date line to the date line, with odd offsets, and with summer times that begin at midnight and by half an hour.
const ZONES: [&str; 8] = [
    "UTC",
    "Pacific/Kiritimati",
    "Pacific/Pago_Pago",
    "America/New_York",
    "America/Havana",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Europe/Berlin",
];
const CALLERS: usize = 12;
/// Between two jumps.
const PAUSE_MS: std::ops::Range<u64> = 10..80;
/// The defaults of `accept_past_days` and `accept_future_seconds`.
const PAST: TimeDelta = TimeDelta::days(35);
const FUTURE: TimeDelta = TimeDelta::seconds(300);
/// Clocks stay in these years.
const YEARS: RangeInclusive<i32> = 2027..=2028;

scenario! {
    clocks_that_jump_put_no_event_into_a_wrong_day_or_month => jumps;
}

/// A clock that is set by hand, and every time that it has told.
#[derive(Clone)]
struct Jumping {
    clock: Clock,
    told: Arc<Mutex<Vec<DateTime<Utc>>>>,
}

impl Jumping {
    fn at(time: DateTime<Utc>) -> Self {
        Self { clock: Clock::fixed(time), told: Arc::new(Mutex::new(vec![time])) }
    }

    fn set(&self, time: DateTime<Utc>) {
        let mut told = self.told.lock().unwrap();
        self.clock.set(time);
        told.push(time);
    }

    fn now(&self) -> DateTime<Utc> {
        *self.told.lock().unwrap().last().expect("it begins with one")
    }

    /// How many times it has told.
    fn count(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    /// What it told since it had told so many, the last of those with them.
    fn since(&self, count: usize) -> Vec<DateTime<Utc>> {
        self.told.lock().unwrap()[count - 1..].to_vec()
    }

    /// Jumps: by an hour, by 35 days, to the end of a month, to a change of the summer time, or on by a little.
    fn jump(&self, dice: &mut StdRng) {
        let now = self.now();
        let sign = if dice.random() { 1 } else { -1 };
        let wanted = match dice.random_range(0..6) {
            0 => now + TimeDelta::hours(sign),
            1 => now + TimeDelta::days(35 * sign),
            2 => {
                let zone: Tz = ZONES[dice.random_range(0..ZONES.len())].parse().unwrap();
                let month = NaiveDate::from_ymd_opt(dice.random_range(YEARS), dice.random_range(1..=12), 1).unwrap();
                let midnight = zone.from_local_datetime(&month.and_hms_opt(0, 0, 0).unwrap()).earliest();
                midnight.map_or(now, |midnight| midnight.to_utc()) + TimeDelta::microseconds(dice.random_range(-1..=1))
            }
            3 => {
                let day = NaiveDate::from_ymd_opt(dice.random_range(YEARS), [3, 4, 10, 11][dice.random_range(0..4)], 1);
                Utc.from_utc_datetime(&day.unwrap().and_hms_opt(0, 0, 0).unwrap())
                    + TimeDelta::minutes(dice.random_range(0..31 * 24 * 60))
            }
            4 => now - TimeDelta::seconds(dice.random_range(1..400)),
            _ => now + TimeDelta::milliseconds(dice.random_range(1..10_000)),
        };
        let start = |year| Utc.with_ymd_and_hms(year, 1, 1, 0, 0, 0).unwrap();
        let fits = (start(*YEARS.start())..start(*YEARS.end() + 1)).contains(&wanted);
        self.set(if fits { wanted } else { start(2027) + TimeDelta::days(dice.random_range(0..700)) });
    }
}

/// An event that a caller sent, and what its replica's clock told meanwhile.
#[derive(Clone)]
struct Sent {
    number: u64,
    event: UsageEvent,
    given: Option<DateTime<Utc>>,
    /// The only answers that are right for its recorded time.
    times: Vec<DateTime<Utc>>,
    event_id: String,
}

#[derive(Default)]
struct Seen {
    accepted: Vec<Sent>,
    refused: HashMap<String, usize>,
    repeats: usize,
}

async fn jumps(run: Run) {
    let jumps = run.count(60, 1_000);
    let place = Place::new();
    let database = Database::ours(&place).await;
    let start = Utc.with_ymd_and_hms(2027, 3, 13, 12, 0, 0).unwrap();
    let clocks = [start, start + TimeDelta::minutes(7)].map(Jumping::at);
    let inside = Inside::start(&database.url().await, &clocks.each_ref().map(|jumping| jumping.clock.clone())).await;
    lower_the_lines(&inside.addresses()[0]).await;
    let channel = Channel::from_shared(inside.addresses()[0].clone()).unwrap().connect_lazy();
    for zone in ZONES {
        let client = ProtoClient { client_id: zone.into(), time_zone: zone.into(), ..Default::default() };
        let request = CreateClientRequest { client: Some(client), request_id: String::new() };
        ClientServiceClient::new(channel.clone()).create_client(request).await.unwrap();
    }
    drop(channel);
    let journal = Arc::new(Journal::create(&place.path("journal")));
    let (next, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let caller = Caller {
            clients: inside.addresses().iter().map(|address| client(address)).collect(),
            clocks: clocks.clone(),
            journal: journal.clone(),
            dice: run.dice("caller", number),
            seen: Seen::default(),
        };
        callers.spawn(caller.work(next.clone(), done.clone()));
    }
    let mut dice = run.dice("jumps", 0);
    for _ in 0..jumps {
        tokio::time::sleep(Duration::from_millis(dice.random_range(PAUSE_MS))).await;
        clocks[dice.random_range(0..2)].jump(&mut dice);
    }
    done.store(true, Ordering::Relaxed);
    let (mut sent, mut refused, mut repeats) = (HashMap::new(), HashMap::<String, usize>::new(), 0);
    for seen in callers.join_all().await {
        sent.extend(seen.accepted.into_iter().map(|sent| (sent.number, sent)));
        seen.refused.into_iter().for_each(|(reason, count)| *refused.entry(reason).or_default() += count);
        repeats += seen.repeats;
    }
    let pool = database.pool().await;
    let checked = check(&pool, &journal).await;
    let (days, months) = every_event_is_in_its_day_and_month(&pool, &sent).await;
    pool.close().await;
    assert_eq!(checked.recorded, sent.len());
    assert_eq!(database.said("deadlock detected"), 0);
    inside.stop().await;
    let refusals: Vec<String> =
        refused.iter().map(|(reason, count)| format!("{reason} × {}", grouped(*count))).collect();
    run.report(
        format!("clocks jumped × {}", grouped(jumps)),
        format!(
            "{checked}, 0 in a wrong day or month of {days} client-days and {months} client-months, {} repeats answered with \
             the first result, refused only: {}",
            grouped(repeats),
            refusals.join(", ")
        ),
    );
}

struct Caller {
    clients: Vec<Client>,
    clocks: [Jumping; 2],
    journal: Arc<Journal>,
    dice: StdRng,
    seen: Seen,
}

impl Caller {
    async fn work(mut self, next: Arc<AtomicU64>, done: Arc<AtomicBool>) -> Seen {
        while !done.load(Ordering::Relaxed) {
            let at = self.dice.random_range(0..2);
            if self.dice.random_ratio(1, 4) && !self.seen.accepted.is_empty() {
                self.repeat(at).await;
                continue;
            }
            let number = next.fetch_add(1, Ordering::Relaxed);
            let given = self.given_time(at);
            let event = UsageEvent {
                client_id: ZONES[self.dice.random_range(0..ZONES.len())].into(),
                service: "sms".into(),
                idempotency_key: format!("{KEY_PREFIX}{number}"),
                event_time: given
                    .map(|time| Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }),
                ..Default::default()
            };
            let before = self.clocks[at].count();
            let answer = tokio::time::timeout(DEADLINE, track(&mut self.clients[at], event.clone())).await;
            let told = self.clocks[at].since(before);
            let takes = |now: &DateTime<Utc>| given.is_none_or(|time| time >= *now - PAST && time <= *now + FUTURE);
            match answer.expect("nothing hangs") {
                Ok(result) => {
                    assert_eq!(result.outcome(), EventOutcome::Accepted);
                    assert!(told.iter().any(takes), "{given:?} was taken at {told:?}");
                    let acknowledged = Acknowledged::new(number, &result);
                    self.journal.write(&[acknowledged]);
                    let times = given.map_or(told, |time| vec![time]);
                    self.seen.accepted.push(Sent { number, event, given, times, event_id: result.event_id });
                }
                Err(status) => {
                    let time = given.expect("an event of now is not refused");
                    let reason = reason(&status).unwrap_or_default();
                    let right = match &*reason {
                        "EVENT_TOO_OLD" => told.iter().any(|now| time < *now - PAST),
                        "EVENT_IN_FUTURE" => told.iter().any(|now| time > *now + FUTURE),
                        _ => false,
                    };
                    assert!(right, "{time} was refused at {told:?}: {status}");
                    *self.seen.refused.entry(reason).or_default() += 1;
                }
            }
        }
        self.seen
    }

    /// Now by the server, or anything around now, and mostly near to what is taken.
    fn given_time(&mut self, at: usize) -> Option<DateTime<Utc>> {
        let now = self.clocks[at].now();
        let micros = TimeDelta::microseconds(self.dice.random_range(-2..=2));
        match self.dice.random_range(0..8) {
            0..=2 => None,
            3 => Some(now - PAST + micros),
            4 => Some(now + FUTURE + micros),
            5 => Some(now - TimeDelta::seconds(self.dice.random_range(0..36 * 86_400))),
            6 => Some(now + TimeDelta::seconds(self.dice.random_range(-1_000..1_000))),
            _ => {
                let zone: Tz = ZONES[self.dice.random_range(0..ZONES.len())].parse().unwrap();
                let midnight = now.with_timezone(&zone).date_naive().and_hms_opt(0, 0, 0).unwrap();
                zone.from_local_datetime(&midnight).earliest().map(|midnight| midnight.to_utc() + micros)
            }
        }
    }

    /// Sends an event again: whatever the clock says by now, the answer is the first one.
    async fn repeat(&mut self, at: usize) {
        let sent = &self.seen.accepted[self.dice.random_range(0..self.seen.accepted.len())];
        let result = track(&mut self.clients[at], sent.event.clone()).await;
        let result = result.unwrap_or_else(|status| panic!("a repeat of {:?} was refused: {status}", sent.given));
        assert_eq!((result.outcome(), &result.event_id), (EventOutcome::Duplicate, &sent.event_id));
        self.seen.repeats += 1;
    }
}

/// Compares each event with what was sent, and each day and month with the events of it, counted here.
async fn every_event_is_in_its_day_and_month(pool: &PgPool, sent: &HashMap<u64, Sent>) -> (usize, usize) {
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
        assert!(times.contains(&time), "{number} is recorded at {time}, and was sent at {times:?}");
        assert_eq!(row.get::<NaiveDate, _>("day"), day, "{time} in {zone}");
        *days.entry((zone.to_string(), day)).or_default() += 1;
        *months.entry((zone.to_string(), day.format("%Y-%m-01").to_string())).or_default() += 1;
    }
    let rows = sqlx::query("SELECT client_id, day, sum(request_count)::bigint AS count FROM usage_days GROUP BY 1, 2");
    let rows = rows.fetch_all(pool).await.unwrap();
    let recorded = rows.iter().map(|row| ((row.get("client_id"), row.get("day")), row.get("count"))).collect();
    assert_eq!(days, recorded, "days");
    let rows = sqlx::query("SELECT client_id, month::text AS month, request_count AS count FROM usage_months");
    let rows = rows.fetch_all(pool).await.unwrap();
    let recorded = rows.iter().map(|row| ((row.get("client_id"), row.get("month")), row.get("count"))).collect();
    assert_eq!(months, recorded, "months");
    (days.len(), months.len())
}
