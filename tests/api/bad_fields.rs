//! Sets every field of every RPC to every kind of bad value that fits, over one connection. Each call must return the
//! documented error with exactly this field, or succeed if the value is valid.

use crate::bad_requests::expected_result;
use crate::bad_test_data::{TestData, cases_of_field, field_paths, parent, path_text, rpc};
use crate::bad_values::{Case, Expected, reason};
use crate::contract::*;
use prost_reflect::MethodDescriptor;
use std::collections::BTreeSet;
use tonic::Code;
use tracing_subscriber::layer::SubscriberExt;

/// Describes what is wrong with a response, or returns `None` if it is as expected.
fn failure_of(rpc: &MethodDescriptor, path: &str, case: &Case, answer: &Answer) -> Option<String> {
    let errors = answer.errors();
    let (reason, names_fields) = reason(case.expected);
    if reason.is_empty() {
        return errors.first().map(|error| format!("was rejected: {error:?}"));
    }
    let [error] = errors.as_slice() else { return Some(format!("was not rejected once: {errors:?}")) };
    if let Err(wrong) = error_rules().check(documented(rpc, answer), error.code, &error.reason) {
        return Some(wrong);
    }
    let fields = match (&case.fields, case.expected) {
        _ if !names_fields => vec![],
        (Some(fields), _) => fields.clone(),
        (None, Expected::InvalidSibling(sibling)) => vec![sibling.into()],
        (None, _) => vec![path.to_string()],
    };
    let as_expected =
        error.reason == reason && error.fields == fields && (!names_fields || error.code == Code::InvalidArgument);
    (!as_expected).then(|| format!("was rejected as {error:?}, not {reason} {fields:?}"))
}

/// Returns the RPC whose comment documents the errors. Errors of events in a batch or stream are documented at
/// TrackUsage, those of prices of a list at CreatePrice.
fn documented<'a>(rpc: &'a MethodDescriptor, answer: &Answer) -> &'a str {
    match (answer.end.is_ok(), rpc.name()) {
        (true, "ImportPrices") => "CreatePrice",
        (true, name @ ("VoidUsage" | "CorrectUsage")) => name,
        (true, _) => "TrackUsage",
        (false, name) => name,
    }
}

#[tokio::test]
async fn every_bad_value_of_every_field_is_rejected_as_documented() {
    let watch = FailureWatch::start();
    let log = tracing::subscriber::set_default(tracing_subscriber::registry().with(watch.clone()));
    let mut data = TestData::start().await;
    let foreign = data.token(&rpc("ListClients")).await;
    let other_foreign = data.token(&rpc("ListPrices")).await;
    let (mut kinds, mut cells, mut failures) = (BTreeSet::new(), 0, vec![]);
    for rpc in rpcs() {
        let mut paths_of_rpc = vec![];
        field_paths(&rpc.input(), &[], &mut paths_of_rpc);
        let has_tokens = paths_of_rpc.iter().any(|path| path.last().unwrap().name().ends_with("e_token"));
        let foreign = if rpc.name() == "ListClients" { &other_foreign } else { &foreign };
        let own = if has_tokens { data.token(&rpc).await } else { String::new() };
        let tokens = [own, foreign.clone()];
        for path in paths_of_rpc {
            let (mut valid, path_text) = (data.valid(&rpc).await, path_text(&path));
            let unique = format!("{}-{}", rpc.name(), data.requests_made);
            for case in cases_of_field(&rpc, &path, &mut valid, &tokens, &unique) {
                let mut request = data.valid(&rpc).await;
                let message = parent(&mut request, &path).unwrap();
                match &case.value {
                    Some(value) => message.set_field(path.last().unwrap(), value.clone()),
                    None => message.clear_field(path.last().unwrap()),
                }
                if let Some((name, value)) = &case.sibling {
                    message.set_field_by_name(name, value.clone());
                }
                let answer = data.call(&rpc, &request).await;
                cells += 1;
                kinds.insert(case.kind.clone());
                if let Some(failure) = failure_of(&rpc, &path_text, &case, &answer) {
                    failures.push(format!("{} {path_text}, {}: {failure}", rpc.name(), case.kind));
                }
            }
        }
        // The valid request must still return the same result.
        let request = data.valid(&rpc).await;
        let answer = data.call(&rpc, &request).await;
        let expected = Case {
            kind: "valid request".into(),
            value: None,
            sibling: None,
            expected: expected_result(rpc.name()),
            fields: None,
        };
        failures.extend(
            failure_of(&rpc, "", &expected, &answer).map(|failure| format!("{} itself: {failure}", rpc.name())),
        );
    }
    println!("bad input: {} kinds, {} cells of {cells}", kinds.len(), cells - failures.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert_eq!((watch.panics(true), watch.errors(), data.connection.lost()), (vec![], vec![], 0));
    assert_eq!(data.server.verify().await.differences, 0);
    data.server.stop().await;
    drop(log);
}
