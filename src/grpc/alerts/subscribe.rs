//! SubscribeAlerts.

use crate::grpc::layers::admission::AdmissionPermit;
use crate::grpc::layers::slots::Slot;
use crate::grpc::wire::convert::timestamp;
use crate::grpc::wire::status::{REQUEST_ID, status};
use crate::grpc::{Context, TokenMaker};
use crate::proto::subscribe_alerts_response::Message;
use crate::proto::{AlertEvent, Heartbeat, SubscribeAlertsRequest, SubscribeAlertsResponse};
use futures_util::stream::{Stream, unfold};
use meterd_engine::alerts::feed::{Ended, Entry, Start, Subscription};
use meterd_engine::alerts::{SubscriptionInput, check_subscription};
use meterd_engine::counters::Resource;
use meterd_engine::refusal::{Reason, Refusal, Violation};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Status};

/// The RPC that tokens belong to.
const RPC: &str = "SubscribeAlerts";
/// How long a caller should wait before it retries to get a slot.
const RETRY_DELAY: Duration = Duration::from_secs(5);

pub type AlertStream = Pin<Box<dyn Stream<Item = Result<SubscribeAlertsResponse, Status>> + Send>>;

/// Takes one of the slots for subscriptions. A caller has at most a quarter of them, and fewer while other callers have some.
pub fn slot(context: &Context, request: &Request<SubscribeAlertsRequest>) -> Result<Slot, Refusal> {
    let max = context.settings.subscriptions_max as usize;
    AdmissionPermit::take_for_caller(request, Resource::Subscriptions, max, 4).ok_or_else(|| {
        let message = "too many subscriptions of the key at once; close some";
        Refusal::exhausted(Reason::TooManySubscriptions, message, RETRY_DELAY)
    })
}

/// Checks the request and starts the stream. Its connection polls it, without a task or a queue.
pub async fn start(context: Arc<Context>, request: SubscribeAlertsRequest, slot: Slot) -> Result<AlertStream, Refusal> {
    let filter = check_subscription(&SubscriptionInput {
        client_ids: &request.client_ids,
        types: &request.types,
        min_severity: request.min_severity,
        from_start: request.from_start,
        resume_token: &request.resume_token,
    })?;
    let filters = Filters::of(&request);
    let start = match (&*request.resume_token, request.from_start) {
        ("", true) => Start::Oldest,
        ("", false) => Start::Now,
        (token, _) => Start::After(filters.cursor(&context, token)?),
    };
    let subscription = context.feed.subscribe(filter, start).await;
    let subscription = subscription.map_err(|ended| filters.error(&context, ended))?;
    let request_id = REQUEST_ID.try_with(|id| id.as_str().into()).unwrap_or_default();
    let tokens = context.page_tokens.maker(RPC, &filters.0);
    let subscriber = Subscriber { context, filters, tokens, subscription, request_id, has_begun: false, _slot: slot };
    Ok(Box::pin(unfold(Some(subscriber), async |subscriber| {
        let mut subscriber = subscriber?;
        let message = subscriber.next().await;
        let continues = message.is_ok();
        Some((message, continues.then_some(subscriber)))
    })))
}

/// The filters of a subscription. Its resume tokens are valid only with the same filters.
struct Filters(SubscribeAlertsRequest);

impl Filters {
    /// Returns the filters of a request in a fixed order.
    fn of(request: &SubscribeAlertsRequest) -> Self {
        let mut filters = SubscribeAlertsRequest {
            client_ids: request.client_ids.clone(),
            types: request.types.clone(),
            min_severity: request.min_severity,
            ..Default::default()
        };
        filters.client_ids.sort_unstable();
        filters.client_ids.dedup();
        filters.types.sort_unstable();
        filters.types.dedup();
        Self(filters)
    }

    fn token(&self, context: &Context, cursor: i64) -> String {
        context.page_tokens.make(RPC, &self.0, &cursor)
    }

    fn cursor(&self, context: &Context, token: &str) -> Result<i64, Refusal> {
        context.page_tokens.cursor(RPC, &self.0, token).ok_or_else(|| {
            let description = "must be the last resume_token of a stream with these same filters; begin without it";
            Refusal::invalid(Reason::ResumeTokenInvalid, vec![Violation::new("resume_token", description)])
        })
    }

    fn error(&self, context: &Context, ended: Ended) -> Refusal {
        let out_of_range = |reason, message: &str, oldest| {
            Refusal::new(reason, message).with("oldest_resume_token", self.token(context, oldest))
        };
        match ended {
            Ended::Stopping => Refusal::shutting_down(),
            Ended::TooMany => Refusal::exhausted(
                Reason::TooManySubscriptions,
                "there are as many subscriptions as there may be; try again, on another replica if there is one",
                RETRY_DELAY,
            ),
            Ended::Expired { oldest } => out_of_range(
                Reason::ResumeTokenExpired,
                "changes after the resume token are no longer kept; oldest_resume_token continues with the oldest one that is",
                oldest,
            ),
            Ended::Ahead { oldest } => out_of_range(
                Reason::ResumeTokenAhead,
                "the database is an older copy of the one that gave the resume token; oldest_resume_token continues with the \
                 oldest change that is kept",
                oldest,
            ),
            Ended::Database(error) => error.into(),
        }
    }
}

/// Returns the message of a change, which is built once for all subscribers.
fn message_of<'a>(context: &Context, entry: &'a Entry<AlertEvent>) -> &'a AlertEvent {
    let Entry { change, shown } = entry;
    shown.get_or_init(|| AlertEvent {
        sequence: change.sequence,
        change: change.change as i32,
        alert: Some(context.alert(&change.alert)),
        change_time: Some(timestamp(change.change_time)),
    })
}

/// The state of one stream.
struct Subscriber {
    context: Arc<Context>,
    filters: Filters,
    tokens: TokenMaker,
    subscription: Subscription<AlertEvent>,
    request_id: Box<str>,
    /// Whether the first message, a heartbeat, has been sent.
    has_begun: bool,
    _slot: Slot,
}

impl Subscriber {
    /// Returns the next message, or the status that ends the stream.
    async fn next(&mut self) -> Result<SubscribeAlertsResponse, Status> {
        let heartbeat_after = Duration::from_millis(self.context.settings.alert_heartbeat_ms.into());
        let message = if std::mem::replace(&mut self.has_begun, true) {
            match tokio::time::timeout(heartbeat_after, self.subscription.next()).await {
                Err(_) => Message::Heartbeat(Heartbeat {}),
                Ok(Ok(entry)) => Message::Alert(message_of(&self.context, &entry).clone()),
                Ok(Err(ended)) => {
                    let error = self.filters.error(&self.context, ended);
                    // The call that started the stream has returned, so the request id must be set again.
                    return Err(REQUEST_ID.sync_scope(self.request_id.to_string(), || status(error)));
                }
            }
        } else {
            Message::Heartbeat(Heartbeat {})
        };
        let resume_token = self.tokens.make(&self.subscription.cursor());
        Ok(SubscribeAlertsResponse { message: Some(message), resume_token })
    }
}
