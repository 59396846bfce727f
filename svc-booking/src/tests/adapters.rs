//! The service as its callers see it: real gRPC on a free port, fans with tokens of their own.

use std::collections::HashSet;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::booking::v1::{
    BestAvailable, Booking, BookingState, CancelBookingRequest, CreateBookingRequest, CreateHoldRequest,
    DeleteHoldRequest, GetBookingRequest, GetHoldRequest, GetSeatMapRequest, GetSeatsRequest, Hold,
    ListBookingsRequest, PaymentMethod, SeatMap, booking_service_client::BookingServiceClient,
    hold_service_client::HoldServiceClient, seat_map_section::Arrangement,
    seat_service_client::SeatServiceClient,
};
use chrono::TimeDelta;
use jsonwebtoken::EncodingKey;
use mesh::{
    auth::{Keys, User, keys::PublicKey, token},
    clock::Clock,
    failure::error_info,
    id::{ConcertId, HoldId, SessionId, UserId},
    idempotency::REPLAYED,
};
use mesh_test::wait_until;
use tonic::{Request, Response, Status, transport::Channel};
use tonic_types::StatusExt;

use super::{
    concert::SEAT_PRICE,
    house::{HOLD_TTL, House, PATIENCE, serve},
};
use crate::routes;

/// The way to a served booking service, for fans.
pub(super) struct Door {
    channel: Channel,
    key: EncodingKey,
    clock: Clock,
}

impl Door {
    /// Serves a house's booking service.
    pub(super) async fn open(house: &House) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let keys = Keys::new();
        keys.replace(vec![PublicKey { kid: "k1".into(), x }], HashSet::new());
        let address = serve("booking", routes(&house.shared), keys, &house.service_key, &house.clock).await;
        Self {
            channel: Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy(),
            key: EncodingKey::from_ed_der(document.as_ref()),
            clock: house.clock.clone(),
        }
    }

    pub(super) fn seats(&self) -> SeatServiceClient<Channel> {
        SeatServiceClient::new(self.channel.clone())
    }

    fn holds(&self) -> HoldServiceClient<Channel> {
        HoldServiceClient::new(self.channel.clone())
    }

    fn bookings(&self) -> BookingServiceClient<Channel> {
        BookingServiceClient::new(self.channel.clone())
    }

    /// A request with a fan's token.
    fn by<T>(&self, fan: UserId, message: T) -> Request<T> {
        let user = User { id: fan, session: SessionId::new(), organizers: Vec::new(), is_admin: false };
        let now = self.clock.now();
        let token = token::sign(&user, "k1", &self.key, now, now + TimeDelta::minutes(15)).unwrap();
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    }

    pub(super) async fn hold(
        &self,
        fan: UserId,
        message: CreateHoldRequest,
    ) -> Result<Response<Hold>, Status> {
        let response = self.holds().create_hold(self.by(fan, message)).await?;
        Ok(response.map(|message| message.hold.expect("a hold")))
    }

    async fn book(&self, fan: UserId, hold_id: &str, key: &str) -> Result<Response<Booking>, Status> {
        let message = CreateBookingRequest {
            hold_id: hold_id.to_owned(),
            payment_method: PaymentMethod::Wallet.into(),
            return_url: String::new(),
            request_id: key.to_owned(),
        };
        let response = self.bookings().create_booking(self.by(fan, message)).await?;
        Ok(response.map(|message| message.booking.expect("a booking")))
    }

    async fn cancel(&self, fan: UserId, booking_id: &str, key: &str) -> Result<Response<Booking>, Status> {
        let message = CancelBookingRequest { booking_id: booking_id.to_owned(), request_id: key.to_owned() };
        let response = self.bookings().cancel_booking(self.by(fan, message)).await?;
        Ok(response.map(|message| message.booking.expect("a booking")))
    }

    async fn seat_map(&self, concert_id: &str, section_id: &str) -> Result<SeatMap, Status> {
        let message =
            GetSeatMapRequest { concert_id: concert_id.to_owned(), section_id: section_id.to_owned() };
        let response = self.seats().get_seat_map(message).await?;
        Ok(response.into_inner().seat_map.expect("a seat map"))
    }

    /// Each section with its free places and its letters.
    async fn letters(
        &self,
        concert_id: &str,
        section_id: &str,
    ) -> Result<Vec<(String, i32, String)>, Status> {
        let message =
            GetSeatsRequest { concert_id: concert_id.to_owned(), section_id: section_id.to_owned() };
        let sections = self.seats().get_seats(message).await?.into_inner().sections;
        let read = sections.into_iter();
        Ok(read.map(|section| (section.section_id, section.available, section.seat_states)).collect())
    }
}

/// A wish for these seats.
fn seats(concert: ConcertId, seat_ids: &[&str], key: &str) -> CreateHoldRequest {
    CreateHoldRequest {
        concert_id: concert.to_string(),
        seat_ids: seat_ids.iter().map(|seat_id| (*seat_id).to_owned()).collect(),
        best_available: None,
        request_id: key.to_owned(),
    }
}

/// A wish for the best seats.
pub(super) fn best(concert: ConcertId, section_id: &str, quantity: i32, key: &str) -> CreateHoldRequest {
    let best_available =
        Some(BestAvailable { section_id: section_id.to_owned(), quantity, accessible: false });
    CreateHoldRequest { best_available, ..seats(concert, &[], key) }
}

/// The reason of a refusal, and the fields it names.
fn refusal<T>(outcome: Result<T, Status>) -> (String, Vec<String>) {
    let Err(status) = outcome else { panic!("not refused") };
    let fields = status.get_details_bad_request().map(|details| details.field_violations);
    let fields = fields.unwrap_or_default().into_iter().map(|violation| violation.field).collect();
    (error_info(&status).expect("a reason").reason, fields)
}

fn metadata<T>(outcome: Result<T, Status>, key: &str) -> String {
    let Err(status) = outcome else { panic!("not refused") };
    error_info(&status).expect("a reason").metadata[key].clone()
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, reason: &str, fields: &[&str]) {
    let (found_reason, found_fields) = refusal(outcome);
    assert_eq!(found_reason, reason);
    assert_eq!(found_fields, fields);
}

fn is_replayed<T>(response: &Response<T>) -> bool {
    response.metadata().get(REPLAYED).is_some_and(|value| value == "true")
}

#[tokio::test]
async fn the_seat_map_tells_what_never_changes() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let map = door.seat_map(&house.concert.to_string(), "").await.unwrap();
    assert_eq!(map.layout_version, "layout-1");
    let [stalls, floor] = map.sections.as_slice() else { panic!("{map:?}") };
    assert_eq!((stalls.section_id.as_str(), stalls.display_name.as_str()), ("A", "Stalls"));
    assert_eq!(stalls.price.as_ref().unwrap().minor_units, SEAT_PRICE);
    let Some(Arrangement::Seated(rows)) = &stalls.arrangement else { panic!("{stalls:?}") };
    let labels: Vec<_> = rows.rows.iter().map(|row| row.row_label.as_str()).collect();
    assert_eq!(labels, ["1", "2"]);
    let seat = |row: usize, seat: usize| {
        let seat = &rows.rows[row].seats[seat];
        (seat.seat_id.as_str(), seat.seat_label.as_str(), seat.accessible)
    };
    assert_eq!(seat(0, 0), ("A-1-1", "1", true));
    assert_eq!(seat(1, 3), ("A-2-4", "4", false));
    let Some(Arrangement::Standing(area)) = &floor.arrangement else { panic!("{floor:?}") };
    assert_eq!(area.capacity, 2);

    let only_floor = door.seat_map(&house.concert.to_string(), "FLOOR").await.unwrap();
    assert_eq!(only_floor.sections, std::slice::from_ref(floor));
}

#[tokio::test]
async fn seats_are_a_letter_each() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (concert, concert_id) = (house.concert, house.concert.to_string());
    let fan = house.fan_with(1000);
    let hold = door.hold(fan, seats(concert, &["A-1-2"], "a")).await.unwrap().into_inner();
    door.book(fan, &hold.hold_id, "b").await.unwrap();
    door.hold(fan, seats(concert, &["A-2-4", "FLOOR-1"], "c")).await.unwrap();
    let expected = [("A".to_owned(), 6, "ASAAAAAH".to_owned()), ("FLOOR".to_owned(), 1, String::new())];
    wait_until("a view that is new", PATIENCE, async || match door.letters(&concert_id, "").await.unwrap() {
        letters if letters == expected => Ok(()),
        letters => Err(format!("{letters:?}")),
    })
    .await;
    assert_eq!(door.letters(&concert_id, "A").await.unwrap(), expected[..1]);
}

#[tokio::test]
async fn an_unknown_concert_or_section_is_named() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (concert, absent) = (house.concert.to_string(), ConcertId::new().to_string());
    assert_refused(door.seat_map(&absent, "").await, "CONCERT_NOT_FOUND", &[]);
    assert_refused(door.letters(&absent, "").await, "CONCERT_NOT_FOUND", &[]);
    for malformed in ["", "cnc_1", "usr_01h455vb4pex5vsknk084sn02q"] {
        assert_refused(door.seat_map(malformed, "").await, "FIELD_INVALID", &["concert_id"]);
        assert_refused(door.letters(malformed, "").await, "FIELD_INVALID", &["concert_id"]);
    }
    assert_refused(door.seat_map(&concert, "B").await, "FIELD_INVALID", &["section_id"]);
    assert_refused(door.letters(&concert, "B").await, "FIELD_INVALID", &["section_id"]);
}

#[tokio::test]
async fn a_hold_tells_its_seats_what_they_cost_and_until_when() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let fan = house.fan_with(0);
    let wish = seats(house.concert, &["A-1-3", "A-1-2"], "key");
    let hold = door.hold(fan, wish).await.unwrap().into_inner();
    let held: Vec<_> = hold.seats.iter().map(|seat| seat.seat_id.as_str()).collect();
    assert_eq!((held.as_slice(), hold.adjacent), (["A-1-3", "A-1-2"].as_slice(), true));
    assert_eq!(hold.total.as_ref().unwrap().minor_units, 2 * SEAT_PRICE);
    let expire_time = (house.clock.now() + HOLD_TTL).timestamp();
    assert_eq!(hold.expire_time.as_ref().unwrap().seconds, expire_time);

    let get = GetHoldRequest { hold_id: hold.hold_id.clone() };
    let found = door.holds().get_hold(door.by(fan, get)).await.unwrap().into_inner().hold;
    assert_eq!(found, Some(hold));
}

#[tokio::test]
async fn a_wish_that_makes_no_sense_is_refused_field_by_field() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (concert, fan) = (house.concert, house.fan_with(0));
    let ask = async |wish| refusal(door.hold(fan, wish).await);
    let invalid = |fields: &[&str]| {
        ("FIELD_INVALID".to_owned(), fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>())
    };
    let eleven: Vec<String> = (1..=11).map(|number| format!("A-9-{number}")).collect();
    let eleven: Vec<&str> = eleven.iter().map(String::as_str).collect();

    assert_eq!(ask(seats(concert, &[], "k")).await, invalid(&["seat_ids"]));
    assert_eq!(ask(seats(concert, &eleven, "k")).await, invalid(&["seat_ids"]));
    assert_eq!(ask(seats(concert, &["A-1-2", "A-1-2"], "k")).await, invalid(&["seat_ids[1]"]));
    let strangers = seats(concert, &["A-1-2", "A-3-1", "B-1-1", "FLOOR-3"], "k");
    assert_eq!(ask(strangers).await, invalid(&["seat_ids[1]", "seat_ids[2]", "seat_ids[3]"]));
    let both = CreateHoldRequest { seat_ids: vec!["A-1-2".into()], ..best(concert, "A", 1, "k") };
    assert_eq!(ask(both).await, invalid(&["seat_ids"]));
    for quantity in [0, -1, 11, i32::MIN, i32::MAX] {
        let wish = best(concert, "A", quantity, "k");
        assert_eq!(ask(wish).await, invalid(&["best_available.quantity"]), "{quantity}");
    }
    for section_id in ["", "B", "AAAAAAAAAAAAA"] {
        let wish = best(concert, section_id, 1, "k");
        assert_eq!(ask(wish).await, invalid(&["best_available.section_id"]), "{section_id:?}");
    }
    let malformed = CreateHoldRequest { concert_id: "cnc_1".into(), ..seats(concert, &["A-1-2"], "k") };
    assert_eq!(ask(malformed).await, invalid(&["concert_id"]));
    let missing = ("IDEMPOTENCY_KEY_MISSING".to_owned(), vec!["request_id".to_owned()]);
    assert_eq!(ask(seats(concert, &["A-1-2"], "")).await, missing);
    for key in ["with space".to_owned(), "k".repeat(256), "clé".to_owned()] {
        assert_eq!(ask(seats(concert, &["A-1-2"], &key)).await, invalid(&["request_id"]), "{key}");
    }
    assert_eq!(house.letters().await, "AAAAAAAAAA", "nothing was held");
}

#[tokio::test]
async fn seats_are_held_only_while_the_sale_is_open() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (fan, now) = (house.fan_with(0), house.clock.now());
    let (concerts, minute) = (&house.concert_service, TimeDelta::minutes(1));
    let later = concerts.put_on_sale(now + minute, now + minute * 2);
    let cancelled = concerts.put_on_sale(now, now + minute);
    concerts.cancel(cancelled);

    let early = door.hold(fan, seats(later, &["A-1-2"], "k")).await;
    assert_eq!(metadata(early, "sale_open_time"), (now + minute).to_rfc3339());
    assert_refused(door.hold(fan, best(later, "A", 1, "k")).await, "SALE_NOT_OPEN", &[]);
    assert_refused(door.hold(fan, seats(cancelled, &["A-1-2"], "k")).await, "CONCERT_CANCELLED", &[]);
    let absent = door.hold(fan, seats(ConcertId::new(), &["A-1-2"], "k")).await;
    assert_refused(absent, "CONCERT_NOT_FOUND", &[]);

    house.clock.advance(minute);
    door.hold(fan, seats(later, &["A-1-2"], "k")).await.expect("the first moment of the sale");
    house.clock.advance(minute);
    let late = door.hold(fan, seats(later, &["A-1-3"], "l")).await;
    assert_eq!(metadata(late, "sale_close_time"), (now + minute * 2).to_rfc3339());
    let again = door.hold(fan, seats(later, &["A-1-2"], "k")).await.unwrap();
    assert!(is_replayed(&again), "what was held in time is told again");
}

#[tokio::test]
async fn who_is_refused_hears_which_seats_and_how_many_are_left() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (concert, ann, bob) = (house.concert, house.fan_with(0), house.fan_with(0));
    door.hold(ann, seats(concert, &["A-1-2", "A-1-3", "A-1-4"], "a")).await.unwrap();
    let taken = door.hold(bob, seats(concert, &["A-1-1", "A-1-2", "A-1-4"], "b")).await;
    assert_eq!(metadata(taken, "seat_ids"), "A-1-2,A-1-4");
    let limited = door.hold(ann, best(concert, "A", 2, "c")).await;
    assert_eq!(metadata(limited, "remaining"), "1");
    let few = door.hold(bob, best(concert, "FLOOR", 3, "d")).await;
    assert_eq!(metadata(few, "available"), "2");
    assert_eq!(house.letters().await, "AHHHAAAAAA", "and nothing else was held");
}

#[tokio::test]
async fn the_best_seats_are_those_together_and_not_kept_for_others() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let fan = house.fan_with(0);
    let hold = door.hold(fan, best(house.concert, "A", 3, "k")).await.unwrap().into_inner();
    assert!(hold.adjacent);
    assert_eq!(house.letters().await, "AHHHAAAAAA", "A-1-1 is for a wheelchair user");

    let mut wish = best(house.concert, "A", 1, "l");
    wish.best_available.as_mut().unwrap().accessible = true;
    let hold = door.hold(fan, wish).await.unwrap().into_inner();
    assert_eq!(hold.seats[0].seat_id, "A-1-1");
}

#[tokio::test]
async fn a_key_holds_once() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (concert, fan) = (house.concert, house.fan_with(0));
    for (wish, other) in [
        (seats(concert, &["A-1-2"], "k"), seats(concert, &["A-1-3"], "k")),
        // There are but two places: what is looked for anew is not found.
        (best(concert, "FLOOR", 2, "l"), best(concert, "FLOOR", 1, "l")),
    ] {
        let first = door.hold(fan, wish.clone()).await.unwrap();
        let again = door.hold(fan, wish.clone()).await.unwrap();
        assert_eq!((is_replayed(&first), is_replayed(&again)), (false, true));
        assert_eq!(first.into_inner(), again.into_inner());
        assert_refused(door.hold(fan, other).await, "IDEMPOTENCY_KEY_REUSED", &[]);
    }
    assert_eq!(house.letters().await, "AHAAAAAAHH");
    let bob = door.hold(house.fan_with(0), seats(concert, &["A-1-3"], "k")).await.unwrap();
    assert!(!is_replayed(&bob), "another fan's key is another key");
}

#[tokio::test]
async fn a_hold_is_seen_and_ended_by_its_fan_alone() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (fan, thief) = (house.fan_with(0), house.fan_with(0));
    let hold_id = door.hold(fan, seats(house.concert, &["A-1-2"], "k")).await.unwrap().into_inner().hold_id;
    let never_was = HoldId::new().to_string();
    for hold_id in [&hold_id, &never_was] {
        let get = GetHoldRequest { hold_id: hold_id.clone() };
        let get = door.holds().get_hold(door.by(thief, get)).await;
        assert_refused(get, "HOLD_NOT_FOUND", &[]);
        let delete = DeleteHoldRequest { hold_id: hold_id.clone() };
        let delete = door.holds().delete_hold(door.by(thief, delete)).await;
        assert_refused(delete, "HOLD_NOT_FOUND", &[]);
        assert_refused(door.book(thief, hold_id, "k").await, "HOLD_NOT_FOUND", &[]);
    }
    assert_eq!(house.letters().await, "AHAAAAAAAA");

    let delete = || door.by(fan, DeleteHoldRequest { hold_id: hold_id.clone() });
    let first = door.holds().delete_hold(delete()).await.unwrap().into_inner().hold;
    assert_eq!(first.map(|hold| hold.hold_id), Some(hold_id.clone()));
    assert_eq!(house.letters().await, "AAAAAAAAAA");
    assert_eq!(door.holds().delete_hold(delete()).await.unwrap().into_inner().hold, None, "again");
    let get = GetHoldRequest { hold_id: hold_id.clone() };
    assert_refused(door.holds().get_hold(door.by(fan, get)).await, "HOLD_EXPIRED", &[]);
}

#[tokio::test]
async fn a_hold_that_was_booked_leads_to_its_booking() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let fan = house.fan_with(1000);
    let hold_id = door.hold(fan, seats(house.concert, &["A-1-2"], "k")).await.unwrap().into_inner().hold_id;
    let booking = door.book(fan, &hold_id, "k").await.unwrap().into_inner();
    let never_was = HoldId::new().to_string();
    assert_refused(door.book(fan, &never_was, "k").await, "IDEMPOTENCY_KEY_REUSED", &[]);
    assert_refused(door.book(fan, &never_was, "l").await, "HOLD_NOT_FOUND", &[]);
    let get = GetHoldRequest { hold_id };
    assert_eq!(metadata(door.holds().get_hold(door.by(fan, get)).await, "booking_id"), booking.booking_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_is_either_booked_or_given_back() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let mut given_back = 0;
    for seat in ["A-1-1", "A-1-2", "A-1-3", "A-1-4", "A-2-1", "A-2-2", "A-2-3", "A-2-4"] {
        let fan = house.fan_with(1000);
        let hold_id = door.hold(fan, seats(house.concert, &[seat], "k")).await.unwrap().into_inner().hold_id;
        let delete = DeleteHoldRequest { hold_id: hold_id.clone() };
        let mut holds = door.holds();
        let (booked, deleted) =
            tokio::join!(door.book(fan, &hold_id, "k"), holds.delete_hold(door.by(fan, delete)));
        match (&booked, &deleted) {
            (Ok(_), Err(refused)) => {
                let reason = mesh::failure::error_info(refused).unwrap().reason;
                assert!(matches!(reason.as_str(), "HOLD_BOOKED" | "REQUEST_IN_PROGRESS"), "{reason}");
            }
            (Err(_), Ok(_)) => given_back += 1,
            other => panic!("{seat}: {other:?}"),
        }
    }
    let letters = house.letters().await;
    assert_eq!(letters.matches('S').count(), 8 - given_back, "{letters}");
    assert_eq!(letters.matches('H').count(), 0, "{letters}");
}

#[tokio::test]
async fn a_booking_is_made_shown_listed_and_cancelled() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let fan = house.fan_with(1000);
    let wish = seats(house.concert, &["A-1-2", "FLOOR-1"], "k");
    let hold_id = door.hold(fan, wish).await.unwrap().into_inner().hold_id;
    let first = door.book(fan, &hold_id, "k").await.unwrap();
    assert!(!is_replayed(&first));
    let booking = first.into_inner();
    assert_eq!(booking.state(), BookingState::Confirmed);
    let amount = |money: &Option<_>| {
        let money: &boxoffice_proto::common::v1::Money = money.as_ref().unwrap();
        (money.currency_code.clone(), money.minor_units)
    };
    assert_eq!(amount(&booking.total), ("KRW".to_owned(), 150));
    assert_eq!(amount(&booking.refunded), ("KRW".to_owned(), 0), "a zero is written out");
    let again = door.book(fan, &hold_id, "k").await.unwrap();
    assert!(is_replayed(&again));
    assert_eq!(again.into_inner(), booking);

    let get = GetBookingRequest { booking_id: booking.booking_id.clone() };
    let got = door.bookings().get_booking(door.by(fan, get)).await.unwrap().into_inner();
    assert_eq!(got.booking.as_ref(), Some(&booking));
    let list = ListBookingsRequest::default();
    let listed = door.bookings().list_bookings(door.by(fan, list)).await.unwrap().into_inner();
    assert_eq!((listed.bookings, listed.next_page_token.as_str()), (vec![booking.clone()], ""));

    let cancelled = door.cancel(fan, &booking.booking_id, "c").await.unwrap();
    assert!(!is_replayed(&cancelled));
    let cancelled = cancelled.into_inner();
    assert_eq!(cancelled.state(), BookingState::Cancelled);
    assert_eq!(amount(&cancelled.refunded).1, 150);
    let again = door.cancel(fan, &booking.booking_id, "c").await.unwrap();
    assert!(is_replayed(&again));
    assert_eq!(again.into_inner(), cancelled);
    assert_eq!(house.payment.balance(fan), 1000);
}

#[tokio::test]
async fn a_booking_that_failed_says_why() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let fan = house.fan_with(0);
    let hold_id = door.hold(fan, seats(house.concert, &["A-1-2"], "k")).await.unwrap().into_inner().hold_id;
    let refused = door.book(fan, &hold_id, "k").await;
    let booking_id = metadata(refused, "booking_id");
    let get = GetBookingRequest { booking_id };
    let got = door.bookings().get_booking(door.by(fan, get)).await.unwrap().into_inner().booking.unwrap();
    assert_eq!(got.state(), BookingState::Failed);
    assert_eq!(got.failure_reason, "INSUFFICIENT_BALANCE");
}

#[tokio::test]
async fn bookings_are_seen_and_cancelled_by_their_fan_alone() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let (fan, thief) = (house.fan_with(1000), house.fan_with(1000));
    let hold_id = door.hold(fan, seats(house.concert, &["A-1-2"], "k")).await.unwrap().into_inner().hold_id;
    let booking = door.book(fan, &hold_id, "k").await.unwrap().into_inner();
    let never_was = mesh::id::BookingId::new().to_string();
    for booking_id in [&booking.booking_id, &never_was] {
        let get = GetBookingRequest { booking_id: booking_id.clone() };
        assert_refused(door.bookings().get_booking(door.by(thief, get)).await, "BOOKING_NOT_FOUND", &[]);
        assert_refused(door.cancel(thief, booking_id, "c").await, "BOOKING_NOT_FOUND", &[]);
    }
    let list = ListBookingsRequest { concert_id: house.concert.to_string(), ..Default::default() };
    let listed = door.bookings().list_bookings(door.by(thief, list)).await.unwrap().into_inner();
    assert_eq!(listed.bookings, []);
    assert_eq!(house.payment.balance(fan), 900);
}

#[tokio::test]
async fn an_order_that_makes_no_sense_is_refused_field_by_field() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let fan = house.fan_with(1000);
    let message = CreateBookingRequest { request_id: "k".into(), ..CreateBookingRequest::default() };
    let empty = door.bookings().create_booking(door.by(fan, message)).await;
    assert_refused(empty, "FIELD_INVALID", &["hold_id", "payment_method"]);
    let hold_id = HoldId::new().to_string();
    assert_refused(door.book(fan, &hold_id, "").await, "IDEMPOTENCY_KEY_MISSING", &["request_id"]);
    let booking_id = mesh::id::BookingId::new().to_string();
    assert_refused(door.cancel(fan, &booking_id, "").await, "IDEMPOTENCY_KEY_MISSING", &["request_id"]);
    assert_refused(door.cancel(fan, "bkg_1", "c").await, "FIELD_INVALID", &["booking_id"]);

    let list = async |message| door.bookings().list_bookings(door.by(fan, message)).await;
    let none = ListBookingsRequest { page_size: Some(0), ..Default::default() };
    assert_refused(list(none).await, "FIELD_INVALID", &["page_size"]);
    let foreign = ListBookingsRequest { page_token: "AAAA".into(), ..Default::default() };
    assert_refused(list(foreign).await, "PAGE_TOKEN_INVALID", &["page_token"]);
    let malformed = ListBookingsRequest { concert_id: "cnc_1".into(), ..Default::default() };
    assert_refused(list(malformed).await, "FIELD_INVALID", &["concert_id"]);
    let huge = ListBookingsRequest { page_size: Some(1_000_000_000), ..Default::default() };
    list(huge).await.expect("counts as the largest page");
}

#[tokio::test]
async fn without_a_token_seats_are_shown_and_nothing_else() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    door.letters(&house.concert.to_string(), "").await.expect("for everyone");
    let wish = seats(house.concert, &["A-1-2"], "k");
    assert_refused(door.holds().create_hold(wish).await, "TOKEN_MISSING", &[]);
    assert_refused(door.holds().get_hold(GetHoldRequest::default()).await, "TOKEN_MISSING", &[]);
    assert_refused(door.holds().delete_hold(DeleteHoldRequest::default()).await, "TOKEN_MISSING", &[]);
    let create = CreateBookingRequest::default();
    assert_refused(door.bookings().create_booking(create).await, "TOKEN_MISSING", &[]);
    assert_refused(door.bookings().get_booking(GetBookingRequest::default()).await, "TOKEN_MISSING", &[]);
    let list = ListBookingsRequest::default();
    assert_refused(door.bookings().list_bookings(list).await, "TOKEN_MISSING", &[]);
    let cancel = CancelBookingRequest::default();
    assert_refused(door.bookings().cancel_booking(cancel).await, "TOKEN_MISSING", &[]);
}
