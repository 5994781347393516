//! A valid request of every RPC with all fields set, and the rule for the values of every field.

use crate::bad_values::Expected::{self, Invalid, InvalidReason, Refused, Valid};
use crate::bad_values::Rule::{self, *};

/// A complete event.
const EVENT: &str = r#"{"clientId": "acme", "service": "openai", "operation": "chat_completion", "model": "gpt-4o-mini",
    "units": "1", "inputTokens": "1000000000000", "outputTokens": "10", "amount": "1.5", "subject": "s",
    "eventTime": "2026-11-21T11:00:00Z", "idempotencyKey": "k-$N", "externalId": "x", "metadata": {"k": "v"},
    "serviceTier": "batch", "measures": {"pages": "1"}, "reportedCost": "1", "labels": {"project": "p"}}"#;

/// A valid request of each RPC in the JSON format of protobuf. `$N` is replaced by a new number each time, `$KEY`, `$LIMIT` and `$PRICE` by
/// the id of a new object, `$EVENT` and `$ALERT` by ids of existing objects.
const REQUESTS: &[(&str, &str)] = &[
    ("TrackUsage", r#"{"event": $USAGE}"#),
    ("BatchTrackUsage", r#"{"events": [$USAGE], "backfill": true, "validateOnly": false}"#),
    ("StreamUsage", r#"{"event": $USAGE}"#),
    ("GetCurrentMonthUsage", r#"{"clientId": "acme", "omitForecast": true}"#),
    ("GetForecast", r#"{"clientId": "acme"}"#),
    (
        "GetUsageSummary",
        r#"{"clientId": "acme", "startDate": "2026-11-01", "endDate": "2026-11-30", "topOperationCount": 5}"#,
    ),
    (
        "QueryUsage",
        r#"{"clientIds": ["acme", "beta"], "services": ["sms"], "operations": [""], "models": [""], "subjects": [""],
            "startDate": "2026-11-01", "endDate": "2026-11-30", "groupBy": ["USAGE_DIMENSION_CLIENT"],
            "countSubjects": true, "unpricedOnly": false, "includeMeasures": true, "labels": {"project": "p"},
            "groupByLabels": ["team"], "pageSize": 1}"#,
    ),
    ("GetUsageEvent", r#"{"clientId": "acme", "eventId": "$EVENT"}"#),
    (
        "ListUsageEvents",
        r#"{"clientId": "acme", "startTime": "2026-11-01T00:00:00Z", "endTime": "2027-01-01T00:00:00Z", "services": ["sms"],
            "operations": [""], "models": [""], "subjects": [""], "ascending": true, "labels": {"project": "p"}, "pageSize": 1}"#,
    ),
    (
        "ExportUsage",
        r#"{"clientId": "acme", "startTime": "2026-11-01T00:00:00Z", "endTime": "2027-01-01T00:00:00Z",
            "services": ["sms"], "labels": {"project": "p"}, "format": "EXPORT_FORMAT_NDJSON"}"#,
    ),
    ("GetPlatformUsage", r#"{"month": "2026-11"}"#),
    ("UpdateMonthlySummaries", r#"{"clientId": "acme", "month": "2026-11"}"#),
    ("ListMonthlySummaries", r#"{"month": "2026-11", "pageSize": 1}"#),
    ("RebuildRollups", r#"{"clientId": "acme", "startDate": "2026-11-01", "endDate": "2026-11-30", "rezone": true}"#),
    ("VoidUsage", r#"{"clientId": "acme", "events": [{"eventId": "$FRESH"}], "reason": "r", "requestId": "r-$N"}"#),
    (
        "CorrectUsage",
        r#"{"clientId": "acme", "corrections": [{"event": {"eventId": "$EVENT"}, "corrected": {"service": "openai",
            "operation": "chat_completion", "model": "gpt-4o-mini", "units": "1", "inputTokens": "1000000000000",
            "outputTokens": "10", "amount": "1.5", "subject": "s", "externalId": "x", "metadata": {"k": "v"},
            "serviceTier": "batch", "measures": {"pages": "1"}, "reportedCost": "1", "labels": {"project": "p"}}}], "reason": "r", "requestId": "r-$N"}"#,
    ),
    (
        "ListAdjustments",
        r#"{"clientId": "acme", "startTime": "2020-01-01T00:00:00Z", "endTime": "2040-01-01T00:00:00Z", "pageSize": 1}"#,
    ),
    ("ExplainCharge", r#"{"clientId": "acme", "eventId": "$EVENT"}"#),
    (
        "ExplainUsage",
        r#"{"clientId": "acme", "startDate": "2026-11-01", "endDate": "2026-11-30", "services": ["sms"], "operations": [""],
            "models": [""]}"#,
    ),
    ("CheckAlerts", r#"{"clientId": "acme"}"#),
    (
        "ListAlerts",
        r#"{"clientIds": ["acme", "beta"], "types": ["ALERT_TYPE_THRESHOLD"], "minSeverity": "ALERT_SEVERITY_WARNING",
            "startTime": "2020-01-01T00:00:00Z", "endTime": "2040-01-01T00:00:00Z", "pageSize": 1}"#,
    ),
    ("GetAlert", r#"{"alertId": "$ALERT"}"#),
    ("AcknowledgeAlert", r#"{"alertId": "$ALERT", "acknowledgedBy": "somebody"}"#),
    (
        "SubscribeAlerts",
        r#"{"clientIds": ["acme"], "types": ["ALERT_TYPE_THRESHOLD"], "minSeverity": "ALERT_SEVERITY_WARNING"}"#,
    ),
    ("GetAlertPolicy", r#"{"clientId": "acme"}"#),
    (
        "UpdateAlertPolicy",
        r#"{"policy": {"clientId": "acme", "thresholdEnabled": true, "monthlyWarning": "0",
            "monthlyCritical": "999999999999999.999999999999", "spikeEnabled": true, "spikeWarningPercent": "0",
            "spikeCriticalPercent": "999999999999999.999999999999", "spikeBaselineMin": "1", "projectionEnabled": true,
            "projectionFactor": "1.5", "projectionFirstDay": 3, "anomalyEnabled": true, "anomalyFactor": "3",
            "anomalyCostMin": "1", "anomalyUnitsMin": "10", "unpricedEnabled": true, "unpricedEventsMin": 1,
            "silenceEnabled": false, "silenceHours": 24,
            "channels": [{"kind": "NOTIFICATION_CHANNEL_KIND_WEBHOOK", "target": "https://hooks.invalid/",
                "minSeverity": "ALERT_SEVERITY_WARNING", "secrets": ["whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]}]},
            "updateMask": "thresholdEnabled,monthlyWarning,monthlyCritical,spikeEnabled,spikeWarningPercent,spikeCriticalPercent,spikeBaselineMin,projectionEnabled,projectionFactor,projectionFirstDay,anomalyEnabled,anomalyFactor,anomalyCostMin,anomalyUnitsMin,unpricedEnabled,unpricedEventsMin,silenceEnabled,silenceHours,channels"}"#,
    ),
    (
        "ListNotifications",
        r#"{"states": ["NOTIFICATION_STATE_PENDING", "NOTIFICATION_STATE_SENT", "NOTIFICATION_STATE_FAILED"], "pageSize": 1}"#,
    ),
    ("RetryNotification", r#"{"notificationId": "sent"}"#),
    ("SendTestNotification", r#"{"clientId": "gamma"}"#),
    ("ListServices", "{}"),
    (
        "CreateService",
        r#"{"service": {"service": "service-$N", "displayName": "Name", "category": "SERVICE_CATEGORY_AI", "unit": "call",
            "recurring": true, "uncountedOperations": ["test"]}, "requestId": "r-$N"}"#,
    ),
    ("ListPrices", r#"{"service": "sms", "clientId": "acme", "pageSize": 1}"#),
    (
        "CreatePrice",
        r#"{"price": {"service": "sms", "operation": "op-$N", "model": "m-$N", "effectiveTime": "2026-01-01T00:00:00Z",
            "rates": {"unit": "1", "inputToken": "1", "outputToken": "1", "cachedInputToken": "1", "percentOfAmount": "1",
                "fixed": "1", "reportedCost": "1", "measures": {"pages": "1"}, "tiers": [{"component": "calls",
                "mode": "TIER_MODE_PACKAGE", "packageSize": "10", "tiers": [{"above": "0", "rate": "1", "flatFee": "1"}]}]},
                "serviceTier": "batch", "aboveInputTokens": "1",
                "clientId": "acme"}, "confirmHighRates": true, "requestId": "r-$N"}"#,
    ),
    (
        "CreatePlan",
        r#"{"plan": {"planId": "plan-$N", "displayName": "Name", "monthlyFee": "29", "includedCredits": "10",
            "rolloverMonths": 1}, "requestId": "r-$N"}"#,
    ),
    ("GetPlan", r#"{"planId": "starter"}"#),
    ("ListPlans", r#"{"pageSize": 1}"#),
    ("SetClientPlan", r#"{"clientId": "acme", "planId": "starter", "effectiveTime": "2026-11-21T12:00:00Z"}"#),
    ("ListClientPlans", r#"{"clientId": "acme", "pageSize": 1}"#),
    ("GetPlanFees", r#"{"clientId": "acme", "month": "2026-11"}"#),
    (
        "CreateCreditGrant",
        r#"{"grant": {"clientId": "acme", "amount": "10", "source": "CREDIT_SOURCE_PURCHASE", "priority": 1,
            "firstDate": "2026-01-01", "lastDate": "2026-12-31", "note": "n"}, "requestId": "r-$N"}"#,
    ),
    ("GetCreditGrant", r#"{"clientId": "acme", "grantId": "$GRANT"}"#),
    ("ListCreditGrants", r#"{"clientId": "acme", "pageSize": 1}"#),
    ("VoidCreditGrant", r#"{"clientId": "acme", "grantId": "$GRANT"}"#),
    ("GetCreditBalance", r#"{"clientId": "acme", "date": "2026-11-21"}"#),
    ("GetCurrentPeriod", r#"{"clientId": "acme"}"#),
    (
        "CreateLimit",
        r#"{"limit": {"clientId": "acme", "limitId": "l-$N", "displayName": "Name", "filter": {"services": ["sms"],
                "operations": ["o"], "models": ["m"], "subjects": ["s"], "labels": {"project": "p"}},
                "measure": "LIMIT_MEASURE_UNITS", "period": "LIMIT_PERIOD_MONTH", "amount": "10", "hard": true,
                "alertPercents": [80]}, "allowBelowUsed": true, "requestId": "r-$N"}"#,
    ),
    (
        "UpdateLimit",
        r#"{"limit": {"clientId": "acme", "limitId": "limit", "displayName": "Name", "filter": {"services": ["sms"],
                "operations": ["o"], "models": ["m"], "subjects": ["s"], "labels": {"project": "p"}}, "amount": "10",
                "hard": true, "alertPercents": [80]},
            "updateMask": "displayName,alertPercents,filter,amount,hard", "allowBelowUsed": true}"#,
    ),
    ("DeleteLimit", r#"{"clientId": "acme", "limitId": "$LIMIT"}"#),
    ("GetLimit", r#"{"clientId": "acme", "limitId": "limit"}"#),
    ("ListLimits", r#"{"clientId": "acme", "pageSize": 1}"#),
    (
        "CheckLimit",
        r#"{"clientId": "acme", "service": "sms", "operation": "o", "model": "m", "subject": "s", "labels": {"project": "p"}}"#,
    ),
    ("BatchCheckLimits", r#"{"clientIds": ["acme", "beta"], "pageSize": 1}"#),
    ("RetirePrice", r#"{"priceId": "$PRICE"}"#),
    (
        "ImportPrices",
        r#"{"prices": [{"service": "sms", "operation": "op-$N", "model": "m-$N", "rates": {"unit": "1", "inputToken": "1",
            "outputToken": "1", "cachedInputToken": "1", "percentOfAmount": "1", "fixed": "1", "reportedCost": "1",
            "measures": {"pages": "1"}, "tiers": [{"component": "calls", "mode": "TIER_MODE_PACKAGE", "packageSize": "10",
                "tiers": [{"above": "0", "rate": "1", "flatFee": "1"}]}]}, "serviceTier": "batch", "aboveInputTokens": "1", "note": "n"}], "effectiveTime": "2026-01-01T00:00:00Z",
            "source": "list", "validateOnly": false, "confirmHighRates": true, "replaceOthers": true}"#,
    ),
    (
        "RepriceUsage",
        r#"{"startMonth": "2026-11", "endMonth": "2026-11", "clientIds": ["acme", "beta"], "services": ["sms"],
            "models": [""], "validateOnly": true, "reason": "r"}"#,
    ),
    ("GetRepriceRun", r#"{"runId": "$RUN", "pageSize": 1}"#),
    ("CancelRepriceRun", r#"{"runId": "$RUN"}"#),
    (
        "CreateModelAlias",
        r#"{"modelAlias": {"service": "openai", "alias": "alias-$N", "model": "gpt-4o-mini"}, "requestId": "r-$N"}"#,
    ),
    ("ListModelAliases", "{}"),
    (
        "EstimateCost",
        r#"{"service": "openai", "operation": "chat_completion", "model": "gpt-4o-mini", "units": "1",
            "inputTokens": "1000000000000", "outputTokens": "1", "amount": "1", "eventTime": "2026-01-01T00:00:00Z", "serviceTier": "batch",
            "measures": {"pages": "1"}, "clientId": "acme", "reportedCost": "1"}"#,
    ),
    (
        "CreateClient",
        r#"{"client": {"clientId": "client-$N", "displayName": "Name", "timeZone": "Europe/Berlin"}, "requestId": "r-$N"}"#,
    ),
    ("GetClient", r#"{"clientId": "acme"}"#),
    (
        "UpdateClient",
        r#"{"client": {"clientId": "beta", "displayName": "Name", "timeZone": "Europe/Berlin"},
            "updateMask": "displayName,timeZone"}"#,
    ),
    ("ListClients", r#"{"pageSize": 1}"#),
    ("ListJobs", "{}"),
    ("RunJob", r#"{"job": "alert_checks"}"#),
    (
        "CreateApiKey",
        r#"{"apiKey": {"name": "Name", "grants": [{"scope": "SCOPE_READ", "clientIds": ["acme"]}], "requestsPerSecond": 10,
            "expireTime": "2030-01-01T00:00:00Z"}, "requestId": "r-$N"}"#,
    ),
    ("GetApiKey", r#"{"keyId": "$KEY"}"#),
    ("ListApiKeys", r#"{"liveOnly": true, "pageSize": 1}"#),
    ("RevokeApiKey", r#"{"keyId": "$KEY"}"#),
    (
        "RotateApiKey",
        r#"{"keyId": "$KEY", "overlap": "60s", "expireTime": "2030-01-01T00:00:00Z", "requestId": "r-$N"}"#,
    ),
    (
        "ListAuditLog",
        r#"{"method": "metering.v1.KeyService/CreateApiKey", "startTime": "2020-01-01T00:00:00Z",
            "endTime": "2040-01-01T00:00:00Z", "pageSize": 1}"#,
    ),
];

/// Returns the valid request of an RPC. Every RPC must have one.
pub fn valid_request(rpc: &str) -> String {
    let found = REQUESTS.iter().find(|(name, _)| *name == rpc);
    found.unwrap_or_else(|| panic!("no valid request of {rpc}")).1.replace("$USAGE", EVENT)
}

/// Returns the expected result of the valid request.
pub fn expected_result(rpc: &str) -> Expected {
    if rpc == "RetryNotification" { Refused("NOTIFICATION_NOT_FAILED") } else { Valid }
}

/// Returns the fields in the error of a missing message, or none if it is not an error.
pub fn fields_of_missing(rpc: &str, message: &str) -> &'static [&'static str] {
    match (rpc, message) {
        ("CorrectUsage", "UsageEvent") => &["corrections[0].corrected.service"],
        (_, "EventReference") => &["corrections[0].event"],
        ("TrackUsage" | "StreamUsage", "UsageEvent") => &["event.client_id", "event.service"],
        ("UpdateClient", "Client") => &["client.client_id", "client.time_zone"],
        (_, "Client") => &["client.client_id"],
        (_, "CreditGrant") => &["grant.client_id", "grant.amount", "grant.source"],
        (_, "Service") => &["service.service"],
        (_, "Price") => &["price.service", "price.rates"],
        ("ImportPrices", "Rates") => &["prices[0].rates"],
        (_, "Rates") => &["price.rates"],
        (_, "ModelAlias") => &["model_alias.service", "model_alias.alias", "model_alias.model"],
        (_, "ApiKey") => &["api_key.name", "api_key.grants"],
        (_, "AlertPolicy") => &["policy"],
        (_, "Plan") => &["plan.plan_id"],
        (_, "LimitFilter") => &[],
        ("CreateLimit", "Limit") => &["limit.client_id", "limit.amount", "limit.measure", "limit.period"],
        (_, "Limit") => &["limit.client_id", "limit.limit_id", "limit.amount"],
        _ => panic!("the expected error of {rpc} without {message} is not defined"),
    }
}

const UNKNOWN_SERVICE: Expected = InvalidReason("UNKNOWN_SERVICE");
const UNKNOWN_CLIENT: Expected = Refused("CLIENT_NOT_FOUND");

/// Returns the rule of a field. Every field must have one.
pub fn rule(rpc: &str, message: &str, field: &str) -> Rule {
    let text = |bytes_max| Text { bytes_max, empty: Valid, other: Valid };
    let required = |other| Text { bytes_max: 128, empty: Invalid, other };
    match (rpc, message, field) {
        (_, "Client" | "Limit", "create_time" | "update_time")
        | (_, "Price", "create_time" | "withdraw_time")
        | (_, "AlertPolicy", "update_time")
        | (_, "ApiKey", "create_time" | "revoke_time" | "last_used_time") => OutputOnly,
        ("ListUsageEvents", _, "price_id") => text(128),
        (_, "Price", "price_id" | "built_in")
        | (_, "Plan", "built_in" | "create_time")
        | (_, "CreditGrant", "grant_id" | "plan_id" | "used" | "create_time" | "void_time")
        | (_, "AlertPolicy", "overridden_fields")
        | (_, "NotificationChannel", "secret_count")
        | (_, "ApiKey", "key_id" | "rotated_from") => OutputOnly,

        ("CorrectUsage", "UsageEvent", "client_id" | "idempotency_key" | "event_time") => Absent,
        (_, "EventReference", "event_id") => EventId,
        (_, "EventReference", "idempotency_key" | "external_id") => EventKey,
        ("ListAdjustments", _, "event_id" | "run_id") => text(128),
        ("RepriceUsage", _, "reason") => text(1_024),
        (_, _, "reason") => Text { bytes_max: 1_024, empty: Invalid, other: Valid },
        ("VoidUsage" | "CorrectUsage", _, "client_id") => required(Refused("EVENT_NOT_FOUND")),
        (_, "UsageEvent", "client_id") | ("CreateClient", "Client", "client_id") => {
            Name { bytes_max: 128, empty: Invalid }
        }
        (_, "UsageEvent", "service") => ServiceName,
        (_, "EstimateCostRequest" | "Price" | "ModelAlias", "service") => required(UNKNOWN_SERVICE),
        (_, "Service", "service") | (_, "ModelAlias", "alias" | "model") => Name { bytes_max: 128, empty: Invalid },
        (_, "EstimateCostRequest", "operation" | "model" | "service_tier") => text(128),
        (_, "CheckLimitRequest", "service" | "operation" | "model" | "subject") => text(128),
        ("CreateLimit", _, "limit_id") => Name { bytes_max: 128, empty: Valid },
        (_, _, "limit_id") => required(Refused("LIMIT_NOT_FOUND")),
        (_, "LimitFilter", "services") => ServiceNames,
        (_, "LimitFilter", "operations" | "models" | "subjects") => Names { empty: Invalid },
        // They are not in the mask.
        ("UpdateLimit", _, "measure" | "period") => AnyEnum,
        (_, "Limit", "measure") => Enum { unspecified: Invalid, last: 4 },
        (_, "Limit", "period") => Enum { unspecified: Invalid, last: 2 },
        (_, "Limit", "amount") => Decimal { integer_digits: 15, decimals: 12, zero: Valid, empty: Invalid },
        (_, _, "alert_percents") => Percents,
        (_, _, "operation" | "model" | "service_tier" | "subject" | "idempotency_key" | "request_id") => {
            Name { bytes_max: 128, empty: Valid }
        }
        (_, _, "external_id") => Name { bytes_max: 256, empty: Valid },
        (_, _, "display_name" | "actor_id" | "method") => text(256),
        (_, "Service", "unit") => text(64),
        ("ImportPrices", "Price", "effective_time" | "end_time" | "source") => Absent,
        ("ImportPrices", "ImportPricesRequest", "source") => Text { bytes_max: 256, empty: Invalid, other: Valid },
        (_, "Price", "source") => text(256),
        (_, "Price", "note") => text(1_024),
        (_, "ListPricesRequest", "service" | "client_id") | (_, "EstimateCostRequest", "client_id") => text(128),
        ("ImportPrices", "Price", "client_id") => Absent,
        // The valid request has a client.
        (_, "Price", "plan_id") => Absent,
        ("CreatePlan", "Plan", "plan_id") => Name { bytes_max: 128, empty: Invalid },
        (_, "Plan", "monthly_fee" | "included_credits") => {
            Decimal { integer_digits: 15, decimals: 12, zero: Valid, empty: Valid }
        }
        (_, "Plan", "rollover_months") => Count { from: 0, to: 12 },
        (_, "CreditGrant", "client_id") => required(UNKNOWN_CLIENT),
        (_, "CreditGrant", "amount") => Decimal { integer_digits: 15, decimals: 12, zero: Invalid, empty: Invalid },
        (_, "CreditGrant", "source") => Enum { unspecified: Invalid, last: 3 },
        (_, "CreditGrant", "priority") => Count { from: 0, to: 1_000 },
        (_, "CreditGrant", "first_date" | "last_date") | ("GetCreditBalance", _, "date") => Day { empty: Valid },
        (_, "CreditGrant", "note") => text(1_024),
        ("GetCreditGrant" | "VoidCreditGrant", _, "client_id" | "grant_id") => {
            required(Refused("CREDIT_GRANT_NOT_FOUND"))
        }
        (_, "ListPricesRequest", "plan_id") => text(128),
        ("GetPlan", _, "plan_id") => required(Refused("PLAN_NOT_FOUND")),
        (_, _, "plan_id") => Text { bytes_max: 128, empty: Valid, other: Refused("PLAN_NOT_FOUND") },
        (_, "Price", "client_id") => ClientName,
        (_, "ApiKey", "name") => Text { bytes_max: 256, empty: Invalid, other: Valid },
        (_, _, "acknowledged_by") => required(Valid),

        ("UpdateClient", "Client", "client_id")
        | (
            "ExplainUsage"
            | "GetCurrentMonthUsage"
            | "GetForecast"
            | "GetUsageSummary"
            | "ListUsageEvents"
            | "ListAdjustments"
            | "SetClientPlan"
            | "ListClientPlans"
            | "GetPlanFees"
            | "ListCreditGrants"
            | "GetCreditBalance"
            | "GetCurrentPeriod"
            | "CreateLimit"
            | "UpdateLimit"
            | "DeleteLimit"
            | "GetLimit"
            | "CheckLimit"
            | "GetClient",
            _,
            "client_id",
        ) => required(UNKNOWN_CLIENT),
        ("GetUsageEvent" | "ExplainCharge", _, "client_id" | "event_id") => required(Refused("EVENT_NOT_FOUND")),
        ("ListMonthlySummaries" | "ListNotifications", _, "client_id") => text(128),
        (_, _, "client_id") => Text { bytes_max: 128, empty: Valid, other: UNKNOWN_CLIENT },
        (_, _, "alert_id") => required(Refused("ALERT_NOT_FOUND")),
        (_, _, "notification_id") => required(Refused("NOTIFICATION_NOT_FOUND")),
        (_, _, "key_id") => required(Refused("API_KEY_NOT_FOUND")),
        (_, _, "price_id") => required(Refused("PRICE_NOT_FOUND")),
        (_, _, "run_id") => required(Refused("REPRICE_RUN_NOT_FOUND")),
        (_, "RunJobRequest", "job") => required(Refused("JOB_NOT_FOUND")),

        (_, "Grant", "client_ids") => Names { empty: Invalid },
        (_, "Service", "uncounted_operations") => Names { empty: Valid },
        (_, _, "client_ids" | "services" | "operations" | "models" | "subjects") => Texts { empty: Valid },

        (_, "TieredRate", "component") => Component,
        (_, "TieredRate", "mode") => Enum { unspecified: Invalid, last: 3 },
        (_, "TieredRate", "package_size") => PackageSize,
        (_, "TieredRate", "tiers") => Messages { most: 1, least: 1 },
        (_, "Rates", "tiers") => Messages { most: 8, least: 0 },
        (_, "Tier", "above") => FirstTier,
        (_, "Tier", "rate") => Decimal { integer_digits: 9, decimals: 24, zero: Valid, empty: Invalid },
        (_, "Tier", "flat_fee") => Decimal { integer_digits: 9, decimals: 24, zero: Valid, empty: Valid },
        (_, "Rates", "reported_cost") => Decimal { integer_digits: 9, decimals: 24, zero: Valid, empty: Invalid },
        (_, _, "units" | "amount" | "reported_cost") => Quantity,
        (_, _, "labels") => Labels,
        (_, _, "group_by_labels") => LabelNames,
        (_, "Rates", "measures") => Measures { most: 32 },
        (_, _, "measures") => Measures { most: 16 },
        (_, "Rates", _) => Decimal { integer_digits: 9, decimals: 24, zero: Valid, empty: Invalid },
        (_, "AlertPolicy", "projection_factor" | "anomaly_factor") => {
            Decimal { integer_digits: 15, decimals: 12, zero: Invalid, empty: Invalid }
        }
        (
            _,
            "AlertPolicy",
            "monthly_warning"
            | "monthly_critical"
            | "spike_warning_percent"
            | "spike_critical_percent"
            | "spike_baseline_min"
            | "anomaly_cost_min"
            | "anomaly_units_min",
        ) => Decimal { integer_digits: 15, decimals: 12, zero: Valid, empty: Invalid },

        (_, _, "input_tokens" | "output_tokens" | "cached_input_tokens" | "above_input_tokens") => Tokens,
        (_, _, "top_operation_count") => Count { from: 0, to: 1_000 },
        (_, _, "requests_per_second") => Count { from: 0, to: 1_000_000 },
        (_, _, "projection_first_day") => Count { from: 1, to: 31 },
        (_, _, "unpriced_events_min") => Count { from: 1, to: 1_000_000_000 },
        (_, _, "silence_hours") => Count { from: 1, to: 8_760 },
        ("QueryUsage", _, "page_size") => Count { from: 0, to: 10_000 },
        ("BatchCheckLimits", _, "page_size") => Count { from: 0, to: 100 },
        (_, _, "page_size") => Count { from: 0, to: 1_000 },
        (_, _, "page_token") => Token { reason: "PAGE_TOKEN_INVALID" },
        (_, _, "resume_token") => Token { reason: "RESUME_TOKEN_INVALID" },

        ("BatchTrackUsage", _, "event_time") => Time { first: Valid, last: InvalidReason("EVENT_IN_FUTURE") },
        (_, "UsageEvent", "event_time") => {
            Time { first: InvalidReason("EVENT_TOO_OLD"), last: InvalidReason("EVENT_IN_FUTURE") }
        }
        (_, _, "event_time" | "effective_time") => Time { first: Valid, last: Valid },
        (_, _, "expire_time") => Time { first: Invalid, last: Valid },
        (_, _, "start_time") => Time { first: Valid, last: Expected::InvalidSibling("end_time") },
        (_, _, "end_time") => Time { first: Invalid, last: Valid },
        (_, _, "overlap") => Duration,
        ("ExportUsage", _, "start_date" | "end_date") => Day { empty: Valid },
        (_, _, "start_date" | "end_date") => Day { empty: Invalid },
        (_, _, "month") => Month,
        (_, _, "start_month" | "end_month") => RequiredMonth,
        ("UpdateClient", _, "time_zone") => Zone { empty: Invalid },
        (_, _, "time_zone") => Zone { empty: Valid },

        (_, _, "category") => Enum { unspecified: Valid, last: 6 },
        (_, _, "format") => Enum { unspecified: Valid, last: 2 },
        (_, _, "min_severity") => Enum { unspecified: Valid, last: 2 },
        (_, "Grant", "scope") => Enum { unspecified: Invalid, last: 3 },
        (_, "NotificationChannel", "kind") => Enum { unspecified: Invalid, last: 3 },
        (_, _, "types") => Enums { last: 7, once: false },
        (_, _, "states") => Enums { last: 4, once: false },
        (_, _, "group_by") => Enums { last: 8, once: true },

        (_, _, "update_mask") => Mask,
        (_, _, "metadata") => Metadata,
        (_, "NotificationChannel", "target") => Target,
        (_, "NotificationChannel", "secrets") => Secrets,
        ("VoidUsage", _, "events") => Messages { most: 1_000, least: 1 },
        (_, _, "corrections") => Messages { most: 1_000, least: 1 },
        (_, _, "events") => Messages { most: 10_000, least: 1 },
        (_, _, "prices") => Messages { most: 1_000, least: 1 },
        (_, _, "grants") => Grants,
        (_, _, "channels") => Channels,
        (
            _,
            _,
            "backfill"
            | "validate_only"
            | "count_subjects"
            | "unpriced_only"
            | "include_measures"
            | "omit_forecast"
            | "ascending"
            | "rezone"
            | "unacknowledged_only"
            | "open_only"
            | "recurring"
            | "confirm_high_rates"
            | "allow_below_used"
            | "hard"
            | "replace_others"
            | "live_only"
            | "threshold_enabled"
            | "spike_enabled"
            | "projection_enabled"
            | "anomaly_enabled"
            | "unpriced_enabled"
            | "silence_enabled",
        ) => Flag { with: None },
        ("ImportPrices", _, "built_in") => ExcludedFlag,
        (_, _, "operator_only") => Flag { with: Some("client_id") },
        (_, _, "from_start") => Flag { with: Some("resume_token") },
        (_, _, "all_clients") => AllClients,
        _ => panic!("{message}.{field} of {rpc} has no rule"),
    }
}
