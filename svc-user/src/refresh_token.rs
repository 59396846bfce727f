//! Refresh tokens: 256 bits that only their holder knows. The database has their SHA-256, which needs no salt and no
//! slowness, since there are too many tokens to guess.

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use mesh::config::Secret;
use sha2::{Digest, Sha256};

use crate::derived_key::{Purpose, derive};

const LENGTH: usize = 32;

/// A refresh token.
pub(crate) struct RefreshToken([u8; LENGTH]);

/// What a token is stored and found by.
pub(crate) type TokenHash = [u8; 32];

impl RefreshToken {
    /// The first token of a session.
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }

    /// Reads a token that came from outside.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// The token as its holder gets it: 43 characters.
    pub(crate) fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    /// What it is stored by.
    pub(crate) fn hash(&self) -> TokenHash {
        Sha256::digest(self.0).into()
    }
}

/// Makes the token that follows on another.
pub(crate) struct Succession(hmac::Key);

impl Succession {
    /// Successors that only holders of the secret can make.
    pub(crate) fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &derive(secret, Purpose::RefreshTokens)))
    }

    /// The token that the request with this idempotency key gets for `token`: each time the same, so that a lost reply
    /// can be repeated although the token is stored nowhere. It takes the old token *and* the service's secret to make
    /// it: neither a copy of the database nor an old token is enough.
    pub(crate) fn successor(&self, token: &RefreshToken, request_key: &str) -> RefreshToken {
        let mut context = hmac::Context::with_key(&self.0);
        // The token has a fixed length, so no other token and key give the same bytes.
        context.update(&token.0);
        context.update(request_key.as_bytes());
        let tag = context.sign();
        RefreshToken(tag.as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_wire() {
        let token = RefreshToken::random();
        let text = token.expose();
        assert_eq!(text.len(), 43);
        assert_eq!(RefreshToken::parse(&text).unwrap().hash(), token.hash());
        for other in ["", "abc", &text[1..], &format!("{text}A"), &text.replace(&text[..1], "!")] {
            assert!(RefreshToken::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_successor_is_the_same_for_the_same_request_only() {
        let (succession, token) = (Succession::new(&Secret::random()), RefreshToken::random());
        let successor = succession.successor(&token, "key-1").expose();
        assert_eq!(succession.successor(&token, "key-1").expose(), successor);
        assert_ne!(succession.successor(&token, "key-2").expose(), successor);
        assert_ne!(succession.successor(&RefreshToken::random(), "key-1").expose(), successor);
        let stranger = Succession::new(&Secret::random());
        assert_ne!(stranger.successor(&token, "key-1").expose(), successor, "it takes the secret too");
    }
}
