//! Shows the summaries of a month as text with a table.

use super::overview::{Overview, Row};
use crate::cli::chart::{grouped, shown_amount, table};
use crate::cli::time::time_text;
use bigdecimal::{BigDecimal, Zero};
use meterd_domain::decimal::Total;
use meterd_domain::projection::change_percent;

/// Maximum number of services with their own column in the table. CSV and JSON have all services.
const SERVICE_COLUMNS_MAX: usize = 5;

impl Overview {
    /// Returns the lines of the text.
    pub fn to_text(&self) -> anyhow::Result<Vec<String>> {
        let month = self.clients.first().map_or("", |row| row.message.month.as_str());
        let (cost, last_month) = (self.sum(|row| &row.cost), self.sum(|row| &row.last_month));
        let unpriced: i64 = self.clients.iter().map(|row| row.unpriced).sum();
        let count = self.clients.len();
        let clients = if count == 1 { "1 client".to_owned() } else { format!("{} clients", grouped(count)) };
        let mut head = format!("{month}  {clients}: {} {}", shown_amount(&cost), self.currency);
        if self.is_current() {
            let projected = shown_amount(&self.sum(|row| &row.projected));
            head += &format!(" so far, {projected} {} projected", self.currency);
        }
        let change = change_of(&cost, &last_month)?;
        let mut lines = vec![head, format!("last month {} {}", shown_amount(&last_month), self.currency)];
        if let Some(change) = change {
            lines[1] += &format!(", {}", change_text(Some(&change), true));
        }
        lines.push(format!("complete as of {}", time_text(self.complete_as_of.as_ref())));
        lines.push(String::new());
        lines.extend(self.table(unpriced > 0)?);
        if unpriced > 0 {
            lines.push(String::new());
            lines.push(format!(
                "{} events have no price and are not included in any cost: `meterd unpriced --month {month}` lists them",
                grouped(unpriced)
            ));
        }
        Ok(lines)
    }

    fn table(&self, with_unpriced: bool) -> anyhow::Result<Vec<String>> {
        let services = self.services();
        // A column "others" for a single service would be useless.
        let own = if services.len() <= SERVICE_COLUMNS_MAX + 1 { services.len() } else { SERVICE_COLUMNS_MAX };
        let named: Vec<&str> = services.iter().take(own).map(|(service, _)| service.as_str()).collect();
        let with_names = self.clients.iter().any(|row| !row.message.display_name.is_empty());
        let columns =
            Columns { named, has_rest: services.len() > own, with_names, with_unpriced, current: self.is_current() };
        let mut rows = vec![columns.header()];
        for row in &self.clients {
            let change = row.message.change_percent.as_deref();
            rows.push(columns.row(&row.message.client_id, row, &change_text(change, !row.cost.is_zero())));
        }
        if self.clients.len() > 1 {
            let total = self.total();
            let change = change_of(&total.cost, &total.last_month)?;
            rows.push(columns.row("total", &total, &change_text(change.as_deref(), !total.cost.is_zero())));
        }
        Ok(table(&rows, &columns.right()))
    }
}

/// Columns of the table.
struct Columns<'a> {
    named: Vec<&'a str>,
    has_rest: bool,
    with_names: bool,
    with_unpriced: bool,
    current: bool,
}

impl Columns<'_> {
    fn header(&self) -> Vec<String> {
        let mut cells = vec!["client"];
        cells.extend(self.with_names.then_some("name"));
        cells.extend(["cost", "change"]);
        cells.extend(self.current.then_some("projected"));
        cells.extend(&self.named);
        cells.extend(self.has_rest.then_some("others"));
        cells.extend(self.with_unpriced.then_some("unpriced"));
        cells.into_iter().map(str::to_owned).collect()
    }

    fn right(&self) -> Vec<bool> {
        let texts = if self.with_names { 2 } else { 1 };
        (0..self.header().len()).map(|column| column >= texts).collect()
    }

    fn row(&self, name: &str, row: &Row, change: &str) -> Vec<String> {
        let mut cells = vec![name.to_owned()];
        cells.extend(self.with_names.then(|| row.message.display_name.clone()));
        cells.extend([shown_amount(&row.cost), change.to_owned()]);
        cells.extend(self.current.then(|| shown_amount(&row.projected)));
        let shown = |cost: Option<&BigDecimal>| cost.map_or("-".to_owned(), shown_amount);
        cells.extend(self.named.iter().map(|service| shown(row.services.get(*service))));
        if self.has_rest {
            let mut rest =
                row.services.iter().filter(|(service, _)| !self.named.contains(&service.as_str())).peekable();
            let any = rest.peek().is_some();
            let sum: BigDecimal = rest.map(|(_, cost)| cost).sum();
            cells.push(shown(any.then_some(&sum)));
        }
        cells.extend(self.with_unpriced.then(|| grouped(row.unpriced)));
        cells
    }
}

/// The change in percent, computed like on the server.
fn change_of(now: &BigDecimal, before: &BigDecimal) -> anyhow::Result<Option<String>> {
    let total = |amount: &BigDecimal| {
        let text = amount.to_plain_string();
        text.parse::<Total>().map_err(|error| anyhow::anyhow!("cannot parse the amount {text}: {error}"))
    };
    Ok(change_percent(total(now)?, total(before)?).map(|change| change.to_string()))
}

fn change_text(change: Option<&str>, has_cost: bool) -> String {
    match change {
        Some(change) if change.starts_with('-') || change == "0" => format!("{change} %"),
        Some(change) => format!("+{change} %"),
        None if has_cost => "new".to_owned(),
        None => String::new(),
    }
}
