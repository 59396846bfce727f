//! E-mail addresses, in the one form that they are stored and looked up in.

use std::fmt;

use thiserror::Error;

/// The longest address: RFC 5321's path of 256 less its angle brackets.
pub(crate) const EMAIL_LIMIT: usize = 254;
/// The longest part before the `@` (RFC 5321, 4.5.3.1.1).
const LOCAL_PART_LIMIT: usize = 64;
/// The longest part between two dots of a domain (RFC 1035, 2.3.4).
const LABEL_LIMIT: usize = 63;

/// An e-mail address: trimmed and in lower case, with a plausible syntax. Whether mail arrives there, only mail can tell.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct EmailAddress(String);

/// Why a text is not an e-mail address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum EmailError {
    #[error("is required")]
    Missing,
    #[error("must have at most {EMAIL_LIMIT} characters")]
    TooLong,
    #[error("must be an e-mail address, such as fan@example.com")]
    Malformed,
}

impl EmailAddress {
    /// Reads an address as HTML's `<input type=email>` does
    /// (<https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address>), so that browsers and this service
    /// agree. Letters outside ASCII are refused: two that look alike would be two accounts.
    pub(crate) fn parse(text: &str) -> Result<Self, EmailError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(EmailError::Missing);
        }
        if text.len() > EMAIL_LIMIT {
            return Err(EmailError::TooLong);
        }
        let (local, domain) = text.split_once('@').ok_or(EmailError::Malformed)?;
        if !is_local_part(local) || !domain.split('.').all(is_label) {
            return Err(EmailError::Malformed);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Personal data: never in a log.
impl fmt::Debug for EmailAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

impl EmailError {
    /// The reason for programs.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Missing => "REQUIRED",
            Self::TooLong => "OUT_OF_RANGE",
            Self::Malformed => "MALFORMED",
        }
    }
}

fn is_local_part(text: &str) -> bool {
    let is_allowed = |letter: u8| letter.is_ascii_alphanumeric() || b".!#$%&'*+/=?^_`{|}~-".contains(&letter);
    (1..=LOCAL_PART_LIMIT).contains(&text.len()) && text.bytes().all(is_allowed)
}

fn is_label(text: &str) -> bool {
    (1..=LABEL_LIMIT).contains(&text.len())
        && text.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_spaces_around_make_no_difference() {
        let email = EmailAddress::parse("  Fan.One+seoul@Example.COM ").unwrap();
        assert_eq!(email.as_str(), "fan.one+seoul@example.com");
        assert_eq!(format!("{email:?}"), "[redacted]");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long_local = format!("{}@example.com", "a".repeat(65));
        let long_label = format!("fan@{}.com", "a".repeat(64));
        let malformed = [
            "fan",
            "@example.com",
            "fan@",
            "fan@example..com",
            "fan@-example.com",
            "fan@example.com-",
            "fan@one@example.com",
            "fan one@example.com",
            "fan@exa mple.com",
            "fan\r\nBcc: all@example.com",
            "팬@example.com",
            &long_local,
            &long_label,
        ];
        for text in malformed {
            assert_eq!(EmailAddress::parse(text).unwrap_err(), EmailError::Malformed, "{text}");
        }
        assert_eq!(EmailAddress::parse(" ").unwrap_err(), EmailError::Missing);
    }

    #[test]
    fn an_address_may_have_254_characters() {
        let domain = ["a".repeat(63), "b".repeat(63), "c".repeat(61)].join(".");
        let longest = format!("{}@{domain}", "f".repeat(64));
        assert_eq!(longest.len(), EMAIL_LIMIT);
        assert!(EmailAddress::parse(&longest).is_ok());
        assert_eq!(EmailAddress::parse(&format!("{longest}x")).unwrap_err(), EmailError::TooLong);
    }
}
