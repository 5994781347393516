//! Alerts to a thousand subscribers, as fast as the server can, compared with a plain tonic server and a broadcast channel.

use super::Bench;
use super::broadcast::{self, MESSAGES_MAX};
use super::crossings::crossing_event;
use crate::connection::Connection;
use crate::goals::{Bound, Goal};
use crate::load;
use crate::product::proto::subscribe_alerts_response::Message;
use crate::product::proto::{AlertSeverity, AlertType, SubscribeAlertsRequest, SubscribeAlertsResponse};
use crate::product::{grouped, status_error};
use crate::spread::Spread;
use crate::window::{Window, measure as measure_window};
use anyhow::Context;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

/// Longest time until the last message.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time until the floor has started or stopped.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Goals: the ratio to the floor, and the memory of the server.
const OF_BROADCAST_MIN: f64 = 0.5;
const MIB: f64 = 1024.0 * 1024.0;
const IDLE_MIB_MAX: f64 = 64.0;
const BUSY_MIB_MAX: f64 = 256.0;
/// The load at the top rate: events of a call, and concurrent calls.
const BATCH_EVENTS: usize = 1_000;
const BATCH_CALLS: usize = 4;

/// What was measured.
pub struct FanOut {
    pub subscribers: u32,
    /// Messages per second of the server and of the floor, in each round.
    rounds: Vec<(f64, f64)>,
    /// Alerts that all subscribers received together.
    pub received: u64,
    idle_bytes: Option<u64>,
    busy_bytes: Option<u64>,
    /// Events per second while `busy_bytes` was read.
    busy_per_second: f64,
}

type Messages = Streaming<SubscribeAlertsResponse>;

/// The process of the floor. Dropping it kills the process.
struct Floor {
    child: Child,
    input: ChildStdin,
    address: String,
}

impl Floor {
    async fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("this program cannot be found")?);
        command.arg("broadcast").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.process_group(0).kill_on_drop(true).spawn().context("the floor cannot be started")?;
        let input = child.stdin.take().context("the floor has no input")?;
        let mut lines = BufReader::new(child.stdout.take().context("the floor has no output")?).lines();
        let line =
            tokio::time::timeout(START_TIMEOUT, lines.next_line()).await.context("the floor does not start")??;
        let address = line.as_deref().and_then(|line| line.strip_prefix("gRPC ")).context("the floor has ended")?;
        Ok(Self { child, input, address: format!("http://{address}") })
    }

    async fn send(&mut self, line: &str) -> anyhow::Result<()> {
        self.input.write_all(line.as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    async fn stop(self) -> anyhow::Result<()> {
        let Self { mut child, input, .. } = self;
        drop(input);
        let status = tokio::time::timeout(START_TIMEOUT, child.wait()).await.context("the floor does not end")??;
        anyhow::ensure!(status.success(), "the floor ended with {status}");
        Ok(())
    }
}

/// Opens streams on these connections, in rotation, and waits until all have started.
async fn open<F>(
    channels: &[Connection],
    count: u32,
    subscribe: impl Fn(Connection) -> F,
) -> anyhow::Result<Vec<Messages>>
where
    F: Future<Output = Result<tonic::Response<Messages>, tonic::Status>>,
{
    let mut streams = vec![];
    for channel in channels.iter().cycle().take(count as usize) {
        let stream = subscribe(channel.clone()).await;
        let mut stream = stream.map_err(|status| status_error(&status))?.into_inner();
        stream.message().await.map_err(|status| status_error(&status))?.context("a stream does not begin")?;
        streams.push(stream);
    }
    Ok(streams)
}

async fn subscribe(channel: Connection) -> Result<tonic::Response<Messages>, tonic::Status> {
    let request = SubscribeAlertsRequest {
        types: vec![AlertType::Threshold.into()],
        min_severity: AlertSeverity::Critical.into(),
        ..Default::default()
    };
    channel.alerts().subscribe_alerts(request).await
}

async fn subscribe_to_floor(channel: Connection) -> Result<tonic::Response<Messages>, tonic::Status> {
    let mut grpc = channel.grpc();
    grpc.ready().await.map_err(|error| tonic::Status::unknown(error.to_string()))?;
    let path = PathAndQuery::from_static(broadcast::PATH);
    let request = tonic::Request::new(SubscribeAlertsRequest::default());
    grpc.server_streaming(request, path, ProstCodec::default()).await
}

/// Follows streams until each has received `each` messages. Returns the messages per second between the first and the last
/// message of all streams, and one message.
async fn follow(streams: Vec<Messages>, each: u32) -> anyhow::Result<(f64, SubscribeAlertsResponse)> {
    let count = streams.len() as f64;
    let mut following: JoinSet<anyhow::Result<_>> = JoinSet::new();
    for mut stream in streams {
        following.spawn(async move {
            let (mut first, mut last, mut sequence) = (None, None, 0);
            let mut left = each;
            while left > 0 {
                let message = stream.message().await.map_err(|status| status_error(&status))?;
                let message = message.context("a stream ended")?;
                match &message.message {
                    Some(Message::Alert(event)) if event.sequence > sequence => sequence = event.sequence,
                    // The floor sends the same alert repeatedly.
                    Some(Message::Alert(_)) if message.resume_token.is_empty() => {}
                    Some(Message::Alert(event)) => anyhow::bail!("alert {} came after {sequence}", event.sequence),
                    _ => continue,
                }
                first.get_or_insert_with(Instant::now);
                left -= 1;
                last = Some(message);
            }
            Ok((first.context("there is a message")?, Instant::now(), last.context("there is a message")?))
        });
    }
    let ended =
        tokio::time::timeout(LAST_MESSAGE_TIMEOUT, following.join_all()).await.context("messages are missing")?;
    let ended = ended.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let first = ended.iter().map(|(first, ..)| *first).min().context("there is a stream")?;
    let last = ended.iter().map(|(_, last, _)| *last).max().context("there is a stream")?;
    let message = ended.into_iter().next().context("there is a stream")?.2;
    Ok((count * f64::from(each) / (last - first).as_secs_f64(), message))
}

async fn channels(address: &str, streams: u32, each: u32) -> anyhow::Result<Vec<Connection>> {
    let mut channels = vec![];
    for _ in 0..streams.div_ceil(each) {
        channels.push(Connection::open(address).await?);
    }
    Ok(channels)
}

/// Measures memory at the top rate of events, then the fan-out of the server and of the floor, alternately. `idle_bytes` is
/// the memory of the server before its first call.
pub async fn measure(bench: &mut Bench<'_>, idle_bytes: Option<u64>) -> anyhow::Result<FanOut> {
    let args = bench.args;
    let (subscribers, alerts) = (args.fan_out, args.fan_out_alerts);
    let own = channels(&bench.address, subscribers, args.streams_per_connection).await?;

    let streams = open(&own, subscribers, subscribe).await?;
    let events = bench.events();
    let worker = |channel| {
        let events = events.clone();
        move |window: Arc<Window>| load::batches(channel, events, BATCH_EVENTS, window)
    };
    let writers = bench.channels.iter().cycle().take(BATCH_CALLS).cloned();
    let busy = measure_window(Duration::from_secs(args.seconds), &bench.watch, writers.map(worker)).await?;
    bench.acknowledged += busy.acknowledged;
    let busy_bytes = bench.watch.server_memory();
    drop(streams);

    let mut floor = Floor::start().await?;
    let of_floor = channels(&floor.address, subscribers, args.streams_per_connection).await?;
    let (mut rounds, mut received) = (vec![], 0);
    for round in 0..args.rounds {
        let streams = open(&own, subscribers, subscribe).await?;
        let crossings = (0..alerts).map(|number| crossing_event(format!("fan-out-{round:03}-{number:06}"))).collect();
        let following = tokio::spawn(follow(streams, alerts));
        load::batch(&bench.channels[0], crossings).await?;
        bench.acknowledged += u64::from(alerts);
        bench.crossed += u64::from(alerts);
        let (own_rate, message) = following.await??;
        received += u64::from(subscribers) * u64::from(alerts);
        let streams = open(&of_floor, subscribers, subscribe_to_floor).await?;
        let following = tokio::spawn(follow(streams, alerts));
        // Of the same length as a message of the server, but without the token that identifies one.
        let filler = SubscribeAlertsResponse { resume_token: String::new(), ..lengthened(message) };
        floor.send(&format!("{} {alerts}\n", broadcast::hex_of(&filler))).await?;
        rounds.push((own_rate, following.await??.0));
    }
    floor.stop().await?;
    Ok(FanOut { subscribers, rounds, received, idle_bytes, busy_bytes, busy_per_second: busy.per_second })
}

/// Appends the token to the text of the alert, so that the length stays the same without a token.
fn lengthened(mut message: SubscribeAlertsResponse) -> SubscribeAlertsResponse {
    if let Some(Message::Alert(event)) = &mut message.message
        && let Some(alert) = &mut event.alert
    {
        alert.message.push_str(&message.resume_token);
    }
    message
}

impl FanOut {
    /// Each goal with the measured figure.
    pub fn goals(&self) -> Vec<Goal> {
        let of = |figure: fn(&(f64, f64)) -> f64| Spread::of(self.rounds.iter().map(figure));
        let shown = |spread: Option<Spread>| grouped(spread.map_or(0.0, |spread| spread.median).round());
        let figures = format!("{}/s, broadcast {}/s", shown(of(|of| of.0)), shown(of(|of| of.1)));
        let mut goals = vec![];
        let mut add = |what: String, figures, measured: Option<Spread>, unit, bound| {
            goals.extend(measured.map(|measured| Goal { what, figures, measured, unit, bound }));
        };
        let what = format!("alerts to {} subscribers", grouped(self.subscribers));
        add(what, figures, of(|of| of.0 / of.1), "× a broadcast", Bound::AtLeast(OF_BROADCAST_MIN));
        let mib = |bytes: Option<u64>| Spread::of(bytes.map(|bytes| bytes as f64 / MIB));
        add("memory, idle".into(), String::new(), mib(self.idle_bytes), "MiB", Bound::AtMost(IDLE_MIB_MAX));
        let what = format!("memory at top rate, {} subscribers", grouped(self.subscribers));
        let figures = format!("{}/s in batches of {BATCH_EVENTS}", grouped(self.busy_per_second.round()));
        add(what, figures, mib(self.busy_bytes), "MiB", Bound::AtMost(BUSY_MIB_MAX));
        goals
    }
}

/// Most alerts of a round.
pub const ALERTS_MAX: i64 = MESSAGES_MAX as i64 / 16;
