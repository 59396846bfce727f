//! Pages of a list. The token is opaque: where to go on, and a mark of the filters, so that it can't be used with
//! others.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::common::v1::ErrorReason;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Violation};

/// How many items a page has if the client does not say.
pub const DEFAULT_SIZE: i32 = 50;
/// How many items a page has at the most.
pub const MAX_SIZE: i32 = 200;
const MARK_LENGTH: usize = 8;

/// Which page of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// How many items, 1 to [`MAX_SIZE`].
    pub size: u64,
    /// Where to go on: what [`Page::next_token`] was given. None: from the start.
    pub after: Option<String>,
    mark: [u8; MARK_LENGTH],
}

impl Page {
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
        let mark = mark(filters);
        let after = if token.is_empty() {
            None
        } else {
            let foreign = || {
                Failure::field(
                    ErrorReason::PageTokenInvalid,
                    "page_token",
                    "is not one that this list gave out",
                )
            };
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| foreign())?;
            let (found, after) = bytes.split_at_checked(MARK_LENGTH).ok_or_else(foreign)?;
            if found != mark {
                return Err(foreign());
            }
            Some(String::from_utf8(after.to_vec()).map_err(|_| foreign())?)
        };
        Ok(Self { size: size.min(MAX_SIZE) as u64, after, mark })
    }

    /// How many rows to read: one more than the page has, to know whether another page follows.
    pub fn rows(&self) -> u64 {
        self.size + 1
    }

    /// Cuts the extra row off, and makes the token of the next page from the last item that stays. Empty: no more.
    pub fn next_token<T>(&self, items: &mut Vec<T>, position: impl Fn(&T) -> String) -> String {
        if items.len() as u64 <= self.size {
            return String::new();
        }
        items.truncate(self.size as usize);
        let Some(last) = items.last() else { return String::new() };
        let mut bytes = self.mark.to_vec();
        bytes.extend_from_slice(position(last).as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }
}

fn mark(filters: &[&str]) -> [u8; MARK_LENGTH] {
    let mut hash = Sha256::new();
    for filter in filters {
        hash.update((filter.len() as u64).to_be_bytes());
        hash.update(filter.as_bytes());
    }
    hash.finalize()[..MARK_LENGTH].try_into().expect("a SHA-256 is longer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_on() {
        let page = Page::read(Some(2), "", &["rock"]).unwrap();
        let mut items = vec![1, 2, 3];
        let token = page.next_token(&mut items, ToString::to_string);
        assert_eq!(items, [1, 2]);
        let next = Page::read(Some(2), &token, &["rock"]).unwrap();
        assert_eq!(next.after.as_deref(), Some("2"));
        assert_eq!(next.next_token(&mut vec![3], ToString::to_string), "");
    }

    #[test]
    fn a_token_of_another_list_is_refused() {
        let token =
            Page::read(Some(1), "", &["rock"]).unwrap().next_token(&mut vec![1, 2], ToString::to_string);
        for (token, filter) in [(token.as_str(), "jazz"), ("???", "rock"), ("AAAA", "rock")] {
            let failure = Page::read(None, token, &[filter]).unwrap_err();
            assert!(failure.is(ErrorReason::PageTokenInvalid), "{failure}");
        }
    }

    #[test]
    fn sizes_are_clamped_above_and_refused_below() {
        assert_eq!(Page::read(Some(1_000_000_000), "", &[]).unwrap().size, 200);
        assert_eq!(Page::read(None, "", &[]).unwrap().size, 50);
        assert!(Page::read(Some(0), "", &[]).is_err());
    }
}
