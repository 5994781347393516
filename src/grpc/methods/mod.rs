//! The role matrix: one table of all methods. It has the scope that an RPC needs, the clients that its request is about, and
//! whether calls go into the audit log. `messages` has the streams and the maximum length of messages, `standard` the standard
//! services of gRPC.
//!
//! A handler whose request has no row does not compile, and a test fails if an RPC of the contract has no row.

mod messages;
mod standard;

pub use messages::{Messages, messages};
pub use standard::{Standard, is_standard, is_standard_method, standard};

use crate::proto::*;
use meterd_domain::access::Scope;
use meterd_engine::auth::Caller;
use meterd_engine::refusal::Refusal;
use prost::Message;

/// The credentials that an RPC needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A key with this scope.
    Scope(Scope),
    /// Any key: the response is the same for every caller, or the handler checks the caller.
    AnyKey,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Such as "metering.v1.UsageService/TrackUsage".
    pub method: &'static str,
    /// The type of its request.
    pub request: &'static str,
    pub need: Need,
    /// Whether calls go into the audit log.
    pub audited: bool,
}

/// The clients that a request is about.
pub enum About<'a> {
    /// No client. Every caller may know the response.
    Everybody,
    /// All clients, or the deployment.
    All,
    /// This client.
    Client(&'a str),
    /// These clients, or all if the list is empty. An empty list is filled with the clients of the caller's key.
    Filter(&'a mut Vec<String>),
    /// Only the handler knows. It gets the caller.
    Handler,
}

/// A request whose RPC has a row.
pub trait Guarded: Message + Default + Sized + 'static {
    /// The row.
    const ROW: Row;

    /// Returns the clients that it is about.
    fn about(&mut self) -> About<'_>;

    /// Checks that the caller may send this request, and fills an empty filter with the clients of the caller's key.
    fn check(&mut self, caller: &Caller) -> Result<(), Refusal> {
        let Need::Scope(scope) = Self::ROW.need else { return Ok(()) };
        caller.check_scope(scope)?;
        match self.about() {
            About::Everybody | About::Handler => Ok(()),
            About::All => caller.check_all_clients(scope),
            // The handler reports a missing client together with all other wrong fields.
            About::Client("") => Ok(()),
            About::Client(client_id) => caller.check_client(scope, client_id),
            About::Filter(client_ids) => {
                if caller.grants.covers_all(scope) {
                    return Ok(());
                }
                if client_ids.is_empty() {
                    *client_ids = caller.grants.covered(scope);
                    // An empty filter would select all clients.
                    return if client_ids.is_empty() { caller.check_all_clients(scope) } else { Ok(()) };
                }
                client_ids.iter().try_for_each(|client_id| caller.check_client(scope, client_id))
            }
        }
    }
}

/// The client of a request, or all clients if it names none.
fn client_or_all(client_id: &str) -> About<'_> {
    if client_id.is_empty() { About::All } else { About::Client(client_id) }
}

/// The client of a message that a request must contain.
fn client_of<M>(message: &Option<M>, client_id: impl Fn(&M) -> &String) -> About<'_> {
    About::Client(message.as_ref().map_or("", |message| client_id(message)))
}

const INGEST: Need = Need::Scope(Scope::Ingest);
const READ: Need = Need::Scope(Scope::Read);
const ADMIN: Need = Need::Scope(Scope::Admin);

macro_rules! is_audited {
    () => {
        false
    };
    (audited) => {
        true
    };
}

macro_rules! matrix {
    ($($service:ident { $($rpc:ident $request:ident $need:expr, $($flag:ident)*, |$message:ident| $about:expr;)* })*) => {
        /// All rows.
        pub const ROWS: &[Row] = &[$($($request::ROW,)*)*];

        $($(impl Guarded for $request {
            const ROW: Row = Row {
                method: concat!("metering.v1.", stringify!($service), "/", stringify!($rpc)),
                request: stringify!($request),
                need: $need,
                audited: is_audited!($($flag)*),
            };

            fn about(&mut self) -> About<'_> {
                let $message = self;
                $about
            }
        })*)*
    };
}

use About::{All, Client, Everybody, Filter, Handler};

matrix! {
    UsageService {
        // Each event is checked on its own: events of clients that the key does not cover are rejected, the others recorded.
        TrackUsage TrackUsageRequest INGEST, , |_m| Handler;
        BatchTrackUsage BatchTrackUsageRequest INGEST, , |_m| Handler;
        StreamUsage StreamUsageRequest INGEST, , |_m| Handler;
        GetCurrentMonthUsage GetCurrentMonthUsageRequest READ, , |m| Client(&m.client_id);
        GetForecast GetForecastRequest READ, , |m| Client(&m.client_id);
        GetUsageSummary GetUsageSummaryRequest READ, , |m| Client(&m.client_id);
        QueryUsage QueryUsageRequest READ, , |m| Filter(&mut m.client_ids);
        GetUsageEvent GetUsageEventRequest READ, , |m| Client(&m.client_id);
        ListUsageEvents ListUsageEventsRequest READ, , |m| Client(&m.client_id);
        ExportUsage ExportUsageRequest READ, , |m| client_or_all(&m.client_id);
        GetPlatformUsage GetPlatformUsageRequest READ, , |_m| All;
        UpdateMonthlySummaries UpdateMonthlySummariesRequest ADMIN, audited, |m| client_or_all(&m.client_id);
        ListMonthlySummaries ListMonthlySummariesRequest READ, , |m| client_or_all(&m.client_id);
        RebuildRollups RebuildRollupsRequest ADMIN, audited, |m| client_or_all(&m.client_id);
        // Old events need the scope admin, others the scope ingest.
        VoidUsage VoidUsageRequest Need::AnyKey, , |_m| Handler;
        CorrectUsage CorrectUsageRequest Need::AnyKey, , |_m| Handler;
        ListAdjustments ListAdjustmentsRequest READ, , |m| Client(&m.client_id);
        ExplainCharge ExplainChargeRequest READ, , |m| Client(&m.client_id);
        ExplainUsage ExplainUsageRequest READ, , |m| Client(&m.client_id);
    }
    AlertService {
        CheckAlerts CheckAlertsRequest ADMIN, audited, |m| client_or_all(&m.client_id);
        ListAlerts ListAlertsRequest READ, , |m| Filter(&mut m.client_ids);
        GetAlert GetAlertRequest READ, , |_m| Handler;
        AcknowledgeAlert AcknowledgeAlertRequest ADMIN, audited, |_m| Handler;
        SubscribeAlerts SubscribeAlertsRequest READ, , |m| Filter(&mut m.client_ids);
        // The channels of a policy are personal addresses.
        GetAlertPolicy GetAlertPolicyRequest ADMIN, , |m| client_or_all(&m.client_id);
        UpdateAlertPolicy UpdateAlertPolicyRequest ADMIN, audited,
            |m| client_or_all(m.policy.as_ref().map_or("", |policy| &policy.client_id));
        ListNotifications ListNotificationsRequest ADMIN, , |m| client_or_all(&m.client_id);
        RetryNotification RetryNotificationRequest ADMIN, audited, |_m| Handler;
        SendTestNotification SendTestNotificationRequest ADMIN, audited, |m| client_or_all(&m.client_id);
    }
    BillingService {
        CreatePlan CreatePlanRequest ADMIN, audited, |_m| All;
        GetPlan GetPlanRequest READ, , |_m| All;
        ListPlans ListPlansRequest READ, , |_m| All;
        SetClientPlan SetClientPlanRequest ADMIN, audited, |m| Client(&m.client_id);
        ListClientPlans ListClientPlansRequest READ, , |m| Client(&m.client_id);
        CreateLimit CreateLimitRequest ADMIN, audited, |m| client_of(&m.limit, |limit| &limit.client_id);
        UpdateLimit UpdateLimitRequest ADMIN, audited, |m| client_of(&m.limit, |limit| &limit.client_id);
        DeleteLimit DeleteLimitRequest ADMIN, audited, |m| Client(&m.client_id);
        GetLimit GetLimitRequest READ, , |m| Client(&m.client_id);
        ListLimits ListLimitsRequest READ, , |m| client_or_all(&m.client_id);
        CheckLimit CheckLimitRequest READ, , |m| Client(&m.client_id);
        BatchCheckLimits BatchCheckLimitsRequest READ, , |m| Filter(&mut m.client_ids);
        GetPlanFees GetPlanFeesRequest READ, , |m| Client(&m.client_id);
        CreateCreditGrant CreateCreditGrantRequest ADMIN, audited, |m| client_of(&m.grant, |grant| &grant.client_id);
        GetCreditGrant GetCreditGrantRequest READ, , |m| Client(&m.client_id);
        ListCreditGrants ListCreditGrantsRequest READ, , |m| Client(&m.client_id);
        VoidCreditGrant VoidCreditGrantRequest ADMIN, audited, |m| Client(&m.client_id);
        GetCreditBalance GetCreditBalanceRequest READ, , |m| Client(&m.client_id);
        GetCurrentPeriod GetCurrentPeriodRequest READ, , |m| Client(&m.client_id);
    }
    CatalogService {
        ListServices ListServicesRequest Need::AnyKey, , |_m| Everybody;
        CreateService CreateServiceRequest ADMIN, audited, |_m| All;
        ListPrices ListPricesRequest Need::AnyKey, , |_m| Handler;
        CreatePrice CreatePriceRequest ADMIN, audited, |_m| All;
        RetirePrice RetirePriceRequest ADMIN, audited, |_m| All;
        ImportPrices ImportPricesRequest ADMIN, audited, |_m| All;
        RepriceUsage RepriceUsageRequest ADMIN, audited, |_m| All;
        GetRepriceRun GetRepriceRunRequest ADMIN, , |_m| All;
        CancelRepriceRun CancelRepriceRunRequest ADMIN, audited, |_m| All;
        CreateModelAlias CreateModelAliasRequest ADMIN, audited, |_m| All;
        ListModelAliases ListModelAliasesRequest Need::AnyKey, , |_m| Everybody;
        EstimateCost EstimateCostRequest Need::AnyKey, , |_m| Handler;
    }
    ClientService {
        CreateClient CreateClientRequest ADMIN, audited, |m| client_of(&m.client, |client| &client.client_id);
        GetClient GetClientRequest READ, , |m| Client(&m.client_id);
        UpdateClient UpdateClientRequest ADMIN, audited, |m| client_of(&m.client, |client| &client.client_id);
        ListClients ListClientsRequest READ, , |_m| All;
    }
    JobService {
        ListJobs ListJobsRequest ADMIN, , |_m| All;
        RunJob RunJobRequest ADMIN, audited, |_m| All;
    }
    KeyService {
        CreateApiKey CreateApiKeyRequest ADMIN, audited, |_m| All;
        GetApiKey GetApiKeyRequest ADMIN, , |_m| All;
        ListApiKeys ListApiKeysRequest ADMIN, , |_m| All;
        RevokeApiKey RevokeApiKeyRequest ADMIN, audited, |_m| All;
        RotateApiKey RotateApiKeyRequest ADMIN, audited, |_m| All;
        ListAuditLog ListAuditLogRequest ADMIN, , |_m| All;
    }
}

/// Returns the row of a path such as "/metering.v1.UsageService/TrackUsage".
pub fn row(path: &str) -> Option<&'static Row> {
    use foldhash::fast::RandomState;
    use std::collections::HashMap;
    use std::sync::OnceLock;
    static BY_METHOD: OnceLock<HashMap<&'static str, &'static Row, RandomState>> = OnceLock::new();
    let by_method = BY_METHOD.get_or_init(|| ROWS.iter().map(|row| (row.method, row)).collect());
    by_method.get(path.strip_prefix('/')?).copied()
}
