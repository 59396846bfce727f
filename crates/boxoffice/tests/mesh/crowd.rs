//! Fans who buy, and give back what they bought first, on and on. Whatever happens to the mesh, each asks by the same key
//! until the answer is definite, and remembers what was acknowledged.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use boxoffice::{
    api::{Api, Login, Reply, new_key, text},
    demo::Organizer,
    sweep::HoldsSeen,
};
use mesh::id::BookingId;
use mesh_test::wait_until;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::{
    deployment::{Deployment, HOLD_TTL, report},
    stage::{Promoter, Visit, fan, order, venue},
};

/// How often a fan buys at the most.
const PACE: Duration = Duration::from_millis(400);
/// How long a fan waits before asking again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the last answers are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bookings that a fan keeps.
const KEPT: usize = 2;
/// What somebody with money begins with, in won: never spent, as the bookings kept cost less.
const MONEY: i64 = 10_000_000;
const STANDING: u64 = 200;
const SEATED: u64 = 12;
/// The only seat of a section of its own, which is held and forgotten.
const FORGOTTEN: &str = "BOX-1-1";
/// How long after its end, or after seats can be seen again, a hold may still be there (I7): a sweep.
pub(crate) const SWEEP: Duration = Duration::from_secs(5);

/// Fans at work.
pub(crate) struct Crowd {
    pub(crate) concert: String,
    /// Those with money first.
    fans: Vec<JoinHandle<Fan>>,
    rich: usize,
    forgetful: JoinHandle<HoldsSeen>,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    rounds: AtomicUsize,
    is_over: AtomicBool,
    is_over_for_the_rich: AtomicBool,
}

/// Somebody who buys.
pub(crate) struct Fan {
    api: Api,
    login: Login,
    money: i64,
    number: usize,
    holds_path: String,
    /// The bookings that were acknowledged, and in which state last.
    bookings: BTreeMap<String, Value>,
    /// Those that are kept, the oldest first.
    kept: Vec<String>,
}

impl Crowd {
    /// Has fans come, who begin at once; the poor ones find their wallets empty each time.
    pub(crate) async fn gather(mesh: &Deployment, rich: usize, poor: usize) -> Self {
        let api = &mesh.api;
        let concert = concert(api).await;
        let progress = Arc::<Progress>::default();
        let mut fans = Vec::new();
        for number in 0..rich + poor {
            let money = if number < rich { MONEY } else { 0 };
            let fan = Fan::come(api, &concert, money, number).await;
            fans.push(tokio::spawn(fan.shop(Arc::clone(&progress))));
        }
        let forgetful = Fan::come(api, &concert, 0, rich + poor).await;
        let forgetful = tokio::spawn(forgetful.forget(concert.clone(), Arc::clone(&progress)));
        let crowd = Self { concert, fans, rich, forgetful, progress };
        wait_until("the sale to be in full swing", PATIENCE, async || match crowd.rounds() {
            rounds if rounds > 3 * (rich + poor) => Ok(()),
            rounds => Err(format!("{rounds} rounds")),
        })
        .await;
        crowd
    }

    /// Purchases so far, those that were refused too.
    pub(crate) fn rounds(&self) -> usize {
        self.progress.rounds.load(Ordering::Relaxed)
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> u64 {
        STANDING + SEATED + 1
    }

    /// Lets those with money finish what they began, and go; the poor ones go on.
    pub(crate) async fn leave_it_to_the_poor(&self) {
        self.progress.is_over_for_the_rich.store(true, Ordering::Relaxed);
        wait_until("those with money to be done", PATIENCE, async || {
            match self.fans[..self.rich].iter().filter(|fan| !fan.is_finished()).count() {
                0 => Ok(()),
                left => Err(format!("{left} of {} are not", self.rich)),
            }
        })
        .await;
    }

    /// Lets everybody finish what was begun, and stays until a hold that was forgotten was seen to its end. The fans, and
    /// what became of such holds.
    pub(crate) async fn leave(self) -> (Vec<Fan>, HoldsSeen) {
        self.progress.is_over_for_the_rich.store(true, Ordering::Relaxed);
        self.progress.is_over.store(true, Ordering::Relaxed);
        let mut fans = Vec::new();
        for fan in self.fans {
            let fan = tokio::time::timeout(PATIENCE, fan).await.expect("a fan still waits for an answer");
            fans.push(fan.expect("a fan was answered as nobody should be"));
        }
        let holds = tokio::time::timeout(PATIENCE, self.forgetful).await;
        let holds = holds.expect("a hold that was forgotten is still watched");
        (fans, holds.expect("a hold to be forgotten was answered as none should be"))
    }
}

/// A concert on sale.
pub(crate) async fn concert(api: &Api) -> String {
    let organizer = Organizer::make(api, &fan(api, 0).await, "Promoter").await.unwrap();
    let promoter = Promoter::new(api, organizer).await;
    let mut hall = venue(&promoter.organizer.organizer_id);
    hall["sections"][1]["standing"]["capacity"] = STANDING.into();
    let seat = json!({"rows": 1, "seatsPerRow": 1});
    let section = json!({"sectionId": "BOX", "displayName": "Box", "seated": seat});
    hall["sections"].as_array_mut().unwrap().push(section);
    let hall = api.post("/v1/venues", Some(promoter.token()), &hall).await.unwrap();
    let hall = text(&hall.expect_success("making a venue").unwrap(), "/venue/venueId").unwrap();
    let change = |plan: &mut Value| {
        plan["venueId"] = hall.into();
        let mut price = plan["prices"][0].clone();
        price["sectionId"] = "BOX".into();
        plan["prices"].as_array_mut().unwrap().push(price);
    };
    promoter.publish(change).await
}

impl Fan {
    async fn come(api: &Api, concert: &str, money: i64, number: usize) -> Self {
        Self {
            api: api.clone(),
            login: fan(api, money).await,
            money,
            number,
            holds_path: format!("/v1/concerts/{concert}/holds"),
            bookings: BTreeMap::new(),
            kept: Vec::new(),
        }
    }

    /// Holds the same seat over and over and forgets it: it must be free soon after each hold's end, whatever happens to the
    /// mesh. Leaves when everybody does, but has seen one to its end by then. Prints how long they outlived their ends at the
    /// most.
    async fn forget(self, concert: String, progress: Arc<Progress>) -> HoldsSeen {
        let (wish, mut outlived, mut breaches) = (json!({"seatIds": [FORGOTTEN]}), Vec::new(), Vec::new());
        while breaches.is_empty() {
            let held = self.insist(Method::POST, &self.holds_path, Some(&wish)).await;
            // The answer was lost, and the hold had ended when its key was heard again.
            if held.reason() == "HOLD_EXPIRED" {
                continue;
            }
            let held = held.expect_success("holding a seat that was forgotten").unwrap();
            let is_enough = || !outlived.is_empty() && progress.is_over.load(Ordering::Relaxed);
            match self.outlived(&concert, Instant::now() + HOLD_TTL, is_enough).await {
                Some(Ok(time)) => outlived.push(time),
                Some(Err(breach)) => breaches.push(breach),
                None => {
                    let path = format!("/v1/holds/{}", text(&held, "/hold/holdId").unwrap());
                    self.insist(Method::DELETE, &path, None).await;
                    break;
                }
            }
        }
        if let Some(longest) = outlived.iter().max() {
            let what = format!("{} holds that were forgotten, free after their end", outlived.len());
            report(&what, Instant::now() - *longest);
        }
        HoldsSeen { watched: Some(outlived.len() + breaches.len()), breaches }
    }

    /// How long after its end the hold of the forgotten seat is seen, while seats can be seen; an error if that is too long
    /// (I7). None: it is enough.
    async fn outlived(
        &self,
        concert: &str,
        end: Instant,
        is_enough: impl Fn() -> bool,
    ) -> Option<Result<Duration, String>> {
        let path = format!("/v1/concerts/{concert}/seats?sectionId=BOX");
        let mut seen_since = None;
        while !is_enough() {
            tokio::time::sleep(PAUSE).await;
            if Instant::now() < end {
                continue;
            }
            let seats = self.api.get(&path, None).await.and_then(|reply| reply.expect_success("seats"));
            seen_since = seats.is_ok().then(|| seen_since.unwrap_or_else(Instant::now));
            if let (Ok(seats), Some(since)) = (seats, seen_since) {
                if seats["sections"][0]["seatStates"] == "A" {
                    return Some(Ok(since.elapsed()));
                }
                if since.elapsed() > SWEEP {
                    return Some(Err(format!("{:?} after its end a hold is seen: {seats}", since.elapsed())));
                }
            }
        }
        None
    }

    async fn shop(mut self, progress: Arc<Progress>) -> Self {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_over = if self.is_poor() { &progress.is_over } else { &progress.is_over_for_the_rich };
        while !is_over.load(Ordering::Relaxed) {
            pace.tick().await;
            self.buy().await;
            if self.kept.len() > KEPT {
                self.give_back_oldest().await;
            }
            progress.rounds.fetch_add(1, Ordering::Relaxed);
        }
        self
    }

    /// Buys a place, if it can be had.
    async fn buy(&mut self) {
        // Seats are few, so that fans get in each other's way.
        let wish = if self.number.is_multiple_of(2) {
            json!({"bestAvailable": {"sectionId": "FLOOR", "quantity": 1}})
        } else {
            json!({"seatIds": [format!("A-{}-{}", rand::random_range(1..=2), rand::random_range(1..=6))]})
        };
        let held = self.insist(Method::POST, &self.holds_path, Some(&wish)).await;
        if !held.status.is_success() {
            // Expired: the answer was lost, and the hold had ended when its key was heard again.
            return self.expect_refusal(&held, &["SEAT_TAKEN", "SEAT_LIMIT_EXCEEDED", "HOLD_EXPIRED"]);
        }
        let hold = text(&held.body, "/hold/holdId").unwrap();
        let booked = self.insist(Method::POST, "/v1/bookings", Some(&order(&hold))).await;
        if booked.status.is_success() {
            let booking = self.settled(booked.body["booking"].clone()).await;
            if booking["state"] == "BOOKING_STATE_CONFIRMED" {
                return self.kept.push(text(&booking, "/bookingId").unwrap());
            }
        } else {
            let is_poor = ["INSUFFICIENT_BALANCE", "HOLD_EXPIRED", "SEAT_TAKEN", "PAYMENT_TIMED_OUT"];
            let expected = if self.is_poor() { &is_poor[..] } else { &is_poor[1..] };
            self.expect_refusal(&booked, expected);
        }
        let path = format!("/v1/holds/{hold}");
        let left = self.insist(Method::DELETE, &path, None).await;
        assert!(left.status.is_success(), "{path}: {} {}", left.status, left.body);
    }

    async fn give_back_oldest(&mut self) {
        let path = format!("/v1/bookings/{}/cancel", self.kept.remove(0));
        let cancelled = self.insist(Method::POST, &path, Some(&json!({}))).await;
        self.note(&cancelled.expect_success("cancelling a booking").unwrap()["booking"]);
    }

    /// Waits until the outcome of a booking is known.
    async fn settled(&mut self, mut booking: Value) -> Value {
        self.note(&booking);
        let path = format!("/v1/bookings/{}", booking["bookingId"].as_str().unwrap());
        while booking["state"] == "BOOKING_STATE_PAYING" {
            tokio::time::sleep(PAUSE).await;
            let found = self.insist(Method::GET, &path, None).await;
            booking = found.expect_success("reading a booking").unwrap()["booking"].take();
        }
        self.note(&booking);
        booking
    }

    fn note(&mut self, booking: &Value) {
        self.bookings.insert(text(booking, "/bookingId").unwrap(), booking["state"].clone());
    }

    /// Sends something by one key until the answer is definite.
    async fn insist(&self, method: Method, path: &str, body: Option<&Value>) -> Reply {
        let (token, key) = (Some(self.login.access_token.as_str()), new_key());
        loop {
            let answer = self.api.send(method.clone(), path, token, Some(&key), body).await;
            if let Ok(reply) = answer {
                let is_passing = reply.status == StatusCode::SERVICE_UNAVAILABLE
                    || reply.status == StatusCode::GATEWAY_TIMEOUT
                    || ["REQUEST_IN_PROGRESS", "RACE_LOST"].contains(&reply.reason());
                if !is_passing {
                    return reply;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    #[track_caller]
    fn expect_refusal(&self, reply: &Reply, expected: &[&str]) {
        let is_expected = reply.status == StatusCode::CONFLICT && expected.contains(&reply.reason());
        assert!(is_expected, "{} {}", reply.status, reply.body);
    }

    fn is_poor(&self) -> bool {
        self.money == 0
    }

    /// The bookings that were answered CONFIRMED at any time: what is cancelled was.
    pub(crate) fn confirmed(&self) -> impl Iterator<Item = BookingId> {
        let was_confirmed =
            |state: &&Value| *state == "BOOKING_STATE_CONFIRMED" || *state == "BOOKING_STATE_CANCELLED";
        self.bookings.iter().filter(move |(_, state)| was_confirmed(state)).map(|(id, _)| id.parse().unwrap())
    }

    /// The bookings that were answered.
    pub(crate) fn made(&self) -> impl Iterator<Item = BookingId> {
        self.bookings.keys().map(|id| id.parse().unwrap())
    }

    /// Asserts that each booking is as it was acknowledged, that there are no others, and that the wallet has what they
    /// leave. How many places the fan has.
    pub(crate) async fn assert_has_what_was_acknowledged(&self) -> usize {
        let found = self.list().await;
        for (id, state) in &self.bookings {
            let booking = found.get(id).unwrap_or_else(|| panic!("{id} is gone"));
            assert_eq!(booking["state"], *state, "{booking}");
            let refunded = if state == "BOOKING_STATE_CANCELLED" { &booking["total"] } else { &Value::Null };
            assert!(refunded.is_null() || booking["refunded"] == *refunded, "{booking}");
        }
        let confirmed: Vec<&Value> =
            found.values().filter(|booking| booking["state"] == "BOOKING_STATE_CONFIRMED").collect();
        for booking in &confirmed {
            let id = booking["bookingId"].as_str().unwrap();
            assert!(self.bookings.contains_key(id), "the fan was never told of {booking}");
        }
        let spent: i64 = confirmed
            .iter()
            .map(|booking| text(booking, "/total/minorUnits").unwrap().parse::<i64>().unwrap())
            .sum();
        assert_eq!(self.api.balance(&self.login).await, self.money - spent, "{confirmed:?}");
        confirmed.len()
    }

    /// All bookings, by id.
    async fn list(&self) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        let mut page = String::new();
        loop {
            let path = format!("/v1/bookings?pageSize=200&pageToken={page}");
            let reply = self.api.get(&path, Some(&self.login.access_token)).await.unwrap();
            let list = reply.expect_success("listing bookings").unwrap();
            for booking in list["bookings"].as_array().unwrap() {
                found.insert(text(booking, "/bookingId").unwrap(), booking.clone());
            }
            page = text(&list, "/nextPageToken").unwrap_or_default();
            if page.is_empty() {
                return found;
            }
        }
    }
}
