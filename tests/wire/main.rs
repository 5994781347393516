//! Recorded requests and their answers: the server's executable gives the same answer to each, whatever was changed inside.
//!
//! A file in `recorded` is a topic: a server of its own over a fresh database, and the exchanges with it, in order. Requests are
//! written by hand, answers by the recording:
//!
//! - `METERD_WIRE_RECORD=1 cargo test --test wire` writes the answers (and the list of the contract) anew;
//! - `METERD_WIRE_SERVER=PATH` asks that executable instead of the one just built;
//! - `METERD_WIRE_TOPIC=NAME` takes that topic alone.
//!
//! What differs from run to run is written as `<id 1>`, `<now>` and so on: see `normal.rs`. See `topic.rs` for what an exchange
//! may say.

#[path = "../api/assertions.rs"]
#[expect(dead_code, reason = "the other tests'")]
mod assertions;
mod call;
mod contract;
mod diff;
#[path = "../api/harness.rs"]
#[expect(dead_code, unused_imports, reason = "the other tests'")]
mod harness;
mod json;
mod normal;
#[path = "../api/raw_codec.rs"]
mod raw_codec;
mod replay;
mod server;
mod topic;

use futures_util::StreamExt;
use std::collections::BTreeSet;
use topic::Topic;

/// Servers at once.
const TOPICS_AT_ONCE: usize = 3;

fn recording() -> bool {
    std::env::var_os("METERD_WIRE_RECORD").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_request_gets_its_recorded_answer() {
    let only = std::env::var("METERD_WIRE_TOPIC").ok();
    let topics = Topic::all().into_iter().filter(|topic| only.as_ref().is_none_or(|only| *only == topic.name));
    let replays = topics.map(|topic| async move {
        let replayed = replay::replay(&topic).await;
        if recording() {
            topic.write(&replayed);
            return String::new();
        }
        topic.differences(&replayed)
    });
    let differences: Vec<String> = futures_util::stream::iter(replays).buffered(TOPICS_AT_ONCE).collect().await;
    let differences = differences.concat();
    assert!(differences.is_empty(), "answers differ from the recorded ones (- recorded, + now):\n{differences}");
}

#[test]
fn every_rpc_has_a_recorded_request() {
    let recorded: BTreeSet<String> =
        Topic::all().into_iter().flat_map(|topic| topic.exchanges).map(|exchange| exchange.full_method()).collect();
    let missing: Vec<String> = contract::methods().into_iter().filter(|method| !recorded.contains(method)).collect();
    assert!(missing.is_empty(), "no recorded request of {missing:?}");
}

#[test]
fn every_reason_of_an_error_has_a_recorded_answer() {
    let recorded: String = Topic::all().iter().map(Topic::text).collect();
    let reasons = contract::reasons().into_iter();
    let missing: Vec<String> =
        reasons.filter(|reason| !recorded.contains(&format!("\"reason\": \"{reason}\""))).collect();
    assert!(missing.is_empty(), "no recorded answer with {missing:?}");
}

#[test]
fn the_contract_has_the_recorded_names_numbers_and_types() {
    let (path, now) = (topic::directory().join("contract.txt"), contract::listing());
    if recording() {
        return std::fs::write(path, now).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    assert!(recorded == now, "the contract differs from the recorded one:\n{}", diff::lines(&recorded, &now));
}
