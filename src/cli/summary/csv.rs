//! Shows the summaries of a month as CSV.

use super::overview::Overview;
use crate::cli::sheet::{self, Cell};
use crate::proto::{Money, MonthlySummary};

impl Overview {
    /// Returns a CSV file with exact amounts and a column for each service.
    pub fn to_csv(&self) -> anyhow::Result<String> {
        let services = self.services();
        let mut header = sheet::header(&[
            "client_id",
            "display_name",
            "month",
            "currency",
            "cost",
            "last_month_cost",
            "change_percent",
            "projected_cost",
            "request_count",
            "unpriced_event_count",
            "messages",
            "ai_calls",
            "voice_minutes",
        ]);
        header.extend(services.iter().map(|(service, _)| Cell::text(format!("cost_{service}"))));
        let rows = self.clients.iter().map(|row| {
            let MonthlySummary { client_id, display_name, month, change_percent, messages, voice_minutes, .. } =
                &row.message;
            let totals = row.message.totals.clone().unwrap_or_default();
            let exact = |money: &Option<Money>| Cell::plain(money.as_ref().map_or("", |money| money.amount.as_str()));
            let mut cells = vec![
                Cell::text(client_id),
                Cell::text(display_name),
                Cell::plain(month),
                Cell::plain(&self.currency),
                exact(&totals.cost),
                exact(&row.message.last_month_cost),
                Cell::plain(change_percent.as_deref().unwrap_or_default()),
                exact(&row.message.projected_cost),
                Cell::plain(totals.request_count),
                Cell::plain(row.unpriced),
                Cell::plain(messages),
                Cell::plain(row.message.ai_calls),
                Cell::plain(voice_minutes),
            ];
            let cost = |service: &str| {
                let found = row.message.services.iter().find(|of| of.service == service);
                found.and_then(|of| of.totals.as_ref()?.cost.as_ref()).map_or("0", |cost| cost.amount.as_str())
            };
            cells.extend(services.iter().map(|(service, _)| Cell::plain(cost(service))));
            cells
        });
        sheet::csv(&header, &rows.collect::<Vec<_>>())
    }
}
