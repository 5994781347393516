//! Converts decimals from and to text.

use ethnum::I256;
use std::fmt;

/// Why a text is not a valid decimal. The message says what to send instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// The text contains something other than digits and at most one point between digits.
    #[error("must be a decimal number such as 5.25, in plain digits")]
    NotADecimal,
    /// The value is negative.
    #[error("must be zero or more")]
    Negative,
    /// The value has more decimals than can be stored.
    #[error("must have at most {0} decimals")]
    TooManyDecimals(u32),
    /// The value is too large.
    #[error("must be below 10^{0}")]
    TooLarge(u32),
    /// The text is longer than any valid decimal needs.
    #[error("must be a decimal number of at most {TEXT_BYTES_MAX} characters")]
    TooLong,
}

/// Maximum length of a text. A double written in full fits, for example 0.1 with its 55 decimals.
const TEXT_BYTES_MAX: usize = 100;

/// Parses plain digits with an optional fraction into units of 10^-`decimals`. Leading and trailing zeros are ignored.
pub(super) fn parse(text: &str, integer_digits: u32, decimals: u32) -> Result<i128, DecimalError> {
    match parse_rounded(text, integer_digits, decimals)? {
        (units, false) => Ok(units),
        (_, true) => Err(DecimalError::TooManyDecimals(decimals)),
    }
}

/// Parses like [`parse`], but rounds further decimals half to even. Also returns whether it rounded.
pub(super) fn parse_rounded(text: &str, integer_digits: u32, decimals: u32) -> Result<(i128, bool), DecimalError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(DecimalError::TooLong);
    }
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (integer, fraction) = match unsigned.split_once('.') {
        Some((_, "")) => return Err(DecimalError::NotADecimal),
        Some(parts) => parts,
        None => (unsigned, ""),
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if integer.is_empty() || !digits(integer) || !digits(fraction) {
        return Err(DecimalError::NotADecimal);
    }
    let integer = integer.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if unsigned.len() < text.len() && !(integer.is_empty() && fraction.is_empty()) {
        return Err(DecimalError::Negative);
    }
    if integer.len() > integer_digits as usize {
        return Err(DecimalError::TooLarge(integer_digits));
    }
    let (kept, rest) = fraction.split_at(fraction.len().min(decimals as usize));
    let mut units: i128 = 0;
    for byte in integer.bytes().chain(kept.bytes()) {
        units = units * 10 + i128::from(byte - b'0');
    }
    units *= 10i128.pow(decimals - kept.len() as u32);
    // The rest has no trailing zeros, so "5" is exactly half.
    let up = rest > "5" || (rest == "5" && units % 2 != 0);
    units += i128::from(up);
    if units >= 10i128.pow(integer_digits + decimals) {
        return Err(DecimalError::TooLarge(integer_digits));
    }
    Ok((units, !rest.is_empty()))
}

/// Formats units of 10^-`decimals` in plain digits without trailing zeros.
pub(crate) fn plain(units: I256, decimals: usize) -> String {
    let mut text = String::new();
    write_plain(&mut text, units, decimals).expect("memory can be written to");
    text
}

/// Writes what [`plain`] returns. Almost every number fits into 64 bits, which are much faster to divide.
pub(super) fn write_plain(out: &mut impl fmt::Write, units: I256, decimals: usize) -> fmt::Result {
    let sign = if units.is_negative() { "-" } else { "" };
    let small = u64::try_from(units.unsigned_abs()).ok().zip(10u64.checked_pow(decimals as u32));
    let Some((units, one)) = small else { return write_plain_wide(out, sign, units, decimals) };
    write!(out, "{sign}{}", units / one)?;
    let (mut fraction, mut width) = (units % one, decimals);
    if fraction == 0 {
        return Ok(());
    }
    while fraction.is_multiple_of(10) {
        (fraction, width) = (fraction / 10, width - 1);
    }
    write!(out, ".{fraction:0>width$}")
}

pub(super) fn write_plain_wide(out: &mut impl fmt::Write, sign: &str, units: I256, decimals: usize) -> fmt::Result {
    let digits = units.unsigned_abs().to_string();
    let padded = format!("{digits:0>width$}", width = decimals + 1);
    let (integer, fraction) = padded.split_at(padded.len() - decimals);
    match fraction.trim_end_matches('0') {
        "" => write!(out, "{sign}{integer}"),
        fraction => write!(out, "{sign}{integer}.{fraction}"),
    }
}
