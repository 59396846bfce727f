//! A fan: holds seats, pays for them, and tries again as long as some are left.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use mesh::id::BookingId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    left_hold::{give_back, lifetime},
    tally::Event,
};
use crate::api::{Api, Reply, new_key, text};

/// How long a fan waits before trying again: longer each time, and not all the same.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A fan who abandons seats that would be held for longer than this gives them back, so that the sale can end.
const PATIENT_HOLD: Duration = Duration::from_secs(15);

/// Somebody who wants seats.
#[derive(Debug, Clone)]
pub(super) struct Fan {
    pub(super) token: String,
    /// What to put into an empty wallet, in won.
    pub(super) allowance: i64,
    pub(super) whims: Whims,
}

/// What a fan feels like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whims {
    pub(super) quantity: u32,
    /// Sends each purchase twice at once.
    pub(super) double_clicks: bool,
    /// Holds seats once and leaves.
    pub(super) abandons: bool,
    /// Learns at the till that the wallet is empty.
    pub(super) has_empty_wallet: bool,
    /// Picks seats from the map; the others take the best.
    pub(super) picks_seats: bool,
    /// Where chance decides.
    pub(super) dice: u64,
}

/// The sale that all fans share.
pub(super) struct Sale {
    api: Api,
    holds_path: String,
    seats_path: String,
    left: AtomicU32,
    start: Instant,
    limit: Instant,
    events: mpsc::UnboundedSender<Event>,
}

impl Sale {
    pub(super) fn new(
        api: Api,
        concert_id: &str,
        seats: u32,
        start: Instant,
        limit: Instant,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let path = format!("/v1/concerts/{concert_id}");
        let (holds_path, seats_path) = (format!("{path}/holds"), format!("{path}/seats"));
        Self { api, holds_path, seats_path, left: AtomicU32::new(seats), start, limit, events }
    }

    fn is_over(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0 || Instant::now() >= self.limit
    }

    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// What a fan got by trying once.
enum Try {
    /// Seats are booked, or the fan has left.
    Done,
    /// Nothing; some may be left.
    Again,
}

impl Fan {
    /// Tries until seats are booked, all is sold, or time is up.
    pub(super) async fn buy(self, sale: Arc<Sale>) {
        let mut pause = FIRST_PAUSE;
        let mut turn = 0;
        // The first try is due at the start, however late this task gets to run.
        let mut due = sale.start;
        while !sale.is_over() {
            match self.attempt(&sale, due, turn).await {
                Ok(Try::Done) => return,
                Ok(Try::Again) => {}
                Err(error) => sale.tell(Event::Error(told(&error))),
            }
            let share = 0.5 + (self.dice(turn) % 1000) as f64 / 2000.0;
            tokio::time::sleep(pause.mul_f64(share)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            due = Instant::now();
            turn += 1;
        }
    }

    async fn attempt(&self, sale: &Sale, due: Instant, turn: u32) -> anyhow::Result<Try> {
        let Some(wish) = self.wish(sale, turn).await? else { return Ok(Try::Again) };
        let reply = self.click(sale, &sale.holds_path, &wish).await?;
        sale.tell(Event::HoldAnswered { latency: due.elapsed(), is_good: reply.status.is_success() });
        if !reply.status.is_success() {
            return refused(sale, &reply);
        }
        let hold_id = text(&reply.body, "/hold/holdId")?;
        let lifetime = lifetime(&reply)?;
        sale.tell(Event::Held { hold: hold_id.clone(), end: Instant::now() + lifetime });
        if self.whims.abandons {
            if lifetime > PATIENT_HOLD {
                give_back(&sale.api, Some(&self.token), &hold_id).await?;
                sale.tell(Event::HoldOver { hold: hold_id, taken: Vec::new() });
            }
            sale.tell(Event::Abandoned);
            return Ok(Try::Done);
        }
        let seats = reply.body["hold"]["seats"].as_array().context("a hold without seats")?;
        let sections = seats.iter().map(|seat| text(seat, "/sectionId")).collect::<Result<_, _>>()?;
        self.pay(sale, hold_id, sections).await
    }

    /// Pays for a hold of places in these sections.
    async fn pay(&self, sale: &Sale, hold_id: String, sections: Vec<String>) -> anyhow::Result<Try> {
        let order = json!({"holdId": hold_id, "paymentMethod": "PAYMENT_METHOD_WALLET"});
        loop {
            let due = Instant::now();
            let reply = self.click(sale, "/v1/bookings", &order).await?;
            sale.tell(Event::BookingAnswered { latency: due.elapsed(), is_good: reply.status.is_success() });
            if reply.status.is_success() {
                let booking = self.settled(sale, reply.body["booking"].clone()).await?;
                let id: BookingId = text(&booking, "/bookingId")?.parse()?;
                if booking["state"] == "BOOKING_STATE_CONFIRMED" {
                    let seats = sections.len();
                    sale.left.fetch_sub(seats as u32, Ordering::Relaxed);
                    sale.tell(Event::Booked { id, seats, at: Instant::now() });
                    sale.tell(Event::HoldOver { hold: hold_id, taken: sections });
                    return Ok(Try::Done);
                }
                sale.tell(Event::NotConfirmed { id, state: booking["state"].to_string() });
                if booking["state"] == "BOOKING_STATE_FAILED" {
                    self.look_at(sale, hold_id, sections).await?;
                } else {
                    sale.tell(Event::HoldOver { hold: hold_id, taken: sections });
                }
                return Ok(Try::Again);
            }
            match reply.reason() {
                "INSUFFICIENT_BALANCE" => {
                    sale.tell(Event::Refused("INSUFFICIENT_BALANCE".to_owned()));
                    sale.api.top_up(&self.token, self.allowance).await?;
                }
                _ => {
                    self.look_at(sale, hold_id, sections).await?;
                    return refused(sale, &reply);
                }
            }
        }
    }

    /// Looks at a hold that is of no use any more: until when it lasts, as trying to book it made it last longer.
    async fn look_at(&self, sale: &Sale, hold: String, sections: Vec<String>) -> anyhow::Result<()> {
        let reply = sale.api.get(&format!("/v1/holds/{hold}"), Some(&self.token)).await?;
        sale.tell(if reply.status.is_success() {
            Event::Held { hold, end: Instant::now() + lifetime(&reply)? }
        } else {
            let is_booked = reply.reason() == "HOLD_BOOKED";
            Event::HoldOver { hold, taken: if is_booked { sections } else { Vec::new() } }
        });
        Ok(())
    }

    /// Waits until the outcome of a booking is known.
    async fn settled(&self, sale: &Sale, mut booking: Value) -> anyhow::Result<Value> {
        let path = format!("/v1/bookings/{}", text(&booking, "/bookingId")?);
        while booking["state"] == "BOOKING_STATE_PAYING" && Instant::now() < sale.limit {
            tokio::time::sleep(FIRST_PAUSE).await;
            let reply = sale.api.get(&path, Some(&self.token)).await?;
            booking = reply.expect_success("reading a booking")?["booking"].clone();
        }
        Ok(booking)
    }

    /// Sends something once, or twice at once with the same key as an impatient finger does: both answers must be about
    /// the same thing.
    async fn click(&self, sale: &Sale, path: &str, body: &Value) -> anyhow::Result<Reply> {
        let key = new_key();
        let send = || self.insist(sale, path, &key, body);
        if !self.whims.double_clicks {
            return send().await;
        }
        let (first, second) = tokio::join!(send(), send());
        let (first, second) = (first?, second?);
        let both_good = first.status.is_success() && second.status.is_success();
        let id = |reply: &Reply| {
            let ids = ["/hold/holdId", "/booking/bookingId"].map(|place| reply.body.pointer(place).cloned());
            ids.into_iter().flatten().next()
        };
        if both_good && id(&first) != id(&second) {
            anyhow::bail!("a double click was done twice: {} and {}", first.body, second.body);
        }
        Ok(if first.status.is_success() { first } else { second })
    }

    /// Sends something until there is an answer: what became of it is known then, and counted.
    async fn insist(&self, sale: &Sale, path: &str, key: &str, body: &Value) -> anyhow::Result<Reply> {
        let mut pause = FIRST_PAUSE;
        loop {
            let sent = sale.api.send(Method::POST, path, Some(&self.token), Some(key), Some(body)).await;
            let error = match sent {
                // Somebody works on it, perhaps for a process that has died: the same key will tell what became of it.
                Ok(reply) if reply.reason() == IN_PROGRESS && Instant::now() < sale.limit => {
                    sale.tell(Event::Refused(IN_PROGRESS.to_owned()));
                    tokio::time::sleep(FIRST_PAUSE).await;
                    continue;
                }
                Ok(reply) if !reply.status.is_server_error() || EXPECTED.contains(&reply.reason()) => {
                    return Ok(reply);
                }
                sent => sent.and_then(|reply| reply.expect_success(path)).err(),
            };
            let error = error.context("an answer that is good is an answer")?;
            if Instant::now() >= sale.limit {
                return Err(error);
            }
            sale.tell(Event::Error(told(&error)));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn dice(&self, turn: u32) -> usize {
        self.whims.dice.rotate_left(turn) as usize
    }

    /// What to ask for; none if there is nothing to pick from.
    async fn wish(&self, sale: &Sale, turn: u32) -> anyhow::Result<Option<Value>> {
        let body = sale.api.get(&sale.seats_path, None).await?.expect_success("reading seats")?;
        let sections = body["sections"].as_array().context("no sections")?;
        let open: Vec<&Value> =
            sections.iter().filter(|section| section["available"].as_i64() > Some(0)).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let section = open[self.dice(turn) % open.len()];
        let section_id = text(section, "/sectionId")?;
        let available = section["available"].as_u64().unwrap_or_default() as u32;
        let quantity = self.whims.quantity.min(available);
        let letters = section["seatStates"].as_str().unwrap_or_default();
        if !self.whims.picks_seats || letters.is_empty() {
            return Ok(Some(json!({"bestAvailable": {"sectionId": section_id, "quantity": quantity}})));
        }
        let free: Vec<usize> = letters.match_indices('A').map(|(place, _)| place).collect();
        let first = self.dice(turn) % free.len();
        let picked = free.iter().cycle().skip(first).take(quantity as usize);
        let seat_id = |place: &usize| format!("{section_id}-{}-{}", place / 20 + 1, place % 20 + 1);
        Ok(Some(json!({"seatIds": picked.map(seat_id).collect::<Vec<_>>()})))
    }
}

const IN_PROGRESS: &str = "REQUEST_IN_PROGRESS";
/// What belongs to a rush.
const EXPECTED: [&str; 10] = [
    "SEAT_TAKEN",
    "NOT_ENOUGH_SEATS",
    "HOLD_EXPIRED",
    "HOLD_BOOKED",
    IN_PROGRESS,
    "RACE_LOST",
    "RATE_LIMITED",
    "OVERLOADED",
    "TRANSPORT_BUSY",
    "PAYMENT_UNAVAILABLE",
];

/// A refusal that is part of a rush; any other is an error.
fn refused(sale: &Sale, reply: &Reply) -> anyhow::Result<Try> {
    let reason = reply.reason();
    if !EXPECTED.contains(&reason) {
        anyhow::bail!("an unexpected answer: {} {}", reply.status, reply.body);
    }
    sale.tell(Event::Refused(reason.to_owned()));
    Ok(Try::Again)
}

/// What an error says, without the id of its trace: so that those of one kind are counted together.
fn told(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let Some((before, rest)) = text.split_once(r#""traceId":""#) else { return text };
    let after = rest.split_once('"').map_or("", |(_, after)| after.trim_start_matches(','));
    format!("{before}{after}")
}
