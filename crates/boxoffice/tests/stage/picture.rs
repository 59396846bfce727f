//! Everything that a refused call could have changed.

use std::collections::BTreeMap;

use super::{Events, Stage};

/// What some people and concerts look like, to be compared with what they look like later.
#[derive(Debug, PartialEq)]
pub(crate) struct Picture(BTreeMap<String, String>);

impl Picture {
    /// Of these people's wallets and bookings, of the concerts of everyone and of this organiser, and of the seats of these
    /// concerts.
    pub(crate) async fn take(
        stage: &Stage,
        tokens: &[&str],
        organizer: (&str, &str),
        concerts: &[&str],
    ) -> Self {
        let mut parts = BTreeMap::new();
        for token in tokens {
            for path in ["/v1/users/me", "/v1/wallet", "/v1/wallet/entries", "/v1/bookings"] {
                let reply = stage.api.get(path, Some(token)).await.unwrap();
                let seen = reply.expect_success("taking a picture").unwrap();
                parts.insert(format!("{path} by {token}"), seen.to_string());
            }
        }
        let (organizer_id, token) = organizer;
        for path in ["/v1/concerts".to_owned(), format!("/v1/concerts?organizerId={organizer_id}")] {
            let reply = stage.api.get(&path, Some(token)).await.unwrap();
            parts.insert(path, reply.expect_success("taking a picture").unwrap().to_string());
        }
        for concert in concerts {
            // Seats are shown as of a moment ago; their changes are told at once, from the revision that stands now.
            let path = format!("/v1/concerts/{concert}/seats/events");
            let mut events = Events::open(stage.call("GET", &path)).await;
            let revision = events.next().await.expect("the revision that stands now").id;
            parts.insert(path, revision);
        }
        Self(parts)
    }
}
