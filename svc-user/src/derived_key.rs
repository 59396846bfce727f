//! Keys for one purpose each, derived from `KEY_ENCRYPTION_KEY`, so that no two algorithms share a key.

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use mesh::config::Secret;

/// What a derived key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Encrypting the private part of signing keys.
    SigningKeys,
    /// Deriving a refresh token from the one before.
    RefreshTokens,
}

/// The 256-bit key for a purpose (HKDF-SHA256, RFC 5869).
pub(crate) fn derive(secret: &Secret, purpose: Purpose) -> [u8; 32] {
    let info: &[u8] = match purpose {
        Purpose::SigningKeys => b"encrypt signing keys",
        Purpose::RefreshTokens => b"derive refresh tokens",
    };
    let mut key = [0; 32];
    Salt::new(HKDF_SHA256, b"boxoffice.user")
        .extract(secret.expose())
        .expand(&[info], HKDF_SHA256)
        .and_then(|derived| derived.fill(&mut key))
        .expect("HKDF-SHA256 gives 32 bytes");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_and_purpose_has_its_own_key() {
        let (one, other) = (Secret::random(), Secret::random());
        let key = derive(&one, Purpose::SigningKeys);
        assert_eq!(derive(&one, Purpose::SigningKeys), key);
        assert_ne!(derive(&one, Purpose::RefreshTokens), key);
        assert_ne!(derive(&other, Purpose::SigningKeys), key);
    }
}
