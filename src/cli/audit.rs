//! `meterd audit`: shows the audit log of admin calls.

use super::chart::table;
use super::connect::{self, ConnectArgs};
use super::time::time_of;
use crate::grpc::methods;
use crate::proto::{ActorKind, AuditEntry, ListAuditLogRequest};
use chrono::SecondsFormat;
use clap::Args;
use prost_types::Timestamp;
use serde_json::{Value, json};
use std::process::ExitCode;
use tonic::Code;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: usize = 1_000;
/// Maximum number of characters of a request in the table.
const REQUEST_CHARS_MAX: usize = 80;

/// Show the audit log of admin calls, the newest first
#[derive(Args, Clone, Debug)]
pub struct AuditArgs {
    /// Only calls with this key id or this subject of a token
    #[arg(long, value_name = "ID")]
    pub actor: Option<String>,
    /// Only calls of this method, such as CatalogService/CreatePrice or CreatePrice
    #[arg(long)]
    pub method: Option<String>,
    /// Maximum number of entries
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// Print JSON, one entry per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Prints the audit log.
pub async fn run(args: AuditArgs) -> anyhow::Result<ExitCode> {
    let method = args.method.as_deref().map(method).transpose()?.unwrap_or_default();
    let mut client = connect::keys_client(args.connect.channel().await?);
    let (mut entries, mut page_token) = (vec![], String::new());
    loop {
        let left = args.limit as usize - entries.len();
        let request = ListAuditLogRequest {
            actor_id: args.actor.clone().unwrap_or_default(),
            method: method.to_owned(),
            page_size: left.min(PAGE_SIZE) as i32,
            page_token,
            ..Default::default()
        };
        let answer = client.list_audit_log(args.connect.request(request, CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() || entries.len() >= args.limit as usize {
            break;
        }
    }
    match args.json {
        true => entries.iter().for_each(|entry| println!("{}", to_json(entry))),
        false if entries.is_empty() => println!("no entries"),
        false => to_table(&entries).iter().for_each(|line| println!("{line}")),
    }
    if !args.json && !page_token.is_empty() {
        println!("there are older entries: increase --limit");
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the full name of a method. `name` may be without the package and the service.
fn method(name: &str) -> anyhow::Result<&'static str> {
    let matches = |full: &str| full == name || full.strip_suffix(name).is_some_and(|rest| rest.ends_with(['.', '/']));
    let audited = || methods::ROWS.iter().filter(|row| row.audited).map(|row| row.method);
    audited().find(|full| matches(full)).ok_or_else(|| {
        let short = |full: &'static str| full.rsplit('/').next().unwrap_or(full);
        let names: Vec<_> = audited().map(short).collect();
        anyhow::anyhow!("--method {name:?}: must be the name of an audited method, one of {}", names.join(", "))
    })
}

fn time_text(time: Option<&Timestamp>) -> String {
    time_of(time, SecondsFormat::Millis).unwrap_or_default()
}

fn actor_text(entry: &AuditEntry) -> String {
    let kind = match entry.actor_kind() {
        ActorKind::Unspecified => "?",
        ActorKind::Anybody => "anybody",
        ActorKind::ApiKey => "key",
        ActorKind::Jwt => "token",
        ActorKind::Database => "database",
    };
    [kind, &entry.actor_id, &entry.actor_name].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}

fn outcome_text(entry: &AuditEntry) -> String {
    match (entry.code, entry.reason.as_str()) {
        (None, _) => "not known".to_owned(),
        (Some(0), _) => "ok".to_owned(),
        (Some(code), "") => format!("{:?}", Code::from(code)),
        (Some(_), reason) => reason.to_owned(),
    }
}

fn to_table(entries: &[AuditEntry]) -> Vec<String> {
    let mut rows = vec![["TIME", "WHO", "WHAT", "OUTCOME", "REQUEST"].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        let mut request: String = entry.request_json.chars().take(REQUEST_CHARS_MAX).collect();
        if request.len() < entry.request_json.len() {
            request.push('…');
        }
        let method = entry.method.trim_start_matches("metering.v1.").to_owned();
        vec![time_text(entry.time.as_ref()), actor_text(entry), method, outcome_text(entry), request]
    }));
    table(&rows, &[false; 5])
}

fn to_json(entry: &AuditEntry) -> Value {
    json!({
        "entryId": entry.entry_id,
        "time": time_text(entry.time.as_ref()),
        "actorKind": entry.actor_kind().as_str_name().trim_start_matches("ACTOR_KIND_"),
        "actorId": entry.actor_id,
        "actorName": entry.actor_name,
        "method": entry.method,
        "request": serde_json::from_str::<Value>(&entry.request_json).unwrap_or_else(|_| entry.request_json.clone().into()),
        "requestId": entry.request_id,
        "address": entry.address,
        "code": entry.code,
        "reason": entry.reason,
        "finishTime": time_text(entry.finish_time.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_found_by_its_full_or_short_name_and_an_unknown_one_is_an_error() {
        for name in ["CreatePrice", "CatalogService/CreatePrice", "metering.v1.CatalogService/CreatePrice"] {
            assert_eq!(method(name).unwrap(), "metering.v1.CatalogService/CreatePrice");
        }
        for name in ["Price", "ListPrices", "CreatPrice", ""] {
            assert!(method(name).unwrap_err().to_string().contains("CreatePrice"), "{name}");
        }
    }

    #[test]
    fn an_entry_is_a_line_with_the_actor_the_method_and_the_outcome() {
        let entry = AuditEntry {
            actor_kind: ActorKind::ApiKey.into(),
            actor_id: "0123456789abcdef".into(),
            actor_name: "ops".into(),
            method: "metering.v1.JobService/RunJob".into(),
            request_json: "{}".into(),
            code: Some(5),
            reason: "JOB_NOT_FOUND".into(),
            ..Default::default()
        };
        let line = &to_table(std::slice::from_ref(&entry))[1];
        assert!(line.contains("key 0123456789abcdef ops  JobService/RunJob  JOB_NOT_FOUND  {}"), "{line}");
        assert_eq!(to_table(&[]).len(), 1);
        let unknown = AuditEntry { code: None, ..entry };
        assert!(to_table(&[unknown])[1].contains("not known"));
    }
}
