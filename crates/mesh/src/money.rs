//! Money: whole minor units of the installation's one currency.

use std::str::FromStr;

/// An ISO 4217 currency code. An installation sells in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Currency([u8; 3]);

impl Currency {
    /// Won, without decimals: the default.
    pub const KRW: Self = Self(*b"KRW");

    /// The code, such as `KRW`.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made of capital letters")
    }
}

impl FromStr for Currency {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.as_bytes() {
            &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_uppercase) => Ok(Self([a, b, c])),
            _ => Err("a currency is three capital letters, such as KRW (ISO 4217)"),
        }
    }
}

impl std::fmt::Display for Currency {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.code())
    }
}
