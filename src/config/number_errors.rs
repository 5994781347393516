//! Plain texts for clap's errors of numbers.

use std::error::Error;
use std::num::ParseIntError;

/// Returns the rule that a number breaks, such as "must be 1 to 64". `None` if the cause is not an error of a number.
pub fn plain_number_rule(cause: &(dyn Error + 'static)) -> Option<String> {
    if cause.is::<ParseIntError>() {
        return Some("must be a whole number".into());
    }
    // clap: "0 is not in 1..=64".
    let text = cause.to_string();
    let (value, range) = text.split_once(" is not in ")?;
    let (min, max) = range.split_once("..=")?;
    let are_numbers = [value, min, max].iter().all(|number| number.parse::<i128>().is_ok());
    are_numbers.then(|| format!("must be {min} to {max}"))
}

/// Returns the text of a parse error with the plain rule. `None` if the error is not about a number.
pub fn plain_parse_error(error: &clap::Error) -> Option<String> {
    let cause = error.source()?;
    let rule = plain_number_rule(cause)?;
    Some(error.render().to_string().replacen(&cause.to_string(), &rule, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, Command, value_parser};

    fn error_of(value: &str) -> Option<String> {
        let arg = Arg::new("count").long("count").value_parser(value_parser!(u32).range(1..=64));
        let parsed = Command::new("test").arg(arg).try_get_matches_from(["test", &format!("--count={value}")]);
        plain_parse_error(&parsed.unwrap_err())
    }

    #[test]
    fn the_error_of_a_number_names_the_flag_the_value_and_the_rule() {
        for (value, rule) in [("0", "must be 1 to 64"), ("65", "must be 1 to 64"), ("x", "must be a whole number")] {
            let error = error_of(value).unwrap();
            assert!(error.contains(&format!("invalid value '{value}' for '--count <count>': {rule}\n")), "{error}");
        }
    }
}
