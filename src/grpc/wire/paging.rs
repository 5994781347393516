//! Page requests and page tokens of lists.

use crate::grpc::Context;
use crate::grpc::methods::Guarded;
use crate::grpc::wire::page_token::TokenMaker;
use crate::proto::{
    BatchCheckLimitsRequest, GetRepriceRunRequest, ListAdjustmentsRequest, ListAlertsRequest, ListApiKeysRequest,
    ListAuditLogRequest, ListClientPlansRequest, ListClientsRequest, ListCreditGrantsRequest, ListLimitsRequest,
    ListMonthlySummariesRequest, ListNotificationsRequest, ListPlansRequest, ListPricesRequest, ListUsageEventsRequest,
    QueryUsageRequest,
};
use meterd_engine::paging::PageRequest;
use serde::{Serialize, de::DeserializeOwned};

/// A request that asks for a page.
pub trait Paged: Guarded {
    /// Takes page size and page token out of the request. The rest is the query that tokens belong to.
    fn take_page(&mut self) -> (i32, String);
}

macro_rules! paged {
    ($($request:ident,)*) => {
        $(impl Paged for $request {
            fn take_page(&mut self) -> (i32, String) {
                (std::mem::take(&mut self.page_size), std::mem::take(&mut self.page_token))
            }
        })*
    };
}

paged! {
    BatchCheckLimitsRequest,
    GetRepriceRunRequest,
    ListAdjustmentsRequest,
    ListAlertsRequest,
    ListApiKeysRequest,
    ListAuditLogRequest,
    ListClientPlansRequest,
    ListClientsRequest,
    ListCreditGrantsRequest,
    ListLimitsRequest,
    ListNotificationsRequest,
    ListMonthlySummariesRequest,
    ListPlansRequest,
    ListPricesRequest,
    ListUsageEventsRequest,
    QueryUsageRequest,
}

impl Context {
    /// Takes the page out of a request. Also returns the maker of the token of the next page.
    pub fn page<C: DeserializeOwned>(&self, request: &mut impl Paged) -> (PageRequest<C>, NextToken) {
        let (size, token) = request.take_page();
        let rpc = rpc_name(request);
        let after = self.page_tokens.read(rpc, request, &token);
        (PageRequest { size, after }, NextToken(self.page_tokens.maker(rpc, request)))
    }
}

/// Returns the name of an RPC without its service, by which its tokens are signed.
pub fn rpc_name<R: Guarded>(_: &R) -> &'static str {
    R::ROW.method.rsplit('/').next().unwrap_or_default()
}

/// Makes the token of the next page.
pub struct NextToken(TokenMaker);

impl NextToken {
    /// Returns the token of a cursor, or an empty string after the last page.
    pub fn of<C: Serialize>(&self, next: Option<C>) -> String {
        next.map_or_else(String::new, |cursor| self.0.make(&cursor))
    }
}
