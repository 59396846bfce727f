//! The header `grpc-timeout`: at most eight digits and a unit
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

/// The name of the header.
pub const HEADER: &str = "grpc-timeout";

/// What a hop keeps for itself of the time it was given, so that its caller hears its answer and not silence.
pub const MARGIN: Duration = Duration::from_millis(5);

/// A `grpc-timeout` that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("grpc-timeout must be 1 to 8 digits and a unit of H, M, S, m, u or n")]
pub struct MalformedTimeout;

/// Reads the timeout from a request's headers.
pub fn read(headers: &HeaderMap) -> Result<Option<Duration>, MalformedTimeout> {
    headers.get(HEADER).map(parse).transpose()
}

fn parse(value: &HeaderValue) -> Result<Duration, MalformedTimeout> {
    let text = value.to_str().map_err(|_| MalformedTimeout)?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(MalformedTimeout)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(MalformedTimeout);
    }
    let amount: u64 = digits.parse().map_err(|_| MalformedTimeout)?;
    match unit {
        "H" => Ok(Duration::from_secs(amount * 3600)),
        "M" => Ok(Duration::from_secs(amount * 60)),
        "S" => Ok(Duration::from_secs(amount)),
        "m" => Ok(Duration::from_millis(amount)),
        "u" => Ok(Duration::from_micros(amount)),
        "n" => Ok(Duration::from_nanos(amount)),
        _ => Err(MalformedTimeout),
    }
}

/// Writes a timeout, in the finest unit that eight digits can hold.
pub fn format(timeout: Duration) -> HeaderValue {
    const LIMIT: u128 = 100_000_000;
    let (amount, unit) = if timeout.as_micros() < LIMIT {
        (timeout.as_micros(), 'u')
    } else if timeout.as_millis() < LIMIT {
        (timeout.as_millis(), 'm')
    } else {
        (u128::from(timeout.as_secs()).min(LIMIT - 1), 'S')
    };
    HeaderValue::try_from(format!("{amount}{unit}")).expect("digits and a letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Duration, MalformedTimeout> {
        parse(&HeaderValue::from_str(text).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        for timeout in [
            Duration::from_micros(1),
            Duration::from_millis(250),
            Duration::from_secs(90),
            Duration::from_secs(900_000),
        ] {
            assert_eq!(parse(&format(timeout)), Ok(timeout));
        }
        assert_eq!(parse_text("1H"), Ok(Duration::from_secs(3600)));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "S", "1", "-1S", "1.5S", "123456789S", "1X", "S1", " 1S"] {
            assert_eq!(parse_text(text), Err(MalformedTimeout), "{text:?}");
        }
    }
}
