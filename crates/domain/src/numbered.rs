//! Enums that the database and the API store as numbers.

/// A number that is not a value of the enum.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a valid {1}")]
pub struct UnknownNumber(pub i16, pub &'static str);

/// Implements the conversions between an enum and its numbers.
macro_rules! numbered {
    ($name:ident, $what:literal, [$($variant:ident),+]) => {
        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
        }

        impl From<$name> for i16 {
            fn from(value: $name) -> Self {
                value as i16
            }
        }

        impl TryFrom<i16> for $name {
            type Error = $crate::numbered::UnknownNumber;

            fn try_from(number: i16) -> Result<Self, Self::Error> {
                let found = Self::ALL.iter().copied().find(|value| *value as i16 == number);
                found.ok_or($crate::numbered::UnknownNumber(number, $what))
            }
        }
    };
}
pub(crate) use numbered;
