//! Pages of a list. The token is opaque: where to go on, and a mark of that and of the filters, so that it can't be cut,
//! changed, or used with others.

use std::{fmt::Display, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::common::v1::ErrorReason;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Violation};

/// How many items a page has if the client does not say.
pub const DEFAULT_SIZE: i32 = 50;
/// How many items a page has at the most.
pub const MAX_SIZE: i32 = 200;
const MARK_LENGTH: usize = 8;

/// Which page of a list is asked for. `P` is a position in the list, such as the id of an item.
#[derive(Debug, Clone)]
pub struct Page<P> {
    /// How many items, 1 to [`MAX_SIZE`].
    pub size: u64,
    /// Where to go on: what [`Page::next_token`] was given. None: from the start.
    pub after: Option<P>,
    /// What the list is filtered by, mixed already.
    filters: Sha256,
}

impl<P: Display + FromStr> Page<P> {
    /// Reads `page_size` and `page_token`. `filters` is whatever else decides what is in the list.
    ///
    /// # Errors
    /// `FIELD_INVALID` for a size below 1, `PAGE_TOKEN_INVALID` for a token that this list did not give out.
    pub fn read(size: Option<i32>, token: &str, filters: &[&str]) -> Result<Self, Failure> {
        let size = size.unwrap_or(DEFAULT_SIZE);
        if size < 1 {
            let description = format!("must be at least 1, not {size}");
            let violation = Violation { field: "page_size".into(), reason: "OUT_OF_RANGE", description };
            return Err(Failure::fields(vec![violation]));
        }
        let filters = filters.iter().fold(Sha256::new(), |hash, filter| {
            hash.chain_update((filter.len() as u64).to_be_bytes()).chain_update(filter)
        });
        if token.is_empty() {
            return Ok(Self { size: size.min(MAX_SIZE) as u64, after: None, filters });
        }
        let position = || {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
            let (found, position) = bytes.split_at_checked(MARK_LENGTH)?;
            let is_ours = found == mark(&filters, position);
            std::str::from_utf8(position).ok().filter(|_| is_ours)?.parse().ok()
        };
        let Some(after) = position() else {
            let description = "is not one that this list gave out";
            return Err(Failure::field(ErrorReason::PageTokenInvalid, "page_token", description));
        };
        Ok(Self { size: size.min(MAX_SIZE) as u64, after: Some(after), filters })
    }

    /// How many rows to read: one more than the page has, to know whether another page follows.
    pub fn rows(&self) -> u64 {
        self.size + 1
    }

    /// Cuts the extra row off, and makes the token of the next page from the last item that stays. Empty: no more.
    pub fn next_token<T>(&self, items: &mut Vec<T>, position: impl Fn(&T) -> P) -> String {
        if items.len() as u64 <= self.size {
            return String::new();
        }
        items.truncate(self.size as usize);
        let Some(last) = items.last() else { return String::new() };
        let position = position(last).to_string();
        let mark = mark(&self.filters, position.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode([&mark, position.as_bytes()].concat())
    }
}

fn mark(filters: &Sha256, position: &[u8]) -> [u8; MARK_LENGTH] {
    let hash = filters.clone().chain_update(position).finalize();
    hash[..MARK_LENGTH].try_into().expect("a SHA-256 is longer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_on() {
        let page = Page::read(Some(2), "", &["rock"]).unwrap();
        let mut items = vec![1, 2, 3];
        let token = page.next_token(&mut items, |item| *item);
        assert_eq!(items, [1, 2]);
        let next = Page::<i32>::read(Some(2), &token, &["rock"]).unwrap();
        assert_eq!(next.after, Some(2));
        assert_eq!(next.next_token(&mut vec![3], |item| *item), "");
    }

    #[test]
    fn a_token_that_this_list_did_not_give_out_is_refused() {
        let page = Page::read(Some(1), "", &["rock"]).unwrap();
        let token = page.next_token(&mut vec![123_456, 2], |item| *item);
        let refused = |token: &str, filter| {
            let failure = Page::<i32>::read(None, token, &[filter]).unwrap_err();
            assert!(failure.is(ErrorReason::PageTokenInvalid), "{failure}");
        };
        refused(&token, "jazz");
        for wrong in ["???", "AAAA"] {
            refused(wrong, "rock");
        }
        for length in 1..token.len() {
            refused(&token[..length], "rock");
        }
        let words = Page::read(Some(1), "", &["rock"]).unwrap();
        refused(&words.next_token(&mut vec!["a", "b"], |word| (*word).to_owned()), "rock");
    }

    #[test]
    fn sizes_are_clamped_above_and_refused_below() {
        let size = |size| Page::<i32>::read(size, "", &[]).map(|page| page.size).ok();
        assert_eq!([size(Some(1_000_000_000)), size(None), size(Some(0))], [Some(200), Some(50), None]);
    }
}
