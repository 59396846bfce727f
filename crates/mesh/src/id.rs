//! Ids: a prefix that says what it is, and a UUIDv7 that sorts by time. On the wire a TypeID
//! (<https://github.com/jetify-com/typeid/blob/main/spec/README.md>), in databases a UUID column.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use uuid::{NoContext, Timestamp, Uuid};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SUFFIX_LENGTH: usize = 26;

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an id such as {prefix}_01h455vb4pex5vsknk084sn02q")]
pub struct InvalidId {
    /// The prefix that the id must have.
    pub prefix: &'static str,
}

/// An id of any kind.
pub trait Id: Copy + fmt::Display + FromStr<Err = InvalidId> {
    /// What stands before the underscore.
    const PREFIX: &'static str;
    /// The id of this UUID.
    fn from_uuid(uuid: Uuid) -> Self;
    /// The UUID, as databases keep it.
    fn uuid(self) -> Uuid;
}

macro_rules! ids {
    ($($(#[doc = $doc:literal])* $name:ident = $prefix:literal),* $(,)?) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(Uuid);

            impl $name {
                /// A new id, later than those made before in this process.
                #[allow(clippy::new_without_default, reason = "a default id would be a surprise")]
                pub fn new() -> Self {
                    Self(Uuid::now_v7())
                }

                /// A new id of this moment, by a clock that others share: for ids that are looked for by their time. Those of
                /// one millisecond are in no order.
                pub fn at(time: DateTime<Utc>) -> Self {
                    let since_epoch = (time - DateTime::UNIX_EPOCH).to_std().unwrap_or_default();
                    let (seconds, nanos) = (since_epoch.as_secs(), since_epoch.subsec_nanos());
                    Self(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, nanos)))
                }
            }

            impl Id for $name {
                const PREFIX: &'static str = $prefix;
                fn from_uuid(uuid: Uuid) -> Self {
                    Self(uuid)
                }
                fn uuid(self) -> Uuid {
                    self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    encode(Self::PREFIX, self.0, formatter)
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    fmt::Display::fmt(self, formatter)
                }
            }

            impl FromStr for $name {
                type Err = InvalidId;
                fn from_str(text: &str) -> Result<Self, InvalidId> {
                    decode(Self::PREFIX, text).map(Self).ok_or(InvalidId { prefix: Self::PREFIX })
                }
            }
        )*
    };
}

ids! {
    /// A user.
    UserId = "usr",
    /// A session: a family of refresh tokens.
    SessionId = "ses",
    /// An organiser.
    OrganizerId = "org",
    /// A venue.
    VenueId = "vnu",
    /// A concert.
    ConcertId = "cnc",
    /// A hold.
    HoldId = "hld",
    /// A booking.
    BookingId = "bkg",
    /// A refund.
    RefundId = "rfd",
    /// A top-up of a wallet.
    TopUpId = "top",
    /// An entry in a ledger.
    EntryId = "ent",
}

fn encode(prefix: &str, uuid: Uuid, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut rest = uuid.as_u128();
    let mut suffix = [0; SUFFIX_LENGTH];
    for place in suffix.iter_mut().rev() {
        *place = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    write!(formatter, "{prefix}_{}", suffix.iter().map(|byte| *byte as char).collect::<String>())
}

fn decode(prefix: &str, text: &str) -> Option<Uuid> {
    let suffix = text.strip_prefix(prefix)?.strip_prefix('_')?.as_bytes();
    // 26 places hold 130 bits: the first may only be 0 to 7.
    if suffix.len() != SUFFIX_LENGTH || suffix[0] > b'7' {
        return None;
    }
    let mut value: u128 = 0;
    for byte in suffix {
        let digit = ALPHABET.iter().position(|letter| letter == byte)?;
        value = value << 5 | digit as u128;
    }
    Some(Uuid::from_u128(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_the_wire() {
        let id = BookingId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().starts_with("bkg_"));
    }

    #[test]
    fn the_spec_s_example_is_read() {
        // From the TypeID specification's valid.yml.
        let id: UserId = "usr_01h455vb4pex5vsknk084sn02q".parse().unwrap();
        assert_eq!(id.uuid().to_string(), "01890a5d-ac96-774b-bcce-b302099a8057");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "bkg",
            "bkg_",
            "usr_01h455vb4pex5vsknk084sn02q",
            "bkg_81h455vb4pex5vsknk084sn02q",
            "bkg_01h455vb4pex5vsknk084sn02u",
        ] {
            assert!(text.parse::<BookingId>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_id_carries_its_moment() {
        let moment = DateTime::from_timestamp_millis(1_700_000_000_123).unwrap();
        // RFC 9562, 5.7: the first 48 bits are milliseconds of Unix time.
        assert_eq!((BookingId::at(moment).uuid().as_u128() >> 80) as i64, moment.timestamp_millis());
        assert_ne!(BookingId::at(moment), BookingId::at(moment));
    }

    #[test]
    fn ids_sort_by_time() {
        let ids: Vec<_> = (0..100).map(|_| HoldId::new()).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().map(ToString::to_string).collect::<Vec<_>>().is_sorted());
    }
}
