//! Names of columns and keys: compares names, and finds the field that a name resembles.

use super::fields::Field;

/// Columns of an export that an import does not use.
pub const EXPORT_ONLY: [&str; 8] =
    ["event_id", "day", "currency", "charge", "price_id", "unpriced_reason", "record_time", "tier_residue"];

/// Other names of the fields, in lower case and without punctuation.
const SYNONYMS: [(&str, Field); 66] = [
    ("client", Field::Client),
    ("customer", Field::Client),
    ("customerid", Field::Client),
    ("tenant", Field::Client),
    ("tenantid", Field::Client),
    ("account", Field::Client),
    ("accountid", Field::Client),
    ("organization", Field::Client),
    ("organizationid", Field::Client),
    ("orgid", Field::Client),
    ("company", Field::Client),
    ("kunde", Field::Client),
    ("provider", Field::Service),
    ("product", Field::Service),
    ("vendor", Field::Service),
    ("servicename", Field::Service),
    ("action", Field::Operation),
    ("type", Field::Operation),
    ("endpoint", Field::Operation),
    ("method", Field::Operation),
    ("kind", Field::Operation),
    ("modelname", Field::Model),
    ("modelid", Field::Model),
    ("engine", Field::Model),
    ("deployment", Field::Model),
    ("quantity", Field::Units),
    ("qty", Field::Units),
    ("count", Field::Units),
    ("usage", Field::Units),
    ("segments", Field::Units),
    ("numsegments", Field::Units),
    ("messages", Field::Units),
    ("minutes", Field::Units),
    ("menge", Field::Units),
    ("prompttokens", Field::InputTokens),
    ("prompttokencount", Field::InputTokens),
    ("inputtokencount", Field::InputTokens),
    ("contexttokens", Field::InputTokens),
    ("tokensin", Field::InputTokens),
    ("completiontokens", Field::OutputTokens),
    ("candidatestokencount", Field::OutputTokens),
    ("outputtokencount", Field::OutputTokens),
    ("generatedtokens", Field::OutputTokens),
    ("tokensout", Field::OutputTokens),
    ("cachedtokens", Field::CachedInputTokens),
    ("cachedprompttokens", Field::CachedInputTokens),
    ("cachereadinputtokens", Field::CachedInputTokens),
    ("value", Field::Amount),
    ("volume", Field::Amount),
    ("time", Field::Time),
    ("timestamp", Field::Time),
    ("ts", Field::Time),
    ("date", Field::Time),
    ("datetime", Field::Time),
    ("created", Field::Time),
    ("createdat", Field::Time),
    ("occurredat", Field::Time),
    ("datesent", Field::Time),
    ("datum", Field::Time),
    ("key", Field::Key),
    ("requestid", Field::Key),
    ("messageid", Field::Key),
    ("user", Field::Subject),
    ("userid", Field::Subject),
    ("tags", Field::Metadata),
    ("labels", Field::Metadata),
];

/// Labels of rows with sums, in lower case and without punctuation.
const TOTALS: [&str; 17] = [
    "total",
    "totals",
    "grandtotal",
    "subtotal",
    "totalsum",
    "sum",
    "summe",
    "gesamt",
    "gesamtsumme",
    "zwischensumme",
    "insgesamt",
    "totale",
    "totaal",
    "somme",
    "suma",
    "soma",
    "итого",
];

/// Whether two names are equal except for case, spaces and punctuation: `client_id`, `Client ID`, `clientId`.
pub fn is_same_name(left: &str, right: &str) -> bool {
    letters(left).eq(letters(right)) && letters(left).next().is_some()
}

fn letters(name: &str) -> impl Iterator<Item = char> + '_ {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase)
}

/// Whether a label marks a row with sums of other rows: "Total", "Grand total:".
pub fn is_total(label: &str) -> bool {
    let label: String = letters(label).collect();
    TOTALS.contains(&label.as_str())
}

/// Returns the field that the name of a column or key resembles.
pub fn similar_field(name: &str, fields: &[Field]) -> Option<Field> {
    let name: String = letters(name).collect();
    let known = SYNONYMS.iter().find(|(synonym, field)| *synonym == name && fields.contains(field));
    if let Some((_, field)) = known {
        return Some(*field);
    }
    let distance = |field: &Field| strsim::damerau_levenshtein(&name, &letters(field.name()).collect::<String>());
    let nearest = fields.iter().copied().min_by_key(|field| distance(field))?;
    let letters_max = nearest.name().len().min(name.len());
    (distance(&nearest) <= letters_max / 4).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case_spaces_and_punctuation() {
        for name in ["client_id", "Client_ID", "CLIENT ID", "clientId", " client-id "] {
            assert!(is_same_name(name, "client_id"), "{name}");
        }
        assert!(!is_same_name("client", "client_id") && !is_same_name("", "-"));
    }

    #[test]
    fn labels_of_sums_are_detected() {
        assert!(["Total", "GRAND TOTAL:", "Sub-total", "Summe", "Итого"].into_iter().all(is_total));
        assert!(!["Total Energies", "acme", "", "-"].into_iter().any(is_total));
    }

    #[test]
    fn a_misspelt_name_or_a_synonym_finds_the_field() {
        for (name, field) in [
            ("input_token", Some(Field::InputTokens)),
            ("imput_tokens", Some(Field::InputTokens)),
            ("prompt_tokens", Some(Field::InputTokens)),
            ("completionTokens", Some(Field::OutputTokens)),
            ("unit", Some(Field::Units)),
            ("evnet_time", Some(Field::Time)),
            ("Timestamp", Some(Field::Time)),
            ("customer_id", Some(Field::Client)),
            ("region", None),
            ("", None),
        ] {
            assert_eq!(similar_field(name, &Field::ALL), field, "{name}");
        }
        assert_eq!(similar_field("prompt_tokens", &[Field::Units]), None);
    }
}
