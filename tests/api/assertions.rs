//! Helpers that read responses and check errors.

use meterd::proto::{Money, UsageTotals};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Returns the cost of sums as text.
pub fn cost(totals: &Option<UsageTotals>) -> &str {
    amount(&totals.as_ref().unwrap().cost)
}

/// Returns an amount of money as text.
pub fn amount(money: &Option<Money>) -> &str {
    &money.as_ref().unwrap().amount
}

/// Returns the code, the reason and the wrong fields of an error. Checks that it has the domain of the API and a
/// request id.
pub fn error_parts(status: &Status) -> (Code, String, Vec<String>) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "metering.v1");
    assert!(info.metadata.get("request_id").is_some_and(|id| !id.is_empty()), "no request id in {info:?}");
    let fields = details
        .bad_request()
        .map_or(vec![], |wrong| wrong.field_violations.iter().map(|violation| violation.field.clone()).collect());
    (status.code(), info.reason.clone(), fields)
}

/// Checks that the call was rejected for this reason, with exactly these wrong fields.
#[track_caller]
pub fn assert_invalid<T>(result: Result<T, Status>, reason: &str, fields: &[&str]) -> Status {
    let Err(status) = result else { panic!("{reason} {fields:?} was expected, but the call succeeded") };
    let (code, actual_reason, mut actual_fields) = error_parts(&status);
    actual_fields.dedup();
    let actual_fields: Vec<&str> = actual_fields.iter().map(String::as_str).collect();
    assert_eq!((code, actual_reason.as_str(), &*actual_fields), (Code::InvalidArgument, reason, fields), "{status}");
    status
}

/// Checks that the call failed with this code and reason.
#[track_caller]
pub fn assert_error<T>(result: Result<T, Status>, code: Code, reason: &str) -> Status {
    let Err(status) = result else { panic!("{reason} was expected, but the call succeeded") };
    let (actual_code, actual_reason, _) = error_parts(&status);
    assert_eq!((actual_code, actual_reason.as_str()), (code, reason), "{status}");
    status
}
