//! Sends the requests of a topic and gives the answers.

use crate::call::Call;
use crate::contract;
use crate::normal::Known;
use crate::server::Server;
use crate::topic::{Exchange, Topic};
use prost::Message;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

/// How long a call is repeated until its answer has what is waited for.
const UNTIL_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// A topic that is replayed.
struct Replay<'a> {
    topic: &'a Topic,
    server: Server,
    channel: Channel,
    /// Beside the server, for the whole topic: it can hold locks.
    database: PgConnection,
    known: Known,
    kept: HashMap<String, Call>,
}

/// The answers of a topic's exchanges, as they are recorded. Steps beside the calls have none.
pub async fn replay(topic: &Topic) -> Vec<Option<Value>> {
    let server = Server::start(&topic.server).await;
    let mut known = Known::default();
    if let Some(token) = &server.first_token {
        known.name("key", token.split('_').nth(1).unwrap());
        known.name("token", token);
    }
    let channel = Endpoint::from_shared(server.address.clone()).unwrap().connect_lazy();
    let database = PgConnection::connect(&server.database_url).await.unwrap();
    let mut replay = Replay { topic, server, channel, database, known, kept: HashMap::new() };
    let mut answers = vec![];
    for number in 1..=topic.exchanges.len() {
        answers.push(replay.step(number).await);
    }
    answers
}

impl Replay<'_> {
    async fn step(&mut self, number: usize) -> Option<Value> {
        let exchange = &self.topic.exchanges[number - 1];
        if let Some(sql) = &exchange.sql {
            self.run_sql(&self.known.filled(sql), exchange.until.is_some()).await;
        } else if let Some(signal) = &exchange.signal {
            self.server.signal(signal);
        } else {
            return Some(self.exchange(exchange, number).await);
        }
        None
    }

    async fn run_sql(&mut self, sql: &str, until: bool) {
        let begun = Instant::now();
        loop {
            let done = self.database.execute(AssertSqlSafe(sql.to_string())).await;
            let done = done.unwrap_or_else(|error| panic!("{}: {error} in {sql}", self.topic.name));
            if !until || done.rows_affected() > 0 {
                return;
            }
            assert!(begun.elapsed() < UNTIL_MAX, "{}: no row of {sql}", self.topic.name);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn exchange(&mut self, exchange: &Exchange, number: usize) -> Value {
        let begun = Instant::now();
        loop {
            let (answer, request_id) = self.call(exchange, number).await;
            // Repeated, because of the time that something takes: only the last answer counts.
            let waits = |text: &String| !answer.to_string().contains(text) && begun.elapsed() < UNTIL_MAX;
            if exchange.until.as_ref().is_some_and(waits) {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            self.known.begin(&exchange.mask);
            match (request_id, &exchange.on) {
                (Some(id), _) => self.known.request_id(&id, number),
                // It came with the begin of the call.
                (None, Some(_)) => {}
                (None, None) if exchange.read == Some(0) => {}
                (None, None) => panic!("{}, exchange {number}: no x-request-id in {answer}", self.topic.name),
            }
            return self.known.normal("", &answer);
        }
    }

    async fn call(&mut self, exchange: &Exchange, number: usize) -> (Value, Option<String>) {
        let full_name = exchange.full_method();
        let method = contract::method(&full_name);
        let messages = self.messages(exchange, method.as_ref(), number);
        let mut call = match &exchange.on {
            Some(name) => self.kept.remove(name).unwrap_or_else(|| panic!("no kept call {name}")),
            None => Call::begin(&self.channel, &full_name, method.clone(), self.headers(exchange)),
        };
        if exchange.on.is_none() || !messages.is_empty() {
            call.send(messages);
        }
        let goes_on = exchange.keep.is_some() && method.is_some_and(|method| method.is_client_streaming());
        if !goes_on {
            call.end();
        }
        let answer = call.read(exchange.read.unwrap_or(usize::MAX)).await;
        if let Some(name) = &exchange.keep {
            self.kept.insert(name.clone(), call);
        }
        answer
    }

    fn headers(&self, exchange: &Exchange) -> MetadataMap {
        let mut headers = MetadataMap::new();
        if !exchange.caller.is_empty() {
            let credentials = format!("Bearer {}", self.known.filled(&exchange.caller));
            headers.insert("authorization", credentials.parse().unwrap());
        }
        for (name, value) in &exchange.headers {
            let name: tonic::metadata::AsciiMetadataKey = name.parse().unwrap();
            headers.insert(name, self.known.filled(value.as_str().unwrap()).parse().unwrap());
        }
        headers
    }

    fn messages(&self, exchange: &Exchange, method: Option<&MethodDescriptor>, number: usize) -> Vec<Vec<u8>> {
        if let Some(bytes) = &exchange.bytes {
            return bytes.iter().map(|digits| from_hexadecimal(digits)).collect();
        }
        let requests = match &exchange.request {
            Some(Value::Array(requests)) => requests.clone(),
            Some(request) => vec![request.clone()],
            None => vec![],
        };
        let encode = |request: &Value| {
            let place = || format!("{}, exchange {number}", self.topic.name);
            let input = method.unwrap_or_else(|| panic!("{}: no such method", place())).input();
            let message = DynamicMessage::deserialize(input, self.known.fill(request));
            message.unwrap_or_else(|error| panic!("{}: {error}", place())).encode_to_vec()
        };
        requests.iter().map(encode).collect()
    }
}

fn from_hexadecimal(digits: &str) -> Vec<u8> {
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
}
