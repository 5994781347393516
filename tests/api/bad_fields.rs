//! Every kind of bad value in every field of every RPC that it fits, over one connection: each has the status that the contract
//! documents and names exactly its field, or is taken where it is fine.

use crate::bad_kinds::{Case, Expected, reason};
use crate::bad_requests::answer_of;
use crate::bad_world::{World, cases_of, parent, path, places, rpc};
use crate::contract::*;
use prost_reflect::MethodDescriptor;
use std::collections::BTreeSet;
use tonic::Code;
use tracing_subscriber::layer::SubscriberExt;

/// What is wrong with an answer; nothing, where it is as expected.
fn fault(rpc: &MethodDescriptor, place: &str, case: &Case, answer: &Answer) -> Option<String> {
    let refusals = answer.refusals();
    let (reason, names_fields) = reason(case.expected);
    if reason.is_empty() {
        return refusals.first().map(|refusal| format!("was refused: {refusal:?}"));
    }
    let [refusal] = refusals.as_slice() else { return Some(format!("was not refused once: {refusals:?}")) };
    if let Err(wrong) = error_rules().check(documented(rpc, answer), refusal.code, &refusal.reason) {
        return Some(wrong);
    }
    let fields = match (&case.fields, case.expected) {
        _ if !names_fields => vec![],
        (Some(fields), _) => fields.clone(),
        (None, Expected::At(sibling)) => vec![sibling.into()],
        (None, _) => vec![place.to_string()],
    };
    let as_expected = refusal.reason == reason
        && refusal.fields == fields
        && (!names_fields || refusal.code == Code::InvalidArgument);
    (!as_expected).then(|| format!("was refused as {refusal:?}, not {reason} {fields:?}"))
}

/// Whose comment lists the errors: those of events in a batch or stream are TrackUsage's.
fn documented<'a>(rpc: &'a MethodDescriptor, answer: &Answer) -> &'a str {
    if answer.end.is_ok() { "TrackUsage" } else { rpc.name() }
}

#[tokio::test]
async fn every_kind_of_bad_value_in_every_field_of_every_rpc_is_refused_as_documented() {
    let watch = Watch::start();
    let log = tracing::subscriber::set_default(tracing_subscriber::registry().with(watch.clone()));
    let mut world = World::start().await;
    let foreign = world.token(&rpc("ListClients")).await;
    let other_foreign = world.token(&rpc("ListPrices")).await;
    let (mut kinds, mut cells, mut faults) = (BTreeSet::new(), 0, vec![]);
    for rpc in rpcs() {
        let mut places_of_rpc = vec![];
        places(&rpc.input(), &[], &mut places_of_rpc);
        let has_tokens = places_of_rpc.iter().any(|place| place.last().unwrap().name().ends_with("e_token"));
        let foreign = if rpc.name() == "ListClients" { &other_foreign } else { &foreign };
        let own = if has_tokens { world.token(&rpc).await } else { String::new() };
        let tokens = [own, foreign.clone()];
        for place in places_of_rpc {
            let (mut fine, path) = (world.fine(&rpc).await, path(&place));
            let unique = format!("{}-{}", rpc.name(), world.made);
            for case in cases_of(&rpc, &place, &mut fine, &tokens, &unique) {
                let mut request = world.fine(&rpc).await;
                let message = parent(&mut request, &place).unwrap();
                match &case.value {
                    Some(value) => message.set_field(place.last().unwrap(), value.clone()),
                    None => message.clear_field(place.last().unwrap()),
                }
                if let Some((name, value)) = &case.beside {
                    message.set_field_by_name(name, value.clone());
                }
                let answer = world.call(&rpc, &request).await;
                cells += 1;
                kinds.insert(case.kind.clone());
                if let Some(fault) = fault(&rpc, &path, &case, &answer) {
                    faults.push(format!("{} {path}, {}: {fault}", rpc.name(), case.kind));
                }
            }
        }
        // The fine request is still answered as ever.
        let request = world.fine(&rpc).await;
        let answer = world.call(&rpc, &request).await;
        let expected =
            Case { kind: "fine".into(), value: None, beside: None, expected: answer_of(rpc.name()), fields: None };
        faults.extend(fault(&rpc, "", &expected, &answer).map(|fault| format!("{} itself: {fault}", rpc.name())));
    }
    println!("bad input: {} kinds, {} cells of {cells}", kinds.len(), cells - faults.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!((watch.panics(true), watch.errors(), world.wire.lost()), (vec![], vec![], 0));
    assert_eq!(world.server.verify().await.differences, 0);
    world.server.stop().await;
    drop(log);
}
