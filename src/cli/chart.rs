//! Tables and bars for the terminal, computed with exact numbers.

use bigdecimal::{BigDecimal, RoundingMode, ToPrimitive, Zero};

const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Draws a bar for `value`. A bar for `max` has `width` cells. The resolution is an eighth of a cell; every positive value has
/// at least one eighth.
pub fn bar(value: &BigDecimal, max: &BigDecimal, width: u32) -> String {
    if value <= &BigDecimal::zero() || max <= &BigDecimal::zero() {
        return String::new();
    }
    let eighths_max = u64::from(width) * 8;
    let eighths = (value * BigDecimal::from(eighths_max) / max).with_scale_round(0, RoundingMode::Down);
    let eighths = eighths.to_u64().unwrap_or(eighths_max).clamp(1, eighths_max);
    let part = EIGHTHS[(eighths % 8) as usize];
    format!("{}{part}", "█".repeat((eighths / 8) as usize))
}

/// Rounds an amount half to even for display: to 2 decimals, or to 4 decimals below one. Smaller amounts are "<0.0001".
pub fn shown_amount(amount: &BigDecimal) -> String {
    let one = BigDecimal::from(1);
    let decimals = if amount.abs() >= one || amount.is_zero() { 2 } else { 4 };
    let rounded = amount.with_scale_round(decimals, RoundingMode::HalfEven);
    match rounded.is_zero() && !amount.is_zero() {
        true => "<0.0001".to_owned(),
        false => rounded.to_plain_string(),
    }
}

/// Formats a count with thousands separators: `22,361,870`.
pub fn grouped(count: impl ToString) -> String {
    let text = count.to_string();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.as_str()),
    };
    let mut grouped = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats rows as lines of a table. Columns that `right` marks are aligned right. Lines have no trailing spaces.
pub fn table(rows: &[Vec<String>], right: &[bool]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            match right.get(column) {
                Some(true) => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    fn decimal(text: &str) -> BigDecimal {
        BigDecimal::from_str(text).unwrap()
    }

    #[test]
    fn bars_are_drawn_in_eighths() {
        let draw = |value: &str| bar(&decimal(value), &decimal("10"), 10);
        assert_eq!(draw("10"), "██████████");
        assert_eq!(draw("5"), "█████");
        assert_eq!(draw("1.5"), "█▌");
        assert_eq!(draw("0.000001"), "▏");
        assert_eq!(draw("0"), "");
        assert_eq!(draw("-1"), "");
        assert_eq!(draw("11"), "██████████");
        assert_eq!(bar(&decimal("1"), &decimal("0"), 10), "");
    }

    #[test]
    fn amounts_are_rounded_for_display() {
        for (amount, expected) in [
            ("5.8074795", "5.81"),
            ("2.345", "2.34"),
            ("2.355", "2.36"),
            ("0.0000825", "0.0001"),
            ("0.00004", "<0.0001"),
            ("0.00015", "0.0002"),
            ("0.5", "0.5000"),
            ("0", "0.00"),
            ("1234567.005", "1234567.00"),
        ] {
            assert_eq!(shown_amount(&decimal(amount)), expected, "{amount}");
        }
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        for (count, expected) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (22_361_870, "22,361,870"), (-1000, "-1,000")]
        {
            assert_eq!(grouped(count), expected);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "1", "x"], ["béta", "22", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows, &[false, true]), ["a      1  x", "béta  22"]);
    }
}
