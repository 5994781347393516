//! Converts values of the domain and the store to messages.

use crate::grpc::Context;
use crate::grpc::wire::json;
use crate::proto::{self, EventOutcome, Money, UsageTotals};
use chrono::{DateTime, Utc};
use meterd_domain::decimal::{Decimal, Total};
use meterd_domain::event::{Charge, UsageEvent};
use meterd_domain::rollup::Sums;
use meterd_engine::fields::UnixTime;
use meterd_engine::ingest::{Echo, Outcome, Recorded};
use meterd_engine::usage::{self, ServiceUsage};
use meterd_store::usage::events::RecordedEvent;
use prost_types::Timestamp;
use std::collections::BTreeMap;

/// Converts a time to a timestamp.
pub fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }
}

/// Returns the three fields of a charge: the amount, the price, and the reason if the event is unpriced.
pub fn charge_fields(currency: &str, charge: Option<Charge>) -> (Option<Money>, String, i32) {
    match charge {
        Some(Charge::Priced { charge, price_id }) => {
            let money = Money { currency: currency.to_owned(), amount: charge.to_string() };
            (Some(money), price_id.to_string(), 0)
        }
        Some(Charge::Unpriced(reason)) => (None, String::new(), reason as i32),
        None => (None, String::new(), 0),
    }
}

impl Context {
    /// Converts an amount in the currency of the deployment.
    pub fn money(&self, amount: Total) -> Money {
        Money { currency: self.engine.currency.clone(), amount: amount.to_string() }
    }

    /// Converts sums.
    pub fn totals(&self, sums: &Sums) -> UsageTotals {
        UsageTotals {
            request_count: sums.request_count,
            units: sums.units.to_string(),
            input_tokens: sums.input_tokens,
            output_tokens: sums.output_tokens,
            cached_input_tokens: sums.cached_input_tokens,
            cost: Some(self.money(sums.cost)),
            unpriced_event_count: sums.unpriced_event_count,
        }
    }

    /// Converts the usage of services.
    pub fn services(&self, services: Vec<ServiceUsage>) -> Vec<proto::ServiceUsage> {
        services.into_iter().map(|service| self.service(service)).collect()
    }

    /// Converts the usage of a service.
    pub fn service(&self, service: ServiceUsage) -> proto::ServiceUsage {
        proto::ServiceUsage {
            service: service.service,
            display_name: service.display_name,
            category: service.category.map_or(proto::ServiceCategory::Other as i32, i32::from),
            totals: Some(self.totals(&service.sums)),
            projected_cost: None,
        }
    }

    /// Converts the outcome of an event.
    pub fn result(&self, outcome: Outcome, echo: Echo) -> proto::UsageResult {
        let Echo { key, model, rounded } = echo;
        let recorded = |outcome: EventOutcome, recorded: Recorded| {
            let matched_model = self.matched_model(&model, recorded.charge.as_ref());
            let (charge, price_id, unpriced_reason) = charge_fields(&self.engine.currency, recorded.charge);
            proto::UsageResult {
                outcome: outcome.into(),
                event_id: recorded.id.to_string(),
                event_time: Some(timestamp(recorded.id.time)),
                idempotency_key: key.to_string(),
                charge,
                price_id,
                unpriced_reason,
                error: None,
                rounded,
                matched_model,
            }
        };
        let failed = |outcome: EventOutcome, error: meterd_engine::refusal::Refusal| proto::UsageResult {
            outcome: outcome.into(),
            idempotency_key: key.to_string(),
            error: Some(error.into()),
            ..Default::default()
        };
        match outcome {
            Outcome::Accepted(event) => recorded(EventOutcome::Accepted, event),
            Outcome::Duplicate(event) => recorded(EventOutcome::Duplicate, event),
            Outcome::Conflict(conflict) => proto::UsageResult {
                event_id: conflict.holder.to_string(),
                ..failed(EventOutcome::Conflict, usage::conflict(&key, &conflict))
            },
            Outcome::Rejected(error) => failed(EventOutcome::Rejected, error),
            Outcome::Unavailable(error) => failed(EventOutcome::Unavailable, error),
        }
    }

    /// Returns the model of the price of a charge, if it is another name than `model`.
    fn matched_model(&self, model: &str, charge: Option<&Charge>) -> String {
        match charge {
            Some(Charge::Priced { price_id, .. }) if !model.is_empty() => {
                let catalog = self.engine.catalog.current();
                let matched = catalog.model_of(*price_id).filter(|matched| ***matched != *model);
                matched.map(|matched| matched.to_string()).unwrap_or_default()
            }
            _ => String::new(),
        }
    }

    /// Converts a recorded event.
    pub fn event(&self, recorded: RecordedEvent) -> proto::RecordedUsageEvent {
        let (charge, price_id, unpriced_reason) = charge_fields(&self.engine.currency, Some(recorded.charge));
        proto::RecordedUsageEvent {
            event_id: recorded.id.to_string(),
            event: Some(event(recorded.event)),
            day: recorded.day.to_string(),
            charge,
            price_id,
            unpriced_reason,
            record_time: Some(timestamp(recorded.record_time)),
            void_time: recorded.void_time.map(timestamp),
            tier_residue: residue(&self.engine.currency, recorded.tiers.residue),
        }
    }
}

fn event(event: UsageEvent) -> proto::UsageEvent {
    let metadata = event.metadata.and_then(|text| serde_json::from_str(&text).ok()).map(json::to_struct);
    proto::UsageEvent {
        client_id: event.client_id.to_string(),
        service: event.service.to_string(),
        operation: event.operation.to_string(),
        model: event.model.to_string(),
        units: event.measures.units.to_string(),
        input_tokens: event.measures.input_tokens,
        output_tokens: event.measures.output_tokens,
        cached_input_tokens: event.measures.cached_input_tokens,
        amount: event.measures.amount.map(|amount| amount.to_string()).unwrap_or_default(),
        event_time: Some(timestamp(event.event_time)),
        idempotency_key: event.idempotency_key.to_string(),
        subject: event.subject,
        external_id: event.external_id,
        metadata,
        service_tier: event.service_tier,
        measures: texts(event.measures.others),
        reported_cost: event.measures.reported_cost.map(|cost| cost.to_string()).unwrap_or_default(),
        labels: event.labels,
    }
}

/// Returns what remains in the cost of tiers. `None` if nothing does.
pub fn residue(currency: &str, residue: Decimal) -> Option<proto::Money> {
    (residue != Decimal::ZERO).then(|| proto::Money { currency: currency.into(), amount: residue.to_string() })
}

/// Converts numbers by name to decimal strings.
pub fn texts<N: ToString, V: ToString>(numbers: impl IntoIterator<Item = (N, V)>) -> BTreeMap<String, String> {
    numbers.into_iter().map(|(name, number)| (name.to_string(), number.to_string())).collect()
}

/// Converts a timestamp to the type of the engine.
pub fn unix_time(time: &Timestamp) -> UnixTime {
    UnixTime { seconds: time.seconds, nanos: time.nanos }
}
