//! What the tests of the whole mesh share: a Boxoffice of their own, people who use it, and a close look at its answers.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod answer;
pub(crate) mod collector;
mod events;
pub(crate) mod grpc;
mod metrics;
mod picture;
pub(crate) mod process;
pub(crate) mod workshop;

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use boxoffice::{
    api::{Api, Login, text},
    demo::{self, Organizer},
    embedded::{Embedded, Options},
};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mesh::clock::Clock;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use self::{
    answer::{Refusal, assert_refused, read, refusal},
    events::{Event, Events},
    metrics::scrape,
    picture::Picture,
    process::Process,
};

/// How long to wait for what should happen soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The password of everybody who signs up in a test.
pub(crate) const PASSWORD: &str = "three rivers and a lantern";
/// What a seat in section A costs.
pub(crate) const PRICE: i64 = 110_000;

/// A Boxoffice of its own, gone when the test ends.
pub(crate) struct Stage {
    pub(crate) embedded: Embedded,
    /// REST, as a frontend uses it.
    pub(crate) api: Api,
    /// For calls that no frontend would make.
    pub(crate) http: reqwest::Client,
    directory: TempDir,
}

impl Stage {
    pub(crate) async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    /// The same; `change` may change how it is started.
    pub(crate) async fn open_with(change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::throwaway(directory.path());
        change(&mut options);
        let embedded = Embedded::start(options).await.unwrap();
        let api = Api::new(embedded.url()).unwrap();
        demo::wait_until_ready(&api).await.unwrap();
        Self { embedded, api, http: client(), directory }
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Where a service is served.
    pub(crate) fn service(&self, name: &str) -> SocketAddr {
        self.embedded.services.iter().find(|(service, _)| *service == name).unwrap().1
    }

    /// A call made by hand.
    pub(crate) fn call(&self, method: &str, path: &str) -> RequestBuilder {
        self.http.request(method.parse().unwrap(), format!("{}{path}", self.embedded.url()))
    }

    /// Somebody who signed up, is logged in, and has so much money.
    pub(crate) async fn fan(&self, won: i64) -> Login {
        fan(&self.api, won).await
    }

    /// Somebody who may publish concerts, with a venue.
    pub(crate) async fn promoter(&self) -> Promoter {
        let login = self.fan(0).await;
        let organizer = Organizer::make(&self.api, &login, "Promoter").await.unwrap();
        Promoter::new(&self.api, organizer).await
    }
}

/// An HTTP client that follows nowhere.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// A new e-mail address.
pub(crate) fn new_email() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("fan{}@test.example", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Somebody who signed up, is logged in, and has so much money.
pub(crate) async fn fan(api: &Api, won: i64) -> Login {
    let email = new_email();
    api.sign_up(&email, PASSWORD, "Fan").await.unwrap();
    let login = api.log_in(&email, PASSWORD).await.unwrap();
    if won > 0 {
        api.top_up(&login.access_token, won).await.unwrap();
    }
    login
}

pub(crate) fn now() -> DateTime<Utc> {
    Clock::system().now()
}

/// A time so long from now, as REST writes it.
pub(crate) fn from_now(delta: TimeDelta) -> String {
    (now() + delta).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Somebody who publishes concerts. The venue has section A with 2 rows of 6 seats, of which A-2-6 is kept for wheelchair
/// users, and section FLOOR with 20 standing places.
pub(crate) struct Promoter {
    pub(crate) organizer: Organizer,
    pub(crate) venue_id: String,
    api: Api,
}

impl Promoter {
    pub(crate) async fn new(api: &Api, organizer: Organizer) -> Self {
        let venue = venue(&organizer.organizer_id);
        let venue = api.post("/v1/venues", Some(&organizer.access_token), &venue).await.unwrap();
        let venue = venue.expect_success("making a venue").unwrap();
        Self { organizer, venue_id: text(&venue, "/venue/venueId").unwrap(), api: api.clone() }
    }

    pub(crate) fn token(&self) -> &str {
        &self.organizer.access_token
    }

    /// What `POST /v1/concerts` takes, for a concert on sale from a minute ago until it takes place in thirty days.
    pub(crate) fn plan(&self) -> Value {
        let price = |section: &str, won: i64| json!({"sectionId": section, "price": {"currencyCode": "KRW", "minorUnits": won.to_string()}});
        json!({
            "organizerId": self.organizer.organizer_id, "venueId": self.venue_id, "title": "A Night Out",
            "description": "", "genre": "indie", "startTime": from_now(TimeDelta::days(30)),
            "saleOpenTime": from_now(TimeDelta::minutes(-1)), "saleCloseTime": from_now(TimeDelta::days(30)),
            "prices": [price("A", PRICE), price("FLOOR", 55_000)], "maxSeatsPerFan": 4,
        })
    }

    /// The id of a new draft. `change` may change the plan.
    pub(crate) async fn draft(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut plan = self.plan();
        change(&mut plan);
        let made = self.api.post("/v1/concerts", Some(self.token()), &plan).await.unwrap();
        text(&made.expect_success("making a concert").unwrap(), "/concert/concertId").unwrap()
    }

    /// The id of a new concert that is published. `change` may change the plan.
    pub(crate) async fn publish(&self, change: impl FnOnce(&mut Value)) -> String {
        let concert_id = self.draft(change).await;
        let path = format!("/v1/concerts/{concert_id}/publish");
        let published = self.api.post(&path, Some(self.token()), &json!({})).await.unwrap();
        published.expect_success("publishing a concert").unwrap();
        concert_id
    }

    /// The id of a new concert on sale.
    pub(crate) async fn concert(&self) -> String {
        self.publish(|_| {}).await
    }

    /// Cancels a concert.
    pub(crate) async fn cancel(&self, concert_id: &str) {
        let path = format!("/v1/concerts/{concert_id}/cancel");
        let cancelled = self.api.post(&path, Some(self.token()), &json!({})).await.unwrap();
        cancelled.expect_success("cancelling a concert").unwrap();
    }
}

/// What `POST /v1/venues` takes.
pub(crate) fn venue(organizer_id: &str) -> Value {
    let seated = json!({"rows": 2, "seatsPerRow": 6, "accessibleSeatIds": ["A-2-6"]});
    json!({
        "organizerId": organizer_id, "displayName": "The Hall", "timeZone": "Asia/Seoul",
        "sections": [
            {"sectionId": "A", "displayName": "Stalls", "seated": seated},
            {"sectionId": "FLOOR", "displayName": "Floor", "standing": {"capacity": 20}},
        ],
    })
}

/// What a fan does.
pub(crate) trait Visit {
    /// Holds seats; the id of the hold.
    async fn hold(&self, fan: &Login, concert_id: &str, seat_ids: &[&str]) -> String;
    /// Books a hold; the booking.
    async fn book(&self, fan: &Login, hold_id: &str) -> Value;
    /// What is in the wallet, in won.
    async fn balance(&self, fan: &Login) -> i64;
    /// A booking as it is now.
    async fn booking(&self, fan: &Login, booking_id: &str) -> Value;
    /// The letters of the seats in section A.
    async fn letters(&self, concert_id: &str) -> String;
}

impl Visit for Api {
    async fn hold(&self, fan: &Login, concert_id: &str, seat_ids: &[&str]) -> String {
        let path = format!("/v1/concerts/{concert_id}/holds");
        let held = self.post(&path, Some(&fan.access_token), &json!({"seatIds": seat_ids})).await.unwrap();
        text(&held.expect_success("holding seats").unwrap(), "/hold/holdId").unwrap()
    }

    async fn book(&self, fan: &Login, hold_id: &str) -> Value {
        let booked = self.post("/v1/bookings", Some(&fan.access_token), &order(hold_id)).await.unwrap();
        booked.expect_success("booking a hold").unwrap()["booking"].take()
    }

    async fn balance(&self, fan: &Login) -> i64 {
        let wallet = self.get("/v1/wallet", Some(&fan.access_token)).await.unwrap();
        let wallet = wallet.expect_success("reading a wallet").unwrap();
        text(&wallet, "/wallet/balance/minorUnits").unwrap().parse().unwrap()
    }

    async fn booking(&self, fan: &Login, booking_id: &str) -> Value {
        let found = self.get(&format!("/v1/bookings/{booking_id}"), Some(&fan.access_token)).await.unwrap();
        found.expect_success("reading a booking").unwrap()["booking"].take()
    }

    async fn letters(&self, concert_id: &str) -> String {
        let seats = self.get(&format!("/v1/concerts/{concert_id}/seats?sectionId=A"), None).await.unwrap();
        text(&seats.expect_success("reading seats").unwrap(), "/sections/0/seatStates").unwrap()
    }
}

/// What `POST /v1/bookings` takes.
pub(crate) fn order(hold_id: &str) -> Value {
    json!({"holdId": hold_id, "paymentMethod": "PAYMENT_METHOD_WALLET"})
}

/// What `POST /v1/wallet/top-ups` takes.
pub(crate) fn top_up(won: i64) -> Value {
    let amount = json!({"currencyCode": "KRW", "minorUnits": won.to_string()});
    json!({"provider": "PAYMENT_PROVIDER_SANDBOX", "amount": amount})
}
