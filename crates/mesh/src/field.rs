//! Checks the fields of a request, all of them before answering, so that a client mends them in one go.

use std::ops::RangeInclusive;

use boxoffice_proto::common::v1::{ErrorReason, Money};
use chrono::{DateTime, Utc};
use prost_types::Timestamp;

use crate::{
    failure::{Failure, Violation},
    id::Id,
    money::Currency,
};

/// Collects what is wrong with a request's fields.
#[derive(Debug, Default)]
pub struct Fields {
    violations: Vec<Violation>,
}

impl Fields {
    /// None wrong so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a field that is wrong. `reason` is for programs (`REQUIRED`, `OUT_OF_RANGE`, `MALFORMED`, `DUPLICATE`,
    /// `UNKNOWN`), the description for developers: it goes on from the field's name, and names no other, as REST spells
    /// them in another way.
    pub fn wrong(&mut self, field: impl Into<String>, reason: &'static str, description: impl Into<String>) {
        self.violations.push(Violation { field: field.into(), reason, description: description.into() });
    }

    /// Notes a field that is wrong unless a condition holds.
    pub fn check(&mut self, holds: bool, field: &str, reason: &'static str, description: &str) {
        if !holds {
            self.wrong(field, reason, description);
        }
    }

    /// A text of so many characters, without control characters other than line breaks and tabs; spaces around it are
    /// cut off. One of spaces only is refused: it stands for no text that somebody meant.
    pub fn text(&mut self, field: &str, value: &str, length: RangeInclusive<usize>) -> String {
        let text = value.trim();
        let count = text.chars().count();
        if text.is_empty() && *length.start() > 0 {
            self.wrong(field, "REQUIRED", "is required");
        } else if text.is_empty() && !value.is_empty() {
            self.wrong(field, "MALFORMED", "must not be spaces only");
        } else if !length.contains(&count) {
            self.wrong(
                field,
                "OUT_OF_RANGE",
                format!("must have {} to {} characters, not {count}", length.start(), length.end()),
            );
        } else if text.chars().any(|letter| letter.is_control() && !matches!(letter, '\n' | '\r' | '\t')) {
            self.wrong(field, "MALFORMED", "must not contain control characters");
        }
        text.to_owned()
    }

    /// A number within a range.
    pub fn number(&mut self, field: &str, value: i64, range: RangeInclusive<i64>) -> i64 {
        if !range.contains(&value) {
            self.wrong(
                field,
                "OUT_OF_RANGE",
                format!("must be {} to {}, not {value}", range.start(), range.end()),
            );
        }
        value
    }

    /// An id. None, and noted, if it is missing or malformed.
    pub fn id<T: Id>(&mut self, field: &str, value: &str) -> Option<T> {
        if value.is_empty() {
            self.wrong(field, "REQUIRED", "is required");
            return None;
        }
        value
            .parse()
            .map_err(|error: crate::id::InvalidId| self.wrong(field, "MALFORMED", error.to_string()))
            .ok()
    }

    /// A time. None, and noted, if it is missing or outside the years 2000 to 9999.
    pub fn time(&mut self, field: &str, value: Option<&Timestamp>) -> Option<DateTime<Utc>> {
        let Some(value) = value else {
            self.wrong(field, "REQUIRED", "is required");
            return None;
        };
        const YEAR_2000: i64 = 946_684_800;
        const YEAR_10000: i64 = 253_402_300_800;
        let nanos = u32::try_from(value.nanos).ok();
        let time = nanos.and_then(|nanos| DateTime::from_timestamp(value.seconds, nanos));
        match time.filter(|_| (YEAR_2000..YEAR_10000).contains(&value.seconds)) {
            Some(time) => Some(time),
            None => {
                self.wrong(field, "OUT_OF_RANGE", "must be a time in the years 2000 to 9999");
                None
            }
        }
    }

    /// An amount in the installation's currency, in minor units within a range. A foreign currency ends the check at
    /// once, with a reason of its own.
    pub fn money(
        &mut self,
        field: &str,
        value: Option<&Money>,
        currency: Currency,
        range: RangeInclusive<i64>,
    ) -> Result<i64, Failure> {
        let Some(money) = value else {
            self.wrong(field, "REQUIRED", "is required");
            return Ok(0);
        };
        if money.currency_code.is_empty() {
            self.wrong(format!("{field}.currency_code"), "REQUIRED", "is required");
        } else if money.currency_code != currency.code() {
            let field = format!("{field}.currency_code");
            return Err(Failure::field(
                ErrorReason::CurrencyUnsupported,
                field,
                format!("must be {currency}"),
            )
            .with("currency", currency));
        }
        Ok(self.number(&format!("{field}.minor_units"), money.minor_units, range))
    }

    /// Done: the values read, of which one is missing only if it was noted as wrong.
    ///
    /// # Errors
    /// As [`Fields::finish`].
    pub fn finish_with<T>(self, values: Option<T>) -> Result<T, Failure> {
        self.finish()?;
        values.ok_or_else(|| Failure::internal("a value is missing that was not noted as wrong"))
    }

    /// Done.
    ///
    /// # Errors
    /// `FIELD_INVALID`, naming every field that is wrong.
    pub fn finish(self) -> Result<(), Failure> {
        if self.violations.is_empty() { Ok(()) } else { Err(Failure::fields(self.violations)) }
    }
}

/// The id in the only field that is to be checked.
///
/// # Errors
/// `FIELD_INVALID` if it is missing or malformed.
pub fn id<T: Id>(field: &str, value: &str) -> Result<T, Failure> {
    let mut fields = Fields::new();
    let id = fields.id(field, value);
    fields.finish_with(id)
}

/// A time as the contracts write it.
pub fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }
}

/// An amount as the contracts write it.
pub fn money(minor_units: i64, currency: Currency) -> Money {
    Money { currency_code: currency.code().to_owned(), minor_units }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::UserId;

    fn reasons(fields: Fields) -> Vec<(String, &'static str)> {
        fields.violations.into_iter().map(|violation| (violation.field, violation.reason)).collect()
    }

    #[test]
    fn every_wrong_field_is_named() {
        let mut fields = Fields::new();
        fields.text("title", " ", 1..=10);
        fields.text("genre", "a\u{0}", 0..=10);
        fields.text("description", " \t\n", 0..=10);
        fields.number("quantity", -1, 1..=10);
        assert_eq!(fields.id::<UserId>("user_id", "usr_x"), None);
        assert_eq!(fields.time("start_time", None), None);
        let expected = [
            ("title", "REQUIRED"),
            ("genre", "MALFORMED"),
            ("description", "MALFORMED"),
            ("quantity", "OUT_OF_RANGE"),
            ("user_id", "MALFORMED"),
            ("start_time", "REQUIRED"),
        ];
        assert_eq!(reasons(fields), expected.map(|(field, reason)| (field.to_owned(), reason)));
    }

    #[test]
    fn good_fields_pass() {
        let mut fields = Fields::new();
        assert_eq!(fields.text("title", " Live ", 1..=10), "Live");
        assert_eq!(fields.text("genre", "", 0..=10), "");
        let price = Money { currency_code: "KRW".into(), minor_units: 5 };
        assert_eq!(fields.money("price", Some(&price), Currency::KRW, 0..=10).unwrap(), 5);
        assert!(fields.finish().is_ok());
    }

    #[test]
    fn a_foreign_currency_has_a_reason_of_its_own() {
        let price = Money { currency_code: "USD".into(), minor_units: 5 };
        let failure = Fields::new().money("price", Some(&price), Currency::KRW, 0..=10).unwrap_err();
        assert!(failure.is(ErrorReason::CurrencyUnsupported));
    }
}
