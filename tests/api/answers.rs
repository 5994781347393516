//! What tests read from answers and errors.

use meterd::proto::{Money, UsageTotals};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The cost of sums, as text.
pub fn cost(totals: &Option<UsageTotals>) -> &str {
    amount(&totals.as_ref().unwrap().cost)
}

/// A sum of money as text.
pub fn amount(money: &Option<Money>) -> &str {
    &money.as_ref().unwrap().amount
}

/// What an error says: its code, its reason and every wrong field. It has the contract's domain and a request id.
pub fn refusal(status: &Status) -> (Code, String, Vec<String>) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("an ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "metering.v1");
    assert!(info.metadata.get("request_id").is_some_and(|id| !id.is_empty()), "a request id in {info:?}");
    let fields = details
        .bad_request()
        .map_or(vec![], |wrong| wrong.field_violations.iter().map(|violation| violation.field.clone()).collect());
    (status.code(), info.reason.clone(), fields)
}

/// The call was refused as wrong input for this reason, with exactly these fields.
#[track_caller]
pub fn assert_wrong<T>(result: Result<T, Status>, reason: &str, fields: &[&str]) {
    let Err(status) = result else { panic!("{reason} {fields:?} was taken") };
    let (code, actual_reason, mut actual_fields) = refusal(&status);
    actual_fields.dedup();
    let actual_fields: Vec<&str> = actual_fields.iter().map(String::as_str).collect();
    assert_eq!((code, actual_reason.as_str(), &*actual_fields), (Code::InvalidArgument, reason, fields), "{status}");
}

/// The call failed with this code and reason.
#[track_caller]
pub fn assert_refused<T>(result: Result<T, Status>, code: Code, reason: &str) -> Status {
    let Err(status) = result else { panic!("{reason} was taken") };
    let (actual_code, actual_reason, _) = refusal(&status);
    assert_eq!((actual_code, actual_reason.as_str()), (code, reason), "{status}");
    status
}
