//! The summaries of all clients in a month, with parsed amounts.

use crate::cli::usage::{amount_of, cost_of};
use crate::proto::MonthlySummary;
use bigdecimal::BigDecimal;
use prost_types::Timestamp;
use std::collections::BTreeMap;

/// The summaries of all clients in a month.
#[derive(Debug, Default)]
pub struct Overview {
    pub clients: Vec<Row>,
    pub currency: String,
    pub complete_as_of: Option<Timestamp>,
}

/// The summary of a client, with parsed amounts.
#[derive(Debug, Default)]
pub struct Row {
    pub message: MonthlySummary,
    pub cost: BigDecimal,
    pub last_month: BigDecimal,
    /// The projected cost. The cost if the month is over.
    pub projected: BigDecimal,
    pub services: BTreeMap<String, BigDecimal>,
    pub unpriced: i64,
}

impl Overview {
    /// Adds the summary of a client.
    pub fn add(&mut self, message: MonthlySummary) -> anyhow::Result<()> {
        let totals = message.totals.clone().unwrap_or_default();
        if let Some(cost) = &totals.cost {
            self.currency.clone_from(&cost.currency);
        }
        let cost = cost_of(&totals)?;
        let services = message
            .services
            .iter()
            .map(|service| Ok((service.service.clone(), cost_of(&service.totals.clone().unwrap_or_default())?)));
        self.clients.push(Row {
            projected: match &message.projected_cost {
                Some(projected) => amount_of(Some(projected))?,
                None => cost.clone(),
            },
            last_month: amount_of(message.last_month_cost.as_ref())?,
            services: services.collect::<anyhow::Result<_>>()?,
            unpriced: totals.unpriced_event_count,
            cost,
            message,
        });
        Ok(())
    }

    /// Whether the month is not over for at least one client.
    pub fn is_current(&self) -> bool {
        self.clients.iter().any(|row| row.message.projected_cost.is_some())
    }

    /// Sums an amount of all clients.
    pub fn sum(&self, of: impl Fn(&Row) -> &BigDecimal) -> BigDecimal {
        self.clients.iter().map(of).sum()
    }

    /// All services, the one with the highest cost first.
    pub fn services(&self) -> Vec<(String, BigDecimal)> {
        let mut sums: BTreeMap<&String, BigDecimal> = BTreeMap::new();
        for (service, cost) in self.clients.iter().flat_map(|row| &row.services) {
            *sums.entry(service).or_default() += cost;
        }
        let mut sums: Vec<_> = sums.into_iter().map(|(service, cost)| (service.clone(), cost)).collect();
        sums.sort_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(&right.0)));
        sums
    }

    /// The sum of all clients.
    pub fn total(&self) -> Row {
        Row {
            cost: self.sum(|row| &row.cost),
            last_month: self.sum(|row| &row.last_month),
            projected: self.sum(|row| &row.projected),
            services: self.services().into_iter().collect(),
            unpriced: self.clients.iter().map(|row| row.unpriced).sum(),
            message: MonthlySummary::default(),
        }
    }
}
