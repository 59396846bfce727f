//! I7, watched: a hold that is given back is free at once, and one that is left behind is free soon after its end. In the
//! rush nobody could tell, as others take what is free; so one fan has a small concert to herself.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use chrono::{DateTime, Utc};
use mesh::clock::Clock;
use reqwest::{Method, header::DATE};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    api::{Api, Login, Reply, text},
    demo::{Organizer, Plan},
};

/// All places of the small concert, as many as one fan may have: seats and standing ones.
const PLACES: [&str; 4] = ["A-1-1", "A-1-2", "FLOOR-1", "FLOOR-2"];

/// The small concert.
pub(super) const TITLE: &str = "Left Behind";

/// A hold that nobody will book.
pub(super) struct LeftHold {
    concert_id: String,
    /// When it ends. None: it could not be made.
    pub(super) end: Option<Instant>,
    /// Where giving back did not free at once.
    pub(super) breaches: Vec<String>,
}

impl LeftHold {
    /// Holds all places of a new concert, gives them back, and holds them once more, to leave them behind.
    pub(super) async fn leave(
        api: &Api,
        organizer: &Organizer,
        fan: &Login,
        clock: &Clock,
    ) -> anyhow::Result<Self> {
        let sections = vec![
            (json!({"sectionId": "A", "seated": {"rows": 1, "seatsPerRow": 2}}), 1_000),
            (json!({"sectionId": "FLOOR", "standing": {"capacity": 2}}), 1_000),
        ];
        let plan = Plan { title: TITLE, genre: "", sections, max_seats_per_fan: PLACES.len() as u32 };
        let concert_id = organizer.publish(api, plan, clock.now()).await?;
        let path = format!("/v1/concerts/{concert_id}/holds");
        let token = Some(fan.access_token.as_str());
        let hold = async || api.post(&path, token, &json!({"seatIds": PLACES})).await;

        let first = hold().await?.expect_success("holding the places of a new concert")?;
        give_back(api, token, &text(&first, "/hold/holdId")?).await?;
        let second = hold().await?;
        if !second.status.is_success() {
            let breach = format!("places that were given back were not free at once: {}", second.reason());
            return Ok(Self { concert_id, end: None, breaches: vec![breach] });
        }
        let end = Instant::now() + lifetime(&second)?;
        Ok(Self { concert_id, end: Some(end), breaches: Vec::new() })
    }

    /// How many of its places are held.
    pub(super) async fn places_held(&self, api: &Api) -> anyhow::Result<usize> {
        places_held(api, &self.concert_id, &BTreeMap::new()).await
    }

    /// Takes the small concert off sale again.
    pub(super) async fn clear_away(&self, api: &Api, organizer: &Organizer) -> anyhow::Result<()> {
        let path = format!("/v1/concerts/{}/cancel", self.concert_id);
        let reply = api.post(&path, Some(&organizer.access_token), &json!({})).await?;
        reply.expect_success("cancelling the concert of the hold left behind").map(|_| ())
    }
}

/// Gives a hold back.
pub(super) async fn give_back(api: &Api, token: Option<&str>, hold_id: &str) -> anyhow::Result<()> {
    let reply = api.send(Method::DELETE, &format!("/v1/holds/{hold_id}"), token, None, None).await?;
    reply.expect_success("giving a hold back").map(|_| ())
}

/// How long a hold that was answered lasts from now: by the clock of whoever answered, which need not be ours. HTTP tells
/// it to the second, so this is up to a second too long.
pub(super) fn lifetime(reply: &Reply) -> anyhow::Result<Duration> {
    let end = text(&reply.body, "/hold/expireTime")?;
    let end: DateTime<Utc> = end.parse().context("a hold's end can't be read")?;
    let date = reply.headers.get(DATE).and_then(|date| date.to_str().ok());
    let now = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
    let now = now.map_or_else(|| Clock::system().now(), |now| now.to_utc());
    Ok((end - now).to_std().unwrap_or_default())
}

/// How many places of a concert are held. `taken` are those that bookings have, by section.
pub(super) async fn places_held(
    api: &Api,
    concert_id: &str,
    taken: &BTreeMap<String, usize>,
) -> anyhow::Result<usize> {
    let read = async |part: &str| {
        let reply = api.get(&format!("/v1/concerts/{concert_id}/{part}"), None).await?;
        reply.expect_success("reading seats")
    };
    let (seat_map, seats) = (read("seat-map").await?, read("seats").await?);
    count_held(&seat_map, &seats, taken).context("seats can't be read")
}

/// How many places are held: seats by their letters; standing places have none, so those that are neither available nor
/// taken.
fn count_held(seat_map: &Value, seats: &Value, taken: &BTreeMap<String, usize>) -> Option<usize> {
    let sections =
        seat_map.pointer("/seatMap/sections")?.as_array()?.iter().zip(seats["sections"].as_array()?);
    let mut held = 0;
    for (section, now) in sections {
        held += match section.pointer("/standing/capacity").and_then(Value::as_u64) {
            Some(capacity) => {
                let taken = taken.get(section["sectionId"].as_str()?).copied().unwrap_or_default();
                (capacity as usize).saturating_sub(now["available"].as_u64()? as usize + taken)
            }
            None => now["seatStates"].as_str()?.matches('H').count(),
        };
    }
    Some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(letters: &str, available: u64, taken: usize) -> Option<usize> {
        let seat_map = json!({"seatMap": {"sections": [
            {"sectionId": "A", "seated": {"rows": []}}, {"sectionId": "FLOOR", "standing": {"capacity": 10}},
        ]}});
        let seats = json!({"sections": [
            {"sectionId": "A", "available": 1, "seatStates": letters},
            {"sectionId": "FLOOR", "available": available, "seatStates": ""},
        ]});
        count_held(&seat_map, &seats, &BTreeMap::from([("A".to_owned(), 7), ("FLOOR".to_owned(), taken)]))
    }

    #[test]
    fn seats_are_held_by_their_letters_and_standing_places_by_what_is_available() {
        assert_eq!(held("ASSA", 10, 0), Some(0));
        assert_eq!(held("AHHS", 10, 0), Some(2));
        assert_eq!(held("AAAA", 4, 0), Some(6));
        assert_eq!(held("AAAA", 4, 5), Some(1));
        assert_eq!(held("HAAA", 4, 6), Some(1));
        assert_eq!(
            count_held(&json!({}), &json!({}), &BTreeMap::new()),
            None,
            "whatever it is, it is no map"
        );
    }

    #[test]
    fn a_hold_lasts_by_the_clock_of_whoever_gave_it() {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert(DATE, "Fri, 31 Dec 2100 23:59:00 GMT".parse().unwrap());
        let body = json!({"hold": {"expireTime": "2101-01-01T00:00:00.500Z"}});
        let reply = Reply { status: reqwest::StatusCode::OK, headers, body };
        assert_eq!(lifetime(&reply).unwrap(), Duration::from_millis(60_500));
    }
}
