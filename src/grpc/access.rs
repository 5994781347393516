//! Checks who calls a method of the gRPC port.

use crate::config::Access;
use crate::grpc::methods::{self, Need, Standard};
use crate::net::Peer;
use meterd_engine::auth::{Auth, Caller};
use meterd_engine::refusal::{Reason, Refusal};
use std::sync::Arc;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::header::AUTHORIZATION;

/// Which credentials the methods of the gRPC port need.
#[derive(Clone)]
pub struct AccessRules {
    pub auth: Arc<Auth>,
    pub health: Access,
    pub reflection: Access,
}

/// A call whose caller may use the method.
pub struct Passed {
    pub caller: Arc<Caller>,
    /// Whether the response is a stream, which ends with the caller's key.
    pub streaming: bool,
}

impl AccessRules {
    /// Checks that the caller has the scope that the method needs. Which clients the request may name is checked by
    /// [`methods::Guarded::check`], which has the message. Returns `None` if there is no such method.
    pub async fn admit(&self, path: &str, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Option<Passed>, Refusal> {
        let access = methods::standard(path).map(|service| match service {
            Standard::Health => self.health,
            Standard::Reflection => self.reflection,
        });
        match access {
            Some(Access::Off) => return Ok(None),
            Some(Access::Public) => return Ok(Some(Passed { caller: self.auth.anybody(), streaming: false })),
            Some(Access::Keys) => {
                let caller = authenticate(&self.auth, headers, peer).await?;
                return Ok(Some(Passed { caller, streaming: true }));
            }
            None => {}
        }
        let caller = authenticate(&self.auth, headers, peer).await?;
        let Some(row) = methods::row(path) else { return Ok(None) };
        if let Need::Scope(scope) = row.need {
            caller.check_scope(scope)?;
        }
        Ok(Some(Passed { caller, streaming: methods::messages(path).response_stream }))
    }
}

/// Returns the caller whose credentials are in these headers.
pub async fn authenticate(auth: &Auth, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Arc<Caller>, Refusal> {
    auth.authenticate(|| bearer_token(headers), peer.map(|peer| &peer.counts)).await
}

/// Returns the token of the header `authorization`. The scheme is case-insensitive (RFC 9110, section 11.1).
fn bearer_token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut presented = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = presented.next() else {
        let message = "send the header `authorization: Bearer mtr_…` with an API key; an admin makes keys with \
                       `meterd keys create`";
        return Err(Refusal::new(Reason::CredentialsMissing, message));
    };
    let text = value.to_str().ok().filter(|_| presented.next().is_none());
    let bearer = text.and_then(|text| text.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    bearer.map(|(_, token)| token.trim()).ok_or_else(|| {
        let message = "the header `authorization` must be there once, with `Bearer` and an API key";
        Refusal::new(Reason::CredentialsInvalid, message)
    })
}
