//! Where a neighbour is.

use std::{fmt, str::FromStr};

use http::Uri;

/// Where a neighbour is: `http://svc-booking:50051`, whose name may stand for many endpoints (a headless service of
/// Kubernetes), or several such, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Vec<Uri>);

/// Why a text is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A part of it is none.
    #[error("{0:?} is no address of a service, such as http://svc-booking:50051")]
    Wrong(String),
    /// It has a user or a password, which is never shown.
    #[error("must not have a user or a password: services know each other by SERVICE_TOKEN_KEY")]
    Credentials,
}

impl Address {
    /// Each of its URIs.
    pub(super) fn uris(&self) -> &[Uri] {
        &self.0
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('@') {
            return Err(AddressError::Credentials);
        }
        let uri = |part: &str| {
            let uri = part.trim().parse::<Uri>().ok();
            let is_fine =
                |uri: &Uri| uri.scheme_str() == Some("http") && uri.host().is_some() && uri.path() == "/";
            uri.filter(is_fine).ok_or_else(|| AddressError::Wrong(part.trim().to_owned()))
        };
        text.split(',').map(uri).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uris: Vec<String> = self.0.iter().map(Uri::to_string).collect();
        formatter.write_str(&uris.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_uri_or_several() {
        let one: Address = "http://svc-booking:50051".parse().unwrap();
        assert_eq!(one.uris().len(), 1);
        let two: Address = "http://127.0.0.1:1, http://[::1]:2/".parse().unwrap();
        assert_eq!(two.to_string(), "http://127.0.0.1:1/,http://[::1]:2/");
    }

    #[test]
    fn what_is_no_address_is_named() {
        for wrong in ["", "svc-booking:50051", "https://a:1", "http://a:1/path", "http://"] {
            let error = format!("http://a:1,{wrong}").parse::<Address>().unwrap_err();
            assert_eq!(error, AddressError::Wrong(wrong.to_owned()), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_shown() {
        for wrong in ["http://u:hunter2@a:1", "https://u:hunter2@a:1", "http://u:hunt,er2@a:1"] {
            assert_eq!(wrong.parse::<Address>(), Err(AddressError::Credentials), "{wrong}");
        }
    }
}
